"""What happens to a run directory from outside, kills, full and read-only disks, damage, foreign files, costs no run."""

import contextlib
import errno
import itertools
import json
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, assert_same_run, tiny, train
from copies import write_folder

from mosaic_jax import cli
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import load_config_file
from mosaic_jax.io import run_directory
from mosaic_jax.io.checkpoints import StageCheckpoints
from mosaic_jax.io.metrics import MetricsLog, read

# Tensorstore complains about the event loop in which its read failed, after the failure was handled.
ignore_closed_loops = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
listeners: list[Callable[[Path], None]] = []


def hear(event: str, arguments: tuple) -> None:
    """Every opening for writing, renaming, making and removing of this process, before it is done."""
    if not listeners or not arguments or not isinstance(arguments[0], str | os.PathLike):
        return
    if event in WRITES or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        for listener in listeners:
            listener(Path(os.fspath(arguments[0])))


sys.addaudithook(hear)


def copied_while_it_is_written(source: Path, target: Path) -> None:
    """Like `cp -r`: what another thread takes away meanwhile is left out."""
    with contextlib.suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(source, target)


@contextlib.contextmanager
def copies_before_every_write(run_dir: Path, copies: Path) -> Iterator[None]:
    """COPIES/NNN as the run directory was before each write below it."""
    lock, copying, number = threading.RLock(), threading.local(), iter(range(10_000))

    def listener(path: Path) -> None:
        if not path.is_relative_to(run_dir) or getattr(copying, "now", False) or not run_dir.exists():
            return
        copying.now = True
        try:
            with lock:
                copied_while_it_is_written(run_dir, copies / f"{next(number):03}")
        finally:
            copying.now = False

    listeners.append(listener)
    try:
        yield
    finally:
        listeners.clear()


