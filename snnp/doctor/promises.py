"""The contract of `snnp.testing` as findings: what a broken promise means, and where to look."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii

from snnp.errors import SnnpError
from snnp.models.potential import Potential
from snnp.report import Finding, Severity
from snnp.structure import Structure
from snnp.testing import CHECKS, ContractError

__all__ = ["CONTRACT_CHECKS", "check_contract", "check_numbers", "ordinary_structures"]

_DERIVATIVES = ("forces", "stress")
_NAMES = {name: name.replace("_", " ") for name in CHECKS}
CONTRACT_CHECKS = ("numbers", *_NAMES.values())
"""Names of the checks in this module."""

_SPACING = 2.3  # mean covalent radii between neighbours: loose enough for models that were trained on anything
_RATTLE = 0.06  # of the spacing

# What a model's own code may raise; a patient that screams is examined all the same.
_MODEL_FAULTS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

# What it means, and how to mend it.
_ADVICE = {
    "permutation": (
        "Energy or forces depend on the order of the atoms, which is no physics.",
        "Sum over neighbours and atoms; look for results that are stored by position in the neighbour list.",
    ),
    "rotation": (
        "Energy changes when the structure is turned or mirrored: molecules would start to spin by themselves.",
        "Build features from distances and angles (or equivariant products), never from coordinates.",
    ),
    "translation": (
        "Energy changes when the structure is moved: momentum is not conserved.",
        "Use differences of positions only.",
    ),
    "conservation": (
        "Forces do not sum to zero, there is a net torque, or the stress is not symmetric; simulations drift and heat.",
        "Every pair must act with equal and opposite force; use `sum_forces` and `sum_stress` of the base class.",
    ),
    "extensivity": (
        "A supercell is not the sum of its parts: energies per atom depend on the size of the cell.",
        "Look for normalisation over all atoms (means, batch statistics) and for images that are left out.",
    ),
    "periodicity": (
        "The choice of cell or image changes the result; wrapping atoms during a simulation would change forces.",
        "Use vectors from the neighbour list with their shifts; never wrap or compare raw positions.",
    ),
    "forces": (
        "Forces are not the derivative of the energy: dynamics does not conserve energy, relaxation stops elsewhere.",
        "Compare the analytic gradient with automatic differentiation term by term.",
    ),
    "stress": (
        "Stress is not the derivative of the energy with strain: constant-pressure runs find the wrong volume.",
        "Stress is the sum of r dE/dr over pairs divided by the volume; check the sign and the images.",
    ),
    "analytic gradients": (
        "Hand-written gradients disagree with automatic differentiation.",
        "Compare both term by term; training and simulation would see different models.",
    ),
    "smoothness": (
        "Energy or forces jump as an atom moves, usually where it crosses the cutoff: energy is not conserved in "
        "molecular dynamics.",
        "Multiply radial functions by a switch whose value and slope vanish at the cutoff.",
    ),
    "batch": (
        "A structure gives another result in a batch than alone, so training and use differ.",
        "Look for padding that takes part in sums, and for normalisation over the batch.",
    ),
    "isolated atoms": (
        "An atom without neighbours does not have one fixed energy, or feels a force.",
        "E0 must be the whole energy of an atom alone; let all features vanish without neighbours.",
    ),
    "empty": ("An empty batch fails, which happens in parallel runs.", "Handle zero atoms and zero pairs."),
    "unknown element": (
        "Elements that the model was not trained on are computed as if they were others.",
        "Call `self.species(structure)`, which raises an error that names the element.",
    ),
    "precision": (
        "float32 differs from float64 by more than rounding: forces are noisy in fast simulations.",
        "Keep E0 and sums of energies in float64; look for differences of large numbers and steep functions.",
    ),
    "longer list": (
        "Pairs beyond the cutoff change the result: neighbour lists with a skin, as in dynamics, are not safe.",
        "Mask pairs beyond the cutoff, or let all functions be zero there.",
    ),
    "save load": (
        "The stored model is not the model: what is published differs from what was measured.",
        "Register every parameter and constant; put every option into the configuration.",
    ),
    "export": (
        "The exported TorchScript module differs from the model.",
        "Use the exporter of this version, and report the case: export is tested for every bundled model.",
    ),
}
# Checks that some models need not pass, and what it means that they are refused.
_REFUSED: dict[str, tuple[Severity, str, str]] = {
    "export": (
        "note",
        "Programs that read TorchScript files cannot run this model; ASE and OpenMM's Python forces can.",
        "Nothing, unless such a program is needed; then distil the model into an s-NNP.",
    ),
    "save load": (
        "warning",
        "The model cannot be kept as a folder, so it cannot be published or loaded by name.",
        "Add the class to `snnp.models.families`, with its configuration.",
    ),
}


def check_numbers(model: Potential) -> Iterator[Finding]:
    """Parameters and E0 must be finite."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    broken = [name for name, value in floats.items() if not bool(torch.isfinite(value).all())]
    broken += [f"E0 of {symbol}" for symbol, energy in model.reference_energies.items() if not np.isfinite(energy)]
    if broken:
        yield Finding(
            "numbers",
            "error",
            f"NaN or infinite numbers in {', '.join(broken[:5])}",
            "Every result of the model is NaN.",
            "Training has diverged or the file is damaged; go back to an earlier checkpoint, or fetch it again.",
        )


def ordinary_structures(model: Potential) -> dict[str, Structure]:
    """A rattled bulk crystal, a slab and a molecule of the model's elements, with bonds of usual length."""
    rng = np.random.default_rng(7)
    radii = [covalent_radii[atomic_numbers[symbol]] for symbol in model.elements]
    spacing = _SPACING * float(np.mean(radii))
    crystal = bulk("Cu", "fcc", a=np.sqrt(2.0) * spacing, cubic=True)
    slab = crystal.repeat((1, 1, 2))
    slab.center(vacuum=1.5 * model.cutoff, axis=2)
    slab.pbc = (True, True, False)
    tetrahedron = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3.0)
    molecule = Atoms("X5", tetrahedron * spacing)
    kinds = {"bulk": crystal, "slab": slab, "molecule": molecule}
    for atoms in kinds.values():
        symbols = [model.elements[k % len(model.elements)] for k in range(len(atoms))]
        atoms.symbols = list(rng.permutation(symbols))
        atoms.positions += rng.normal(0.0, _RATTLE * spacing, atoms.positions.shape)
    return {name: Structure.from_ase(each) for name, each in kinds.items()}


def check_contract(model: Potential) -> Iterator[Finding]:
    """Every check of `snnp.testing`; forces and stress of a bulk crystal, a slab and a molecule besides."""
    ordinary = ordinary_structures(model)
    for name, check in CHECKS.items():
        title, others = _NAMES[name], ordinary if name in _DERIVATIVES else {}
        for where in ("small test structures", *others):
            said, refused = "", ""
            try:
                check(model, [others[where]] if where in others else None)
            except ContractError as error:
                said = str(error).removeprefix(f"{title}: ").rstrip(".")
            except SnnpError as error:
                refused = str(error)
            except _MODEL_FAULTS as error:
                said = f"the model fails with {type(error).__name__}" + (f": {error}".rstrip(".") if str(error) else "")
            if refused and title in _REFUSED:
                severity, meaning, cure = _REFUSED[title]
                yield Finding(title, severity, refused, meaning, cure)
            elif refused or said:
                message = f"{said} ({where})" if said else f"the check could not run: {refused}"
                yield Finding(title, "error", message, *_ADVICE[title])
            else:
                continue
            break  # the other structures would say the same
