"""The one place that maps a function written for one client over stacked clients, on devices of one process or several."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mosaic_jax import processes
from mosaic_jax.config import ConfigError, MappingConfig, MemoryConfig
from mosaic_jax.ops import one_core_each
from mosaic_jax.types import PyTree

AXIS = "client"
PARTS = 4  # chunks at least, of clients with unequal work: most of the waiting is gone, and a chunk still fills an accelerator
SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


class Plan(NamedTuple):
    """How clients are mapped.

    chunk: clients mapped together on one device: 0 is all (vmap), 1 one after another, k groups of k.
    devices: share the clients in equal parts, each with its own copy of the program; none or one means no sharing.
    reason: why this chunk and these devices, in words.
    """

    chunk: int = 0
    devices: tuple[jax.Device, ...] = ()
    reason: str = ""


ONE_DEVICE = Plan()
ONE_AT_A_TIME = Plan(1)


class ExpertPlan(NamedTuple):
    """How class experts are held and run at the server.

    stored: all K of them are held; otherwise each is made of the clients' models whenever it runs.
    chunk: experts that run together, 1 is one after another. images: of a batch that an expert is given at once, 0 is all.
    reason: why, in words.
    """

    stored: bool = True
    chunk: int = 1
    images: int = 0
    reason: str = ""


def make_plan(mapping: MappingConfig, num_clients: int, fitting: int = 0) -> Plan:
    """The plan that `mapping.client_chunk` and `mapping.num_devices` ask for; 0 in either leaves it to us.

    Chosen by us: all devices of all processes, but no more than clients; on a CPU one client at a time, for one fills its
    core, and elsewhere all at once, or those that fit. fitting: clients whose work fits a device's memory together, 0 where it is
    not known. Raises ConfigError for more devices than a process has, and fewer clients than processes.
    """
    local = [jax.local_devices()]
    if processes.several():
        local = [[d for d in jax.devices() if d.process_index == process] for process in range(processes.count())]
    here = min(map(len, local))
    if mapping.num_devices > here:
        raise ConfigError(f"mapping.num_devices={mapping.num_devices}: only {here} here; use 0 for all of them")
    if num_clients < len(local):
        raise ConfigError(f"partition.num_clients={num_clients}: fewer than the {len(local)} processes; start at most as many")
    backend = jax.default_backend()
    chunk, why = mapping.client_chunk, f"mapping.client_chunk={mapping.client_chunk}"
    # One of each process in turn, so that every process has a part; then by process, neighbours of a ring beside one another.
    in_turn = zip_longest(*(own[: mapping.num_devices or len(own)] for own in local))
    asked = [device for devices in in_turn for device in devices if device is not None]
    used = sorted(asked[:num_clients], key=lambda device: device.process_index)
    if chunk == 0:
        chunk, why = (1, "a client fills its core") if backend == "cpu" else (0, f"a {backend} is filled by all clients at once")
        if chunk == 0 and 0 < fitting < -(-num_clients // len(used)):
            chunk, why = fitting, f"as many as fit into the memory of a {backend}"
    shared = f"mapping.num_devices={mapping.num_devices}" if mapping.num_devices else f"every device here ({here}) takes clients"
    shared += f", in each of {len(local)} processes" if len(local) > 1 else ""
    if len(used) < len(asked):
        shared = f"{len(asked)} devices, but no more than clients"
    return Plan(chunk, tuple(used), f"{why}; {shared}")


def make_expert_plan(mapping: MappingConfig, memory: MemoryConfig, num_experts: int, stored_fit: bool, fitting: int) -> ExpertPlan:
    """How `memory.experts` and `mapping.expert_chunk` ask for experts to be held and run; auto and 0 leave it to us.

    stored_fit: whether all of them fit into memory; fitting: experts that fit when they run together. Chosen by us: stored if
    they fit; on a CPU one at a time, for one fills the machine, and elsewhere those that fit.
    """
    stored, why = memory.experts == "stored", f"memory.experts={memory.experts}"
    if memory.experts == "auto":
        stored, why = stored_fit, f"all {num_experts} {'fit' if stored_fit else 'do not fit'} into memory"
    chunk, how, backend = mapping.expert_chunk, f"mapping.expert_chunk={mapping.expert_chunk}", jax.default_backend()
    if chunk == 0 and backend == "cpu":
        chunk, how = 1, "an expert fills the machine"
    elif chunk == 0:
        chunk, how = fitting, f"as many as fit into the memory of a {backend}"
    # Activations of so few images stay in a core's cache: an eighth faster at ResNet-18 of width 16 and 320 images.
    images = 32 if backend == "cpu" else 0
    return ExpertPlan(stored, min(chunk, num_experts), images, f"{why}; {how}")


def for_each_client(
    fn: Callable[..., Any], mapped: tuple, shared: tuple = (), plan: Plan = ONE_DEVICE, steps: jax.Array | None = None
) -> Any:
    """Apply `fn(*mapped[i], *shared)` to every client i and stack the results.

    mapped: tuple of pytrees with leading axis C; shared: tuple of pytrees given whole to each client. Class experts are mapped
    here as well, on one device. steps: i32[C], how many steps `fn` does for each client, where they may differ. Clients mapped
    together all wait for the longest of them, so each device then maps those of similar numbers together, in at least PARTS chunks.
    Results of different plans agree to floating-point tolerance, not to the last bit.
    """

    def one(client: tuple, shared: tuple) -> Any:
        return fn(*client, *shared)

    def in_chunks(mapped: tuple, shared: tuple, chunk: int) -> Any:
        here = jax.tree.leaves(mapped)[0].shape[0]
        if chunk == 0 or chunk >= here > 1:
            return jax.vmap(one, in_axes=(0, None))(mapped, shared)
        return jax.lax.map(lambda client: one(client, shared), mapped, batch_size=chunk if chunk > 1 else None)

    def on_a_device(mapped: tuple, shared: tuple) -> Any:
        if steps is None:
            return in_chunks(mapped, shared, plan.chunk)
        mapped, own_steps = mapped
        here = len(own_steps)
        chunk = min(plan.chunk or here, max(-(-here // PARTS), 2))
        if not 1 < chunk < here:
            return in_chunks(mapped, shared, plan.chunk)
        order = jnp.argsort(own_steps)
        back = jnp.argsort(order)
        results = in_chunks(jax.tree.map(lambda x: x[order], mapped), shared, chunk)
        return jax.tree.map(lambda x: x[back], results)

    if steps is not None:
        mapped = (mapped, steps)
    if len(plan.devices) < 2:
        return on_a_device(mapped, shared)
    # The last device may have fewer clients: it repeats one, whose result is dropped. With check_vma a gradient of `shared`
    # would be summed over the clients of all devices.
    num_clients = jax.tree.leaves(mapped)[0].shape[0]
    places = np.minimum(np.arange(-(-num_clients // len(plan.devices)) * len(plan.devices)), num_clients - 1)
    even = len(places) == num_clients
    with one_core_each():
        results = jax.shard_map(
            on_a_device, mesh=_mesh(plan), in_specs=(SHARDED, REPLICATED), out_specs=SHARDED, check_vma=False
        )(mapped if even else jax.tree.map(lambda x: x[places], mapped), shared)  # fmt: skip
    return results if even else jax.tree.map(lambda x: x[:num_clients], results)


def in_groups(fn: Callable[[jax.Array], jax.Array], images: jax.Array, most: int) -> jax.Array:
    """`fn(images)` by equal groups of at most `most` images, one after another, for an `fn` that takes each image for itself.

    images: [B, ...] -> [B, ...]; whole where most is 0 and where equal groups would be less than half as large.
    """
    batch = images.shape[0]
    size = next((size for size in range(min(most, batch), most // 2, -1) if batch % size == 0), batch)
    if size == batch:
        return fn(images)
    results = jax.lax.map(fn, images.reshape(-1, size, *images.shape[1:]))
    return results.reshape(-1, *results.shape[2:])


def _mesh(plan: Plan) -> Mesh:
    return Mesh(np.array(plan.devices), (AXIS,))


def shardings(plan: Plan, specs: PyTree, arrays: PyTree) -> PyTree:
    """Where arrays live under a plan: a Sharding for each of them, or one for all on one device.

    specs: PartitionSpecs, a prefix of the arrays' tree, or one spec for whatever it is given to. Clients that do not divide among
    the devices are held by all of them.
    """
    if len(plan.devices) < 2:
        return one_device()
    mesh = _mesh(plan)
    if isinstance(specs, PartitionSpec) and specs == REPLICATED:
        return NamedSharding(mesh, specs)

    def where(spec: PartitionSpec, part: PyTree) -> PyTree:
        axis = client_axis(spec)

        def of_leaf(leaf: jax.Array) -> Sharding:
            even = axis >= 0 and leaf.shape[axis] % len(plan.devices) == 0
            return NamedSharding(mesh, spec if even else REPLICATED)

        return jax.tree.map(of_leaf, part)

    return jax.tree.map(where, specs, arrays, is_leaf=lambda x: isinstance(x, PartitionSpec))


def one_device() -> Sharding:
    """The first local device, where the server's stages run: in every process alike."""
    return SingleDeviceSharding(jax.local_devices()[0])


