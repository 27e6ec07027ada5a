"""What all checks share: example structures, how they are computed and compared, what is raised where they differ."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from snnp.models.potential import Potential
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["CHECKS", "ContractError", "check", "enter", "example_structures"]

_SHEAR = np.array([[1.0, 0.0, 0.0], [0.35, 1.0, 0.0], [-0.2, 0.4, 1.0]])


class ContractError(AssertionError):
    """A potential breaks a promise; the message says which one, and by how much."""


class Results(NamedTuple):
    """energy [B] eV, energies [N] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å³; see `Prediction`."""

    energy: Tensor
    energies: Tensor
    forces: Tensor
    stress: Tensor


Check = Callable[..., None]
"""Takes a potential, and structures of its elements in place of `example_structures`."""

CHECKS: dict[str, Check] = {}
"""Every check by name."""


def enter(function: Check) -> Check:
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


def check(function: Callable[[Potential, list[Structure]], None]) -> Check:
    """Enter a check whose body sees the model and its structures in float64, so that rounding hides nothing."""

    @functools.wraps(function)
    def run(model: Potential, structures: Sequence[Structure] | None = None) -> None:
        exact = [structure.to(dtype=torch.float64) for structure in structures or example_structures(model)]
        function(copy.deepcopy(model).double(), exact)

    return enter(run)


def present(value: Tensor | None, name: str, what: str) -> Tensor:
    """The value, which must not be None."""
    if value is None:
        raise ContractError(f"{name}: {what} was asked for, but is None.")
    return value


def predict(model: Potential, structure: Structure, neighbours: Neighbours | None = None) -> Results:
    found = model.compute(structure, neighbours, forces=True, stress=True)
    forces, stress = present(found.forces, "prediction", "forces"), present(found.stress, "prediction", "stress")
    return Results(found.energy, found.energies, forces, stress)


def require(condition: bool, name: str, message: str) -> None:
    """Raise `ContractError` unless the condition holds."""
    if not condition:
        raise ContractError(f"{name}: {message}")


def require_close(name: str, what: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise `ContractError` where two tensors differ by more than `tolerance * max(1, |wanted|)`.

    `name`: of the check; `what`: the quantity and its unit, such as "forces (eV/Å)".
    """
    require(got.shape == wanted.shape, name, f"{what} have shape {tuple(got.shape)}, expected {tuple(wanted.shape)}.")
    if got.numel() == 0:
        return
    got, wanted = got.double(), wanted.double()
    bad = (~torch.isfinite(got)).nonzero().tolist()
    require(not bad, name, f"{what} at {bad[0] if bad else []} are not finite.")
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    difference = (got - wanted).abs()
    worst = float(difference.max())
    if worst > allowed:
        where = (difference == difference.max()).nonzero()[0].tolist()
        raise ContractError(
            f"{name}: {what} differ by {worst:.3g} (allowed {allowed:.3g}) at {where}: "
            f"got {float(got[tuple(where)]):.8g}, expected {float(wanted[tuple(where)]):.8g}."
        )


def require_same(name: str, got: Results, wanted: Results, tolerance: float = 1e-9) -> None:
    """Raise `ContractError` unless energies per atom, forces and stress agree."""
    require_close(name, "energies per atom (eV)", got.energies, wanted.energies, tolerance)
    require_close(name, "forces (eV/Å)", got.forces, wanted.forces, tolerance)
    require_close(name, "stress (eV/Å³)", got.stress, wanted.stress, tolerance)


def _atoms(
    model: Potential, counts: tuple[int, int, int], pbc: tuple[bool, bool, bool], rng: np.random.Generator
) -> Atoms:
    """A noisy, sheared grid of the model's elements."""
    # Not a simple fraction: no image lies exactly at the cutoff, where rounding decides about a potential that jumps.
    spacing = 0.47 * model.cutoff
    points = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    positions = (points + rng.uniform(-0.12, 0.12, points.shape)) * spacing
    cell = np.diag(np.array(counts) * spacing)
    symbols = rng.permutation([model.elements[k % len(model.elements)] for k in range(len(positions))])
    # Vectors along open directions mean nothing: files have them as zero or as the size of a box.
    kept = np.array(pbc) | (rng.random(3) < 0.5)
    return Atoms(symbols, positions @ _SHEAR, cell=np.where(kept[:, None], cell @ _SHEAR, 0.0), pbc=pbc)


def example_structures(model: Potential, seed: int = 0) -> list[Structure]:
    """Structures of the model's elements, with atoms about half a cutoff apart, each a batch of one.

    A cluster, a crystal whose skewed cell is not larger than the cutoff, one with two atoms only, a slab, a wire, and
    a pair at a quarter of the cutoff (where a repulsion acts).
    """
    rng = np.random.default_rng(seed)
    frames = [
        _atoms(model, (2, 2, 2), (False, False, False), rng),
        _atoms(model, (2, 2, 1), (True, True, True), rng),
        _atoms(model, (1, 1, 2), (True, True, True), rng),
        _atoms(model, (1, 2, 2), (True, True, False), rng),
        _atoms(model, (2, 1, 2), (False, True, False), rng),
    ]
    direction = rng.normal(size=3)
    bond = 0.25 * model.cutoff * direction / np.linalg.norm(direction)
    frames.append(Atoms([model.elements[0], model.elements[-1]], [np.zeros(3), bond]))
    return [Structure.from_ase(frame) for frame in frames]
