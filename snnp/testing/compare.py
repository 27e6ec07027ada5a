"""How two results are compared, and what is raised when they differ."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from snnp.models.potential import Potential, Prediction
from snnp.structure import Structure

__all__ = ["ContractError", "in_double", "predict", "require", "require_close", "require_same"]


class ContractError(AssertionError):
    """A potential breaks a promise; the message says which one, and by how much."""


def require(condition: bool, check: str, message: str) -> None:
    """Raise `ContractError` unless the condition holds."""
    if not condition:
        raise ContractError(f"{check}: {message}")


def require_close(check: str, what: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise `ContractError` where two tensors differ by more than `tolerance * max(1, |wanted|)`.

    Arguments:
        check: name of the check; what: the quantity and its unit, such as "forces (eV/Å)".
    """
    require(got.shape == wanted.shape, check, f"{what} have shape {tuple(got.shape)}, expected {tuple(wanted.shape)}.")
    if got.numel() == 0:
        return
    got, wanted = got.double(), wanted.double()
    bad = (~torch.isfinite(got)).nonzero()
    require(len(bad) == 0, check, f"{what} at {bad[0].tolist() if len(bad) else []} are not finite.")
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    difference = (got - wanted).abs()
    worst = float(difference.max())
    if worst > allowed:
        where = (difference == difference.max()).nonzero()[0].tolist()
        raise ContractError(
            f"{check}: {what} differ by {worst:.3g} (allowed {allowed:.3g}) at {where}: "
            f"got {float(got[tuple(where)]):.8g}, expected {float(wanted[tuple(where)]):.8g}."
        )


def in_double(model: Potential) -> Potential:
    """A copy of the model that computes in float64, so that rounding hides nothing."""
    return copy.deepcopy(model).double()


def predict(model: Potential, structure: Structure) -> Prediction:
    """Energy, forces and stress."""
    return model.compute(structure, forces=True, stress=True)


def require_same(check: str, got: Prediction, wanted: Prediction, tolerance: float = 1e-9) -> None:
    """Raise `ContractError` unless energies per atom, forces and stress agree."""
    require_close(check, "energies per atom (eV)", got.energies, wanted.energies, tolerance)
    for what in ("forces", "stress"):
        ours, theirs = getattr(got, what), getattr(wanted, what)
        require(ours is not None, check, f"{what} were asked for, but are None.")
        require_close(check, f"{what} (eV/Å)" if what == "forces" else "stress (eV/Å³)", ours, theirs, tolerance)
