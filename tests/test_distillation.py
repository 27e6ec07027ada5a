"""From element symbols, data or molecules to a student, with small teachers; what is asked for wrongly is said."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from cli_runs import run_json
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.data import Frames, load_dataset, read_frames
from snnp.distillation import Bars, DistilProgress, DistilSettings, distil, exploration, plan
from snnp.distillation.crystals import (
    Crystal,
    above_the_lowest,
    bearable,
    crystals_from_scan,
    energy_scale,
    first_scan,
    frames_of,
    second_scan,
    within_reach,
)
from snnp.distillation.defects import SHARES, pool, pressed
from snnp.distillation.selection import choose
from snnp.distillation.verdict import behaviour
from snnp.errors import ConfigError, DataError, InputError
from snnp.models import SplineNNP, save_model, special_cases
from snnp.training import load_config

pytestmark = pytest.mark.usefixtures("without_pictures")

EMT_TEACHER = "ase.calculators.emt:EMT"
SMALL: dict[str, Any] = {
    "optimiser": {"epochs": 8},
    "loss": {"stress_weight": 30.0, "energy_scale": None},
    "compression": None,
    "model": {
        "radial": {"n_filters": 4, "cutoff": 4.5},
        "angular": {"n_filters": 4, "cutoff": 4.5, "degree": 2},
        "network": {"hidden": [8]},
    },
}


def _labelled(frames: Frames) -> Frames:
    """By EMT in this process."""
    energy = []
    for frame in frames:
        (atoms,) = frame.structure.to_ase()
        atoms.calc = EMT()
        energy.append(atoms.get_potential_energy())
    return replace(frames, energy=np.array(energy), has_energy=np.ones(len(frames), dtype=bool))


@pytest.fixture(scope="module")
def scan() -> tuple[Frames, Frames]:
    first = _labelled(first_scan(["Cu", "Ni"]))
    return first, _labelled(second_scan(first))


def test_volumes_are_those_of_the_teacher(scan: tuple[Frames, Frames]) -> None:
    crystals = {crystal.name: crystal for crystal in crystals_from_scan(scan[1])}
    assert {"fcc Cu", "bcc Cu", "hcp Ni", "L1_2 NiCu3", "L1_2 Ni3Cu", "L1_0 Ni2Cu2", "B2 NiCu"} <= {
        name.replace("CuNi3", "Ni3Cu").replace("Cu3Ni", "NiCu3").replace("Cu2Ni2", "Ni2Cu2").replace("CuNi", "NiCu")
        for name in crystals
    }
    # EMT's own lattice constants, by a minimum in steps of 1e-4 Å.
    for name, symbol in (("fcc Cu", "Cu"), ("fcc Ni", "Ni")):
        energies = {}
        for a in np.arange(3.4, 3.7, 0.0025):
            atoms = bulk(symbol, a=a)
            atoms.calc = EMT()
            energies[a] = atoms.get_potential_energy()
        assert crystals[name].atoms.cell.lengths()[0] == pytest.approx(
            min(energies, key=energies.__getitem__), abs=0.006
        )
    assert crystals["fcc Cu"].spacing == pytest.approx(3.59 / np.sqrt(2), abs=0.01)
    assert 900 < crystals["fcc Cu"].temperature < 1700
    assert [each.energy for each in crystals.values()] == sorted(each.energy for each in crystals.values())


def test_a_pool_holds_all_kinds_and_is_the_same_for_the_same_seed(scan: tuple[Frames, Frames]) -> None:
    crystals = crystals_from_scan(scan[1])
    frames = pool(crystals, 120, seed=1)
    kinds = Counter(frames.groups)
    assert set(kinds) == {*SHARES, "dimer"}
    assert kinds["dimer"] == 36
    np.testing.assert_array_equal(frames.positions, pool(crystals, 120, seed=1).positions)
    per_atom = np.abs(np.linalg.det(frames.cell)) / frames.counts
    squeezed = np.array([kind == "squeezed" for kind in frames.groups])
    assert per_atom[squeezed].min() < 0.75 * crystals[0].volume
    assert set(frames.elements) == {"Cu", "Ni"}
    for row in range(len(frames)):
        (atoms,) = frames[row].structure.to_ase()
        distances = atoms.get_all_distances(mic=bool(atoms.pbc.any())) + 9.0 * np.eye(len(atoms))
        # Dimers begin at 0.62 of the spacing; of crystals at half their volume an atom's own image is the nearest.
        assert distances.min() > 0.55 * crystals[0].spacing, frames.sources[row]


def test_what_a_teacher_does_not_know_of_compression_is_not_taught(scan: tuple[Frames, Frames]) -> None:
    """Energies that level off inwards are no labels: neither the scan nor squeezed crystals go there."""
    first = scan[0]
    assert len(within_reach(first)) == len(first)
    volume = np.abs(np.linalg.det(first.cell)) / first.counts
    rows = [row for row in range(len(first)) if first.groups[row] == "scan fcc Cu"]
    edge = np.sort(volume[rows])[1]
    energy = first.energy.copy()
    innermost = rows[int(np.argmin(volume[rows]))]
    energy[innermost] = energy[rows][np.argsort(volume[rows])[1]] + 0.001
    soft = replace(first, energy=energy)
    kept = within_reach(soft)
    assert {*first.sources} - {*kept.sources} == {first.sources[innermost]}
    crystals = {each.name: each for each in crystals_from_scan(scan[1], soft)}
    assert crystals["fcc Cu"].least_volume == pytest.approx(edge)
    assert 0.0 < crystals["fcc Ni"].least_volume < 0.6 * crystals["fcc Ni"].volume
    assert 0.3 < energy_scale(list(crystals.values())) < 1.2
    copper = pool([crystals["fcc Cu"]], 400, seed=0)
    per_atom = np.abs(np.linalg.det(copper.cell)) / copper.counts
    squeezed = np.array([kind == "squeezed" for kind in copper.groups])
    assert per_atom[squeezed].min() > 0.9 * edge  # cells are deformed besides
    elastic = np.array([kind == "elastic" for kind in copper.groups])
    assert np.abs(per_atom[elastic] / crystals["fcc Cu"].volume - 1.0).max() < 0.08


def _brass(folder: Path) -> Path:
    bulk("CuNi", "cesiumchloride", a=2.85).write(folder / "brass.cif")
    return folder / "brass.cif"


def test_crystals_from_files_are_what_a_student_is_made_for(tmp_path: Path) -> None:
    first = _labelled(first_scan(["Cu", "Ni"], [_brass(tmp_path)]))
    crystals = crystals_from_scan(_labelled(second_scan(first)), first)
    assert [each.name for each in crystals if each.named] == [crystals[0].name]
    assert crystals[0].name.startswith("brass ")
    plain = crystals_from_scan(_labelled(second_scan(first)), first)[1:]
    assert [each.energy for each in plain] == sorted(each.energy for each in plain)

    def share(of: list[Crystal]) -> float:
        both = [row for row in pool(of, 300, 0) if row.structure.n_atoms > 2]
        return float(np.mean([set(row.structure.to_ase()[0].symbols) == {"Cu", "Ni"} for row in both]))

    assert share(crystals) > 0.7 > share(plain)


def test_alloys_are_not_drowned_by_the_element_that_binds_most() -> None:
    def crystal(name: str, symbols: str, energy: float) -> Crystal:
        return Crystal(name, Atoms(symbols, cell=np.eye(3) * 3.0, pbc=True), energy, 0.9)

    strong, weak = crystal("fcc Ni", "Ni", -5.8), crystal("fcc Al", "Al", -3.7)
    alloy, other = crystal("B2 AlNi", "AlNi", -5.4), crystal("B1 AlNi", "AlNi", -5.0)
    np.testing.assert_allclose(above_the_lowest([strong, alloy, other, weak]), [0.0, 0.0, 0.4, 0.0], atol=1e-12)


def test_crystals_are_pressed_along_single_directions() -> None:
    fcc, bcc = (
        Crystal("fcc Cu", bulk("Cu", cubic=True), -3.7, 0.9),
        Crystal("bcc Cu", bulk("Cu", "bcc", a=2.87), -3.6, 1),
    )
    frames = pressed([fcc, bcc, replace(fcc, name="sc Cu")], 60)
    assert Counter(frames.groups) == {f"scan [{w}] {n} Cu": 10 for w in ("100", "110", "111") for n in ("fcc", "bcc")}
    assert pressed([fcc, bcc], 39).groups == frames.groups[:30]  # never a part of a way, of which nothing could be told
    assert len(pressed([fcc, bcc], 9)) == 0
    volume = np.abs(np.linalg.det(frames.cell)) / frames.counts
    along = [row for row, kind in enumerate(frames.groups) if kind == "scan [110] fcc Cu"]
    assert (volume[along] / fcc.volume)[[-1, 0]] == pytest.approx([1.0, 0.5])
    cell = frames.cell[along[0]] / fcc.atoms.cell.lengths()[0]
    way = np.array([1.0, 1.0, 0.0]) / np.sqrt(2.0)
    assert np.linalg.norm(way @ cell) == pytest.approx(0.5)  # halved along [110], all else as it was
    assert np.linalg.norm(np.array([1.0, -1.0, 0.0]) @ cell) == pytest.approx(np.sqrt(2.0))
    assert cell[2, 2] == pytest.approx(1.0)
    energy = np.where(volume < 0.6 * fcc.volume, -9.0, -3.0) + 20.0 * (1.0 - volume / fcc.volume) ** 2
    soft = replace(frames, energy=energy * frames.counts, has_energy=np.ones(len(frames), dtype=bool))
    kept = within_reach(soft)
    assert (np.abs(np.linalg.det(kept.cell)) / kept.counts).min() > 0.6 * fcc.volume
    assert len(kept) > 0.6 * len(frames)


def test_of_alloys_the_lowest_crystals_of_each_element_and_of_both_are_pressed(scan: tuple[Frames, Frames]) -> None:
    systems = Counter(
        "".join(sorted(set(f.structure.to_ase()[0].symbols))) for f in pressed(crystals_from_scan(scan[1]), 99)
    )
    assert systems == {"Cu": 30, "Ni": 30, "CuNi": 30}


def test_forces_that_nothing_bears_are_not_learned() -> None:
    fcc = Crystal("fcc Cu", bulk("Cu", a=3.6), -3.7, 0.9)  # spacing 2.55 Å: 17.5 eV/Å
    images = [("a", Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]], cell=np.eye(3) * 9, pbc=True)) for _ in range(3)]
    frames = frames_of(images, "t")
    forces = np.zeros_like(frames.positions)
    forces[0:2, 2], forces[4:6, 2] = (-17.0, 17.0), (-18.0, 18.0)
    frames = replace(frames, forces=forces, has_forces=np.ones(3, dtype=bool))
    assert bearable(frames, [fcc]).sources == frames.sources[:2]
    stiff = replace(fcc, bulk_modulus=9.0)
    assert bearable(frames, [stiff, fcc]).sources == frames.sources == bearable(frames, []).sources
    assert len(bearable(replace(frames, forces=2.0 * forces), [])) == 1  # 34 and 36 eV/Å


def test_crystals_of_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bulk("NiO", "rocksalt", a=4.2, cubic=True).write(tmp_path / "oxide.cif")
    with pytest.raises(InputError, match=r"oxide.cif has O, which --elements Ni does not name"):
        first_scan(["Ni"], [tmp_path / "oxide.cif"])
    Atoms("Ni2", [[0, 0, 0], [0, 0, 2.2]]).write(tmp_path / "pair.xyz")
    with pytest.raises(InputError, match=r"pair.xyz is not periodic in three directions; crystals need a cell"):
        first_scan(["Ni"], [tmp_path / "pair.xyz"])
    bulk("Ni", a=9.0).write(tmp_path / "wide.cif")
    with pytest.raises(InputError, match=r"the teacher's energy of wide Ni has no minimum between half and 1.7 times"):
        second_scan(_labelled(first_scan(["Ni"], [tmp_path / "wide.cif"])))
    bulk("Ni").write(tmp_path / "fcc.cif")
    with pytest.raises(InputError, match=r"there is a crystal 'fcc Ni' already; give .*fcc.cif another name"):
        first_scan(["Ni"], [tmp_path / "fcc.cif"])
    brass = _labelled(first_scan(["Cu", "Ni"], [_brass(tmp_path)]))
    second = _labelled(second_scan(brass))
    falling = replace(second, energy=np.where([g == "scan brass CuNi" for g in second.groups], -1e3, second.energy))
    with pytest.raises(InputError, match="the teacher has no minimum of energy for brass CuNi; leave it away"):
        crystals_from_scan(falling, brass)
    with pytest.raises(ConfigError, match="crystals stand beside elements"):
        DistilSettings(teachers=("a:b",), data=("x",), crystals=("y.cif",))


def test_unknown_symbols_and_teachers_without_crystals() -> None:
    with pytest.raises(InputError, match="'Xy' is no chemical symbol"):
        first_scan(["Cu", "Xy"])
    first = first_scan(["Cu"])
    flat = replace(first, energy=np.zeros(len(first)), has_energy=np.ones(len(first), dtype=bool))
    with pytest.raises(InputError, match="no minimum of energy for any crystal of Cu"):
        second_scan(flat)


def test_what_is_new_is_chosen_first() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(20):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(0, 0.01, (4, 3))
        images.append(("like", atoms))
    images.append(("like", bulk("Cu", "bcc", a=2.5, cubic=True)))
    frames = frames_of(images, "t")
    chosen = choose(frames, 5, {"like": 1.0}, known=frames[:3])
    assert len(chosen) == 5
    assert "t/like#20" in chosen.sources
    assert len(set(chosen.sources)) == 5
    assert choose(frames, 50, {"like": 1.0}) is frames
    other = frames_of([("rare", Atoms("Cu")), *images], "t")
    assert "t/rare#0" in choose(other, 3, {"like": 1.0}).sources  # a kind without a share is always taken


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short runs."""
    monkeypatch.setattr(exploration, "_PICOSECONDS", 0.1)
    monkeypatch.setattr("snnp.distillation.run._STARTS", 4)
    monkeypatch.setattr(behaviour, "_PICOSECONDS", 0.2)


