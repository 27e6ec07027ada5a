"""snnp potentials as OpenMM forces: numbers equal to the core's, and OpenMM's traps closed."""

from __future__ import annotations

import logging
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import openmm.app
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError, ModelFileError, UnknownElementError
from snnp.models import (
    AngularConfig,
    NetworkConfig,
    Potential,
    RadialConfig,
    SplineNNP,
    SplineNNPConfig,
    load_model,
    save_model,
)
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM
from snnp_openmm import create_force, create_system, to_openmm
from snnp_openmm.evaluator import Evaluator, PotentialError
from snnp_openmm.force import python_force
from snnp_openmm.source import ModelSource

FORCE_UNIT = EV_IN_KJ_PER_MOL * NM_IN_ANGSTROM


def make_model(*elements: str) -> SplineNNP:
    config = SplineNNPConfig(
        elements=elements,
        radial=RadialConfig(n_filters=4, lower=0.5),
        angular=AngularConfig(n_filters=3, lower=0.5, degree=3),
        network=NetworkConfig(hidden=(8,)),
    )
    return SplineNNP(config, dict.fromkeys(elements, -3.0), seed=1)


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    return make_model("Si").float()


@pytest.fixture(scope="module")
def crystal() -> Atoms:
    atoms = bulk("Si", cubic=True) * (2, 2, 1)
    atoms.rattle(0.1, seed=1)
    return atoms


def left_handed_triclinic() -> Atoms:
    atoms = bulk("Si") * (3, 2, 2)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]] + [[0.3, 0.0, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0, 0.0]], scale_atoms=True)
    atoms.rattle(0.1, seed=2)
    assert atoms.cell.handedness == -1
    return atoms


def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=3)
    return atoms


def context_for(system: openmm.System, positions: np.ndarray, platform: str = "Reference") -> openmm.Context:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions)
    return context


