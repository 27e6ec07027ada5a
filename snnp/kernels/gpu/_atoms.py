"""The GPU kernels of an s-NNP: moments, readout, gradients of pairs, forces; see docs/decisions/010-gpu-kernel.md.

One program (one warp) works on one atom: one neighbour per thread where distances, harmonics and gradients are formed,
matrix products over threads where filters meet harmonics; the readout takes a block of atoms. Arguments are the named
tuples of `snnp.kernels.gpu.call` and `snnp.kernels.gpu.lists`.
"""

# ruff: noqa: RUF005  (kernels are compiled from a subset of Python that cannot unpack tuples)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from snnp.kernels.gpu._maths import (
    activate,
    harmonics,
    join_columns,
    product,
    row_sums,
    segment,
    solid_gradient,
    split_columns,
)


@triton.jit
def _pairs(
    atoms: tl.tuple, rows: tl.tuple, tables: tl.tuple, i: tl.tensor, lane: tl.tensor, shortest: tl.constexpr
) -> Any:
    """Neighbours `lane` of atom i: (listed, inside the cutoff, too close, species, (r, 1/r, unit vector)).

    Outside, r is the cutoff, its inverse and the unit vector are zero.
    """
    real = tables.constants.dtype.element_ty
    listed = lane < tl.load(rows.length + i)
    entry = i * rows.capacity + lane
    j = tl.load(rows.neighbour + entry, mask=listed, other=0).to(tl.int64)
    image = tl.load(rows.image + entry, mask=listed, other=0).to(tl.int64)
    # Differences in float64: in a box of 300 Å float32 positions lie on a grid of 3e-5 Å.
    there = atoms.positions + 3 * j
    here = atoms.positions + 3 * i
    shift = atoms.images + 3 * image
    x = (tl.load(there) - tl.load(here) + tl.load(shift)).to(real)
    y = (tl.load(there + 1) - tl.load(here + 1) + tl.load(shift + 1)).to(real)
    z = (tl.load(there + 2) - tl.load(here + 2) + tl.load(shift + 2)).to(real)
    square = x * x + y * y + z * z
    apart = square > shortest * shortest  # not so where it is NaN
    inverse = tl.rsqrt(tl.where(apart, square, 1.0))
    cutoff = tl.load(tables.constants)
    r = tl.where(apart, square * inverse, cutoff)
    inside = listed & (r < cutoff)
    r = tl.where(inside, r, cutoff)
    inverse = tl.where(inside, inverse, 0.0)
    x = tl.where(inside, x * inverse, 0.0)
    y = tl.where(inside, y * inverse, 0.0)
    z = tl.where(inside, z * inverse, 0.0)
    # Pairs too close are left out of every sum, and refused by the host.
    too_close = tl.where(listed, tl.where(apart, 0, 1), 0)
    return listed, inside, too_close, tl.load(atoms.species + j), (r, inverse, x, y, z)


@triton.jit
def _splines(table: tl.tuple, group: tl.tensor, r: tl.tensor, width: tl.constexpr) -> Any:
    """Values and slopes in u [pairs, width] of all splines of a table, and du/dr [pairs]."""
    row, u, inverse = segment(table, group, r)
    place = table.coefficients + row[:, None] * (4 * width) + tl.arange(0, width)[None, :]
    square = u * u
    c1 = tl.load(place + width)
    c2 = tl.load(place + 2 * width)
    c3 = tl.load(place + 3 * width)
    value = tl.load(place) + c1 * u[:, None] + c2 * square[:, None] + c3 * (square * u)[:, None]
    return value, c1 + c2 * (2.0 * u)[:, None] + c3 * (3.0 * square)[:, None], inverse


