"""Official files put into the data directory by hand: every format, in small, and what is said of wrong ones."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from copies import png, real_digits
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load, placed
from mosaic_jax.io.datasets.official import OFFICIAL
from mosaic_jax.sources import BENCHMARKS

TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = real_digits(50, 20)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the files of a small copy the official ones: their sizes, checksums and numbers of images."""
    import hashlib

    def of(name: str, folder: Path, num_train: int = 50, num_test: int = 20, num_classes: int = 10) -> None:
        layouts = []
        for layout in OFFICIAL[name]:
            files = []
            for file in layout.files:
                if (folder / file.name).is_file():
                    content = (folder / file.name).read_bytes()
                    digest = (hashlib.sha256 if len(file.checksum) == 64 else hashlib.md5)(content).hexdigest()
                    file = file._replace(size=file.size and len(content), checksum=file.checksum and digest)
                files.append(file)
            layouts.append(layout._replace(files=tuple(files)))
        monkeypatch.setitem(OFFICIAL, name, tuple(layouts))
        counts = {"num_train": num_train, "num_test": num_test, "num_classes": num_classes}
        monkeypatch.setitem(BENCHMARKS, name, BENCHMARKS[name]._replace(**counts))

    return of


def refusal(name: str, directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(name, 32, directory=str(directory))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data.source")
    return message


# --- what is known of the real files ---


def test_sizes_and_sha256_are_those_that_tfds_ships() -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    root = Path(tfds.__file__).parent
    known = {}
    for name in BENCHMARKS.values():
        for file in (root / "url_checksums" / f"{name.tfds}.txt", root / "datasets" / name.tfds / "checksums.tsv"):
            if name.tfds and file.is_file():
                for line in file.read_text().splitlines():
                    address, size, checksum = line.split("\t")[:3] if "\t" in line else line.split()[:3]
                    known[name.tfds, address.rpartition("/")[2]] = int(size), checksum
    ours = {
        (BENCHMARKS[name].tfds, file.name): (file.size, file.checksum)
        for name, layouts in OFFICIAL.items() for layout in layouts for file in layout.files if len(file.checksum) == 64
    }  # fmt: skip
    assert len(ours) == 13
    assert ours == {key: known[key] for key in ours}


def test_sizes_of_plain_files_are_those_of_their_images() -> None:
    sizes = {file.name: file.size for name in OFFICIAL for layout in OFFICIAL[name] for file in layout.files}
    assert sizes["train-images-idx3-ubyte"] == 16 + 60_000 * 28 * 28
    assert sizes["t10k-labels-idx1-ubyte"] == 8 + 10_000
    assert sizes["cifar-10-batches-bin/test_batch.bin"] == 10_000 * (1 + 3072)
    assert sizes["cifar-100-binary/train.bin"] == 50_000 * (2 + 3072)
    for layouts in OFFICIAL.values():
        for file in (file for layout in layouts for file in layout.files):
            assert len(file.checksum) in (0, 32, 64)
            assert file.checksum or not file.name.endswith((".gz", ".zip", ".mat"))


# --- MNIST ---


def write_idx(folder: Path, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("train-images-idx3-ubyte", TRAIN[:, ::2, ::2, 0]), ("train-labels-idx1-ubyte", TRAIN_LABELS.astype(np.uint8)),
        ("t10k-images-idx3-ubyte", TEST[:, ::2, ::2, 0]), ("t10k-labels-idx1-ubyte", TEST_LABELS.astype(np.uint8)),
    ):  # fmt: skip
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "inner"), [("mnist", "mnist"), ("mnist", ""), ("mnist", "MNIST/raw"), ("fmnist", "fmnist")])
def test_mnists_idx_files_are_read_packed_and_plain(
    tmp_path: Path, publish: Callable[..., None], packed: bool, name: str, inner: str
) -> None:
    write_idx(tmp_path / inner, packed)
    publish(name, tmp_path / inner)
    data = load(name, 32, directory=str(tmp_path))
    grey = np.asarray(Image.fromarray(TRAIN[7, ::2, ::2, 0]).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.train_images[7], np.repeat(grey[..., None], 3, -1))
    assert data.train_images.shape == (50, 32, 32, 3)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == (TRAIN_LABELS.tolist(), TEST_LABELS.tolist())
    assert data.class_names[3] == {"mnist": "3", "fmnist": "Dress"}[name]


