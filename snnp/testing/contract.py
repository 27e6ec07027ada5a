"""The whole contract in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from snnp.errors import InputError, near_matches
from snnp.models.potential import Potential
from snnp.structure import Structure
from snnp.testing import behaviour, derivatives, symmetries

__all__ = ["CHECKS", "check_potential"]

CHECKS: dict[str, Callable[[Potential, Sequence[Structure] | None], None]] = {
    "permutation": symmetries.check_permutation,
    "rotation": symmetries.check_rotation,
    "translation": symmetries.check_translation,
    "conservation": symmetries.check_conservation,
    "extensivity": symmetries.check_extensivity,
    "periodicity": symmetries.check_periodicity,
    "forces": derivatives.check_forces,
    "stress": derivatives.check_stress,
    "analytic_gradients": derivatives.check_analytic_gradients,
    "smoothness": derivatives.check_smoothness,
    "batch": behaviour.check_batch,
    "isolated_atoms": behaviour.check_isolated_atoms,
    "empty": behaviour.check_empty,
    "unknown_element": behaviour.check_unknown_element,
    "precision": behaviour.check_precision,
    "longer_list": behaviour.check_longer_list,
    "save_load": behaviour.check_save_load,
    "export": behaviour.check_export,
}
"""Every check by name."""


def check_potential(
    model: Potential, structures: Sequence[Structure] | None = None, *, skip: Collection[str] = ()
) -> None:
    """Run every check of the contract.

    Arguments:
        model: any potential, in any float type, on the CPU.
        structures: of its elements; by default `example_structures(model)`.
        skip: names of checks (keys of `CHECKS`) that the model does not claim to pass.

    Raises:
        ContractError: from the first check that fails.
        InputError: for an unknown name in `skip`.

    Example:
        >>> from snnp.models import SplineNNP, special_cases
        >>> check_potential(SplineNNP(special_cases.eam(("Cu",))))
    """
    for name in skip:
        if name not in CHECKS:
            raise InputError(f"there is no check named {name!r}.{near_matches(name, CHECKS)}")
    for name, check in CHECKS.items():
        if name not in skip:
            check(model, structures)
