"""Several processes on JAX's distributed runtime are one run: the same result, stopped and resumed in any number of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import StoppingConsole, series, tiny, train
from one_of_two import SHARDING, state

from mosaic_jax import restored
from mosaic_jax.io.checkpoints import StageCheckpoints
from mosaic_jax.io.console import Console
from mosaic_jax.io.metrics import read

ROOT = Path(__file__).parent.parent


def free_port(low: int = 20000, high: int = 30000) -> int:
    """A port that nobody listens at, below those that the system hands out by itself."""
    for port in np.random.default_rng().integers(low, high, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", int(port)))
            except OSError:
                continue
            return int(port)
    raise AssertionError("no free port")


def python(*arguments: str, **variables: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | variables
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def ends(children: Sequence[subprocess.Popen]) -> list[Ended]:
    """How they end; all are killed where one does not."""
    try:
        output = [child.communicate(timeout=180) for child in children]
    finally:
        for child in children:
            child.kill()
    # Gloo, which carries the arrays between CPU processes, says on standard output whom it reached, from several threads at once.
    of_gloo = re.compile(r"\[Gloo\]|connected|peer ranks")
    said = [("\n".join(line for line in out.splitlines() if not of_gloo.search(line)).strip(), err) for out, err in output]
    return [Ended(child.returncode, *text) for child, text in zip(children, said, strict=True)]


def two_by_hand(arguments: list[str]) -> list[subprocess.Popen]:
    common = ["-m", "mosaic_jax", "train", *arguments]
    common += ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id"]
    return [python(*common, str(number)) for number in range(2)]


def two_on_slurm(arguments: list[str]) -> list[subprocess.Popen]:
    """As `srun --ntasks=2` would start them; JAX takes the port from the job's number."""
    low = 2**16 - 2**12
    slurm = {"SLURM_JOB_ID": str(free_port(low, 2**16) - low), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    common = ["-m", "mosaic_jax", "train", *arguments, "--distributed"]
    return [python(*common, **slurm, SLURM_PROCID=str(number), SLURM_LOCALID=str(number)) for number in range(2)]


def wait_for_a_record(children: Sequence[subprocess.Popen], run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not read(run_dir) and all(child.poll() is None for child in children):
        assert time.monotonic() < deadline, "the run wrote no record"
        time.sleep(0.01)


class Relay(NamedTuple):
    """One run, handed on: begun by two processes, of which the second gets SIGTERM; resumed by one, which stops between two
    segments of the generators; brought to the experts by two, as one of `--seeds`; ended by one, to whom their programs are
    not new."""

    run_dir: Path
    stopped: list[Ended]
    left_off_at: tuple[str, int]
    handed_on: list[Ended]
    results: dict


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, tiny_arguments: list[str]) -> Relay:
    run_dir = tmp_path_factory.mktemp("distributed") / "runs" / "seed0"
    children = two_by_hand([*tiny_arguments, "--run-dir", str(run_dir)])
    wait_for_a_record(children, run_dir)
    children[1].send_signal(signal.SIGTERM)
    stopped = ends(children)
    left_off_at = read(run_dir)[-1]["stage"], read(run_dir)[-1]["step"]
    assert train(tiny(), run_dir, stop_after="warmup") == 0
    assert train(tiny(), run_dir, console=StoppingConsole()) == 128 + signal.SIGTERM
    arguments = [*tiny_arguments, "--run-dir", str(run_dir.parent), "--seeds", "0", "--stop-after", "experts"]
    handed_on = ends(two_on_slurm(arguments))
    results = json.loads((run_dir / "results.json").read_text())
    assert train(tiny(), run_dir) == 0
    return Relay(run_dir, stopped, left_off_at, handed_on, results)


def said(ended: Ended) -> list[str]:
    """Warnings and errors of ours: on a busy machine XLA writes of its own to the same stream."""
    return [line for line in ended.err.splitlines() if line.startswith(("warning:", "error:", "Traceback"))]


def test_a_signal_to_one_process_stops_all_after_the_same_saved_step(relay: Relay) -> None:
    assert [ended.status for ended in relay.stopped] == [143, 143], relay.stopped
    stage, step = relay.left_off_at
    assert (stage, step > 0) == ("warmup", True)
    assert relay.stopped[0].out.endswith(f"stopped by SIGTERM; the same command resumes from {relay.run_dir}")
    assert [relay.stopped[1].out, *map(said, relay.stopped)] == ["", [], []]


def test_processes_that_slurm_names_go_on_with_the_run_of_one_and_only_the_first_speaks(relay: Relay) -> None:
    assert [ended.status for ended in relay.handed_on] == [0, 0], relay.handed_on
    assert "generators: from step 2 of 4" in relay.handed_on[0].out
    assert "2 processes" in relay.results["hardware"]
    assert relay.results["stages_done"] == ["warmup", "generators", "experts"]
    assert [relay.handed_on[1].out, *map(said, relay.handed_on)] == ["", [], []]
    assert json.loads((relay.run_dir.parent / "seeds.json").read_text())["seeds"] == [0]


def test_a_run_of_two_processes_ends_where_that_of_one_ends(relay: Relay, finished: Path) -> None:
    ours, theirs = (restored.restore(run_dir, Console(quiet=True))[1] for run_dir in (relay.run_dir, finished))
    assert list(ours) == list(theirs) == ["warmup", "generators", "experts", "meta", "distill", "finetune"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), ours, theirs)
    theirs = json.loads((finished / "results.json").read_text())
    for ours in (relay.results, json.loads((relay.run_dir / "results.json").read_text())):
        for name, model in ours["models"].items():
            assert model["test"] == pytest.approx(theirs["models"][name]["test"], abs=0.01)
            assert model["validation"] == pytest.approx(theirs["models"][name]["validation"], abs=0.02)
        assert ours["bytes"] == {stage: theirs["bytes"][stage] for stage in ours["stages_done"]}
    assert list(relay.results["models"]) == ["global", "clients", "expert_sum"]


