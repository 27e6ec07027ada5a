"""`snnp import`: potentials trained with other programs, as model folders of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snnp.cli.console import print_json, print_pairs
from snnp.cli.files import prepare_output
from snnp.cli.options import Json, Overwrite, examples
from snnp.errors import InputError

__all__ = ["NEUROCHEM_EXAMPLES", "app", "neurochem_command"]

NEUROCHEM_EXAMPLES = examples(
    "snnp import neurochem ani-1ccx_8x models/ani-1ccx",
    "snnp import neurochem ani-al/model/model-Al-75 models/ani-al --json",
    after=("Where the published networks are, and what they can do: the page 'Published ANI networks' of the docs.",),
)

app = typer.Typer(
    help="Read a potential trained with another program and write it as a model folder.",
    epilog=examples("snnp import neurochem ani-1ccx_8x models/ani-1ccx"),
    invoke_without_command=True,
)


@app.callback()
def _group(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command("neurochem", epilog=NEUROCHEM_EXAMPLES)
def neurochem_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of NeuroChem's: *.params, sae_linfit.dat, networks/.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Import ANI networks in NeuroChem's format; several networks become one ensemble with a spread."""
    from snnp.models.ensemble import Ensemble
    from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE
    from snnp.models.io import save_model
    from snnp.models.neurochem import read_neurochem

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
