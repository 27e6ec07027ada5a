"""What is written from the code and from the bundled models: command line help, keys, models, modules.

    python docs/generate.py

rewrites the parts of the pages that stand between two marks, so that they can be read in the repository as they are;
the tests fail where a part is not what the code says. Cards and the reference of the modules are copied for Sphinx at
every build, into `docs/_generated`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
from recipes import table

from snnp.active.schedule import SamplingSettings
from snnp.active.settings import ActiveSettings
from snnp.cli.main import app
from snnp.data.description import read_description
from snnp.models.config import FamilyConfig
from snnp.models.families import FAMILIES
from snnp.sampling.settings import MDSettings
from snnp.training.config import TrainConfig

__all__ = ["pages_with_parts", "parts", "write_pages"]

DOCS = Path(__file__).resolve().parent
HELP_WIDTH = 84  # columns of the help texts: what a page of the documentation shows without scrolling


def _write(path: Path, text: str) -> None:
    """Write only what changed, so that an incremental build stays incremental."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _command_help() -> str:
    """The help of `snnp` and of each command, as the program prints it."""
    runner = CliRunner(env={"COLUMNS": str(HELP_WIDTH), "TERM": "dumb", "NO_COLOR": "1"})
    names: list[list[str]] = [[], *([str(info.name)] for info in app.registered_commands)]
    for group in app.registered_groups:
        inside = group.typer_instance.registered_commands if group.typer_instance else []
        names += [[str(group.name)], *([str(group.name), str(info.name)] for info in inside)]
    sections = []
    for words in names:
        shown = runner.invoke(app, [*words, "--help"])
        if shown.exit_code != 0:
            raise RuntimeError(f"'snnp {' '.join(words)} --help' failed: {shown.output}")
        title = " ".join(["snnp", *words])
        lines = "\n".join(line.rstrip() for line in shown.output.strip("\n").splitlines())
        sections.append(f"## {title}\n\n```text\n{lines}\n```\n")
    return "\n".join(sections)


