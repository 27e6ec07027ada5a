"""Honest intervals: scales from held-out data, heads that are trained on shared filters, other signs of uncertainty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from cli_runs import run_json, run_snnp
from typer.testing import CliRunner

from snnp.analysis.card import card_markdown
from snnp.cli.main import app
from snnp.data import Frames, read_frames
from snnp.errors import ConfigError, DataError, InputError
from snnp.models import HIPNN, Ensemble, HIPNNConfig, SplineNNP, load_model, save_model
from snnp.models.heads import HeadsEvaluator
from snnp.models.spline import special_cases
from snnp.training import load_config
from snnp.uncertainty import Committee, FeatureDistance, calibrate, measure_for
from snnp.uncertainty.bootstrap import train_heads
from snnp.uncertainty.calibration import KEY, judged, rank_correlation, scale_from, scales_of
from snnp.uncertainty.statements import check_calibration, plot_coverage


def _silicon(seed: int, rattle: float = 0.1) -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def _member(seed: int) -> SplineNNP:
    return SplineNNP(special_cases.s_nnp(("Si",), n_radial=3, n_angular=3, cutoff=4.5, hidden=(4,)), seed=seed)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames with the labels of a model."""
    from snnp_ase import SNNPCalculator

    frames = []
    for seed in range(24):
        atoms = _silicon(seed, 0.05 + 0.01 * seed)
        atoms.calc = SNNPCalculator("snnp-si")
        atoms.get_forces()
        frames.append(atoms)
    path = tmp_path_factory.mktemp("reference") / "si.xyz"
    write(path, frames)
    return path


@pytest.fixture(scope="module")
def frames(reference: Path) -> Frames:
    return read_frames(reference)


def test_normal_errors_of_known_size_are_covered() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 1.0, 20_000)
    pair = np.stack([spread, np.abs(rng.normal(size=20_000)) * 3.0 * spread])
    found = judged(scale_from(pair[:, ::2]), pair[:, 1::2])
    assert found.scale == pytest.approx(3.0, rel=0.03)
    assert found.area < 0.01 < 0.2 < found.raw_area
    assert found.expected == pytest.approx(found.rmse, rel=0.03)
    assert found.coverage[9] == pytest.approx(0.5, abs=0.02)
    assert 0.4 < found.rank_correlation < 0.7


def test_forces_that_symmetry_makes_zero_do_not_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    spread = np.concatenate([rng.uniform(0.1, 1.0, 2_000), np.full(24, 1e-16)])
    error = np.abs(2.0 * spread * rng.standard_normal(len(spread)))
    error[-24:] = 1e-4  # what a reference leaves of a force that is zero
    found = judged(scale_from(np.stack([spread, error])), np.stack([spread, error]))
    assert found.scale == pytest.approx(2.0, rel=0.1)
    nothing = np.stack([np.zeros(9), np.ones(9)])
    assert judged(scale_from(nothing), nothing).scale == 1.0


def test_ranks_with_ties() -> None:
    assert rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([5.0, 5.0, 9.0])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    assert rank_correlation(np.zeros(3), np.arange(3.0)) == 0.0


def test_a_calibrated_ensemble_speaks_of_errors(frames: Frames, tmp_path: Path) -> None:
    ensemble, atoms = Ensemble([_member(0), _member(1)]), _silicon(3)
    where = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
    raw, before = Committee(ensemble), measure_for(ensemble)
    assert not raw.calibrated
    assert not before.calibrated
    ensemble.metadata[KEY] = json.loads(json.dumps(calibrate(ensemble, frames, "some").to_dict()))
    loaded = load_model(save_model(ensemble, tmp_path / "model"))
    scaled = Committee(loaded)
    assert scaled.calibrated
    one, other = raw.evaluate(*where)[1], scaled.evaluate(*where)[1]
    np.testing.assert_allclose(other.forces, scaled.scales[1] * one.forces)
    assert other.energy == pytest.approx(scaled.scales[0] * one.energy)
    assert measure_for(loaded)(atoms).structure == pytest.approx(other.largest_force)


def test_card_and_doctor_say_it(frames: Frames, tmp_path: Path) -> None:
    ensemble = Ensemble([_member(0), _member(1)])
    (warning,) = check_calibration(ensemble)
    assert "the spread of its 2 members was never calibrated" in warning.message
    assert "snnp uncertainty calibrate" in warning.cure
    assert "## Uncertainty" not in card_markdown("two", ensemble)
    ensemble.metadata[KEY] = found = calibrate(ensemble, frames, "some").to_dict()
    card = card_markdown("two", ensemble)
    assert "## Uncertainty" in card
    assert "force components (eV/Å)" in card
    found["forces"] = {**found["forces"], "area": 0.4, "rank_correlation": 0.0}
    assert "force components: miscalibration area 0.40" in next(each.message for each in check_calibration(ensemble))
    assert list(check_calibration(_member(0))) == []
    plot_coverage(tmp_path / "coverage.png", [("some", found)])
    assert (tmp_path / "coverage.png").stat().st_size > 1000


@pytest.mark.parametrize("stated", [None, {}, {"forces": {"scale": 1.0}}, {KEY: {"energy": {"scale": -1}}}, {KEY: [1]}])
def test_damaged_calibrations_count_as_none(stated: object) -> None:
    assert scales_of(stated if isinstance(stated, dict) else {KEY: stated}) is None


