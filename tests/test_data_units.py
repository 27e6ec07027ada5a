"""Labels in other units: stated they are converted, not stated they are found, with the file and the unit named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.data import Frame, Keys, Units, load_dataset, read_frames
from snnp.data.consistency import by_file, relation_of, suspicions
from snnp.doctor import examine_data
from snnp.errors import ConfigError, DataError
from snnp.structure import Structure
from snnp.training import load_config, train
from snnp.training.problem import check_data, load_problem
from snnp.units import (
    BOHR_IN_ANGSTROM,
    EV_IN_KJ_PER_MOL,
    EV_PER_ANGSTROM3_IN_GPA,
    HARTREE_IN_EV,
    KCAL_PER_MOL_IN_EV,
    NM_IN_ANGSTROM,
)

KCAL = 1.0 / KCAL_PER_MOL_IN_EV
HARTREE = 1.0 / HARTREE_IN_EV


def _frame(seed: int, strained: bool) -> Frame:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    if strained:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0.0, 0.02, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0.0, 0.06, atoms.positions.shape)
    atoms.calc = EMT()
    stress = np.array(atoms.get_stress(voigt=False))
    energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
    return Frame(Structure.from_ase(atoms), energy, forces, stress, None, f"cu.xyz#{seed}")


@pytest.fixture(scope="module")
def sound() -> list[Frame]:
    """Warm copper at one cell and at many, labelled by ASE's effective medium theory."""
    return [_frame(seed, strained=seed % 2 == 0) for seed in range(60)]


def _changed(frame: Frame, energy: float = 1.0, forces: float = 1.0, stress: float = 1.0, length: float = 1.0) -> Frame:
    s = frame.structure
    structure = Structure(s.numbers, s.positions * length, s.cell * length, s.pbc, s.structure_of_atom)
    assert frame.energy is not None
    assert frame.forces is not None
    assert frame.stress is not None
    return replace(
        frame,
        structure=structure,
        energy=frame.energy * energy,
        forces=frame.forces * forces,
        stress=frame.stress * stress,
    )


def test_sound_labels_belong_together(sound: list[Frame]) -> None:
    relation = relation_of(sound)
    assert relation.forces is not None
    assert relation.stress is not None
    assert relation.forces.factor == pytest.approx(1.0, abs=0.1)
    assert relation.forces.explained > 0.9
    assert relation.stress.factor == pytest.approx(1.0, abs=0.35)  # displacements are random from cell to cell
    assert 2.0 < relation.stiffness < 12.0
    assert suspicions({"a": sound, "b": sound[:30]}) == []


FAULTS: dict[str, dict[str, float]] = {
    "forces are gradients: they have the opposite sign": {"forces": -1.0},
    "forces are in kcal/mol/angstrom": {"forces": KCAL},
    "forces are in Hartree/bohr": {"forces": HARTREE * BOHR_IN_ANGSTROM},
    "forces are gradients in Hartree/bohr": {"forces": -HARTREE * BOHR_IN_ANGSTROM},
    "forces are in kJ/mol/nm": {"forces": EV_IN_KJ_PER_MOL * NM_IN_ANGSTROM},
    "forces are in Ry/bohr": {"forces": 2.0 * HARTREE * BOHR_IN_ANGSTROM},
    "energies are in kcal/mol and forces in eV/Å": {"energy": KCAL},
    "energies are in Hartree and forces in eV/Å": {"energy": HARTREE},
    "energies are in Hartree and forces in Hartree/bohr": {"energy": HARTREE, "forces": HARTREE * BOHR_IN_ANGSTROM},
    "positions are in bohr": {"length": 1.0 / BOHR_IN_ANGSTROM},
    "stresses have the opposite sign": {"stress": -1.0},
    "stresses are in GPa": {"stress": EV_PER_ANGSTROM3_IN_GPA},
    "stresses are in kbar with the opposite sign": {"stress": -10.0 * EV_PER_ANGSTROM3_IN_GPA},
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_named(sound: list[Frame], text: str) -> None:
    bad = [_changed(frame, **FAULTS[text]) for frame in sound]
    found = suspicions(by_file([*bad, *(replace(frame, source=f"good.{frame.source}") for frame in sound)]))
    first = found[0]
    assert text in first.message
    assert first.certain
    assert {each.file for each in found} == {"cu.xyz"}
    assert "opposite sign" not in first.message or "opposite" in text


def test_cells_drawn_at_random_are_no_neighbours() -> None:
    """Their energies differ by far more than what stresses do in a strain of tens of per cents, and prove nothing."""
    rng, frames = np.random.default_rng(4), []
    for k in range(24):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0.0, 0.25, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0.0, 0.3, atoms.positions.shape)
        atoms.calc = EMT()
        energy, stress = float(atoms.get_potential_energy()), np.array(atoms.get_stress(voigt=False))
        frames.append(Frame(Structure.from_ase(atoms), energy, np.array(atoms.get_forces()), stress, None, f"r#{k}"))
    assert relation_of(frames).stress is None
    assert suspicions({"r": frames}) == []


