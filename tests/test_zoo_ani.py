"""The bundled ANI-1ccx: the published numbers without any file beside the installation, and the published networks."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from openmmml import MLPotential
from typer.testing import CliRunner

from snnp.analysis.card import card_markdown
from snnp.cli.main import app
from snnp.errors import UnknownElementError
from snnp.hub import resolve
from snnp.models import ANI, Ensemble, list_models, load_model
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.models.store import dump_model
from snnp.structure import Structure
from snnp.units import EV_IN_KJ_PER_MOL, HARTREE_IN_EV
from snnp_ase import SNNPCalculator
from snnp_openmm import to_openmm
from snnp_openmm.mlpotential import SNNPPotentialImplFactory

NAME = "ani-1ccx"
KCAL_PER_MOL = 4.184 / EV_IN_KJ_PER_MOL  # eV
# eV: mean and spread of the published networks in float64, of molecules of ASE's G2 set.
ENERGIES = {
    "H2O": (-2078.499197, 0.008386),
    "NH3": (-1537.764898, 0.014924),
    "CH4": (-1101.094926, 0.017993),
    "CH3CH2OH": (-4214.818964, 0.015791),
    "C6H6": (-6311.289440, 0.032285),
    "CH3CONH2": (-5687.597269, 0.014281),
    "HCN": (-2539.474263, 0.038052),
    "CH3NO2": (-6661.443939, 0.033645),
}
WATER = Atoms(
    "OH2",
    [
        [-0.70219605, -0.05606026, 0.00994226],
        [-1.02219322, 0.84677578, -0.01148871],
        [0.25752106, 0.04212150, 0.00521900],
    ],
)


@pytest.fixture(scope="module")
def bundled() -> Ensemble:
    model = load_model(NAME)
    assert isinstance(model, Ensemble)
    return model


def test_it_is_eight_networks_for_organic_molecules(bundled: Ensemble) -> None:
    assert NAME in list_models()
    assert [type(member) for member in bundled.potentials] == [ANI] * 8
    assert set(bundled.elements) == {"H", "C", "N", "O"}
    assert (bundled.cutoff, bundled.n_parameters, bundled.dtype) == (5.2, 2_613_280, torch.float32)
    with pytest.raises(UnknownElementError, match="holds S"):
        bundled.compute(Structure.from_ase(molecule("SH2")))


def test_energies_and_spreads_are_those_of_the_published_networks(bundled: Ensemble) -> None:
    found = bundled.compute(Structure.from_ase([molecule(name) for name in ENERGIES]))
    assert found.energy_std is not None
    energies, spreads = np.array(list(ENERGIES.values())).T
    np.testing.assert_allclose(found.energy.numpy(), energies, rtol=0, atol=0.001 * KCAL_PER_MOL)
    np.testing.assert_allclose(found.energy_std.numpy(), spreads, rtol=0, atol=0.001 * KCAL_PER_MOL)


def test_water_has_the_energy_that_its_authors_published() -> None:
    """README of `isayev/ASE_ANI`, which used the Hartree of CODATA 2010."""
    water = WATER.copy()
    water.calc = SNNPCalculator(NAME, dtype="float64")
    assert water.get_potential_energy() * 27.21138505 / HARTREE_IN_EV == pytest.approx(-2078.502822821320, abs=2e-6)


def test_it_loads_in_less_than_a_second(bundled: Ensemble) -> None:
    began = time.process_time()
    load_model(NAME)
    assert time.process_time() - began < 1.0


def test_openmm_takes_it_by_its_name(bundled: Ensemble) -> None:
    """The entry point of this name is in pyproject.toml; an installation that is older than it is helped here."""
    MLPotential.registerImplFactory(NAME, SNNPPotentialImplFactory())
    geometry = to_openmm(molecule("CH3CH2OH"))
    system = MLPotential(NAME).createSystem(geometry.topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(geometry.positions)
    energy = context.getState(energy=True).getPotentialEnergy()._value / EV_IN_KJ_PER_MOL
    assert energy == pytest.approx(ENERGIES["CH3CH2OH"][0], abs=0.001 * KCAL_PER_MOL)


def test_shell(tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["info", NAME, "--json"])
    assert told.exit_code == 0, told.output
    about = json.loads(told.stdout)["metadata"]
    assert about["source"]["commit"] == "129f8acf4e18e3fdd6893f31b85a4128efa2ad61"
    assert "MIT" in about["licence"]
    trajectory = tmp_path / "ethanol.xyz"
    command = ["md", NAME, "molecule:CH3CH2OH", "--steps", "4", "--dt", "0.5", "--trajectory", str(trajectory)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert trajectory.is_file()


def test_card_says_where_it_comes_from_what_was_measured_and_what_the_doctor_found(bundled: Ensemble) -> None:
    folder = resolve(NAME).folder
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == card_markdown(NAME, bundled)
    for words in (
        *("MIT", "10.1038/s41467-019-10827-4", "CCSD(T)", "E0", "`energy_std`"),
        *("docs/measure/studies/ani_1ccx.py", "2026-11-21", "neutral closed-shell", "no forces"),
        *("`snnp doctor model ani-1ccx` finds (error)", bundled.metadata["source"]["files_sha256"]),
    ):
        assert words in card
    assert "Justin S. Smith" in (folder / "LICENSE").read_text(encoding="utf-8")


def test_errors_of_the_card_are_those_of_the_study(bundled: Ensemble, repository: Path) -> None:
    study, card = (
        (repository / "docs" / "studies" / "ani_1ccx.md").read_text(encoding="utf-8"),
        bundled.metadata["accuracy"],
    )
    rows = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]] for line in study.splitlines() if line.startswith("| **")
    ]
    assert len(rows) == 3
    for _, entries, _, mae, rmse, _, largest, spread, correlation in rows:
        (line,) = (each for each in card if f"({entries} entries" in each)
        assert all(number in line for number in (f"MAE {mae} kcal/mol", f"RMSE {rmse}", f"largest {largest}", spread))
        assert any(correlation in each for each in card if "rank correlation" in each)


# With the published files.


def test_bundled_weights_are_the_published_ones_to_the_bit(bundled: Ensemble, snnp_data: Path) -> None:
    imported = read_neurochem(snnp_data / "ani-1ccx-weights")
    assert imported.metadata["source"]["files_sha256"] == bundled.metadata["source"]["files_sha256"]
    _, weights = dump_model(imported)
    assert hashlib.sha256(weights).digest() == hashlib.sha256(dump_model(bundled)[1]).digest()
    assert imported.reference_energies == bundled.reference_energies


def test_float32_is_enough(bundled: Ensemble, snnp_data: Path) -> None:
    exact = read_neurochem(snnp_data / "ani-1ccx-weights").double()
    structures = Structure.from_ase([molecule(name) for name in ENERGIES])
    energy, reference = bundled.compute(structures).energy, exact.compute(structures).energy
    assert float((energy - reference).abs().max()) < 0.0001 * KCAL_PER_MOL
    np.testing.assert_allclose(reference.numpy(), [energy for energy, _ in ENERGIES.values()], rtol=0, atol=1e-6)
