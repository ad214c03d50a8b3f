"""Memory: experts held once or recomputed, a limit that is respected, and memory that runs out all the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fingerprints, tiny, train

from mosaic_jax import cli, restored, results, runner
from mosaic_jax.config import Config, ConfigError, MappingConfig, MemoryConfig
from mosaic_jax.config_io import load_json, with_values
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.mapping import Plan, make_expert_plan, make_plan
from mosaic_jax.methods import METHODS
from mosaic_jax.planning import limit, memory
from mosaic_jax.planning.memory import expert_bytes
from mosaic_jax.planning.run_plan import plan_run
from mosaic_jax.planning.stage_plans import plan_stages
from mosaic_jax.stages.experts import Experts, ExpertsInputs, experts_stage, predict_experts, predict_heads
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.meta import MetaInputs, keeps_logits, meta_stage
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.stages.stage import Outputs, Stage, placements
from mosaic_jax.steps.experts import class_experts, expert_head_logits, expert_logits
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import PyTree, Series, Variables

GIB = 2**30
# More than any machine's addresses: refused at once, whatever the system lets a program reserve.
TOO_MANY_FLOATS = 2**46


def problem_of(config: Config) -> Problem:
    return build_problem(config, load("digits", 32))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(tiny())


@pytest.fixture(scope="module")
def clients(problem: Problem) -> Variables:
    """Three clients' models, drawn by NumPy; all positive where they serve as variances."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(problem.classifier.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal((3, *leaf.shape)), jnp.float32), shapes)
    return Variables(drawn.params, jax.tree.map(jnp.exp, drawn.batch_stats))


COUNTS = jnp.asarray(np.random.default_rng(1).integers(0, 30, (3, 10)) * (np.arange(10) != 7), jnp.float32)  # nobody holds class 7


def assert_close(ours: PyTree, theirs: PyTree, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


# --- experts ---


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_recomputed_experts_and_experts_in_chunks_predict_what_stored_ones_do_one_by_one(
    problem: Problem, clients: Variables, chunk: int
) -> None:
    stored = class_experts(clients, COUNTS)
    images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3), minval=-1.0)
    features = jax.random.normal(jax.random.key(1), (5, problem.classifier.feature_size))
    for predict, given in ((expert_logits, images), (expert_head_logits, features)):
        expected = jax.jit(lambda models, x, p=predict: p(problem.classifier, models, (), x))(stored, given)
        for models, counts in ((stored, ()), (clients, COUNTS)):
            found = jax.jit(lambda m, c, x, p=predict: p(problem.classifier, m, c, x, Plan(chunk)))(models, counts, given)
            assert found.shape == (len(given), 10, 10)
            assert_close(found, expected)


def test_experts_are_held_once_and_recomputed_ones_not_at_all(clients: Variables) -> None:
    outputs: dict[str, Experts] = {}
    for how in ("stored", "recomputed"):
        stage = experts_stage(problem_of(tiny(memory={"experts": how})))
        inputs = ExpertsInputs((clients,), ({},), ())
        outputs[how] = stage.output(stage.init(inputs), inputs)
    one_model = num_bytes(clients) // 3
    assert num_bytes(outputs["stored"]) == 10 * one_model
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (outputs["recomputed"].models, clients)), strict=True))


@pytest.mark.parametrize("mode", ["parameters", "logits"])
def test_a_prototype_is_judged_by_the_heads_of_the_same_experts_in_every_mode(mode: str, clients: Variables) -> None:
    problem = problem_of(tiny(experts=mode, memory={"experts": "recomputed"}))
    stage = experts_stage(problem)
    inputs = ExpertsInputs((clients,), ({},), ())
    experts = stage.output(stage.init(inputs), inputs)
    features = jax.random.normal(jax.random.key(1), (5, problem.classifier.feature_size))
    stored = class_experts(clients, jnp.asarray(problem.label_counts, jnp.float32))
    assert_close(predict_heads(problem, experts, features), expert_head_logits(problem.classifier, stored, (), features))
    assert predict_experts(problem, experts, jnp.zeros((2, 32, 32, 3))).shape == (2, 10, 10)


