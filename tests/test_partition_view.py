"""What `mosaic-jax partition` prints and writes, and the CSV file that a partition is read back from."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mosaic_jax import cli, runner
from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import load_config_file
from mosaic_jax.data.partition import partition
from mosaic_jax.io import redraws
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.heat_map import EMPTY, heat_map
from mosaic_jax.io.label_counts import as_csv, read_csv, summary, table
from mosaic_jax.planning.run_plan import plan_run

ROOT = Path(__file__).parent.parent
NAMES = ["cat", "dog, wet", 'the "owl"']
GOOD = "client,cat,dog,owl\n0,1,2,3\n1,0,0,4\n"


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.lists(st.integers(0, 10**9), min_size=3, max_size=3), min_size=1, max_size=20))
def test_label_counts_are_read_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, counts: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text(as_csv(np.array(counts), NAMES), encoding="utf-8")
    read = read_csv(path, NAMES)
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, counts)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=5, unique=True))
def test_label_counts_of_classes_with_any_names_are_read_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    counts = np.arange(2 * len(names)).reshape(2, -1)
    path.write_text(as_csv(counts, names), encoding="utf-8")
    np.testing.assert_array_equal(read_csv(path, names), counts)
    assert all(line.isprintable() for line in path.read_text(encoding="utf-8").split("\n"))
    assert all(line.isprintable() for line in table(counts, names).split("\n"))


def test_a_table_of_an_earlier_version_with_names_as_they_are_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("client,+,-,=\n0,1,2,3\n")
    assert read_csv(tmp_path / "t.csv", ["+", "-", "="]).tolist() == [[1, 2, 3]]
    assert as_csv(np.array([[1, 2, 3]]), ["+", "-", "="]).startswith("client,'+,'-,'=\n")


def test_a_table_written_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").replace(",", ", ").encode() + b"\r\n")
    np.testing.assert_array_equal(read_csv(tmp_path / "t.csv", ["cat", "dog", "owl"]), [[1, 2, 3], [0, 0, 4]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": must hold the row client,cat,...,owl and a row for each client"),
        ("client,cat,dog,owl\n", ": must hold the row client,cat,...,owl and a row for each client"),
        (GOOD.replace("dog", "fox"), "'fox' where 'dog' should be; it must be client,cat,...,owl, all 3 classes in order"),
        (GOOD.replace(",owl", ""), ": its first row has 3 columns; it must be client,cat,...,owl, all 3 classes"),
        (GOOD.replace("client,cat,dog,owl\n", ""), ": its first row has '0' where 'client' should be"),
        (GOOD.replace("1,2,3", "1,2"), ", line 2: has 3 columns, its first row 4; write a number for each class"),
        (GOOD.replace("1,0,0,4", "2,0,0,4"), ", line 3: begins with '2'; clients are numbered from 0, so write 1"),
        (GOOD.replace("1,2,3", "1,-2,3"), ", line 2: '-2' images of class 'dog'; write a whole number from 0"),
        (GOOD.replace("1,2,3", "1,2.5,3"), ", line 2: '2.5' images of class 'dog'; write a whole number from 0"),
        (GOOD.replace("1,2,3", "1,,3"), ", line 2: '' images of class 'dog'; write a whole number from 0"),
        (GOOD.replace("1,2,3", "1,\u00b2,3"), "images of class 'dog'; write a whole number from 0"),
        (GOOD.replace("1,2,3", "1," + 30 * "9" + ",3"), "images of class 'dog'; write a whole number from 0"),
    ],
)
def test_a_bad_table_is_refused_in_one_line_with_file_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_csv(path, ["cat", "dog", "owl"])
    assert str(caught.value).startswith(f"partition.table={path}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00c", b"client,cat\x00\n0,1\n"])
def test_a_table_that_is_not_there_or_no_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"partition\.table=.*t\.csv: "):
        read_csv(tmp_path / "t.csv", ["cat"])
    with pytest.raises(ConfigError, match=r"partition\.table=.* cannot be read"):
        read_csv(tmp_path, ["cat"])


def test_many_clients_are_printed_in_few_lines_with_totals_of_all() -> None:
    counts = np.ones((10_000, 3), int)
    lines = table(counts, NAMES).splitlines()
    assert len(lines) == 15
    assert [line.split()[0] for line in lines] == ["client", *map(str, range(10)), "...", "9998", "9999", "total"]
    assert lines[-1].split() == ["total", "10000", "10000", "10000", "30000"]


def test_many_classes_become_rows_where_clients_are_few_and_are_named_by_size_where_both_are_many() -> None:
    counts = np.arange(5 * 100).reshape(5, 100)
    lines = table(counts, [f"c{k}" for k in range(100)]).splitlines()
    assert len(lines) == 102
    assert lines[1].split() == ["c0", "0", "100", "200", "300", "400", "1000"]
    many = np.zeros((30, 100), int)
    many[:, 3:10] = np.arange(7)
    lines = table(many, [f"c{k}" for k in range(100)]).splitlines()
    assert len(lines) == 32 and max(map(len, lines)) < 80
    assert lines[1].split() == ["0", "21", "6", "c9", "6,", "c8", "5,", "c7", "4,", "c6", "3,", "c5", "2,", "..."]
    assert lines[-1].split() == ["total", "630", "6"]


def test_the_summary_says_how_many_images_go_to_nobody() -> None:
    counts = np.array([[5, 0], [1, 2], [10, 10]])
    spread = "images of a client 3 to 20, median 5; classes of a client 1 to 2, median 2"
    assert summary(counts, 28) == f"all 28 training images; {spread}"
    assert summary(counts, 30).startswith("28 of 30 training images (2 to nobody); ")


def test_the_darkest_cell_of_the_heat_map_is_the_largest_count_and_zero_is_empty() -> None:
    picture = heat_map(np.array([[0, 5], [100, 0]]), ["a", "b"], "title")
    blue = (picture[..., 2].astype(int) - picture[..., 0]) > 40
    rows, columns = np.nonzero(blue & (picture.sum(axis=2) < 300))
    left = np.nonzero((picture == EMPTY).all(axis=2))
    assert rows.min() > left[0].min()  # the largest count is in the second row,
    assert columns.max() < left[1].max()  # in the first column


@pytest.mark.parametrize("shape", [(1, 1), (10, 10), (3, 300), (10_000, 10), (2000, 200)])
def test_a_heat_map_is_of_a_size_to_look_at(shape: tuple[int, int]) -> None:
    picture = heat_map(np.random.RandomState(0).randint(0, 50, shape), [f"class {k}" for k in range(shape[1])], "a title")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert max(picture.shape) <= 1600


def test_the_partition_command_writes_a_picture_and_a_table_that_deals_the_same_counts(
    tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.png"
    kind = ["partition.kind=dirichlet_unbalanced", "partition.num_clients=5"]
    assert cli.main(["partition", "--out", str(out), *tiny_arguments, *kind]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "digits: 5 clients, dirichlet_unbalanced, alpha 0.1, seed 0"
    assert printed[-3].startswith("all 1438 training images; ")
    assert printed[-2].startswith("dealt in ")
    assert Image.open(out).format == "PNG"
    again = ["partition.kind=table", f"partition.table={tmp_path / 'one.csv'}", "partition.num_clients=5"]
    assert cli.main(["partition", "--out", str(tmp_path / "two.png"), *tiny_arguments, *again]) == 0
    assert capsys.readouterr().out.splitlines()[1:-2] == printed[1:-2]
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    before = (tmp_path / "one.csv").read_bytes()
    assert cli.main(["partition", "--out", str(out), *tiny_arguments, *again]) == 2
    assert "would write over partition.table=" in capsys.readouterr().err
    assert (tmp_path / "one.csv").read_bytes() == before


def test_redraws_that_take_long_are_shown(
    tiny_arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = ["partition.kind=quantity_skew", "partition.num_clients=100", "partition.min_samples=14", "partition.max_draws=7"]
    for shown_after, printed in ((60.0, ""), (-1.0, "dealing: from draw 1 of 7\n")):
        monkeypatch.setattr(redraws, "SHOWN_AFTER", shown_after)
        assert cli.main(["partition", *tiny_arguments, *hopeless]) == 2
        out, err = capsys.readouterr()
        assert out == printed
        assert "in none of partition.max_draws=7 draws" in err and err.count("\n") == 1


def test_feature_skew_is_drawn_as_the_clients_see_it(tmp_path: Path, tiny_arguments: list[str]) -> None:
    for name, noise in (("plain", 0), ("noisy", 1)):
        set_to = ["partition.feature_rotation=360", f"partition.feature_noise={noise}"]
        assert cli.main(["partition", "--out", str(tmp_path / f"{name}.png"), *tiny_arguments, *set_to]) == 0
    plain, noisy = (np.asarray(Image.open(tmp_path / f"{name}.images.png"), int) for name in ("plain", "noisy"))
    by_client = [rows.std() for rows in np.array_split(noisy - plain, 3)]
    assert 0 < by_client[0] < by_client[1] < by_client[2]


def test_the_table_in_the_readme_is_that_of_the_quickstart() -> None:
    config = load_config_file(ROOT / "configs" / "digits.py")
    dealt = partition(load("digits", 32).train_labels, config.partition, config.seed)
    shown = read_csv(ROOT / "configs" / "partitions" / "dirichlet_unbalanced.csv", list("0123456789"))
    np.testing.assert_array_equal(shown, dealt.label_counts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.jpg", "must end in .png"),
        ("nowhere/one.png", "does not exist"),
        ("folder.png", "is a directory; name a file"),
        ("/proc/one.png", "cannot be written ("),  # where not even root can
        (f"{300 * 'a'}.png", "cannot be written (File name too long)"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_first(
    tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["partition", "--out", str(tmp_path / name), *tiny_arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_what_stands_beside_a_picture_and_cannot_be_written_over_is_named_in_one_line(
    tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.csv").mkdir()
    assert cli.main(["partition", "--out", str(tmp_path / "one.png"), *tiny_arguments]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'one.csv'} cannot be written (Is a directory); name another file" in err and err.count("\n") == 1


def test_a_run_and_its_plan_deal_the_clients_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.zeros((3, 10), int)
    counts[0, :5], counts[1, 5:], counts[2] = 8, 9, 4
    (tmp_path / "t.csv").write_text(as_csv(counts, [str(k) for k in range(10)]))
    of_table = {"kind": "table", "table": str(tmp_path / "t.csv"), "feature_noise": 0.1}
    config = tiny(method="fedavg", partition=of_table)
    np.testing.assert_array_equal(runner.prepare(config, Console())[0].partition_counts, counts)
    said = f"3 clients, table {tmp_path / 't.csv'}, noise up to 0.1"
    assert f"{said}: 36 to 41 training images each" in capsys.readouterr().out
    assert plan_run(config).title.endswith(said)
