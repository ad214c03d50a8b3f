"""Checks every stage against golden values of the public PyTorch code.

Command: python scripts/check_golden.py --golden DIR --seed N

Rebuilds weights and inputs from the seed (`mosaic_jax.io.golden`) and runs them through the functions that training uses, at
matmul precision "highest". Prints `file/quantity max_relative_error limit ok|FAIL` per quantity; exit status 1 on any FAIL, on
a golden file that is missing and on one that is not known. The error is max |ours - golden| / max |golden| over the quantity;
behind the gradient of a ReLU network it is the same with 2-norms, and the limit wider: see `mosaic_jax.io.golden_checks.KINKED`.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mosaic_jax.io.golden import zeros
from mosaic_jax.io.golden_checks import CHECKS, EXACT, Limit, meta_model_of
from mosaic_jax.io.torch_weights import to_torch
from mosaic_jax.types import Variables


class Check(NamedTuple):
    """One line of the report."""

    name: str
    error: float
    limit: Limit

    @property
    def ok(self) -> bool:
        return self.error <= self.limit.error

    def __str__(self) -> str:
        return f"{self.name} {self.error:.1e} {self.limit.error:.0e} {'ok' if self.ok else 'FAIL'}"


def relative_error(ours: Any, golden: np.ndarray, order: float) -> float:
    """|ours - golden| / |golden| in the norm of `order` over all elements; infinite for other shapes or non-finite values."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape or not (np.isfinite(ours).all() and np.isfinite(golden).all()):
        return float("inf")
    difference, scale = (np.linalg.norm(values.ravel(), order) for values in (ours - golden, golden))
    return float(difference / scale) if scale > 0 else float("inf") if difference > 0 else 0.0


def check_file(path: Path, seed: int) -> Iterator[Check]:
    """One Check per quantity of a golden .npz file; a quantity that nothing here computes fails."""
    with np.load(path) as file:
        golden = dict(file)
    with jax.default_matmul_precision("highest"):
        ours = {name: (value, limit) for name, value, limit in CHECKS[path.stem](golden, seed)}
    for name, value in golden.items():
        computed, limit = ours.get(name, (np.nan, EXACT))
        yield Check(f"{path.stem}/{name}", relative_error(computed, value, limit.order), limit)


def check_names(path: Path) -> Check:
    """The names and shapes of a meta model's state_dict, one `name (shape)` a line in metaK_names.txt."""
    expected = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    num_classes = int(re.fullmatch(r"meta(\d+)_names", path.stem)[1])
    params = jax.eval_shape(meta_model_of(num_classes)[0].init, jax.random.key(0))
    tensors = to_torch("meta", Variables(zeros(params), {}))
    same = expected == {name: str(array.shape) for name, array in tensors.items()}
    return Check(f"{path.stem}/names", 0.0 if same else float("inf"), EXACT)


def check_directory(directory: Path, seed: int) -> Iterator[Check]:
    """Every golden file of a directory, in a fixed order."""
    known = {f"{stem}.npz" for stem in CHECKS}
    present = {path.name for path in directory.iterdir() if path.suffix in (".npz", ".txt")}
    for stem in CHECKS:
        if f"{stem}.npz" in present:
            yield from check_file(directory / f"{stem}.npz", seed)
    for name in sorted(present - known):
        if re.fullmatch(r"meta\d+_names\.txt", name):
            yield check_names(directory / name)
        else:
            yield Check(f"{name}:not_a_known_golden_file", float("inf"), EXACT)
    for name in sorted(known - present):
        yield Check(f"{name}:missing", float("inf"), EXACT)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check every stage against golden values of the public PyTorch code.")
    parser.add_argument("--golden", type=Path, required=True, help="directory of golden .npz files")
    parser.add_argument("--seed", type=int, default=0, help="the seed that the files were made with")
    options = parser.parse_args(arguments)
    if not options.golden.is_dir():
        parser.error(f"--golden {options.golden}: not a directory")
    failed = False
    for check in check_directory(options.golden, options.seed):
        print(check, flush=True)
        failed |= not check.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