def test_a_run_goes_on_with_another_way_to_hold_experts_to_the_same_end_but_not_with_another_method(
    finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "results.json").unlink()
    for stage in ("meta", "distill", "finetune"):
        shutil.rmtree(run_dir / "checkpoints" / stage)
    other = tiny(memory={"experts": "recomputed", "limit_gib": 5.0}, mapping={"client_chunk": 3, "expert_chunk": 4})
    with pytest.raises(ConfigError, match=r"holds a run of another configuration \(meta.num_steps=4, not 5\)"):
        train(with_values(other, {"meta.num_steps": 5}), run_dir)
    assert train(other, run_dir) == 0
    assert load_json(run_dir / "config.json") == other
    ours, theirs = (restored.restore(directory, Console(quiet=True))[1] for directory in (run_dir, finished))
    for stage in ("meta", "distill"):
        assert_close(ours[stage], theirs[stage], rtol=1e-3, atol=1e-4)
    results = (json.loads((directory / "results.json").read_text()) for directory in (run_dir, finished))
    assert len({tuple(result["stages_done"]) for result in results}) == 1


def test_how_experts_are_held_and_run_is_as_asked_or_chosen_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(stored_fit: bool, fitting: int, chunk: int = 0, experts: str = "auto") -> tuple:
        return make_expert_plan(MappingConfig(expert_chunk=chunk), MemoryConfig(experts=experts), 10, stored_fit, fitting)

    assert plan(True, 10)[:2] == (True, 1)
    assert plan(False, 10, chunk=4) == (False, 4, 32, "all 10 do not fit into memory; mapping.expert_chunk=4")
    assert plan(False, 10, chunk=99, experts="stored") == (True, 10, 32, "memory.experts=stored; mapping.expert_chunk=99")
    assert plan(True, 10, experts="recomputed")[:2] == (False, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert plan(True, 6) == (True, 6, 0, "all 10 fit into memory; as many as fit into the memory of a gpu")


# --- prototypes ---


def test_only_the_centres_that_are_kept_are_held(problem: Problem) -> None:
    few = problem_of(tiny(prototypes={"per_class": 5, "keep_per_class": 2}))
    banks = []
    for each in (few, problem_of(tiny(prototypes={"per_class": 5}))):
        stage = federated_stage(each, "warmup", 1, 0.01, Federation(), num_full_rounds=1, prototypes=True)
        state = jax.tree.map(jnp.copy, jax.jit(stage.init)(()))
        state, data = jax.device_put((state, stage.data), placements(each, stage, state))
        banks.append(jax.jit(stage.run)(state, (), data, host_arrays(stage, (), 0), jnp.int32(0), jnp.int32(1))[0].prototypes)
    kept, every = banks
    assert kept.features.shape == (1, 3, 10, 2, problem.classifier.feature_size)
    assert np.asarray(kept.valid).any()
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(lambda leaf: leaf[:, :, :, :2], every))


def test_logits_made_in_each_step_train_the_meta_model_as_logits_kept_do(problem: Problem, clients: Variables) -> None:
    assert not keeps_logits(problem)
    assert keeps_logits(problem_of(tiny(model={"width": 16})))
    experts = Experts(jax.jit(class_experts)(clients, COUNTS), ())
    features = jax.random.normal(jax.random.key(1), (40, problem.classifier.feature_size))
    labels = jnp.arange(40, dtype=jnp.int32) % 10
    stage = meta_stage(problem)
    ends = []
    logits = jax.jit(lambda e, x: predict_heads(problem, e, x))(experts, features)
    for inputs in (MetaInputs((), labels, features, experts), MetaInputs(logits, labels)):
        state = jax.jit(stage.init)(inputs)
        ends.append(jax.jit(stage.run)(state, inputs, (), host_arrays(stage, inputs, 0), jnp.int32(0), jnp.int32(2)))
    assert_close(*ends)


# --- the limit ---


