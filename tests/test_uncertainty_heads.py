"""s-NNPs that share their filters: one encoding, many heads, and the same numbers as each by itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from snnp.kernels.cpu.library import library
from snnp.models import Ensemble, SplineNNP, SplineNNPConfig, load_model, save_model
from snnp.models.config import RepulsionConfig
from snnp.models.heads import HeadsEvaluator, MembersEvaluator
from snnp.models.session import Session
from snnp.models.spline import special_cases
from snnp.models.spline.config import EmbeddingConfig, NetworkConfig
from snnp.sampling.many import Failed, evaluate_many
from snnp.uncertainty import Committee

pytestmark = pytest.mark.skipif(library() is None, reason="the compiled kernels are not built")

FORMS = {
    "shallow": {"network": NetworkConfig(hidden=(5,))},
    "deep": {"network": NetworkConfig(hidden=(5, 4))},
    "shared network, pair term": {"network": NetworkConfig(hidden=(6,), elements="shared"), "pair_term": True},
    "repulsion, no skip": {"repulsion": RepulsionConfig(inner=1.0, outer=2.5), "skip": False},
    "embedding": {"embedding": EmbeddingConfig(), "network": None},
    "splines": {"network": NetworkConfig(hidden=(5,))},
}


def _heads(name: str, dtype: torch.dtype = torch.float64, n_heads: int = 3) -> list[SplineNNP]:
    """Members of one form whose readouts, scales and E0 are their own."""
    config = special_cases.s_nnp(("Si", "C"), n_radial=3, n_angular=3, cutoff=4.0, hidden=(4,))
    config = SplineNNPConfig.model_validate({**config.model_dump(), **FORMS[name]})
    if name == "splines":
        config = config.model_copy(update={"angular": config.angular.model_copy(update={"evaluator": "spline"})})
    first, members = SplineNNP(config, seed=0), []
    for seed in range(n_heads):
        torch.manual_seed(seed)
        head = SplineNNP(config, {"Si": -5.0 - seed, "C": -9.0}, seed=seed)
        for splines in ("rho", "f", "g", "phi"):
            if getattr(head, splines) is not None:
                getattr(head, splines).free.data.copy_(getattr(first, splines).free)
        for parameter in head.readout.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        head.readout.mean += 0.1 * torch.rand_like(head.readout.mean)
        head.readout.std += torch.rand_like(head.readout.std)
        members.append(head.to(dtype))
    return members


def _carbide() -> Atoms:
    atoms = bulk("SiC", "zincblende", 4.3, cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=1)
    return atoms


def _arrays(atoms: Atoms) -> tuple[np.ndarray, ...]:
    return atoms.numbers, atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(FORMS))
def test_heads_say_what_each_says_alone(name: str, dtype: torch.dtype) -> None:
    heads, atoms = _heads(name, dtype), _carbide()
    whole = Ensemble(heads)
    assert isinstance(whole.evaluator(), HeadsEvaluator)
    each = [Session(head).evaluate(*_arrays(atoms), stress=True) for head in heads]
    close = {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 1e-11}
    forces = np.stack([one.forces for one in each])
    for found in (Session(whole).evaluate(*_arrays(atoms), stress=True), Committee(heads).evaluate(*_arrays(atoms))[0]):
        np.testing.assert_allclose(found.energies, np.mean([one.energies for one in each], axis=0), **close)
        np.testing.assert_allclose(found.forces, forces.mean(axis=0), **close)
        np.testing.assert_allclose(found.stress, np.mean([one.stress for one in each], axis=0), **close)
    _, spread = Committee(whole).evaluate(*_arrays(atoms))
    _, no_forces = Committee(whole).evaluate(*_arrays(atoms), force_spread=False)
    expected = np.sqrt(((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0))
    np.testing.assert_allclose(spread.forces, expected, **close)
    for one in (spread, no_forces):
        np.testing.assert_allclose(one.energies, np.std([each_.energies for each_ in each], axis=0), **close)
        assert one.energy == pytest.approx(np.std([each_.energy for each_ in each]) / len(atoms), abs=close["atol"])
    assert np.isnan(no_forces.forces).all()


def test_a_batch_through_the_contract_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = _heads("shallow")
    batch = [_carbide(), bulk("SiC", "zincblende", 4.5)]
    found = Ensemble(heads).compute(batch, stress=True)
    alone = [head.compute(batch, stress=True) for head in heads]
    for field in ("energy", "energies", "forces", "stress"):
        values = torch.stack([getattr(one, field) for one in alone])
        torch.testing.assert_close(getattr(found, field), values.mean(dim=0), rtol=0, atol=1e-11)
    assert found.forces_std is not None
    forces = torch.stack([one.forces for one in alone if one.forces is not None])
    torch.testing.assert_close(found.forces_std, forces.std(dim=0, correction=0), rtol=0, atol=1e-11)


def test_threads_change_nothing_but_rounding() -> None:
    whole, atoms = Committee(_heads("deep")), _carbide() * (2, 1, 1)
    one = whole.evaluate(*_arrays(atoms))
    n = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = whole.evaluate(*_arrays(atoms))
    finally:
        torch.set_num_threads(n)
    np.testing.assert_allclose(one[0].forces, several[0].forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one[1].forces, several[1].forces, rtol=0, atol=1e-12)


def test_one_filter_apart_and_they_are_members_of_their_own() -> None:
    heads, atoms = _heads("shallow"), _carbide()
    whole = Ensemble(heads)
    before = Session(whole).evaluate(*_arrays(atoms))
    with torch.no_grad():
        heads[1].rho.free[0, 0, 2] += 0.1
    assert isinstance(whole.evaluator(), MembersEvaluator)
    after = Session(whole).evaluate(*_arrays(atoms))
    assert np.abs(after.forces - before.forces).max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_of_their_own_by_one_call(dtype: torch.dtype) -> None:
    """Whatever evaluates them, their mean and their spread are those of each by itself; their cutoffs differ."""
    members = [
        SplineNNP(special_cases.s_nnp(("Si", "C"), n_radial=3, n_angular=3, cutoff=cutoff, hidden=(4,)), seed=k).to(
            dtype
        )
        for k, cutoff in enumerate((4.0, 3.4, 4.3))
    ]
    whole, cells = Ensemble(members), [_carbide(), bulk("SiC", "zincblende", 4.5)]
    assert isinstance(whole.evaluator(), MembersEvaluator)
    close = {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 1e-11}
    together = evaluate_many(whole, cells)
    for atoms, of_many in zip(cells, together, strict=True):
        each = [Session(member).evaluate(*_arrays(atoms), stress=True) for member in members]
        forces = np.stack([one.forces for one in each])
        computed = whole.compute(atoms, stress=True)
        assert computed.forces is not None
        assert computed.stress is not None
        assert computed.forces_std is not None
        np.testing.assert_allclose(computed.forces, forces.mean(axis=0), **close)
        np.testing.assert_allclose(computed.stress[0], np.mean([one.stress for one in each], axis=0), **close)
        np.testing.assert_allclose(computed.forces_std, forces.std(axis=0), **close)
        assert not isinstance(of_many, Failed)
        for found in (Session(whole).evaluate(*_arrays(atoms), stress=True), of_many):
            np.testing.assert_allclose(found.energies, np.mean([one.energies for one in each], axis=0), **close)
            np.testing.assert_allclose(found.forces, forces.mean(axis=0), **close)
            np.testing.assert_allclose(found.stress, np.mean([one.stress for one in each], axis=0), **close)
        _, spread = Committee(whole).evaluate(*_arrays(atoms))
        expected = np.sqrt(((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0))
        np.testing.assert_allclose(spread.forces, expected, **close)


def test_members_that_number_elements_differently_are_left_to_torch() -> None:
    forms = [special_cases.s_nnp(names, n_radial=2, n_angular=2, cutoff=4.0) for names in (("Si", "C"), ("C", "Si"))]
    members, atoms = [SplineNNP(form, seed=3) for form in forms], _carbide()
    whole = Ensemble(members)
    assert whole.evaluator() is None
    expected = np.mean([Session(member).evaluate(*_arrays(atoms)).forces for member in members], axis=0)
    np.testing.assert_allclose(Session(whole).evaluate(*_arrays(atoms)).forces, expected, rtol=0, atol=1e-6)


def test_changed_readouts_are_seen_and_copies_are_their_own(tmp_path: object) -> None:
    heads, atoms = _heads("shallow"), _carbide()
    whole = Ensemble(heads)
    first = Session(whole).evaluate(*_arrays(atoms)).energy
    twin = copy.deepcopy(whole)
    with torch.no_grad():
        heads[0].readout.network.biases[0].add_(1.0)  # type: ignore[union-attr]
    assert Session(whole).evaluate(*_arrays(atoms)).energy != first
    assert Session(twin).evaluate(*_arrays(atoms)).energy == first


def test_one_folder_holds_them(tmp_path: object) -> None:
    atoms, whole = _carbide(), Ensemble(_heads("shallow", torch.float32))
    loaded = load_model(save_model(whole, f"{tmp_path}/model"))
    assert isinstance(loaded.evaluator(), HeadsEvaluator)
    assert Session(loaded).evaluate(*_arrays(atoms)).energy == Session(whole).evaluate(*_arrays(atoms)).energy
