"""A comparison: every run is the one it would be alone, equal stages are trained once, the table is means and deviations."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY, StoppingConsole, assert_same_run, fingerprints, tiny, train
from PIL import Image

from mosaic_jax import cli
from mosaic_jax.comparison import compare, time_left
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import flatten, with_values
from mosaic_jax.io.accuracy_plot import COLOURS, accuracy_plot
from mosaic_jax.io.comparison_directory import write_index
from mosaic_jax.io.comparison_table import as_csv, as_text
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.metrics import MetricsLog
from mosaic_jax.io.reuse import take
from mosaic_jax.io.run_directory import write_config
from mosaic_jax.methods import METHODS, stages_of
from mosaic_jax.rows import CONTROLS, LATER, Row, identity, rows_of, stage_keys
from mosaic_jax.stages.distill import DistillInputs, distill_stage, teacher_logits
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.trees import stack

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")
SMALL: dict[str, Any] = {"method": "fedavg", "warmup": {"num_rounds": 1}, "finetune": {"num_rounds": 1}}
FILES = {"comparison.json", "comparison.csv", "comparison.txt", "comparison.png", "report.html", "results"}


def small(seed: int = 0, **sections: Any) -> Config:
    return tiny(seed=seed, **(SMALL | sections))


def row(label: str, *configs: Config, control: str = "") -> Row:
    return Row(label, control, configs, "tiny")


def config_file(path: Path, values: dict[str, Any]) -> str:
    """A configuration file of the tiny run with other values."""
    path.write_text(
        "from mosaic_jax.config import Config\nfrom mosaic_jax.config_io import with_values\n\n\n"
        f"def get_config():\n    return with_values(Config(), {TINY | values!r})\n"
    )
    return str(path)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command that compared two configurations with two seeds, and its directory; read it, or copy it to change it."""
    place = tmp_path_factory.mktemp("comparison")
    values = {"method": "fedavg", "warmup.num_rounds": 1, "finetune.num_rounds": 1}
    files = [config_file(place / "plain.py", values), config_file(place / "fast.py", values | {"warmup.client_learning_rate": 0.1})]
    arguments = ["compare", "--configs", *files, "--seeds", "1,0", "--out", str(place / "out")]
    assert cli.main(arguments) == 0
    return arguments, place / "out"


def test_a_run_of_a_comparison_is_bitwise_the_run_that_it_is_alone(command: tuple, tmp_path: Path) -> None:
    _, out = command
    assert train(small(1, warmup={"num_rounds": 1, "client_learning_rate": 0.1}), tmp_path / "alone") == 0
    assert_same_run(out / "fast" / "seed1", tmp_path / "alone")
    every = [fingerprints(out / name / f"seed{seed}")["warmup"] for name in ("plain", "fast") for seed in (0, 1)]
    assert len(set(every)) == 4


