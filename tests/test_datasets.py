"""Data sources: what is read from disk, and what is said about what cannot be read."""

import io
import os
import sys

import numpy as np
import pytest
from copies import COLOURS, refusal, write_classes
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets import load
from mosaic_jax.io.datasets.pixels import VIEWER, pixels


def test_digits_are_real_images_with_a_fixed_stratified_fifth_for_testing():
    data = load("digits", 32)
    assert data.train_images.shape == (1438, 32, 32, 3) and data.test_images.shape == (359, 32, 32, 3)
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == data.test_labels.dtype == np.int32
    assert data.train_images.min() == 0 and data.train_images.max() == 255
    assert (data.train_images == data.train_images[..., :1]).all()
    share = np.bincount(data.test_labels) / (np.bincount(data.test_labels) + np.bincount(data.train_labels))
    assert np.abs(share - 0.2).max() < 0.01
    assert data.class_names == tuple("0123456789")
    again = load("digits", 32)
    assert all(np.array_equal(a, b) for a, b in zip(data[:4], again[:4], strict=True))
    # Nearest neighbour on raw pixels is above 95% on this set: labels belong to their images.
    flat = [images[..., 0].reshape(len(images), -1).astype(np.float32) for images in (data.train_images, data.test_images[:100])]
    nearest = ((flat[1][:, None] - flat[0][None]) ** 2).sum(-1).argmin(1)
    assert (data.train_labels[nearest] == data.test_labels[:100]).mean() > 0.95


def test_folder_reads_classes_and_files_in_sorted_order_with_unicode_names(tmp_path):
    colours = {"b": (10, 20, 30), "a": (40, 50, 60), "éclair ☕": (70, 80, 90)}
    for split in ("train", "test"):
        for name, colour in colours.items():
            (tmp_path / split / name).mkdir(parents=True)
            for file in ("2.png", "10.png", "ß.png"):
                Image.new("RGB", (32, 32), (*colour[:2], len(file))).save(tmp_path / split / name / file)
        (tmp_path / split / "a" / ".hidden.png").write_bytes(b"not an image")
        (tmp_path / split / "a" / "notes.txt").write_text("not an image")
        (tmp_path / split / ".cache").mkdir()
    data = load(f"folder:{tmp_path}", 32)
    assert data.class_names == ("a", "b", "éclair ☕")
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.train_images[:, 0, 0, 0].tolist() == [40] * 3 + [10] * 3 + [70] * 3
    assert data.train_images[:3, 0, 0, 2].tolist() == [6, 5, 5]


def test_a_class_missing_in_test_is_fine_and_one_missing_in_train_is_not(tmp_path):
    data = load(write_classes(tmp_path / "fine", test=("dog",)), 32)
    assert data.class_names == ("cat", "dog") and data.test_labels.tolist() == [1, 1]
    message = refusal(write_classes(tmp_path / "wrong", test=("cat", "emu")))
    assert "emu" in message and "remove it" in message


def test_missing_and_empty_folders_are_named(tmp_path):
    assert f"{tmp_path / 'nothing' / 'train'} does not exist" in refusal(f"folder:{tmp_path / 'nothing'}")
    source = write_classes(tmp_path / "a", test=())
    assert f"{tmp_path / 'a' / 'test'} does not exist" in refusal(source)
    (tmp_path / "a" / "test").mkdir()
    assert f"{tmp_path / 'a' / 'test'} is empty" in refusal(source)
    source = write_classes(tmp_path / "b")
    (tmp_path / "b" / "train" / "bird").mkdir()
    assert f"{tmp_path / 'b' / 'train' / 'bird'} has no .jpg" in refusal(source)


@pytest.mark.parametrize("damage", ["empty", "truncated.png", "truncated.jpg", "text", "header", "folder"])
def test_an_unreadable_image_is_named(tmp_path, damage):
    source = write_classes(tmp_path)
    file = tmp_path / "train" / "dog" / ("5.jpg" if damage.endswith("jpg") else "5.png")
    stored = io.BytesIO()
    Image.fromarray(COLOURS[0]).save(stored, "JPEG" if damage.endswith("jpg") else "PNG")
    content = stored.getvalue()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes({"empty": b"", "text": b"hello", "header": content[:20]}.get(damage, content[: len(content) // 2]))
    message = refusal(source)
    assert str(file) in message and "replace or remove it" in message
    assert ("it is empty" in message) == (damage == "empty")


def test_the_first_unreadable_image_in_order_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("mosaic_jax.io.datasets.pixels.IMAGES_PER_TASK", 1)
    source = write_classes(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name / "1.png").write_bytes(b"")
    assert str(tmp_path / "train" / "cat" / "1.png") in refusal(source)


@pytest.mark.parametrize("kind", ["pipe", "dangling", "loop"])
def test_what_would_be_waited_for_or_read_without_end_is_refused(tmp_path, kind):
    source = write_classes(tmp_path)
    place = tmp_path / "train" / "cat" / ("again" if kind == "loop" else "5.png")
    os.mkfifo(place) if kind == "pipe" else place.symlink_to({"loop": tmp_path / "train" / "cat"}.get(kind, tmp_path / "gone"))
    message = refusal(source)
    assert str(place) in message and "remove it" in message
    if kind == "pipe":  # wherever its path comes from
        with pytest.raises(ConfigError, match=r"5\.png cannot be read \(ValueError: it is no file\)"):
            pixels(place, 32, VIEWER)


def test_folders_nested_deeper_than_pythons_calls_are_read(tmp_path):
    source = write_classes(tmp_path)
    nested = [tmp_path / "train" / "cat"]
    for _ in range(sys.getrecursionlimit() + 20):
        nested.append(nested[-1] / "d")
        nested[-1].mkdir()
    Image.fromarray(COLOURS[0]).save(nested[-1] / "0.png")
    try:
        np.testing.assert_array_equal(load(source, 32).train_images[2], COLOURS[0])
    finally:  # pytest's own removal is recursive
        (nested[-1] / "0.png").unlink()
        for folder in reversed(nested[1:]):
            folder.rmdir()


@pytest.mark.parametrize(
    ("source", "nearest"),
    [("digit", "digits"), ("digits:", "digits"), ("fodler:/x", "folder:PATH"), ("npz:", "npz:PATH"), ("tdfs:cifar10", "tfds:NAME")],
)
def test_an_unknown_source_is_answered_with_the_nearest_one(source, nearest):
    assert refusal(source).endswith(f"did you mean {nearest}?")
