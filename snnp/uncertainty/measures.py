r"""Signs of uncertainty behind one interface: a number for each atom, and one for the structure.

| measure | of | says |
|---|---|---|
| `CommitteeSpread` | an ensemble | how far the members' forces disagree, in eV/Å (expected error, where calibrated) |
| `FeatureDistance` | an s-NNP and its training data | how far an environment lies from all that were learned |
| `Hierarchicality` | a HIP-NN | how large higher orders of the energy are beside lower ones |

The distance of an atom is that of its D features x to the nearest x_k of the training set, in standard deviations:
`d = min_k |(x - x_k) / std| / sqrt(D)`. Hierarchicality: Lubbers, Smith and Barros, J. Chem. Phys. 148, 241715 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from snnp.data import Frames
from snnp.errors import InputError
from snnp.models.ensemble import Ensemble
from snnp.models.hipnn.model import HIPNN
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure, StructureLike, as_structure
from snnp.uncertainty.committee import Committee

__all__ = ["CommitteeSpread", "Doubt", "FeatureDistance", "Hierarchicality", "Measure", "measure_for"]

Array = NDArray[np.float64]
_MOST_REFERENCES = 4096  # environments that a distance is taken to; farthest-point picks them
_ATOMS_AT_ONCE = 5000  # whose features are computed together


@dataclass(frozen=True)
class Doubt:
    """Per atom [N], and for the structure: its largest one. Zero where nothing speaks against the prediction."""

    atoms: Array

    @property
    def structure(self) -> float:
        """Of the atom that is least certain; 0 without atoms."""
        return float(self.atoms.max(initial=0.0))


class Measure(Protocol):
    """`name`, `unit` (may be empty) and whether it is `calibrated`: in units of expected errors."""

    name: str
    unit: str
    calibrated: bool

    def __call__(self, atoms: Atoms) -> Doubt:
        """Of one structure; `InputError` as from the potential itself."""


class CommitteeSpread:
    """Spread of an ensemble's forces, eV/Å; see `Committee`."""

    name, unit = "spread of forces", "eV/Å"

    def __init__(self, ensemble: Ensemble) -> None:
        self._committee = Committee(ensemble)
        self.calibrated = self._committee.calibrated

    def __call__(self, atoms: Atoms) -> Doubt:
        where = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
        return Doubt(self._committee.evaluate(*where)[1].forces)


class Hierarchicality:
    """R of each atom, of a HIP-NN (dimensionless): compare it with that of the training data."""

    name, unit, calibrated = "hierarchicality", "", False

    def __init__(self, model: HIPNN) -> None:
        self._model = model

    def __call__(self, atoms: Atoms) -> Doubt:
        return Doubt(self._model.hierarchicality(Structure.from_ase(atoms)).detach().cpu().double().numpy())


class FeatureDistance:
    """Distance of environments from those of training data, in the features of an s-NNP and per element.

    Arguments:
        model: the s-NNP, or one of an ensemble. training: structures, or frames, that it learned from.

    Raises:
        InputError: where no training data are given.
    """

    name, unit, calibrated = "distance from the training data", "deviations", False

    def __init__(self, model: SplineNNP, training: StructureLike | Frames) -> None:
        self._model = model
        if isinstance(training, Frames):
            parts = [training[piece].structure() for piece in training.pieces(_ATOMS_AT_ONCE)]
        else:
            parts = [as_structure(training)]
        if sum(part.n_atoms for part in parts) == 0:
            raise InputError("a distance needs training data to measure from, got no atoms; give structures.")
        each = [self._features(part) for part in parts]
        found, species = torch.cat([one for one, _ in each]), torch.cat([one for _, one in each])
        self._known = {k: _spread_out(found[species == k]) for k in torch.unique(species).tolist()}

    @torch.no_grad()
    def _features(self, structure: Structure) -> tuple[Tensor, Tensor]:
        model = self._model
        species = model.species(structure)
        neighbours = neighbour_list(structure, model.cutoff)
        pairs = neighbours.i, neighbours.j, pair_vectors(structure, neighbours).to(model.dtype)
        geometry = model.geometry(pairs, species, torch.arange(structure.n_atoms))
        scaled = (model.features(geometry) - model.readout.mean) / model.readout.std
        return scaled.double() / np.sqrt(scaled.shape[1]), species

    def __call__(self, atoms: Atoms) -> Doubt:
        found, species = self._features(Structure.from_ase(atoms))
        distance = torch.full((len(atoms),), torch.inf, dtype=torch.float64)  # of elements that were never seen
        for element, known in self._known.items():
            mine = species == element
            distance[mine] = _distances(found[mine], known).amin(dim=1) if bool(mine.any()) else distance[mine]
        return Doubt(distance.numpy())


def _spread_out(points: Tensor) -> Tensor:
    """At most so many of the points [n, D] that none of the others is far from all of them."""
    if len(points) <= _MOST_REFERENCES:
        return points
    chosen = [0]
    nearest = (points - points[0]).square().sum(dim=1)
    for _ in range(_MOST_REFERENCES - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(dim=1))
    return points[chosen]


def measure_for(potential: Potential) -> Measure:
    """What a potential knows of its own uncertainty, without any data.

    Raises:
        InputError: for one that knows nothing: a single s-NNP or ANI.
    """
    if isinstance(potential, Ensemble) and len(potential.potentials) > 1:
        return CommitteeSpread(potential)
    if isinstance(potential, HIPNN):
        return Hierarchicality(potential)
    raise InputError(
        f"{potential.name or type(potential).__name__} is one {type(potential).__name__} and has no sign of its own "
        "uncertainty; name an ensemble ('snnp uncertainty heads MODEL CONFIG' makes one of an s-NNP), or a HIP-NN."
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, m] of points; without the shortcut that loses half of the digits."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
