"""One finished run as a small JSON file, and what earlier runs say of a stage's time."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import with_values
from mosaic_jax.io import run_record, versions
from mosaic_jax.io.data_digests import read_data
from mosaic_jax.io.results_file import read_results
from mosaic_jax.planning.rates import measured


@pytest.fixture
def record(finished: Path) -> dict[str, Any]:
    results = read_results(finished)
    assert results is not None
    return run_record.record(tiny(), "tiny", "", results, read_data(finished) or {})


def test_a_record_has_every_field_and_comes_back_as_it_was_written(record: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    assert tuple(record)[: len(run_record.FIELDS)] == run_record.FIELDS
    path = run_record.write(tmp_path, record)
    assert path == tmp_path / "digits" / "tiny-mosaic-alpha0.1-seed0.json"
    assert run_record.read(path) == json.loads(json.dumps(record))
    results = read_results(finished)
    assert results is not None
    assert record["final_test"] == results["models"]["finetuned"]["test"]
    assert record["student_test"] == results["models"]["student"]["test"]
    assert record["teacher_test"] == results["models"]["mixture"]["test"]
    assert record["bytes_up"] == sum(stage["up"] for stage in results["bytes"].values())
    assert record["seconds"] == pytest.approx(sum(results["seconds"].values()))
    assert {name: stage["steps"] for name, stage in record["stages"].items()} == {
        "warmup": 3, "generators": 4, "experts": 0, "meta": 4, "distill": 4, "finetune": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("cifar10", "cifar10"), ("tfds:mnist/3", "mnist"), ("folder:some/cifar10_jpeg", "cifar10_jpeg"), ("npz:a/b.npz", "b"),
        ("folder:some/cifar10_jpeg/", "cifar10_jpeg"),
    ],
)  # fmt: skip
def test_a_data_set_is_named_by_its_source(source: str, name: str) -> None:
    assert run_record.dataset_name(source) == name


@pytest.mark.parametrize(
    ("values", "control", "name"),
    [
        ({}, "", "mosaic"),
        ({"distill.teacher": "uniform"}, "uniform", "mosaic-uniform"),
        ({"method": "fedavg"}, "rounds", "fedavg"),
        ({"method": "fedavg_finetune"}, "fedavg_finetune", "fedavg_finetune"),
        ({"warmup.method": "fedrolex"}, "", "mosaic:fedrolex"),
        ({"method": "fedprox"}, "", "fedprox"),
    ],
)
def test_a_row_is_named_by_method_and_control(values: dict[str, Any], control: str, name: str) -> None:
    assert run_record.row_name(with_values(Config(), values), control) == name


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "digits"}'])
def test_a_file_that_is_no_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: .*; name files that `mosaic-jax compare` wrote"):
        run_record.read(tmp_path / "x.json")


def test_the_digest_of_sources_changes_with_any_file_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = versions.sources_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    second = versions.sources_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, versions.sources_digest(tmp_path)}) == 3


def test_code_without_git_is_named_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*arguments: str) -> str:
        raise FileNotFoundError("git")

    monkeypatch.setattr(versions, "_git", no_git)
    assert versions.commit() == f"sources-{versions.sources_digest()}"


def test_rates_are_those_of_the_same_work_whatever_its_length_and_seed(record: dict[str, Any], tmp_path: Path) -> None:
    run_record.write(tmp_path, record)
    longer = tiny(seed=7, warmup={"num_rounds": 30}, distill={"num_steps": 9, "learning_rate": 1e-3})
    found = measured(longer, [tmp_path])
    assert set(found) == {"warmup", "generators", "meta", "distill", "finetune"}
    assert found["warmup"].seconds == pytest.approx(record["stages"]["warmup"]["seconds"] / 3)
    assert found["warmup"].hardware == record["hardware"]
    # What a later stage does matters to no earlier one.
    assert set(measured(tiny(distill={"samples_per_client": 5}), [tmp_path])) == {"warmup", "generators", "meta"}
    assert measured(tiny(model={"width": 3}), [tmp_path]) == {}
    assert measured(tiny(), []) == {}
