"""The house: a file imports only from rooms below it, and each outside library has its one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mosaic_jax"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# A room imports from rooms of lower rank, and from itself where it is a folder.
RANKS = {
    "__init__": 0, "registry": 0, "plain_text": 0, "sources": 1, "settings": 1, "sections": 2, "json_file": 2, "python_files": 2,
    "config_checks": 2, "types": 3, "config": 3, "presets": 3, "plugins": 4, "config_io": 5, "parser": 6, "argument_checks": 6,
    "rows": 6, "rng": 5, "jax_settings": 5, "trees": 5, "processes": 5, "signals": 5, "seed_statistics": 5, "ops": 6, "losses": 7,
    "models": 7, "data": 7, "mapping": 7, "devices": 7, "programs": 8, "steps": 8, "stages": 9, "driving": 10, "methods": 10,
    "io": 11, "results": 12, "planning": 12, "runner": 13, "restored": 14, "seeds": 14, "comparison": 14, "leaderboard": 14,
    "api": 15, "cli": 15, "__main__": 16,
}  # fmt: skip
NEVER_IN_IO = ("runner", "planning", "cli", "methods", "stages")


def room(module: str) -> str:
    """`mosaic_jax.models.cnn` -> `models`; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def room_of_file(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(path: Path, module_level: bool = False) -> set[str]:
    """Absolute names of all modules that a file imports (`from a import b` gives a.b where that is a module of ours)."""
    tree = ast.parse((PACKAGE / path).read_text())
    found: set[str] = set()
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in names if (ROOT / (file := name.replace(".", "/"))).is_dir() or (ROOT / f"{file}.py").is_file()}
            found |= ours or {node.module}
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_rooms_below_its_own(path: Path) -> None:
    own = room_of_file(path)
    assert own in RANKS, f"{path} is in a room that the house does not have"
    for module in imports(path):
        if inside(module, "mosaic_jax"):
            other = room(module)
            allowed = RANKS[other] < RANKS[own] or (other == own and len(path.parts) > 1)
            assert allowed, f"mosaic_jax/{path} imports {module}"


@pytest.mark.parametrize("path", [path for path in FILES if room_of_file(path) == "io"], ids=str)
def test_io_knows_no_stage_and_no_method(path: Path) -> None:
    assert not [module for module in imports(path) if room(module) in NEVER_IN_IO and inside(module, "mosaic_jax")]


@pytest.mark.parametrize("path", [path for path in FILES if room_of_file(path) in ("stages", "methods", "steps")], ids=str)
def test_stages_methods_and_steps_touch_no_disk_and_no_clock(path: Path) -> None:
    outside = {"os", "pathlib", "time", "datetime", "shutil", "signal", "subprocess", "random", "logging", "sys", "json"}
    assert not outside & {module.split(".")[0] for module in imports(path)}
    calls = {
        node.func.id
        for node in ast.walk(ast.parse((PACKAGE / path).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {"open", "print"} & calls


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("flax", ["models/"]),
        ("orbax", ["io/checkpoints.py"]),
        ("etils", ["io/checkpoints.py"]),
        ("tensorflow_datasets", ["io/datasets/prepared.py", "io/datasets/prepare.py"]),
        ("tensorflow", []),
        ("sklearn", ["io/datasets/digits.py"]),
        ("scipy", ["io/datasets/formats.py"]),
        ("PIL", ["io/datasets/", "io/samples.py", "io/heat_map.py", "io/accuracy_plot.py"]),
        ("rich", ["io/console.py"]),
        ("tensorboardX", ["io/metrics.py"]),
        ("torch", ["io/torch_weights.py"]),
    ],
)
def test_an_outside_library_is_imported_in_its_place_only(library: str, places: list[str]) -> None:
    for path in FILES:
        if any(inside(module, library) for module in imports(path)):
            assert any(path.as_posix().startswith(place) for place in places), f"{path} imports {library}"


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "settings",
        "config",
        "config_io",
        "plain_text",
        "json_file",
        "cli",
        "data/partition/__init__",
        "data/splits",
        "data/sampling",
    ],
)
def test_these_files_load_no_jax(name: str) -> None:
    """The command line answers at once; how data is dealt is NumPy's alone."""
    heavy = ("jax", "jaxlib", "flax", "optax", "orbax")
    seen, waiting = set(), [Path(f"{name}.py")]
    while waiting:
        path = waiting.pop()
        if path in seen or path == Path("types.py"):  # types names jax.Array; the command line never imports it
            assert not (path == Path("types.py") and name in ("__init__", "config", "config_io", "cli"))
            continue
        seen.add(path)
        for module in imports(path, module_level=True):
            assert not any(inside(module, library) for library in heavy), f"{path} imports {module}"
            if inside(module, "mosaic_jax"):
                file = Path(*module.split(".")[1:]).with_suffix(".py") if "." in module else Path("__init__.py")
                waiting.append(file if (PACKAGE / file).is_file() else file.with_suffix("") / "__init__.py")


# The mapper, and k-means over the classes of one client.
MAY_VMAP = {"mapping.py": 2, "steps/prototypes.py": 1}


def test_only_the_mapper_vmaps_over_clients() -> None:
    found = {}
    for path in FILES:
        calls = [
            node
            for node in ast.walk(ast.parse((PACKAGE / path).read_text()))
            if isinstance(node, ast.Attribute) and node.attr in ("vmap", "pmap", "shard_map")
        ]
        if len(calls) > MAY_VMAP.get(path.as_posix(), 0):
            found[path.as_posix()] = len(calls)
    assert found == {}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_opens_with_what_it_is_and_stays_readable(path: Path) -> None:
    text = (PACKAGE / path).read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    limit = 400 if path.as_posix() in ("sections.py", "runner.py") else 250
    assert len(text.splitlines()) <= limit
