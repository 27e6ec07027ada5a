"""The models in TorchSim, which relaxes and moves batches with its own optimisers and integrators (Python >= 3.12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from snnp.errors import MissingDependencyError
from snnp.hub import load_model
from snnp.models.potential import Potential
from snnp.neighbours import Neighbours
from snnp.sampling.many.small_cells import Batch, SmallCellLists
from snnp.sampling.run import ModelLike
from snnp.structure import Structure

__all__ = ["torchsim_model"]

_SKIN = 0.8  # Å


class _Evaluation:
    """What TorchSim's states become, with lists kept with a skin while the structures stay the same."""

    def __init__(self, potential: Potential) -> None:
        self.potential, self._known = potential, ""
        self._lists = SmallCellLists(potential.cutoff, _SKIN)
        self._kept: tuple[object, Neighbours] | None = None

    def __call__(self, state: Any) -> dict[str, torch.Tensor]:
        owner = state.system_idx.cpu().long()
        cell = state.row_vector_cell.detach().cpu().double().contiguous()
        pbc = torch.as_tensor(state.pbc).cpu().bool().expand(len(cell), 3).contiguous()
        positions = state.positions.detach().cpu().double().contiguous()
        structure = Structure(state.atomic_numbers.cpu().long(), positions, cell, pbc, owner)
        found = self.potential.compute(structure, self._neighbours(structure), forces=True, stress=True)
        assert found.forces is not None
        assert found.stress is not None
        like = state.positions
        values = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
        return {name: value.to(dtype=like.dtype, device=like.device) for name, value in values.items()}

    def _neighbours(self, structure: Structure) -> Neighbours:
        sizes = structure.atoms_per_structure.numpy()
        batch = Batch(structure.positions.numpy(), sizes, structure.cell.numpy(), structure.pbc.numpy())
        known = f"{sizes.tolist()} {batch.pbc.tolist()}"
        if known != self._known:  # TorchSim puts others in the place of those that are finished
            self._known, self._lists = known, SmallCellLists(self.potential.cutoff, _SKIN)
        rows = self._lists.update(batch)
        kept = self._kept
        if kept is None or kept[0] is not rows:
            i = np.repeat(np.arange(len(batch.positions)), np.diff(rows.first))
            columns = i, rows.neighbour.astype(np.int64), rows.shifts.astype(np.int64)[rows.image]
            i_t, j_t, shift = map(torch.from_numpy, columns)
            pairs = Neighbours(i_t, j_t, shift, self.potential.cutoff + _SKIN)
            self._kept = kept = rows, pairs.to(self.potential.device)
        return kept[1]


def torchsim_model(model: ModelLike, *, dtype: str | None = None, device: str | None = None) -> Any:
    """A TorchSim `ModelInterface` of a model, for `torch_sim.optimize`, `torch_sim.integrate` and `torch_sim.static`.

    Arguments:
        model: a name, a folder or a potential; dtype: of the model, by default its own; device: where it computes.

    Raises:
        MissingDependencyError: where TorchSim is not installed.
    """
    try:
        from torch_sim.models.interface import ModelInterface
    except ImportError as error:
        raise MissingDependencyError(
            f"TorchSim cannot be imported ({error}); with Python 3.12 or newer: pip install torch-sim-atomistic."
        ) from error
    potential = load_model(model, dtype=dtype, device=device)

    class TorchSimModel(ModelInterface):
        """A model of snnp as TorchSim takes it."""

        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = potential.device, potential.dtype
            self._compute_stress = self._compute_forces = True
            self._evaluation = _Evaluation(potential)

        def forward(self, state: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            return self._evaluation(state)

    return TorchSimModel()
