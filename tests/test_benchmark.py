"""The benchmark: its rows are valid, its errors are one line, and both sides of every kind of row compute the same."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark  # noqa: E402
from bench import results  # noqa: E402
from bench.measure import Budget, alternate, has_torch  # noqa: E402
from bench.results import Result  # noqa: E402
from bench.rows import ROWS, Row, chosen  # noqa: E402

TINY = {
    "model.width": 2, "partition.num_clients": 3, "warmup.batch_size": 4, "warmup.num_local_steps": 2,
    "generator.width": 2, "generator.batch_size": 4, "generator.latent_size": 4, "mapping.segment_steps": 2,
    "distill.samples_per_client": 2, "distill.evaluate_every": 2,
    "meta.batch_size": 8, "meta.feed_forward_size": 16, "meta.expansion": 2, "meta.dropout_rate": 0.0,
}  # fmt: skip
needs_torch = pytest.mark.skipif(not has_torch(), reason="needs torch: pip install -e .[bench]")


def tiny(name: str) -> Row:
    """The row of this name at sizes for tests."""
    (row,) = (row for row in ROWS if row.name == name)
    cohort = {"warmup.clients_per_round": 2} if "warmup.clients_per_round" in row.settings else {}
    return dataclasses.replace(row, settings=row.settings | TINY | cohort, num_images=60, num_prototypes=20)


def result(ours: list[float], twin: dict[str, list[float]]) -> Result:
    """A row of 1,280 images in a pass, with these seconds."""
    (row,) = (row for row in ROWS if row.name == "resnet18-64")
    return Result(row, ours, twin, 10**12, 10**12, 3.25, 2e-6, 2**30, 2**31)


def pretend_torch(monkeypatch: pytest.MonkeyPatch, *, cuda: bool) -> None:
    """A torch of which only what the benchmark's own file asks for is there."""
    torch = SimpleNamespace(__version__="none", get_num_threads=lambda: 1, cuda=SimpleNamespace(is_available=lambda: cuda))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(benchmark, "has_torch", lambda: True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "WHAT"),
        (["speed"], "client-round"),
        (["meta-step", "--only", "dcgan"], "choose one of meta"),
        (["meta-step", "--repeats", "0"], "at least 1"),
        (["meta-step", "--minutes", "0"], "must be above 0"),
        (["meta-step", "--json", "no/such/directory/file.json"], "no such file or directory; name a file in a directory"),
        (["meta-step", "--json", str(Path(__file__).parent)], "is a directory; name a file"),
    ],
)
def test_a_wrong_argument_ends_with_exit_status_2_and_what_is_right(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_without_torch_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["client-round"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "pip install -e .[bench]" in error


def test_rows_have_valid_settings_and_the_images_of_their_titles() -> None:
    images = {row.name: row.images // row.steps for row in ROWS}
    assert images == {
        "resnet18-64": 640, "resnet18-64-bf16-10": 640, "resnet18-64-bf16-100": 6400, "resnet18-16": 640,
        "cnn-100": 1600, "dcgan": 640, "distill": 320, "meta": 128,
        "scale-10": 160, "scale-100": 1600, "scale-1000": 16000, "scale-10000": 1600,
    }  # fmt: skip
    for_any = [row.name for row in chosen("client-round", None) if not row.accelerator]
    assert for_any == ["resnet18-64", "resnet18-16", "cnn-100"]
    assert chosen("all", None) == ROWS


def test_rows_for_a_gpu_are_measured_on_a_cpu_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    some = result([2.0], {"eager": [4.0]})
    monkeypatch.setattr(benchmark, "measure", lambda row, repeats: measured.append(row.name) or some._replace(row=row))
    monkeypatch.setattr(benchmark, "measure_alone", lambda row, budget: some._replace(row=row, twin={}))
    pretend_torch(monkeypatch, cuda=False)
    benchmark.run(chosen("client-round", None), 1)
    assert len(measured) == 3 and not any("bf16" in name for name in measured)
    benchmark.run(chosen("client-round", "resnet18-64-bf16-10"), 1, named=True)
    assert measured[3:] == ["resnet18-64-bf16-10"]


def test_a_row_for_a_gpu_is_kept_without_its_twin_first_and_ours_only_needs_no_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone, both = result([2.0], {}), result([2.0], {"eager": [4.0]})
    kept: list[list[Result]] = []
    monkeypatch.setattr(benchmark, "measure_alone", lambda row, budget: alone._replace(row=row))
    monkeypatch.setattr(benchmark, "measure", lambda row, budget: both._replace(row=row))
    pretend_torch(monkeypatch, cuda=False)
    benchmark.run(chosen("client-round", "resnet18-64-bf16-10"), 1, named=True, keep=lambda results: kept.append(list(results)))
    assert [each.ratio for (each,) in kept] == [None, 2.0, 2.0]
    monkeypatch.setattr(benchmark, "has_torch", lambda: False)
    command = ["client-round", "--only", "cnn-100", "--ours-only", "--json", str(tmp_path / "rows.json")]
    assert benchmark.main(command) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["row"], row["ratio"]) == ("cnn-100", None)


def test_contestants_take_turns_and_each_gets_its_own_seconds() -> None:
    calls: list[str] = []
    ticks = itertools.accumulate([0, 1, 0, 5, 0, 2, 0, 7])  # a call lasts 1, 5, 2 and 7 ticks, nothing between calls
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, lambda: next(ticks))
    assert calls == ["a", "b", "a", "b"]
    assert found == {"a": [1, 2], "b": [5, 7]}


def test_every_pass_is_heard_of_and_none_begins_after_the_budget() -> None:
    heard: list[str] = []
    contestants = {"a": lambda: None, "b": lambda: None}
    assert {len(own) for own in alternate(contestants, 3, budget=Budget(3, say=heard.append)).values()} == {3}
    assert [text.partition(" 0.")[0] for text in heard[-2:]] == ["pass 3 of 3: a", "pass 3 of 3: b"]
    assert {len(own) for own in alternate(contestants, 3, budget=Budget(3, ends=0.0)).values()} == {1}


def test_rows_for_which_no_time_is_left_are_named_and_the_first_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = result([2.0], {"eager": [4.0]})
    monkeypatch.setattr(benchmark, "measure", lambda row, budget: some._replace(row=row))
    pretend_torch(monkeypatch, cuda=False)
    benchmark.run(chosen("all", None), 1, minutes=-1.0)
    out = capsys.readouterr().out
    assert out.count("ResNet-18 width 64") == 1
    left = "resnet18-16, cnn-100, dcgan, distill, meta, scale-10, scale-100, scale-1000, scale-10000"
    assert f"left out after --minutes -1: {left}\n" in out
    assert "medians of up to 1 passes" in out


def test_the_ratio_is_of_medians_against_the_fastest_variant() -> None:
    measured = result([2.0, 1.0, 90.0], {"eager": [5.0, 5.0, 5.0], "channels_last": [1.0, 4.0, 4.0]})
    assert measured.best == "channels_last"
    assert measured.ratio == 2.0
    assert measured.rate(measured.ours) == 640.0
    assert measured.fraction(measured.ours) == 0.5
    assert measured.milliseconds_per_client_step == 100.0


def test_a_line_has_every_column_and_leaves_the_absent_twin_blank() -> None:
    line = results.line(result([2.0], {"eager": [4.0]}))
    for cell in ("client-round", "ResNet-18 width 64", "640", "320", "2.00", "50%", "25%", "1.00", "2e-06", "eager"):
        assert cell in line
    alone = results.line(result([2.0], {})._replace(twin_peak=0, flops=0))
    assert "640" in alone
    assert "%" not in alone
    assert len(alone) <= len(line) <= len(results.header()) + 10


def test_scale_tells_the_cost_of_a_client_step_and_its_growth() -> None:
    one = result([1.0], {})
    (cohort,) = (row for row in ROWS if row.name == "scale-10000")
    lines = results.scale_lines([one, one._replace(ours=[1.2]), one._replace(row=cohort)])
    assert "50.00 ms per client-step" in lines[0]
    assert "100 of 10,000 clients     2.00 ms" in lines[2]
    assert "1.20 times" in lines[-1]


def test_cores_become_devices_before_anything_starts_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("mosaic_jax.devices.create_cpu_devices", lambda mapping, num: order.append(f"devices for {num} clients"))
    monkeypatch.setattr(benchmark, "measure_scale", lambda rows, repeats: order.append("measured") or [])
    benchmark.run(chosen("scale", "scale-100"), 1)
    assert order == ["devices for 100 clients", "measured"]


def test_what_json_holds_can_be_written() -> None:
    record = json.loads(json.dumps(result([2.0], {"eager": [4.0]}).as_json()))
    assert (record["ratio"], record["torch_best"], record["images_per_pass"]) == (2.0, "eager", 1280)


def test_rows_measured_before_a_mismatch_are_in_the_json_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(row: Row, repeats: int) -> Result:
        if row.name != "resnet18-64":
            raise benchmark.Mismatch("losses differ")
        return result([2.0], {"eager": [4.0]})

    monkeypatch.setattr(benchmark, "measure", measure)
    pretend_torch(monkeypatch, cuda=False)
    assert benchmark.main(["client-round", "--json", str(tmp_path / "rows.json")]) == 1
    assert [row["row"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["resnet18-64"]


def test_sides_on_different_devices_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pretend_torch(monkeypatch, cuda=True)
    assert benchmark.main(["meta-step"]) == 2
    assert "JAX computes on a cpu and PyTorch on a gpu" in capsys.readouterr().err


@pytest.mark.parametrize("theirs", [[1.0, 2.1], [1.0, np.nan], [1.0]])
def test_losses_that_differ_stop_the_benchmark(theirs: list[float]) -> None:
    with pytest.raises(benchmark.Mismatch, match="resnet18-64: loss"):
        benchmark.loss_error(result([], {}).row, {"loss": np.array([1.0, 2.0])}, {"loss": np.array(theirs)}, untrained=False)


@pytest.mark.parametrize("name", ["cnn-100", "meta", "scale-10000"])
def test_our_side_goes_on_from_pass_to_pass(name: str) -> None:
    from bench.ours import Ours

    ours = Ours(tiny(name))
    first, second = ours()["loss"], ours()["loss"]
    assert np.isfinite([first, second]).all()
    np.testing.assert_array_equal(first != second, first != 0)  # 0: not in the cohort
    assert np.any(first != 0)


@needs_torch
@pytest.mark.parametrize("name", ["resnet18-16", "cnn-100", "dcgan", "distill", "meta"])
def test_both_sides_of_a_row_compute_the_same(name: str) -> None:
    from bench.ours import Ours
    from bench.torch_twin import Twin, variants

    row = tiny(name)
    ours = Ours(row)
    task = ours.task()
    twins: list[Any] = [Twin(task, variant) for variant in variants(row.stage)]
    error, flops = benchmark.check(row, ours, twins)
    assert error <= row.tolerance
    assert flops > 0
