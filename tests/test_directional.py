"""Directional force training: its gradient is that of the exact way, for every family, stress included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from torch import Tensor

from snnp.data import Frame, Frames, ReferenceEnergies, Split
from snnp.models.potential import Potential
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.training import load_config
from snnp.training.backends import choose_backend
from snnp.training.backends import through_torch as module
from snnp.training.backends.through_torch import Pairs, PairsBackend
from snnp.training.batches import Batches, prepare
from snnp.training.config import LossConfig, TrainConfig
from snnp.training.loop import Loss
from snnp.training.problem import Problem, build_model, resolve

FAMILIES: dict[str, dict[str, Any]] = {
    "s-nnp": {
        "radial": {"n_filters": 3, "cutoff": 4.5, "intervals": 6},
        "angular": {"n_filters": 3, "cutoff": 4.0, "intervals": 6, "degree": 3},
        "network": {"hidden": [6]},
    },
    "s-nnp spline angles": {
        "radial": {"n_filters": 3, "cutoff": 4.0, "intervals": 6},
        "angular": {"n_filters": 2, "cutoff": 3.5, "intervals": 6, "evaluator": "spline"},
        "network": {"hidden": [6]},
    },
    "hip-nn": {"family": "hip-nn", "n_features": 5, "n_sensitivities": 6, "n_interactions": 2, "cutoff": 4.5},
    "hip-nn-ts": {"family": "hip-nn", "n_features": 5, "n_sensitivities": 6, "n_interactions": 1, "l_max": 1},
    "ani": {"family": "ani", "hidden": [8, 6]},
}
SYSTEMS = ("crystals", "molecules")


def labelled(atoms: Atoms) -> Frame:
    """Energies, of atoms too, forces and stresses of ASE's effective medium theory."""
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
    return Frame(Structure.from_ase(atoms), energy, forces, stress, None, "emt", atoms.get_potential_energies())


def frames(system: str) -> list[Frame]:
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        if system == "crystals":
            atoms = bulk("Cu", cubic=True, a=3.75)
            atoms.numbers[seed] = 79
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        else:
            atoms = molecule(("CH3CH2OH", "H2O", "CH4")[seed])
        atoms.rattle(0.08, rng=rng)
        found.append(labelled(atoms))
    return found


def built(system: str, family: str, **loss_keys: float) -> tuple[TrainConfig, Potential, list[Frame]]:
    """A resolved configuration, a fresh model in float64, and its frames."""
    tree = {
        "data": {"train": ["-"]},
        "model": FAMILIES[family],
        "loss": {
            "energy_weight": 3.0,
            "stress_weight": 20.0 if system == "crystals" else 0.0,
            "atomic_energy_weight": 2.0,
            **loss_keys,
        },
        "optimiser": {"force_training": "directional"},
        "dtype": "float64",
    }
    found = frames(system)
    problem = Problem(Split(Frames.of(found), Frames.of([]), Frames.of([])), ReferenceEnergies({}, {}))
    config = resolve(load_config(tree), problem)
    return config, build_model(config, problem), found


