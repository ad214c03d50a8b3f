"""A user's own Python files, run as Python runs a script: they may import their neighbours. Imports no JAX."""

import contextlib
import difflib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from mosaic_jax.settings import ConfigError


def run_file(path: Path, what: str, name: str, function: str | None = None) -> object:
    """Runs a file as the module `name`, and then its `function` where it has one -> what that returns, else the module.

    what: its kind, as messages call it. Raises ConfigError naming the file where there is none, and for whatever it raises.
    """
    if not path.is_file():
        known = sorted(str(file) for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), known, 1)
        raise ConfigError(f"{what} {path}: not found" + (f"; did you mean {near[0]}?" if near else ""))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        with _among_neighbours(module, path.resolve().parent):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
            made = getattr(module, function, None) if function else None
            return made() if callable(made) else module
    except ConfigError as error:
        raise ConfigError(f"{what} {path}: {error}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} {path}: {one_line(error)}; install it, or put it beside the file") from error
    except (Exception, SystemExit) as error:  # whatever a user's file raises is that file's error
        raise ConfigError(f"{what} {path}: {type(error).__name__}: {one_line(error)}") from error


@contextlib.contextmanager
def _among_neighbours(module: types.ModuleType, directory: Path) -> Iterator[None]:
    """A block in which a module is known, as dataclasses need it, and imports look into a directory first.

    Modules that it imported from there are forgotten: a file of the same name in another directory is another one.
    """
    before = set(sys.modules)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for name in set(sys.modules) - before:
            first, file = name.partition(".")[0], getattr(sys.modules[name], "__file__", None) or ""
            if first not in before and file.startswith((f"{directory / first}.", f"{directory / first}/")):
                del sys.modules[name]


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())