def test_mnists_files_are_not_taken_for_fashion_mnists_of_the_same_names_and_sizes(
    tmp_path: Path, publish: Callable[..., None]
) -> None:
    write_idx(tmp_path / "fashion", packed=False)
    publish("fmnist", tmp_path / "fashion")
    for file in (tmp_path / "fashion").iterdir():
        (tmp_path / file.name).write_bytes(bytes([*file.read_bytes()[:-1], 99]))
    assert "is not the official file (its md5 is" in refusal("fmnist", tmp_path)


# --- CIFAR ---

NAMES = {"cifar10": [f"class{n}" for n in range(10)], "cifar100": [f"fine{n}" for n in range(100)]}


def write_cifar(folder: Path, name: str, kind: str, packed: bool) -> None:
    """The 50 + 20 images in the batches of CIFAR-10 (ten in each of five) or CIFAR-100, pickled or binary."""
    hundred = name == "cifar100"
    top = {"python": "cifar-100-python" if hundred else "cifar-10-batches-py",
           "binary": "cifar-100-binary" if hundred else "cifar-10-batches-bin"}[kind]  # fmt: skip
    size = 50 if hundred else 10
    parts = {("train" if hundred else f"data_batch_{n + 1}"): (TRAIN[n * size :][:size], TRAIN_LABELS[n * size :][:size])
             for n in range(50 // size)}  # fmt: skip
    parts["test" if hundred else "test_batch"] = TEST, TEST_LABELS
    contents = {}
    for part, (images, labels) in parts.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        if kind == "python":
            batch = {b"data": planes, (b"fine_labels" if hundred else b"labels"): labels.tolist(), b"coarse_labels": [0] * size}
            # As Python 2 and the NumPy of its day wrote them.
            contents[part] = pickle.dumps(batch, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        else:
            leading = [labels * 0, labels] if hundred else [labels]
            contents[f"{part}.bin"] = np.concatenate([np.stack(leading, 1).astype(np.uint8), planes], 1).tobytes()
    if kind == "python":
        key = b"fine_label_names" if hundred else b"label_names"
        contents["meta" if hundred else "batches.meta"] = pickle.dumps({key: [n.encode() for n in NAMES[name]]}, protocol=2)
    else:
        contents["fine_label_names.txt" if hundred else "batches.meta.txt"] = ("\n".join(NAMES[name]) + "\n\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        write_tar(folder / f"{name.replace('cifar', 'cifar-')}-{kind}.tar.gz", {f"{top}/{part}": c for part, c in contents.items()})
    else:
        (folder / top).mkdir()
        for part, content in contents.items():
            (folder / top / part).write_bytes(content)


def write_tar(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_archives_are_read_pickled_and_binary_packed_and_unpacked(
    tmp_path: Path, publish: Callable[..., None], name: str, kind: str, packed: bool
) -> None:
    write_cifar(tmp_path, name, kind, packed)
    publish(name, tmp_path, num_classes=len(NAMES[name]))
    data = load(name, 32, directory=str(tmp_path))
    np.testing.assert_array_equal(data.train_images, TRAIN)
    np.testing.assert_array_equal(data.test_images, TEST)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == (TRAIN_LABELS.tolist(), TEST_LABELS.tolist())
    assert data.class_names == tuple(NAMES[name])


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_that_is_not_the_official_one_is_never_unpickled(
    tmp_path: Path, publish: Callable[..., None], packed: bool
) -> None:
    write_cifar(tmp_path, "cifar10", "python", packed)
    publish("cifar10", tmp_path)
    made = tmp_path / "made"
    attack = b"cos\nmkdir\n(V" + str(made).encode() + b"\ntR."
    with pytest.raises(TypeError):
        pickle.loads(attack)["data"]
    made.rmdir()
    file = tmp_path / ("cifar-10-python.tar.gz" if packed else "cifar-10-batches-py/test_batch")
    size = file.stat().st_size
    if packed:
        write_tar(file, {"cifar-10-batches-py/data_batch_1": attack})
    else:
        file.write_bytes(attack)
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    assert "is not the official file" in refusal("cifar10", tmp_path)
    assert not made.exists()


def test_a_half_downloaded_archive_is_named_with_both_sizes(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    message = refusal("cifar10", tmp_path)
    assert f"{tmp_path / 'cifar-10-python.tar.gz'} has 4 bytes, the official file 170,498,071" in message


def test_a_complete_set_is_read_beside_a_half_downloaded_one(tmp_path: Path, publish: Callable[..., None]) -> None:
    write_cifar(tmp_path, "cifar10", "binary", packed=True)
    publish("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    np.testing.assert_array_equal(load("cifar10", 32, directory=str(tmp_path)).test_images, TEST)


def test_a_binary_batch_with_a_label_that_is_none_is_refused(tmp_path: Path, publish: Callable[..., None]) -> None:
    write_cifar(tmp_path, "cifar10", "binary", packed=False)
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    publish("cifar10", tmp_path)
    assert "test_batch.bin" in refusal("cifar10", tmp_path)


# --- SVHN ---


def test_svhns_mat_files_are_read_and_its_class_10_is_the_digit_0(tmp_path: Path, publish: Callable[..., None]) -> None:
    from scipy.io import savemat

    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        stored = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": stored}, do_compression=True)
    publish("svhn", tmp_path)
    data = load("svhn", 32, directory=str(tmp_path))
    np.testing.assert_array_equal(data.train_images, TRAIN)
    assert data.test_labels.tolist() == TEST_LABELS.tolist()
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    publish("svhn", tmp_path)
    assert "train_32x32.mat is no whole .mat file" in refusal("svhn", tmp_path)


# --- Tiny-ImageNet and FOOD101 ---


def jpeg(image: np.ndarray) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=95)
    return stored.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def write_files(root: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def tiny_imagenet() -> dict[str, bytes]:
    top, files = "tiny-imagenet-200", {}
    for label, number in enumerate(("n3", "n1", "n2")):
        for place in (0, 10, 2):
            files[f"{top}/train/{number}/images/{number}_{place}.JPEG"] = jpeg(TRAIN[label * 10 + place % 8])
        files[f"{top}/train/{number}/{number}_boxes.txt"] = b"n_0.JPEG\t0\t0\t1\t1\n"
    annotations = {"val_0": "n2", "val_1": "n3", "val_10": "n1", "val_2": "n1"}
    for place, name in enumerate(annotations):
        files[f"{top}/val/images/{name}.JPEG"] = jpeg(TEST[place])
    files[f"{top}/val/val_annotations.txt"] = "".join(f"{n}.JPEG\t{c}\t0\t0\t9\t9\n" for n, c in annotations.items()).encode()
    files[f"{top}/words.txt"] = b"n1\tcrane\nn2\tcrane\nn3\tgoldfish, Carassius auratus\nn4\tunused\n"
    files[f"{top}/test/images/test_0.JPEG"] = jpeg(TEST[5])  # it has no labels
    return files


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_is_read_from_its_zip_and_its_folder(tmp_path: Path, publish: Callable[..., None], packed: bool) -> None:
    files = tiny_imagenet()
    write_zip(tmp_path / "tiny-imagenet-200.zip", files) if packed else write_files(tmp_path, files)
    publish("tiny_imagenet", tmp_path, num_train=9, num_test=4, num_classes=3)
    data = load("tiny_imagenet", 32, directory=str(tmp_path))
    assert data.class_names == ("n1", "n2", "goldfish")  # two classes are called crane
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(data.train_images[1], decoded(files["tiny-imagenet-200/train/n1/images/n1_10.JPEG"]))
    assert data.test_labels.tolist() == [1, 2, 0, 0]
    np.testing.assert_array_equal(data.test_images[2], decoded(files["tiny-imagenet-200/val/images/val_10.JPEG"]))
    if not packed:
        (tmp_path / "tiny-imagenet-200" / "train" / "n2" / "images" / "n2_2.JPEG").unlink()
        assert "has 8 training images, not the official 9" in refusal("tiny_imagenet", tmp_path)
        (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_bytes(b"val_0.JPEG\tn2\n")
        assert "is not as published" in refusal("tiny_imagenet", tmp_path)


def food101() -> dict[str, bytes]:
    top, files = "food-101", {}
    for place, name in enumerate(("waffles/12", "apple_pie/7", "apple_pie/100", "waffles/3", "sushi/1", "sushi/2")):
        files[f"{top}/images/{name}.jpg"] = jpeg(np.kron(TRAIN[place], np.ones((2, 3, 1), np.uint8)))
    files[f"{top}/meta/classes.txt"] = b"apple_pie\nsushi\nwaffles\n"
    files[f"{top}/meta/train.txt"] = b"apple_pie/100\nsushi/2\nwaffles/12"
    files[f"{top}/meta/test.txt"] = b"apple_pie/7\nsushi/1\nwaffles/3\n"
    files[f"{top}/license_agreement.txt"] = b"images/none"
    return files


@pytest.mark.parametrize("kind", ["lists last", "lists first", "unpacked"])
def test_food101_is_read_from_its_tar_and_its_folder(tmp_path: Path, publish: Callable[..., None], kind: str) -> None:
    files = food101()
    ordered = dict(reversed(files.items())) if kind == "lists first" else files
    write_files(tmp_path, files) if kind == "unpacked" else write_tar(tmp_path / "food-101.tar.gz", ordered)
    publish("food101", tmp_path, num_train=3, num_test=3, num_classes=3)
    data = load("food101", 32, directory=str(tmp_path))
    assert data.class_names == ("apple_pie", "sushi", "waffles")
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 1, 2]
    for images, names in ((data.train_images, ("apple_pie/100", "sushi/2", "waffles/12")), (data.test_images, ("apple_pie/7",))):
        for image, name in zip(images, names, strict=False):
            stored = Image.open(io.BytesIO(files[f"food-101/images/{name}.jpg"]))
            np.testing.assert_array_equal(image, stored.resize((32, 32), Image.Resampling.BILINEAR))


def test_images_that_an_archive_lacks_and_damaged_ones_are_named(tmp_path: Path, publish: Callable[..., None]) -> None:
    files = food101()
    del files["food-101/images/sushi/2.jpg"]
    write_tar(tmp_path / "food-101.tar.gz", files)
    publish("food101", tmp_path, num_train=3, num_test=3, num_classes=3)
    assert "1 of 6 images are missing in food101:" in refusal("food101", tmp_path)
    files["food-101/images/sushi/2.jpg"] = png(TRAIN[0])[:100]
    write_tar(tmp_path / "food-101.tar.gz", files)
    publish("food101", tmp_path, num_train=3, num_test=3, num_classes=3)
    assert "image food-101/images/sushi/2.jpg of" in refusal("food101", tmp_path)
    whole = (tmp_path / "food-101.tar.gz").read_bytes()
    (tmp_path / "food-101.tar.gz").write_bytes(whole[: len(whole) // 2])
    publish("food101", tmp_path, num_train=3, num_test=3, num_classes=3)
    assert "food-101.tar.gz" in refusal("food101", tmp_path)


def test_checking_large_files_shows_progress(
    tmp_path: Path, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar(tmp_path, "cifar10", "python", packed=False)
    publish("cifar10", tmp_path)
    monkeypatch.setattr(placed, "SHOWN_FROM", 1)
    monkeypatch.setattr(placed, "MIB", 1000)
    load("cifar10", 32, directory=str(tmp_path), console=Console())
    first, last = capsys.readouterr().out.splitlines()
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) // 1000
    assert first == f"checking: {total} MiB"
    assert last.startswith(f"checking: {total}/{total} in ")


def test_the_data_directory_is_the_one_of_tfds_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert placed.data_directory("~/x") == Path.home() / "x"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert placed.data_directory("") == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert placed.data_directory("") == Path.home() / "tensorflow_datasets"
