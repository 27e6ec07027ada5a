"""Neighbour list and integrator on the GPU; the kernels of the list return at once unless the flag asks for a new one.

So a time step is always the same sequence of launches, which a CUDA graph can hold, and nothing waits for the host.
Atoms are sorted within their cell: the order of neighbours, and so every sum, is the same in every run.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = [
    "advance_kernel",
    "bin_kernel",
    "clear_kernel",
    "finish_kernel",
    "kick_kernel",
    "reverse_kernel",
    "search_kernel",
    "sort_kernel",
]


@triton.jit
def _fraction(grid: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor, axis: tl.constexpr) -> Any:
    inverse = grid.inverse + axis
    return x * tl.load(inverse) + y * tl.load(inverse + 3) + z * tl.load(inverse + 6) - tl.load(grid.origin + axis)


@triton.jit
def clear_kernel(grid: tl.tuple, flags: tl.tensor, n_cells: tl.tensor, block: tl.constexpr) -> None:
    """Empty all cells."""
    if tl.load(flags) > 0:
        cell = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(grid.filled + cell, 0, mask=cell < n_cells)


@triton.jit
def bin_kernel(state: tl.tuple, grid: tl.tuple, flags: tl.tensor, n_atoms: tl.tensor, block: tl.constexpr) -> None:
    """Bring atoms back into the cell, note where they are, and put them into cells of the grid."""
    if tl.load(flags) > 0:
        atom = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        present = atom < n_atoms
        place = state.positions + 3 * atom
        x = tl.load(place, mask=present, other=0.0)
        y = tl.load(place + 1, mask=present, other=0.0)
        z = tl.load(place + 2, mask=present, other=0.0)
        home = tl.zeros([block], tl.int32)
        new_x, new_y, new_z = x, y, z
        for axis in tl.static_range(3):
            s = _fraction(grid, x, y, z, axis)
            periodic = tl.load(grid.periodic + axis)
            turns = tl.floor(s) * periodic
            # Open directions: atoms beyond the grid belong to its outermost cells, which keeps neighbours together.
            size = tl.load(grid.sizes + axis)
            cell = tl.floor((s - turns) * size).to(tl.int32)
            home = home * size + tl.minimum(tl.maximum(cell, 0), size - 1)
            vector = grid.cell + 3 * axis
            new_x -= turns * tl.load(vector)
            new_y -= turns * tl.load(vector + 1)
            new_z -= turns * tl.load(vector + 2)
            wraps = state.wraps + 3 * atom + axis
            tl.store(wraps, tl.load(wraps, mask=present, other=0) + turns.to(tl.int32), mask=present)
        anchor = state.anchors + 3 * atom
        for axis in tl.static_range(3):
            moved = (new_x, new_y, new_z)[axis]
            tl.store(place + axis, moved, mask=present)
            tl.store(anchor + axis, moved, mask=present)
        tl.store(grid.home + atom, home, mask=present)
        slot = tl.atomic_add(grid.filled + home, 1, mask=present)
        tl.atomic_max(flags + 1, tl.max(tl.where(present, slot, -1), axis=0) + 1)
        fits = present & (slot < grid.capacity)
        tl.store(grid.members + home.to(tl.int64) * grid.capacity + slot, atom.to(tl.int32), mask=fits)


@triton.jit
def sort_kernel(grid: tl.tuple, flags: tl.tensor, width: tl.constexpr) -> None:
    """Sort the atoms of one cell."""
    if tl.load(flags) > 0:
        cell = tl.program_id(0).to(tl.int64)
        filled = tl.load(grid.filled + cell)
        if filled > 1:
            lane = tl.arange(0, width)
            members = grid.members + cell * grid.capacity + lane
            present = lane < filled
            tl.store(members, tl.sort(tl.load(members, mask=present, other=2147483647)), mask=present)


@triton.jit
def _step(grid: tl.tuple, coordinate: tl.tensor, offset: tl.tensor, axis: tl.constexpr) -> Any:
    """Cell of the grid and periodic image that lie `offset` cells from `coordinate`; whether they exist."""
    size = tl.load(grid.sizes + axis)
    turns = tl.load(grid.images + axis)
    # Shifted to positive numbers, where integer division rounds down everywhere.
    shifted = coordinate + offset + turns * size
    image = shifted // size - turns
    return shifted % size, image, (image == 0) | (tl.load(grid.periodic + axis) > 0)


@triton.jit
def _candidates(
    state: tl.tuple, grid: tl.tuple, i: tl.tensor, cell: tl.tensor, image: tl.tuple, lane: tl.tensor, filled: tl.tensor
) -> Any:
    """Atoms of a cell in an image, and which of them are neighbours of atom i."""
    present = lane < filled
    j = tl.load(grid.members + cell.to(tl.int64) * grid.capacity + lane, mask=present, other=0).to(tl.int64)
    square = tl.zeros(lane.shape, tl.float64)
    for axis in tl.static_range(3):
        shift = tl.zeros([], tl.float64)
        for k in tl.static_range(3):
            shift += image[k] * tl.load(grid.cell + 3 * k + axis)
        d = tl.load(state.positions + 3 * j + axis) - tl.load(state.positions + 3 * i + axis) + shift
        square += d * d
    distance = image[0] * image[0] + image[1] * image[1] + image[2] * image[2]
    another = tl.where(j == i, distance, 1) > 0
    return j, present & (square < tl.load(grid.square)) & another


@triton.jit
def search_kernel(state: tl.tuple, grid: tl.tuple, rows: tl.tuple, flags: tl.tensor, width: tl.constexpr) -> None:
    """Neighbours of one atom: from the cells around its own."""
    if tl.load(flags) > 0:
        i = tl.program_id(0).to(tl.int64)
        home = tl.load(grid.home + i)
        size_y, size_z = tl.load(grid.sizes + 1), tl.load(grid.sizes + 2)
        x, y, z = home // (size_y * size_z), home // size_z % size_y, home % size_z
        turns_x, turns_y, turns_z = tl.load(grid.images), tl.load(grid.images + 1), tl.load(grid.images + 2)
        reach_x, reach_y, reach_z = tl.load(grid.reach), tl.load(grid.reach + 1), tl.load(grid.reach + 2)
        lane = tl.arange(0, width)
        found = 0
        for a in range(-reach_x, reach_x + 1):
            cell_x, image_x, there_x = _step(grid, x, a, 0)
            for b in range(-reach_y, reach_y + 1):
                cell_y, image_y, there_y = _step(grid, y, b, 1)
                for c in range(-reach_z, reach_z + 1):
                    cell_z, image_z, there_z = _step(grid, z, c, 2)
                    cell = (cell_x * size_y + cell_y) * size_z + cell_z
                    filled = tl.load(grid.filled + cell)
                    if there_x & there_y & there_z & (filled > 0):
                        image = image_x + turns_x
                        image = image * (2 * turns_y + 1) + image_y + turns_y
                        image = image * (2 * turns_z + 1) + image_z + turns_z
                        j, near = _candidates(state, grid, i, cell, (image_x, image_y, image_z), lane, filled)
                        ones = tl.where(near, 1, 0)
                        column = found + tl.cumsum(ones, axis=0) - 1
                        entry = i * rows.capacity + column
                        fits = near & (column < rows.capacity)
                        tl.store(rows.neighbour + entry, j.to(tl.int32), mask=fits)
                        tl.store(rows.image + entry, tl.zeros(lane.shape, tl.int32) + image, mask=fits)
                        found += tl.sum(ones, axis=0)
        tl.store(rows.length + i, tl.minimum(found, rows.capacity))
        tl.atomic_max(flags + 2, found)


@triton.jit
def reverse_kernel(grid: tl.tuple, rows: tl.tuple, flags: tl.tensor, block: tl.constexpr) -> None:
    """For every pair i -> j of one atom the place of j -> i."""
    if tl.load(flags) > 0:
        i = tl.program_id(0).to(tl.int64)
        n = tl.load(rows.length + i)
        last = 1
        for axis in tl.static_range(3):
            last *= 2 * tl.load(grid.images + axis) + 1
        for start in range(0, n, block):
            lane = start + tl.arange(0, block)
            entry = i * rows.capacity + lane
            j = tl.load(rows.neighbour + entry, mask=lane < n, other=0).to(tl.int64)
            opposite = last - 1 - tl.load(rows.image + entry, mask=lane < n, other=0)
            length = tl.load(rows.length + j)
            place = tl.zeros([block], tl.int64)
            for first in range(0, rows.capacity, block):
                column = first + tl.arange(0, block)
                there = j[:, None] * rows.capacity + column[None, :]
                listed = (lane < n)[:, None] & (column[None, :] < length[:, None])
                same = tl.load(rows.neighbour + there, mask=listed, other=-1) == i
                same &= tl.load(rows.image + there, mask=listed, other=-1) == opposite[:, None]
                place += tl.sum(tl.where(same, there, 0), axis=1)
            kind = rows.reverse.dtype.element_ty
            tl.store(rows.reverse + entry, place.to(kind), mask=lane < n)


@triton.jit
def finish_kernel(flags: tl.tensor) -> None:
    """The list is new: count it and lower the flag."""
    tl.store(flags + 3, tl.load(flags + 3) + (tl.load(flags) > 0).to(tl.int32))
    tl.store(flags, 0)


@triton.jit
def advance_kernel(
    state: tl.tuple,
    forces: tl.tensor,
    clock: tl.tuple,
    n_atoms: tl.tensor,
    thermostat: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """First half of a step: kick, drift (with the thermostat between two half drifts), and whether the list is too old.

    Langevin dynamics in the order B A O A B (Leimkuhler and Matthews 2013, doi 10.1093/amrx/abs010).
    """
    atom = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = atom < n_atoms
    kick = tl.load(state.kick + atom, mask=present, other=0.0)
    dt = tl.load(clock.numbers)
    moved = tl.zeros([block], tl.float64)
    for axis in tl.static_range(3):
        place = 3 * atom + axis
        v = tl.load(state.velocities + place, mask=present, other=0.0)
        v += kick * tl.load(forces + place, mask=present, other=0.0).to(tl.float64)
        x = tl.load(state.positions + place, mask=present, other=0.0)
        if thermostat:
            x += 0.5 * dt * v
            # Philox: the seed is the key and grows with the step, so that no state but the step is kept.
            noise = tl.randn(tl.load(clock.seed) + tl.load(clock.step), place).to(tl.float64)
            v = tl.load(clock.numbers + 1) * v + tl.load(state.spread + atom, mask=present, other=0.0) * noise
            x += 0.5 * dt * v
        else:
            x += dt * v
        tl.store(state.positions + place, x, mask=present)
        tl.store(state.velocities + place, v, mask=present)
        d = x - tl.load(state.anchors + place, mask=present, other=0.0)
        moved += tl.where(present, d * d, 0.0)
    # `not <=`: positions that are NaN ask for a list, and its kernels meet them.
    if tl.max((~(moved <= tl.load(clock.numbers + 2))).to(tl.int32), axis=0) > 0:
        tl.store(clock.flags, 1)


@triton.jit
def kick_kernel(state: tl.tuple, forces: tl.tensor, clock: tl.tuple, n_numbers: tl.tensor, block: tl.constexpr) -> None:
    """Second half of a step: kick; the step is counted."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = place < n_numbers
    v = tl.load(state.velocities + place, mask=present, other=0.0)
    f = tl.load(forces + place, mask=present, other=0.0).to(tl.float64)
    v += tl.load(state.kick + place // 3, mask=present, other=0.0) * f
    tl.store(state.velocities + place, v, mask=present)
    if tl.program_id(0) == 0:
        tl.store(clock.step, tl.load(clock.step) + 1)
