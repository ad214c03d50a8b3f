"""What is wrong with data or partition has a defined result or is one line before any training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, train
from PIL import Image

from mosaic_jax import cli
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.metrics import read
from mosaic_jax.methods import stages_of
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.steps.experts import class_experts
from mosaic_jax.types import Variables

# The stages in which clients work on their images; the server's never see how many there are.
SHORT = {
    "warmup": {"num_rounds": 1}, "generator": {"num_steps": 2}, "meta": {"num_steps": 0}, "distill": {"num_steps": 0},
    "finetune": {"num_rounds": 0},
}  # fmt: skip


def npz(path: Path, labels: list[int], test_labels: list[int]) -> str:
    """A data set of random images with these labels: its data.source."""
    random = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return random.integers(0, 256, (count, 8, 8), np.uint8)

    np.savez(path, x_train=images(len(labels)), y_train=labels, x_test=images(len(test_labels)), y_test=test_labels)
    return f"npz:{path}"


# Class 2 is held by nobody; of the other images a client gets three, fewer than a batch of eight; class 3 belongs to one client.
ODD_LABELS = [0, 0, 1, 1, 3, 0, 2]
ODD_TABLE = "client,0,1,2,3\n0,1,2,0,0\n1,2,0,0,1\n"


def odd_config(tmp_path: Path) -> Config:
    source = npz(tmp_path / "odd.npz", ODD_LABELS, [0, 1, 3])
    (tmp_path / "odd.csv").write_text(ODD_TABLE)
    partition = {"kind": "table", "table": str(tmp_path / "odd.csv"), "num_clients": 2}
    return tiny(data={"source": source, "validation_fraction": 0.34}, partition=partition, **SHORT)


def test_absent_classes_small_clients_and_clients_of_one_class_train_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = odd_config(tmp_path)
    assert train(config, tmp_path / "run", console=Console(quiet=True)) == 0
    assert capsys.readouterr().err == "warning: no client holds class 2: its expert is the global average\n"
    assert all(np.isfinite(record["value"]) for record in read(tmp_path / "run"))


def test_the_expert_of_a_class_that_nobody_holds_is_the_average_by_size() -> None:
    clients = Variables({"w": np.array([[1.0], [5.0]], np.float32)}, {})
    experts = class_experts(clients, np.array([[3, 0, 0], [0, 1, 0]]))
    np.testing.assert_allclose(experts.params["w"], [[1.0], [5.0], [2.0]])


def test_a_client_with_one_class_has_batches_of_that_class_and_a_generator_of_its_own(tmp_path: Path) -> None:
    source = npz(tmp_path / "two.npz", [0] * 30 + [1] * 30, [0, 1])
    settings = {"kind": "dirichlet_unbalanced", "alpha": 1e-4, "num_clients": 2}
    problem = build_problem(tiny(data={"source": source}, partition=settings, **SHORT), load(source, 32))
    assert sorted(map(tuple, (problem.label_counts > 0).tolist())) == [(False, True), (True, False)]
    stages = {stage.name: stage for stage in stages_of(problem)}
    for name in ("warmup", "generators"):
        (indices,) = stages[name].host((), 0)
        indices = indices.indices if name == "warmup" else indices
        assert [len(set(problem.dataset.train_labels[own.ravel()].tolist())) for own in indices] == [1, 1]


# --- refused before any training, through the command line ---


def folder(root: Path, **classes: list[str]) -> Path:
    """root/train/CLASS and root/test/CLASS with two images of each; keys are splits."""
    for split, names in classes.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / split / name / f"{number}.png")
    return root


def empty_folder(root: Path) -> str:
    (root / "train").mkdir(parents=True)
    return f"folder:{root}"


def corrupt_image(root: Path) -> str:
    folder(root, train=["cat", "dog"], test=["cat", "dog"])
    (root / "train" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    return f"folder:{root}"


def other_classes(root: Path) -> str:
    return f"folder:{folder(root, train=['cat', 'dog'], test=['cat', 'dgo'])}"


def missing_file(root: Path) -> str:
    return f"npz:{root / 'nowhere.npz'}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_folder, "is empty: expected a folder for each class"),
        (corrupt_image, "3.png cannot be read"),
        (other_classes, "dgo is a class that"),
        (missing_file, "nowhere.npz"),
    ],
)
def test_data_that_cannot_be_used_is_one_line_and_leaves_no_run(
    make: Callable[[Path], str], message: str, tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "data")
    assert_refused([*tiny_arguments, f"data.source={source}"], message, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["partition.kind=dirichlet_unbalanced", "partition.alpha=1e-6", "partition.num_clients=20"], "partition.alpha=1e-06 gave"),
        (["partition.kind=dirichlet_unbalanced", "partition.num_clients=200"], "partition.num_clients=200 times"),
        (["partition.num_clients=2000"], "partition.num_clients=2000 must be 1 to 1438"),
        (["data.validation_fraction=0"], "distill.keep=best needs validation images"),
    ],
)
def test_a_partition_that_cannot_be_made_is_one_line_and_leaves_no_run(
    settings: list[str], message: str, tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused([*tiny_arguments, "partition.max_draws=20", *settings], message, tmp_path / "run", capsys)


def assert_refused(arguments: list[str], message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *arguments, "--run-dir", str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not run_dir.exists()


def test_a_refused_directory_is_free_for_the_next_try(tiny_arguments: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert cli.main(["train", *tiny_arguments, "data.source=npz:nowhere.npz", "--run-dir", str(run_dir)]) == 2
    arguments = [*tiny_arguments, "method=fedavg", "warmup.num_rounds=1", "finetune.num_rounds=0"]
    assert cli.main(["train", *arguments, "--run-dir", str(run_dir)]) == 0


def test_stopping_after_a_stage_that_the_method_lacks_names_its_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--stop-after distill: method fedavg has no such stage; its stages are warmup"):
        train(tiny(method="fedavg"), tmp_path / "run", stop_after="distill")
