"""What a committee says, and how its members share their work."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from snnp.errors import InputError
from snnp.models import HIPNN, Ensemble, HIPNNConfig, SplineNNP
from snnp.models.potential import Potential
from snnp.models.session import Session
from snnp.models.spline import special_cases
from snnp.uncertainty import Committee


def _member(seed: int, elements: tuple[str, ...] = ("Si", "C"), cutoff: float = 4.0) -> SplineNNP:
    config = special_cases.s_nnp(elements, n_radial=2, n_angular=2, cutoff=cutoff, hidden=(4,))
    return SplineNNP(config, {"Si": -5.0 - 0.1 * seed, "C": -9.0 / 7.0}, seed=seed)


def _carbide() -> Atoms:
    atoms = bulk("SiC", "zincblende", 4.3, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def _arrays(atoms: Atoms) -> tuple[np.ndarray, ...]:
    return atoms.numbers, atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc


def _members() -> list[Potential]:
    """One sees less far, one counts its elements the other way round."""
    return [_member(0), _member(1, ("C", "Si")), _member(2, cutoff=3.5)]


def _others() -> list[Potential]:
    """Members of a family that torch evaluates."""
    return [HIPNN(HIPNNConfig(elements=("Si", "C")), {"Si": -5.0, "C": -1.0}, seed=seed).double() for seed in (0, 1)]


@pytest.mark.parametrize("make", [_members, _others])
def test_mean_and_spread_of_members(make: object) -> None:
    assert callable(make)
    members, atoms = make(), _carbide()
    evaluation, spread = Committee(members).evaluate(*_arrays(atoms), stress=True)
    each = [Session(member).evaluate(*_arrays(atoms), stress=True) for member in members]
    forces = np.stack([one.forces for one in each])
    np.testing.assert_allclose(evaluation.forces, forces.mean(axis=0), rtol=0, atol=1e-10)
    assert evaluation.energy == pytest.approx(np.mean([one.energy for one in each]), abs=1e-9)
    assert evaluation.stress is not None
    np.testing.assert_allclose(evaluation.stress, np.mean([one.stress for one in each], axis=0), rtol=0, atol=1e-12)
    expected = np.sqrt(((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0))
    np.testing.assert_allclose(spread.forces, expected, rtol=0, atol=1e-10)
    assert spread.energy == pytest.approx(np.std([one.energy for one in each]) / len(atoms), abs=1e-9)
    assert spread.largest_force == spread.forces.max()
    assert spread.mean_force == pytest.approx(spread.forces.mean())


def test_an_ensemble_is_its_members() -> None:
    members, atoms = _members(), _carbide()
    one, other = Committee(members).evaluate(*_arrays(atoms)), Committee(Ensemble(members)).evaluate(*_arrays(atoms))
    np.testing.assert_array_equal(one[1].forces, other[1].forces)


def test_one_list_serves_all_and_follows_the_atoms() -> None:
    committee, atoms = Committee(_members()), _carbide()
    rng = np.random.default_rng(0)
    for _ in range(5):
        atoms.positions += rng.normal(0.0, 0.02, atoms.positions.shape)
        found, _ = committee.evaluate(*_arrays(atoms))
    assert committee.n_neighbour_builds == 1
    for _ in range(3):
        atoms.positions += rng.normal(0.0, 0.5, atoms.positions.shape)
        found, _ = committee.evaluate(*_arrays(atoms))
    fresh, _ = Committee(_members()).evaluate(*_arrays(atoms))
    assert committee.n_neighbour_builds > 1
    np.testing.assert_allclose(found.forces, fresh.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("members", [[], [_member(0)], _member(0), Ensemble([_member(0)])])
def test_one_alone_is_no_committee(members: object) -> None:
    with pytest.raises(InputError, match=r"needs at least 2 potentials to disagree, got [01]; give a list"):
        Committee(members)  # type: ignore[arg-type]


def test_members_of_other_elements_are_refused() -> None:
    with pytest.raises(InputError, match="member 1 of the committee knows Si, member 0 Si, C"):
        Committee([_member(0), _member(1, ("Si",))])
