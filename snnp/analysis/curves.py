r"""A spline potential on one page: every function that it learned, in eV where it has that meaning.

Filters have no scale of their own (a factor can move between a filter and the network), so each is shown as what it is
worth. To first order in the features, with h_a = dE/dG_a of an atom in a typical environment (see `Environment`),

    radial filter      h_a rho_a(r)                       eV per neighbour
    three-body filter  f_b(r) / max |f_b|                 a shape without unit
    angle              h_b max |f_b|^2 g_b(theta)         eV per pair of neighbours at the peak of f_b
    pair energy        phi_zw(r) = e_zw(r) + e_wz(r) + pair term + repulsion
                       e_zw(r) = sum_a h_a^z rho_a^w(r) + sum_b h_b^z S_b^z <g_b> f_b^w(r)
    three-body energy  sum_b h_b f_b(r)^2 [g_b(theta) - <g_b>]

where <g_b> is the mean over all directions and S_b = sum_k f_b(r_k) over the neighbours of the atom. The pair energy is
what one more neighbour at distance r changes, averaged over its direction, however the model divides that between two-
and three-body filters. Where the energy is an embedding spline of summed features (EAM, s-MEAM), functions have a scale
and stay as they are.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from ase.build import bulk
from ase.data import atomic_numbers
from scipy.integrate import simpson
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.repulsion import Repulsion
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import SplineSet
from snnp.structure import Structure

__all__ = ["Curves", "Environment", "Occurrence", "all_groups", "angle_functions", "crystal_shells", "group_names"]

_N_POINTS = 400
_N_BINS = 160
_MAX_ATOMS = 400  # enough for smooth averages, few enough for all angles


class Curves:
    """The functions of a `SplineNNP` on common axes; G groups of filters, Z elements, F radial, T three-body filters.

    The `structures`, by default the elements' crystals, give the typical environments; beyond `closest` (Å) shapes are
    scaled by their peak, and axes begin a little below. Raises `InputError` if the model is not made of splines.

    Attributes:
        in_ev: whether filters are scaled to eV (see above) or shown as they are.
        where: the environment of the expansion, see `Environment`.
        distance: [n] Å; angle: [m] degrees.
        radial: [G, F, n]; shape: [G, T, n] (f, peak 1 at distances that occur); angular: [H, T, m] (g).
        groups, angle_groups: names of the groups ("" where all elements share one).
        pair: energies [n] in eV by pair of elements, as in ("Si", "Ge").
        three_body: [Z, n, m], both neighbours at r and of the usual element, and triples: names such as "H–C–H".
        nearest: [Z] Å, usual distance of the nearest neighbour.
        worth: [D] mean over elements of |h_a| std_a, eV: how far one standard deviation of a feature moves the energy.
        embedding: (x [k], U [Z, E, k]) of the embedding splines, or None.
    """

    @torch.no_grad()
    def __init__(self, model: Potential, structures: Structure | None = None, closest: float = 0.0) -> None:
        if not isinstance(model, SplineNNP):
            raise InputError(f"a {type(model).__name__} is not made of splines; curves can be drawn of a SplineNNP.")
        n_radial, typical = model.config.radial.n_filters, Environment(model, structures)
        self.elements, self.in_ev = model.elements, not model.readout.sums_features
        self.where, self.nearest = typical.where, typical.distance
        lower = min(grid.lower for grid in (*model.config.grid("radial"), *model.config.grid("angular")))
        distance = torch.linspace(max(lower, 0.88 * closest, 0.3), model.cutoff, _N_POINTS, dtype=torch.float64)
        angle = torch.linspace(0.0, 180.0, 181, dtype=torch.float64)
        # [Z, D] dE/dG of an atom of each element.
        species = torch.arange(model.config.n_elements, device=model.device)
        gradient = model.readout(typical.features.to(model.device, model.dtype), species)[1].double().cpu()
        radial, shape = all_groups(model.rho, distance), all_groups(model.f, distance)
        angular = angle_functions(model, angle)
        self.pair = _pair_energies(model, distance, (radial, shape, angular), gradient, typical.reach)
        self.three_body = _three_body(model, shape, angular, gradient, typical).numpy()
        self.worth = (gradient.abs() * model.readout.std.double().cpu()).mean(dim=0).numpy()
        if self.in_ev:
            # Groups belong to neighbour elements: a filter is worth what it is worth to the average centre.
            mean = gradient.mean(dim=0)
            peak = shape[..., distance >= closest].abs().amax(dim=(0, 2)).clamp_min(1e-30)
            radial = radial * mean[None, :n_radial, None]
            shape, angular = shape / peak[None, :, None], angular * (mean[n_radial:] * peak**2)[None, :, None]
        self.distance, self.angle = distance.numpy(), angle.numpy()
        self.radial, self.shape, self.angular = radial.numpy(), shape.numpy(), angular.numpy()
        self.groups, self.angle_groups = group_names(model)
        usual = [model.elements[index] for index in typical.partner]
        self.triples = tuple(f"{w}–{symbol}–{w}" for symbol, w in zip(model.elements, usual, strict=True))
        self.embedding = _embedding(model)


def angle_functions(model: SplineNNP, angle: Tensor) -> Tensor:
    """[H, T, m] of g as the evaluator sees it: the Legendre evaluator keeps only degrees up to L."""
    cosine = torch.cos(torch.deg2rad(angle))
    if model.config.angular.evaluator == "spline":
        return all_groups(model.g, cosine)
    legendre = (model.g.coefficients() @ model.projection.T).detach().double().cpu().numpy()
    values = np.polynomial.legendre.legval(cosine.numpy(), np.moveaxis(legendre, -1, 0))
    return torch.from_numpy(values)


def group_names(model: SplineNNP) -> tuple[tuple[str, ...], tuple[str, ...]]:
    elements, radial = model.elements, model.elements
    if model.config.n_groups("radial") == 1:
        radial = ("",)
    elif model.config.filters != "element":
        radial = tuple(f"{centre}→{other}" for centre in elements for other in elements)
    pairs = itertools.combinations_with_replacement(range(len(elements)), 2)
    names = {int(model.unordered[a, b]): f"{elements[a]}–{elements[b]}" for a, b in pairs}
    angles = ("",) if len(model.g.grids) == 1 else tuple(names[group] for group in sorted(names))
    return radial, angles


def _mean_over_directions(angular: Tensor) -> Tensor:
    theta = np.linspace(0.0, np.pi, angular.shape[2])
    return torch.from_numpy(0.5 * simpson(angular.numpy() * np.sin(theta), x=theta))


def _pair_energies(
    model: SplineNNP, distance: Tensor, functions: tuple[Tensor, Tensor, Tensor], gradient: Tensor, reach: Tensor
) -> dict[tuple[str, str], np.ndarray]:
    """Pair energies [n] by pair of elements; without the first-order part where energies are not linear in features."""
    z, n_radial = model.config.n_elements, model.config.radial.n_filters
    radial, shape, angular = functions
    phi = all_groups(model.phi, distance) if model.phi is not None else None
    mean = _mean_over_directions(angular)
    energies = {}
    for a, b in itertools.combinations_with_replacement(range(z), 2):
        unordered = int(model.unordered[a, b])
        total = torch.zeros_like(distance)
        if (fixed := model.config.repulsion) is not None:
            charges = (torch.full_like(distance, atomic_numbers[model.elements[k]]) for k in (a, b))
            total = 2.0 * Repulsion(fixed.inner, fixed.outer)(distance, *charges)[0]  # which gives each atom its half
        for centre, other in ((a, b), (b, a)) if not model.readout.sums_features else ():
            group, g = int(model.radial_group[centre, other]), mean[unordered if len(mean) > 1 else 0]
            total = total + gradient[centre, :n_radial] @ radial[group]
            total = total + (gradient[centre, n_radial:] * reach[centre] * g) @ shape[group]
        if phi is not None:
            total = total + phi[unordered, 0]
        energies[model.elements[a], model.elements[b]] = total.numpy()
    return energies


def _three_body(model: SplineNNP, shape: Tensor, angular: Tensor, gradient: Tensor, typical: Environment) -> Tensor:
    """[Z, n, m] three-body energies of an atom and two usual neighbours, without the mean over directions."""
    in_ev = not model.readout.sums_features
    varying = angular - _mean_over_directions(angular)[..., None] if in_ev else angular
    maps = []
    for centre, other in enumerate(typical.partner):
        f = shape[int(model.radial_group[centre, other])]
        g = varying[int(model.unordered[other, other]) if len(angular) > 1 else 0]
        weights = gradient[centre, model.config.radial.n_filters :] if in_ev else torch.ones(len(f)).double()
        maps.append(torch.einsum("t,tn,tm->nm", weights, f**2, g))
    return torch.stack(maps)


def _embedding(model: SplineNNP) -> tuple[np.ndarray, np.ndarray] | None:
    splines = model.readout.embedding
    if splines is None:
        return None
    lower, upper = min(grid.lower for grid in splines.grids), max(grid.upper for grid in splines.grids)
    x = torch.linspace(lower, upper, 200, dtype=torch.float64)
    return x.numpy(), all_groups(splines, x).numpy()


class Occurrence:
    """How often distances up to `cutoff` (Å) and angles occur in some structures; `InputError` if no distance does.

    Attributes:
        distance: [n] Å, middles of the bins; distance_density: [n], pairs per bin over r², largest value 1.
        angle: [m] degrees between neighbours up to 1.3 times the nearest distance; angle_density: [m], likewise.
        nearest: Å, distance of an atom's nearest neighbour (median); closest: Å, its first percentile.
    """

    def __init__(self, structure: Structure, cutoff: float) -> None:
        neighbours = neighbour_list(structure, cutoff)
        lengths = pair_vectors(structure, neighbours).norm(dim=1)
        if not len(lengths):
            raise InputError(f"no two atoms are closer than {cutoff} Å in these structures; there is nothing to count.")
        shortest = torch.full((structure.n_atoms,), torch.inf, dtype=lengths.dtype)
        shortest = shortest.scatter_reduce(0, neighbours.i, lengths, "amin")
        shortest = shortest[torch.isfinite(shortest)]
        self.nearest, self.closest = float(shortest.median()), float(shortest.quantile(0.01))
        counts, edges = np.histogram(lengths.numpy(), bins=_N_BINS, range=(0.0, cutoff))
        self.distance = 0.5 * (edges[1:] + edges[:-1])
        density = _smooth(counts / self.distance**2)
        self.distance_density = density / density.max()
        centres, (row, _, sampled) = _sampled_pairs(structure, 1.3 * self.nearest)
        angles = np.concatenate([_angles(sampled[row == k]) for k in range(len(centres))])
        counts, edges = np.histogram(angles, bins=90, range=(0.0, 180.0))
        self.angle, density = 0.5 * (edges[1:] + edges[:-1]), _smooth(counts.astype(float))
        self.angle_density = density / max(float(density.max()), 1.0)


def _smooth(counts: np.ndarray) -> np.ndarray:
    # Shells of perfect crystals would dwarf everything else.
    return np.asarray(gaussian_filter1d(counts, 1.5, mode="constant", radius=5))


def _angles(vectors: Tensor) -> np.ndarray:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    cosine = (unit[first] * unit[second]).sum(dim=1).clamp(-1.0, 1.0)
    return torch.rad2deg(torch.arccos(cosine)).numpy()


def crystal_shells(symbol: str, cutoff: float) -> np.ndarray:
    """Distances (Å) of the neighbour shells of an element's crystal at room temperature; empty where ASE knows none."""
    if (crystal := _crystal(symbol)) is None:
        return np.zeros(0)
    return np.unique(pair_vectors(crystal, neighbour_list(crystal, cutoff)).norm(dim=1).numpy().round(2))


