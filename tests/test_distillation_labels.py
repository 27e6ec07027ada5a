"""Teachers in processes of their own, and the store of their labels: nothing twice, nothing lost, nothing mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from snnp.data import Frames, load_dataset
from snnp.data.write import parquet_writer
from snnp.distillation import Crew, Labelling, LabelStore, Teacher, label
from snnp.distillation.crystals import frames_of
from snnp.errors import DataError, InputError
from snnp.models import Ensemble, SplineNNP, save_model, special_cases

EMT_TEACHER = "ase.calculators.emt:EMT"
ODD = '''
import os, time
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.calculator import Calculator, all_changes

class Odd(EMT):
    """EMT that fails on molecules of two (raises), three (NaN) and four atoms (dies), counts and waits."""
    def __init__(self, log=None, wait=0.0, weights=None, scale=1.0):
        super().__init__()
        self.log, self.wait, self.scale = log, wait, scale
        if weights:
            open(weights, "rb").read()
        print("this is no answer")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        time.sleep(self.wait)
        if self.log:
            with open(self.log, "a") as stream:
                stream.write("x")
        if len(atoms) == 2:
            raise ValueError("two is a crowd")
        if len(atoms) == 4 and not atoms.pbc.any():
            os._exit(9)
        super().calculate(atoms, properties, system_changes)
        for name in ("energy", "free_energy"):
            self.results[name] = self.results[name] * self.scale
        if len(atoms) == 3:
            self.results["forces"] = np.full((3, 3), np.nan)
'''


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A calculator in the present folder, which is none of our packages."""
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    return "odd:Odd"


def _crystals(number: int) -> Frames:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(number):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(0, 0.05, (4, 3))
        images.append(("crystal", atoms))
    return frames_of(images, "test")


def _molecule(n: int) -> tuple[str, Atoms]:
    return "molecule", Atoms(f"Cu{n}", [[2.3 * k, 0.1 * k * k, 0.0] for k in range(n)])


def _label(
    frames: Frames, teacher: Teacher, folder: Path, settings: Labelling | None = None
) -> tuple[Frames, tuple[tuple[str, str], ...]]:
    with Crew(teacher) as crew, LabelStore(folder, crew.identity) as store:
        done = label(frames, crew, store, settings or Labelling())
    return done.frames, done.failures


def test_labels_are_what_the_calculator_says(tmp_path: Path) -> None:
    frames = _crystals(5)
    seen = []
    settings = Labelling(workers=2, report=seen.append)
    labelled, failures = _label(frames, Teacher.of([EMT_TEACHER], python=sys.executable), tmp_path / "l", settings)
    assert failures == ()
    assert list(labelled.sources) == list(frames.sources)
    for row in range(len(frames)):
        (atoms,) = frames[row].structure.to_ase()
        atoms.calc = EMT()
        found = labelled[row]
        assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(found.stress, atoms.get_stress(voigt=False), atol=1e-12)
    assert [now.done for now in seen] == [1, 2, 3, 4, 5]
    assert seen[-1].seconds_left == 0.0


def test_labels_become_a_dataset_with_energies_of_atoms(tmp_path: Path) -> None:
    labelled, _ = _label(_crystals(3), Teacher.of([EMT_TEACHER]), tmp_path / "l")
    with parquet_writer(tmp_path / "set.parquet", "EMT", "ase") as writer:
        writer.add(labelled, "train")
    read = load_dataset(tmp_path / "set.parquet").frames()
    np.testing.assert_array_equal(read.energies, labelled.energies)
    images = load_dataset(tmp_path / "set.parquet").to_ase()
    for atoms in images:
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


def test_models_are_a_teacher_alone_and_together(tmp_path: Path) -> None:
    frames = _crystals(3)
    models = [SplineNNP(special_cases.eam(("Cu",)), seed=seed) for seed in (0, 1)]
    names = [str(save_model(model, tmp_path / f"m{k}") or tmp_path / f"m{k}") for k, model in enumerate(models)]
    single, _ = _label(frames, Teacher.of(names[:1]), tmp_path / "one")
    np.testing.assert_allclose(single.energy, models[0].compute(frames.structure()).energy, atol=1e-6)
    both, _ = _label(frames, Teacher.of(names), tmp_path / "both")
    expected = Ensemble(models).compute(frames.structure())
    np.testing.assert_allclose(both.energy, expected.energy, atol=1e-6)
    np.testing.assert_allclose(both.forces, expected.forces, atol=1e-6)
    extras = json.loads(str(both.extras[1]))
    assert extras["info"]["energy_std"] == pytest.approx(float(expected.energy_std[1]), abs=1e-6)
    with Crew(Teacher.of(names)) as crew:
        assert (crew.identity.n_members, crew.identity.elements) == (2, ("Cu",))


