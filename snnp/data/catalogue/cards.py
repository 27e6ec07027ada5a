"""Cards and tables of datasets, rendered from their descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from snnp.data.catalogue.description import Description, PartDescription
from snnp.text import code, markdown

__all__ = ["card", "header", "table"]

_QUANTITIES = ("energies", "forces", "stresses")


def header(description: Description) -> str:
    """The YAML header of a card on the Hub, with its `---` lines: licence, tags, and one configuration per part."""
    frames = sum(part.frames or 0 for part in description.parts.values())
    elements = sorted({symbol for part in description.parts.values() for symbol in part.elements})
    values = {
        "license": description.licence or "unknown",
        "pretty_name": description.title,
        "tags": ["snnp", "interatomic-potential", "molecular-dynamics", *elements],
        "size_categories": [_size(frames)],
        "configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in description.parts],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _size(frames: int) -> str:
    """The Hub's names for how many rows there are."""
    steps = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for most, name in steps if frames < most), "1M<n<10M")


def card(description: Description, *, recipe: bool = True) -> str:
    """The text of a card, without its header.

    Arguments:
        description: with counts.
        recipe: whether there is a recipe that builds the dataset from raw files.
    """
    text = [f"# {description.name}: {markdown(description.title)}", "", markdown(description.summary), ""]
    licence = description.licence_note or description.licence or "none stated upstream"
    reason = description.why_not_redistributable()
    if reason is not None:
        licence += f" Recipe and checksums only: {reason}."
    facts = [("Origin", description.origin), ("Licence", licence), ("Level of theory", _levels(description))]
    facts += [("Conversions", description.conversions), ("Splits", description.splits)]
    text += [f"- **{name}.** {_sentence(value)}" for name, value in facts if value]
    text += [f"- {_sentence(note)}" for note in description.notes]
    if description.citation:
        text.append(f"- **Citation.** {_sentence('; '.join(description.citation))}")
    text += ["", *_parts_table(description), "", *_raw_table(description), *_use(description, recipe)]
    return "\n".join(text).rstrip() + "\n"


def _sentence(text: str) -> str:
    text = markdown(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _levels(description: Description) -> str:
    parts = []
    for name, part in description.parts.items():
        level = part.method + (f" ({part.software})" if part.software else "") + (f"; {part.note}" if part.note else "")
        parts.append(level if len(description.parts) == 1 else f"{code(name)}: {level}")
    return "; ".join(parts)


def _parts_table(description: Description) -> list[str]:
    lines = [
        "| part | frames | atoms in one | elements | labels | splits |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in description.parts.items():
        if part.frames is None:
            lines.append(f"| {code(name)} | counted when built | – | {' '.join(part.elements) or '–'} | – | – |")
            continue
        splits = ", ".join(f"{markdown(split)} {number:,}" for split, number in part.splits.items())
        lines.append(
            f"| {code(name)} | {part.frames:,} | {_range(part)} | {' '.join(part.elements)} | {_labels(part)} "
            f"| {splits} |"
        )
    return lines


def _range(part: PartDescription) -> str:
    if part.sizes is None:
        return "–"
    return str(part.sizes[0]) if part.sizes[0] == part.sizes[1] else f"{part.sizes[0]}–{part.sizes[1]}"


def _labels(part: PartDescription) -> str:
    """Which labels there are, with numbers where not all frames have them."""
    found = []
    for name in _QUANTITIES:
        number = getattr(part, name)
        if number:
            found.append(name if number == part.frames else f"{name} {number:,}")
    return ", ".join(found) or "none"


def _raw_table(description: Description) -> list[str]:
    if not description.raw:
        return []
    lines = ["Raw files that the recipe takes:", "", "| file | bytes | sha256 |", "|---|---|---|"]
    for raw in description.raw:
        name = f"[{code(raw.name)}]({raw.url})" if raw.url else code(raw.name)
        size = "–" if raw.bytes is None else f"{raw.bytes:,}"
        lines.append(f"| {name}{f' ({markdown(raw.note)})' if raw.note else ''} | {size} | {_checksum(raw.sha256)} |")
    return [*lines, ""]


def _checksum(sha256: str | None) -> str:
    return "–" if sha256 is None else f"`{sha256}`"


def _use(description: Description, recipe: bool) -> list[str]:
    build = ["Build it, then open the folder:", "", "```bash"]
    build += [f"python datasets/{description.name}/recipe.py RAW {description.name}", "```", ""]
    part = f', part="{next(iter(description.parts))}"' if len(description.parts) > 1 else ""
    return [
        *(build if recipe else []),
        "```python",
        f'dataset = snnp.load_dataset("{description.name}"{part}, split="train")',
        "```",
        "",
        "Units: Å, eV, eV/Å, eV/Å³ (stress in ASE's sign).",
    ]


def table(descriptions: Sequence[Description]) -> str:
    """All datasets in one table: counts, levels of theory, licences, sizes."""
    lines = [
        "| dataset | part | frames | atoms | in one | elements | labels | level of theory | licence | parquet |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for description in descriptions:
        licence = description.licence or "none stated"
        if description.why_not_redistributable() is not None:
            licence += " (recipe only)"
        for name, part in description.parts.items():
            counted = part.frames is not None
            cells = [
                code(description.name),
                code(name),
                f"{part.frames:,}" if counted else "not built here",
                f"{part.atoms:,}" if part.atoms is not None else "–",
                _range(part),
                _elements(part.elements),
                _labels(part) if counted else "–",
                markdown(part.method),
                markdown(licence),
                "–" if part.bytes is None else f"{part.bytes / 1e6:.2f} MB",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _elements(symbols: Sequence[str]) -> str:
    return " ".join(symbols) if len(symbols) <= 8 else f"{len(symbols)} elements"
