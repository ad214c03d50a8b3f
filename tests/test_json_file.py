"""JSON files of a run that hold anything else than what was written are refused in one line, or said, and never harm."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import results, write_run

from mosaic_jax import cli
from mosaic_jax.config import ConfigError
from mosaic_jax.io import comparison_directory, computation, data_digests, results_file, run_record, seeds_directory
from mosaic_jax.io.metrics import FILE
from mosaic_jax.io.whole_files import write_json
from mosaic_jax.json_file import COUNT, NUMBER, SHARE, TEXT, or_null, parse_json, read_json

ODD = [None, -1, 10**400, "<script>alert(1)</script>", {"a\ud800": 1}]
RAW = [b"", b"[", b"[" * 100_000, b'{"a":' * 5_000, b"\xff\xfe", b"null", b"{}", b"9" * 5_000]
MEASURE = {"values": [0.5, None], "mean": 0.5, "std": 0.1}
MODELS = {"global": {"validation": MEASURE, "test": MEASURE}}
SEEDS = {"method": "fedavg", "seeds": [0, 1], "models": MODELS}
ROW = {
    "row": "run", "control": "", "method": "fedavg", "seeds": [0], "failed": {"1": "out of memory"}, "to_come": [],
    "models": MODELS, "final": "global", "rounds": 3, "bytes_up": 1.0, "bytes_down": 2.0, "seconds": 3.0, "compile_seconds": 1.0,
}  # fmt: skip


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The way to everything in a value, of a list to its first item."""
    yield at
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


def changed(value: Any, at: tuple, odd: Any, name: Any = None) -> bytes:
    """The JSON of a value with something odd at a place, instead of what is there or, under another name, of that name too."""
    box = copy.deepcopy([value])
    container: Any = box
    *way, last = 0, *at
    for key in way:
        container = container[key]
    if name is None:
        container[last] = odd
    else:
        container[name] = container.pop(last)
    return json.dumps(box[0]).encode()


def variants(value: Any) -> Iterator[bytes]:
    """Files with something odd at every place, and with every name turned into another."""
    for at in places(value):
        yield from (changed(value, at, odd) for odd in ODD)
        if at and isinstance(at[-1], str):
            yield changed(value, at, None, "<script>x</script>")
    yield from RAW


def results_of_one_model() -> dict[str, Any]:
    whole = results()
    return whole | {"models": {"student": whole["models"]["student"]}}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with few records, its like in a directory of seeds, and a comparison."""
    root = tmp_path_factory.mktemp("json")
    for run_dir in (root / "run", root / "seeds" / "seed0"):
        write_run(run_dir)
        lines = (run_dir / FILE).read_text().splitlines(keepends=True)
        (run_dir / FILE).write_text("".join(line for place, line in enumerate(lines) if place % 20 == 0 or "teacher" in line))
    (root / "comparison").mkdir()
    return root


def check(directory: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report` makes a page without a script, or says in one line what is wrong with the file."""
    status = cli.main(["report", str(directory)])
    out, err = capsys.readouterr()
    if status == 0:
        assert (out.count("\n"), err) == (1, "")
        assert "<script" not in (directory / "report.html").read_text()
    else:
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert str(directory) in err
        assert file.name in err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run/results.json", results_of_one_model()),
        ("seeds/seeds.json", SEEDS),
        ("comparison/comparison.json", {"seeds": [0, 1], "rows": [ROW]}),
        ("run/config.json", {"seed": 0, "data": {"source": "digits", "mean": [0.5, 0.5, 0.5]}, "evaluation": {"batch_size": 8}}),
    ],
)  # fmt: skip
def test_a_report_of_files_that_hold_anything_ends_with_a_page_or_one_line(
    directories: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = directories / name
    before = file.read_bytes() if file.exists() else b""
    for content in variants(value):
        file.write_bytes(content)
        check(file.parent, file, capsys)
    file.unlink()
    file.mkdir()
    check(file.parent, file, capsys)
    file.rmdir()
    os.mkfifo(file)  # that of results.json would be waited for without end
    check(file.parent, file, capsys)
    file.unlink()
    file.write_bytes(before)


@pytest.mark.parametrize("name", ["loss", "teacher_histogram/client0/class0", "teacher_histogram/client99999999/class99999999"])
def test_a_report_of_records_that_hold_anything_ends_with_a_page_that_says_what_it_leaves_out(
    directories: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = directories / "run" / FILE
    whole = file.read_bytes()
    record = {"stage": "distill", "step": 0, "round": None, "name": name, "value": 0.5, "seconds": 1.0}
    for content in variants(record):
        file.write_bytes(whole + content + b"\n")
        check(file.parent, file, capsys)
    file.write_bytes(whole + b'{"stage": "distill", "step": "one", "name": "loss", "value": 1}\n' + whole)
    check(file.parent, file, capsys)
    assert "metrics.jsonl: damaged lines, left out: 1" in (file.parent / "report.html").read_text()
    file.write_bytes(whole)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": [0, 1.5]}', "a[1] is 1.5, not a whole number from 0"),
        ('{"a": [true]}', "a[0] is true, not a whole number from 0"),
        ('{"a": {}}', "a is an object, not a list"),
        ("{}", "a is missing"),
        ("[]", " is a list, not an object"),
        ('{"a": [], "b": {"x": 2}}', "b.x is 2, not a number from 0 to 1 or null"),
        ('{"a": [], "c": 1e999}', "c is Infinity, not a number"),
        ('{"a": [], "c": NaN}', "NaN is no number of JSON"),
        (f'{{"a": [], "d": [{"9" * 400}]}}', "d is a list, not a text"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    form = {"a": [COUNT], "b?": {str: or_null(SHARE)}, "c?": NUMBER, "d?": TEXT}
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_json(tmp_path / "x.json", form, "write it again")
    assert str(caught.value) == f"{tmp_path / 'x.json'}: cannot be read: {complaint.strip()}; write it again"


@given(values=st.dictionaries(st.text(st.characters()), st.none() | st.floats(0, 1) | st.sampled_from([0, 1])))
def test_what_is_written_is_read_back_with_any_name(values: dict[str, Any]) -> None:
    assert parse_json(json.dumps(values), {str: or_null(SHARE)}) == values


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        ("results.json", results_of_one_model() | {"stages": "all"}, results_file.read_results),
        ("results.json", results_of_one_model() | {"steps": {"warmup": "3"}}, results_file.read_results),
        ("seeds.json", SEEDS | {"seeds": [0]}, seeds_directory.read_summary),
        ("comparison.json", {"seeds": [0, 1], "rows": [ROW | {"rounds": None}]}, comparison_directory.read_summary),
        ("data.json", {"training images": 1}, data_digests.read_data),
        ("x-seed0.json", dict.fromkeys(run_record.FIELDS, "x"), lambda directory: run_record.read(directory / "x-seed0.json")),
    ],
)
def test_a_file_with_its_own_digest_is_refused_for_odd_content_all_the_same(
    name: str, values: dict[str, Any], read: Callable[[Path], Any], tmp_path: Path
) -> None:
    write_json(tmp_path / name, values)
    with pytest.raises(ConfigError, match=name) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_run_is_made_again_from_or_compared_with_is_left_out_where_it_is_odd(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results_of_one_model() | {"stages_done": 7})
    write_json(tmp_path / computation.NAME, {"records": [["cpu"]]})
    warnings: list[str] = []
    assert results_file.finished(tmp_path, warnings.append) is None
    assert computation.read(tmp_path) == []
    (warning,) = warnings
    assert "stages_done is 7, not a list; it is made again from the checkpoints" in warning
