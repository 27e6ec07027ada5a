"""Cards of models, and the building of a bundled model from its recipe: a pair potential learned from copper cells."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from peers.published import comparison_page

from snnp import training
from snnp.analysis.card import card_markdown
from snnp.data import Frame, load_dataset
from snnp.distillation import DistilSettings
from snnp.errors import ConfigError, DataError
from snnp.models.config import RepulsionConfig
from snnp.models.hipnn.model import HIPNN, HIPNNConfig
from snnp.models.spline.config import AngularConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import load_model
from snnp.report import Table
from snnp.sampling import build_structure
from snnp.structure import Structure
from snnp.training.problem import load_problem

RECIPE = {
    "model": {
        "radial": {"n_filters": 6, "cutoff": 5.0, "intervals": 10},
        "angular": {"n_filters": 0},
        "network": None,
    },
    "optimiser": {"epochs": 30, "learning_rate": 0.05, "batch_atoms": 64},
    "threads": 1,
    "compression": None,  # pairs alone cannot follow it
    "metadata": {"description": "a pair potential for copper", "citation": "nobody, yet", "licence": "MIT"},
}


@pytest.fixture(scope="module")
def build_module(repository: Path) -> ModuleType:
    """model_zoo/build.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("build_zoo", repository / "model_zoo" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_zoo"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def _copper_cells(n: int, seed: int) -> list[Atoms]:
    """Strained and shaken fcc cells with the energies of a Morse potential."""
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(n):
        atoms = bulk("Cu", a=3.7 * rng.uniform(0.92, 1.08), cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.standard_normal((3, 3))), scale_atoms=True)
        atoms.rattle(0.12, rng=rng)
        atoms.calc = MorsePotential(epsilon=0.34, r0=2.866, rho0=3.9, rcut1=4.0, rcut2=5.0)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["group"] = "shaken"
        cells.append(atoms)
    return cells


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with the recipe of one model, `pair-cu`, and its data."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "mlearn").mkdir()
    ase.io.write(folder / "cells.xyz", _copper_cells(60, 1))
    ase.io.write(folder / "mlearn" / "test.xyz", _copper_cells(8, 2))
    recipe = {**RECIPE, "data": {"train": [f"{folder}/cells.xyz"], "valid": 0.1, "test": f"{folder}/mlearn/test.xyz"}}
    (folder / "pair-cu").mkdir()
    (folder / "pair-cu" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def built(build_module: ModuleType, zoo: Path) -> Path:
    """The model, built by one command from a run that was interrupted in its middle."""

    def interrupt(progress: training.Progress) -> None:
        if progress.epoch == 10:
            raise KeyboardInterrupt

    run = zoo / "run"
    with pytest.raises(KeyboardInterrupt):
        training.train(training.load_config(zoo / "pair-cu" / "recipe.yaml"), run, interrupt)
    assert not (run / "summary.json").exists()
    command = ["pair-cu", "--zoo", str(zoo), "--run", str(run), "--quick", "--table", "--page", str(zoo / "models.md")]
    assert build_module.main(command) == 0
    return zoo / "pair-cu"


def test_model_folder_is_complete_and_loads(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}
    about = load_model(built).metadata
    assert about["name"] == "pair-cu"
    for key in ("energy_mae_mev_per_atom", "force_rmse_ev_per_angstrom"):
        assert about["metrics"][key] == pytest.approx(about["errors"]["test"][key])
    assert about["metrics"]["groups"]["shaken"]["n_structures"] == 8
    assert about["training"]["epochs"] == 30
    assert about["training_range"]["n_frames"] == 54
    assert about["speed"]["n_atoms"] == 1008
    assert 0.0 < about["speed"]["us_per_atom"] <= about["speed"]["us_per_atom_median"]
    assert about["built"]["versions"]["torch"] == torch.__version__
    stability = about["stability"]["Cu"]
    assert stability["langevin"]["target_k"] == pytest.approx(0.8 * 1358.0)
    assert stability["nve"]["survived"]


def test_elastic_constants_are_those_of_a_pair_potential(built: Path) -> None:
    copper = load_model(built).metadata["properties"]["Cu"]
    assert copper["c12_gpa"] == pytest.approx(copper["c44_gpa"], rel=1e-3)
    assert copper["references"]["experiment"]["c11_gpa"] == 168.4


def test_compression_is_recorded_and_stated(build_module: ModuleType, built: Path, zoo: Path) -> None:
    model = load_model(built)
    scan = model.metadata["compression"]
    assert [each["way"] for each in scan] == ["hydrostatic", "[100]", "[110]", "[111]"]
    assert all(each["hole"] is None for each in scan)
    cells = ase.io.read(zoo / "cells.xyz", index=":")
    frames = [Frame(Structure.from_ase(atoms), -1.0, None, None, None, "cells") for atoms in cells]
    seen = build_module.training_range(frames, model)
    volumes = [atoms.get_volume() / len(atoms) for atoms in cells]
    assert seen["volume_a3_per_atom"] == pytest.approx([min(volumes), max(volumes)])
    equilibrium = model.metadata["properties"]["Cu"]["lattice_constant_angstrom"] ** 3 / 4.0
    assert seen["smallest_v_over_v0"] == pytest.approx(min(volumes) / equilibrium, rel=2e-3)
    card = (built / "README.md").read_text()
    assert "the energy rises all the way: fcc Cu hydrostatic to V/V0 = 0.2, fcc Cu [100] to V/V0 = 0.5" in card
    stated = model.metadata["training_range"]
    assert f"; V/V0 is at least {stated['smallest_v_over_v0']:.3f}, V0 being that of the crystals at rest" in card


def test_a_model_that_implodes_is_not_written(
    build_module: ModuleType, built: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run without its repulsion."""
    shutil.copytree(zoo / "run", tmp_path / "run")
    stored = tmp_path / "run" / "best" / "config.json"
    description = json.loads(stored.read_text())
    description["config"]["repulsion"] = None
    stored.write_text(json.dumps(description))
    (tmp_path / "pair-cu").mkdir()
    shutil.copy(built / "recipe.yaml", tmp_path / "pair-cu")
    command = ["pair-cu", "--zoo", str(tmp_path), "--run", str(tmp_path / "run"), "--quick"]
    assert build_module.main(command) == 1
    assert "pair-cu implodes (fcc Cu, hydrostatic: beyond a barrier at V/V0 = 0." in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "pair-cu").iterdir()} == {"recipe.yaml"}
    assert build_module.main([*command, "--allow-holes"]) == 0
    assert "- **It implodes.** fcc Cu, hydrostatic" in (tmp_path / "pair-cu" / "README.md").read_text()


def test_card_says_what_the_file_says(built: Path) -> None:
    card, about = (built / "README.md").read_text(), load_model(built).metadata
    assert card.startswith("# pair-cu\n\na pair potential for copper.\n")
    headings = re.findall(r"^## (.*)", card, flags=re.MULTILINE)
    assert headings == [
        *("Use", "Data", "Errors", "Properties", "Stability", "Speed", "Limits", "Citation", "How it was made"),
    ]
    for value, digits in (
        (about["metrics"]["energy_mae_mev_per_atom"], 2),
        (about["metrics"]["force_mae_ev_per_angstrom"], 4),
        (about["properties"]["Cu"]["lattice_constant_angstrom"], 3),
        (about["speed"]["us_per_atom"], 1),
        (about["stability"]["Cu"]["nve"]["shortest_distance_angstrom"], 2),
        (about["training_range"]["shortest_distance_angstrom"], 2),
    ):
        assert f"{value:.{digits}f}" in card
    assert "python model_zoo/build.py pair-cu --quick" in card
    assert "least squares" in card
    assert "E coh" not in card, "energies counted from a fitted zero are no cohesive energies"


def test_python_lines_of_the_card_run(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (built / "README.md").read_text(), flags=re.DOTALL)
    exec(code.replace('"pair-cu"', repr(str(built))), {})
    energy = float(capsys.readouterr().out.split()[0])
    # Four atoms of the Morse crystal at the measured lattice constant, outside what the quick model was trained on.
    atoms = bulk("Cu", cubic=True)
    atoms.calc = MorsePotential(epsilon=0.34, r0=2.866, rho0=3.9, rcut1=4.0, rcut2=5.0)
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=0.1)


def test_comparison_page_has_the_numbers_of_the_card(built: Path) -> None:
    page, about = (built.parent / "models.md").read_text(), load_model(built).metadata
    pair = f"{about['metrics']['energy_mae_mev_per_atom']:.2f} / {about['metrics']['force_mae_ev_per_angstrom']:.3f}"
    assert f"| s-NNP, one model per element | – | {pair} | – |" in page
    assert "| GAP [3] | 0.42 / 0.02 | 0.46 / 0.01 |" in page
    assert re.search(r"^\| `pair-cu` \| Cu \| .* \| yes \| ", page, flags=re.MULTILINE)
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {8, 10}


def test_finished_run_is_not_trained_again_but_a_changed_recipe_is_refused(
    build_module: ModuleType, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built, tmp_path / "pair-cu")
    recipe = yaml.safe_load((built / "recipe.yaml").read_text())
    recipe["metadata"]["description"] = "described better"
    (tmp_path / "pair-cu" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    state = (built.parent / "run" / "state.safetensors").read_bytes()
    command = ["pair-cu", "--zoo", str(tmp_path), "--run", str(built.parent / "run"), "--quick"]
    assert build_module.main(command) == 0
    assert (built.parent / "run" / "state.safetensors").read_bytes() == state
    assert (tmp_path / "pair-cu" / "README.md").read_text().startswith("# pair-cu\n\ndescribed better.\n")
    recipe["optimiser"]["epochs"] = 31
    (tmp_path / "pair-cu" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert build_module.main(command) == 1
    assert "was trained by another recipe (optimiser.epochs is 31, was 30)" in capsys.readouterr().err


def test_model_that_is_too_large_is_refused_and_nothing_is_written(
    build_module: ModuleType,
    built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "pair-cu").mkdir()
    shutil.copy(built / "recipe.yaml", tmp_path / "pair-cu")
    monkeypatch.setattr(build_module, "MAX_BYTES", 1000)
    command = ["pair-cu", "--zoo", str(tmp_path), "--run", str(built.parent / "run"), "--quick"]
    assert build_module.main(command) == 1
    assert "more than 1,000; make the model smaller" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "pair-cu").iterdir()] == ["recipe.yaml"]


def test_missing_recipe_is_an_error_of_one_line(
    build_module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_module.main(["snnp-xx", "--zoo", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "recipe.yaml does not exist" in error
    assert error.count("\n") == 1


def _frame(symbols: str, energy: float | None, pbc: bool, spacing: float) -> Frame:
    """A line of atoms with unit forces."""
    n = len(Atoms(symbols))
    atoms = Atoms(symbols, [[spacing * k, 0.0, 0.0] for k in range(n)], cell=[50.0] * 3, pbc=pbc)
    return Frame(Structure.from_ase(atoms), energy, np.full((n, 3), 0.5), None, None, f"{symbols}#{energy}")


def _model(elements: tuple[str, ...], **zero: float) -> SplineNNP:
    config = SplineNNPConfig(
        elements=elements,
        radial=RadialConfig(n_filters=2, cutoff=4.0),
        angular=AngularConfig(n_filters=0),
        repulsion=RepulsionConfig(inner=0.6, outer=0.9),
    )
    return SplineNNP(config, zero)


def test_training_range_counts_energies_from_the_reference(build_module: ModuleType) -> None:
    model = _model(("H", "O"), H=-1.0, O=-10.0)
    frames = [
        _frame("H2", -3.0, False, 0.8),  # -0.5 eV/atom
        _frame("OH", -10.0, True, 1.1),  # +0.5 eV/atom
        _frame("O2", None, False, 1.3),
        _frame("O", -10.0, False, 0.0),  # an isolated atom is no neighbourhood
    ]
    seen = build_module.training_range(frames, model)
    assert seen["n_frames"] == 3
    assert seen["n_energies"] == 2
    assert seen["energy_span_ev_per_atom"] == pytest.approx(1.0)
    assert seen["shortest_distance_angstrom"] == pytest.approx(0.8)
    assert seen["largest_force_ev_per_angstrom"] == 0.5
    assert (seen["periodic"], seen["mixed"], seen["formula"]) == ("some", True, None)
    with pytest.raises(DataError, match="isolated atoms"):
        build_module.training_range(frames[-1:], model)


def test_a_melting_point_that_is_not_known(build_module: ModuleType) -> None:
    assert build_module.MELTING_POINTS["Al"] == pytest.approx(933.47, abs=1.0)
    with pytest.raises(ConfigError, match="no melting point of Xe"):
        build_module._systems(_model(("H", "O")), None, {"Xe": 6.0})


@pytest.mark.parametrize(
    ("frames", "expected", "unexpected"),
    [
        ([_frame("OH", -1.0, False, 1.0)], ["one molecule, HO", "no periodic crystals"], ["pure elements"]),
        (
            [_frame("O2", -1.0, True, 1.0), _frame("H2", 0.0, True, 0.9)],
            ["pure elements", "free molecules"],
            ["one mol"],
        ),
        ([_frame("H2", None, False, 0.7)], ["closer than 0.70 Å; inside 0.9 Å"], ["span"]),
    ],
)
def test_limits_follow_from_the_training_data(
    build_module: ModuleType, frames: list[Frame], expected: list[str], unexpected: list[str]
) -> None:
    model = _model(("H", "O"))
    model.metadata = {"training_range": build_module.training_range(frames, model), "limits": ["Not for medical use"]}
    card = card_markdown("water", model)
    for text in (*expected, "- Not for medical use.\n", "Interactions end at 4 Å"):
        assert text in card
    for text in unexpected:
        assert text not in card


def test_card_of_a_model_without_metadata_leaves_out_what_is_not_known() -> None:
    card = card_markdown("bare", _model(("Cu",)))
    assert re.findall(r"^## (.*)", card, flags=re.MULTILINE) == ["Use", "Data", "Limits"]
    assert "None" not in card
    assert "nan" not in card


def test_card_of_another_family_names_its_form() -> None:
    plain = HIPNN(HIPNNConfig(elements=("Si",), n_features=4, n_sensitivities=5, n_interactions=2))
    form = "| form | HIP-NN, interaction layers: 2, on-site layers after each: 3, 4 features, 5 sensitivities |"
    assert form in card_markdown("plain", plain)
    tensors = HIPNN(HIPNNConfig(elements=("Si",), l_max=2))
    assert "| form | HIP-NN-TS with tensors up to l = 2, " in card_markdown("tensors", tensors)
    assert "repulsion" not in card_markdown("tensors", tensors)


def test_blown_up_run_is_written_as_such() -> None:
    run: dict[str, Any] = {
        "target_k": 300.0,
        "picoseconds": 0.5,
        "dt_fs": 2.0,
        "dtype": "float32",
        "survived": False,
        "failure": "the temperature rose to 9e+04 K",
        "mean_temperature_k": None,
        "max_temperature_k": None,
        "shortest_distance_angstrom": 0.4,
        "rms_displacement_angstrom": None,
        "drift_mev_per_atom_per_ns": None,
        "drift_error": None,
    }
    model = _model(("Cu",))
    model.metadata = {"stability": {"Cu": {"system": "32 Cu atoms", "nve": run, "langevin": run}}}
    assert "**blew up**: the temperature rose to 9e+04 K" in card_markdown("bad", model)


def test_comparison_needs_measured_models() -> None:
    with pytest.raises(DataError, match=r"the file of bare states no metrics, .*build\.py bare"):
        comparison_page({"bare": _model(("Cu",))})


def test_bars_in_cells_do_not_break_tables() -> None:
    assert Table(["a", "b"], [["x|y", "1"]]).markdown() == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


def test_dollars_of_paths_begin_no_formula() -> None:
    model = _model(("Cu",))
    model.metadata = {"metrics": {"data": "$SNNP_DATA/a.xyz, $SNNP_DATA/b.xyz", "n_structures": 2}}
    assert r"On \$SNNP_DATA/a.xyz, \$SNNP_DATA/b.xyz, never" in card_markdown("copper", model)


@pytest.mark.parametrize(("element", "lattice"), [("Cu", "fcc"), ("Mg", "hcp")])
def test_what_a_card_says_of_its_use_can_be_done(element: str, lattice: str) -> None:
    card = card_markdown("metal", _model((element,)))
    made = next(line for line in card.splitlines() if line.startswith("atoms = ase.build"))
    there: dict[str, Any] = {"ase": ase}
    exec(made, there)
    assert len(there["atoms"]) == 4
    assert f"snnp md metal {lattice}:{element}:3x3x3 " in card
    assert len(build_structure(f"{lattice}:{element}:3x3x3")) == 108


def test_several_models_of_a_recipe_become_one(
    build_module: ModuleType, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody learns what is drawn for the test, whatever the seed of the members; the card names no files of a run."""
    several = {"self": {"members": 2, "budget": 100, "epochs": 4, "student": {"validate_every": 2}}}
    recipe = {**RECIPE, **several, "data": {"train": [f"{zoo}/cells.xyz"], "valid": 0.1, "test": 0.2}}
    recipe["optimiser"] = {**recipe["optimiser"], "epochs": 3}
    (tmp_path / "cu").mkdir()
    (tmp_path / "cu" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    command = ["cu", "--zoo", str(tmp_path), "--run", str(run), "--quick", "--allow-holes"]
    assert build_module.main(command) == 0
    about = load_model(tmp_path / "cu").metadata
    assert about["metrics"]["n_structures"] == 12
    assert about["teacher"] == "the mean of 2 models of this recipe with seeds 1 to 2"
    assert str(tmp_path) not in (tmp_path / "cu" / "config.json").read_text()
    test = {frame.source for frame in load_problem(build_module.several.config_of(recipe)).split.test}
    learned = {frame.source for frame in load_dataset(run / "student" / "labels.parquet")}
    known = {frame.source for frame in load_dataset(run / "data.parquet")}
    assert len(known) == 48
    assert not test & known
    assert len([source for source in learned if source.startswith("copies")]) == 52
    configs = [training.load_config(run / name / "config.yaml") for name in ("member-1", "student/student")]
    assert [config.validate_every for config in configs] == [5, 2], "the student has keys of its own, members have not"
    for changes, said in (
        ({"self": {"members": 2}}, "self must have the keys budget, epochs, members"),
        ({"self": {**several["self"], "student": 3}}, "may have student with keys of a training configuration"),
        ({"self": {**several["self"], "budget": 101}}, "begun with another budget"),
        ({"optimiser": {**recipe["optimiser"], "epochs": 2}}, "trained by another recipe (optimiser.epochs is 2, was"),
    ):
        (tmp_path / "cu" / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
        assert build_module.main(command) == 1
        assert said in capsys.readouterr().err


def test_a_distillation_is_a_recipe_of_one_line(
    build_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Effective medium theory teaches copper: the card has its rows, defects, held-out errors."""
    teacher = {
        "title": "EMT",
        "settings": {"teachers": ["ase.calculators.emt:EMT"], "budget": 90, "rounds": 0},
        "level_of_theory": "none",
        "citation": "nobody",
    }
    monkeypatch.setitem(build_module.distilled.TEACHERS, "emt", teacher)
    monkeypatch.setattr("snnp.distillation.verdict.behaviour._PICOSECONDS", 0.2)
    student = {key: RECIPE[key] for key in ("model", "threads", "compression")}
    student |= {"optimiser": {"epochs": 40, "learning_rate": 0.05}, "loss": {"energy_scale": None}}
    monkeypatch.setitem(build_module.distilled._USUAL, "student", student)
    (tmp_path / "cu").mkdir()
    (tmp_path / "cu" / "recipe.yaml").write_text("distil: {teacher: emt, elements: [Cu]}\n")
    command = ["cu", "--zoo", str(tmp_path), "--run", str(tmp_path / "run"), "--quick", "--allow-holes"]
    assert build_module.main(command) == 0
    about, card = load_model(tmp_path / "cu").metadata, (tmp_path / "cu" / "README.md").read_text()
    assert card.startswith("# cu\n\ns-NNP for copper, distilled from EMT: solids, liquid, defects, surfaces.\n")
    assert about["metrics"]["n_structures"] == 9
    assert about["properties"]["Cu"]["references"]["teacher"]["lattice_constant_angstrom"] == pytest.approx(
        3.59, abs=0.01
    )
    defects = about["defects"]["Cu"]
    assert set(defects["student"]) == set(defects["teacher"]) == {"vacancy", "(111)", "(100)", "(110)"}
    assert 0.8 < defects["teacher"]["vacancy"] < 1.4
    assert 0.8 < defects["teacher"]["(111)"] < defects["teacher"]["(110)"] < 2.0
    assert "- Cu, vacancy (relaxed): " in card
    assert "The Langevin run is at 1.2 of the melting point" in card
    (tmp_path / "cu" / "recipe.yaml").write_text("distil: {teacher: nobody, elements: [Cu]}\n")
    assert build_module.main(command) == 1


def test_labels_without_their_student_are_gone_on_with(
    build_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distillation that was killed after its labels lacks the student that a recipe may start from."""
    settings, calls = DistilSettings(teachers=["any"], elements=["Cu"]), list[bool]()
    settings.save(tmp_path / "distil.yaml")
    (tmp_path / "labels.parquet").touch()
    once = build_module.trained.distil_once
    monkeypatch.setattr(build_module.trained, "distil", lambda settings, run, report, *, resume: calls.append(resume))
    once(settings, tmp_path, print)
    (tmp_path / "report.json").touch()
    once(settings, tmp_path, print)
    assert calls == [True]
    once(settings.model_copy(update={"budget": 500}), tmp_path, print)
    assert calls == [True, True], "settings that differ are for distil to refuse"


@pytest.mark.parametrize("recipe", ["distil: 7net-0\n", "distil: {teacher: 7net-0, elements: [Ag]}\nseed: 1\n"])
def test_a_recipe_of_a_distillation_that_says_something_else(
    build_module: ModuleType, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ag").mkdir()
    (tmp_path / "ag" / "recipe.yaml").write_text(recipe)
    assert build_module.main(["ag", "--zoo", str(tmp_path), "--run", str(tmp_path / "run")]) == 1
    assert "distil must be a group such as" in capsys.readouterr().err
