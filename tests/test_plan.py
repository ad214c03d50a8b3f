"""`mosaic-jax plan`: what it says before a run is what the run then does, and saying it makes no array of a network."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny

from mosaic_jax import cli, restored
from mosaic_jax.config import MappingConfig
from mosaic_jax.driving import jit_once
from mosaic_jax.io.console import Console
from mosaic_jax.mapping import make_plan
from mosaic_jax.methods import stages_of
from mosaic_jax.planning.run_plan import RunPlan, StagePlan, plan_run
from mosaic_jax.planning.stage_plans import fields
from mosaic_jax.planning.tables import show
from mosaic_jax.trees import num_bytes

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def planned() -> RunPlan:
    """The plan of the run that `finished` is."""
    return plan_run(tiny())


def stage(plan: RunPlan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.name == name)


def parts(found: StagePlan) -> dict[str, int]:
    return {part.name: part.bytes for part in found.state}


# --- what is said comes true ---


def test_the_planned_stages_and_bytes_are_those_of_the_run(planned: RunPlan, finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert [found.name for found in planned.stages] == results["stages"]
    for found in planned.stages:
        sent = results["bytes"][found.name]
        assert found.down == sent["down"]
        if found.name == "warmup":  # at most as many prototypes as there can be
            assert found.down < sent["up"] <= found.up
        else:
            assert found.up == sent["up"]


def test_every_stage_holds_the_state_that_was_planned(planned: RunPlan, finished: Path) -> None:
    problem, outputs = restored.restore(finished, Console(quiet=True))
    for made in stages_of(problem):
        state = jit_once(made.init)(made.inputs(outputs))
        of_parts = {name: num_bytes(value) for name, value in fields(state).items() if num_bytes(value)}
        assert parts(stage(planned, made.name)) == of_parts


def test_the_prototypes_that_the_meta_model_reads_are_those_planned(planned: RunPlan, finished: Path) -> None:
    problem, outputs = restored.restore(finished, Console(quiet=True))
    made = next(made for made in stages_of(problem) if made.name == "meta")
    made_of_prototypes = made.inputs(outputs)._replace(experts=())
    assert 0 < num_bytes(made_of_prototypes) == stage(planned, "meta").memory.inputs


def test_one_program_is_planned_for_each_segment_validation_and_start(planned: RunPlan) -> None:
    programs = {found.name: found.programs for found in planned.stages}
    assert programs == {
        "warmup": ("start", "segment", "validation"), "generators": ("start", "segment"), "experts": ("start",),
        "meta": ("start", "segment"), "distill": ("start", "segment", "histogram", "validation"),
        "finetune": ("start", "segment", "validation"),
    }  # fmt: skip
    of_wide_features = plan_run(tiny(model={"width": 16}))
    assert stage(of_wide_features, "meta").programs == ("start", "segment", "expert heads")
    of_images = plan_run(tiny(meta={"source": "generated"}))
    assert stage(of_images, "meta").programs == ("start", "segment", "generated images")


def test_programs_of_other_shapes_are_planned_too() -> None:
    cohorts = plan_run(tiny(warmup={"clients_per_round": 2}, prototypes={"num_rounds": 1}))
    assert stage(cohorts, "warmup").programs == ("start", "segment 1", "segment 2", "validation")
    assert stage(cohorts, "finetune").programs == ("start", "segment", "validation")
    networks = plan_run(tiny(method="fedavg", clients={"models": ("cnn:2", "cnn:4")}))
    assert stage(networks, "warmup").programs == ("start", "segment", "validation 1", "validation 2")
    narrow = plan_run(tiny(method="heterofl", clients={"rho": 3}))
    assert stage(narrow, "warmup").programs == ("start", "segment", "statistics", "validation")


def test_parameters_are_counted_as_everybody_counts_them() -> None:
    plan = plan_run(tiny(method="fedavg", model={"name": "resnet18", "width": 64}))
    (classifier,) = plan.networks
    assert classifier.parameters == 11_173_962
    assert parts(stage(plan, "warmup"))["clients"] == 3 * parts(stage(plan, "warmup"))["servers"]
    assert parts(stage(plan, "warmup"))["servers"] == 4 * (classifier.parameters + classifier.statistics)


def test_every_network_of_the_method_is_counted(planned: RunPlan) -> None:
    counts = {network.name: network.parameters for network in planned.networks}
    assert list(counts) == ["classifier", "generator", "discriminator", "expert bank", "meta model"]
    assert counts["expert bank"] == 10 * counts["classifier"]
    logits = plan_run(tiny(experts="logits", generator={"discriminator": "classifier"}))
    counts = {network.name: network.parameters for network in logits.networks}
    assert counts["expert bank"] == 3 * counts["classifier"]
    assert counts["discriminator"] == counts["classifier"]


# --- memory ---


def test_clients_that_run_together_keep_their_activations_together() -> None:
    one, all_three = (plan_run(tiny(mapping={"num_devices": 1, "client_chunk": chunk})) for chunk in (1, 3))
    for name in ("warmup", "generators", "finetune"):
        alone = stage(one, name).memory
        assert alone.activations > 0
        assert stage(all_three, name).memory.activations == 3 * alone.activations
        assert alone.machine == alone.device
    assert stage(one, "distill").memory == stage(all_three, "distill").memory


def test_devices_share_the_clients_state_and_copy_what_all_of_them_read() -> None:
    one, three = (stage(plan_run(tiny(mapping={"num_devices": num, "client_chunk": 1})), "generators").memory for num in (1, 3))
    assert 3 * three.state == one.state
    assert three.data - one.data == 1438 * (32 * 32 * 3 + 4)
    assert three.machine == three.held + 3 * (three.device - three.held)


def test_a_run_that_no_machine_can_hold_is_planned_and_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    """Three thousand rounds of wide prototypes: 2.7 TiB, which must not be made to be counted."""
    wide = {"model": {"width": 512}, "prototypes": {"num_rounds": 0, "per_class": 2000}}
    plan = plan_run(tiny(warmup={"num_rounds": 3000}, **wide))
    assert parts(stage(plan, "warmup"))["prototypes"] == 3000 * 3 * 10 * 2000 * (4 * 8 * 512 + 1)
    show(plan, Console(quiet=True))
    error = capsys.readouterr().err
    assert error.startswith("warning: ")
    assert error.count("\n") == 1
    assert "warmup needs about 2.7 TiB (state " in error
    assert ", and this machine has " in error
    assert "lower prototypes.num_rounds or prototypes.keep_per_class" in error


# --- the mapping and why ---


@pytest.mark.parametrize(
    ("mapping", "num_clients", "reasons"),
    [
        (MappingConfig(client_chunk=4), 10, ["mapping.client_chunk=4", "every device here (4)"]),
        (MappingConfig(num_devices=2), 10, ["mapping.num_devices=2"]),
        (MappingConfig(), 3, ["4 devices, but no more than clients"]),
        (MappingConfig(num_devices=4), 3, ["4 devices, but no more than clients"]),
    ],
)
def test_a_mapping_says_why_it_was_chosen(mapping: MappingConfig, num_clients: int, reasons: list[str]) -> None:
    assert len(jax.local_devices()) == 4
    plan = make_plan(mapping, num_clients)
    assert all(reason in plan.reason for reason in reasons), plan.reason


@pytest.mark.parametrize(("backend", "chunk", "why"), [("cpu", 1, "a client fills its core"), ("gpu", 0, "a gpu is filled by all")])
def test_the_chunk_chosen_by_us_names_the_backend(backend: str, chunk: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    plan = make_plan(MappingConfig(), 10)
    assert plan.chunk == chunk
    assert why in plan.reason


# --- the command ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a hundred classes, two images of each."""
    path = tmp_path_factory.mktemp("data") / "hundred.npz"
    pixels, labels = np.zeros((2000, 8, 8), np.uint8), np.arange(2000) % 100
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:100], y_test=labels[:100])
    return path