def test_several_calculators_give_mean_and_spread(tmp_path: Path, odd: str) -> None:
    frames = _crystals(2)
    teacher = Teacher.of([odd], kwargs=[{"scale": 1.0}, {"scale": 3.0}])
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert crew.identity.n_members == 2
        labelled = label(frames, crew, store).frames
    plain, _ = _label(frames, Teacher.of([odd]), tmp_path / "plain")
    np.testing.assert_allclose(labelled.energy, 2.0 * plain.energy, rtol=1e-12)
    assert json.loads(str(labelled.extras[0]))["info"]["energy_std"] == pytest.approx(abs(plain.energy[0]))


def test_nothing_is_labelled_twice(tmp_path: Path, odd: str) -> None:
    frames, log = _crystals(6), tmp_path / "calls"
    teacher = Teacher.of([odd], kwargs={"log": str(log)})
    first, _ = _label(frames[:4], teacher, tmp_path / "l")
    again, _ = _label(frames, teacher, tmp_path / "l")
    twice, _ = _label(Frames.concatenate([frames, frames]), teacher, tmp_path / "l")
    # Energy, forces and stress of a calculator of ASE are one calculation.
    assert len(log.read_text()) == 6
    np.testing.assert_array_equal(first.energy, again.energy[:4])  # to the bit: they are the stored ones
    assert len(twice) == 12


@pytest.mark.parametrize(("n", "said"), [(2, "two is a crowd"), (3, "NaN"), (4, "process ended")])
def test_failures_are_counted_and_the_rest_is_labelled(n: int, said: str, tmp_path: Path, odd: str) -> None:
    images = [("crystal", atoms) for atoms in (f.structure.to_ase()[0] for f in _crystals(12))]
    frames = frames_of([*images[:5], _molecule(n), *images[5:]], "test")
    labelled, failures = _label(frames, Teacher.of([odd]), tmp_path / "l", Labelling(workers=2))
    assert len(labelled) == 12
    ((source, reason),) = failures
    assert source == "test/molecule#5"
    assert said in reason


def test_too_many_failures_stop_the_run_and_keep_what_is_there(tmp_path: Path, odd: str) -> None:
    images = [("crystal", f.structure.to_ase()[0]) for f in _crystals(4)]
    frames = frames_of([*images, _molecule(2), _molecule(2)], "test")
    with pytest.raises(DataError, match=r"failed on 1 of 5 .* two is a crowd; mend the teacher"):
        _label(frames, Teacher.of([odd]), tmp_path / "l")
    with Crew(Teacher.of([odd])) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert len(store) == 4


def test_another_teacher_is_refused(tmp_path: Path, odd: str) -> None:
    (tmp_path / "w.pt").write_bytes(b"1" * 300)
    weighted = Teacher.of([odd], kwargs={"weights": "w.pt"})
    _label(_crystals(1), weighted, tmp_path / "l")
    for other in (Teacher.of([EMT_TEACHER]), Teacher.of([odd], kwargs={"scale": 2.0, "weights": "w.pt"})):
        with pytest.raises(DataError, match="holds labels of another teacher, Odd"):
            _label(_crystals(1), other, tmp_path / "l")
    (tmp_path / "w.pt").write_bytes(b"2" * 300)  # the same name, other weights
    with pytest.raises(DataError, match="other weights count as another teacher"):
        _label(_crystals(1), weighted, tmp_path / "l")
    identity = json.loads((tmp_path / "l/teacher.json").read_text())
    assert identity["packages"]["odd"] == {"name": "odd", "version": "", "licence": ""}


@pytest.mark.parametrize("cut", [1, 7, 200, 1500])
def test_a_damaged_tail_is_dropped(cut: int, tmp_path: Path) -> None:
    frames, teacher, path = _crystals(4), Teacher.of([EMT_TEACHER]), tmp_path / "l/labels.bin"
    whole, _ = _label(frames, teacher, tmp_path / "l")
    os.truncate(path, path.stat().st_size - cut)
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert 1 <= len(store) <= 3
        again = label(frames, crew, store).frames
    np.testing.assert_allclose(again.energy, whole.energy, rtol=1e-12)
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert (len(store), store.n_dropped) == (4, 0)


