"""The signals that end a run once all is saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What batch systems, terminals and people end a run with; SLURM's --signal and a terminal that closes are the last two.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGHUP wait in a list until a segment is done; a second one stops at once.

    In a thread that is not the main one, where Python lets nobody catch them, signals stay the caller's and the list empty.
    """
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # None: a handler that is not Python's, which could not be put back. nohup's ignored SIGHUP stays ignored.
        mine = [number for number in STOPS if signal.getsignal(number) is not None]
        mine = [number for number in mine if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]
        before = {number: signal.signal(number, handler) for number in mine}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