def test_experts_are_recomputed_where_a_limit_leaves_no_room_to_store_them_and_it_is_said(
    tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def most(experts: str) -> int:
        plan = plan_run(tiny(model={"width": 64}, memory={"experts": experts}))
        return max(stage.memory.needed for stage in plan.stages)

    recomputed, stored = most("recomputed"), most("stored")
    assert stored > 1.2 * recomputed
    for gib, held in ((1.01 * stored / GIB, "stored"), (1.01 * recomputed / GIB, "recomputed")):
        assert cli.main(["plan", *tiny_arguments, "model.width=64", f"memory.limit_gib={gib}"]) == 0
        out, error = capsys.readouterr()
        assert f"experts are {held}" in out
        assert ("all 10 fit" if held == "stored" else "all 10 do not fit into memory") in out
        assert error == ""


@pytest.mark.parametrize(
    ("settings", "stage", "remedies"),
    [
        (["warmup.batch_size=5000"], "warmup", ["mapping.num_devices=1", "warmup.batch_size", "model.width"]),
        (["warmup.num_rounds=60", "prototypes.num_rounds=0", "prototypes.per_class=9000"], "warmup", ["lower prototypes.num"]),
        (["generator.batch_size=5000"], "generators", ["generator.batch_size", "generator.width"]),
        (["meta.batch_size=40000"], "meta", ["meta.batch_size", "memory.experts=recomputed"]),
        (["distill.samples_per_client=4000"], "distill", ["distill.samples_per_client"]),
        (["method=fedavg", "warmup.batch_size=5000"], "warmup", ["warmup.batch_size"]),
    ],
)
def test_a_run_above_the_limit_is_refused_before_training_in_one_line_that_says_what_to_change(
    settings: list[str], stage: str, remedies: list[str], tiny_arguments: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [*tiny_arguments, *settings, "memory.limit_gib=0.15", "memory.experts=stored"]
    assert cli.main(["train", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: memory.limit_gib=0.15: {stage} needs about ")
    assert error.count("\n") == 1
    for remedy in ["raise the limit", *remedies]:
        assert remedy in error
    assert "method=fedavg" not in settings or "prototypes" not in error
    assert not (tmp_path / "run").exists()


def test_without_a_limit_a_run_that_may_not_fit_is_warned_about_once_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limit, "capacity", lambda: 2**18)
    assert train(tiny(), tmp_path / "run", stop_after="warmup") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: warmup needs about ")
    assert "and this machine has 256.0 KiB; set mapping.num_devices=1 (a run goes on with it), or lower" in error
    assert error.count("\n") == 1


def test_a_state_that_the_machine_cannot_hold_is_refused_before_training_without_any_limit(
    tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ["model.width=512", "warmup.num_rounds=3000", "prototypes.num_rounds=0", "prototypes.per_class=2000"]
    assert cli.main(["train", *tiny_arguments, *wide, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: warmup needs about 2.7 TiB (state ")
    assert "lower prototypes.num_rounds" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_fits_is_not_warned_about_and_says_what_was_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tiny(memory={"limit_gib": 8.0}), tmp_path / "run", stop_after="warmup", console=Console()) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert "clients are mapped one at a time on each of 3 devices: a client fills its core" in out
    assert "experts are stored, one at a time: all 10 fit into memory; an expert fills the machine" in out


@pytest.mark.parametrize("gib", [0.04, 0.08, 10.0])
def test_on_an_accelerator_as_many_clients_and_experts_run_together_as_fit(gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(partition={"num_clients": 12}, mapping={"num_devices": 1}, memory={"limit_gib": gib}, warmup={"batch_size": 64})
    dealt = problem_of(config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fitted, stages = limit.fit(dealt)
    room, chunk, experts = gib * GIB, fitted.client_plan.chunk or 12, fitted.expert_plan.chunk
    assert all(stage.memory.needed <= room for stage in stages)
    assert f"clients are mapped {'all' if chunk == 12 else chunk} at " in limit.choice(fitted)[0].replace("all at once", "all at ")
    assert chunk == 12 or "as many as fit into the memory of a gpu" in fitted.client_plan.reason

    least = {s.name: s.memory for s in plan_stages(limit._chosen(dealt, 1, 1, fitted.expert_plan.stored))}

    def rest(name: str, clients: int, experts: int) -> float:
        """What half of the memory that is left by one at a time still has when so many run together."""
        one = least[name]
        return 0.5 * (room - one.needed) - (clients - 1) * one.activations - (experts - 1) * expert_bytes(fitted)

    mapped = ("warmup", "generators", "finetune")
    assert all(rest(name, chunk, 1) >= 0 for name in mapped)
    assert chunk == 12 or any(rest(name, chunk + 1, 1) < 0 for name in mapped)
    assert rest("distill", 1, experts) >= 0
    assert experts == 10 or rest("distill", 1, experts + 1) < 0


@pytest.mark.parametrize(
    ("line", "root", "files"),
    [
        ("0::/job/step", "", {"memory.max": "max\n", "job/memory.max": "3000\n", "job/step/memory.max": "max\n"}),
        ("5:cpu:/x\n4:memory:/job", "memory", {"memory.limit_in_bytes": "9000\n", "job/memory.limit_in_bytes": "3000\n"}),
    ],
)
def test_a_job_has_the_memory_that_its_control_groups_leave_it(line: str, root: str, files: dict[str, str], tmp_path: Path) -> None:
    mounted = tmp_path / "cgroup"
    for name, text in files.items():
        (mounted / root / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted / root / name).write_text(text)
    (mounted / "memory.max").write_text("7\n") if root else None  # another version's
    groups = tmp_path / "groups"
    groups.write_text(line + "\n")
    assert min(memory.control_group_limits(groups, mounted)) == 3000


def test_what_a_user_sets_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = {"client_chunk": 2, "num_devices": 1, "expert_chunk": 7}
    dealt = problem_of(tiny(mapping=mapping, memory={"limit_gib": 0.001, "experts": "stored"}))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fitted, stages = limit.fit(dealt)
    assert (fitted.client_plan.chunk, fitted.expert_plan.chunk, fitted.expert_plan.stored) == (2, 7, True)
    with pytest.raises(ConfigError, match=r"memory.limit_gib=0.001: warmup .*set mapping.client_chunk=1 .*set precision=bf16"):
        limit.check(fitted, stages, print)


def test_clients_that_fit_are_mapped_together_and_the_reason_names_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    devices = MappingConfig(num_devices=2)
    assert [make_plan(devices, 10, fitting).chunk for fitting in (0, 1, 4, 5, 99)] == [0, 1, 4, 0, 0]
    assert "as many as fit into the memory of a gpu" in make_plan(devices, 10, 4).reason
    assert make_plan(MappingConfig(client_chunk=3), 10, 1).chunk == 3


# --- memory that runs out ---


def of_a_device(stage: Stage) -> Stage:
    """The stage, whose program asks its device for more working space than there is."""

    def run(*arguments: PyTree) -> tuple[PyTree, Series]:
        state, series = stage.run(*arguments)
        losses = series.losses
        huge = jnp.cumsum(jnp.broadcast_to(next(iter(losses.values())).ravel()[:1], (TOO_MANY_FLOATS,)))
        return state, series._replace(losses=losses | {"huge": losses["discriminator_loss"] + huge[5]})

    return stage._replace(run=run)


def of_a_device_between_steps(stage: Stage) -> Stage:
    def watch(state: PyTree, inputs: PyTree, step: int) -> Any:
        if step == 2:
            jnp.zeros(TOO_MANY_FLOATS)
        return stage.watch(state, inputs, step)

    return stage._replace(watch=watch)


def of_the_host(stage: Stage) -> Stage:
    def host(inputs: PyTree, start: int) -> PyTree:
        return host_arrays(stage, inputs, start) if start < 2 else np.zeros(2**56)

    return stage._replace(host=host)


@pytest.mark.parametrize(
    ("name", "exhaust", "message", "remedy", "step"),
    [
        ("generators", of_a_device, "Out of memory", "lower generator.batch_size", None),
        ("warmup", of_a_device_between_steps, "Out of memory allocating", "lower prototypes.keep_per_class or warmup.batch", 1),
        # Drawn while the round before works, which is lost with it.
        ("warmup", of_the_host, "Unable to allocate", "lower prototypes.keep_per_class or warmup.batch", 1),
        ("distill", of_a_device_between_steps, "Out of memory allocating", "set memory.experts=recomputed (a run goes on", None),
    ],
)
def test_memory_that_runs_out_is_one_line_with_a_status_of_its_own_and_the_run_goes_on_from_its_last_checkpoint(
    name: str, exhaust: Callable[[Stage], Stage], message: str, remedy: str, step: int | None, finished: Path, tmp_path: Path,
    tiny_arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mosaic = METHODS["mosaic"]

    def exhausted(problem: Problem, federation: Federation) -> tuple[Stage, ...]:
        return tuple(exhaust(stage) if stage.name == name else stage for stage in mosaic(problem, federation))

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "mosaic", exhausted)
        assert cli.main(["train", *tiny_arguments, "--run-dir", str(run_dir)]) == 4
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: out of memory (")
    assert error.count("\n") == 1
    for text in (message, remedy, f"the last checkpoint is kept in {run_dir / 'checkpoints'}"):
        assert text in error
    steps = {int(path.name) for path in (run_dir / "checkpoints" / name).iterdir() if path.name.isdigit()}
    assert max(steps, default=None) == step
    assert train(tiny(), run_dir, stop_after=name) == 0
    assert fingerprints(run_dir)[name] == fingerprints(finished)[name]


def test_an_evaluation_without_memory_is_one_line_with_the_same_status(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")

    def huge(problem: Problem, outputs: Outputs, stages: tuple[Stage, ...]) -> Any:
        return jnp.zeros(TOO_MANY_FLOATS)

    monkeypatch.setattr(results, "evaluate_models", huge)
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: evaluation: out of memory (Out of memory allocating")
    assert "lower evaluation.batch_size" in error
    assert error.count("\n") == 1


def test_another_failure_of_a_program_is_not_called_lack_of_memory(problem: Problem) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), runner.naming_what_needs_memory(problem, "meta"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
