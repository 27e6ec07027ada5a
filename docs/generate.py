"""Pages that are written from the code and from the bundled models: command line help, keys, models, modules."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.data.cards import table
from snnp.data.description import read_description
from snnp.sampling.settings import MDSettings
from snnp.training.config import TrainConfig

__all__ = ["write_pages"]

HELP_WIDTH = 100  # columns of the help texts


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
    # Modules are of no interest in a table of keys: snnp.models.config.RadialConfig is RadialConfig.
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
            if isinstance(part, type) and issubclass(part, BaseModel):
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


def _zoo_pages(folder: Path, zoo: Path) -> str:
    """Table of all bundled models; each card becomes a page of its own."""
    rows, names = [], []
    for model in sorted(path.parent for path in zoo.glob("*/config.json")):
        stored = json.loads((model / "config.json").read_text(encoding="utf-8"))
        metrics = stored["metadata"].get("metrics", {})
        rows.append(
            f"| [{model.name}](_generated/cards/{model.name}.md) | {', '.join(stored['config']['elements'])} "
            f"| {_number(metrics.get('energy_mae_mev_per_atom'), 2)} "
            f"| {_number(metrics.get('force_mae_ev_per_angstrom'), 3)} |"
        )
        names.append(model.name)
        _write(folder / "cards" / f"{model.name}.md", (model / "README.md").read_text(encoding="utf-8"))
    header = [
        "| model | elements | energy MAE, meV/atom | force MAE, eV/Å |",
        "|---|---|---|---|",
    ]
    listing = ["", "```{toctree}", ":hidden:", *(f"_generated/cards/{name}" for name in names), "```", ""]
    return "\n".join([*header, *rows, *listing])


def _dataset_pages(folder: Path, datasets: Path) -> str:
    """Table of all datasets; each card becomes a page of its own."""
    descriptions = [read_description(path) for path in sorted(datasets.glob("*/manifest.json"))]
    for each in descriptions:
        _write(
            folder / "datasets" / f"{each.name}.md", (datasets / each.name / "README.md").read_text(encoding="utf-8")
        )
    names = [f"_generated/datasets/{each.name}" for each in descriptions]
    listing = ["", "```{toctree}", ":hidden:", *names, "```", ""]
    linked = re.sub(r"^\| `([^`]+)`", r"| [\1](_generated/datasets/\1.md)", table(descriptions), flags=re.MULTILINE)
    return linked + "\n".join(listing)


def _modules() -> Iterator[tuple[str, bool]]:
    """Name of every public module, and whether it is a package; the command line has a page of its own."""
    importlib.import_module("openmmml")  # it loads its plugins, ours too, while it is itself imported: it goes first
    for root in ("snnp", "snnp_ase", "snnp_openmm"):
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


def _results(docs: Path) -> str:
    """Table of contents of the pages that `model_zoo/build.py` and the studies write: those that are there."""
    pages = [*docs.glob("models.md"), *sorted(docs.glob("studies/*.md")), *sorted(docs.glob("benchmarks/*.md"))]
    if not pages:
        return ""
    names = [path.relative_to(docs).with_suffix("").as_posix() for path in pages]
    return "\n".join(["```{toctree}", ":maxdepth: 1", ":caption: Results", "", *names, "```", ""])


def write_pages(docs: Path, zoo: Path, datasets: Path) -> None:
    """Write all generated pages into `docs/_generated`; `zoo` and `datasets` are the folders of models and recipes."""
    folder = docs / "_generated"
    _write(folder / "results.md", _results(docs))
    _write(folder / "command-line.md", _command_help())
    _write(folder / "api.md", _api())
    _write(folder / "train-keys.md", _key_tables(TrainConfig))
    _write(folder / "md-keys.md", _key_tables(MDSettings))
    _write(folder / "zoo-table.md", _zoo_pages(folder, zoo))
    _write(folder / "datasets-table.md", _dataset_pages(folder, datasets))