@triton.jit
def _spline(table: tl.tuple, group: tl.tensor, r: tl.tensor) -> Any:
    """Value and slope in r [pairs] of the one spline of a table."""
    row, u, inverse = segment(table, group, r)
    place = table.coefficients + row * 4
    c1 = tl.load(place + 1)
    c2 = tl.load(place + 2)
    c3 = tl.load(place + 3)
    return tl.load(place) + u * (c1 + u * (c2 + u * c3)), inverse * (c1 + u * (2.0 * c2 + u * (3.0 * c3)))


@triton.jit
def _in_channels(values: tl.tensor, channel: tl.tensor, form: tl.constexpr) -> Any:
    """[pairs, C F] values [pairs, F] in the column block of the neighbour's channel, zero in the others."""
    block: tl.constexpr = form.block
    width: tl.constexpr = form.channels * form.filters
    chosen = channel[:, None] == tl.arange(0, form.channels)[None, :]
    spread = tl.where(chosen[:, :, None], values[:, None, :], 0.0)
    return tl.reshape(spread, [block, width])


@triton.jit
def moments_kernel(atoms: tl.tuple, rows: tl.tuple, tables: tl.tuple, work: tl.tuple, form: tl.constexpr) -> None:
    """Features of one atom, and its moments weighted with the Legendre coefficients of the angular curves."""
    block: tl.constexpr = form.block
    radial: tl.constexpr = form.radial
    columns: tl.constexpr = form.columns
    filters: tl.constexpr = form.channels * form.filters
    i = tl.program_id(0).to(tl.int64)
    real = tables.constants.dtype.element_ty
    z = tl.load(atoms.species + i)
    # Summed over pairs at the end: a sum over threads costs more than the additions.
    sums = tl.zeros([block, radial], real)
    squares = tl.zeros([block, filters], real)
    wrong = tl.zeros([block], tl.int32)
    moments = tl.zeros([columns, filters], real)
    for start in range(0, tl.load(rows.length + i), form.block):
        lane = start + tl.arange(0, form.block)
        _, inside, too_close, species, geometry = _pairs(atoms, rows, tables, i, lane, form.shortest)
        r, _, ux, uy, uz = geometry
        wrong |= too_close
        group = tl.load(tables.radial_group + z * form.elements + species)
        if form.n_radial > 0:
            value, _, _ = _splines(tables.rho, group, r, form.radial)
            sums += tl.where(inside[:, None], value, 0.0)
        if form.n_filters > 0:
            near = inside & (r < tl.load(tables.constants + 1))
            f, _, _ = _splines(tables.f, group, r, form.filters)
            f = tl.where(near[:, None], f, 0.0)
            if form.channels > 1:
                f = _in_channels(f, species, form)
            squares += f * f
            y = join_columns(harmonics(ux, uy, uz, form.degree), form.columns)
            moments = product(tl.trans(y), f, moments)
    if tl.max(wrong, axis=0) > 0:
        tl.store(work.status, 1)
    out = work.features + i * form.features
    if form.n_radial > 0:
        a = tl.arange(0, form.radial)
        tl.store(out + a, tl.sum(sums, axis=0), mask=a < form.n_radial)
    if form.n_filters > 0:
        three_body = _weigh(tables, work, i, moments, tl.sum(squares, axis=0), form)
        b = tl.arange(0, form.filters)
        tl.store(out + form.n_radial + b, three_body, mask=b < form.n_filters)


