r"""A spline potential on one page: every function that it learned, in eV where it has that meaning.

Filters have no scale of their own (a factor can move between a filter and the network), so each is shown as what it is
worth. To first order in the features, with h_a = dE/dG_a of an atom in a typical environment (see `surroundings.py`),

    radial filter      h_a rho_a(r)                       eV per neighbour
    three-body filter  f_b(r) / max |f_b|                 a shape without unit
    angle              h_b max |f_b|^2 g_b(theta)         eV per pair of neighbours at the peak of f_b
    pair energy        phi_zw(r) = e_zw(r) + e_wz(r) + pair term + repulsion
                       e_zw(r) = sum_a h_a^z rho_a^w(r) + sum_b h_b^z S_b^z <g_b> f_b^w(r)
    three-body energy  sum_b h_b f_b(r)^2 [g_b(theta) - <g_b>]

where <g_b> is the mean over all directions and S_b = sum_k f_b(r_k) over the neighbours of the atom. The pair energy is
what one more neighbour at distance r changes, averaged over its direction: in contrast to the radial filters alone it
does not depend on how the model divides the mean between the two- and the three-body filters.

A model whose energy is one embedding spline of the summed features (EAM, s-MEAM) has a scale: its functions stay as
they are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import atomic_numbers
from scipy.integrate import simpson
from torch import Tensor

from snnp.analysis.surroundings import Environment, all_groups, environment
from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.repulsion import Repulsion
from snnp.models.spline.model import SplineNNP
from snnp.structure import Structure

__all__ = ["Curves", "curves_of"]

_N_POINTS = 400


@dataclass(frozen=True)
class Curves:
    """The functions of an s-NNP on common axes; G groups of filters, Z elements, F radial and T three-body filters.

    Arguments:
        elements: Z symbols.
        in_ev: whether filters are scaled to eV (see above) or shown as they are.
        where: the environment of the expansion, "in the data" or "in the crystal"; None for the mean features of the
            training data, of which only the radial filters' part of the pair energy is known.
        distance: [n] Å; angle: [m] degrees.
        radial: [G, F, n]; shape: [G, T, n] (f, peak 1 at distances that occur); angular: [H, T, m] (g).
        groups, angle_groups: names of the groups ("" where all elements share one).
        pair: energies [n] in eV by pair of elements, as in ("Si", "Ge").
        three_body: [Z, n, m], both neighbours at r and of the usual element, and triples: names such as "H–C–H".
        nearest: [Z] Å, usual distance of the nearest neighbour.
        worth: [D] mean over elements of |h_a| std_a, eV: how far one standard deviation of a feature moves the energy.
        embedding: (x [k], U [Z, E, k]) of the embedding splines, or None.
    """

    elements: tuple[str, ...]
    in_ev: bool
    where: str | None
    distance: np.ndarray
    angle: np.ndarray
    radial: np.ndarray
    shape: np.ndarray
    angular: np.ndarray
    groups: tuple[str, ...]
    angle_groups: tuple[str, ...]
    pair: dict[tuple[str, str], np.ndarray]
    three_body: np.ndarray
    triples: tuple[str, ...]
    nearest: tuple[float, ...]
    worth: np.ndarray
    embedding: tuple[np.ndarray, np.ndarray] | None


def curves_of(model: Potential, structures: Structure | None = None, closest: float = 0.0) -> Curves:
    """Evaluate all functions of a spline model; raises `InputError` for another.

    Arguments:
        structures: give the typical environments; by default the elements' crystals do.
        closest: Å, shortest distance that occurs: shapes are scaled by their peak beyond it, axes begin a little below.
    """
    if not isinstance(model, SplineNNP):
        raise InputError(f"a {type(model).__name__} is not made of splines; curves can be drawn of a SplineNNP.")
    n_radial, in_ev = model.config.radial.n_filters, not model.readout.sums_features
    lower = min(grid.lower for grid in (*model.config.grid("radial"), *model.config.grid("angular")))
    distance = torch.linspace(max(lower, 0.88 * closest, 0.3), model.cutoff, _N_POINTS, dtype=torch.float64)
    angle = torch.linspace(0.0, 180.0, 181, dtype=torch.float64)
    typical = environment(model, structures)
    with torch.no_grad():
        # [Z, D] dE/dG of an atom of each element.
        species = torch.arange(model.config.n_elements, device=model.device)
        gradient = model.readout(typical.features.to(model.device, model.dtype), species)[1].double().cpu()
        radial, shape = all_groups(model.rho, distance), all_groups(model.f, distance)
        angular = _angle_functions(model, angle)
        pair = _pair_energies(model, distance, (radial, shape, angular), gradient, typical.reach)
        three_body = _three_body(model, shape, angular, gradient, typical)
        worth = (gradient.abs() * model.readout.std.double().cpu()).mean(dim=0)
        if in_ev:
            # Groups belong to neighbour elements: a filter is worth what it is worth to the average centre.
            mean = gradient.mean(dim=0)
            peak = shape[..., distance >= closest].abs().amax(dim=(0, 2)).clamp_min(1e-30)
            radial = radial * mean[None, :n_radial, None]
            shape, angular = shape / peak[None, :, None], angular * (mean[n_radial:] * peak**2)[None, :, None]
        embedding = _embedding(model)
    groups, angle_groups = _group_names(model)
    partners = [model.elements[index] for index in typical.partner]
    return Curves(
        elements=model.elements,
        in_ev=in_ev,
        where=typical.where,
        distance=distance.numpy(),
        angle=angle.numpy(),
        radial=radial.numpy(),
        shape=shape.numpy(),
        angular=angular.numpy(),
        groups=groups,
        angle_groups=angle_groups,
        pair=pair,
        three_body=three_body.numpy(),
        triples=tuple(f"{usual}–{symbol}–{usual}" for symbol, usual in zip(model.elements, partners, strict=True)),
        nearest=typical.distance,
        worth=worth.numpy(),
        embedding=embedding,
    )


def _angle_functions(model: SplineNNP, angle: Tensor) -> Tensor:
    """[H, T, m] of g as the evaluator sees it: the Legendre evaluator keeps only degrees up to L."""
    cosine = torch.cos(torch.deg2rad(angle))
    if model.config.angular.evaluator == "spline":
        return all_groups(model.g, cosine)
    legendre = (model.g.coefficients() @ model.projection.T).detach().double().cpu().numpy()
    values = np.polynomial.legendre.legval(cosine.numpy(), np.moveaxis(legendre, -1, 0))
    return torch.from_numpy(values)


def _group_names(model: SplineNNP) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the groups of radial filters and of angles."""
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
    """[H, T] mean of functions [H, T, m] of the angle over the sphere."""
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
