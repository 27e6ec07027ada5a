"""Checks of what every potential promises: symmetries, derivatives, smoothness, batches, precision, storage, export.

Each check takes any `Potential`, and optionally structures of its elements, and raises `ContractError` with what was
wrong and by how much. `check_potential` runs them all. A new model family, in this project or elsewhere, calls it once:

    from snnp.testing import check_potential
    check_potential(model)
"""

from snnp.testing.behaviour import (
    check_batch,
    check_empty,
    check_export,
    check_isolated_atoms,
    check_longer_list,
    check_precision,
    check_save_load,
    check_unknown_element,
)
from snnp.testing.compare import ContractError
from snnp.testing.contract import CHECKS, check_potential
from snnp.testing.derivatives import check_analytic_gradients, check_forces, check_smoothness, check_stress
from snnp.testing.structures import example_structures
from snnp.testing.symmetries import (
    check_conservation,
    check_extensivity,
    check_periodicity,
    check_permutation,
    check_rotation,
    check_translation,
)

__all__ = [
    "CHECKS",
    "ContractError",
    "check_analytic_gradients",
    "check_batch",
    "check_conservation",
    "check_empty",
    "check_export",
    "check_extensivity",
    "check_forces",
    "check_isolated_atoms",
    "check_longer_list",
    "check_periodicity",
    "check_permutation",
    "check_potential",
    "check_precision",
    "check_rotation",
    "check_save_load",
    "check_smoothness",
    "check_stress",
    "check_translation",
    "check_unknown_element",
    "example_structures",
]