@pytest.mark.parametrize(
    ("config", "preset", "expected"),
    [
        ("digits.py", None, ["digits, 1438 training images, 10 classes, 10 clients", "98,970", "one at a time"]),
        ("digits.py", "reference", ["auxiliary classifier"]),
        ("cifar100.py", None, ["11,220,132", "f32[10,3,3,512,512]", "100 class experts", "1,000 rounds", "4.2 GiB"]),
    ],
)
def test_the_command_plans_a_configuration_whole_and_leaves_nothing_behind(
    config: str, preset: str | None, expected: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--config", str(CONFIGS / config), *(["--preset", preset] if preset else [])]
    assert cli.main([*arguments, *(["--set", f"data.source=npz:{images}"] if config != "digits.py" else [])]) == 0
    out = capsys.readouterr().out
    titles = ["networks (numbers in one copy)", "stages", "state, all clients together", "memory on a device, an estimate"]
    assert {*titles, "traffic, at most"} <= {line.strip() for line in out.splitlines()}
    for text in [*expected, "clients are mapped", "programs to compile", "needs most, about"]:
        assert text in out, text
    assert list(tmp_path.iterdir()) == []


def test_seed_and_settings_reach_the_plan(tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *tiny_arguments, "method=fedavg_finetune", "mapping.client_chunk=2", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "fedavg_finetune, seed 7" in out
    assert "mapped 2 at a time" in out
    assert "mapping.client_chunk=2" in out
    assert "generators" not in out
