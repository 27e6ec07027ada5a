"""A peptide by snnp-organic in classical water: what `createMixedSystem` makes of our potential, checked by physics."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from ase import Atoms
from ase.build import bulk
from openmm import app, unit
from openmmml import MLPotential
from peptides import SOLUTES, Solution, dissolve

import snnp
from snnp.models import Potential
from snnp.units import EV_IN_KJ_PER_MOL
from snnp_openmm import to_openmm


@pytest.fixture(scope="module")
def model() -> Potential:
    return snnp.load_model("snnp-organic", dtype="float64")


@pytest.fixture(scope="module", params=SOLUTES)
def solution(request: pytest.FixtureRequest) -> Solution:
    return dissolve(SOLUTES[request.param], 1.6)


@pytest.fixture(scope="module")
def amide() -> Solution:
    return dissolve(SOLUTES["N-methylacetamide"], 1.6)


def mixed(model: Potential, solution: Solution, classical: openmm.System, **options: Any) -> openmm.System:
    potential = MLPotential("snnp", model=model)
    return potential.createMixedSystem(solution.topology, classical, range(solution.n_solute), **options)


def context(system: openmm.System, positions: np.ndarray, **parameters: float) -> openmm.Context:
    """On the Reference platform, with an integrator that hardly moves."""
    made = openmm.Context(system, openmm.VerletIntegrator(1e-6), openmm.Platform.getPlatformByName("Reference"))
    made.setPositions(positions)
    for name, value in parameters.items():
        made.setParameter(name, value)
    return made


def energy(system: openmm.System, positions: np.ndarray, **parameters: float) -> float:
    """kJ/mol."""
    return context(system, positions, **parameters).getState(energy=True).getPotentialEnergy()._value


def model_energy(model: Potential, atoms: Atoms) -> float:
    """kJ/mol."""
    return float(model.compute(atoms).energy) * EV_IN_KJ_PER_MOL


def test_energies_add_up(model: Potential, solution: Solution) -> None:
    """Mixed minus classical is the model minus the force field of the molecule alone, in vacuum and without cutoff."""
    classical = solution.classical()
    gained = energy(mixed(model, solution, classical), solution.positions) - energy(classical, solution.positions)
    alone = energy(solution.classical(solute_alone=True), solution.positions[: solution.n_solute])
    # What is left is the classical terms' rounding, and the tolerance of PME's table of erfc.
    assert gained == pytest.approx(model_energy(model, solution.solute()) - alone, abs=1e-3)


def test_lambda_runs_from_the_force_field_to_the_mixed_system(model: Potential, solution: Solution) -> None:
    classical = solution.classical()
    both = mixed(model, solution, classical, interpolate=True)
    begin, end = (energy(s, solution.positions) for s in (classical, mixed(model, solution, classical)))
    for fraction in (0.0, 0.25, 1.0):
        wanted = (1.0 - fraction) * begin + fraction * end
        assert energy(both, solution.positions, lambda_interpolate=fraction) == pytest.approx(wanted, abs=1e-4)
    zero = context(both, solution.positions, lambda_interpolate=0.0).getState(forces=True).getForces(asNumpy=True)
    forces = context(classical, solution.positions).getState(forces=True).getForces(asNumpy=True)
    np.testing.assert_allclose(zero._value, forces._value, atol=1e-4)


@pytest.mark.parametrize("interpolate", [False, True])
def test_xml_round_trip(interpolate: bool, amide: Solution) -> None:
    """By name: the file holds no weights."""
    potential = MLPotential("snnp", model="snnp-organic")
    system = potential.createMixedSystem(
        amide.topology, amide.classical(), range(amide.n_solute), interpolate=interpolate
    )
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert energy(again, amide.positions) == energy(system, amide.positions)
    molecules = [context(each, amide.positions).getMolecules() for each in (system, again)]
    assert molecules[0] == molecules[1]


def test_constraints_of_the_molecule_go_and_those_of_water_stay(model: Potential, amide: Solution) -> None:
    classical = amide.classical(constraints=app.HBonds)
    n_waters = (amide.topology.getNumAtoms() - amide.n_solute) // 3
    assert classical.getNumConstraints() == 3 * n_waters + 7
    system = mixed(model, amide, classical)
    pairs = [system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())]
    assert len(pairs) == 3 * n_waters
    assert min(min(pair) for pair in pairs) >= amide.n_solute


@pytest.mark.parametrize("interpolate", [False, True])
def test_barostat_moves_the_molecule_as_a_whole(interpolate: bool, model: Potential, solution: Solution) -> None:
    """Its classical bonds are gone, and by these OpenMM knows what a molecule is."""
    system = mixed(model, solution, solution.classical(), interpolate=interpolate)
    barostat = openmm.MonteCarloBarostat(1.0 * unit.bar, 300.0 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(5)
    system.addForce(barostat)
    simulation = context(system, solution.positions)
    assert tuple(range(solution.n_solute)) in simulation.getMolecules()
    # One step of a femtosecond's billionth after another: what moves is moved by the barostat.
    simulation.getIntegrator().setStepSize(1e-12)
    for _ in range(40):
        simulation.getIntegrator().step(1)
    state = simulation.getState(positions=True)
    edges = np.diag(state.getPeriodicBoxVectors(asNumpy=True)._value)
    assert np.abs(edges - 1.6).max() > 1e-4
    moved, atoms = solution.solute(), state.getPositions(asNumpy=True)._value[: solution.n_solute]
    inside = moved.get_all_distances()
    moved.positions = 10.0 * atoms
    np.testing.assert_allclose(moved.get_all_distances(), inside, atol=1e-6)


def test_wrapped_positions_keep_the_molecule_whole(model: Potential, amide: Solution) -> None:
    across = amide.positions - amide.positions[: amide.n_solute].mean(axis=0)
    state = context(mixed(model, amide, amide.classical()), across).getState(positions=True, enforcePeriodicBox=True)
    wrapped = state.getPositions(asNumpy=True)._value[: amide.n_solute]
    assert np.ptp(wrapped, axis=0).max() < 0.8


def test_molecular_dynamics_conserves_energy(model: Potential, amide: Solution) -> None:
    """On the platform of users without a GPU; `CPU` computes in float32."""
    simulation = app.Simulation(
        amide.topology,
        mixed(model, amide, amide.classical()),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("CPU"),
        {"Threads": "1"},
    )
    simulation.context.setPositions(amide.positions)
    simulation.minimizeEnergy(maxIterations=30)
    simulation.context.setVelocitiesToTemperature(300.0, 3)
    simulation.step(20)
    totals = []
    for _ in range(10):
        simulation.step(10)
        state = simulation.context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    assert np.ptp(totals) < 5.0  # kJ/mol, of about 3 kT per degree of freedom in 360 atoms


def test_bonds_across_the_boundary_are_capped(model: Potential, solution: Solution) -> None:
    """openmmml adds a hydrogen; the model sees the capped piece, and forces on the cap go to the two atoms."""
    atoms = [a.index for a in solution.topology.atoms() if a.residue.name == "NME"]
    potential = MLPotential("snnp", model=model)
    info = potential.createMixedSystem(solution.topology, solution.classical(), atoms, returnInfo=True, forceGroup=7)
    system = info["system"]
    (cap,) = (k for k in range(system.getNumParticles()) if system.isVirtualSite(k))
    made = context(system, np.vstack([solution.positions, np.zeros((1, 3))]))
    made.computeVirtualSites()
    state = made.getState(positions=True, energy=True, groups={7})
    everywhere = state.getPositions(asNumpy=True)._value
    symbols = [a.element.symbol for a in info["topology"].atoms()]
    piece = Atoms([symbols[k] for k in [*atoms, cap]], 10.0 * everywhere[[*atoms, cap]])
    assert piece.get_chemical_symbols().count("H") == 5
    assert state.getPotentialEnergy()._value == pytest.approx(model_energy(model, piece), rel=1e-10)


def test_a_run_that_goes_wrong_keeps_what_was_good(tmp_path: Path) -> None:
    """It stops with the reason; frames and checkpoint from before are whole, and the run goes on from there."""
    silicon = to_openmm(bulk("Si", cubic=True))
    system = MLPotential("snnp", model="snnp-si").createSystem(silicon.topology)
    reference = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(silicon.topology, system, openmm.VerletIntegrator(0.001), reference)
    simulation.context.setPositions(silicon.positions)
    simulation.context.setVelocitiesToTemperature(300.0, 2)
    frames, checkpoint = tmp_path / "si.dcd", tmp_path / "si.chk"
    simulation.reporters = [app.DCDReporter(str(frames), 5), app.CheckpointReporter(str(checkpoint), 5)]
    simulation.step(10)
    simulation.context.setVelocities(np.full((8, 3), np.nan))
    with pytest.raises(openmm.OpenMMException, match=r"the snnp potential failed: .*finite"):
        simulation.step(20)
    simulation.reporters.clear()  # which closes the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = mdtraj.load_dcd(str(frames), top=mdtraj.Topology.from_openmm(silicon.topology))
    assert len(read) == 2
    assert np.isfinite(read.xyz).all()
    simulation.loadCheckpoint(str(checkpoint))
    assert simulation.currentStep == 10
    simulation.step(2)
