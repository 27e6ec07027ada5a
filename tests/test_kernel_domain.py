"""The kernel on a domain of a parallel program: centres with rows, ghosts behind them, no images."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list

from snnp.kernels.cpu.library import Report, System, addresses, aligned_bytes, library, pack_parameters
from snnp.models import SplineNNP, load_model
from snnp.models.spline.config import SplineNNPConfig

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

_GUARD = 1e30  # what an output holds before the call, and beyond its end also after it


class _Domain(ctypes.Structure):
    _fields_ = [("n_centres", ctypes.c_int64), ("atom_virials", ctypes.c_void_p)]


class _Described(ctypes.Structure):
    _fields_ = [*[(name, ctypes.c_int64) for name in ("version", "real_size", "n_elements")]]
    _fields_ += [("cutoff", ctypes.c_double), ("numbers", ctypes.c_void_p), ("reference", ctypes.c_void_p)]


class _Result(NamedTuple):
    energies: np.ndarray  # [C]
    forces: np.ndarray  # [N, 3], those of ghosts too
    virial: np.ndarray  # [3, 3]
    atom_virials: np.ndarray  # [N, 3, 3]
    owner: np.ndarray  # [N] the centre that each atom is a copy of


def two_elements(degree: int = 3) -> SplineNNP:
    config = {
        "elements": ("Cu", "Ni"),
        "filters": "element",
        "radial": {"n_filters": 5, "cutoff": 4.0, "intervals": 8},
        "angular": {"n_filters": 8, "cutoff": 4.0, "intervals": 8, "degree": degree},
    }
    return SplineNNP(SplineNNPConfig.model_validate(config), seed=3)


def crystal(n: int, seed: int = 1) -> Atoms:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 2.3
    cell = np.diag([2.3 * n] * 3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1)
    symbols = ["Cu", "Ni"] * (len(grid) // 2) + ["Cu"] * (len(grid) % 2)
    return Atoms(symbols, grid + rng.uniform(-0.2, 0.2, grid.shape), cell=cell, pbc=True)


def evaluate(model: SplineNNP, atoms: Atoms, n_threads: int, *, per_atom: bool = True) -> _Result:
    """The kernel on explicit copies of atoms in place of images."""
    i, j, shift = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell.array, atoms.positions, model.cutoff)
    copies, index = np.unique(np.column_stack([j, shift]), axis=0, return_inverse=True)
    is_ghost = copies[:, 1:].any(axis=1)
    n = len(atoms)
    place = np.where(is_ghost, n + np.cumsum(is_ghost) - 1, copies[:, 0])
    ghosts = copies[is_ghost]
    owner = np.concatenate([np.arange(n), ghosts[:, 0]])
    positions = np.concatenate([atoms.positions, atoms.positions[ghosts[:, 0]] + ghosts[:, 1:] @ atoms.cell.array])
    first = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n))]).astype(np.int64)
    neighbour = place[index.reshape(-1)].astype(np.int32)
    species = np.array([model.elements.index(s) for s in atoms.symbols], dtype=np.int32)[owner]
    real = np.float32 if model.dtype == torch.float32 else np.float64
    packed = pack_parameters(model.kernel_parameters(), real)
    total = len(owner)
    energies, forces, virial = np.full(n + 4, _GUARD), np.full(3 * total + 16, _GUARD), np.empty(9)
    atom_virials = np.full(9 * total + 16, _GUARD)
    given = addresses(np.ascontiguousarray(positions), species, None, first, neighbour, None, None, None)
    system = System(total, 1, 0, *given, n_threads, *addresses(energies, forces, virial))
    domain = _Domain(n, atom_virials.ctypes.data if per_atom else None)
    report = Report()
    lib = library()
    assert lib is not None
    status = lib.snnp_evaluate_domain(
        ctypes.c_void_p(packed.ctypes.data),
        ctypes.c_int64(packed.nbytes),
        ctypes.byref(system),
        ctypes.byref(domain),
        ctypes.byref(report),
    )
    assert status == 0
    assert (energies[n:] == _GUARD).all()
    assert (forces[3 * total :] == _GUARD).all()
    assert (atom_virials[9 * total if per_atom else 0 :] == _GUARD).all()
    virials = atom_virials[: 9 * total].reshape(-1, 3, 3)
    return _Result(energies[:n], forces[: 3 * total].reshape(-1, 3), virial.reshape(3, 3), virials, owner)


def folded(result: _Result, values: np.ndarray) -> np.ndarray:
    """Values of atoms and ghosts, added up at their owners."""
    out = np.zeros((len(result.energies), *values.shape[1:]))
    np.add.at(out, result.owner, values)
    return out


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n", [3, 6])
def test_ghosts_in_place_of_images(n: int, n_threads: int) -> None:
    model, atoms = two_elements(), crystal(n)
    result = evaluate(model, atoms, n_threads)
    assert len(result.owner) > 2 * n**3, "few ghosts test little"
    expected = model.compute(atoms, stress=True)
    np.testing.assert_allclose(result.energies, expected.energies.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(folded(result, result.forces), expected.forces.numpy(), rtol=0, atol=1e-12)
    virial = expected.stress[0].numpy() * atoms.get_volume()
    np.testing.assert_allclose(result.virial, virial, rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.atom_virials.sum(axis=0), virial, rtol=0, atol=1e-10)


def test_virial_of_an_atom_is_its_part_as_a_neighbour() -> None:
    """sum_i r_ij (x) dE_i/dr_ij of one atom j, from the differences of all energies when it alone moves."""
    model, atoms, j, step = two_elements(), crystal(4), 5, 1e-4
    found = folded(evaluate(model, atoms, 1), evaluate(model, atoms, 1).atom_virials)[j]
    expected = np.zeros((3, 3))
    for b in range(3):
        energies = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[j, b] += sign * step
            energies.append(evaluate(model, moved, 1).energies)
        slopes = (energies[0] - energies[1]) / (2.0 * step)
        vectors = np.array([atoms.get_distance(k, j, mic=True, vector=True) for k in range(len(atoms))])
        slopes[j] = 0.0  # the centre itself has no vector
        expected[:, b] = slopes @ vectors
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_results_repeat_and_do_not_depend_on_what_is_asked_for() -> None:
    model, atoms = two_elements(), crystal(6)
    one, again, less = (evaluate(model, atoms, 3, per_atom=per_atom) for per_atom in (True, True, False))
    assert np.array_equal(one.forces, again.forces)
    assert np.array_equal(one.forces, less.forces)
    assert np.array_equal(one.virial, less.virial)


def test_a_model_describes_itself() -> None:
    model = load_model("snnp-shared6", dtype="float32")
    packed, found, lib = pack_parameters(model.kernel_parameters(), np.float32), _Described(), library()
    assert lib is not None
    call = (ctypes.c_void_p(packed.ctypes.data), ctypes.c_int64(packed.nbytes), ctypes.byref(found))
    assert lib.snnp_describe(*call) == 0
    assert (found.version, found.real_size, found.n_elements) == (lib.snnp_version(), 4, len(model.elements))
    assert found.cutoff == model.cutoff
    numbers = np.ctypeslib.as_array(ctypes.cast(found.numbers, ctypes.POINTER(ctypes.c_int32)), (found.n_elements,))
    assert numbers.tolist() == model.kernel_parameters().numbers.tolist()
    broken = aligned_bytes(packed.nbytes)
    broken[:] = packed
    broken[8] ^= 1  # the version
    assert lib.snnp_describe(ctypes.c_void_p(broken.ctypes.data), ctypes.c_int64(broken.nbytes), call[2]) == 1
