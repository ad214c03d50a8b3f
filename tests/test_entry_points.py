"""Commands called from Python: a thread, a notebook's event loop, a forked child; and signals that end a run from outside."""

import asyncio
import contextlib
import errno
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from conftest import StoppingConsole, fingerprints, tiny, train

from mosaic_jax import cli
from mosaic_jax.config import ConfigError
from mosaic_jax.io import run_directory
from mosaic_jax.signals import STOPS, catch_signals

ROOT = Path(__file__).parent.parent
SHORT = ["method=fedavg", "warmup.num_rounds=1", "finetune.num_rounds=0"]


def in_a_thread(call: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def in_a_running_loop(call: Callable[[], int]) -> int:
    """As a cell of a notebook calls it."""

    async def cell() -> int:
        return call()

    return asyncio.run(cell())


@pytest.mark.parametrize("place", [in_a_thread, in_a_running_loop])
def test_a_run_in_a_thread_or_in_a_running_event_loop_is_that_of_the_shell(
    place: Callable[[Callable[[], int]], int], tiny_arguments: list[str], tmp_path: Path
) -> None:
    train = ["train", *tiny_arguments, *SHORT, "--run-dir"]
    before = [signal.getsignal(number) for number in STOPS]
    assert place(lambda: cli.main([*train, str(tmp_path / "run")])) == 0
    assert place(lambda: cli.main(["evaluate", str(tmp_path / "run")])) == 0
    assert [signal.getsignal(number) for number in STOPS] == before
    assert cli.main([*train, str(tmp_path / "shell")]) == 0
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "shell")


def test_seeds_and_comparisons_train_in_a_thread(tiny_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*tiny_arguments, *SHORT]
    assert in_a_thread(lambda: cli.main(["train", *arguments, "--seeds", "0", "--run-dir", str(tmp_path / "seeds")])) == 0
    compare = ["compare", "--configs", *arguments[1:], "--seeds", "0", "--out", str(tmp_path / "compared")]
    assert in_a_thread(lambda: cli.main(compare)) == 0


@pytest.mark.parametrize("number", STOPS)
def test_each_signal_that_ends_runs_saves_and_gives_its_status(number: int, tmp_path: Path) -> None:
    config = tiny(method="fedavg", warmup={"num_rounds": 2}, finetune={"num_rounds": 0})
    before = signal.signal(number, signal.SIG_DFL)  # a suite under nohup ignores hang-ups, and so would the run
    try:
        assert train(config, tmp_path / "run", console=StoppingConsole(number)) == 128 + number
    finally:
        signal.signal(number, before)
    assert (tmp_path / "run" / "checkpoints" / "warmup" / "1").is_dir()


def test_a_hang_up_that_nohup_ignores_stays_ignored_and_foreign_handlers_are_put_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGUSR1)
    try:
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert caught == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is before[1]
    finally:
        signal.signal(signal.SIGHUP, before[0])


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_child_forked_after_jax_had_started_is_told_to_spawn_and_does_not_hang(tiny_arguments: list[str], tmp_path: Path) -> None:
    jax.block_until_ready(jax.numpy.ones(1))
    errors = tmp_path / "errors"

    def work() -> None:
        with errors.open("w") as file, contextlib.redirect_stderr(file):
            status = cli.main(["train", *tiny_arguments, "--run-dir", str(tmp_path / "run")])
        os._exit(status)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 2
    error = errors.read_text()
    assert error.count("\n") == 1
    assert "forked after JAX had started" in error and 'multiprocessing.get_context("spawn")' in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("plan --config configs/digits.py | head -1", 141),
        ("--version | (exec <&-; sleep 5)", 141),
        ("config --config configs/digits.py >&-", 0),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly_as_it_ends_other_tools(command: str, status: int) -> None:
    shell = f"set -o pipefail; {shlex.quote(sys.executable)} -m mosaic_jax {command}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=buffered, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_lock_that_a_dead_process_left_or_that_the_file_system_does_not_have_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("1234")
    again = pytest.raises(ConfigError, match="another process is training in it")
    with run_directory.claim(tmp_path / "run", tiny()), again, run_directory.claim(tmp_path / "run", tiny()):
        pass

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_directory.fcntl, "flock", none)
    with run_directory.claim(tmp_path / "run", tiny()):
        assert (tmp_path / "run" / ".lock").exists()
