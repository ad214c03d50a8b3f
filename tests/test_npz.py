"""Images and labels of .npz files, and what is said about those that cannot be read."""

import os
import re
import struct
import zipfile

import numpy as np
import pytest
from copies import COLOURS, refusal

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load


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


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            np.array([0, 3, 7, 769] * 2),
            "y_train of .* has 4 labels, 0, 3, 7, 769, and 769 at position 3: labels are 0 to K-1, here 0 to 3",
        ),
        (np.arange(8) + 1, "has 8 labels, 1, 2, 3, 4, 5, 6, 7, 8, and 8 at position 7: labels are 0 to K-1, here 0 to 7"),
        (
            np.array([0, 1, 2, 4294967295] * 2, np.uint32),
            r"4294967295 at position 3 \(what -1 becomes without a sign\): labels are 0 to K-1",
        ),
        (np.array([0, 1, 2, 2**64 - 1] * 2, np.uint64), r"18446744073709551615 at position 3 \(what -1 becomes without a sign\)"),
        (np.array([0, 1, 2, 2**40] * 2), "1099511627776 at position 3: labels are 0 to K-1"),
    ],
)
def test_labels_that_leave_numbers_out_are_refused_before_decoding_or_made_compact_with_their_numbers_as_names(
    tmp_path, monkeypatch, capsys, labels, words
):
    source = write_npz(tmp_path / "a.npz", y_train=labels, y_test=labels[:4])
    with monkeypatch.context() as patched:
        patched.setattr("mosaic_jax.io.datasets.decode", lambda *_: pytest.fail("decoded"))
        with pytest.raises(ConfigError, match=words) as caught:
            load(source, 32)
    assert "data.labels=compact" in str(caught.value)
    data = load(source, 32, labels="compact")
    assert data.class_names == tuple(str(label) for label in sorted(set(labels.tolist())))
    assert [int(data.class_names[label]) for label in data.train_labels] == labels.tolist()
    assert [int(data.class_names[label]) for label in data.test_labels] == labels[:4].tolist()
    with pytest.raises(ConfigError, match=words):  # though a decoded copy is there
        load(source, 32)


def test_labels_without_gaps_are_the_same_as_given_and_compact(tmp_path):
    source = write_npz(tmp_path / "a.npz")
    for one, other in zip(load(source, 32), load(source, 32, labels="compact"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_largest_label_of_the_test_set_costs_no_memory(tmp_path):
    for labels in ("as_given", "compact"):
        with pytest.raises(ConfigError, match=r"test images of class '1099511627776' .* of it \(y_test at position 3"):
            load(write_npz(tmp_path / "a.npz", y_test=np.array([0, 1, 2, 2**40])), 32, labels=labels)


@pytest.mark.parametrize("has_test", [True, False])
def test_medmnist_is_read_as_it_comes_with_validation_images_for_testing_only_where_there_are_no_others(tmp_path, capsys, has_test):
    labels = (np.arange(8) % 3)[:, None].astype(np.uint8)
    arrays = {"train_images": COLOURS, "train_labels": labels, "val_images": COLOURS[4:], "val_labels": labels[4:]}
    arrays |= {"test_images": COLOURS[:4], "test_labels": labels[:4]} if has_test else {}
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    data = load(f"npz:{tmp_path / 'bloodmnist.npz'}", 32, console=Console())
    np.testing.assert_array_equal(data.train_images, COLOURS)
    np.testing.assert_array_equal(data.test_images, COLOURS[:4] if has_test else COLOURS[4:])
    assert data.train_labels.tolist() == labels[:, 0].tolist()
    said = "val_images, val_labels of .* are left out" if has_test else "val_images of .* are the test images, for it has no others"
    assert re.search(said, capsys.readouterr().err)


def test_one_hot_labels_and_a_client_file_of_pflib_are_refused_naming_the_arrays_found_and_wanted(tmp_path):
    one_hot = write_npz(tmp_path / "a.npz", y_train=np.eye(3, dtype=int)[np.arange(8) % 3])
    message = refusal(one_hot)
    assert "y_train of" in message and "has shape (8, 3): it must be (8,)" in message and "save y.argmax(1)" in message
    np.savez(tmp_path / "0.npz", data=np.array({"x": COLOURS, "y": np.arange(8)}, object))  # what it pickles is not looked at
    message = refusal(f"npz:{tmp_path / '0.npz'}")
    assert "it holds data and needs x_train, y_train, x_test, y_test or train_images, train_labels, test_images, " in message


def damaged_npz(path, kind):
    """An .npz file that is damaged or written as NumPy writes none."""
    write_npz(path)
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    suffix = ".npy" if kind != "raw" else ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(name.removesuffix(".npy") + suffix, b"pixels" if kind == "raw" else content)
    content = bytearray(path.read_bytes())
    entries = [found.start() for found in re.finditer(rb"PK\x01\x02", content)]
    if kind == "stream":
        content[200:240] = b"\xff" * 40
    for entry in entries:  # flags are the bytes 8 and 9 of an entry of the directory, the method 10 and 11
        if kind == "encrypted":
            content[entry + 8] |= 1
            (local,) = struct.unpack_from("<I", content, entry + 42)
            content[local + 6] |= 1
        if kind == "method":
            content[entry + 10] = 97
    path.write_bytes(content)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("kind", "word"),
    [("stream", "error: "), ("encrypted", "encrypted"), ("method", "compression"), ("raw", "x_train is no .npy array")],
)
def test_an_npz_that_is_damaged_encrypted_or_holds_no_arrays_is_refused_in_a_line(tmp_path, kind, word):
    message = refusal(damaged_npz(tmp_path / "a.npz", kind))
    assert f"{tmp_path / 'a.npz'} cannot be read as .npz" in message and word in message


def test_files_that_are_no_npz_are_refused(tmp_path):
    assert "No such file" in refusal(f"npz:{tmp_path / 'none.npz'}")
    os.mkfifo(tmp_path / "pipe.npz")
    assert "it is no file" in refusal(f"npz:{tmp_path / 'pipe.npz'}") and "it is no file" in refusal(f"npz:{tmp_path}")
    for name, content in (("text", b"hello"), ("empty", b""), ("damaged", b"PK\x03\x04 and no more")):
        (tmp_path / name).write_bytes(content)
        assert f"{tmp_path / name} cannot be read as .npz" in refusal(f"npz:{tmp_path / name}")
    np.save(tmp_path / "single.npy", COLOURS)
    assert "cannot be read as .npz" in refusal(f"npz:{tmp_path / 'single.npy'}")