@triton.jit
def _weigh(
    tables: tl.tuple, work: tl.tuple, i: tl.tensor, moments: tl.tensor, selves: tl.tensor, form: tl.constexpr
) -> Any:
    """G3 [F] = 1/2 sum_c [ sum_lm A_c (sum_c' g_cc' A_c') - g_c(1) selves_c ]; the inner sums are stored."""
    n_columns: tl.constexpr = form.columns
    channels: tl.constexpr = form.channels
    n_filters: tl.constexpr = form.filters
    columns = tl.arange(0, form.columns)[:, None]
    kept = columns < form.n_harmonics
    filters = tl.arange(0, form.filters)[None, :]
    every = tl.arange(0, form.channels * form.filters)
    total = tl.sum(tl.reshape(-tl.load(tables.at_one + every) * selves, [channels, n_filters]), axis=0)
    for c in tl.static_range(channels):
        g = tl.load(tables.legendre + (c * form.columns + columns) * (form.channels * form.filters) + every[None, :])
        weighted = g * moments
        own = moments
        if form.channels > 1:
            mine = every[None, :] // form.filters == c
            weighted = tl.sum(tl.reshape(weighted, [n_columns, channels, n_filters]), axis=1)
            own = tl.where(mine, moments, 0.0)
            own = tl.sum(tl.reshape(own, [n_columns, channels, n_filters]), axis=1)
        total += tl.sum(weighted * own, axis=0)
        place = (i * form.channels + c) * form.n_harmonics + columns
        tl.store(work.weighted + place * form.filters + filters, weighted, mask=kept & (filters < form.filters))
    return 0.5 * total


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
    hidden = product(x, tl.trans(first), none) + tl.load(biases)
    hidden, slope = activate(hidden, form)
    slopes = (slope,)
    for k in tl.static_range(1, n_layers):
        weights = _layer(rest + (k - 1) * h * h, h, h)
        hidden = product(hidden, tl.trans(weights), none)
        hidden, slope = activate(hidden + tl.load(biases + k * h), form)
        slopes = slopes + (slope,)
    last = tl.load(net.last + copy * h + tl.arange(0, h))[None, :]
    energy = tl.sum(hidden * last, axis=1) + tl.load(net.offset + copy)
    gradient = last * slopes[form.n_layers - 1]
    for k in tl.static_range(1, n_layers):
        weights = _layer(rest + (form.n_layers - 1 - k) * h * h, h, h)
        gradient = product(gradient, weights, none)
        gradient = gradient * slopes[form.n_layers - 1 - k]
    none = tl.zeros([n_atoms, n_features], first.dtype)
    return energy, product(gradient, first, none)


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


@triton.jit
def _repulsion(tables: tl.tuple, z: tl.tensor, species: tl.tensor, r: tl.tensor, near: tl.tensor) -> Any:
    """Energies (half of each pair) and slopes of Ziegler, Biersack and Littmark, switched off from inner to outer."""
    c = tables.constants
    inner = tl.load(c + 2)
    width = tl.load(c + 3) - inner
    decay = tl.load(tables.screening + z) + tl.load(tables.screening + species)
    chi = tl.zeros_like(r)
    slope = tl.zeros_like(r)
    for k in tl.static_range(4):
        term = tl.load(c + 5 + k) * tl.exp(-tl.load(c + 9 + k) * decay * r)
        chi += term
        slope -= tl.load(c + 9 + k) * decay * term
    t = tl.minimum(tl.maximum((r - inner) / width, 0.0), 1.0)
    switch = 1.0 - t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
    switch_slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / width
    strength = tl.load(c + 4) * tl.load(tables.charges + z) * tl.load(tables.charges + species) / r
    strength = tl.where(near, strength, 0.0)
    return strength * chi * switch, strength * (slope * switch + chi * (switch_slope - switch / r))


@triton.jit
def _pair_terms(
    tables: tl.tuple, z: tl.tensor, species: tl.tensor, r: tl.tensor, inside: tl.tensor, form: tl.constexpr
) -> Any:
    """Energies and slopes [pairs] of pair term and repulsion."""
    energy = tl.zeros_like(r)
    slope = tl.zeros_like(r)
    if form.pair_term:
        group = tl.load(tables.pair_group + z * form.elements + species)
        value, derivative = _spline(tables.phi, group, r)
        energy += tl.where(inside, 0.5 * value, 0.0)
        slope += tl.where(inside, 0.5 * derivative, 0.0)
    if form.repulsion:
        near = inside & (r < tl.load(tables.constants + 3))
        if tl.max(near.to(tl.int32), axis=0) > 0:
            value, derivative = _repulsion(tables, z, species, r, near)
            energy += value
            slope += derivative
    return energy, slope


