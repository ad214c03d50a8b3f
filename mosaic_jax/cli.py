"""The command line `mosaic-jax`: train, compare, leaderboard, plan, evaluate, sample, report, partition, config, prepare.

JAX and everything that needs it are imported inside the commands, so that help and argument errors answer at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic_jax import __version__
from mosaic_jax.argument_checks import (
    check_directory,
    check_leaderboard,
    check_picture,
    check_processes,
    check_run_dir,
    check_stage,
    default_run_dir,
    results_of,
)
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import resolve, resolve_seeds
from mosaic_jax.parser import (
    Parser,
    add_comparison,
    add_leaderboard,
    add_preparation,
    add_results,
    add_run_dir,
    add_settings,
    add_training,
    in_words,
)
from mosaic_jax.plain_text import fitting, plain, say
from mosaic_jax.plugins import load_plugins
from mosaic_jax.python_files import one_line
from mosaic_jax.rows import rows_of
from mosaic_jax.settings import describe

if TYPE_CHECKING:
    from mosaic_jax.io.console import Console


def build_parser() -> Parser:
    """The parser of the ten commands; each sets `run` to its function."""
    parser = Parser(prog="mosaic-jax", description="Mosaic: data-free federated distillation through a mixture of experts.")
    parser.add_argument("--version", action="version", version=f"mosaic-jax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], help_line: str) -> Parser:
        added = commands.add_parser(name, help=help_line, description=help_line)
        added.set_defaults(run=run)
        parser.commands[name] = added
        return added

    train = command("train", run_train, "train a configuration, or resume it when its run directory exists")
    compare = command("compare", run_compare, "train configurations, methods and seeds, or resume them, and write one table")
    add_comparison(compare)
    add_leaderboard(command("leaderboard", run_leaderboard, "print tables and tests over result files of `mosaic-jax compare`"))
    plan = command("plan", run_plan, "print shapes, sizes, mapping, memory and traffic of every stage; nothing is trained")
    add_results(plan)
    partition = command("partition", run_partition, "print the images that each client holds of each class, without training")
    partition.add_argument("--out", type=Path, metavar="FILE.png", help="also draw them there, and write FILE.csv beside it")
    config = command("config", run_config, "print the resolved configuration with a line of help for each setting")
    for each in (train, plan, partition, config):
        each.add_argument("--config", required=True, metavar="FILE", help="a Python file that defines get_config()")
        add_settings(each)
        each.add_argument("--seed", metavar="N", help="the same as --set seed=N")
    add_training(train)
    add_preparation(command("prepare", run_prepare, "bring a data set into the data directory, and list what it can be made from"))
    evaluate = command("evaluate", run_evaluate, "evaluate every model of a run again, from its checkpoints alone")
    sample = command("sample", run_sample, "draw images from the generator of each client")
    report = command("report", run_report, "write RUN_DIR/report.html from the files in the run directory")
    add_run_dir(evaluate, sample, report)
    for each in (train, compare, evaluate, sample):
        each.add_argument("--no-compilation-cache", action="store_true", help="neither read nor keep compiled programs")
    for each in (train, compare, evaluate):
        each.add_argument("-v", "--verbose", action="store_true", help="also accuracies per class")
    return parser


def console_of(arguments: argparse.Namespace, silent: bool = False) -> "Console":
    """The Console of a command."""
    from mosaic_jax.io.console import Console

    return Console(verbose=getattr(arguments, "verbose", False), silent=silent)


def set_compilation_cache(arguments: argparse.Namespace, console: "Console") -> None:
    """Compiled programs are kept for the next run, unless --no-compilation-cache."""
    from mosaic_jax.io import compilation_cache

    compilation_cache.disable() if arguments.no_compilation_cache else compilation_cache.enable(console.warning)


def run_train(arguments: argparse.Namespace) -> int:
    """`mosaic-jax train`."""
    source = (arguments.config, arguments.preset, arguments.assignments, arguments.seed)
    configs = (resolve(*source),) if arguments.seeds is None else resolve_seeds(*source, arguments.seeds)
    seed = configs[0].seed if arguments.seeds is None else [config.seed for config in configs]
    run_dir = arguments.run_dir or default_run_dir(arguments.config, arguments.preset, seed)
    check_stage(arguments.stop_after, configs[0])
    check_directory("--run-dir", run_dir)
    check_directory("--profile", arguments.profile)
    check_processes(arguments)
    if not arguments.distributed:
        return train(arguments, configs, run_dir, console_of(arguments))
    from mosaic_jax import processes
    from mosaic_jax.devices import create_cpu_devices

    with processes.joined(arguments.coordinator, arguments.num_processes, arguments.process_id):
        create_cpu_devices(configs[0].mapping, configs[0].partition.num_clients)  # JAX asks them all which process this is
        return train(arguments, configs, run_dir, console_of(arguments, silent=not processes.is_first()))


def train(arguments: argparse.Namespace, configs: Sequence[Config], run_dir: Path, console: "Console") -> int:
    """Train one configuration, or several that differ in their seeds; returns the exit status."""
    set_compilation_cache(arguments, console)
    options = {
        "stop_after": arguments.stop_after, "tensorboard": arguments.tensorboard, "profile": arguments.profile, "console": console,
    }  # fmt: skip
    if arguments.seeds is not None:
        from mosaic_jax.seeds import train_seeds

        return train_seeds(configs, run_dir, **options)
    from mosaic_jax import runner

    return runner.train(configs[0], run_dir, **options)


def run_compare(arguments: argparse.Namespace) -> int:
    """`mosaic-jax compare --configs FILE ... --seeds N,N,... --out DIR`."""
    rows = rows_of(
        arguments.configs, arguments.methods, arguments.preset, arguments.assignments, arguments.seeds, not arguments.no_controls
    )
    check_directory("--out", arguments.out)
    from mosaic_jax.comparison import compare

    console = console_of(arguments)
    set_compilation_cache(arguments, console)
    return compare(rows, arguments.out, console)


def run_leaderboard(arguments: argparse.Namespace) -> int:
    """`mosaic-jax leaderboard DIR...` or `mosaic-jax leaderboard --update FILE`."""
    check_leaderboard(arguments)
    from mosaic_jax import leaderboard

    if arguments.update is not None:
        leaderboard.update(arguments.update, console_of(arguments))
    else:
        leaderboard.show(arguments.directories, arguments.out, arguments.markdown, console_of(arguments))
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    """`mosaic-jax plan --config FILE`."""
    config = resolve(arguments.config, arguments.preset, arguments.assignments, arguments.seed)
    from mosaic_jax.planning.run_plan import plan_run
    from mosaic_jax.planning.tables import show

    console = console_of(arguments)
    show(plan_run(config, console, results_of(arguments)), console)
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`mosaic-jax evaluate RUN_DIR`."""
    check_run_dir(arguments.run_dir, checkpoints=True)
    from mosaic_jax import restored

    console = console_of(arguments)
    set_compilation_cache(arguments, console)
    console.result_table(restored.evaluate(arguments.run_dir, console, arguments.data_dir))
    return 0