def test_stresses_that_are_virials(sound: list[Frame]) -> None:
    bad = [_changed(frame, stress=-float(frame.structure.volume()[0])) for frame in sound]
    (found,) = suspicions({"cu.xyz": bad})
    assert "stresses are virials" in found.message


def test_everything_in_one_other_unit_is_suspected(sound: list[Frame]) -> None:
    (found,) = suspicions({"cu.xyz": [_changed(frame, KCAL, KCAL, KCAL) for frame in sound]})
    assert not found.certain
    assert "known matter" in found.message
    beside = [_changed(frame, KCAL, KCAL, KCAL) for frame in sound]
    named = suspicions({"a": sound, "b": beside})
    assert any(
        each.file == "b" and each.certain and "those of a: they are in kcal/mol" in each.message for each in named
    )
    assert not any(each.file == "a" for each in named)


def test_total_energies_of_all_electrons_show_their_unit(snnp_data: Path) -> None:
    frames = read_frames(snnp_data / "ethanol-rmd17" / "train_methanol.xyz")[:60]
    assert suspicions({"a": frames}) == []
    scaled = [replace(f, energy=(f.energy or 0) * KCAL, forces=np.asarray(f.forces) * KCAL) for f in frames]
    (found,) = suspicions({"a": scaled})
    assert found.certain
    assert "in kcal/mol, and forces fit to them" in found.message


def _write(path: Path, frames: list[Frame], prefix: str = "", shuffle: bool = False) -> Path:
    images = []
    for frame in frames:
        atoms = frame.structure.to_ase()[0]
        if prefix:
            atoms.info |= {f"{prefix}_energy": frame.energy, f"{prefix}_stress": frame.stress}
            atoms.set_array(f"{prefix}_forces", np.asarray(frame.forces))
        else:
            stress = None if frame.stress is None else frame.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces, stress=stress)
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


STATED: dict[str, dict[str, float]] = {
    "kcal/mol": {"energy": KCAL, "forces": KCAL, "stress": KCAL},
    "energy=kJ/mol,length=nm": {
        "energy": EV_IN_KJ_PER_MOL,
        "forces": EV_IN_KJ_PER_MOL * 10.0,
        "stress": EV_IN_KJ_PER_MOL * 1e3,
        "length": 0.1,
    },
    "atomic": {
        "energy": HARTREE,
        "forces": HARTREE * BOHR_IN_ANGSTROM,
        "stress": HARTREE * BOHR_IN_ANGSTROM**3,
        "length": 1.0 / BOHR_IN_ANGSTROM,
    },
    "forces=-eV/Å,stress=-kbar": {"forces": -1.0, "stress": -10.0 * EV_PER_ANGSTROM3_IN_GPA},
    "energy=Ry,forces=Ry/bohr,stress=GPa": {
        "energy": 2.0 * HARTREE,
        "forces": 2.0 * HARTREE * BOHR_IN_ANGSTROM,
        "stress": EV_PER_ANGSTROM3_IN_GPA,
    },
    "energy=meV,forces=meV/angstrom,stress=eV/Å^3": {"energy": 1e3, "forces": 1e3},
}


