"""The doctor for data: every planted fault is found by name, and sound sets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from snnp.data import Frame, read_frames
from snnp.doctor import DATA_CHECKS, Finding, Report, coverage, examine_data
from snnp.doctor.examine import read_set
from snnp.errors import DataError
from snnp.structure import Structure
from snnp.units import BOHR_IN_ANGSTROM, EV_PER_ANGSTROM3_IN_GPA, HARTREE_IN_EV, KCAL_PER_MOL_IN_EV

N_TRAIN, N_TEST = 120, 30


def difference(one: Frame, other: Frame) -> float:
    return coverage._compare(coverage._View(one), coverage._View(other), np.inf)


def frame_of(atoms: Atoms, source: str, group: str | None = None) -> Frame:
    """A structure with the labels of ASE's effective medium theory."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    stress = np.array(atoms.get_stress(voigt=False)) if atoms.pbc.all() else None
    return Frame(
        Structure.from_ase(atoms),
        float(atoms.get_potential_energy()),
        np.array(atoms.get_forces()),
        stress,
        group,
        source,
    )


def alloy(seed: int) -> Atoms:
    """Warm, strained copper with some gold."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", a=3.75, cubic=True).repeat((2, 1, 1))
    atoms.symbols[rng.permutation(8)[: seed % 4]] = "Au"
    atoms.set_cell(atoms.cell.array * rng.uniform(0.97, 1.04) @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), True)
    atoms.positions += rng.normal(0.0, rng.uniform(0.05, 0.15), atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def sound() -> dict[str, list[Frame]]:
    """A clean set in two splits."""
    frames = [frame_of(alloy(seed), f"alloy.xyz#{seed}") for seed in range(N_TRAIN + N_TEST)]
    return {"train": frames[:N_TRAIN], "test": frames[N_TRAIN:]}


def changed(data: dict[str, list[Frame]], where: list[int], change: Callable[[Frame], Frame]) -> dict[str, list[Frame]]:
    """The set with some training frames changed."""
    train = [change(frame) if k in where else frame for k, frame in enumerate(data["train"])]
    return {**data, "train": train}


def examine(data: dict[str, list[Frame]]) -> Report:
    return examine_data(data, pictures=False)


def the(report: Report, check: str) -> Finding:
    """The finding of a check, which must be there once."""
    (finding,) = [each for each in report.findings if each.check == check]
    assert finding.meaning
    assert finding.cure
    return finding


def all_changed(data: dict[str, list[Frame]], change: Callable[[Frame], Frame]) -> dict[str, list[Frame]]:
    """The set with all frames changed."""
    return {name: [change(frame) for frame in frames] for name, frames in data.items()}


def names(where: list[int]) -> set[str]:
    return {f"alloy.xyz#{k}" for k in where}


def test_sound_set_passes(sound: dict[str, list[Frame]]) -> None:
    report = examine(sound)
    assert [(each.check, each.message) for each in report.findings] == []
    assert report.errors == []
    assert set(report.passed) == set(DATA_CHECKS)
    assert report.verdict == f"nothing found in {len(DATA_CHECKS)} checks"
    assert report.facts["Splits"][0]["frames"] == N_TRAIN


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("kcal/mol", 1 / KCAL_PER_MOL_IN_EV), ("Hartree", 1 / HARTREE_IN_EV), ("opposite sign", -1.0)],
)
def test_energy_unit_of_one_percent(sound: dict[str, list[Frame]], unit: str, factor: float) -> None:
    def change(frame: Frame) -> Frame:
        # Cohesive energies of some eV per atom, as real programs give; effective medium theory has nearly none.
        return replace(frame, energy=(frame.energy or 0.0) - 3.5 * frame.n_atoms)

    shifted = all_changed(sound, change)
    broken = changed(shifted, [17], lambda frame: replace(frame, energy=(frame.energy or 0.0) * factor))
    finding = the(examine(broken), "energy units")
    assert finding.severity == "error"
    assert unit in finding.message
    assert set(finding.frames) == names([17])
    assert examine(shifted).errors == []


@pytest.mark.parametrize(
    ("unit", "factor"), [("kcal/mol/Å", 1 / KCAL_PER_MOL_IN_EV), ("Hartree/Bohr", BOHR_IN_ANGSTROM / HARTREE_IN_EV)]
)
def test_force_unit_of_one_percent(sound: dict[str, list[Frame]], unit: str, factor: float) -> None:
    def change(frame: Frame) -> Frame:
        assert frame.forces is not None
        return replace(frame, forces=frame.forces * factor)

    finding = the(examine(changed(sound, [30, 71], change)), "force units")
    assert finding.severity == "error"
    assert unit in finding.message
    assert set(finding.frames) == names([30, 71])


def turned_round(frame: Frame) -> Frame:
    assert frame.forces is not None
    return replace(frame, forces=-frame.forces)


def test_force_sign_of_one_frame(sound: dict[str, list[Frame]]) -> None:
    finding = the(examine(changed(sound, [42], turned_round)), "force sign")
    assert finding.severity == "error"
    assert finding.frames == ("alloy.xyz#42",)


@pytest.mark.parametrize(("factor", "check"), [(-1.0 / KCAL_PER_MOL_IN_EV, "force sign"), (-5.0, "force direction")])
def test_sizes_tell_other_signs_from_what_is_beyond_the_model(
    sound: dict[str, list[Frame]], factor: float, check: str
) -> None:
    """Gradients are as large as forces, or larger by a unit; what has another size is no matter of a sign."""

    def change(frame: Frame) -> Frame:
        assert frame.forces is not None
        return replace(frame, forces=frame.forces * factor)

    report = examine(changed(sound, [42], change))
    assert the(report, check).frames == ("alloy.xyz#42",)
    assert {each.check for each in report.findings} & {"force sign", "force direction"} == {check}


def test_force_sign_of_the_whole_set(sound: dict[str, list[Frame]]) -> None:
    report = examine(all_changed(sound, turned_round))
    assert "wrong sign" in the(report, "energies and forces").message


def test_forces_of_the_whole_set_in_atomic_units(sound: dict[str, list[Frame]]) -> None:
    factor = BOHR_IN_ANGSTROM / HARTREE_IN_EV
    frames = {
        name: [replace(frame, forces=np.asarray(frame.forces) * factor) for frame in part]
        for name, part in sound.items()
    }
    assert "Hartree/Bohr" in the(examine(frames), "energies and forces").message


def test_forces_in_another_order(sound: dict[str, list[Frame]]) -> None:
    def change(frame: Frame) -> Frame:
        return replace(frame, forces=np.roll(np.asarray(frame.forces), 3, axis=0))

    report = examine(changed(sound, [9, 10], change))
    blamed = {
        name for each in report.findings if each.check in ("force sign", "force direction") for name in each.frames
    }
    assert blamed == names([9, 10])


@pytest.mark.parametrize(("word", "factor"), [("opposite", -1.0), ("GPa", EV_PER_ANGSTROM3_IN_GPA)])
def test_stress_of_another_sign_or_unit(sound: dict[str, list[Frame]], word: str, factor: float) -> None:
    frames = {
        name: [replace(frame, stress=np.asarray(frame.stress) * factor) for frame in part]
        for name, part in sound.items()
    }
    assert word in the(examine(frames), "stress").message


def test_energy_outlier(sound: dict[str, list[Frame]]) -> None:
    report = examine(
        changed(sound, [5], lambda frame: replace(frame, energy=(frame.energy or 0.0) + 0.9 * frame.n_atoms))
    )
    finding = the(report, "energy outliers")
    assert finding.severity == "warning"
    assert finding.frames == ("alloy.xyz#5",)
    assert report.errors == []


def test_two_levels_of_theory(sound: dict[str, list[Frame]]) -> None:
    """A third of the set has other zeros of energy: both elements shifted by 0.15 to 0.3 eV."""

    def change(frame: Frame) -> Frame:
        shift = torch.where(frame.structure.numbers == 29, 0.15, 0.3).sum()
        return replace(frame, energy=(frame.energy or 0.0) + float(shift), source=f"other.{frame.source}")

    where = list(range(0, N_TRAIN, 3))
    finding = the(examine(changed(sound, where, change)), "level of theory")
    assert finding.severity == "error"
    assert len(finding.frames) == len(where)
    assert all(name.startswith("other.") for name in finding.frames)
    assert "file other.alloy.xyz" in finding.message


def test_forces_written_as_zeros(sound: dict[str, list[Frame]]) -> None:
    broken = changed(sound, [3], lambda frame: replace(frame, forces=np.zeros((frame.n_atoms, 3))))
    finding = the(examine(broken), "completeness")
    assert finding.severity == "error"
    assert finding.frames == ("alloy.xyz#3",)


def test_missing_labels_are_noted(sound: dict[str, list[Frame]]) -> None:
    report = examine(changed(sound, [3, 4], lambda frame: replace(frame, forces=None)))
    assert the(report, "completeness").severity == "note"
    nothing = {"all": [replace(frame, forces=None, energy=None, stress=None) for frame in sound["train"][:5]]}
    said = [each.message for each in examine(nothing).warnings]
    assert said == ["no frame has energies", "no frame has forces"]


def test_forces_that_push_and_turn() -> None:
    """Molecules: a constant added to all forces, and forces that were not rotated with the molecule."""
    frames = []
    for seed in range(24):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.08, seed=seed)
        frames.append(frame_of(atoms, f"ethanol.xyz#{seed}"))
    assert examine({"all": frames}).errors == []
    frames[2] = replace(frames[2], forces=np.asarray(frames[2].forces) + 0.5)
    frames[8] = replace(frames[8], forces=np.asarray(frames[8].forces)[:, [1, 2, 0]])
    report = examine({"all": frames})
    assert the(report, "force sums").frames == ("ethanol.xyz#2",)
    assert the(report, "torques").frames == ("ethanol.xyz#8",)


def rewritten(atoms: Atoms, seed: int = 0) -> Atoms:
    """The same crystal: rotated, mirrored, in another cell, doubled, reordered, with atoms in other images."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    skewed = np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]]) @ atoms.cell.array
    atoms.set_cell(skewed)
    atoms = atoms.repeat((1, 2, 1))
    atoms.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array + rng.normal(size=3)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    atoms.set_cell(atoms.cell.array @ q.T)
    atoms.positions = atoms.positions @ q.T
    turned: Atoms = atoms[rng.permutation(len(atoms))]
    return turned


