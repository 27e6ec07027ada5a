"""Flatten an s-NNP into the arrays that kernels read.

Arithmetic is numpy's here: torch's threads do not exist in a forked process that the parent's torch did not prepare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from snnp.kernels.parameters import ReadoutParameters, SplineParameters, SplineTable, spline_table
from snnp.models.repulsion import AMPLITUDES, DECAYS, SCREENING_LENGTH
from snnp.models.spline.readout import Readout
from snnp.splines import SplineSet

if TYPE_CHECKING:
    from snnp.models.spline.model import SplineNNP

__all__ = ["kernel_parameters"]


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy().astype(np.float64)


def _table(splines: SplineSet) -> SplineTable:
    # Exact grids, not the model's buffers: those may be rounded to float32.
    lower = np.array([grid.lower for grid in splines.grids])
    spacing = np.array([grid.spacing for grid in splines.grids])
    n_intervals = np.array([grid.n_intervals for grid in splines.grids], dtype=np.int64)
    free = _array(splines.free)
    full = free if splines.ends == ("free", "free") else free @ _array(splines.exact("map"))
    return spline_table(lower, spacing, n_intervals, full)


def _readout(readout: Readout) -> ReadoutParameters:
    network, n_features = readout.network, readout.mean.shape[0]
    zeros = np.zeros((readout.n_elements, n_features))
    return ReadoutParameters(
        mean=_array(readout.mean),
        std=_array(readout.std),
        weights=() if network is None else tuple(_array(w) for w in network.effective_weights()),
        biases=() if network is None else tuple(_array(b) for b in network.biases),
        activation="silu" if network is None else network.config.activation,
        linear=zeros if readout.linear is None else _array(readout.linear),
        embedding=None if readout.embedding is None else _table(readout.embedding),
        embeds_sum=readout.sums_features,
    )


@torch.no_grad()
def kernel_parameters(model: SplineNNP) -> SplineParameters:
    """The model's present parameters for the kernels; they do not follow later changes of the model."""
    config = model.config
    z = config.n_elements
    centre, neighbour = np.meshgrid(np.arange(z), np.arange(z), indexing="ij")
    groups = {"shared": 0 * centre, "element": neighbour, "pair": centre * z + neighbour}
    reach = model.cutoff if config.ends == "free" else config.angular_cutoff
    several = config.angular.elements == "pair" and z > 1
    g = _table(model.g)
    projection = model.exact("projection").cpu().numpy()
    full_g = _array(model.g.free)
    legendre = full_g[..., : projection.shape[1]] @ projection.T  # [groups, F, L + 1]
    pairs = model.unordered.cpu().numpy()
    chosen = pairs if several else np.zeros((1, 1), dtype=np.int64)
    return SplineParameters(
        numbers=np.array([atomic_numbers[symbol] for symbol in model.elements], dtype=np.int32),
        reference=_array(model.energy_offsets()),
        cutoff=model.cutoff,
        angular_cutoff=reach if model.has_three_body else 0.0,
        rho=_table(model.rho),
        f=_table(model.f),
        radial_group=groups[config.filters].astype(np.int32),
        phi=None if model.phi is None else _table(model.phi),
        pair_group=pairs.astype(np.int32),
        evaluator=config.angular.evaluator,
        degree=config.angular.degree,
        legendre=legendre[chosen],
        at_one=legendre.sum(axis=-1)[chosen.diagonal()],
        g=g,
        repulsion=None if config.repulsion is None else (config.repulsion.inner, config.repulsion.outer),
        screening=(SCREENING_LENGTH, *AMPLITUDES, *DECAYS),
        readout=_readout(model.readout),
    )
