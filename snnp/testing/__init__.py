"""Checks of what every potential promises: symmetries, derivatives, smoothness, batches, precision, storage, export.

Each check takes any `Potential`, and optionally structures of its elements, and raises `ContractError` with what was
wrong and by how much. `check_potential` runs them all. A new model family, in this project or elsewhere, calls it once:

    from snnp.testing import check_potential
    check_potential(model)
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from snnp.errors import InputError, UnknownElementError, near_matches
from snnp.models.export import scripted_module
from snnp.models.gradients import sum_forces, sum_stress
from snnp.models.potential import Potential
from snnp.models.store import load_model, save_model
from snnp.neighbours import neighbour_list
from snnp.structure import Structure
from snnp.testing.compare import (
    CHECKS,
    ContractError,
    Results,
    check,
    enter,
    example_structures,
    predict,
    present,
    require,
    require_close,
    require_same,
)

__all__ = ["CHECKS", "ContractError", "check_analytic_gradients", "check_batch", "check_conservation", "check_empty"]
__all__ += ["check_export", "check_extensivity", "check_forces", "check_isolated_atoms", "check_longer_list"]
__all__ += ["check_periodicity", "check_permutation", "check_potential", "check_precision", "check_rotation"]
__all__ += ["check_save_load", "check_smoothness", "check_stress", "check_translation", "check_unknown_element"]
__all__ += ["example_structures"]

_STEP = 2e-5  # Å, or strain; the error of central differences, about step² E''' / 6, is near 1e-8 of a typical force


def check_potential(
    model: Potential, structures: Sequence[Structure] | None = None, *, skip: Collection[str] = ()
) -> None:
    """Run every check of the contract.

    Arguments:
        model: any potential, in any float type, on the CPU.
        structures: of its elements; by default `example_structures(model)`.
        skip: names of checks (keys of `CHECKS`) that the model does not claim to pass.

    Raises `ContractError` from the first check that fails; `InputError` for an unknown name in `skip`.

    Example:
        >>> from snnp.models import SplineNNP, special_cases
        >>> check_potential(SplineNNP(special_cases.eam(("Cu",))))
    """
    for name in skip:
        if name not in CHECKS:
            raise InputError(f"there is no check named {name!r}.{near_matches(name, CHECKS)}")
    for name, run in CHECKS.items():
        if name not in skip:
            run(model, structures)


# Symmetries: what must not change the energy, and how forces and stress turn with the structure.


@check
def check_permutation(model: Potential, structures: list[Structure]) -> None:
    """The order of the atoms changes nothing but the order of the results."""
    generator = torch.Generator().manual_seed(1)
    for structure in structures:
        order = torch.randperm(structure.n_atoms, generator=generator)
        mixed = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
        before, after = predict(model, structure), predict(model, mixed)
        wanted = Results(before.energy, before.energies[order], before.forces[order], before.stress)
        require_same("permutation", after, wanted)


@check
def check_rotation(model: Potential, structures: list[Structure]) -> None:
    """Rotating or mirroring a structure keeps its energy and turns forces and stress."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    for structure in structures:
        before = predict(model, structure)
        for q in (rotation, -rotation):  # one of them a mirror as well: energies know no handedness
            turned = replace(structure, positions=structure.positions @ q.T, cell=structure.cell @ q.T)
            wanted = Results(before.energy, before.energies, before.forces @ q.T, q @ before.stress @ q.T)
            require_same("rotation", predict(model, turned), wanted)


@check
def check_translation(model: Potential, structures: list[Structure]) -> None:
    """Moving a whole structure changes nothing."""
    for structure in structures:
        offset = torch.tensor([3.7, -41.3, 12.9], dtype=torch.float64)
        moved = replace(structure, positions=structure.positions + offset)
        require_same("translation", predict(model, moved), predict(model, structure))


@check
def check_conservation(model: Potential, structures: list[Structure]) -> None:
    """The energy is the sum over atoms, forces sum to zero, open structures feel no torque, stress is symmetric."""
    for structure in structures:
        result = predict(model, structure)
        total = torch.zeros_like(result.energy).index_add(0, structure.structure_of_atom, result.energies)
        require_close("conservation", "energies (eV) against the sum over atoms", result.energy, total, 1e-9)
        scale = max(1.0, float(result.forces.abs().max()) if structure.n_atoms else 0.0)
        net = result.forces.sum(dim=0) / scale
        require_close("conservation", "the relative sum of forces", net, torch.zeros_like(net), 1e-9)
        transposed = result.stress.transpose(1, 2)
        require_close("conservation", "stress (eV/Å³) and its transpose", result.stress, transposed, 1e-9)
        if not bool(structure.pbc.any()):
            arm = structure.positions - structure.positions.mean(dim=0)
            torque = torch.linalg.cross(arm, result.forces).sum(dim=0) / scale
            require_close("conservation", "the relative torque (Å)", torque, torch.zeros_like(torque), 1e-8)


