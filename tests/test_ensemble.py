"""Ensembles: the mean and the spread of their members, stored as one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors.torch import load_file

from snnp.errors import InputError, ModelFileError, UnknownElementError
from snnp.models import Ensemble, SplineNNP, load_model, save_model
from snnp.models.spline import special_cases
from snnp.structure import Structure
from snnp.testing import check_potential


def _member(seed: int, elements: tuple[str, ...] = ("Si", "C"), cutoff: float = 4.0) -> SplineNNP:
    config = special_cases.s_nnp(elements, n_radial=2, n_angular=2, cutoff=cutoff, hidden=(4,))
    return SplineNNP(config, {"Si": -5.0 - 0.1 * seed, "C": -9.0 / 7.0}, seed=seed)


@pytest.fixture
def ensemble() -> Ensemble:
    """Three members, one of which sees less far and one of which counts its elements the other way round."""
    return Ensemble([_member(0), _member(1, ("C", "Si")), _member(2, cutoff=3.5)])


@pytest.fixture
def structures() -> Structure:
    frames = [bulk("SiC", "zincblende", a, cubic=True) for a in (4.2, 4.5)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=seed)
    return Structure.from_ase(frames)


def test_contract() -> None:
    check_potential(Ensemble([_member(0, ("Si",)), _member(1, ("Si",), 3.5)]), skip=["export"])


def test_mean_and_spread_of_members(ensemble: Ensemble, structures: Structure) -> None:
    result = ensemble.compute(structures, stress=True)
    each = [member.compute(structures, stress=True) for member in ensemble.potentials]
    for name in ("energy", "energies", "forces", "stress"):
        members = np.stack([getattr(one, name).numpy() for one in each])
        np.testing.assert_allclose(getattr(result, name).numpy(), members.mean(axis=0), rtol=0, atol=1e-12)
    for name, spread in (("energy", result.energy_std), ("forces", result.forces_std)):
        members = np.stack([getattr(one, name).numpy() for one in each])
        assert spread is not None
        np.testing.assert_allclose(spread.numpy(), members.std(axis=0), rtol=0, atol=1e-12)
        assert float(spread.max()) > 1e-3


def test_one_member_has_no_spread(structures: Structure) -> None:
    result = Ensemble([_member(0)]).compute(structures)
    assert result.energy_std is not None
    assert result.forces_std is not None
    assert float(result.energy_std.abs().max()) == 0.0
    assert float(result.forces_std.abs().max()) == 0.0


def test_energies_alone(ensemble: Ensemble, structures: Structure) -> None:
    result = ensemble.compute(structures, forces=False)
    assert (result.forces, result.forces_std, result.stress) == (None, None, None)
    assert torch.allclose(result.energy, ensemble.compute(structures).energy, rtol=0, atol=1e-10)


def test_a_single_potential_has_no_spread(structures: Structure) -> None:
    result = _member(0).compute(structures)
    assert (result.energy_std, result.forces_std) == (None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_folder(ensemble: Ensemble, structures: Structure, tmp_path: Path, dtype: torch.dtype) -> None:
    ensemble = ensemble.to(dtype)
    folder = save_model(ensemble, tmp_path / "e")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert {name.split(".")[1] for name in load_file(folder / "model.safetensors")} == {"0", "1", "2"}
    loaded = load_model(folder)
    assert isinstance(loaded, Ensemble)
    assert loaded.config == ensemble.config
    for ours, theirs in zip(loaded.potentials, ensemble.potentials, strict=True):
        assert type(ours) is type(theirs)
        assert ours.config == theirs.config
        assert ours.reference_energies == theirs.reference_energies
        assert ours.dtype == dtype
    got, wanted = loaded.compute(structures), ensemble.compute(structures)
    for name in ("energy", "forces", "energy_std", "forces_std"):
        assert torch.equal(getattr(got, name), getattr(wanted, name))


def test_members_keep_their_provenance(tmp_path: Path) -> None:
    members = [_member(0), _member(1)]
    members[1].metadata = {"seed": 1}
    loaded = load_model(save_model(Ensemble(members), tmp_path / "e"))
    assert loaded.metadata == {"members": [{}, {"seed": 1}]}


def test_new_reference_energies_keep_the_spread(ensemble: Ensemble, structures: Structure, tmp_path: Path) -> None:
    before = ensemble.compute(structures)
    assert ensemble.reference_energies == pytest.approx({"Si": -5.1, "C": -9.0 / 7.0})
    ensemble.reference_energies = {"Si": -4.1, "C": -9.0 / 7.0}
    for model in (ensemble, load_model(save_model(ensemble, tmp_path / "e"))):
        after = model.compute(structures)
        assert torch.allclose(after.energy, before.energy + 4.0, rtol=0, atol=1e-9)
        assert before.energy_std is not None
        assert after.energy_std is not None
        assert torch.allclose(after.energy_std, before.energy_std, rtol=0, atol=1e-9)


def test_members_that_do_not_fit(ensemble: Ensemble) -> None:
    with pytest.raises(InputError, match="at least one"):
        Ensemble([])
    with pytest.raises(InputError, match="member 1 knows Si in"):
        Ensemble([_member(0), SplineNNP(special_cases.eam(("Si",)))])
    with pytest.raises(InputError, match=r"member 1 knows .* in torch\.float32"):
        Ensemble([_member(0), _member(1).float()])
    with pytest.raises(InputError, match="member 1 is itself an ensemble"):
        Ensemble([_member(0), ensemble])


def test_unknown_element_is_named(ensemble: Ensemble) -> None:
    with pytest.raises(UnknownElementError, match="Cu"):
        ensemble.compute(Structure.from_ase(bulk("Cu")))


def _with_member(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["config"]["members"][1].update(changes)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "os.system"}, "unknown class 'os.system'"),
        ({"family": "Ensemble"}, "unknown class 'Ensemble'"),
        ({"config": {"elements": ["Si", "C"], "radail": {}}}, "radail"),
        ({"reference_energies": {"Si": -1.0}}, "reference_energies"),
        ({"weights": "elsewhere"}, "weights"),
    ],
)
def test_damaged_members(ensemble: Ensemble, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = save_model(ensemble, tmp_path / "e")
    _with_member(folder, **changes)
    with pytest.raises(ModelFileError, match="e") as caught:
        load_model(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_members(ensemble: Ensemble, tmp_path: Path) -> None:
    folder = save_model(ensemble, tmp_path / "e")
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["config"]["members"] = []
    path.write_text(json.dumps(description))
    with pytest.raises(ModelFileError, match="members"):
        load_model(folder)
