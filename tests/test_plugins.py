"""Parts of a user's own: registered in one file, chosen, checked, trained, resumed, planned, compared and evaluated by name."""

import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, StoppingConsole, assert_same_run, tiny, train

import mosaic_jax as mj
from mosaic_jax import cli, plugins, registry
from mosaic_jax.config import Config
from mosaic_jax.config_io import config_hash, flatten, from_dict, load_json, save_json, to_dict, with_values
from mosaic_jax.io.console import Console
from mosaic_jax.io.results_file import read_results
from mosaic_jax.planning.limit import remedies
from mosaic_jax.planning.run_plan import plan_run
from mosaic_jax.planning.tables import show
from mosaic_jax.rows import identity, stage_keys

ROOT = Path(__file__).parent.parent
PLUGIN = Path(__file__).parent / "noise_distillation.py"
OTHERS = {
    "model.name": "perceptron", "model.width": 3, "warmup.method": "fedhalf", "partition.kind": "in_turn", "data.source": "stripes",
    "generator.name": "dim_dcgan", "meta.name": "mean_meta",
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_stays_registered() -> Iterator[None]:
    """Registries as they were: other tests have no plugin."""
    before = [dict(each._rows) for each in registry.REGISTRIES]
    yield
    for each, rows in zip(registry.REGISTRIES, before, strict=True):
        each._rows = rows


@pytest.fixture
def loaded() -> None:
    mj.load_plugin(PLUGIN)


def mine(**sections: Any) -> Config:
    return tiny(method="noise_distillation", **sections)


def written(path: Path, text: str) -> Path:
    path.write_text(f"import dataclasses\n\nimport mosaic_jax as mj\n\n\n{text}\n")
    return path


# --- the configuration ---


def test_settings_of_a_plugin_are_read_checked_hashed_and_kept_like_all_others(loaded: None, tmp_path: Path) -> None:
    config = with_values(Config(), {"method": "noise_distillation", "noise_distillation.learning_rate": 1})
    assert config.noise_distillation.learning_rate == 1.0
    assert flatten(config)["noise_distillation.num_steps"] == 4
    assert hash(config) == hash(with_values(config, {}))
    save_json(config, tmp_path / "config.json")
    assert load_json(tmp_path / "config.json") == from_dict(to_dict(config)) == config
    (record,) = json.loads((tmp_path / "config.json").read_text())["plugins"]
    assert record == {"path": str(PLUGIN), "digest": plugins._digest(PLUGIN)}
    other = with_values(config, {"noise_distillation.num_steps": 5})
    assert config_hash(other) != config_hash(config) != config_hash(Config())
    with pytest.raises(AttributeError, match="no setting or section 'nothing'"):
        config.nothing  # noqa: B018


def test_a_configuration_that_names_nothing_of_a_plugin_is_as_without_it() -> None:
    before = (config_hash(Config()), to_dict(Config()), flatten(Config()), stage_keys(Config()))
    assert before[0] == "3f018c3160864390"  # changes with the settings that are built in, and with nothing else
    old = Config()
    mj.load_plugin(PLUGIN)
    assert (config_hash(Config()), to_dict(Config()), flatten(Config()), stage_keys(Config())) == before
    unused = with_values(old, {"noise_distillation.num_steps": 9})  # made before the plugin was loaded
    assert unused.noise_distillation.num_steps == 9
    assert config_hash(unused) == before[0]


ALPHA = "@dataclasses.dataclass(frozen=True)\nclass Mine:\n    alpha: float = mj.setting(1.0, 'a factor', low=0)\n\n\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers nothing; call mosaic_jax.register_method"),
        ("mj.register_method('mosaic', print)", "name mosaic: is built in already; choose another"),
        ("mj.register_network('cnn', print)", "name cnn: is built in already"),
        ("mj.register_source('cifar10', print)", "name cifar10: is built in already"),
        ("mj.register_method('Mine!', print)", "name 'Mine!': must be a lower-case Python name"),
        (f"{ALPHA}mj.register_method('data', print, Mine)", "name data: is a section of the configuration already"),
        (f"{ALPHA}mj.register_method('a', print, Mine)\nmj.register_network('a', print, Mine)", "name a: is a section of the"),
        ("mj.register_method('a', print, dict)", "settings of a: must be a class under @dataclasses.dataclass(frozen=True)"),
        (
            "@dataclasses.dataclass(frozen=True)\nclass Mine:\n    alpha: float = 1.0\n\n\nmj.register_method('a', print, Mine)",
            "settings of a: alpha must be a number, text, true or false, or a tuple of one of them, made by mosaic_jax.setting",
        ),
        (
            "@dataclasses.dataclass(frozen=True)\nclass Mine:\n    alpha: int | None = mj.setting(None, 'x')\n\n\n"
            "mj.register_method('a', print, Mine)",
            "settings of a: alpha must be a number, text, true or false",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_like_it", "No module named 'nothing_like_it'; install it, or put it beside the file"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_be_one_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_arguments: list[str]
) -> None:
    file = written(tmp_path / "wrong.py", text)
    assert cli.main(["config", "--plugin", str(file), *tiny_arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: plugin {file}: ") and error.count("\n") == 1
    assert message in error


def test_a_plugin_that_is_not_there_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--config", "any.py", "--plugin", str(PLUGIN.with_name("noise_distilation.py"))]) == 2
    assert f"not found; did you mean {PLUGIN}?" in capsys.readouterr().err


def test_help_and_did_you_mean_know_a_plugin(capsys: pytest.CaptureFixture[str], tiny_arguments: list[str]) -> None:
    command = ["config", "--plugin", str(PLUGIN), *tiny_arguments]
    assert cli.main([*command, "method=noise_distillation"]) == 0
    assert "noise_distillation.noise=uniform " in capsys.readouterr().out
    for assignment, message in (
        ("method=noise_distilation", "did you mean noise_distillation?"),
        ("warmup.method=fedhal", "did you mean fedhalf?"),
        ("model.name=perceptrom", "did you mean perceptron?"),
        ("noise_distillation.nois=uniform", "is no setting; did you mean noise_distillation.noise?"),
        ("noise_distillation.noise=gausian", "must be one of uniform, gaussian; did you mean gaussian?"),
        ("noise_distillation.batch_size=0", "must be a whole number, at least 1"),
        ("data.source=stripe", "did you mean stripes?"),
    ):
        assert cli.main([*command, assignment]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_configuration_file_imports_its_plugin(tmp_path: Path) -> None:
    shutil.copy(PLUGIN, tmp_path / "neighbour.py")
    file = tmp_path / "config.py"
    file.write_text("import neighbour\nfrom mosaic_jax.config import Config\n\nget_config = lambda: Config(method='fedhalf')\n")
    configs = [mj.load_config(file, ["fedhalf.factor=0.25"]) for _ in range(2)]  # run twice, it registers once
    assert configs[0] == configs[1]
    assert (configs[0].fedhalf.factor, to_dict(configs[0])["plugins"][0]["path"]) == (0.25, str(tmp_path / "neighbour.py"))


def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PLUGIN, tmp_path / "installed_plugin.py")
    (record := tmp_path / "installed_plugin-1.dist-info").mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-plugin\nVersion: 1\n")
    (record / "entry_points.txt").write_text("[mosaic_jax.plugins]\nnoise = installed_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [point.value for point in importlib.metadata.entry_points(group=plugins.GROUP)] == ["installed_plugin"]
    plugins._load_installed.cache_clear()
    try:
        plugins.load_plugins()
        assert Config(method="fedhalf").fedhalf.factor == 0.5
    finally:
        plugins._load_installed.cache_clear()
        sys.modules.pop("installed_plugin", None)


# --- runs ---


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, unbroken run of the plugin's method."""
    before = [dict(each._rows) for each in registry.REGISTRIES]
    mj.load_plugin(PLUGIN)
    directory = tmp_path_factory.mktemp("plugin") / "run"
    assert train(mine(), directory) == 0
    for each, rows in zip(registry.REGISTRIES, before, strict=True):
        each._rows = rows
    return directory


def test_the_student_of_a_plugins_server_stage_stands_in_the_table_and_is_handed_over(run_dir: Path, loaded: None) -> None:
    results = read_results(run_dir)
    assert results is not None
    assert list(results["models"]) == ["global", "clients", "noise student"]
    assert (results["final"], results["stages_done"]) == ("noise student", ["warmup", "noise"])
    run = mj.open_run(run_dir)
    logits = run.predict(run.problem.dataset.test_images)
    accuracy = np.mean(logits.argmax(1) == run.problem.dataset.test_labels)
    assert accuracy == pytest.approx(results["models"]["noise student"]["test"])


def test_a_plugins_run_stopped_after_every_segment_ends_as_the_unbroken_one(run_dir: Path, loaded: None, tmp_path: Path) -> None:
    stops = 0
    while (status := train(mine(), tmp_path / "stopped", console=StoppingConsole())) == 143:
        stops += 1
    assert (status, stops) == (0, 5)  # three rounds, and two segments at the server
    assert_same_run(tmp_path / "stopped", run_dir)


def test_a_plugins_run_is_evaluated_and_stops_after_its_own_stage(
    run_dir: Path, tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "results.json").unlink()
    assert cli.main(["evaluate", str(copy), "--plugin", str(PLUGIN)]) == 0
    before, again = read_results(run_dir), read_results(copy)
    assert before is not None and again is not None
    assert again["models"] == before["models"]
    assert cli.main(["report", str(copy), "--plugin", str(PLUGIN)]) == 0
    command = ["train", "--plugin", str(PLUGIN), *tiny_arguments, "method=noise_distillation", "--run-dir", str(tmp_path / "part")]
    assert cli.main([*command, "--stop-after", "warmup"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--stop-after", "nois"]) == 2
    assert "its stages are warmup, noise; did you mean noise?" in capsys.readouterr().err
    assert cli.main([*command, "--stop-after", "noise"]) == 0


def test_a_plugins_stage_is_planned_and_says_what_eases_its_memory(loaded: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_run(mine())
    assert [(stage.name, stage.mapped) for stage in plan.stages] == [("warmup", True), ("noise", False)]
    assert plan.stages[1].memory.state > 0 and plan.stages[1].memory.activations > 0
    show(plan, Console())
    assert "noise" in capsys.readouterr().out
    problem = mj.build_problem(mine())
    assert remedies(problem, "noise") == "lower noise_distillation.batch_size or model.width in a new run"
    limited = plan_run(mine(memory={"limit_gib": 1e-6}))
    assert limited.shortage is not None and limited.shortage.refused


def test_a_plugins_method_is_compared_and_shares_the_stages_that_it_says(
    tmp_path: Path, loaded: None, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = mine()
    other = with_values(base, {"noise_distillation.num_steps": 5})
    shared = [stage for stage, key in stage_keys(base).items() if stage_keys(other)[stage] == key]
    assert shared == ["warmup"] and identity(base) != identity(other)
    file, place = tiny_arguments[1], tiny_arguments.index("--set")
    command = ["compare", "--plugin", str(PLUGIN), "--configs", file, "--methods", "noise_distillation", "fedavg", "--seeds", "0,1"]
    assert cli.main([*command, "--out", str(tmp_path / "out"), *tiny_arguments[place:], "warmup.num_rounds=1"]) == 0
    summary = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(row["row"], row["final"], row["seeds"]) for row in summary["rows"]] == [
        ("tiny-noise_distillation", "noise student", [0, 1]), ("tiny-fedavg", "global", [0, 1]),
    ]  # fmt: skip


def test_a_section_that_no_stage_says_it_reads_counts_for_all_of_them(tmp_path: Path) -> None:
    text = f"{ALPHA}mj.register_method('mine', print, Mine, reads={{'warmup': ('warmup.method',)}})"
    mj.load_plugin(written(tmp_path / "mine.py", text))
    one, two = (with_values(Config(), {"method": "mine", "mine.alpha": alpha}) for alpha in (1.0, 2.0))
    assert stage_keys(one) != stage_keys(two)


def test_a_run_whose_plugin_changed_or_is_missing_is_refused_in_one_line(
    run_dir: Path, tmp_path: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(command: list[str], message: str) -> None:
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    train_it = ["train", *tiny_arguments, "method=noise_distillation", "--run-dir", str(run_dir)]
    refused(["evaluate", str(run_dir)], f"needs the plugin {PLUGIN}; name it by --plugin")
    refused(train_it, "method=noise_distillation: must be one of mosaic,")
    changed = tmp_path / PLUGIN.name
    changed.write_text(PLUGIN.read_text().replace("jnp.mean(of_clients, axis=0)", "jnp.max(of_clients, axis=0)"))
    for command in (["evaluate", str(run_dir)], train_it):
        for each in registry.REGISTRIES:
            each._rows = {name: entry for name, entry in each._rows.items() if entry.built_in}
        refused([*command, "--plugin", str(changed)], "has changed since this run began; restore it, or name another run directory")
    for each in registry.REGISTRIES:
        each._rows = {name: entry for name, entry in each._rows.items() if entry.built_in}
    moved = shutil.copy(PLUGIN, tmp_path / "elsewhere.py")  # the same file under another name is the same plugin
    assert cli.main([*train_it, "--plugin", str(moved)]) == 0


def test_a_plugin_that_has_gone_says_so(loaded: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = to_dict(mine())
    values["plugins"] = [{"path": str(tmp_path / "gone.py"), "digest": "0" * 64}]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(mj.ConfigError, match=r"needs the plugin .*gone\.py, which is no longer there; name it by --plugin"):
        load_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(values | {"plugins": [{"path": 3}]}))
    with pytest.raises(mj.ConfigError, match=r"cannot be read: plugins\[0\]\.path is 3, not a text"):
        load_json(tmp_path / "config.json")


def test_every_other_part_of_a_plugin_trains_in_mosaic(loaded: None) -> None:
    config = with_values(tiny(), OTHERS | {"stripes.num_images": 90, "perceptron.layers": 2, "in_turn.block": 2})
    problem = mj.build_problem(config)
    assert problem.num_classes == 3 and problem.partition_counts.tolist() == [[15, 15, 0], [15, 0, 15], [0, 15, 15]]
    assert set(problem.architectures[0].sizes) == set()
    outputs = mj.run(problem)
    assert list(mj.evaluate(problem, outputs)) == ["global", "clients", "expert_sum", "mixture", "student", "finetuned"]
    assert {"hidden_0", "hidden_1", "last"} == set(outputs["distill"].params)
    assert [stage.name for stage in plan_run(config).stages][-1] == "finetune"
    assert len(to_dict(config)["plugins"]) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.name": "perceptron", "method": "fedrolex"}, "perceptron has no narrower forms to give to clients"),
        ({"model.name": "perceptron", "method": "fedbn"}, "perceptron has no BatchNorm to keep at the clients"),
        ({"model.name": "perceptron", "generator.inversion_weight": 1.0}, "perceptron has no BatchNorm statistics"),
        ({"method": "fedhalf", "clients.rates": (1.0, 0.5, 0.5)}, "method=fedhalf gives every client the whole network"),
    ],
)
def test_what_a_plugins_part_cannot_do_is_refused_in_one_line(values: dict[str, Any], message: str, loaded: None) -> None:
    with pytest.raises(mj.ConfigError, match=message):
        with_values(tiny(), values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda problem, federation: None, "method=mine: gives NoneType; it must return a tuple of Stage"),
        (lambda problem, federation: mj.METHODS["fedavg"](problem, federation) * 2, r"two stages have one name \(warmup, warmup\)"),
        (
            lambda problem, federation: tuple(stage._replace(hands_over="") for stage in mj.METHODS["fedavg"](problem, federation)),
            "no stage hands over a model by which it is judged",
        ),
    ],
)
def test_a_method_without_proper_stages_is_refused(build: Any, message: str) -> None:
    mj.register_method("mine", build)
    problem = mj.build_problem(tiny(method="fedavg"))
    with pytest.raises(mj.ConfigError, match=message):
        mj.stages_of(problem._replace(config=dataclasses.replace(problem.config, method="mine")))


@pytest.mark.parametrize("deal", [lambda *_, settings: [np.arange(3)] * 3, lambda *_, settings: [np.array([0.5])] * 3])
def test_a_partition_that_deals_an_image_twice_or_none_is_refused(deal: Any) -> None:
    mj.register_partition("mine", deal)
    with pytest.raises(mj.ConfigError, match=r"partition.kind=mine: deals \d images to 3 clients; it must give each"):
        mj.build_problem(tiny(partition={"kind": "mine"}))


def test_a_source_that_gives_no_data_set_is_refused() -> None:
    mj.register_source("mine", lambda data, settings: 3)
    with pytest.raises(mj.ConfigError, match=r"data.source=mine: gives int; it must return a mosaic_jax.Dataset"):
        mj.build_problem(tiny(data={"source": "mine"}))


def test_what_is_built_in_is_known_without_jax() -> None:
    names = "'mosaic' in c.METHODS and 'vit' in c.NETWORKS and 'folder' in c.SOURCES"
    code = f"import sys, mosaic_jax.config as c; print({names}, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"]
    assert all(callable(each[name]) for each in registry.REGISTRIES for name in each)
    assert set(TINY) <= set(flatten(Config()))
