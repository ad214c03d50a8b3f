"""The command line answers fast, in one line, with status 2, and hands the commands what was asked."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mosaic_jax import cli
from mosaic_jax.argument_checks import default_run_dir
from mosaic_jax.config import Config
from mosaic_jax.config_io import to_dict
from mosaic_jax.io.console import Console
from mosaic_jax.io.label_counts import table

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")


def several(coordinator: str, num_processes: str, process_id: str) -> list[str]:
    return ["--coordinator", coordinator, "--num-processes", num_processes, "--process-id", process_id]


BAD_ARGUMENTS = [
    ([], "the following arguments are required: COMMAND"),
    (["trian"], "train, compare, leaderboard, plan, partition, config, prepare, evaluate, sample, report; did you mean train?"),
    (["trian"], "trian is no command; the commands are "),
    (["leaderboard"], "leaderboard: no DIR; name directories that hold files of `mosaic-jax compare`, or --update FILE.md"),
    (["leaderboard", "nowhere"], "leaderboard nowhere: is no directory; name one"),
    (["leaderboard", str(ROOT / "tests")], "holds no *-seed*.json; name a directory"),
    (["leaderboard", str(ROOT), "--out", DIGITS], "is a file; name a directory"),
    (["leaderboard", str(ROOT), "--update", "a.md"], "--update a.md: the page names its directories; leave out DIR, --out"),
    (["leaderboard", "--update", "nowhere.md"], "--update nowhere.md: cannot be read (No such file or directory)"),
    (["train"], "the following arguments are required: --config"),
    (["train", "--out", "x"], "--out is no option of mosaic-jax train; did you mean --run-dir?"),
    (["train", "--confg", "x"], "--confg is no option of mosaic-jax train; did you mean --config?"),
    (["train", "--config"], "--config: expected one argument"),
    (["train", "--config", "nowhere.py"], "config file nowhere.py: not found"),
    (["train", "--config", DIGITS, "--preset", "refrence"], "must be one of default, paper, reference; did you mean reference?"),
    (["train", "--config", DIGITS, "--set", "warmup.num_round=3"], "did you mean warmup.num_rounds?"),
    (["train", "--config", DIGITS, "--set", "seed=1", "warmup.batch_size=0"], "must be a whole number, from 1 to 65536"),
    (["train", "--config", DIGITS, "--seed", "x"], "seed=x: must be a whole number"),
    (["train", "--config", DIGITS, "--stop-after", "warm"], "method mosaic has no such stage; its stages are warmup, "),
    (["train", "--config", DIGITS, "--run-dir", DIGITS], "is a file; name a directory"),
    (["train", "--config", DIGITS, "more"], "unrecognized arguments: more"),
    (["train", "--config", DIGITS, "--profile", DIGITS], "is a file; name a directory"),
    (["train", "--config", DIGITS, "--no-compile-cache"], "did you mean --no-compilation-cache?"),
    (["train", "--config", DIGITS, "--coordinator", "node0:1234"], "--num-processes and --process-id: missing"),
    (["train", "--config", DIGITS, "--distributed", "--process-id", "0"], "--coordinator and --num-processes: missing"),
    (["train", "--config", DIGITS, *several("node0", "2", "0")], "--coordinator node0: must be HOST:PORT"),
    (["train", "--config", DIGITS, *several("node0:99999", "2", "0")], "--coordinator node0:99999: must be HOST:PORT"),
    (["train", "--config", DIGITS, *several("node0:1234", "0", "0")], "--num-processes 0: must be at least 1"),
    (["train", "--config", DIGITS, *several("node0:1234", "2", "2")], "--process-id 2: must be 0 to 1"),
    (["train", "--config", DIGITS, *several("node0:1234", "two", "0")], "argument --num-processes: invalid int value: 'two'"),
    (["plan"], "the following arguments are required: --config"),
    (["plan", "--config", DIGITS, "--set", "mapping.client_chunk=-1"], "must be a whole number, at least 0"),
    (["plan", "--config", DIGITS, "--set", "data.source=folder:nowhere"], "/nowhere/train does not exist"),
    (["config", "--config", DIGITS, "--set", "zzz=1"], "zzz is no setting"),
    (["partition", "--config", DIGITS, "--set", "partition.kind=iidd"], "did you mean iid?"),
    (["evaluate"], "the following arguments are required: RUN_DIR"),
    (["evaluate", "nowhere"], "run directory nowhere: not found"),
    (["evaluate", str(ROOT / "tests")], "holds no config.json"),
    (["report", "nowhere"], "run directory nowhere: not found"),
    (["sample", "nowhere"], "the following arguments are required: --out"),
    (["sample", "nowhere", "--out", "a.jpg"], "--out a.jpg: must end in .png"),
    (["sample", "nowhere", "--out", "no/such/a.png"], "--out no/such/a.png: the directory no/such does not exist"),
    (["sample", "nowhere", "--out", "/proc/a.png"], "--out /proc/a.png: cannot be written ("),
    (["sample", "nowhere", "--out", "a.png", "--num", "0"], "--num 0: must be 1 to 1000"),
    (["sample", "nowhere", "--out", "a.png", "--num", "2000"], "--num 2000: must be 1 to 1000"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_an_argument_error_is_one_line_on_stderr_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["plan", "--help"], 0),
        (["config", "--config", DIGITS], 0),
        (["train", "--config", DIGITS, "--set", "warmup.num_round=3"], 2),
        (["train", "--config", DIGITS, "--profile", DIGITS], 2),
        (["train", "--config", DIGITS, *several("node0:1234", "2", "-1")], 2),
        (["plan", "--config", DIGITS, "--set", "zzz=1"], 2),
        (["evaluate", "nowhere"], 2),
    ],
)
def test_help_and_argument_errors_import_nothing_heavy(arguments: list[str], status: int) -> None:
    program = (
        "import sys; from mosaic_jax.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'jax', 'flax', 'numpy', 'orbax', 'sklearn', 'rich', 'PIL', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr


def test_a_platform_that_jax_does_not_have_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mosaic_jax", "train", "--config", DIGITS, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: JAX_PLATFORMS=cuda: JAX finds no such device here")


def test_the_config_command_prints_the_resolved_configuration_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", DIGITS, "--set", "warmup.num_rounds=7", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("warmup.num_rounds=7 ") and "federated rounds before the generators" in line for line in lines)
    assert any(line.startswith("seed=5 ") for line in lines)


@pytest.mark.parametrize(("preset", "name"), [(None, "runs/digits-seed3"), ("reference", "runs/digits-reference-seed3")])
def test_a_run_directory_is_named_after_config_preset_and_seed(preset: str | None, name: str) -> None:
    assert default_run_dir("configs/digits.py", preset, 3) == Path(name)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for mosaic_jax.runner and mosaic_jax.restored that records what it is asked."""
    calls = []
    stand_in = types.ModuleType("mosaic_jax.runner")
    stand_in.train = lambda config, run_dir, **options: calls.append((config, run_dir, options)) or 143
    results = {"method": "mosaic", "seed": 0, "models": {}, "class_names": []}
    stand_in.evaluate = lambda run_dir, console, data_dir: calls.append((run_dir, data_dir)) or results
    stand_in.sample = lambda run_dir, out, num, console, data_dir: calls.append((run_dir, out, num, data_dir))
    for name in ("mosaic_jax.runner", "mosaic_jax.restored"):
        monkeypatch.setitem(sys.modules, name, stand_in)
        monkeypatch.setattr(name, stand_in, raising=False)
    return types.SimpleNamespace(calls=calls)


