"""Data of a run are found again by what they hold, wherever they and the one who asks are now."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, train
from copies import COLOURS, write_classes

from mosaic_jax import restored
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import load_json, with_absolute_paths, with_values
from mosaic_jax.io import run_directory
from mosaic_jax.io.console import Console
from mosaic_jax.io.data_digests import digests_of_images, write_data
from mosaic_jax.io.datasets import dataset_of, load
from mosaic_jax.io.moved_data import located
from mosaic_jax.io.results_file import read_results

QUIET = Console(quiet=True)


def write_npz(path: Path, shift: int = 0) -> str:
    labels = np.arange(8) % 2
    np.savez(path, x_train=np.roll(COLOURS, shift), y_train=labels, x_test=COLOURS, y_test=labels)
    return f"npz:{path}"


def begun(run_dir: Path, source: str) -> Config:
    """A run directory as far as its data go, and its configuration."""
    config = tiny(data={"source": source})
    run_dir.mkdir()
    run_directory.write_config(run_dir, config)
    write_data(run_dir, digests_of_images(dataset_of(config, QUIET)))
    return config


@pytest.mark.parametrize("named", ["itself", "the folder around it", "under another name"])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_moved_data_are_found_in_the_data_dir(tmp_path: Path, kind: str, named: str) -> None:
    old = tmp_path / ("old" if kind == "folder" else "old.npz")
    config = begun(tmp_path / "run", write_classes(old) if kind == "folder" else write_npz(old))
    (tmp_path / "new").mkdir()
    if kind == "npz":
        write_npz(tmp_path / "new" / "another.npz", shift=1)
    new = tmp_path / "new" / ("renamed" + old.suffix if named == "under another name" else old.name)
    shutil.move(old, new)
    moved = with_values(config, {"data.dir": str(new if named == "itself" else new.parent)})
    assert located(moved, tmp_path / "run", QUIET).data.source == f"{kind}:{new}"
    with pytest.raises(ConfigError, match="if the data have moved, --data-dir says where"):
        dataset_of(located(config, tmp_path / "run", QUIET), QUIET)


def test_of_data_in_several_places_those_that_the_run_knows_are_taken(tmp_path: Path) -> None:
    config = begun(tmp_path / "run", write_npz(tmp_path / "a.npz"))
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "a.npz", tmp_path / "new" / "a.npz")
    write_npz(tmp_path / "a.npz", shift=1)  # others where they were
    moved = with_values(config, {"data.dir": str(tmp_path / "new")})
    assert located(moved, tmp_path / "run", QUIET).data.source == f"npz:{tmp_path / 'new' / 'a.npz'}"
    write_npz(tmp_path / "a.npz")
    assert located(moved, tmp_path / "run", QUIET) == moved


def test_a_new_run_and_a_look_at_the_data_read_them_in_the_data_dir_where_they_are_not_in_their_own_place(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    data = load(f"npz:{tmp_path / 'gone' / 'a.npz'}", 32, directory=str(tmp_path))
    np.testing.assert_array_equal(data.train_images, COLOURS)


def test_paths_are_remembered_as_absolute_and_a_relative_one_means_the_same_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(Path("a.npz"))
    config = begun(tmp_path / "run", "npz:a.npz")
    kept = load_json(tmp_path / "run" / "config.json")
    assert kept.data.source == f"npz:{tmp_path / 'a.npz'}"
    run_directory.check(tmp_path / "run", config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert located(kept, tmp_path / "run", QUIET) == kept
    run_directory.check(tmp_path / "run", config)
    assert located(config, tmp_path / "run", QUIET).data.source == kept.data.source
    paths = {"data.source": "folder:d", "data.dir": "e", "partition.table": "~no such user/t.csv"}
    absolute = with_absolute_paths(with_values(Config(), paths))
    here = tmp_path / "elsewhere"
    assert (absolute.data.source, absolute.data.dir, absolute.partition.table) == (
        f"folder:{here / 'd'}", str(here / "e"), str(here / "~no such user" / "t.csv")
    )  # fmt: skip
    assert with_absolute_paths(Config()) == Config()


def test_another_configuration_is_still_refused_where_the_run_does_not_know_the_data_or_they_have_no_path(tmp_path: Path) -> None:
    config = begun(tmp_path / "run", write_npz(tmp_path / "a.npz"))
    other = with_values(config, {"data.source": f"npz:{tmp_path / 'b.npz'}"})
    run_directory.check(tmp_path / "run", other)
    with pytest.raises(ConfigError, match=r"another configuration \(data\.source=npz:.*a\.npz, not digits"):
        run_directory.check(tmp_path / "run", with_values(config, {"data.source": "digits"}))
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ConfigError, match=r"another configuration \(data\.source=npz:.*a\.npz, not npz:.*b\.npz"):
        run_directory.check(tmp_path / "run", other)


def test_a_run_whose_data_and_table_have_moved_is_evaluated_and_goes_on(tmp_path: Path) -> None:
    digits = load("digits", 32)
    arrays = {"x_train": digits.train_images, "y_train": digits.train_labels, "x_test": digits.test_images[:40]}
    np.savez(tmp_path / "a.npz", **arrays, y_test=digits.test_labels[:40])
    names = ",".join(digits.class_names)
    (tmp_path / "t.csv").write_text(f"client,{names}\n" + "".join(f"{client}{',20' * 10}\n" for client in range(3)))
    values = {"kind": "table", "table": str(tmp_path / "t.csv")}
    config = tiny(method="fedavg", partition=values, data={"source": f"npz:{tmp_path / 'a.npz'}"})
    assert train(config, tmp_path / "run") == 0
    before = read_results(tmp_path / "run")
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "a.npz", tmp_path / "new" / "b.npz")
    (tmp_path / "t.csv").unlink()
    again = restored.evaluate(tmp_path / "run", QUIET, str(tmp_path / "new"))
    assert before is not None and again["models"] == before["models"]
    (tmp_path / "run" / "results.json").unlink()
    assert train(with_values(config, {"data.source": f"npz:{tmp_path / 'new' / 'b.npz'}"}), tmp_path / "run") == 0
    assert load_json(tmp_path / "run" / "config.json").data.source == f"npz:{tmp_path / 'new' / 'b.npz'}"
    restored.evaluate(tmp_path / "run", QUIET)
