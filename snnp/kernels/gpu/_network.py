"""The GPU kernel of the readout: features of a block of atoms to energies and their gradients."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from snnp.kernels.gpu._maths import activate, product

__all__ = ["network_kernel"]


@triton.jit
def _layer(weights: tl.tensor, n_out: tl.constexpr, n_in: tl.constexpr) -> Any:
    return tl.load(weights + tl.arange(0, n_out)[:, None] * n_in + tl.arange(0, n_in)[None, :])


@triton.jit
def _network(x: tl.tensor, net: tl.tuple, copy: tl.constexpr, form: tl.constexpr) -> Any:
    """Energies [atoms] and gradients [atoms, D] of one copy of the network."""
    n_atoms: tl.constexpr = form.atoms
    n_features: tl.constexpr = form.features
    h: tl.constexpr = form.hidden
    n_layers: tl.constexpr = form.n_layers
    biases = net.biases + copy * (form.n_layers * h) + tl.arange(0, h)[None, :]
    first = _layer(net.first + copy * (h * form.features), h, form.features)
    rest = net.rest + copy * ((form.n_layers - 1) * h * h)
    none = tl.zeros([n_atoms, h], first.dtype)
    hidden = product(x, tl.trans(first), none, form) + tl.load(biases)
    hidden, slope = activate(hidden, form)
    slopes = (slope,)
    for k in tl.static_range(1, n_layers):
        weights = _layer(rest + (k - 1) * h * h, h, h)
        hidden = product(hidden, tl.trans(weights), none, form)
        hidden, slope = activate(hidden + tl.load(biases + k * h), form)
        slopes = slopes + (slope,)  # noqa: RUF005  kernels cannot unpack tuples
    last = tl.load(net.last + copy * h + tl.arange(0, h))[None, :]
    energy = tl.sum(hidden * last, axis=1) + tl.load(net.offset + copy)
    gradient = last * slopes[form.n_layers - 1]
    for k in tl.static_range(1, n_layers):
        weights = _layer(rest + (form.n_layers - 1 - k) * h * h, h, h)
        gradient = product(gradient, weights, none, form)
        gradient = gradient * slopes[form.n_layers - 1 - k]
    none = tl.zeros([n_atoms, n_features], first.dtype)
    return energy, product(gradient, first, none, form)


@triton.jit
def network_kernel(n_atoms: tl.tensor, species: tl.tensor, net: tl.tuple, work: tl.tuple, form: tl.constexpr) -> None:
    """Energies of a block of atoms (without pair term and repulsion) and dE/dG."""
    copies: tl.constexpr = form.copies
    atom = tl.program_id(0).to(tl.int64) * form.atoms + tl.arange(0, form.atoms)
    column = tl.arange(0, form.features)
    present = atom < n_atoms
    z = tl.load(species + atom, mask=present, other=0)
    place = atom[:, None] * form.features + column[None, :]
    inverse = tl.load(net.inverse_std + column)[None, :]
    x = tl.load(work.features + place, mask=present[:, None], other=0.0)
    x = (x - tl.load(net.mean + column)[None, :]) * inverse
    linear = tl.load(net.linear + z[:, None] * form.features + column[None, :])
    energy = tl.sum(linear * x, axis=1)
    gradient = linear
    if form.n_layers > 0:
        for copy in tl.static_range(copies):
            mine = present
            if form.copies > 1:
                mine = present & (z == copy)
            if tl.max(mine.to(tl.int32), axis=0) > 0:
                e, g = _network(x, net, copy, form)
                energy += tl.where(mine, e, 0.0)
                gradient += tl.where(mine[:, None], g, 0.0)
    tl.store(work.energies + atom, energy, mask=present)
    tl.store(work.slopes + place, gradient * inverse, mask=present[:, None])
