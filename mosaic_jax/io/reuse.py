"""Taking a finished stage from another run: its last checkpoint and its records, whole or not at all."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mosaic_jax.io import computation, metrics
from mosaic_jax.io.metrics import MetricsLog
from mosaic_jax.io.whole_files import sync


def take(run_dir: Path, others: Sequence[Path], stage: str, step: int, log: MetricsLog) -> Path | None:
    """Gives a run the state of `stage` at its last `step`, and the records on the way there, from the first of the other run
    directories that has them; returns that one, or None where none has, or where the run has checkpoints of the stage itself.

    The caller answers for it that the others' stage is the run's own. One whose clients are not this run's (partition.csv), or
    that was computed with anything else (computation.json), is passed over. Files are hard links where the disk has them, since no
    checkpoint is ever written twice; restoring checks them against their fingerprint as it checks all.
    """
    place = run_dir / "checkpoints" / stage
    if not others or (place.is_dir() and any(path.name.isdigit() for path in place.iterdir())):
        return None
    clients = (run_dir / "partition.csv").read_bytes()
    for other in others:
        source = other / "checkpoints" / stage / str(step)
        if not source.is_dir() or (other / "partition.csv").read_bytes() != clients:
            continue
        theirs, ours = computation.read(other), computation.read(run_dir)
        if theirs and ours and theirs != ours:
            continue
        half = run_dir / "taken.tmp"
        shutil.rmtree(half, ignore_errors=True)
        try:
            shutil.copytree(source, half, copy_function=_link)
        except shutil.Error as error:  # a list of what went wrong, without numbers
            raise OSError(errno.EIO, f"cannot take a checkpoint from {source} ({error.args[0][0][-1]})", str(half)) from error
        _sync(half)
        # Records first, as the runner has it: those of a stage without a checkpoint are written again.
        log.replace(stage, [record for record in metrics.read(other) if record["stage"] == stage])
        place.mkdir(parents=True, exist_ok=True)
        half.rename(place / str(step))
        return other
    return None


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _sync(directory: Path) -> None:
    """Returns once all files of a directory, and their names, are on the disk."""
    for path in (directory, *directory.rglob("*")):
        sync(path)
