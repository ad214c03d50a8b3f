"""Mapping over clients: however they are grouped, each client gets what the loop over clients gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax.config import ConfigError, MappingConfig
from mosaic_jax.mapping import REPLICATED, SHARDED, Plan, for_each_client, in_groups, make_plan, one_device, shardings
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.trees import stack

NUM_CLIENTS = 5


def work(own: dict, target: jax.Array, shared: jax.Array) -> tuple[jax.Array, dict]:
    """A loss, and its gradients with respect to the client's own weights and to the argument that all clients share."""

    def loss(own: dict, shared: jax.Array) -> jax.Array:
        return jnp.sum((jnp.tanh(own["w"] @ shared) - target) ** 2)

    value, (of_own, of_shared) = jax.value_and_grad(loss, argnums=(0, 1))(own, shared)
    return value, {"own": of_own, "shared": of_shared}


@pytest.fixture
def clients() -> tuple[list[tuple[dict, jax.Array]], jax.Array]:
    """Each client's arguments, and the shared one."""
    random = np.random.default_rng(0)
    own = [({"w": jnp.asarray(random.normal(size=(4, 3)), jnp.float32)}, jnp.float32(random.normal())) for _ in range(NUM_CLIENTS)]
    return own, jnp.asarray(random.normal(size=(3, 2)), jnp.float32)


def plan(chunk: int, num_devices: int) -> Plan:
    return Plan(chunk, tuple(jax.local_devices()[:num_devices]))


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, NUM_CLIENTS, NUM_CLIENTS + 1])
@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("jit", [False, True])
def test_mapped_equals_the_loop_for_every_plan(clients: tuple, chunk: int, num_devices: int, jit: bool) -> None:
    own, shared = clients
    mapped = stack([weights for weights, _ in own]), stack([target for _, target in own])

    def run(mapped: tuple, shared: jax.Array) -> tuple:
        return for_each_client(work, mapped, (shared,), plan(chunk, num_devices))

    found = (jax.jit(run) if jit else run)(mapped, shared)
    looped = stack([work(*client, shared) for client in own])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, looped)


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize("num_devices", [1, 2, 3])
def test_the_gradient_of_a_shared_argument_is_each_clients_own_and_never_a_sum(chunk: int, num_devices: int) -> None:
    def gradient(scale: jax.Array, shared: jax.Array) -> jax.Array:
        return jax.grad(lambda shared: jnp.sum(scale * shared))(shared)

    found = for_each_client(gradient, (jnp.array([1.0, 10.0, 100.0]),), (jnp.ones(2),), plan(chunk, num_devices))
    np.testing.assert_array_equal(found, [[1.0, 1.0], [10.0, 10.0], [100.0, 100.0]])


@pytest.mark.parametrize("num_devices", [2, 4])
def test_clients_run_as_many_steps_as_they_have_whatever_device_they_are_on(num_devices: int) -> None:
    def count(steps: jax.Array, key: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, steps, lambda i, x: x + 1, 0) + 0 * jax.random.bits(key).astype(jnp.int32)

    steps, keys = jnp.array([3, 0, 7, 1, 20]), jax.random.split(jax.random.key(0), 5)
    found = jax.jit(lambda s, k: for_each_client(count, (s, k), (), plan(1, num_devices)))(steps, keys)
    np.testing.assert_array_equal(found, steps)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("chunk", [0, 1, 2, 3])
