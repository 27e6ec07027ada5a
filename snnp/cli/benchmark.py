"""`snnp benchmark`: cost of models and of other programs on the same atoms, how it grows, what an engine adds."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, print_table, progress_bar, say, warn
from snnp.cli.files import prepare_output
from snnp.cli.options import Device, Dtype, Json, Overwrite, as_dtype, examples
from snnp.errors import InputError

if TYPE_CHECKING:
    from snnp.benchmarks.run import Case, Plan
    from snnp.models.potential import Potential

__all__ = ["BENCHMARK_EXAMPLES", "benchmark_command"]

BENCHMARK_EXAMPLES = examples(
    "snnp benchmark snnp-si --against lammps --only Si",
    "snnp benchmark --against lammps,mace --python mace=envs/mace/bin/python --save results/today",
    "snnp benchmark --scaling atoms,threads --atoms 32000",
    "snnp benchmark snnp-al --engine openmm --structure fcc:Al:10x10x10 --json",
    after=("'reference' is the s-NNP of 8 + 16 filters, L = 4, that speed targets name, with random weights.",),
)
_REFERENCE = "reference"

_Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL...]",
        help="Bundled models, model or run folders, names on the Hub; by default 'reference' and all bundled models.",
    ),
]
_Against = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Other programs: lammps, hippynn, torchani, mace, nep; or 'none'.")
]
_Python = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="Interpreter of a program's environment; or variable SNNP_PYTHON_<NAME>."),
]
_Structure = Annotated[
    str | None,
    typer.Option(metavar="STRUCTURE", help="For the models: fcc:Al:a=4.05 (any size), fcc:Al:4x4x4, or a file."),
]
_Scaling = Annotated[
    str | None, typer.Option(metavar="AXES", help="How cost grows instead: atoms, filters, degree, threads.")
]
_Only = Annotated[str | None, typer.Option(metavar="WORDS", help="Only cases whose name contains one of these.")]
_Save = Annotated[
    Path | None, typer.Option(metavar="STEM", help="Write STEM.md (table), STEM.png (picture) and STEM.json.")
]


def benchmark_command(
    models: _Models = None,
    against: _Against = None,
    python: _Python = None,
    structure: _Structure = None,
    only: _Only = None,
    atoms: Annotated[int, typer.Option(metavar="N", help="About how many atoms; slow programs take fewer.")] = 4000,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of each program.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", help="Interleaved repeats; medians are reported.")] = 7,
    seconds: Annotated[float, typer.Option(metavar="S", help="Seconds that a repeat should last.")] = 0.2,
    scaling: _Scaling = None,
    save: _Save = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="What an engine (openmm) adds to a step instead.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-n", metavar="N", help="Steps to measure with --engine.")] = 50,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure energy and forces: time, memory, fraction of the machine's peak; beside other programs, if asked."""
    from snnp.benchmarks.run import Plan

    as_dtype(dtype)
    if threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}.")
    if engine is not None:
        _measure_engine(engine, models, structure, atoms, steps, as_json)
        return
    if save is not None:
        for ending in (".md", ".png", ".json"):
            prepare_output(save.with_name(f"{save.name}{ending}"), overwrite=overwrite)
    plan = Plan(repeats, seconds)
    with tempfile.TemporaryDirectory(prefix="snnp-models-") as folder:
        if scaling is not None:
            document = _scaling(scaling.split(","), Path(folder), plan, (atoms, threads, dtype, device))
        else:
            cases = _own(models, structure, Path(folder), (atoms, threads, dtype, device))
            cases += _peers(against, python or [], atoms, threads)
            if only is not None:
                cases = [case for case in cases if any(word in case.name for word in only.split(","))]
                if not cases:
                    raise InputError(f"--only {only}: no case has any of these in its name; leave it out to see all.")
            document = _run(cases, plan, threads, device)
    _print(document, save, as_json)


