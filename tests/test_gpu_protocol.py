"""The script for a GPU that is rarely at hand: what it does in which order, and the whole of it at a size for a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from mosaic_jax.io import run_record

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import gpu_protocol  # noqa: E402
from gpu_protocol import Protocol, Step  # noqa: E402

ROWS = ("mosaic", "fedavg", "fedavg_finetune", "mosaic-uniform", "mosaic-expert_sum", "mosaic-no_prior")


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """The whole protocol in a folder that has no results."""
    monkeypatch.setattr(gpu_protocol, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(gpu_protocol, "CACHE", tmp_path / "cache")
    return Protocol(tmp_path / "out", tiny=False)


def names(protocol: Protocol) -> list[str]:
    return [step.name for step in protocol.steps()]


def keep(protocol: Protocol, *results: Path) -> None:
    for result in results:
        (gpu_protocol.KEPT / result).parent.mkdir(parents=True, exist_ok=True)
        (gpu_protocol.KEPT / result).write_text("{}")


def test_steps_come_in_order_of_worth_and_those_with_a_result_are_left_out(protocol: Protocol) -> None:
    everything = [
        "stacked kernels", "benchmark resnet18-64-bf16-10", "compare alpha 0.1 seed 0",
        "benchmark resnet18-64-bf16-100",
        "compare alpha 0.01 seed 0", "compare alpha 1 seed 0", "profile",
    ]  # fmt: skip
    assert names(protocol) == everything
    keep(protocol, *protocol.steps()[0].results, *protocol.steps()[-1].results)
    assert names(protocol) == everything[1:-1]


def test_a_comparison_is_that_of_the_next_seed_without_all_of_its_rows(protocol: Protocol) -> None:
    first = protocol.compare(0.1, [])
    assert first.results == [Path("cifar10_jpeg") / f"cifar10-{row}-alpha0.1-seed0.json" for row in ROWS]
    keep(protocol, *first.results[:-1])
    assert protocol.compare(0.1, []).name == "compare alpha 0.1 seed 0"
    keep(protocol, *first.results)
    assert protocol.compare(0.1, []).name == "compare alpha 0.1 seed 1"
    assert protocol.compare(0.01, []).name == "compare alpha 0.01 seed 0"


def test_a_step_is_stopped_at_its_limit(protocol: Protocol) -> None:
    protocol.out.mkdir()
    step = Step("nap", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], 1, 1, 0, [], lambda: None)
    started = time.monotonic()
    assert gpu_protocol.run(protocol, step, 1.5) == "stopped at its limit of 2 s"
    assert time.monotonic() - started < 30
    failing = step._replace(command=["-c", "raise SystemExit(4)"])
    assert gpu_protocol.run(protocol, failing, 30).startswith("failed with status 4")


def test_a_benchmark_of_one_side_is_kept_but_is_no_result(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (step, *_) = protocol.benchmarks()
    file = protocol.results / step.results[0]
    file.write_text(json.dumps({"rows": [{"ratio": None}]}))
    step.collect()
    assert not protocol.has(step.results[0]) and file.with_suffix(".ours.json").exists()
    file.write_text(json.dumps({"rows": [{"ratio": 2.0}]}))
    step.collect()
    assert protocol.has(step.results[0])


def test_without_data_it_says_where_they_belong(protocol: Protocol) -> None:
    with pytest.raises(gpu_protocol.ConfigError, match=r"cifar10_jpeg\.tar\.xz: not found; put CIFAR-10 there"):
        protocol.unpack()


def test_the_whole_of_it_runs_at_a_size_for_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "scripts" / "gpu_protocol.sh"), str(out), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()[-2000:]
    assert "compare alpha 0.1 seed 0: about" in done.stdout
    files = [out / "results" / "digits" / f"digits-{row}-alpha0.1-seed0.json" for row in ROWS]
    assert all(run_record.read(file)["row"] == row for file, row in zip(files, ROWS, strict=True))
    assert json.loads((out / "results" / "benchmark" / "client-round-cnn-100.json").read_text())["rows"]
    assert (out / "results" / "profile" / "distill.csv").read_text().startswith("kernel,calls,seconds,share")
    with tarfile.open(out / "results.tar.gz") as packed:
        assert "results/digits/digits-mosaic-alpha0.1-seed0.json" in packed.getnames()
    assert (out / "programs.tar.gz").stat().st_size > 0