@pytest.mark.parametrize("text", STATED)
@pytest.mark.parametrize("prefix", ["", "REF"])
def test_stated_units_are_converted_by_all_readers(tmp_path: Path, sound: list[Frame], text: str, prefix: str) -> None:
    path = _write(tmp_path / "cu.xyz", [_changed(frame, **STATED[text]) for frame in sound[:8]], prefix)
    units = Units.parse(text)
    done = CliRunner().invoke(
        app, ["convert", str(path), str(tmp_path / "cu.parquet"), "--method", "EMT", "--units", text]
    )
    assert done.exit_code == 0, done.output
    dataset = load_dataset(tmp_path / "cu.parquet")
    for frames in (read_frames(path, Keys(units=units)), dataset.frames()):
        for found, wanted in zip(frames, sound, strict=False):
            assert found.energy == pytest.approx(wanted.energy, rel=1e-7)
            np.testing.assert_allclose(found.forces, wanted.forces, atol=1e-6)
            np.testing.assert_allclose(found.stress, wanted.stress, atol=1e-6)
            np.testing.assert_allclose(found.structure.positions, wanted.structure.positions, atol=1e-6)
            np.testing.assert_allclose(found.structure.cell, wanted.structure.cell, atol=1e-6)
    atoms = dataset.to_ase()[0]
    assert atoms.get_potential_energy() == pytest.approx(sound[0].energy, rel=1e-7)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), sound[0].stress, atol=1e-6)


def test_virials_have_the_unit_of_energy(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(
        '1\nLattice="2 0 0 0 2 0 0 0 2" REF_energy=1 REF_virial="8 0 0 0 8 0 0 0 8"\nCu 0 0 0\n'
    )
    (frame,) = read_frames(tmp_path / "a.xyz", Keys(units=Units("kcal/mol", "nm")))
    np.testing.assert_allclose(frame.stress, -np.eye(3) * KCAL_PER_MOL_IN_EV / 1000.0, rtol=1e-12)


WRONG: dict[str, Any] = {
    "kcal": r"'kcal' is no unit of energy known here; there are .*Did you mean 'kcal/mol'",
    "MeV": "'MeV' is no unit of energy",
    "energy=eV,lenght=nm": "units of 'lenght' are not known, only of .*Did you mean 'length'",
    "length=feet": "'feet' is no unit of length",
    "forces=kcal/mol": "'kcal' is no unit of energy|is no unit of forces",
    "forces=eV": "'eV' is no unit of forces, which is energy/length",
    "stress=eV": "'eV' is no unit of stress",
    "stress=GPA/3": "is no unit of stress",
    "": "expected such as energy=kcal/mol",
}


@pytest.mark.parametrize("text", WRONG)
def test_unknown_units_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=WRONG[text]):
        Units.parse(text)
    with pytest.raises(ConfigError, match=r"data\.units"):
        load_config({"data": {"train": ["a.xyz"], "units": text}})


def test_units_of_a_dataset_are_fixed(tmp_path: Path, sound: list[Frame]) -> None:
    path = _write(tmp_path / "cu.xyz", sound[:4])
    runner = CliRunner()
    assert runner.invoke(app, ["convert", str(path), str(tmp_path / "a.parquet"), "--method", "EMT"]).exit_code == 0
    with pytest.raises(DataError, match="fixed names and units"):
        read_frames(tmp_path / "a.parquet", Keys(units=Units("Hartree")))
    done = runner.invoke(app, ["convert", str(tmp_path / "a.parquet"), str(tmp_path / "b.xyz"), "--units", "Hartree"])
    assert done.exit_code == 1
    assert "states its units" in done.output


