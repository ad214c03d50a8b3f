"""Which code and which libraries made a result."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def commit() -> str:
    """The commit of this code, with `-dirty` where files of the package differ from it; without git a digest of those files.

    The digest, `sources-` and 12 hexadecimal digits, is that of equal files wherever they are, so that it can be found again.
    """
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head[:12]}-dirty" if _git("status", "--porcelain", "--", str(PACKAGE)) else head[:12]
    except (OSError, subprocess.SubprocessError):
        return f"sources-{sources_digest()}"


def sources_digest(package: Path = PACKAGE) -> str:
    """12 hexadecimal digits over the names and contents of all source files of the package."""
    whole = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".h", ".cc")):
        whole.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers and speed."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
