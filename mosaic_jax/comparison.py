"""Several configurations with several seeds, one run after another, and one table over them: each is the run it would be alone."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_jax import jax_settings, processes, runner
from mosaic_jax.config import Config, DataConfig
from mosaic_jax.config_io import with_absolute_paths, with_values
from mosaic_jax.devices import create_cpu_devices, num_cpu_devices
from mosaic_jax.io import comparison_directory, run_directory
from mosaic_jax.io.comparison_directory import run_dir
from mosaic_jax.io.comparison_table import as_text
from mosaic_jax.io.console import Console, duration
from mosaic_jax.io.datasets import dataset_of
from mosaic_jax.io.label_counts import read_table
from mosaic_jax.io.results_file import finished
from mosaic_jax.io.whole_files import saying_what_is_not_written
from mosaic_jax.planning.fitting import fitted_problem
from mosaic_jax.planning.limit import check
from mosaic_jax.rows import Row, stage_keys
from mosaic_jax.signals import Interrupted, catch_signals
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.types import Dataset

FAILURES = {3: "a loss was not finite", 4: "out of memory"}


@jax_settings.fixed()
def compare(rows: Sequence[Row], out: Path, console: Console) -> int:
    """Train, or resume, OUT/<row>/seed<N> of every row and seed, and write the table after each; returns the exit status.

    Every row of a seed is trained before the next seed, so that a table that is not complete compares the same seeds. A run that
    fails is said and the others go on; its status, 3 or 4, is that of the whole, the first one's of several. A signal ends all,
    and the same command goes on. Raises ConfigError, before anything is trained, where a run could not begin.
    """
    comparison_directory.check(out, rows)
    runs = [(row, row.configs[place]) for place in range(len(rows[0].configs)) for row in rows]
    left = [(row, config) for row, config in runs if finished(run_dir(out, row.label, config.seed)) is None]
    check_problems(left, console)
    failed: dict[tuple[str, int], str] = {}
    took: dict[str, list[float]] = {}
    status = 0
    with catch_signals() as signals:
        for place, (row, config) in enumerate(runs, 1):
            name = f"{row.label} seed {config.seed}"
            if (row, config) not in left:
                console.message(f"run {place} of {len(runs)}: {name} is finished already")
                continue
            console.message(f"run {place} of {len(runs)}: {name}{time_left([each.label for each, _ in left], took)}")
            started = time.monotonic()
            of_run = runner.train(
                config, run_dir(out, row.label, config.seed), stop_after=None, tensorboard=False, console=console, signals=signals,
                reuse=reusable(config, [run_dir(out, other.label, config.seed) for other in rows if other is not row]),
            )  # fmt: skip
            caught = processes.first_signal(signals)
            if of_run in FAILURES:
                failed[row.label, config.seed] = FAILURES[of_run]
                status = status or of_run
                console.message(f"{name} failed: {FAILURES[of_run]}")
            if of_run == 0 or of_run in FAILURES:
                left.remove((row, config))
                took.setdefault(row.label, []).append(time.monotonic() - started)
                comparison_directory.write_records(out, rows)
                comparison_directory.write(out, comparison_directory.summarize(out, rows, failed))
            # A signal that came while results were written: that run is done, the next one does not begin.
            if caught is not None and left:
                console.message(f"stopped, {len(left)} of {len(runs)} runs not finished; the same command goes on in {out}")
                return Interrupted(caught).exit_status
    summary = comparison_directory.summarize(out, rows, failed)
    for line in as_text(summary).splitlines():
        console.message(line)
    with saying_what_is_not_written(console.warning):
        comparison_directory.write_records(out, rows)
        comparison_directory.write(out, summary)
        console.message(f"report: {out / 'report.html'}")
    return status


def check_problems(runs: Sequence[tuple[Row, Config]], console: Console) -> None:
    """Raises ConfigError where a run could not begin for its data, its partition, its cohorts or its memory, and makes the devices
    that the runs share."""
    if not runs:
        return
    most = max((config for _, config in runs), key=lambda config: num_cpu_devices(config.mapping, config.partition.num_clients))
    create_cpu_devices(most.mapping, most.partition.num_clients)
    datasets: dict[tuple[DataConfig, Any], Dataset] = {}
    estimated: set[str] = set()
    for row, config in runs:
        source = (config.data, config.section_of(config.data.source))
        if source not in datasets:
            datasets[source] = dataset_of(config, console)
        # Turning images, or making them noisy, takes long and cannot fail.
        plain = with_values(config, {"partition.feature_rotation": 0.0, "partition.feature_noise": 0.0})
        if row.label in estimated:  # memory is that of the row's other seeds, but for a few images
            build_problem(plain, datasets[source], read_table(config.partition, datasets[source].class_names))
            continue
        estimated.add(row.label)
        problem, stages = fitted_problem(plain, Console(quiet=True), dataset=datasets[source], kernels=False)
        check(problem, stages, lambda warning: None)  # each run says its own


def reusable(config: Config, others: Sequence[Path]) -> Mapping[str, Sequence[Path]]:
    """Of each stage the run directories, of those there are, in which it is the same stage to the last bit."""
    keys = stage_keys(with_absolute_paths(config))  # as config.json has them
    there = [(other, stage_keys(run_directory.read_config(other))) for other in others if (other / "config.json").exists()]
    return {stage: [other for other, theirs in there if theirs.get(stage) == key] for stage, key in keys.items()}


def time_left(labels: Sequence[str], took: Mapping[str, Sequence[float]]) -> str:
    """`, about 4 min 05 s left`: each run as long as its row's others took, or all that there were; empty while there is none."""
    every = [seconds for of_row in took.values() for seconds in of_row]
    if not every:
        return ""
    return f", about {duration(sum(statistics.fmean(took.get(label, every)) for label in labels))} left"
