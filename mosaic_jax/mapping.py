"""The one place that maps a function written for one client over stacked clients, on one device or several."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mosaic_jax.config import ConfigError, MappingConfig, MemoryConfig
from mosaic_jax.types import PyTree

AXIS = "client"
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
    chunk: experts that run together, 1 is one after another. reason: why, in words.
    """

    stored: bool = True
    chunk: int = 1
    reason: str = ""


def create_cpu_devices(mapping: MappingConfig, num_clients: int) -> None:
    """Let JAX see the processor as several devices, one for each core that has clients to work on.

    A core with its own clients waits for nobody, whereas one client's small layers keep only one and a half of two cores busy.
    Without effect once JAX runs, and where JAX_NUM_CPU_DEVICES or XLA_FLAGS already say how many.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jax.config.jax_num_cpu_devices > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", mapping.num_devices or min(cores, num_clients))
    except RuntimeError:  # a program that uses us as a library has started JAX already: its devices are what there is
        return


def make_plan(mapping: MappingConfig, num_clients: int, fitting: int = 0) -> Plan:
    """The plan that `mapping.client_chunk` and `mapping.num_devices` ask for; 0 in either leaves it to us.

    Chosen by us: all local devices, but no more than clients; on a CPU one client at a time, for one fills its core, and
    elsewhere all at once, or those that fit. fitting: clients whose work fits a device's memory together, 0 where it is not known.
    Raises ConfigError for more devices than there are.
    """
    devices = jax.local_devices()
    if mapping.num_devices > len(devices):
        raise ConfigError(f"mapping.num_devices={mapping.num_devices}: only {len(devices)} here; use 0 for all of them")
    backend = jax.default_backend()
    chunk, why = mapping.client_chunk, f"mapping.client_chunk={mapping.client_chunk}"
    asked = mapping.num_devices or len(devices)
    used = devices[: min(asked, num_clients)]
    if chunk == 0:
        chunk, why = (1, "a client fills its core") if backend == "cpu" else (0, f"a {backend} is filled by all clients at once")
        if chunk == 0 and 0 < fitting < -(-num_clients // len(used)):
            chunk, why = fitting, f"as many as fit into the memory of a {backend}"
    shared = f"mapping.num_devices={asked}" if mapping.num_devices else f"every device here ({asked}) takes clients"
    if len(used) < asked:
        shared = f"{asked} devices, but no more than clients"
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
    return ExpertPlan(stored, min(chunk, num_experts), f"{why}; {how}")


def for_each_client(fn: Callable[..., Any], mapped: tuple, shared: tuple = (), plan: Plan = ONE_DEVICE) -> Any:
    """Apply `fn(*mapped[i], *shared)` to every client i and stack the results.

    mapped: tuple of pytrees with leading axis C; shared: tuple of pytrees given whole to each client. Class experts are mapped
    here as well, on one device.
    Results of different plans agree to floating-point tolerance, not to the last bit.
    """

    def one(client: tuple, shared: tuple) -> Any:
        return fn(*client, *shared)

    def on_a_device(mapped: tuple, shared: tuple) -> Any:
        here = jax.tree.leaves(mapped)[0].shape[0]
        if plan.chunk == 0 or plan.chunk >= here > 1:
            return jax.vmap(one, in_axes=(0, None))(mapped, shared)
        return jax.lax.map(lambda client: one(client, shared), mapped, batch_size=plan.chunk if plan.chunk > 1 else None)

    if len(plan.devices) < 2:
        return on_a_device(mapped, shared)
    # The last device may have fewer clients: it repeats one, whose result is dropped. With check_vma a gradient of `shared`
    # would be summed over the clients of all devices.
    num_clients = jax.tree.leaves(mapped)[0].shape[0]
    places = np.minimum(np.arange(-(-num_clients // len(plan.devices)) * len(plan.devices)), num_clients - 1)
    even = len(places) == num_clients
    results = jax.shard_map(
        on_a_device, mesh=_mesh(plan), in_specs=(SHARDED, REPLICATED), out_specs=SHARDED, check_vma=False
    )(mapped if even else jax.tree.map(lambda x: x[places], mapped), shared)  # fmt: skip
    return results if even else jax.tree.map(lambda x: x[:num_clients], results)


def _mesh(plan: Plan) -> Mesh:
    return Mesh(np.array(plan.devices), (AXIS,))


def shardings(plan: Plan, specs: PyTree, num_clients: int) -> PyTree:
    """Where arrays live under a plan: a Sharding for each PartitionSpec.

    specs: a prefix of the arrays' tree. Clients that do not divide among the devices are held by all of them.
    """
    if len(plan.devices) < 2:
        return one_device()
    even = num_clients % len(plan.devices) == 0
    return jax.tree.map(
        lambda spec: NamedSharding(_mesh(plan), spec if even else REPLICATED), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def one_device() -> Sharding:
    """The first local device, where the server's stages run."""
    return SingleDeviceSharding(jax.local_devices()[0])
