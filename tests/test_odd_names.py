"""Class folders may be called anything that the file system takes: a run of them is like any other, whatever the locale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, train
from PIL import Image

from mosaic_jax import cli
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.label_counts import read_csv
from mosaic_jax.plain_text import plain

# GBK, as a zip from a Chinese Windows has it, and Latin-1; what steers a terminal; what turns the direction; a formula; HTML.
FOLDERS = [
    b"\xb9\xb7", b"caf\xe9", b"\x1b[31mred", "\u202egnp".encode(), b"=1+1", b" pad ", b"two\nlines", "<b>é".encode(), "猫".encode(),
]  # fmt: skip
NAMES = [folder.decode("utf-8", "surrogateescape") for folder in FOLDERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images and two test images in each of FOLDERS."""
    root, rng = tmp_path_factory.mktemp("odd"), np.random.RandomState(0)
    for split, count in (("train", 12), ("test", 2)):
        for name in FOLDERS:
            place = Path(os.fsdecode(os.fsencode(root / split) + b"/" + name))
            try:
                place.mkdir(parents=True)
            except OSError:
                pytest.skip("this file system takes UTF-8 names only")
            for number in range(count):
                Image.fromarray(rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(place / f"{number}.png")
    return root


def test_a_run_of_classes_with_odd_names_ends_with_its_table_and_is_read_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(method="fedavg", data={"source": f"folder:{folder}"}, warmup={"num_rounds": 1}, finetune={"num_rounds": 1})
    run_dir = tmp_path / "run"
    for said in ("report: ", "is finished already"):
        assert train(config, run_dir, console=Console(verbose=True)) == 0
        out, err = capsys.readouterr()
        assert said in out and err == ""
        assert all(line.isprintable() for line in out.split("\n"))
        assert all(plain(name) in out for name in NAMES)
    assert sorted(json.loads((run_dir / "results.json").read_text())["class_names"]) == sorted(NAMES)
    assert cli.main(["report", str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "caf\\xe9" in page and "&lt;b&gt;é" in page
    assert not {"\x1b", "\u202e"} & set(page) and "<b>" not in page


def test_the_table_of_classes_with_odd_names_deals_the_same_again(
    folder: Path, tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"data.source=folder:{folder}"
    assert cli.main(["partition", "--out", str(tmp_path / "a.png"), *tiny_arguments, source]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    table = ["partition.kind=table", f"partition.table={tmp_path / 'a.csv'}"]
    assert cli.main(["partition", "--out", str(tmp_path / "b.png"), *tiny_arguments, source, *table]) == 0
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    counts = read_csv(tmp_path / "a.csv", load(f"folder:{folder}", 32).class_names)
    assert counts.sum(axis=0).tolist() == [12] * len(NAMES)


def test_classes_have_the_same_names_and_order_in_every_locale(folder: Path) -> None:
    script = (
        "import sys; from mosaic_jax.io.datasets import load; from mosaic_jax.plain_text import plain\n"
        "data = load(f'folder:{sys.argv[1]}', 8)\n"
        "print(ascii(data.class_names), data.train_labels.tolist(), int(data.train_images[::7].astype(int).std() * 1e6))"
    )
    locales = ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    found = []
    for locale in locales:
        call = [sys.executable, "-c", script, str(folder)]
        found.append(subprocess.run(call, env={**os.environ, **locale}, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1]
    assert ascii(tuple(sorted(NAMES))) in found[0]
