"""The report shows a run, finished or not, from the files in its directory, and loads nothing from elsewhere."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import apply_overrides, save_json
from mosaic_jax.io.charts import heat_map, line_chart, ticks
from mosaic_jax.io.metrics import MetricsLog
from mosaic_jax.io.report import teacher_histogram, write_report
from mosaic_jax.io.samples import image_grid, save_real_and_generated, to_pixels

NUM_CLIENTS, NUM_CLASSES = 3, 4
STAGES = ["warmup", "generators", "experts", "meta", "distill", "finetune"]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects what a page would load, and refuses tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.resources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"line", "path"}, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def write_metrics(run_dir: Path) -> None:
    """Records of every kind that a run writes."""
    log = MetricsLog(run_dir)
    for round in range(0, 31, 5):
        log.write("warmup", round, {"validation": 0.8 - 0.6 * 0.8**round, "loss": 2 * 0.9**round + 0.1}, round=round)
    for step in range(0, 1000, 50):
        log.write("generators", step, {"generator_loss": 1 + step / 1000, "discriminator_loss": 1.4 - step / 2000})
    for step in range(0, 250, 10):
        log.write("meta", step, {"loss": 2.3 * 0.99**step})
    rng = np.random.default_rng(0)
    for client, row in enumerate(rng.dirichlet(np.full(NUM_CLASSES, 0.3), NUM_CLIENTS)):
        log.write("distill", 0, {f"teacher_histogram/client{client}/class{k}": share for k, share in enumerate(row)})
    for step in range(0, 201, 25):
        log.write("distill", step, {"validation": 0.8 + step / 2000, "best_validation": 0.8 + step / 1900, "loss": 1 / (step + 9)})
    for round in range(9):
        log.write("finetune", round, {"validation": 0.9 + round / 200, "loss": 0.2 - round / 100}, round=round)
    log.write("finetune", 8, {"elapsed_seconds": 12.0, "compile_seconds": 2.0, "bytes_up": 9.0, "bytes_down": 9.0})
    log.close()


def results() -> dict:
    """results.json of a finished run."""
    rng = np.random.default_rng(1)
    models = {
        name: {"validation": 0.7 + i / 30, "test": 0.71 + i / 30, "test_per_class": [*rng.random(NUM_CLASSES - 1), None]}
        for i, name in enumerate(["global", "clients", "expert_sum", "mixture", "student", "finetuned"])
    }
    confusion = rng.integers(0, 8, (NUM_CLASSES, NUM_CLASSES)) + 90 * np.eye(NUM_CLASSES, dtype=int)
    return {
        "method": "mosaic",
        "seed": 0,
        "stages": STAGES,
        "stages_done": STAGES,
        "models": models,
        "confusion": confusion.tolist(),
        "class_names": [f"kind <{k}>" for k in range(NUM_CLASSES)],
        "bytes": {"warmup": {"up": 5 * 2**20, "down": 7 * 2**20}},
        "seconds": {"warmup": 83.0},
        "compile_seconds": {"warmup": 2.5},
        "label_counts": rng.integers(0, 222, (NUM_CLIENTS, NUM_CLASSES)).tolist(),
        "num_samples": [100] * NUM_CLIENTS,
        "hardware": "a <processor>",
    }


def write_run(run_dir: Path) -> Path:
    """The files of a finished run."""
    run_dir.mkdir(parents=True)
    save_json(apply_overrides(Config(), ["warmup.num_rounds=31"]), run_dir / "config.json")
    write_metrics(run_dir)
    (run_dir / "results.json").write_text(json.dumps(results()))
    rng = np.random.default_rng(2)
    images = rng.integers(0, 255, (2, NUM_CLIENTS, 5, 32, 32, 3), dtype=np.uint8)
    save_real_and_generated(run_dir / "samples" / "generators.png", images[0], images[1])
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "some-run")


def test_the_report_of_a_finished_run_has_every_part(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    for part in (
        "some-run",
        "expert_sum",
        "Test accuracy per class",
        "Accuracy of the global model over rounds",
        "warmup, validation",
        "finetune, validation",
        "Student accuracy along distillation",
        "best_validation",
        "Loss: warmup",
        "Loss: generators",
        "generator_loss",
        "Loss: meta",
        "Loss: distill",
        "Loss: finetune",
        "Training images",
        "The clients&#x27; own labels",
        "classes on generated images",
        "data:image/png;base64,",
        "Confusion matrix of the final model",
        "5.0 MiB",
        "7.0 MiB",
        "1 min 23 s",
        "2.5 s",
        "warmup.num_rounds",
        "federated rounds before the generators",
    ):
        assert part in page, part
    assert "Not there yet" not in page
    assert "elapsed_seconds" not in page


def test_the_report_loads_nothing_and_its_tags_close(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.resources
    assert all(resource.startswith("data:image/png;base64,") for resource in page.resources)
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", text)
    assert str(run_dir) not in text


def test_names_from_the_data_are_escaped(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "kind <0>" not in page
    assert "kind &lt;0&gt;" in page
    assert "a &lt;processor&gt;" in page


def test_a_browser_may_run_nothing_and_load_nothing_for_a_page(run_dir: Path) -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in write_report(run_dir).read_text()


def test_a_link_among_the_samples_and_what_is_no_picture_are_said_and_not_shown(run_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3), (1, 2, 3)).save(secret)
    samples = run_dir / "samples"
    whole = write_report(run_dir).read_text()
    assert whole.count("data:image/png;base64,") == 1
    (samples / "link.png").symlink_to(secret)
    (samples / "key.png").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    (samples / "half.png").write_bytes((samples / "generators.png").read_bytes()[:-5])
    (samples / "folder.png").mkdir()
    os.mkfifo(samples / "pipe.png")
    page = write_report(run_dir).read_text()
    assert page.count("data:image/png;base64,") == 1
    for reason in (
        "link.png is a link", "key.png is no whole PNG file", "half.png is no whole PNG file",
        "folder.png cannot be read (Is a directory)", "pipe.png cannot be read (it is no regular file)",
    ):  # fmt: skip
        assert f"samples: {reason}" in page
    shutil.move(samples, tmp_path / "elsewhere")
    samples.symlink_to(tmp_path / "elsewhere")
    page = write_report(run_dir).read_text()
    assert "data:image/png;base64," not in page
    assert "samples: is a link; not shown" in page


def test_a_finished_run_whose_records_are_gone_says_so(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text("")
    page = write_report(run_dir).read_text()
    assert "metrics.jsonl: the records of warmup, generators, experts, meta, distill, finetune are gone" in page


def test_a_setting_that_differs_from_the_default_stands_out_and_others_do_not(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert re.search(r"<tr class=changed><td><code>warmup\.num_rounds</code></td>\s*<td><code>31</code>", page)
    assert page.count("<tr class=changed>") == 1


def test_a_run_that_has_only_begun_gets_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    save_json(Config(), tmp_path / "config.json")
    page = write_report(tmp_path).read_text()
    assert "Not there yet: results.json" in page
    assert "metrics.jsonl" in page
    assert "samples/*.png" in page
    assert "partition.alpha" in page


def test_a_run_stopped_between_stages_names_those_to_come(run_dir: Path) -> None:
    half = results() | {"stages_done": STAGES[:4]}
    (run_dir / "results.json").write_text(json.dumps(half))
    assert "Not there yet: stages still to come: distill, finetune." in write_report(run_dir).read_text()


def test_damaged_results_are_one_line(run_dir: Path) -> None:
    (run_dir / "results.json").write_text('{"models": ')
    with pytest.raises(ConfigError, match=r"results\.json: cannot be read"):
        write_report(run_dir)


def test_the_teacher_histogram_is_read_back_by_client_and_class(run_dir: Path) -> None:
    record = {"stage": "distill", "step": 0, "name": "teacher_histogram/client1/class2", "value": 0.25}
    assert teacher_histogram([record]) == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.25]]
    assert teacher_histogram([]) == []


def test_a_line_breaks_where_a_value_is_missing_and_a_chart_without_values_is_empty() -> None:
    chart = line_chart("loss", {"a": [(0, 1.0), (1, None), (2, 3.0)]}, "step")
    path = re.search(r' d="([^"]*)"', chart)
    assert path is not None
    assert path[1].count("M") == 2
    assert line_chart("loss", {"a": [(0, None)]}, "step") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.21), (0, 1500), (-3, 7), (5, 5), (0, 0), (1e-6, 3e-6)])
def test_ticks_are_few_even_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    assert np.ptp(np.diff(found)) < 1e-9


def test_a_heat_map_of_a_hundred_classes_has_every_cell_but_no_numbers() -> None:
    names = [f"c{k}" for k in range(100)]
    chart = heat_map("counts", [[1.0] * 100] * 10, [str(client) for client in range(10)], names, ("client", "class"))
    assert chart.count("<rect") == 1000
    assert 'class="on"' not in chart
    assert "client 9, class c99: 1" in chart


def test_pixels_stretch_the_symmetric_range_to_bytes_and_keep_bytes() -> None:
    assert to_pixels(np.array([-1.5, -1, 0, 1, 2], np.float32)).tolist() == [0, 0, 128, 255, 255]
    assert to_pixels(np.array([7], np.uint8)).tolist() == [7]


def test_a_grid_has_each_client_in_its_own_row_and_real_left_of_generated(tmp_path: Path) -> None:
    red, blue = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)
    rows = np.stack([np.broadcast_to(colour, (4, 32, 32, 3)) for colour in (red, blue)])
    grid = image_grid(rows)
    first_red, first_blue = (np.argwhere((grid == colour).all(-1)) for colour in (red, blue))
    assert first_red[:, 0].max() < first_blue[:, 0].min()
    assert first_red[:, 1].min() == first_blue[:, 1].min() > 30
    save_real_and_generated(tmp_path / "new" / "grid.png", rows[:1], rows[1:])
    picture = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    real, generated = (np.argwhere((picture == colour).all(-1))[:, 1] for colour in (red, blue))
    assert real.max() < generated.min()
