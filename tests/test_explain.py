"""Explaining a model: parts that sum to the energy, filters that go without a trace, pages that are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write
from cli_runs import run_json
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.data import Frames
from snnp.distillation.crystals import frames_of
from snnp.errors import InputError
from snnp.explain import Anatomy, Elements, FilterCurves, eliminate, explain, material_for, pruned, spline_model
from snnp.explain.anatomy import gradient_products
from snnp.explain.elements import _column
from snnp.explain.explanation import _constraint
from snnp.explain.pruning import measured
from snnp.models import (
    AngularConfig,
    EmbeddingConfig,
    NetworkConfig,
    RadialConfig,
    RepulsionConfig,
    SplineNNP,
    SplineNNPConfig,
)
from snnp.models.ensemble import Ensemble
from snnp.models.spline.special_cases import s_meam
from snnp.models.store import load_model, save_model


def _model(isolated: bool = False, **changes: Any) -> SplineNNP:
    """A small model that has learned something, in the scale of eV."""
    values: dict[str, Any] = {
        "elements": ("Cu",),
        "radial": RadialConfig(n_filters=5, cutoff=4.5),
        "angular": AngularConfig(n_filters=4, cutoff=4.0, degree=3),
        "network": NetworkConfig(hidden=(6,)),
        "repulsion": RepulsionConfig(inner=1.0, outer=2.4),
    }
    model = SplineNNP(SplineNNPConfig(**{**values, **changes}), {"Cu": -3.0}, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if model.readout.embedding is None:
            features = Anatomy(model, _frames(model)).features
            model.standardise(lambda: features)
        for weight in model.readout.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator).double())
    if isolated:
        model.isolated_atoms = model.elements
    return model


def _frames(model: SplineNNP, n: int = 12) -> Frames:
    images = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.rattle(0.04 + 0.02 * seed, seed=seed)
        atoms.symbols[:] = np.random.default_rng(seed).choice(model.elements, len(atoms))
        images.append(("shaken", atoms))
    return frames_of(images, "made")


def _fails(*arguments: object) -> str:
    """What a command that fails says."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"isolated": True},
        {"elements": ("Cu", "Ni"), "filters": "shared", "pair_term": True},
        {"elements": ("Cu", "Ni"), "filters": "pair", "network": NetworkConfig(hidden=(6,), elements="shared")},
        {"embedding": EmbeddingConfig()},
        {"network": None, "skip": False, "embedding": EmbeddingConfig(of="sum"), "pair_term": True},
        {"angular": AngularConfig(n_filters=0), "network": None},
    ],
    ids=["plain", "isolated", "shared", "pair", "both", "sum", "linear"],
)
def test_parts_sum_to_the_energy(changes: dict[str, Any]) -> None:
    model = _model(**changes)
    if model.phi is not None:
        with torch.no_grad():
            model.phi.free.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(4))
    frames = _frames(model)
    anatomy = Anatomy(model, frames)
    parts = anatomy.parts
    whole = model.compute(frames.structure(), forces=False).energies.numpy()
    np.testing.assert_allclose(sum(parts.values()), whole, atol=1e-9)
    # "typical" is one number for each element: all that varies is in the other parts.
    for symbol in model.elements:
        mine = parts["typical"][np.array(anatomy.labels()) == symbol]
        np.testing.assert_allclose(mine, mine[0], atol=1e-9)
    assert ("embedding" in parts) == (model.readout.embedding is not None)
    assert ("network" in parts) == (model.readout.network is not None)


def test_first_order_parts_are_the_gradient_times_the_step() -> None:
    """Of a linear model there is nothing else, and contributions are those of its weights."""
    model = _model(network=None)
    anatomy = Anatomy(model, _frames(model))
    assert anatomy.linear_share["best"] == pytest.approx(1.0, abs=1e-6)
    assert anatomy.linear_share["skip"] == pytest.approx(1.0, abs=1e-9)
    weights = model.readout.linear
    assert weights is not None
    expected = (weights.detach()[0].abs() * anatomy.standard.std(dim=0, correction=0)).numpy()
    np.testing.assert_allclose(anatomy.contribution, expected, rtol=1e-6)


