"""RUN_DIR/report.html: one page about a run, made from the files of its directory, loading nothing from elsewhere."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import flatten, load_json
from mosaic_jax.data.partition import describe
from mosaic_jax.io import metrics
from mosaic_jax.io.charts import Series, heat_map, line_chart
from mosaic_jax.io.console import COST_COLUMNS, cost_rows, percent, present_models
from mosaic_jax.io.page import escape, fold, page, picture, table
from mosaic_jax.io.results_file import read_results
from mosaic_jax.io.samples import read_png
from mosaic_jax.io.whole_files import write_text
from mosaic_jax.settings import settings, show

HISTOGRAM = "teacher_histogram/"
OF_CLASS = re.compile(r"teacher_histogram/client(\d{1,9})/class(\d{1,9})")
DRAWN_CLIENTS, DRAWN_CLASSES = 200, 1000  # thousands of clients would be a page of many megabytes
COSTS = ("elapsed_seconds", "compile_seconds", "bytes_up", "bytes_down")
ACCURACIES = ("validation", "best_validation", "accuracy", "test")


def write_report(run_dir: Path, results: Mapping[str, Any] | None = None) -> Path:
    """Writes RUN_DIR/report.html and returns its path; a run that is not finished gives a page that says what is missing.

    results: what results.json will hold, None for what it holds now.

    Reads config.json, metrics.jsonl, results.json and samples/*.png there; raises ConfigError if config.json or results.json
    cannot be read.
    """
    config = load_json(run_dir / "config.json")
    results = (read_results(run_dir) or {}) if results is None else results
    records = metrics.read(run_dir)
    pictures, refused = read_samples(run_dir / "samples")
    sections = [
        heading(run_dir, config, results), missing(results, records, pictures), lost(run_dir, results, records, refused),
        accuracies(results), curves(records), partition_and_histogram(results, records), samples(pictures), confusion(results),
        costs(results), configuration(config),
    ]  # fmt: skip
    path = run_dir / "report.html"
    write_text(path, page(f"Mosaic run {run_dir.resolve().name}", sections))
    return path


def read_samples(directory: Path) -> tuple[dict[str, bytes], list[str]]:
    """The PNG files of samples/ by name, and what is wrong with others that are called so: a link might lead to any file."""
    if directory.is_symlink():
        return {}, ["is a link"]
    found, refused = {}, []
    for path in sorted(directory.glob("*.png")):
        try:
            found[path.stem] = read_png(path)
        except ConfigError as error:
            refused.append(str(error))
    return found, refused


def heading(run_dir: Path, config: Config, results: Mapping[str, Any]) -> str:
    """What was run, on what."""
    facts = [
        f"method {config.method}",
        f"seed {config.seed}",
        f"data {config.data.source}",
        describe(config.partition),
        f"{config.model.name} of width {config.model.width}",
        results.get("hardware", ""),
    ]
    return f'<h1>{escape(run_dir.resolve().name)}</h1><p class="soft">{escape(" · ".join(filter(None, facts)))}</p>'


def missing(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> str:
    """What a run that is not finished lacks; empty for a finished one."""
    lacks = []
    if results:
        to_come = [stage for stage in results.get("stages", []) if stage not in results.get("stages_done", [])]
        if to_come:
            lacks.append(f"stages still to come: {', '.join(to_come)}")
    else:
        seen = list(dict.fromkeys(record["stage"] for record in records))
        lacks.append(f"results.json (accuracies, confusion matrix, costs); records so far: {', '.join(seen) or 'none'}")
    if not records:
        lacks.append("metrics.jsonl (curves)")
    if not pictures and "generators" in results.get("stages", ["generators"]):
        lacks.append("samples/*.png (pictures of the generators)")
    return f'<div class="note">Not there yet: {escape("; ".join(lacks))}.</div>' if lacks else ""


def lost(run_dir: Path, results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], refused: Sequence[str]) -> str:
    """What was there once and is gone, and what is there and not shown; empty where all is well."""
    notes = [f"metrics.jsonl: {complaint}" for complaint in metrics.complaints(run_dir, results.get("stages_done", ()))]
    notes += [f"samples: {reason}; not shown" for reason in refused]
    return "".join(f'<div class="note">{escape(note)}</div>' for note in notes)


def accuracies(results: Mapping[str, Any]) -> str:
    """The result table, and per class behind a fold."""
    names = present_models(results)
    if not names:
        return ""
    rows = ""
    for name in names:
        model = results["models"][name]
        share = 100 * (model.get("test") or 0.0)
        rows += (
            f'<tr><td>{escape(name)}</td><td class="n">{percent(model.get("validation"))}</td>'
            f'<td class="n">{percent(model.get("test"))}</td><td class="bar"><i style="width:{share:.1f}%"></i></td></tr>'
        )
    models = f'<table><tr><th>model</th><th class="n">validation %</th><th class="n">test %</th><th></th></tr>{rows}</table>'
    per_class = [
        [class_name, *(percent(results["models"][name]["test_per_class"][index]) for name in names)]
        for index, class_name in enumerate(results["class_names"])
    ]
    return f"<h2>Accuracy</h2>{models}{fold('Test accuracy per class, %', table(['class', *names], per_class))}"


def curves(records: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over rounds, the student along distilling, every other accuracy and every loss."""
    points: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    by_round: set[str] = set()
    for record in records:
        if record["name"] in COSTS or record["name"].startswith(HISTOGRAM):
            continue
        if record.get("round") is not None:
            by_round.add(record["stage"])
        x = record["step"] if record.get("round") is None else record["round"]
        points.setdefault(record["stage"], {}).setdefault(record["name"], []).append((x, record["value"]))
    charts = [rounds_chart(points)]
    for stage, series in points.items():
        unit = "round" if stage in by_round else "step"
        of_accuracy = {name: line for name, line in series.items() if name.startswith(ACCURACIES)}
        if stage not in ("warmup", "finetune"):
            title = "Student accuracy along distillation" if stage == "distill" else f"Accuracy: {stage}"
            charts.append(line_chart(title, of_accuracy, unit, percent=True))
    for stage, series in points.items():
        unit = "round" if stage in by_round else "step"
        losses = {name: line for name, line in series.items() if not name.startswith(ACCURACIES)}
        charts.append(line_chart(f"Loss: {stage}" if all("loss" in name for name in losses) else stage, losses, unit))
    drawn = "".join(filter(None, charts))
    return f'<h2>Curves</h2><div class="row">{drawn}</div>' if drawn else ""


def rounds_chart(points: Mapping[str, Mapping[str, Series]]) -> str:
    """Accuracy of the global model over the rounds of warm-up and, after them, of fine-tune."""
    series: dict[str, Series] = {}
    start = 0.0
    for stage in ("warmup", "finetune"):
        for name, line in points.get(stage, {}).items():
            if name.startswith(ACCURACIES):
                series[f"{stage}, {name}"] = [(start + x, y) for x, y in line]
        start += max((x for line in points.get(stage, {}).values() for x, _ in line), default=0.0)
    return line_chart("Accuracy of the global model over rounds", series, "round", percent=True)


def partition_and_histogram(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The label counts of the clients, and the classes that the teacher sees in what each generator draws beside their shares."""
    class_names, counts = results.get("class_names"), (results.get("label_counts") or [])[:DRAWN_CLIENTS]
    shares = teacher_histogram(records, len(class_names or ()) or DRAWN_CLASSES)
    total = len(results.get("label_counts") or ())
    of_some = f", the first {DRAWN_CLIENTS} of {total} clients" if total > DRAWN_CLIENTS else ""
    axes = ("client", "class")
    rows = []
    if counts:
        rows.append([heat_map(f"Training images{of_some}", counts, numbered(counts), class_names, axes)])
    if shares:
        names = class_names or numbered(shares[0])
        row = []
        if counts:
            own = [[100 * count / (sum(of_client) or 1) for count in of_client] for of_client in counts]
            row.append(heat_map(f"The clients' own labels, %{of_some}", own, numbered(own), names, axes, shade_rows=True))
        teacher = [[100 * share for share in of_client] + [0.0] * (len(names) - len(of_client)) for of_client in shares]
        title = f"The teacher's classes on generated images, %{of_some}"
        row.append(heat_map(title, teacher, numbered(teacher), names, axes, shade_rows=True))
        rows.append(row)
    drawn = "".join(f'<div class="row">{"".join(row)}</div>' for row in rows)
    return f"<h2>Partition</h2>{drawn}" if drawn else ""


def numbered(values: Sequence[Any]) -> list[str]:
    """0, 1, 2, ... for as many as there are."""
    return [str(place) for place in range(len(values))]


def teacher_histogram(records: Sequence[Mapping[str, Any]], most_classes: int = DRAWN_CLASSES) -> list[list[float]]:
    """Shares [C][K] of the newest records named teacher_histogram/client<i>/class<k>; empty if there are none.

    Of more clients than are drawn, or more classes than most_classes, the first ones.
    """
    found: dict[tuple[int, int], float] = {}
    for record in records:
        if name := OF_CLASS.fullmatch(record["name"]):
            client, label = int(name[1]), int(name[2])
            if client < DRAWN_CLIENTS and label < most_classes:
                found[client, label] = max(record["value"] or 0.0, 0.0)
    if not found:
        return []
    num_clients, num_classes = (1 + max(key[axis] for key in found) for axis in (0, 1))
    return [[found.get((client, label), 0.0) for label in range(num_classes)] for client in range(num_clients)]


def samples(pictures: Mapping[str, bytes]) -> str:
    """The pictures of samples/, held in the page."""
    figures = ""
    for stem, png in pictures.items():
        name = stem.replace("_", " ")
        figures += f"<figure><figcaption>{escape(name)}</figcaption>{picture(png, name)}</figure>"
    return f"<h2>Samples: real images next to generated ones</h2>{figures}" if figures else ""


def confusion(results: Mapping[str, Any]) -> str:
    """The confusion matrix of the newest model on the test set."""
    if not results.get("confusion"):
        return ""
    names = results["class_names"]
    chart = heat_map("Test images", results["confusion"], names, names, ("true class", "predicted class"), shade_rows=True)
    return f'<h2>Confusion matrix of the final model</h2><div class="row">{chart}</div>'


def costs(results: Mapping[str, Any]) -> str:
    """Bytes and seconds of every stage, compilation apart."""
    rows = cost_rows(results)
    return f"<h2>Costs</h2>{table(COST_COLUMNS, rows, total=True)}" if rows else ""


def configuration(config: Config) -> str:
    """Every setting with its help; those that differ from the default in bold."""
    shown, defaults = flatten(config), {each.name: each.value for each in settings(Config())}
    rows = "".join(
        f"<tr{' class=changed' if each.value != defaults[each.name] else ''}><td><code>{escape(each.name)}</code></td>"
        f'<td><code>{escape(show(each.value))}</code></td><td class="soft">{escape(each.field.metadata["help"])}</td></tr>'
        for each in settings(config)
        if each.name in shown
    )
    inner = f'<div class="scroll"><table>{rows}</table></div>'
    return f"<h2>Configuration</h2>{fold('Every setting; bold ones differ from the default', inner)}"
