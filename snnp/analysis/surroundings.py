"""What atoms see: distances and angles that occur, and the typical environment of each element in a model's terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase.build import bulk
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from snnp.errors import InputError
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import SplineSet
from snnp.structure import Structure

__all__ = ["Environment", "Occurrence", "all_groups", "crystal_shells", "environment", "occurrence"]

_N_BINS = 160
_MAX_ATOMS = 400  # enough for smooth averages, few enough for all angles


@dataclass(frozen=True)
class Occurrence:
    """How often distances and angles occur in some structures.

    Arguments:
        distance: [n] Å, middles of the bins; distance_density: [n], pairs per bin over r², largest value 1.
        angle: [m] degrees between nearest neighbours; angle_density: [m], triples per bin, largest value 1.
        nearest: Å, distance of an atom's nearest neighbour (median); closest: Å, its first percentile.
    """

    distance: np.ndarray
    distance_density: np.ndarray
    angle: np.ndarray
    angle_density: np.ndarray
    nearest: float
    closest: float


def occurrence(structure: Structure, cutoff: float) -> Occurrence:
    """Count the distances up to `cutoff` (Å), and the angles between neighbours up to 1.3 times the nearest distance.

    Raises `InputError` if no two atoms are closer than the cutoff.
    """
    neighbours = neighbour_list(structure, cutoff)
    lengths = pair_vectors(structure, neighbours).norm(dim=1)
    if not len(lengths):
        raise InputError(f"no two atoms are closer than {cutoff} Å in these structures; there is nothing to count.")
    shortest = torch.full((structure.n_atoms,), torch.inf, dtype=lengths.dtype)
    shortest = shortest.scatter_reduce(0, neighbours.i, lengths, "amin")
    shortest = shortest[torch.isfinite(shortest)]
    nearest, closest = float(shortest.median()), float(shortest.quantile(0.01))
    counts, edges = np.histogram(lengths.numpy(), bins=_N_BINS, range=(0.0, cutoff))
    distance = 0.5 * (edges[1:] + edges[:-1])
    density = _smooth(counts / distance**2)
    centres, (row, _, sampled) = _sampled_pairs(structure, 1.3 * nearest)
    angles = np.concatenate([_angles(sampled[row == k]) for k in range(len(centres))])
    angle_counts, edges = np.histogram(angles, bins=90, range=(0.0, 180.0))
    angle, angle_density = 0.5 * (edges[1:] + edges[:-1]), _smooth(angle_counts.astype(float))
    angle_density = angle_density / max(float(angle_density.max()), 1.0)
    return Occurrence(distance, density / density.max(), angle, angle_density, nearest, closest)


def _smooth(counts: np.ndarray) -> np.ndarray:
    """A Gaussian of 1.5 bins width over a histogram: shells of perfect crystals would dwarf everything else."""
    return np.asarray(gaussian_filter1d(counts, 1.5, mode="constant", radius=5))


def _angles(vectors: Tensor) -> np.ndarray:
    """Angles in degrees between all pairs of vectors [n, 3]."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    cosine = (unit[first] * unit[second]).sum(dim=1).clamp(-1.0, 1.0)
    return torch.rad2deg(torch.arccos(cosine)).numpy()


def crystal_shells(symbol: str, cutoff: float) -> np.ndarray:
    """Distances (Å) of the neighbour shells of an element's crystal at room temperature; empty where ASE knows none."""
    if (crystal := _crystal(symbol)) is None:
        return np.zeros(0)
    return np.unique(pair_vectors(crystal, neighbour_list(crystal, cutoff)).norm(dim=1).numpy().round(2))


@dataclass(frozen=True)
class Environment:
    """What atoms of each element typically see, in a model's terms.

    Arguments:
        where: "in the data" or "in the crystal"; None where neither is known.
        features: [Z, D]; the mean of the training data for an element that does not occur.
        reach: [Z, T], `sum_k f_b(r_k)` over the neighbours k; zero for an element that does not occur.
        partner: species of the usual nearest neighbour of each element, and distance: Å, how far it is.
    """

    where: str | None
    features: Tensor
    reach: Tensor
    partner: tuple[int, ...]
    distance: tuple[float, ...]


