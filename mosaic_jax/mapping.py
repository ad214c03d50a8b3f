"""The one place that maps a function written for one client over stacked clients."""

from collections.abc import Callable
from typing import Any

import jax


def resolve_chunk(client_chunk: int) -> int:
    """Clients mapped together: 0 (automatic) is one at a time on a CPU, whose cores one client fills, and all elsewhere (0)."""
    return 1 if client_chunk == 0 and jax.default_backend() == "cpu" else client_chunk


def for_each_client(fn: Callable[..., Any], mapped: tuple, shared: tuple = (), *, chunk: int = 0) -> Any:
    """Apply `fn(*mapped[i], *shared)` to every client i and stack the results.

    mapped: tuple of pytrees with leading axis C; shared: tuple of pytrees given whole to each client.
    chunk: 0 maps all clients at once (vmap), 1 one after another, k in groups of k (the last may be smaller).
    Results of different chunks agree to floating-point tolerance, not to the last bit.
    """

    def one(client: tuple) -> Any:
        return fn(*client, *shared)

    num_clients = jax.tree.leaves(mapped)[0].shape[0]
    if chunk == 0 or chunk >= num_clients > 1:
        return jax.vmap(one)(mapped)
    if chunk == 1:
        return jax.lax.map(one, mapped)
    return jax.lax.map(one, mapped, batch_size=chunk)
