"""What tests/test_distributed.py runs in each of two processes: tells, as JSON in its last line, what this
process saw, and ends with the death of the second process.

Arguments: coordinator, process id, a directory for both processes, a directory of this one alone.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from conftest import tiny
from jax.sharding import PartitionSpec

from mosaic_jax import processes
from mosaic_jax.config import ConfigError, MappingConfig
from mosaic_jax.io import run_directory
from mosaic_jax.io.checkpoints import StageCheckpoints
from mosaic_jax.mapping import AXIS, REPLICATED, SHARDED, bring_here, for_each_client, make_plan, place, shardings
from mosaic_jax.planning import memory

SHARDING = {"server": REPLICATED, "clients": SHARDED, "rounds": PartitionSpec(None, AXIS)}


def state(step: int) -> dict[str, np.ndarray]:
    """A state of four clients: a leaf of the server, one stacked over clients, one with clients along its second axis."""
    random = np.random.default_rng(step)
    shapes = {"server": (3,), "clients": (4, 5, 2), "rounds": (2, 4, 3)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except (ConfigError, FloatingPointError) as error:
        return str(error)
    return "not refused"


def common_room() -> int:
    """What both processes take for their memory, where one has less."""
    memory.capacity = lambda: 1000 - processes.index()
    return memory.common_capacity()


def agreement(shared: Path, own: Path) -> dict[str, object]:
    """Signals, errors and directories of one process become those of both."""
    last = processes.index() == 1

    def fails_in_one() -> None:
        with processes.together():
            if last:
                raise ConfigError("data.source: not on this host")

    def claim(directory: Path) -> None:
        with run_directory.claim(directory, tiny()):
            pass

    run_directory.SHARED_SECONDS = 0.3
    claim(shared / "run")
    return {
        "count": processes.count(),
        "room": common_room(),
        "no_signal": processes.first_signal([]),
        "signal": processes.first_signal([signal.SIGTERM] if last else []),
        "together": refusal(fails_in_one),
        "command": refusal(lambda: processes.check_same(f"--seed {processes.index()}")),
        "data": refusal(lambda: processes.check_same_data(str(processes.index()))),
        "same_data": refusal(lambda: processes.check_same_data("digest")),
        "same_command": refusal(lambda: processes.check_same("--seed 0")),
        "unshared": refusal(lambda: claim(own / "run")),
        "first": np.asarray(processes.of_the_first(np.arange(3) * (processes.index() + 1))).tolist(),
    }


def mapping() -> dict[str, object]:
    """Clients on the devices of both processes."""
    plan = make_plan(MappingConfig(), 3)
    arrays = (np.arange(6.0).reshape(3, 2), np.float32(10))
    numbers, factor = place(arrays, shardings(plan, (SHARDED, REPLICATED), arrays))
    mapped = jax.jit(lambda x, y: for_each_client(lambda x, y: x * y, (x,), (y,), plan))(numbers, factor)
    return {
        "processes": [device.process_index for device in plan.devices],
        "each": [device.process_index for device in make_plan(MappingConfig(num_devices=1), 9).devices],
        "few": refusal(lambda: make_plan(MappingConfig(), 1)),
        "mapped": np.asarray(bring_here(mapped)).tolist(),
    }


def checkpoints(directory: Path) -> dict[str, object]:
    """Saved by both processes, the newest one then damaged."""
    where = shardings(make_plan(MappingConfig(num_devices=1), 4), SHARDING, state(1))
    manager = StageCheckpoints(directory, "warmup", "hash", 3, SHARDING)
    for step in (1, 2):
        manager.save(step, place(state(step), where))
    broken = state(3)
    broken["clients"][3] = np.nan  # a client of process 1
    infinite = refusal(lambda: manager.save(3, place(broken, where)))
    manager.wait()
    before = manager.restore(state(0), lambda text: None, read_only=True)
    if processes.is_first():
        for path in (directory / "2" / "state").glob("**/d/*"):
            path.write_bytes(path.read_bytes()[:-20])
    processes.gather(np.int32(0))
    warnings: list[str] = []
    after = manager.restore(state(0), warnings.append)
    manager.close()
    other = StageCheckpoints(directory.parent / "of_one", "warmup", "hash", 3, SHARDING)
    step, alone = other.restore(state(0), warnings.append)
    other.close()
    return {
        "infinite": infinite,
        "steps": [before[0], after[0]],
        "equal": [all(np.array_equal(found[name], state(step)[name]) for name in found) for step, found in (before, after)],
        "of_one": [step, all(np.array_equal(leaf, state(7)[name]) for name, leaf in alone.items())],
        "damaged": ["warmup/2 is damaged" in text for text in warnings],
    }


if __name__ == "__main__":
    coordinator, number, shared, own = sys.argv[1:]
    with processes.joined(coordinator, 2, int(number)):
        found = agreement(Path(shared), Path(own)) | mapping() | checkpoints(Path(shared) / "checkpoints")
        print("\n" + json.dumps(found), flush=True)
        processes.gather(np.int32(0))
        if number == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        processes.gather(np.int32(1))
