"""Orbax checkpoints of one stage: saved in the background, fingerprinted, damaged ones skipped. Orbax is imported only here."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mosaic_jax.types import PyTree

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save there.


def _flatten(state: PyTree) -> dict[str, Any]:
    """Leaves by their path, readable by anyone who opens the checkpoint without our types."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


class StageCheckpoints:
    """The checkpoints of one stage in `directory`, the last `keep` of them; steps are the stage's own.

    A checkpoint holds the state's leaves by path and a record {stage, step, config_hash, fingerprint}; the fingerprint,
    a SHA-256 over all leaves, is checked on restoring, so that a damaged file is found even where it can be read.
    """

    def __init__(self, directory: Path, stage: str, config_hash: str, keep: int) -> None:
        self._stage, self._config_hash = stage, config_hash
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: PyTree) -> None:
        """Copy the state to the host and write it in the background; raises FloatingPointError for one that is not finite."""
        # A copy, not a view: on a CPU the state's own buffers are donated to the next step while Orbax still writes.
        arrays = {name: np.array(leaf) for name, leaf in _flatten(state).items() if leaf.size}
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} is not finite")
        record = {"stage": self._stage, "step": step, "config_hash": self._config_hash, "fingerprint": _fingerprint(arrays)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        self._manager.save(step, args=items, force=True)

    def restore(self, like: PyTree, warn: Callable[[str], None], *, read_only: bool = False) -> tuple[int, PyTree] | None:
        """The newest sound checkpoint as (step, state), or None; damaged ones are reported through `warn` and, unless
        read_only, moved aside so that training can write their steps again.

        like: the state's shapes and dtypes, from jax.eval_shape.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            try:
                return step, self._read(step, like)
            # Orbax, tensorstore and JSON raise a dozen unrelated types on damaged files; each of them is reported.
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
                instead = "using the one before it" if place + 1 < len(steps) else "no other is left"
                warn(f"checkpoint {self._stage}/{step} is damaged ({reason}); {instead}")
                if not read_only:
                    self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        """Make room for writing this step again; nothing a user may want to look at is deleted but an older one set aside."""
        aside = self._directory.parent / f"{self._stage}-damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (self._directory / str(step)).rename(aside)
        self._manager.reload()

    def _read(self, step: int, like: PyTree) -> PyTree:
        shapes = _flatten(like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore({name: np.empty(s.shape, s.dtype) for name, s in shapes.items() if s.size}),
                record=ocp.args.JsonRestore(),
            ),
        )
        arrays = {name: np.asarray(leaf) for name, leaf in items.state.items()}
        if _fingerprint(arrays) != items.record["fingerprint"]:
            raise ValueError("its contents do not match their fingerprint")
        # Orbax stores no empty array; they come back from their shape.
        leaves = [jax.numpy.asarray(arrays[name]) if s.size else jax.numpy.zeros(s.shape, s.dtype) for name, s in shapes.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def wait(self) -> None:
        """Return once everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release Orbax's threads."""
        self._manager.wait_until_finished()
        self._manager.close()
