"""metrics.jsonl holds what was written, whole and once, whatever interrupts the run."""

import json
from pathlib import Path

import pytest

from mosaic_jax.config import ConfigError
from mosaic_jax.io import metrics
from mosaic_jax.io.metrics import MetricsLog, complaints, read

STAGES = ["warmup", "generators", "distill"]


def test_a_record_is_on_disk_with_its_six_keys_when_write_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write("warmup", 10, {"loss": 0.5, "validation": 0.8}, round=1)
    log.write("distill", 3, {"loss": 1})
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(record) for record in records] == [{"stage", "step", "round", "name", "value", "seconds"}] * 3
    assert [record["name"] for record in records] == ["loss", "validation", "loss"]
    assert [record["round"] for record in records] == [1, 1, None]
    assert records == read(tmp_path)
    log.close()


def test_truncate_drops_later_stages_and_later_steps_and_keeps_the_rest(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for stage in STAGES:
        for step in (1, 2, 3):
            log.write(stage, step, {"loss": step})
    log.truncate(STAGES, "generators", 2)
    kept = [(record["stage"], record["step"]) for record in read(tmp_path)]
    assert kept == [("warmup", 1), ("warmup", 2), ("warmup", 3), ("generators", 1), ("generators", 2)]
    log.write("generators", 3, {"loss": 9.0})
    assert read(tmp_path)[-1]["value"] == 9.0
    log.close()


def test_a_line_cut_short_by_a_kill_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    first.write("warmup", 1, {"loss": 1.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "warmup", "step": 2, "na')
    second = MetricsLog(tmp_path)
    second.write("warmup", 2, {"loss": 2.0})
    second.close()
    assert [record["value"] for record in read(tmp_path)] == [1.0, 2.0]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_seconds_go_on_from_the_earlier_part_of_a_run(tmp_path: Path) -> None:
    record = {"stage": "warmup", "step": 1, "round": 1, "name": "loss", "value": 1.0, "seconds": 500.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    log = MetricsLog(tmp_path)
    log.write("warmup", 2, {"loss": 2.0})
    log.close()
    assert read(tmp_path)[-1]["seconds"] >= 500.0


def test_a_value_that_is_not_finite_becomes_null_so_that_the_file_stays_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write("warmup", 1, {"loss": float("nan")})
    log.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read(tmp_path)[0]["value"] is None


def test_a_run_directory_without_metrics_reads_as_none(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_records_that_are_gone_and_lines_that_are_damaged_are_said(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for stage in STAGES:
        log.write(stage, 1, {"loss": 1.0})
    log.close()
    assert complaints(tmp_path, STAGES) == []
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([lines[0], lines[1].replace("1.0", '"one"'), lines[2], lines[2][:20]]))
    damaged, gone = complaints(tmp_path, STAGES)
    assert damaged == "damaged lines, left out: 1"
    assert gone.startswith("the records of generators are gone")
    assert [record["stage"] for record in read(tmp_path)] == ["warmup", "distill"]
    (tmp_path / "metrics.jsonl").write_text("")
    assert complaints(tmp_path, STAGES)[0].startswith("the records of warmup, generators, distill are gone")


def test_missing_tensorboard_writer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="tensorboardX is not installed; pip install"):
        MetricsLog(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_same_numbers_under_stage_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    monkeypatch.setattr(metrics, "event_writer", lambda directory: Writer())
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write("warmup", 7, {"loss": 0.25})
    log.close()
    assert calls == [("warmup/loss", 0.25, 7), "closed"]
