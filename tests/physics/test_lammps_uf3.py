"""LAMMPS as an oracle: linear models written as `uf3` files give our energies, forces and stress there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from cli_runs import run_json
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import InputError
from snnp.models import HIPNN, HIPNNConfig, SplineNNP, SplineNNPConfig, save_model
from snnp.models.spline import special_cases, uf3_file
from snnp.models.spline.meam_file import read_meam_spline
from snnp.structure import Structure

sys.path.append(str(Path(__file__).parent))  # tests are no package, so helpers beside them are not importable otherwise

from lammps_runner import run_lammps


def linear(elements: tuple[str, ...], n_angular: int, evaluator: Any = "legendre", **changes: Any) -> SplineNNP:
    """Filters, weights, means and deviations are noise."""
    form = special_cases.linear(elements, n_radial=3, n_angular=n_angular, cutoff=4.5, evaluator=evaluator)
    model = SplineNNP(SplineNNPConfig.model_validate(form.model_dump() | changes), dict.fromkeys(elements, -2.0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.readout.mean.normal_(generator=generator)
        model.readout.std.uniform_(0.5, 2.0, generator=generator)
    return model


def shaken(elements: tuple[str, ...]) -> Atoms:
    atoms = bulk("Cu").repeat((3, 2, 2))
    shear = np.array([[0.3, 0.0, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0, 0.0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.rattle(0.15, seed=2)
    atoms.symbols[::3] = elements[-1]
    return atoms


def deviations(model: SplineNNP, path: Path, n_bodies: int, folder: Path) -> tuple[float, float, float]:
    """Of energy (eV per atom), forces and stress from LAMMPS's, over the largest of LAMMPS's."""
    atoms = shaken(model.elements)
    commands = [f"pair_style uf3 {n_bodies}", f"pair_coeff * * {path} {' '.join(model.elements)}"]
    (found,) = run_lammps([atoms], commands, model.elements, folder)
    ours = model.compute(Structure.from_ase(atoms), stress=True)
    isolated = sum(float(model.compute(Structure.from_ase(Atoms(s))).energy) for s in atoms.symbols)
    energy = abs(float(ours.energy) - isolated - found.energy) / len(atoms)
    forces = np.abs(ours.forces.numpy() - found.forces).max() / np.abs(found.forces).max()
    stress = np.abs(ours.stress[0].numpy() - found.stress).max() / np.abs(found.stress).max()
    return energy, float(forces), float(stress)


def test_pairs_are_exact(tmp_path: Path) -> None:
    """To the decimals of the file; both orders of two elements, and a pair term."""
    model = linear(("Cu", "Ni"), 0, pair_term=True, filters="pair")
    written = uf3_file.write_uf3(model, tmp_path / "pairs.uf3")
    assert written.n_bodies == 2
    assert written.error < 1e-10
    assert max(deviations(model, written.path, 2, tmp_path)) < 1e-8


def test_repulsion_is_interpolated(tmp_path: Path) -> None:
    model = linear(("Cu",), 0, repulsion={"inner": 1.6, "outer": 2.8})
    written = uf3_file.write_uf3(model, tmp_path / "pairs.uf3")
    assert written.error < 2e-3
    assert max(deviations(model, written.path, 2, tmp_path)) < 1e-3


@pytest.mark.parametrize("evaluator", ["legendre", "spline"])
def test_triples_are_interpolated(evaluator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer knots than usual, for the time of it."""
    monkeypatch.setattr(uf3_file, "_KNOTS", 37)
    elements = ("Cu", "Ni") if evaluator == "legendre" else ("Cu",)
    model = linear(elements, 2, evaluator)
    written = uf3_file.write_uf3(model, tmp_path / "triples.uf3")
    assert written.n_bodies == 3
    assert 1e-7 < written.error < 2e-3
    energy, forces, stress = deviations(model, written.path, 3, tmp_path)
    assert energy < 2e-3
    assert max(forces, stress) < 0.02


def test_other_models_are_refused(tmp_path: Path) -> None:
    network = SplineNNP(special_cases.s_nnp(("Cu",), n_radial=2, n_angular=2, hidden=(4,)))
    with pytest.raises(InputError, match=r"holds exactly a linear model.*network: null.*pair_style snnp"):
        uf3_file.write_uf3(network, tmp_path / "none.uf3")
    with pytest.raises(InputError, match="only a linear SplineNNP can be written as uf3, got HIPNN"):
        uf3_file.write_uf3(HIPNN(HIPNNConfig(elements=("Cu",))), tmp_path / "none.uf3")
    fine = linear(("Cu",), 0, radial={"n_filters": 2, "cutoff": 4.5, "intervals": 400})
    with pytest.raises(InputError, match=r"no lines of \d+ numbers in uf3 files"):
        uf3_file.write_uf3(fine, tmp_path / "none.uf3")
    assert list(tmp_path.iterdir()) == []


def test_commands(tmp_path: Path) -> None:
    """`snnp export` to stock files of LAMMPS, and what it refuses."""
    pairs = save_model(linear(("Cu",), 0), tmp_path / "pairs")
    smeam = save_model(SplineNNP(special_cases.s_meam(("Cu",))), tmp_path / "smeam")
    said = run_json("export", pairs, tmp_path / "pairs.uf3", "--format", "uf3")
    assert (said["pair_style"], said["format"]) == ("uf3 2", "uf3")
    assert said["largest_error_ev"] < 1e-9
    written = tmp_path / "cu.meam"
    assert run_json("export", smeam, written, "--format", "meam-spline")["pair_style"] == "meam/spline"
    assert read_meam_spline(written).elements == ("Cu",)
    none = tmp_path / "none.uf3"
    for words, options in (
        ("holds exactly a linear model", [smeam, none, "--format", "uf3"]),
        ("a meam/spline file holds exactly an s-MEAM", [pairs, none, "--format", "meam-spline"]),
        ("leave the other options away", [pairs, none, "--format", "uf3", "--forces"]),
    ):
        refused = CliRunner().invoke(app, ["export", *map(str, options)])
        assert refused.exit_code != 0
        assert words in (refused.output + str(refused.exception))
    assert not none.exists()
