"""`mosaic-jax leaderboard`: tables, tests and a picture over result files of any number of runs."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_jax.io import leaderboard_directory, marked_blocks
from mosaic_jax.io.console import Console
from mosaic_jax.io.leaderboard_table import ACCURACIES, COSTS, as_markdown, as_text
from mosaic_jax.io.result_tasks import Row, Task, read_tasks
from mosaic_jax.io.whole_files import saying_what_is_not_written
from mosaic_jax.seed_statistics import (
    bootstrap_interval,
    mean_and_std,
    rank_by_seeds,
    sign_flip_p,
    smallest_p,
    wins_draws_losses,
)

OURS = "mosaic"  # the row that the others are compared to


def show(places: Sequence[Path], out: Path | None, markdown: bool, console: Console) -> None:
    """Prints the tables of the result files below some directories and, where `out` is given, writes every file there.

    Raises ConfigError as `read_tasks` does, and for an `out` that holds the report of something else.
    """
    if out is not None:
        leaderboard_directory.check(out)
    summary = summarize(read_tasks(places))
    for line in (as_markdown if markdown else as_text)(summary).splitlines():
        console.message(line)
    if out is not None:
        with saying_what_is_not_written(console.warning):
            leaderboard_directory.write(out, summary)
            if not markdown:
                console.message(f"report: {out / 'report.html'}")


def update(page: Path, console: Console) -> None:
    """Replaces every marked block of a Markdown page by the tables of the directories that it names."""
    number = marked_blocks.rewrite(page, markdown_of)
    console.message(f"{page}: {number} leaderboard{'' if number == 1 else 's'}")


def markdown_of(places: Iterable[Path]) -> str:
    """What stands in a marked block that names these directories."""
    return as_markdown(summarize(read_tasks(places)))


def summarize(tasks: Sequence[Task]) -> dict[str, Any]:
    """What leaderboard.json holds.

    {"tasks": [{title, dataset, protocol, alpha, data_digest, reference, commits, hardware, rows, best first}], "overall": [{row,
    tasks, rank, wins, draws, losses}], empty for a single task}. A row has its method and seeds, {values, mean, std} of each of
    ACCURACIES, means of COSTS, its rank and `against`, the paired comparison of the reference with it, None where there is none.
    """
    summaries = [_of_task(task) for task in tasks]
    return {"tasks": summaries, "overall": _overall(tasks, summaries) if len(tasks) > 1 else []}


def _of_task(task: Task) -> dict[str, Any]:
    records = [record for row in task.rows for record in row.runs.values()]
    reference = reference_of(task.rows)
    rank = rank_by_seeds({row.label: scores for row in task.rows if (scores := _scores(row))})
    rows = [_of_row(row, reference, rank.get(row.label)) for row in task.rows]
    rows.sort(key=lambda row: (row["rank"] or math.inf, -(row["final_test"]["mean"] or 0.0), row["row"]))
    return {
        "title": task.title, **{name: records[0][name] for name in ("dataset", "protocol", "alpha", "data_digest")},
        "reference": reference and reference.label,
        "commits": sorted({record["commit"] for record in records}), "hardware": sorted({record["hardware"] for record in records}),
        "rows": rows,
    }  # fmt: skip


def reference_of(rows: Sequence[Row]) -> Row | None:
    """The row of Mosaic; of several, the one without an addition to its name, else that of most seeds; None without Mosaic."""
    ours = [row for row in rows if row.name == OURS]
    return max(ours, key=lambda row: (row.label == OURS, len(row.runs)), default=None)


def _of_row(row: Row, reference: Row | None, rank: float | None) -> dict[str, Any]:
    runs = row.runs.values()
    summary: dict[str, Any] = {"row": row.label, "method": next(iter(runs))["method"], "seeds": list(row.runs), "rank": rank}
    for name in ACCURACIES:
        values = [record[name] for record in runs]
        mean, std = mean_and_std(values)
        summary[name] = {"values": values, "mean": mean, "std": std}
    summary |= {name: statistics.fmean(record[name] for record in runs) for name in COSTS}
    return summary | {"against": None if reference is None or reference is row else against(_scores(reference), _scores(row))}


def _scores(row: Row) -> dict[int, float]:
    """Test accuracy of what is handed over, by seed."""
    return {seed: record["final_test"] for seed, record in row.runs.items() if record["final_test"] is not None}


def against(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """Ours minus theirs over the seeds that both have; None where that is none. The interval has None as its ends for one seed."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = bootstrap_interval(differences) or (None, None)
    wins, draws, losses = wins_draws_losses(differences)
    return {
        "seeds": seeds, "mean": statistics.fmean(differences), "low": low, "high": high, "p": sign_flip_p(differences),
        "smallest_p": smallest_p(len(seeds)), "wins": wins, "draws": draws, "losses": losses,
    }  # fmt: skip


def _overall(tasks: Sequence[Task], summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each row that several tasks have its mean rank, among the rows that all tasks have, and on how many tasks the reference
    wins against it, draws or loses: the interval of the difference lies above 0, holds it or is not there, lies below it."""
    everywhere = set.intersection(*({row.label for row in task.rows if _scores(row)} for task in tasks))
    ranked = [rank_by_seeds({row.label: _scores(row) for row in task.rows if row.label in everywhere}) for task in tasks]
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for summary in summaries:
        for row in summary["rows"]:
            rows.setdefault(row["row"], []).append(row)
    found = []
    for label, of_tasks in rows.items():
        if len(of_tasks) < 2:
            continue
        judged = [_judged(row["against"]) for row in of_tasks if row["against"] is not None]
        wins, draws, losses = wins_draws_losses(judged)
        known = all(label in ranks_of_task for ranks_of_task in ranked)
        rank = statistics.fmean(ranks_of_task[label] for ranks_of_task in ranked) if known else None
        counts = {"wins": wins, "draws": draws, "losses": losses} if judged else dict.fromkeys(("wins", "draws", "losses"))
        found.append({"row": label, "tasks": len(of_tasks), "rank": rank, **counts})
    return sorted(found, key=lambda row: (row["rank"] or math.inf, row["row"]))


def _judged(difference: Mapping[str, Any]) -> float:
    """1 for a difference whose interval lies above 0, -1 for one below, else 0."""
    if difference["low"] is None:
        return 0.0
    return float(difference["low"] > 0) - float(difference["high"] < 0)
