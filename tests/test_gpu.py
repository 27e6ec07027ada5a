"""On a GPU the core gives the numbers of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from snnp.models import SplineNNP, SplineNNPConfig, load_model, save_model
from snnp.models.spline import special_cases
from snnp.neighbours import VerletList, neighbour_list, pair_vectors
from snnp.structure import Structure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

SMALL: dict[str, Any] = {"n_radial": 4, "n_angular": 4, "cutoff": 4.5, "hidden": (8,)}


def _everything(evaluator: str) -> SplineNNPConfig:
    config = special_cases.s_nnp(("Si", "C", "H"), **SMALL, evaluator=evaluator).model_dump()  # type: ignore[arg-type]
    config["angular"]["elements"] = "pair"
    changes = {"filters": "pair", "pair_term": True, "repulsion": {"inner": 0.8, "outer": 1.5}, "embedding": {}}
    return SplineNNPConfig.model_validate({**config, **changes})


CASES: dict[str, SplineNNPConfig] = {
    "eam": special_cases.eam(("Si", "C", "H")),
    "s-meam": special_cases.s_meam(("Si", "C", "H")),
    "s-nnp": special_cases.s_nnp(("Si", "C", "H"), **SMALL),
    "everything, legendre": _everything("legendre"),
    "everything, spline": _everything("spline"),
}


def _model(config: SplineNNPConfig, dtype: torch.dtype = torch.float32) -> SplineNNP:
    model = SplineNNP(config, {"Si": -1.0})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.to(dtype)


def _structures() -> Structure:
    crystal = bulk("SiC", "zincblende", 4.36, cubic=True).repeat((4, 3, 3))
    crystal.rattle(0.1, seed=1)
    tiny = bulk("SiC", "zincblende", 4.36)
    tiny.rattle(0.1, seed=2)
    return Structure.from_ase([crystal, molecule("CH4"), tiny])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_energy_forces_and_stress(name: str, dtype: torch.dtype, tolerance: float) -> None:
    structure = _structures()
    model = _model(CASES[name], dtype)
    wanted = model.compute(structure, stress=True)
    found = model.to("cuda").compute(structure, stress=True)
    for what in ("energies", "forces", "stress"):
        ours, theirs = getattr(found, what), getattr(wanted, what)
        assert ours.is_cuda
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0.0, atol=tolerance * scale)


def test_structures_and_lists_on_the_device() -> None:
    structure = _structures()
    wanted = neighbour_list(structure, 4.0)
    device = structure.to(device="cuda")
    found = neighbour_list(device, 4.0)
    assert found.i.is_cuda
    assert torch.equal(found.i.cpu(), wanted.i)
    assert torch.equal(found.shift.cpu(), wanted.shift)
    torch.testing.assert_close(pair_vectors(device, found).cpu(), pair_vectors(structure, wanted))


def test_list_is_kept_on_the_device_and_rebuilt_for_another() -> None:
    structure = _structures()
    kept = VerletList(4.0)
    kept.update(structure.to(device="cuda"))
    kept.update(structure.to(device="cuda"))
    assert kept.n_builds == 1
    assert not kept.update(structure).i.is_cuda
    assert kept.n_builds == 2


def test_saved_and_loaded_there(tmp_path: Path) -> None:
    model = _model(CASES["s-nnp"]).to("cuda")
    loaded = load_model(save_model(model, tmp_path / "m"), device="cuda", dtype=torch.float64)
    assert loaded.device.type == "cuda"
    assert loaded.dtype == torch.float64
    assert all(buffer.is_cuda for buffer in loaded.buffers())
    forces = [each.compute(_structures()).forces for each in (model, loaded)]
    assert forces[0] is not None
    assert forces[1] is not None
    np.testing.assert_allclose(forces[0].cpu(), forces[1].cpu(), atol=1e-5 * float(forces[1].abs().max()))


def test_parameters_train_there() -> None:
    """Gradients of energies with respect to parameters equal those of the CPU."""
    structure = _structures()
    model = _model(CASES["s-nnp"], torch.float64)
    gradients = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        there = structure.to(device=device)
        pairs = neighbour_list(there, model.cutoff)
        model.atomic_energies(there, pair_vectors(there, pairs), pairs).square().sum().backward()
        assert model.rho.free.grad is not None
        gradients.append(model.rho.free.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)