def test_few_frames_are_refused(frames: Frames) -> None:
    with pytest.raises(DataError, match="needs at least 8 held-out frames with energies and forces, got 5; give more"):
        calibrate(Ensemble([_member(0), _member(1)]), frames[:5])


def test_heads_are_trained_on_shared_filters(reference: Path, tmp_path: Path) -> None:
    tree = {
        "data": {"train": [str(reference)], "valid": 0.4},
        "start": "snnp-si",
        "optimiser": {"epochs": 3, "batch_atoms": 64},
        "compression": None,
    }
    config, said = load_config(tree), []
    made = train_heads(config, tmp_path / "run", n_heads=2, hidden=(4,), say=said.append)
    assert said == ["head 1 of 2", "head 2 of 2"]
    loaded = load_model(tmp_path / "run")
    assert isinstance(loaded, Ensemble)
    assert scales_of(loaded.metadata) is not None
    if loaded.potentials[0].evaluator() is not None:
        assert isinstance(loaded.evaluator(), HeadsEvaluator)
    assert loaded.potentials[0].config.network.hidden == (4,)  # type: ignore[attr-defined]
    drawn = [set(read_frames(tmp_path / f"run/head-{k}/drawn.extxyz").energy.tolist()) for k in range(2)]
    assert drawn[0] != drawn[1]
    before = (tmp_path / "run/head-0/run/summary.json").stat().st_mtime_ns
    again = train_heads(config, tmp_path / "run", n_heads=2, hidden=(4,))  # nothing is trained again
    assert (tmp_path / "run/head-0/run/summary.json").stat().st_mtime_ns == before
    assert again.metadata[KEY] == made.metadata[KEY]


@pytest.mark.parametrize(
    ("change", "n_heads", "message"),
    [
        ({"start": None}, 8, "heads share the filters of a model; name it with start"),
        ({"start": "hipnn-si"}, 8, "is a HIPNN; only an s-NNP has filters to share"),
        ({}, 1, "a spread needs at least 2 heads, got 1"),
    ],
)
def test_heads_of_nothing_are_refused(
    reference: Path, tmp_path: Path, change: dict[str, object], n_heads: int, message: str
) -> None:
    config = load_config({"data": {"train": [str(reference)]}, "start": "snnp-si", **change})
    with pytest.raises(ConfigError, match=message):
        train_heads(config, tmp_path, n_heads=n_heads)


def test_distance_from_training_data() -> None:
    model = SplineNNP(special_cases.s_nnp(("Si", "C"), n_radial=3, n_angular=3, cutoff=4.5, hidden=(4,)), seed=0)
    known = [_silicon(seed) for seed in range(4)]
    distance = FeatureDistance(model, known)
    assert distance(known[0]).structure < 1e-7
    near, far = distance(_silicon(9)).structure, distance(bulk("Si", "fcc", 3.2) * (2, 2, 2)).structure
    assert 0.0 < near < 0.5 * far
    assert np.isinf(distance(bulk("SiC", "zincblende", 4.36)).atoms[1])  # carbon was never seen
    with pytest.raises(InputError, match="needs training data to measure from"):
        FeatureDistance(model, Atoms())


def test_a_hipnn_knows_its_hierarchicality() -> None:
    measure = measure_for(HIPNN(HIPNNConfig(elements=("C", "H"))))
    found = measure(molecule("CH4"))
    assert found.atoms.shape == (5,)
    assert (measure.unit, measure.calibrated) == ("", False)


def test_a_model_alone_knows_nothing_of_its_uncertainty() -> None:
    with pytest.raises(InputError, match=r"is one SplineNNP and has no sign of its own uncertainty; name an ensemble"):
        measure_for(_member(0))


def test_few_cells_in_which_members_agree_do_not_decide_the_scale() -> None:
    """As in strained copper: forces all but vanish, members agree to 0.1 %, labels hold the noise of the reference."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.5, 1.5, 20_000)
    error = np.abs(2.0 * spread * rng.standard_normal(len(spread)))
    spread[:500] *= 1e-3
    assert scale_from(np.stack([spread, error])) == pytest.approx(2.0, rel=0.1)


def test_the_command_line_makes_heads_and_calibrates_them(reference: Path, tmp_path: Path) -> None:
    save_model(_member(0), tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data: {{train: {reference}, valid: 4, check_units: 'off'}}\noptimiser: {{epochs: 2}}\ncompression: null\n"
    )
    out, known = tmp_path / "heads", tmp_path / "calibrated"
    heads = ("uncertainty", "heads", tmp_path / "model", config, "--heads", 2, "--hidden", 3, "--out", out)
    assert run_json(*heads) == {"model": str(out / "best"), "calibration": None}
    assert "fewer than 8 frames were held out" in run_snnp(*heads).output  # nothing is trained again
    found = run_json("uncertainty", "calibrate", out / "best", reference, "--out", known)
    assert found["calibration"]["n_frames"] == 24
    assert scales_of(load_model(known).metadata) == (
        found["calibration"]["energy"]["scale"],
        found["calibration"]["forces"]["scale"],
    )
    shown = run_snnp("uncertainty", "calibrate", out / "best", reference, "--out", known, "--overwrite").output
    assert "spread times" in shown
    again = ("uncertainty", "calibrate", str(out / "best"), str(reference), "--out", str(known))
    assert "--overwrite" in CliRunner().invoke(app, again).output
    alone = ("uncertainty", "calibrate", str(tmp_path / "model"), str(reference), "--out", str(tmp_path / "x"))
    assert "has no members that could disagree" in CliRunner().invoke(app, alone).output
