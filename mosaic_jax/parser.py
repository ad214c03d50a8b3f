"""An argument parser that answers in one line, and checks of what it cannot see in an argument by itself."""

import argparse
import errno
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import did_you_mean, load_json, one_line
from mosaic_jax.presets import PRESETS
from mosaic_jax.sources import BENCHMARKS

# What helps where the file system refuses to write.
REMEDIES = {
    errno.EACCES: "make it writable or work on a copy",
    errno.EROFS: "work on a copy elsewhere",
    errno.ENOSPC: "make room and give the same command again",
    errno.EDQUOT: "make room and give the same command again",
    errno.EIO: "look at the disk and give the same command again",
}
AS_A_RULE = "mend that or name another place, and give the same command again"

MOST_IN_A_ROW = 1000
STAGES = ("warmup", "generators", "experts", "meta", "distill", "finetune")

# Where a command writes has another name in others.
SAME_ELSEWHERE = {"--out": "--run-dir", "--run-dir": "--out"}


def in_words(error: OSError) -> str:
    """Where something failed, as far as that is known, what it was and what helps."""
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{error.strerror}; {REMEDIES.get(error.errno, AS_A_RULE)}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest command or option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.commands: dict[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        """Exit status 2 after one line; without the usage text that argparse puts before it."""
        raise ConfigError(f"{one_line(ValueError(message))} (see {self.prog} --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """As argparse does it, once help and version have been written; raises BrokenPipeError for a reader that has gone."""
        print(end="", flush=True)
        super().exit(status, message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments, names checked first: a misspelt option would else hide behind a missing one."""
        word = next((word for word in arguments if not word.startswith("-")), None)
        if word is not None and word not in self.commands:
            known = ", ".join(self.commands)
            raise ConfigError(f"{word} is no command; the commands are {known}{did_you_mean(word, self.commands)}")
        parser = self if word is None else self.commands[word]
        for name in (item.partition("=")[0] for item in arguments):
            options: Iterable[str] = parser._option_string_actions
            if name.startswith("--") and name != "--" and name not in options:
                meant = SAME_ELSEWHERE.get(name)
                hint = f"; did you mean {meant}?" if meant in options else did_you_mean(name, options)
                hint = hint or f"; see {parser.prog} --help"
                raise ConfigError(f"{name} is no option of {parser.prog}{hint}")
        return self.parse_args(arguments)


def add_settings(parser: Parser) -> None:
    """--preset, --set and --data-dir: what is laid over a configuration file."""
    parser.add_argument("--preset", metavar="NAME", help=f"settings laid over the file's: {', '.join(PRESETS)}")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="other values, as in warmup.num_rounds=30",
    )
    parser.add_argument(
        "--data-dir",
        action="append",
        default=[],
        dest="assignments",
        type="data.dir={}".format,
        metavar="DIR",
        help="the same as --set data.dir=DIR",
    )


def add_training(parser: Parser) -> None:
    """What `train` does beside training, where, and as which of several processes."""
    parser.add_argument("--seeds", metavar="N,N,...", help="train each seed in RUN_DIR/seed<N>; means go to RUN_DIR/seeds.json")
    run_dir = "default: runs/<config>[-<preset>]-seed<N>, or -seeds<N>-<N>..."
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help=run_dir)
    parser.add_argument("--stop-after", choices=STAGES, metavar="STAGE", help=f"end after one of {', '.join(STAGES)}")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a JAX trace of one segment of each stage")
    parser.add_argument("--distributed", action="store_true", help="be one of several processes, found by SLURM, Open MPI or TPU")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="or named by these three: where process 0 listens")
    parser.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    parser.add_argument("--process-id", type=int, metavar="I", help="which one this is, 0 to N-1")


def add_comparison(parser: Parser) -> None:
    """What `compare` compares, and where that goes."""
    parser.add_argument("--configs", required=True, nargs="+", metavar="FILE", help="Python files that define get_config()")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train each file with each of them, in the place of its own; mosaic:NAME is Mosaic warmed up by the method NAME",
    )
    add_settings(parser)
    parser.add_argument("--seeds", required=True, metavar="N,N,...", help="train each row with each seed")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="runs in DIR/<row>/seed<N>, the table in DIR")
    parser.add_argument("--no-controls", action="store_true", help="only the rows asked for, without the controls of Mosaic")


def add_preparation(parser: Parser) -> None:
    """Which data set is prepared, and where."""
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(BENCHMARKS)} or tfds:NAME")
    parser.add_argument("--data-dir", default="", metavar="DIR", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")


def add_leaderboard(parser: Parser) -> None:
    """Which result files a leaderboard is over, and where it goes."""
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="result files are looked for in and below each")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write leaderboard.{md,csv,json,png} and report.html there")
    parser.add_argument(
        "--update",
        type=Path,
        metavar="FILE.md",
        help="instead: replace what stands between `<!-- leaderboard DIR... -->` and `<!-- end -->` there by those tables",
    )


def check_leaderboard(arguments: argparse.Namespace) -> None:
    """Raises ConfigError unless there are directories, or --update alone, and --out may be a directory."""
    if arguments.update is None and not arguments.directories:
        raise ConfigError("leaderboard: no DIR; name directories that hold files of `mosaic-jax compare`, or --update FILE.md")
    if arguments.update is not None and (arguments.directories or arguments.out is not None or arguments.markdown):
        raise ConfigError(f"--update {arguments.update}: the page names its directories; leave out DIR, --out and --markdown")
    check_directory("--out", arguments.out)


def add_results(parser: Parser) -> None:
    """--results: where result files of earlier runs are."""
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        metavar="DIR",
        help="result files of earlier runs, whose rates say what stages should take (default: docs/results, where there is one)",
    )


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
