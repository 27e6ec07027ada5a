"""What the contract adds to every family: isolated atoms have E0 exactly, and atoms repel at short distance."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from timings.without_kernels import switched_off

from snnp.errors import InputError
from snnp.models import (
    ANI,
    HIPNN,
    ANIConfig,
    Ensemble,
    HIPNNConfig,
    Potential,
    RepulsionConfig,
    SplineNNP,
    SplineNNPConfig,
    load_model,
    save_model,
)
from snnp.models.export import scripted_module
from snnp.models.families import FAMILIES
from snnp.models.repulsion import Repulsion
from snnp.models.session import Session
from snnp.structure import Structure
from snnp.testing import check_potential
from snnp.training import load_config, train
from snnp.units import COULOMB_EV_ANGSTROM

pytestmark = pytest.mark.usefixtures("without_pictures")

ELEMENTS = ("Si", "C")
E0 = {"Si": -158.25, "C": -37.5}
REPULSION = RepulsionConfig(inner=0.9, outer=1.6)
ANGULAR = {"n_filters": 3, "cutoff": 3.5, "intervals": 6, "lower": 0.8, "degree": 2}


def _spline(**keys: Any) -> SplineNNPConfig:
    radial = {"n_filters": 3, "cutoff": 4.0, "intervals": 6, "lower": 0.8}
    tree = {"elements": ELEMENTS, "radial": radial, "angular": ANGULAR, "network": {"hidden": [5]}, **keys}
    return SplineNNPConfig.model_validate(tree)


def _hip(l_max: int) -> HIPNNConfig:
    keys = {"n_features": 4, "n_sensitivities": 5, "n_atom_layers": 1, "cutoff": 4.0, "upper": 3.5, "l_max": l_max}
    return HIPNNConfig.model_validate({"elements": ELEMENTS, "cusp": 1e-2, "repulsion": REPULSION, **keys})


def _ani(activation: str) -> ANIConfig:
    aev = {"radial": {"cutoff": 4.0}, "angular": {"cutoff": 3.2}}
    keys = {"aev": aev, "hidden": [6, 5], "activation": activation, "repulsion": REPULSION}
    return ANIConfig.model_validate({"elements": ELEMENTS, **keys})


CONFIGS: dict[str, Any] = {
    "s-nnp": _spline(repulsion=REPULSION),
    "s-nnp, exact angles": _spline(repulsion=REPULSION, angular={**ANGULAR, "evaluator": "spline"}),
    "s-nnp, pair term and embedding": _spline(repulsion=REPULSION, pair_term=True, embedding={}, filters="pair"),
    "hip-nn": _hip(0),
    "hip-nn-ts": _hip(2),
    "ani": _ani("celu"),
    "ani, gaussian": _ani("gaussian"),
}
KINDS = {SplineNNPConfig: SplineNNP, HIPNNConfig: HIPNN, ANIConfig: ANI}


def _model(name: str, *, isolated: tuple[str, ...] = ELEMENTS, seed: int = 1, **changes: Any) -> Potential:
    """No parameter is zero: an atom alone has an energy of its own."""
    config = CONFIGS[name].model_copy(update=changes)
    model = KINDS[type(config)](config, E0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if isinstance(model, SplineNNP):
            model.readout.mean.fill_(0.7)
            model.readout.std.fill_(0.3)
    model.isolated_atoms = isolated
    return model


def _ensemble(*names: str) -> Ensemble:
    return Ensemble([_model(name, seed=k) for k, name in enumerate(names)])


MODELS = {
    **{name: lambda name=name: _model(name) for name in CONFIGS},
    "ensemble that shares vectors": lambda: _ensemble("ani", "ani"),
    "mixed ensemble": lambda: _ensemble("hip-nn", "s-nnp", "ani"),
}


@pytest.mark.parametrize("name", MODELS)
def test_contract_with_repulsion_and_isolated_atoms(name: str) -> None:
    check_potential(MODELS[name]())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("name", MODELS)
def test_an_atom_alone_has_e0(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """However it is evaluated: the kernel, torch, many atoms, a session, TorchScript, after storage."""
    model = MODELS[name]().to(dtype)  # type: ignore[no-untyped-call]
    raw = copy.deepcopy(model)
    raw.isolated_atoms = ()
    pair = Atoms(ELEMENTS, [[0, 0, 0], [0, 0, 30.0]])
    for symbol in ELEMENTS:
        alone = Structure.from_ase(Atoms(symbol))
        assert abs(float(raw.compute(alone).energy) - E0[symbol]) > 1e-3  # else the test would show nothing
        assert float(model.compute(alone).energy) == pytest.approx(E0[symbol], abs=tolerance)
        with switched_off():
            assert float(model.compute(alone, forces=False).energy) == pytest.approx(E0[symbol], abs=tolerance)
    session = Session(model).evaluate(pair.numbers, pair.positions, pair.cell.array, pair.pbc)
    np.testing.assert_allclose(session.energies, [E0[symbol] for symbol in ELEMENTS], atol=tolerance)
    exported = scripted_module(model, length_unit="angstrom", energy_unit="eV")
    arguments = [torch.tensor(each) for each in (pair.numbers, pair.positions, pair.cell.array, pair.pbc)]
    assert float(exported(*arguments)) == pytest.approx(sum(E0.values()), abs=2 * tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_isolated_atoms_are_stored(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()  # type: ignore[no-untyped-call]
    loaded = load_model(save_model(model, tmp_path / "model"))
    assert loaded.isolated_atoms == ELEMENTS
    assert float(loaded.compute(Structure.from_ase(Atoms("C"))).energy) == pytest.approx(E0["C"], abs=1e-11)


def test_only_elements_with_an_isolated_e0_are_shifted() -> None:
    some, nothing = _model("hip-nn", isolated=("C",)), _model("hip-nn", isolated=())
    atoms = [Structure.from_ase(Atoms(symbol)) for symbol in ELEMENTS]
    assert float(some.compute(atoms[0]).energy) == float(nothing.compute(atoms[0]).energy)
    assert float(some.compute(atoms[1]).energy) == pytest.approx(E0["C"], abs=1e-11)
    with pytest.raises(InputError, match="isolated_atoms must be among Si, C, got 'O'"):
        some.isolated_atoms = ("O",)


@pytest.mark.parametrize("name", ["s-nnp", "hip-nn", "ani"])
def test_atoms_alone_follow_the_parameters(name: str) -> None:
    """What is kept between calls must not outlive a change of a parameter, of the type, or of E0."""
    model = _model(name)
    alone = Structure.from_ase(Atoms("C"))
    model.compute(alone)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert float(model.compute(alone).energy) == pytest.approx(E0["C"], abs=1e-11)
    model.reference_energies = {"Si": 0.0, "C": -1.0}
    assert float(model.compute(alone).energy) == pytest.approx(-1.0, abs=1e-11)
    assert float(model.float().compute(alone).energy) == pytest.approx(-1.0, abs=3e-6)
    model.isolated_atoms = ()
    assert abs(float(model.compute(alone).energy) + 1.0) > 1e-3


# Repulsion.


def test_repulsion_is_the_published_one() -> None:
    """Ziegler, Biersack and Littmark's universal potential for two silicon atoms at 0.5 Å, worked out by hand."""
    x = 0.5 * 2.0 * 14.0**0.23 / 0.46850
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    wanted = 14.0 * 14.0 * COULOMB_EV_ANGSTROM / 0.5 * sum(a * math.exp(-b * x) for a, b in terms)
    r, z = torch.tensor([0.5], dtype=torch.float64), torch.tensor([14.0], dtype=torch.float64)
    halves, _ = Repulsion(0.9, 1.6)(r, z, z)
    assert 2.0 * float(halves) == pytest.approx(wanted, rel=1e-12)


