"""Whatever a name holds, it is shown without harm, on every output, whatever its encoding and width."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_jax import cli, processes
from mosaic_jax.io.console import Console
from mosaic_jax.io.heat_map import heat_map
from mosaic_jax.plain_text import fitting, plain, plain_cell

ANYTHING = st.text(st.characters())  # surrogates, control characters and marks among them


@given(text=ANYTHING)
def test_a_plain_text_is_printable_and_what_is_printable_is_left_as_it_is(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown
    assert (shown == text) == text.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("éclair ☕ 猫", "éclair ☕ 猫"),
        ("\x1b[31mred", r"\x1b[31mred"), ("two\nlines", r"two\nlines"), ("\u202egnp", r"\u202egnp"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"), ("\ud800", r"\ud800"), ("\U000e0041", r"\U000e0041"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_escaped(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "\t=1+1"])
def test_what_a_spreadsheet_takes_for_a_formula_follows_an_apostrophe(text: str) -> None:
    assert plain_cell(text) == f"'{plain(text)}"
    assert plain_cell(f"a{text}") == plain(f"a{text}")


@given(text=ANYTHING, encoding=st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "gbk"]))
def test_a_text_fits_every_encoding(text: str, encoding: str) -> None:
    shown = fitting(plain(f"{text} 1.0 ± 0.5"), io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    shown.encode(encoding)
    assert shown.endswith(("1.0 ± 0.5", "1.0 +- 0.5"))


class Terminal(io.TextIOWrapper):
    """A terminal of an encoding that refuses what it lacks."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without what colours it."""
        self.flush()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.buffer.getvalue().decode(self.encoding))


NAMES = ["\x1b[31mred", "\u202ertl", "two\nlines", ":dog:", "[bold]b[/bold]", "猫", "caf\udce9"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("columns", [20, 80, 300])
def test_tables_lines_and_bars_are_whole_whatever_the_encoding_and_width(
    encoding: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(encoding)
    console = Console(file=terminal)
    accuracies = [k / 10 + 0.012345 for k in range(len(NAMES))]
    models = {f"model{n}": {"validation": 0.5, "test": 0.625, "test_per_class": accuracies} for n in range(6)}
    results = {"method": "mosaic", "seed": 0, "models": models, "class_names": NAMES, "seconds": {"warmup": 7.0}, "bytes": {}}
    console.result_table(results, verbose=True)
    measure = {"mean": 0.5, "std": 0.25}
    console.seeds_table({"method": "mosaic", "seeds": [0], "models": {"global": {"validation": measure, "test": measure}}})
    console.message("a line\u2028with ± and \x1b[2J")
    with console.progress("warmup", 1000) as progress:
        for _ in range(10):
            progress.advance(100, "loss 0.125")
    text = terminal.text()
    assert not set(text) & {"\x1b", "\u202e", "\u2028", "…"}
    table = text[text.index("per class") :]
    for name, accuracy in zip(NAMES, accuracies, strict=True):
        shown = plain(name) if encoding == "utf-8" else plain(name).replace("猫", r"\u732b")
        assert re.search(re.escape(shown) + rf"\W+(?:{100 * accuracy:.1f}\W+){{6}}", table), name
    assert re.search(r"50\.0 (±|\+-) 25\.0", text)
    assert r"a line\u2028with" in text
    assert "1000/1000" in text


def test_an_error_that_names_odd_paths_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "no\x1b[31m\nsuch\udce9\u202e"]) == 2
    err = capsys.readouterr().err
    assert err.rstrip("\n").isprintable()
    assert r"no\x1b[31m such\xe9\u202e" in err


def test_a_config_with_odd_values_is_printed(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.py").write_text("from mosaic_jax.config import Config\nget_config = Config\n")
    assert cli.main(["config", "--config", str(tmp_path / "c.py"), "--set", "data.source=folder:/d\udce9/\x1b[2J"]) == 0
    assert r"data.source=folder:/d\xe9/\x1b[2J" in capsys.readouterr().out


def test_a_picture_takes_any_name() -> None:
    odd = heat_map(np.ones((2, len(NAMES)), int), NAMES, "a\ntitle \udce9")
    np.testing.assert_array_equal(odd, heat_map(np.ones((2, len(NAMES)), int), list(map(plain, NAMES)), plain("a\ntitle \udce9")))


def test_processes_tell_each_other_texts_with_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "gather", lambda value: np.asarray(value)[None])
    assert processes.gather_texts("d\udce9 é") == [r"d\udce9 é"]
