"""Before the first step: features are standardised, and an embedding's grid covers its arguments."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from snnp.data import Frame, Frames, fit_reference_energies
from snnp.errors import ConfigError
from snnp.models import Ensemble, save_model
from snnp.models.spline.model import SplineNNP
from snnp.structure import Structure
from snnp.training import TrainConfig, load_config, train
from snnp.training.backends import choose_backend
from snnp.training.batches import prepare
from snnp.training.problem import build_model, features_of, load_problem, resolve
from snnp.training.transfer import atomic_zeros

pytestmark = pytest.mark.usefixtures("without_pictures")

MODEL = {
    "radial": {"n_filters": 2, "cutoff": 4.5, "intervals": 6},
    "angular": {"n_filters": 3, "cutoff": 4.0, "intervals": 6, "angle_intervals": 4, "evaluator": "spline"},
}


def _frames() -> list[Atoms]:
    frames = []
    for k in range(6):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.05 * k) * (2, 1, 1)
        atoms.rattle(0.2, seed=k)
        atoms.info["energy"] = -3.0 * len(atoms) + 0.1 * k
        atoms.arrays["forces"] = np.zeros((len(atoms), 3))
        frames.append(atoms)
    return frames


def _standardised(folder: Path, **model: object) -> tuple[SplineNNP, torch.Tensor]:
    """A fresh model after standardisation, and its features [n, D] of the training set."""
    ase.io.write(folder / "train.xyz", _frames())
    config = load_config({"data": {"train": [str(folder / "train.xyz")], "valid": 0.0}, "model": {**MODEL, **model}})
    problem = load_problem(config)
    built = build_model(resolve(config, problem), problem)
    data = prepare(choose_backend(built, torch.float64), built, problem.split.train)
    built.standardise(lambda: features_of(built, data))
    with torch.no_grad():
        return built, data.backend.features(built, data.everything)


@pytest.mark.parametrize("of", ["sum", "features"])
@pytest.mark.parametrize("limits", [(-2.0, 2.0), (-1.0, 3.0)])
def test_embedding_arguments_spread_over_the_grid(tmp_path: Path, of: str, limits: tuple[float, float]) -> None:
    embedding = {"of": of, "lower": limits[0], "upper": limits[1]}
    _, features = _standardised(tmp_path, embedding=embedding, network=None, skip=False)
    arguments = features.sum(dim=1, keepdim=True) if of == "sum" else features
    inside = (arguments > limits[0]) & (arguments < limits[1])
    assert float(inside.double().mean()) > 0.97
    centre = arguments.mean(dim=0)
    torch.testing.assert_close(centre, torch.full_like(centre, sum(limits) / 2.0), rtol=0.0, atol=1e-9)
    spread = (limits[1] - limits[0]) / arguments.std(dim=0)
    assert bool(((spread > 2.5) & (spread < 14.0)).all())


@pytest.mark.parametrize("path", ["$SNNP_DATA/Si.xyz", "${SNNP_DATA}/Si.xyz"])
def test_an_unset_variable_is_named_with_the_cure(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNP_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"variable SNNP_DATA, which is not set; 'export SNNP_DATA=/path"):
        load_problem(TrainConfig.model_validate({"data": {"train": [path]}}))
    assert "SNNP_DATA" not in os.environ


def test_features_without_embedding_keep_their_filters(tmp_path: Path) -> None:
    model, features = _standardised(tmp_path, network={"hidden": [4]})
    fresh = SplineNNP(model.config, seed=0)
    torch.testing.assert_close(model.rho.free, fresh.rho.free)
    torch.testing.assert_close(features.mean(dim=0), model.readout.mean)
    torch.testing.assert_close(features.std(dim=0, correction=0), model.readout.std)


def _labelled(atoms: Atoms, energy: float | None = None, forces: object = None, stress: object = None) -> Atoms:
    atoms.info |= {} if energy is None else {"REF_energy": energy}
    atoms.info |= {} if stress is None else {"REF_stress": np.asarray(stress, dtype=float)}
    if forces is not None:
        atoms.arrays["REF_forces"] = np.asarray(forces, dtype=float)
    return atoms


def _alloy(a: float) -> Atoms:
    return bulk("LiAl", "zincblende", a=a, cubic=True)


def _other(change: str) -> tuple[Atoms, Atoms]:
    """A frame and another that differs in one thing only."""
    rest = np.zeros((8, 3))
    one, two = (_labelled(_alloy(6.37), -20.0, rest, np.zeros(6)) for _ in range(2))
    if change == "species":
        two.numbers = two.numbers[::-1]
    elif change == "cell":
        two.cell[2, 2] += 0.5
    elif change == "boundaries":
        two.pbc = (True, True, False)
    elif change == "positions":
        two.positions[0, 0] += 1e-4
    elif change == "energy":
        two.info["REF_energy"] += 1e-6
    elif change == "forces":
        two.arrays["REF_forces"] = rest + 0.01
    elif change == "missing forces":
        del two.arrays["REF_forces"]
    else:
        two.info["REF_stress"] = np.full(6, 0.01)
    return one, two


@pytest.mark.parametrize(
    "change", ["species", "cell", "boundaries", "positions", "energy", "forces", "missing forces", "stress"]
)
def test_only_equal_frames_are_one(tmp_path: Path, change: str) -> None:
    one, two = _other(change)
    ase.io.write(tmp_path / "a.xyz", [one, two, one, _labelled(_alloy(6.5), -19.0)])
    config = load_config({"data": {"train": [str(tmp_path / "a.xyz")], "valid": 0.0}})
    kept = [frame.source for frame in load_problem(config).split.train]
    assert kept == ["a.xyz#0", "a.xyz#1", "a.xyz#3"]


def test_isolated_atoms_of_one_energy_all_fix_their_zero(tmp_path: Path) -> None:
    atoms = [_labelled(Atoms(symbol, [[0, 0, 0]]), 0.0, np.zeros((1, 3))) for symbol in ("Al", "Li")]
    ase.io.write(tmp_path / "a.xyz", [*atoms, *(_labelled(_alloy(6.3 + 0.1 * k), -20.0 + k) for k in range(4))])
    problem = load_problem(load_config({"data": {"train": [str(tmp_path / "a.xyz")], "valid": 0.0}}))
    assert problem.reference.provenance == {"Li": "isolated atoms", "Al": "isolated atoms"}
    assert len(problem.split.train) == 6


def _divided(images: list[Atoms], own: dict[str, float], seed: int = 0) -> Frames:
    """Frames whose atoms have energies that sum to the frame's, counted from zeros of their own."""
    frames = []
    for k, atoms in enumerate(images):
        of_atoms = np.random.default_rng([seed, k]).normal(0.0, 0.3, len(atoms))
        zeros = np.array([own[symbol] for symbol in atoms.symbols])
        energies = of_atoms + zeros
        frames.append(Frame(Structure.from_ase(atoms), energies.sum(), None, None, None, f"a#{k}", energies))
    return Frames.of(frames)


