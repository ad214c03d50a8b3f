"""The fuzz: every setting is drawn, draws can be repeated, and what is wrong with a run is told by its command line."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import fuzz

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import apply_overrides
from mosaic_jax.settings import settings


def test_every_setting_is_drawn_or_left_alone_by_name() -> None:
    every = {setting.name: setting for setting in settings(Config())}
    choices = {name for name, each in every.items() if each.field.metadata["choices"] or isinstance(each.value, bool)}
    assert set(every) == choices | set(fuzz.POOLS) | set(fuzz.LEFT_ALONE)
    assert set(fuzz.TINY) | set(fuzz.NARROWED) | set(fuzz.OFTEN) <= set(every)


def test_draws_are_repeated_differ_and_are_valid_setting_by_setting() -> None:
    draws = [fuzz.drawn(0, index) for index in range(200)]
    assert draws[:5] == [fuzz.drawn(0, index) for index in range(5)]
    assert len({tuple(draw.items()) for draw in draws}) == 200
    assert fuzz.drawn(1, 0) != draws[0]
    together = 0
    for draw in draws:
        try:
            apply_overrides(Config(), [f"{name}={value}" for name, value in draw.items()])
        except ConfigError as error:
            together += 1
            assert "must be one of" not in str(error) and "no setting" not in str(error)
    assert together < 120  # most of the time goes into runs


PROGRAMS = {
    "import sys; sys.exit('error: no')": (1, "error: no"),
    "import sys; print('error: no', file=sys.stderr); sys.exit(2)": (2, ""),
    "import sys; print('warning: slow', file=sys.stderr); print('error: nan', file=sys.stderr); sys.exit(3)": (3, ""),
    "raise ValueError('inside')": (1, "ValueError: inside"),
    "import time; time.sleep(60)": (None, "has not ended after 1 s"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_is_right_that_ends_or_is_refused_in_a_line(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "HANGS_AFTER", 1.0 if "sleep" in program else 60.0)
    assert fuzz.fault([sys.executable, "-c", program], tmp_path, {}) == PROGRAMS[program]


def test_a_refusal_after_training_and_an_end_without_results_are_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    refused = [sys.executable, "-c", "import sys; print('error: late', file=sys.stderr); sys.exit(2)"]
    assert fuzz.fault(refused, tmp_path, {}) == (2, "trained before it was refused: error: late")
    assert fuzz.fault([sys.executable, "-c", ""], tmp_path, {})[1]
    ends = iter([0.0, 0.0, 0.0, 0.0, 99.0])
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: next(ends))
    monkeypatch.setattr(fuzz, "fault", lambda *_: (1, "ValueError: inside"))
    assert fuzz.main(["--minutes", "1", "--first", "7"]) == 1
    out = capsys.readouterr().out
    assert "ValueError: inside\n  mosaic-jax train --config configs/digits.py --set partition.num_clients=" in out
    assert out.endswith("1 wrong\n") and "--run-dir runs/fuzz-0-7\n" in out