def test_the_same_crystal_is_recognised() -> None:
    original = alloy(1)
    first, again = frame_of(original, "a#0"), frame_of(rewritten(original), "a#1")
    assert difference(first, again) < 1e-9
    moved = original.copy()
    moved.positions[0] += (0.05, 0.0, 0.0)
    assert 0.02 < difference(first, frame_of(moved, "a#2")) < 0.1
    stretched = original.copy()
    stretched.set_cell(original.cell.array * 1.01, scale_atoms=True)
    assert difference(first, frame_of(stretched, "a#3")) > 0.01
    other = original.copy()
    other.symbols[list(other.symbols).index("Au")] = "Cu"
    assert difference(first, frame_of(other, "a#4")) > 1.0


@pytest.mark.parametrize("d", [2.5, 2.9, 3.6, 4.2])  # Å; from 3.54 on second neighbours are beyond 5 Å
def test_stacking_tells_crystals_apart_however_wide(d: float) -> None:
    """In fcc and hcp all atoms have twelve neighbours, and six second ones, at the same distances."""
    fcc = Frame(Structure.from_ase(bulk("Al", "fcc", a=np.sqrt(2.0) * d)), -1.0, None, None, None, "fcc#0")
    cubic = Frame(Structure.from_ase(bulk("Al", "fcc", a=np.sqrt(2.0) * d, cubic=True)), -1.0, None, None, None, "c#0")
    hcp = bulk("Al", "hcp", a=d, c=np.sqrt(8.0 / 3.0) * d)
    other = Frame(Structure.from_ase(hcp), -1.1, None, None, None, "hcp#0")
    assert difference(fcc, cubic) < 1e-9
    assert difference(fcc, other) > 0.1
    assert difference(other, Frame(Structure.from_ase(hcp.repeat((2, 1, 1))), -1.1, None, None, None, "h#0")) < 1e-9


