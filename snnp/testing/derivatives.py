"""Checks of derivatives: forces and stress against finite differences, and continuity as neighbours come and go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from snnp.models.potential import Potential, sum_forces, sum_stress
from snnp.neighbours import neighbour_list
from snnp.structure import Structure
from snnp.testing.compare import in_double, predict, require, require_close
from snnp.testing.structures import example_structures

__all__ = ["check_analytic_gradients", "check_forces", "check_smoothness", "check_stress"]

Structures = Sequence[Structure] | None

_STEP = 2e-5
"""Å, or strain. The error of a central difference, about step² E''' / 6, stays near 1e-8 of a typical force."""


def _energies(model: Potential, structures: list[Structure]) -> Tensor:
    """[n] energies of structures, computed as one batch."""
    return model.compute(Structure.concatenate(structures), forces=False).energy


def _varied(structure: Structure, positions: Tensor, cell: Tensor) -> Structure:
    return Structure(structure.numbers, positions, cell, structure.pbc, structure.structure_of_atom)


def check_forces(model: Potential, structures: Structures = None) -> None:
    """Forces are minus the derivative of the energy (central differences for every coordinate)."""
    model = in_double(model)
    for given in structures or example_structures(model):
        structure = given.to(dtype=torch.float64)
        forces = model.compute(structure).forces
        require(forces is not None, "forces", "forces were asked for, but are None.")
        moved = []
        for k in range(3 * structure.n_atoms):
            step = torch.zeros(3 * structure.n_atoms, dtype=torch.float64)
            step[k] = _STEP
            for sign in (1.0, -1.0):
                positions = structure.positions + sign * step.reshape(-1, 3)
                moved.append(_varied(structure, positions, structure.cell))
        energies = _energies(model, moved).reshape(structure.n_atoms, 3, 2, structure.n_structures).sum(dim=-1)
        wanted = -(energies[..., 0] - energies[..., 1]) / (2.0 * _STEP)
        assert forces is not None
        require_close("forces", "forces (eV/Å) against finite differences", forces, wanted, 1e-5)


def check_stress(model: Potential, structures: Structures = None) -> None:
    """Stress is the derivative of the energy with strain, per volume; zero where there is no volume."""
    model = in_double(model)
    for given in structures or example_structures(model):
        structure = given.to(dtype=torch.float64)
        stress = model.compute(structure, forces=False, stress=True).stress
        require(stress is not None, "stress", "stress was asked for, but is None.")
        strained, n = [], structure.n_structures
        for a in range(3):
            for b in range(3):
                strain = torch.zeros(3, 3, dtype=torch.float64)
                strain[a, b] += 0.5 * _STEP
                strain[b, a] += 0.5 * _STEP
                for sign in (1.0, -1.0):
                    deform = torch.eye(3, dtype=torch.float64) + sign * strain
                    strained.append(_varied(structure, structure.positions @ deform, structure.cell @ deform))
        energies = _energies(model, strained).reshape(3, 3, 2, n)
        wanted = ((energies[:, :, 0] - energies[:, :, 1]) / (2.0 * _STEP)).permute(2, 0, 1)
        periodic = structure.pbc.all(dim=1)
        volume = torch.where(periodic, structure.volume(), torch.ones(n, dtype=torch.float64))
        wanted = wanted / volume[:, None, None] * periodic[:, None, None]
        assert stress is not None
        require_close("stress", "stress (eV/Å³) against finite differences", stress, wanted, 1e-5)


def check_analytic_gradients(model: Potential, structures: Structures = None) -> None:
    """Forces and stress written by hand equal those of automatic differentiation to rounding."""
    model = in_double(model)
    for given in structures or example_structures(model):
        structure = given.to(dtype=torch.float64)
        neighbours = neighbour_list(structure, model.cutoff)
        with torch.no_grad():
            energies, pairs = model._energies_and_pair_gradients(structure, neighbours)
            wanted_energies, wanted = Potential._energies_and_pair_gradients(model, structure, neighbours)
        require_close("analytic gradients", "energies per atom (eV)", energies, wanted_energies, 1e-10)
        forces, reference = (sum_forces(each, structure.n_atoms) for each in (pairs, wanted))
        require_close("analytic gradients", "forces (eV/Å) against autograd's", forces, reference, 1e-10)
        stress, reference = (sum_stress(each, structure) for each in (pairs, wanted))
        require_close("analytic gradients", "stress (eV/Å³) against autograd's", stress, reference, 1e-10)


def _trimers(model: Potential, pair: tuple[int, int], distances: Tensor) -> Structure:
    """A batch of three atoms each: a fixed pair, and one atom that moves out along a line."""
    n, fixed = len(distances), 0.45 * model.cutoff
    direction = torch.tensor([-0.17, 0.97, 0.17], dtype=torch.float64)
    positions = torch.zeros(n, 3, 3, dtype=torch.float64)
    positions[:, 1, 0] = fixed
    positions[:, 2] = distances[:, None] * direction / direction.norm()
    return Structure(
        numbers=torch.tensor([pair[0], pair[0], pair[1]]).repeat(n),
        positions=positions.reshape(-1, 3),
        cell=torch.zeros(n, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(n, 3, dtype=torch.bool),
        structure_of_atom=torch.arange(n).repeat_interleave(3),
    )


def _energies_and_forces(model: Potential, pair: tuple[int, int], distances: Tensor) -> tuple[Tensor, Tensor]:
    """[n] energies and [n, 9] forces of `_trimers`."""
    result = predict(model, _trimers(model, pair, distances))
    assert result.forces is not None
    return result.energy, result.forces.reshape(len(distances), 9).double()


def _largest_jump(model: Potential, pair: tuple[int, int]) -> tuple[float, float, float]:
    """Where (Å) energy (eV) and forces (eV/Å) together jump most, by how much, and the largest force on the way.

    The intervals that change most are divided again and again: what is continuous then changes ever less.
    """
    edges = torch.linspace(0.35 * model.cutoff, 1.05 * model.cutoff, 201, dtype=torch.float64)
    energies, forces = _energies_and_forces(model, pair, edges)
    largest = float(forces.abs().max())
    starts, width = edges[:-1], float(edges[1] - edges[0])
    jumps = _changes(energies, forces)
    while width > 1e-8:
        steepest = starts[jumps.topk(4).indices]
        width /= 16
        parts = steepest[:, None] + width * torch.arange(17, dtype=torch.float64)
        energies, forces = _energies_and_forces(model, pair, parts.flatten())
        jumps = _changes(energies.reshape(-1, 17), forces.reshape(-1, 17, 9)).flatten()
        starts = parts[:, :-1].flatten()
    worst = int(jumps.argmax())
    return float(starts[worst]), float(jumps[worst]), largest


def _changes(energies: Tensor, forces: Tensor) -> Tensor:
    """[..., n - 1] changes between consecutive points of energies [..., n] plus forces [..., n, 9]."""
    return energies.diff(dim=-1).abs() + forces.diff(dim=-2).abs().amax(dim=-1)


def check_smoothness(model: Potential, structures: Structures = None) -> None:
    """Energy and forces are continuous as a neighbour moves from 0.35 cutoffs out through the cutoff.

    `structures` only say which pairs of elements to try; by default all pairs.
    """
    model = in_double(model)
    known = [int(number) for number in (model.species_of_number >= 0).nonzero()[:, 0]]
    if structures:
        present = {int(number) for structure in structures for number in structure.numbers}
        known = [number for number in known if number in present]
    at_cutoff = torch.tensor([1.0 - 1e-8, 1.0 + 1e-8], dtype=torch.float64) * model.cutoff
    for pair in itertools.combinations_with_replacement(known, 2):
        where, jump, largest = _largest_jump(model, pair)
        allowed = 1e-5 * max(1.0, largest)
        require(jump < allowed, "smoothness", f"energy or forces jump by {jump:.3g} (eV, eV/Å) at {where:.6f} Å.")
        jump = float(_changes(*_energies_and_forces(model, pair, at_cutoff)))
        require(
            jump < allowed,
            "smoothness",
            f"energy or forces jump by {jump:.3g} (eV, eV/Å) at the cutoff, {model.cutoff} Å.",
        )