def _singles(structures: list[Structure]) -> list[Structure]:
    """The periodic ones, as far as they are no batches."""
    return [structure for structure in structures if structure.n_structures == 1 and bool(structure.pbc.any())]


@check
def check_extensivity(model: Potential, structures: list[Structure]) -> None:
    """A supercell, large enough that no atom sees its own image, has the energies, forces and stress of its parts."""
    for structure in _singles(structures):
        periodic = structure.pbc[0]
        # 1/Å, over the extent of the cell normal to the other periodic vectors.
        heights = torch.linalg.pinv(structure.cell[0] * periodic[:, None]).norm(dim=0).tolist()
        counts = [max(2, math.ceil(2.0 * model.cutoff * h)) if periodic[k] else 1 for k, h in enumerate(heights)]
        copies, part = math.prod(counts), predict(model, structure)
        wanted = Results(part.energy * copies, part.energies.repeat(copies), part.forces.repeat(copies, 1), part.stress)
        # ASE puts the copies one behind another.
        whole = Structure.from_ase(structure.to_ase()[0] * counts)
        require_same("extensivity", predict(model, whole), wanted)


@check
def check_periodicity(model: Potential, structures: list[Structure]) -> None:
    """Neither the choice of the cell's vectors, nor that of each atom's image, changes anything."""
    generator = torch.Generator().manual_seed(3)
    for structure in _singles(structures):
        wanted = predict(model, structure)
        periodic = structure.pbc[0].double()
        change = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
        change = torch.where(periodic.outer(periodic).bool(), change, torch.eye(3, dtype=torch.float64))
        skewed = replace(structure, cell=change @ structure.cell)
        require_same("periodicity (other lattice vectors)", predict(model, skewed), wanted)
        shift = torch.randint(-3, 4, (structure.n_atoms, 3), generator=generator).double() * periodic
        scattered = replace(structure, positions=structure.positions + shift @ structure.cell[0])
        require_same("periodicity (other images)", predict(model, scattered), wanted)


# Derivatives: against finite differences, and continuity as neighbours come and go.


def _energies(model: Potential, structures: list[Structure]) -> Tensor:
    """[n] energies of structures, computed as one batch."""
    return model.compute(Structure.concatenate(structures), forces=False).energy


@check
def check_forces(model: Potential, structures: list[Structure]) -> None:
    """Forces are minus the derivative of the energy (central differences for every coordinate)."""
    for structure in structures:
        forces = present(model.compute(structure).forces, "forces", "forces")
        n = structure.n_atoms
        steps = _STEP * torch.eye(3 * n, dtype=torch.float64).reshape(-1, n, 3)
        moved = [replace(structure, positions=structure.positions + s * step) for step in steps for s in (1.0, -1.0)]
        energies = _energies(model, moved).reshape(n, 3, 2, structure.n_structures).sum(dim=-1)
        wanted = (energies[..., 1] - energies[..., 0]) / (2.0 * _STEP)
        require_close("forces", "forces (eV/Å) against finite differences", forces, wanted, 1e-5)


@check
def check_stress(model: Potential, structures: list[Structure]) -> None:
    """Stress is the derivative of the energy with strain, per volume; zero where there is no volume."""
    for structure in structures:
        stress = present(model.compute(structure, forces=False, stress=True).stress, "stress", "stress")
        strains = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
        deforms = [torch.eye(3) + 0.5 * step * (s + s.T) for s in strains for step in (_STEP, -_STEP)]
        moved = [replace(structure, positions=structure.positions @ d, cell=structure.cell @ d) for d in deforms]
        energies = _energies(model, moved).reshape(3, 3, 2, structure.n_structures)
        wanted = ((energies[:, :, 0] - energies[:, :, 1]) / (2.0 * _STEP)).permute(2, 0, 1)
        periodic = structure.pbc.all(dim=1)
        wanted = torch.where(periodic[:, None, None], wanted / structure.volume()[:, None, None], 0.0)
        require_close("stress", "stress (eV/Å³) against finite differences", stress, wanted, 1e-5)


@check
def check_analytic_gradients(model: Potential, structures: list[Structure]) -> None:
    """Forces and stress written by hand equal those of automatic differentiation to rounding."""
    for structure in structures:
        neighbours = neighbour_list(structure, model.cutoff)
        with torch.no_grad():
            energies, pairs = model._energies_and_pair_gradients(structure, neighbours)
            wanted_energies, wanted = Potential._energies_and_pair_gradients(model, structure, neighbours)
        require_close("analytic gradients", "energies per atom (eV)", energies, wanted_energies, 1e-10)
        forces, reference = (sum_forces(each, structure.n_atoms) for each in (pairs, wanted))
        require_close("analytic gradients", "forces (eV/Å) against autograd's", forces, reference, 1e-10)
        stress, reference = (sum_stress(each, structure) for each in (pairs, wanted))
        require_close("analytic gradients", "stress (eV/Å³) against autograd's", stress, reference, 1e-10)


