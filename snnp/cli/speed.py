"""`snnp benchmark`: what energy and forces cost with one's own models, and what an engine adds to them."""

from __future__ import annotations

import typer

from snnp.cli.console import print_json, print_result, print_table, progress_bar, say
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
    models: list[str] | None = typer.Argument(
        None,
        metavar="[MODEL...]",
        help="Bundled models, model or run folders, names on the Hub; by default all bundled models.",
    ),
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
    from snnp.hub import load_pinned
    from snnp.models.store import list_models
    from snnp.sampling.cost import measure_cost, measure_engine, usual_atoms

    set_threads(threads)
    if engine is not None and (models is None or len(models) != 1):
        raise InputError("--engine measures one model; name it, for example: snnp benchmark snnp-si --engine openmm.")
    names, rows = models or list_models(), []
    with progress_bar("measuring", len(names)) as update:
        for name in names:
            model, pinned = load_pinned(name, dtype=dtype, device=device)
            given, frame = usual_atoms(model, structure, atoms)
            if engine is not None:
                measured = measure_engine(model, frame, engine, steps)
                print_result({"model": pinned, "structure": given, "engine": engine, **measured}, as_json)
                return
            evaluator = model.evaluator()
            rows.append(
                {
                    "case": pinned,
                    "structure": given,
                    **measure_cost(model, frame, repeats),
                    "parameters": model.n_parameters,
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "path": "torch" if evaluator is None else evaluator.target,
                    "threads": threads,
                }
            )
            update(len(rows), note=name)
    rows.sort(key=lambda row: row["cpu_us_per_atom"])
    if as_json:
        print_json({"repeats": repeats, "rows": rows})
        return
    keys = ("case", "structure", "n_atoms", "cpu_us_per_atom", "wall_us_per_atom", "parameters", "path")
    print_table(_COLUMNS, [[row[key] for key in keys] for row in rows])
    say("CPU time, all threads together, hardly depends on what else the machine does; 'snnp version' describes it.")
