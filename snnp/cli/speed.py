"""`snnp benchmark`: what energy and forces cost with one's own models, and what an engine adds to them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_result, print_table, progress_bar, say
from snnp.cli.options import Device, Dtype, Json, Threads, command, set_threads
from snnp.errors import InputError

__all__ = ["benchmark_command"]

_COLUMNS = ("model", "structure", "atoms", "CPU µs/atom", "wall µs/atom", "parameters", "computed by")


@command(
    "benchmark",
    "snnp benchmark snnp-si runs/mine",
    "snnp benchmark runs/mine --structure fcc:Al:10x10x10 --threads 2 --json",
    "snnp benchmark snnp-al --engine openmm --structure fcc:Al:10x10x10",
    after=("Beside LAMMPS, HIP-NN, ANI, MACE and NEP: docs/measure/compare.py in the source code of snnp.",),
)
def benchmark_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL...]",
            help="Bundled models, model or run folders, names on the Hub; by default all bundled models.",
        ),
    ] = None,
    structure: str | None = typer.Option(
        None, metavar="STRUCTURE", help="For the models: fcc:Al:a=4.05 (any size), fcc:Al:4x4x4, or a file."
    ),
    atoms: int = typer.Option(4000, metavar="N", help="About how many atoms."),
    threads: Threads = 1,
    repeats: int = typer.Option(7, metavar="N", help="Repeats of 0.2 s; medians are reported."),
    engine: str | None = typer.Option(
        None, metavar="NAME", help="What an engine (ase, openmm, native) adds to a step instead."
    ),
    steps: int = typer.Option(50, "--steps", "-n", metavar="N", help="Steps to measure with --engine."),
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure energy and forces: time per atom on this machine, and what an engine adds to it."""
    from snnp.models.store import list_models

    set_threads(threads)
    if engine is not None:
        _measure_engine(engine, models, structure, atoms, steps, as_json)
        return
    names, rows = models or list_models(), []
    with progress_bar("measuring", len(names)) as update:
        for name in names:
            rows.append(_measure(name, structure, atoms, repeats, dtype, device) | {"threads": threads})
            update(len(rows), note=name)
    rows.sort(key=lambda row: row["cpu_us_per_atom"])
    if as_json:
        print_json({"repeats": repeats, "rows": rows})
        return
    keys = ("case", "structure", "n_atoms", "cpu_us_per_atom", "wall_us_per_atom", "parameters", "path")
    print_table(_COLUMNS, [[_shown(row[key]) for key in keys] for row in rows])
    say("CPU time, all threads together, hardly depends on what else the machine does; 'snnp version' describes it.")


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _measure(
    name: str, structure: str | None, atoms: int, repeats: int, dtype: str | None, device: str | None
) -> dict[str, Any]:
    from snnp.hub import load_pinned
    from snnp.sampling.cost import build_system, measure_cost, system_of

    model, pinned = load_pinned(name, dtype=dtype, device=device)
    given, evaluator = structure or system_of(model), model.evaluator()
    return {
        "case": pinned,
        "structure": given,
        **vars(measure_cost(model, build_system(given, atoms), repeats)),
        "parameters": model.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "path": "torch" if evaluator is None else evaluator.target,
    }


def _measure_engine(
    engine: str, models: list[str] | None, structure: str | None, atoms: int, steps: int, as_json: bool
) -> None:
    from snnp.hub import load_pinned
    from snnp.sampling import build_structure
    from snnp.sampling.cost import build_system, measure_engine, system_of

    if models is None or len(models) != 1:
        raise InputError("--engine measures one model; name it, for example: snnp benchmark snnp-si --engine openmm.")
    potential, model = load_pinned(models[0])
    given = structure or system_of(potential)
    frame = build_structure(structure) if structure else build_system(given, atoms).to_ase()[0]
    measured = measure_engine(potential, frame, engine, steps)
    print_result({"model": model, "structure": given, "engine": engine, **measured}, as_json)