def test_from_symbols_to_a_student(quick: None, tmp_path: Path) -> None:
    """Stopped while it labels and resumed, it is the run that was never stopped, and every bar is judged."""
    asked: dict[str, Any] = {"teachers": [EMT_TEACHER], "elements": ["Cu"], "rounds": 1, "student": SMALL}
    settings = DistilSettings(**asked, budget=120, bars=Bars(force_cosine=0.1, reference_force_ratio=2.0, hot_md=False))

    class StopError(Exception):
        pass

    def stop(now: DistilProgress) -> None:
        if now.stage == "labels: structures" and now.done == 5:
            raise StopError

    with pytest.raises(StopError):
        distil(settings, tmp_path / "run", stop)
    seen: list[DistilProgress] = []
    with pytest.raises(ConfigError, match="already holds a distillation"):
        distil(settings, tmp_path / "run")
    with pytest.raises(ConfigError, match="another budget"):
        distil(settings.model_copy(update={"budget": 121}), tmp_path / "run", resume=True)
    result = distil(settings, tmp_path / "run", seen.append, resume=True)
    totals = {now.stage: now.total for now in seen}
    assert "labels: crystals" not in totals  # nothing is left of them
    assert result.n_labels == 120
    failed = [finding.check for finding in result.report.errors]
    assert failed == ["reference_force_ratio"]  # set, and not measured
    assert "force_cosine" in result.report.passed
    assert not result.accepted
    told = json.loads((tmp_path / "run/report.json").read_text())["facts"]
    assert {"Teacher", "Crystals at rest", "Dynamics of the student", "Speed"} <= set(told)
    said = json.loads((tmp_path / "run/provenance.json").read_text())
    assert said["licence"].startswith("LGPL")
    page = (tmp_path / "run/report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "Distilled: run, a student of" in page
    assert "doctor" not in page
    # Again, with other bars: nothing but the report is new.
    again = distil(
        settings.model_copy(update={"bars": Bars(force_cosine=0.1, hot_md=False)}), tmp_path / "run", resume=True
    )
    assert again.accepted


def test_energies_of_the_data_and_forces_of_an_ensemble(quick: None, tmp_path: Path) -> None:
    names = []
    for seed in (0, 1):
        save_model(SplineNNP(special_cases.eam(("Cu",)), seed=seed), tmp_path / f"m{seed}")
        names.append(str(tmp_path / f"m{seed}"))
    frames = _labelled(frames_of([("a", bulk("Cu", cubic=True, a=a)) for a in np.linspace(3.4, 3.9, 12)], "t"))
    images = []
    for frame in frames:
        (atoms,) = frame.structure.to_ase()
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy)
        images.append(atoms)
    ase.io.write(tmp_path / "data.xyz", images, format="extxyz")
    asked: dict[str, Any] = {"data": [str(tmp_path / "data.xyz")], "method": "ekd", "student": SMALL}
    with pytest.raises(InputError, match="method ekd needs an ensemble"):
        distil(DistilSettings(teachers=names[:1], **asked), tmp_path / "one")
    settings = DistilSettings(teachers=names, **asked, bars=Bars(force_cosine=None, hot_md=False))
    result = distil(settings, tmp_path / "run")
    assert result.accepted
    learned = {frame.source: frame for frame in load_dataset(tmp_path / "run/labels.parquet")}
    assert sorted(frame.energy for frame in learned.values()) == pytest.approx(sorted(frames.energy))
    assert all(frame.stress is None for frame in learned.values())


