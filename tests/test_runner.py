"""A run as a whole: however it is stopped and resumed it ends as the unbroken run, and it leaves what it should."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import StoppingConsole, assert_same_run, fingerprints, tiny, train
from PIL import Image

from mosaic_jax import cli, restored, results
from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import load_json
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.metrics import read
from mosaic_jax.mapping import one_device
from mosaic_jax.methods import stages_of
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.stages.stage import placements

ROOT = Path(__file__).parent.parent
STAGES = ["warmup", "generators", "experts", "meta", "distill", "finetune"]


def as_if_killed_before_the_results(run_dir: Path, copy: Path) -> Path:
    shutil.copytree(run_dir, copy)
    (copy / "results.json").unlink()
    (copy / "report.html").unlink()
    return copy


def test_a_run_leaves_its_configuration_metrics_results_samples_and_report(finished: Path) -> None:
    assert load_json(finished / "config.json") == tiny()
    records = read(finished)
    assert all(record.keys() == {"stage", "step", "round", "name", "value", "seconds"} for record in records)
    assert list(dict.fromkeys(record["stage"] for record in records)) == STAGES
    assert [r["seconds"] for r in records] == sorted(r["seconds"] for r in records)
    assert {(r["step"], r["round"]) for r in records if r["stage"] == "warmup"} == {(step, step) for step in range(4)}
    results = json.loads((finished / "results.json").read_text())
    assert results["stages_done"] == results["stages"] == STAGES
    assert list(results["models"]) == ["global", "clients", "expert_sum", "mixture", "student", "finetuned"]
    assert sum(map(sum, results["confusion"])) == 359
    assert sum(map(sum, results["label_counts"])) == 1438
    assert results["bytes"]["warmup"]["down"] > 0
    assert all(results["seconds"][stage] >= 0 for stage in STAGES)
    with Image.open(finished / "samples" / "generators.png") as picture:
        assert picture.format == "PNG"
    assert "<svg" in (finished / "report.html").read_text()
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "checkpoints",
        "computation.json",
        "config.json",
        "data.json",
        "metrics.jsonl",
        "partition.csv",
        "report.html",
        "results.json",
        "samples",
    ]


def test_the_student_is_watched_along_the_steps(finished: Path) -> None:
    losses = ("teacher_confidence", "agreement", "loss", "kl", "ce", "js")
    recorded = {name: [] for name in ("validation", *(f"{name}/prior={s}" for name in losses for s in ("0", "0.5", "1")))}
    for record in read(finished):
        if record["stage"] == "distill" and record["name"] in recorded:
            recorded[record["name"]].append(record["step"])
    assert recorded.pop("validation") == [0, 2, 4]
    assert all(steps == [2, 4] for steps in recorded.values())


def test_a_finished_run_says_so_and_trains_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train(tiny(), finished, console=Console()) == 0
    assert "is finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}


def test_another_configuration_is_refused_by_the_name_of_the_field_and_nothing_is_overwritten(
    finished: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert cli.main(["train", *tiny_arguments, "distill.num_steps=6", "--run-dir", str(finished)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "distill.num_steps=4, not 6" in error
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_a_run_whose_clients_would_be_dealt_otherwise_is_neither_resumed_nor_evaluated(finished: Path, tmp_path: Path) -> None:
    run_dir = as_if_killed_before_the_results(finished, tmp_path / "run")
    dealt = (run_dir / "partition.csv").read_text()
    assert dealt.splitlines()[0] == "client,0,1,2,3,4,5,6,7,8,9"
    (run_dir / "partition.csv").write_text(dealt.replace("\n2,", "\n2,1"))  # as if data or partition.table had changed since

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}

    before = files()
    for again in (lambda: train(tiny(), run_dir), lambda: restored.evaluate(run_dir, Console(quiet=True))):
        with pytest.raises(ConfigError, match=r"began with other clients .*partition\.csv.*; restore them, or name another"):
            again()
    assert files() == before


def test_an_evaluation_without_records_says_so_and_keeps_the_costs_that_are_known(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "metrics.jsonl").write_text("")
    results = restored.evaluate(run_dir, Console())
    assert f"warning: {run_dir / 'metrics.jsonl'}: the records of {', '.join(STAGES)} are gone" in capsys.readouterr().err
    before = json.loads((finished / "results.json").read_text())
    assert [results[cost] for cost in ("bytes", "seconds", "compile_seconds")] == [
        before[cost] for cost in ("bytes", "seconds", "compile_seconds")
    ]


def copied_to(folder: Path, order: slice | np.ndarray = slice(None), of: str = "train") -> Path:
    """The digits as an .npz file, their training or test set in another order."""
    digits = load("digits", 32)
    arrays = {"x_train": digits.train_images, "y_train": digits.train_labels, "x_test": digits.test_images}
    arrays |= {"y_test": digits.test_labels}
    np.savez(folder / "digits.npz", **{name: array[order] if of in name else array for name, array in arrays.items()})
    return folder / "digits.npz"


def test_a_run_goes_on_with_the_same_data_wherever_they_are_and_not_with_others_or_in_another_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(method="fedavg", data={"source": f"npz:{copied_to(tmp_path)}"})
    assert train(config, tmp_path / "run", console=StoppingConsole()) == 143
    began_with = (tmp_path / "run" / "data.json").read_bytes()
    same_labels = np.arange(1438)
    zeros = np.flatnonzero(load("digits", 32).train_labels == 0)
    same_labels[zeros] = zeros[::-1]
    for order, of, other in (
        (same_labels, "train", "training images"),
        (slice(None, None, -1), "train", "training images and training labels and shares of clients"),
        (slice(None, None, -1), "test", "test images and test labels"),
    ):
        copied_to(tmp_path, order, of)
        for again in (lambda: train(config, tmp_path / "run"), lambda: restored.evaluate(tmp_path / "run", Console(quiet=True))):
            with pytest.raises(ConfigError, match=rf"began with other {other} \(.*data\.json\) than data\.source=npz:.* gives now"):
                again()
    assert (tmp_path / "run" / "data.json").read_bytes() == began_with
    copied_to(tmp_path)
    assert train(config, tmp_path / "run") == 0

    (tmp_path / "run" / "data.json").unlink()  # as older versions left a run
    (tmp_path / "run" / "results.json").unlink()
    assert train(config, tmp_path / "run") == 0
    assert (tmp_path / "run" / "data.json").read_bytes() == began_with
    (tmp_path / "run" / "data.json").write_text("[1")
    with pytest.raises(ConfigError, match=r"data\.json is damaged; restore it"):
        restored.evaluate(tmp_path / "run", Console(quiet=True))


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_stopped_after_a_stage_goes_on_from_there_to_the_same_end(finished: Path, tmp_path: Path) -> None:
    assert train(tiny(), tmp_path / "run", stop_after="generators") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stages_done"] == ["warmup", "generators"]
    assert list(results["models"]) == ["global", "clients"]
    assert train(tiny(), tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", finished)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert train(tiny(seed=seed), tmp_path / str(seed), stop_after="warmup") == 0
    same, other = fingerprints(tmp_path / "0")["warmup"], fingerprints(tmp_path / "1")["warmup"]
    assert same == fingerprints(finished)["warmup"]
    assert other != same


# --- signals and kills ---


def start(tiny_arguments: list[str], run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mosaic_jax", "train", *tiny_arguments, "--run-dir", str(run_dir)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_records(process: subprocess.Popen, run_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and len(read(run_dir)) < count:
        assert time.monotonic() < deadline, "the run wrote too few records"
        time.sleep(0.002)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_says_how_to_resume_and_gives_its_status(
    tiny_arguments: list[str], tmp_path: Path, number: int, status: int
) -> None:
    process = start(tiny_arguments, tmp_path / "run")
    wait_for_records(process, tmp_path / "run", 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "the same command resumes" in out
    step = read(tmp_path / "run")[-1]["step"]
    assert step >= 1
    assert (tmp_path / "run" / "checkpoints" / read(tmp_path / "run")[-1]["stage"] / str(step) / "record" / "metadata").exists()


def test_a_run_killed_at_random_moments_ends_as_the_unbroken_run(finished: Path, tiny_arguments: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    moments = sorted(random.Random().choices(range(1, len(read(finished))), k=2))
    print(f"killed after {moments} records")
    for moment in moments:
        process = start(tiny_arguments, run_dir)
        wait_for_records(process, run_dir, moment)
        process.kill()
        process.communicate(timeout=120)
    assert train(tiny(), run_dir) == 0
    assert_same_run(run_dir, finished)


# --- damage ---

# Tensorstore complains about the event loop in which its read failed, after the failure was handled.
ignore_closed_loops = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damaged(checkpoint: Path, how: Callable[[Path], None]) -> None:
    """Damages every file that holds array contents."""
    for path in checkpoint.glob("state/**/d/*"):
        how(path)


@ignore_closed_loops
@pytest.mark.parametrize(("stage", "how"), [("warmup", cut), ("generators", flip), ("distill", flip)])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_leads_to_the_same_end(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, how: Callable[[Path], None]
) -> None:
    run_dir = as_if_killed_before_the_results(finished, tmp_path / "run")
    newest, before = sorted((run_dir / "checkpoints" / stage).iterdir(), key=lambda path: -int(path.name))
    damaged(newest, how)
    assert train(tiny(), run_dir) == 0
    error = capsys.readouterr().err
    assert f"checkpoint {stage}/{newest.name} is damaged" in error
    assert "using the one before it" in error
    assert f"{stage}/{before.name} is damaged" not in error
    assert_same_run(run_dir, finished)


@ignore_closed_loops
def test_a_stage_whose_checkpoints_are_all_damaged_starts_over(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = as_if_killed_before_the_results(finished, tmp_path / "run")
    for checkpoint in (run_dir / "checkpoints" / "finetune").iterdir():
        damaged(checkpoint, flip)
    assert train(tiny(), run_dir) == 0
    assert capsys.readouterr().err.count("is damaged") == 2
    assert_same_run(run_dir, finished)


# --- losses that are not finite ---


def test_a_loss_that_is_not_finite_stops_the_run_by_stage_step_and_client_and_keeps_what_was_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(method="fedavg_finetune", finetune={"client_learning_rate": 1e30})
    assert train(config, tmp_path / "run") == 3
    error = capsys.readouterr().err
    assert "error: finetune: loss is not finite at round 0, client 0" in error
    assert error.count("\n") == 1
    assert list(fingerprints(tmp_path / "run")) == ["warmup"]
    assert list(restored.evaluate(tmp_path / "run", Console(quiet=True))["models"]) == ["global", "clients"]
    assert train(config, tmp_path / "run") == 3


# --- commands on a finished run ---


def test_evaluating_from_the_checkpoints_alone_gives_the_table_of_the_run(finished: Path, tmp_path: Path) -> None:
    run_dir = as_if_killed_before_the_results(finished, tmp_path / "run")
    assert cli.main(["evaluate", str(run_dir)]) == 0
    one, two = (json.loads((directory / "results.json").read_text()) for directory in (run_dir, finished))
    assert one == two


def test_sample_draws_a_row_of_images_for_every_client(finished: Path, tmp_path: Path) -> None:
    for number in (1, 5):
        assert cli.main(["sample", str(finished), "--out", str(tmp_path / f"{number}.png"), "--num", str(number)]) == 0
    with Image.open(tmp_path / "1.png") as small, Image.open(tmp_path / "5.png") as large:
        assert small.height == large.height >= 3 * 32
        assert large.width - small.width == 4 * (2 * 32 + 2)


def test_more_samples_than_are_drawn_at_once_are_other_ones(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "AT_ONCE", 4)
    problem, outputs = restored.restore(finished, Console(quiet=True))
    drawn = results.generated(problem, outputs["generators"], 7)
    assert drawn.shape[:2] == (3, 7)
    assert not any(np.array_equal(drawn[:, place], drawn[:, place + 4]) for place in range(3))
    np.testing.assert_array_equal(drawn[:, :4], results.generated(problem, outputs["generators"], 4))


def test_samples_for_which_memory_runs_out_are_one_line_and_status_4(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generated(*arguments: object) -> np.ndarray:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for 9 bytes")

    monkeypatch.setattr(restored, "generated", generated)
    assert cli.main(["sample", str(finished), "--out", str(tmp_path / "s.png"), "--num", "900"]) == 4
    assert capsys.readouterr().err == "error: --num 900: no memory for so many images of 3 clients; lower it\n"


def test_64_bit_numbers_are_refused(tmp_path: Path) -> None:
    with jax.enable_x64(True), pytest.raises(ConfigError, match="JAX_ENABLE_X64: is on"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_sample_before_the_generators_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tiny(), tmp_path / "run", stop_after="warmup") == 0
    capsys.readouterr()
    assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert "stage generators is not finished" in error
    assert error.count("\n") == 1


# --- compilation ---


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Counts the programs that JAX compiles, or loads from its cache, inside the block."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def final_states(run_dir: Path) -> dict:
    return restored.restore(run_dir, Console(quiet=True))[1]


# What generators do on two devices, the next test shows.
@pytest.mark.parametrize(("num_devices", "stages"), [(1, ("warmup", "generators")), (2, ("warmup",))])
def test_clients_shared_among_devices_end_where_those_of_one_device_end(
    finished: Path, tmp_path: Path, num_devices: int, stages: tuple[str, ...]
) -> None:
    config = tiny(mapping={"num_devices": num_devices})  # of three clients; the finished run gave each its own device
    assert train(config, tmp_path / "run", stop_after=stages[-1]) == 0
    ours, theirs = final_states(tmp_path / "run"), final_states(finished)
    for stage in stages:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours[stage], theirs[stage])


def test_four_devices_end_where_one_ends(tmp_path: Path) -> None:
    found = []
    for num_devices in (4, 1):
        run_dir = tmp_path / str(num_devices)
        config = tiny(partition={"num_clients": 4}, mapping={"num_devices": num_devices})
        assert len(build_problem(config, load("digits", 32)).client_plan.devices) == num_devices
        assert train(config, run_dir, stop_after="generators") == 0
        found.append(final_states(run_dir))
    for stage in ("warmup", "generators"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0][stage], found[1][stage])


def test_a_run_resumes_on_another_number_of_devices(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    assert train(tiny(), tmp_path / "run", stop_after="warmup") == 0
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert train(tiny(), tmp_path / "run", console=StoppingConsole()) == 128 + signal.SIGTERM
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:2])
    assert train(tiny(), tmp_path / "run", stop_after="generators") == 0
    ours, theirs = final_states(tmp_path / "run"), final_states(finished)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours["generators"], theirs["generators"])


def test_resuming_compiles_no_stage_that_is_done(finished: Path, tmp_path: Path) -> None:
    run_dir = as_if_killed_before_the_results(finished, tmp_path / "run")
    assert train(tiny(), run_dir) == 0
    seconds = {r["stage"]: r["value"] for r in read(run_dir) if r["name"] == "compile_seconds"}
    assert seconds == {r["stage"]: r["value"] for r in read(finished) if r["name"] == "compile_seconds"}


def test_a_stage_compiles_nothing_after_its_first_segment() -> None:
    problem = build_problem(tiny(), load("digits", 32))
    outputs: dict = {}
    for stage in stages_of(problem):
        inputs = stage.inputs(outputs)
        state = jax.tree.map(jax.numpy.copy, jax.jit(stage.init)(inputs))
        home, everywhere = placements(problem, stage, state)
        state, inputs, data = jax.device_put((state, inputs, stage.data), (home, everywhere, everywhere))
        # As the runner does it, so that the finished run's programs serve here.
        run = jax.jit(stage.run, donate_argnums=0, out_shardings=(home, everywhere))
        for first in range(0, stage.num_steps, stage.segment):
            with compilations() as seen:
                arguments = (inputs, data, host_arrays(stage, inputs, first), jax.numpy.int32(first))
                state, _ = run(state, *arguments, jax.numpy.int32(first + stage.segment))
                if stage.watch is not None:
                    state, _ = stage.watch(state, inputs, first + stage.segment)
            assert seen if first == 0 else not seen, f"{stage.name} compiled {len(seen)} times at {stage.unit} {first}"
        outputs[stage.name] = jax.device_put(stage.output(state, inputs), one_device())
