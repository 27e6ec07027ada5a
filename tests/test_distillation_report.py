"""What the report of a distillation measures, against what is known of small teachers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from snnp.data import Frames
from snnp.data.storage.contents import Extras, pack
from snnp.distillation import Bars, Teacher, verdict
from snnp.distillation.crystals import Crystal, frames_of
from snnp.distillation.teachers import Answer, TeacherProcess
from snnp.distillation.verdict import Measured, behaviour, judge
from snnp.models import SplineNNP, load_model, save_model, special_cases
from snnp.models.potential import Potential
from snnp.structure import Structure


class SquareOfTheNumber(Calculator):
    """An energy that grows with the square of the number of atoms: no sum of parts."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.01 * len(atoms) ** 2, "forces": np.zeros((len(atoms), 3))}


class InThisProcess:
    """A teacher without a process of its own."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator

    def label(self, frames: Frames) -> Iterator[Answer]:
        for row, frame in enumerate(frames):
            (atoms,) = frame.structure.to_ase()
            atoms.calc = self.calculator
            try:
                labels = {"energy": np.array(atoms.get_potential_energy()), "forces": atoms.get_forces()}
            except (KeyError, NotImplementedError) as error:
                yield Answer(row, 0.0, {}, f"{type(error).__name__}: {error}")
                continue
            yield Answer(row, 0.0, labels, None)


@pytest.fixture
def student() -> SplineNNP:
    return SplineNNP(special_cases.eam(("Cu", "Au")), seed=0).double()


def _process(calculator: Calculator) -> TeacherProcess:
    return InThisProcess(calculator)  # type: ignore[return-value]


def _crystal(name: str, atoms: Atoms, calculator: Calculator) -> Crystal:
    """At the volume where its energy is lowest, to 0.4 %."""
    cells = []
    for ratio in np.arange(0.92, 1.08, 0.004):
        cells.append(atoms.copy())
        cells[-1].set_cell(atoms.cell * ratio, scale_atoms=True)
        cells[-1].calc = calculator
    energies = [cell.get_potential_energy() / len(cell) for cell in cells]
    return Crystal(name, cells[int(np.argmin(energies))].copy(), min(energies), 0.8)


def _alloy(a: str, b: str, calculator: Calculator) -> list[Crystal]:
    ordered = bulk(a, "fcc", a=3.8, cubic=True)
    ordered.symbols[[0]] = b
    found = [
        _crystal(f"fcc {a}", bulk(a, "fcc", a=3.8, cubic=True), calculator),
        _crystal(f"fcc {b}", bulk(b, "fcc", a=3.8, cubic=True), calculator),
        _crystal("L1_2", ordered, calculator),
        _crystal("B2", bulk(a + b, "cesiumchloride", a=3.0), calculator),
    ]
    return sorted(found, key=lambda each: each.energy)


def _as_teacher(student: Potential) -> TeacherProcess:
    """The student itself, asked as teachers are."""

    class Asked(Calculator):
        implemented_properties = ("energy", "forces", "stress")

        def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            found = student.compute(Structure.from_ase(atoms), stress=bool(atoms.pbc.all()))
            assert found.forces is not None
            self.results = {"energy": float(found.energy[0]), "forces": found.forces.numpy()}
            if found.stress is not None:
                tensor = found.stress[0].numpy()
                self.results["stress"] = tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]

    return _process(Asked())


def test_compounds_of_the_teacher_are_its_minima(student: SplineNNP) -> None:
    found, crystals = Measured(), _alloy("Au", "Cu", EMT())
    behaviour.compounds_beside(found, student, crystals, _process(EMT()))
    (rows,) = [each.rows for each in found.tables]
    known, lowest = {row[0]: row[1:] for row in rows}, {each.name: each for each in crystals}
    formed = lowest["L1_2"].energy - 0.75 * lowest["fcc Au"].energy - 0.25 * lowest["fcc Cu"].energy
    assert known["L1_2, teacher"][0] == pytest.approx(lowest["L1_2"].atoms.cell[0, 0], rel=4e-3)
    assert known["L1_2, teacher"][1] == pytest.approx(1000.0 * formed, abs=1.0)
    assert {"formation_energy", "bulk_modulus", "lattice_constant"} <= set(found.numbers)


def test_compounds_of_a_student_like_its_teacher() -> None:
    model = load_model("snnp-shared6").double()
    process, found = _as_teacher(model), Measured()
    behaviour.compounds_beside(found, model, _alloy("Ni", "Cu", process.calculator), process)  # type: ignore[attr-defined]
    assert found.numbers == pytest.approx(dict.fromkeys(("lattice_constant", "bulk_modulus", "formation_energy"), 0.0))


def test_bulk_modulus_from_energies_is_that_of_the_stress() -> None:
    volumes = 11.57 * np.geomspace(0.94, 1.06, 7)
    energies = []
    for volume in volumes:
        atoms = bulk("Cu", "fcc", a=(4.0 * volume) ** (1.0 / 3.0))
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    rest = behaviour._at_rest(volumes, np.array(energies))
    low, high = (bulk("Cu", "fcc", a=(4.0 * rest.volume * (1.0 + x)) ** (1.0 / 3.0)) for x in (-1e-3, 1e-3))
    pressure = []
    for atoms in (low, high):
        atoms.calc = EMT()
        pressure.append(-np.trace(atoms.get_stress(voigt=False)) / 3.0)
    assert rest.bulk_modulus == pytest.approx((pressure[0] - pressure[1]) / 2e-3 * 160.21766, rel=0.01)
    assert not np.isfinite(behaviour._at_rest(volumes, volumes).volume)  # no minimum


def test_a_student_like_its_teacher_misses_nothing(student: SplineNNP) -> None:
    found, process = Measured(), _as_teacher(student)
    behaviour.extensivity(found, student, bulk("Cu", cubic=True), process, seed=0)
    behaviour.extensivity(found, student, Atoms("CuAu", [[0, 0, 0], [0, 0, 2.5]]), process, seed=0)
    assert found.numbers["extensivity"] < 1e-6
    assert found.notes == []


def test_a_teacher_that_is_no_sum_of_its_parts_is_found_out(student: SplineNNP) -> None:
    found = Measured()
    behaviour.extensivity(found, student, bulk("Cu", cubic=True), _process(SquareOfTheNumber()), seed=0)
    (note,) = found.notes
    assert "40 meV/atom are missing" in note.message  # 0.01 (64 - 2 * 16) / 8 eV
    assert found.numbers["extensivity"] < 1e-6  # of the student, whose energies are sums


def test_overlap_of_a_liquid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model has the overlap that it has with itself; another one has less; too slow a teacher has none."""
    monkeypatch.setattr(behaviour, "_MOST_STEPS", 200)
    copper, model = [_crystal("fcc Cu", bulk("Cu", "fcc", a=3.59, cubic=True), EMT())], load_model("snnp-cu")
    found = Measured()
    behaviour.liquid_beside(found, model, copper, _as_teacher(model), seed=0)
    (row,) = found.tables[0].rows
    assert row[1] == pytest.approx(row[2], abs=0.08)
    assert found.numbers["rdf_overlap"] == row[1] > 0.8
    assert "200 steps of 2 fs" in found.tables[0].title
    assert len(found.pictures) == 1
    monkeypatch.setattr(behaviour, "_LIQUID_SECONDS", 1e-9)
    slow = Measured()
    behaviour.liquid_beside(slow, model, copper, _process(EMT()), seed=0)
    assert "rdf_overlap" not in slow.numbers
    assert "allow 0 steps of the teacher" in slow.notes[0].message
    failed, *_ = judge(slow, Bars(force_cosine=None, hot_md=False, rdf_overlap=0.9))
    assert "was not measured" in failed[0].message


