"""The directory of one configuration trained with several seeds: RUN_DIR/seed<N>, seeds.json over them, and report.html."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.io import run_directory
from mosaic_jax.io.console import mean_and_deviation, percent
from mosaic_jax.io.json_forms import SEEDS, wrong_seeds
from mosaic_jax.io.page import escape, page, table
from mosaic_jax.io.report import write_report
from mosaic_jax.io.results_file import read_results
from mosaic_jax.io.whole_files import read_json, write_json, write_text

MEASURES = ("validation", "test")
OURS = re.compile(r"seed\d+|(seeds\.json|report\.html)(\.tmp)?")


def seed_dir(run_dir: Path, seed: int) -> Path:
    """The run directory of one seed."""
    return run_dir / f"seed{seed}"


def seed_dirs(run_dir: Path) -> list[Path]:
    """The runs that a directory holds, by seed."""
    found = [path.parent for path in run_dir.glob("seed*/config.json") if OURS.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed")))


def check(run_dir: Path, configs: Sequence[Config], option: str = "--run-dir") -> None:
    """Raises ConfigError unless every seed can be trained, or resumed, below `run_dir`: asked before the first one is.

    option: which one named it.
    """
    if run_dir.is_dir():
        if (run_dir / "config.json").exists():
            raise ConfigError(f"{option} {run_dir}: holds the run of a single seed; name another directory for --seeds")
        if not all(OURS.fullmatch(path.name) for path in run_dir.iterdir()):
            raise ConfigError(f"{option} {run_dir}: is not empty and holds no runs of seeds; name another directory")
    for config in configs:
        run_directory.check(seed_dir(run_dir, config.seed), config, option)


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of every model that all runs have: values by seed, their mean, their sample standard deviation (n - 1).

    results: results.json of each run. A mean is None where a run lacks the value, a deviation also where there is one run.
    """

    def measure(model: str, name: str) -> dict[str, Any]:
        values = [result["models"][model].get(name) for result in results]
        known = None not in values
        return {
            "values": values,
            "mean": statistics.fmean(values) if known else None,
            "std": statistics.stdev(values) if known and len(values) > 1 else None,
        }

    names = [name for name in results[0]["models"] if all(name in result["models"] for result in results)]
    return {
        "method": results[0]["method"],
        "seeds": [result["seed"] for result in results],
        "models": {name: {which: measure(name, which) for which in MEASURES} for name in names},
    }


def summarize_seeds(run_dir: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """What seeds.json holds, out of the results of these seeds, which are all there."""
    return summarize([read_results(seed_dir(run_dir, seed)) or {} for seed in seeds])


def write(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Writes seeds.json and report.html, and returns the path of the latter."""
    write_json(run_dir / "seeds.json", summary)
    return write_index(run_dir)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """seeds.json, None while there is none; raises ConfigError where it is damaged."""
    return read_json(run_dir / "seeds.json", "`mosaic-jax train --seeds` writes it again", SEEDS, wrong_seeds)


def write_index(run_dir: Path) -> Path:
    """Writes RUN_DIR/report.html, the means and a link to each seed's report, which is written again, and returns its path."""
    summary = read_summary(run_dir)
    if summary is not None:
        sections = [means(summary)]
    else:
        sections = ['<div class="note">No seeds.json yet: `mosaic-jax train --seeds` writes it when all its seeds are done.</div>']
    links = ""
    for directory in seed_dirs(run_dir):
        report = write_report(directory)
        links += f'<li><a href="{directory.name}/{report.name}">{directory.name}</a></li>'
    sections = [f"<h1>{escape(run_dir.resolve().name)}</h1>", *sections, f"<h2>Runs</h2><ul>{links}</ul>"]
    path = run_dir / "report.html"
    write_text(path, page(f"Mosaic runs {run_dir.resolve().name}", sections))
    return path


def means(summary: dict[str, Any]) -> str:
    """The table of seeds.json in HTML: mean and deviation of every model, then the test accuracy of each seed."""
    rows = [
        [name, *(mean_and_deviation(model[which]) for which in MEASURES), *map(percent, model["test"]["values"])]
        for name, model in summary["models"].items()
    ]
    seeds = ", ".join(map(str, summary["seeds"]))
    head = ["model", "validation %", "test %", *(f"test %, seed {seed}" for seed in summary["seeds"])]
    text = f"method {escape(summary['method'])}, seeds {seeds}: mean ± sample standard deviation"
    return f'<p class="soft">{text}</p><h2>Accuracy</h2>{table(head, rows)}'
