"""Where what can be made again is kept between runs: XLA's programs, our kernels, their timings, decoded images."""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

COMPILED = ("xla", "native")


def cache_directory(kind: str) -> Path:
    """`$XDG_CACHE_HOME`, where that is an absolute path, or ~/.cache, then mosaic_jax/KIND: xla, native, stacked or data.

    What is compiled has one folder there for each kind of processor: a home directory is shared by machines, and a program compiled
    for one processor may stop another at an unknown instruction. Raises RuntimeError without a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    directory = (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "mosaic_jax" / kind
    return directory / hashlib.sha256(_processor().encode()).hexdigest()[:12] if kind in COMPILED else directory


def own_directory(kind: str) -> Path:
    """`cache_directory(kind)`, made where it is missing, for what will be executed: this user's and nobody else's to write.

    Raises OSError where it cannot be made or others may have written into it, RuntimeError without a home directory.
    """
    directory = cache_directory(kind)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError(errno.EPERM, "other users can write there", str(directory))
    return directory


@contextlib.contextmanager
def alone_in(directory: Path, seconds: float) -> Iterator[None]:
    """A block that one process at a time has; the others wait. The system ends it with its process, so that none is left behind.

    Where the file system has no locks, as some network ones, nobody waits. Raises TimeoutError after so many seconds.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + seconds
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has not left it in {seconds:g} s", str(directory))
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether there is nobody to wait for."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _processor() -> str:
    """What this processor is and can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    known = dict(line.split(":", 1) for line in lines if line.startswith(wanted) and ":" in line)
    return f"{platform.machine()} {platform.processor()} {sorted(known.items())}"
