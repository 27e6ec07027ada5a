"""Three-body sums over triples: what training computes once per structure equals the direct evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from snnp.models.spline.config import AngularConfig, EmbeddingConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure

RADIAL = RadialConfig(n_filters=3, lower=0.7, cutoff=4.6, intervals=8)
ANGULAR = AngularConfig(n_filters=4, lower=0.7, cutoff=3.9, intervals=7, evaluator="spline", angle_intervals=5)
NETWORK = NetworkConfig(hidden=(6,))
CONFIGS = {
    "network": {"elements": ("Si",), "network": NETWORK},
    "linear": {"elements": ("Si",), "network": None},
    "s-MEAM": {
        "elements": ("Si",),
        "radial": RADIAL.model_copy(update={"n_filters": 1}),
        "angular": ANGULAR.model_copy(update={"n_filters": 1}),
        **{"pair_term": True, "network": None, "skip": False, "embedding": EmbeddingConfig(of="sum")},
    },
    "two elements": {"elements": ("Si", "C"), "network": NETWORK},
    "two elements, shared filters": {"elements": ("Si", "C"), "filters": "shared", "network": NETWORK},
    "two elements, filters per pair": {
        "elements": ("Si", "C"),
        "filters": "pair",
        "network": NETWORK,
        "pair_term": True,
    },
    "unconstrained ends": {"elements": ("Si",), "ends": "free", "network": NETWORK},
}


def _structure(elements: tuple[str, ...]) -> Structure:
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.15, seed=3)
    numbers = crystal.get_atomic_numbers()
    if "C" in elements:
        numbers[np.arange(0, len(numbers), 3)] = 6
    crystal.set_atomic_numbers(numbers)
    lonely = molecule("CH4")[:1]
    lonely.set_atomic_numbers([14])
    return Structure.from_ase([crystal, lonely])


@pytest.mark.parametrize("name", CONFIGS)
def test_sums_computed_once_equal_the_direct_evaluation(name: str) -> None:
    config = SplineNNPConfig(**{"radial": RADIAL, "angular": ANGULAR, **CONFIGS[name]})
    model = SplineNNP(config, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    structure = _structure(config.elements)
    lists = neighbour_list(structure, model.cutoff)
    pairs = (lists.i, lists.j, pair_vectors(structure, lists))
    everyone = torch.arange(structure.n_atoms)
    geometries = [model.geometry(pairs, model.species(structure), everyone, reused=reused) for reused in (False, True)]
    assert geometries[0].angular is None
    assert geometries[1].angular is not None

    (direct, direct_pairs), (summed, summed_pairs) = (model.evaluate(geometry) for geometry in geometries)
    torch.testing.assert_close(summed, direct, rtol=1e-11, atol=1e-11)
    assert float(direct.detach().abs().max()) > 0.1
    for (shell, gradient), (other, expected) in zip(summed_pairs, direct_pairs, strict=True):
        mask = shell.mask[..., None]
        torch.testing.assert_close(gradient * mask, expected * other.mask[..., None], rtol=1e-10, atol=1e-10)

    # Training differentiates a loss of the forces once more.
    slopes = []
    for geometry in geometries:
        energies, gradients = model.evaluate(geometry)
        value = energies.square().sum() + sum(g.square().sum() for _, g in gradients)
        slopes.append(torch.autograd.grad(value, list(model.parameters())))
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-8)
