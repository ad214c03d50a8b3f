"""Decoded images are kept on disk: made once, never half, made again when the files change."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from copies import png, real_digits, write_folder

from mosaic_jax.config import ConfigError
from mosaic_jax.io import datasets
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import cache, load, pixels
from mosaic_jax.io.datasets.found import Found, Images
from mosaic_jax.types import Dataset

ROOT = Path(__file__).parent.parent
TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = real_digits(30, 10)
NAMES = [f"digit {number}" for number in range(10)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory; copies are kept in mosaic_jax/data of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mosaic_jax" / "data"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_folder(tmp_path / "digits", NAMES, {"train": (TRAIN, TRAIN_LABELS), "test": (TEST, TEST_LABELS)})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each image that is decoded."""
    sizes: list[int] = []
    real = pixels.pixels

    def counted(stored: object, size: int, rendering: pixels.Rendering) -> tuple[np.ndarray, pixels.Traits]:
        sizes.append(size)
        return real(stored, size, rendering)

    monkeypatch.setattr(pixels, "pixels", counted)
    return sizes


def assert_whole(data: Dataset) -> None:
    np.testing.assert_array_equal(data.train_images, TRAIN)
    np.testing.assert_array_equal(data.test_images, TEST)
    np.testing.assert_array_equal(data.train_labels, TRAIN_LABELS)
    np.testing.assert_array_equal(data.test_labels, TEST_LABELS)
    assert data.class_names == tuple(NAMES)


def the_copy(home: Path) -> Path:
    (kept,) = [path for path in home.glob("*/*") if path.is_dir()]
    return kept


def test_a_second_start_decodes_nothing_and_maps_the_same_images(home: Path, source: str, decoded: list[int]) -> None:
    assert_whole(load(source, 32))
    assert len(decoded) == 40
    again = load(source, 32)
    assert_whole(again)
    assert len(decoded) == 40
    assert not again.train_images.flags.writeable
    assert not again.train_images.flags.owndata


def test_each_image_size_has_its_copy(home: Path, source: str, decoded: list[int]) -> None:
    assert load(source, 64).train_images.shape == (30, 64, 64, 3)
    assert_whole(load(source, 32))
    load(source, 64)
    assert len(decoded) == 80
    assert len([path for path in home.glob("*/*") if path.is_dir()]) == 2


@pytest.mark.parametrize("change", ["content", "time", "added", "removed"])
def test_a_change_of_the_files_makes_the_copy_again_and_drops_the_old_one(
    home: Path, source: str, decoded: list[int], change: str
) -> None:
    load(source, 32)
    first = the_copy(home)
    (file, *_) = sorted((Path(source.removeprefix("folder:")) / "train").rglob("*.png"))
    if change == "content":
        file.write_bytes(png(TEST[0]))
    elif change == "time":
        os.utime(file, (1, 1))
    elif change == "added":
        (file.parent / "zzz.png").write_bytes(png(TEST[0]))
    else:
        file.unlink()
    data = load(source, 32)
    assert len(decoded) == 80 + {"added": 1, "removed": -1}.get(change, 0)
    assert the_copy(home) != first
    if change == "content":
        np.testing.assert_array_equal(data.train_images[0], TEST[0])


@pytest.mark.parametrize("damage", ["images", "labels", "about", "no about", "left over"])
def test_what_is_not_whole_is_made_again(home: Path, source: str, decoded: list[int], damage: str) -> None:
    load(source, 32)
    kept = the_copy(home)
    if damage == "images":
        os.truncate(kept / "images.u8", 1000)
    elif damage == "labels":
        np.save(kept / "labels.npy", TRAIN_LABELS[:3].astype(np.int32))
    elif damage == "about":
        (kept / "about.json").write_text((kept / "about.json").read_text()[:20])
    elif damage == "no about":
        (kept / "about.json").unlink()
    else:
        shutil.copytree(kept, kept.parent / "half-written")
        os.truncate(kept.parent / "half-written" / "images.u8", 7)
        shutil.rmtree(kept)
    assert_whole(load(source, 32))
    assert len(decoded) == 80
    assert_whole(load(source, 32))
    assert the_copy(home) == kept


