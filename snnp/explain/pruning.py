r"""Filters taken out one by one, each time the one that is missed least, with the readout refitted to what is left.

The refit is linear least squares. A removed standardised feature x_a is written, for each element, as the combination
of those that stay which is nearest to it in value, and in how it changes when atoms move (and exact for an atom alone,
where the energy of that is known),

    x_a ~ c_0 + sum_b c_b x_b     least   mean (x_a - c_0 - c . x)² + l² mean sum_j (dx_a/dr_ij - c . dx/dr_ij)²

with l = 0.1 Å, and the combination goes into the weights: W_b + W_a c_b, w_b + w_a c_b, a constant into the biases.
What comes out is a smaller model of the same form, exact where the removed filter was a combination of others. Fitting
weights of the skip alone to the labels would leave the network blind to what it lost; a short training finds as much or
more, and takes a hundred times as long for each of a thousand candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnp.data import Frames
from snnp.errors import InputError
from snnp.explain.anatomy import Anatomy, gradient_products
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.training.backends import choose_backend
from snnp.training.batches import Batches, prepare

__all__ = ["Errors", "Removal", "Stage", "eliminate", "filter_name", "measured", "pruned"]

_LENGTH = 0.1  # Å, by which atoms move
_RIDGE = 1e-9  # of the mean square of the features
_CANDIDATES = 4  # tried at each stage: those whose loss a linear estimate says is least
_NOTHING = 1e-11  # of the largest variance of a combination of features: rounding of filters that were float32
_SEVERAL = 64  # filters, from which on several go at a time, in the order of the estimate
_GRADIENT_ATOMS = 160

Errors = tuple[float, float]
"""MAE of energies (meV/atom) and forces (eV/Å)."""


@dataclass(frozen=True)
class Stage:
    """The filters that are `kept`, and the errors of the refitted model."""

    kept: tuple[int, ...]
    errors: Errors

    @property
    def n_filters(self) -> int:
        """Number of filters left."""
        return len(self.kept)


@dataclass(frozen=True)
class Removal:
    """The stages, from all filters to one, and for each filter the errors without it alone ([D], refitted).

    `order`: the filters as they went, without the last; `exact`: how many of them are combinations of others, so that
    they go without a trace.
    """

    stages: tuple[Stage, ...]
    order: tuple[int, ...]
    alone: tuple[Errors, ...]
    exact: int

    def kept(self, n_filters: int) -> tuple[int, ...]:
        """The so many filters that went last.

        Raises:
            InputError: for as many filters as there are, more, or none.
        """
        total = len(self.alone)
        if not 0 < n_filters < total:
            raise InputError(f"--prune {n_filters}: this model has {total} filters; keep between 1 and {total - 1}.")
        gone = set(self.order[: total - n_filters])
        return tuple(k for k in range(total) if k not in gone)


class _Folder:
    """Writes features as combinations of others, element by element, and folds that into the readout."""

    def __init__(self, anatomy: Anatomy) -> None:
        model, z = anatomy.model, anatomy.model.config.n_elements
        n = anatomy.standard.shape[1]
        self.model = model
        self._shares_network = model.readout.network is not None and model.readout.network.config.elements == "shared"
        changes = _LENGTH**2 * gradient_products(model, anatomy.structure, _GRADIENT_ATOMS)
        count = torch.bincount(anatomy.species, minlength=z)
        values = torch.zeros(z, n, n, dtype=torch.float64)
        self._means = torch.zeros(z, n, dtype=torch.float64)
        for element, symbol in enumerate(model.elements):
            mine = anatomy.standard[anatomy.species == element]
            if symbol in model.isolated_atoms:  # whose energy is taken off: the combination must hold for it, too
                self._means[element] = -model.readout.mean / model.readout.std
            elif len(mine) and model.readout.network is not None:  # without a network nothing takes up a constant
                self._means[element] = mine.mean(dim=0)
            mine = mine - self._means[element]
            values[element] = mine.T @ mine / max(len(mine), 1)
        square = values + changes
        absent = count == 0
        share = count.double() / count.sum()
        everyone = torch.einsum("z,zab->ab", share, square)
        if self._shares_network:  # then one combination must serve all elements
            square, self._means = everyone.expand_as(square), (share @ self._means).expand_as(self._means)
        else:
            square = torch.where(absent[:, None, None], everyone, square)
        ridge = _RIDGE * square.diagonal(dim1=1, dim2=2).mean(dim=1)
        self.square = square + ridge[:, None, None] * torch.eye(n, dtype=torch.float64)
        # How much a squared error of each standardised feature costs, element by element.
        weight = torch.zeros(z, n, dtype=torch.float64)
        weight.index_add_(0, anatomy.species, (anatomy.gradient * model.readout.std).square())
        self._weight = weight / max(len(anatomy.species), 1)

    def cost(self, kept: Sequence[int]) -> Tensor:
        """[k] eV², an estimate for each of the filters left of what is lost with it."""
        rows = torch.tensor(kept)
        inverse = torch.linalg.inv(self.square[:, rows][:, :, rows]).diagonal(dim1=1, dim2=2)
        return (self._weight[:, rows] / inverse).sum(dim=0)

    @torch.no_grad()
    def without(self, kept: Sequence[int]) -> SplineNNP:
        """The model in its old shape, whose readout does not look at what is not `kept`."""
        model = copy.deepcopy(self.model)
        rows, n = torch.tensor(kept), self.square.shape[1]
        gone = torch.tensor([k for k in range(n) if k not in set(kept)], dtype=torch.int64)
        if not len(gone):
            return model
        left = self.square[:, rows]
        combined = torch.linalg.solve(left[:, :, rows], left[:, :, gone])  # [Z, k, g]
        constant = self._means[:, gone] - torch.einsum("zk,zkg->zg", self._means[:, rows], combined)
        network, linear = model.readout.network, model.readout.linear
        if linear is not None and network is not None and not self._shares_network:
            network.biases[-1] += (linear[:, gone] * constant).sum(dim=1)[:, None]
        elif linear is not None and network is not None:
            network.biases[-1] += (linear[:, gone] * constant).sum(dim=1).mean()
        if linear is not None:
            linear[:, rows] += torch.einsum("zg,zkg->zk", linear[:, gone], combined)
            linear[:, gone] = 0.0
        if network is not None:
            first, copies = network.weights[0], network.n_copies
            network.biases[0] += torch.einsum("zog,zg->zo", first[:, :, gone], constant[:copies])
            first[:, :, rows] += torch.einsum("zog,zkg->zok", first[:, :, gone], combined[:copies])
            first[:, :, gone] = 0.0
        return model


def measured(model: SplineNNP, frames: Frames, dtype: torch.dtype = torch.float64) -> Errors:
    """Errors of a model on labelled frames."""
    return _errors(model, prepare(choose_backend(model, dtype), model, frames))


@torch.no_grad()
def _errors(model: SplineNNP, data: Batches) -> Errors:
    energy, force = list[Tensor](), list[Tensor]()
    for first in range(0, data.n_frames, 64):
        batch = data.batch(np.arange(first, min(first + 64, data.n_frames)))
        found = data.backend.predict(model, batch)
        energy.append((found.energy - batch.energy) / batch.counts)
        force.append((found.forces - batch.forces).flatten())
    return 1e3 * float(torch.cat(energy).abs().nanmean()), float(torch.cat(force).abs().nanmean())


def _score(errors: Errors) -> float:
    """As training chooses its best epoch: forces in meV/Å and energies in meV/atom differ by about ten."""
    return errors[0] + 100.0 * errors[1]


def eliminate(
    anatomy: Anatomy,
    choose: Frames,
    tell: Frames,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Removal:
    """Take filters out, down to one.

    Arguments:
        anatomy: the atoms to fit by. choose: labelled frames that say which filter is missed least. tell: labelled
            frames whose errors are reported.

    Raises:
        InputError: for a model with embedding splines, whose arguments cannot be refitted.
    """
    model = anatomy.model
    if model.readout.embedding is not None:
        raise InputError("filters below an embedding spline cannot be taken out: there is nothing linear to refit.")
    n = anatomy.standard.shape[1]
    folder = _Folder(anatomy)
    chosen, told = (prepare(choose_backend(model, torch.float64), model, frames) for frames in (choose, tell))
    kept = list(range(n))
    alone = []
    for k in range(n):
        alone.append(_errors(folder.without(_less(kept, k)), told))
        report(k + 1, 2 * n - 1)
    values = torch.linalg.eigvalsh(torch.cov(anatomy.standard.T).reshape(n, n))
    exact = int((values < _NOTHING * values[-1]).sum()) if len(anatomy.standard) > n else 0
    stages, gone = [Stage(tuple(kept), _errors(model, told))], list[int]()
    while len(kept) > 1:
        cheap = [kept[k] for k in torch.argsort(folder.cost(kept), stable=True).tolist()]
        removed = cheap[: len(kept) // _SEVERAL + 1]
        if len(removed) == 1:
            scores = [_score(_errors(folder.without(_less(kept, k)), chosen)) for k in cheap[:_CANDIDATES]]
            removed = [cheap[int(np.argmin(scores))]]
        gone, kept = gone + removed, _less(kept, *removed)
        stages.append(Stage(tuple(kept), _errors(folder.without(kept), told)))
        report(2 * n - len(kept), 2 * n - 1)
    return Removal(tuple(stages), tuple(gone), tuple(alone), exact)


def _less(kept: Sequence[int], *removed: int) -> list[int]:
    return [each for each in kept if each not in removed]


@torch.no_grad()
def pruned(anatomy: Anatomy, kept: Sequence[int]) -> SplineNNP:
    """A model of these filters alone, its readout refitted, in float64; E0 and everything else as before."""
    source = _Folder(anatomy).without(kept)
    config, n_radial = source.config, source.config.radial.n_filters
    radial = [k for k in kept if k < n_radial]
    angular = [k - n_radial for k in kept if k >= n_radial]
    tree = config.model_dump()
    tree["radial"]["n_filters"], tree["angular"]["n_filters"] = len(radial), len(angular)
    if not angular:
        tree["grids"] |= {"angular": None, "angle": None}
    form = SplineNNPConfig.model_validate(tree)
    model = SplineNNP(form, source.reference_energies)
    rows = torch.tensor([*radial, *(k + n_radial for k in angular)])
    model.rho.free.copy_(source.rho.free[:, radial])
    model.f.free.copy_(source.f.free[:, angular])
    model.g.free.copy_(source.g.free[:, angular])
    if model.phi is not None and source.phi is not None:
        model.phi.free.copy_(source.phi.free)
    model.readout.mean.copy_(source.readout.mean[rows])
    model.readout.std.copy_(source.readout.std[rows])
    if model.readout.linear is not None and source.readout.linear is not None:
        model.readout.linear.copy_(source.readout.linear[:, rows])
    if (network := model.readout.network) is not None and source.readout.network is not None:
        for k, (mine, theirs) in enumerate(zip(network.parameters(), source.readout.network.parameters(), strict=True)):
            mine.copy_(theirs[:, :, rows] if k == 0 else theirs)
    model.isolated_atoms = source.isolated_atoms
    model.metadata = dict(source.metadata)
    return model


def filter_name(model: SplineNNP, index: int) -> str:
    """As on the pictures: ρ3 is the third radial filter, fg7 the seventh of three bodies."""
    n_radial = model.config.radial.n_filters
    return f"ρ{index + 1}" if index < n_radial else f"fg{index - n_radial + 1}"
