"""`--profile DIR`: a trace of every stage, written however its segment ends, and never a reason to stop training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import StoppingConsole, assert_same_run, tiny

from mosaic_jax import runner
from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.profile import Profile, kernel_times


def traces(directory: Path) -> dict[str, int]:
    """{stage: number of traces}."""
    found = [path.relative_to(directory).parts[0] for path in directory.rglob("*.xplane.pb") if path.stat().st_size]
    return {stage: found.count(stage) for stage in sorted(set(found))}


def test_a_profiled_run_has_one_trace_of_each_stage_that_takes_steps_and_ends_as_any_other(finished: Path, tmp_path: Path) -> None:
    options = {"stop_after": None, "tensorboard": False, "console": Console(quiet=True), "profile": tmp_path / "traces"}
    assert runner.train(tiny(), tmp_path / "run", **options) == 0
    assert traces(tmp_path / "traces") == dict.fromkeys(("distill", "finetune", "generators", "meta", "warmup"), 1)
    assert_same_run(tmp_path / "run", finished)
    for stage in ("warmup", "distill"):
        times = kernel_times(tmp_path / "traces" / stage)
        (head, first, *_) = (tmp_path / "traces" / stage / "kernels.csv").read_text().splitlines()
        assert head == "kernel,calls,seconds,share"
        name, (count, seconds) = next(iter(times.items()))
        assert name in first and f",{count},{seconds:.6f}," in first and seconds > 0


def test_a_run_that_is_stopped_in_a_traced_segment_leaves_its_trace(tmp_path: Path) -> None:
    config = tiny(method="fedavg", warmup={"num_rounds": 1}, finetune={"num_rounds": 0})
    options = {"stop_after": None, "tensorboard": False, "console": StoppingConsole(), "profile": tmp_path / "traces"}
    assert runner.train(config, tmp_path / "run", **options) == 143
    assert traces(tmp_path / "traces") == {"warmup": 1}


@pytest.mark.parametrize(("num_segments", "traced"), [(1, [0]), (2, [1]), (5, [1])])
def test_the_second_segment_is_traced_or_the_only_one(
    num_segments: int, traced: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    profile = Profile(tmp_path, pytest.fail)
    for segment in range(num_segments):
        with profile.segment("meta", last=segment == num_segments - 1):
            events.append(segment)
    assert [events[place + 1] for place, event in enumerate(events) if event == "start"] == traced
    assert events.count("start") == events.count("stop") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_a_trace_is_written_whatever_ends_its_segment(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), Profile(tmp_path, pytest.fail).segment("warmup", last=True):
        jnp.ones(3).sum().block_until_ready()
        raise error
    assert traces(tmp_path) == {"warmup": 1}


def test_a_trace_that_cannot_be_taken_or_written_is_one_line_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Only one profile\nmay be run at a time.")

    steps = []
    for name in ("start_trace", "stop_trace"):
        warnings: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
            patched.setattr(jax.profiler, "stop_trace", lambda: None)
            patched.setattr(jax.profiler, name, fail)
            with Profile(tmp_path, warnings.append).segment("warmup", last=True):
                steps.append(name)
        assert warnings == ["--profile: no trace of warmup (RuntimeError: Only one profile may be run at a time.)"]
    assert steps == ["start_trace", "stop_trace"]


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = {"stop_after": None, "tensorboard": False, "console": Console(quiet=True), "profile": tmp_path / "file" / "traces"}
    with pytest.raises(ConfigError, match=r"--profile .*/file/traces: cannot be written \(Not a directory\)"):
        runner.train(tiny(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
