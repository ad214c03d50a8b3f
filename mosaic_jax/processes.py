"""Several processes as one run: how they join, and the little on which they must agree. A process alone agrees with itself."""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mosaic_jax.config import ConfigError
from mosaic_jax.plain_text import say
from mosaic_jax.types import PyTree

JOIN_SECONDS = 300.0  # until the last process has started
HEARTBEAT_SECONDS = 100  # a process that is silent for so long is dead, and JAX ends the others
LEAVE_SECONDS = 120  # until the last process has ended
TEXT_BYTES = 1024


def count() -> int:
    """Processes of this run. Asks JAX for its devices only where `jax.distributed` is on: they may still have to be chosen."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, 0 to count() - 1."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def several() -> bool:
    """Whether there is another process."""
    return count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return index() == 0


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """One of num_processes processes, which meet at `coordinator` ("host:port" of process 0), for the length of a block.

    All None: JAX detects them (SLURM, Open MPI, Cloud TPU). A ConfigError must be every process's; process 0 alone lets it
    out, the others exit 2. Anything else that is raised ends this process at once (see `give_up`), and so the others.
    Raises ConfigError where the processes cannot be found or do not come within JOIN_SECONDS.
    """
    _join(coordinator, num_processes, process_id)
    try:
        yield
    except ConfigError:
        first = is_first()  # asked before there is no longer a first one
        jax.distributed.shutdown()
        if first:
            raise
        raise SystemExit(2) from None
    except BaseException as error:
        give_up(error)
        raise
    jax.distributed.shutdown()


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is None:
        where = "--distributed: the processes that SLURM, Open MPI or Cloud TPU name"
        remedy = "look for those that did not start, or give each --coordinator HOST:PORT --num-processes N --process-id I"
    else:
        where = f"--coordinator {coordinator}: the {num_processes} processes"
        remedy = "start one with each --process-id, and name process 0's host and a port that the others can reach"
    late = f"{where} did not all meet within {JOIN_SECONDS:g} s; {remedy}"
    if coordinator is not None and process_id == 0:
        _check_port(coordinator)

    def end() -> None:
        say("error", late)
        os._exit(2)

    # JAX's own timeout aborts the process with a stack trace, so ours comes first. SIGTERM stays the runner's.
    jax.config.update("jax_enable_preemption_service", False)
    watch = threading.Timer(JOIN_SECONDS, end)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=int(JOIN_SECONDS) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=LEAVE_SECONDS,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(
            "--distributed: neither SLURM nor Open MPI nor Cloud TPU is found here; give each process "
            "--coordinator HOST:PORT --num-processes N --process-id I"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where} cannot be joined ({reason}); {remedy}") from error
    finally:
        watch.cancel()


def _check_port(coordinator: str) -> None:
    """Raises ConfigError where process 0 cannot listen: JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ConfigError(f"--coordinator {coordinator}: process 0 cannot listen there ({reason}); name another port") from error


def give_up(error: BaseException) -> None:
    """End this process at once for an error that is its own; where it is alone the error is only raised.

    Whoever waits for the others while they wait for him, as at an orderly exit, would hold all of them up.
    """
    if not several():
        return
    if isinstance(error, KeyboardInterrupt):
        _exit(130)
    if isinstance(error, jax.errors.JaxRuntimeError):
        reason = " ".join(str(error).split())[:200]
        say("error", f"process {index()} failed, or lost another that did ({reason}); start all again to resume the run")
    elif isinstance(error, OSError) and error.filename is not None:
        what = f"process {index()}: {error.filename}: {error.strerror}"
        say("error", f"{what}; mend that and start all again to resume the run")
    else:
        traceback.print_exception(error)
    _exit(1)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def gather(value: np.ndarray) -> np.ndarray:
    """The same array of every process, stacked: [...] -> [P, ...]; all processes call it."""
    return np.asarray(multihost_utils.process_allgather(value)) if several() else np.asarray(value)[None]


def gather_texts(text: str) -> list[str]:
    """A short text of every process."""
    if not several():
        return [text]
    padded = text.encode(errors="backslashreplace")[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gather(np.frombuffer(padded, np.uint8))]


def of_the_first(tree: PyTree) -> PyTree:
    """Process 0's values of a tree of whole arrays, as NumPy arrays where there are others."""
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree


def first_signal(signals: Sequence[int]) -> int | None:
    """The signal that any process has caught, None where none has."""
    caught = gather(np.int32(signals[0] if signals else 0)) if several() else signals[:1]
    return next((int(number) for number in caught if number), None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what each process, or the first alone, does for itself: a ConfigError of one becomes everyone's."""
    own: ConfigError | None = None
    try:
        yield
    except ConfigError as error:
        if not several():
            raise
        own = error
    if several():
        for number, text in enumerate(gather_texts(str(own or ""))):
            if text:
                raise ConfigError(text if number == 0 else f"process {number}: {text}") from own


def check_same_data(digest: str) -> None:
    """Raises ConfigError unless all processes have read the same images and dealt them to the same clients."""
    if not several():
        return
    all_digests = gather_texts(digest)
    for number, other in enumerate(all_digests):
        if other != all_digests[0]:
            raise ConfigError(f"data.dir: process {number} finds other data than process 0; give all of them the same files")


def check_same(command: str) -> None:
    """Raises ConfigError unless all processes have as many devices and the same command, in any words."""
    if not several():
        return
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        seen = ", ".join(f"process {number} has {found}" for number, found in sorted(devices.items()))
        raise ConfigError(f"mapping.num_devices=0: {seen} devices; all need as many, so set it to {min(devices.values())}")
    commands = gather_texts(command)
    for number, other in enumerate(commands):
        if other != commands[0]:
            raise ConfigError(f"process {number} has another command than process 0; give all the same but for --process-id")
