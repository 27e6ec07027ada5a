"""The kernel as an operator of torch: values, derivative, scripts, exports, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch import Tensor

from snnp import Structure, load_model
from snnp.errors import InputError
from snnp.kernels.cpu.call import ListKeeper
from snnp.kernels.cpu.library import library
from snnp.models.potential import Prediction
from snnp.models.spline.compiled import CpuEvaluator

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler built the kernels here, or SNNP_KERNELS=off")


def arguments() -> tuple[tuple[Tensor, ...], Prediction]:
    """Of 16 rattled silicon atoms, with what the model says of them."""
    from snnp.kernels.cpu.operator import pack_tensor

    model = load_model("snnp-si", dtype=torch.float64)
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    evaluator = model.evaluator()
    assert isinstance(evaluator, CpuEvaluator)
    rows, images = ListKeeper(model.cutoff).update(atoms.positions, atoms.cell.array, (True, True, True))
    columns = (torch.from_numpy(x.copy()) for x in (rows.first, rows.neighbour, rows.image, images))
    positions, species = torch.from_numpy(atoms.positions.copy()), torch.zeros(16, dtype=torch.int32)
    return (pack_tensor(evaluator.kernel), positions, species, *columns), model.compute(Structure.from_ase(atoms))


def test_values_and_derivative() -> None:
    inputs, expected = arguments()
    inputs[1].requires_grad_()
    energies, forces, _ = torch.ops.snnp.spline_nnp(*inputs)
    assert torch.allclose(energies, expected.energies, atol=1e-12)
    assert expected.forces is not None
    assert torch.allclose(forces, expected.forces, atol=1e-12)
    energies.sum().backward()
    assert inputs[1].grad is not None
    assert torch.allclose(inputs[1].grad, -expected.forces, atol=1e-12)
    torch.library.opcheck(torch.ops.snnp.spline_nnp.default, inputs, test_utils=("test_schema", "test_faketensor"))
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.snnp.spline_nnp(inputs[0], x, *inputs[2:])[0][:2], (inputs[1],), atol=1e-5, rtol=1e-5
    )


def test_a_scripted_and_an_exported_module_call_it() -> None:
    inputs, expected = arguments()

    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", inputs[0])

        def forward(self, x: Tensor, s: Tensor, first: Tensor, j: Tensor, image: Tensor, images: Tensor) -> Tensor:
            energies, _, _ = torch.ops.snnp.spline_nnp(self.packed, x, s, first, j, image, images)
            return energies.sum()

    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(Energy())
    exported = torch.export.export(Energy(), inputs[1:]).module()
    for module in (scripted, exported):
        assert float(module(*inputs[1:])) == pytest.approx(float(expected.energy), abs=1e-10)


def test_wrong_arguments_are_named() -> None:
    inputs, _ = arguments()
    for k, replacement, message in (
        (1, inputs[1].float(), "positions must be torch.float64"),
        (2, inputs[2][:3], r"species has shape \(3,\), expected \(16,\)"),
        (2, inputs[2] + 1, r"species must lie in \[0, 1\)"),
        (4, inputs[4] + 1, "points outside the system"),
        (0, inputs[0][:100], "at least"),
        (0, torch.zeros_like(inputs[0]), "species must lie|damaged"),
    ):
        with pytest.raises(InputError, match=message):
            torch.ops.snnp.spline_nnp(*inputs[:k], replacement, *inputs[k + 1 :])


def test_forces_are_not_differentiated_twice() -> None:
    inputs, _ = arguments()
    inputs[1].requires_grad_()
    _, forces, _ = torch.ops.snnp.spline_nnp(*inputs)
    with pytest.raises(InputError, match="cannot be differentiated"):
        forces.square().sum().backward()
    assert np.isfinite(float(forces.detach().sum()))
