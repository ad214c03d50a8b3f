"""The C++ kernels of ops/native compiled for this processor, once for each user and machine, and given to XLA."""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from mosaic_jax import ops
from mosaic_jax.config import ConfigError
from mosaic_jax.io.cache_directory import alone_in, own_directory
from mosaic_jax.ops import native

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-DNDEBUG")
TIMEOUT_SECONDS = 300
_build = ""
INSTALL = "install g++ or clang, or name one with CXX=/path/to/compiler"


class NoLibrary(Exception):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


def set_lowering(name: str, warning: Callable[[str], None]) -> None:
    """Choose how convolutions are lowered (`mapping.convolution`) and compile the kernels where that wants them.

    warning: is told, in one line, where auto does without them on a CPU. Raises ConfigError where name is native and they cannot be
    had: no CPU backend, or no compiler.
    """
    if name == "native" and jax.default_backend() != "cpu":
        raise ConfigError(f"mapping.convolution=native: is for CPUs, and this is a {jax.default_backend()}; use auto")
    if name in ("auto", "native") and jax.default_backend() == "cpu":
        try:
            _register(warning)
        except (NoLibrary, OSError) as reason:  # OSError: compiled, but not to be loaded (a file system without execution)
            if name == "native":
                raise ConfigError(f"mapping.convolution=native: {reason}; {INSTALL}") from reason
            warning(f"convolutions are left to XLA, which takes longer: {reason}; {INSTALL}")
    ops.set_lowering(name)


def build() -> str:
    """What the kernels of this process were compiled from and with, in 16 hexadecimal digits; empty where there are none."""
    return _build


def _register(warning: Callable[[str], None]) -> None:
    """Give XLA the kernels; those that were kept but cannot be loaded (cut short, or another C library's) are compiled again.

    Where they cannot be kept they are compiled for this process alone. Raises NoLibrary, and OSError where they cannot be loaded.
    """
    try:
        kept = library()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        place, reason = getattr(error, "filename", None) or "~/.cache", getattr(error, "strerror", None) or error
        warning(f"the C++ kernels are compiled for this run alone: {place} cannot be used ({reason}); XDG_CACHE_HOME names another")
        with tempfile.TemporaryDirectory(prefix="mosaic-jax-") as directory:
            _load(library(Path(directory)))
        return
    try:
        _load(kept)
    except OSError:
        kept.unlink(missing_ok=True)
        _load(library())


def _load(kept: Path) -> None:
    global _build
    native.register(kept)
    _build = _build or kept.stem


def library(directory: Path | None = None) -> Path:
    """The compiled kernels for this processor, compiled now unless they are kept from before.

    directory: where they are kept; None is beside XLA's programs. Their name changes with sources, compiler, flags and JAX. Of
    several processes one compiles and the others wait. Raises NoLibrary where they cannot be compiled, OSError or RuntimeError
    where they cannot be kept.
    """
    compiler = _compiler()
    sources = sorted(path for path in native.SOURCES.iterdir() if path.suffix in (".h", ".cc"))
    version = _run([*compiler, "--version"])
    headers = Path(jax.ffi.include_dir())
    parts = [version, *compiler[1:], *FLAGS, jax.__version__, *(path.read_text() for path in sources)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    directory = directory or own_directory("native")
    kept = directory / f"{digest}.so"
    if kept.exists():
        return kept
    with alone_in(directory, TIMEOUT_SECONDS):
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=directory) as work:
                made = Path(work) / "native.so"
                _run([*compiler, *FLAGS, "-isystem", str(headers), str(native.SOURCES / "module.cc"), "-o", str(made)])
                os.replace(made, kept)
    return kept


def _compiler() -> list[str]:
    """The words of the command: CXX may be a path, or several words as in CXX="ccache g++"."""
    wanted = os.environ.get("CXX", "")
    with contextlib.suppress(ValueError):  # a quote without its other
        for words in ([wanted], shlex.split(wanted)) if wanted.strip() else ([name] for name in COMPILERS):
            if words and (found := shutil.which(words[0])):
                return [found, *words[1:]]
    raise NoLibrary(f"CXX={wanted} is no program" if wanted.strip() else "no C++ compiler found")


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS).stdout
    except (subprocess.SubprocessError, OSError) as error:
        output = getattr(error, "stderr", None) or (error.strerror if isinstance(error, OSError) else "") or ""
        # What a command said before its time was up is bytes.
        output = (output.decode(errors="replace") if isinstance(output, bytes) else output).strip().splitlines()
        said = next((line for line in output if "error" in line), output[0] if output else "it said nothing")
        late = f"not done after {TIMEOUT_SECONDS:g} s: " if isinstance(error, subprocess.TimeoutExpired) else ""
        raise NoLibrary(f"{command[0]} failed ({late}{said[:160]})") from error
