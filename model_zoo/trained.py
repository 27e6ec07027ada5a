"""Bundled models that a training configuration makes; and what building needs of a model, whatever made it.

`distil.yaml` beside the recipe asks for the labels that it trains on: they come first, into runs/NAME-labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from snnp.data import Frame, Frames
from snnp.distillation import DistilProgress, DistilSettings, distil
from snnp.errors import ConfigError
from snnp.models.potential import Potential
from snnp.models.store import load_model
from snnp.training import Progress, TrainConfig, evaluate, load_config, resume, train
from snnp.training.problem import Problem, load_problem

__all__ = ["RUNS", "Order", "Trained", "bring_to_end", "distil_once", "errors", "make", "read_recipe"]

RUNS = Path(__file__).resolve().parents[1] / "runs"


@dataclass(frozen=True)
class Order:
    """Which model to make: its name, the folder with its recipe, that of its run, and who is told what happens."""

    name: str
    folder: Path
    run: Path
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A model that a recipe made, and what building needs beside it.

    Arguments:
        model: with the metadata of its training.
        run: folder of its training, with summary.json.
        device: that it was trained on.
        problem: the data that it was trained on, and those kept for the test.
        about: what the recipe says of the model, for its card.
        errors: those on the test data, as JSON values.
        beside_teacher: metadata from lattice constants (Å, by symbol) where a teacher can be asked; "references" among
            them are rows for the properties of each symbol.
    """

    model: Potential
    run: Path
    device: str
    problem: Problem
    about: dict[str, Any]
    errors: Callable[[], dict[str, Any]]
    beside_teacher: Callable[[Mapping[str, float]], dict[str, Any]] | None = None


def read_recipe(folder: Path) -> dict[str, Any]:
    """The keys of `folder`/recipe.yaml; empty where there are none, of which `load_config` says why."""
    path = folder / "recipe.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, yaml.YAMLError):
        tree = None
    return tree if isinstance(tree, dict) else {}


def make(order: Order) -> Trained:
    """Train by the recipe, a configuration, unless the run is finished."""
    if (asked := order.folder / "distil.yaml").is_file():
        distil_once(DistilSettings.load(asked), RUNS / f"{order.name}-labels", order.tell)
    recipe = load_config(order.folder / "recipe.yaml")
    bring_to_end(recipe, order.run, order.tell)
    # The run's copy has everything resolved; what only describes the model may have been corrected since.
    config, model = load_config(order.run / "config.yaml"), load_model(order.run / "best")
    problem = load_problem(config, order.run / "split.json")
    return Trained(model, order.run, config.device, problem, recipe.metadata, lambda: errors(model, problem, config))


def distil_once(settings: DistilSettings, run: Path, tell: Callable[[str], None]) -> None:
    """Distil into `run`, or go on there, unless it is finished.

    Raises:
        ConfigError: for a run of other settings.
    """
    stages = list[str]()

    def report(now: DistilProgress) -> None:
        if now.stage not in stages:
            stages.append(now.stage)
            tell(now.stage)

    if not (run / "report.json").is_file() or DistilSettings.load(run / "distil.yaml") != settings:
        distil(settings, run, report, resume=(run / "distil.yaml").is_file())


def bring_to_end(recipe: TrainConfig, run: Path, tell: Callable[[str], None]) -> None:
    """Train into `run`, or go on there, unless it is finished.

    Raises:
        ConfigError: for a run of another recipe.
    """

    def report(now: Progress) -> None:
        if now.message is not None or now.epoch % 20 == 0:
            tell(now.message or f"epoch {now.epoch} of {now.epochs}, loss {now.train_loss:.4g}")

    if not (run / "config.yaml").is_file():
        train(recipe, run, report)
        return
    if differences := _differences(recipe, load_config(run / "config.yaml")):
        raise ConfigError(
            f"{run} was trained by another recipe ({'; '.join(differences[:3])}); name another folder with --run, or "
            "remove this one."
        )
    if not (run / "summary.json").is_file():
        resume(run, report)


def errors(model: Potential, problem: Problem, config: TrainConfig) -> dict[str, Any]:
    """Errors on the test data; of pure elements one by one where the model knows several."""
    frames, test = problem.split.test, config.data.test
    if isinstance(test, float):
        data = f"{100.0 * test:g} % of {', '.join(config.data.train)} (drawn with seed {config.seed})"
    else:
        data = ", ".join([test] if isinstance(test, str) else test or ())
    found = evaluate(model, frames, data_name=data).to_dict()
    pure: dict[str, list[Frame]] = {}
    for frame in frames:
        if len(symbols := Frames.of([frame]).elements) == 1:
            pure.setdefault(symbols[0], []).append(frame)
    if len(pure) > 1:
        found["pure_elements"] = {symbol: evaluate(model, part).total.to_dict() for symbol, part in pure.items()}
    return found


def _differences(recipe: TrainConfig, trained: TrainConfig) -> list[str]:
    """Keys in which a finished run differs from the recipe, beyond what training fills in and what does not matter."""
    filled = {"metadata", "ranges", "threads", "device"}
    if not recipe.model.elements:
        filled.add("model.elements")
    if recipe.ranges == "auto":
        filled |= {"model.radial.lower", "model.angular.lower", "model.lower", "model.aev"}
        filled |= {"model.repulsion"} if getattr(recipe.model, "repulsion", None) is None else set()
    if recipe.optimiser.force_training == "auto":
        filled.add("optimiser.force_training")
    before, after = (dict(_flat(each.model_dump(mode="json"), filled)) for each in (recipe, trained))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [f"{key} is {before.get(key)}, was {after.get(key)}" for key in keys]


def _flat(tree: Mapping[str, Any], left_out: set[str], prefix: str = "") -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path not in left_out:
            entries += _flat(value, left_out, f"{path}.") if isinstance(value, Mapping) else [(path, value)]
    return entries
