"""`snnp export` and `snnp import`: models for other programs, and potentials trained with them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from snnp.cli.console import print_json, print_pairs
from snnp.cli.files import input_files, prepare_output
from snnp.cli.options import Dtype, Json, Model, Overwrite, examples
from snnp.errors import InputError

__all__ = ["EXPORT_EXAMPLES", "NEUROCHEM_EXAMPLES", "export_command", "import_app", "neurochem_command"]

EXPORT_EXAMPLES = examples(
    "snnp export snnp-si silicon.pt --structure diamond:Si:3x3x3",
    "snnp export snnp-3bpa molecule.pt --structure molecule.xyz --forces",
    "snnp export snnp-si anything.pt --unit angstrom --energy-unit eV --forces",
)

NEUROCHEM_EXAMPLES = examples(
    "snnp import neurochem ani-1ccx_8x models/ani-1ccx",
    "snnp import neurochem ani-al/model/model-Al-75 models/ani-al --json",
    after=("Where the published networks are, and what they can do: the page 'Published ANI networks' of the docs.",),
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
    from snnp.hub import load_pinned
    from snnp.models.export import export_torchscript

    assert file_format is ExportFormat.torchscript
    potential, model = load_pinned(model, dtype=dtype)
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


import_app = typer.Typer(
    help="Read a potential trained with another program and write it as a model folder.",
    epilog=examples("snnp import neurochem ani-1ccx_8x models/ani-1ccx"),
    invoke_without_command=True,
)


@import_app.callback()
def _group(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@import_app.command("neurochem", epilog=NEUROCHEM_EXAMPLES)
def neurochem_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of NeuroChem's: *.params, sae_linfit.dat, networks/.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Import ANI networks in NeuroChem's format; several networks become one ensemble with a spread."""
    from snnp.models.ani.import_neurochem import read_neurochem
    from snnp.models.ensemble import Ensemble
    from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE
    from snnp.models.store import save_model

    if out.resolve() == folder.resolve():
        raise InputError(f"FOLDER and OUT are both {folder}; choose another folder to write to.")
    model = read_neurochem(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        prepare_output(out / name, overwrite=overwrite)
    save_model(model, out)
    report = {
        "folder": str(folder),
        "out": str(out),
        "class": type(model).__name__,
        "networks": len(model.potentials) if isinstance(model, Ensemble) else 1,
        "elements": list(model.elements),
        "cutoff_angstrom": model.cutoff,
        "n_parameters": model.n_parameters,
        "files_sha256": model.metadata["source"]["files_sha256"],
        "bytes": sum(path.stat().st_size for path in out.iterdir() if path.is_file()),
    }
    if as_json:
        print_json(report)
        return
    print_pairs(
        {
            "written to": str(out),
            "class": f"{report['class']} of {report['networks']} networks",
            "elements": ", ".join(model.elements),
            "cutoff": f"{model.cutoff:g} Å",
            "parameters": f"{model.n_parameters:,}",
            "sha256 of the files read": str(report["files_sha256"]),
        }
    )