def _own(
    models: list[str] | None, structure: str | None, folder: Path, how: tuple[int, int, str | None, str | None]
) -> list[Case]:
    from snnp.benchmarks.programs import own_cases
    from snnp.benchmarks.reference import ReferenceForm, reference_model
    from snnp.hub import resolve
    from snnp.models.store import list_models

    names = models or [_REFERENCE, *list_models()]
    sources: dict[str, str | Path] = {}
    for name in names:
        if name == _REFERENCE:
            sources[name] = reference_model(ReferenceForm(), folder)
        else:
            found = resolve(name)
            sources[found.pinned] = found.folder
    atoms, threads, dtype, device = how
    return own_cases(sources, atoms, threads, structure=structure, dtype=dtype, device=device)


def _peers(against: str | None, pythons: list[str], atoms: int, threads: int) -> list[Case]:
    from snnp.benchmarks.programs import find_pythons, peer_cases

    given = {}
    for text in pythons:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InputError(
                f"--python {text} is not understood; write NAME=PATH, for example mace=envs/mace/bin/python."
            )
        given[name] = path
    names = [] if against in (None, "none") else list(dict.fromkeys(str(against).split(",")))
    found = find_pythons(names, given)
    return [case for name in names for case in peer_cases(name, found[name], atoms, threads)]


def _run(cases: list[Case], plan: Plan, threads: int, device: str | None) -> dict[str, Any]:
    from snnp.benchmarks.programs import ceiling_cases
    from snnp.benchmarks.report import document
    from snnp.benchmarks.run import measure

    everything = [*cases, *ceiling_cases(threads, device)]
    with progress_bar("measuring") as update:
        measured, failures = measure(everything, plan, lambda done, total, note: update(done, total, note))
    command = shlex.join(["snnp", *sys.argv[1:]])
    return document(measured, failures, plan, command)


def _scaling(axes: list[str], folder: Path, plan: Plan, how: tuple[int, int, str | None, str | None]) -> dict[str, Any]:
    from snnp.benchmarks.scaling import scaling_points, series

    atoms, threads, dtype, device = how
    points = scaling_points(axes, folder, atoms, threads, dtype=dtype, device=device)
    document = _run([point.case for point in points], plan, threads, device)
    return {**document, "scaling": series(points, document["rows"])}


def _print(document: dict[str, Any], save: Path | None, as_json: bool) -> None:
    from snnp.benchmarks.page import COLUMNS, about, table
    from snnp.benchmarks.page import save as save_page

    for failure in document["not_measured"]:
        warn(f"not measured: {failure['program']}: {failure['case']}: {failure['reason']}")
    if not document["rows"]:
        raise InputError("nothing could be measured; the warnings say why.")
    files = [] if save is None else save_page(document, save)
    if as_json:
        print_json(document)
        return
    print_table(COLUMNS, table(document))
    print_pairs(about(document), title="\nMeasured on")
    if any(row.get("accuracy") == "published" for row in document["rows"]):
        say("* published, on the upstream test files; ours are on the test set of each model.")
    for path in files:
        say(f"written: {path}")


def _measure_engine(
    engine: str, models: list[str] | None, structure: str | None, atoms: int, steps: int, as_json: bool
) -> None:
    from snnp.benchmarks.reference import ReferenceForm
    from snnp.benchmarks.systems import build_system, system_of
    from snnp.hub import load_pinned
    from snnp.models.spline.model import SplineNNP
    from snnp.sampling import build_structure
    from snnp.sampling.run import find_entry_point

    if models is None or len(models) != 1:
        raise InputError("--engine measures one model; name it, for example: snnp benchmark snnp-si --engine openmm.")
    potential: Potential = SplineNNP(ReferenceForm().config()).float()
    model = models[0]
    if model != _REFERENCE:
        potential, model = load_pinned(model)
    given = structure or system_of(potential)
    frame = build_structure(structure) if structure else build_system(given, atoms).to_ase()[0]
    measured = find_entry_point("snnp.benchmarks", engine)(potential, frame, steps)
    if as_json:
        print_json({"model": model, "structure": given, "engine": engine, **measured})
        return
    pairs = {
        name.replace("_", " "): number(value) if isinstance(value, float) else str(value)
        for name, value in measured.items()
    }
    print_pairs(pairs, title=f"{model} in {engine}")