def test_slopes_are_derivatives() -> None:
    r = torch.linspace(0.3, 1.7, 57, dtype=torch.float64).requires_grad_()
    zi, zj = torch.full_like(r, 14.0), torch.full_like(r, 6.0)
    halves, slopes = Repulsion(0.9, 1.6)(r, zi, zj)
    (wanted,) = torch.autograd.grad(halves.sum(), r)
    torch.testing.assert_close(slopes, wanted, rtol=1e-11, atol=1e-11)
    assert bool((halves[r > 1.6] == 0.0).all())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_repels_by_the_same_amount(name: str) -> None:
    with_it, without = _model(name), _model(name, repulsion=None)
    for distance in (0.4, 1.2, 1.59, 1.61):
        dimer = Structure.from_ase(Atoms("SiC", [[0, 0, 0], [0, 0, distance]]))
        found = with_it.compute(dimer).energy - without.compute(dimer).energy
        r, zi, zj = (torch.tensor([value], dtype=torch.float64) for value in (distance, 14.0, 6.0))
        assert float(found) == pytest.approx(2.0 * float(Repulsion(0.9, 1.6)(r, zi, zj)[0]), rel=1e-9, abs=1e-9)
        assert (float(found) > 0.0) == (distance < 1.6)


def test_hierarchical_terms_still_sum_to_the_energy() -> None:
    model, dimer = _model("hip-nn-ts"), Structure.from_ase(Atoms("SiC", [[0, 0, 0], [0, 0, 1.1]]))
    assert isinstance(model, HIPNN)
    torch.testing.assert_close(model.hierarchical_energies(dimer).sum(dim=1), model.compute(dimer).energies)