def _energies_and_forces(model: Potential, pair: tuple[int, int], distances: Tensor) -> tuple[Tensor, Tensor]:
    """[n] energies and [n, 9] forces of three atoms: a fixed pair, and one that lies at the distances along a line."""
    n, direction = len(distances), torch.tensor([-0.17, 0.97, 0.17], dtype=torch.float64)
    positions = torch.zeros(n, 3, 3, dtype=torch.float64)
    positions[:, 1, 0] = 0.45 * model.cutoff
    positions[:, 2] = distances[:, None] * direction / direction.norm()
    trimers = Structure(
        numbers=torch.tensor([pair[0], pair[0], pair[1]]).repeat(n),
        positions=positions.reshape(-1, 3),
        cell=torch.zeros(n, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(n, 3, dtype=torch.bool),
        structure_of_atom=torch.arange(n).repeat_interleave(3),
    )
    result = predict(model, trimers)
    return result.energy, result.forces.reshape(n, 9)


def _largest_jump(model: Potential, pair: tuple[int, int]) -> tuple[float, float, float]:
    """Where (Å) energy (eV) and forces (eV/Å) together jump most, by how much, and the largest force on the way.

    The intervals that change most are divided again and again: what is continuous then changes ever less.
    """
    edges = torch.linspace(0.35 * model.cutoff, 1.05 * model.cutoff, 201, dtype=torch.float64)
    energies, forces = _energies_and_forces(model, pair, edges)
    largest, jumps = float(forces.abs().max()), _changes(energies, forces)
    starts, width = edges[:-1], float(edges[1] - edges[0])
    while width > 1e-8:
        width /= 16
        parts = starts[jumps.topk(4).indices, None] + width * torch.arange(17, dtype=torch.float64)
        energies, forces = _energies_and_forces(model, pair, parts.flatten())
        jumps = _changes(energies.reshape(-1, 17), forces.reshape(-1, 17, 9)).flatten()
        starts = parts[:, :-1].flatten()
    worst = int(jumps.argmax())
    return float(starts[worst]), float(jumps[worst]), largest


def _changes(energies: Tensor, forces: Tensor) -> Tensor:
    """[..., n - 1] changes between consecutive points of energies [..., n] plus forces [..., n, 9]."""
    return energies.diff(dim=-1).abs() + forces.diff(dim=-2).abs().amax(dim=-1)


@enter
def check_smoothness(model: Potential, structures: Sequence[Structure] | None = None) -> None:
    """Energy and forces are continuous as a neighbour moves from 0.35 cutoffs out through the cutoff.

    `structures` only say which pairs of elements to try; by default all pairs.
    """
    model = copy.deepcopy(model).double()
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
        at_the_cutoff = f"energy or forces jump by {jump:.3g} (eV, eV/Å) at the cutoff, {model.cutoff} Å."
        require(jump < allowed, "smoothness", at_the_cutoff)


# Behaviour: batches, isolated and unknown atoms, precision, neighbour lists, storage, export.


@check
def check_batch(model: Potential, structures: list[Structure]) -> None:
    """A batch gives what its structures give one by one."""
    wanted = Results(*map(torch.cat, zip(*(predict(model, structure) for structure in structures), strict=True)))
    batch = predict(model, Structure.concatenate(structures))
    require_same("batch", batch, wanted)
    require_close("batch", "energies (eV)", batch.energy, wanted.energy, 1e-9)


@check
def check_isolated_atoms(model: Potential, structures: list[Structure]) -> None:
    """An atom alone, in a large box, or beyond the cutoff of another has one energy and feels nothing.

    The energy is E0 where the model says that this is an isolated atom's. `structures` is not used.
    """
    box = 3.0 * model.cutoff
    for symbol in model.elements:
        alone = predict(model, Structure.from_ase(Atoms(symbol)))
        energy = float(alone.energy[0])
        if symbol in model.isolated_atoms:
            e0 = torch.tensor([model.reference_energies[symbol]], dtype=torch.float64)
            require_close(f"isolated atoms ({symbol})", "energy (eV) against E0", alone.energy, e0, 1e-12)
        places = {
            "one atom": alone,
            "one atom in a box": predict(model, Structure.from_ase(Atoms(symbol, cell=[box] * 3, pbc=True))),
            "two far apart": predict(model, Structure.from_ase(Atoms([symbol] * 2, [[0, 0, 0], [0, 0, box]]))),
        }
        for where, result in places.items():
            name, count = f"isolated atoms ({symbol}, {where})", len(result.energies)
            wanted = torch.tensor([count * energy], dtype=torch.float64)
            require_close(name, "energies (eV)", result.energy, wanted, 1e-12)
            require_close(name, "forces (eV/Å)", result.forces, torch.zeros(count, 3), 0.0)
            require_close(name, "stress (eV/Å³)", result.stress, torch.zeros(1, 3, 3), 0.0)


@check
def check_empty(model: Potential, structures: list[Structure]) -> None:
    """A batch without structures gives empty results, one without atoms no energy; `structures` is not used."""
    nothing = predict(model, Structure.from_ase([]))
    mixed = predict(model, Structure.from_ase([Atoms(), Atoms(model.elements[0]), Atoms()]))
    for name, results, n, b in (("empty batch", nothing, 0, 0), ("empty structures", mixed, 1, 3)):
        shapes = ((b,), (n,), (n, 3), (b, 3, 3))
        for what, got, shape in zip(Results._fields, results, shapes, strict=True):
            require(got.shape == shape, name, f"{what} has shape {tuple(got.shape)}, expected {shape}.")
    zeros = torch.zeros(2, dtype=torch.float64)
    require_close("empty structures", "energies (eV)", mixed.energy[[0, 2]], zeros, 0.0)


@check
def check_unknown_element(model: Potential, structures: list[Structure]) -> None:
    """An element that the model does not know is an error that names it. `structures` is not used."""
    symbol = next(symbol for symbol in chemical_symbols[1:] if symbol not in model.elements)
    stranger = Atoms([model.elements[0], symbol], [[0.0] * 3, [0.0, 0.0, 0.5 * model.cutoff]])
    try:
        model.compute(Structure.from_ase(stranger))
    except UnknownElementError as error:
        require(symbol in str(error), "unknown element", f"the error does not name {symbol}: {error}")
        return
    require(False, "unknown element", f"a structure with {symbol} was computed, the model knows {model.elements}.")


@check
def check_precision(model: Potential, structures: list[Structure]) -> None:
    """In float32 energies per atom agree with float64 to 1e-5 and forces to 1e-4 of the largest."""
    single = copy.deepcopy(model).float()
    # Without E0, which may be so large that it would hide everything else.
    e0 = torch.zeros(len(chemical_symbols), dtype=torch.float64)
    for symbol, energy in model.reference_energies.items():
        e0[atomic_numbers[symbol]] = energy
    for structure in structures:
        wanted, got, own = predict(model, structure), predict(single, structure), e0[structure.numbers]
        require(got.energy.dtype == torch.float64, "precision", f"energy has type {got.energy.dtype}, not float64.")
        require_close("precision", "energies per atom (eV) in float32", got.energies - own, wanted.energies - own, 1e-5)
        require_close("precision", "forces in float32", got.forces, wanted.forces, 1e-4)
        require_close("precision", "stress in float32", got.stress, wanted.stress, 1e-4)


@check
def check_longer_list(model: Potential, structures: list[Structure]) -> None:
    """A neighbour list that reaches farther than the cutoff (a skin) changes nothing."""
    for structure in structures:
        longer = neighbour_list(structure, 1.3 * model.cutoff)
        require_same("longer list", predict(model, structure, longer), predict(model, structure))


@enter
def check_save_load(model: Potential, structures: Sequence[Structure] | None = None) -> None:
    """A model that is saved and loaded is the same to the last bit, in its own float type."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(save_model(model, Path(folder) / "model"))
    for name in ("elements", "cutoff", "dtype", "metadata", "reference_energies", "isolated_atoms"):
        got, wanted = getattr(loaded, name), getattr(model, name)
        require(got == wanted, "save and load", f"{name} is {got!r} after loading, was {wanted!r}.")
    loaded = loaded.to(model.device)
    for structure in structures or example_structures(model):
        require_same("save and load", predict(loaded, structure), predict(model, structure), 0.0)


@check
def check_export(model: Potential, structures: list[Structure]) -> None:
    """The TorchScript export gives the model's energies and forces to rounding."""
    model = model.to("cpu")
    exported = scripted_module(model, length_unit="angstrom", energy_unit="eV", forces=True)
    # Without the optimiser, which would compile anew for each of the first calls.
    with torch.jit.optimized_execution(False):
        for structure in (each.to(device="cpu") for each in structures):
            wanted = predict(model, structure)
            for b, (cell, pbc) in enumerate(zip(structure.cell, structure.pbc, strict=True)):
                mine = structure.structure_of_atom == b
                energy, forces = exported(structure.numbers[mine], structure.positions[mine], cell, pbc)
                require_close("export", "energies (eV)", energy, wanted.energy[b], 1e-10)
                require_close("export", "forces (eV/Å)", forces, wanted.forces[mine], 1e-10)