def test_a_run_of_two_processes_records_once_what_that_of_one_records(relay: Relay, finished: Path) -> None:
    ours, theirs = series(relay.run_dir), series(finished)
    assert [record[:3] for record in ours] == [record[:3] for record in theirs]
    np.testing.assert_allclose([record[3] for record in ours], [record[3] for record in theirs], rtol=1e-2, atol=0.02)
    assert sorted(path.name for path in relay.run_dir.iterdir()) == sorted(path.name for path in finished.iterdir())


# --- what processes agree on, and what both save ---


class Both(NamedTuple):
    """How two processes ended in tests/one_of_two.py, what each saw before, and the directory that they shared."""

    ended: list[Ended]
    found: list[dict]
    shared: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    shared = tmp_path_factory.mktemp("shared")
    save_alone(shared / "of_one", 7)
    script, coordinator = str(ROOT / "tests" / "one_of_two.py"), f"localhost:{free_port()}"
    alone = [str(tmp_path_factory.mktemp("alone")) for _ in range(2)]
    ended = ends([python(script, coordinator, str(number), str(shared), alone[number]) for number in range(2)])
    assert all(process.out for process in ended), ended
    return Both(ended, [json.loads(process.out.splitlines()[-1]) for process in ended], shared)


def save_alone(directory: Path, step: int) -> None:
    checkpoints = StageCheckpoints(directory, "warmup", "hash", 3, SHARDING)
    checkpoints.save(step, state(step))
    checkpoints.close()


def test_processes_come_to_the_same_view(both: Both) -> None:
    first, second = both.found
    assert first == second
    assert [process["room"] for process in (first, second)] == [999, 999]
    assert (first["count"], first["no_signal"], first["signal"], first["first"]) == (2, None, signal.SIGTERM, [0, 1, 2])


