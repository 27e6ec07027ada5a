"""Structures: conversion, batches, and what counts as computable."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from snnp.errors import InputError
from snnp.structure import Structure

WATER, CRYSTAL = molecule("H2O"), bulk("NaCl", "rocksalt", 5.64)
SLAB = fcc111("Cu", (1, 2, 2), vacuum=4.0)


def test_ase_round_trip() -> None:
    frames = [WATER, CRYSTAL, SLAB]
    back = Structure.from_ase(frames).to_ase()
    for before, after in zip(frames, back, strict=True):
        assert np.array_equal(before.numbers, after.numbers)
        assert np.array_equal(before.positions, after.positions)
        assert np.array_equal(before.cell.array, after.cell.array)
        assert np.array_equal(before.pbc, after.pbc)


def test_batch_of_one_and_of_a_list() -> None:
    one = Structure.from_ase(WATER)
    assert (one.n_structures, one.n_atoms) == (1, 3)
    assert one.positions.dtype == torch.float64
    batch = Structure.from_ase([WATER, Atoms(), CRYSTAL], dtype=torch.float32)
    assert batch.positions.dtype == batch.cell.dtype == torch.float32
    assert batch.atoms_per_structure.tolist() == [3, 0, 2]
    assert batch.structure_of_atom.tolist() == [0, 0, 0, 2, 2]
    assert batch.symbols == ("H", "O", "Na", "Cl")


def test_concatenate_equals_a_batch() -> None:
    whole = Structure.from_ase([WATER, CRYSTAL, Atoms(), SLAB])
    parts = [Structure.from_ase([WATER, CRYSTAL]), Structure.from_ase(Atoms()), Structure.from_ase(SLAB)]
    joined = Structure.concatenate(parts)
    for name in ("numbers", "positions", "cell", "pbc", "structure_of_atom"):
        assert torch.equal(getattr(whole, name), getattr(joined, name))


def test_empty_batch() -> None:
    for empty in (Structure.from_ase([]), Structure.concatenate([])):
        assert (empty.n_atoms, empty.n_structures) == (0, 0)
        assert empty.positions.shape == (0, 3)
        assert empty.cell.shape == (0, 3, 3)
        empty.check()
        assert empty.to_ase() == []


def test_volume() -> None:
    volumes = Structure.from_ase([CRYSTAL, WATER, SLAB]).volume()
    assert float(volumes[0]) == pytest.approx(5.64**3 / 4, rel=1e-14)
    assert float(volumes[1]) == 0.0


def test_change_of_type_keeps_the_rest() -> None:
    structure = Structure.from_ase(CRYSTAL)
    single = structure.to(dtype=torch.float32)
    assert single.positions.dtype == single.cell.dtype == torch.float32
    assert single.numbers.dtype == torch.int64
    assert single.pbc.dtype == torch.bool
    assert structure.positions.dtype == torch.float64


def test_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Structure.from_ase(WATER).positions = torch.zeros(3, 3)  # type: ignore[misc]


def test_shapes_must_agree() -> None:
    good = Structure.from_ase(WATER)
    with pytest.raises(InputError, match=r"positions has shape \(2, 3\), expected \(3, 3\) for 3 atoms"):
        Structure(good.numbers, good.positions[:2], good.cell, good.pbc, good.structure_of_atom)
    with pytest.raises(InputError, match=r"pbc has shape \(3,\), expected \(1, 3\)"):
        Structure(good.numbers, good.positions, good.cell, good.pbc[0], good.structure_of_atom)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value: float) -> None:
    broken = WATER.copy()
    broken.positions[1, 2] = value
    with pytest.raises(InputError, match=r"positions\[1, 2\] is NaN or infinite"):
        Structure.from_ase(broken).check()
    cell = CRYSTAL.copy()
    cell.cell.array[0, 1] = value
    with pytest.raises(InputError, match=r"cell\[0, 0, 1\] is NaN or infinite"):
        Structure.from_ase(cell).check()


FLAT = [
    ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], (True, True, True)),
    ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], (True, True, True)),
    ([[4, 0, 0], [8, 0, 0], [0, 0, 9]], (True, True, False)),
    ([[0, 0, 0], [0, 4, 0], [0, 0, 9]], (True, False, False)),
    ([[1e-200, 0, 0], [0, 4, 0], [0, 0, 9]], (True, True, True)),
]


@pytest.mark.parametrize("cell, pbc", FLAT)
def test_flat_cell(cell: list[list[float]], pbc: tuple[bool, bool, bool]) -> None:
    good = Structure.from_ase(CRYSTAL)
    flat = Structure.from_ase(Atoms("H", cell=cell, pbc=pbc))
    with pytest.raises(InputError, match=r"cell of structure 1 has no volume"):
        Structure.concatenate([good, flat]).check()


COMPUTABLE = [
    ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], (True, True, False)),
    ([[0, 0, 0], [0, 4, 0], [0, 4, 9]], (False, True, True)),
    ([[1, 0, 0], [1, 0, 0], [0, 0, 9]], (False, True, True)),
    ([[0, 0, 0], [0, 0, 4], [0, 0, 0]], (False, True, False)),
    ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], (False, False, False)),
    ([[30, 0, 0], [29.9, 0.5, 0], [0, 0, 200]], (True, True, True)),
    ([[0, 4, 0], [4, 0, 0], [0, 0, 4]], (True, True, True)),
]


@pytest.mark.parametrize("cell, pbc", COMPUTABLE)
def test_unusual_cell_is_accepted(cell: list[list[float]], pbc: tuple[bool, bool, bool]) -> None:
    """Open vectors mean nothing, and cells may be thin, skewed, or left-handed."""
    Structure.from_ase(Atoms("H", cell=cell, pbc=pbc)).check()


@pytest.mark.parametrize("owners", [[0, 1, 0], [0, 0, 2], [-1, 0, 1]])
def test_atoms_must_be_ordered_by_structure(owners: list[int]) -> None:
    two = Structure.from_ase([WATER[:2], WATER[2:]])
    mixed = Structure(two.numbers, two.positions, two.cell, two.pbc, torch.tensor(owners))
    with pytest.raises(InputError, match="structure_of_atom must not decrease"):
        mixed.check()
