"""The s-NNP against its formulas written out as loops, and what its special cases promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from pydantic import ValidationError
from scipy.interpolate import BSpline
from scipy.special import eval_legendre

from snnp.errors import InputError, UnknownElementError
from snnp.models import SplineNNP, SplineNNPConfig
from snnp.models.spline import model as spline_nnp
from snnp.models.spline.special_cases import constrained, eam, linear, s_meam, s_nnp
from snnp.neighbours import neighbour_list
from snnp.splines import SplineSet
from snnp.structure import Structure

SMALL: dict[str, Any] = {"n_radial": 3, "n_angular": 3, "cutoff": 4.0}


def _model(config: SplineNNPConfig, seed: int = 5) -> SplineNNP:
    """A model none of whose parameters is zero."""
    model = SplineNNP(config, {symbol: -1.5 * k for k, symbol in enumerate(config.elements)})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.readout.mean.normal_(generator=generator)
        model.readout.std.uniform_(0.7, 1.5, generator=generator)
    return model


def _cluster(elements: tuple[str, ...], n_atoms: int = 6, seed: int = 2) -> Atoms:
    rng = np.random.default_rng(seed)
    grid = np.array(list(itertools.product(range(2), repeat=3)))[:n_atoms] * 1.9
    symbols = [elements[k % len(elements)] for k in range(n_atoms)]
    return Atoms(symbols, grid + rng.uniform(-0.3, 0.3, grid.shape))


# The formulas, as loops.


def _curve(splines: SplineSet, group: int, filter_: int, x: float) -> float:
    """One spline at one point, through SciPy; beyond the ends its tangent."""
    grid = splines.grids[group]
    c = splines.coefficients().detach().numpy()[group, filter_, : grid.n_coefficients]
    knots = grid.lower + grid.spacing * np.arange(-3, grid.n_intervals + 4)
    spline = BSpline(knots, c, 3)
    inside = min(max(x, grid.lower), grid.upper)
    return float(spline(inside) + (x - inside) * spline(inside, 1))


def _angle_curve(model: SplineNNP, group: int, filter_: int, cosine: float) -> float:
    if model.config.angular.evaluator == "spline":
        return _curve(model.g, group, filter_, cosine)
    legendre = (model.g.coefficients() @ model.projection.T).detach()[group, filter_]
    return float(sum(c * eval_legendre(n, cosine) for n, c in enumerate(legendre.tolist())))


def _zbl(zi: int, zj: int, r: float, inner: float, outer: float) -> float:
    a = 0.46850 / (zi**0.23 + zj**0.23)
    terms = [(0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162)]
    t = min(max((r - inner) / (outer - inner), 0.0), 1.0)
    switch = 1.0 - 10.0 * t**3 + 15.0 * t**4 - 6.0 * t**5
    return 14.399645 * zi * zj / r * sum(c * math.exp(-d * r / a) for c, d in terms) * switch


def _readout(model: SplineNNP, species: int, features: np.ndarray) -> float:
    readout, config = model.readout, model.config
    x = (features - readout.mean.numpy()) / readout.std.numpy()
    energy = 0.0
    if readout.network is not None and config.network is not None:
        copy = species if config.network.elements == "element" else 0
        functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "silu": lambda v: v / (1.0 + np.exp(-v)),
            "tanh": np.tanh,
            "softplus": lambda v: np.log1p(np.exp(v)),
        }
        act = functions[config.network.activation]
        hidden = x
        weights = [w[copy].detach().numpy() for w in readout.network.effective_weights()]
        for k, (weight, bias) in enumerate(zip(weights, readout.network.biases, strict=True)):
            hidden = weight @ hidden + bias[copy].detach().numpy()
            hidden = act(hidden) if k < len(weights) - 1 else hidden
        energy += float(hidden[0])
    if readout.linear is not None:
        energy += float(readout.linear[species].detach().numpy() @ x)
    if readout.embedding is not None:
        if readout.sums_features:
            energy += _curve(readout.embedding, species, 0, float(features.sum()))
        else:
            energy += sum(_curve(readout.embedding, species, k, float(v)) for k, v in enumerate(features))
    return energy


def _pair_number(a: int, b: int, n: int) -> int:
    return list(itertools.combinations_with_replacement(range(n), 2)).index((min(a, b), max(a, b)))


def _by_loops(model: SplineNNP, atoms: Atoms) -> list[float]:
    """Energies of the atoms of a cluster."""
    config, n = model.config, model.config.n_elements
    kind = [model.elements.index(symbol) for symbol in atoms.symbols]
    group = {"shared": lambda i, j: 0, "element": lambda i, j: kind[j], "pair": lambda i, j: kind[i] * n + kind[j]}
    energies = []
    for i in range(len(atoms)):
        vectors = {j: atoms.positions[j] - atoms.positions[i] for j in range(len(atoms)) if j != i}
        r = {j: float(np.linalg.norm(v)) for j, v in vectors.items()}
        groups = {j: group[config.filters](i, j) for j in r}
        g2 = [sum(_curve(model.rho, groups[j], a, r[j]) for j in r) for a in range(config.radial.n_filters)]
        g3 = []
        for b in range(config.angular.n_filters):
            f, total = {j: _curve(model.f, groups[j], b, r[j]) for j in r}, 0.0
            for j, k in itertools.combinations(r, 2):
                pair = _pair_number(kind[j], kind[k], n) if config.angular.elements == "pair" else 0
                cosine = float(vectors[j] @ vectors[k]) / (r[j] * r[k])
                total += f[j] * f[k] * _angle_curve(model, pair, b, cosine)
            g3.append(total)
        energy = model.reference_energies[atoms.symbols[i]] + _readout(model, kind[i], np.array(g2 + g3))
        if model.phi is not None:
            energy += 0.5 * sum(_curve(model.phi, _pair_number(kind[i], kind[j], n), 0, r[j]) for j in r)
        if config.repulsion is not None:
            ends = config.repulsion.inner, config.repulsion.outer
            energy += 0.5 * sum(_zbl(atoms.numbers[i], atoms.numbers[j], r[j], *ends) for j in r)
        energies.append(energy)
    return energies


def _two(filters: str, elements: str, evaluator: str, **changes: Any) -> SplineNNPConfig:
    keys: dict[str, Any] = {
        "elements": ("C", "O"),
        "filters": filters,
        "radial": {"n_filters": 2, "lower": 0.8, "cutoff": 4.0, "intervals": 8},
        "angular": {"n_filters": 2, "lower": 0.8, "cutoff": 3.5, "elements": elements, "evaluator": evaluator},
        "network": {"hidden": [4, 3]},
    }
    return SplineNNPConfig.model_validate({**keys, **changes})


FORMULAS: dict[str, SplineNNPConfig] = {
    "eam": eam(("C", "O"), lower=0.8, cutoff=4.0),
    "s-meam": s_meam(("C", "O"), lower=0.8, cutoff=4.0),
    "linear": linear(("Si",), **SMALL),
    "linear, spline angles": linear(("Si",), **SMALL, evaluator="spline"),
    "s-nnp": s_nnp(("C", "O"), **SMALL, hidden=(5, 4)),
    "s-nnp without skip": s_nnp(("Si",), **SMALL, hidden=(5,), skip=False),
    "constrained": constrained(("C", "O"), "monotone-convex", **SMALL, hidden=(5, 4)),
    "shared, legendre, pairs": _two("shared", "pair", "legendre", pair_term=True),
    "element, legendre, pairs": _two("element", "pair", "legendre", embedding={"of": "features"}),
    "pair, legendre, pairs": _two("pair", "pair", "legendre", repulsion={"inner": 1.0, "outer": 2.5}),
    "pair, legendre, shared": _two("pair", "shared", "legendre", pair_term=True, network=None),
    "pair, spline, pairs": _two("pair", "pair", "spline", pair_term=True, repulsion={"inner": 1.0, "outer": 2.5}),
    "element, spline, shared": _two("element", "shared", "spline", network={"hidden": [3], "elements": "shared"}),
    "tanh": _two("shared", "shared", "spline", network={"hidden": [3], "activation": "tanh"}, embedding={"of": "sum"}),
    "free ends": _two("pair", "pair", "spline", ends="free", radial={"n_filters": 1, "cutoff": 3.7}),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_energies_are_the_formulas(name: str) -> None:
    model = _model(FORMULAS[name])
    atoms = _cluster(model.elements)
    found = model.compute(Structure.from_ase(atoms), forces=False).energies
    wanted = _by_loops(model, atoms)
    np.testing.assert_allclose(found, wanted, rtol=1e-6 if model.config.repulsion else 1e-11)
    assert max(abs(found - torch.tensor([model.reference_energies[s] for s in atoms.symbols]))) > 1e-2


def test_evaluators_agree_where_g_is_a_polynomial() -> None:
    """A cubic spline that is one polynomial of degree three is band-limited: both sums are the same number."""
    changes = {"angular": {"n_filters": 3, "cutoff": 4.0, "elements": "pair", "degree": 3}}
    models = []
    for evaluator in ("spline", "legendre"):
        config = _two("element", "pair", evaluator, **changes)
        config = config.model_copy(update={"angular": config.angular.model_copy(update={"evaluator": evaluator})})
        models.append(_model(config))
    for model in models:
        for group in range(len(model.g.grids)):
            c = np.random.default_rng(group).normal(size=(3, 4))
            x = model.g.grids[group].knots().numpy()
            values = torch.from_numpy(np.stack([np.polyval(row, x) for row in c]))
            ends = [torch.from_numpy(np.stack([np.polyval(np.polyder(row), e) for row in c])) for e in (-1.0, 1.0)]
            model.g.set_knots(values, group, *ends)
    crystal = bulk("C", cubic=True)
    crystal.symbols[::3] = "O"
    crystal.rattle(0.1, seed=1)
    structure = Structure.from_ase([crystal, _cluster(("C", "O"))])
    spline, legendre = (model.compute(structure, stress=True) for model in models)
    assert not models[0].uses_moments
    assert models[1].uses_moments
    for name in ("energies", "forces", "stress"):
        scale = float(getattr(spline, name).abs().max())
        torch.testing.assert_close(getattr(spline, name), getattr(legendre, name), rtol=0.0, atol=1e-12 * scale)


# Special cases.


def test_eam_has_no_angles_and_one_density() -> None:
    model = _model(eam(("Cu",)))
    assert not model.has_three_body
    assert model.config.n_features == 1
    assert model.cutoff == 6.0
    assert model.n_parameters == 2 * 12 + 11  # rho and phi of 14 intervals with fixed ends, U of 8 free


def test_s_meam_has_the_functions_of_lammps() -> None:
    """phi, rho, U, f, g: what a meam/spline file holds, g as a spline."""
    model = SplineNNP(s_meam(("Ti", "O")))
    assert model.phi is not None
    assert model.readout.embedding is not None
    counts = [len(s.grids) for s in (model.phi, model.rho, model.readout.embedding, model.f, model.g)]
    assert counts == [3, 2, 2, 2, 3]
    assert not model.uses_moments
    assert model.readout.network is None
    assert model.readout.linear is None


@pytest.mark.parametrize("evaluator", ["spline", "legendre"])
def test_linear_model_is_linear_in_its_weights(evaluator: str) -> None:
    config = linear(("Si",), **SMALL, evaluator=evaluator)  # type: ignore[arg-type]
    model = _model(config)
    structure = Structure.from_ase(_cluster(("Si",)))
    weights = model.readout.linear
    assert weights is not None
    start, energies = weights.detach().clone(), []
    for factor in (0.0, 1.0, -2.5):
        with torch.no_grad():
            weights.copy_(factor * start)
        energies.append(model.compute(structure, forces=False).energies)
    torch.testing.assert_close(energies[2], energies[0] - 2.5 * (energies[1] - energies[0]))
    assert float((energies[1] - energies[0]).abs().max()) > 1e-2


def test_skip_adds_the_linear_term() -> None:
    with_skip = _model(s_nnp(("Si",), **SMALL, hidden=(4,)))
    without = SplineNNP(s_nnp(("Si",), **SMALL, hidden=(4,), skip=False), with_skip.reference_energies)
    state = with_skip.state_dict()
    linear_term = state.pop("readout.linear")
    without.load_state_dict(state)
    structure = Structure.from_ase(_cluster(("Si",)))
    pairs = neighbour_list(structure, with_skip.cutoff)
    vectors = structure.positions[pairs.j] - structure.positions[pairs.i]
    geometry = with_skip.geometry((pairs.i, pairs.j, vectors), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    x = (with_skip.features(geometry).detach() - with_skip.readout.mean) / with_skip.readout.std
    difference = with_skip.compute(structure).energies - without.compute(structure).energies
    torch.testing.assert_close(difference, x @ linear_term[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("constraint", ["monotone", "convex", "monotone-convex"])
def test_constraints_hold_for_any_parameters(constraint: str) -> None:
    for seed in range(3):
        model = _model(constrained(("Si",), constraint, **SMALL, hidden=(6, 5)), seed)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.readout.parameters():
                parameter.mul_(5.0)
        rng = torch.Generator().manual_seed(seed)
        a, b = (3.0 * torch.randn(400, 6, generator=rng, dtype=torch.float64) for _ in range(2))
        species = torch.zeros(400, dtype=torch.int64)

        def energy(x: torch.Tensor, model: SplineNNP = model, species: torch.Tensor = species) -> torch.Tensor:
            return model.readout(x, species)[0].detach()

        if "monotone" in constraint:
            assert bool((energy(a + b.abs()) >= energy(a) - 1e-12).all())
            assert bool((model.readout(a, species)[1] >= 0.0).all())
        if "convex" in constraint:
            assert bool((energy((a + b) / 2) <= (energy(a) + energy(b)) / 2 + 1e-9).all())


def test_a_free_network_is_neither_monotone_nor_convex() -> None:
    """Else the test of constraints would show nothing."""
    model = _model(s_nnp(("Si",), **SMALL, hidden=(6, 5)))
    x = torch.randn(400, 6, dtype=torch.float64)
    gradient = model.readout(x, torch.zeros(400, dtype=torch.int64))[1]
    assert bool((gradient < 0.0).any())
    middle, ends = ((x[:200] + x[200:]) / 2, [x[:200], x[200:]])
    species = torch.zeros(200, dtype=torch.int64)
    excess = model.readout(middle, species)[0] - sum(model.readout(e, species)[0] for e in ends) / 2
    assert bool((excess > 1e-3).any())


def test_repulsion_keeps_atoms_apart() -> None:
    """Whatever the splines say, atoms driven together pay hundreds of eV, and beyond `outer` nothing changes."""
    config = _two("element", "shared", "legendre", repulsion={"inner": 0.8, "outer": 1.4})
    with_it = _model(config)
    without = SplineNNP(config.model_copy(update={"repulsion": None}), with_it.reference_energies)
    without.load_state_dict(with_it.state_dict())
    distances = (0.2, 0.5, 1.0, 1.39, 1.41, 3.0)
    pairs = Structure.from_ase([Atoms("CO", [[0, 0, 0], [0, 0, r]]) for r in distances])
    extra = with_it.compute(pairs).energy - without.compute(pairs).energy
    assert extra[0] > 500.0
    assert bool((extra.diff() <= 0.0).all())
    assert extra[3] > 0.0
    assert extra[4:].tolist() == [0.0, 0.0]


# Evaluation.


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(s_nnp(("Si", "C"), **SMALL, hidden=(4,)))
    crystal = bulk("SiC", "zincblende", 4.36, cubic=True)
    crystal.rattle(0.1, seed=0)
    structure = Structure.from_ase([crystal, molecule("CH4")[:1], crystal.repeat((1, 1, 2))])
    whole = model.compute(structure, stress=True)
    monkeypatch.setattr(spline_nnp, "_CHUNK_ATOMS", 5)
    pieces = model.compute(structure, stress=True)
    for name in ("energy", "energies", "forces", "stress"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), atol=1e-12, rtol=1e-12)


def test_energy_without_forces_is_the_same() -> None:
    model = _model(s_nnp(("Si",), **SMALL, hidden=(4,)))
    structure = Structure.from_ase(_cluster(("Si",)))
    plain, full = model.compute(structure, forces=False), model.compute(structure, stress=True)
    torch.testing.assert_close(plain.energies, full.energies, atol=1e-13, rtol=0.0)
    assert plain.forces is None
    assert plain.stress is None


def test_compute_keeps_no_graph() -> None:
    model = _model(s_nnp(("Si",), **SMALL, hidden=(4,)))
    structure = Structure.from_ase(_cluster(("Si",)))
    result = model.compute(structure, stress=True)
    assert result.forces is not None
    assert not result.energy.requires_grad
    assert not result.forces.requires_grad


def test_large_reference_energies_cost_no_precision() -> None:
    """E0 of heavy atoms is tens of thousands of eV: added in float64 it leaves a float32 model as it is."""
    config = s_nnp(("Au",), **SMALL, hidden=(4,))
    bare, heavy = SplineNNP(config).float(), SplineNNP(config, {"Au": -535_000.123456789}).float()
    structure = Structure.from_ase(_cluster(("Au",)))
    difference = heavy.compute(structure).energy - bare.compute(structure).energy
    assert float(difference[0]) == pytest.approx(6 * -535_000.123456789, abs=1e-8)


def test_reference_energies_can_be_set() -> None:
    model = SplineNNP(s_nnp(("Si", "C"), **SMALL), {"C": -3.0})
    assert model.reference_energies == {"Si": 0.0, "C": -3.0}
    before = model.compute(Structure.from_ase(Atoms("C"))).energy
    model.reference_energies = {"Si": -1.0, "C": -4.0}
    after = model.compute(Structure.from_ase(Atoms("C"))).energy
    assert float(after - before) == pytest.approx(-1.0)


def test_seeds() -> None:
    config = s_nnp(("Si",), **SMALL)
    same, other = SplineNNP(config, seed=3), SplineNNP(config, seed=4)
    again = SplineNNP(config, seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in same.state_dict().items())
    assert not torch.equal(same.rho.free, other.rho.free)


def test_forces_train_through_one_backward_pass() -> None:
    """Analytic forces are differentiable in the parameters: the derivative of a force loss, by finite differences."""
    model = _model(s_nnp(("Si",), **SMALL, hidden=(4,)))
    structure = Structure.from_ase(_cluster(("Si",)))
    pairs = neighbour_list(structure, model.cutoff)
    vectors = structure.positions[pairs.j] - structure.positions[pairs.i]
    geometry = model.geometry((pairs.i, pairs.j, vectors), torch.zeros(6, dtype=torch.int64), torch.arange(6))

    def loss() -> torch.Tensor:
        energies, gradients = model.evaluate(geometry)
        total = energies.sum()
        for _, gradient in gradients:
            total = total + gradient.square().sum()
        return total

    loss().backward()
    for parameter in (model.rho.free, model.f.free, model.g.free):
        assert parameter.grad is not None
        with torch.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                parameter[0, 1, 2] += step
                ends.append(float(loss()))
            parameter[0, 1, 2] += 1e-6
        assert float(parameter.grad[0, 1, 2]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


# What is refused.


def test_overlapping_atoms() -> None:
    model = SplineNNP(s_nnp(("Si",), **SMALL))
    atoms = _cluster(("Si",))
    atoms.positions[4] = atoms.positions[2] + [0, 0, 0.01]
    with pytest.raises(InputError, match=r"atoms 2 and 4 overlap \(0.010 Å apart\)"):
        model.compute(Structure.from_ase(atoms))


def test_short_list() -> None:
    model = SplineNNP(s_nnp(("Si",), **SMALL))
    structure = Structure.from_ase(_cluster(("Si",)))
    with pytest.raises(InputError, match=r"reaches 3.0 Å but the model needs 4.0 Å"):
        model.compute(structure, neighbour_list(structure, 3.0))


def test_unknown_element() -> None:
    model = SplineNNP(s_nnp(("Si", "C"), **SMALL))
    with pytest.raises(UnknownElementError, match="knows Si, C but the structure holds H"):
        model.compute(Structure.from_ase(molecule("CH4")))


@pytest.mark.parametrize("elements", [(), ("Si", "Si"), ("Xx",), ("silicon",)])
def test_elements_must_be_symbols(elements: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="distinct chemical symbols"):
        SplineNNP(s_nnp(elements, **SMALL))


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"radial": {"n_filters": 0}, "angular": {"n_filters": 0}}, "nothing would see the neighbours"),
    ({"network": None, "skip": False}, "no energy comes out"),
    ({"repulsion": {"inner": 2.0, "outer": 1.0}}, "outer must be larger"),
    ({"network": {"constraint": "monotone"}}, "non-decreasing activation"),
    ({"network": {"constraint": "convex", "activation": "tanh"}}, "convex activation softplus"),
    ({"network": {"hidden": []}}, "at least one layer"),
    ({"angular": {"degree": 13}}, "less than or equal to 12"),
    ({"radial": {"n_filter": 3}}, "Extra inputs"),
]


@pytest.mark.parametrize("changes, words", BAD_CONFIGS)
def test_bad_config(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SplineNNPConfig.model_validate({"elements": ["Si"], **changes})