def test_clients_of_similar_numbers_of_steps_are_mapped_together(num_devices: int, chunk: int) -> None:
    passes: list[int] = []

    def count(steps: jax.Array, name: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(i: jax.Array, done: jax.Array) -> jax.Array:
            jax.debug.callback(lambda i: passes.append(int(i)), i)  # for every client that is mapped, waiting or not
            return done + 1

        return jax.lax.fori_loop(0, steps, step, 0), name

    # Long and short by turns: in the order of their names every chunk would have a long one.
    steps = jnp.array([9, 1, 8, 2, 9, 1, 8, 2] * num_devices)
    names = jnp.arange(len(steps))
    mapped = jax.jit(lambda s, n: for_each_client(count, (s, n), (), plan(chunk, num_devices), s))(steps, names)
    jax.effects_barrier()
    np.testing.assert_array_equal(mapped, (steps, names))
    assert len(passes) == steps.sum()  # chunks of two equal ones: nobody waits


@pytest.mark.parametrize(("num_clients", "held"), [(4, 2), (5, 5)])
def test_a_placed_state_is_held_in_parts_where_the_clients_divide_among_the_devices(num_clients: int, held: int) -> None:
    arrays = {"clients": jnp.arange(num_clients * 2.0).reshape(num_clients, 2), "server": jnp.ones(3)}
    where = shardings(plan(1, 2), {"clients": SHARDED, "server": REPLICATED}, arrays)
    placed = jax.device_put(arrays, where)
    assert [shard.data.shape for shard in placed["clients"].addressable_shards] == [(held, 2)] * 2
    assert [shard.data.shape for shard in placed["server"].addressable_shards] == [(3,)] * 2
    gathered = jax.device_put(placed, one_device())
    np.testing.assert_array_equal(gathered["clients"], np.arange(num_clients * 2.0).reshape(num_clients, 2))
    assert len(gathered["clients"].devices()) == 1


@pytest.mark.parametrize("chunk", [0, 1, 2, 3])
def test_one_client_alone_can_be_mapped(chunk: int) -> None:
    found = for_each_client(lambda a, b: a + b, (jnp.ones((1, 2)),), (jnp.float32(2.0),), Plan(chunk))
    np.testing.assert_array_equal(found, [[3.0, 3.0]])


def test_what_a_client_draws_does_not_depend_on_the_cohort() -> None:
    key = key_at(0, "warmup", 7)

    def draw(client: jax.Array) -> jax.Array:
        return jax.random.normal(client_key(key, client), (3,))

    everyone = for_each_client(draw, (jnp.arange(6),), plan=Plan(0))
    some = for_each_client(draw, (jnp.array([4, 1]),), plan=Plan(1))
    np.testing.assert_array_equal(some, everyone[jnp.array([4, 1])])
    assert len(np.unique(np.asarray(everyone))) == everyone.size


def test_keys_differ_by_seed_stage_step_and_client() -> None:
    keys = [key_at(0, "warmup", 1), key_at(1, "warmup", 1), key_at(0, "meta", 1), key_at(0, "warmup", 2)]
    keys += [client_key(keys[0], 0), client_key(keys[0], 1)]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == len(keys)


def test_a_plan_chosen_by_us_is_one_client_at_a_time_on_a_processor_and_shares_among_all_devices() -> None:
    expected = 1 if jax.default_backend() == "cpu" else 0
    everything = tuple(jax.local_devices())
    assert [make_plan(MappingConfig(client_chunk=chunk), 100).chunk for chunk in (0, 1, 4)] == [expected, 1, 4]
    assert make_plan(MappingConfig(), 100).devices == everything
    assert make_plan(MappingConfig(num_devices=2), 100).devices == everything[:2]
    assert make_plan(MappingConfig(), 3).devices == everything[:3]


def test_more_devices_than_there_are_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"mapping.num_devices=99: only \d+ here"):
        make_plan(MappingConfig(num_devices=99), 100)


@pytest.mark.parametrize(("most", "calls"), [(0, [12]), (12, [12]), (20, [12]), (8, [6]), (4, [4]), (5, [4])])
def test_groups_of_images_are_equal_and_their_results_in_order(most: int, calls: list[int]) -> None:
    images, seen = jnp.arange(24.0).reshape(12, 2), []

    def double(some: jax.Array) -> jax.Array:
        seen.append(some.shape[0])
        return 2 * some

    np.testing.assert_array_equal(in_groups(double, images, most), 2 * images)
    assert seen == calls


def test_a_batch_that_has_no_fitting_groups_stays_whole() -> None:
    assert "scan" not in str(jax.make_jaxpr(lambda images: in_groups(jnp.sin, images, 8))(jnp.zeros((13, 2))))