def test_leakage_under_every_disguise(sound: dict[str, list[Frame]]) -> None:
    leaked = [frame_of(rewritten(alloy(seed), seed), f"leaked#{seed}") for seed in (3, 50)]
    report = examine({**sound, "test": [*sound["test"], *leaked]})
    finding = the(report, "leakage")
    assert finding.severity == "error"
    assert finding.frames == ("leaked#3", "leaked#50")
    assert len(the(report, "duplicates").frames) == 2


def test_duplicates_within_a_split_are_a_warning(sound: dict[str, list[Frame]]) -> None:
    twins = [replace(sound["train"][k], source=f"twin#{k}") for k in (0, 0, 7)]
    twins[1] = replace(twins[1], source="twin#again")
    report = examine({**sound, "train": [*sound["train"], *twins]})
    assert report.errors == []
    assert set(the(report, "duplicates").frames) == {"twin#0", "twin#again", "twin#7"}


def test_contradicting_energies(sound: dict[str, list[Frame]]) -> None:
    twin = replace(sound["train"][7], source="twin#7", energy=(sound["train"][7].energy or 0.0) + 0.2)
    report = examine({**sound, "train": [*sound["train"], twin]})
    assert set(the(report, "contradictions").frames) == {"alloy.xyz#7", "twin#7"}


