"""Orbax checkpoints of one stage: saved in the background, fingerprinted, damaged ones skipped. Orbax is imported only here."""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import PartitionSpec

from mosaic_jax import processes
from mosaic_jax.config import ConfigError
from mosaic_jax.mapping import REPLICATED, client_axis
from mosaic_jax.types import PyTree

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save there.


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


def _parts(array: Any) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """What this process holds of an array, and which part that is."""
    if isinstance(array, np.ndarray):
        return [((slice(None),) * array.ndim, array)]
    return [(shard.index, np.asarray(shard.data)) for shard in array.addressable_shards]


def _not_finite(arrays: dict[str, Any]) -> str | None:
    """The first leaf that is not finite, here or in another process."""
    names = list(arrays)
    bad = (
        place for place, array in enumerate(arrays.values()) for _, part in _parts(array)
        if np.issubdtype(part.dtype, np.inexact) and not np.isfinite(part).all()
    )  # fmt: skip
    first = next(bad, len(names))
    if any(isinstance(array, jax.Array) for array in arrays.values()):
        first = int(processes.gather(np.int32(first)).min())
    return names[first] if first < len(names) else None


def _fingerprint(arrays: dict[str, Any], axes: dict[str, int]) -> str:
    """SHA-256 over one digest of all that is no client's and one of each client, so that processes can share the work.

    axes: of each leaf the axis of its clients, or -1. The same whichever devices and processes hold the arrays: clients of groups
    of different sizes, some of which divide among the devices, have digests of their own.
    """
    groups = sorted({array.shape[axes[name]] for name, array in arrays.items() if axes[name] >= 0})
    firsts = dict(zip(groups, 1 + np.cumsum([0, *groups]), strict=False))
    digests = [hashlib.sha256() for _ in range(1 + sum(groups))]
    seen = np.zeros(len(digests), bool)
    for name in sorted(arrays):
        axis = axes[name]
        for where, part in _parts(arrays[name]):
            first = 0 if axis < 0 else int(firsts[arrays[name].shape[axis]]) + (where[axis].start or 0)
            for row, own in enumerate([part] if axis < 0 else np.moveaxis(part, axis, 0), first):
                digests[row].update(name.encode())
                digests[row].update(np.ascontiguousarray(own).tobytes())
                seen[row] = True
    rows = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint8).reshape(-1, 32) * seen[:, None]
    if any(isinstance(array, jax.Array) for array in arrays.values()):
        every = processes.gather(rows)
        rows = np.concatenate([every[0, :1], every[:, 1:].max(axis=0)])  # what is no client's is as process 0 writes it
    return hashlib.sha256(rows.tobytes()).hexdigest()


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
        self._manager = ocp.CheckpointManager(self._directory, options=options)

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
        if (bad := _not_finite(arrays)) is not None:
            raise FloatingPointError(f"{bad} is not finite")
        fingerprint = _fingerprint(arrays, self._axes(state))
        record = {"stage": self._stage, "step": step, "config_hash": self._config_hash, "fingerprint": fingerprint}
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
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
                reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
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

    def _read(self, step: int, like: PyTree) -> PyTree:
        shapes = _flatten(like)
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore({name: np.empty(s.shape, s.dtype) for name, s in shapes.items() if s.size}),
            record=ocp.args.JsonRestore(),
        )
        with self._reader() as reader:
            items = reader.restore(step, args=wanted)
        arrays = {name: np.asarray(leaf) for name, leaf in items.state.items()}
        if _fingerprint(arrays, self._axes(like)) != items.record["fingerprint"]:
            raise ValueError("its contents do not match their fingerprint")
        # Orbax stores no empty array; they come back from their shape.
        leaves = [jax.numpy.asarray(arrays[name]) if s.size else jax.numpy.zeros(s.shape, s.dtype) for name, s in shapes.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        """A manager that waits for no other process while it reads: they may not find the same damage."""
        if not processes.several():
            yield self._manager
            return
        own = processes.index()
        alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own))
        options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        with ocp.CheckpointManager(self._directory, options=options) as manager:
            yield manager

    def wait(self) -> None:
        """Return once everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release Orbax's threads."""
        self._manager.wait_until_finished()
        self._manager.close()
