"""Compiled programs kept on disk between runs, in the user's cache directory. Only the command line turns this on."""

import os
import tempfile
import warnings
from collections.abc import Callable

import jax

from mosaic_jax.io.cache_directory import own_directory

MIN_COMPILE_SECONDS = 0.1  # jax's own second would leave out half of what a small run compiles


def enable(warning: Callable[[str], None]) -> None:
    """Keep compiled programs, unless the user's JAX settings already say where, or that nothing is kept.

    warning: is told, in one line, about a directory that cannot be written; the run then compiles as if there were no cache.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    if jax.config.jax_compilation_cache_dir is None:
        try:
            directory = own_directory("xla")
            with tempfile.TemporaryFile(dir=directory):  # permissions alone say too little: file systems may be read-only or full
                pass
        except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
            place, reason = getattr(error, "filename", None) or "~/.cache", getattr(error, "strerror", None) or error
            warning(f"compiled programs are not kept: {place} cannot be used ({reason}); XDG_CACHE_HOME names another")
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    # A damaged entry, or a disk that fills up, costs a compilation and nothing else; jax would say so for each program.
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache entry")


def disable() -> None:
    """Neither read nor keep compiled programs, whatever JAX's own settings say."""
    jax.config.update("jax_enable_compilation_cache", False)
