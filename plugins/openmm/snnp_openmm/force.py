"""Forces and systems for OpenMM from snnp potentials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnp.errors import InputError, MissingDependencyError
from snnp.models.potential import Potential
from snnp_openmm.evaluator import Evaluator
from snnp_openmm.geometry import CURE, openmm
from snnp_openmm.source import ModelSource
from snnp_openmm.torch_engine import check_torch_engine, torch_force

__all__ = ["atomic_numbers", "check_indices", "check_python_force", "create_force", "create_system", "python_force"]


def check_python_force() -> None:
    """Raise `MissingDependencyError` unless OpenMM has `PythonForce` with subsets of particles (8.6)."""
    version = openmm().__version__
    if tuple(int(part) for part in version.split(".")[:2]) < (8, 6):
        raise MissingDependencyError(f"OpenMM {version} is too old, PythonForce needs 8.6 or newer; {CURE}.")


def create_force(
    model: str | Path | Potential,
    topology: Any,
    atoms: Iterable[int] | None = None,
    *,
    periodic: bool | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    engine: str = "python",
) -> Any:
    """Create an OpenMM force that computes a potential for a topology or for some of its atoms.

    The force is an `openmm.PythonForce` (or `openmmtorch.TorchForce`); it works on every platform and can be
    serialised. Its XML holds a Python pickle (of the model's name or folder, or, for a potential in memory, of its text
    and bytes): **loading XML from someone you do not trust can run their code**, as with any PythonForce.

    Arguments:
        model: name of a bundled model, folder, or potential (copied).
        topology: `openmm.app.Topology`; gives the elements and, unless `periodic` is set, the periodicity.
        atoms: indices of the atoms to which the potential applies, None for all. It sees no others.
        periodic: whether to use the box; None: if the topology has one. A subset of a periodic system must be periodic.
        dtype: "float32" or "float64", None for the model's own.
        device: where to evaluate the model; None for the CPU, or where a given potential lies.
        engine: "python" (PythonForce) or "torch" (TorchForce of openmm-torch, only where it is known to work).

    Raises `InputError` for bad indices, atoms without an element or an unknown engine, `UnknownElementError`,
    `ModelFileError`, and `MissingDependencyError` where OpenMM, or openmm-torch in a working combination, is missing.
    """
    if engine not in ("python", "torch"):
        raise InputError(f"engine must be 'python' or 'torch', got {engine!r}.")
    (check_python_force if engine == "python" else check_torch_engine)()
    indices = None if atoms is None else check_indices(atoms, topology.getNumAtoms())
    numbers, source = atomic_numbers(topology, indices), ModelSource(model, dtype, device)
    use_box = topology.getPeriodicBoxVectors() is not None if periodic is None else bool(periodic)
    if engine == "torch":
        return torch_force(source.model, numbers, use_box, indices)
    return python_force(Evaluator(source, numbers, (use_box, use_box, use_box)), indices)


def create_system(
    model: str | Path | Potential,
    topology: Any,
    *,
    periodic: bool | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    engine: str = "python",
) -> Any:
    """An `openmm.System` with masses and box of the topology, whose only force is `create_force`'s; so are keywords."""
    force = create_force(model, topology, periodic=periodic, dtype=dtype, device=device, engine=engine)
    system = openmm().System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    if topology.getPeriodicBoxVectors() is not None:
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    system.addForce(force)
    return system


def python_force(evaluator: Evaluator, indices: Sequence[int] | None = None) -> Any:
    """An `openmm.PythonForce` that calls an evaluator for all particles, or for those at `indices`."""
    force = openmm().PythonForce(evaluator)
    force.setName("snnp")
    # Not set, GPU platforms would hand over a subset's positions off by lattice vectors.
    force.setUsesPeriodicBoundaryConditions(evaluator.is_periodic)
    if indices is not None:
        force.setParticles(list(indices))
    return force


def atomic_numbers(topology: Any, indices: Sequence[int] | None) -> np.ndarray:
    """[N] atomic numbers of a topology's atoms at `indices` (None: all); refuses virtual sites and extra particles."""
    atoms = list(topology.atoms())
    members = atoms if indices is None else [atoms[index] for index in indices]
    for atom in members:
        if atom.element is None:
            raise InputError(
                f"atom {atom.index} ({atom.name} of residue {atom.residue.name}) has no element: the potential cannot "
                "act on virtual sites; list the real atoms in atoms=..."
            )
    return np.array([atom.element.atomic_number for atom in members], dtype=np.int64)


def check_indices(atoms: Iterable[int], n_atoms: int) -> list[int]:
    indices = [int(index) for index in atoms]
    if not indices:
        # OpenMM reads an empty list as all particles.
        raise InputError("atoms is empty: name at least one atom, or leave atoms=None for all.")
    if outside := [index for index in indices if not 0 <= index < n_atoms]:
        raise InputError(f"atoms holds {outside[0]}, but the topology's atoms are numbered 0 to {n_atoms - 1}.")
    if len(set(indices)) < len(indices):
        repeated = Counter(indices).most_common(1)[0][0]
        raise InputError(f"atoms names {repeated} more than once; each atom may appear once.")
    return indices
