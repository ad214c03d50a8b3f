"""Settings are checked by name, type and range, and every complaint is one line with a remedy."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from mosaic_jax import config_io
from mosaic_jax.config import ClientsConfig, Config, ConfigError, DataConfig, MetaConfig, ModelConfig, PartitionConfig, WarmupConfig
from mosaic_jax.presets import PRESETS
from mosaic_jax.settings import Setting, checked, describe, setting, settings

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))

COMPLAINTS = [
    ("warmup.num_round=3", "warmup.num_round is no setting; did you mean warmup.num_rounds?"),
    ("alpha=1", "alpha is no setting; did you mean partition.alpha or fedrs.alpha?"),
    ("alpa=1", "alpa is no setting; did you mean partition.alpha?"),
    ("warmup=3", "warmup is a section, no setting; its settings are warmup.method, "),
    ("warmup.batch_size", "--set warmup.batch_size: write NAME=VALUE"),
    ("warmup.batch_size=0", "warmup.batch_size=0: must be a whole number, from 1 to 65536"),
    ("warmup.batch_size=many", "warmup.batch_size=many: must be a whole number, from 1 to 65536"),
    ("warmup.batch_size=3.5", "warmup.batch_size=3.5: must be a whole number, from 1 to 65536"),
    ("warmup.batch_size=", "warmup.batch_size=: must be a whole number, from 1 to 65536"),
    ("partition.alpha=nan", "partition.alpha=nan: must be a number, at least 1e-06"),
    ("partition.alpha=inf", "partition.alpha=inf: must be a number, at least 1e-06"),
    ("partition.num_clients=1000000000000", "partition.num_clients=1000000000000: must be a whole number, from 1 to 1000000"),
    ("warmup.num_rounds=1000000000000", "warmup.num_rounds=1000000000000: must be a whole number, from 1 to 1000000"),
    ("generator.inversion_threshold=1000000000000", "must be a whole number, at least 0, at most 2147483647"),
    ("data.labels=compat", "data.labels=compat: must be one of as_given, compact; did you mean compact?"),
    ("data.background=red", "data.background=red: must be one of white, grey, black"),
    ("data.bit_depth=7", "data.bit_depth=7: must be one of 0, 8, 9, 10, 11, 12, 13, 14, 15, 16"),
    (
        "partition.kind=idd",
        "partition.kind=idd: must be one of iid, dirichlet_unbalanced, dirichlet_balanced, shards, "
        "quantity_skew, table; did you mean iid?",
    ),
    ("partition.kind=table", "partition.table=: partition.kind=table needs a CSV file; name it with partition.table=FILE.csv"),
    ("data.validation_fraction=0.9", "data.validation_fraction=0.9: must be a number, from 0 to 0.5"),
    ("data.image_size=28", "data.image_size=28: must be one of 32, 64"),
    ("data.mean=1,2", "data.mean=1,2: must be 3 numbers separated by commas"),
    ("data.std=0.5,0,0.5", "data.std=0.5,0.0,0.5: must be above 0 in all channels, or 0,0,0 for the data set's own"),
    ("data.std=0.5,-1,0.5", "must be 3 numbers separated by commas, at least 0"),
    ("data.source=digts", "data.source=digts: must be one of digits, mnist, fmnist, svhn, cifar10, "),
    ("data.source=folder:", "tfds:NAME, folder:PATH, npz:PATH; did you mean folder:PATH?"),
    ("seed=-1", "seed=-1: must be a whole number, from 0 to 2147483647"),
]


@pytest.mark.parametrize(("assignment", "message"), COMPLAINTS)
def test_a_bad_assignment_is_refused_in_one_line_that_names_the_remedy(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_io.apply_overrides(Config(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "section", "field", "value"),
    [
        ("warmup.num_rounds=7", "warmup", "num_rounds", 7),
        ("partition.alpha=1", "partition", "alpha", 1.0),
        ("partition.alpha=1e-2", "partition", "alpha", 0.01),
        ("data.mean=.4914,.4822, .4465", "data", "mean", (0.4914, 0.4822, 0.4465)),
        ("data.source=folder:/a=b:c,d e", "data", "source", "folder:/a=b:c,d e"),
        ("clients.models=cnn:16, resnet18:8", "clients", "models", ("cnn:16", "resnet18:8")),
        ("clients.models=", "clients", "models", ()),
    ],
)
def test_an_assignment_is_read_by_the_type_of_its_field(assignment: str, section: str, field: str, value: object) -> None:
    config = config_io.apply_overrides(Config(), [assignment])
    found = getattr(getattr(config, section), field)
    assert found == value
    assert type(found) is type(value)


def test_an_int_where_a_float_is_meant_is_stored_as_a_float_and_true_is_no_int() -> None:
    assert type(Config(warmup=WarmupConfig(client_learning_rate=1)).warmup.client_learning_rate) is float
    with pytest.raises(ConfigError, match=r"warmup\.batch_size=true: must be a whole number"):
        Config(warmup=WarmupConfig(batch_size=True))
    with pytest.raises(ConfigError, match="meta=5: must be a MetaConfig"):
        Config(meta=5)
    with pytest.raises(ConfigError, match=r"data\.mean=0\.5: must be 3 numbers"):
        Config(data=DataConfig(mean=0.5))


def test_true_and_false_are_the_words_of_a_bool() -> None:
    field = dataclasses.make_dataclass("Section", [("flag", bool, setting(False, "a flag"))])
    flag = Setting("section.flag", False, bool, dataclasses.fields(field)[0])
    assert config_io.parse(flag, "true") is True
    assert config_io.parse(flag, "False") is False
    with pytest.raises(ConfigError, match=r"section\.flag=1: must be true or false"):
        config_io.parse(flag, "1")
    with pytest.raises(ConfigError, match=r"section\.flag=1: must be true or false"):
        checked(flag._replace(value=1))


def test_every_setting_has_help_and_a_default_that_is_valid() -> None:
    for each in settings(Config()):
        assert each.field.metadata["help"], each.name


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_names_settings_that_exist_with_values_that_are_valid(preset: str) -> None:
    config = config_io.apply_preset(Config(), preset)
    flat = config_io.flatten(config)
    assert {name: flat[name] for name in PRESETS[preset]} == PRESETS[preset]


def test_file_then_preset_then_assignments_then_seed(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "from mosaic_jax.config import *\n"
        "def get_config():\n"
        "    return Config(seed=1, distill=DistillConfig(num_steps=11), finetune=FinetuneConfig(num_rounds=2))\n"
    )
    assignments = ["distill.keep=best", "seed=4", "distill.num_steps=12", "distill.num_steps=13"]
    config = config_io.resolve(file, "reference", assignments, "9")
    assert config.finetune.num_rounds == 2
    assert config.distill.js == "midpoint"
    assert config.distill.keep == "best"
    assert config.distill.num_steps == 13
    assert config.seed == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no get_config"),
        ("def get_config():\n    return 3\n", "returned a int, not a mosaic_jax.config.Config"),
        ("def get_config():\n    return undefined\n", "NameError: name 'undefined' is not defined"),
        ("def get_config(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("from mosaic_jax.config import *\ndef get_config():\n    return Config(seed=-1)\n", "seed=-1: must be a whole number"),
    ],
)
def test_a_config_file_that_gives_no_config_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_io.load_config_file(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_imports_the_neighbours_of_its_own_directory_and_is_a_module_of_its_own(tmp_path: Path) -> None:
    for seed in (1, 2):
        directory = tmp_path / str(seed)
        (directory / "common").mkdir(parents=True)
        (directory / "base.py").write_text(f"SEED = {seed}\n")
        (directory / "common" / "__init__.py").write_text("from base import SEED\n")
        (directory / "run.py").write_text(
            "from __future__ import annotations\nimport dataclasses\nimport base\nfrom mosaic_jax.config import Config\n"
            "@dataclasses.dataclass\nclass Mine:\n    seed: int = base.SEED\n"
            "def get_config():\n    from common import SEED\n    assert SEED == Mine().seed\n    return Config(seed=SEED)\n"
        )
    path = list(sys.path)
    assert [config_io.load_config_file(tmp_path / str(seed) / "run.py").seed for seed in (1, 2, 1)] == [1, 2, 1]
    assert sys.path == path
    assert not {"base", "common"} & set(sys.modules)
    (tmp_path / "lone.py").write_text("import base\n")
    with pytest.raises(ConfigError, match=r"lone\.py: No module named 'base'; install it, or put it beside the file"):
        config_io.load_config_file(tmp_path / "lone.py")


def test_a_missing_config_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "digits.py").write_text("")
    with pytest.raises(ConfigError, match=r"not found; did you mean .*digits\.py\?"):
        config_io.load_config_file(tmp_path / "digit.py")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_is_valid_and_its_head_states_command_time_hardware_and_result(file: Path) -> None:
    config = config_io.resolve(file, "reference")
    assert config.distill.keep == "last"
    head = file.read_text().split('"""')[1]
    for word in (f"mosaic-jax train --config configs/{file.name}", "Time:", "Hardware:", "Result:"):
        assert word in head


