"""The files of a run directory other than checkpoints and metrics: who owns it, its config.json and its results.json."""

import contextlib
import dataclasses
import fcntl
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mosaic_jax import processes
from mosaic_jax.config import PLACEMENT, Config, ConfigError
from mosaic_jax.config_io import differences, load_json, save_json, with_absolute_paths
from mosaic_jax.data.named import with_own_settings
from mosaic_jax.io.label_counts import holds
from mosaic_jax.io.metrics import read
from mosaic_jax.io.results_file import FILE, finished
from mosaic_jax.io.whole_files import replacing
from mosaic_jax.ops.lowering import chosen_lowering, stacked_form
from mosaic_jax.sources import path_of

SHARED_SECONDS = 30.0
# What a start may leave behind that did not come as far as config.json, with which a run has begun.
LEFT_BY_A_START = {
    ".lock", "trial.tmp", "partition.csv.tmp", "partition.csv", "data.json.tmp", "data.json", "metrics.jsonl.tmp", "metrics.jsonl",
    "tensorboard", "config.json.tmp", "computation.json.tmp", "computation.json", "convolution.json.tmp", "convolution.json",
}  # fmt: skip


def check(run_dir: Path, config: Config, option: str = "--run-dir") -> None:
    """Raises ConfigError when a run directory belongs to another configuration or holds files that are no run's.

    option: which one named it.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{option} {run_dir}: is a file; name a directory")
    if has_begun(run_dir):
        old, new = (  # What a data set brings with it may be written down or left to its name.
            with_absolute_paths(dataclasses.replace(each, data=with_own_settings(each.data)))
            for each in (load_json(run_dir / "config.json"), config)
        )
        moved = _movable(old, run_dir) & _movable(new, run_dir)
        differing = differences(old, new, leave_out={*PLACEMENT, *moved})
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ConfigError(
                f"{option} {run_dir}: holds a run of another configuration ({'; '.join(differing[:3])}{more}); "
                "name another directory"
            )
    elif run_dir.is_dir() and not left_by_a_start(run_dir):
        raise ConfigError(f"{option} {run_dir}: is not empty and holds no run; name another directory")


def _movable(config: Config, run_dir: Path) -> set[str]:
    """Settings that name a place of something that a run knows by what it holds, wherever it is."""
    sources = {"data.source"} if path_of(config.data.source) is not None and (run_dir / "data.json").exists() else set()
    tables = {"partition.table"} if config.partition.kind == "table" and (run_dir / "partition.csv").exists() else set()
    return sources | tables


@contextlib.contextmanager
def claim(run_dir: Path, config: Config) -> Iterator[None]:
    """Hold a run directory for one run and one configuration; raises ConfigError as `check` does, and when it is in use.

    Of several processes the first one holds it for all, once each has seen what the first one writes there.
    """
    with contextlib.ExitStack() as held:
        token = int(processes.of_the_first(np.int32(secrets.randbits(31))))
        with processes.together():
            if processes.is_first():
                held.enter_context(_hold(run_dir, config, token))
        with processes.together():
            if not processes.is_first() and not _appears(run_dir / ".lock", str(token)):
                raise ConfigError(
                    f"--run-dir {run_dir}: does not show here what process 0 writes there; "
                    "name a directory on a file system that all processes share"
                )
        yield


def _appears(path: Path, text: str) -> bool:
    """Whether a file comes to hold a text within SHARED_SECONDS: network file systems remember for a while what was not there."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (path.is_file() and path.read_text() == text):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def _hold(run_dir: Path, config: Config, token: int) -> Iterator[None]:
    check(run_dir, config)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: cannot be written ({error.strerror}); name another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--run-dir {run_dir}: another process is training in it; wait for it or name another") from error
        except OSError:  # a file system without locks: the user alone knows who else trains there
            pass
        lock.write(str(token))
        lock.flush()
        os.fsync(lock.fileno())
        try:
            yield
        except BaseException:
            if left_by_a_start(run_dir):
                shutil.rmtree(run_dir, ignore_errors=True)
            raise


def left_by_a_start(run_dir: Path) -> bool:
    """Whether a directory holds nothing but what is left of a start that failed before its run began."""
    names = {file.name for file in run_dir.iterdir()}
    return not names or (".lock" in names and names <= LEFT_BY_A_START)


def write_config(run_dir: Path, config: Config) -> None:
    """config.json, as the run goes on, its paths absolute."""
    with replacing(run_dir / "config.json") as half:
        save_json(with_absolute_paths(config), half)


def check_partition(run_dir: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises ConfigError where partition.csv, of the run's start, holds other label counts than those dealt now."""
    path = run_dir / "partition.csv"
    if path.exists() and not holds(path, counts, class_names):
        raise ConfigError(
            f"--run-dir {run_dir}: its run began with other clients ({path}) than the data and the partition give now; "
            "restore them, or name another directory"
        )


def has_begun(run_dir: Path) -> bool:
    """Whether a run has begun in a directory: before, files of a start that failed may be written over."""
    return (run_dir / "config.json").exists()


def read_config(run_dir: Path) -> Config:
    """The configuration of a run; raises ConfigError where there is none."""
    if not has_begun(run_dir):
        raise ConfigError(f"{run_dir}: holds no run (no config.json); name the directory of a `mosaic-jax train`")
    return load_json(run_dir / "config.json")


def missing(run_dir: Path, stage: str) -> ConfigError:
    """The error of a run whose checkpoints do not come as far as a command needs."""
    again = "resume it with the `mosaic-jax train` command that began it"
    if finished(run_dir):  # `train` takes the word of results.json for it
        again = f"delete {run_dir / FILE} and {again}"
    return ConfigError(f"{run_dir}: stage {stage} is not finished in its checkpoints; {again}")


def last_value(run_dir: Path, stage: str, name: str) -> float:
    """The newest value recorded under a name in a stage, 0 if there is none."""
    values = [r["value"] for r in read(run_dir) if r["stage"] == stage and r["name"] == name]
    return float(values[-1]) if values else 0.0


def costs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """bytes {stage: {up, down}}, seconds and compile_seconds {stage: s}, from the run's own records."""
    last: dict[tuple[str, str], float] = {(r["stage"], r["name"]): r["value"] for r in read(run_dir)}
    stages = list(dict.fromkeys(stage for stage, _ in last))
    return {
        "bytes": {s: {way: int(last.get((s, f"bytes_{way}"), 0)) for way in ("up", "down")} for s in stages},
        "seconds": {s: last[s, "elapsed_seconds"] for s in stages if (s, "elapsed_seconds") in last},
        "compile_seconds": {s: last[s, "compile_seconds"] for s in stages if (s, "compile_seconds") in last},
    }


def hardware() -> str:
    """One line: accelerator or processor, cores, JAX version, on a GPU what convolutions over stacked weights are."""
    device = jax.devices()[0]
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    kind = processor if device.platform == "cpu" else f"{len(jax.devices())} x {device.device_kind}"
    shared = f", {processes.count()} processes" if processes.several() else ""
    is_stacked = device.platform == "gpu" and chosen_lowering() == "stacked"
    kernels = f", stacked convolutions: {stacked_form()}" if is_stacked else ""
    return f"{kind}, {os.cpu_count()} cores{shared}, jax {jax.__version__} on {device.platform}{kernels}"
