"""`snnp train`, `evaluate` and `doctor`: models from reference data and against them, and what is wrong with either."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli import console, options
from snnp.cli.console import number, print_json, print_pairs, print_table, progress_bar, say, warn
from snnp.cli.options import Data, Device, Dtype, Json, Model, Overwrite, command
from snnp.cli.outputs import prepare_folder, prepare_output, readable
from snnp.errors import InputError
from snnp.files import refuse_inputs
from snnp.process import Interrupted

if TYPE_CHECKING:
    from snnp.doctor import Report
    from snnp.training import Progress, RunResult

__all__ = ["doctor_app"]

_FOUND = 3
_PAGES = ("report.html", "report.json")

_Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where report.html and report.json go; default: runs/doctor-NAME."),
]
_Strict = Annotated[bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")]

_CODES = ("Exit code: 0 without errors, 3 with errors (--strict: or warnings), 1 if nothing could be examined.",)

doctor_app = options.group(
    "Examine a data set or a model before it is used or published.",
    "snnp doctor data train.xyz test.xyz",
    "snnp doctor model runs/mine",
)


@command(
    "evaluate",
    "snnp evaluate snnp-si test.xyz",
    "snnp evaluate runs/mine test.xyz --json",
    "snnp evaluate snnp-si a.xyz b.xyz --energy-key dft_energy --forces-key dft_forces",
    "snnp evaluate snnp-si --properties",
)
@options.with_labels
def evaluate_command(
    model: Model,
    data: Data = None,
    properties: bool = typer.Option(
        False, "--properties", help="Lattice constant and elastic constants of the elements' crystals, too."
    ),
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    **labels: Any,
) -> None:
    """Compare a model with reference data (energies, forces, stresses), and its crystals with known properties."""
    from snnp.analysis.properties import model_properties
    from snnp.data import check_frames, read_frames
    from snnp.hub import load_model
    from snnp.training.evaluation import evaluate

    if not data and not properties:
        raise InputError("nothing to evaluate: name a data file, or ask for --properties.")
    potential = load_model(model, dtype=dtype, device=device)
    report: dict[str, Any] = {"model": potential.name}
    if data:
        with readable(*data):
            frames = read_frames(data, options.keys_given(labels))
        for finding in check_frames(frames):
            warn(str(finding))
        names = ", ".join(map(str, data))
        with progress_bar("evaluating", len(frames)) as update:
            report |= evaluate(potential, frames, model_name=potential.name, data_name=names, progress=update).to_dict()
    if properties:
        report["properties"] = [crystal.to_dict() for crystal in model_properties(potential)]
    if as_json:
        print_json(report)
        return
    if data:
        _print_comparison(report)
    if properties:
        console.print_properties(report["properties"])
        if not report["properties"]:
            say("None of the model's elements has a cubic crystal whose properties can be computed.")


def _print_comparison(report: dict[str, Any]) -> None:
    console.print_errors({"all": report, **report["groups"]}, title=f"{report['model']} against {report['data']}")
    if len(report["elements"]) > 1:
        keys = [f"force_{kind}_ev_per_angstrom" for kind in ("mae", "rmse", "max")]
        elements = [[symbol, *(number(part[key]) for key in keys)] for symbol, part in report["elements"].items()]
        print_table(["element", "force MAE", "RMSE", "max (eV/Å)"], elements, title="\nForces by element")


@command(
    "train",
    "snnp train config.yaml --out runs/mine",
    "snnp train config.yaml --set optimiser.epochs=50 --set model.angular.n_filters=8 --out runs/small",
    "snnp train few.yaml --from snnp-shared6 --freeze filters --out runs/few",
    "snnp train --resume runs/mine",
    after=(
        "A whole config.yaml (everything else has a default):",
        "data: {train: [train.xyz], valid: 0.1, test: test.xyz}",
        "model: {family: s-nnp}   # or hip-nn, ani",
        "optimiser: {epochs: 200}",
    ),
)
def train_command(
    config: Path | None = typer.Argument(None, metavar="CONFIG", help="YAML file: what to train on which data."),
    assignments: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="Change a key of the file; may be repeated."
    ),
    begin_with: str | None = typer.Option(
        None, "--from", metavar="MODEL", help="Go on from the weights of this model (the key start)."
    ),
    freeze: str | None = typer.Option(
        None, metavar="filters|none", help="What of that model stays as it is (the key freeze); default: none."
    ),
    out: Path | None = typer.Option(None, metavar="RUN", help="Folder of the run; default: runs/ and CONFIG's name."),
    resume: Path | None = typer.Option(None, metavar="RUN", help="Continue this folder's run as if it never stopped."),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model on reference data, or continue a run that was interrupted."""
    from snnp import training
    from snnp.hub import resolve

    if (config is None) == (resume is None):
        raise InputError("name one of CONFIG (a new run) and --resume RUN (an old one).")
    given = {"start": begin_with and resolve(begin_with).pinned, "freeze": freeze}
    assignments = [*(assignments or []), *(f"{key}={json.dumps(each)}" for key, each in given.items() if each)]
    if resume is not None and (assignments or out is not None or overwrite):
        raise InputError("--resume continues a run as it was begun: only --json goes with it.")
    with progress_bar("training") as update:

        def report(now: Progress) -> None:
            if now.message is not None:
                warn(now.message) if now.epoch == 0 else say(now.message)
            note = "" if now.train_loss is None else f"loss {number(now.train_loss)}"
            update(now.epoch, now.epochs, note)

        try:
            if resume is not None:
                folder = resume
                result = training.resume(folder, report)
            else:
                assert config is not None
                folder = out or Path("runs") / config.stem
                loaded = training.load_config(config, assignments)
                prepare_folder(folder)
                refuse_inputs(folder / "config.yaml", [config])
                result = training.train(loaded, folder, report, overwrite=overwrite)
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted):
                say(f"The run was {stop.where}.")
            if (folder / "config.yaml").is_file():
                say(f"Interrupted; '{shlex.join(['snnp', 'train', '--resume', str(folder)])}' goes on from here.")
            else:
                say("Interrupted before the run began; start it again.")
            raise typer.Exit(128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)) from None
    _print_run(result, as_json)


def _print_run(result: RunResult, as_json: bool) -> None:
    errors = {name: evaluation.total.to_dict() for name, evaluation in result.evaluations.items()}
    if as_json:
        size = {"n_parameters": result.model.n_parameters, "seconds": result.seconds}
        print_json({"run": str(result.folder), "model": str(result.folder / "best"), **size, "errors": errors})
        return
    console.print_errors(errors, title=f"{result.folder}: {result.model.n_parameters:,} parameters")
    pictures = ", ".join(str(path) for path in sorted(result.folder.glob("*.png")))
    print_pairs({"time": f"{number(result.seconds)} s", "model": str(result.folder / "best"), "pictures": pictures})
    say(f"Use it wherever a model is named: 'snnp md {result.folder} STRUCTURE'.")


@command(
    "data",
    "snnp doctor data train.xyz test.xyz",
    "snnp doctor data train=a.xyz test=b.xyz --out report",
    "snnp doctor data org/name --json",
    after=_CODES,
    of=doctor_app,
)
@options.with_labels
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
    frames, unreadable = read_set(data, options.keys_given(labels), part=part)
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
