"""One configuration with several seeds, one after another: each is the run that it would be alone, in a directory of its own."""

from collections.abc import Sequence
from pathlib import Path

from mosaic_jax import processes, runner
from mosaic_jax.config import Config
from mosaic_jax.io import seeds_directory
from mosaic_jax.io.console import Console
from mosaic_jax.io.whole_files import saying_what_is_not_written
from mosaic_jax.signals import Interrupted, catch_signals


def train_seeds(
    configs: Sequence[Config],
    run_dir: Path,
    *,
    stop_after: str | None,
    tensorboard: bool,
    console: Console,
    profile: Path | None = None,
) -> int:
    """Train, or resume, RUN_DIR/seed<N> for each configuration in turn, then write seeds.json; returns the exit status.

    configs: equal but for their seeds. The first status of `runner.train` that is not 0 ends it; the same command goes on
    with that seed. profile: a directory for a trace of each seed, in seed<N>. Raises ConfigError, before anything is trained,
    where a seed's directory cannot be used.
    """
    with processes.together():
        if processes.is_first():
            seeds_directory.check(run_dir, configs)
    with catch_signals() as signals:
        for done, config in enumerate(configs):
            console.message(f"seed {config.seed}, {done + 1} of {len(configs)}")
            directory = seeds_directory.seed_dir(run_dir, config.seed)
            status = runner.train(
                config, directory, stop_after=stop_after, tensorboard=tensorboard, console=console, signals=signals,
                profile=profile / directory.name if profile else None,
            )  # fmt: skip
            left = configs[done + (status == 0) :]
            # A signal that came while results were written: that seed is done, the next one does not begin.
            caught = processes.first_signal(signals)
            status = status or (Interrupted(caught).exit_status if caught and left else 0)
            if status:
                seeds = ", ".join(str(other.seed) for other in left)
                console.message(f"stopped; not finished are seeds {seeds}, with which the same command goes on in {run_dir}")
                return status
        if processes.is_first():
            summary = seeds_directory.summarize_seeds(run_dir, [config.seed for config in configs])
            console.seeds_table(summary)
            with saying_what_is_not_written(console.warning):
                console.message(f"report: {seeds_directory.write(run_dir, summary)}")
    return 0
