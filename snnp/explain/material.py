"""What a model is explained on: reference data that were named, its own training data, or structures made for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk

from snnp.data import Frames, read_frames
from snnp.data.reference import are_isolated_atoms
from snnp.distillation.crystals import frames_of
from snnp.distillation.defects import supercell
from snnp.distillation.molecules import displaced, read_molecules
from snnp.errors import DataError, InputError, SnnpError
from snnp.files import bundled_folders
from snnp.hub import bundled_datasets
from snnp.models.potential import Potential

__all__ = ["Material", "material_for"]

_MOST_ATOMS = 9000
_MADE = 24  # crystals of each element
_MADE_ATOMS = 40
_STRAIN, _LEAST_SHAKE, _MOST_SHAKE = 0.05, 0.005, 0.08  # of lengths, and of the nearest distance
_MOST_MOLECULES = 60


@dataclass(frozen=True)
class Material:
    """Frames with energies and forces, and where they are from.

    Arguments:
        frames: at most about 9,000 atoms. origin: a sentence for the page. labelled: whether energies are those of a
            reference method; else they are the model's own. sources: files and datasets that were read.
    """

    frames: Frames
    origin: str
    labelled: bool
    sources: tuple[str, ...] = ()

    def parts(self, seed: int = 0) -> tuple[Frames, Frames, Frames]:
        """To fit by (60 %), to choose by, and to report (20 % each), drawn by the seed; few frames serve all three."""
        n = len(self.frames)
        if n < 10:
            return self.frames, self.frames, self.frames
        order = np.random.default_rng([seed, 5]).permutation(n)
        first, second = round(0.6 * n), round(0.8 * n)
        fit, choose, tell = (np.sort(part) for part in np.split(order, [first, second]))
        return self.frames.take(fit), self.frames.take(choose), self.frames.take(tell)

    @property
    def is_divided(self) -> bool:
        """Whether what is reported was not fitted to."""
        return len(self.frames) >= 10


def material_for(model: Potential, sources: Sequence[str] = ()) -> Material:
    """The data that were named, else those that the model was trained on if they are at hand, else made structures.

    Never a test file: of data that are not named, training parts alone are read.

    Raises:
        DataError: for data that cannot be read, or without a frame of the model's elements.
        InputError: if nothing was named, and ASE knows no crystal or molecule of the elements.
    """
    if sources:
        frames, said = read_frames(list(sources), split="train"), ", ".join(map(str, sources))
        return _labelled(model, frames, said, tuple(sources))
    for names, stated in _training_data(model):
        try:
            return _labelled(model, read_frames(names, split="train"), f"the training data {', '.join(stated)}", names)
        except SnnpError:  # not here, or no longer what it was
            continue
    images = list(_made(model))
    if not images:
        raise InputError(
            f"no data are at hand, and ASE knows no crystal or molecule of {', '.join(model.elements)}; name some with "
            "--data SET."
        )
    frames = _own_labels(model, frames_of(images, "made"))
    origin = (
        f"{len(frames)} structures made for this page ({_kinds(images)}), because no training data are at hand: what "
        "the shading shows is their distances, not those of the training, and errors are against the whole model"
    )
    return Material(frames, origin, labelled=False)


def _training_data(model: Potential) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Names of data that the model may have been trained on, as read and as stated: those of its file, bundled sets."""
    for stated in (model.metadata.get("training_data", []), _recipe(model.name)):
        texts = [str(name) for name in stated] if isinstance(stated, list) else []
        names = [os.path.expandvars(text) for text in texts]
        here = [Path(name.partition(":")[0]).exists() and "$" not in name for name in names]
        if names and all(here):
            yield tuple(names), tuple(texts)
    words = str({key: model.metadata.get(key) for key in ("dataset", "teacher", "description")}).lower()
    for name in sorted(bundled_datasets()):
        first, *others = name.split("-")
        if first in words and (name in words or any(other in words.replace("-", "") for other in others)):
            yield (name,), (name,)


