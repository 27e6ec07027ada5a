"""A benchmark for people: rows of a table, and the page that is saved with its numbers and its picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.pictures import draw_comparison, draw_scaling

from snnp.files import write_atomically
from snnp.text import code, markdown

__all__ = ["COLUMNS", "about", "save", "table"]

COLUMNS = (
    "program",
    "case",
    "structure",
    "atoms",
    "CPU µs/atom",
    "wall µs/atom",
    "peak MiB",
    "parameters",
    "force MAE (eV/Å)",
    "% of peak flops",
)
_N_TEXT = 3  # columns of text at the left


def table(document: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text under `COLUMNS`, the cheapest first; published errors are marked with an asterisk."""
    rows = []
    for row in sorted(document["rows"], key=lambda row: row["cpu_us_per_atom"]):
        error, fraction = row.get("force_mae_ev_per_angstrom"), row.get("fraction_of_peak_flops")
        rows.append(
            [
                row["program"],
                row["case"],
                row["structure"],
                f"{row['n_atoms']:,}",
                _digits(row["cpu_us_per_atom"]),
                _digits(row["wall_us_per_atom"]),
                f"{row['mib_peak']:.0f}",
                f"{row['parameters']:,}" if row.get("parameters") else "–",
                "–" if error is None else f"{error:.3f}" + ("*" if row["accuracy"] == "published" else ""),
                "–" if fraction is None else f"{100.0 * fraction:.0f}",
            ]
        )
    return rows


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100.0 else f"{value:,.0f}"


def about(document: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers depend on: machine, versions, how it was measured."""
    machine, ceilings = document["machine"], document["ceilings"]
    versions: dict[str, set[str]] = {}
    for row in document["rows"]:
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    load = machine["load_average"]
    return {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        "load average": "–" if load is None else f"{load:.1f} (at the end; what was measured counts, too)",
        "threads": ", ".join(sorted({str(row["threads"]) for row in document["rows"]})),
        "repeats": f"{document['repeats']}, interleaved, medians",
        "peak": ", ".join(f"{name} {value:.3g}" for name, value in ceilings.items()) + " (GFLOP/s, GB/s)",
        "versions": ", ".join(f"{name} {' / '.join(sorted(versions[name]))}" for name in sorted(versions)),
        "command": document["command"],
        "date": document["date"],
    }


def save(document: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write `STEM.json` (everything), `STEM.png` (the picture) and `STEM.md` (a page with the table); returns them."""
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("json", "png", "md")]
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(files[0], text.encode())
    if "scaling" in document:
        draw_scaling(files[1], document)
    else:
        draw_comparison(files[1], document)
    write_atomically(files[2], _markdown(document, stem.name).encode())
    return files


def _markdown(document: Mapping[str, Any], name: str) -> str:
    kind = "How cost grows" if "scaling" in document else "Cost of energy and forces"
    lines = [f"# {kind}, {document['date']}", "", f"![{kind}]({name}.png)", ""]
    lines += [*_markdown_rows(COLUMNS, table(document)), ""]
    if any(row.get("accuracy") == "published" for row in document["rows"]):
        lines += ["\\* published, on the upstream test files; ours are on the test set of each model.", ""]
    if document["not_measured"]:
        lines += ["Not measured:", ""]
        missing = (f"{each['program']}: {each['case']}: {each['reason']}" for each in document["not_measured"])
        lines += [*(f"- {markdown(each)}" for each in missing), ""]
    lines += [
        f"- {name}: {code(value) if name == 'command' else markdown(value)}" for name, value in about(document).items()
    ]
    lines += [f"- all numbers: [{name}.json]({name}.json)"]
    return "\n".join(lines) + "\n"


def _markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * _N_TEXT + ["---:"] * (len(columns) - _N_TEXT)
    cells = [[markdown(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (columns, rule, *cells)]
