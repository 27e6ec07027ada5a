"""What studies share: which machine and programs found something, and the page that shows it between its marks."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from snnp.files import write_atomically

__all__ = ["averaged", "between_marks", "provenance", "save", "written"]


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """Date, machine and versions of Python and the packages, as JSON values."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{names[0] if names else platform.processor() or platform.machine()}, one thread",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def save(path: Path, found: dict[str, Any], packages: Sequence[str], indent: int | None = 1) -> None:
    """Write what was found as JSON, with its provenance, which `found` has afterwards."""
    found.update(provenance(packages))
    write_atomically(path, (json.dumps(found, indent=indent) + "\n").encode())


def written(found: Mapping[str, Any], by: str = "the command above", more: str = "") -> str:
    """The sentence under a table: by what it was written, when and where, with which versions, and `more`."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"Written by {by} on {'; '.join(filter(None, (found['date'], found['machine'], versions, more)))}."


def averaged(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several; nothing of nothing."""
    if not len(values):
        return ""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def between_marks(page: Path, contents: Mapping[str, str]) -> None:
    """Put each content between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page, in place of what is there.

    Raises:
        ValueError: for a page without these marks; it stays as it was.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in contents.items():
        first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found, rest = text.partition(first)
        _, ended, after = rest.partition(last)
        if not (found and ended):
            raise ValueError(f"{page} lacks the marks {first} and {last}.")
        text = f"{before}{first}\n\n{content}\n\n{last}{after}"
    write_atomically(page, text.encode())
