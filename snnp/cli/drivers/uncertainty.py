"""`snnp uncertainty`: heads on the filters of a model, and what their spread means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, say
from snnp.cli.options import Data, Json, Model, Overwrite, command, group
from snnp.cli.outputs import prepare_folder, readable
from snnp.errors import InputError

__all__ = ["uncertainty_app"]

uncertainty_app = group(
    "Models that know how far to trust them.",
    "snnp uncertainty heads snnp-si config.yaml --out runs/heads",
    "snnp uncertainty calibrate runs/heads held_out.xyz --out runs/calibrated",
)


@command(
    "heads",
    "snnp uncertainty heads snnp-si config.yaml --out runs/heads",
    "snnp uncertainty heads runs/mine config.yaml --heads 4 --hidden 16 --set optimiser.epochs=60 --out runs/heads",
    of=uncertainty_app,
)
def heads_command(
    model: Model,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="As of 'snnp train': data, loss, optimiser.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder; called again, a run goes on where it was.")],
    heads: Annotated[int, typer.Option(metavar="N", help="How many.")] = 8,
    hidden: Annotated[int, typer.Option(metavar="N", help="Hidden units of each.")] = 12,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of CONFIG; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train an ensemble of readouts on the filters of an s-NNP; it costs little more than the model itself."""
    import json

    from snnp.hub import resolve
    from snnp.training import load_config
    from snnp.uncertainty.bootstrap import train_heads
    from snnp.uncertainty.calibration import KEY

    loaded = load_config(config, [*(assignments or []), f"start={json.dumps(resolve(model).pinned)}"])
    prepare_folder(out)
    ensemble = train_heads(loaded, out, n_heads=heads, hidden=(hidden,), say=say)
    _print(ensemble.metadata.get(KEY), out / "best", as_json)


@command("calibrate", "snnp uncertainty calibrate runs/heads held_out.xyz --out runs/calibrated", of=uncertainty_app)
def calibrate_command(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the model goes with its calibration.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit what an ensemble's spread is multiplied by to be an expected error, on frames that it never saw."""
    from snnp.data import read_frames
    from snnp.files import refuse_existing
    from snnp.hub import load_model
    from snnp.models.ensemble import Ensemble
    from snnp.models.formats import CONFIG_FILE
    from snnp.models.store import save_model
    from snnp.uncertainty.calibration import KEY, calibrate

    ensemble = load_model(model)
    if not isinstance(ensemble, Ensemble) or len(ensemble.potentials) < 2:
        raise InputError(f"{model} has no members that could disagree; name an ensemble of two or more.")
    if not data:
        raise InputError("name files with reference energies and forces that no member was trained on.")
    if not overwrite:
        refuse_existing([out / CONFIG_FILE], "choose another folder, or say --overwrite")
    prepare_folder(out)
    with readable(*data):
        frames = read_frames(data)
    ensemble.metadata[KEY] = calibrate(ensemble, frames, ", ".join(path.name for path in data)).to_dict()
    save_model(ensemble, out)
    _print(ensemble.metadata[KEY], out, as_json)


def _print(found: dict[str, Any] | None, model: Path, as_json: bool) -> None:
    if as_json:
        return print_json({"model": str(model), "calibration": found})
    pairs = {"model": str(model)}
    for name, unit in (("forces", "eV/Å"), ("energy", "eV/atom")) if found else ():
        each = found[name] if found else {}
        inside = f"of errors that should be within in half of the cases {each['coverage'][9]:.0%} are"
        quality = f"area {each['area']:.3f}, rank correlation {each['rank_correlation']:.2f}"
        pairs[name] = f"spread times {number(each['scale'])}; {inside}; {quality}, RMSE {number(each['rmse'])} {unit}"
    print_pairs(pairs)
    if found is None:
        say("Not calibrated: fewer than 8 frames were held out (data.valid). 'snnp uncertainty calibrate' does it.")
    return None
