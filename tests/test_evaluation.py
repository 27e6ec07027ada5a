"""Evaluation and report: errors that are known beforehand, missing quantities, and the files of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from matplotlib.image import imread

from snnp.data.frames import Frame
from snnp.errors import DataError, UnknownElementError
from snnp.models import AngularConfig, NetworkConfig, RadialConfig, SplineNNP, SplineNNPConfig
from snnp.structure import Structure
from snnp.training.evaluation import Evaluation, evaluate, plot_loss, plot_parity, summary_markdown, write_report
from snnp.units import EV_PER_ANGSTROM3_IN_GPA


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    config = SplineNNPConfig(
        elements=("H", "Cu"),
        radial=RadialConfig(n_filters=3, lower=0.5, cutoff=4.0, intervals=6),
        angular=AngularConfig(n_filters=2, lower=0.5, cutoff=4.0, intervals=6, degree=2),
        network=NetworkConfig(hidden=(6,)),
    )
    return SplineNNP(config, {"H": -13.0, "Cu": -3.5}, seed=1)


def _labelled(model: SplineNNP, atoms: Atoms, group: str | None, source: str) -> Frame:
    """A frame whose reference is what the model says."""
    structure = Structure.from_ase(atoms)
    said = model.compute(structure, stress=True)
    assert said.forces is not None
    assert said.stress is not None
    stress = said.stress[0].double().numpy() if atoms.pbc.all() else None
    return Frame(structure, float(said.energy[0]), said.forces.double().numpy(), stress, group, source)


@pytest.fixture(scope="module")
def frames(model: SplineNNP) -> list[Frame]:
    """Two crystals and two molecules, without any error."""
    found = []
    for k in range(2):
        crystal = bulk("Cu", cubic=True)
        crystal.rattle(0.1, seed=k)
        found.append(_labelled(model, crystal, "crystal", f"cu.xyz#{k}"))
        pair = molecule("H2")
        pair.rattle(0.05, seed=k)
        found.append(_labelled(model, pair, "molecule", f"h.xyz#{k}"))
    return found


def test_perfect_model_has_no_error(model: SplineNNP, frames: list[Frame]) -> None:
    total = evaluate(model, frames).total
    assert (total.n_structures, total.n_atoms) == (4, 12)
    for errors, n in ((total.energy, 4), (total.forces, 36), (total.stress, 12)):
        assert errors is not None
        assert errors.n == n
        assert errors.max < 1e-6


def test_known_errors(model: SplineNNP, frames: list[Frame]) -> None:
    force_shift = np.array([[0.3, 0.0, 0.0], [0.0, 0.0, -0.6]])
    stress_shift = np.diag([0.01, 0.0, 0.0]) + 0.002 * (np.eye(3)[[0, 2, 1]] - np.diag([1.0, 0.0, 0.0]))
    changed = [
        replace(
            frames[0], energy=(frames[0].energy or 0.0) + 4 * 0.003, stress=np.asarray(frames[0].stress) + stress_shift
        ),
        replace(
            frames[1], energy=(frames[1].energy or 0.0) - 2 * 0.001, forces=np.asarray(frames[1].forces) + force_shift
        ),
        *frames[2:],
    ]
    found = evaluate(model, changed).to_dict()
    assert found["energy_mae_mev_per_atom"] == pytest.approx((3.0 + 1.0) / 4)
    assert found["energy_rmse_mev_per_atom"] == pytest.approx(np.sqrt((9.0 + 1.0) / 4))
    assert found["energy_max_mev_per_atom"] == pytest.approx(3.0)
    assert found["force_mae_ev_per_angstrom"] == pytest.approx(0.9 / 36, rel=1e-4)
    assert found["force_rmse_ev_per_angstrom"] == pytest.approx(np.sqrt(0.45 / 36), rel=1e-4)
    assert found["force_max_ev_per_angstrom"] == pytest.approx(0.6, rel=1e-4)
    # Six components per structure: xx and yz are off in one of two crystals.
    assert found["stress_mae_gpa"] == pytest.approx(0.012 / 12 * EV_PER_ANGSTROM3_IN_GPA, rel=1e-4)
    assert found["stress_max_gpa"] == pytest.approx(1.602176634, rel=1e-4)
    assert found["elements"]["Cu"]["force_max_ev_per_angstrom"] < 1e-6
    assert found["elements"]["H"]["force_mae_ev_per_angstrom"] == pytest.approx(0.9 / 12, rel=1e-4)
    assert found["groups"]["crystal"]["energy_mae_mev_per_atom"] == pytest.approx(1.5)
    assert found["groups"]["molecule"]["force_mae_ev_per_angstrom"] == pytest.approx(0.9 / 12, rel=1e-4)
    assert found["groups"]["molecule"]["stress_mae_gpa"] is None
    assert (found["groups"]["crystal"]["n_structures"], found["groups"]["crystal"]["n_atoms"]) == (2, 8)


def test_batches_do_not_matter_and_progress_is_told(model: SplineNNP, frames: list[Frame]) -> None:
    shifted = [replace(frame, energy=(frame.energy or 0.0) + k) for k, frame in enumerate(frames)]
    told: list[tuple[int, int]] = []
    alone = evaluate(model, shifted, batch_atoms=1, progress=lambda *now: told.append(now))
    together = evaluate(model, shifted)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert alone.energies.frame.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(alone.energies.model, together.energies.model)
    np.testing.assert_allclose(alone.forces.model, together.forces.model, atol=1e-7)


def test_missing_quantities_are_null(model: SplineNNP, frames: list[Frame]) -> None:
    bare = [replace(frame, forces=None, stress=None, group=None) for frame in frames]
    found = json.loads(json.dumps(evaluate(model, bare).to_dict()))
    assert found["force_mae_ev_per_angstrom"] is None
    assert found["stress_rmse_gpa"] is None
    assert found["energy_mae_mev_per_atom"] == pytest.approx(0.0, abs=1e-6)
    assert found["elements"] == {}
    assert found["groups"] == {}
    partial = evaluate(model, [bare[0], frames[2], replace(frames[3], energy=None)])
    assert partial.total.forces is not None
    assert partial.total.forces.n == 3 * 4 + 3 * 2
    assert partial.forces.frame.tolist() == [1] * 12 + [2] * 6
    assert partial.energies.frame.tolist() == [0, 1]


def test_json_top_level_has_the_promised_names(model: SplineNNP, frames: list[Frame]) -> None:
    found = json.loads(json.dumps(evaluate(model, frames).to_dict()))
    promised = {"energy_mae_mev_per_atom", "energy_rmse_mev_per_atom", "force_mae_ev_per_angstrom"}
    promised |= {"force_rmse_ev_per_angstrom", "n_structures", "n_atoms", "model", "data"}
    assert promised <= set(found)
    assert found["data"] == "cu.xyz, h.xyz"
    assert found["model"] == "SplineNNP"
    named = evaluate(model, frames, model_name="mine", data_name="theirs").to_dict()
    assert (named["model"], named["data"]) == ("mine", "theirs")


def test_float32_model_agrees_with_float64(model: SplineNNP, frames: list[Frame]) -> None:
    twin = SplineNNP(model.config, model.reference_energies, seed=1).float()
    total = evaluate(twin, frames).total
    assert total.energy is not None
    assert total.forces is not None
    assert 0.0 < total.energy.max < 0.01
    assert 0.0 < total.forces.max < 1e-4


def test_errors_are_raised(model: SplineNNP) -> None:
    with pytest.raises(DataError, match="no frames were given"):
        evaluate(model, [])
    gold = Frame(Structure.from_ase(bulk("Au")), 0.0, None, None, None, "au.xyz#0")
    with pytest.raises(UnknownElementError, match="holds Au"):
        evaluate(model, [gold])


@pytest.fixture(scope="module")
def evaluation(model: SplineNNP, frames: list[Frame]) -> Evaluation:
    shifted = [replace(frame, energy=(frame.energy or 0.0) + 0.01 * k) for k, frame in enumerate(frames)]
    return evaluate(model, shifted, model_name="small")


_METRICS = """epoch,step,learning_rate,train_loss,valid_energy_mae_mev_per_atom,valid_force_mae_ev_per_angstrom,seconds
1,10,0.005,9.0,20.0,0.5,1.0
2,20,0.004,3.0,,,2.0
3,30,0.003,1.0,2.5,0.1,3.0
"""


def test_report_of_a_run(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "metrics.csv").write_text(_METRICS)
    write_report(tmp_path, {"train": evaluation, "test": evaluation}, {"n_parameters": 12, "reference": {"H": -13.0}})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("loss.png", "metrics.csv", "parity_energy.png", "parity_forces.png", "summary.json", "summary.md"),
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["errors"]["test"] == evaluation.to_dict()
    assert summary["n_parameters"] == 12
    text = (tmp_path / "summary.md").read_text()
    assert "- n parameters: 12\n- reference: H -13\n" in text
    assert "| test | crystal | 2 | 8 |" in text
    for name in ("loss", "parity_energy", "parity_forces"):
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 500
        assert picture[..., :3].std() > 0.05, "something is drawn"


def test_report_without_forces_or_metrics(tmp_path: Path, model: SplineNNP, frames: list[Frame]) -> None:
    bare = evaluate(model, [replace(frame, forces=None, stress=None) for frame in frames])
    write_report(tmp_path, {"valid": bare}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity_energy.png", "summary.json", "summary.md"]
    assert "| valid | 4 | 12 | 0.00 | 0.00 | 0.00 | – | – | – | – |" in summary_markdown({"valid": bare}, {})


def test_parity_plot_of_one_exact_point(tmp_path: Path, model: SplineNNP, frames: list[Frame]) -> None:
    plot_parity(tmp_path / "one.png", {"mine": evaluate(model, frames[:1])}, "energy")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_bad_metrics(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a table of metrics: No such file"):
        plot_loss(tmp_path / "loss.png", tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(DataError, match="holds no epochs"):
        plot_loss(tmp_path / "loss.png", tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n")
    with pytest.raises(DataError, match="holds no epochs"):
        plot_loss(tmp_path / "loss.png", tmp_path / "metrics.csv")


def test_atomic_energies_are_compared_from_common_zeros(model: SplineNNP, frames: list[Frame]) -> None:
    """Constants of elements are a convention; what else differs counts, in meV, where there are labels."""
    assert "atomic_energy_mae_mev" not in evaluate(model, frames).to_dict()
    said = [model.compute(frame.structure).energies.numpy() for frame in frames]
    zeros = [np.where(frame.structure.numbers.numpy() == 1, 4.0, -7.0) for frame in frames]
    labelled = [replace(frames[k], energies=said[k] + zeros[k]) for k in range(3)]
    assert evaluate(model, [*labelled, frames[3]]).to_dict()["atomic_energy_mae_mev"] == pytest.approx(0.0, abs=1e-6)
    energies = said[1] + zeros[1] + np.array([0.002, -0.002])
    errors = evaluate(model, [labelled[0], replace(frames[1], energies=energies)]).total.atoms
    assert errors is not None
    assert (errors.n, errors.max) == (6, pytest.approx(2.0, abs=1e-6))
