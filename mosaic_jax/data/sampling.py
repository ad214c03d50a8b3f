"""Which images a client takes at each step, as a function of the step number alone. NumPy only."""

import zlib
from collections.abc import Sequence

import numpy as np

# Bounds the memory of shuffling many passes at once; 2**20 keys are 8 MiB.
_KEYS_AT_ONCE = 2**20


def batch_indices(
    client_indices: Sequence[np.ndarray],
    *,
    client_ids: Sequence[int],
    seed: int,
    stage: str,
    start: int,
    num_steps: int,
    batch_size: int,
    order: str = "shuffled",
    batches_per_pass: int = 0,
) -> np.ndarray:
    """Gives the images of steps start..start+num_steps-1, the same ones whatever segments the steps are asked in.

    Step t takes the positions t*B..t*B+B-1 of an endless sequence of passes over the client's n images, so a batch may
    span two passes and a client smaller than a batch repeats itself. Position q of pass r is image o_r[q mod n], o_r
    being the order of 64-bit keys from Philox(key = hash(seed, stage, client id), counter = r * ceil(n / 4)): any pass is
    drawn without the ones before it. order="fixed" takes the client's own order at every pass, as the public code does.
    A pass has n positions, or batches_per_pass * B where that is positive: it is then reshuffled after so many batches.

    client_indices: C integer arrays, the images of the clients named client_ids, in the same order; ids enter the draw
    only, so a client's batches do not depend on the cohort. Returns i32[C, num_steps, B].
    Raises ValueError, naming the client, for a client without images.
    """
    if order not in ("shuffled", "fixed"):
        raise ValueError(f"order={order!r} must be shuffled or fixed")
    if start < 0 or num_steps < 0 or batch_size < 1 or batches_per_pass < 0:
        raise ValueError(f"{start=}, {num_steps=}, {batches_per_pass=} must not be negative and {batch_size=} must be positive")
    positions = np.arange(start * batch_size, (start + num_steps) * batch_size)
    batches = np.empty((len(client_ids), len(positions)), np.int32)
    for batch, client, indices in zip(batches, client_ids, client_indices, strict=True):
        if len(indices) == 0:
            raise ValueError(f"client {client} has no images to draw batches from: give every client at least one")
        passes, offsets = np.divmod(positions, batches_per_pass * batch_size or len(indices))
        offsets %= len(indices)
        if order == "shuffled" and num_steps > 0:
            key = np.random.SeedSequence((seed, zlib.crc32(stage.encode()), int(client)))
            offsets = _shuffled(key, len(indices), passes, offsets)
        batch[:] = np.asarray(indices)[offsets]
    return batches.reshape(len(client_ids), num_steps, batch_size)


def _shuffled(key: np.random.SeedSequence, size: int, passes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The images at the given offsets of the given passes (both i64[P], passes ascending): i64[P] in 0..size-1."""
    words = -(-size // 4)  # Philox makes four 64-bit numbers at each count, so passes start at multiples of four.
    philox_key = key.generate_state(2, np.uint64)
    rows_at_once = max(1, _KEYS_AT_ONCE // (4 * words))
    found = np.empty_like(offsets)
    for first in range(int(passes[0]), int(passes[-1]) + 1, rows_at_once):
        rows = min(rows_at_once, int(passes[-1]) + 1 - first)
        generator = np.random.Philox(key=philox_key, counter=first * words)
        orders = np.argsort(generator.random_raw(rows * 4 * words).reshape(rows, -1)[:, :size], axis=1, kind="stable")
        here = slice(*np.searchsorted(passes, (first, first + rows)))
        found[here] = orders[passes[here] - first, offsets[here]]
    return found
