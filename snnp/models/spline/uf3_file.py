r"""LAMMPS `uf3` files, written from linear models of the s-NNP's family.

    E = sum_i [ sum_j V2(r_ij) + sum_{j<k} V3(r_ij, r_ik, r_jk) ]

A file holds V2 as a cubic B-spline for each pair of elements and V3 as a product of three for each centre and pair of
neighbours. With w the weights of the features over their deviations, a linear model has

    V2(r) = sum_a w_a rho_a(r) + phi(r) / 2 + V_ZBL(r) / 2,    V3(r, s, t) = sum_b w_b f_b(r) f_b(s) g_b(c),

c = (r² + s² - t²) / 2 r s. V2 is exact but for the repulsion. That and V3 are interpolated on as many knots as a line
of such a file holds, those of the filters among them: about 0.07 Å apart. What depends on the order of two elements is
written as the mean of both orders, which leaves the sum over all pairs as it is.

References: S. R. Xie, M. Rupp, R. G. Hennig, npj Comput. Mater. 9, 162 (2023); https://docs.lammps.org/pair_uf3.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.polynomial import legendre
from scipy.interpolate import BSpline, make_interp_spline

from snnp.errors import InputError
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.models.repulsion import Repulsion
from snnp.models.spline.lammps_file import write_lammps
from snnp.models.spline.meam_file import write_meam_spline
from snnp.models.spline.model import SplineNNP
from snnp.splines import SplineSet

__all__ = ["Uf3File", "write_for_lammps", "write_uf3"]

_NEAREST = 0.5  # Å: below, curves go on as straight lines, and angles are those of this distance
_REPULSION = 25.0  # knots per Å where there is a repulsion
_KNOTS = 70  # along one axis of three-body terms: what one line holds
_LINE = 1023  # characters, that LAMMPS reads


class Uf3File(NamedTuple):
    """What was written: `n_bodies` for `pair_style uf3 N`, and the largest error of V2 and V3 that was seen, in eV."""

    path: Path
    n_bodies: int
    error: float


class _Axis:
    """Where cubic pieces meet along one distance: `points` [n + 1] Å, as one line of a file holds them."""

    def __init__(self, points: np.ndarray, *, ends_at_rest: bool) -> None:
        self.ends_at_rest = ends_at_rest
        self.text = _row(np.concatenate([points[[0, 0, 0]], points, points[[-1, -1, -1]]]))
        self.points = np.array([float(word) for word in self.text.split()])[3:-3]

    def fit(self, values: np.ndarray) -> np.ndarray:
        """Coefficients along the first axis, of which there are two more than points."""
        ends = ([(2, np.zeros(values.shape[1:]))], [(1 if self.ends_at_rest else 2, np.zeros(values.shape[1:]))])
        return make_interp_spline(self.points, values, k=3, bc_type=ends).c

    def basis(self, x: np.ndarray) -> np.ndarray:
        """[N, n + 3] values of the functions that the coefficients multiply."""
        knots = np.concatenate([self.points[[0, 0, 0]], self.points, self.points[[-1, -1, -1]]])
        return BSpline.design_matrix(x, knots, 3).toarray()


def write_uf3(model: Potential, path: str | Path) -> Uf3File:
    """Write a linear model as a file for LAMMPS's `pair_style uf3`.

    LAMMPS gives the model's forces and stress; its energies are relative to isolated atoms, because a file has no place
    for E0. Atom types are named on the line `pair_coeff * * FILE El1 El2 ...`, in any order.

    Raises:
        InputError: if the model is not linear; names what differs.
        OSError: if the file cannot be written.
    """
    if not isinstance(model, SplineNNP):
        raise InputError(f"only a linear SplineNNP can be written as uf3, got {type(model).__name__}.")
    _check_is_linear(model)
    exact = _Curves(model)
    z, reach = model.config.n_elements, model.config.reach
    blocks, errors = [], [0.0]
    for i in range(z):
        for j in range(i, z):
            block, error = _two_body_block(exact, i, j, reach)
            blocks.append(block)
            errors.append(error)
    if model.has_three_body:
        form = model.config.angular
        side = _Axis(_steps(form.lower, form.cutoff, form.intervals, _KNOTS), ends_at_rest=True)
        axes = side, _Axis(np.linspace(0.0, 2.0 * side.points[-1], _KNOTS), ends_at_rest=False)
        for i in range(z):
            for j in range(z):
                for k in range(j, z):
                    block, error = _three_body_block(exact, (i, j, k), axes)
                    blocks.append(block)
                    errors.append(error)
    write_atomically(Path(path), "".join(blocks).encode())
    return Uf3File(Path(path), 3 if model.has_three_body else 2, max(errors))


def write_for_lammps(
    model: Potential, path: str | Path, file_format: Literal["lammps", "uf3", "meam-spline"]
) -> dict[str, Any]:
    """Write a file for `pair_style snnp` or a stock one, and return what to tell about it; errors as of the writers."""
    if file_format == "lammps":
        write_lammps(model, path)
        return {"pair_style": "snnp"}
    if file_format == "meam-spline":
        write_meam_spline(model, path)
        return {"pair_style": "meam/spline"}
    written = write_uf3(model, path)
    return {"pair_style": f"uf3 {written.n_bodies}", "largest_error_ev": written.error}


def _check_is_linear(model: SplineNNP) -> None:
    config = model.config
    wanted = {
        "network: null": config.network is None,
        "skip: true": config.skip,
        "embedding: null": config.embedding is None,
        "ends: smooth": config.ends == "smooth",
        "no grids of their own for groups": not any(config.grids.model_dump().values()),
    }
    if missing := [what for what, holds in wanted.items() if not holds]:
        raise InputError(
            f"a uf3 file holds exactly a linear model, and this one is none: it would need {'; '.join(missing)}. "
            "Any s-NNP runs in LAMMPS by pair_style snnp."
        )


class _Curves:
    """The model's functions in float64, of distances (numpy arrays) and elements (by number)."""

    def __init__(self, model: SplineNNP) -> None:
        self.model = model
        self.elements = model.elements
        assert model.readout.linear is not None
        weights = model.readout.linear.detach().double() / model.readout.std.double()
        self.radial_weights = weights[:, : model.config.radial.n_filters].numpy()
        self.angular_weights = weights[:, model.config.radial.n_filters :].numpy()
        if model.config.angular.evaluator == "legendre":
            coefficients = model.g.coefficients().detach().double() @ model.projection.double().T
            self.angle_coefficients = coefficients.numpy()

    def two_body(self, i: int, j: int, r: np.ndarray) -> np.ndarray:
        """V2, the mean of both orders."""
        model, total = self.model, np.zeros_like(r)
        for a, b in ((i, j), (j, i)):
            if model.config.radial.n_filters:
                total += 0.5 * _values(model.rho, r, int(model.radial_group[a, b])) @ self.radial_weights[a]
        if model.phi is not None:
            total += 0.5 * _values(model.phi, r, int(model.unordered[i, j]))[..., 0]
        if (repulsion := model.config.repulsion) is not None:
            charges = (torch.tensor(float(atomic_numbers[self.elements[k]])).double() for k in (i, j))
            near = Repulsion(repulsion.inner, repulsion.outer)
            total += near(torch.from_numpy(r), *charges)[0].numpy()
        return total

    def three_body(self, i: int, j: int, k: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """V3 of the distances to the two neighbours and between them; smooth where no triangle has such sides."""
        model, weights = self.model, self.angular_weights[i]
        one, other = (int(model.radial_group[i, n]) for n in (j, k))

        def value(r: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
            rr, ss = np.maximum(r, _NEAREST), np.maximum(s, _NEAREST)
            cosine = (rr**2 + ss**2 - t**2) / (2.0 * rr * ss)
            beyond = np.abs(cosine) - 1.1
            saturated = np.sign(cosine) * (1.1 + 0.4 * np.tanh(np.maximum(beyond, 0.0) / 0.4))
            g = self._angle(np.where(beyond > 0.0, saturated, cosine), j, k)
            f = _values(model.f, r, one) * _values(model.f, s, other)
            return (f * g) @ weights

        return value

    def _angle(self, cosine: np.ndarray, j: int, k: int) -> np.ndarray:
        """g [..., F]; beyond -1 and 1 the polynomial of the last interval, whose joint is smooth."""
        model = self.model
        group = int(model.unordered[j, k]) if model.g.n_groups > 1 else 0
        if model.config.angular.evaluator == "legendre":
            return np.moveaxis(legendre.legval(cosine, self.angle_coefficients[group].T), 0, -1)
        grid, c = model.g.grids[group], model.g.coefficients()[group].detach().double().numpy()
        x = (cosine - grid.lower) / grid.spacing
        m = np.clip(np.floor(x), 0, grid.n_intervals - 1).astype(int)
        u = (x - m)[..., None]
        pieces = [c[:, m + step].transpose(*range(1, m.ndim + 1), 0) for step in range(4)]
        weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
        return sum(weight * piece for weight, piece in zip(weights, pieces, strict=True)) / 6.0


def _values(splines: SplineSet, r: np.ndarray, group: int) -> np.ndarray:
    """[..., F] in float64, on the exact grid whatever the model's own precision."""
    own = SplineSet([splines.grids[min(group, len(splines.grids) - 1)]], splines.n_filters)
    with torch.no_grad():
        own.free.copy_(splines.coefficients()[min(group, len(splines.grids) - 1)][None])
        return own(torch.from_numpy(np.ascontiguousarray(r, dtype=np.float64)))[0].numpy()


def _steps(lower: float, upper: float, n_intervals: int, most: int) -> np.ndarray:
    """At most so many knots from zero to `upper`, those of a filter among them."""
    step = (upper - lower) / n_intervals
    step /= max(1, math.floor((most - 1) * step / upper))
    below = upper - step * np.arange(math.ceil(upper / step - 1e-6))
    return np.concatenate([[0.0], below[::-1]])


def _two_body_block(exact: _Curves, i: int, j: int, reach: float) -> tuple[str, float]:
    """The text for a pair of elements, and the largest error seen."""
    config = exact.model.config
    points = _steps(config.radial.lower, config.radial.cutoff, config.radial.intervals, 1)
    if reach > points[-1]:  # LAMMPS looks for triples within the reach of pairs
        points = np.append(points, reach)
    if config.repulsion is not None:
        close = np.linspace(_NEAREST, config.repulsion.outer, 1 + round(_REPULSION * config.repulsion.outer))
        points = np.union1d(points[points > close[-1] + 1e-6], np.append(0.0, close))
    axis = _Axis(points, ends_at_rest=True)
    edge = np.array([_NEAREST, _NEAREST + 1e-4])
    at, beside = exact.two_body(i, j, edge)
    r = axis.points
    values = exact.two_body(i, j, np.maximum(r, _NEAREST))
    values = np.where(r < _NEAREST, at + (beside - at) / 1e-4 * (r - _NEAREST), values)
    coefficients = axis.fit(values)
    tried = np.linspace(1.0, axis.points[-1], 2000)
    error = np.abs(axis.basis(tried) @ coefficients - exact.two_body(i, j, tried)).max()
    head = f"2B {exact.elements[i]} {exact.elements[j]} 0 3 nk"
    sizes = f"{axis.points[-1]:.17g} {len(coefficients) + 4}"
    return _block([head, sizes, axis.text, str(len(coefficients)), _row(coefficients)]), float(error)


def _three_body_block(exact: _Curves, species: tuple[int, int, int], axes: tuple[_Axis, _Axis]) -> tuple[str, float]:
    """The text for a centre and two neighbours, and the largest error seen."""
    side, between = axes
    value = exact.three_body(*species)
    # One distance after the other: all at once, with every filter, would take gigabytes.
    r, t = side.points[:, None], between.points[None, :]
    c = side.fit(np.stack([value(np.full((1, 1), x), r, t) for x in side.points]))
    c = np.moveaxis(side.fit(np.moveaxis(c, 1, 0)), 0, 1)
    c = np.moveaxis(between.fit(np.moveaxis(c, 2, 0)), 0, 2)
    head = "3B " + " ".join(exact.elements[k] for k in species) + " 0 3 nk"
    counts = " ".join(str(size + 4) for size in reversed(c.shape))
    reach = side.points[-1]
    sizes = f"{between.points[-1]:.17g} {reach:.17g} {reach:.17g} {counts}"
    rows = [_row(line) for plane in c for line in plane]
    text = _block([head, sizes, between.text, side.text, side.text, " ".join(map(str, c.shape)), *rows])
    return text, _largest_error(value, c, side, between)


def _largest_error(value: Callable[..., np.ndarray], c: np.ndarray, side: _Axis, between: _Axis) -> float:
    """Over triples of atoms that are no nearer than 1 Å to each other."""
    rng = np.random.default_rng(0)
    r, s = rng.uniform(1.0, side.points[-1], (2, 2000))
    cosine = np.concatenate([np.full(200, -1.0), rng.uniform(-1.0, 1.0, 1800)])
    t = np.sqrt(r**2 + s**2 - 2.0 * r * s * cosine)
    keep = t > 1.0
    r, s, t = r[keep], s[keep], t[keep]
    found = np.einsum("na,nb,nc,abc->n", side.basis(r), side.basis(s), between.basis(t), c, optimize=True)
    return float(np.abs(found - value(r, s, t)).max(initial=0.0))


def _row(numbers: np.ndarray) -> str:
    """Numbers in as many decimals as fit on one line: LAMMPS cuts off what is longer."""
    for decimals in range(12, 5, -1):
        text = " ".join(f"{round(number, decimals):.15g}" for number in numbers.tolist())
        if len(text) < _LINE:
            return text
    raise InputError(f"LAMMPS reads no lines of {len(numbers)} numbers in uf3 files; take filters of fewer intervals.")


def _block(lines: list[str]) -> str:
    return "\n".join(["#UF3 POT UNITS: metal DATE: none AUTHOR: snnp CITATION:", *lines, "#", ""])
