"""`snnp plot` and `snnp benchmark`: a model for the eye, and against the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snnp.cli.console import number, print_json, print_pairs
from snnp.cli.files import prepare_output
from snnp.cli.options import Json, Model, StructureSpec, examples

__all__ = ["BENCHMARK_EXAMPLES", "PLOT_EXAMPLES", "benchmark_command", "plot_command"]

PLOT_EXAMPLES = examples(
    "snnp plot snnp-si curves.png",
    "snnp plot runs/mine curves.pdf --data train.xyz",
)
BENCHMARK_EXAMPLES = examples("snnp benchmark snnp-si diamond:Si:8x8x8 --steps 50 --json")


def plot_command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Picture to write: .png, .pdf or .svg.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Reference data whose distances and angles are drawn behind the curves."),
    ] = None,
) -> None:
    """Draw everything that a spline model has learned on one page."""
    from snnp.analysis.page import draw_page
    from snnp.data import read_frames
    from snnp.models.io import load_model
    from snnp.structure import Structure

    potential = load_model(model)
    prepare_output(out)
    seen = None
    if data is not None:
        seen = Structure.concatenate([frame.structure for frame in read_frames(data)])
    path = draw_page(potential, out, title=Path(model).name, structures=seen)
    print_pairs({"written to": str(path)})


def benchmark_command(
    model: Model,
    structure: StructureSpec,
    engine: Annotated[str, typer.Option(metavar="NAME", help="Molecular dynamics engine to measure.")] = "openmm",
    steps: Annotated[int, typer.Option("--steps", "-n", metavar="N", help="Steps to measure.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure what an engine adds to each step, beside the bare model call."""
    from snnp.models.io import load_model
    from snnp.sampling import build_structure
    from snnp.sampling.run import find_entry_point

    potential = load_model(model)
    atoms = build_structure(structure)
    measured = find_entry_point("snnp.benchmarks", engine)(potential, atoms, steps)
    if as_json:
        print_json({"model": model, "structure": structure, "engine": engine, **measured})
        return
    pairs = {
        name.replace("_", " "): number(value) if isinstance(value, float) else str(value)
        for name, value in measured.items()
    }
    print_pairs(pairs, title=f"{model} in {engine}")
