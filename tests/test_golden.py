"""Parity with the public PyTorch code: golden values of seed 0, checked as `scripts/check_golden.py` checks them."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from mosaic_jax.io.golden_checks import CHECKS

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
spec = importlib.util.spec_from_file_location("check_golden", ROOT / "scripts" / "check_golden.py")
check_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_golden)


@pytest.mark.parametrize("stem", CHECKS)
def test_every_quantity_of_a_golden_file_is_met(stem: str) -> None:
    checks = list(check_golden.check_file(GOLDEN / f"{stem}.npz", seed=0))
    assert checks
    assert [str(check) for check in checks if not check.ok] == []


def test_the_meta_model_has_the_names_and_shapes_of_the_public_code() -> None:
    assert check_golden.check_names(GOLDEN / "meta10_names.txt").ok


@pytest.fixture
def experts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the one quick file, taken for all that there is."""
    monkeypatch.setattr(check_golden, "CHECKS", {"experts": CHECKS["experts"]})
    shutil.copy(GOLDEN / "experts.npz", tmp_path)
    return tmp_path


def run(directory: Path, seed: int = 0) -> int:
    return check_golden.main(["--golden", str(directory), "--seed", str(seed)])


def test_the_script_prints_a_line_per_quantity_and_exits_0(experts_only: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(experts_only) == 0
    lines = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 7
    assert all(line[0].startswith("experts/") and float(line[1]) <= float(line[2]) and line[3] == "ok" for line in lines)


def test_the_script_fails_for_weights_of_another_seed(experts_only: Path) -> None:
    assert run(experts_only, seed=1) == 1


@pytest.mark.parametrize("change", ["wrong_value", "not_finite", "other_shape", "unknown_quantity"])
def test_the_script_fails_on_a_wrong_or_unknown_quantity(change: str, experts_only: Path, capsys: pytest.CaptureFixture) -> None:
    golden = dict(np.load(experts_only / "experts.npz"))
    value = golden["global/linear.weight"]
    golden["global/linear.weight"] = {
        "wrong_value": value + 1e-3 * (np.arange(value.size).reshape(value.shape) == 3),
        "not_finite": np.full_like(value, np.nan),
        "other_shape": value[:, :1],
    }.get(change, value)
    if change == "unknown_quantity":
        golden["loss"] = np.float32(1.0)
    np.savez(experts_only / "experts.npz", **golden)
    assert run(experts_only) == 1
    failed = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert ("experts/loss" if change == "unknown_quantity" else "experts/global/linear.weight") in failed


def test_the_script_fails_on_a_missing_and_on_an_unknown_file(experts_only: Path, capsys: pytest.CaptureFixture) -> None:
    (experts_only / "experts.npz").rename(experts_only / "other.npz")
    assert run(experts_only) == 1
    assert [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "other.npz:not_a_known_golden_file", "experts.npz:missing"
    ]  # fmt: skip


def test_a_directory_that_is_not_there_is_an_argument_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        run(tmp_path / "absent")
    assert error.value.code == 2
