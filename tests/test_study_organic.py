"""The pure functions of the study of `snnp-organic`: what its tables mean."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from snnp.models.potential import Prediction
from snnp.structure import Structure


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, repository: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "docs" / "measure" / "studies"))
    return importlib.import_module("organic")


def _frame(name: str, energy: float, forces: float | None = None, **info: object) -> Atoms:
    atoms = molecule(name)
    known = {} if forces is None else {"forces": np.full((len(atoms), 3), forces)}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, **known)
    atoms.info |= info
    return atoms


def test_errors_are_relative_to_the_mean_of_a_composition(study: ModuleType) -> None:
    frames = [_frame("H2O", -10.0, 1.0), _frame("H2O", -9.0, 1.0), _frame("NH3", -5.0, 1.0)]
    energy = np.array([-10.0 + 0.3, -9.0 + 0.6, -5.0 - 0.4])
    found = study.split_by_energy(frames, energy, np.full((10, 3), 1.5))
    assert found["frames"] == 3
    assert found["energy"] == pytest.approx((0.3 / 3 + 0.6 / 3 + 0.4 / 4) / 3)
    assert found["offset"] == pytest.approx((0.3 / 3 + 0.6 / 3 - 0.4 / 4) / 3)
    assert found["relative"] == pytest.approx((0.15 + 0.15 + 0.0) / 3)
    assert found["spread"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert (found["force"], found["size"]) == (0.5, 1.0)
    assert found["low"] == {key: value for key, value in found.items() if key != "low"}


def test_low_frames_are_those_near_the_lowest_of_their_kind(study: ModuleType) -> None:
    frames = [_frame("H2O", -10.0), _frame("H2O", -7.9), _frame("H2O", -8.1)]
    found = study.split_by_energy(frames, np.array([-10.0, 0.0, -8.1]), np.zeros((0, 3)))
    assert (found["low"]["frames"], found["low"]["relative"]) == (2, 0.0)
    assert found["relative"] > 1.0
    assert "force" not in found


def test_curves_begin_where_the_two_are_far_apart(study: ModuleType) -> None:
    kcal = study.KCAL_PER_MOL_IN_EV
    frames = [_frame("H2O", 0.0, dimer="a", scan_index=k) for k in (2, 0, 1)]
    found = study.curves(frames, np.array([5.0, 7.0, 4.0]) * kcal, {"a": "Water-Water"})
    np.testing.assert_allclose(found["Water-Water"], [2.0, -1.0, 0.0], atol=1e-12)


def test_dimers_are_called_by_their_shape(study: ModuleType) -> None:
    near, far = molecule("H2O"), molecule("H2O")
    far.positions[1] += 0.5
    frames = [_frame("H2O", 0.0, dimer="mol00", scan_index=2), _frame("NH3", 0.0, dimer="mol01", scan_index=2)]
    frames[0].rotate(30, "x")
    assert study.dimer_names(frames, {"B_1.00": near, "C_1.00": far}) == {"mol00": "B", "mol01": "mol01"}


def test_surroundings_are_the_bonded_elements(study: ModuleType) -> None:
    kinds = study.surroundings(molecule("CH3OH"))
    assert sorted(kinds) == ["C(HHHO)", "H(C)", "H(C)", "H(C)", "H(O)", "O(CH)"]
    assert study.by_name(np.array([1.0, 2.0, 3.0]), ["b", "a", "b"]) == {"a": [1, 2.0], "b": [2, 2.0]}


def test_what_is_beyond_the_elements_is_left_out(study: ModuleType) -> None:
    class Flat:
        elements = ("H", "O")

        def compute(self, structure: Structure, *, forces: bool) -> Prediction:
            assert not forces
            energy = torch.full((structure.n_structures,), study.KCAL_PER_MOL_IN_EV, dtype=torch.float64)
            return Prediction(energy=energy, energies=torch.zeros(0), forces=None, stress=None)

    rows = [study.Reaction("s", 1, "+2*w -1*w", 3.0), study.Reaction("s", 2, "+1*m -1*w", 3.0)]
    found = study.reaction_errors(Flat(), {"w": molecule("H2O"), "m": molecule("CH4")}, rows)
    assert found == {"s 1": pytest.approx(-2.0)}


def test_the_worst_are_those_that_the_teacher_has_right(study: ModuleType) -> None:
    page = importlib.import_module("organic_page")
    assert page.excess({"a": -5.0, "b": 6.0, "c": 1.0, "d": 9.0}, {"a": 0.5, "b": -5.9, "c": 3.0}) == ["a", "b", "c"]
    assert study.rounded({"a": [1.234567, {"b": 2}]}) == {"a": [1.2346, {"b": 2}]}