def test_json_gives_the_same_config_back(tmp_path: Path) -> None:
    config = config_io.apply_overrides(Config(), ["data.mean=0.1,0.2,0.3", "partition.alpha=0.01", "data.source=npz:x=y"])
    config_io.save_json(config, tmp_path / "config.json")
    assert config_io.load_json(tmp_path / "config.json") == config


def test_json_with_a_name_of_another_version_is_refused(tmp_path: Path) -> None:
    values = config_io.to_dict(Config())
    values["warmup"]["epochs"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config\.json: warmup.epochs is no setting"):
        config_io.load_json(tmp_path / "config.json")


def test_the_hash_changes_with_every_setting_and_only_with_settings() -> None:
    base = Config(method="heterofl")  # has a place for every setting of clients
    hashes = {config_io.config_hash(base)}
    names = list(config_io.flatten(base))
    of_tuples = {"clients.models": ("cnn:4",), "clients.rates": (0.5,) * 10, "distill.label_prior": (0.5,)}
    for each in settings(base):
        limits = each.field.metadata
        if each.name in config_io.YOUNGER:  # there is one of it
            names.remove(each.name)
            continue
        if isinstance(each.value, bool):
            other = not each.value
        elif isinstance(each.value, str):
            other = next((choice for choice in limits["choices"] if choice != each.value), "npz:other")
        elif isinstance(each.value, tuple):
            other = of_tuples.get(each.name, (0.25, 0.5, 0.5))
        elif limits["choices"]:
            names.remove(each.name)
            continue
        else:
            low, high = limits["low"], limits["high"]
            other = each.value + 1 if high is None else (high if each.value != high else low)
        hashes.add(config_io.config_hash(config_io.with_values(base, {each.name: other})))
    assert len(hashes) == len(names) + 1
    assert config_io.config_hash(Config()) == config_io.config_hash(config_io.from_dict(config_io.to_dict(Config())))


def test_differences_name_the_settings_that_differ() -> None:
    other = dataclasses.replace(Config(), meta=MetaConfig(num_steps=3))
    assert config_io.differences(Config(), other) == ["meta.num_steps=250, not 3"]


def test_the_description_has_one_line_for_each_setting_that_set_reads_back() -> None:
    lines = [line for line in describe(Config()).splitlines() if line]
    assert len(lines) == len(config_io.flatten(Config()))
    assignments = [line.split("  ")[0] for line in lines]
    assert config_io.apply_overrides(Config(), assignments) == Config()


# --- clients that differ ---


def test_the_rates_of_ten_clients_under_rho_5_are_those_of_the_literature() -> None:
    config = Config(method="heterofl", clients=ClientsConfig(rho=5))
    assert config.client_rates == (1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.0625)
    assert set(Config().client_rates) == {1.0}


def test_networks_are_given_to_the_clients_in_turn() -> None:
    config = Config(partition=PartitionConfig(num_clients=5), clients=ClientsConfig(models=("cnn:16", "resnet18:8")))
    cnn, resnet = ModelConfig("cnn", 16), ModelConfig("resnet18", 8)
    assert config.client_models == (cnn, resnet, cnn, resnet, cnn)
    assert set(Config().client_models) == {ModelConfig()}


@pytest.mark.parametrize(
    ("assignments", "complaint"),
    [
        (["clients.rho=5"], "clients.rho=5: warmup.method=fedavg gives every client the whole network; set warmup.method to"),
        (["method=fedrs", "clients.rho=5"], "clients.rho=5: method=fedrs gives every client the whole network; set method to"),
        (["method=heterofl", "clients.rates=1,0.5"], "clients.rates=1.0,0.5: 2 rates for partition.num_clients=10; give one"),
        (["method=heterofl", "clients.rates=1,0"], "clients.rates=1.0,0.0: must be none or several, separated by commas, each"),
        (["partition.num_clients=1", "clients.rates=1", "clients.rho=5"], "clients.rho=5: clients.rates gives rates already"),
        (["clients.models=cnn"], "clients.models=cnn: must be NAME:WIDTH as in cnn:16, NAME one of cnn, resnet18"),
        (["clients.models=vgg:16"], "clients.models=vgg:16: must be NAME:WIDTH as in cnn:16"),
        (["partition.num_clients=1", "clients.models=cnn:1,cnn:2"], "clients.models=cnn:1,cnn:2: more networks than partition."),
        (
            ["warmup.method=fedrolex", "clients.rho=5", "experts=logits", "meta.source=prototypes"],
            "meta.source=prototypes: these clients' experts read no features in common; use meta.source=generated",
        ),
        (["clients.models=cnn:1,cnn:2", "experts=parameters"], "experts=parameters: clients.models=cnn:1,cnn:2 have no parame"),
        (["clients.models=cnn:1,cnn:2", "meta.source=prototypes"], "meta.source=prototypes: these clients' experts read no fe"),
        (["method=fedproxx"], "method=fedproxx: must be one of mosaic, fedavg_finetune, fedavg, fedprox, fedbn, fedrs, fedavgm"),
    ],
)  # fmt: skip
def test_clients_that_the_method_has_no_place_for_are_refused_by_field_value_and_remedy(
    assignments: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config_io.apply_overrides(Config(), assignments)
    assert str(refused.value).startswith(complaint)