def test_an_error_of_one_process_is_every_ones(both: Both) -> None:
    found = both.found[0]
    assert found["together"] == "process 1: data.source: not on this host"
    assert found["command"].startswith("process 1 has another command than process 0")
    assert found["data"].startswith("data.dir: process 1 finds other data than process 0")
    assert found["same_data"] == found["same_command"] == "not refused"
    assert found["unshared"].startswith("process 1: --run-dir")
    assert found["unshared"].endswith("name a directory on a file system that all processes share")


def test_clients_are_shared_among_the_devices_of_all_processes(both: Both) -> None:
    found = both.found[0]
    assert (found["processes"], found["each"]) == ([0, 0, 1], [0, 1])  # three clients; nine on one device of each process
    assert found["few"] == "partition.num_clients=1: fewer than the 2 processes; start at most as many"
    assert found["mapped"] == [[0, 10], [20, 30], [40, 50]]


def test_all_processes_find_damage_and_values_that_are_not_finite_wherever_they_are(both: Both) -> None:
    found = both.found[0]
    assert found["infinite"] == "clients is not finite"
    assert (found["steps"], found["equal"], found["damaged"]) == ([2, 1], [True, True], [True])


def test_a_checkpoint_and_its_fingerprint_do_not_tell_how_many_processes_saved_it(both: Both, tmp_path: Path) -> None:
    assert both.found[0]["of_one"] == [7, True]
    save_alone(tmp_path, 1)
    records = [(directory / "1" / "record" / "metadata").read_text() for directory in (both.shared / "checkpoints", tmp_path)]
    assert json.loads(records[0]) == json.loads(records[1])
    checkpoints = StageCheckpoints(both.shared / "checkpoints", "warmup", "hash", 3, SHARDING)
    step, found = checkpoints.restore(state(0), pytest.fail)
    checkpoints.close()
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, found, state(1))


def test_where_one_process_dies_the_other_says_so_in_one_line_and_ends(both: Both) -> None:
    first, second = both.ended
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    # Before it tensorstore may have complained about the damage that both had found.
    (line,) = (line for line in first.err.splitlines() if line.startswith("error: "))
    assert line.startswith("error: process 0 failed, or lost another that did (")
    assert line.endswith("; start all again to resume the run")
    assert first.err.endswith(f"{line}\n")


# --- processes that do not meet ---

IMPATIENT = "import sys; from mosaic_jax import cli, processes; processes.JOIN_SECONDS = 2; sys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whom_no_other_meets_says_where_it_waited(tiny_arguments: list[str], tmp_path: Path, number: int) -> None:
    coordinator = f"localhost:{free_port()}"
    named = ["--coordinator", coordinator, "--num-processes", "2", "--process-id", str(number)]
    child = python("-c", IMPATIENT, "train", *tiny_arguments, "--run-dir", str(tmp_path / "run"), *named)
    (ended,) = ends([child])
    assert ended.status == 2
    assert ended.err.startswith(f"error: --coordinator {coordinator}: the 2 processes did not all meet within 2 s; start one")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_and_processes_that_nobody_names_are_one_line(tiny_arguments: list[str], tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        named = ["--coordinator", f"localhost:{taken.getsockname()[1]}", "--num-processes", "2", "--process-id", "0"]
        common = ["-m", "mosaic_jax", "train", *tiny_arguments, "--run-dir", str(tmp_path / "run")]
        port, nobody = ends([python(*common, *named), python(*common, "--distributed")])
    assert (port.status, nobody.status) == (2, 2)
    assert "process 0 cannot listen there (Address already in use); name another port" in port.err
    assert nobody.err.startswith("error: --distributed: neither SLURM nor Open MPI nor Cloud TPU is found here; give each process")
    assert [port.err.count("\n"), nobody.err.count("\n")] == [1, 1]
