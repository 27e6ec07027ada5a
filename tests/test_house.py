"""The house: sizes, names, and directions of imports; each test is a rule of docs/decisions/020-house.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

MAX_MODULES_IN_A_FOLDER = 12
MAX_MODULES = 165
MAX_LINES = 28_000  # the aim of decision 020

# What came after the house and is counted by itself: folders and files.
LATER = (
    "plugins/lammps",
    "snnp/active",
    "plugins/ase/snnp_ase/observer.py",
    *(f"plugins/openmm/snnp_openmm/{name}.py" for name in ("doctor", "mixed", "reporter", "torch_engine")),
    "snnp/cli/discover.py",
    "snnp/cli/distill.py",
    "snnp/cli/drivers",
    "snnp/discovery",
    "snnp/distillation",
    "snnp/models/spline/lammps_file.py",
    "snnp/models/spline/uf3_file.py",
    "snnp/kernels/cpu/heads.py",
    "snnp/kernels/cpu/small_lists.py",
    "snnp/models/aot",
    "snnp/models/heads",
    "snnp/explain",
    "snnp/models/spline/more_elements.py",
    "snnp/training/transfer",
    "snnp/publish/zoo.py",
    "snnp/sampling/many",
    "snnp/sampling/watch.py",
    "snnp/uncertainty",
)

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = {"snnp": REPOSITORY / "snnp", "snnp_ase": REPOSITORY / "plugins/ase/snnp_ase"}
ROOTS |= {f"snnp_{name}": REPOSITORY / f"plugins/{name}/snnp_{name}" for name in ("lammps", "openmm")}
MODULES = {
    ".".join((root, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for root, folder in ROOTS.items()
    for path in sorted(folder.rglob("*.py"))
}
# Names that several folders have, because they hold the same part of each.
ONE_IDEA_IN_SEVERAL_PLACES = {
    "__init__",
    "checkpoint",  # of a run: a training, or a simulation
    "run",  # likewise: from its settings to its files
    "settings",  # likewise: what is asked for
    "compiled",  # the s-NNP's kernel, evaluating or training
    "config",  # of a family, or of a training run: a configuration as plain values
    "model",  # of a family
    "scripted",  # its twin in TorchScript
    "call",  # of kernels: one evaluation
    "lists",  # of kernels: neighbours in their layout
    "md",  # of a plugin: its engine
    "observer",  # of uncertainty, for whoever moves atoms; for ASE
}


def _imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Modules of ours that a module names: at its top and for types, and with `everywhere` within functions, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if not everywhere and id(node) in inner:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


def test_folders_hold_few_modules() -> None:
    counts: defaultdict[Path, int] = defaultdict(int)
    for path in MODULES.values():
        counts[path.parent] += path.name != "__main__.py"  # a door, which nothing imports
    assert {str(folder.relative_to(REPOSITORY)): n for folder, n in counts.items() if n > MAX_MODULES_IN_A_FOLDER} == {}


def test_the_house_stays_within_its_budget() -> None:
    later = [REPOSITORY / name for name in LATER]
    assert all(path.exists() for path in later)
    house = [path for path in MODULES.values() if not {path, *path.parents} & set(later)]
    assert len(house) <= MAX_MODULES
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in house) <= MAX_LINES


def test_one_name_means_one_thing() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        places[path.stem].append(module)
    assert {n: p for n, p in places.items() if len(p) > 1 and n not in ONE_IDEA_IN_SEVERAL_PLACES} == {}


def test_no_circle_of_imports() -> None:
    """Type-only imports count; those within functions are the ways in that are loaded when they are asked for."""
    graph = {module: _imports(path, everywhere=False) - {module} for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_the_contract_of_a_potential_knows_no_kernel() -> None:
    found = _imports(MODULES["snnp.models.potential"])
    assert [name for name in found if name.startswith("snnp.kernels")] == []


@pytest.mark.parametrize("peer", ["lammps", "mace", "hippynn", "torchani", "calorine", "sevenn", "chgnet"])
def test_no_adapter_of_another_program_is_in_the_wheel(peer: str) -> None:
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert peer not in {name.split(".")[0] for name in names}, f"{path} imports {peer}"


def test_geometries_are_told_apart_by_backends_alone() -> None:
    backends = REPOSITORY / "snnp/training/backends"
    for path in MODULES.values():
        if path.parent == backends:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                kinds = ast.unparse(node.args[1])
                assert not any(word in kinds for word in ("Geometry", "Pairs")), f"{path} asks for a {kinds}"


def test_one_module_writes_tables_and_pages() -> None:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in documentation]
        written = [
            text for text in texts if isinstance(text, str) and ("---|" in text or "| --" in text or "<t" in text)
        ]
        assert module == "snnp.report" or written == [], f"{module} writes a table"


def test_pictures_of_the_architecture_name_files_that_are_there() -> None:
    text = (REPOSITORY / "docs/architecture.py").read_text(encoding="utf-8")
    named = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    files = [name for name in named if name.startswith(("snnp/", "plugins/"))]
    assert len(files) > 20
    assert [name for name in files if not (REPOSITORY / name).is_file()] == []
    pictures = (REPOSITORY / "docs/_static").glob("architecture-*.svg")
    drawn = "".join(path.read_text(encoding="utf-8") for path in pictures)
    assert set(re.findall(r">\s*((?:snnp|plugins)/[\w/]+\.\w+)\s*<", drawn)) == set(files), "run docs/architecture.py"
