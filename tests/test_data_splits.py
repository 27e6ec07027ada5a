"""Splits and reference energies."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from snnp.data.frames import Frame
from snnp.data.reference import FROM_ISOLATED_ATOMS, FROM_LEAST_SQUARES, are_isolated_atoms, fit_reference_energies
from snnp.data.splits import Split, load_split, save_split, split_frames
from snnp.errors import DataError
from snnp.structure import Structure


def _frame(atoms: Atoms, energy: float | None, source: str, group: str | None = None) -> Frame:
    return Frame(Structure.from_ase(atoms), energy, None, None, group, source)


def _grouped(sizes: dict[str, int]) -> list[Frame]:
    cell = bulk("Cu", cubic=True)
    return [_frame(cell, -1.0, f"{group}.xyz#{k}", group) for group, size in sizes.items() for k in range(size)]


def _sources(split: Split) -> dict[str, set[str]]:
    return {part: {frame.source for frame in getattr(split, part)} for part in ("train", "valid", "test")}


def test_split_is_a_partition_in_proportion_to_groups() -> None:
    frames = _grouped({"md": 60, "elastic": 30, "surface": 10})
    split = split_frames(frames, valid=0.1, test=20, seed=3)
    parts = _sources(split)
    assert {part: len(sources) for part, sources in parts.items()} == {"train": 70, "valid": 10, "test": 20}
    assert parts["train"] | parts["valid"] | parts["test"] == {frame.source for frame in frames}
    assert [sum(frame.group == g for frame in split.test) for g in ("md", "elastic", "surface")] == [12, 6, 2]
    assert [sum(frame.group == g for frame in split.valid) for g in ("md", "elastic", "surface")] == [6, 3, 1]


def test_split_depends_on_seed_and_sources_only() -> None:
    frames = _grouped({"a": 40, "b": 7})
    shuffled = list(frames)
    random.Random(1).shuffle(shuffled)
    assert _sources(split_frames(frames, 0.2, 0.1, seed=5)) == _sources(split_frames(shuffled, 0.2, 0.1, seed=5))
    assert _sources(split_frames(frames, 0.2, 0.1, seed=5)) != _sources(split_frames(frames, 0.2, 0.1, seed=6))


def test_split_is_fixed_for_good() -> None:
    # The two smallest of `printf '0\na.xyz#K' | sha256sum`. A change would move test frames of old runs into training.
    assert [f.source for f in split_frames(_grouped({"a": 10}), 2, 2, seed=0).test] == ["a.xyz#3", "a.xyz#5"]


def test_small_fractions_take_one_frame_and_isolated_atoms_train() -> None:
    lone = [_frame(Atoms("Cu", [[0, 0, 0]]), 0.0, f"lone.xyz#{k}") for k in range(5)]
    split = split_frames([*lone, *_grouped({"a": 5})], valid=0.01, test=4, seed=0)
    assert len(split.valid) == 1
    assert {frame.source for frame in split.train} == {frame.source for frame in lone}


@pytest.mark.parametrize(("valid", "test"), [(1.5, 0), (-1, 0), (0.5, 0.5), (10, 0), (4, 6)])
def test_impossible_splits(valid: float, test: float) -> None:
    with pytest.raises(DataError, match=r"fraction|leave nothing to train on"):
        split_frames(_grouped({"a": 10}), valid, test)


def test_more_than_there_are_beside_isolated_atoms() -> None:
    lone = [_frame(Atoms("Cu", [[0, 0, 0]]), 0.0, f"lone.xyz#{k}") for k in range(5)]
    with pytest.raises(DataError, match="only 2 are left"):
        split_frames([*lone, *_grouped({"a": 2})], valid=3)


def test_repeated_sources_are_refused() -> None:
    frames = _grouped({"a": 3})
    with pytest.raises(DataError, match=r"two frames have the source 'a\.xyz#0'"):
        split_frames([*frames, frames[0]])


def test_split_file_round_trip(tmp_path: Path) -> None:
    frames = _grouped({"a": 12})
    split = split_frames(frames, 3, 2, seed=1)
    save_split(split, tmp_path / "split.json")
    assert _sources(load_split(tmp_path / "split.json", list(reversed(frames)))) == _sources(split)
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"], "no temporary file is left"
    assert set(json.loads((tmp_path / "split.json").read_text())) == {"format", "train", "valid", "test"}


def test_bad_split_files(tmp_path: Path) -> None:
    frames = _grouped({"a": 12})
    path = tmp_path / "split.json"
    with pytest.raises(DataError, match="cannot be read as a split file"):
        load_split(path, frames)
    path.write_text("[")
    with pytest.raises(DataError, match="cannot be read as a split file"):
        load_split(path, frames)
    path.write_text("{}")
    with pytest.raises(DataError, match="no format 'snnp-split'"):
        load_split(path, frames)
    save_split(split_frames(frames, 3, 2), path)
    with pytest.raises(DataError, match="names 7 frames that the data does not hold"):
        load_split(path, _grouped({"b": 12}))


def test_isolated_atoms_are_told_from_small_cells() -> None:
    alone, apart = Atoms("Cu", [[0, 0, 0]]), Atoms("Cu", [[0, 0, 0]], cell=[10, 11, 12], pbc=True)
    frames = [_frame(atoms, 0.0, "a") for atoms in (alone, apart, bulk("Cu"), molecule("H2"))]
    assert are_isolated_atoms(frames).tolist() == [True, True, False, False]


def _molecules(e0: dict[str, float]) -> list[Frame]:
    names = ("CH4", "C2H6", "H2O", "CH3CH2OH", "CO2")
    return [
        _frame(atoms, sum(e0[symbol] for symbol in atoms.symbols), f"m.xyz#{k}")
        for k, atoms in enumerate(map(molecule, names))
    ]


def test_least_squares_recover_additive_energies() -> None:
    e0 = {"H": -13.6, "C": -1030.0, "O": -2043.0}
    found = fit_reference_energies(_molecules(e0))
    assert found.energies == pytest.approx(e0)
    assert list(found.energies) == ["H", "C", "O"]
    assert set(found.provenance.values()) == {FROM_LEAST_SQUARES}


def test_isolated_atoms_come_first_and_fix_the_fit_of_the_others() -> None:
    frames = _molecules({"H": -13.6, "C": -1030.0, "O": -2043.0})
    atoms = [_frame(Atoms("H", [[0, 0, 0]]), energy, f"h.xyz#{k}") for k, energy in enumerate((-12.0, -12.5))]
    found = fit_reference_energies(frames, [*atoms, _frame(Atoms("Fe", [[0, 0, 0]]), -9.0, "fe.xyz#0")])
    assert found.energies["H"] == -12.5, "the lower of two is the ground state"
    assert set(found.energies) == {"H", "C", "O"}, "elements that the data do not hold are left out"
    assert found.provenance == {"H": FROM_ISOLATED_ATOMS, "C": FROM_LEAST_SQUARES, "O": FROM_LEAST_SQUARES}
    # What the fixed H cannot take falls to C and O as the normal equations of the remaining problem say.
    n = np.array([[list(f.structure.numbers).count(z) for z in (1, 6, 8)] for f in frames]) / [
        [f.n_atoms] for f in frames
    ]
    target = np.array([(f.energy or 0.0) / f.n_atoms for f in frames]) + 12.5 * n[:, 0]
    expected = np.linalg.solve(n[:, 1:].T @ n[:, 1:], n[:, 1:].T @ target)
    assert [found.energies["C"], found.energies["O"]] == pytest.approx(expected)


def test_isolated_atoms_among_the_frames_are_found() -> None:
    frames = [*_grouped({"a": 3}), _frame(Atoms("Cu", [[0, 0, 0]]), -0.2, "lone.xyz#0")]
    found = fit_reference_energies(frames)
    assert found.energies == {"Cu": -0.2}
    assert found.provenance == {"Cu": FROM_ISOLATED_ATOMS}


def test_one_stoichiometry_takes_the_smallest_norm() -> None:
    frames = [_frame(molecule("H2O"), -9.0, "w.xyz#0"), _frame(molecule("H2O"), -9.0, "w.xyz#1")]
    found = fit_reference_energies(frames).energies
    assert 2 * found["H"] + found["O"] == pytest.approx(-9.0)
    assert found["H"] == pytest.approx(2 * found["O"])


def test_reference_energy_errors() -> None:
    with pytest.raises(DataError, match="at least one frame with an energy"):
        fit_reference_energies([_frame(bulk("Cu"), None, "a")])
    frames = _grouped({"a": 2})
    with pytest.raises(DataError, match="given as an isolated atom but holds 4 atoms"):
        fit_reference_energies(frames, frames)
    with pytest.raises(DataError, match="has no energy"):
        fit_reference_energies(frames, [_frame(Atoms("Cu", [[0, 0, 0]]), None, "a")])