def test_gradient_products_are_those_of_differences() -> None:
    model = _model()
    frames = _frames(model, 1)
    atoms = frames.structure().to_ase()[0]
    products = gradient_products(model, frames.structure(), 1)[0]
    # The first atom alone: move each neighbour's image by moving the atoms, as far as they are neighbours once.
    assert products.shape == (9, 9)
    assert float(torch.linalg.eigvalsh(products)[0]) > -1e-9
    rattled = atoms.copy()
    rattled.positions[0, 0] += 1e-4
    before, after = (Anatomy(model, frames_of([("x", each)], "x")).standard[0] for each in (atoms, rattled))
    slope = (after - before) / 1e-4
    # Moving the atom changes all vectors alike: the square of a sum is at most the number of neighbours times the sum.
    assert bool((slope.square() <= 60.0 * products.diagonal() + 1e-6).all())


@pytest.mark.parametrize("changes", [{}, {"isolated": True}, {"elements": ("Cu", "Ni"), "filters": "shared"}])
def test_copies_of_filters_go_without_a_trace(changes: dict[str, Any]) -> None:
    """A filter that is a combination of two others is refitted exactly: energies, forces, isolated atoms."""
    model = _model(**changes)
    with torch.no_grad():
        model.rho.free[:, 4] = 0.7 * model.rho.free[:, 1] - 0.4 * model.rho.free[:, 2]
        model.readout.mean[4] = 0.3
    frames = _frames(model)
    anatomy = Anatomy(model, frames)
    smaller = pruned(anatomy, [k for k in range(9) if k != 4])
    assert smaller.config.radial.n_filters == 4
    other = _frames(model, 3)
    before, after = (each.compute(other.structure(), stress=True) for each in (model, smaller))
    np.testing.assert_allclose(after.energy, before.energy, atol=1e-5)
    np.testing.assert_allclose(after.forces, before.forces, atol=1e-5)
    alone = frames_of([("atom", Atoms("Cu"))], "x").structure()
    if changes.get("isolated"):
        assert float(smaller.compute(alone).energy) == pytest.approx(-3.0, abs=1e-9)


def test_elimination_ends_with_one_filter_and_prunes_what_it_says() -> None:
    model = _model()
    material = material_for(model)
    fit, choose, tell = material.parts()
    anatomy = Anatomy(model, fit)
    removal = eliminate(anatomy, choose, tell)
    assert [stage.n_filters for stage in removal.stages] == list(range(9, 0, -1))
    assert removal.stages[0].errors == pytest.approx((0.0, 0.0), abs=1e-9)
    stage = removal.stages[5]
    assert removal.kept(4) == stage.kept
    np.testing.assert_allclose(measured(pruned(anatomy, stage.kept), tell), stage.errors, atol=1e-9)
    without_angles = pruned(anatomy, [0, 3])
    assert without_angles.config.angular.n_filters == 0
    for n in (0, 9, 12):
        with pytest.raises(InputError, match="this model has 9 filters; keep between 1 and 8"):
            removal.kept(n)
    with pytest.raises(InputError, match="nothing linear to refit"):
        eliminate(Anatomy(_model(embedding=EmbeddingConfig()), fit), choose, tell)


def test_curves_are_thick_where_distances_occur() -> None:
    model = _model()
    frames = _frames(model)
    curves = FilterCurves.of(Anatomy(model, frames))
    inside = curves.distance[curves.occurs[0] > 0.0]
    assert inside[0] == pytest.approx(float(frames.shortest_distances(5.0).min()), abs=0.1)
    assert curves.radial.shape == (1, 5, 300)
    assert float(np.abs(curves.shape).max(where=curves.occurs[:, None] > 0.0, initial=0.0)) <= 1.0 + 1e-9


