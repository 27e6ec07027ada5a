"""Models, structures and datasets to and from elsewhere: the files of other programs, and the Hub."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from snnp.cli.console import print_json, print_pairs, print_result, print_table, say, warn
from snnp.cli.options import Dtype, Json, Model, Overwrite, command, group, keys_given, with_labels
from snnp.cli.outputs import input_files, prepare_output, readable
from snnp.errors import InputError

if TYPE_CHECKING:
    from snnp.doctor import Report
    from snnp.hub import Publication

__all__ = ["AcceptFindings", "DryRun", "Private", "import_app", "print_remote", "publish_app"]

_Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Repositories: org/name or org/name@REVISION.")]
_IsDataset = Annotated[bool, typer.Option("--dataset", help="The names are of datasets, not of models.")]
_Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub; made if need be.")]
Private = Annotated[bool, typer.Option("--private", help="A new repository is visible to its owner only.")]
AcceptFindings = Annotated[
    bool, typer.Option("--accept-findings", help="Publish in spite of errors that the doctor finds in data.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show everything, upload nothing.")]


@command(
    "export",
    "snnp export snnp-si silicon.pt --structure diamond:Si:3x3x3",
    "snnp export snnp-si anything.pt --unit angstrom --energy-unit eV --forces",
    "snnp export snnp-cu copper.snnp --format lammps",
    "snnp export snnp-si silicon.pt2 --format aoti",
)
def export_command(
    model: Model,
    out: Path = typer.Argument(metavar="OUT", help="File to write, such as model.pt."),
    file_format: Literal["torchscript", "aoti", "lammps", "uf3", "meam-spline"] = typer.Option(
        "torchscript", "--format", help="A torch module or package, or for LAMMPS: pair style snnp, uf3, meam/spline."
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
    from snnp.cli.drivers.whole_models import exported, write_whole
    from snnp.hub import load_model
    from snnp.models.export import export_torchscript
    from snnp.sampling import build_structure

    if file_format != "torchscript":
        if structure is not None or forces or (unit, energy_unit) != ("nm", "kJ/mol"):
            raise InputError(f"--format {file_format} is for all structures, Å and eV: leave the other options away.")
        return print_result(write_whole(model, out, file_format, dtype=dtype, overwrite=overwrite), as_json)
    potential = load_model(model, dtype=dtype)
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
    call = f"module({arguments}) -> {'energy, forces' if forces else 'energy'}"
    n_atoms = None if numbers is None else len(numbers)
    report = {"call": call, "length_unit": unit, "energy_unit": energy_unit, "n_atoms": n_atoms}
    return print_result(exported(potential, out, file_format, **report), as_json)


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


publish_app = group("Publish a model or a dataset on the Hub.", "snnp publish model runs/mine org/name --dry-run")


@command("pull", "snnp pull org/name", "snnp pull org/name@v1.0", "snnp pull --dataset org/name --json")
def pull_command(
    names: _Names,
    dataset: _IsDataset = False,
    force: bool = typer.Option(False, "--force", help="Download again what is in the cache."),
    as_json: Json = False,
) -> None:
    """Fetch models or datasets into the cache and check every file; prints the commit that a name stands for."""
    from snnp.hub import resolve

    places = [resolve(name, "dataset" if dataset else "model", force=force) for name in names]
    _report([(place.record(), place.folder) for place in places], as_json)


@command(
    "mirror",
    "snnp mirror /shared/mirror org/name other/name@v1.0",
    "snnp mirror /shared/mirror --dataset org/name",
    after=("On the machine without internet: export SNNP_MIRROR=/shared/mirror",),
)
def mirror_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The mirror; made if need be.")],
    names: _Names,
    dataset: _IsDataset = False,
    as_json: Json = False,
) -> None:
    """Copy models or datasets into a plain folder, for machines without internet."""
    from snnp.hub import add_to_mirror

    added = [add_to_mirror(folder, name, "dataset" if dataset else "model") for name in names]
    _report([({"name": n, "commit": commit}, at) for n, (at, commit) in zip(names, added, strict=True)], as_json)
    if not as_json:
        say(f"On the other machine: export SNNP_MIRROR={folder}, wherever the folder is there.")


def _report(found: Sequence[tuple[Mapping[str, Any], Path]], as_json: bool) -> None:
    sizes = [sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) for _, folder in found]
    values = [{**each, "folder": str(at), "bytes": size} for (each, at), size in zip(found, sizes, strict=True)]
    if as_json:
        print_json(values)
    else:
        for each in values:
            print_result(each)


@command(
    "model",
    "snnp publish model runs/mine org/name --dry-run --folder look-at-this",
    "snnp publish model runs/mine org/name --set licence=cc-by-4.0 --set level_of_theory='PBE, 520 eV'",
    "snnp publish model snnp-cu org/copper --private",
    of=publish_app,
)
def publish_model_command(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder or bundled name.")],
    repository: _Repository,
    private: Private = False,
    dry_run: DryRun = False,
    statements: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="State what the model does not, such as licence=mit."
    ),
    folder: Path | None = typer.Option(None, metavar="FOLDER", help="Keep what is uploaded in this new folder."),
    as_json: Json = False,
) -> None:
    """Publish a model: examined by the doctor, with a card and checksums, in one commit."""
    from snnp.publish import publish_model

    about = _statements(statements or [])

    def show(plan: Publication, report: Report) -> None:
        for finding in report.findings:
            warn(f"the doctor: {finding.check}: {finding.message}")
        if not as_json:
            print_table(["file", "bytes"], list(plan.files.items()), title=repository)

    done = publish_model(source, repository, private=private, dry_run=dry_run, about=about, folder=folder, show=show)
    kept = {} if folder is None else {"folder": str(folder)}
    _print_published(repository, done, as_json, shown=True, **kept)
    if done.commit is not None and not as_json:
        say(f"Anybody who may read it can now use 'snnp pull {repository}@{done.commit[:40]}'.")


@command(
    "dataset",
    "snnp publish dataset built/mlearn org/mlearn --dry-run",
    "snnp publish dataset mine org/mine --set title=Copper --set summary='...' --set origin=own --set licence=mit",
    of=publish_app,
)
def publish_dataset_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With parquet files, of a recipe or convert.")],
    repository: _Repository,
    private: Private = False,
    dry_run: DryRun = False,
    statements: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="State title, summary, origin, licence, citation, ..."
    ),
    accept_findings: AcceptFindings = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset: licence and units checked, examined by the doctor, with card and checksums, in one commit."""
    from snnp.publish import publish_dataset

    about = _statements(statements) if statements else None
    done = publish_dataset(
        folder, repository, private=private, dry_run=dry_run, about=about, accept_findings=accept_findings
    )
    _print_published(repository, done, as_json)