def test_the_overlap_of_curves() -> None:
    a = np.array([0.0, 1.0, 2.0, 1.0])
    assert behaviour._overlap(a, a) == 1.0
    assert behaviour._overlap(a, a[::-1]) == pytest.approx(1.0 - 4.0 / 8.0)
    assert behaviour._overlap(a, np.zeros(4)) == 0.0


def test_memory_is_that_of_the_process(student: SplineNNP, tmp_path: Path) -> None:
    save_model(student, tmp_path / "model")
    found = Measured()
    with Teacher.of(["ase.calculators.emt:EMT"]).start() as process:
        verdict.memory(found, tmp_path / "model", bulk("Cu", cubic=True), process)
    known = dict(found.tables[0].rows)
    assert 20.0 < known["teacher"] < known["student"] == found.numbers["memory"] < 3000.0  # torch beside NumPy and ASE


def test_worst_frames_and_the_spread_of_the_teachers(student: SplineNNP) -> None:
    rng = np.random.default_rng(0)
    images = []
    for size in (0.01, 0.05, 0.2):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += size * rng.standard_normal((4, 3))
        images.append(("a" if size < 0.1 else "b", atoms))
    frames = frames_of(images, "t")
    found = student.compute(frames.structure())
    assert found.forces is not None
    off = np.repeat([0.0, 0.1, 0.3], 4)[:, None]
    nothing = torch.zeros(len(frames), dtype=torch.bool).numpy()
    labelled = replace(
        frames,
        energy=found.energy.numpy(),
        forces=found.forces.numpy() + off,
        has_energy=~nothing,
        has_forces=~nothing,
        extras=[pack(Extras({}, {"forces_std": np.full((4, 3), 0.2)}), "t") for _ in range(3)],
    )
    measured = Measured()
    verdict.against_teacher(measured, student, labelled)
    tables = {each.title: each.rows for each in measured.tables}
    assert [(row[0], pytest.approx(row[2], abs=1e-9)) for row in tables["The worst frames"]] == [
        ("t/b#2", 0.3),
        ("t/a#1", 0.1),
        ("t/a#0", 0.0),
    ]
    spread = {row[0]: row[1:] for row in tables["Student beside the spread of its teachers"]}
    assert spread["b"] == (1, pytest.approx(0.3), pytest.approx(0.2), pytest.approx(1.5))
    assert spread["all"][1] == pytest.approx(np.sqrt(0.1 / 3))
    assert len(measured.pictures) == 2


