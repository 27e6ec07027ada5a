"""Bundled models that are several in one file, with their mean and spread.

    mean: {members: [model_zoo/snnp-organic, [{...}, {...}]], test: runs/labels.parquet:test, max_force: 20}

A member is a model that is there, or training configurations that are run one after the other, each from where the last
one ended. Paths are below the root of the repository; frames with larger forces (eV/Å) than `max_force` are not judged.
What the first member learned stands for all in the card.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from trained import Order, bring_to_end, read_recipe

from snnp.data import Frames, read_frames
from snnp.errors import ConfigError
from snnp.models import Ensemble, load_model
from snnp.models.potential import Potential
from snnp.training import evaluate, load_config

__all__ = ["make"]

ROOT = Path(__file__).resolve().parents[1]
_KEYS = {"members", "test", "max_force"}


def make(order: Order) -> Potential:
    """The ensemble, with what the recipe says of it and its errors on the test data.

    Raises:
        ConfigError: for other keys than there are.
    """
    recipe = read_recipe(order.folder)
    asked = recipe["mean"]
    if not isinstance(asked, dict) or set(asked) != _KEYS:
        raise ConfigError(f"mean must have the keys {', '.join(sorted(_KEYS))}; got {asked!r}.")
    members = [_member(each, order.run / f"member-{k}", order.tell) for k, each in enumerate(asked["members"], 1)]
    ensemble = Ensemble(members)
    path, _, split = str(asked["test"]).rpartition(":")
    frames = Frames.of(read_frames(str(ROOT / path), split=split))
    largest = frames.per_frame(np.abs(frames.forces).max(axis=1), np.maximum)
    order.tell("errors on the test data")
    ensemble.metadata = dict(recipe["metadata"]) | {
        "reference_energies_from": dict.fromkeys(ensemble.elements, "mean of the members'"),
        "training_range": members[0].metadata["training_range"],
        "metrics": evaluate(ensemble, frames.take(largest <= asked["max_force"]), data_name=asked["test"]).to_dict(),
    }
    return ensemble


def _member(asked: str | list[dict[str, Any]], run: Path, tell: Callable[[str], None]) -> Potential:
    if isinstance(asked, str):
        return load_model(ROOT / asked)
    start: dict[str, Any] = {}
    for number, stage in enumerate(asked, start=1):
        folder = run / str(number)
        bring_to_end(load_config({**stage, **start}), folder, tell)
        start = {"start": str(folder / "best")}
    return load_model(folder / "best")
