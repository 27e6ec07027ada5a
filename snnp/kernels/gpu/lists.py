"""Neighbour lists built on the GPU without waiting for it: cells, rows, and when to build them again."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnp.errors import InputError

__all__ = ["CellList", "Flags", "Grid", "Rows", "State", "image_vectors", "rows_of"]

_MOST_CELLS = 2**27
_BLOCK = 128
_SLACK = 1.15  # room in a row beyond the longest found
_FULLEST = 4096  # atoms that a cell or a row may hold: no matter is so dense, and cells are sorted at once
_MOST_PROGRAMS = 16384  # of a kernel that does nothing in most steps: each costs about a nanosecond even then
_LAUNCH: dict[str, Any] = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}


class Rows(NamedTuple):
    """Neighbours of atom i in row i; the vector of a pair is `r_j - r_i + images[image]`."""

    length: Tensor  # [N] int32, entries in use
    neighbour: Tensor  # [N, capacity] int32
    image: Tensor  # [N, capacity] int32
    reverse: Tensor  # [N, capacity] integer, place of the pair j -> i in the flattened array
    capacity: int  # entries per row


class State(NamedTuple):
    """Atoms in motion, float64."""

    positions: Tensor  # [N, 3] Å, brought into the cell whenever the list is built
    wraps: Tensor  # [N, 3] int32: `positions + wraps @ cell` are the atoms' true paths
    anchors: Tensor  # [N, 3] positions at which the list was built
    velocities: Tensor  # [N, 3] Å/fs
    kick: Tensor  # [N] half a time step over the mass, in Å/fs per eV/Å
    spread: Tensor  # [N] Å/fs, noise of the thermostat


class Grid(NamedTuple):
    """Cells of a grid over the box."""

    cell: Tensor  # [9] float64 lattice vectors as rows (open directions: of the grid)
    inverse: Tensor  # [9]
    origin: Tensor  # [3] fractional coordinates of the grid's corner
    sizes: Tensor  # [3] int32 cells along each axis
    reach: Tensor  # [3] int32 cells searched to either side
    images: Tensor  # [3] int32 images that this can meet
    periodic: Tensor  # [3] int32
    square: Tensor  # [1] float64, squared distance up to which pairs are listed
    home: Tensor  # [N] int32 cell of each atom
    filled: Tensor  # [cells] int32 atoms in it
    members: Tensor  # [cells, capacity] int32
    capacity: int  # atoms per cell, a power of two


def rows_of(pairs: tuple[Tensor, Tensor, Tensor], n_atoms: int, structure: Tensor) -> tuple[Rows, tuple[int, int, int]]:
    """Rows of a full list of pairs (i [P] ascending, j [P], shift [P, 3]), and the reach of the images along each axis.

    `structure`: [N] of each atom: images of structure b follow those of structure b - 1. Raises `InputError` if the
    list lacks the reverse of a pair.
    """
    i, j, shift = pairs
    n_pairs, device = i.shape[0], i.device
    reach = shift.abs().amax(dim=0) if n_pairs else shift.new_zeros(3)
    sizes = 2 * reach + 1
    n_images = int(sizes.prod())

    def image(s: Tensor) -> Tensor:
        s = s + reach
        return (s[:, 0] * sizes[1] + s[:, 1]) * sizes[2] + s[:, 2]

    count = torch.bincount(i, minlength=n_atoms)
    capacity = max(int(count.max()) if n_pairs else 1, 1)
    column = torch.arange(n_pairs, device=device) - (count.cumsum(0) - count)[i]
    place = i * capacity + column
    # Every pair as one number: (centre, neighbour, image); the reverse pair is looked up among the sorted numbers.
    keys, order = torch.sort((i * n_atoms + j) * n_images + image(shift))
    wanted = (j * n_atoms + i) * n_images + image(-shift)
    found = torch.searchsorted(keys, wanted).clamp(max=max(n_pairs - 1, 0))
    if n_pairs and not torch.equal(keys[found], wanted):
        raise InputError("the neighbour list holds i -> j without j -> i; give a full list (see snnp.neighbours).")
    wide = torch.int32 if n_atoms * capacity < 2**31 else torch.int64

    def dense(values: Tensor, kind: torch.dtype) -> Tensor:
        flat = torch.zeros(n_atoms * capacity, dtype=kind, device=device)
        return flat.index_copy_(0, place, values.to(kind)).view(n_atoms, capacity)

    reached = reach.tolist()
    rows = Rows(
        length=count.to(torch.int32),
        neighbour=dense(j, torch.int32),
        image=dense(image(shift) + structure[i] * n_images, torch.int32),
        reverse=dense(place[order[found]] if n_pairs else place, wide),
        capacity=capacity,
    )
    return rows, (reached[0], reached[1], reached[2])


def image_vectors(reach: tuple[int, int, int], cell: Tensor) -> Tensor:
    """[B * images, 3] float64 translations in Å of all numbered images, for cells [B, 3, 3]."""
    axes = [torch.arange(-r, r + 1, dtype=torch.float64, device=cell.device) for r in reach]
    shifts = torch.cartesian_prod(*axes)
    return (shifts @ cell.double()).reshape(-1, 3).contiguous()


class Flags(NamedTuple):
    """What the device has to say, read now and then."""

    fullest: int  # cell
    longest: int  # row
    n_builds: int  # of lists
    least: float  # scale


class CellList:
    """A neighbour list with a skin for one structure.

    Arguments:
        positions: [N, 3] float64 Å on the device; cell: [3, 3] Å, rows are lattice vectors; pbc: [3] bool.
        reach: Å, distance up to which pairs are listed (cutoff and skin).
        margin: part of its lengths by which a barostat may shrink the box before the host must make another grid.

    Attributes:
        scale: [4] float64 on the device, lengths of the box over those of `cell`: now, when the list was built; the
            factor of the last step; and the smallest so far.

    Raises `InputError` for positions that are not finite, or a flat periodic cell.
    """

    def __init__(self, positions: Tensor, cell: Tensor, pbc: Tensor, reach: float, *, margin: float = 0.0) -> None:
        # Imported here: the rest of the package works without Triton.
        from snnp.kernels.gpu import _list

        self._kernels = _list
        self.device, self.reach = positions.device, reach
        if not bool(positions.isfinite().all()):
            raise InputError("positions hold NaN or infinite values; check the structure.")
        self._box, self._origin, self.pbc = _box(positions, cell, pbc, reach)
        volume = float(torch.linalg.det(self._box).abs())
        if not volume > 0.0:
            raise InputError("the periodic cell is flat (zero volume); check its lattice vectors.")
        self._expected = 4.2 * reach**3 * positions.shape[0] / volume
        self.flags = torch.zeros(4, dtype=torch.int32, device=self.device)
        self.scale = torch.ones(4, dtype=torch.float64, device=self.device)
        self._margin, self._least = margin, 1.0 - margin
        self._n_atoms = positions.shape[0]
        self._refuse_more_than(self._expected)
        self.grid = self._make_grid(max(0.5 * self._expected, 8.0))
        self.rows = self._make_rows(int(1.3 * self._expected) + 8)

    @property
    def images(self) -> tuple[int, int, int]:
        """Images that pairs can meet along each axis, as `image_vectors` numbers them."""
        a, b, c = self.grid.images.tolist()
        return a, b, c

    def _refuse_more_than(self, n_atoms: float) -> None:
        if n_atoms > _FULLEST:
            raise InputError(
                f"{n_atoms:.0f} atoms lie within {self.reach:.1f} Å: the structure has collapsed or flown apart; check "
                "positions, cell and time step."
            )

    def _make_grid(self, capacity: float) -> Grid:
        device, scale = self.device, self.scale[0]
        inverse = torch.linalg.inv(self._box)
        heights = self._least / inverse.norm(dim=0)
        sizes = (heights / self.reach).floor().clamp(min=1.0)
        # A long, thin structure must not ask for more cells than there are numbers.
        while float(sizes.prod()) > min(_MOST_CELLS, max(8.0 * self._n_atoms, 64.0)):
            sizes = (0.8 * sizes).floor().clamp(min=1.0)
        reach = torch.ceil(self.reach * sizes / heights - 1e-9)
        width = 1 << max(int(capacity) - 1, 1).bit_length()
        n_cells = int(sizes.prod())

        zeros = partial(torch.zeros, dtype=torch.int32, device=device)
        whole = partial(Tensor.to, device=device, dtype=torch.int32)
        return Grid(
            cell=self._box.flatten().to(device) * scale,
            inverse=inverse.flatten().to(device) / scale,
            origin=self._origin.to(device),
            sizes=whole(sizes),
            reach=whole(reach),
            images=whole(torch.where(self.pbc, torch.ceil(reach / sizes), 1.0)),
            periodic=whole(self.pbc),
            square=torch.tensor([self.reach**2], dtype=torch.float64, device=device),
            home=zeros(self._n_atoms),
            filled=zeros(n_cells),
            members=zeros(n_cells, width),
            capacity=width,
        )

    def _make_rows(self, capacity: int) -> Rows:
        n, zeros = self._n_atoms, partial(torch.zeros, dtype=torch.int32, device=self.device)
        place = torch.int32 if n * capacity < 2**31 else torch.int64
        reverse = zeros(n, capacity, dtype=place)
        return Rows(zeros(n), zeros(n, capacity), zeros(n, capacity), reverse, capacity)

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """[9] lattice vectors of the grid at scale 1, and their inverse, on the device."""
        return self._box.flatten().to(self.device), torch.linalg.inv(self._box).flatten().to(self.device)

    def launch(self, state: State) -> None:
        """Build the list if the flag says so, which is left up; nothing waits for the device."""
        n, grid, kernels = self._n_atoms, self.grid, self._kernels
        n_cells, by_atom = grid.filled.shape[0], (min(n, _MOST_PROGRAMS),)
        kernels.bin_kernel[(-(-n // _BLOCK),)](state, grid, self.flags, n, _BLOCK, **_LAUNCH)
        warps = {"num_warps": 1 if grid.capacity <= _BLOCK else 8}
        cells = (min(n_cells, _MOST_PROGRAMS),)
        kernels.sort_kernel[cells](grid, self.flags, n_cells, grid.capacity, **{**_LAUNCH, **warps})
        kernels.search_kernel[by_atom](state, grid, self.rows, self.flags, n, 32, **_LAUNCH)
        kernels.reverse_kernel[by_atom](grid, self.rows, self.flags, n, n_cells, 32, **_LAUNCH)

    def refresh(self, state: State) -> None:
        """A list at the present positions with the room there is."""
        self.flags[0] = 1
        self.flags[1:3] = 0
        self.launch(state)
        self.flags[0] = 0
        self.flags[3] += 1
        self.scale[1] = self.scale[0]

    def build(self, state: State) -> None:
        """Build the list now, with as much room as it takes; waits for the device. Raises as `grow`."""
        while True:
            self.refresh(state)
            seen = self.read()
            self.flags[1:3] = 0
            if self.is_short(seen):
                self.grow(state, seen)
            elif self.rows.capacity <= 1.5 * _SLACK * seen.longest + 16:
                return
            else:  # rows cost memory on every atom: a generous first guess is taken back
                self.rows = self._make_rows(max(int(_SLACK * seen.longest), 1))

    def is_short(self, seen: Flags) -> bool:
        """Whether a list lacks neighbours for want of room."""
        room = seen.fullest <= self.grid.capacity and seen.longest <= self.rows.capacity
        return not (room and seen.least >= self._least)

    def grow(self, state: State, seen: Flags) -> None:
        """Make room where it was missing; everything since the last one must be computed again.

        Raises `InputError` for positions that are not numbers, or thousands of atoms in one place.
        """
        self.flags[1:3] = 0
        self.scale[3] = self.scale[0]
        self._refuse_more_than(max(seen.fullest, seen.longest, self._expected / seen.least**3))
        if seen.least < self._least:
            self._least = (1.0 - self._margin) * seen.least
            self.grid = self._make_grid(self.grid.capacity)
        if seen.fullest > self.grid.capacity:
            if not bool(self.pbc.all()):
                self._box, self._origin, _ = _box(state.positions, self._box, self.pbc, self.reach)
            self.grid = self._make_grid(seen.fullest)
        if seen.longest > self.rows.capacity:
            self.rows = self._make_rows(int(_SLACK * seen.longest) + 1)

    def read(self) -> Flags:
        """What the device counted since it was last asked to grow. Waits for the device."""
        _, fullest, longest, n_builds = self.flags.tolist()
        return Flags(fullest, longest, n_builds, float(self.scale[3]))


def _box(positions: Tensor, cell: Tensor, pbc: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Lattice vectors, open directions replaced by ones that span the atoms; the corner in their coordinates; pbc."""
    box, pbc = cell.detach().cpu().double().clone(), pbc.cpu()
    origin = torch.zeros(3, dtype=torch.float64)
    if bool(pbc.all()):
        return box, origin, pbc
    # The null space of the periodic vectors: orthonormal, and normal to all of them.
    _, _, vt = torch.linalg.svd(torch.where(pbc[:, None], box, 0.0))
    box[~pbc] = vt[int(pbc.sum()) :]
    coordinates = positions.cpu() @ torch.linalg.inv(box)
    low, high = coordinates.amin(dim=0), coordinates.amax(dim=0)
    length = torch.where(pbc, 1.0, high - low + 2.0 * reach)
    box = box * length[:, None]
    return box, torch.where(pbc, 0.0, (low - reach) / length), pbc
