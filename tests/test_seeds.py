"""Several seeds with one command: each is the run that it would be alone, and the table is their mean and deviation."""

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StoppingConsole, assert_same_run, fingerprints, tiny, train

from mosaic_jax import cli
from mosaic_jax.argument_checks import default_run_dir
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.seeds_directory import summarize
from mosaic_jax.seeds import train_seeds

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")
SEEDS = (0, 1, 2)
SMALL: dict[str, Any] = {"method": "fedavg", "warmup": {"num_rounds": 1}, "finetune": {"num_rounds": 1}}


def small(seed: int = 0, **sections: Any) -> Config:
    return tiny(seed=seed, **(SMALL | sections))


def train_all(configs: list[Config], run_dir: Path, console: Console | None = None, stop_after: str | None = None) -> int:
    return train_seeds(configs, run_dir, stop_after=stop_after, tensorboard=False, console=console or Console(quiet=True))


@pytest.fixture(scope="module")
def command(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command that trained three seeds, and its run directory; read it, or copy it to change it."""
    run_dir = tmp_path_factory.mktemp("seeds") / "runs"
    assignments = ["method=fedavg", "warmup.num_rounds=1", "finetune.num_rounds=1"]
    arguments = ["train", *tiny_arguments, *assignments, "--seeds", "2,0,1"]
    assert cli.main([*arguments, "--run-dir", str(run_dir)]) == 0
    return arguments, run_dir


def test_each_of_several_seeds_is_bitwise_the_run_of_that_seed_alone(command: tuple, tmp_path: Path) -> None:
    _, run_dir = command
    for seed in (0, 2):
        assert train(small(seed), tmp_path / str(seed)) == 0
        assert_same_run(run_dir / f"seed{seed}", tmp_path / str(seed))
    assert len({fingerprints(run_dir / f"seed{seed}")["warmup"] for seed in SEEDS}) == 3


def test_the_means_and_sample_deviations_are_those_of_the_runs(command: tuple) -> None:
    _, run_dir = command
    summary = json.loads((run_dir / "seeds.json").read_text())
    results = [json.loads((run_dir / f"seed{seed}" / "results.json").read_text()) for seed in SEEDS]
    assert (summary["method"], summary["seeds"]) == ("fedavg", list(SEEDS))
    assert list(summary["models"]) == ["global", "clients"]
    for name, model in summary["models"].items():
        for which in ("validation", "test"):
            values = [result["models"][name][which] for result in results]
            assert model[which]["values"] == values
            np.testing.assert_allclose([model[which]["mean"], model[which]["std"]], [np.mean(values), np.std(values, ddof=1)])


def test_finished_seeds_are_skipped_and_the_table_is_printed_again(command: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, run_dir = command
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("seed*/checkpoints/**/*")}
    assert cli.main([*arguments, "--run-dir", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count("is finished already") == 3
    table = out[out.index("fedavg, seeds 0, 1, 2") :]
    test = json.loads((run_dir / "seeds.json").read_text())["models"]["global"]["test"]
    assert f"{100 * test['mean']:.1f} ± {100 * test['std']:.1f}" in table
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.glob("seed*/checkpoints/**/*")}


def test_seeds_stopped_after_every_segment_end_as_those_that_were_not(command: tuple, tmp_path: Path) -> None:
    _, unbroken = command
    run_dir = tmp_path / "runs"
    shutil.copytree(unbroken / "seed0", run_dir / "seed0")
    statuses = []
    while not statuses or statuses[-1] == 143:
        assert not (run_dir / "seeds.json").exists()
        statuses.append(train_all([small(seed) for seed in (0, 1)], run_dir, StoppingConsole()))
    assert statuses == [143, 143, 0]  # two rounds of seed 1
    assert_same_run(run_dir / "seed1", unbroken / "seed1")
    assert json.loads((run_dir / "seeds.json").read_text())["seeds"] == [0, 1]


class InterruptedAtTheResults(Console):
    """A console on which SIGINT comes when the first results are shown."""

    def result_table(self, results: Mapping[str, Any], verbose: bool | None = None) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_while_results_are_written_ends_the_command_before_the_next_seed(command: tuple, tmp_path: Path) -> None:
    _, unbroken = command
    shutil.copytree(unbroken / "seed0", tmp_path / "runs" / "seed0")
    console = InterruptedAtTheResults(quiet=True)
    assert train_all([small(0), small(1)], tmp_path / "runs", console) == 130
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["seed0"]
    assert train_all([small(0)], tmp_path / "runs", console) == 0


def test_a_seed_whose_loss_is_not_finite_gives_the_status_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [small(seed, warmup={"client_learning_rate": 1e30, "num_rounds": 1}) for seed in (0, 1)]
    assert train_all(configs, tmp_path / "runs", Console()) == 3
    out, err = capsys.readouterr()
    assert "loss is not finite" in err
    assert "not finished are seeds 0, 1" in out
    assert not (tmp_path / "runs" / "seeds.json").exists()


def test_a_directory_that_cannot_take_every_seed_is_refused_before_any_is_trained(command: tuple, tmp_path: Path) -> None:
    _, unbroken = command
    run_dir = tmp_path / "runs"
    shutil.copytree(unbroken / "seed1", run_dir / "seed1")
    with pytest.raises(ConfigError, match=r"seed1: holds a run of another configuration \(warmup.num_local_steps=2, not 3\)"):
        train_all([small(seed, warmup={"num_rounds": 1, "num_local_steps": 3}) for seed in (0, 1)], run_dir)
    assert [path.name for path in run_dir.iterdir()] == ["seed1"]
    with pytest.raises(ConfigError, match="holds the run of a single seed"):
        train_all([small(0)], run_dir / "seed1")
    (run_dir / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no runs of seeds"):
        train_all([small(1)], run_dir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,1", "--seed", "2"], "--seeds 0,1 together with --seed 2: give one of the two"),
        (["--seeds", "0,1", "--set", "seed=2"], "--seeds 0,1 together with --set seed=2: give one of the two"),
        (["--seeds", "0,1,0"], "--seeds 0,1,0: 0 is given more than once"),
        (["--seeds", "0,-1"], "--seeds 0,-1: seed=-1: must be a whole number, from 0 to 2147483647"),
        (["--seeds=-1"], "--seeds -1: seed=-1: must be a whole number"),
        (["--seeds", "0,x"], "--seeds 0,x: seed=x: must be a whole number"),
        (["--seeds", "0,1.5"], "seed=1.5: must be a whole number"),
        (["--seeds", "0,"], "seed=: must be a whole number"),
        (["--seeds", ""], "seed=: must be a whole number"),
    ],
)  # fmt: skip
def test_seeds_that_are_none_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--config", DIGITS, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_the_directory_of_several_seeds_is_named_after_them() -> None:
    assert default_run_dir("configs/digits.py", "reference", [0, 1, 2]) == Path("runs/digits-reference-seeds0-1-2")
    assert default_run_dir("configs/digits.py", None, [7]) == Path("runs/digits-seeds7")


def test_the_report_of_several_seeds_has_their_means_and_leads_to_each_one(command: tuple, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs"
    shutil.copytree(command[1], run_dir)
    for report in (run_dir / "report.html", *run_dir.glob("seed*/report.html")):
        report.unlink()
    assert cli.main(["report", str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert "seeds 0, 1, 2: mean ± sample standard deviation" in page
    for seed in SEEDS:
        assert f'href="seed{seed}/report.html"' in page
        assert (run_dir / f"seed{seed}" / "report.html").exists()
    (run_dir / "seeds.json").unlink()
    assert cli.main(["report", str(run_dir)]) == 0
    assert "No seeds.json yet" in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("arguments", [["evaluate"], ["sample", "--out", "a.png"]])
def test_other_commands_name_the_runs_of_several_seeds(
    command: tuple, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, str(command[1])]) == 2
    assert f"holds 3 runs; name one of {command[1] / 'seed0'}, " in capsys.readouterr().err


def test_what_some_seed_lacks_has_no_mean_and_one_seed_no_deviation() -> None:
    first = {"method": "mosaic", "seed": 3, "models": {"global": {"validation": None, "test": 0.5}, "student": {"test": 0.1}}}
    second = {"method": "mosaic", "seed": 4, "models": {"global": {"validation": 0.4, "test": 0.7}}}
    both = summarize([first, second])["models"]
    assert list(both) == ["global"]
    assert both["global"]["validation"] == {"values": [None, 0.4], "mean": None, "std": None}
    assert both["global"]["test"] == {"values": [0.5, 0.7], "mean": pytest.approx(0.6), "std": pytest.approx(0.02**0.5)}
    alone = summarize([second])["models"]["global"]["test"]
    assert alone == {"values": [0.7], "mean": 0.7, "std": None}
