"""The official files of the benchmarks: their names, sizes and checksums, and what reads them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mosaic_jax.io.datasets import archives, formats
from mosaic_jax.io.datasets.found import Images


class File(NamedTuple):
    """A file as its publisher has it; size 0 and an empty checksum where they are not known for certain.

    checksum: SHA-256 or MD5 in hexadecimal digits, told apart by their number.
    """

    name: str
    size: int = 0
    checksum: str = ""


class Layout(NamedTuple):
    """One of the ways in which a benchmark's files may lie in a folder.

    read: gets the paths of the files in this order. folder: an unpacked folder whose other files are read as well, after them.
    """

    files: tuple[File, ...]
    read: Callable[[Sequence[Path]], Images]
    folder: str = ""


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IDX_SIZES = (47_040_016, 60_008, 7_840_016, 10_008)


def _idx(names: tuple[str, ...], sizes: Sequence[int], packed: Sequence[str], plain: Sequence[str]) -> tuple[Layout, ...]:
    gz = tuple(File(f"{name}.gz", size, checksum) for name, size, checksum in zip(_IDX, sizes, packed, strict=True))
    return (
        Layout(gz, partial(formats.idx, names)),
        Layout(tuple(map(File, _IDX, _IDX_SIZES, plain)), partial(formats.idx, names)),
    )  # fmt: skip


_CIFAR10_PYTHON = partial(
    formats.cifar_python, "labels", "label_names", tuple(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"
)
_CIFAR10_BINARY = partial(
    formats.cifar_binary, 1, "batches.meta.txt", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"
)
_CIFAR100_PYTHON = partial(formats.cifar_python, "fine_labels", "fine_label_names", ("train",), "test", "meta")
_CIFAR100_BINARY = partial(formats.cifar_binary, 2, "fine_label_names.txt", ("train.bin",), "test.bin")

# SHA-256 and sizes are those that TFDS ships (a test compares them), MD5 are torchvision's, and those of unpacked idx files agree
# in several independent projects. No checksum is known for unpacked binary batches, which sizes and structure must vouch for, and
# none for the many files of the unpacked folders, whose numbers must be right.
OFFICIAL: dict[str, tuple[Layout, ...]] = {
    "mnist": _idx(
        formats.DIGITS, (9_912_422, 28_881, 1_648_877, 4_542),
        ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
         "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    ),
    "fmnist": _idx(
        formats.CLOTHES, (26_421_880, 29_515, 4_422_102, 5_148),
        ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
         "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
         "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
         "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
         "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    "svhn": (
        Layout((
            File("train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
            File("test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        ), formats.svhn),
    ),
    "cifar10": (
        Layout((File("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),), _CIFAR10_PYTHON),
        Layout((
            File("cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        ), _CIFAR10_BINARY),
        Layout((
            File("cifar-10-batches-py/data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
            File("cifar-10-batches-py/data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            File("cifar-10-batches-py/data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            File("cifar-10-batches-py/data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
            File("cifar-10-batches-py/data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            File("cifar-10-batches-py/test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
            File("cifar-10-batches-py/batches.meta", 158, "5ff9c542aee3614f3951f8cda6e48888"),
        ), _CIFAR10_PYTHON),
        Layout((
            *(File(f"cifar-10-batches-bin/data_batch_{number}.bin", 30_730_000) for number in range(1, 6)),
            File("cifar-10-batches-bin/test_batch.bin", 30_730_000),
            File("cifar-10-batches-bin/batches.meta.txt"),
        ), _CIFAR10_BINARY),
    ),
    "cifar100": (
        Layout((File("cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),), _CIFAR100_PYTHON),
        Layout((
            File("cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ), _CIFAR100_BINARY),
        Layout((
            File("cifar-100-python/train", 0, "16019d7e3df5f24257cddd939b257f8d"),
            File("cifar-100-python/test", 0, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            File("cifar-100-python/meta", 0, "7973b15100ade9c7d40fb424638fde48"),
        ), _CIFAR100_PYTHON),
        Layout((
            File("cifar-100-binary/train.bin", 153_700_000), File("cifar-100-binary/test.bin", 30_740_000),
            File("cifar-100-binary/fine_label_names.txt"),
        ), _CIFAR100_BINARY),
    ),
    "tiny_imagenet": (
        Layout((File("tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),), archives.tiny_imagenet),
        Layout(
            (File("tiny-imagenet-200/words.txt"), File("tiny-imagenet-200/val/val_annotations.txt")), archives.tiny_imagenet,
            folder="tiny-imagenet-200",
        ),
    ),
    "food101": (
        Layout((
            File("food-101.tar.gz", 4_996_278_331, "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4"),
        ), archives.food101),
        Layout(
            (File("food-101/meta/classes.txt"), File("food-101/meta/train.txt"), File("food-101/meta/test.txt")), archives.food101,
            folder="food-101",
        ),
    ),
}  # fmt: skip

SITES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fmnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "tiny_imagenet": "http://cs231n.stanford.edu/",
    "food101": "http://data.vision.ee.ethz.ch/cvl/",
}
# Folders of the data directory, besides the one with the short name and itself, in which torchvision keeps these files.
TORCHVISION_FOLDERS = {"mnist": "MNIST/raw", "fmnist": "FashionMNIST/raw"}
