"""Data sources: what is read from disk, and what is said about what cannot be read."""

import io

import numpy as np
import pytest
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets import load

RANDOM = np.random.RandomState(0)
COLOURS = RANDOM.randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)


def write_folder(root, *, train=("cat", "dog"), test=("cat", "dog"), size=32):
    for split, classes in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.fromarray(RANDOM.randint(0, 256, (size, size, 3)).astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    return f"folder:{root}"


def refusal(source):
    with pytest.raises(ConfigError) as caught:
        load(source, 32)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data.source")
    return message


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


def test_every_pillow_mode_becomes_rgb(tmp_path):
    source = write_folder(tmp_path, train=("x",), test=("x",))
    for old in (tmp_path / "train" / "x").iterdir():
        old.unlink()
    colour, grey = COLOURS[0], COLOURS[1][..., 0]
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(colour).quantize(16)
    images = {
        "a_rgb.png": Image.fromarray(colour),
        "b_grey.png": Image.fromarray(grey),
        "c_rgba.png": Image.fromarray(np.concatenate([colour, grey[..., None]], -1)),
        "d_palette.png": palette,
        "e_16bit.png": Image.fromarray(deep),
        "f_bits.png": Image.fromarray(grey > 127),
        "g_grey_alpha.png": Image.fromarray(np.stack([grey, grey], -1)),
        "h_cmyk.jpg": Image.new("CMYK", (32, 32), (0, 0, 0, 0)),
    }
    for name, image in images.items():
        image.save(tmp_path / "train" / "x" / name)
    palette.save(tmp_path / "train" / "x" / "i_palette_alpha.PNG", transparency=bytes(range(16)))
    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "train" / "x" / "j.JPEG", quality=95)
    got = load(source, 32).train_images
    repeated = np.repeat(grey[..., None], 3, -1)
    expected = [colour, repeated, colour, np.asarray(palette.convert("RGB")), repeated, np.where(repeated > 127, 255, 0), repeated]
    for result, wanted in zip(got, expected, strict=False):
        np.testing.assert_array_equal(result, wanted)
    assert (got[7] > 250).all()
    np.testing.assert_array_equal(got[8], expected[3])
    assert np.abs(got[9].astype(int) - [200, 100, 50]).max() < 5


def test_other_sizes_are_stretched_to_the_square(tmp_path):
    source = write_folder(tmp_path, size=48)
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, -1)
    Image.fromarray(np.repeat(ramp, 20, 0)).save(tmp_path / "train" / "cat" / "0.png")
    data = load(source, 32)
    assert data.train_images.shape == (4, 32, 32, 3)
    np.testing.assert_allclose(data.train_images[0, :, 1:-1, 0], np.tile(np.linspace(0, 255, 32)[1:-1], (32, 1)), atol=6)


def test_a_class_missing_in_test_is_fine_and_one_missing_in_train_is_not(tmp_path):
    data = load(write_folder(tmp_path / "fine", test=("dog",)), 32)
    assert data.class_names == ("cat", "dog") and data.test_labels.tolist() == [1, 1]
    message = refusal(write_folder(tmp_path / "wrong", test=("cat", "emu")))
    assert "emu" in message and "remove it" in message


def test_missing_and_empty_folders_are_named(tmp_path):
    assert f"{tmp_path / 'nothing' / 'train'} does not exist" in refusal(f"folder:{tmp_path / 'nothing'}")
    source = write_folder(tmp_path / "a", test=())
    assert f"{tmp_path / 'a' / 'test'} does not exist" in refusal(source)
    (tmp_path / "a" / "test").mkdir()
    assert f"{tmp_path / 'a' / 'test'} is empty" in refusal(source)
    source = write_folder(tmp_path / "b")
    (tmp_path / "b" / "train" / "bird").mkdir()
    assert f"{tmp_path / 'b' / 'train' / 'bird'} has no .jpg" in refusal(source)


@pytest.mark.parametrize("damage", ["empty", "truncated.png", "truncated.jpg", "text", "header", "folder"])
def test_an_unreadable_image_is_named(tmp_path, damage):
    source = write_folder(tmp_path)
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
    source = write_folder(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name / "1.png").write_bytes(b"")
    assert str(tmp_path / "train" / "cat" / "1.png") in refusal(source)


def write_npz(path, **changes):
    arrays = {"x_train": COLOURS, "y_train": np.arange(8) % 3, "x_test": COLOURS[:4], "y_test": np.arange(4) % 3} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return f"npz:{path}"


def test_npz_takes_colour_and_grey_images_of_any_size_and_labels_as_a_column(tmp_path):
    data = load(write_npz(tmp_path / "a.npz", y_train=(np.arange(8) % 3)[:, None].astype(np.uint8)), 32)
    np.testing.assert_array_equal(data.train_images, COLOURS)
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and data.class_names == ("0", "1", "2")
    grey = COLOURS[..., 0]
    for stored in (grey, grey[..., None]):
        images = load(write_npz(tmp_path / "b.npz", x_train=stored), 32).train_images
        np.testing.assert_array_equal(images, np.stack([grey] * 3, -1))
    assert load(write_npz(tmp_path / "c.npz", x_train=grey[:, :28, :28]), 32).train_images.shape == (8, 32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None, "x_test": None}, "has no x_test, y_test"),
        ({"x_train": COLOURS.astype(np.float32)}, "x_train of .* has type float32: it must be uint8"),
        ({"x_train": COLOURS.transpose(0, 3, 1, 2)}, r"x_train of .* has shape \(8, 3, 32, 32\)"),
        ({"x_test": COLOURS[:0], "y_test": np.arange(0)}, r"x_test of .* has shape \(0, 32, 32, 3\)"),
        ({"y_train": np.arange(7)}, r"y_train of .* has shape \(7,\): it must be \(8,\)"),
        ({"y_train": np.arange(8) / 2}, "y_train of .* must hold integers from 0"),
        ({"y_test": np.array([0, 1, 2, -1])}, "y_test of .* must hold integers from 0"),
        ({"y_test": np.array([0, 1, 2, 5])}, "test images of class '5' and no training images"),
        ({"x_train": np.array([None])}, "cannot be read as .npz"),
    ],
)
def test_a_wrong_npz_is_refused_naming_the_array(tmp_path, changes, words):
    source = write_npz(tmp_path / "wrong.npz", **changes)
    refusal(source)
    with pytest.raises(ConfigError, match=words):
        load(source, 32)


def test_files_that_are_no_npz_are_refused(tmp_path):
    assert "No such file" in refusal(f"npz:{tmp_path / 'none.npz'}")
    for name, content in (("text", b"hello"), ("empty", b""), ("damaged", b"PK\x03\x04 and no more")):
        (tmp_path / name).write_bytes(content)
        assert f"{tmp_path / name} cannot be read as .npz" in refusal(f"npz:{tmp_path / name}")
    np.save(tmp_path / "single.npy", COLOURS)
    assert "cannot be read as .npz" in refusal(f"npz:{tmp_path / 'single.npy'}")


@pytest.mark.parametrize(
    ("source", "nearest"),
    [("digit", "digits"), ("digits:", "digits"), ("fodler:/x", "folder:PATH"), ("npz:", "npz:PATH"), ("tdfs:cifar10", "tfds:NAME")],
)
def test_an_unknown_source_is_answered_with_the_nearest_one(source, nearest):
    assert refusal(source).endswith(f"did you mean {nearest}?")
