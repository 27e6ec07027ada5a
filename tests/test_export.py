"""TorchScript files: the model's numbers without the model's code, called as openmm-torch's TorchForce calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from safetensors.torch import save_file

from snnp.errors import InputError, UnknownElementError
from snnp.models import Potential, SplineNNP, SplineNNPConfig
from snnp.models.export import export_torchscript, find_pairs, scripted_module
from snnp.models.spline import special_cases
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated:DeprecationWarning")

SMALL: dict[str, Any] = {"n_radial": 3, "n_angular": 3, "cutoff": 4.0, "hidden": (4,)}


@pytest.fixture(autouse=True)
def _unoptimised() -> Iterator[None]:
    """TorchScript compiles anew in each of the first calls, which would be most of the time of these tests."""
    with torch.jit.optimized_execution(False):
        yield


def _model(elements: tuple[str, ...] = ("C", "H", "O"), dtype: torch.dtype = torch.float64) -> SplineNNP:
    """Pair-dependent filters and angles, a pair term, a repulsion, and an E0 that would drown the rest in float32."""
    config = SplineNNPConfig.model_validate(
        {
            **special_cases.s_nnp(elements, **SMALL).model_dump(),
            "pair_term": True,
            "repulsion": {"inner": 0.7, "outer": 1.3},
        }
    )
    model = SplineNNP(config, {symbol: -1234.5 - k for k, symbol in enumerate(elements)})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.to(dtype)


def _wanted(model: SplineNNP, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (kJ/mol) and forces (kJ/mol/nm) of the core."""
    result = model.compute(Structure.from_ase(atoms))
    assert result.forces is not None
    return float(result.energy[0]) * EV_IN_KJ_PER_MOL, result.forces.numpy() * EV_IN_KJ_PER_MOL * NM_IN_ANGSTROM


def _load(path: Path) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(path)
    return module


def _nm(values: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values / NM_IN_ANGSTROM, dtype=dtype)


def _tiny() -> Atoms:
    """Two atoms in a skewed cell much smaller than the cutoff."""
    return Atoms("CO", [[0, 0, 0], [1.2, 0.9, 1.1]], cell=[[2.1, 0, 0], [0.9, 2.0, 0], [-0.7, 0.6, 2.3]], pbc=True)


def _crystal() -> Atoms:
    crystal = bulk("C", cubic=True).repeat((2, 2, 3))
    crystal.rattle(0.1, seed=2)
    crystal.symbols[::3] = "H"
    return crystal


