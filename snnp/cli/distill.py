"""`snnp distill`: a fast student of a slow teacher."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from snnp.cli import options
from snnp.cli.console import number, print_json, print_pairs, print_table, progress_bar, say, warn
from snnp.cli.options import Json, command
from snnp.cli.outputs import prepare_folder
from snnp.distillation.settings import CHANGEABLE, DistilSettings
from snnp.errors import ConfigError, InputError
from snnp.process import Interrupted

if TYPE_CHECKING:
    from snnp.distillation import DistilProgress, DistilResult, Plan

__all__ = ["distill_command"]

_SEVERAL: dict[str, Any] = {"kind": list[str], "default": None}
_SHAPES: dict[str, dict[str, Any]] = {
    "kwargs": {"kind": str, "metavar": "JSON"},
    "python": {"metavar": "PATH"},
    "elements": {**_SEVERAL, "metavar": "SYMBOL..."},
    "crystals": {**_SEVERAL, "metavar": "FILE"},
    "data": {**_SEVERAL, "metavar": "SET"},
    "molecules": {**_SEVERAL, "metavar": "FILE|SMILES|g2"},
    "apart": {**_SEVERAL, "metavar": "FILE|SMILES"},
    "reference": {**_SEVERAL, "metavar": "SET"},
    "bars": {**_SEVERAL, "metavar": "NAME=VALUE"},
    "student": {"kind": Path, "metavar": "CONFIG", "default": None},
    "held_out": {"metavar": "FRACTION"},
    "most_failures": {"metavar": "FRACTION"},
}
_NOT_ACCEPTED = 3


@command(
    "distill",
    "snnp distill ase.calculators.emt:EMT --elements Cu Al --out runs/cu-al",
    'snnp distill sevenn.calculator:SevenNetCalculator --kwargs \'{"model": "7net-0"}\' --elements Al '
    "--python envs/sevenn/bin/python --budget 800 --workers 2 --out runs/al",
    "snnp distill runs/a runs/b runs/c --method self --data train.xyz --out runs/one",
    "snnp distill snnp-3bpa --molecules start.xyz --bars force_cosine=0.99 --out runs/small",
    "snnp distill --resume runs/al",
    after=("Exit code: 0 if the student reaches all bars, 3 if not, 1 if there is none.",),
)
@options.settings_taken(DistilSettings, _SHAPES, without=("teachers",))
def distill_command(
    teachers: list[str] | None = typer.Argument(
        None, metavar="TEACHER...", help="Models of snnp, or calculators (module:callable)."
    ),
    out: Path | None = typer.Option(None, metavar="RUN", help="Folder of the run; default: runs/distilled."),
    resume: Path | None = typer.Option(None, metavar="RUN", help="Go on with the run in this folder."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be labelled, and how long that would take."),
    as_json: Json = False,
    **given: Any,
) -> None:
    """Make a fast student of a slow teacher: structures, labels, training, and a report of what was lost."""
    from snnp.distillation import distil, plan

    folder = resume or out or Path("runs/distilled")
    if resume is not None:
        if teachers or out is not None or _named(given).keys() - set(CHANGEABLE):
            new = ", ".join(f"--{name.replace('_', '-')}" for name in CHANGEABLE)
            raise InputError(f"--resume goes on with a run as it was begun: only {new} may be given anew.")
        before = DistilSettings.load(resume / "distil.yaml")
        settings = _with_bars({**before.model_dump(mode="json"), **_named(given)}, before)
    else:
        settings = _distil_settings(teachers or [], given)
    if dry_run:
        _print_plan(plan(settings), as_json)
        return
    prepare_folder(folder)
    with progress_bar("distilling") as update:
        stages: list[str] = []

        def report(now: DistilProgress) -> None:
            if stages[-1:] != [now.stage]:
                stages.append(now.stage)
                say(f"{now.stage} ({now.total:,})")
            update(now.done, now.total, f"{now.stage} {now.note}")

        try:
            result = distil(settings, folder, report, resume=resume is not None)
        except KeyboardInterrupt as stop:
            say(f"Interrupted; '{shlex.join(['snnp', 'distill', '--resume', str(folder)])}' goes on from here.")
            raise typer.Exit(128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)) from None
    _print_distilled(result, as_json)
    if not result.accepted:
        raise typer.Exit(_NOT_ACCEPTED)


def _distil_settings(teachers: list[str], given: dict[str, Any]) -> DistilSettings:
    """The settings that the options say; symbols behind --elements A are read as arguments, and belong to it."""
    from ase.data import chemical_symbols

    values = _named(given)
    if "elements" in values:
        more = [each for each in teachers if each in chemical_symbols and not Path(each).exists()]
        teachers = [each for each in teachers if each not in more]
        values["elements"] = [part for text in [*values["elements"], *more] for part in text.replace(",", " ").split()]
    if "kwargs" in values:
        try:
            values["kwargs"] = json.loads(values["kwargs"])
        except ValueError as error:
            raise InputError(f'--kwargs is not JSON ({error}); write it as \'{{"model": "7net-0"}}\'.') from None
    if "student" in values:
        values["student"] = _tree(values["student"])
    values["teachers"] = teachers
    return _with_bars(values, DistilSettings(**{**values, "bars": None}))


def _named(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value not in (None, [])}


def _with_bars(values: dict[str, Any], before: DistilSettings) -> DistilSettings:
    """Settings whose bars, where they are NAME=VALUE, stand beside those of before."""
    if isinstance(values.get("bars"), list):
        new = dict(text.partition("=")[::2] for text in values["bars"])
        values = {**values, "bars": {**before.wanted_bars.model_dump(), **new}}
    return DistilSettings(**values)


def _tree(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values (model:, optimiser:, ...), got {type(tree).__name__}.")
    return {key: value for key, value in tree.items() if key != "data"}


def _print_plan(found: Plan, as_json: bool) -> None:
    if as_json:
        print_json({**vars(found), "seconds": found.seconds})
        return
    print_table(["structures", "labels"], [[kind, f"{n:,}"] for kind, n in found.labels.items()], title=found.teacher)
    pairs = {"atoms": f"about {found.n_atoms:,}", "teacher": f"{1e3 * found.seconds_per_atom:.3g} ms/atom"}
    print_pairs({**pairs, "time": f"{number(found.seconds)} s for labels, with {found.workers} processes"})


def _print_distilled(result: DistilResult, as_json: bool) -> None:
    if as_json:
        model = str(result.folder / "student")
        print_json({"run": str(result.folder), "model": model, "accepted": result.accepted, **result.report.json()})
        return
    for table in result.report.tables:
        if table.columns and not table.title.startswith("What"):
            rows = [
                [number(cell) if isinstance(cell, float) else str(cell or "–") for cell in row] for row in table.rows
            ]
            print_table(list(table.columns), rows, title=f"\n{table.title}")
    for finding in result.report.findings:
        warn(str(finding))
    print_pairs({"labels": f"{result.n_labels:,}", "report": str(result.folder / "report.html")})
    say("accepted: every bar is reached" if result.accepted else "not accepted: see above")
    say(f"Use it wherever a model is named: 'snnp md {result.folder / 'student'} STRUCTURE'.")