def test_every_bar_that_is_set_is_judged() -> None:
    numbers = {"force_mae": 0.1, "force_cosine": 0.9, "extensivity": np.nan, "hot_md": 1.0, "memory": 300.0}
    found = Measured(numbers=numbers)
    bars = Bars(force_mae=0.2, force_cosine=0.95, extensivity=1.0, rdf_overlap=0.9, memory=400.0)
    failed, passed, listed, _ = judge(found, bars)
    assert {each.check for each in failed} == {"force_cosine", "extensivity", "rdf_overlap"}
    assert set(passed) == {"force_mae", "hot_md", "memory"}
    rows = {row[0]: row[1:] for row in listed.rows}
    assert rows["rdf_overlap"] == (None, "≥ 0.9", "no")
    assert rows["force_mae, eV/Å"] == (0.1, "≤ 0.2", "yes")
    assert rows["hot_md"] == (1.0, "yes", "yes")


def test_a_molecule_far_away_is_another_one() -> None:
    water = molecule("H2O")
    model = SplineNNP(special_cases.eam(("H", "O")), seed=1)
    found = Measured()
    behaviour.extensivity(found, model, water, _as_teacher(model.double()), seed=0)
    assert [row[0] for row in found.tables[0].rows] == ["two parts, 30 Å apart"]
    assert found.numbers["extensivity"] < 1e-6
