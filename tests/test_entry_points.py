"""Commands called from Python: a thread, a notebook's event loop, a forked child; and signals that end a run from outside."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import StoppingConsole, fingerprints, tiny, train

from mosaic_jax import cli, runner

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
    before = [signal.getsignal(number) for number in runner.STOPS]
    assert place(lambda: cli.main([*train, str(tmp_path / "run")])) == 0
    assert place(lambda: cli.main(["evaluate", str(tmp_path / "run")])) == 0
    assert [signal.getsignal(number) for number in runner.STOPS] == before
    assert cli.main([*train, str(tmp_path / "shell")]) == 0
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "shell")


def test_seeds_and_comparisons_train_in_a_thread(tiny_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*tiny_arguments, *SHORT]
    assert in_a_thread(lambda: cli.main(["train", *arguments, "--seeds", "0", "--run-dir", str(tmp_path / "seeds")])) == 0
    compare = ["compare", "--configs", *arguments[1:], "--seeds", "0", "--out", str(tmp_path / "compared")]
    assert in_a_thread(lambda: cli.main(compare)) == 0


@pytest.mark.parametrize("number", runner.STOPS)
def test_each_signal_that_ends_runs_saves_and_gives_its_status(number: int, tmp_path: Path) -> None:
    config = tiny(method="fedavg", warmup={"num_rounds": 2}, finetune={"num_rounds": 0})
    assert train(config, tmp_path / "run", console=StoppingConsole(number)) == 128 + number
    assert (tmp_path / "run" / "checkpoints" / "warmup" / "1").is_dir()


def test_a_hang_up_that_nohup_ignores_stays_ignored_and_foreign_handlers_are_put_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGUSR1)
    try:
        with runner.catch_signals() as caught:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert caught == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is before[1]
    finally:
        signal.signal(signal.SIGHUP, before[0])
