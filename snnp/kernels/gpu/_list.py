"""Neighbour list and integrator on the GPU; the kernels of the list return at once unless the flag asks for a new one.

So a time step is always the same sequence of launches, which a CUDA graph can hold, and nothing waits for the host.
Atoms are sorted within their cell: the order of neighbours, and so every sum, is the same in every run.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _fraction(grid: tl.tuple, x: tl.tensor, y: tl.tensor, z: tl.tensor, axis: tl.constexpr) -> Any:
    inverse = grid.inverse + axis
    return x * tl.load(inverse) + y * tl.load(inverse + 3) + z * tl.load(inverse + 6) - tl.load(grid.origin + axis)


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
            # What is not a number becomes one before it is an integer.
            turns = tl.where(s == s, tl.floor(s) * periodic, 0.0)
            # Open directions: atoms beyond the grid belong to its outermost cells, which keeps neighbours together.
            size = tl.load(grid.sizes + axis)
            cell = tl.maximum(tl.floor((s - turns) * size), 0.0)
            home = home * size + tl.minimum(cell, (size - 1).to(tl.float64)).to(tl.int32)
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
def sort_kernel(grid: tl.tuple, flags: tl.tensor, n_cells: tl.tensor, width: tl.constexpr) -> None:
    """Sort the atoms of every cell."""
    if tl.load(flags) > 0:
        for number in range(tl.program_id(0), n_cells, tl.num_programs(0)):
            cell = tl.cast(number, tl.int64)
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
def _search(state: tl.tuple, grid: tl.tuple, rows: tl.tuple, i: tl.tensor, block: tl.constexpr) -> Any:
    """Enter the neighbours of one atom, from the cells around its own; how many there are."""
    home = tl.load(grid.home + i)
    size_y, size_z = tl.load(grid.sizes + 1), tl.load(grid.sizes + 2)
    x, y, z = home // (size_y * size_z), home // size_z % size_y, home % size_z
    turns_x, turns_y, turns_z = tl.load(grid.images), tl.load(grid.images + 1), tl.load(grid.images + 2)
    reach_x, reach_y, reach_z = tl.load(grid.reach), tl.load(grid.reach + 1), tl.load(grid.reach + 2)
    found = 0
    for a in range(-reach_x, reach_x + 1):
        cell_x, image_x, there_x = _step(grid, x, a, 0)
        for b in range(-reach_y, reach_y + 1):
            cell_y, image_y, there_y = _step(grid, y, b, 1)
            for c in range(-reach_z, reach_z + 1):
                cell_z, image_z, there_z = _step(grid, z, c, 2)
                cell = (cell_x * size_y + cell_y) * size_z + cell_z
                # A cell that was too small knows how many atoms it should hold, but not all of them.
                filled = tl.minimum(tl.load(grid.filled + cell), grid.capacity)
                filled = tl.where(there_x & there_y & there_z, filled, 0)
                image = image_x + turns_x
                image = image * (2 * turns_y + 1) + image_y + turns_y
                image = image * (2 * turns_z + 1) + image_z + turns_z
                for first in range(0, filled, block):
                    lane = first + tl.arange(0, block)
                    j, near = _candidates(state, grid, i, cell, (image_x, image_y, image_z), lane, filled)
                    ones = tl.where(near, 1, 0)
                    column = found + tl.cumsum(ones, axis=0) - 1
                    entry = i * rows.capacity + column
                    fits = near & (column < rows.capacity)
                    tl.store(rows.neighbour + entry, j.to(tl.int32), mask=fits)
                    tl.store(rows.image + entry, tl.zeros(lane.shape, tl.int32) + image, mask=fits)
                    found += tl.sum(ones, axis=0)
    return found


@triton.jit
def search_kernel(
    state: tl.tuple, grid: tl.tuple, rows: tl.tuple, flags: tl.tensor, n_atoms: tl.tensor, block: tl.constexpr
) -> None:
    """Neighbours of all atoms, and the longest row."""
    if tl.load(flags) > 0:
        longest = 0
        for atom in range(tl.program_id(0), n_atoms, tl.num_programs(0)):
            i = tl.cast(atom, tl.int64)
            found = _search(state, grid, rows, i, block)
            tl.store(rows.length + i, tl.minimum(found, rows.capacity))
            longest = tl.maximum(longest, found)
        tl.atomic_max(flags + 2, longest)


@triton.jit
def _reverse(grid: tl.tuple, rows: tl.tuple, i: tl.tensor, last: tl.tensor, block: tl.constexpr) -> None:
    """For every pair i -> j of one atom the place of j -> i."""
    n = tl.load(rows.length + i)
    for start in range(0, n, block):
        lane = start + tl.arange(0, block)
        entry = i * rows.capacity + lane
        j = tl.load(rows.neighbour + entry, mask=lane < n, other=0).to(tl.int64)
        opposite = last - tl.load(rows.image + entry, mask=lane < n, other=0)
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
def reverse_kernel(
    grid: tl.tuple, rows: tl.tuple, flags: tl.tensor, n_atoms: tl.tensor, n_cells: tl.tensor, block: tl.constexpr
) -> None:
    """The place of j -> i for all pairs i -> j; cells are emptied for the next list."""
    if tl.load(flags) > 0:
        last = 1
        for axis in tl.static_range(3):
            last *= 2 * tl.load(grid.images + axis) + 1
        for atom in range(tl.program_id(0), n_atoms, tl.num_programs(0)):
            _reverse(grid, rows, tl.cast(atom, tl.int64), last - 1, block)
        for cell in range(tl.program_id(0), n_cells, tl.num_programs(0)):
            tl.store(grid.filled + cell, 0)


@triton.jit
def _ask(clock: tl.tuple, moved: tl.tensor) -> None:
    """Ask for a new list where squared displacements are too large."""
    # `not <=`: positions that are NaN ask for a list, and its kernels meet them.
    if tl.max((~(moved <= tl.load(clock.numbers + 2))).to(tl.int32), axis=0) > 0:
        tl.store(clock.flags, 1)


@triton.jit
def _noise(clock: tl.tuple) -> Any:
    """Key of the random numbers of a step: the seed grows with the step, so that no state but the step is kept."""
    return tl.load(clock.seed) + tl.load(clock.step)


@triton.jit
def _kt(clock: tl.tuple) -> Any:
    """k T of a step, eV."""
    return tl.load(clock.numbers + 3) + tl.load(clock.numbers + 4) * tl.load(clock.step).to(tl.float64)


@triton.jit
def _normal(clock: tl.tuple, stream: tl.constexpr) -> Any:
    """A normal number that belongs to the system; negative counters are those of no coordinate."""
    return tl.max(tl.randn(_noise(clock), tl.zeros([32], tl.int64) - 1 - 128 * stream), axis=0).to(tl.float64)


@triton.jit
def _chi_squared(clock: tl.tuple, half: tl.tensor, stream: tl.constexpr) -> Any:
    """A chi-squared number of 2 half degrees of freedom, half >= 1 (Marsaglia, Tsang 2000, doi 10.1145/358407.358414).

    Each of 32 proposals is accepted with at least 95 %: the first that is counts.
    """
    lane = tl.arange(0, 32)
    counter = -2 - 128 * stream - lane.to(tl.int64)
    normal = tl.randn(_noise(clock), counter).to(tl.float64)
    uniform = tl.rand(_noise(clock), counter - 32).to(tl.float64)
    d = half - 1.0 / 3.0
    root = 1.0 + normal / tl.sqrt(9.0 * d)
    cube = tl.where(root > 0.0, root * root * root, 1.0)
    limit = 0.5 * normal * normal + d * (1.0 - cube + tl.log(cube))
    accepted = (root > 0.0) & (tl.log(uniform) < limit)
    first = tl.min(tl.where(accepted, lane, 31), axis=0)
    return 2.0 * d * tl.sum(tl.where(lane == first, cube, 0.0), axis=0)


@triton.jit
def advance_kernel(
    state: tl.tuple,
    work: tl.tuple,
    clock: tl.tuple,
    n_atoms: tl.tensor,
    thermostat: tl.constexpr,
    barostat: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """First half of a step: kick, drift, and whether the list is too old; after a barostat, atoms follow the box first.

    Langevin dynamics (thermostat 1) in the order B A O A B (Leimkuhler and Matthews 2013, doi 10.1093/amrx/abs010).
    Rescaling of velocities (2) needs their sum between the two half drifts: `finish_kernel` does the second one.
    """
    atom = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = atom < n_atoms
    kick = tl.load(state.kick + atom, mask=present, other=1.0)
    dt = tl.load(clock.numbers)
    moved = tl.zeros([block], tl.float64)
    for axis in tl.static_range(3):
        place = 3 * atom + axis
        v = tl.load(state.velocities + place, mask=present, other=0.0)
        v += kick * tl.load(work.forces + place, mask=present, other=0.0).to(tl.float64)
        x = tl.load(state.positions + place, mask=present, other=0.0)
        anchor = tl.load(state.anchors + place, mask=present, other=0.0)
        if barostat:
            factor = tl.load(clock.scale + 2)
            x *= factor
            anchor *= factor
            tl.store(state.anchors + place, anchor, mask=present)
        x += 0.5 * dt * v
        if thermostat == 1:
            noise = tl.sqrt(_kt(clock)) * tl.randn(_noise(clock), place).to(tl.float64)
            v = tl.load(clock.numbers + 1) * v + tl.load(state.spread + atom, mask=present, other=0.0) * noise
        if thermostat != 2:
            x += 0.5 * dt * v
        tl.store(state.positions + place, x, mask=present)
        tl.store(state.velocities + place, v, mask=present)
        d = x - anchor
        moved += tl.where(present, d * d, 0.0)
    if thermostat != 2:
        _ask(clock, moved)


@triton.jit
def sum_kernel(
    state: tl.tuple, work: tl.tuple, clock: tl.tuple, n_atoms: tl.tensor, kinetic: tl.constexpr, block: tl.constexpr
) -> None:
    """Sums in blocks: twice the kinetic energy, or the trace of the virial."""
    atom = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = atom < n_atoms
    total = tl.zeros([block], tl.float64)
    if kinetic:
        kick = tl.load(state.kick + atom, mask=present, other=0.0)
        # Inertia is dt / 2 over `kick`; held atoms have neither kick nor velocity.
        inertia = tl.where(kick > 0.0, 0.5 * tl.load(clock.numbers) / tl.where(kick > 0.0, kick, 1.0), 0.0)
        for axis in tl.static_range(3):
            v = tl.load(state.velocities + 3 * atom + axis, mask=present, other=0.0)
            total += inertia * v * v
    else:
        for axis in tl.static_range(3):
            total += tl.load(work.virial + 6 * atom + axis, mask=present, other=0.0).to(tl.float64)
    tl.store(clock.sums + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _total(clock: tl.tuple, n_sums: tl.tensor, block: tl.constexpr) -> Any:
    lane = tl.arange(0, block)
    total = tl.zeros([block], tl.float64)
    for first in range(0, n_sums, block):
        total += tl.load(clock.sums + first + lane, mask=first + lane < n_sums, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def rescale_kernel(clock: tl.tuple, n_sums: tl.tensor, block: tl.constexpr) -> None:
    """Factor of stochastic velocity rescaling in one program, as `snnp.sampling.thermostats.velocity_factor`."""
    twice, keep = _total(clock, n_sums, block), tl.load(clock.numbers + 1)
    ratio = (1.0 - keep) * _kt(clock) / tl.where(twice > 0.0, twice, 1.0)
    root = tl.sqrt(keep) + _normal(clock, 2) * tl.sqrt(ratio)
    factor = tl.sqrt(root * root + ratio * _chi_squared(clock, tl.load(clock.numbers + 6), 3))
    tl.store(clock.numbers + 5, tl.where(twice > 0.0, factor, 1.0))


@triton.jit
def finish_kernel(state: tl.tuple, clock: tl.tuple, n_atoms: tl.tensor, block: tl.constexpr) -> None:
    """Rescale velocities, second half drift, and whether the list is too old."""
    atom = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = atom < n_atoms
    moved = tl.zeros([block], tl.float64)
    for axis in tl.static_range(3):
        place = 3 * atom + axis
        v = tl.load(clock.numbers + 5) * tl.load(state.velocities + place, mask=present, other=0.0)
        x = tl.load(state.positions + place, mask=present, other=0.0) + 0.5 * tl.load(clock.numbers) * v
        tl.store(state.positions + place, x, mask=present)
        tl.store(state.velocities + place, v, mask=present)
        d = x - tl.load(state.anchors + place, mask=present, other=0.0)
        moved += tl.where(present, d * d, 0.0)
    _ask(clock, moved)


@triton.jit
def barostat_kernel(box: tl.tuple, grid: tl.tuple, clock: tl.tuple, n_sums: tl.tensor, block: tl.constexpr) -> None:
    """Stochastic cell rescaling in one program: a new scale of the box, and everything that follows from it.

    The volume is drawn as in `snnp.sampling.thermostats.new_volume`.
    """
    lane = tl.arange(0, block)
    before = tl.load(box.scale)
    volume = tl.load(box.numbers) * before * before * before
    rate, kt = tl.load(box.numbers + 2), _kt(clock)
    decay = rate * (tl.load(box.numbers + 1) + _total(clock, n_sums, block) / (3.0 * volume))
    # (1 - exp(-decay)) / decay, by its series where the difference has no digits left.
    small = tl.abs(decay) < 1e-5
    mean = tl.where(small, 1.0 - 0.5 * decay, (1.0 - tl.exp(-decay)) / tl.where(small, 1.0, decay))
    unit = 0.5 * kt * rate * mean
    root = _normal(clock, 0) + tl.sqrt(volume * tl.exp(-decay) / unit)
    volume = unit * (root * root + _chi_squared(clock, tl.load(box.numbers + 5), 1))
    scale = tl.exp(tl.log(volume / tl.load(box.numbers)) / 3.0)
    tl.store(box.scale, scale)
    tl.store(box.scale + 2, scale / before)
    # Kept as numbers for the host: a box too small for its grid, and how small it was.
    tl.store(box.scale + 3, tl.minimum(tl.load(box.scale + 3), scale))
    # The list holds all pairs closer than the reach when it was built; scaling has moved those beyond it, too.
    room = 0.5 * (tl.load(box.numbers + 3) * scale / tl.load(box.scale + 1) - tl.load(box.numbers + 4))
    tl.store(clock.numbers + 2, tl.where(room > 0.0, room * room, -1.0))
    nine = tl.arange(0, 16)
    tl.store(grid.cell + nine, scale * tl.load(box.cell + nine, mask=nine < 9), mask=nine < 9)
    tl.store(grid.inverse + nine, tl.load(box.inverse + nine, mask=nine < 9) / scale, mask=nine < 9)
    for first in range(0, box.n_images, block):
        listed = first + lane < box.n_images
        tl.store(box.images + first + lane, scale * tl.load(box.start + first + lane, mask=listed), mask=listed)


@triton.jit
def kick_kernel(state: tl.tuple, work: tl.tuple, clock: tl.tuple, n_numbers: tl.tensor, block: tl.constexpr) -> None:
    """Second half of a step: kick; the step is counted, and the list, if it is new."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = place < n_numbers
    v = tl.load(state.velocities + place, mask=present, other=0.0)
    f = tl.load(work.forces + place, mask=present, other=0.0).to(tl.float64)
    v += tl.load(state.kick + place // 3, mask=present, other=0.0) * f
    tl.store(state.velocities + place, v, mask=present)
    if tl.program_id(0) == 0:
        tl.store(clock.step, tl.load(clock.step) + 1)
        if tl.load(clock.flags) > 0:
            tl.store(clock.scale + 1, tl.load(clock.scale))
            tl.store(clock.flags + 3, tl.load(clock.flags + 3) + 1)
            tl.store(clock.flags, 0)
