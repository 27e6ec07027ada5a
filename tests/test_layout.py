"""The shape of the repository: what may lie where, how large it may grow, and which names are public."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

TOP_LEVEL_FOLDERS = {"snnp", "plugins", "datasets", "model_zoo", "tests", "docs"}
TOP_LEVEL_FILES = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
}
PRODUCTS = {"build", "dist", "demo", "runs"}  # made by commands, ignored by git
ZOO_FILES = {"config.json", "model.safetensors", "README.md", "recipe.yaml"}
MAX_MODEL_BYTES = 1_000_000
# ani-1ccx is not ours to shrink: eight published networks of 326,660 float32 weights each are 10.5 MB, and all of them
# are needed for the energies and the spread that were published. snnp-organic-large is three models. No other model may
# be larger than 1 MB.
LARGER_MODELS = {"ani-1ccx": 11_000_000, "snnp-organic-large": 2_500_000}
MAX_ZOO_BYTES = 15_000_000  # of all together: what every wheel carries
MAX_PARQUET_BYTES = 5_000_000  # of each bundled dataset; larger ones are built by recipe
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 8

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted([*REPOSITORY.glob("snnp/**/*.py"), *REPOSITORY.glob("plugins/**/*.py")])
MODELS = sorted(entry for entry in (REPOSITORY / "model_zoo").iterdir() if entry.is_dir())
DATASETS = sorted({path.parent for path in (REPOSITORY / "datasets").glob("*/*.parquet")})


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_top_level_is_what_the_design_says() -> None:
    visible = [entry for entry in REPOSITORY.iterdir() if not entry.name.startswith((".", "__pycache__"))]
    visible = [e for e in visible if e.name not in PRODUCTS and not e.name.endswith(".egg-info")]
    assert {entry.name for entry in visible if entry.is_dir()} == TOP_LEVEL_FOLDERS
    assert {entry.name for entry in visible if entry.is_file()} == TOP_LEVEL_FILES


@pytest.mark.parametrize("folder", ["datasets", "model_zoo", "tests", "docs"])
def test_folder_is_no_package(folder: str) -> None:
    found = [path for path in (REPOSITORY / folder).rglob("__init__.py") if "_build" not in path.parts]
    assert found == []


def test_plugin_folders_are_no_packages() -> None:
    plugins = REPOSITORY / "plugins"
    inits = {path.parent.relative_to(plugins).as_posix() for path in plugins.rglob("__init__.py")}
    assert {"ase/snnp_ase", "lammps/snnp_lammps", "openmm/snnp_openmm"} <= inits
    assert [name for name in inits if name.count("/") == 0] == []  # neither plugins/ nor plugins/ase/


def _python(code: str, folder: Path, search: str = "") -> str:
    """What a fresh interpreter prints when it runs `code` in `folder`."""
    environment = {**os.environ, "PYTHONPATH": search}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("name", ["datasets", "tests", "docs", "plugins", "model_zoo"])
def test_installation_does_not_make_folders_importable(name: str, tmp_path: Path) -> None:
    """From any other folder `import datasets` finds the Hugging Face package or nothing, never ours."""
    code = (
        f"from importlib.util import find_spec; spec = find_spec({name!r})\n"
        "print(list(spec.submodule_search_locations) if spec else [])"
    )
    assert str(REPOSITORY / name) not in _python(code, tmp_path)


def test_datasets_folder_yields_to_a_real_package(tmp_path: Path) -> None:
    """In the root itself the folder is at most a namespace: any installed package of that name wins."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    code = "from importlib.util import find_spec; print(find_spec('datasets').origin)"
    assert _python(code, REPOSITORY, str(tmp_path)).strip() == str(tmp_path / "datasets" / "__init__.py")


def test_packages_are_listed_in_pyproject() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    roots = {"snnp": "snnp"} | {f"snnp_{name}": f"plugins/{name}/snnp_{name}" for name in ("ase", "lammps", "openmm")}
    on_disk = {"snnp_datasets", "snnp_model_zoo"}
    for package, folder in roots.items():
        for init in (REPOSITORY / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(REPOSITORY / folder).parts
            on_disk.add(".".join([package, *inner]))
    assert set(project["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_module_stays_within_its_budget(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_functions_take_few_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        # A command's parameters are its options: typer reads them from the signature, they cannot be grouped.
        if isinstance(node, ast.FunctionDef) and not (path.parent.name == "cli" and node.name.endswith("_command")):
            names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= MAX_ARGUMENTS, f"{node.name} takes {len(names)} arguments"


@pytest.mark.parametrize("folder", MODELS, ids=_name)
def test_models_name_no_file_of_the_machine_that_built_them(folder: Path) -> None:
    learned = json.loads((folder / "config.json").read_text(encoding="utf-8"))["metadata"].get("training_data", [])
    assert [name for name in learned if Path(name).is_absolute()] == []


@pytest.mark.parametrize("folder", MODELS, ids=_name)
def test_bundled_model_is_complete_and_small(folder: Path) -> None:
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert description["format"] == "snnp-model"
    # What others published is passed on with their licence.
    foreign = {"LICENSE"} if "source" in description["metadata"] else set()
    distilled = {"distil.yaml", "molecules.smi", "apart.smi"} & {path.name for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir()} == ZOO_FILES | foreign | distilled
    most = LARGER_MODELS.get(folder.name, MAX_MODEL_BYTES)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most


def test_all_bundled_models_together_stay_small() -> None:
    assert sum(path.stat().st_size for folder in MODELS for path in folder.iterdir()) <= MAX_ZOO_BYTES


def test_bundled_datasets_are_small_and_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["snnp_datasets"]
    packed = {path for pattern in patterns for path in (REPOSITORY / "datasets").glob(pattern)}
    held = {path for folder in DATASETS for path in folder.iterdir()} | {REPOSITORY / "datasets/README.md"}
    assert packed == held  # nothing of datasets without data
    for folder in DATASETS:
        assert all(path.stat().st_size <= MAX_PARQUET_BYTES for path in folder.glob("*.parquet"))


def test_every_bundled_model_and_file_is_installed() -> None:
    """`MLPotential` finds each model by its name, and the wheel holds every kind of file."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    names = set(project["project"]["entry-points"]["openmmml.potentials"]) - {"snnp"}
    assert names == {folder.name for folder in MODELS}
    patterns = project["tool"]["setuptools"]["package-data"]["snnp_model_zoo"]
    packed = {path for pattern in patterns for path in (REPOSITORY / "model_zoo").glob(pattern)}
    assert {path for folder in MODELS for path in folder.iterdir()} <= packed


def _public_modules() -> list[str]:
    importlib.import_module("openmmml")  # it loads its plugins, ours too, while it is itself imported: it goes first
    names = []
    for root in ("snnp", "snnp_ase", "snnp_lammps", "snnp_openmm"):
        package = importlib.import_module(root)
        found = [m.name for m in pkgutil.walk_packages(package.__path__, prefix=f"{root}.")]
        names += [name for name in [root, *found] if not name.rpartition(".")[2].startswith("_")]
    return sorted(names)


@pytest.mark.parametrize("name", _public_modules())
def test_public_names_resolve(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    if exported is None:  # a package that is nothing but a place for its modules
        named = [key for key, value in vars(module).items() if not isinstance(value, ModuleType)]
        assert [key for key in named if not key.startswith("_")] == [], f"{name} needs __all__"
        return
    assert len(set(exported)) == len(exported)
    missing = [entry for entry in exported if not hasattr(module, entry)]
    assert missing == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_weights_are_never_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "pickle.load", "pickle.loads"}