@pytest.mark.parametrize("units", [None, "kcal/mol"])
def test_training_stops_before_it_starts_or_converts(tmp_path: Path, sound: list[Frame], units: str | None) -> None:
    path = _write(tmp_path / "cu.xyz", [_changed(frame, energy=KCAL, stress=KCAL) for frame in sound])
    data = {"train": [str(path)], "valid": 0.1}
    config = load_config({"data": data | ({"units": "kcal/mol"} if units else {})})
    problem = load_problem(config)
    # Forces were in eV/Å: one unit for all is as wrong as none.
    with pytest.raises(DataError, match=r"cu\.xyz: energies change by .* data\.units: .*check_units to warn"):
        check_data(config.data, problem)
    right = load_config({"data": data | {"units": {"energy": "kcal/mol", "forces": "eV/angstrom"}}})
    assert check_data(right.data, load_problem(right)) == []
    going_on = load_config({"data": data | {"check_units": "warn"}})
    assert len(check_data(going_on.data, load_problem(going_on))) >= 1
    off = load_config({"data": data | {"check_units": "off"}})
    assert check_data(off.data, load_problem(off)) == []


def test_lengths_in_another_unit_are_refused_at_once_and_cost_no_run(tmp_path: Path, sound: list[Frame]) -> None:
    """Before structures are compressed that would have thousands of neighbours, and before an old run is removed."""
    frames = [_changed(frame, forces=10.0, stress=1000.0, length=0.1) for frame in sound]  # all of it in nm
    wrong = load_config({"data": {"train": [str(_write(tmp_path / "cu.xyz", frames))], "valid": 0.1}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("old")
    with pytest.raises(DataError, match=r"frames have atoms closer than .* nm or .*: cu\.xyz#.*\{length: nm\}"):
        train(wrong, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == "old"
    assert not (tmp_path / "run" / "split.json").exists()


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
def test_room_around_slabs_and_molecules_does_not_count(pbc: tuple[bool, bool, bool]) -> None:
    frames = []
    for seed in range(20):
        atoms = fcc111("Cu", (2, 2, 3))
        atoms.rattle(0.05, seed=seed)
        atoms.pbc = pbc
        atoms.center(vacuum=5.0, axis=(2,) if any(pbc) else (0, 1, 2))
        atoms.calc = EMT()
        forces = -KCAL * atoms.get_forces()
        energy = float(atoms.get_potential_energy())
        frames.append(Frame(Structure.from_ase(atoms), energy, forces, None, None, f"cu.xyz#{seed}"))
    relation = relation_of(frames).forces
    assert relation is not None
    assert relation.factor == pytest.approx(-1.0 / KCAL, rel=0.1)


CHANGES: dict[str, Callable[[Frame], Frame]] = {
    "forces are gradients": lambda frame: _changed(frame, forces=-1.0),
    "forces are in Hartree/bohr": lambda frame: _changed(frame, forces=HARTREE * BOHR_IN_ANGSTROM),
    "energies are in kcal/mol": lambda frame: _changed(frame, energy=KCAL, stress=KCAL),
}


@pytest.mark.parametrize("text", CHANGES)
@pytest.mark.parametrize("n_bad", [20, 40])
def test_the_doctor_blames_the_file_that_is_wrong(sound: list[Frame], text: str, n_bad: int) -> None:
    """Also where it holds more frames than all others."""
    bad = [replace(CHANGES[text](frame), source=f"bad.xyz#{k}") for k, frame in enumerate(sound[:n_bad])]
    good = [replace(frame, source=f"good.xyz#{k}") for k, frame in enumerate(sound[n_bad:])]
    report = examine_data({"train": good, "test": bad}, pictures=False)
    blamed = [finding for finding in report.errors if finding.check == "units"]
    assert len(blamed) == 1
    assert f"bad.xyz (test, {n_bad} frames)" in blamed[0].message
    assert text in blamed[0].message
    assert set(blamed[0].frames) == {frame.source for frame in bad}
    for finding in report.findings:
        assert not any(name.startswith("good") for name in finding.frames), finding.message
        assert "sign" not in finding.message or text == "forces are gradients"