@pytest.mark.parametrize("config", [_hip(0), _ani("celu")])
def test_a_repulsion_ends_within_the_cutoff(config: Any) -> None:
    too_far = {**config.model_dump(), "repulsion": {"inner": 1.0, "outer": 4.5}}
    with pytest.raises(ValueError, match=r"repulsion\.outer must not be larger than the cutoff, got 4\.5 and 4\.0"):
        type(config).model_validate(too_far)
    with pytest.raises(ValueError, match="outer must be larger"):
        RepulsionConfig(inner=2.0, outer=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_set_the_repulsion_by_the_shortest_distance(family: str) -> None:
    config = FAMILIES[family].config(elements=("Si",))
    found = config.ranged(2.0)
    assert found.repulsion == RepulsionConfig(inner=1.2, outer=2.1)  # type: ignore[attr-defined]
    assert config.ranged(5.0).repulsion.outer <= 5.25  # type: ignore[attr-defined]
    given = config.model_copy(update={"repulsion": REPULSION})
    assert given.ranged(2.0).repulsion == REPULSION  # type: ignore[attr-defined]


# Training.


def _water(folder: Path) -> Path:
    """Water distorted, down to short bonds, with a made-up energy that isolated atoms extend to zero."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(40):
        atoms = molecule("H2O")
        atoms.positions *= rng.uniform(0.8, 1.4)
        atoms.rattle(0.05, rng=rng)
        distance = atoms.get_all_distances()[np.triu_indices(3, 1)]
        atoms.info["energy"] = -432.0 - 13.6 * 2 - float(4.0 * np.exp(-0.5 * (distance - 1.0) ** 2).sum())
        frames.append(atoms)
    for symbol, energy in (("H", -13.6), ("O", -432.0)):
        frames.append(Atoms(symbol, info={"energy": energy}))
    ase.io.write(folder / "water.xyz", frames)
    return folder / "water.xyz"


TRAINED: dict[str, dict[str, Any]] = {
    "s-nnp": {"radial": {"n_filters": 4, "cutoff": 4.0}, "angular": {"n_filters": 4, "cutoff": 4.0}},
    "hip-nn": {"n_features": 6, "n_sensitivities": 8, "n_interactions": 1, "cutoff": 4.0, "upper": 3.0},
    "ani": {"hidden": [16, 8], "aev": {"radial": {"cutoff": 4.0}}},
}


EPOCHS = {"s-nnp": 40, "hip-nn": 60, "ani": 120}


@pytest.mark.parametrize("family", TRAINED)
def test_training_learns_differences_from_isolated_atoms(family: str, tmp_path: Path) -> None:
    """The optimiser sees what inference gives: errors fall, and atoms alone keep E0 exactly."""
    config = {
        "data": {"train": [str(_water(tmp_path))], "valid": 0.1},
        "model": {"family": family, **TRAINED[family]},
        "loss": {"force_weight": 0.0},
        "optimiser": {"epochs": EPOCHS[family], "batch_atoms": 30, "learning_rate": 0.01},
        "dtype": "float64",
    }
    result = train(load_config(config), tmp_path / "run")
    model = load_model(tmp_path / "run" / "best")
    assert model.isolated_atoms == ("H", "O")
    assert model.repulsion is not None
    for symbol, energy in (("H", -13.6), ("O", -432.0)):
        assert float(model.compute(Structure.from_ase(Atoms(symbol))).energy) == pytest.approx(energy, abs=1e-9)
    # Of an energy that varies by more than an electronvolt per atom.
    assert result.evaluations["train"].total.to_dict()["energy_mae_mev_per_atom"] < 300.0


def test_fitted_e0_stays_what_it_is(tmp_path: Path) -> None:
    """Least squares need no atom alone: nothing is taken off, and the energies of such a model are as before."""
    frames = [bulk("Cu", a=a) for a in (3.4, 3.5, 3.6, 3.7, 3.8, 3.9)]
    for k, atoms in enumerate(frames):
        atoms.info["energy"] = -3.5 + 0.1 * (k - 2) ** 2
    ase.io.write(tmp_path / "cu.xyz", frames)
    config = {
        "data": {"train": [str(tmp_path / "cu.xyz")], "valid": 0.2},
        "model": {"family": "s-nnp", **TRAINED["s-nnp"]},
        "loss": {"force_weight": 0.0},
        "optimiser": {"epochs": 1},
    }
    train(load_config(config), tmp_path / "run")
    assert load_model(tmp_path / "run" / "best").isolated_atoms == ()