def test_damage_in_the_middle_costs_what_it_hit(tmp_path: Path) -> None:
    frames, teacher, path = _crystals(5), Teacher.of([EMT_TEACHER]), tmp_path / "l/labels.bin"
    _label(frames, teacher, tmp_path / "l")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert (len(store), store.n_dropped) == (4, 1)


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text("[1]")
    with pytest.raises(DataError, match="does not say whose labels"):
        _label(_crystals(1), Teacher.of([EMT_TEACHER]), tmp_path)


def test_a_kill_loses_no_label(tmp_path: Path, odd: str) -> None:
    """SIGKILL in the middle: what was there stays, and only the rest is labelled."""
    script = (
        "from test_distillation_labels import _crystals, _label, Teacher; from pathlib import Path\n"
        "_label(_crystals(16), Teacher.of(['odd:Odd'], kwargs={'wait': 0.1}), Path('l'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    path, deadline = tmp_path / "l/labels.bin", time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 3000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    teacher = Teacher.of([odd], kwargs={"wait": 0.1})
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        before = len(store)
        asked = []
        labelled = label(_crystals(16), crew, store, Labelling(report=asked.append)).frames
    assert before >= 1
    assert len(asked) == 16 - before
    assert len(labelled) == 16


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("no_such_package.calculator:Calculator", None, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("ase.calculators.emt:NoSuch", None, "AttributeError"),
        ("ase:Atoms", {"no_such": 1}, "no_such"),
        ("os:abort", None, "its process ended"),
    ],
)
def test_the_own_error_of_a_teacher_is_shown(name: str, kwargs: dict[str, int] | None, said: str) -> None:
    with pytest.raises(InputError, match="does not start in") as caught:
        Crew(Teacher.of([name], kwargs=kwargs))
    assert said in str(caught.value)


def test_teachers_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be started"):
        Crew(Teacher.of([EMT_TEACHER], python=tmp_path / "bin/python"))
    with pytest.raises(InputError, match="not some of each"):
        Teacher.of(["snnp-cu", EMT_TEACHER])
    with pytest.raises(InputError, match="no teacher"):
        Teacher.of([])
    with pytest.raises(InputError, match="is a model of snnp"):
        Teacher.of(["snnp-cu"], kwargs={"a": 1})
    with pytest.raises(InputError, match="2 calculators and 3 sets"):
        Teacher.of([EMT_TEACHER, EMT_TEACHER], kwargs=[{}, {}, {}])
    with pytest.raises(InputError, match=r"snnp-cupper.*Did you mean"):
        Crew(Teacher.of(["snnp-cupper"]))


def test_a_universal_potential_of_another_environment(tmp_path: Path) -> None:
    python = os.environ.get("SNNP_SEVENN_PYTHON")
    if python is None:
        pytest.skip("SNNP_SEVENN_PYTHON is not set: it names the python of an environment with sevenn==0.13.0")
    teacher = Teacher.of(["sevenn.calculator:SevenNetCalculator"], python=python, kwargs={"model": "7net-0"})
    with Crew(teacher) as crew, LabelStore(tmp_path / "l", crew.identity) as store:
        assert crew.identity.packages["sevenn"]["licence"].startswith("MIT")
        assert any("checkpoint_sevennet_0" in name for name in crew.identity.files.values())
        labelled = label(_crystals(2), crew, store).frames
    np.testing.assert_allclose(labelled.per_frame(labelled.energies), labelled.energy, atol=1e-4)
    assert labelled.has_stress.all()


def test_where_electrons_are_smeared_the_energy_is_that_of_the_forces() -> None:
    from ase.build import bulk
    from ase.calculators.singlepoint import SinglePointCalculator

    from snnp.distillation.worker import _label

    atoms = bulk("Al")
    both = SinglePointCalculator(atoms, energy=-3.0, free_energy=-3.1, forces=np.zeros((1, 3)), stress=np.zeros(6))
    assert _label(both, atoms)["energy"] == -3.1
    one = SinglePointCalculator(atoms, energy=-3.0, forces=np.zeros((1, 3)), stress=np.zeros(6))
    assert _label(one, atoms)["energy"] == -3.0
