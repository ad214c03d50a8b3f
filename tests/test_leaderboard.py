"""Tables over result files: what is put into one row and what never is, what is said of it, and where it is written."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_jax import cli
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import flatten, with_values
from mosaic_jax.io import run_record
from mosaic_jax.io.accuracy_plot import SOFT, accuracy_plot
from mosaic_jax.io.leaderboard_table import as_csv, as_markdown, as_text
from mosaic_jax.io.marked_blocks import rewritten
from mosaic_jax.io.result_tasks import read_tasks
from mosaic_jax.leaderboard import markdown_of, summarize
from mosaic_jax.presets import PRESETS

README = Path(__file__).parent.parent / "README.md"

# Test accuracies by seed.
MOSAIC, FEDAVG = {0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.8, 2: 0.4}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the record of a run, other values of its configuration by their dotted names, and returns the file's path."""

    def written(
        row: str,
        seed: int,
        final: float | None,
        alpha: float = 0.1,
        place: str = "results",
        *,
        fields: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        method = row.partition("-")[0]
        values = {name.replace("__", "."): value for name, value in settings.items()}
        config = with_values(Config(), {"seed": seed, "method": method, "partition.alpha": alpha, **values})
        student, teacher = (None, None) if method == "fedavg" else (0.5, 0.6)
        record = {
            "dataset": "digits", "protocol": "digits", "row": row, "method": method, "alpha": alpha, "seed": seed, "commit": "abc",
            "hardware": "a CPU", "seconds": 100.0 + seed, "bytes_up": 2**20, "bytes_down": 2**21, "final_test": final,
            "student_test": student, "teacher_test": teacher, "validation": 0.75, "stages": {}, "data_digest": "d0d0",
            "config": flatten(config),
        }  # fmt: skip
        return run_record.write(tmp_path / place, record | (fields or {}))

    return written


@pytest.fixture
def both(write: Write, tmp_path: Path) -> Path:
    for row, scores in (("mosaic", MOSAIC), ("fedavg", FEDAVG)):
        for seed, final in scores.items():
            write(row, seed, final)
    return tmp_path / "results"


def rows_of(*places: Path) -> dict[str, list[str]]:
    """Of each task the labels of its rows."""
    return {task.title: [row.label for row in task.rows] for task in read_tasks(places)}


def test_a_row_has_means_deviations_and_its_paired_difference_to_mosaic(both: Path) -> None:
    [task] = summarize(read_tasks([both]))["tasks"]
    assert (task["title"], task["reference"]) == ("digits, alpha 0.1", "mosaic")
    assert (task["commits"], task["hardware"]) == (["abc"], ["a CPU"])
    mosaic, fedavg = task["rows"]
    assert (mosaic["row"], mosaic["rank"], mosaic["seeds"], mosaic["against"]) == ("mosaic", 1.0, [0, 1, 2], None)
    assert mosaic["final_test"]["mean"] == pytest.approx(0.8)
    assert mosaic["final_test"]["std"] == pytest.approx(0.1)
    assert (mosaic["seconds"], mosaic["bytes_up"], mosaic["bytes_down"]) == (101.0, 2**20, 2**21)
    assert fedavg["student_test"] == {"values": [None] * 3, "mean": None, "std": None}
    against = fedavg["against"]
    assert against["mean"] == pytest.approx((0.1 + 0.0 + 0.3) / 3)
    assert (against["low"], against["high"]) == (pytest.approx(0.0), pytest.approx(0.3))
    assert (against["p"], against["smallest_p"]) == (0.5, 0.25)
    assert (against["wins"], against["draws"], against["losses"]) == (2, 1, 0)


def test_differences_and_ranks_are_over_the_seeds_that_both_have(both: Path, write: Write) -> None:
    write("fedavg", 7, 1.0)
    fedavg = summarize(read_tasks([both]))["tasks"][0]["rows"][1]
    assert fedavg["row"] == "fedavg"
    assert fedavg["seeds"] == [0, 1, 2, 7]
    assert fedavg["against"]["seeds"] == [0, 1, 2]
    assert fedavg["rank"] == 2.0
    write("fedprox", 9, 0.5)  # no seed together with any other
    assert {row["row"]: (row["rank"], row["against"]) for row in summarize(read_tasks([both]))["tasks"][0]["rows"]}["fedprox"] == (
        None, None,
    )  # fmt: skip


def test_files_of_one_run_count_once_and_with_other_results_are_refused_by_name(both: Path, write: Write, tmp_path: Path) -> None:
    write("mosaic", 0, MOSAIC[0], place="again", fields={"seconds": 7.0})
    [task] = summarize(read_tasks([both, both, tmp_path / "again"]))["tasks"]
    assert task["rows"][0]["seeds"] == [0, 1, 2]
    other = write("mosaic", 1, 0.123, place="again")
    with pytest.raises(ConfigError) as refused:
        read_tasks([both, tmp_path / "again"])
    assert str(refused.value) == (
        f"{both / 'digits' / other.name} and {other}: are of the same run, row mosaic and seed 1, with other results "
        "(final_test=0.8, not 0.123); leave one of them out"
    )


@pytest.mark.parametrize(
    ("fields", "settings", "titles"),
    [
        ({"data_digest": "e1e1"}, {}, ["digits, alpha 0.1 (data=d0d0)", "digits, alpha 0.1 (data=e1e1)"]),
        ({"protocol": "other"}, {}, ["digits, alpha 0.1", "digits, other, alpha 0.1"]),
        ({"alpha": 0.01}, {"partition__alpha": 0.01}, ["digits, alpha 0.01", "digits, alpha 0.1"]),
        ({}, {"partition__num_clients": 20},
         ["digits, alpha 0.1 (partition.num_clients=10)", "digits, alpha 0.1 (partition.num_clients=20)"]),
        ({}, {"model__width": 8}, ["digits, alpha 0.1 (model.width=64)", "digits, alpha 0.1 (model.width=8)"]),
    ],
)  # fmt: skip
def test_runs_of_other_data_protocols_and_problems_are_never_in_one_table(
    fields: dict[str, Any], settings: dict[str, Any], titles: list[str], both: Path, write: Write, tmp_path: Path
) -> None:
    write("mosaic", 3, 0.5, place="more", fields=fields, **settings)
    found = rows_of(both, tmp_path / "more")
    assert sorted(found) == sorted(titles)
    assert sorted(found.values()) == [["fedavg", "mosaic"], ["mosaic"]]


def test_other_configurations_of_a_row_are_rows_of_their_own_with_what_differs(both: Path, write: Write, tmp_path: Path) -> None:
    write("mosaic", 3, 0.5, place="more", distill__num_steps=7)
    write("mosaic", 3, 0.5, place="most", distill__num_steps=7, meta__num_steps=8)
    default = Config()
    steps = f"meta.num_steps={default.meta.num_steps}, distill.num_steps={default.distill.num_steps}"
    assert rows_of(both, tmp_path / "more", tmp_path / "most") == {
        "digits, alpha 0.1": [
            "fedavg", f"mosaic ({steps})", f"mosaic (meta.num_steps={default.meta.num_steps}, distill.num_steps=7)",
            "mosaic (meta.num_steps=8, distill.num_steps=7)",
        ],
    }  # fmt: skip
    # Of several Mosaics the one of most seeds is what others are compared to.
    [task] = summarize(read_tasks([both, tmp_path / "more", tmp_path / "most"]))["tasks"]
    assert task["reference"] == f"mosaic ({steps})"


def test_presets_of_a_method_stand_side_by_side_under_their_names(both: Path, write: Write, tmp_path: Path) -> None:
    for preset in ("paper", "reference"):
        values = {name.replace(".", "__"): value for name, value in PRESETS[preset].items()}
        write("mosaic", 0, 0.5, place=preset, **values)
        write("fedavg", 0, FEDAVG[0], place=preset, **values | ({"warmup__order": "shuffled", "data__image_range": "symmetric"}))
    found = read_tasks([both, tmp_path / "paper", tmp_path / "reference"])
    assert [row.label for row in found[0].rows] == ["fedavg", "mosaic", "mosaic (preset paper)", "mosaic (preset reference)"]
    assert summarize(found)["tasks"][0]["reference"] == "mosaic"


def test_settings_that_no_result_depends_on_part_no_row(both: Path, write: Write, tmp_path: Path) -> None:
    write("mosaic", 3, 0.6, place="more", mapping__num_devices=2, checkpoint__every_steps=3, data__source="npz:elsewhere.npz")
    write("fedavg", 3, 0.6, place="more", distill__num_steps=3)  # FedAvg distils nothing
    assert rows_of(both, tmp_path / "more") == {"digits, alpha 0.1": ["fedavg", "mosaic"]}


def test_over_tasks_rows_have_a_mean_rank_and_mosaics_wins_draws_and_losses(both: Path, write: Write) -> None:
    for seed in (0, 1, 2):
        write("mosaic", seed, 0.9, alpha=0.01)
        write("fedavg", seed, 0.5, alpha=0.01)
        write("fedprox", seed, 0.95, alpha=0.01)
    overall = {row["row"]: row for row in summarize(read_tasks([both]))["overall"]}
    assert list(overall) == ["mosaic", "fedavg"]  # a row of one task is compared there
    assert overall["mosaic"] == {"row": "mosaic", "tasks": 2, "rank": 1.0, "wins": None, "draws": None, "losses": None}
    # One interval is 40 to 40 points, the other holds 0.
    assert overall["fedavg"] == {"row": "fedavg", "tasks": 2, "rank": 2.0, "wins": 1, "draws": 1, "losses": 0}
    assert summarize(read_tasks([both]))["tasks"][0]["rows"][0]["row"] == "fedprox"


def test_the_texts_say_the_numbers_and_the_least_p_that_so_few_seeds_allow(both: Path) -> None:
    summary = summarize(read_tasks([both]))
    text = as_text(summary)
    line = next(line for line in text.splitlines() if line.startswith("fedavg"))
    assert line.split() == [
        "fedavg", "66.7", "±", "23.1", "-", "-", "75.0", "±", "0.0", "3", "+13.3", "0.0", "to", "+30.0", "0.5", "2/1/0", "2", "101",
        "1.0", "2.0",
    ]  # fmt: skip
    assert "Mosaic is the row mosaic; 3 seeds allow no p below 0.25; data d0d0; commit abc; a CPU" in text
    assert "| fedavg | 66.7 ± 23.1 | - | - | 75.0 ± 0.0 | 3 | +13.3 | 0.0 to +30.0 | 0.5 | 2/1/0 | 2 | 101 | 1.0 | 2.0 |" in (
        as_markdown(summary)
    )
    mosaic, fedavg = csv.DictReader(as_csv(summary).splitlines())
    assert (mosaic["row"], mosaic["seeds"], mosaic["validation_mean"], mosaic["against_p"]) == ("mosaic", "3", "0.75", "")
    assert (fedavg["against_wins"], fedavg["against_p"], fedavg["teacher_test_mean"]) == ("2", "0.5", "")


def test_tables_without_mosaic_say_so(write: Write, tmp_path: Path) -> None:
    write("fedavg", 0, None)
    text = as_text(summarize(read_tasks([tmp_path])))
    assert "there is no row mosaic to compare with" in text
    assert next(line for line in text.splitlines() if line.startswith("fedavg ")).split()[1:3] == ["-", "-"]


def test_names_that_hold_markup_are_shown_as_they_are(write: Write, tmp_path: Path) -> None:
    write("mosaic", 0, 0.5, fields={"row": "=a|<!-- end -->*\x1b[2J", "method": "mosaic"})
    summary = summarize(read_tasks([tmp_path]))
    assert r"| =a\|&lt;!-- end --&gt;\*\\x1b\[2J |" in as_markdown(summary)
    assert r"'=a|<!-- end -->*\x1b[2J" in as_csv(summary)
    assert "\x1b" not in as_text(summary)


def test_the_command_prints_and_writes_every_file(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["leaderboard", str(both), "--out", str(out)]) == 0
    assert "Mosaic minus row" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "leaderboard.md", "leaderboard.csv", "leaderboard.json", "leaderboard.png", "report.html",
    }  # fmt: skip
    assert json.loads((out / "leaderboard.json").read_text())["tasks"][0]["rows"][1]["against"]["p"] == 0.5
    page = (out / "report.html").read_text()
    assert "data:image/png" in page
    assert "+13.3" in page
    assert cli.main(["leaderboard", str(both), "--markdown", "--out", str(out)]) == 0
    assert capsys.readouterr().out == (out / "leaderboard.md").read_text() == markdown_of([both])


