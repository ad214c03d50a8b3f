"""An argument parser that answers in one line, and checks of what it cannot see in an argument by itself."""

import argparse
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import did_you_mean
from mosaic_jax.presets import PRESETS
from mosaic_jax.python_files import one_line
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
    """--preset, --set and --data-dir: what is laid over a configuration file; --plugin: what it may name."""
    add_plugins(parser)
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
    parser.add_argument("--stop-after", metavar="STAGE", help="end after that stage of the method, as `mosaic-jax plan` lists them")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a JAX trace of one segment of each stage")
    parser.add_argument("--distributed", action="store_true", help="be one of several processes, found by SLURM, Open MPI or TPU")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="or named by these three: where process 0 listens")
    parser.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    parser.add_argument("--process-id", type=int, metavar="I", help="which one this is, 0 to N-1")


def add_plugins(parser: Parser) -> None:
    """--plugin: files that register parts of a user's own."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        dest="plugins",
        metavar="FILE.py",
        help="a Python file that registers methods, networks or other parts; may be given several times",
    )


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


def add_results(parser: Parser) -> None:
    """--results: where result files of earlier runs are."""
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        metavar="DIR",
        help="result files of earlier runs, whose rates say what stages should take (default: docs/results, where there is one)",
    )


def add_run_dir(evaluate: Parser, sample: Parser, report: Parser) -> None:
    """What the commands read that look at a run that is there."""
    for each in (evaluate, sample, report):
        each.add_argument("run_dir", type=Path, metavar="RUN_DIR")
        add_plugins(each)
    for each in (evaluate, sample):
        each.add_argument("--data-dir", metavar="DIR", help="where the run's data are, if they have moved")
    sample.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="where the picture goes")
    sample.add_argument("--num", type=int, default=64, metavar="N", help="images of each client (default: 64)")
