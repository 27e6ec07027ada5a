"""Bundled models that hold what several equal ones know in the mean: members by the recipe, then one student of theirs.

    self: {members: 8, budget: 950, epochs: 150}

beside the keys of a training configuration, by which members are trained with seeds 1, 2, ...; `budget` and `epochs`
are those of the student (see `snnp.distillation.DistilSettings` with method self). `student` may hold keys of a
training configuration in which it differs from the members, such as {compression: {share: 0.5}}.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trained import Order, Trained, bring_to_end, distil_once, errors, read_recipe

from snnp.data import Frames, read_frames
from snnp.data.write import parquet_writer
from snnp.distillation import DistilSettings
from snnp.errors import ConfigError
from snnp.models.store import load_model
from snnp.training import TrainConfig, load_config
from snnp.training.problem import load_problem

__all__ = ["config_of", "make", "recipe_of", "student_of", "teacher", "train_members"]

_KEYS, _MORE = {"members", "budget", "epochs"}, {"student"}


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a model that several are distilled into.

    Raises:
        ConfigError: if it lacks the key `self`, or that does not say what it must.
    """
    tree = read_recipe(folder)
    asked = tree.get("self")
    if not isinstance(asked, dict) or set(asked) - _MORE != _KEYS or not isinstance(asked.get("student", {}), dict):
        raise ConfigError(
            f"{folder / 'recipe.yaml'}: self must have the keys {', '.join(sorted(_KEYS))}, and may have student with "
            f"keys of a training configuration; got {asked!r}."
        )
    return tree


def make(order: Order) -> Trained:
    """The student of all members; data and test are those of the members."""
    recipe = recipe_of(order.folder)
    config = config_of(recipe)
    members = train_members(recipe, order.run, order.tell)
    run = student_of(recipe, members, order.run / "student", order.tell)
    model, problem = load_model(run / "best"), load_problem(config)
    for key in ("teacher_key", "teacher_licence"):  # of files that nobody else has
        del model.metadata[key]
    model.metadata["teacher"] = teacher(recipe)
    # Files of a run are nowhere else.
    learned = [str(path).removeprefix(f"{order.run}/") for path in model.metadata["training_data"]]
    model.metadata["training_data"] = learned
    return Trained(model, run, config.device, problem, config.metadata, lambda: errors(model, problem, config))


def config_of(recipe: Mapping[str, Any], **changes: Any) -> TrainConfig:
    """The training configuration of a member."""
    return load_config({key: value for key, value in recipe.items() if key != "self"} | changes)


def teacher(recipe: Mapping[str, Any]) -> str:
    """Who taught the student, for its card."""
    number = recipe["self"]["members"]
    return f"the mean of {number} models of this recipe with seeds 1 to {number}"


def _data_of(recipe: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """What members and student learn: without the frames that the recipe draws for its test, whatever their seed."""
    data = dict(recipe["data"])
    if not isinstance(data.get("test"), float):
        return {key: value for key, value in data.items() if key != "test"}
    path = run / "data.parquet"
    if not path.exists():
        problem, lone = load_problem(config_of(recipe)), data.get("isolated_atoms")
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(path, ", ".join(data["train"]), "snnp") as writer:
            if lone is not None:
                writer.add(Frames.of(read_frames([os.path.expandvars(lone)])), "train")
            writer.add(problem.split.train, "train")
            writer.add(problem.split.valid, "train")
    return {"train": [str(path)], "valid": data.get("valid", 0.0)}


def train_members(recipe: Mapping[str, Any], run: Path, tell: Callable[[str], None]) -> list[Path]:
    """Folders of the members, trained where they are not.

    Raises:
        ConfigError: for members that another recipe trained.
    """
    folders = [run / f"member-{seed}" for seed in range(1, recipe["self"]["members"] + 1)]
    for seed, folder in enumerate(folders, start=1):
        tell(folder.name)
        bring_to_end(config_of(recipe, seed=seed, data={**_data_of(recipe, run), "test": 0.0}), folder, tell)
    return folders


def student_of(
    recipe: Mapping[str, Any], members: Sequence[Path], folder: Path, tell: Callable[[str], None], seed: int = 0
) -> Path:
    """Folder of the training of the student of all members, distilled into `folder` unless that is finished.

    Raises:
        ConfigError: for a folder of other settings.
    """
    asked = recipe["self"]
    student = {
        key: value for key, value in recipe.items() if key not in ("data", "seed", "self", "metadata", "threads")
    }
    student["optimiser"] = {**student["optimiser"], "epochs": asked["epochs"]}
    student["loss"] = {"stress_weight": 0.0, **student.get("loss", {})}
    student |= asked.get("student", {})
    settings = DistilSettings(
        teachers=[str(member) for member in members],
        data=[os.path.expandvars(name) for name in _data_of(recipe, folder.parent)["train"]],
        method="self",
        budget=asked["budget"],
        held_out=0.05,
        seed=seed,
        student=student,
    )
    distil_once(settings, folder, tell)
    return folder / "student"
