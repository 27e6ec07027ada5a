"""Checks of behaviour: batches, isolated and unknown atoms, precision, neighbour lists, storage, export."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from snnp.errors import UnknownElementError
from snnp.models.export import scripted_module
from snnp.models.potential import Potential, Prediction
from snnp.models.store import load_model, save_model
from snnp.neighbours import neighbour_list
from snnp.structure import Structure
from snnp.testing.compare import ContractError, in_double, predict, require, require_close, require_same
from snnp.testing.structures import example_structures

__all__ = [
    "check_batch",
    "check_empty",
    "check_export",
    "check_isolated_atoms",
    "check_longer_list",
    "check_precision",
    "check_save_load",
    "check_unknown_element",
]

Structures = Sequence[Structure] | None


def check_batch(model: Potential, structures: Structures = None) -> None:
    """A batch gives what its structures give one by one."""
    model = in_double(model)
    chosen = list(structures or example_structures(model))
    single = [predict(model, structure) for structure in chosen]
    wanted = Prediction(
        energy=torch.cat([each.energy for each in single]),
        energies=torch.cat([each.energies for each in single]),
        forces=torch.cat([each.forces for each in single if each.forces is not None]),
        stress=torch.cat([each.stress for each in single if each.stress is not None]),
    )
    batch = predict(model, Structure.concatenate(chosen))
    require_same("batch", batch, wanted)
    require_close("batch", "energies (eV)", batch.energy, wanted.energy, 1e-9)


def check_isolated_atoms(model: Potential, structures: Structures = None) -> None:
    """An atom alone, in a large box, or beyond the cutoff of another has one energy and feels nothing.

    The energy is E0 where the model says that this is an isolated atom's.

    `structures` is not used.
    """
    model = in_double(model)
    box = 3.0 * model.cutoff
    for symbol in model.elements:
        alone = predict(model, Structure.from_ase(Atoms(symbol)))
        energy = float(alone.energy[0])
        if symbol in model.isolated_atoms:
            e0 = torch.tensor([model.reference_energies[symbol]], dtype=torch.float64)
            require_close(f"isolated atoms ({symbol})", "energy (eV) against E0", alone.energy, e0, 1e-12)
        boxed = predict(model, Structure.from_ase(Atoms(symbol, cell=[box] * 3, pbc=True)))
        apart = predict(model, Structure.from_ase(Atoms([symbol] * 2, [[0, 0, 0], [0, 0, box]])))
        for name, result, count in (
            ("one atom", alone, 1),
            ("one atom in a box", boxed, 1),
            ("two far apart", apart, 2),
        ):
            check = f"isolated atoms ({symbol}, {name})"
            wanted = torch.tensor([count * energy], dtype=torch.float64)
            require_close(check, "energies (eV)", result.energy, wanted, 1e-12)
            assert result.forces is not None
            assert result.stress is not None
            require_close(check, "forces (eV/Å)", result.forces, torch.zeros(count, 3), 0.0)
            require_close(check, "stress (eV/Å³)", result.stress, torch.zeros(1, 3, 3), 0.0)


def check_empty(model: Potential, structures: Structures = None) -> None:
    """A batch without structures gives empty results; a structure without atoms has no energy.

    `structures` is not used.
    """
    model = in_double(model)
    nothing = predict(model, Structure.from_ase([]))
    _require_shapes("empty batch", nothing, 0, 0)
    mixed = predict(model, Structure.from_ase([Atoms(), Atoms(model.elements[0]), Atoms()]))
    _require_shapes("empty structures", mixed, 1, 3)
    zeros = torch.zeros(2, dtype=torch.float64)
    require_close("empty structures", "energies (eV)", mixed.energy[[0, 2]], zeros, 0.0)


def _require_shapes(check: str, result: Prediction, n_atoms: int, n_structures: int) -> None:
    wanted = {
        "energy": (n_structures,),
        "energies": (n_atoms,),
        "forces": (n_atoms, 3),
        "stress": (n_structures, 3, 3),
    }
    for name, shape in wanted.items():
        value = getattr(result, name)
        got = None if value is None else tuple(value.shape)
        require(got == shape, check, f"{name} has shape {got}, expected {shape}.")


def check_unknown_element(model: Potential, structures: Structures = None) -> None:
    """An element that the model does not know is an error that names it. `structures` is not used."""
    symbol = next(symbol for symbol in chemical_symbols[1:] if symbol not in model.elements)
    stranger = Atoms([model.elements[0], symbol], [[0.0] * 3, [0.0, 0.0, 0.5 * model.cutoff]])
    try:
        model.compute(Structure.from_ase(stranger))
    except UnknownElementError as error:
        require(symbol in str(error), "unknown element", f"the error does not name {symbol}: {error}")
    else:
        raise ContractError(
            f"unknown element: a structure with {symbol} was computed, but the model knows {model.elements}."
        )


def check_precision(model: Potential, structures: Structures = None) -> None:
    """In float32 energies per atom agree with float64 to 1e-5 and forces to 1e-4 of the largest."""
    double, single = in_double(model), copy.deepcopy(model).float()
    for structure in structures or example_structures(model):
        wanted, got = predict(double, structure), predict(single, structure)
        require(got.energy.dtype == torch.float64, "precision", f"energy has type {got.energy.dtype}, not float64.")
        # Without E0, which may be so large that it would hide everything else.
        e0 = torch.zeros(len(chemical_symbols), dtype=torch.float64)
        for symbol, energy in model.reference_energies.items():
            e0[atomic_numbers[symbol]] = energy
        e0 = e0[structure.numbers]
        require_close("precision", "energies per atom (eV) in float32", got.energies - e0, wanted.energies - e0, 1e-5)
        for what, ours, theirs in (("forces", got.forces, wanted.forces), ("stress", got.stress, wanted.stress)):
            assert ours is not None
            assert theirs is not None
            require_close("precision", f"{what} in float32", ours, theirs, 1e-4)


def check_longer_list(model: Potential, structures: Structures = None) -> None:
    """A neighbour list that reaches farther than the cutoff (a skin) changes nothing."""
    model = in_double(model)
    for structure in structures or example_structures(model):
        wanted = predict(model, structure)
        longer = neighbour_list(structure, 1.3 * model.cutoff)
        require_same("longer list", model.compute(structure, longer, forces=True, stress=True), wanted)


def check_save_load(model: Potential, structures: Structures = None) -> None:
    """A model that is saved and loaded is the same to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(save_model(model, Path(folder) / "model"))
    for name in ("elements", "cutoff", "dtype", "metadata", "reference_energies", "isolated_atoms"):
        got, wanted = getattr(loaded, name), getattr(model, name)
        require(got == wanted, "save and load", f"{name} is {got!r} after loading, was {wanted!r}.")
    loaded = loaded.to(model.device)
    for structure in structures or example_structures(model):
        require_same("save and load", predict(loaded, structure), predict(model, structure), 0.0)


def check_export(model: Potential, structures: Structures = None) -> None:
    """The TorchScript export gives the model's energies and forces to rounding."""
    model = in_double(model).to("cpu")
    exported = scripted_module(model, length_unit="angstrom", energy_unit="eV", forces=True)
    # Without the optimiser, which would compile anew for each of the first calls.
    with torch.jit.optimized_execution(False):
        for given in structures or example_structures(model):
            structure = given.to(dtype=torch.float64, device="cpu")
            wanted = predict(model, structure)
            for b in range(structure.n_structures):
                mine = structure.structure_of_atom == b
                energy, forces = exported(
                    structure.numbers[mine], structure.positions[mine], structure.cell[b], structure.pbc[b]
                )
                require_close("export", "energies (eV)", energy, wanted.energy[b], 1e-10)
                assert wanted.forces is not None
                require_close("export", "forces (eV/Å)", forces, wanted.forces[mine], 1e-10)
