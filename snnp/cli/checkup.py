"""`snnp doctor`: what is wrong with a data set or a model, what it means, and how to mend it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import print_json, print_table, say
from snnp.cli.options import Json, Model, Overwrite, command, group, keys_given, with_labels
from snnp.cli.outputs import prepare_output

if TYPE_CHECKING:
    from snnp.doctor import Report

__all__ = ["doctor_app"]

_FOUND = 3
_PAGES = ("report.html", "report.json")

_Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where report.html and report.json go; default: runs/doctor-NAME."),
]
_Strict = Annotated[bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")]

_CODES = ("Exit code: 0 without errors, 3 with errors (--strict: or warnings), 1 if nothing could be examined.",)

doctor_app = group(
    "Examine a data set or a model before it is used or published.",
    "snnp doctor data train.xyz test.xyz",
    "snnp doctor model runs/mine",
)


@command(
    "data",
    "snnp doctor data train.xyz test.xyz",
    "snnp doctor data train=a.xyz test=b.xyz --out report",
    "snnp doctor data org/name --json",
    after=_CODES,
    of=doctor_app,
)
@with_labels
def data_command(
    data: list[str] = typer.Argument(
        metavar="SET...",
        help="Files, a folder, or a dataset by name. Splits are told from names (train, valid, test) or set: "
        "train=FILE.",
    ),
    part: str | None = typer.Option(None, metavar="NAME", help="Part of a dataset with several."),
    out: _Out = None,
    overwrite: Overwrite = False,
    strict: _Strict = False,
    as_json: Json = False,
    **labels: Any,
) -> None:
    """Examine reference data: units, signs, outliers, duplicates, leakage between splits, levels of theory."""
    from snnp.doctor import examine_data
    from snnp.doctor.examine import read_set

    subject = ", ".join(Path(each).name if Path(each).exists() else each for each in data)
    folder = _folder(out, Path(data[0]), subject, overwrite)
    frames, unreadable = read_set(data, keys_given(labels), part=part)
    report = examine_data(frames, subject=subject, unreadable=unreadable)
    _finish(report, folder, strict, as_json)


@command("model", "snnp doctor model snnp-si", "snnp doctor model runs/mine --strict", after=_CODES, of=doctor_app)
def model_command(
    model: Model, out: _Out = None, overwrite: Overwrite = False, strict: _Strict = False, as_json: Json = False
) -> None:
    """Examine a model: derivatives, symmetries, smoothness, precision, dimers, dynamics, cost, storage."""
    from snnp.doctor import examine_model
    from snnp.hub import load_model

    potential = load_model(model)
    folder = _folder(out, Path(model), potential.name, overwrite)
    _finish(examine_model(potential, subject=potential.name), folder, strict, as_json)


def _folder(out: Path | None, source: Path, subject: str, overwrite: bool) -> Path:
    """Where the pages go; an earlier report on the same subject is replaced, as it can be made again."""
    name = re.sub(r"[^\w.-]+", "-", source.name.partition("=")[2] or source.name)
    folder = out or Path("runs") / f"doctor-{name}"
    try:
        ours = json.loads((folder / _PAGES[1]).read_text(encoding="utf-8"))["subject"] == subject
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    for page in _PAGES:
        prepare_output(folder / page, overwrite=overwrite or ours)
    return folder


def _finish(report: Report, folder: Path, strict: bool, as_json: bool) -> None:
    from snnp.files import write_atomically

    for page, text in zip(_PAGES, (report.html(), report.to_json()), strict=True):
        write_atomically(folder / page, text.encode())
    if as_json:
        print_json(report.json())
    else:
        rows = [[each.severity, each.check, each.message, each.cure] for each in report.findings]
        columns = ["", "check", "found", "how to mend it"] if rows else []
        print_table(columns, rows, title=f"{report.subject}: {report.verdict}")
        say(f"More, with pictures and the names of frames: {folder / 'report.html'}")
    if report.errors or (strict and report.warnings):
        raise typer.Exit(_FOUND)
