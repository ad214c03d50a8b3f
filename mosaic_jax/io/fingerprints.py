"""What the arrays of a checkpoint are known by: one digest, the same however processes and devices share them."""

import hashlib
from typing import Any

import jax
import numpy as np

from mosaic_jax import processes


def _parts(array: Any) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """What this process holds of an array, and which part that is."""
    if isinstance(array, np.ndarray):
        return [((slice(None),) * array.ndim, array)]
    return [(shard.index, np.asarray(shard.data)) for shard in array.addressable_shards]


def not_finite(arrays: dict[str, Any]) -> str | None:
    """The first leaf that is not finite, here or in another process."""
    names = list(arrays)
    bad = (
        place for place, array in enumerate(arrays.values()) for _, part in _parts(array)
        if np.issubdtype(part.dtype, np.inexact) and not np.isfinite(part).all()
    )  # fmt: skip
    first = next(bad, len(names))
    if any(isinstance(array, jax.Array) for array in arrays.values()):
        first = int(processes.gather(np.int32(first)).min())
    return names[first] if first < len(names) else None


def fingerprint_of(arrays: dict[str, Any], axes: dict[str, int]) -> str:
    """SHA-256 over one digest of all that is no client's and one of each client, so that processes can share the work.

    axes: of each leaf the axis of its clients, or -1. The same whichever devices and processes hold the arrays: clients of groups
    of different sizes, some of which divide among the devices, have digests of their own.
    """
    groups = sorted({array.shape[axes[name]] for name, array in arrays.items() if axes[name] >= 0})
    firsts = dict(zip(groups, 1 + np.cumsum([0, *groups]), strict=False))
    digests = [hashlib.sha256() for _ in range(1 + sum(groups))]
    seen = np.zeros(len(digests), bool)
    for name in sorted(arrays):
        axis = axes[name]
        for where, part in _parts(arrays[name]):
            first = 0 if axis < 0 else int(firsts[arrays[name].shape[axis]]) + (where[axis].start or 0)
            for row, own in enumerate([part] if axis < 0 else np.moveaxis(part, axis, 0), first):
                digests[row].update(name.encode())
                digests[row].update(np.ascontiguousarray(own).tobytes())
                seen[row] = True
    rows = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint8).reshape(-1, 32) * seen[:, None]
    if any(isinstance(array, jax.Array) for array in arrays.values()):
        every = processes.gather(rows)
        rows = np.concatenate([every[0, :1], every[:, 1:].max(axis=0)])  # what is no client's is as process 0 writes it
    return hashlib.sha256(rows.tobytes()).hexdigest()