@triton.constexpr_function
def _width(first: int, n_harmonics: int) -> int:
    """Columns of a product that starts at a harmonic: at most 32, so that the sums stay in registers."""
    return 16 if n_harmonics - first <= 16 else 32


@triton.jit
def _columns_of_product(
    values: tl.tensor,
    species: tl.tensor,
    weighted: tl.tensor,
    first: tl.constexpr,
    width: tl.constexpr,
    form: tl.constexpr,
) -> Any:
    block: tl.constexpr = form.block
    channels: tl.constexpr = form.channels
    lm = first + tl.arange(0, width)[None, :]
    b = tl.arange(0, form.filters)[:, None]
    total = tl.zeros([block, width], values.dtype)
    for c in tl.static_range(channels):
        mine = values
        if form.channels > 1:
            mine = tl.where((species == c)[:, None], values, 0.0)
        place = weighted + (c * form.n_harmonics + lm) * form.filters + b
        total = product(mine, tl.load(place, mask=lm < form.n_harmonics, other=0.0), total)
    return split_columns(total, width)


@triton.jit
def _pull_back(values: tl.tensor, species: tl.tensor, weighted: tl.tensor, form: tl.constexpr) -> Any:
    """sum_b values_b w_lm,b for all harmonics, a tuple of blocks; values [pairs, F], w of the neighbours' channels."""
    n_harmonics: tl.constexpr = form.n_harmonics
    pulled = ()
    for first in tl.static_range(0, n_harmonics, 32):
        pulled = pulled + _columns_of_product(values, species, weighted, first, _width(first, n_harmonics), form)
    return pulled


@triton.jit
def _three_body(
    tables: tl.tuple, work: tl.tuple, i: tl.tensor, pairs: tl.tuple, group: tl.tensor, form: tl.constexpr
) -> Any:
    """dE/dr along the pair without the turning of harmonics, and G = sum_lm dE/dY_lm grad R_lm (three blocks)."""
    n_harmonics: tl.constexpr = form.n_harmonics
    inside, species, r, ux, uy, uz = pairs
    near = inside & (r < tl.load(tables.constants + 1))
    value, slope, inverse = _splines(tables.f, group, r, form.filters)
    b = tl.arange(0, form.filters)
    h = tl.load(work.slopes + i * form.features + form.n_radial + b, mask=b < form.n_filters, other=0.0)
    value = tl.where(near[:, None], value, 0.0)
    slope = tl.where(near[:, None], slope * h[None, :], 0.0)
    selves = value * slope
    if form.channels > 1:
        channel = tl.where(inside, species, 0)
        selves *= tl.load(tables.at_one + channel[:, None] * form.filters + b[None, :])
    else:
        selves *= tl.load(tables.at_one + b)[None, :]
    along = -row_sums(selves, form.filters)
    weighted = work.weighted + i * (form.channels * form.n_harmonics * form.filters)
    y = harmonics(ux, uy, uz, form.degree)
    # One after the other: the sums of both would not fit into the registers.
    pulled = _pull_back(slope, species, weighted, form)
    for k in tl.static_range(n_harmonics):
        along += pulled[k] * y[k]
    pulled = _pull_back(value * h[None, :], species, weighted, form)
    return along * inverse, solid_gradient(pulled, y, form.degree)


