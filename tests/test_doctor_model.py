"""The doctor for models: every planted fault is found by name, and sound models of every family pass."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snnp.doctor import MODEL_CHECKS, Finding, examine_model
from snnp.doctor.trials import (
    CONTRACT_CHECKS,
    Scaling,
    check_contract,
    check_dimers,
    check_numbers,
    check_runs,
    check_scaling,
    dimer_curves,
    measure_scaling,
    ordinary_structures,
    short_runs,
)
from snnp.models import Potential, SplineNNP
from snnp.models.gradients import PairGradients
from snnp.models.spline import special_cases
from snnp.models.store import load_model
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.testing import CHECKS


class Morse(Potential):
    """A pair potential of copper and nickel outside the families of this project, smooth at its cutoff."""

    def __init__(self) -> None:
        super().__init__(("Cu", "Ni"), {"Cu": -1.0, "Ni": -2.0}, cutoff=5.0)
        self.depth = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def shape(self, r: Tensor) -> Tensor:
        """A well of depth one at 2.5 Å."""
        rise = torch.exp(-1.4 * (r - 2.5))
        return rise * (rise - 2.0)

    def end(self, r: Tensor) -> Tensor:
        """Brings energies to zero at the cutoff."""
        return (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        self.species(structure)
        r = vectors.norm(dim=1)
        each = 0.5 * self.depth * self.shape(r) * self.end(r)
        return torch.zeros(structure.n_atoms, dtype=each.dtype).index_add(0, neighbours.i, each)


class WrongSign(Morse):
    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return energies, replace(pairs, gradients=-pairs.gradients)


class CutAbruptly(Morse):
    def end(self, r: Tensor) -> Tensor:
        return (r < self.cutoff).to(r.dtype)


class FallsInside(Morse):
    """Attractive below 1.3 Å."""

    def shape(self, r: Tensor) -> Tensor:
        return super().shape(r) - 900.0 * torch.exp(-((r / 0.7) ** 2))


class Dented(Morse):
    """A dent in the repulsion, far above the well."""

    def shape(self, r: Tensor) -> Tensor:
        return super().shape(r) * 40.0 - 600.0 * torch.exp(-(((r - 1.2) / 0.1) ** 2))


class SeesTheWhole(Morse):
    """Each atom depends on all atoms of the batch."""

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        return energies + 0.01 * energies.sum()


class KnowsEverything(Morse):
    def species(self, structure: Structure) -> Tensor:
        return torch.zeros_like(structure.numbers)


class Shaken(Morse):
    """Random forces, as from a stochastic evaluation."""

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return energies, replace(pairs, gradients=pairs.gradients + 0.1 * torch.randn_like(pairs.gradients))


class Fragile(Morse):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        if structure.n_atoms == 0:
            raise ZeroDivisionError("no atoms")
        return super().atomic_energies(structure, vectors, neighbours)


def contract(model: Potential) -> dict[str, Finding]:
    findings = {each.check: each for each in check_contract(model)}
    assert all(each.meaning and each.cure for each in findings.values())
    return findings


def errors(model: Potential) -> set[str]:
    return {name for name, each in contract(model).items() if each.severity == "error"}


def test_every_promise_has_advice() -> None:
    assert set(CONTRACT_CHECKS) == {"numbers", *(name.replace("_", " ") for name in CHECKS)}


def test_sound_model_of_an_unknown_family() -> None:
    report = examine_model(Morse(), pictures=False)
    assert report.errors == []
    said = {each.check: each.severity for each in report.findings}
    assert said == {"save load": "warning", "export": "note", "statements": "note"}
    assert {run["system"] for run in report.facts["Dynamics"]} == {"Cu crystal", "Ni crystal"}
    assert set(report.passed) == set(MODEL_CHECKS) - set(said)


def test_bundled_model_passes_and_stays_as_it_is() -> None:
    model = load_model("snnp-ge")
    before = copy.deepcopy(model.state_dict())
    report = examine_model(model, subject="snnp-ge")
    assert report.findings == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert json.loads(report.to_json())["verdict"] == f"nothing found in {len(MODEL_CHECKS)} checks"
    page = report.html()
    assert page.count("data:image/png;base64,") == len(report.pictures) == 4
    assert "snnp-ge" in page


def test_molecular_model_passes() -> None:
    report = examine_model(load_model("snnp-3bpa"), pictures=False)
    assert report.errors == []
    assert report.facts["Dynamics"][0]["system"].endswith("molecule")


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (WrongSign(), {"forces", "stress", "analytic gradients"}),
        (CutAbruptly(), {"smoothness"}),
        (SeesTheWhole(), {"extensivity", "batch"}),
        (KnowsEverything(), {"unknown element"}),
        (Fragile(), {"empty"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Potential) else "",
)
def test_broken_promises(model: Potential, wanted: set[str]) -> None:
    assert wanted <= errors(model)


def test_message_of_a_broken_promise() -> None:
    finding = contract(CutAbruptly())["smoothness"]
    assert "jump" in finding.message
    assert "switch" in finding.cure
    assert "ZeroDivisionError: no atoms" in contract(Fragile())["empty"].message


def test_parameters_that_are_no_numbers() -> None:
    model = Morse()
    with torch.no_grad():
        model.depth.fill_(float("nan"))
    (finding,) = check_numbers(model)
    assert "depth" in finding.message
    report = examine_model(model)
    assert [each.check for each in report.errors] == ["numbers"]
    model = Morse()
    model.reference_energies = {"Cu": float("inf"), "Ni": 0.0}
    assert "E0 of Cu" in next(check_numbers(model)).message


def test_ordinary_structures_are_a_bulk_a_slab_and_a_molecule() -> None:
    found = ordinary_structures(Morse())
    assert {name: structure.pbc[0].tolist() for name, structure in found.items()} == {
        "bulk": [True, True, True],
        "slab": [True, True, False],
        "molecule": [False, False, False],
    }
    assert all(set(structure.symbols) == {"Cu", "Ni"} for structure in found.values())


def test_a_model_that_implodes_is_an_error() -> None:
    report = examine_model(FallsInside())
    (finding,) = [each for each in report.errors if each.check == "compression"]
    assert "fcc Cu, hydrostatic: beyond a barrier at V/V0 = 0." in finding.message
    assert "GPa) the energy falls to -" in finding.message
    assert "fcc Ni, uniaxial [100]: " in finding.message
    assert "and 2 more" in finding.message, "eight ways of two elements, six are named"
    assert [row["rises all the way"] for row in report.facts["Compression"]] == ["no"] * 8
    assert "Compression" in report.html()


def test_dimers_of_a_sound_model() -> None:
    dimers = dimer_curves(Morse())
    assert [each.pair for each in dimers] == list(itertools.combinations_with_replacement(("Cu", "Ni"), 2))
    for each in dimers:
        assert each.hole is None
        well = each.energy.argmin()
        assert each.distance[well] == pytest.approx(2.3, abs=0.2)
        assert each.energy[-1] == pytest.approx(0.0, abs=1e-6)
    assert list(check_dimers(dimers)) == []


def test_hole_at_short_distance_is_an_error() -> None:
    (finding,) = check_dimers(dimer_curves(FallsInside()))
    assert finding.severity == "error"
    assert "Cu-Cu" in finding.message
    assert "repulsion" in finding.cure


def test_dent_in_the_repulsion_is_a_warning() -> None:
    dimers = dimer_curves(Dented())
    assert dimers[0].hole == pytest.approx(1.2, abs=0.1)
    (finding,) = check_dimers(dimers)
    assert finding.severity == "warning"


def test_dimers_that_are_not_finite() -> None:
    dimer = dimer_curves(Morse())[0]
    broken = replace(dimer, energy=np.where(dimer.distance < 1.0, np.nan, dimer.energy))
    (finding,) = check_dimers([broken])
    assert "not finite" in finding.message


def test_energy_that_is_not_conserved() -> None:
    (finding, *_) = check_runs(short_runs(Shaken().double()))
    assert finding.check == "dynamics"
    assert finding.severity == "error"


def test_crystal_that_explodes() -> None:
    (finding, *_) = check_runs(short_runs(WrongSign().double()))
    assert finding.severity == "error"
    assert "cannot keep this together" in finding.meaning


def test_scaling() -> None:
    measured = measure_scaling(Morse())
    assert measured.atoms[:2] == [32, 108]
    assert all(seconds > 0.0 for seconds in measured.seconds)
    atoms = [32, 108, 256, 864]
    linear = Scaling(atoms, [1e-3 + 1e-5 * n for n in atoms])
    square = Scaling(atoms, [1e-3 + 1e-6 * n**2 for n in atoms])
    assert list(check_scaling(linear)) == []
    (finding,) = check_scaling(square)
    assert finding.severity == "warning"
    assert "power 1." in finding.message or "power 2." in finding.message


def test_unstated_metadata_are_noted() -> None:
    model = SplineNNP(special_cases.eam(("Cu",)))
    said = [each.message for each in examine_model(model, pictures=False).findings if each.check == "statements"]
    assert said == ["the metadata do not state: data set, level of theory, licence"]
