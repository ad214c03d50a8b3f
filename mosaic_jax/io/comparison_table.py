"""The table of a comparison, as text and as CSV; summary: what comparison.json holds."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mosaic_jax.io.console import mean_and_deviation
from mosaic_jax.plain_text import plain, plain_cell

COSTS = ("rounds", "bytes_up", "bytes_down", "seconds", "compile_seconds")


def heading(summary: Mapping[str, Any]) -> str:
    """What the numbers are."""
    seeds = summary["seeds"]
    spread = f"mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"test accuracy in %, {spread}; final: what the method hands over"


def models_of(summary: Mapping[str, Any]) -> list[str]:
    """Every model that any row has, in the order of the stages as the row with most models has it."""
    lists = sorted((list(row["models"]) for row in summary["rows"]), key=len, reverse=True)
    return list(dict.fromkeys(name for names in lists for name in names))


def cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows as texts; costs are means over seeds of whole runs, seconds without those of compiling."""
    models = models_of(summary)
    head = ["row", "final", *models, "rounds", "MiB up", "MiB down", "seconds", "compiling", "seeds"]
    lines = []
    for row in summary["rows"]:
        tests = {name: mean_and_deviation(each["test"]) for name, each in row["models"].items()}
        final = f"{tests[row['final']]} {row['final']}" if row["final"] in tests else "-"
        costs = ["-"] * len(COSTS)
        if row["seeds"]:
            up, down = (f"{row[way] / 2**20:,.1f}" for way in ("bytes_up", "bytes_down"))
            costs = [str(row["rounds"]), up, down, f"{row['seconds']:,.1f}", f"{row['compile_seconds']:,.1f}"]
        name = f"{row['row']} (control)" if row["control"] else row["row"]
        lines.append([name, final, *(tests.get(model, "-") for model in models), *costs, _seeds(row, len(summary["seeds"]))])
    return list(map(plain, head)), [list(map(plain, line)) for line in lines]


def _seeds(row: Mapping[str, Any], asked: int) -> str:
    """`3`, or how many of those that were asked for, and why the others are not there."""
    done = len(row["seeds"])
    wrong = [f"seed {seed} failed: {reason}" for seed, reason in row["failed"].items()]
    return str(done) if done == asked else "; ".join([f"{done} of {asked}", *wrong])


def as_text(summary: Mapping[str, Any]) -> str:
    """A title and the aligned table."""
    head, lines = cells(summary)
    return "\n".join([heading(summary), "", *aligned(head, lines, left={0, 1, len(head) - 1})]) + "\n"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """The headings, a rule and the lines of a table; the columns `left` begin at the left, others end at the right."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]

    def fitted(line: Sequence[str]) -> str:
        parts = (cell.ljust(widths[n]) if n in left else cell.rjust(widths[n]) for n, cell in enumerate(line))
        return "  ".join(parts).rstrip()

    return [fitted(head), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(fitted, lines)]


def as_csv(summary: Mapping[str, Any]) -> str:
    """A line for each model of each row; accuracies are shares in 0..1, costs means over seeds, repeated on a row's lines.

    A row without a finished run has one line, without a model.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = ("test", "validation")
    writer.writerow([
        "row", "control", "method", "seeds", "failed", "model", "final",
        *(f"{measure}_{value}" for measure in measures for value in ("mean", "std")), *COSTS,
    ])  # fmt: skip
    nothing = {measure: {"mean": None, "std": None} for measure in measures}
    for row in summary["rows"]:
        common = [*(plain_cell(row[name]) for name in ("row", "control", "method")), len(row["seeds"]), len(row["failed"])]
        for model, each in (row["models"] or {"": nothing}).items():
            numbers = [each[measure][value] for measure in measures for value in ("mean", "std")]
            final = str(model == row["final"]).lower()
            writer.writerow([*common, plain_cell(model), final, *numbers, *(row.get(cost) for cost in COSTS)])
    return text.getvalue()
