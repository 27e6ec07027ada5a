"""`snnp export` and `snnp plot`: a model for other programs, and for the eye."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from snnp.cli.console import print_json, print_pairs
from snnp.cli.files import input_files, prepare_output
from snnp.cli.options import Dtype, Json, Model, Overwrite, as_dtype, examples
from snnp.errors import InputError

__all__ = ["EXPORT_EXAMPLES", "PLOT_EXAMPLES", "export_command", "plot_command"]

EXPORT_EXAMPLES = examples(
    "snnp export snnp-si silicon.pt --structure diamond:Si:3x3x3",
    "snnp export snnp-3bpa molecule.pt --structure molecule.xyz --forces",
    "snnp export snnp-si anything.pt --unit angstrom --energy-unit eV --forces",
)

PLOT_EXAMPLES = examples(
    "snnp plot snnp-si curves.png",
    "snnp plot runs/mine curves.pdf --data train.xyz",
)


class ExportFormat(StrEnum):
    """Kinds of files that other programs read."""

    torchscript = "torchscript"


class LengthUnit(StrEnum):
    """Unit of positions and box vectors."""

    nm = "nm"
    angstrom = "angstrom"


class EnergyUnit(StrEnum):
    """Unit of the energy; forces are in this unit per unit of length."""

    kj_per_mol = "kJ/mol"
    ev = "eV"


def export_command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, such as model.pt.")],
    file_format: Annotated[
        ExportFormat, typer.Option("--format", help="A module that torch loads without snnp.")
    ] = ExportFormat.torchscript,
    unit: Annotated[LengthUnit, typer.Option(help="Unit of positions and box vectors.")] = LengthUnit.nm,
    energy_unit: Annotated[EnergyUnit, typer.Option(help="Unit of the energy.")] = EnergyUnit.kj_per_mol,
    structure: Annotated[
        str | None,
        typer.Option(
            metavar="STRUCTURE", help="Fix atoms and periodicity to this structure's, as TorchForce needs it."
        ),
    ] = None,
    forces: Annotated[bool, typer.Option("--forces", help="The module returns energy and forces.")] = False,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model for programs that do not have snnp, such as OpenMM with openmm-torch."""
    from snnp.export import export_torchscript
    from snnp.hub import load_pinned

    assert file_format is ExportFormat.torchscript
    potential, model = load_pinned(model, dtype=as_dtype(dtype))
    prepare_output(out, overwrite=overwrite, inputs=input_files(model, structure))
    numbers, periodic = (None, False) if structure is None else _fixed_atoms(structure)
    length: Literal["nm", "angstrom"] = "nm" if unit is LengthUnit.nm else "angstrom"
    energy: Literal["kJ/mol", "eV"] = "eV" if energy_unit is EnergyUnit.ev else "kJ/mol"
    export_torchscript(
        potential, out, length_unit=length, energy_unit=energy, numbers=numbers, periodic=periodic, forces=forces
    )
    arguments = "numbers, positions, cell, pbc"
    if numbers is not None:
        arguments = "positions, boxvectors" if periodic else "positions"
    report = {
        "model": model,
        "out": str(out),
        "format": file_format.value,
        "call": f"module({arguments}) -> {'energy, forces' if forces else 'energy'}",
        "length_unit": length,
        "energy_unit": energy,
        "n_atoms": None if numbers is None else len(numbers),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "bytes": out.stat().st_size,
    }
    if as_json:
        print_json(report)
    else:
        print_pairs({name.replace("_", " "): str(value) for name, value in report.items() if value is not None})


def _fixed_atoms(structure: str) -> tuple[list[int], bool]:
    """Atomic numbers and periodicity of a structure."""
    from snnp.sampling import build_structure

    atoms = build_structure(structure)
    if atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"'{structure}' is periodic in some directions only, which a module with fixed atoms cannot be; "
            "leave --structure away and hand pbc to each call."
        )
    return atoms.numbers.tolist(), bool(atoms.pbc.all())


def plot_command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Picture to write: .png, .pdf or .svg.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Reference data whose distances and angles are drawn behind the curves."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw everything that a spline model has learned on one page."""
    from snnp.analysis.page import draw_page
    from snnp.data import read_frames
    from snnp.hub import load_model
    from snnp.structure import Structure

    potential = load_model(model)
    prepare_output(out, overwrite=overwrite, inputs=[*input_files(model), *([] if data is None else [data])])
    seen = None
    if data is not None:
        seen = Structure.concatenate([frame.structure for frame in read_frames(data)])
    path = draw_page(potential, out, title=Path(model).name, structures=seen)
    print_pairs({"written to": str(path)})