def environment(model: SplineNNP, structures: Structure | None = None) -> Environment:
    """Average the features over the atoms of some structures; by default over the crystals of the model's elements.

    Without structures, and if an element has no crystal that ASE knows (molecules), only the mean features are known.
    """
    z, n_angular = model.config.n_elements, model.config.angular.n_filters
    features = model.readout.mean.detach().expand(z, -1).double().cpu().clone()
    reach = torch.zeros(z, n_angular, dtype=torch.float64)
    partner, distance = list(range(z)), [model.cutoff / 3.0] * z
    where = "in the data" if structures is not None else "in the crystal"
    if structures is None:
        crystals = [crystal for crystal in map(_crystal, model.elements) if crystal is not None]
        if len(crystals) < z:
            return Environment(None, features, reach, tuple(partner), tuple(distance))
        structures = Structure.concatenate(crystals)
    centre, (row, j, vectors) = _sampled_pairs(structures, model.cutoff)
    species, lengths = model.species(structures.to(device=model.device)).cpu(), vectors.norm(dim=1)
    seen, sums = _features_and_reach(model, species, centre, (row, j, vectors))
    for element in range(z):
        mine = species[centre] == element
        if not bool(mine.any()):
            continue
        features[element], reach[element] = seen[mine].mean(dim=0), sums[mine].mean(dim=0)
        chosen = [(row == k).nonzero()[:, 0] for k in mine.nonzero()[:, 0].tolist()]
        nearest = torch.tensor([int(pair[lengths[pair].argmin()]) for pair in chosen if len(pair)])
        if len(nearest):
            partner[element] = int(species[j[nearest]].mode().values)
            distance[element] = float(lengths[nearest][species[j[nearest]] == partner[element]].median())
    return Environment(where, features, reach, tuple(partner), tuple(distance))


@torch.no_grad()
def _features_and_reach(
    model: SplineNNP, species: Tensor, centre: Tensor, pairs: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Features [n, D] of the centres, and the sums [n, T] of f over their neighbours."""
    row, j, vectors = pairs
    device, lengths = model.device, vectors.norm(dim=1)
    moved = (row.to(device), j.to(device), vectors.to(device, model.dtype))
    geometry = model.geometry(moved, species.to(device), centre.to(device))
    group = model.radial_group.cpu()[species[centre[row]], species[j]]
    values = all_groups(model.f, lengths)[group, :, torch.arange(len(j))]
    sums = torch.zeros(len(centre), model.config.angular.n_filters, dtype=torch.float64)
    sums.index_add_(0, row, values * (lengths < model.config.angular_cutoff)[:, None])
    return model.features(geometry).double().cpu(), sums


def _sampled_pairs(structure: Structure, cutoff: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Some centres [n], and their pairs: row of the centre, neighbour, vector."""
    neighbours = neighbour_list(structure, cutoff)
    centre = torch.linspace(0, structure.n_atoms - 1, min(structure.n_atoms, _MAX_ATOMS)).long().unique()
    row_of = torch.full((structure.n_atoms,), -1)
    row_of[centre] = torch.arange(len(centre))
    row = row_of[neighbours.i]
    kept = row >= 0
    return centre, (row[kept], neighbours.j[kept], pair_vectors(structure, neighbours)[kept])


def _crystal(symbol: str) -> Structure | None:
    """The primitive cell of an element's crystal at room temperature; None where ASE knows none."""
    try:
        return Structure.from_ase(bulk(symbol))
    except (KeyError, ValueError, RuntimeError):  # what ASE raises for molecules and unusual crystals
        return None


def all_groups(splines: SplineSet, x: Tensor) -> Tensor:
    """[G, F, n] values of all groups of a `SplineSet`."""
    parameter = next(splines.parameters())
    n_groups, n_filters = parameter.shape[:2]
    if n_filters == 0:
        return torch.zeros(n_groups, 0, len(x), dtype=torch.float64)
    where = x.to(parameter).expand(n_groups, -1)
    group = torch.arange(n_groups, device=parameter.device)[:, None].expand_as(where)
    values, _ = splines(where, group)
    return values.transpose(1, 2).detach().double().cpu()