def run_sample(arguments: argparse.Namespace) -> int:
    """`mosaic-jax sample RUN_DIR --out FILE.png`."""
    check_picture(arguments.out, arguments.num)
    check_run_dir(arguments.run_dir, checkpoints=True)
    from mosaic_jax import restored

    console = console_of(arguments)
    set_compilation_cache(arguments, console)
    restored.sample(arguments.run_dir, arguments.out, arguments.num, console, arguments.data_dir)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """`mosaic-jax report RUN_DIR`."""
    from mosaic_jax.io.directory_report import write_directory_report

    write_directory_report(arguments.run_dir, console_of(arguments))
    return 0


def run_partition(arguments: argparse.Namespace) -> int:
    """`mosaic-jax partition --config FILE`."""
    config = resolve(arguments.config, arguments.preset, arguments.assignments, arguments.seed)
    if arguments.out is not None:
        check_picture(arguments.out)
    from mosaic_jax.io.partition_view import show_partition

    show_partition(config, arguments.out, console_of(arguments))
    return 0


def run_prepare(arguments: argparse.Namespace) -> int:
    """`mosaic-jax prepare NAME`."""
    from mosaic_jax.io.datasets.prepare import prepare

    prepare(arguments.name, arguments.data_dir, console_of(arguments))
    return 0


def run_config(arguments: argparse.Namespace) -> int:
    """`mosaic-jax config --config FILE`."""
    for line in describe(resolve(arguments.config, arguments.preset, arguments.assignments, arguments.seed)).split("\n"):
        print(fitting(plain(line), sys.stdout))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command -> its exit status: 0 done, 2 a bad argument, setting or place, 4 no memory; training: 3, 128 + signal."""
    try:
        arguments = build_parser().parse(sys.argv[1:] if argv is None else list(argv))
        load_plugins(getattr(arguments, "plugins", ()))
        status = arguments.run(arguments)
        print(end="", flush=True)  # a reader that has gone is noticed here and not at interpreter exit
        return status
    except ConfigError as error:
        say("error", one_line(error))
        return 2
    except MemoryError as error:
        say("error", one_line(error) or "out of memory")
        return 4
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (`| head`) has gone: nothing is left to say, not even at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        if error.errno is None:
            raise
        say("error", in_words(error))
        return 2