def test_the_table_holds_means_sample_deviations_and_costs_of_its_runs(command: tuple) -> None:
    _, out = command
    assert {path.name for path in out.iterdir()} == FILES | {"plain", "fast"}
    summary = json.loads((out / "comparison.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert [each["row"] for each in summary["rows"]] == ["plain", "fast"]
    for each in summary["rows"]:
        runs = [json.loads((out / each["row"] / f"seed{seed}" / "results.json").read_text()) for seed in (0, 1)]
        assert (each["method"], each["final"], each["rounds"], each["seeds"]) == ("fedavg", "global", 2, [0, 1])
        assert list(each["models"]) == ["global", "clients"]
        for name, model in each["models"].items():
            for measure in ("test", "validation"):
                values = [run["models"][name][measure] for run in runs]
                found = model[measure]["mean"], model[measure]["std"]
                np.testing.assert_allclose(found, (np.mean(values), np.std(values, ddof=1)))
        for key, way in (("bytes_up", "up"), ("bytes_down", "down")):
            assert each[key] == np.mean([run["bytes"]["warmup"][way] for run in runs])
        for key in ("seconds", "compile_seconds"):
            assert each[key] == pytest.approx(np.mean([run[key]["warmup"] for run in runs]))
    lines = list(csv.DictReader((out / "comparison.csv").open()))
    assert [(line["row"], line["model"], line["final"]) for line in lines] == [
        ("plain", "global", "true"), ("plain", "clients", "false"), ("fast", "global", "true"), ("fast", "clients", "false")
    ]  # fmt: skip
    assert float(lines[3]["validation_std"]) == summary["rows"][1]["models"]["clients"]["validation"]["std"]
    with Image.open(out / "comparison.png") as picture:
        picture.verify()
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    for name in ("plain", "fast"):
        for seed in (0, 1):
            assert f'href="{name}/seed{seed}/report.html"' in page


def test_finished_runs_are_not_trained_again_and_the_table_is_printed_again(
    command: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, out = command
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/**/*")}
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    order = ["plain seed 0", "fast seed 0", "plain seed 1", "fast seed 1"]
    assert [line for line in said.splitlines() if line.startswith("run ")] == [
        f"run {place} of 4: {name} is finished already" for place, name in enumerate(order, 1)
    ]
    assert (out / "comparison.txt").read_text() in said
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/**/*")}
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").exists()


def test_a_comparison_stopped_after_every_segment_ends_as_the_unbroken_one(command: tuple, tmp_path: Path) -> None:
    _, unbroken = command
    out = tmp_path / "out"
    shutil.copytree(unbroken / "fast" / "seed0", out / "fast" / "seed0")
    rows = [row("plain", small(0)), row("fast", small(0, warmup={"num_rounds": 1, "client_learning_rate": 0.1}))]
    statuses = []
    while not statuses or statuses[-1] == 143:
        assert not (out / "comparison.json").exists()
        statuses.append(compare(rows, out, StoppingConsole()))
    assert statuses == [143, 143, 0]  # two rounds of plain
    assert_same_run(out / "plain" / "seed0", unbroken / "plain" / "seed0")
    assert [each["seeds"] for each in json.loads((out / "comparison.json").read_text())["rows"]] == [[0], [0]]


def test_a_run_that_fails_is_said_and_shown_and_the_others_go_on(
    command: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, unbroken = command
    out = tmp_path / "out"
    shutil.copytree(unbroken / "plain" / "seed1", out / "plain" / "seed1")
    broken = {"warmup": {"num_rounds": 1, "client_learning_rate": 1e30}}
    rows = [row("broken", small(1, **broken)), row("plain", small(1))]
    assert compare(rows, out, Console()) == 3
    said = capsys.readouterr()
    assert "loss is not finite" in said.err
    assert "broken seed 1 failed: a loss was not finite" in said.out
    first, second = json.loads((out / "comparison.json").read_text())["rows"]
    assert (first["seeds"], first["failed"], second["seeds"]) == ([], {"1": "a loss was not finite"}, [1])
    assert "0 of 1; seed 1 failed: a loss was not finite" in (out / "comparison.txt").read_text()


# --- equal stages are trained once ---


class Listening(Console):
    """A quiet console that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def test_a_control_that_takes_stages_from_its_row_is_bitwise_the_control_trained_alone(finished: Path, tmp_path: Path) -> None:
    uniform = tiny(distill={"teacher": "uniform"}, finetune={"num_rounds": 0})
    assert train(uniform, tmp_path / "alone") == 0
    out = tmp_path / "out"
    shutil.copytree(finished, out / "tiny" / "seed0")
    rows = [row("tiny", tiny()), row("tiny-uniform", uniform, control="uniform")]
    control = out / "tiny-uniform" / "seed0"
    # As if it had been killed when warmup was there, and the files of generators were half copied.
    shutil.copytree(finished / "checkpoints" / "warmup" / "3", control / "checkpoints" / "warmup" / "3")
    shutil.copytree(finished / "checkpoints" / "experts" / "0", control / "taken.tmp")
    records = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (control / "metrics.jsonl").write_text("".join(line for line in records if '"warmup"' in line))
    write_config(control, uniform)
    console = Listening()
    assert compare(rows, out, console) == 0
    assert [text for text in console.heard if "taken from" in text] == [
        f"{stage}: taken from {out / 'tiny' / 'seed0'}" for stage in ("generators", "experts", "meta")
    ]
    assert_same_run(control, tmp_path / "alone")
    assert not (control / "taken.tmp").exists()
    of_row, of_control = (json.loads((run / "results.json").read_text()) for run in (out / "tiny" / "seed0", control))
    assert of_row["seconds"]["generators"] == of_control["seconds"]["generators"] > 0
    assert fingerprints(out / "tiny" / "seed0") == fingerprints(finished)


def test_a_stage_of_other_clients_and_a_stage_that_is_not_finished_are_not_taken(finished: Path, tmp_path: Path) -> None:
    other, run_dir = tmp_path / "other", tmp_path / "run"
    shutil.copytree(finished, other)
    run_dir.mkdir()
    for name in ("partition.csv", "computation.json"):
        shutil.copy(finished / name, run_dir)
    log = MetricsLog(run_dir)
    assert take(run_dir, [other], "generators", 5, log) is None  # it has gone to 4
    assert take(run_dir, [], "generators", 4, log) is None
    (other / "partition.csv").write_text("client,0\n0,1\n")
    assert take(run_dir, [other], "generators", 4, log) is None
    assert {path.name for path in run_dir.iterdir()} == {"partition.csv", "computation.json", "metrics.jsonl"}
    assert take(run_dir, [other, finished], "generators", 4, log) == finished
    assert take(run_dir, [finished], "generators", 4, log) is None  # it has its own now
    log.close()


@pytest.mark.parametrize("method", METHODS)
def test_stage_keys_are_of_the_stages_that_the_method_has(method: str) -> None:
    local = {"classifier": "local", "inversion_weight": 1.0}
    config = tiny(method=method, generator=local)
    stages = stages_of(build_problem(config, load("digits", 32)))
    assert [stage.name for stage in stages] == list(stage_keys(config))


def test_a_setting_changes_the_keys_of_the_stages_from_the_first_that_reads_it() -> None:
    def unchanged(method: str, values: dict[str, Any], **base: Any) -> list[str]:
        config = tiny(method=method, **base)
        before, after = stage_keys(config), stage_keys(with_values(config, values))
        return [stage for stage in before if before[stage] == after[stage]]

    before_distilling = ["warmup", "auxiliary", "generators", "experts", "meta"]
    assert unchanged("mosaic", {"distill.teacher": "uniform"}) == before_distilling
    assert unchanged("mosaic", {"finetune.num_rounds": 3}) == [*before_distilling, "distill"]
    assert unchanged("mosaic", {"experts": "logits"}) == ["warmup", "auxiliary", "generators"]
    assert unchanged("mosaic", {"meta.source": "prototypes"}) == [*before_distilling, "distill", "finetune"]
    assert unchanged("mosaic", {"meta.source": "generated"}) == []  # clients then send no prototypes
    assert unchanged("mosaic", {"experts": "parameters"}) == [*before_distilling, "distill", "finetune"]  # what auto is here
    assert unchanged("mosaic", {"generator.sampling_batch_norm": "eval"}) == ["warmup"]
    assert unchanged("mosaic", {"prototypes.num_rounds": 2}) == []
    assert unchanged("fedavg", {"finetune.client_learning_rate": 1.0, "distill.ema": 0.5}) == ["warmup"]
    assert unchanged("fedavg", {"finetune.num_rounds": 3}) == []
    assert unchanged("fedavg", {"warmup.method": "fedrs", "fedprox.mu": 1.0}) == ["warmup"]
    assert unchanged("fedprox", {"fedprox.mu": 1.0}) == unchanged("mosaic", {"warmup.method": "fedrs"}) == []
    assert unchanged("fedavg_finetune", {"finetune.num_rounds": 3, "prototypes.per_class": 5}) == ["warmup"]
    widths = {"warmup": {"method": "fedrolex"}, "clients": {"rates": (1.0, 0.5, 0.5)}}
    assert unchanged("mosaic", {"experts": "logits"}, **widths, experts="parameters") == []  # as above
    for values in ({"seed": 1}, {"data.dir": "elsewhere"}, {"mapping.segment_steps": 3}, {"warmup.order": "fixed"}):
        assert unchanged("mosaic", values) == unchanged("fedavg", values) == []
    assert {name.partition(".")[0] for name in flatten(Config())} >= {name.partition(".")[0] for name in LATER}


def test_a_method_that_does_not_say_what_its_stages_read_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._rows, "fedavg", dataclasses.replace(METHODS.entry("fedavg"), reads=None))
    assert stage_keys(small()) == {}
    assert identity(small()) == identity(small()) != identity(small(distill={"ema": 0.5}))


# --- rows ---


def labels(rows: tuple[Row, ...]) -> list[tuple[str, str]]:
    return [(each.label, each.control) for each in rows]


def rows_from(files: list[str], methods: tuple[str, ...] = (), controls: bool = True) -> tuple[Row, ...]:
    return rows_of(files, methods, None, ["warmup.num_rounds=2"], "4,3", controls)


def test_the_controls_of_mosaic_are_rows_each_once(tmp_path: Path) -> None:
    rows = rows_from([DIGITS])
    controls = [("digits-fedavg", "rounds"), *((f"digits-{name}", name) for name in list(CONTROLS)[1:])]
    assert labels(rows) == [("digits", ""), *controls]
    assert [[config.seed for config in each.configs] for each in rows] == [[3, 4]] * 6
    assert [each.configs[0].method for each in rows] == ["mosaic", "fedavg", "fedavg_finetune", "mosaic", "mosaic", "mosaic"]
    assert [each.configs[0].distill.teacher for each in rows] == ["mixture"] * 3 + ["uniform", "expert_sum", "mixture"]
    assert [each.configs[0].distill.label_prior for each in rows] == [(0.0, 0.5, 1.0)] * 5 + [(0.0,)]
    assert {each.configs[1].warmup.num_rounds for each in rows} == {2}
    assert labels(rows_from([DIGITS], controls=False)) == [("digits", "")]
    # A method that is asked for is no control, a file that equals one neither, and what differs in distilling only shares the rest.
    asked = rows_from([DIGITS], ("fedavg", "mosaic"))
    assert labels(asked) == [("digits-fedavg", ""), ("digits-mosaic", ""), *controls[1:]]
    on_others = rows_from([DIGITS], ("mosaic:fedrolex", "fedrolex"))
    assert [label for label, control in labels(on_others) if not control] == ["digits-mosaic-fedrolex", "digits-fedrolex"]
    assert labels(on_others)[2:] == [(f"digits-fedrolex-{name}", name) for name in list(CONTROLS)[1:]]
    assert labels(rows_from([DIGITS], ("mosaic:fedrolex",)))[1] == ("digits-fedrolex", "rounds")
    files = [config_file(tmp_path / "one.py", {}), config_file(tmp_path / "two.py", {"distill.teacher": "expert_sum"})]
    of_one = [("one-fedavg", "rounds"), *((f"one-{name}", name) for name in ("fedavg_finetune", "uniform", "no_prior"))]
    assert labels(rows_from(files)) == [("one", ""), ("two", ""), *of_one, ("two-no_prior", "no_prior")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configs", DIGITS, "--seeds", "0"], "the following arguments are required: --out"),
        (["--configs", DIGITS, "--out", "o"], "the following arguments are required: --seeds"),
        (["--configs", DIGITS, "nowhere.py", "--seeds", "0", "--out", "o"], "config file nowhere.py: not found"),
        (["--configs", DIGITS, "--seeds", "0,x", "--out", "o"], "--seeds 0,x: seed=x: must be a whole number"),
        (["--configs", DIGITS, "--seeds", "0,0", "--out", "o"], "0 is given more than once"),
        (["--configs", DIGITS, "--seeds", "0", "--out", DIGITS], f"--out {DIGITS}: is a file; name a directory"),
        (["--configs", DIGITS, "--seeds", "0", "--out", str(ROOT)], f"--out {ROOT}: holds "),
        (["--configs", DIGITS, DIGITS, "--seeds", "0", "--out", "o"], "--configs: two rows would be called digits;"),
        (["--configs", DIGITS, "--methods", "fedavgg", "--seeds", "0", "--out", "o"], "--methods fedavgg: method=fedavgg: must be"),
        (
            ["--configs", DIGITS, "--methods", "fedavg", "--set", "method=mosaic", "--seeds", "0", "--out", "o"],
            "--methods fedavg together with --set method=mosaic: give one of the two",
        ),
        (["--configs", DIGITS, "--seed", "0", "--out", "o"], "--seed is no option of mosaic-jax compare; did you mean --seeds?"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_directory_or_data_that_some_run_cannot_have_are_refused_before_any_is_trained(command: tuple, tmp_path: Path) -> None:
    _, unbroken = command
    out = tmp_path / "out"
    shutil.copytree(unbroken / "plain" / "seed1", out / "plain" / "seed1")
    other = row("plain", small(1, warmup={"num_rounds": 1, "num_local_steps": 3}))
    with pytest.raises(ConfigError, match=r"--out .*seed1: holds a run of another configuration \(warmup.num_local_steps=2, not"):
        compare([row("new", small(1)), other], out, Console(quiet=True))
    with pytest.raises(ConfigError, match="nowhere/train does not exist"):
        compare([row("new", small(1)), row("lost", small(1, data={"source": "folder:nowhere"}))], out, Console(quiet=True))
    with pytest.raises(ConfigError, match=r"partition.num_clients=1439"):
        compare([row("new", small(1)), row("many", small(1, partition={"num_clients": 1439}))], out, Console(quiet=True))
    with pytest.raises(ConfigError, match=r"memory.limit_gib=0.001: warmup needs about"):
        compare([row("new", small(1)), row("large", small(1, memory={"limit_gib": 0.001}))], out, Console(quiet=True))
    assert [path.name for path in out.iterdir()] == ["plain"]
    (out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis.tex, which is no comparison's; name another directory"):
        compare([row("plain", small(1))], out, Console(quiet=True))


# --- what is shown ---


def measure(mean: float, std: float | None) -> dict[str, Any]:
    return {"values": [mean], "mean": mean, "std": std}


SUMMARY = {
    "seeds": [0, 1],
    "rows": [
        {
            "row": "a", "control": "", "method": "mosaic", "seeds": [0, 1], "failed": {}, "to_come": [], "final": "finetuned",
            "rounds": 38, "bytes_up": 3 * 2**20, "bytes_down": 2**19, "seconds": 1234.5, "compile_seconds": 10.25,
            "models": {
                "global": {"test": measure(0.75, 0.01), "validation": measure(0.8, 0.02)},
                "student": {"test": measure(0.5, 0.1), "validation": measure(0.5, 0.1)},
                "finetuned": {"test": measure(0.9, 0.0125), "validation": measure(0.95, 0.0)},
            },
        },
        {
            "row": "a-fedavg", "control": "fedavg", "method": "fedavg", "seeds": [1], "failed": {"0": "out of memory"},
            "to_come": [], "final": "global", "rounds": 38, "bytes_up": 0, "bytes_down": 0, "seconds": 1.0, "compile_seconds": 0.0,
            "models": {"global": {"test": measure(0.25, None), "validation": measure(0.2, None)}},
        },
        {
            "row": "b", "control": "", "method": "fedavg", "seeds": [], "failed": {}, "to_come": [0, 1], "final": None,
            "models": {},
        },
    ],
}  # fmt: skip


def test_the_text_has_a_line_for_each_row_its_final_model_and_why_a_seed_is_not_there() -> None:
    title, empty, head, rule, *lines = as_text(SUMMARY).splitlines()
    assert title == "test accuracy in %, mean ± sample standard deviation over seeds 0, 1; final: what the method hands over"
    assert (empty, set(rule)) == ("", {"-"})
    assert " ".join(head.split()) == "row final global student finetuned rounds MiB up MiB down seconds compiling seeds"
    assert [" ".join(line.split()) for line in lines] == [
        "a 90.0 ± 1.2 finetuned 75.0 ± 1.0 50.0 ± 10.0 90.0 ± 1.2 38 3.0 0.5 1,234.5 10.2 2",
        "a-fedavg (control) 25.0 global 25.0 - - 38 0.0 0.0 1.0 0.0 1 of 2; seed 0 failed: out of memory",
        "b - - - - - - - - - 0 of 2",
    ]


def test_the_csv_file_has_a_line_for_each_model() -> None:
    lines = as_csv(SUMMARY).splitlines()
    assert lines[0] == (
        "row,control,method,seeds,failed,model,final,test_mean,test_std,validation_mean,validation_std,"
        "rounds,bytes_up,bytes_down,seconds,compile_seconds"
    )
    assert lines[3:] == [
        "a,,mosaic,2,0,finetuned,true,0.9,0.0125,0.95,0.0,38,3145728,524288,1234.5,10.25",
        "a-fedavg,fedavg,fedavg,1,1,global,true,0.25,,0.2,,38,0,0,1.0,0.0",
        "b,,fedavg,0,0,,false,,,,,,,,,",
    ]


def test_a_report_shows_no_picture_through_a_link(command: tuple, tmp_path: Path) -> None:
    for file in ("comparison.json", "comparison.png"):
        shutil.copy(command[1] / file, tmp_path)
    assert "data:image/png" in write_index(tmp_path).read_text()
    (tmp_path / "comparison.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "comparison.png").symlink_to(tmp_path / "elsewhere.png")
    page = write_index(tmp_path).read_text()
    assert "comparison.png is a link; not shown" in page
    assert "data:image/png" not in page


def test_a_row_with_an_odd_name_is_escaped_everywhere_alike() -> None:
    odd = "=1+1\x1b[2J<b>"
    summary = SUMMARY | {"rows": [SUMMARY["rows"][0] | {"row": odd}]}
    assert next(csv.DictReader(as_csv(summary).splitlines()))["row"] == r"'=1+1\x1b[2J<b>"
    assert r"=1+1\x1b[2J<b>" in as_text(summary)
    assert "\x1b" not in as_text(summary)


def test_in_the_picture_a_dot_lies_where_its_mean_is() -> None:
    rows = {name: {"global": measure(mean, 0.05)} for name, mean in (("low", 0.2), ("middle", 0.5), ("high", 0.8))}
    picture = accuracy_plot({**rows, "none": {}}, {name: "global" for name in rows}, "title")
    blue = np.argwhere((picture == COLOURS[0]).all(axis=-1))
    dots = blue[blue[:, 0] > picture.shape[0] // 3]  # below the legend
    dots = [part[:, 1].mean() for part in np.split(dots, np.flatnonzero(np.diff(dots[:, 0]) > 1) + 1)]
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=2)
    assert dots[1] - dots[0] > 100


def test_the_time_left_counts_each_run_as_its_rows_others() -> None:
    assert time_left(["a", "b"], {}) == ""
    assert time_left(["a", "b", "c"], {"a": [10.0, 20.0], "b": [60.0]}) == ", about 1 min 45 s left"  # 15 + 60 + 30


# --- the uniform teacher ---


@pytest.mark.parametrize("experts", ["parameters", "logits"])
def test_the_uniform_teacher_is_the_mean_of_the_clients_logits(experts: str) -> None:
    problem = build_problem(tiny(experts=experts, distill={"teacher": "uniform"}), load("digits", 32))
    models = [problem.classifier.init(jax.random.key(client)) for client in range(problem.num_clients)]
    images = jax.random.uniform(jax.random.key(9), (5, 32, 32, 3), minval=-1.0)
    warmup = FederatedState((models[0],), (stack(models),), ({},), ([],), (), (), ())
    outputs = {"warmup": warmup, "generators": (), "experts": "experts", "meta": "meta"}
    inputs = distill_stage(problem).inputs(outputs)
    assert inputs == DistillInputs(models[0], (), (), (), outputs["warmup"].clients)
    alone = np.stack([problem.classifier.apply(model, images, False)[0] for model in models])
    np.testing.assert_allclose(teacher_logits(problem, inputs, images), alone.mean(axis=0), rtol=1e-4, atol=1e-5)
    mixture = build_problem(tiny(experts=experts), load("digits", 32))
    assert distill_stage(mixture).inputs(outputs) == DistillInputs(models[0], (), "experts", "meta", ())
