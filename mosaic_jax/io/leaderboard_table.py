"""The tables of a leaderboard, as text, Markdown and CSV; summary: what leaderboard.json holds."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mosaic_jax.io.comparison_table import aligned
from mosaic_jax.io.console import mean_and_deviation
from mosaic_jax.plain_text import plain, plain_cell

ACCURACIES = ("final_test", "student_test", "teacher_test", "validation")
COSTS = ("seconds", "bytes_up", "bytes_down")
PAIRED = ("mean", "low", "high", "p", "wins", "draws", "losses")
LEGEND = (
    "Accuracies in %, mean ± sample standard deviation over seeds; final: what the method hands over, tested; validation: the same "
    "model on held-back images. Differences are Mosaic's final minus the row's over the seeds that both have: mean, 95% bootstrap "
    "interval (too narrow for few seeds), p of a two-sided exact sign-flip test, seeds that Mosaic wins/draws/loses. Ranks are of "
    "means over the seeds that all rows have. Seconds without compiling; bytes of all clients."
)
OVERALL_LEGEND = (
    "Over tasks: mean rank among the rows that every task has, and on how many tasks Mosaic wins (the interval of its difference "
    "lies above 0), draws (it holds 0, or there is one seed) and loses."
)


def cells(task: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of a task as texts."""
    head = ["row", "final", "student", "teacher", "validation", "seeds", "Mosaic minus row", "95% interval", "p", "w/d/l", "rank"]
    return [*head, "seconds", "MiB up", "MiB down"], [list(map(plain, _line(row))) for row in task["rows"]]


def _line(row: Mapping[str, Any]) -> list[str]:
    paired, found = ["-"] * 4, row["against"]
    if found is not None:
        interval = "-" if found["low"] is None else f"{points(found['low'])} to {points(found['high'])}"
        paired = [points(found["mean"]), interval, f"{found['p']:.2g}", _counts(found)]
    costs = [f"{row['seconds']:,.0f}", *(f"{row[way] / 2**20:,.1f}" for way in ("bytes_up", "bytes_down"))]
    accuracies = [mean_and_deviation(row[name]) for name in ACCURACIES]
    return [row["row"], *accuracies, str(len(row["seeds"])), *paired, _rank(row["rank"]), *costs]


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{100 * share:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


def _rank(rank: float | None) -> str:
    return "-" if rank is None else f"{rank:.3g}"


def _counts(counts: Mapping[str, Any]) -> str:
    return "-" if counts["wins"] is None else f"{counts['wins']}/{counts['draws']}/{counts['losses']}"


def overall_cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the table over all tasks as texts; no rows for one task."""
    lines = [[plain(row["row"]), str(row["tasks"]), _rank(row["rank"]), _counts(row)] for row in summary["overall"]]
    return ["row", "tasks", "mean rank", "w/d/l"], lines


def note(task: Mapping[str, Any]) -> str:
    """What a task's differences are to, the least p that its seeds allow, and where its numbers come from."""
    found = [row["against"] for row in task["rows"] if row["against"] is not None]
    allowed = [f"{seeds} seed{'s' * (seeds > 1)} allow{'s' * (seeds == 1)} no p below {least:.2g}"
               for seeds, least in sorted({(len(each["seeds"]), each["smallest_p"]) for each in found})]  # fmt: skip
    reference = f"Mosaic is the row {task['reference']}" if task["reference"] else "there is no row mosaic to compare with"
    code = f"commit{'s' * (len(task['commits']) > 1)} {', '.join(task['commits'])}"
    return plain("; ".join([reference, *allowed, f"data {task['data_digest']}", code, *task["hardware"]]))


def as_text(summary: Mapping[str, Any]) -> str:
    """Titles and aligned tables, and what their columns mean."""
    lines = []
    for task in summary["tasks"]:
        lines += [plain(task["title"]), "", *aligned(*cells(task), left={0}), note(task), ""]
    if summary["overall"]:
        lines += ["all tasks", "", *aligned(*overall_cells(summary), left={0}), OVERALL_LEGEND, ""]
    return "\n".join([*lines, LEGEND]) + "\n"


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The same in Markdown; what names hold is shown as it is."""
    lines = []
    for task in summary["tasks"]:
        lines += [f"**{_text(plain(task['title']))}**", "", *_table(*cells(task)), "", f"{_text(note(task))}.", ""]
    if summary["overall"]:
        lines += ["**all tasks**", "", *_table(*overall_cells(summary)), "", OVERALL_LEGEND, ""]
    return "\n".join([*lines, LEGEND]) + "\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(map(_text, line))} |" if line is not rule else f"|{'|'.join(rule)}|" for line in (head, rule, *lines)]


def _text(text: str) -> str:
    """A text that is no Markdown and no HTML."""
    escaped = html.escape(text, quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|" else character for character in escaped)


def as_csv(summary: Mapping[str, Any]) -> str:
    """A line for each row of each task; accuracies and differences are shares, costs means over seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("dataset", "protocol", "alpha", "data_digest")
    writer.writerow([
        "task", *names, "row", "method", "seeds", *(f"{name}_{of}" for name in ACCURACIES for of in ("mean", "std")),
        *(f"against_{name}" for name in PAIRED), "rank", *COSTS,
    ])  # fmt: skip
    for task in summary["tasks"]:
        named = [plain_cell(of) if isinstance(of, str) else of for of in (task["title"], *(task[name] for name in names))]
        for row in task["rows"]:
            accuracies = [row[name][of] for name in ACCURACIES for of in ("mean", "std")]
            paired = [(row["against"] or {}).get(name) for name in PAIRED]
            costs = [row[name] for name in COSTS]
            own = [*map(plain_cell, (row["row"], row["method"])), len(row["seeds"])]
            writer.writerow([*named, *own, *accuracies, *paired, row["rank"], *costs])
    return text.getvalue()