def test_an_ensemble_speaks_beside_the_data_and_not_for_them(quick: None, tmp_path: Path) -> None:
    models = [SplineNNP(special_cases.eam(("Cu",), cutoff=4.5), seed=seed) for seed in (0, 1)]
    for seed, model in enumerate(models):
        save_model(model, tmp_path / f"m{seed}")
    frames = _labelled(
        frames_of([("a", bulk("Cu", cubic=True, a=a)) for a in np.linspace(3.4, 3.9, 12)] + [("b", Atoms("Cu"))], "t")
    )
    images = []
    for frame in frames:
        (atoms,) = frame.structure.to_ase()
        forces = np.zeros((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=forces)
        images.append(atoms)
    ase.io.write(tmp_path / "data.xyz", images, format="extxyz")
    settings = DistilSettings(
        teachers=[str(tmp_path / "m0"), str(tmp_path / "m1")],
        data=[str(tmp_path / "data.xyz")],
        method="self",
        budget=40,
        student=SMALL,
        bars=Bars(force_cosine=None, hot_md=False),
    )
    distil(settings, tmp_path / "run")
    dataset = load_dataset(tmp_path / "run/labels.parquet")
    learned = [frame for frame in dataset if frame.source.startswith("data.xyz")]
    assert sorted(frame.energy or 0.0 for frame in learned) == pytest.approx(sorted(frames.energy))
    copies = [frame for frame in dataset if not frame.source.startswith("data.xyz")]
    assert len(learned) == 13
    assert len(copies) == 27
    for frame in copies:
        assert frame.n_atoms == 4  # no copies of isolated atoms
        both = [model.compute(frame.structure) for model in models]
        mean = sum(np.asarray(each.forces.detach()) for each in both if each.forces is not None) / 2.0
        assert frame.forces == pytest.approx(mean, abs=1e-4)
    assert all(not frame.source.startswith("data.xyz") for frame in dataset.select("test"))


def test_how_a_teacher_divides_the_energy_beside_labels_of_the_data(quick: None, tmp_path: Path) -> None:
    """Energies and forces of the data, energies of atoms of the teacher, and an equal student without the latter."""
    images = []
    for k in range(24):
        atoms = bulk("Cu", cubic=True, a=3.45 + 0.02 * k)
        atoms.rattle(0.1, seed=k)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy() - 7.0 * len(atoms), 1.1 * atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        images.append(atoms)
    ase.io.write(tmp_path / "data.xyz", images[:20], format="extxyz")
    ase.io.write(tmp_path / "reference.xyz", images[20:], format="extxyz")
    settings = DistilSettings(
        teachers=[EMT_TEACHER],
        data=[str(tmp_path / "data.xyz")],
        method="teacher-student",
        student=SMALL,
        reference=[str(tmp_path / "reference.xyz")],
        bars=Bars(baseline_force_ratio=50.0, force_cosine=None, hot_md=False),
    )
    result = distil(settings, tmp_path / "run")
    assert result.accepted
    assert "baseline_force_ratio" in result.report.passed
    learned = load_dataset(tmp_path / "run/labels.parquet").frames()
    known = {frame.source: frame for frame in read_frames(tmp_path / "data.xyz")}
    for frame in learned:
        assert frame.energy == known[frame.source].energy
        np.testing.assert_array_equal(frame.forces, known[frame.source].forces)
        # The teacher's own, from its own zero.
        assert frame.energies.sum() == pytest.approx(frame.energy + 7.0 * frame.n_atoms, abs=1e-5)
    loss = {name: load_config(tmp_path / f"run/{name}/config.yaml").loss for name in ("student", "baseline")}
    assert loss["student"].atomic_energy_weight > 0.0
    assert not loss["baseline"].teaches_atoms
    assert loss["baseline"].energy_weight == loss["student"].energy_weight
    errors = json.loads((tmp_path / "run/student/summary.json").read_text())["errors"]["train"]
    assert 0.0 < errors["atomic_energy_mae_mev"] < 500.0
    assert "What the teacher is worth" in (tmp_path / "run/report.md").read_text()


def test_a_teacher_without_energies_of_atoms_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from ase.calculators.emt import EMT\n\nclass Whole(EMT):\n    def calculate(self, *given):\n"
    (tmp_path / "whole.py").write_text(
        f"{text}        super().calculate(*given)\n        del self.results['energies']\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = DistilSettings(teachers=["whole:Whole"], elements=["Cu"], method="teacher-student")
    for run in (plan, lambda asked: distil(asked, tmp_path / "run")):
        with pytest.raises(InputError, match=r"energies of single atoms, of which Whole.* gives none"):
            run(settings)
    assert not (tmp_path / "run/labels/labels.bin").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "one of elements, data and molecules; none was given"),
        ({"elements": ["Cu"], "data": ["a.xyz"]}, "elements and data were given"),
        ({"elements": ["Cu"], "method": "ekd"}, "method ekd learns energies of reference data"),
        ({"elements": ["Cu"], "buget": 3}, r"unknown key 'buget'.* Did you mean 'budget'"),
        ({"elements": ["Cu"], "budget": 0}, "budget: Input should be greater"),
        ({"elements": ["Cu"], "bars": {"force_cosin": 1}}, "bars.force_cosin"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DistilSettings(teachers=[EMT_TEACHER], **values)


def test_what_does_not_fit_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    def run(**values: Any) -> None:
        distil(DistilSettings(**{"teachers": [EMT_TEACHER], "elements": ["Cu"], **values}), tmp_path / "run")

    with pytest.raises(InputError, match=r"snnp-cu .* does not know Al"):
        run(teachers=["snnp-cu"], elements=["Cu", "Al"])
    with pytest.raises(ConfigError, match=r"student.model.elements lacks Cu"):
        run(student={"model": {"elements": ["Al"]}})
    ase.io.write(tmp_path / "gold.xyz", Atoms("Au2", [[0, 0, 0], [0, 0, 2.5]]))
    for asked in ({"data": [str(tmp_path / "gold.xyz")]}, {"molecules": [str(tmp_path / "gold.xyz")]}):
        with pytest.raises((InputError, DataError), match=r"does not know Au|energies"):
            run(teachers=["snnp-cu"], elements=[], **asked)
    with pytest.raises(ConfigError, match=r"student.model sees 4.5 Å, the models that it is to become"):
        run(teachers=["snnp-cu", "snnp-cu"], method="self", student=SMALL)
    with pytest.raises(InputError, match="method self needs an ensemble"):
        run(teachers=["snnp-cu"], method="self")
    with pytest.raises(ConfigError, match=r"student.data"):
        run(student={"data": {"train": "a"}})
    with pytest.raises(ConfigError, match="leaves nothing beside the 46 labels"):
        run(budget=20)
    for missing in ({"reference": ["no.xyz"]}, {"elements": [], "data": ["no.xyz"]}):
        with pytest.raises(DataError, match=r"no.xyz does not exist"):
            run(**missing)
    assert not (tmp_path / "run/labels/labels.bin").exists()


def test_a_plan_counts_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(DistilSettings(teachers=[EMT_TEACHER], elements=["Cu"], budget=200, workers=2))
    assert sum(found.labels.values()) == pytest.approx(200, abs=15)
    assert found.seconds == pytest.approx(found.n_atoms * found.seconds_per_atom / 2)
    assert list(tmp_path.iterdir()) == []


def test_the_command(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(json.dumps(SMALL))
    words = ["distill", EMT_TEACHER, "--elements", "Cu", "Al", "--budget", "220", "--rounds", "0"]
    planned = run_json(*words, "--dry-run")
    assert planned["labels"]["dimer"] == 36
    wrong = CliRunner().invoke(app, ["distill", EMT_TEACHER, "--elements", "Cu", "--kwargs", "{model"])
    assert wrong.exit_code == 1
    assert "--kwargs is not JSON" in wrong.stderr
    bars = [word for name in ("elastic=9", "lattice_constant=9", "force_cosine=-1", "nve_drift=1e9")
            for word in ("--bars", name)]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--student", "small.yaml", "--out", "run", *bars])
    assert done.exit_code in (0, 3), done.output
    assert "Student against teacher" in done.stdout
    refused = CliRunner().invoke(app, ["distill", "--resume", "run", "--budget", "3"])
    assert refused.exit_code == 1
    assert "only --reference, --bars, " in refused.stderr
    again = CliRunner().invoke(app, ["distill", "--resume", "run", "--bars", "elastic=1e-9"])
    assert again.exit_code == 3  # judged anew; what was computed is not computed again
    assert "elastic is" in again.stderr


@pytest.mark.parametrize("words", [["--budget", "3"], ["--rounds", "0"], ["--seed", "0"], ["--elements", "Cu"]])
def test_a_resumed_run_refuses_what_would_change_it(words: list[str]) -> None:
    refused = CliRunner().invoke(app, ["distill", "--resume", "run", *words])
    assert refused.exit_code == 1
    assert "only --reference, --bars, " in refused.stderr