def test_train_hands_the_runner_its_config_and_returns_its_status(runner: types.SimpleNamespace, tmp_path: Path) -> None:
    arguments = ["train", "--config", DIGITS, "--set", "distill.num_steps=5", "--seed", "2", "--run-dir", str(tmp_path / "r")]
    assert cli.main([*arguments, "--stop-after", "meta", "--tensorboard", "--profile", "traces", "-v"]) == 143
    ((config, run_dir, options),) = runner.calls
    assert (config.distill.num_steps, config.seed) == (5, 2)
    assert run_dir == tmp_path / "r"
    assert (options["stop_after"], options["tensorboard"], options["console"].verbose) == ("meta", True, True)
    assert options["profile"] == Path("traces")


def run_directory(path: Path) -> Path:
    """A run directory with a config and something in checkpoints/."""
    (path / "checkpoints" / "warmup").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(to_dict(Config())))
    return path


def test_sample_and_evaluate_hand_the_runner_the_run_directory(
    runner: types.SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = run_directory(tmp_path / "run")
    assert cli.main(["sample", str(run_dir), "--out", str(tmp_path / "s.png"), "--num", "8"]) == 0
    assert cli.main(["evaluate", str(run_dir), "--data-dir", "moved"]) == 0
    assert runner.calls == [(run_dir, tmp_path / "s.png", 8, None), (run_dir, "moved")]
    assert "mosaic, seed 0" in capsys.readouterr().out


def test_evaluate_needs_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_dict(Config())))
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


def test_the_label_count_table_is_aligned_and_has_totals() -> None:
    lines = table([[1, 0], [230, 4]], ["cat", "dog"]).splitlines()
    assert [line.split() for line in lines] == [
        ["client", "cat", "dog", "total"],
        ["0", "1", "0", "1"],
        ["1", "230", "4", "234"],
        ["total", "231", "4", "235"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_away_from_a_terminal_progress_is_a_line_at_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("warmup", 100, 20) as progress:
        for _ in range(80):
            progress.advance(1, "loss 0.12")
    first, last = capsys.readouterr().out.splitlines()
    assert first == "warmup: from step 20 of 100"
    assert last.startswith("warmup: 100/100 in ")


def test_the_result_table_shows_models_in_order_costs_and_classes_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    results = {
        "method": "mosaic",
        "seed": 0,
        "class_names": ["cat", "dog"],
        "models": {
            "global": {"validation": None, "test": 0.812, "test_per_class": [0.5, 0.75]},
            "student": {"validation": 0.5, "test": 0.6125, "test_per_class": [0.25, None]},
        },
        "bytes": {"warmup": {"up": 3 * 2**20, "down": 1024}},
        "seconds": {"warmup": 83.0},
        "compile_seconds": {"warmup": 2.0},
    }
    Console().result_table(results)
    plain = capsys.readouterr().out
    assert plain.index("global") < plain.index("student")
    assert all(text in plain for text in ("81.2", "61.3", "50.0", "3.0 MiB", "1.0 KiB", "1 min 23 s", "2.0 s"))
    assert "dog" not in plain
    Console(verbose=True).result_table(results)
    assert "dog" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "remedy"), [(errno.EACCES, "make it writable or work on a copy"), (errno.ENOSPC, "make room")])
def test_a_run_directory_that_cannot_be_written_is_one_line(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(run_dir: Path) -> Path:
        raise OSError(number, os.strerror(number), str(run_dir / "report.html"))

    (tmp_path / "comparison.json").write_text(json.dumps({"seeds": [0], "rows": []}))
    monkeypatch.setattr("mosaic_jax.io.comparison_directory.write_index", refused)
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'report.html'}: {os.strerror(number)}; {error.partition('; ')[2]}"
    assert remedy in error
    assert error.count("\n") == 1