@triton.jit
def gradients_kernel(atoms: tl.tuple, rows: tl.tuple, tables: tl.tuple, work: tl.tuple, form: tl.constexpr) -> None:
    """dE_i/dr_ij of all pairs of one atom, their sum, the virial, and the energy of pair term and repulsion."""
    block: tl.constexpr = form.block
    i = tl.program_id(0).to(tl.int64)
    real = tables.constants.dtype.element_ty
    z = tl.load(atoms.species + i)
    a = tl.arange(0, form.radial)
    h = tl.load(work.slopes + i * form.features + a, mask=a < form.n_radial, other=0.0)[None, :]
    energy = tl.zeros([block], real)
    total = tl.zeros([block, 4], real)
    xx, yy, zz = tl.zeros_like(energy), tl.zeros_like(energy), tl.zeros_like(energy)
    yz, xz, xy = tl.zeros_like(energy), tl.zeros_like(energy), tl.zeros_like(energy)
    for start in range(0, tl.load(rows.length + i), form.block):
        lane = start + tl.arange(0, form.block)
        listed, inside, _, species, geometry = _pairs(atoms, rows, tables, i, lane, form.shortest)
        r, inverse_r, ux, uy, uz = geometry
        group = tl.load(tables.radial_group + z * form.elements + species)
        pair_energy, along = _pair_terms(tables, z, species, r, inside, form)
        energy += pair_energy
        if form.n_radial > 0:
            _, slope, inverse = _splines(tables.rho, group, r, form.radial)
            along += tl.where(inside, inverse * row_sums(slope * h, form.radial), 0.0)
        gx, gy, gz = tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r)
        if form.n_filters > 0:
            more, turning = _three_body(tables, work, i, (inside, species, r, ux, uy, uz), group, form)
            gx, gy, gz = turning
            gx, gy, gz = gx * inverse_r, gy * inverse_r, gz * inverse_r
            along += more - (gx * ux + gy * uy + gz * uz)
        gx += along * ux
        gy += along * uy
        gz += along * uz
        # Joined as (x, y, z, 0): one vector of 16 bytes per pair.
        joined = tl.join(tl.join(gx, gz), tl.join(gy, tl.zeros_like(gx)))
        gradient = tl.reshape(joined, [block, 4])
        place = (i * rows.capacity + lane)[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(work.gradients + place, gradient, mask=listed[:, None])
        total += gradient
        xx, yy, zz = xx + r * ux * gx, yy + r * uy * gy, zz + r * uz * gz
        yz, xz, xy = yz + r * uy * gz, xz + r * ux * gz, xy + r * ux * gy
    tl.store(work.own + i * 4 + tl.arange(0, 4), tl.sum(total, axis=0))
    if form.pair_term or form.repulsion:
        tl.store(work.energies + i, tl.load(work.energies + i) + tl.sum(energy, axis=0))
    virial = work.virial + i * 6
    tl.store(virial, tl.sum(xx, axis=0))
    tl.store(virial + 1, tl.sum(yy, axis=0))
    tl.store(virial + 2, tl.sum(zz, axis=0))
    tl.store(virial + 3, tl.sum(yz, axis=0))
    tl.store(virial + 4, tl.sum(xz, axis=0))
    tl.store(virial + 5, tl.sum(xy, axis=0))


@triton.jit
def forces_kernel(rows: tl.tuple, work: tl.tuple, form: tl.constexpr) -> None:
    """F_i = sum_j dE_i/dr_ij - sum_j dE_j/dr_ji; the second sum gathers what the neighbours wrote."""
    block: tl.constexpr = form.block
    i = tl.program_id(0).to(tl.int64)
    component = tl.arange(0, 4)
    n = tl.load(rows.length + i)
    total = tl.zeros([block, 4], work.own.dtype.element_ty)
    for start in range(0, n, form.block):
        lane = start + tl.arange(0, form.block)
        place = tl.load(rows.reverse + i * rows.capacity + lane, mask=lane < n, other=0).to(tl.int64)
        place = place[:, None] * 4 + component[None, :]
        total += tl.load(work.gradients + place, mask=(lane < n)[:, None], other=0.0)
    force = tl.load(work.own + i * 4 + component) - tl.sum(total, axis=0)
    tl.store(work.forces + i * 3 + component, force, mask=component < 3)
