"""`snnp active`: a potential that asks for the labels it lacks, until a limit ends it."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, print_table, progress_bar, say, warn
from snnp.cli.options import Json, command, group
from snnp.cli.outputs import prepare_folder
from snnp.errors import ConfigError, InputError
from snnp.files import write_atomically
from snnp.process import Interrupted

if TYPE_CHECKING:
    from snnp.active import ActiveProgress, ActiveResult, Status

__all__ = ["active_app"]

active_app = group(
    "Active learning: a committee's own dynamics find what it does not know, a labeller is asked, again.",
    "snnp active start active.yaml --out runs/al --dry-run",
    "snnp active start active.yaml --out runs/al",
    "snnp active status runs/al",
    "snnp active resume runs/al --set limits.labels=800",
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the file; may be repeated.")
]
_STOPPED = 3


@command(
    "start",
    "snnp active start active.yaml --out runs/al",
    "snnp active start active.yaml --set limits.labels=100 --out runs/al --dry-run",
    after=(
        "A whole active.yaml (everything else has a default):",
        "elements: [Al]",
        "labeller: {calculator: 'ase.calculators.emt:EMT'}",
        "limits: {labels: 300}",
        "Exit code: 0 where a limit ended it, 3 where it was stopped, 1 for an error; it can go on after both.",
    ),
    of=active_app,
)
def start_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file that says what is asked, of whom.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run, a new one.")],
    assignments: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask for three labels, say what all would cost, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Begin a run: structures, labels, a committee, its trajectories, labels of what it does not know, again."""
    from snnp.active import ActiveSettings

    settings = ActiveSettings.read(config, assignments or [])
    if dry_run:
        _print_plan(settings, as_json)
        return
    prepare_folder(out)
    _run(settings, out, as_json)


@command(
    "resume",
    "snnp active resume runs/al",
    "snnp active resume runs/al --set limits.labels=800 --set per_round=60",
    after=("RUN/active.yaml may be edited before; what has changed is noted in the journal.",),
    of=active_app,
)
def resume_command(run: Run, assignments: Set = None, as_json: Json = False) -> None:
    """Go on with a run that was stopped, killed, or ended by a limit that is now another one."""
    from snnp.active import ActiveSettings
    from snnp.active.journal import NAME
    from snnp.active.rounds import CONFIG
    from snnp.active.settings import refuse_changes
    from snnp.files import hold

    if not (run / NAME).is_file():
        raise ConfigError(f"{run} holds no run of active learning (no {NAME}); begin one with 'snnp active start'.")
    if assignments:
        settings = ActiveSettings.read(run / CONFIG, assignments)
        refuse_changes(ActiveSettings.read(run / CONFIG), settings, run / CONFIG)
        with hold([run / NAME]):
            settings.save(run / CONFIG)
    _run(None, run, as_json)


@command("status", "snnp active status runs/al", "snnp active status runs/al --json", of=active_app)
def status_command(run: Run, as_json: Json = False) -> None:
    """Say where a run stands: labels and errors of each round, failures, time by stage, what is left."""
    from snnp.active import status_of

    found = status_of(run)
    if as_json:
        print_json(found.json())
    else:
        _print_status(found)


@command("stop", "snnp active stop runs/al", of=active_app)
def stop_command(run: Run) -> None:
    """Ask a run to stop in good order: labels that are on their way are waited for."""
    from snnp.active import status_of
    from snnp.active.rounds import STOP

    found = status_of(run)
    if found.state not in ("running", "running or killed"):
        raise InputError(f"{run} is not running ({found.state}: {found.why}); there is nothing to stop.")
    write_atomically(run / STOP, b"")
    say(f"It will stop; '{shlex.join(['snnp', 'active', 'resume', str(run)])}' goes on from there.")


def _run(settings: Any, folder: Path, as_json: bool) -> None:
    from snnp.active import run

    again = shlex.join(["snnp", "active", "resume", str(folder)])
    with progress_bar("learning") as update:
        stages: list[tuple[int, str]] = []

        def report(now: ActiveProgress) -> None:
            if stages[-1:] != [(now.round, now.stage)]:
                stages.append((now.round, now.stage))
                say(f"round {now.round}: {now.stage}")
            update(now.done, now.total or None, f"round {now.round}, {now.stage} {now.note}")

        try:
            result = run(settings, folder, report)
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted):
                say(f"The run was {stop.where}.")
            say(f"Interrupted; '{again}' goes on from here.")
            raise typer.Exit(128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)) from None
    _print_result(result, as_json)
    if not result.finished:
        say(f"stopped: {result.why}; '{again}' goes on from here.")
        raise typer.Exit(_STOPPED)


def _print_result(result: ActiveResult, as_json: bool) -> None:
    values = {"run": str(result.folder), "finished": result.finished, "why": result.why, "labels": result.n_labels}
    if as_json:
        print_json(values)
        return
    print_pairs({"labels": f"{result.n_labels:,}", "ended by": result.why, "report": f"{result.folder}/report.html"})
    if result.finished:
        say(f"Use it wherever a model is named: 'snnp md {result.folder} STRUCTURE'.")


def _print_status(found: Status) -> None:
    rows = []
    for each in found.rounds:
        measured = each.measured
        spread, error = (measured.get(name) for name in ("force_spread", "force_mae"))
        energy = None if measured.get("energy_mae") is None else 1000.0 * measured["energy_mae"]
        seconds = sum(each.seconds.values())
        cells = [number(value) for value in (spread, error, energy, seconds)]
        rows.append([str(each.number), each.labelled, each.failed, *cells])
    columns = ["round", "labels", "failed", "spread (eV/Å)", "force MAE", "energy MAE (meV/atom)", "seconds"]
    print_table(columns, rows, title=f"{found.folder}: {found.state}")
    left = "–" if found.hours_left is None else f"at most {number(found.hours_left)} h"
    pairs = {
        "state": f"{found.state}: {found.why}",
        "labels": f"{found.n_labels:,} of {found.limits.get('labels', '–')}",
    }
    pairs |= {"labeller": found.labeller, "time": f"{number(found.hours)} h", "left": left}
    if found.failures:
        pairs["failures"] = ", ".join(f"{n} {why}" for why, n in found.failures.items())
    print_pairs(pairs)
    for note in found.changes:
        warn(note)


def _print_plan(settings: Any, as_json: bool) -> None:
    from snnp.active.rounds import plan

    found = plan(settings)
    if as_json:
        print_json(vars(found))
        return
    pairs = {"labeller": found.labeller, "first structures": f"{found.first:,} of {found.atoms:g} atoms"}
    pairs |= {"labels": f"at most {found.labels:,} in {found.rounds:,} rounds"}
    pairs |= {"a label": f"{number(found.seconds)} s", "all labels": f"{number(found.hours)} h"}
    print_pairs(pairs)
    say("Training and sampling come on top; 'snnp active status RUN' says how long they take after the first round.")