def test_neighbouring_steps_across_splits(sound: dict[str, list[Frame]]) -> None:
    atoms = alloy(11)
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.003, atoms.positions.shape)
    report = examine({**sound, "test": [*sound["test"], frame_of(atoms, "next#0")]})
    assert the(report, "near duplicates").frames == ("next#0",)
    assert report.errors == []


def test_element_that_is_not_trained_on(sound: dict[str, list[Frame]]) -> None:
    atoms = alloy(4)
    atoms.symbols[0] = "Ag"
    report = examine({**sound, "test": [*sound["test"], frame_of(atoms, "silver#0")]})
    (finding,) = report.errors
    assert finding.check == "coverage"
    assert finding.message.startswith("Ag occurs in test but not in train")
    assert finding.frames == ("silver#0",)


def test_atoms_on_top_of_each_other(sound: dict[str, list[Frame]]) -> None:
    atoms = alloy(2)
    atoms.positions[1] = atoms.positions[0] + (0.0, 0.0, 0.2)
    report = examine({**sound, "train": [*sound["train"], frame_of(atoms, "fused#0")]})
    (finding,) = report.errors
    assert finding.check == "plausibility"
    assert "closer than 0.5 Å" in finding.message
    assert finding.frames == ("fused#0",)
    assert the(report, "distances").frames == ("fused#0",)


def test_nothing_to_examine() -> None:
    with pytest.raises(DataError, match="no frames to examine"):
        examine_data({"train": []})


def write(path: Path, frames: list[Frame]) -> Path:
    images = []
    for frame in frames:
        (atoms,) = frame.structure.to_ase()
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces, stress=frame.stress)
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


