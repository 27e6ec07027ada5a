"""`snnp export`, `import`, `convert` and `describe`: models and structures in the files of other programs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import typer

from snnp.cli.console import print_json, print_pairs, print_result, print_table, say
from snnp.cli.options import Dtype, Json, Model, Overwrite, command, group, keys_given, with_labels
from snnp.cli.outputs import input_files, prepare_output, readable
from snnp.errors import InputError

__all__ = ["import_app"]


@command(
    "export",
    "snnp export snnp-si silicon.pt --structure diamond:Si:3x3x3",
    "snnp export snnp-3bpa molecule.pt --structure molecule.xyz --forces",
    "snnp export snnp-si anything.pt --unit angstrom --energy-unit eV --forces",
)
def export_command(
    model: Model,
    out: Path = typer.Argument(metavar="OUT", help="File to write, such as model.pt."),
    file_format: Literal["torchscript"] = typer.Option(
        "torchscript", "--format", help="A module that torch loads without snnp."
    ),
    unit: Literal["nm", "angstrom"] = typer.Option("nm", help="Unit of positions and box vectors."),
    energy_unit: Literal["kJ/mol", "eV"] = typer.Option("kJ/mol", help="Unit of the energy."),
    structure: str | None = typer.Option(
        None, metavar="STRUCTURE", help="Fix atoms and periodicity to this structure's, as TorchForce needs it."
    ),
    forces: bool = typer.Option(False, "--forces", help="The module returns energy and forces."),
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model for programs that do not have snnp, such as OpenMM with openmm-torch."""
    from snnp.hub import load_pinned
    from snnp.models.export import export_torchscript
    from snnp.sampling import build_structure

    potential, model = load_pinned(model, dtype=dtype)
    prepare_output(out, overwrite=overwrite, inputs=input_files(model, structure))
    numbers, periodic, arguments = None, False, "numbers, positions, cell, pbc"
    if structure is not None:
        atoms = build_structure(structure)
        numbers, periodic = atoms.numbers.tolist(), bool(atoms.pbc.all())
        arguments = "positions, boxvectors" if periodic else "positions"
        if atoms.pbc.any() and not periodic:
            raise InputError(
                f"'{structure}' is periodic in some directions only, which a module with fixed atoms cannot be; "
                "leave --structure away and hand pbc to each call."
            )
    export_torchscript(
        potential, out, length_unit=unit, energy_unit=energy_unit, numbers=numbers, periodic=periodic, forces=forces
    )
    report = {
        "model": model,
        "out": str(out),
        "format": file_format,
        "call": f"module({arguments}) -> {'energy, forces' if forces else 'energy'}",
        "length_unit": unit,
        "energy_unit": energy_unit,
        "n_atoms": None if numbers is None else len(numbers),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "bytes": out.stat().st_size,
    }
    print_result(report, as_json)


import_app = group(
    "Read a potential trained with another program and write it as a model folder.",
    "snnp import neurochem ani-1ccx_8x models/ani-1ccx",
)


@command(
    "neurochem",
    "snnp import neurochem ani-1ccx_8x models/ani-1ccx",
    "snnp import neurochem ani-al/model/model-Al-75 models/ani-al --json",
    after=("Where the published networks are, and what they can do: the page 'Published ANI networks' of the docs.",),
    of=import_app,
)
def neurochem_command(
    folder: Path = typer.Argument(metavar="FOLDER", help="Folder of NeuroChem's: *.params, sae_linfit.dat, networks/."),
    out: Path = typer.Argument(metavar="OUT", help="Model folder to write."),
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
    print_result(report, as_json)


@command(
    "convert",
    "snnp convert train.xyz copper.parquet --method DFT-PBE --software VASP",
    "snnp convert train=a.xyz train=b.xyz.gz test=c.traj copper.parquet --method DFT-PBE",
    "snnp convert copper.parquet back.xyz",
)
@with_labels
def convert_command(
    files: list[str] = typer.Argument(
        metavar="[SPLIT=]FILE... OUT",
        help="Files that ASE reads, extended XYZ or parquet; last the file to write: .parquet, .xyz or .extxyz.",
    ),
    method: str = typer.Option("", metavar="TEXT", help="Level of theory, such as DFT-PBE; for parquet."),
    software: str = typer.Option("", metavar="TEXT", help="Program that computed the labels."),
    unlabelled: bool = typer.Option(False, "--unlabelled", help="The files hold no energies."),
    workers: int = typer.Option(1, metavar="N", help="Files to read at the same time; 0: one per core."),
    overwrite: Overwrite = False,
    as_json: Json = False,
    **labels: Any,
) -> None:
    """Convert files of structures to parquet, or back; nothing that they say is lost."""
    from snnp.data import convert

    if len(files) < 2:
        raise InputError("name at least one file to read, and last the file to write.")
    *sources, target = files
    splits: dict[str, list[str | Path]] = {}
    for source in sources:
        split, equals, path = source.partition("=")
        named = equals and split.isidentifier() and not Path(source).exists()
        splits.setdefault(split if named else "train", []).append(path if named else source)
    if Path(target).suffix.lower() == ".parquet" and not method.strip():
        raise InputError("a dataset needs its level of theory; give it with --method, such as --method DFT-PBE.")
    inputs = [Path(file) for files in splits.values() for file in files]
    prepare_output(Path(target), overwrite=overwrite, inputs=inputs)
    start = time.perf_counter()
    with readable(*sources):
        frames = convert(
            splits,
            target,
            method=method,
            software=software,
            keys=keys_given(labels),
            labelled=not unlabelled,
            workers=workers or len(os.sched_getaffinity(0)),
        )
    seconds = round(time.perf_counter() - start, 3)
    print_result({"out": target, "frames": frames, "bytes": Path(target).stat().st_size, "seconds": seconds}, as_json)


@command("describe", "snnp describe org/name", "snnp describe copper.parquet --json")
def describe_command(
    name: str = typer.Argument(metavar="DATASET", help="org/name[@revision], a folder or a parquet file."),
    as_json: Json = False,
) -> None:
    """Show what a dataset holds: levels of theory, splits, labels, elements, licence."""
    from snnp import hub
    from snnp.data.description import describe_part, describe_parts

    place = hub.resolve(name, "dataset")
    if place.folder.is_dir():
        parts = describe_parts(place.folder)
        manifest = place.folder / hub.MANIFEST_FILE
        about = hub.read_manifest(place.folder, "dataset").about.get("dataset") if manifest.is_file() else None
    else:
        with readable(place.folder):
            parts, about = {place.folder.stem: describe_part(place.folder)}, None
    known: dict[str, Any] = about if isinstance(about, dict) else {}
    if as_json:
        counted = {key: part.model_dump(mode="json") for key, part in parts.items()}
        print_json({**place.record(), **known, "parts": counted})
        return
    shown = {key: known.get(key) for key in ("title", "summary", "licence", "origin")}
    print_pairs({**place.record(), **{key: str(value) for key, value in shown.items() if value}})
    columns = ["part", "level of theory", "software", "frames", "atoms", "energies", "forces", "stresses"]
    rows = [
        [key, part.method, part.software, part.frames or 0, part.atoms or 0, part.energies, part.forces, part.stresses]
        for key, part in parts.items()
    ]
    print_table(columns, rows, title="\nParts")
    splits = [[key, split, number] for key, part in parts.items() for split, number in part.splits.items()]
    if splits:
        print_table(["part", "split", "frames"], splits, title="\nSplits")
    say("Elements: " + " ".join(sorted({symbol for part in parts.values() for symbol in part.elements})))