def test_far_atoms_are_told() -> None:
    model = _model()
    seen = Anatomy(model, _frames(model))
    crushed = bulk("Cu", cubic=True, a=2.9)
    far = Anatomy(model, frames_of([("crushed", crushed)], "x"), seen.typical).farness(seen)
    assert float(far.min()) > 5.0
    assert float(seen.farness(seen).mean()) < 1.5


def test_elements_are_alike_by_the_filters_that_they_use() -> None:
    model = _model(elements=("Cu", "Ni", "Si"), filters="shared")
    network, linear = model.readout.network, model.readout.linear
    assert network is not None
    assert linear is not None
    with torch.no_grad():
        for parameter in (*network.parameters(), linear):
            parameter[1] = parameter[0]
        linear[2] = linear[2].flip(0) * 3.0
    found = Elements.of(Anatomy(model, _frames(model)))
    assert found is not None
    assert found.nearest()["Cu"][0] == "Ni"
    np.testing.assert_allclose(found.share.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.diag(found.similarity), 1.0)
    assert Elements.of(Anatomy(_model(), _frames(_model()))) is None


def test_columns_of_the_periodic_table() -> None:
    expected = {"H": 1, "He": 18, "Li": 1, "C": 14, "Cl": 17, "Ni": 10, "Mo": 6, "W": 6, "La": 3, "U": 3, "Pb": 14}
    assert {symbol: _column(symbol) for symbol in expected} == expected


def test_material_is_told(tmp_path: Path) -> None:
    model = load_model("snnp-mg")
    made = material_for(model)
    assert not made.labelled
    assert "no training data are at hand" in made.origin
    assert made.frames.elements == ("Mg",)
    bundled = material_for(load_model("snnp-al"))
    assert bundled.labelled
    assert "aluminium-7net" in bundled.origin
    fit, choose, tell = bundled.parts()
    assert not set(fit.sources) & set(choose.sources)
    assert not set(tell.sources) & {*fit.sources, *choose.sources}


def test_page_of_one_and_of_two(tmp_path: Path) -> None:
    one, other = _model(), _model()
    with torch.no_grad():
        other.rho.free.mul_(1.1)
    for name, model in (("one", one), ("other", other)):
        save_model(model, tmp_path / name)
    command = ("explain", tmp_path / "one", "--prune", 5, "--out", tmp_path / "page")
    assert run_json(*command)["kind"] == "explanation"
    assert "exists" in _fails(*command)
    values = json.loads((tmp_path / "page/explain.json").read_text())
    assert values["format"] == "snnp-explanation"
    assert len(values["curves"]["filters"]) == 9
    assert len(values["removal"]["stages"]) == 9
    text = (tmp_path / "page/explain.html").read_text()
    assert "Filters taken out" in text
    assert "pulls the other way than on average" in text
    assert "<script" not in text
    assert len(list((tmp_path / "page").glob("*.png"))) >= 6
    stale = tmp_path / "page/99-of-another-page.png"
    stale.write_bytes(b"")
    (tmp_path / "page/mine.png").write_bytes(b"")
    run_json("explain", tmp_path / "one", "--out", tmp_path / "page", "--overwrite")
    assert not stale.exists()
    assert (tmp_path / "page/mine.png").exists()
    smaller = load_model(tmp_path / "page/pruned")
    assert smaller.config.n_features == 5  # type: ignore[attr-defined]
    assert smaller.metadata["filters_kept"]
    assert "Pruned model" in (tmp_path / "page/pruned/report.md").read_text()
    both = explain(str(tmp_path / "one"), str(tmp_path / "other"), structure="fcc:Cu:2x2x2")
    titles = [table.title for table in both.report.tables]
    assert "Filters, one by one" in titles
    assert "differ by" in both.report.verdict


