"""snnp in openmmml: pure and mixed systems, and what happens around them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from ase import Atoms
from ase.build import bulk
from openmmml import MLPotential

from snnp.errors import ConfigError, UnknownElementError
from snnp.models import AngularConfig, NetworkConfig, RadialConfig, SplineNNP, SplineNNPConfig, save_model
from snnp.structure import Structure
from snnp.units import EV_IN_KJ_PER_MOL
from snnp_openmm import create_system, to_openmm
from snnp_openmm.geometry import OpenMMGeometry
from snnp_openmm.mlpotential import SNNPPotentialImplFactory

# An atom and its four neighbours: all pairs lie within the classical cutoff, which openmmml's own exceptions ignore.
CRYSTAL = bulk("Si", cubic=True) * (2, 2, 2)
SUBSET = np.flatnonzero(CRYSTAL.get_distances(20, range(64), mic=True) < 2.5).tolist()


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    config = SplineNNPConfig(
        elements=("Si",),
        radial=RadialConfig(n_filters=4),
        angular=AngularConfig(n_filters=3, degree=3),
        network=NetworkConfig(hidden=(8,)),
    )
    return SplineNNP(config, {"Si": -3.0}, seed=1)


@pytest.fixture(scope="module")
def crystal() -> Atoms:
    atoms = CRYSTAL.copy()
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture(scope="module")
def geometry(crystal: Atoms) -> OpenMMGeometry:
    return to_openmm(crystal)


@pytest.fixture
def classical(geometry: OpenMMGeometry) -> openmm.System:
    """A Lennard-Jones force field for the same atoms."""
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*geometry.box)
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.5)
    force.setUseDispersionCorrection(False)
    for _ in range(len(geometry.positions)):
        system.addParticle(28.0)
        force.addParticle(0.0, 0.2, 1.0)
    system.addForce(force)
    return system


def energy(system: openmm.System, geometry: OpenMMGeometry, **parameters: float) -> float:
    """In eV."""
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(geometry.positions)
    for name, value in parameters.items():
        context.setParameter(name, value)
    return context.getState(energy=True).getPotentialEnergy()._value / EV_IN_KJ_PER_MOL


def model_energy(model: SplineNNP, atoms: Atoms) -> float:
    return float(model.compute(Structure.from_ase(atoms)).energy)


def test_pure_system(model: SplineNNP, crystal: Atoms, geometry: OpenMMGeometry) -> None:
    system = MLPotential("snnp", model=model).createSystem(geometry.topology, unrelated="ignored")
    assert system.usesPeriodicBoundaryConditions()
    assert energy(system, geometry) == pytest.approx(model_energy(model, crystal), rel=1e-12)


def test_mixed_system(model: SplineNNP, crystal: Atoms, geometry: OpenMMGeometry, classical: openmm.System) -> None:
    mixed = MLPotential("snnp", model=model).createMixedSystem(
        geometry.topology, classical, SUBSET, forceGroup=3, interpolate=False
    )
    inside = openmm.XmlSerializer.clone(classical)
    for k in set(range(len(crystal))) - set(SUBSET):
        inside.getForce(0).setParticleParameters(k, 0.0, 0.2, 0.0)
    expected = energy(classical, geometry) - energy(inside, geometry) + model_energy(model, crystal[SUBSET])
    assert energy(mixed, geometry) == pytest.approx(expected, rel=1e-10)
    (force,) = (force for force in mixed.getForces() if isinstance(force, openmm.PythonForce))
    assert (force.getForceGroup(), list(force.getParticles())) == (3, SUBSET)
    assert force.usesPeriodicBoundaryConditions()


def test_interpolation_runs_from_one_force_field_to_the_other(
    model: SplineNNP, crystal: Atoms, geometry: OpenMMGeometry, classical: openmm.System
) -> None:
    potential = MLPotential("snnp", model=model)
    mixed = potential.createMixedSystem(geometry.topology, classical, SUBSET)
    both = potential.createMixedSystem(geometry.topology, classical, SUBSET, interpolate=True)
    ends = energy(classical, geometry), energy(mixed, geometry)
    assert abs(ends[1] - ends[0]) > 1.0
    assert energy(both, geometry, lambda_interpolate=0.0) == pytest.approx(ends[0], rel=1e-8)
    assert energy(both, geometry, lambda_interpolate=1.0) == pytest.approx(ends[1], rel=1e-8)
    assert energy(both, geometry, lambda_interpolate=0.25) == pytest.approx(0.75 * ends[0] + 0.25 * ends[1], rel=1e-8)


def test_mixed_system_runs(model: SplineNNP, geometry: OpenMMGeometry, classical: openmm.System) -> None:
    mixed = MLPotential("snnp", model=model).createMixedSystem(geometry.topology, classical, SUBSET, interpolate=True)
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(mixed, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(geometry.positions)
    context.setParameter("lambda_interpolate", 0.5)
    totals = []
    for _ in range(5):
        integrator.step(4)
        state = context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / EV_IN_KJ_PER_MOL)
    assert np.ptp(totals) < 0.02


def test_precision_can_be_chosen_per_system(model: SplineNNP, crystal: Atoms, geometry: OpenMMGeometry) -> None:
    single = MLPotential("snnp", model=model).createSystem(geometry.topology, dtype="float32")
    exact = model_energy(model, crystal)
    assert energy(single, geometry) == pytest.approx(exact, rel=1e-5)
    assert energy(single, geometry) != exact


def test_bad_arguments(geometry: OpenMMGeometry, model: SplineNNP) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        MLPotential("snnp")
    with pytest.raises(ConfigError, match=r"no argument 'modle'.*Did you mean 'model'"):
        MLPotential("snnp", modle=model)
    with pytest.raises(UnknownElementError, match="knows Si but the structure holds Ge"):
        MLPotential("snnp", model=model).createSystem(to_openmm(bulk("Ge")).topology)


def test_another_registered_name_is_the_models(
    model: SplineNNP, geometry: OpenMMGeometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "my-silicon")
    monkeypatch.chdir(tmp_path)
    MLPotential.registerImplFactory("my-silicon", SNNPPotentialImplFactory())
    try:
        system = MLPotential("my-silicon").createSystem(geometry.topology)
    finally:
        del MLPotential._implFactories["my-silicon"]
    assert energy(system, geometry) == pytest.approx(
        energy(create_system(model, geometry.topology), geometry), rel=1e-12
    )


def test_importing_openmmml_imports_neither_torch_nor_snnp() -> None:
    # A failure of theirs would otherwise keep everybody from importing openmmml.
    script = (
        "import sys, openmmml; from openmmml import MLPotential; "
        "assert 'snnp' in MLPotential._implFactories; print([m for m in ('torch', 'snnp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
