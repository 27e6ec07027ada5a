"""Heads for the filters of a model: each trained from its own seed on its own draw of the frames, stored as one model.

The filters stay as they are, to the bit, so that the compiled code encodes neighbours once for all heads. A head sees
the frames of one bootstrap draw (63 % of them on average); those left out choose its best epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from snnp.data import Frames
from snnp.data.write import write_frames
from snnp.errors import ConfigError
from snnp.hub import load_model
from snnp.models.ensemble import Ensemble
from snnp.models.spline.config import NetworkConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import save_model
from snnp.training import TrainConfig, resume, train
from snnp.training.problem import load_problem
from snnp.uncertainty.calibration import FEWEST_FRAMES, KEY, calibrate, labelled

__all__ = ["HIDDEN", "N_HEADS", "new_head", "train_heads"]

N_HEADS, HIDDEN = 8, (12,)
"""Measured to cost 1.1 to 1.2 times one bundled model, energies of all heads and forces of their mean."""
_FEWEST_FRAMES = 10

Say = Callable[[str], None]


def train_heads(
    config: TrainConfig,
    folder: str | Path,
    *,
    n_heads: int = N_HEADS,
    hidden: tuple[int, ...] = HIDDEN,
    say: Say = lambda _: None,
) -> Ensemble:
    """Train heads on the filters of the model that `config.start` names, calibrate them, and save `folder/best`.

    A run that was stopped goes on where it was when called again. Frames that are held out for validation calibrate,
    where there are eight or more.

    Arguments:
        config: data, loss and optimiser of every head. hidden: sizes of a head's layers; one layer is the cheap form.

    Raises:
        ConfigError: without `start`, for a start that is no s-NNP, fewer than two heads, or less than 10 frames.
    """
    folder = Path(folder)
    if config.start is None:
        raise ConfigError("heads share the filters of a model; name it with start (--from MODEL).")
    start = load_model(config.start, dtype="float64")
    if not isinstance(start, SplineNNP):
        raise ConfigError(f"start: {config.start} is a {type(start).__name__}; only an s-NNP has filters to share.")
    if n_heads < 2:
        raise ConfigError(f"a spread needs at least 2 heads, got {n_heads}.")
    problem = load_problem(config)
    frames = problem.split.train
    if len(frames) < _FEWEST_FRAMES:
        raise ConfigError(f"heads need at least {_FEWEST_FRAMES} training frames to draw from, got {len(frames)}.")
    heads = []
    for k in range(n_heads):
        say(f"head {k + 1} of {n_heads}")
        heads.append(_train_one(config, folder / f"head-{k}", k, new_head(start, hidden, config.seed + k), frames))
    ensemble = Ensemble(heads)
    ensemble.metadata |= {"heads": {"of": config.start, "n": n_heads, "hidden": list(hidden)}}
    if problem.split.valid and len(labelled(problem.split.valid)) >= FEWEST_FRAMES:
        names = f"{len(problem.split.valid)} frames held out for validation"
        ensemble.metadata[KEY] = calibrate(ensemble, problem.split.valid, names, config.seed).to_dict()
    save_model(ensemble, folder / "best")
    return ensemble


def new_head(start: SplineNNP, hidden: tuple[int, ...], seed: int) -> SplineNNP:
    """A model with the filters and the scale of another one, and a readout that has learned nothing."""
    network = (start.config.network or NetworkConfig()).model_copy(update={"hidden": hidden})
    form = start.config.model_copy(update={"network": network, "embedding": None})
    head = SplineNNP(form, start.reference_energies, seed=seed)
    kept = {name: value for name, value in start.state_dict().items() if name in ("readout.mean", "readout.std")}
    kept |= {name: value for name, value in start.state_dict().items() if not name.startswith("readout.")}
    head.load_state_dict(head.state_dict() | kept)
    head.isolated_atoms = start.isolated_atoms
    return head


def _train_one(config: TrainConfig, folder: Path, k: int, start: SplineNNP, frames: Frames) -> SplineNNP:
    """One head; what is there of it already is kept."""
    run = folder / "run"
    if not (run / "summary.json").is_file():
        if (run / "config.yaml").is_file():
            resume(run)
        else:
            rng = np.random.default_rng([config.seed, k])
            drawn = np.unique(rng.integers(len(frames), size=len(frames)))
            left = np.setdiff1d(np.arange(len(frames)), drawn)
            parts = {"drawn": drawn, "left": left if len(left) else drawn}
            save_model(start, folder / "start")
            paths = {}
            for name, rows in parts.items():
                paths[name] = folder / f"{name}.extxyz"
                write_frames([("train", frames.take(rows))], paths[name], "as in the training data", "snnp")
            names = ("energy_key", "forces_key", "stress_key", "group_key", "units", "isolated_atoms", "test")
            data = config.data.model_copy(
                update=dict.fromkeys(names) | {"train": (str(paths["drawn"]),), "valid": str(paths["left"])}
            )
            new = {"data": data, "start": str(folder / "start"), "freeze": "filters", "seed": config.seed + k}
            train(config.model_copy(update=new), run, overwrite=True)
    head = load_model(run / "best")
    assert isinstance(head, SplineNNP)
    with torch.no_grad():  # training rounds what it does not change, too: filters are those of the first, to the bit
        for name, value in head.named_parameters():
            if not name.startswith("readout."):
                value.copy_(start.get_parameter(name))
    return head
