"""The ASE calculator against the core, finite differences, and ASE's own tools."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from timings.without_kernels import switched_off

from snnp.errors import InputError, ModelFileError, UnknownElementError
from snnp.models.config import RepulsionConfig
from snnp.models.spline.config import AngularConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import save_model
from snnp.sampling import relax
from snnp.structure import Structure
from snnp_ase import SNNPCalculator


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    """A small s-NNP that keeps fcc aluminium together: a Morse-like pair term with weak many-body terms."""
    config = SplineNNPConfig(
        elements=("Al",),
        pair_term=True,
        radial=RadialConfig(n_filters=2, lower=1.8, cutoff=5.0, intervals=20),
        angular=AngularConfig(n_filters=2, lower=1.8, cutoff=4.5, intervals=10, degree=2),
        network=None,
        repulsion=RepulsionConfig(inner=1.2, outer=2.2),
    )
    potential = SplineNNP(config, {"Al": -1.0})
    assert potential.phi is not None
    assert potential.readout.linear is not None
    x = torch.exp(-1.7 * (potential.phi.grids[0].knots() - 3.06))
    potential.phi.set_knots((0.25 * (x * x - 2.0 * x))[None])
    torch.nn.init.constant_(potential.readout.linear, 1e-4)
    return potential


A = 4.268  # Å, lattice constant of the model above


def rattled(repeat: int = 1, seed: int = 0) -> Atoms:
    atoms = bulk("Al", cubic=True, a=A) * (repeat, repeat, repeat)
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.08, atoms.positions.shape)
    return atoms


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
def test_results_are_those_of_the_core(model: SplineNNP, dtype: str, tolerance: float) -> None:
    atoms = rattled(2)
    atoms.calc = SNNPCalculator(model, dtype=dtype)
    truth = model.compute(Structure.from_ase(atoms), stress=True)
    assert truth.forces is not None
    assert truth.stress is not None
    largest = float(truth.forces.abs().max())
    assert atoms.get_potential_energy() == pytest.approx(float(truth.energy[0]), rel=tolerance)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert np.abs(atoms.get_forces() - truth.forces.numpy()).max() < tolerance * largest
    assert np.abs(atoms.get_stress(voigt=False) - truth.stress[0].numpy()).max() < tolerance
    assert np.allclose(atoms.get_potential_energies(), truth.energies.numpy(), rtol=tolerance)
    assert model.dtype == torch.float64  # the caller's model is left alone
    assert atoms.get_forces().dtype == np.float64


def test_forces_and_stress_are_the_slopes_of_the_energy(model: SplineNNP) -> None:
    atoms = rattled()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * np.random.default_rng(1).random((3, 3))), scale_atoms=True)
    atoms.calc = SNNPCalculator(model)
    assert np.abs(atoms.get_forces() - calculate_numerical_forces(atoms, eps=1e-4)).max() < 1e-7
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(atoms.get_stress() - numerical).max() < 1e-8


def test_the_stress_exists_only_where_all_directions_are_periodic(model: SplineNNP) -> None:
    calculator = SNNPCalculator(model)
    crystal, cluster, slab = rattled(), Atoms("Al2", [[0, 0, 0], [0, 0, 2.8]]), rattled()
    slab.pbc = (True, True, False)
    for atoms in (cluster, slab):
        atoms.calc = calculator
        atoms.get_forces()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
    crystal.calc = calculator
    assert crystal.get_stress().shape == (6,)
    calculator.implemented_properties.remove("stress")
    assert "stress" in SNNPCalculator(model).implemented_properties  # each calculator has its own list


@pytest.mark.parametrize("native", [False, True])
def test_the_stress_costs_no_second_evaluation_in_a_run_that_asks_for_it(
    model: SplineNNP, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    atoms = rattled()
    atoms.calc = SNNPCalculator(model)
    evaluations = []
    evaluate = atoms.calc._session.evaluate
    monkeypatch.setattr(
        atoms.calc._session, "evaluate", lambda *args, **kw: evaluations.append(kw["stress"]) or evaluate(*args, **kw)
    )
    with nullcontext() if native else switched_off():
        for _ in range(4):
            atoms.positions[0] += 0.01
            atoms.get_forces()
            atoms.get_stress()
            atoms.get_potential_energy()
        for _ in range(2):
            atoms.positions[0] += 0.01
            atoms.get_forces()
    # torch computes the stress only where it is expected; the kernel gives it with every evaluation.
    expected = [False, True, True, True, True, False] if native else [False, True, True, True, True, True, False]
    assert evaluations == expected


def test_the_neighbour_list_is_reused_until_an_atom_moves_half_the_skin(model: SplineNNP) -> None:
    atoms = rattled(2)
    atoms.calc = SNNPCalculator(model, skin=0.5)

    def is_right() -> bool:
        fresh = atoms.copy()
        fresh.calc = SNNPCalculator(model, skin=0.0)
        return bool(np.allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-12))

    assert is_right()
    atoms.positions[3] += [0.2, 0.0, 0.0]
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 1
    atoms.positions[3] += [0.1, 0.0, 0.0]
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 2
    # The list follows a small strain, and is built anew for a large one.
    atoms.set_cell(1.02 * atoms.cell.array, scale_atoms=True)
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 2
    atoms.set_cell(0.8 * atoms.cell.array, scale_atoms=True)
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 3
    atoms.pbc = (True, True, False)
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 4
    del atoms[0]
    assert is_right()
    assert atoms.calc.n_neighbour_builds == 5


def test_bad_structures_are_named(model: SplineNNP) -> None:
    calculator = SNNPCalculator(model)
    wrong = rattled()
    wrong.positions[2, 1] = np.nan
    flat = Atoms("Al", pbc=True, cell=[4.0, 4.0, 0.0])
    twins = Atoms("Al2", [[0, 0, 0], [0, 0, 0.01]])
    strange = Atoms("AlSi", [[0, 0, 0], [0, 0, 2.5]])
    for atoms, error, message in [
        (wrong, InputError, r"positions\[2, 1\] is NaN"),
        (flat, InputError, "cell of structure 0 has no volume"),
        (twins, InputError, "atoms 0 and 1 overlap"),
        (strange, UnknownElementError, "knows Al but the structure holds Si"),
    ]:
        atoms.calc = calculator
        with pytest.raises(error, match=message):
            atoms.get_potential_energy()
    good = rattled()
    good.calc = calculator  # an error leaves a calculator that works
    assert np.isfinite(good.get_potential_energy())


def test_bad_arguments_are_named(model: SplineNNP) -> None:
    with pytest.raises(ModelFileError, match="no model named 'snnp-unknown'"):
        SNNPCalculator("snnp-unknown")
    with pytest.raises(InputError, match="dtype must be 'float32' or 'float64', got 'float16'"):
        SNNPCalculator(model, dtype="float16")
    with pytest.raises(InputError, match="device 'warp' cannot be used"):
        SNNPCalculator(model, device="warp")
    with pytest.raises(InputError, match="skin must not be negative"):
        SNNPCalculator(model, skin=-1.0)


def test_models_load_from_a_folder(model: SplineNNP, tmp_path: Path) -> None:
    save_model(model, tmp_path / "al")
    atoms, again = rattled(), rattled()
    atoms.calc, again.calc = SNNPCalculator(model), SNNPCalculator(tmp_path / "al")
    assert again.get_potential_energy() == atoms.get_potential_energy()


@pytest.mark.parametrize("twin_of", [lambda calc: pickle.loads(pickle.dumps(calc)), copy.deepcopy])
def test_copies_are_equal_and_independent(model: SplineNNP, twin_of: object) -> None:
    assert callable(twin_of)
    atoms = rattled()
    atoms.calc = SNNPCalculator(model, skin=0.3)
    forces = atoms.get_forces()
    twin = twin_of(atoms.calc)
    assert np.array_equal(twin.results["forces"], forces)
    assert twin.model is not atoms.calc.model
    moved = rattled(seed=3)
    moved.calc = twin
    expected = rattled(seed=3)
    expected.calc = SNNPCalculator(model)
    assert np.allclose(moved.get_forces(), expected.get_forces(), atol=1e-12)
    assert np.array_equal(atoms.get_forces(), forces)


def test_pickles_are_light_and_hold_no_torch_objects(model: SplineNNP) -> None:
    atoms = rattled(2)
    atoms.calc = SNNPCalculator(model)
    atoms.get_forces()
    content = pickle.dumps(atoms.calc)
    n_bytes = 8 * model.n_parameters
    assert len(content) < n_bytes + 20_000
    assert b"torch._utils" not in content
    assert b"_rebuild_tensor" not in content


# ASE's own tools: what a user's script does.


def test_relaxation_reaches_the_lattice(model: SplineNNP) -> None:
    atoms = rattled()
    atoms.calc = SNNPCalculator(model)
    assert BFGS(atoms, logfile="/dev/null").run(fmax=1e-4, steps=100)
    perfect = bulk("Al", cubic=True, a=A)
    assert np.allclose(atoms.get_all_distances(mic=True), perfect.get_all_distances(mic=True), atol=1e-3)


def test_velocity_verlet_conserves_energy_to_second_order(model: SplineNNP) -> None:
    deviations = []
    for dt in (4.0, 2.0):
        atoms = rattled(2)
        atoms.calc = SNNPCalculator(model)
        energies = []
        dynamics = VelocityVerlet(atoms, dt * units.fs)
        dynamics.attach(lambda atoms=atoms, to=energies: to.append(atoms.get_total_energy()))
        dynamics.run(int(160.0 / dt))
        deviations.append(np.std(energies))
    assert 3.0 < deviations[0] / deviations[1] < 5.0


def test_phonons_have_the_frequencies_of_the_force_constants(model: SplineNNP, tmp_path: Path) -> None:
    # The model's own minimum, so that all modes are stable.
    primitive = relax(model, bulk("Al", a=A), fmax=1e-5, cell=True).atoms
    phonons = Phonons(primitive, SNNPCalculator(model), supercell=(4, 4, 4), name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=True)
    gamma, zone_edge = phonons.band_structure([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]], verbose=False)
    assert np.abs(gamma).max() < 1e-3
    # Frozen phonon at X: planes of atoms move against each other; omega² = d²E/du² / (atoms m).
    cell = bulk("Al", cubic=True)
    cell.set_cell(np.eye(3) * primitive.get_volume() ** (1.0 / 3.0) * 4.0 ** (1.0 / 3.0), scale_atoms=True)
    upper = np.isclose(cell.get_scaled_positions()[:, 2], 0.5)
    cell.calc = SNNPCalculator(model)
    moved = {}
    for direction in (0, 2):
        energies = []
        for u in (-0.01, 0.0, 0.01):
            trial = cell.copy()
            trial.calc = cell.calc
            trial.positions[upper, direction] += u / 2.0
            trial.positions[~upper, direction] -= u / 2.0
            energies.append(trial.get_potential_energy())
        curvature = (energies[0] - 2.0 * energies[1] + energies[2]) / 0.01**2
        # Each of the four atoms moves u/2: 2 * (m/8) * 4 = m per u².
        moved[direction] = (
            np.sqrt(curvature / cell.get_masses()[0]) * units._hbar * 1e10 / np.sqrt(units._e * units._amu)
        )
    assert zone_edge == pytest.approx([moved[0], moved[0], moved[2]], rel=0.02)


def test_a_nudged_elastic_band_is_symmetric(model: SplineNNP) -> None:
    crystal = bulk("Al", cubic=True, a=A) * (2, 2, 2)
    neighbour = int(np.argsort(crystal.get_distances(0, range(len(crystal)), mic=True))[1])
    first, last = crystal.copy(), crystal.copy()
    last.positions[neighbour] = (
        crystal.positions[0]
        + np.round((crystal.positions[neighbour] - crystal.positions[0]) / crystal.cell.lengths())
        * crystal.cell.lengths()
    )
    del first[0]
    del last[0]
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.calc = SNNPCalculator(model)
    band = NEB(images, method="improvedtangent")
    band.interpolate(mic=True)
    FIRE(band, logfile="/dev/null").run(fmax=0.05, steps=60)
    energies = np.array([image.get_potential_energy() for image in images])
    assert energies[0] == pytest.approx(energies[-1], abs=1e-9)
    assert energies[1] == pytest.approx(energies[3], abs=5e-3)
    assert energies[2] - energies[0] > 0.1
    assert energies.argmax() == 2


# `snnp.sampling.relax`, which the command line uses.


def test_relax_finds_the_lattice_constant(model: SplineNNP) -> None:
    atoms = bulk("Al", cubic=True, a=4.15)
    seen: list[float] = []
    result = relax(model, atoms, fmax=1e-4, cell=True, report=lambda progress: seen.append(progress.energy_ev))
    constants = np.linspace(4.2, 4.34, 29)
    energies = []
    for a in constants:
        trial = bulk("Al", cubic=True, a=a)
        trial.calc = SNNPCalculator(model)
        energies.append(trial.get_potential_energy())
    parabola = np.polynomial.Polynomial.fit(constants, energies, 4)
    lowest = constants[0] + np.argmin(parabola(np.linspace(4.2, 4.34, 14001))) * 1e-5
    assert result.converged
    assert result.atoms.cell.lengths() == pytest.approx([lowest] * 3, abs=2e-4)
    assert result.max_stress_gpa == pytest.approx(0.0, abs=0.01)
    assert result.energy_ev < result.initial_energy_ev
    assert seen[-1] == pytest.approx(result.energy_ev)
    assert len(seen) == result.steps + 1
    assert atoms.cell.lengths() == pytest.approx([4.15] * 3)  # the caller's structure is left alone
    assert result.to_json()["volume_a3"] == pytest.approx(lowest**3, rel=1e-3)


def test_relax_moves_atoms_and_keeps_the_cell_unless_asked(model: SplineNNP) -> None:
    atoms = rattled()
    result = relax(model, atoms, fmax=1e-3)
    assert np.array_equal(result.atoms.cell.array, atoms.cell.array)
    assert result.max_force_ev_per_angstrom < 1e-3
    assert not relax(model, atoms, fmax=1e-3, steps=2).converged


def test_relax_names_what_is_wrong(model: SplineNNP) -> None:
    with pytest.raises(InputError, match="relaxing the cell needs a fully periodic structure"):
        relax(model, Atoms("Al2", [[0, 0, 0], [0, 0, 2.8]]), cell=True)
    with pytest.raises(InputError, match="fmax must be positive"):
        relax(model, rattled(), fmax=0.0)
    with pytest.raises(InputError, match="no atoms"):
        relax(model, Atoms())