def _recipe(name: str) -> object:
    """What the recipe of a bundled model is trained on; None where there is none."""
    if (folder := bundled_folders("model_zoo", "recipe.yaml").get(name)) is None:
        return None
    tree = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return tree.get("data", {}).get("train")


def _labelled(model: Potential, frames: Frames, said: str, sources: tuple[str, ...]) -> Material:
    """Frames of the model's elements, thinned to what is quick to look at."""
    others = [symbol not in model.elements for symbol in frames.elements]
    frames = frames.take((frames.composition()[:, others].sum(axis=1) == 0) & ~are_isolated_atoms(frames))
    if not len(frames):
        raise DataError(
            f"{said}: no frame of several atoms is made of {', '.join(model.elements)} alone; name data of the model's "
            "elements."
        )
    whole = len(frames)
    if len(frames.numbers) > _MOST_ATOMS:
        n = max(12, int(_MOST_ATOMS / float(frames.counts.mean())))
        frames = frames.take(np.linspace(0, whole - 1, n).astype(int))
    labelled = bool(frames.has_energy.all()) and bool(np.isfinite(frames.forces).all())
    n_shown = f"{whole:,} frames" if len(frames) == whole else f"{len(frames):,} of {whole:,} frames, evenly chosen"
    if labelled:
        return Material(frames, f"{said} ({n_shown})", True, sources)
    origin = f"{said} ({n_shown}), which lack energies or forces: errors are against the whole model"
    return Material(_own_labels(model, frames), origin, False, sources)


@torch.no_grad()
def _own_labels(model: Potential, frames: Frames) -> Frames:
    """The frames with what the model itself says of them."""
    found = model.compute(frames.structure())
    assert found.forces is not None
    energy, forces = found.energy.cpu().numpy(), found.forces.double().cpu().numpy()
    return replace(frames, energy=energy, forces=forces, has_energy=np.ones(len(frames), dtype=bool))


def _made(model: Potential) -> Iterator[tuple[str, Atoms]]:
    """Crystals, strained and shaken; small molecules of elements that have no crystal, displaced."""
    rng = np.random.default_rng(0)
    organic = "H" in model.elements and len(model.elements) > 1
    for symbol in () if organic else model.elements:
        if (crystal := _crystal(symbol)) is None:
            continue
        for share in np.linspace(0.0, 1.0, _MADE):
            atoms = supercell(crystal, _MADE_ATOMS)
            strain = rng.uniform(-_STRAIN, _STRAIN, (3, 3)) * (0.3 + 0.7 * share)
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
            nearest = float(np.sort(atoms.get_all_distances(mic=True)[0])[1])
            atoms.positions += (
                nearest * (_LEAST_SHAKE + share * _MOST_SHAKE) * rng.standard_normal(atoms.positions.shape)
            )
            yield f"crystals of {symbol}", atoms
    known = [each for each in read_molecules(["g2"]) if set(each.symbols) <= set(model.elements) and len(each) > 1]
    for k in range(_MOST_MOLECULES if organic and known else 0):
        yield "molecules of the g2 set", displaced(known[k % len(known)], rng)


def _crystal(symbol: str) -> Atoms | None:
    """A crystal at room temperature, its cell cubic where there is one; None where ASE knows none."""
    for cubic in (True, False):
        try:
            return bulk(symbol, cubic=cubic)
        except (KeyError, ValueError, RuntimeError):  # what ASE raises for molecules and unusual crystals
            continue
    return None


def _kinds(images: Sequence[tuple[str, Atoms]]) -> str:
    kinds = [kind for kind, _ in images]
    return ", ".join(f"{kinds.count(kind)} {kind}, {_how(kind)}" for kind in dict.fromkeys(kinds))


def _how(kind: str) -> str:
    return "displaced" if "molecules" in kind else "strained and shaken"
