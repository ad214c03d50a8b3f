"""Orbax checkpoints of one stage: saved in the background, fingerprinted, damaged ones skipped. Orbax is imported only here."""

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath
from jax.sharding import PartitionSpec

from mosaic_jax import processes
from mosaic_jax.config import ConfigError
from mosaic_jax.io.fingerprints import fingerprint_of, not_finite
from mosaic_jax.mapping import REPLICATED, client_axis
from mosaic_jax.python_files import one_line
from mosaic_jax.types import PyTree

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save there, and what it raises as well.


class _OrbaxPath(PosixGPath):
    """A path as Orbax takes it, whose own characters are no pattern: Orbax looks for what it has written with `glob`."""

    def glob(self, pattern: str) -> Iterator["_OrbaxPath"]:
        """What below this path matches the pattern."""
        return (type(self)(found) for found in Path(self).glob(pattern))


def _ignore_late_reads(unraisable: Any, others: Callable[[Any], Any] = sys.unraisablehook) -> None:
    """Of an array that cannot be read tensorstore complains a second time, once nobody waits for it any more."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        others(unraisable)


sys.unraisablehook = _ignore_late_reads

# A checkpoint that cannot be read for one of these is not damaged.
REFUSED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)


def _number(error: Exception) -> int | None:
    """The number by which the operating system calls what went wrong, where it is its error."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return error.errno if isinstance(error, OSError) else int(code[1]) if code else None


def _reason(error: Exception) -> str:
    """An exception of Orbax or tensorstore in a few words."""
    return one_line(error)[:120] or type(error).__name__


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Whatever Orbax and tensorstore raise where a checkpoint cannot be written is an OSError that names the directory."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a dozen unrelated types
        number = _number(error)
        reason = os.strerror(number) if number else f"the checkpoint was not saved: {_reason(error)}"
        raise OSError(number or errno.EIO, reason, str(directory)) from error