def client_axis(spec: PartitionSpec) -> int:
    """The axis of a leaf along which its clients lie; -1 for a leaf that is not stacked over clients."""
    return tuple(spec).index(AXIS) if AXIS in spec else -1


def place(tree: PyTree, where: PyTree) -> PyTree:
    """Put arrays, of which every process has the whole, where they are to live: jax.device_put for devices of all processes.

    where: Shardings, a prefix of the tree.
    """

    def put(sharding: Sharding, part: PyTree) -> PyTree:
        if sharding.is_fully_addressable:
            return jax.device_put(part, sharding)

        def cut(leaf: jax.Array) -> jax.Array:
            whole = np.asarray(leaf)
            # Copies: on a CPU the array would live in the memory of `leaf`, which must outlast its donation.
            return jax.make_array_from_callback(whole.shape, sharding, lambda place: np.array(whole[place]))

        return jax.tree.map(cut, part)

    return jax.tree.map(put, where, tree)


def bring_here(tree: PyTree) -> PyTree:
    """Whole arrays on the first local device, whichever devices hold them: called by all processes that hold a part."""

    def elsewhere(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable

    cut = [leaf for leaf in jax.tree.leaves(tree) if elsewhere(leaf) and not leaf.is_fully_replicated]
    if cut:
        whole = iter(jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(cut[0].sharding.mesh, REPLICATED))(cut))
        tree = jax.tree.map(lambda leaf: next(whole) if elsewhere(leaf) and not leaf.is_fully_replicated else leaf, tree)
    return jax.device_put(jax.tree.map(lambda leaf: leaf.addressable_data(0) if elsewhere(leaf) else leaf, tree), one_device())