def test_a_process_that_is_killed_while_it_decodes_leaves_nothing_that_is_trusted(home: Path, source: str) -> None:
    program = (
        "import os, signal, sys; from mosaic_jax.io.datasets import load, cache\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = kill\n"
        "load(sys.argv[1], 32)"
    )
    killed = subprocess.run([sys.executable, "-c", program, source], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert [path.name for path in home.glob("*/*") if path.is_dir()] == ["half-written"]
    assert_whole(load(source, 32))
    assert the_copy(home).name != "half-written"


def test_the_second_of_two_at_once_waits_and_decodes_nothing(
    home: Path, source: str, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, waits, go_on = threading.Event(), threading.Event(), threading.Event()
    real = datasets.decode

    class Listening(Console):
        def message(self, text: str) -> None:
            if "waiting for another process" in text:
                waits.set()

    def slow(*arguments: object) -> pixels.Traits:
        started.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(datasets, "decode", slow)
    results: list[Dataset] = []
    threads = [threading.Thread(target=lambda: results.append(load(source, 32, console=Listening()))) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert started.wait(30)
    assert waits.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(decoded) == 40
    assert len(results) == 2
    for data in results:
        assert_whole(data)


def test_a_failure_to_decode_keeps_nothing(home: Path, source: str) -> None:
    file = sorted((Path(source.removeprefix("folder:")) / "test").rglob("*.png"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    with pytest.raises(ConfigError, match=str(file)):
        load(source, 32)
    assert not [path for path in home.glob("*/*") if path.is_dir()]
    file.write_bytes(whole)
    assert_whole(load(source, 32))


def test_a_copy_that_is_there_is_read_where_nothing_can_be_written(
    home: Path, source: str, decoded: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(source, 32)
    monkeypatch.setattr(cache.fcntl, "flock", lambda *_: pytest.fail("locked"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("written"))
    assert_whole(load(source, 32, console=Console()))
    assert len(decoded) == 40
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["a file", "full", "cannot be locked"])
def test_a_cache_that_cannot_be_written_is_one_warning_and_no_end(
    home: Path, source: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if kind == "a file":
        home.parent.parent.touch()
    elif kind == "full":
        monkeypatch.setattr(os, "pwrite", full)
    else:
        monkeypatch.setattr(cache.fcntl, "flock", full)
    data = load(source, 32, console=Console())
    assert_whole(data)
    assert data.train_images.flags.writeable
    error = capsys.readouterr().err
    assert error.startswith("warning: decoded images are not kept: ")
    assert error.count("\n") == 1
    assert not [path for path in home.glob("*/*") if path.is_dir()]


def test_files_that_change_while_they_are_read_are_refused(home: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = sorted(Path(source.removeprefix("folder:")).rglob("*.png"))[0]
    real = datasets.decode
    monkeypatch.setattr(datasets, "decode", lambda *arguments: (real(*arguments), file.write_bytes(png(TEST[3])))[0])
    with pytest.raises(ConfigError, match="changed while they were read"):
        load(source, 32)
    assert not [path for path in home.glob("*/*") if path.is_dir()]


def test_only_a_bounded_number_of_encoded_images_waits_in_memory() -> None:
    taken, done, most = 0, 0, 0

    def items() -> Iterator[tuple[int, int, np.ndarray]]:
        nonlocal taken, most
        for number in range(5_000):
            taken += 1
            most = max(most, taken - done)
            yield number, 0, TRAIN[0]

    def advance(count: int) -> None:
        nonlocal done
        done += count

    pixels.decode(Images(5_000, 0, ("a",), items()), 32, lambda position, label, image: None, advance)
    assert done == taken == 5_000
    assert most <= (pixels.TASKS_AHEAD + 1) * pixels.IMAGES_PER_TASK


def test_an_image_that_no_reader_gave_is_an_error_and_no_black_square(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = Images(2, 1, ("a",), [(0, 0, TRAIN[0]), (2, 0, TRAIN[0])])
    found = Found("here", [tmp_path / "file"], lambda console: images)

    def decode(images: Images, put: cache.Put) -> None:
        pixels.decode(images, 32, put, lambda count: None)

    with pytest.raises(ConfigError, match="1 of 3 images are missing in here"):
        cache.cached(found, 32, decode, Console(quiet=True))


def test_decoding_many_images_shows_progress(
    home: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets, "SHOWN_FROM", 40)
    load(source, 32, console=Console())
    first, last = capsys.readouterr().out.splitlines()
    assert first == "decoding: 40 images"
    assert last.startswith("decoding: 40/40 in ")
    load(source, 32, console=Console())
    assert capsys.readouterr().out == ""
    assert json.loads((the_copy(home) / "about.json").read_text())["source"] == source