def gradient(model: Potential) -> Tensor:
    """All parameter gradients in one vector [n], float64."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.double().flatten() for part in parts])


def prepared(
    model: Potential, found: list[Frame], dtype: torch.dtype = torch.float64, displacement: float | None = None
) -> Batches:
    return prepare(choose_backend(model, dtype, displacement=displacement), model, found)


def exact(config: TrainConfig, model: Potential, data: Batches) -> tuple[float, Tensor]:
    backend = data.backend
    if isinstance(backend, PairsBackend):
        backend = replace(backend, displacement=None)
    value = backend.backward(model, data.everything, Loss.at(config.loss, 0.0))
    return float(value), gradient(model)


def directional(config: TrainConfig, model: Potential, data: Batches, displacement: float) -> tuple[float, Tensor]:
    assert isinstance(data.backend, PairsBackend)
    backend = replace(data.backend, displacement=displacement)
    value = backend.backward(model, data.everything, Loss.at(config.loss, 0.0))
    return float(value), gradient(model)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_the_exact_one(system: str, family: str) -> None:
    config, model, found = built(system, family)
    value, reference = exact(config, model, prepared(model, found, displacement=0.0))
    errors = {}
    for displacement in (1e-6, 1e-5, 1e-4):
        model.zero_grad()
        data = prepared(model, found, displacement=displacement)
        again, estimate = directional(config, model, data, displacement)
        assert again == pytest.approx(value, rel=1e-9)
        errors[displacement] = relative(estimate, reference)
    assert max(errors.values()) < 1e-4, errors
    # A central difference: a hundred times the error at ten times the step, where rounding does not yet show.
    if errors[1e-4] > 1e-7 and family != "ani":  # whose activation has no second derivative at zero
        assert errors[1e-4] == pytest.approx(100.0 * errors[1e-5], rel=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_gradient_of_pairs_equals_that_of_sums_and_finite_differences(family: str) -> None:
    config, model, found = built("crystals", family)
    _, reference = exact(config, model, prepared(model, found, displacement=0.0))
    data = prepared(model, found)
    model.zero_grad()
    _, other = exact(config, model, data)
    assert relative(other, reference) < 1e-9
    direction = torch.randn(reference.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    values = []
    for sign in (1.0, -1.0):
        torch.nn.utils.vector_to_parameters(flat + sign * 1e-6 * direction, model.parameters())
        values.append(exact(config, model, data)[0])
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(reference @ direction), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_displacement_serves_float32(family: str) -> None:
    config, model, found = built("molecules", family)
    config = config.model_copy(update={"dtype": "float32"})
    assert config.displacement is not None
    _, reference = exact(config, model, prepared(model, found, displacement=0.0))
    data = prepared(model, found, torch.float32, config.displacement)
    model.zero_grad()
    model.to(torch.float32)
    _, estimate = directional(config, model, data, config.displacement)
    assert relative(estimate, reference) < 5e-3


def watched_vectors(model: Potential) -> list[Tensor]:
    """Receives the vectors of every later evaluation of a HIP-NN."""
    seen: list[Tensor] = []
    plain = model.energy_terms

    def watched(structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        seen.append(vectors.detach())
        return plain(structure, vectors, neighbours)

    model.energy_terms = watched
    return seen


def test_the_farthest_pair_moves_as_far_as_asked() -> None:
    config, model, found = built("crystals", "hip-nn")
    data = prepared(model, found, displacement=0.05)
    assert isinstance(data.everything.geometry, Pairs)
    seen = watched_vectors(model)
    directional(config, model, data, 0.05)
    before, owner = data.everything.geometry.vectors, data.everything.owner[data.everything.geometry.neighbours.i]
    moved = (seen[0][: len(before)] - before).norm(dim=1)
    farthest = torch.stack([moved[owner == b].max() for b in range(len(found))])
    torch.testing.assert_close(farthest, torch.full_like(farthest, 0.05), rtol=1e-9, atol=0.0)


def test_the_list_holds_every_pair_that_a_displacement_brings_inside() -> None:
    """With a much wider list, and the same step, nothing changes."""
    config, model, found = built("crystals", "hip-nn")
    wide = prepared(model, found[:1], displacement=1.0)
    assert isinstance(wide.everything.geometry, Pairs)
    seen = watched_vectors(model)
    _, expected = directional(config, model, wide, 0.1)
    before, after = (
        vectors.norm(dim=1) for vectors in (wide.everything.geometry.vectors, seen[0][: len(seen[0]) // 2])
    )
    assert bool(((before >= model.cutoff) & (after < model.cutoff)).any())
    # The step is set by the pair that moves most, so the narrow list is given what is left of it there.
    moved = (seen[0][: len(before)] - wide.everything.geometry.vectors).norm(dim=1)
    inner = float(moved[before < model.cutoff + 0.1].max())
    data = prepared(model, found[:1], displacement=0.1)
    model.zero_grad()
    torch.testing.assert_close(directional(config, model, data, inner)[1], expected, rtol=1e-9, atol=1e-12)


def test_copies_together_and_one_after_the_other_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model, found = built("molecules", "hip-nn", hierarchicality_weight=0.3)
    data = prepared(model, found, displacement=1e-3)
    value, together = directional(config, model, data, 1e-3)
    model.zero_grad()
    monkeypatch.setattr(module, "_JOINED_PAIRS", 0)
    again, apart = directional(config, model, data, 1e-3)
    assert again == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-12)


def test_hierarchicality_enters_both_ways_alike() -> None:
    config, model, found = built("molecules", "hip-nn", hierarchicality_weight=0.3)
    data = prepared(model, found, displacement=1e-4)
    value, reference = exact(config, model, data)
    model.zero_grad()
    again, estimate = directional(config, model, data, 1e-4)
    assert again == pytest.approx(value, rel=1e-6)
    assert relative(estimate, reference) < 1e-4
    model.zero_grad()
    without = config.model_copy(update={"loss": LossConfig(energy_weight=3.0, atomic_energy_weight=2.0)})
    smaller, other = exact(without, model, data)
    terms = model.energy_terms(*(getattr(data.everything.geometry, k) for k in ("structure", "vectors", "neighbours")))
    squares = terms.detach().square()
    expected = (squares[:, 1:] / (squares[:, 1:] + squares[:, :-1])).sum(dim=1).mean()
    assert value - smaller == pytest.approx(0.3 * float(expected), rel=1e-9)
    assert relative(other, reference) > 1e-2


def test_frames_without_forces_train_their_energies() -> None:
    config, model, found = built("molecules", "hip-nn")
    bare = [replace(frame, forces=None) for frame in found]
    data = prepared(model, bare, displacement=1e-4)
    value, estimate = directional(config, model, data, 1e-4)
    model.zero_grad()
    again, reference = exact(config, model, data)
    assert value == pytest.approx(again, rel=1e-9)
    torch.testing.assert_close(estimate, reference, rtol=1e-9, atol=1e-12)
