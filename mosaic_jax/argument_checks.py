"""What arguments must be, asked before anything begins: errors of one line. Imports no JAX."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import did_you_mean, load_json
from mosaic_jax.registry import METHODS

MOST_IN_A_ROW = 1000


def check_leaderboard(arguments: argparse.Namespace) -> None:
    """Raises ConfigError unless there are directories, or --update alone, and --out may be a directory."""
    if arguments.update is None and not arguments.directories:
        raise ConfigError("leaderboard: no DIR; name directories that hold files of `mosaic-jax compare`, or --update FILE.md")
    if arguments.update is not None and (arguments.directories or arguments.out is not None or arguments.markdown):
        raise ConfigError(f"--update {arguments.update}: the page names its directories; leave out DIR, --out and --markdown")
    check_directory("--out", arguments.out)


def results_of(arguments: argparse.Namespace) -> list[Path]:
    """The directories of --results; raises ConfigError for one that is none."""
    for place in arguments.results or ():
        if not place.is_dir():
            raise ConfigError(f"--results {place}: is no directory; name one that holds result files of `mosaic-jax compare`")
    return arguments.results or [Path("docs/results")]


def default_run_dir(config_file: str, preset: str | None, seed: int | Sequence[int]) -> Path:
    """runs/<config file's stem>[-<preset>]-seed<N>, or -seeds<N>-<N>... for several."""
    seeds = f"seed{seed}" if isinstance(seed, int) else f"seeds{'-'.join(map(str, seed))}"
    return Path("runs") / f"{Path(config_file).stem}{f'-{preset}' if preset else ''}-{seeds}"


def check_stage(stage: str | None, config: Config) -> None:
    """Raises ConfigError where --stop-after names no stage of a method that says which it may have; the runner knows of all."""
    stages = METHODS.entry(config.method).reads
    if stage is not None and stages is not None and stage not in stages:
        has = f"method {config.method} has no such stage; its stages are {', '.join(stages)}"
        raise ConfigError(f"--stop-after {stage}: {has}{did_you_mean(stage, stages)}")


def check_directory(option: str, path: Path | None) -> None:
    """Raises ConfigError where an option that names a directory names a file."""
    if path is not None and path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path}: is a file; name a directory")


def check_run_dir(run_dir: Path, *, checkpoints: bool) -> None:
    """Raises ConfigError unless `run_dir` is a run's directory (with checkpoints, where they are needed)."""
    if not run_dir.is_dir():
        raise ConfigError(f"run directory {run_dir}: not found")
    if not (run_dir / "config.json").is_file():
        runs = sorted(path.parent for path in run_dir.glob("seed*/config.json"))
        if runs:
            raise ConfigError(f"run directory {run_dir}: holds {len(runs)} runs; name one of {', '.join(map(str, runs))}")
        raise ConfigError(f"run directory {run_dir}: holds no config.json; is it a directory that `mosaic-jax train` made?")
    load_json(run_dir / "config.json")
    if checkpoints and not any((run_dir / "checkpoints").glob("*")):
        raise ConfigError(f"run directory {run_dir}: holds no checkpoints; run `mosaic-jax train` with this --run-dir first")


def check_picture(out: Path, num: int = 1) -> None:
    """Raises ConfigError unless `--out` names a .png file in a directory that exists and can be written, and `--num`, the images of
    its rows, is none that only few programs would open."""
    if not 1 <= num <= MOST_IN_A_ROW:
        raise ConfigError(f"--num {num}: must be 1 to {MOST_IN_A_ROW}")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: must end in .png")
    try:
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"--out {out}: the directory {out.parent} does not exist")
        if out.is_dir():
            raise ConfigError(f"--out {out}: is a directory; name a file")
        tempfile.TemporaryFile(dir=out.parent).close()  # leaves nothing behind
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); name another file") from error


def check_processes(arguments: argparse.Namespace) -> None:
    """Raises ConfigError unless --coordinator, --num-processes and --process-id are all given and agree, or none is."""
    coordinator, count, index = named = arguments.coordinator, arguments.num_processes, arguments.process_id
    if all(value is None for value in named):
        return
    if coordinator is None or count is None or index is None:
        missing = [name for name, value in zip(("coordinator", "num-processes", "process-id"), named, strict=True) if value is None]
        raise ConfigError(f"--{' and --'.join(missing)}: missing; --coordinator, --num-processes and --process-id go together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator {coordinator}: must be HOST:PORT, as in node0:1234")
    if count < 1:
        raise ConfigError(f"--num-processes {count}: must be at least 1")
    if not 0 <= index < count:
        raise ConfigError(f"--process-id {index}: must be 0 to {count - 1}, below --num-processes {count}")
    arguments.distributed = True