def _far_out() -> Atoms:
    """Atoms that have diffused many cells away, in a skewed box."""
    atoms = _crystal()
    shear = np.array([[0, 0, 0], [2.0, 0, 0], [-1.5, 2.5, 0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.positions += np.random.default_rng(1).integers(-5, 6, (len(atoms), 3)) @ atoms.cell.array
    return atoms


PERIODIC = {"tiny, skewed": _tiny, "crystal": _crystal, "unwrapped, skewed": _far_out}


# The numbers of the model.


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_molecule_as_torchforce_calls_it(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    """`forward(positions)` in nm; openmm-torch passes float64 on the Reference and CPU platforms."""
    atoms = molecule("CH3CH2OH")
    model = _model(dtype=dtype)
    energy, forces = _wanted(model, atoms)
    module = _load(export_torchscript(model, tmp_path / "m.pt", numbers=atoms.numbers.tolist(), forces=True))
    found_energy, found_forces = module(_nm(atoms.positions))
    e0 = sum(model.reference_energies[s] for s in atoms.symbols) * EV_IN_KJ_PER_MOL
    assert float(found_energy) - e0 == pytest.approx(energy - e0, rel=tolerance)
    np.testing.assert_allclose(found_forces, forces, rtol=0.0, atol=tolerance * np.abs(forces).max())
    assert found_energy.shape == ()
    assert found_energy.dtype == found_forces.dtype == torch.float64


@pytest.mark.parametrize("name", PERIODIC)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_box_as_torchforce_calls_it(name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    """`forward(positions, boxvectors)`."""
    atoms = PERIODIC[name]()
    model = _model(dtype=dtype)
    energy, forces = _wanted(model, atoms)
    path = export_torchscript(model, tmp_path / "m.pt", numbers=atoms.numbers.tolist(), periodic=True, forces=True)
    found_energy, found_forces = _load(path)(_nm(atoms.positions), _nm(atoms.cell.array))
    e0 = sum(model.reference_energies[s] for s in atoms.symbols) * EV_IN_KJ_PER_MOL
    assert float(found_energy) - e0 == pytest.approx(energy - e0, rel=tolerance)
    np.testing.assert_allclose(found_forces, forces, rtol=0.0, atol=tolerance * np.abs(forces).max())


@pytest.mark.parametrize("periodic", [False, True])
def test_energy_is_differentiable(periodic: bool, tmp_path: Path) -> None:
    """Without forces TorchForce calls backward() and reads positions.grad."""
    atoms = _tiny() if periodic else molecule("CH3OH")
    model = _model()
    path = export_torchscript(model, tmp_path / "m.pt", numbers=atoms.numbers.tolist(), periodic=periodic)
    positions = _nm(atoms.positions).requires_grad_()
    inputs = (positions, _nm(atoms.cell.array)) if periodic else (positions,)
    energy, forces = _wanted(model, atoms)
    found = _load(path)(*inputs)
    found.backward()
    assert positions.grad is not None
    assert float(found.detach()) == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(-positions.grad, forces, rtol=0.0, atol=1e-10 * np.abs(forces).max())


def test_float32_positions_of_gpu_platforms(tmp_path: Path) -> None:
    """Mixed precision hands over float32: the result is that of the rounded positions, in their type."""
    atoms = _crystal()
    model = _model()
    positions, box = _nm(atoms.positions, torch.float32), _nm(atoms.cell.array, torch.float32)
    rounded = atoms.copy()
    rounded.positions = positions.double().numpy() * NM_IN_ANGSTROM
    rounded.cell = box.double().numpy() * NM_IN_ANGSTROM
    energy, forces = _wanted(model, rounded)
    module = scripted_module(model, numbers=atoms.numbers.tolist(), periodic=True, forces=True)
    found, found_forces = module(positions, box)
    assert found_forces.dtype == torch.float32
    assert float(found) == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found_forces, forces, rtol=0.0, atol=1e-6 * np.abs(forces).max())


UNITS = [("nm", "kJ/mol", 0.1, EV_IN_KJ_PER_MOL), ("angstrom", "eV", 1.0, 1.0), ("nm", "eV", 0.1, 1.0)]


@pytest.mark.parametrize("length_unit, energy_unit, length, energy", UNITS)
def test_units(length_unit: Any, energy_unit: Any, length: float, energy: float) -> None:
    model, atoms = _model(), molecule("H2O")
    result = model.compute(Structure.from_ase(atoms))
    assert result.forces is not None
    module = scripted_module(
        model, numbers=atoms.numbers.tolist(), forces=True, length_unit=length_unit, energy_unit=energy_unit
    )
    found, forces = module(torch.from_numpy(atoms.positions * length))
    assert float(found) == pytest.approx(float(result.energy[0]) * energy, rel=1e-12)
    torch.testing.assert_close(forces, result.forces * energy / length, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("forces", [False, True])
def test_any_atoms(forces: bool, tmp_path: Path) -> None:
    """Without fixed numbers one file computes every structure: open, slab, crystal, single atom, none."""
    model = _model(("Cu", "C", "O"))
    slab = fcc111("Cu", (1, 2, 2), vacuum=3.0)
    slab.rattle(0.1, seed=1)
    path = export_torchscript(model, tmp_path / "m.pt", length_unit="angstrom", energy_unit="eV", forces=forces)
    module = _load(path)
    for atoms in (molecule("CO2"), slab, _tiny(), Atoms("O"), Atoms()):
        structure = Structure.from_ase(atoms)
        wanted = model.compute(structure)
        found = module(structure.numbers, structure.positions, structure.cell[0], structure.pbc[0])
        energy = found[0] if forces else found
        assert float(energy) == pytest.approx(float(wanted.energy[0]), rel=1e-12)
        if forces:
            torch.testing.assert_close(found[1], wanted.forces, rtol=0.0, atol=1e-10)


def test_many_atoms_are_evaluated_in_pieces() -> None:
    """More atoms than fit into one piece of the evaluation or of the search."""
    copper = bulk("Cu", cubic=True).repeat((11, 10, 10))
    copper.rattle(0.05, seed=3)
    model = SplineNNP(special_cases.eam(("Cu",), cutoff=3.0))
    structure = Structure.from_ase(copper)
    wanted = model.compute(structure)
    assert wanted.forces is not None
    module = scripted_module(
        model, length_unit="angstrom", energy_unit="eV", numbers=[29] * 4400, periodic=True, forces=True
    )
    energy, forces = module(structure.positions, structure.cell[0])
    assert float(energy) == pytest.approx(float(wanted.energy[0]), rel=1e-11)
    torch.testing.assert_close(forces, wanted.forces, rtol=0.0, atol=1e-11)


# The neighbour search.


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("zero_rows", [False, True])
def test_pairs_are_those_of_the_core(pbc: tuple[int, int, int], zero_rows: bool) -> None:
    """Open vectors may be zero or anything; atoms may lie anywhere."""
    rng = np.random.default_rng(sum(pbc))
    cell = np.array([[5.0, 0, 0], [4.0, 3.0, 0], [-3.0, 2.0, 4.0]])
    positions = np.where(pbc, rng.uniform(-2.5, 3.5, (15, 3)), rng.uniform(0.0, 1.2, (15, 3))) @ cell
    kept = cell * np.array(pbc)[:, None] if zero_rows else cell
    structure = Structure.from_ase(Atoms("H15", positions, cell=kept, pbc=pbc))
    for cutoff in (1.7, 4.5):
        wanted = neighbour_list(structure, cutoff)
        i, j, shift = find_pairs(structure.positions, structure.cell[0], structure.pbc[0], cutoff)
        assert bool((i.diff() >= 0).all())
        ours = torch.cat([i[:, None], j[:, None], shift], dim=1).tolist()
        theirs = torch.cat([wanted.i[:, None], wanted.j[:, None], wanted.shift], dim=1).tolist()
        assert sorted(ours) == sorted(theirs)
        assert len(ours) > 5


def test_pairs_in_a_cell_far_smaller_than_the_cutoff() -> None:
    structure = Structure.from_ase(bulk("Cu"))
    i, j, shift = find_pairs(structure.positions, structure.cell[0], structure.pbc[0], 9.0)
    wanted = neighbour_list(structure, 9.0)
    lengths = (structure.positions[j] - structure.positions[i] + shift.double() @ structure.cell[0]).norm(dim=1)
    expected = pair_vectors(structure, wanted).norm(dim=1)
    torch.testing.assert_close(lengths.sort().values, expected.sort().values)
    assert len(i) > 200


# Alone: in an interpreter that cannot import snnp.

ALONE = """
import json, resource, sys, warnings
sys.modules["snnp"] = None  # any import of it fails
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)
extra = {"snnp.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=extra)
inputs = load_file(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
energy, forces = module(inputs["positions"], inputs["box"])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "energy": float(energy), "force": float(forces.abs().max()), "bytes": 1024 * (after - before),
    "description": json.loads(extra["snnp.json"]), "modules": [name for name in sys.modules if name.startswith("snnp")],
}))
"""


def test_file_is_self_contained_and_frugal(tmp_path: Path) -> None:
    """Loads where snnp cannot be imported, says what it is, and needs less than 1 GB for 4,000 atoms."""
    metal = bulk("Al", cubic=True).repeat((10, 10, 10))
    metal.rattle(0.05, seed=1)
    model = SplineNNP(special_cases.s_nnp(("Al",), n_radial=4, n_angular=4, hidden=(4,)), {"Al": -3.0}).float()
    model.metadata = {"licence": "CC0"}
    path = export_torchscript(model, tmp_path / "m.pt", numbers=[13] * 4000, periodic=True, forces=True)
    inputs = {"positions": _nm(metal.positions), "box": _nm(metal.cell.array)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    energy, forces = _wanted(model, metal)
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "inputs.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["modules"] == ["snnp"]
    assert said["energy"] == pytest.approx(energy, rel=1e-7)
    assert said["force"] == pytest.approx(np.abs(forces).max(), rel=1e-4)
    assert said["bytes"] < 1e9
    assert said["description"] == {
        "format": "snnp-torchscript",
        "elements": ["Al"],
        "cutoff_angstrom": 5.0,
        "length_unit": "nm",
        "energy_unit": "kJ/mol",
        "n_atoms": 4000,
        "periodic": True,
        "forces": True,
        "metadata": {"licence": "CC0"},
    }


# What a loaded module refuses, with the reason in the last line.


def _water(periodic: bool = False) -> torch.jit.ScriptModule:
    return scripted_module(_model(("O", "H")), numbers=[8, 1, 1], periodic=periodic, forces=True)


@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (3, 2), (9,), (1, 3, 3)])
def test_wrong_number_of_atoms(shape: tuple[int, ...]) -> None:
    with pytest.raises(torch.jit.Error, match=r"positions must have shape \[3, 3\], got \["):
        _water()(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_no_numbers(value: float) -> None:
    positions = _nm(molecule("H2O").positions)
    positions[1, 1] = value
    with pytest.raises(torch.jit.Error, match="must be finite numbers"):
        _water()(positions)


BOXES = [
    (torch.zeros(3), r"box vectors must have shape \[3, 3\], got \[3\]"),
    (torch.zeros(3, 3), "has no volume"),
    (torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]]), "has no volume"),
    (torch.full((3, 3), float("nan")), "must be finite numbers"),
]


@pytest.mark.parametrize("box, words", BOXES)
def test_wrong_box(box: torch.Tensor, words: str) -> None:
    with pytest.raises(torch.jit.Error, match=words):
        _water(periodic=True)(_nm(molecule("H2O").positions), box)


def test_overlap_hints_at_the_unit() -> None:
    """Positions in nm given to a file in Å look like atoms on top of each other."""
    module = scripted_module(_model(("O", "H")), numbers=[8, 1, 1], length_unit="angstrom")
    with pytest.raises(torch.jit.Error, match=r"atoms \d and \d overlap; are the positions in the unit of this file"):
        module(_nm(molecule("H2O").positions))


def test_exploded() -> None:
    with pytest.raises(torch.jit.Error, match="exploded"):
        _water()(_nm(molecule("H2O").positions) * torch.tensor([[1.0], [1e12], [-1e12]]))


NUMBERS = [([8, 6], "not atomic number 6"), ([8, 0], "not atomic number 0"), ([8, -3], "-3"), ([8, 1000], "1000")]


@pytest.mark.parametrize("numbers, words", NUMBERS)
def test_unknown_numbers(numbers: list[int], words: str) -> None:
    module = scripted_module(_model(("O", "H")))
    zeros = torch.zeros(3, 3)
    with pytest.raises(torch.jit.Error, match=f"this model knows O, H, .*{words}"):
        module(torch.tensor(numbers), torch.eye(2, 3), zeros, torch.zeros(3, dtype=torch.bool))


def test_direction_without_a_vector() -> None:
    module = scripted_module(_model(("O", "H")))
    with pytest.raises(torch.jit.Error, match="a periodic direction has no lattice vector"):
        module(torch.tensor([8]), torch.zeros(1, 3), torch.zeros(3, 3), torch.tensor([True, False, False]))


# What export refuses.


class _Stranger(Potential):
    def atomic_energies(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"length_unit": "pm"}, "length_unit must be 'nm' or 'angstrom', got 'pm'"),
    ({"energy_unit": "kcal"}, "energy_unit must be 'kJ/mol' or 'eV', got 'kcal'"),
    ({"periodic": True}, "periodic=True needs numbers"),
]