def test_the_report_of_something_else_is_not_replaced(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.html").write_text("a run")
    assert cli.main(["leaderboard", str(both), "--out", str(tmp_path)]) == 2
    assert "holds a report.html that is no leaderboard's; name another directory" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "a run"


def test_a_file_of_settings_that_are_none_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    path = write("mosaic", 0, 0.5, fields={"config": {"zzz": 1}})
    with pytest.raises(ConfigError, match=rf"{path.name}: zzz is no setting; .*; name files that this version of"):
        read_tasks([tmp_path])


def test_a_bar_is_as_long_as_its_share_of_the_largest_cost() -> None:
    accuracy = {"final": {"mean": 0.5, "std": None}}
    picture = accuracy_plot({"a": accuracy, "b": accuracy}, {}, "title", {"seconds": {"a": 40.0, "b": 10.0}})
    grey = (picture == np.asarray(SOFT)).all(axis=-1)
    places = [np.flatnonzero(row) for row in grey]
    bars = {len(of) for of in places if len(of) > 20 and len(of) == of[-1] - of[0] + 1}  # rows of pixels that are one line
    assert max(bars) / min(bars) == pytest.approx(4.0, rel=0.05)


# --- pages with marked blocks ---


def test_an_update_replaces_what_stands_between_the_marks_and_nothing_else(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- leaderboard results -->\nold\n<!-- end -->\nafter `<!-- end -->`\n")
    assert cli.main(["leaderboard", "--update", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: 1 leaderboard\n"
    expected = f"before\n\n<!-- leaderboard results -->\n\n{markdown_of([both])}\n<!-- end -->\nafter `<!-- end -->`\n"
    assert page.read_text() == expected
    assert cli.main(["leaderboard", "--update", str(page)]) == 0
    assert page.read_text() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing\n", "has no line <!-- leaderboard DIR... -->; write it"),
        ("<!-- leaderboard a -->\n", "a <!-- leaderboard DIR... --> has no <!-- end -->"),
        ("x\n<!-- end -->\n", "line 2 is <!-- end --> where the other mark belongs"),
        ("<!-- leaderboard a -->\n<!-- leaderboard b -->\n<!-- end -->", "line 2 is <!-- leaderboard b --> where the other mark"),
        ("<!-- leaderboard nowhere -->\n<!-- end -->", "nowhere: is no directory"),
    ],
)
def test_marks_that_do_not_fit_are_one_line_and_the_page_stays(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(text)
    assert cli.main(["leaderboard", "--update", str(tmp_path / "page.md")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "page.md").read_text() == text


def test_the_tables_of_the_readme_are_those_of_its_result_files() -> None:
    text = README.read_text(encoding="utf-8")
    assert rewritten(text, README.parent, markdown_of, "README.md")[0] == text
