"""Checks of symmetries: what must not change the energy, and how forces and stress turn with the structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snnp.models.potential import Potential, Prediction
from snnp.structure import Structure
from snnp.testing.compare import in_double, predict, require_close, require_same
from snnp.testing.structures import example_structures

__all__ = [
    "check_conservation",
    "check_extensivity",
    "check_periodicity",
    "check_permutation",
    "check_rotation",
    "check_translation",
]

Structures = Sequence[Structure] | None


def check_permutation(model: Potential, structures: Structures = None) -> None:
    """The order of the atoms changes nothing but the order of the results."""
    model = in_double(model)
    generator = torch.Generator().manual_seed(1)
    for structure in structures or example_structures(model):
        order = torch.randperm(structure.n_atoms, generator=generator)
        mixed = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
        before, after = predict(model, structure), predict(model, mixed)
        assert before.forces is not None
        wanted = Prediction(before.energy, before.energies[order], before.forces[order], before.stress)
        require_same("permutation", after, wanted)


def _rotations() -> list[Tensor]:
    """A rotation and a rotation with a mirror: energies know no handedness."""
    q, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    q = q * torch.linalg.det(q).sign()
    return [q, -q]


def check_rotation(model: Potential, structures: Structures = None) -> None:
    """Rotating or mirroring a structure keeps its energy and turns forces and stress."""
    model = in_double(model)
    for structure in structures or example_structures(model):
        before = predict(model, structure)
        assert before.forces is not None
        assert before.stress is not None
        for q in _rotations():
            turned = replace(
                structure, positions=structure.positions.double() @ q.T, cell=structure.cell.double() @ q.T
            )
            wanted = Prediction(before.energy, before.energies, before.forces @ q.T, q @ before.stress @ q.T)
            require_same("rotation", predict(model, turned), wanted)


def check_translation(model: Potential, structures: Structures = None) -> None:
    """Moving a whole structure changes nothing."""
    model = in_double(model)
    for structure in structures or example_structures(model):
        offset = torch.tensor([3.7, -41.3, 12.9], dtype=torch.float64)
        moved = replace(structure, positions=structure.positions.double() + offset)
        require_same("translation", predict(model, moved), predict(model, structure))


def check_conservation(model: Potential, structures: Structures = None) -> None:
    """The energy is the sum over atoms, forces sum to zero, open structures feel no torque, stress is symmetric."""
    model = in_double(model)
    for structure in structures or example_structures(model):
        result = predict(model, structure)
        assert result.forces is not None
        assert result.stress is not None
        total = torch.zeros_like(result.energy).index_add(0, structure.structure_of_atom, result.energies)
        require_close("conservation", "energies (eV) against the sum over atoms", result.energy, total, 1e-9)
        scale = max(1.0, float(result.forces.abs().max()) if structure.n_atoms else 0.0)
        net = result.forces.sum(dim=0) / scale
        require_close("conservation", "the relative sum of forces", net, torch.zeros_like(net), 1e-9)
        transposed = result.stress.transpose(1, 2)
        require_close("conservation", "stress (eV/Å³) and its transpose", result.stress, transposed, 1e-9)
        if not bool(structure.pbc.any()):
            arm = structure.positions.double() - structure.positions.double().mean(dim=0)
            torque = torch.linalg.cross(arm, result.forces.double()).sum(dim=0) / scale
            require_close("conservation", "the relative torque (Å)", torque, torch.zeros_like(torque), 1e-8)


def _heights(structure: Structure) -> list[float]:
    """Extent (Å) of a single structure's cell, normal to the other periodic vectors; infinite where it is open."""
    periodic = structure.pbc[0]
    inverse = torch.linalg.pinv(structure.cell[0].double() * periodic[:, None])
    return [1.0 / float(inverse[:, k].norm()) if periodic[k] else math.inf for k in range(3)]


def _repeated(structure: Structure, counts: Sequence[int]) -> Structure:
    """A supercell of a single structure; the copies follow one another."""
    axes = torch.meshgrid(*(torch.arange(n) for n in counts), indexing="ij")
    shifts = torch.stack([axis.flatten() for axis in axes], dim=1).to(structure.cell)
    positions = structure.positions[None] + (shifts @ structure.cell[0])[:, None]
    n_atoms = structure.n_atoms * len(shifts)
    return Structure(
        numbers=structure.numbers.repeat(len(shifts)),
        positions=positions.reshape(-1, 3),
        cell=structure.cell * torch.tensor(counts, dtype=structure.cell.dtype)[None, :, None],
        pbc=structure.pbc,
        structure_of_atom=torch.zeros(n_atoms, dtype=torch.int64),
    )


def _singles(model: Potential, structures: Structures) -> list[Structure]:
    """The periodic structures among those given, in float64."""
    chosen = [s.to(dtype=torch.float64) for s in structures or example_structures(model)]
    return [s for s in chosen if s.n_structures == 1 and bool(s.pbc.any())]


def check_extensivity(model: Potential, structures: Structures = None) -> None:
    """A supercell, large enough that no atom sees its own image, has the energies, forces and stress of its parts."""
    model = in_double(model)
    for structure in _singles(model, structures):
        counts = [max(2, math.ceil(2.0 * model.cutoff / h)) if math.isfinite(h) else 1 for h in _heights(structure)]
        small = predict(model, structure)
        large = predict(model, _repeated(structure, counts))
        copies = math.prod(counts)
        assert small.forces is not None
        wanted = Prediction(
            small.energy * copies, small.energies.repeat(copies), small.forces.repeat(copies, 1), small.stress
        )
        require_same("extensivity", large, wanted)


def check_periodicity(model: Potential, structures: Structures = None) -> None:
    """Neither the choice of the cell's vectors, nor that of each atom's image, changes anything."""
    model = in_double(model)
    generator = torch.Generator().manual_seed(3)
    for structure in _singles(model, structures):
        wanted = predict(model, structure)
        periodic = structure.pbc[0].double()
        change = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
        among = periodic[:, None] * periodic[None, :]
        change = torch.where(among.bool(), change, torch.eye(3, dtype=torch.float64))
        skewed = replace(structure, cell=change @ structure.cell)
        require_same("periodicity (other lattice vectors)", predict(model, skewed), wanted)
        shift = torch.randint(-3, 4, (structure.n_atoms, 3), generator=generator).double() * periodic
        scattered = replace(structure, positions=structure.positions + shift @ structure.cell[0])
        require_same("periodicity (other images)", predict(model, scattered), wanted)
