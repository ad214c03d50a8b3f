"""The two sides of a row as functions that a fresh process can call; neither loads the library of the other."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rows import Row


def ours(row: Row) -> Callable[[], Any]:
    """Our stage of a row, ready for a pass."""
    from bench.ours import Ours

    return Ours(row)


def twin(task: Path, variant: tuple) -> Callable[[], Any]:
    """The PyTorch twin of a pickled task in one variant, ready for a pass."""
    from bench.torch_twin import Twin, Variant

    return Twin(pickle.loads(task.read_bytes()), Variant(*variant))