def _type_name(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    # Modules are of no interest in a table of keys: snnp.models.spline.config.RadialConfig is RadialConfig.
    text = re.sub(r"\b(?:typing|pathlib|snnp(?:\.[a-z_]+)+)\.", "", text)
    return text.replace("NoneType", "None")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**" if field.default_factory is None else f"`{field.default_factory()}`"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{json.dumps(field.default, default=str)}`"


def _models_inside(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if part is FamilyConfig:
                yield from ((name, family.config) for family in FAMILIES.values())
            elif isinstance(part, type) and issubclass(part, BaseModel):
                yield name, part


def _docstring_parts(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The text of a class's docstring, and what its `Arguments:` section says of each key."""
    before, _, rest = inspect.cleandoc(model.__doc__ or "").partition("Arguments:\n")
    section = re.split(r"\n(?=\S)", rest)[0]
    entries = re.split(r"\n {4}(?=\w)", "\n" + section)
    meanings: dict[str, str] = {}
    for entry in entries[1:]:
        names, _, meaning = entry.partition(":")
        meanings |= {name.strip(): " ".join(meaning.split()) for name in names.split(",")}
    paragraphs = [" ".join(part.split()) for part in before.split("\n\n")]
    return "\n\n".join(paragraphs), meanings


def _key_tables(model: type[BaseModel], path: str = "") -> str:
    """One table per configuration class, nested ones after their parent."""
    about, meanings = _docstring_parts(model)
    meanings |= {name: field.description for name, field in model.model_fields.items() if field.description}
    lines = [f"### `{path}`: {model.__name__}", ""] if path else []
    lines += [about, "", "| key | type | default |" + (" meaning |" if meanings else "")]
    lines += ["|---" * (4 if meanings else 3) + "|"]
    for name, field in model.model_fields.items():
        kind = _type_name(field).replace("|", "\\|")
        last = f" {meanings.get(name, '')} |" if meanings else ""
        lines.append(f"| `{name}` | `{kind}` | {_default(field)} |{last}")
    text = "\n".join([*lines, ""])
    for name, inner in _models_inside(model):
        text += "\n" + _key_tables(inner, f"{path}.{name}" if path else name)
    return text


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _zoo_table(zoo: Path) -> str:
    rows = []
    for model in sorted(path.parent for path in zoo.glob("*/config.json")):
        stored = json.loads((model / "config.json").read_text(encoding="utf-8"))
        metrics = stored["metadata"].get("metrics", {})
        rows.append(
            f"| [{model.name}](../model_zoo/{model.name}/README.md) | {', '.join(stored['config']['elements'])} "
            f"| {_number(metrics.get('energy_mae_mev_per_atom'), 2)} "
            f"| {_number(metrics.get('force_mae_ev_per_angstrom'), 3)} |"
        )
    header = [
        "| model | elements | energy MAE, meV/atom | force MAE, eV/Å |",
        "|---|---|---|---|",
    ]
    return "\n".join([*header, *rows, ""])


_PERIODS = """
H . . . . . . . . . . . . . . . . He
Li Be . . . . . . . . . . B C N O F Ne
Na Mg . . . . . . . . . . Al Si P S Cl Ar
K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe
Cs Ba La Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
"""
"""Rows of the periodic table, from group 1 to 18; a dot where there is nothing."""


def _models(zoo: Path) -> dict[str, dict[str, Any]]:
    """Name -> what the configuration of each bundled model says."""
    found = sorted(zoo.glob("*/config.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _is_solid(stored: dict[str, Any]) -> bool:
    """Whether a model is for crystals and melts, not for molecules."""
    measured = stored["metadata"].get("stability", {})  # by symbols of elements, or the formula of a molecule
    return any(symbol in measured for symbol in stored["config"]["elements"])


def _is_one_molecule(stored: dict[str, Any]) -> bool:
    return bool(stored["metadata"].get("training_range", {}).get("formula"))


def _periodic_table(zoo: Path) -> str:
    """An HTML table; each element leads to the card of the model that knows the fewest others."""
    models = _models(zoo)
    lines = ['<table class="periodic">']
    for period in _PERIODS.strip().splitlines():
        cells = []
        for symbol in period.split():
            known = [name for name, each in models.items() if symbol in each["config"]["elements"]]
            solid = [name for name in known if _is_solid(models[name])]
            general = [name for name in known if name not in solid and not _is_one_molecule(models[name])]
            kind = "both" if solid and general else "solid" if solid else "molecules" if general else ""
            if not known:
                cells.append('<td class="gap"></td>' if symbol == "." else f"<td>{symbol}</td>")
                continue
            first = max(solid or general or known, key=lambda n: (-len(models[n]["config"]["elements"]), n))
            link = f'<a href="../model_zoo/{first}/README.md" title="{", ".join(known)}">{symbol}</a>'
            cells.append(f'<td class="{kind or "molecule"}">{link}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    key = (
        ("solid", "crystals and melts"),
        ("molecules", "organic molecules"),
        ("both", "both"),
        ("molecule", "one molecule alone"),
    )
    shown = " ".join(f'<span class="{kind}">{text}</span>' for kind, text in key)
    return "\n".join([*lines, "</table>", f'<p class="periodic-key">{shown}</p>', ""])


def _hottest(metadata: dict[str, Any]) -> str:
    """What became of the hot runs."""
    runs = [each["langevin"] for each in metadata.get("stability", {}).values() if "langevin" in each]
    if not runs:
        return "–"
    low, high = min(each["target_k"] for each in runs), max(each["target_k"] for each in runs)
    kelvin = f"{low:.0f} K" if low == high else f"{low:.0f}–{high:.0f} K"
    broken = sum(not each["survived"] for each in runs)
    return kelvin if not broken else f"**breaks** at {kelvin}" if broken == len(runs) else f"{kelvin}, {broken} break"


def _which_model(zoo: Path) -> str:
    """A table of the models of crystals, and one of those of molecules."""
    parts = []
    for title, solid in (("Crystals, melts, alloys", True), ("Molecules", False)):
        lines = [f"### {title}", "", "| model | for | learned from | 20 ps at | force MAE, eV/Å | µs/atom |"]
        lines += ["|---|---|---|---|---:|---:|"]
        for name, stored in _models(zoo).items():
            if _is_solid(stored) != solid:
                continue
            about = stored["metadata"]
            purpose = about.get("description", "").removeprefix("s-NNP for ")
            teacher = about.get("teacher")
            named = re.search(r"model='([^']+)'", teacher or "")
            origin = f"{named[1] if named else teacher}, its teacher" if teacher else about.get("level_of_theory", "–")
            error = about.get("metrics", {}).get("force_mae_ev_per_angstrom")
            lines.append(
                f"| [{name}](../model_zoo/{name}/README.md) | {purpose} | {origin} | {_hottest(about)} "
                f"| {_number(error, 3)} | {_number(about.get('speed', {}).get('us_per_atom'), 1)} |"
            )
        parts += [*lines, ""]
    return "\n".join(parts)


def _datasets_table(datasets: Path) -> str:
    descriptions = [read_description(path) for path in sorted(datasets.glob("*/manifest.json"))]
    return re.sub(r"^\| `([^`]+)`", r"| [\1](../datasets/\1/README.md)", table(descriptions), flags=re.MULTILINE)


def _modules() -> Iterator[tuple[str, bool]]:
    """Name of every public module, and whether it is a package; the command line has a page of its own."""
    importlib.import_module("openmmml")  # it loads its plugins, ours too, while it is itself imported: it goes first
    for root in ("snnp", "snnp_ase", "snnp_lammps", "snnp_openmm"):
        package = importlib.import_module(root)
        yield root, True
        for info in pkgutil.walk_packages(package.__path__, prefix=f"{root}."):
            if not info.name.startswith("snnp.cli"):
                yield info.name, info.ispkg


def _api() -> str:
    """A section for each module. Packages only re-export, so their members are described where they are defined."""
    sections = []
    for name, is_package in _modules():
        members = "   :no-members:\n" if is_package else ""
        sections.append(f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}```\n")
    return "\n".join(sections)


# A mark begins a part and names it; what follows, up to the end mark, is the program's.
_PART = re.compile(
    r"(?P<begin><!-- begin (?P<name>[a-z-]+): python docs/generate\.py -->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.S
)


def parts() -> dict[str, str]:
    """Name of each part and its text."""
    return {
        "command-line": _command_help(),
        "train-keys": _key_tables(TrainConfig),
        "md-keys": _key_tables(MDSettings),
        "active-keys": _key_tables(ActiveSettings) + "\n" + _key_tables(SamplingSettings, "sampling"),
        "models": _zoo_table(DOCS.parent / "model_zoo"),
        "periodic-table": _periodic_table(DOCS.parent / "model_zoo"),
        "which-model": _which_model(DOCS.parent / "model_zoo"),
        "datasets": _datasets_table(DOCS.parent / "datasets"),
    }


def pages_with_parts() -> dict[Path, str]:
    """Pages that hold such parts, as they should be."""
    texts, pages = parts(), {}
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = _PART.sub(lambda found: f"{found['begin']}\n{texts[found['name']].strip()}\n\n{found['end']}", old)
        if _PART.search(old):
            pages[page] = new
    return pages


def write_pages(docs: Path, zoo: Path, datasets: Path) -> None:
    """Write what only Sphinx reads into `docs/_generated`: the cards of models and datasets, the modules."""
    folder = docs / "_generated"
    _write(folder / "api.md", _api())
    for kind, cards in (("cards", zoo), ("datasets", datasets)):
        for card in sorted(cards.glob("*/README.md")):
            _write(folder / kind / f"{card.parent.name}.md", card.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path, content in pages_with_parts().items():
        _write(path, content)
