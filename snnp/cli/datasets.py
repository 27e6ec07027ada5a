"""`snnp convert`, `snnp describe` and `snnp publish dataset`: files of structures, and datasets made of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from snnp.cli.console import print_json, print_pairs, print_table, say
from snnp.cli.files import prepare_output, readable
from snnp.cli.hub import DryRun, Private, Repository, parse_statements, publish_app
from snnp.cli.options import Json, Overwrite, Units, examples
from snnp.errors import InputError

__all__ = ["CONVERT_EXAMPLES", "DESCRIBE_EXAMPLES", "convert_command", "describe_command", "publish_dataset_command"]

CONVERT_EXAMPLES = examples(
    "snnp convert train.xyz copper.parquet --method DFT-PBE --software VASP",
    "snnp convert train=a.xyz train=b.xyz.gz test=c.traj copper.parquet --method DFT-PBE",
    "snnp convert copper.parquet back.xyz",
)
DESCRIBE_EXAMPLES = examples("snnp describe org/name", "snnp describe copper.parquet --json")
PUBLISH_DATASET_EXAMPLES = examples(
    "snnp publish dataset built/mlearn org/mlearn --dry-run",
    "snnp publish dataset mine org/mine --set title=Copper --set summary='...' --set origin=own --set licence=mit",
)
_Key = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of this quantity in the files, where it is unusual.")
]


def convert_command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[SPLIT=]FILE... OUT",
            help="Files that ASE reads, extended XYZ or parquet; last the file to write: .parquet, .xyz or .extxyz.",
        ),
    ],
    method: Annotated[str, typer.Option(metavar="TEXT", help="Level of theory, such as DFT-PBE; for parquet.")] = "",
    software: Annotated[str, typer.Option(metavar="TEXT", help="Program that computed the labels.")] = "",
    energy_key: _Key = None,
    forces_key: _Key = None,
    stress_key: _Key = None,
    group_key: _Key = None,
    units: Units = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="The files hold no energies.")] = False,
    workers: Annotated[int, typer.Option(metavar="N", help="Files to read at the same time; 0: one per core.")] = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert files of structures to parquet, or back; nothing that they say is lost."""
    from snnp.data import convert, keys_of

    if len(files) < 2:
        raise InputError("name at least one file to read, and last the file to write.")
    *sources, target = files
    splits: dict[str, list[str | Path]] = {}
    for source in sources:
        split, equals, path = source.partition("=")
        if equals and split.isidentifier() and not Path(source).exists():
            splits.setdefault(split, []).append(path)
        else:
            splits.setdefault("train", []).append(source)
    if Path(target).suffix.lower() == ".parquet" and not method.strip():
        raise InputError("a dataset needs its level of theory; give it with --method, such as --method DFT-PBE.")
    prepare_output(
        Path(target), overwrite=overwrite, inputs=[Path(file) for group in splits.values() for file in group]
    )
    start = time.perf_counter()
    with readable(*sources):
        frames = convert(
            splits,
            target,
            method=method,
            software=software,
            keys=keys_of(energy_key, forces_key, stress_key, group_key, units),
            labelled=not unlabelled,
            workers=workers or len(os.sched_getaffinity(0)),
        )
    report = {
        "out": target,
        "frames": frames,
        "bytes": Path(target).stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if as_json:
        print_json(report)
    else:
        print_pairs({name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in report.items()})


def describe_command(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="org/name[@revision], a folder or a parquet file.")],
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
        [key, part.method, part.software, f"{part.frames or 0:,}", f"{part.atoms or 0:,}"]
        + [f"{number:,}" for number in (part.energies, part.forces, part.stresses)]
        for key, part in parts.items()
    ]
    print_table(columns, rows, title="\nParts")
    splits = [[key, split, f"{number:,}"] for key, part in parts.items() for split, number in part.splits.items()]
    if splits:
        print_table(["part", "split", "frames"], splits, title="\nSplits")
    say("Elements: " + " ".join(sorted({symbol for part in parts.values() for symbol in part.elements})))


@publish_app.command("dataset", epilog=PUBLISH_DATASET_EXAMPLES)
def publish_dataset_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With parquet files, of a recipe or convert.")],
    repository: Repository,
    private: Private = False,
    dry_run: DryRun = False,
    statements: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="State title, summary, origin, licence, citation, ..."),
    ] = None,
    accept_findings: Annotated[
        bool, typer.Option("--accept-findings", help="Publish in spite of errors that the doctor finds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset: licence and units checked, examined by the doctor, with card and checksums, in one commit."""
    from snnp.publish.datasets import publish_dataset

    about = parse_statements(statements) if statements else None
    done = publish_dataset(
        folder, repository, private=private, dry_run=dry_run, about=about, accept_findings=accept_findings
    )
    if as_json:
        print_json({"repository": repository, "files": done.files, "commit": done.commit, "address": done.address})
        return
    print_table(["file", "bytes"], [[name, f"{size:,}"] for name, size in done.files.items()], title=repository)
    if done.commit is None:
        say("Nothing was uploaded: leave --dry-run away for that.")
    else:
        print_pairs({"commit": done.commit, "address": str(done.address)})