class Environment:
    """What atoms of each element typically see, in a model's terms; by default in the crystals of the elements.

    Attributes:
        where: "in the data" or "in the crystal"; None, with the mean features alone, if ASE does not know a crystal.
        features: [Z, D]; the mean of the training data for an element that does not occur.
        reach: [Z, T], `sum_k f_b(r_k)` over the neighbours k; zero for an element that does not occur.
        partner: species of the usual nearest neighbour of each element, and distance: Å, how far it is.
    """

    def __init__(self, model: SplineNNP, structures: Structure | None = None) -> None:
        z = model.config.n_elements
        self.where: str | None = "in the crystal" if structures is None else "in the data"
        self.features = model.readout.mean.detach().expand(z, -1).double().cpu().clone()
        self.reach = torch.zeros(z, model.config.angular.n_filters, dtype=torch.float64)
        self.partner, self.distance = list(range(z)), [model.cutoff / 3.0] * z
        if structures is None:
            crystals = [crystal for crystal in map(_crystal, model.elements) if crystal is not None]
            if len(crystals) < z:
                self.where = None
                return
            structures = Structure.concatenate(crystals)
        centre, (row, j, vectors) = _sampled_pairs(structures, model.cutoff)
        species, lengths = model.species(structures.to(device=model.device)).cpu(), vectors.norm(dim=1)
        seen, sums = _features_and_reach(model, species, centre, (row, j, vectors))
        for element in range(z):
            mine = species[centre] == element
            if not bool(mine.any()):
                continue
            self.features[element], self.reach[element] = seen[mine].mean(dim=0), sums[mine].mean(dim=0)
            chosen = [(row == k).nonzero()[:, 0] for k in mine.nonzero()[:, 0].tolist()]
            nearest = torch.tensor([int(pair[lengths[pair].argmin()]) for pair in chosen if len(pair)])
            if len(nearest):
                usual = int(species[j[nearest]].mode().values)
                self.partner[element] = usual
                self.distance[element] = float(lengths[nearest][species[j[nearest]] == usual].median())


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
