"""Gradients by hand: of activations, and by pair vectors; their sums to forces and stress, and pairs as dense rows.

Dense rows turn sums over neighbours into batched matrix products, several times faster than scatter and gather.
"""

# No `from __future__ import annotations` here: TorchScript, which compiles `make_shell`, needs them as they are.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from snnp.errors import InputError, overlap_message
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["SHORTEST_DISTANCE", "PairGradients", "Shell", "activate", "chunks", "join_gradients", "make_shell"]
__all__ += ["refuse_overlaps", "stress_of", "sum_forces", "sum_stress", "sum_virial"]

SHORTEST_DISTANCE = 0.1
"""Å. Closer than this two atoms are one atom written twice: no chemistry has such a distance."""


def activate(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of an activation: silu, tanh, softplus, celu (alpha 0.1, NeuroChem's), gaussian."""
    if name == "silu":
        s = torch.sigmoid(x)
        value = x * s
        return value, s + value * (1.0 - s)
    if name == "tanh":
        t = torch.tanh(x)
        return t, 1.0 - t * t
    if name == "celu":
        # The derivative of torch's own has eight digits in float64.
        value = torch.relu(x) + 0.1 * torch.expm1(x.clamp(max=0.0) / 0.1)
        return value, (value / 0.1 + 1.0).clamp(max=1.0)
    if name == "gaussian":
        value = torch.exp(-x.square())
        return value, -2.0 * x * value
    # torch's default threshold of 20 makes the value jump by 2e-9, and autograd's slope with it.
    return functional.softplus(x, 1.0, 40.0), torch.sigmoid(x)


@dataclass(frozen=True)
class PairGradients:
    """dE/dr_ij [Q, 3] of directed pairs i -> j ([Q] each) with their vectors [Q, 3]."""

    i: Tensor
    j: Tensor
    vectors: Tensor
    gradients: Tensor


def join_gradients(parts: Sequence[PairGradients]) -> PairGradients:
    """Pairs of several, side by side."""
    columns = zip(*((p.i, p.j, p.vectors, p.gradients) for p in parts), strict=True)
    return PairGradients(*(torch.cat(column) for column in columns))


def sum_forces(pairs: PairGradients, n_atoms: int) -> Tensor:
    """[N, 3] forces: `F_i = sum_j dE/dr_ij - sum_j dE/dr_ji`. Differentiable."""
    zero = pairs.gradients.new_zeros(n_atoms, 3)
    return zero.index_add(0, pairs.i, pairs.gradients).index_add(0, pairs.j, -pairs.gradients)


def sum_virial(pairs: PairGradients, structure: Structure) -> Tensor:
    """[B, 3, 3] `sum_pairs r_a dE/dr_b`, which is dE/dstrain. Differentiable."""
    outer = pairs.vectors[:, :, None] * pairs.gradients[:, None, :]
    return outer.new_zeros(structure.n_structures, 3, 3).index_add(0, structure.structure_of_atom[pairs.i], outer)


def sum_stress(pairs: PairGradients, structure: Structure) -> Tensor:
    """[B, 3, 3] symmetric stress dE/dstrain / V; zeros for structures not fully periodic. Differentiable."""
    return stress_of(sum_virial(pairs, structure), structure)


def stress_of(virial: Tensor, structure: Structure) -> Tensor:
    """[B, 3, 3] symmetric stress from dE/dstrain [B, 3, 3]; zeros for structures not fully periodic."""
    periodic = structure.pbc.all(dim=1)
    volume = torch.where(periodic, structure.volume(), 1.0).to(virial.dtype)
    return 0.5 * (virial + virial.mT) / volume[:, None, None] * periodic[:, None, None]


class Shell(NamedTuple):
    """Neighbours of the atoms `centre` [n] (all of a structure, or some) in rows, padded to J columns.

    `j` [n, J] int64: neighbour; padding repeats the centre. `channel` [n, J] int64: its species. `distance` [n, J] Å:
    padding lies at twice the cutoff. `unit` [n, J, 3]: unit vectors from the centre. `mask` [n, J] bool: False in
    padding.
    """

    centre: Tensor
    j: Tensor
    channel: Tensor
    distance: Tensor
    unit: Tensor
    mask: Tensor

    def pair_gradients(self, gradients: Tensor) -> PairGradients:
        """Flat pairs for gradients [n, J, 3] (padding contributes zero)."""
        i = self.centre.repeat_interleave(self.j.shape[1])
        vectors = self.unit * self.distance[..., None]
        return PairGradients(i, self.j.reshape(-1), vectors.reshape(-1, 3), gradients.reshape(-1, 3))


def make_shell(
    pairs: tuple[Tensor, Tensor, Tensor], species: Tensor, centre: Tensor, cutoff: float, n_columns: int | None = None
) -> tuple[Shell, Tensor]:
    """Collect the pairs closer than `cutoff` (Å) into rows; and which of all pairs they are [Q], row by row.

    Differentiable in the vectors, and compiled by TorchScript.

    Arguments:
        pairs: row of the centre [P] (ascending), neighbour [P], vector from centre to neighbour [P, 3].
        species: [N] of all atoms; centre: [n] atom of each row; n_columns: J, by default the most neighbours of any.

    Raises `InputError` if two atoms are closer than 0.1 Å (not in TorchScript, where overlaps are refused before).
    """
    row, j, vectors = pairs
    n_rows = centre.shape[0]
    squares = vectors.detach().square().sum(dim=1)
    if not torch.jit.is_scripting():
        refuse_overlaps(squares, row, j, centre)
    # index_select and flat indices throughout: several times faster than indexing with masks and pairs of indices.
    kept = (squares < cutoff * cutoff).nonzero()[:, 0]
    row, j, vectors = row.index_select(0, kept), j.index_select(0, kept), vectors.index_select(0, kept)
    counts = torch.bincount(row, minlength=n_rows)
    starts = counts.cumsum(0) - counts
    column = torch.arange(row.shape[0], device=row.device) - starts.index_select(0, row)
    width = (int(counts.max()) if row.shape[0] > 0 else 1) if n_columns is None else n_columns
    slot = row * width + column
    neighbour = centre.repeat_interleave(width).index_copy(0, slot, j)
    mask = torch.zeros(n_rows * width, dtype=torch.bool, device=row.device).index_fill(0, slot, 1)
    padding = torch.tensor([2.0 * cutoff, 0.0, 0.0], dtype=vectors.dtype, device=row.device).expand(n_rows * width, 3)
    dense = padding.index_copy(0, slot, vectors).reshape(n_rows, width, 3)
    distance = torch.linalg.vector_norm(dense, dim=-1)
    channel = species.index_select(0, neighbour).reshape(n_rows, width)
    neighbour, mask = neighbour.reshape(n_rows, width), mask.reshape(n_rows, width)
    return Shell(centre, neighbour, channel, distance, dense / distance.unsqueeze(-1), mask), kept


def refuse_overlaps(squares: Tensor, row: Tensor, j: Tensor, centre: Tensor | None = None) -> None:
    """Raise `InputError` if two atoms are closer than 0.1 Å.

    `squares`: [P] squared distances, Å²; `row`: [P] of the centre in `centre` [n], or the centre itself; `j`: [P].
    """
    if squares.numel() and not float(squares.min()) > SHORTEST_DISTANCE**2:
        worst = int(squares.argmin())
        i = int(row[worst] if centre is None else centre[row[worst]])
        raise InputError(overlap_message(i, int(j[worst]), float(squares[worst].sqrt())))


def chunks(
    neighbours: Neighbours, vectors: Tensor, n_atoms: int, bounds: Sequence[int]
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]]:
    """Atoms between successive `bounds`, and their pairs as `make_shell` takes them: what a core's caches hold."""
    ends = [0, *torch.bincount(neighbours.i, minlength=n_atoms).cumsum(0).tolist()]
    for first, last in pairwise(bounds):
        mine = slice(ends[first], ends[last])
        centre = torch.arange(first, last, device=vectors.device)
        yield centre, (neighbours.i[mine] - first, neighbours.j[mine], vectors[mine])
