"""What convolutions over stacked weights become on a GPU: the fastest of what was measured and is right, chosen once and kept."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import tiny, train

from mosaic_jax import runner
from mosaic_jax.io import run_directory, stacked_choice
from mosaic_jax.io.stacked_choice import ORDER, choice, measured, settle, timings
from mosaic_jax.io.whole_files import read_json
from mosaic_jax.ops import gpu_kernels, lowering
from mosaic_jax.ops.lowering import chosen_lowering, set_stacked_form, stacked_form
from mosaic_jax.signals import Interrupted

HOPPER = {"triton": 2.0, "mosaic_gpu": 1.5, "grouped": 9.0, "map": 4.0}
BF16 = tiny(precision="bf16")


@pytest.fixture(autouse=True)
def _own_choice() -> Iterator[None]:
    with lowering("auto"):
        yield
    set_stacked_form("")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> mock.Mock:
    """A GPU as far as the choice can see, of a user without a cache; its compute capability is a test's to change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = mock.Mock(compute_capability="9.0", device_kind="NVIDIA H100", platform="gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return device


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions that were measured: all as HOPPER says, without a GPU and a clock."""
    precisions: list[str] = []
    monkeypatch.setattr(stacked_choice, "timings", lambda precision: precisions.append(precision) or HOPPER)
    return precisions


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (HOPPER, "mosaic_gpu"),
        (HOPPER | {"mosaic_gpu": "fails"}, "triton"),
        ({"grouped": 3.0, "map": 2.0, "triton": "this JAX has no Triton"}, "map"),
        (dict.fromkeys(ORDER, "was not done"), ""),
        ({}, ""),
    ],
)
def test_the_fastest_of_what_was_measured_is_chosen(found: dict[str, float | str], expected: str) -> None:
    assert choice(found) == expected


def test_what_fails_or_computes_other_numbers_is_left_out() -> None:
    def computes(number: float, seconds: float) -> Callable[[], tuple]:
        return lambda: ([np.ones(3), np.array([2.0, number])], lambda: seconds)

    def broken() -> tuple:
        raise RuntimeError("no such\ninstruction")

    candidates = {"grouped": computes(1, 9.0), "triton": computes(1.01, 2.0), "map": broken, "mosaic_gpu": computes(1.5, 0.1)}
    found = dict(measured(candidates))
    assert found == {
        "grouped": 9.0, "triton": 2.0, "map": "fails (no such instruction)",
        "mosaic_gpu": "computes other numbers (25% of the largest off)",
    }  # fmt: skip
    assert choice(found) == "triton"
    assert "other numbers" in dict(measured({"grouped": computes(1, 9.0), "triton": computes(np.nan, 1.0)}))["triton"]


@pytest.mark.parametrize(
    ("end", "reason"), [("time.sleep(60)", "was not done within 1 s"), ("os.abort()", "its process ended with status -6")]
)
def test_a_kernel_that_hangs_or_breaks_its_process_takes_nothing_else_along(end: str, reason: str) -> None:
    said = '{"grouped": 9.0}', "noise", '{"triton": 2.0}', '{"ma'
    program = f"import os, time; print(*{said}, sep=os.linesep, flush=True); {end}"
    assert timings("bf16", (sys.executable, "-c", program), limit=1) == {
        "grouped": 9.0,
        "triton": 2.0,
        "map": reason,
        "mosaic_gpu": reason,
    }


def test_a_device_is_measured_once_and_the_choice_is_said(gpu: mock.Mock, asked: list[str]) -> None:
    lines: list[str] = []
    record = settle(BF16, None, lines.append)
    assert (chosen_lowering(), stacked_form(), record["form"]) == ("stacked", "mosaic_gpu", "mosaic_gpu")
    assert "mosaic_gpu (milliseconds a pass: triton 2, mosaic_gpu 1.5, grouped 9, map 4), measured now" in lines[0]
    settle(BF16, None, lines.append)
    assert asked == ["bf16"]
    assert "as kept in" in lines[1]
    assert run_directory.hardware().endswith("on gpu, stacked convolutions: mosaic_gpu")
    gpu.device_kind = "NVIDIA H200"
    settle(BF16, None, lines.append)
    assert asked == ["bf16", "bf16"]
    assert stacked_form(np.dtype(np.float32)) == "triton"  # which Hopper's kernels are not for


def test_a_resumed_run_keeps_its_choice_on_the_same_kind_of_device(gpu: mock.Mock, asked: list[str], tmp_path: Path) -> None:
    record = settle(BF16, tmp_path, lambda line: None) | {"form": "triton"}
    (tmp_path / stacked_choice.RECORD).write_text(json.dumps(record))
    lines: list[str] = []
    assert settle(BF16, tmp_path, lines.append) == record
    assert stacked_form() == "triton"
    assert lines[0].endswith("as this run began")
    gpu.device_kind = "NVIDIA A100"
    assert settle(BF16, tmp_path, lines.append)["form"] == "mosaic_gpu"
    (tmp_path / stacked_choice.RECORD).write_text("{")  # cut short: chosen again
    assert settle(BF16, tmp_path, lines.append)["form"] == "mosaic_gpu"


def test_where_nothing_could_be_measured_triton_is_used_and_nothing_kept(
    gpu: mock.Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stacked_choice, "timings", lambda precision: dict.fromkeys(ORDER, "was not done"))
    lines: list[str] = []
    settle(BF16, None, lines.append)
    assert "triton (grouped left out: was not done;" in lines[0]
    assert not (tmp_path / "cache").exists()


def test_a_jax_without_triton_says_in_one_line_what_is_used(
    gpu: mock.Mock, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kernels, "triton", None)
    lines: list[str] = []
    settle(BF16, None, lines.append)  # Hopper has kernels even so
    assert len(lines) == 1
    gpu.compute_capability = "8.0"
    assert settle(BF16, None, lines.append) == {}
    assert lines[1:] == ["convolutions over stacked weights: grouped, for this JAX has no Triton"]
    assert (chosen_lowering(), stacked_form()) == ("grouped", "grouped")


def test_the_process_prints_each_answer_and_keeps_all(
    gpu: mock.Mock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.compute_capability = "8.0"
    prepared = {"grouped": 9.0, "triton": 2.0, "map": 4.0}
    monkeypatch.setattr(stacked_choice, "_prepared", lambda name, dtype: ([np.ones(2)], lambda: prepared[name]))
    stacked_choice.main("bf16")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    left_out = {"mosaic_gpu": "is for NVIDIA's Hopper"}
    assert answers == [left_out, {"grouped": 9.0}, {"triton": 2.0}, {"map": 4.0}]
    monkeypatch.setattr(stacked_choice, "timings", pytest.fail)
    assert settle(BF16, None, lambda line: None)["milliseconds"] == prepared | left_out


def test_on_a_cpu_nothing_is_measured_or_said(asked: list[str]) -> None:
    assert settle(BF16, None, pytest.fail) == {}
    assert asked == []
    with pytest.raises(SystemExit, match="2"):
        stacked_choice.main("bf16")


def test_a_run_records_what_was_chosen_before_its_first_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(stacked_choice, "settle", lambda config, run_dir, message: {"form": "grouped"})
    monkeypatch.setattr(runner, "_run_stages", stopped)
    assert train(tiny(mapping={"convolution": "map"}), tmp_path / "run") == 130
    assert read_json(tmp_path / "run" / "convolution.json", "") == {"form": "grouped"}


@pytest.mark.parametrize("form", ["map", "triton"])
def test_each_form_is_prepared_to_compute_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "triton" and gpu_kernels.triton is None:
        pytest.skip("this JAX has no Pallas for Triton")
    for name, layer in (("LAYER", (2, 1, 4, 16, 16, 1)), ("ODD", (2, 1, 5, 3, 4, 2))):
        monkeypatch.setattr(stacked_choice, name, stacked_choice._Layer(*layer))
    prepared = [stacked_choice._prepared(each, np.dtype(np.float32))[0] for each in ("grouped", form)]
    for theirs, ours in zip(*prepared, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