def energy_and_forces(context: openmm.Context) -> tuple[float, np.ndarray]:
    """In eV and eV/Å, in OpenMM's axes."""
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value / EV_IN_KJ_PER_MOL, state.getForces(asNumpy=True)._value / FORCE_UNIT


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("name", ["cubic", "triclinic", "primitive", "water"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_energy_and_forces_are_those_of_the_core(
    crystal: Atoms, name: str, platform: str, dtype: str, tolerance: float
) -> None:
    atoms = {"cubic": crystal, "triclinic": left_handed_triclinic(), "primitive": bulk("Si"), "water": water()}[name]
    potential = make_model(*sorted(set(atoms.symbols)))
    geometry = to_openmm(atoms)
    context = context_for(create_system(potential, geometry.topology, dtype=dtype), geometry.positions, platform)
    energy, forces = energy_and_forces(context)
    expected = potential.to(getattr(torch, dtype)).compute(Structure.from_ase(atoms))
    assert expected.forces is not None
    scale = max(1.0, float(expected.forces.abs().max()))
    assert energy == pytest.approx(float(expected.energy), rel=tolerance)
    np.testing.assert_allclose(geometry.rotate_back(forces), expected.forces, rtol=0, atol=tolerance * scale)


def test_geometry_goes_there_and_back() -> None:
    atoms = left_handed_triclinic()
    geometry = to_openmm(atoms)
    assert geometry.box is not None
    back = geometry.rotate_back(geometry.positions) * NM_IN_ANGSTROM
    np.testing.assert_allclose(back, atoms.positions, atol=1e-12)
    assert np.linalg.det(geometry.rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(
        geometry.cell_of(1.1 * geometry.box, atoms.cell.array), 1.1 * atoms.cell.array, atol=1e-12
    )


def test_masses_and_box_are_the_topologys(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    system = create_system(model, geometry.topology)
    masses = [system.getParticleMass(k)._value for k in range(system.getNumParticles())]
    assert masses == pytest.approx([28.085] * len(crystal), rel=1e-4)
    np.testing.assert_array_equal([v._value for v in system.getDefaultPeriodicBoxVectors()], geometry.box)
    assert system.usesPeriodicBoundaryConditions()


def test_types_are_those_that_openmm_understands(model: SplineNNP, crystal: Atoms) -> None:
    # A tensor as energy has become -1.0 without a word, and forces must be a two-dimensional array.
    geometry = to_openmm(crystal)
    state = context_for(create_system(model, geometry.topology), geometry.positions).getState(positions=True)
    energy, forces = Evaluator(ModelSource(model), crystal.numbers, (True, True, True))(state)
    assert type(energy) is float
    assert isinstance(forces, np.ndarray)
    assert (forces.shape, forces.dtype) == ((32, 3), np.float64)


def test_model_in_memory_is_copied(crystal: Atoms) -> None:
    potential = make_model("Si")
    geometry = to_openmm(crystal)
    context = context_for(create_system(potential, geometry.topology), geometry.positions)
    before, _ = energy_and_forces(context)
    potential.reset(seed=7)
    context.setPositions(geometry.positions + 1e-9)
    assert energy_and_forces(context)[0] == pytest.approx(before, abs=1e-6)


# What goes wrong inside OpenMM must come out with its cause.


def test_nan_position_is_an_error_that_says_so(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    positions = geometry.positions.copy()
    positions[3, 1] = np.nan
    context = context_for(create_system(model, geometry.topology), positions)
    with pytest.raises(openmm.OpenMMException, match=r"InputError: positions must be finite.*\[3, 1\]"):
        context.getState(energy=True)


def test_nan_energy_is_an_error_that_says_so(crystal: Atoms) -> None:
    potential = make_model("Si")
    with torch.no_grad():
        next(potential.parameters()).fill_(float("nan"))
    geometry = to_openmm(crystal)
    context = context_for(create_system(potential, geometry.topology), geometry.positions)
    with pytest.raises(openmm.OpenMMException, match="InputError: the potential gave energy nan eV"):
        context.getState(energy=True)


def test_cause_survives_openmm(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    evaluator = Evaluator(ModelSource(model), crystal.numbers, (True, True, True))
    system = create_system(model, geometry.topology)
    system.removeForce(0)
    system.addForce(python_force(evaluator))
    context = context_for(system, geometry.positions[[0, 0, *range(2, 32)]])
    with pytest.raises(openmm.OpenMMException, match="InputError: atoms 0 and 1 overlap"):
        context.getState(energy=True)
    assert isinstance(evaluator.error, InputError)
    context.setPositions(geometry.positions)
    context.getState(energy=True)
    assert evaluator.error is None


class BrokenPotential(Potential):
    """Fails as a programming error would."""

    def __init__(self) -> None:
        super().__init__(("Si",), {}, 4.0)
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """Index out of range."""
        return self.weight[structure.numbers]


def test_traceback_of_a_bug_is_logged(crystal: Atoms, caplog: pytest.LogCaptureFixture) -> None:
    geometry = to_openmm(crystal)
    context = context_for(create_system(BrokenPotential(), geometry.topology), geometry.positions)
    with caplog.at_level(logging.ERROR, "snnp_openmm"), pytest.raises(openmm.OpenMMException, match="IndexError: "):
        context.getState(energy=True)
    assert "return self.weight[structure.numbers]" in caplog.text


def test_potential_error_keeps_the_exception(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    state = context_for(create_system(model, geometry.topology), geometry.positions * 0.0).getState(positions=True)
    with pytest.raises(PotentialError) as caught:
        Evaluator(ModelSource(model), crystal.numbers, (True, True, True))(state)
    assert isinstance(caught.value.__cause__, InputError)


# Pickles and XML.


def test_pickle_of_a_folder_is_a_reference(model: SplineNNP, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "silicon")
    content = pickle.dumps(Evaluator(ModelSource(folder), np.full(10, 14), (True, True, True)))
    assert str(folder).encode() in content
    assert len(content) < 1000
    assert pickle.loads(content).model.n_parameters == model.n_parameters
    save_model(make_model("Si").double(), folder)
    with pytest.raises(ModelFileError, match="other weights than when this force was saved"):
        pickle.loads(content)


def test_pickle_of_a_potential_holds_no_torch_object(model: SplineNNP) -> None:
    content = pickle.dumps(Evaluator(ModelSource(model), np.full(10, 14), (True, True, True)))
    text = [argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)]
    assert "snnp_openmm.source" in text
    assert not [entry for entry in text if entry.startswith("torch")]
    assert len(content) < 20_000


def test_xml_round_trip(crystal: Atoms, tmp_path: Path) -> None:
    geometry = to_openmm(crystal)
    system = create_system(make_model("Si"), geometry.topology)
    energy, forces = energy_and_forces(context_for(system, geometry.positions))
    xml = openmm.XmlSerializer.serialize(system)
    again = openmm.XmlSerializer.deserialize(xml)
    assert again.usesPeriodicBoundaryConditions()
    energy_again, forces_again = energy_and_forces(context_for(again, geometry.positions))
    assert energy_again == energy
    np.testing.assert_array_equal(forces_again, forces)

    (tmp_path / "system.xml").write_text(xml)
    np.save(tmp_path / "positions.npy", geometry.positions)
    script = (
        "import openmm, numpy, torch; torch.set_num_threads(1)\n"
        "system = openmm.XmlSerializer.deserialize(open('system.xml').read())\n"
        "platform = openmm.Platform.getPlatformByName('Reference')\n"
        "context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)\n"
        "context.setPositions(numpy.load('positions.npy'))\n"
        "print(repr(context.getState(energy=True).getPotentialEnergy()._value))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) / EV_IN_KJ_PER_MOL == pytest.approx(energy, rel=1e-14)


# Subsets, periodic boxes and neighbour lists.


def test_subset_of_a_periodic_system(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    assert geometry.box is not None
    subset = [21, 3, 4, 9, 14]
    system = create_system(model, geometry.topology)
    system.removeForce(0)
    force = create_force(model, geometry.topology, atoms=subset)
    assert force.usesPeriodicBoundaryConditions()
    assert list(force.getParticles()) == subset
    system.addForce(force)
    expected = model.compute(Structure.from_ase(crystal[subset]))
    assert expected.forces is not None
    # The second time each atom lies in another image of the box, as GPU platforms hand them over.
    images = np.random.default_rng(0).integers(-2, 3, (len(crystal), 3)) @ geometry.box
    for positions in (geometry.positions, geometry.positions + images):
        energy, forces = energy_and_forces(context_for(system, positions))
        assert energy == pytest.approx(float(expected.energy), rel=1e-5)
        np.testing.assert_allclose(forces[subset], expected.forces, atol=1e-5)
        np.testing.assert_array_equal(np.delete(forces, subset, axis=0), 0.0)


def test_wrapped_atoms_do_not_rebuild_the_neighbour_list(model: SplineNNP) -> None:
    atoms = left_handed_triclinic()
    source, cell = ModelSource(model, "float64"), atoms.cell.array
    evaluator = Evaluator(source, atoms.numbers, (True, True, True))
    first = evaluator.evaluate(atoms.positions, cell)
    images = np.random.default_rng(0).integers(-2, 3, (len(atoms), 3))
    moved = atoms.positions + 0.1 + images @ cell
    second = evaluator.evaluate(moved, cell)
    assert evaluator._session.n_neighbour_builds == 1
    assert second.energy == pytest.approx(first.energy, abs=1e-9)
    np.testing.assert_allclose(second.forces, first.forces, atol=1e-9)
    evaluator.evaluate(moved + np.eye(len(atoms), 3), cell)
    assert evaluator._session.n_neighbour_builds == 2


def test_same_positions_are_not_computed_again(model: SplineNNP, crystal: Atoms) -> None:
    evaluator = Evaluator(ModelSource(model), crystal.numbers, (True, True, True))
    cell = crystal.cell.array
    first = evaluator.evaluate(crystal.positions, cell)
    assert evaluator.evaluate(crystal.positions.copy(), cell) is first
    with_stress = evaluator.evaluate(crystal.positions, cell, stress=True)
    expected = model.compute(Structure.from_ase(crystal), stress=True).stress
    np.testing.assert_allclose(with_stress.stress, expected[0], atol=1e-6)
    assert evaluator.evaluate(crystal.positions, cell) is with_stress
    assert evaluator.evaluate(crystal.positions, 1.01 * cell) is not with_stress


def test_periodic_can_be_refused(model: SplineNNP, crystal: Atoms) -> None:
    geometry = to_openmm(crystal)
    system = create_system(model, geometry.topology, periodic=False)
    assert not system.usesPeriodicBoundaryConditions()
    cluster = Atoms(crystal.numbers, crystal.positions)
    energy, _ = energy_and_forces(context_for(system, geometry.positions))
    assert energy == pytest.approx(float(model.compute(Structure.from_ase(cluster)).energy), rel=1e-5)


# Arguments.


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        ([], "atoms is empty"),
        ([0, 32], "atoms holds 32, but the topology's atoms are numbered 0 to 31"),
        ([-1], "atoms holds -1"),
        ([4, 2, 4], "atoms names 4 more than once"),
    ],
)
def test_bad_subsets(model: SplineNNP, crystal: Atoms, atoms: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_force(model, to_openmm(crystal).topology, atoms=atoms)


def test_unknown_element_is_named_when_the_force_is_made(model: SplineNNP) -> None:
    with pytest.raises(UnknownElementError, match="this model knows Si but the structure holds H"):
        create_force(model, to_openmm(molecule("SiH4")).topology)


def test_virtual_site_is_named(model: SplineNNP, crystal: Atoms) -> None:
    topology = to_openmm(crystal).topology
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(InputError, match=r"atom 32 \(M of residue SNNP\) has no element"):
        create_force(model, topology)
    assert create_force(model, topology, atoms=range(32)).getName() == "snnp"


def test_bad_model_and_engine(model: SplineNNP, crystal: Atoms) -> None:
    topology = to_openmm(crystal).topology
    with pytest.raises(ModelFileError, match="no model named 'nonsense'"):
        create_force("nonsense", topology)
    with pytest.raises(InputError, match="model must be a name, a folder, or a Potential, got int"):
        create_force(3, topology)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dtype must be 'float32' or 'float64', got 'float16'"):
        create_force(model, topology, dtype="float16")
    with pytest.raises(InputError, match="device 'nonsense' cannot be used"):
        create_force(model, topology, device="nonsense")
    with pytest.raises(InputError, match="engine must be 'python' or 'torch', got 'tf'"):
        create_force(model, topology, engine="tf")


def test_torch_engine_is_refused_with_the_reason(model: SplineNNP, crystal: Atoms) -> None:
    # The versions of this project's environment are none that TorchForce works with.
    with pytest.raises(
        MissingDependencyError, match=r"needs openmmtorch 1\.5\.x, torch 2\.9\.x, openmm 8\.4\.x"
    ) as caught:
        create_force(model, to_openmm(crystal).topology, engine="torch")
    assert f"torch {torch.__version__}" in str(caught.value)


def test_bundled_models_work_by_name() -> None:
    potential = load_model("snnp-si")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    geometry = to_openmm(atoms)
    system = create_system("snnp-si", geometry.topology)
    xml = openmm.XmlSerializer.serialize(system)
    assert len(xml) < 3000
    energy, _ = energy_and_forces(context_for(openmm.XmlSerializer.deserialize(xml), geometry.positions))
    assert energy == pytest.approx(float(potential.compute(Structure.from_ase(atoms)).energy), rel=1e-5)
