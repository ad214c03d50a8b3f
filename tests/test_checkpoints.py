"""Checkpoints: what is saved comes back to the bit, and whatever is damaged is noticed."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax.io.checkpoints import StageCheckpoints
from mosaic_jax.types import PyTree, Variables


def state_of(step: int) -> PyTree:
    """A state with nested names, several dtypes, a scalar and an empty leaf."""
    values = jnp.arange(600, dtype=jnp.float32).reshape(20, 30) * step
    return Variables({"a": {"kernel": values}, "b": jnp.float32(step)}, (jnp.int32(step), jnp.ones(3, bool), jnp.zeros((0, 4))))


def saved(directory: Path, steps: tuple[int, ...], keep: int = 2) -> None:
    checkpoints = StageCheckpoints(directory, "warmup", "hash", keep)
    for step in steps:
        checkpoints.save(step, state_of(step))
    checkpoints.close()


def restored(directory: Path, warnings: list[str]) -> tuple[int, PyTree] | None:
    checkpoints = StageCheckpoints(directory, "warmup", "hash", 2)
    try:
        return checkpoints.restore(jax.eval_shape(lambda: state_of(1)), warnings.append)
    finally:
        checkpoints.close()


def assert_equal(one: PyTree, other: PyTree) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_newest_state_comes_back_to_the_bit_and_the_last_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3))
    step, state = restored(tmp_path, warnings := [])
    assert (step, warnings) == (3, [])
    assert_equal(state, state_of(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_nothing_saved_restores_nothing(tmp_path: Path) -> None:
    assert restored(tmp_path, []) is None


def test_a_state_that_is_not_finite_is_refused_and_the_last_good_one_stands(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    checkpoints = StageCheckpoints(tmp_path, "warmup", "hash", 2)
    with pytest.raises(FloatingPointError, match=r"b is not finite"):
        checkpoints.save(2, Variables({"a": jnp.ones(3), "b": jnp.float32(jnp.inf)}, ()))
    checkpoints.close()
    assert restored(tmp_path, [])[0] == 1


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "removed":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's, after a handled failure
@pytest.mark.parametrize("how", ["removed", "cut short", "bytes flipped"])
def test_damage_to_any_file_of_the_newest_checkpoint_never_gives_a_wrong_state(tmp_path: Path, how: str) -> None:
    saved(tmp_path / "whole", (1, 2))
    noticed = 0
    for file in sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "2").rglob("*") if path.is_file()):
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        damage(tmp_path / "damaged" / file, how)
        step, state = restored(tmp_path / "damaged", warnings := [])
        # Without its mark of success a checkpoint counts as one whose writing was cut off: passed over without a word.
        assert step == 2 or file.name == "commit_success.txt" or "warmup/2 is damaged" in warnings[0], file
        assert_equal(state, state_of(step))
        noticed += step == 1
        shutil.rmtree(tmp_path / "damaged")
    assert noticed > 0


def test_where_every_checkpoint_is_damaged_there_is_none_and_saving_begins_again(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2))
    for file in tmp_path.glob("*/record/metadata"):
        file.write_bytes(b"{")
    assert restored(tmp_path, warnings := []) is None
    assert ["warmup/2" in warnings[0], "warmup/1" in warnings[1]] == [True, True]
    assert "no other is left" in warnings[1]
    saved(tmp_path, (1, 2))
    assert restored(tmp_path, [])[0] == 2