def _flatten(state: PyTree) -> dict[str, Any]:
    """Leaves by their path, readable by anyone who opens the checkpoint without our types."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _own_copy(leaf: Any) -> Any:
    """A copy to write from: on a CPU the state's own buffers are donated to the next step while Orbax still writes.

    What this process holds whole becomes a NumPy array, which process 0 writes; of clients shared among processes each keeps
    and writes its part.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.array(leaf)
    parts = [jax.device_put(np.array(shard.data), shard.device) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


class StageCheckpoints:
    """The checkpoints of one stage in `directory`, the last `keep` of them; steps are the stage's own.

    A checkpoint holds the state's leaves by path and a record {stage, step, config_hash, fingerprint}; the fingerprint,
    a SHA-256 over all leaves, is checked on restoring, so that a damaged file is found even where it can be read. Several
    processes share the directory: each saves its own clients, process 0 the rest too, and each restores the whole.
    sharding: PartitionSpecs, a prefix of the state's tree, that say which leaves are stacked over clients, as in `Stage`.
    """

    def __init__(self, directory: Path, stage: str, config_hash: str, keep: int, sharding: PyTree = None) -> None:
        self._stage, self._config_hash = stage, config_hash
        self._sharding = REPLICATED if sharding is None else sharding
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        with _writing(self._directory):
            self._manager = ocp.CheckpointManager(_OrbaxPath(self._directory), options=options)

    def _axes(self, state: PyTree) -> dict[str, int]:
        """Of each leaf the axis of its clients, -1 where there is none."""
        return _flatten(
            jax.tree.map(
                lambda spec, part: jax.tree.map(lambda _: client_axis(spec), part), self._sharding, state,
                is_leaf=lambda x: isinstance(x, PartitionSpec),
            )
        )  # fmt: skip

    def save(self, step: int, state: PyTree) -> None:
        """Copy the state to the host and write it in the background; raises FloatingPointError for one that is not finite."""
        arrays = {name: _own_copy(leaf) for name, leaf in _flatten(state).items() if leaf.size}
        if (bad := not_finite(arrays)) is not None:
            raise FloatingPointError(f"{bad} is not finite")
        fingerprint = fingerprint_of(arrays, self._axes(state))
        record = {"stage": self._stage, "step": step, "config_hash": self._config_hash, "fingerprint": fingerprint}
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with _writing(self._directory):
            self._manager.save(step, args=items, force=True)

    def restore(self, like: PyTree, warn: Callable[[str], None], *, read_only: bool = False) -> tuple[int, PyTree] | None:
        """The newest sound checkpoint as (step, state), or None; damaged ones are reported through `warn` and, unless
        read_only, moved aside so that training can write their steps again.

        like: the state's shapes and dtypes, from jax.eval_shape. Of several processes each reads the whole; what one of them
        cannot read counts as damaged. Raises ConfigError where they do not see the same checkpoints.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if len(set(processes.gather_texts(str(steps)))) > 1:
            raise ConfigError(f"{self._directory}: the processes see different checkpoints in it; wait, and start them again")
        for place, step in enumerate(steps):
            state, reason = None, ""
            try:
                state = self._read(step, like)
            # Orbax, tensorstore and JSON raise a dozen unrelated types on damaged files; each of them is reported.
            except Exception as error:
                if isinstance(error, MemoryError):
                    raise
                if (number := _number(error)) in REFUSED:
                    raise OSError(number, os.strerror(number), str(self._directory / str(step))) from error
                reason = _reason(error)
            reason = next(filter(None, processes.gather_texts(reason)), "")
            if not reason:
                return step, state
            instead = "using the one before it" if place + 1 < len(steps) else "no other is left"
            warn(f"checkpoint {self._stage}/{step} is damaged ({reason}); {instead}")
            if not read_only:
                self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        """Make room for writing this step again; nothing a user may want to look at is deleted but an older one set aside."""
        if processes.is_first():
            aside = self._directory.parent / f"{self._stage}-damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._directory / str(step)).rename(aside)
        processes.gather(np.int32(step))  # until it is done
        self._manager.reload()

    def check(self, step: int, state: PyTree) -> None:
        """Return once a step that was saved has been read back; raises OSError where it is not what was saved.

        state: one of the same shapes. All processes call it.
        """
        self.wait()
        reason = ""
        try:
            self._read_arrays(step, state)
        except Exception as error:  # as in `restore`
            reason = _reason(error)
        reason = next(filter(None, processes.gather_texts(reason)), "")
        if reason:
            raise OSError(errno.EIO, f"checkpoint {self._stage}/{step} does not come back ({reason})", str(self._directory))

    def _read(self, step: int, like: PyTree) -> PyTree:
        arrays = self._read_arrays(step, like)
        # Orbax stores no empty array; they come back from their shape.
        leaves = [
            jax.numpy.asarray(arrays[name]) if shape.size else jax.numpy.zeros(shape.shape, shape.dtype)
            for name, shape in _flatten(like).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _read_arrays(self, step: int, like: PyTree) -> dict[str, np.ndarray]:
        """The leaves of a step that are not empty; raises whatever a damaged one leads to."""
        shapes = _flatten(like)
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore({name: np.empty(s.shape, s.dtype) for name, s in shapes.items() if s.size}),
            record=ocp.args.JsonRestore(),
        )
        with self._reader() as reader:
            items = reader.restore(step, args=wanted)
        arrays = {name: np.asarray(leaf) for name, leaf in items.state.items()}
        if fingerprint_of(arrays, self._axes(like)) != items.record["fingerprint"]:
            raise ValueError("its contents do not match their fingerprint")
        return arrays

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        """A manager that waits for no other process while it reads: they may not find the same damage."""
        if not processes.several():
            yield self._manager
            return
        own = processes.index()
        alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own))
        options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        with ocp.CheckpointManager(_OrbaxPath(self._directory), options=options) as manager:
            yield manager

    def wait(self) -> None:
        """Return once everything saved so far is on disk."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release Orbax's threads."""
        try:
            self.wait()
        finally:
            with _writing(self._directory):
                self._manager.close()


def check_place(directory: Path) -> None:
    """Raises OSError where a checkpoint that is saved in a directory, made and taken away here, does not come back from it."""
    state = {"trial": np.zeros(1)}
    with contextlib.closing(StageCheckpoints(directory, "trial", "", keep=1)) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.check(1, state)
    if processes.is_first():
        shutil.rmtree(directory)
