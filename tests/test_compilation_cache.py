"""Compiled programs outlive a run: where the command line keeps them, and that they change nothing but the time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from conftest import fingerprints

from mosaic_jax import cli
from mosaic_jax.io import compilation_cache
from mosaic_jax.io.cache_directory import cache_directory

ROOT = Path(__file__).parent.parent
SETTINGS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def untouched() -> Iterator[None]:
    """JAX as a user has it who set nothing; as it was, afterwards."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def no_warning(text: str) -> None:
    pytest.fail(text)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("base", ["", "relative/is/ignored", "ABSOLUTE"])
def test_programs_are_kept_in_the_users_cache_directory(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg") if base == "ABSOLUTE" else base)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    compilation_cache.enable(no_warning)
    root = tmp_path / "xdg" if base == "ABSOLUTE" else tmp_path / "home" / ".cache"
    (directory,) = (root / "mosaic_jax" / "xla").iterdir()
    assert jax.config.jax_compilation_cache_dir == str(directory)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == compilation_cache.MIN_COMPILE_SECONDS


@pytest.mark.parametrize(("kind", "differs"), [("xla", True), ("native", True), ("data", False)])
def test_another_kind_of_processor_has_its_own_compiled_code_and_shares_data(
    kind: str, differs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cache_directory(kind)
    assert here == cache_directory(kind)
    monkeypatch.setattr("mosaic_jax.io.cache_directory._processor", lambda: "another")
    assert (cache_directory(kind) != here) == differs


@pytest.mark.usefixtures("untouched")
def test_a_cache_directory_that_cannot_be_written_is_one_line_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xdg").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    warnings: list[str] = []
    compilation_cache.enable(warnings.append)
    (line,) = warnings
    assert "compiled programs are not kept" in line
    assert str(tmp_path / "xdg") in line
    assert "\n" not in line
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("untouched")
def test_what_the_user_told_jax_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    compilation_cache.enable(no_warning)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.enable(no_warning)
    assert jax.config.jax_compilation_cache_dir is None
    assert not (tmp_path / "xdg").exists()


@pytest.mark.usefixtures("untouched")
def test_the_option_turns_the_cache_off_wherever_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    console = cli.console_of(cli.build_parser().parse(["evaluate", "run"]))
    cli.set_compilation_cache(cli.build_parser().parse(["evaluate", "run"]), console)
    assert jax.config.jax_enable_compilation_cache
    cli.set_compilation_cache(cli.build_parser().parse(["evaluate", "run", "--no-compilation-cache"]), console)
    assert not jax.config.jax_enable_compilation_cache


# What the program that runs the command counts, on its last line.
PROGRAM = """
import json, sys, jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
if sys.argv[1:]:
    from mosaic_jax.cli import main
    assert main(sys.argv[1:]) == 0
else:
    import mosaic_jax.runner
print(json.dumps({"hits": len(hits), "directory": jax.config.jax_compilation_cache_dir}))
"""


def run(arguments: list[str], cache: Path) -> tuple[dict, str]:
    """What a process without JAX settings of its own counted, and all that it wrote to standard error."""
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name} | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_second_run_loads_what_the_first_compiled_says_nothing_about_it_and_ends_the_same(
    tiny_arguments: list[str], tmp_path: Path
) -> None:
    # The C++ kernels would be compiled anew for this cache directory.
    shorter = ["method=fedavg", "warmup.num_rounds=1", "finetune.num_rounds=0", "mapping.convolution=map"]
    train = ["train", *tiny_arguments, *shorter, "--run-dir"]
    cold, errors = run([*train, str(tmp_path / "cold")], tmp_path / "cache")
    warm, more_errors = run([*train, str(tmp_path / "warm")], tmp_path / "cache")
    assert warm["hits"] >= cold["hits"] + 2  # the segment, and at least one of start, validation and evaluation
    assert errors == more_errors == ""
    assert fingerprints(tmp_path / "cold") == fingerprints(tmp_path / "warm")


def test_importing_the_package_as_a_library_keeps_nothing(tmp_path: Path) -> None:
    counted, _ = run([], tmp_path / "cache")
    assert counted["directory"] is None
    assert not (tmp_path / "cache").exists()
