"""The curves of a model: what is drawn is what the evaluators compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from snnp.analysis.curve_page import draw_page, stated_errors
from snnp.analysis.curves import Curves, Environment, Occurrence, crystal_shells
from snnp.errors import InputError
from snnp.models import (
    AngularConfig,
    EmbeddingConfig,
    NetworkConfig,
    Potential,
    RadialConfig,
    RepulsionConfig,
    SplineNNP,
    SplineNNPConfig,
)
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure


def _config(**changes: Any) -> SplineNNPConfig:
    values: dict[str, Any] = {
        "elements": ("Cu",),
        "radial": RadialConfig(n_filters=4, cutoff=4.5),
        "angular": AngularConfig(n_filters=3, cutoff=4.0, degree=4),
        "network": NetworkConfig(hidden=(6,)),
    }
    return SplineNNPConfig(**{**values, **changes})


def _model(**changes: Any) -> SplineNNP:
    """A model with a readout that has learned something."""
    model = SplineNNP(_config(**changes), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.readout.mean.copy_(torch.randn(model.readout.mean.shape, generator=generator).double())
        model.readout.std.copy_(1.0 + torch.rand(model.readout.std.shape, generator=generator).double())
        for weight in model.readout.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator).double())
    return model


def _features(model: SplineNNP, vectors: Tensor) -> Tensor:
    """[D] features of an atom whose neighbours, all of the first element, lie at `vectors` [J, 3]."""
    rows = torch.zeros(len(vectors), dtype=torch.int64)
    centre = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        return model.features(model.geometry((rows, rows, vectors), centre, centre))[0]


def _crystal_neighbours(cutoff: float) -> Tensor:
    structure = Structure.from_ase(bulk("Cu"))
    return pair_vectors(structure, neighbour_list(structure, cutoff))


def _gradient(model: SplineNNP, features: Tensor) -> Tensor:
    """[D] dE/dG by central differences."""
    species = torch.zeros(1, dtype=torch.int64)
    steps = 1e-5 * torch.eye(len(features), dtype=torch.float64)
    with torch.no_grad():
        ends = [[model.readout((features + sign * step)[None], species)[0] for sign in (1, -1)] for step in steps]
    return torch.stack([(up - down)[0] / 2e-5 for up, down in ends])


def _directions() -> tuple[Tensor, Tensor]:
    """Unit vectors and weights that integrate polynomials up to degree 11 over the sphere exactly."""
    cosine, weight = np.polynomial.legendre.leggauss(6)
    phi = 2.0 * np.pi * np.arange(12) / 12
    sine = np.sqrt(1.0 - cosine**2)
    x, y = sine[:, None] * np.cos(phi), sine[:, None] * np.sin(phi)
    points = np.stack([x, y, np.broadcast_to(cosine[:, None], x.shape)], axis=-1).reshape(-1, 3)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(weight / 24.0, 12))


def test_radial_filters_are_worth_their_energy() -> None:
    model = _model()
    curves = Curves(model)
    h = _gradient(model, _features(model, _crystal_neighbours(model.cutoff)))
    values, _ = model.rho(torch.from_numpy(curves.distance))
    np.testing.assert_allclose(curves.radial[0], (h[:4] * values.detach()).T, atol=1e-8)
    assert curves.where == "in the crystal"
    np.testing.assert_allclose(curves.worth, h.abs() * model.readout.std, atol=1e-8)


@pytest.mark.parametrize("evaluator", ["legendre", "spline"])
def test_pair_energy_is_what_one_more_neighbour_changes(evaluator: str) -> None:
    """The mean over all directions of h . (G with one more neighbour - G), for both ends of the pair."""
    angular = AngularConfig(n_filters=3, cutoff=4.0, degree=4, angle_intervals=3, evaluator=evaluator)
    model = _model(angular=angular)
    curves = Curves(model)
    neighbours = _crystal_neighbours(model.cutoff)
    before = _features(model, neighbours)
    h = _gradient(model, before)
    directions, weights = _directions()
    for index in (40, 200, 330):
        r = float(curves.distance[index])
        change = sum(
            weight * (_features(model, torch.cat([neighbours, r * unit[None]])) - before)
            for unit, weight in zip(directions, weights, strict=True)
        )
        expected = 2.0 * float(h @ change)
        # A cubic spline of the angle is integrated by six points only approximately.
        tolerance = 1e-7 if evaluator == "legendre" else 2e-2 * float(np.abs(curves.pair["Cu", "Cu"]).max())
        assert curves.pair["Cu", "Cu"][index] == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("evaluator", ["legendre", "spline"])
def test_three_body_functions_are_those_of_the_evaluator(evaluator: str) -> None:
    model = _model(angular=AngularConfig(n_filters=3, cutoff=4.0, degree=3, evaluator=evaluator))
    curves = Curves(model)
    h = _gradient(model, _features(model, _crystal_neighbours(model.cutoff)))[4:]
    n, m = 120, 70
    r, angle = float(curves.distance[n]), np.radians(curves.angle[m])
    vectors = torch.tensor([[r, 0.0, 0.0], [r * np.cos(angle), r * np.sin(angle), 0.0]]).double()
    three_body = _features(model, vectors)[4:]
    np.testing.assert_allclose(curves.shape[0, :, n] ** 2 * curves.angular[0, :, m], h * three_body, atol=1e-9)
    # The map is the sum of them without the mean over directions.
    theta = np.radians(curves.angle)
    whole = np.einsum("t,tm->m", curves.shape[0, :, n] ** 2, curves.angular[0])
    np.testing.assert_allclose(np.diff(curves.three_body[0, n]), np.diff(whole), atol=1e-9)
    mean = 0.5 * np.trapezoid(curves.three_body[0, n] * np.sin(theta), theta)
    assert mean == pytest.approx(0.0, abs=1e-4 * float(np.abs(whole).max()))


def test_repulsion_is_that_of_a_dimer() -> None:
    model = SplineNNP(_config(repulsion=RepulsionConfig(inner=1.0, outer=2.2), network=None))
    curves = Curves(model)
    index = int(np.abs(curves.distance - 1.7).argmin())
    dimer = Atoms("Cu2", [[0.0, 0.0, 0.0], [curves.distance[index], 0.0, 0.0]])
    energy = float(model.compute(Structure.from_ase(dimer), forces=False).energy)
    assert energy > 0.1
    assert curves.pair["Cu", "Cu"][index] == pytest.approx(energy, rel=1e-10)


def test_embedded_models_keep_their_scale() -> None:
    model = SplineNNP(
        _config(
            radial=RadialConfig(n_filters=1, cutoff=4.5),
            angular=AngularConfig(n_filters=1, cutoff=4.0, evaluator="spline"),
            network=None,
            skip=False,
            pair_term=True,
            embedding=EmbeddingConfig(of="sum"),
        )
    )
    assert model.phi is not None
    with torch.no_grad():
        model.phi.free.normal_()
    curves = Curves(model)
    x = torch.from_numpy(curves.distance)
    assert not curves.in_ev
    np.testing.assert_allclose(curves.pair["Cu", "Cu"], model.phi(x)[0][:, 0].detach(), atol=1e-12)
    np.testing.assert_allclose(curves.shape[0, 0], model.f(x)[0][:, 0].detach(), atol=1e-12)
    assert curves.embedding is not None
    np.testing.assert_allclose(curves.embedding[1][0, 0], 0.1 * curves.embedding[0], atol=1e-9)


def test_groups_are_named_and_paired() -> None:
    model = _model(elements=("Cu", "Ni"), filters="pair", angular=AngularConfig(n_filters=2, elements="pair"))
    curves = Curves(model)
    assert curves.groups == ("Cu→Cu", "Cu→Ni", "Ni→Cu", "Ni→Ni")
    assert curves.angle_groups == ("Cu–Cu", "Cu–Ni", "Ni–Ni")
    assert set(curves.pair) == {("Cu", "Cu"), ("Cu", "Ni"), ("Ni", "Ni")}


def test_environment_knows_usual_neighbours() -> None:
    methane = Structure.from_ase(molecule("CH4"))
    model = _model(elements=("H", "C"), radial=RadialConfig(n_filters=4, lower=0.5))
    seen = Environment(model, methane)
    assert seen.partner == [1, 0]
    assert seen.distance == pytest.approx([1.09, 1.09], abs=0.01)
    everyone = Environment(model)  # hydrogen has no crystal that ASE knows
    assert everyone.where is None
    assert float(everyone.reach.abs().max()) == 0.0


def test_occurrence_in_a_crystal() -> None:
    seen = Occurrence(Structure.from_ase(bulk("Cu", cubic=True).repeat(2)), 4.5)
    assert seen.nearest == pytest.approx(3.61 / np.sqrt(2.0), abs=1e-6)
    peaks = seen.angle[seen.angle_density > 0.3]
    for expected in (60.0, 90.0, 120.0):
        assert np.abs(peaks - expected).min() < 2.0
    assert np.abs(peaks - 75.0).min() > 5.0
    np.testing.assert_allclose(crystal_shells("Cu", 4.5), [2.55, 3.61, 4.42], atol=0.01)
    assert len(crystal_shells("H", 4.5)) == 0


def test_occurrence_needs_pairs() -> None:
    with pytest.raises(InputError, match="nothing to count"):
        Occurrence(Structure.from_ase(Atoms("Cu")), 4.5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"elements": ("Li", "Si", "Ni", "Cu"), "filters": "shared"},
        {"elements": ("H", "C", "O"), "angular": AngularConfig(n_filters=2, elements="pair")},
        {"radial": RadialConfig(n_filters=0), "elements": ("Cu", "Ni"), "filters": "pair"},
        {"angular": AngularConfig(n_filters=0), "network": None, "embedding": EmbeddingConfig()},
    ],
    ids=["one element", "shared", "groups", "three-body only", "radial only"],
)
def test_every_kind_of_model_has_a_page(changes: dict[str, Any], tmp_path: Path) -> None:
    path = draw_page(_model(**changes), tmp_path / "page.png", title="test")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["page.png"]


def test_page_with_data(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    draw_page(_model(), tmp_path / "page.svg", structures=Structure.from_ase(atoms))
    text = (tmp_path / "page.svg").read_text()
    assert text.lstrip().startswith("<?xml")


def test_refusals(tmp_path: Path) -> None:
    class Nothing(Potential):
        def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
            return torch.zeros(structure.n_atoms)

    with pytest.raises(InputError, match="not made of splines"):
        Curves(Nothing(("Cu",), {}, 4.0))
    with pytest.raises(InputError, match=r"must end in \.png"):
        draw_page(_model(), tmp_path / "page.jpeg")


def test_stated_errors_prefer_the_test_set() -> None:
    errors = {"train": {"energy_mae_mev_per_atom": 1.0}, "valid": {"energy_mae_mev_per_atom": 2.0}}
    assert stated_errors({}) == ("", {})
    assert stated_errors({"errors": errors})[0] == "valid"
    assert stated_errors({"errors": {**errors, "test": {}}})[0] == "test"
    assert stated_errors({"errors": errors, "metrics": {"n_atoms": 1}}) == ("test", {"n_atoms": 1})


def test_curves_hold_arrays_of_one_shape() -> None:
    curves = Curves(_model(elements=("Cu", "Ni")))
    n, m = len(curves.distance), len(curves.angle)
    assert curves.radial.shape == (2, 4, n)
    assert curves.shape.shape == (2, 3, n)
    assert curves.angular.shape == (1, 3, m)
    assert curves.three_body.shape == (2, n, m)
    assert curves.worth.shape == (7,)