def test_zeros_of_atomic_energies_go_with_those_of_the_energies() -> None:
    own, shift = {"Li": -3.0, "Al": -5.0}, {"Li": 0.7, "Al": -0.4}
    images = [bulk(symbol, "fcc", a=4.0, cubic=True) for symbol in ("Li", "Al")] + [_alloy(6.4), _alloy(6.5)]
    frames = _divided(images, own)
    e0 = fit_reference_energies(frames).energies
    # One truth: where the teacher's energies of atoms sum to its energies, their zeros are E0.
    assert atomic_zeros(frames, e0) == pytest.approx(e0, abs=1e-9)
    # Another program has divided another energy: what is left sums to the labels.
    other = replace(frames, energies=frames.energies + np.where(frames.numbers == 3, shift["Li"], shift["Al"]))
    zeros = atomic_zeros(other, e0)
    assert zeros == pytest.approx({symbol: e0[symbol] + shift[symbol] for symbol in e0}, abs=1e-9)
    assert atomic_zeros(replace(frames, has_energies=np.zeros(4, dtype=bool)), e0) == {}


def test_zeros_that_compositions_leave_open_are_near_the_atoms() -> None:
    frames = _divided([_alloy(a) for a in (6.3, 6.4, 6.5)], {"Li": -1.0, "Al": -9.0})
    e0 = fit_reference_energies(frames).energies
    zeros = atomic_zeros(frames, e0)
    assert e0["Li"] == pytest.approx(e0["Al"], abs=1e-9)  # the smallest that add up
    assert zeros["Li"] + zeros["Al"] == pytest.approx(e0["Li"] + e0["Al"], abs=1e-9)
    assert zeros["Al"] - zeros["Li"] == pytest.approx(-8.0, abs=0.3)


def test_atomic_energies_that_nobody_labelled_are_not_learned_silently(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", _frames())
    tree = {"data": {"train": [str(tmp_path / "a.xyz")], "valid": 0.0}, "loss": {"atomic_energy_weight": 1.0}}
    with pytest.raises(ConfigError, match=r"no training frame has them .* set it to 0"):
        load_problem(load_config(tree))


def test_training_goes_on_from_a_model(tmp_path: Path) -> None:
    """Its weights, form and E0 are taken, whatever the configuration says; an ensemble is refused."""
    ase.io.write(tmp_path / "train.xyz", _frames())
    data = {"train": [str(tmp_path / "train.xyz")], "valid": 0.0}
    form = {**MODEL, "angular": {**MODEL["angular"], "evaluator": "legendre", "degree": 2}}
    few = {"optimiser": {"epochs": 2}, "compression": None}
    first = train(load_config({"data": data, "model": form, **few}), tmp_path / "first").model
    ase.io.write(tmp_path / "train.xyz", _frames()[:4])
    still = {"optimiser": {"epochs": 1, "learning_rate": 1e-12, "final_learning_rate": 1e-13}, "compression": None}
    begun = {"data": data, "start": str(tmp_path / "first" / "best"), **still}
    second = train(load_config(begun), tmp_path / "second").model
    assert second.config == first.config
    assert second.reference_energies == first.reference_energies
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    alloy = _alloy(6.4)
    alloy.calc = SinglePointCalculator(alloy, energy=-1.0, energies=np.full(len(alloy), -1.0 / len(alloy)))
    ase.io.write(tmp_path / "other.xyz", alloy)
    other = load_problem(load_config({**begun, "data": {"train": [str(tmp_path / "other.xyz")], "valid": 0.0}}))
    assert set(other.reference.energies) == {"Li", "Al"}  # one element's filters serve any other: see test_transfer.py
    save_model(Ensemble([first, second]), tmp_path / "both")
    with pytest.raises(ConfigError, match="both is an ensemble"):
        train(load_config({**begun, "start": str(tmp_path / "both")}), tmp_path / "third")
