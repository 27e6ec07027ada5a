"""What the commands print with: results to stdout, messages and progress to stderr.

Results are a table for people or one JSON value for programs. Everything printed passes through `printable`: names and
comments come from files, and must not steer a terminal; nor is markup in them obeyed.
"""

from __future__ import annotations

import io
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from snnp.text import UNSEEN, one_line, printable

__all__ = ["Update", "fail", "flat", "number", "print_errors", "print_json", "print_pairs", "print_properties"]
__all__ += ["print_result", "print_table", "print_trace", "progress_bar", "say", "tolerate_encoding", "warn"]

Update = Callable[..., None]
"""`update(done, total=None, note="")`: how far a job is, in its own units."""

_LONGEST_CELL = 5000  # characters
_PLAIN_WIDTH = 160  # columns where the output is a file or a pipe, so that no cell is cut
_PROPERTIES = {
    "a (Å)": "lattice_constant_angstrom",
    "E coh (eV/atom)": "cohesive_energy_ev_per_atom",
    "B (GPa)": "bulk_modulus_gpa",
    **{f"{name} (GPa)": f"{name.lower()}_gpa" for name in ("C11", "C12", "C44")},
}
_STDERR = Console(stderr=True, highlight=False)  # one for all, so that messages and a running bar do not mix


def tolerate_encoding() -> None:
    """Let streams replace characters that their encoding lacks, and text that is no Unicode; they would fail else."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _message(*parts: str | tuple[str, str]) -> None:
    _STDERR.print(Text.assemble(*parts), soft_wrap=True)


def say(message: str) -> None:
    """Print a message for the person at the terminal (stderr)."""
    _message(printable(message))


def fail(message: str) -> None:
    """Print an error on one line (stderr)."""
    _message(("error: ", "bold red"), one_line(message))


def print_trace(error: BaseException) -> None:
    """Print the traceback of an error (stderr)."""
    _message(printable("".join(traceback.format_exception(error)).rstrip()))


def warn(message: str) -> None:
    """Print a warning on one line (stderr)."""
    _message(("warning: ", "yellow"), one_line(message))


def print_json(value: Any) -> None:
    """Print one JSON value to stdout, and nothing else."""
    from snnp.report import jsonable

    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=not unicode, allow_nan=False)
    sys.stdout.write(UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text) + "\n")


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` significant digits, or a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value != 0.0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:,.{max(decimals, 0)}f}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table of text and numbers to stdout; columns whose cells are numbers are set right."""
    cells = [[_in_cell(each) for each in row] for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(row[index] == "–" or row[index].lstrip("+-")[:1].isdigit() for row in cells)
        table.add_column(Text(printable(column)), justify="right" if numeric and cells else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_shown(cell) for cell in row))
    _print_below(title, table)


def _in_cell(value: str | float | None) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else number(value)


def _shown(cell: str) -> Text:
    """A cell as it may be printed; what no person reads to the end is cut (--json has it whole)."""
    text = printable(cell)
    return Text(text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…")


def print_pairs(pairs: Mapping[str, str], title: str | None = None) -> None:
    """Print names and values in two columns to stdout."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(printable(name), style="cyan"), _shown(value))
    _print_below(title, table)


def print_result(values: Mapping[str, Any], as_json: bool = False) -> None:
    """Print what a command found as JSON, or as names and values, without those that are None."""
    if as_json:
        print_json(values)
    else:
        shown = {name: f"{value:,}" if type(value) is int else value for name, value in values.items()}
        print_pairs({name.replace("_", " "): text for name, text in flat(shown).items()})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b: text`, keys and numbers as they are written in files, without those that are None."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = _in_words(value)
    return found


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_below(title: str | None, table: Table) -> None:
    # Not the table's own title: that is wrapped to the width of the table.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if title is not None:
        console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(table)


def print_errors(parts: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """One row of errors per part of some data (train, test, or groups); `GroupErrors.to_dict` says what a row holds."""
    from snnp.training.evaluation import ERROR_COLUMNS

    has_stress = any(part.get("stress_mae_gpa") is not None for part in parts.values())
    quantities = ERROR_COLUMNS if has_stress else ERROR_COLUMNS[:-1]
    rows = []
    for name, part in parts.items():
        counts = [str(part.get(count, "–")) for count in ("n_structures", "n_atoms")]
        rows.append([name, *counts, *(number(part.get(key)) for _, key, _ in quantities)])
    print_table(["", "structures", "atoms", *(label for label, *_ in quantities)], rows, title=title)


def print_properties(crystals: Iterable[Mapping[str, Any]]) -> None:
    """A table per crystal: the model beside published values; `CubicProperties.to_dict` says what a crystal holds."""
    sources: dict[str, str] = {}
    crystals = list(crystals)
    for crystal in crystals:
        lines = {"model": crystal, **crystal["references"]}
        rows = [[name, *(number(line.get(key), 4) for key in _PROPERTIES.values())] for name, line in lines.items()]
        print_table(["", *_PROPERTIES], rows, title=f"\n{crystal['structure']} {crystal['element']}")
        sources |= {line["source"]: name for name, line in crystal["references"].items()}
    for source, name in sources.items():
        say(f"{name}: {source}")
    if any(crystal.get("cohesive_energy_ev_per_atom") is None for crystal in crystals):
        say("E coh: the model has none where E0 is not the energy of an isolated atom.")


@contextmanager
def progress_bar(description: str, total: float | None = None) -> Iterator[Update]:
    """A progress bar with the remaining time, on a terminal only; yields the function that moves it."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=_STDERR,
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task(one_line(description), total=total, note="")

        def update(done: float, total: float | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=one_line(note))

        yield update