def _print_published(repository: str, done: Publication, as_json: bool, *, shown: bool = False, **more: str) -> None:
    """What was uploaded, or would be; shown: the files are on the screen already."""
    if as_json:
        values = {"repository": repository, "files": done.files, "commit": done.commit, "address": done.address}
        print_json({**values, **more})
        return
    if not shown:
        print_table(["file", "bytes"], list(done.files.items()), title=repository)
    if done.commit is None:
        say("Nothing was uploaded: leave --dry-run away for that.")
    else:
        print_pairs({"commit": done.commit, "address": str(done.address)})


def _statements(assignments: list[str]) -> dict[str, Any]:
    """`KEY=VALUE`, values read as YAML."""
    import yaml

    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--set {assignment!r} is not of the form KEY=VALUE, as in --set licence=mit.")
        try:
            values[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {assignment!r}: the value is no YAML; put it into quotes.") from None
        try:
            json.dumps(values[key], allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # dates, sets, endless numbers, lists that hold themselves
            reason = f"--set {assignment!r}: the value is no text, number, list or mapping; quote it."
            raise InputError(reason) from None
    return values


def print_remote(owner: str | None, as_json: bool) -> None:
    """Print the models and datasets on the Hub that carry snnp's tag."""
    from snnp.hub import list_repositories

    found = [*list_repositories("model", owner=owner), *list_repositories("dataset", owner=owner)]
    rows = [
        [each.name, each.kind, "yes" if each.private else "", str(each.downloads), each.modified, each.commit]
        for each in found
    ]
    if as_json:
        print_json([asdict(each) for each in found])
    elif rows:
        print_table(["name", "kind", "private", "downloads", "changed", "commit"], rows)
    else:
        say("There is nothing with the tag 'snnp'" + (f" of {owner}." if owner else "."))
