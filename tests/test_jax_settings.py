"""Whatever the environment or a program told JAX, a run has the same random numbers, and what rounds otherwise is said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import MADE, StoppingConsole, fingerprints, tiny, train

from mosaic_jax import rng
from mosaic_jax.config import Config
from mosaic_jax.io import computation
from mosaic_jax.io.console import Console
from mosaic_jax.io.metrics import NoMetrics
from mosaic_jax.io.reuse import take
from mosaic_jax.io.whole_files import write_json

SHORT: dict[str, Any] = {"method": "fedavg", "warmup": {"num_rounds": 2}, "finetune": {"num_rounds": 0}}
OTHERS = {
    "jax_default_prng_impl": "rbg", "jax_random_seed_offset": 7, "jax_threefry_partitionable": False,
    "jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise", "jax_disable_jit": True,
    "jax_transfer_guard": "disallow",
}  # fmt: skip


@pytest.fixture
def told_otherwise() -> Iterator[None]:
    """JAX as an environment of JAX_DEFAULT_PRNG_IMPL=rbg and its like makes it."""
    before = {name: getattr(jax.config, name) for name in OTHERS}
    for name, value in OTHERS.items():
        jax.config.update(name, value)
    MADE.clear()  # programs of other tests, traced before
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def of_a_run() -> Config:
    # Random crops, BatchNorm, channels: draws of every shape.
    return tiny(**SHORT | {"method": "federated_dropout"}, data={"augment": "crop_flip"}, clients={"rates": (1.0, 0.5, 0.5)})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fingerprints of the run as JAX comes."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    assert train(of_a_run(), run_dir) == 0
    return fingerprints(run_dir)


def test_a_run_and_a_resumed_one_have_the_same_numbers_whatever_jax_was_told(
    plain: dict[str, str], told_otherwise: None, tmp_path: Path
) -> None:
    assert train(of_a_run(), tmp_path / "run", console=StoppingConsole()) == 143
    assert train(of_a_run(), tmp_path / "run") == 0
    assert fingerprints(tmp_path / "run") == plain


def test_the_key_of_a_seed_is_jaxs_own() -> None:
    for seed in (0, 5, 2**31 - 1):
        np.testing.assert_array_equal(jax.random.key_data(rng.key_of(seed)), jax.random.key_data(jax.random.key(seed)))
        np.testing.assert_array_equal(rng.root_of(seed), jax.random.key_data(jax.random.key(seed)))


def test_what_rounds_otherwise_is_recorded_and_said_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(**SHORT, mapping={"convolution": "map"})
    assert train(config, tmp_path / "run", console=StoppingConsole()) == 143
    (began,) = computation.read(tmp_path / "run")
    assert (began["mapping.convolution"], began["device"], began["jax"]) == ("map", "cpu", jax.__version__)
    assert train(config, tmp_path / "run", console=StoppingConsole()) == 143
    assert capsys.readouterr().err == ""
    config = tiny(**SHORT, mapping={"convolution": "grouped"})
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert train(config, tmp_path / "run", console=Console(quiet=True)) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "goes on with mapping.convolution=grouped, not map; NVIDIA_TF32_OVERRIDE=0, not : it ends" in error
    assert [each["mapping.convolution"] for each in computation.read(tmp_path / "run")] == ["map", "grouped"]
    (tmp_path / "run" / computation.NAME).write_text("[1")
    assert computation.read(tmp_path / "run") == []


def test_a_stage_that_was_computed_with_something_else_is_not_taken(tmp_path: Path) -> None:
    for name in ("other", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "partition.csv").write_text("client,0\n")
        write_json(tmp_path / name / computation.NAME, {"records": [{"mapping.convolution": "native"}]})
    (tmp_path / "other" / "checkpoints" / "warmup" / "3").mkdir(parents=True)
    log = NoMetrics()
    write_json(tmp_path / "run" / computation.NAME, {"records": [{"mapping.convolution": "map"}]})
    assert take(tmp_path / "run", [tmp_path / "other"], "warmup", 3, log) is None
    write_json(tmp_path / "other" / computation.NAME, {"records": [{"mapping.convolution": "map"}]})
    assert take(tmp_path / "run", [tmp_path / "other"], "warmup", 3, log) == tmp_path / "other"
