"""What is known about a dataset: origin, licence, level of theory, counts; the manifest of a recipe, and of a release.

`datasets/NAME/manifest.json` is a `Description`: where the upstream files are, with checksums, and what the recipe
makes of them. In a folder that is published the same stands under "dataset" in the manifest of the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from ase.data import chemical_symbols
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from snnp.data.read import dataset_files, open_source
from snnp.errors import DataError, first_fault
from snnp.files import write_atomically
from snnp.hub import make_manifest, write_manifest
from snnp.report import Markup, Table, sentence
from snnp.text import code, markdown, one_line, printable

__all__ = ["Description", "PartDescription", "RawFile", "card", "describe_part", "describe_parts", "finish", "header"]
__all__ += ["parse_description", "read_description"]

_MOST_BYTES = 4_000_000
# The Hub's names for how many rows there are.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _check_line(text: str) -> str:
    if printable(text) != text or "\n" in text:
        raise ValueError("must be one line without control characters")
    return text


_Line = Annotated[str, Field(max_length=10_000), AfterValidator(_check_line)]
_Address = Annotated[str, Field(max_length=2000, pattern=r"^(https?|ftp)://[^\s<>()\[\]|\"`\\]+$")]
_Part = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]


class RawFile(BaseModel, extra="forbid", frozen=True):
    """A file as it lies upstream, or as it must lie in the folder that a recipe is given."""

    name: _Line
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    bytes: int | None = Field(None, ge=0)
    url: _Address | None = None
    note: _Line | None = None


class PartDescription(BaseModel, extra="forbid", frozen=True):
    """One parquet file: one level of theory.

    `files` are the raw files of each split, for recipes that take extended XYZ. What follows it is counted.
    """

    method: _Line
    software: _Line = ""
    note: _Line = ""
    files: dict[str, list[_Line]] = {}
    frames: int | None = Field(None, ge=0)
    atoms: int | None = Field(None, ge=0)
    splits: dict[str, int] = {}
    sizes: tuple[int, int] | None = None
    elements: list[_Line] = []
    energies: int = 0
    forces: int = 0
    stresses: int = 0
    bytes: int | None = Field(None, ge=0)

    @property
    def atoms_in_one(self) -> str | None:
        """Smallest to largest number of atoms, where it was counted."""
        return None if self.sizes is None or self.frames is None else "–".join(map(str, sorted(set(self.sizes))))

    @property
    def labels(self) -> str | None:
        """Which labels there are, with numbers where not all frames have them."""
        if self.frames is None:
            return None
        numbers = {name: getattr(self, name) for name in ("energies", "forces", "stresses")}
        found = [name if number == self.frames else f"{name} {number:,}" for name, number in numbers.items() if number]
        return ", ".join(found) or "none"


class Description(BaseModel, extra="forbid", frozen=True):
    """A dataset.

    `licence` is the Hub's name of it ("mit", "cc-by-4.0"), None where upstream states none; then nobody may hand the
    data on, and `redistributable` must be False.
    """

    format: Literal["snnp-dataset"] = "snnp-dataset"
    format_version: int = Field(1, ge=1, le=1)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: _Line
    summary: _Line
    origin: _Line
    licence: _Line | None
    licence_note: _Line = ""
    redistributable: bool
    citation: list[_Line] = []
    conversions: _Line = ""
    splits: _Line = ""
    notes: list[_Line] = []
    raw: list[RawFile] = []
    parts: dict[_Part, PartDescription]

    def why_not_redistributable(self) -> str | None:
        """Why these data must not be handed on; None if they may."""
        if self.licence is None:
            return "upstream states no licence, so nobody may hand the data on"
        if not self.redistributable:
            return self.licence_note or "its description says so"
        return None


def read_description(path: str | Path) -> Description:
    """Read a manifest; refuses what is none, and names the key that is wrong."""
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        tree = json.loads(content) if len(content) <= _MOST_BYTES and content.strip() else None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a description of data: {' '.join(str(error).split())}.") from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} has more than {_MOST_BYTES:,} bytes, which no description has.")
    if not content.strip():
        raise DataError(f"{path} is empty; expected the description of a dataset.")
    if isinstance(tree, dict) and tree.get("format") == "snnp-manifest":  # of a folder with its data
        about = tree.get("about")
        tree = about.get("dataset") if isinstance(about, dict) else None
    return parse_description(tree, str(path))


def parse_description(tree: Any, where: str) -> Description:
    """Validate a description that was read already; names the key that is wrong."""
    try:
        description = Description.model_validate(tree)
    except ValidationError as error:
        _, key, why, _ = first_fault(error)
        raise DataError(f"{where}: {key[:80] or 'description'}: {why}.") from None
    if description.licence is None and description.redistributable:
        raise DataError(f"{where}: redistributable cannot be true without a licence; set it to false.")
    return description


def describe_part(path: Path, method: str = "", software: str = "", **more: Any) -> PartDescription:
    """Count what a file of parquet or extended XYZ holds.

    `method` and `software` go in place of what it says; `more` are further fields, such as `files` and `note`.
    """
    source = open_source(path, labelled=False)
    atoms, sizes, elements, known = 0, set[int](), set[int](), np.zeros(3, dtype=np.int64)
    for group in range(len(source.sizes)):
        frames = source.chunk(group, texts=False)
        atoms += len(frames.numbers)
        sizes |= {int(frames.counts.min()), int(frames.counts.max())}
        elements |= set(np.unique(frames.numbers).tolist())
        known += [frames.has_energy.sum(), frames.has_forces.sum(), frames.has_stress.sum()]
    return PartDescription(
        method=one_line(method or source.method),
        software=one_line(software or source.software),
        frames=int(source.sizes.sum()),
        atoms=atoms,
        splits={one_line(name): len(rows) for name, rows in source.rows_of_splits().items() if name},
        sizes=(min(sizes), max(sizes)),
        elements=[chemical_symbols[z] for z in sorted(elements)],
        energies=int(known[0]),
        forces=int(known[1]),
        stresses=int(known[2]),
        bytes=path.stat().st_size,
        **more,
    )


def describe_parts(folder: Path, stated: dict[str, PartDescription] | None = None) -> dict[str, PartDescription]:
    """Count all parquet files of a folder; what is stated about them is kept."""
    counted = {}
    for name, path in dataset_files(folder).items():
        said = (stated or {}).get(name)
        known = {} if said is None else said.model_dump(include={"method", "software", "note", "files"})
        counted[name] = describe_part(path, **known)
    if not counted:
        raise DataError(f"{folder} holds no parquet files; make one with 'snnp convert' or a recipe.")
    return counted


def header(description: Description) -> str:
    """The YAML header of a card on the Hub, with its `---` lines: licence, tags, and one configuration per part."""
    frames = sum(part.frames or 0 for part in description.parts.values())
    elements = sorted({symbol for part in description.parts.values() for symbol in part.elements})
    values = {
        "license": description.licence or "unknown",
        "pretty_name": description.title,
        "tags": ["snnp", "interatomic-potential", "molecular-dynamics", *elements],
        "size_categories": [next((name for most, name in _SIZES if frames < most), "1M<n<10M")],
        "configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in description.parts],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def card(description: Description, *, recipe: bool = True) -> str:
    """The text of a card, without its header; `recipe`: there is one that builds the dataset from raw files."""
    text = [f"# {description.name}: {markdown(description.title)}", "", markdown(description.summary), ""]
    licence = description.licence_note or description.licence or "none stated upstream"
    reason = description.why_not_redistributable()
    if reason is not None:
        licence += f" Recipe and checksums only: {reason}."
    levels = []
    for name, part in description.parts.items():
        level = part.method + (f" ({part.software})" if part.software else "") + (f"; {part.note}" if part.note else "")
        levels.append(level if len(description.parts) == 1 else f"{code(name)}: {level}")
    facts = [("Origin", description.origin), ("Licence", licence), ("Level of theory", "; ".join(levels))]
    facts += [("Conversions", description.conversions), ("Splits", description.splits)]
    text += [f"- **{name}.** {sentence(value)}" for name, value in facts if value]
    text += [f"- {sentence(note)}" for note in description.notes]
    if description.citation:
        text.append(f"- **Citation.** {sentence('; '.join(description.citation))}")
    rows = []
    for name, part in description.parts.items():
        splits = ", ".join(f"{split} {n:,}" for split, n in part.splits.items()) or None
        frames, elements = "counted when built" if part.frames is None else part.frames, " ".join(part.elements) or None
        rows.append((Markup(code(name)), frames, part.atoms_in_one, elements, part.labels, splits))
    columns = ("part", "frames", "atoms in one", "elements", "labels", "splits")
    text += ["", Table(columns, rows, n_text=6).markdown()]
    if description.raw:
        files = []
        for raw in description.raw:
            file = f"[{code(raw.name)}]({raw.url})" if raw.url else code(raw.name)
            note = f" ({markdown(raw.note)})" if raw.note else ""
            files.append((Markup(file + note), raw.bytes, None if raw.sha256 is None else Markup(f"`{raw.sha256}`")))
        text += ["Raw files that the recipe takes:", "", Table(("file", "bytes", "sha256"), files, n_text=3).markdown()]
    build = f"```bash\npython datasets/{description.name}/recipe.py RAW {description.name}\n```"
    which = f', part="{next(iter(description.parts))}"' if len(description.parts) > 1 else ""
    load = f'```python\ndataset = snnp.load_dataset("{description.name}"{which}, split="train")\n```'
    text.append(f"Build it, then open the folder:\n\n{build}\n\n{load}" if recipe else load)
    return "\n".join([*text, "", "Units: Å, eV, eV/Å, eV/Å³ (stress in ASE's sign).\n"])


def finish(folder: Path, description: Description, *, keep_card: bool = False) -> Description:
    """Count the parquet files of a folder, and write its card and the manifest of its files.

    `description` is what is known beside the counts; a `README.md` that is there stays as it is if `keep_card`.
    """
    counted = description.model_copy(update={"parts": describe_parts(folder, description.parts)})
    text = card(counted, recipe=(folder / "recipe.py").is_file())
    if not (keep_card and (folder / "README.md").is_file()):
        write_atomically(folder / "README.md", (header(counted) + "\n" + text).encode())
    about = {"dataset": json.loads(counted.model_dump_json())}
    names = ["README.md", *(f"{name}.parquet" for name in counted.parts)]
    names += sorted(path.name for path in folder.iterdir() if path.name == "recipe.py" or path.suffix == ".csv")
    write_manifest(folder, make_manifest(folder, "dataset", names, about))
    return counted
