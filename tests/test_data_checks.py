"""Plausibility warnings: each wrong unit is noticed, the frames are named, and sound data stay silent."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from snnp.data.frames import Frame
from snnp.data.plausibility import check_frames
from snnp.report import Finding
from snnp.structure import Structure
from snnp.units import BOHR_IN_ANGSTROM, EV_PER_ANGSTROM3_IN_GPA, HARTREE_IN_EV


def _frame(atoms: Atoms, index: int) -> Frame:
    atoms.calc = EMT()
    return Frame(
        Structure.from_ase(atoms),
        float(atoms.get_potential_energy()),
        np.array(atoms.get_forces()),
        np.array(atoms.get_stress(voigt=False)),
        None,
        f"cu.xyz#{index}",
    )


@pytest.fixture(scope="module")
def sound() -> list[Frame]:
    """Warm copper, gold and an alloy from ASE's effective medium theory."""
    frames = []
    for index in range(9):
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.symbols[: index % 3] = "Au"
        atoms.rattle(0.1, seed=index)
        frames.append(_frame(atoms, index))
    return frames


def test_sound_data_are_silent(sound: list[Frame]) -> None:
    assert check_frames(sound) == []
    assert check_frames([]) == []


def test_isolated_atoms_and_dissociated_pairs_are_silent(sound: list[Frame]) -> None:
    lone = Frame(Structure.from_ase(Atoms("Cu", [[0, 0, 0]])), 40.0, np.zeros((1, 3)), None, None, "a#0")
    pair = Frame(Structure.from_ase(Atoms("Cu2", [[0, 0, 0], [0, 0, 9]])), 7.0, None, None, None, "a#1")
    assert check_frames([*sound, lone, pair]) == []


def test_energy_outlier_is_named(sound: list[Frame]) -> None:
    broken = [*sound[:4], replace(sound[4], energy=(sound[4].energy or 0.0) + 8 * 20.0), *sound[5:]]
    (finding,) = check_frames(broken)
    assert finding.check == "energy_outlier"
    assert finding.frames == ("cu.xyz#4",)
    # The other frames differ among themselves by some tenths of an eV, so 20 eV/atom are not met exactly.
    assert re.search(r"up to \+(19\.[5-9]|20\.[0-5]) eV/atom", finding.message)


def test_forces_in_atomic_units(sound: list[Frame]) -> None:
    factor = BOHR_IN_ANGSTROM / HARTREE_IN_EV
    scaled = [replace(frame, forces=np.asarray(frame.forces) * factor) for frame in sound]
    (finding,) = check_frames(scaled)
    assert finding.check == "typical_force"
    assert "multiply by 51.42" in finding.message


def test_forces_too_large(sound: list[Frame]) -> None:
    kinds = {finding.check for finding in check_frames([replace(f, forces=96.5 * np.asarray(f.forces)) for f in sound])}
    assert kinds == {"typical_force", "large_force"}
    one = [*sound[:-1], replace(sound[-1], forces=np.full((8, 3), 90.0))]
    (finding,) = check_frames(one)
    assert (finding.check, finding.frames) == ("large_force", ("cu.xyz#8",))
    assert "156" in finding.message


@pytest.mark.parametrize(("scale", "kind"), [(0.1, "short_distance"), (2.5, "long_distance")])
def test_positions_in_another_unit(sound: list[Frame], scale: float, kind: str) -> None:
    def scaled(frame: Frame) -> Frame:
        s = frame.structure
        changed = Structure(s.numbers, s.positions * scale, s.cell * scale, s.pbc, s.structure_of_atom)
        return replace(frame, structure=changed)

    (finding,) = check_frames([*sound[:6], *map(scaled, sound[6:])])
    assert finding.check == kind
    assert set(finding.frames) == {"cu.xyz#6", "cu.xyz#7", "cu.xyz#8"}


def test_shortest_distance_is_reported(sound: list[Frame]) -> None:
    close = Atoms("Cu3", [[0, 0, 0], [0, 0, 0.3], [0, 2, 0]])
    (finding,) = check_frames([*sound, Frame(Structure.from_ase(close), None, None, None, None, "x#3")])
    assert "0.30 Å" in finding.message


def test_stress_in_gpa(sound: list[Frame]) -> None:
    scaled = [replace(frame, stress=np.asarray(frame.stress) * EV_PER_ANGSTROM3_IN_GPA) for frame in sound]
    findings = check_frames(scaled)
    assert [finding.check for finding in findings] == ["large_stress"]


def test_text_shows_at_most_five_frames() -> None:
    assert (
        str(Finding("k", "note", "seven", frames=tuple(f"f#{k}" for k in range(7))))
        == "seven: f#0, f#1, f#2, f#3, f#4 and 2 more"
    )
    assert str(Finding("k", "note", "all")) == "all"
