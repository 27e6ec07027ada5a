"""HIP-NN and HIP-NN-TS: the formulas written as loops, the contract of a potential, training's derivatives, storage."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from pydantic import ValidationError
from torch import Tensor

from snnp.errors import InputError, UnknownElementError
from snnp.models import HIPNN, HIPNNConfig, load_model, save_model
from snnp.models.export import export_torchscript, scripted_module
from snnp.models.gradients import sum_forces
from snnp.models.hipnn import model as hipnn_module
from snnp.models.hipnn.layers import Block
from snnp.models.hipnn.model import hierarchicality
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.testing import check_potential

E0 = {"H": -13.6, "O": -2041.25}


def _model(elements: tuple[str, ...] = ("H", "O"), l_max: int = 0, *, seed: int = 0, **more: Any) -> HIPNN:
    shape = {"n_features": 5, "n_sensitivities": 4, "n_atom_layers": 1, "lower": 0.8, "upper": 3.0, "cutoff": 4.0}
    config = HIPNNConfig(elements=elements, l_max=l_max, **{**shape, **more})
    return HIPNN(config, {symbol: E0.get(symbol, -3.0) for symbol in elements}, seed=seed)


def _water(n: int = 2) -> Structure:
    rng = np.random.default_rng(3)
    atoms = molecule("H2O")
    frames = [atoms.copy() for _ in range(n)]
    for k, frame in enumerate(frames):
        frame.positions += rng.normal(0.0, 0.1, (3, 3)) + k * np.array([2.5, 0.3, 0.0])
    together = frames[0]
    for frame in frames[1:]:
        together += frame
    return Structure.from_ase(together)


# The formulas, term by term.


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def _linear(layer: Any, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = layer.weight.detach().numpy() @ x
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def _interaction(block: Block, features: np.ndarray, i: int, positions: np.ndarray, config: HIPNNConfig) -> np.ndarray:
    """x_i of the head of `snnp.models.hipnn.model`, with full tensors u, u u - 1/3 for each pair."""
    layer = block.interaction
    weights, mu, sigma = (each.detach().numpy() for each in (layer.weights, layer.mu, layer.sigma))
    n_out = weights.shape[2]
    scalar, vector, tensor = np.zeros(n_out), np.zeros((n_out, 3)), np.zeros((n_out, 3, 3))
    for j in range(len(positions)):
        r = positions[j] - positions[i]
        d = np.linalg.norm(r)
        if j == i or d >= config.cutoff:
            continue
        s = np.exp(-0.5 * ((1 / d - 1 / mu) * sigma) ** 2) * math.cos(0.5 * math.pi * d / config.cutoff) ** 2
        message = np.einsum("bva,v,b->a", weights, s, features[j])
        u = r / d
        scalar += message
        vector += message[:, None] * u
        tensor += message[:, None, None] * (np.outer(u, u) - np.eye(3) / 3.0)
    x = scalar + _linear(layer.own, features[i])
    norms = [(vector**2).sum(axis=1), (tensor**2).sum(axis=(1, 2))]
    if layer.scales is not None:
        for scale, norm in zip(layer.scales.detach().numpy(), norms[: config.l_max], strict=True):
            x = x + scale * np.sqrt(norm + config.cusp)
    return x


def _terms(model: HIPNN, structure: Structure) -> np.ndarray:
    """[N, n_orders] hierarchical energies, E0 included, of an open structure."""
    config, positions = model.config, structure.positions.numpy()
    species = model.species(structure).numpy()
    z = [np.eye(len(config.elements))[k] for k in species]
    columns = [[model.reference_energies[config.elements[k]] for k in species]]
    columns[0] = [e + float(_linear(model.readouts[0], f)[0]) for e, f in zip(columns[0], z, strict=True)]
    for block, readout in zip(model.blocks, list(model.readouts)[1:], strict=True):
        assert isinstance(block, Block)
        x = [_interaction(block, np.array(z), i, positions, config) for i in range(len(z))]
        shortcut = block.residual.adjust
        z = [_linear(block.residual.linear, _softplus(a)) + (b if shortcut is None else _linear(shortcut, b))
             for a, b in zip(x, z, strict=True)]  # fmt: skip
        for layer in block.onsite:
            z = [_linear(layer.residual.linear, _softplus(_linear(layer.linear, f))) + f for f in z]
        columns.append([float(_linear(readout, f)[0]) for f in z])
    return np.array(columns).T


@pytest.mark.parametrize("l_max", [0, 1, 2])
def test_energies_are_those_of_the_formulas(l_max: int) -> None:
    model, structure = _model(l_max=l_max, n_atom_layers=2), _water()
    with torch.no_grad():
        model.get_parameter("readouts.0.weight").copy_(torch.tensor([[0.3, -0.7]]))
    wanted = _terms(model, structure)
    np.testing.assert_allclose(model.hierarchical_energies(structure).numpy(), wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.compute(structure).energies.numpy(), wanted.sum(axis=1), rtol=0, atol=1e-9)
    assert np.abs(wanted[:, 1:]).min() > 1e-4


@pytest.mark.parametrize("elements", [("Al",), ("H", "C", "O")], ids=len)
@pytest.mark.parametrize("l_max", [0, 1, 2])
def test_contract(elements: tuple[str, ...], l_max: int) -> None:
    check_potential(_model(elements, l_max, n_interactions=2 if l_max < 2 else 1, cusp=1e-2))


@pytest.mark.parametrize(
    "shape", [{"n_interactions": 3}, {"n_atom_layers": 0}, {"activation": "silu"}, {"n_features": 3}]
)
def test_analytic_forces_of_other_shapes(shape: dict[str, Any]) -> None:
    """Three features of three elements: the first layer needs no adjustment of widths."""
    check_potential(
        _model(("H", "C", "O"), 1, **shape),
        skip=["export", "smoothness", "periodicity", "extensivity", "rotation", "save_load", "precision"],
    )


@pytest.mark.parametrize("l_max", [0, 2])
def test_chunks_change_nothing(l_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, atoms = _model(("Al",), l_max), bulk("Al", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    structure = Structure.from_ase(atoms)
    whole = model.compute(structure, stress=True)
    monkeypatch.setattr(hipnn_module, "_CHUNK_NUMBERS", 1000)
    parts = model.compute(structure, stress=True)
    for name in ("energies", "forces", "stress"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)


# Derivatives that training needs.


def _force_loss(model: HIPNN, structure: Structure) -> Tensor:
    neighbours = neighbour_list(structure, model.cutoff)
    vectors = pair_vectors(structure, neighbours).requires_grad_()
    energies = model.atomic_energies(structure, vectors, neighbours)
    (gradients,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    n_atoms = structure.n_atoms
    forces = torch.zeros(n_atoms, 3, dtype=vectors.dtype).index_add(0, neighbours.i, gradients)
    return forces.index_add(0, neighbours.j, -gradients).square().sum() + energies.sum()


@pytest.mark.parametrize("l_max", [0, 1, 2])
def test_force_losses_have_the_gradient_of_finite_differences(l_max: int) -> None:
    """Twice differentiable: in the vectors, then in every kind of parameter."""
    model, structure = _model(l_max=l_max, seed=1), _water()
    named = dict(model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(_force_loss(model, structure), list(named.values())), strict=True))
    step = 1e-5
    for name, parameter in named.items():
        k = int(gradients[name].abs().argmax())
        losses = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.view(-1)[k] += sign * step
            losses.append(float(_force_loss(model, structure).detach()))
            with torch.no_grad():
                parameter.view(-1)[k] -= sign * step
        wanted = (losses[0] - losses[1]) / (2.0 * step)
        assert float(gradients[name].view(-1)[k]) == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def test_graphless_forces_are_those_of_the_graph() -> None:
    model, structure = _model(l_max=1), _water()
    neighbours = neighbour_list(structure, model.cutoff)
    _, pairs = model._energies_and_pair_gradients(structure, neighbours)
    forces = model.compute(structure).forces
    assert forces is not None
    assert torch.allclose(sum_forces(pairs, structure.n_atoms), forces)
    assert not pairs.gradients.detach().isnan().any()


# The TorchScript export, beyond what the contract checks.


def test_exported_forces_do_not_depend_on_the_callers_mode(tmp_path: Path) -> None:
    """Gradients come from automatic differentiation inside the file, which must work where a caller records nothing."""
    model, structure = _model(l_max=2).float(), _water()
    path = export_torchscript(model, tmp_path / "m.pt", length_unit="angstrom", energy_unit="eV", forces=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        module = torch.jit.load(path)
    arguments = (structure.numbers, structure.positions, structure.cell[0], structure.pbc[0])
    with torch.no_grad():
        energy, forces = module(*arguments)
        assert not torch.is_grad_enabled()
    wanted = model.compute(structure)
    assert wanted.forces is not None
    assert float(energy) == pytest.approx(float(wanted.energy), abs=1e-5)
    assert torch.allclose(forces, wanted.forces.double(), rtol=0, atol=1e-5)


def test_exported_energy_is_differentiable() -> None:
    """What TorchForce asks of a file without forces."""
    model, structure = _model(l_max=1), _water()
    module = scripted_module(
        model, numbers=structure.numbers.tolist(), periodic=False, length_unit="angstrom", energy_unit="eV"
    )
    positions = structure.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(positions), positions)
    wanted = model.compute(structure).forces
    assert wanted is not None
    assert torch.allclose(-gradient, wanted, rtol=0, atol=1e-9)


# The hierarchy.


def test_terms_add_up() -> None:
    model, structure = _model(l_max=1, n_interactions=3), Structure.concatenate([_water(1), _water(2)])
    terms = model.hierarchical_energies(structure)
    assert terms.shape == (9, model.config.n_interactions + 1)
    assert terms.dtype == torch.float64
    assert torch.allclose(terms.sum(dim=1), model.compute(structure).energies, rtol=0, atol=1e-9)


def test_hierarchicality_by_hand() -> None:
    terms = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], requires_grad=True)
    found = hierarchicality(terms)
    assert found.tolist() == pytest.approx([0.2 + 0.2, 1.0, 0.0, 1.0])
    (gradient,) = torch.autograd.grad(found.sum(), terms)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[0, 2]) == pytest.approx(2.0 * 0.5 * 1.0 / 1.25**2)


def test_hierarchicality_of_structures() -> None:
    model, structure = _model(), _water()
    wanted = hierarchicality(model.hierarchical_energies(structure))
    assert torch.equal(model.hierarchicality(structure), wanted)
    assert wanted.shape == (6,)
    assert float(wanted.min()) > 0.0
    assert float(wanted.max()) < model.config.n_interactions


# Storage, types, bad input.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _model(l_max=2).to(dtype)
    model.metadata = {"data": "none"}
    loaded = load_model(save_model(model, tmp_path / "m"))
    assert isinstance(loaded, HIPNN)
    assert loaded.config == model.config
    assert loaded.metadata == model.metadata
    assert set(loaded.state_dict()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(loaded.compute(_water()).energy, model.compute(_water()).energy)


def test_single_precision_stays_clear_of_denormal_numbers() -> None:
    """With many narrow sensitivities most of them are far from any pair; forces keep six digits."""
    model = _model(("Al",), n_sensitivities=20, n_features=20, lower=0.85, upper=5.0, cutoff=6.0)
    atoms = bulk("Al", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    double = model.compute(Structure.from_ase(atoms)).forces
    single = model.float().compute(Structure.from_ase(atoms)).forces
    assert double is not None
    assert single is not None
    assert float((single.double() - double).abs().max() / double.abs().max()) < 2e-5


def test_unknown_element_and_overlap() -> None:
    model = _model()
    with pytest.raises(UnknownElementError, match="Al"):
        model.compute(Structure.from_ase(bulk("Al")))
    with pytest.raises(InputError, match="overlap"):
        model.compute(Structure.from_ase(Atoms("HO", [[0, 0, 0], [0, 0, 0.01]])))


@pytest.mark.parametrize(
    "wrong",
    [{"l_max": 3}, {"n_features": 0}, {"lower": 5.0}, {"cutoff": 0.0}, {"cusp": 0.0}, {"activation": "relu"}, {"x": 1}],
)
def test_configurations_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        HIPNNConfig(elements=("H",), **wrong)


def test_seeds() -> None:
    first, same, other = (_model(seed=seed).compute(_water()).energy for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, rtol=0, atol=1e-6)