@pytest.mark.parametrize("constraint", ["monotone", "convex", "monotone-convex"])
def test_a_constraint_is_looked_at(constraint: str) -> None:
    """It holds where nothing else speaks; a linear skip, which it does not bind, lets them fall and bends nothing."""
    activation = "tanh" if constraint == "monotone" else "softplus"
    network = NetworkConfig.model_validate({"hidden": (6,), "activation": activation, "constraint": constraint})
    for skip in (False, True):
        model = _model(network=network, skip=skip)
        found = _constraint(Anatomy(model, _frames(model)), constraint)
        breaks = skip and "monotone" in constraint
        assert found.severity == ("warning" if breaks else "note")
        assert f"Trained to be {constraint}, which {'does not hold' if breaks else 'holds'} for" in found.message
        if "monotone" in constraint and not skip:
            assert "falls with a filter in 0.0 %" in found.message
            assert "other way than on average for 0.0 %" in found.message
        if "convex" in constraint:
            assert "bends down in 0.0 % of pairs" in found.message
    bent = Anatomy(_model(network=NetworkConfig(hidden=(6,), activation="tanh")), _frames(_model()))
    assert min(bent.broken.values()) > 0.0
    assert "no constraint was to prevent it" in _constraint(bent, "none").message


def test_two_folders_of_one_name_and_an_input_that_would_be_replaced(tmp_path: Path) -> None:
    for name in ("a/best", "b/best"):
        save_model(_model(), tmp_path / name)
    both = explain(str(tmp_path / "a/best"), str(tmp_path / "b/best"), structure="fcc:Cu:2x2x2")
    assert "a/best" in both.report.subject
    assert "b/best" in both.report.subject
    save_model(_model(), tmp_path / "page/pruned")
    again = ("explain", tmp_path / "page/pruned", "--prune", 5, "--out", tmp_path / "page", "--overwrite")
    assert "is the file that is read" in _fails(*again)


def test_classical_potentials_have_a_page(tmp_path: Path) -> None:
    """Embedding splines: drawn, but no filter is taken out."""
    save_model(SplineNNP(s_meam(("Cu",)), seed=1), tmp_path / "meam")
    found = explain(str(tmp_path / "meam"))
    assert found.values["removal"] is None
    with pytest.raises(InputError, match="embeds its features"):
        explain(str(tmp_path / "meam"), prune=1)


def test_models_without_filters_are_refused(tmp_path: Path) -> None:
    for name, kind in (("hipnn-si", "HIPNN"), ("ani-1ccx", "ensemble of ANI. is a model without filters")):
        with pytest.raises(InputError, match=kind):
            explain(name)
    error = _fails("explain", "hipnn-si", "--out", tmp_path / "page")
    assert "a model without filters" in error
    assert "name an s-NNP" in error
    with pytest.raises(InputError, match="a model without filters"):
        spline_model(load_model("hipnn-ts-si"), "hipnn-ts-si")
    with pytest.raises(InputError, match="explain one of them"):
        spline_model(Ensemble([_model(), _model()]), "two")


def test_refusals_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep between 1 and 47"):
        explain("snnp-si", prune=48)
    with pytest.raises(InputError, match="leave the second away"):
        explain("snnp-si", "snnp-ge", prune=4)
    with pytest.raises(InputError, match="named twice"):
        explain("snnp-si", "snnp-si")
    with pytest.raises(InputError, match="both models know"):
        explain("snnp-si", "snnp-ge")
    error = _fails("explain", "snnp-si", "--structure", "fcc:Cu:2x2x2", "--out", tmp_path / "page")
    assert "Cu" in error
    error = _fails("explain", "snnp-si", "--data", tmp_path / "nothing.xyz", "--out", tmp_path / "page")
    assert "nothing.xyz" in error
    assert not (tmp_path / "page").exists()  # there was nothing to write
    write(tmp_path / "plain.xyz", bulk("Si"))
    error = _fails("explain", "snnp-si", "--data", tmp_path / "plain.xyz", "--out", tmp_path / "a/page")
    assert "no energies" in error
    assert "--energy-key" not in error
    assert "reference method" in error
    assert not (tmp_path / "a").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    _fails("explain", "snnp-si", "--data", tmp_path / "plain.xyz", "--out", kept)
    assert kept.is_dir()
