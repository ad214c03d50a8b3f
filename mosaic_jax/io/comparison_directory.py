"""The directory of a comparison: OUT/<row>/seed<N>, and comparison.json, .csv, .txt, .png and report.html over them."""

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mosaic_jax.config import ConfigError
from mosaic_jax.io import metrics, run_record, seeds_directory
from mosaic_jax.io.accuracy_plot import SCALE, accuracy_plot
from mosaic_jax.io.comparison_table import as_csv, as_text, cells, heading
from mosaic_jax.io.data_digests import read_data
from mosaic_jax.io.json_forms import COMPARISON, wrong_comparison
from mosaic_jax.io.page import escape, page, picture, table
from mosaic_jax.io.results_file import finished
from mosaic_jax.io.samples import read_png, save_grid
from mosaic_jax.io.whole_files import read_json, write_json, write_text
from mosaic_jax.rows import Row

OURS = re.compile(r"results|comparison\.(tmp|(txt|csv|json|png)(\.tmp)?)|report\.html(\.tmp)?")


def run_dir(out: Path, row: str, seed: int) -> Path:
    """The run directory of one seed of a row."""
    return seeds_directory.seed_dir(out / row, seed)


def check(out: Path, rows: Sequence[Row]) -> None:
    """Raises ConfigError unless every run can be trained, or resumed, below `out`: asked before the first one is."""
    if out.is_dir():
        for path in sorted(out.iterdir()):
            seeds = path.is_dir() and all(seeds_directory.OURS.fullmatch(inner.name) for inner in path.iterdir())
            if not seeds and not OURS.fullmatch(path.name):
                raise ConfigError(f"--out {out}: holds {path.name}, which is no comparison's; name another directory")
    for row in rows:
        seeds_directory.check(out / row.label, row.configs, "--out")


def summarize(out: Path, rows: Sequence[Row], failed: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    """What comparison.json holds, from the files of the runs that are finished; failed: of (row, seed) what went wrong.

    {"seeds", "rows": [{row, control, method, seeds that are finished, failed, to_come, models as in seeds.json, final, rounds, and
    the means over seeds of bytes_up, bytes_down, seconds and compile_seconds of all stages together}]}, in the order of `rows`.
    """
    return {"seeds": [config.seed for config in rows[0].configs], "rows": [_summary(out, row, failed) for row in rows]}


def _summary(out: Path, row: Row, failed: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    seeds = [config.seed for config in row.configs]
    found = {seed: finished(run_dir(out, row.label, seed)) for seed in seeds}
    results = {seed: each for seed, each in found.items() if each is not None}
    wrong = {str(seed): failed[row.label, seed] for seed in seeds if (row.label, seed) in failed}
    summary = {
        "row": row.label, "control": row.control, "method": row.configs[0].method, "seeds": list(results), "failed": wrong,
        "to_come": [seed for seed in seeds if seed not in results and str(seed) not in wrong], "models": {}, "final": None,
    }  # fmt: skip
    if not results:
        return summary
    runs = list(results.values())

    def mean(total: Mapping[str, Any]) -> float:
        return statistics.fmean(total[seed] for seed in results)

    return summary | {
        "models": seeds_directory.summarize(runs)["models"],
        "final": runs[0].get("final"),
        "rounds": rounds(run_dir(out, row.label, next(iter(results)))),
        "bytes_up": mean({seed: sum(stage["up"] for stage in each["bytes"].values()) for seed, each in results.items()}),
        "bytes_down": mean({seed: sum(stage["down"] for stage in each["bytes"].values()) for seed, each in results.items()}),
        "seconds": mean({seed: sum(each["seconds"].values()) for seed, each in results.items()}),
        "compile_seconds": mean({seed: sum(each["compile_seconds"].values()) for seed, each in results.items()}),
    }


def rounds(directory: Path) -> int:
    """Federated rounds of a run, all stages together, as its records count them."""
    last: dict[str, int] = {}
    for record in metrics.read(directory):
        if record.get("round") is not None:
            last[record["stage"]] = max(last.get(record["stage"], 0), record["round"])
    return sum(last.values())


def write_records(out: Path, rows: Sequence[Row]) -> None:
    """Writes OUT/results/DATASET/*.json, a small file for each finished run that has none yet; see `run_record`."""
    for row in rows:
        for config in row.configs:
            directory = run_dir(out, row.label, config.seed)
            results = finished(directory)
            if results is None or "commit" not in results:  # of a version that did not write it
                continue
            record = run_record.record(config, row.protocol, row.control, results, read_data(directory) or {})
            if not (out / "results" / record["dataset"] / run_record.file_name(record)).exists():
                run_record.write(out / "results", record)


def write(out: Path, summary: Mapping[str, Any]) -> None:
    """Writes every file of the comparison, each whole or not at all."""
    write_json(out / "comparison.json", summary)
    write_text(out / "comparison.csv", as_csv(summary))
    write_text(out / "comparison.txt", as_text(summary))
    tested = {row["row"]: {model: each["test"] for model, each in row["models"].items()} for row in summary["rows"]}
    final = {row["row"]: row["final"] for row in summary["rows"]}
    if any(tested.values()):
        save_grid(out / "comparison.png", accuracy_plot(tested, final, heading(summary)))
    write_index(out)


def read_summary(out: Path) -> dict[str, Any]:
    """comparison.json; raises ConfigError where it is damaged, or gone."""
    path, remedy = out / "comparison.json", "`mosaic-jax compare` writes it again"
    summary = read_json(path, remedy, COMPARISON, wrong_comparison)
    if summary is None:
        raise ConfigError(f"{path}: cannot be read: it is not there; {remedy}")
    return summary


def write_index(out: Path) -> Path:
    """Writes OUT/report.html out of comparison.json and comparison.png, the runs' own reports as they are; returns its path."""
    summary = read_summary(out)
    name = out.resolve().name
    sections = [
        f'<h1>{escape(name)}</h1><p class="soft">{escape(heading(summary))}</p>', table(*cells(summary)),
        _figure(out / "comparison.png"), f"<h2>Runs</h2>{table_of_runs(out, summary)}",
    ]  # fmt: skip
    path = out / "report.html"
    write_text(path, page(f"Comparison {name}", sections))
    return path


def _figure(path: Path) -> str:
    """The picture, empty where there is none yet."""
    if not path.exists():
        return ""
    try:
        png = read_png(path)
    except ConfigError as error:
        return f'<div class="note">{escape(str(error))}; not shown. `mosaic-jax compare` draws it again.</div>'
    # Twice as many pixels as the page shows, for fine screens.
    width = int.from_bytes(png[16:20], "big") // SCALE
    return f"<h2>Test accuracy</h2><figure>{picture(png, 'test accuracy of every row', f'width:{width}px')}</figure>"


def table_of_runs(out: Path, summary: Mapping[str, Any]) -> str:
    """A list of rows with a link to the report of each run that has one."""
    items = ""
    for row in summary["rows"]:
        links = []
        for seed in summary["seeds"]:
            report = run_dir(out, row["row"], seed) / "report.html"
            reason = row["failed"].get(str(seed), "") or ("to come" if seed in row["to_come"] else "")
            shown = f"seed {seed}"
            if os.path.exists(report):  # False also for a name that no file can have
                shown = f'<a href="{quote(os.fsencode(report.relative_to(out)))}">{shown}</a>'
            links.append(f"{shown} ({escape(reason)})" if reason else shown)
        items += f"<li>{escape(row['row'])}: {', '.join(links)}</li>"
    return f"<ul>{items}</ul>"