@pytest.mark.parametrize("options, words", BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        export_torchscript(_model(), tmp_path / "m.pt", **options)
    assert list(tmp_path.iterdir()) == []


def test_unknown_element(tmp_path: Path) -> None:
    with pytest.raises(UnknownElementError, match="knows C, H, O but numbers holds Cu"):
        export_torchscript(_model(), tmp_path / "m.pt", numbers=[6, 29])
    with pytest.raises(UnknownElementError, match="atomic number 0"):
        export_torchscript(_model(), tmp_path / "m.pt", numbers=[0])


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="_Stranger cannot be exported"):
        export_torchscript(_Stranger(("H",), {}, 3.0), tmp_path / "m.pt")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export_torchscript(_model(), tmp_path / "none" / "m.pt")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PERIODIC)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    """As TorchForce on the CUDA platform: module and inputs on the device."""
    atoms = PERIODIC[name]()
    model = _model(dtype=torch.float32)
    energy, forces = _wanted(model, atoms)
    path = export_torchscript(model, tmp_path / "m.pt", numbers=atoms.numbers.tolist(), periodic=True, forces=True)
    module = _load(path).to("cuda")
    found, found_forces = module(_nm(atoms.positions).cuda(), _nm(atoms.cell.array).cuda())
    e0 = sum(model.reference_energies[s] for s in atoms.symbols) * EV_IN_KJ_PER_MOL
    assert float(found) - e0 == pytest.approx(energy - e0, rel=1e-5)
    np.testing.assert_allclose(found_forces.cpu(), forces, rtol=0.0, atol=1e-5 * np.abs(forces).max())