def different(copies: list[Path]) -> list[Path]:
    """The first and the last of neighbours that differ only in what Orbax has not finished: all tried once, as many seconds."""

    def finished_files(copy: Path) -> dict[str, bytes]:
        files = [path for path in copy.rglob("*") if path.is_file() and "orbax-checkpoint-tmp" not in str(path.relative_to(copy))]
        return {str(path.relative_to(copy)): path.read_bytes() for path in files if path.name != ".lock"}

    groups = [list(group) for _, group in itertools.groupby(copies, finished_files)]
    return [copy for group in groups for copy in (group[:1] if len(group) == 1 else (group[0], group[-1]))]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--config FILE` of a run of two rounds on a few random images, the fastest there is that prunes a checkpoint."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    images, labels = random.integers(0, 256, (60, 8, 8, 3), np.uint8), np.arange(60) % 3
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    values = TINY | {
        "method": "fedavg", "data.source": f"npz:{folder / 'data.npz'}", "warmup.num_rounds": 2, "finetune.num_rounds": 0,
        "checkpoint.keep": 1,
    }  # fmt: skip
    (folder / "small.py").write_text(
        "from mosaic_jax.config import Config\nfrom mosaic_jax.config_io import with_values\n\n\n"
        f"def get_config():\n    return with_values(Config(), {values!r})\n"
    )
    return ["--config", str(folder / "small.py")]


@pytest.fixture(scope="module")
def small(arguments: list[str]) -> Config:
    return load_config_file(arguments[1])


@pytest.fixture(scope="module")
def unbroken(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the finished small run; copy it to change it."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(small, run_dir) == 0
    return run_dir


@pytest.fixture
def run_dir(unbroken: Path, tmp_path: Path) -> Path:
    """A copy of the finished small run."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@contextlib.contextmanager
def writes_fail(run_dir: Path, number: int, after: int = 0) -> Iterator[None]:
    """Writes below a directory, after so many of them, fail with this error of the file system."""
    left = itertools.count(after, -1)

    def listener(path: Path) -> None:
        if path.is_relative_to(run_dir) and next(left) <= 0:
            raise OSError(number, os.strerror(number), *([str(path)] if number == errno.EROFS else []))

    listeners.append(listener)
    try:
        yield
    finally:
        listeners.clear()


# --- kills ---


@ignore_closed_loops
def test_a_run_that_is_killed_before_any_of_its_writes_goes_on_to_the_same_end(
    small: Config, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with copies_before_every_write(tmp_path / "run", tmp_path / "copies"):
        assert train(small, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", unbroken)
    copies = sorted((tmp_path / "copies").iterdir())
    begun = [copy for copy in copies if run_directory.has_begun(copy)]
    before = [copy for copy in copies if copy not in begun]
    assert len(before) >= 20
    assert len(begun) >= 40
    for copy in before:  # nothing is trained yet: any run may begin there
        run_directory.check(copy, tiny(seed=5))
    capsys.readouterr()
    for copy in (before[-1], *different(begun)):
        assert train(small, copy) == 0, copy.name
        assert_same_run(copy, unbroken)
        assert [path.name for path in copy.rglob("*.tmp")] == [], copy.name
    assert "lacks records" not in capsys.readouterr().err


def test_a_directory_in_which_a_start_was_killed_before_its_run_began_is_free(
    small: Config, unbroken: Path, tmp_path: Path
) -> None:
    left = tmp_path / "run"
    left.mkdir()
    for name in (".lock", "config.json.tmp", "partition.csv", "data.json"):
        (left / name).touch()
    run_directory.check(left, tiny(seed=7))
    assert train(small, left) == 0
    assert_same_run(left, unbroken)


@pytest.mark.parametrize("name", ["partition.csv", "metrics.jsonl", "thesis.tex"])
def test_a_file_of_somebody_else_is_no_trace_of_a_failed_start(name: str, small: Config, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(small, tmp_path)
    assert files(tmp_path) == {tmp_path / name: b"mine"}


def test_a_start_that_fails_whatever_the_error_leaves_no_directory(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "of a kind that nobody thought of")

    monkeypatch.setattr("mosaic_jax.runner.write_data", fail)
    with pytest.raises(UnicodeEncodeError):
        train(small, tmp_path / "run")
    with pytest.raises(ConfigError, match="--stop-after meta: method fedavg has no such stage"):
        train(small, tmp_path / "run", stop_after="meta")
    assert not (tmp_path / "run").exists()


def test_a_copy_whose_records_are_older_than_its_checkpoint_says_what_it_lacks(
    run_dir: Path, small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "results.json").unlink()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 2))
    assert train(small, run_dir) == 0
    assert "metrics.jsonl lacks records of warmup up to step 2, it has those up to 1" in capsys.readouterr().err


def test_a_clock_that_is_set_back_changes_nothing(
    small: Config, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(back)))
    assert train(small, tmp_path / "run") == 0
    (tmp_path / "run" / "results.json").unlink()
    assert train(small, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", unbroken)
    seconds = [record["seconds"] for record in read(tmp_path / "run")]
    assert seconds == sorted(seconds)


# --- paths ---


def test_a_run_directory_may_be_named_like_a_pattern(small: Config, unbroken: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "lr=[0.1],a*b?" / "**" / "run"
    assert train(small, run_dir) == 0
    assert_same_run(run_dir, unbroken)
    assert cli.main(["evaluate", str(run_dir)]) == 0


def test_a_path_that_cannot_hold_checkpoints_is_refused_before_training(small: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "no-utf8-\udcff"
    with pytest.raises(ConfigError, match=r"cannot hold checkpoints \(.*\); name another directory"):
        train(small, run_dir)
    assert not run_dir.exists()


# --- disks ---


@ignore_closed_loops
def test_a_checkpoint_that_does_not_come_back_ends_the_run_before_its_stage_counts(
    arguments: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wait = StageCheckpoints.wait

    def wait_on_a_bad_disk(self: StageCheckpoints) -> None:
        wait(self)
        for file in (tmp_path / "run" / "checkpoints" / "warmup" / "2").glob("state/**/d/*"):
            flip(file)

    monkeypatch.setattr(StageCheckpoints, "wait", wait_on_a_bad_disk)
    assert cli.main(["train", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "checkpoints/warmup: checkpoint warmup/2 does not come back (" in error
    assert error.endswith("; look at the disk and give the same command again\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.undo()
    assert cli.main(["train", *arguments, "--run-dir", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", unbroken)


@ignore_closed_loops
@pytest.mark.parametrize("after", [0, 5, 20, 22, 30, 36, 40, 43, 50, 60, 75, 79])
def test_a_disk_that_is_full_at_any_write_is_one_line_and_with_room_the_same_command_goes_on(
    after: int, arguments: list[str], unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *arguments, "--run-dir", str(tmp_path / "run")]
    with writes_fail(tmp_path / "run", errno.ENOSPC, after):
        assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert cli.main(command) == 0
    assert_same_run(tmp_path / "run", unbroken)


def test_what_tensorstore_says_of_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    checkpoints = StageCheckpoints(tmp_path, "warmup", "hash", 1)
    said = "RESOURCE_EXHAUSTED: Error writing: Failed to write 3 bytes to file 4: No space left on device [os_error_code='28']"

    class Full:
        def save(self, *arguments: object, **options: object) -> None:
            raise ValueError(said)

    checkpoints.close()
    checkpoints._manager = Full()
    with pytest.raises(OSError, match="No space left on device") as raised:
        checkpoints.save(1, {"a": np.ones(3)})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_a_record_for_which_the_disk_has_no_room_names_its_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    for call in (lambda: log.write("warmup", 1, {"loss": 1.0}), log.close):
        with pytest.raises(OSError, match="No space left on device") as raised:
            call()
        assert raised.value.filename == str(tmp_path / "metrics.jsonl")


def test_a_finished_run_on_a_read_only_disk_shows_its_table_and_says_what_is_not_written(
    run_dir: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run_dir)
    with writes_fail(run_dir, errno.EROFS):
        statuses = [cli.main(command) for command in (["evaluate", str(run_dir)], ["train", *arguments, "--run-dir", str(run_dir)])]
        out, err = capsys.readouterr()
        assert statuses == [0, 0]
        assert out.count("fedavg, seed 0") == 2
        assert "is finished already" in out
        assert err == f"warning: {run_dir / 'results.json'}: not written (Read-only file system); work on a copy elsewhere\n"
        assert cli.main(["report", str(run_dir)]) == 2
    out, err = capsys.readouterr()
    assert "fedavg, seed 0" in out
    assert err == f"error: {run_dir / 'report.html'}: Read-only file system; work on a copy elsewhere\n"
    assert files(run_dir) == before


def test_finished_seeds_on_a_read_only_disk_show_their_table(
    unbroken: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken, tmp_path / "runs" / "seed0")
    with writes_fail(tmp_path / "runs", errno.EROFS):
        assert cli.main(["train", *arguments, "--seeds", "0", "--run-dir", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert "fedavg, seeds 0" in out
    assert err == f"warning: {tmp_path / 'runs' / 'seeds.json'}: not written (Read-only file system); work on a copy elsewhere\n"


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = StageCheckpoints(tmp_path / "warmup", "warmup", "hash", 1)
    checkpoints.save(1, {"a": np.ones(3)})
    checkpoints.wait()
    for error in (ValueError("PERMISSION_DENIED: [os_error_code='13']"), PermissionError(errno.EACCES, "Permission denied")):

        def refuse(*arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(checkpoints, "_read", refuse)
        with pytest.raises(OSError, match="Permission denied") as raised:
            checkpoints.restore({"a": np.ones(3)}, pytest.fail)
        assert raised.value.filename == str(tmp_path / "warmup" / "1")
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["warmup"]


# --- damage ---


def another_digit(path: Path) -> None:
    results = json.loads(path.read_text())
    results["models"]["global"]["test"] += 0.4
    path.write_text(json.dumps(results, indent=1) + "\n")


def truncated(path: Path) -> None:
    path.write_text(path.read_text()[:200])


@pytest.mark.parametrize("damage", [another_digit, truncated])
def test_results_that_are_not_as_they_were_written_are_noticed_and_made_again(
    damage: Callable[[Path], None], run_dir: Path, unbroken: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["train", *arguments, "--run-dir", str(run_dir)], ["evaluate", str(run_dir)]):
        damage(run_dir / "results.json")
        assert cli.main(["report", str(run_dir)]) == 2
        error = capsys.readouterr().err
        assert "results.json: " in error
        assert error.endswith("; `mosaic-jax evaluate` makes it again from the checkpoints\n")
        assert cli.main(command) == 0
        out, error = capsys.readouterr()
        assert "finished already" not in out
        assert error.startswith(f"warning: {run_dir / 'results.json'}: ")
        assert error.endswith("; it is made again from the checkpoints\n")
        assert_same_run(run_dir, unbroken)
        assert cli.main(["report", str(run_dir)]) == 0


def test_results_of_a_version_that_wrote_no_digest_are_taken_as_they_are(run_dir: Path, arguments: list[str]) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    del results["sha256"]
    (run_dir / "results.json").write_text(json.dumps(results))
    before = files(run_dir)
    assert cli.main(["train", *arguments, "--run-dir", str(run_dir)]) == 0
    assert files(run_dir) == before


@ignore_closed_loops
def test_the_remedy_for_a_damaged_checkpoint_of_a_finished_run_works(
    run_dir: Path, unbroken: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for file in run_dir.glob("checkpoints/warmup/2/state/**/d/*"):
        flip(file)
    assert cli.main(["evaluate", str(run_dir)]) == 2
    assert f"delete {run_dir / 'results.json'} and resume it with the `mosaic-jax train` command" in capsys.readouterr().err
    (run_dir / "results.json").unlink()
    assert cli.main(["train", *arguments, "--run-dir", str(run_dir)]) == 0
    assert cli.main(["evaluate", str(run_dir)]) == 0
    assert_same_run(run_dir, unbroken)


@ignore_closed_loops
def test_evaluating_what_is_left_of_a_finished_run_keeps_the_results_of_all_of_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    for file in run_dir.glob("checkpoints/finetune/2/state/**/d/*"):
        flip(file)
    before = (run_dir / "results.json").read_bytes()
    assert cli.main(["evaluate", str(run_dir)]) == 0
    out, error = capsys.readouterr()
    assert "finetuned" not in out
    assert "stage finetune is not finished in its checkpoints; delete" in error
    assert (run_dir / "results.json").read_bytes() == before


def test_sampling_a_run_whose_method_has_no_generators_says_so(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(run_dir), "--out", str(tmp_path / "s.png")]) == 2
    assert capsys.readouterr().err == f"error: {run_dir}: method fedavg has no generators; name a run of Mosaic\n"


def test_foreign_files_among_the_checkpoints_are_left_alone(
    run_dir: Path, unbroken: Path, small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run_dir / "checkpoints"
    foreign = [place / "notes.txt", place / "warmup" / ".DS_Store", place / "warmup" / "2 (copy)" / "x", run_dir / "thesis.tex"]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    (run_dir / "results.json").unlink()
    assert train(small, run_dir) == 0
    assert cli.main(["evaluate", str(run_dir)]) == 0
    assert_same_run_without(foreign, run_dir, unbroken)
    assert "damaged" not in capsys.readouterr().err


def assert_same_run_without(foreign: list[Path], run_dir: Path, other: Path) -> None:
    assert [file.read_text() for file in foreign] == ["mine"] * len(foreign)
    for file in foreign:
        file.unlink()
    assert_same_run(run_dir, other)


# --- pickles ---


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


@ignore_closed_loops
def test_no_pickle_is_opened_wherever_it_lies(
    run_dir: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "opened"
    trap = pickle.dumps(Trap(mark))
    array = np.array([Trap(mark)], dtype=object)
    np.save(tmp_path / "trap.npy", array, allow_pickle=True)
    command = ["train", *arguments, "--run-dir", str(run_dir)]
    for file in sorted(path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"):
        kept = file.read_bytes()
        for content in (trap, (tmp_path / "trap.npy").read_bytes()):
            copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
            (copy / file.relative_to(run_dir)).write_bytes(content)
            if "checkpoints" in file.parts:
                checkpoints = StageCheckpoints(copy / "checkpoints" / "warmup", "warmup", "hash", 1)
                checkpoints.restore({"a": np.zeros(3)}, lambda warning: None, read_only=True)
                checkpoints.close()
            else:
                for tried in (["report", str(copy)], ["evaluate", str(copy)], [*command[:-1], str(copy)]):
                    assert cli.main(tried) in (0, 2), (file, tried)
            shutil.rmtree(copy)
        assert file.read_bytes() == kept

    data = tmp_path / "data"
    np.savez(tmp_path / "objects.npz", allow_pickle=True, x_train=array, y_train=array, x_test=array, y_test=array)
    (tmp_path / "raw.npz").write_bytes(trap)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (data / split / name).mkdir(parents=True)
            for ending in ("png", "jpg", "npy", "pkl"):
                (data / split / name / f"0.{ending}").write_bytes(trap)
    for source in (f"npz:{tmp_path / 'objects.npz'}", f"npz:{tmp_path / 'raw.npz'}", f"folder:{data}"):
        assert cli.main([*command[:-1], str(tmp_path / "other"), "--set", f"data.source={source}"]) == 2

    shutil.rmtree(data)
    images = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
    source = write_folder(data, ["cat", "dog"], {"train": images, "test": images})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    partition = ["partition", *arguments, "--set", f"data.source={source}"]
    assert cli.main(partition) == 0
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached
    for file in cached:
        for content in (trap, (tmp_path / "trap.npy").read_bytes()):
            file.write_bytes(content)
            assert cli.main(partition) == 0
    assert not mark.exists()
    pickle.loads(trap).close()
    assert mark.exists()  # the trap does work
