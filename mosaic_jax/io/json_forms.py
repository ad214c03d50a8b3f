"""What the JSON files of a run, of its seeds and of a comparison must hold: forms, and where parts that have them do not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic_jax.io.comparison_table import COSTS
from mosaic_jax.json_file import AMOUNT, COUNT, SHARE, TEXT, Value, or_null

MODEL = {"validation?": SHARE, "test?": SHARE, "test_per_class": [or_null(SHARE)]}
RESULTS = {
    "method": TEXT, "seed": COUNT, "stages": [TEXT], "stages_done": [TEXT], "models": {str: MODEL}, "final?": TEXT,
    "confusion?": [[COUNT]], "bytes?": {str: {"up": AMOUNT, "down": AMOUNT}}, "seconds?": {str: AMOUNT},
    "compile_seconds?": {str: AMOUNT}, "class_names": [TEXT], "label_counts?": [[COUNT]], "num_samples?": [COUNT],
    "hardware?": TEXT, "commit?": TEXT, "versions?": {str: TEXT}, "steps?": {str: COUNT},
}  # fmt: skip

MEASURE = {"values": [or_null(SHARE)], "mean": or_null(SHARE), "std": or_null(AMOUNT)}
MODELS = {str: {"validation": MEASURE, "test": MEASURE}}
SEEDS = {"method": TEXT, "seeds": [COUNT], "models": MODELS}

FOLDER = Value("the name of a folder", lambda value: isinstance(value, str) and Path(value).name == value not in ("", ".."))
ROW = {
    "row": FOLDER, "control": TEXT, "method": TEXT, "seeds": [COUNT], "failed": {str: TEXT}, "to_come": [COUNT], "models": MODELS,
    "final": or_null(TEXT), **{f"{cost}?": AMOUNT for cost in COSTS},
}  # fmt: skip
COMPARISON = {"seeds": [COUNT], "rows": [ROW]}


def wrong_results(results: Mapping[str, Any]) -> str:
    """The first part of results.json that is not of as many classes as there are names; empty where all are."""
    of_classes = {f"models.{name}.test_per_class": model["test_per_class"] for name, model in results["models"].items()}
    for name in ("label_counts", "confusion"):
        of_classes |= {f"{name}[{place}]": row for place, row in enumerate(results.get(name) or ())}
    if results.get("confusion"):
        of_classes["confusion"] = results["confusion"]
    num_classes = len(results["class_names"])
    if of_classes and not num_classes:
        return "class_names is empty"
    found = next((name for name, values in of_classes.items() if len(values) != num_classes), None)
    return f"{found} has {len(of_classes[found])} values for {num_classes} class_names" if found else ""


def wrong_seeds(summary: Mapping[str, Any]) -> str:
    """The first model of seeds.json that does not have a value for each seed; empty where all have."""
    num_seeds = len(summary["seeds"])
    values = {f"models.{name}.{which}.values": each["values"] for name, m in summary["models"].items() for which, each in m.items()}
    found = next((name for name, of_seeds in values.items() if len(of_seeds) != num_seeds), None)
    return f"{found} has {len(values[found])} values for {num_seeds} seeds" if found else ""


def wrong_comparison(summary: Mapping[str, Any]) -> str:
    """What comparison.json lacks of its seeds and of the costs of rows that have runs; empty where it lacks nothing."""
    if not summary["seeds"]:
        return "seeds is empty"
    lacks = (f"{row['row']} has no {cost}" for row in summary["rows"] if row["seeds"] for cost in COSTS if row.get(cost) is None)
    return next(lacks, "")
