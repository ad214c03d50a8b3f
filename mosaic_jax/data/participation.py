"""Who works in a round, and whose work arrives, as functions of the round's number alone. NumPy only."""

import zlib
from collections.abc import Sequence

import numpy as np


def draw_cohort(num_clients: int, size: int, *, seed: int, stage: str, round_: int) -> np.ndarray:
    """Draws the clients of one round without replacement: the `size` smallest of C 64-bit keys.

    The keys are those of Philox(key = hash(seed, "cohort", stage, round)), so any round is drawn without the ones before it.
    Returns i32[size], ascending; everyone, 0..C-1, where size is C. Raises ValueError for a size outside 1..C.
    """
    if not 1 <= size <= num_clients:
        raise ValueError(f"a cohort of {size=} must be 1 to {num_clients=}")
    order = np.argsort(_philox(seed, "cohort", stage, round_).random_raw(num_clients), kind="stable")
    return np.sort(order[:size]).astype(np.int32)


def draw_arrivals(
    num_clients: int, dropout_rate: float, straggler_rate: float, *, seed: int, stage: str, round_: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws for all clients whether each, were it in the round's cohort, begins, and whether what it did arrives in time.

    P(begins) = 1 - dropout_rate; P(arrives) = (1 - dropout_rate)(1 - straggler_rate), independently of other clients and rounds.
    Returns (begins bool[C], arrives bool[C]).
    """
    uniform = np.random.Generator(_philox(seed, "arrivals", stage, round_)).random((2, num_clients))
    begins = uniform[0] >= dropout_rate
    return begins, begins & (uniform[1] >= straggler_rate)


def shares_of_cohort(sizes: Sequence[int], num: int) -> list[int]:
    """Clients that a cohort takes of each group: in proportion to the groups' sizes, one of each at least, `num` in all.

    Fixed over rounds, so that a round is one program. Raises ValueError for fewer clients than groups.
    """
    if not len(sizes) <= num <= sum(sizes):
        raise ValueError(f"a cohort of {num=} must be {len(sizes)} to {sum(sizes)}")
    taken = [1] * len(sizes)
    for _ in range(num - len(sizes)):  # to the group that has the least of its due, the first of equals
        due = [num * size / sum(sizes) - own if own < size else -np.inf for size, own in zip(sizes, taken, strict=True)]
        taken[int(np.argmax(due))] += 1
    return taken


def _philox(seed: int, what: str, stage: str, round_: int) -> np.random.Philox:
    words = (seed, zlib.crc32(what.encode()), zlib.crc32(stage.encode()), round_)
    return np.random.Philox(key=np.random.SeedSequence(words).generate_state(2, np.uint64))
