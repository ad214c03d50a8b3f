"""The directory of a leaderboard: leaderboard.json, .csv, .md, .png and report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.accuracy_plot import SCALE, accuracy_plot
from mosaic_jax.io.leaderboard_table import LEGEND, OVERALL_LEGEND, as_csv, as_markdown, cells, note, overall_cells
from mosaic_jax.io.page import escape, page, picture, table
from mosaic_jax.io.samples import read_png, save_grid
from mosaic_jax.io.whole_files import write_json, write_text

MODELS = {"teacher_test": "teacher", "student_test": "student", "final_test": "final"}


def check(out: Path) -> None:
    """Raises ConfigError where `out` holds a report of something else, which this one would replace."""
    if (out / "report.html").exists() and not (out / "leaderboard.json").exists():
        raise ConfigError(f"--out {out}: holds a report.html that is no leaderboard's; name another directory")


def write(out: Path, summary: Mapping[str, Any]) -> None:
    """Writes every file, each whole or not at all."""
    write_json(out / "leaderboard.json", summary)
    write_text(out / "leaderboard.csv", as_csv(summary))
    write_text(out / "leaderboard.md", as_markdown(summary))
    save_grid(out / "leaderboard.png", plot(summary))
    write_text(out / "report.html", report(out, summary))


def plot(summary: Mapping[str, Any]) -> np.ndarray:
    """Accuracies of every row of every task and beside them what they cost, tasks below each other; u8[height, width, 3]."""
    pictures = [_plot(task) for task in summary["tasks"]]
    width = max(each.shape[1] for each in pictures)
    return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in pictures])


def _plot(task: Mapping[str, Any]) -> np.ndarray:
    rows = {row["row"]: {MODELS[name]: row[name] for name in MODELS} for row in task["rows"]}
    costs = {
        "seconds": {row["row"]: row["seconds"] for row in task["rows"]},
        "MiB up": {row["row"]: row["bytes_up"] / 2**20 for row in task["rows"]},
        "MiB down": {row["row"]: row["bytes_down"] / 2**20 for row in task["rows"]},
    }
    title = f"{task['title']}: test accuracy in %, mean ± sample standard deviation over seeds, and means of costs"
    return accuracy_plot(rows, {}, title, costs)


def report(out: Path, summary: Mapping[str, Any]) -> str:
    """The page, with leaderboard.png as it is there."""
    png = read_png(out / "leaderboard.png")
    width = int.from_bytes(png[16:20], "big") // SCALE
    sections = [f"<h1>{escape(out.resolve().name)}</h1>"]
    for task in summary["tasks"]:
        sections += [f"<h2>{escape(task['title'])}</h2>", table(*cells(task)), f'<p class="soft">{escape(note(task))}</p>']
    if summary["overall"]:
        sections += ["<h2>All tasks</h2>", table(*overall_cells(summary)), f'<p class="soft">{escape(OVERALL_LEGEND)}</p>']
    figure = picture(png, "test accuracy and costs of every row", f"width:{width}px")
    sections += [f"<p>{escape(LEGEND)}</p>", f"<h2>Accuracy and costs</h2><figure>{figure}</figure>"]
    return page(f"Leaderboard {out.resolve().name}", sections)