def test_files_with_nan_are_read_all_the_same(sound: dict[str, list[Frame]], tmp_path: Path) -> None:
    images = sound["train"][:12]
    write(tmp_path / "cu_train.xyz", images)
    text = (tmp_path / "cu_train.xyz").read_text()
    broken = text.replace(f"energy={images[4].energy}", "energy=nan")
    assert broken != text
    (tmp_path / "cu_train.xyz").write_text(broken)
    write(tmp_path / "cu-validation.xyz", sound["test"][:3])
    frames, findings = read_set([tmp_path])
    assert {name: len(part) for name, part in frames.items()} == {"train": 11, "valid": 3}
    (finding,) = findings
    assert finding.severity == "error"
    assert finding.frames == ("cu_train.xyz#4",)
    assert the(examine_data(frames, unreadable=findings, pictures=False), "readable") == finding
    frames, _ = read_set([f"first={tmp_path / 'cu-validation.xyz'}", tmp_path / "cu_train.xyz"])
    assert {name: len(part) for name, part in frames.items()} == {"train": 11, "first": 3}


def test_files_of_no_split_leak_nothing(sound: dict[str, list[Frame]], tmp_path: Path) -> None:
    """Copies in a file of its own, and a test file with atoms alone."""
    write(tmp_path / "train.xyz", sound["train"][:20])
    write(tmp_path / "scan.xyz", sound["train"][:2])
    write(tmp_path / "test.xyz", [frame_of(Atoms("Cu", cell=[12.0] * 3, pbc=True), "atom#0")])
    frames, _ = read_set([tmp_path])
    assert {name: len(part) for name, part in frames.items()} == {"train": 20, "test": 1, "other": 2}
    report = examine(frames)
    assert "leakage" in report.passed
    assert the(report, "duplicates").frames == ("scan.xyz#0", "scan.xyz#1")


def test_report_as_json_and_html(sound: dict[str, list[Frame]]) -> None:
    evil = replace(turned_round(sound["train"][2]), source="<script>alert(1)</script>.xyz#2")
    data = {**sound, "train": [*sound["train"][:2], evil, *sound["train"][3:]]}
    report = examine_data(data, subject="a <b>set</b>")
    values = json.loads(report.to_json())
    assert values["errors"] == 1
    assert values["findings"][0]["frames"] == [evil.source]
    page = report.html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.xyz#2" in page
    assert "a &lt;b&gt;set&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == len(report.pictures) == 4
    assert "http://" not in page
    assert "https://" not in page
    assert all(each.png.startswith(b"\x89PNG") for each in report.pictures)


def test_reference_data_pass(snnp_data: Path) -> None:
    report = examine({"train": read_frames(snnp_data / "mlearn" / "Mo_train.xyz")})
    assert [each.message for each in report.errors] == []


def test_published_split_leaks(snnp_data: Path) -> None:
    """Strained crystals of the copper set occur two to six times, with the same energy, on both sides of the split."""
    folder = snnp_data / "mlearn"
    parts = {"train": read_frames(folder / "Cu_train.xyz")[98:], "test": read_frames(folder / "Cu_test.xyz")}
    finding = the(examine(parts), "leakage")
    assert len(finding.frames) == 5
    trained = np.array([frame.energy for frame in parts["train"]])
    leaked = [frame for frame in parts["test"] if frame.source in finding.frames]
    closest = [float(np.abs(trained - frame.energy).min()) for frame in leaked]
    assert closest == pytest.approx([0.0] * 5, abs=0.06)  # eV for 108 atoms; two of them were converged differently
    assert sorted(closest)[2] < 1e-4


def test_lengths_in_nm_are_refused_before_they_fill_the_memory() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(0.1 * atoms.cell, scale_atoms=True)
    frames = [Frame(Structure.from_ase(atoms), -1.0, None, None, None, f"cu.xyz#{k}") for k in range(3)]
    with pytest.raises(DataError, match=r"cu\.xyz#0 has 0\.012 Å³ per atom, .*--units length=nm"):
        examine_data({"train": frames}, pictures=False)
