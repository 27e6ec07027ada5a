"""Images of microstructures whose parameters are known: grains, lamellae, spinodal patterns, slices of atoms.

On them a method that looks for the variables behind images can be tested: does it find what the images were made with?
Patterns are arrays [size, size] of shades in 0..1; lengths are pixels. Grains are dead leaves (Matheron 1968): shapes
that fall at random, each hiding what lies below. Spinodal patterns are level sets of random waves (Cahn,
J. Chem. Phys. 42, 93 (1965)).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.special import gamma

from snnp.errors import InputError
from snnp.neighbours import neighbour_list
from snnp.structure import Structure

__all__ = ["columnar_polycrystal", "coordination", "grains", "lamellae", "slice_image", "spinodal"]

Image = NDArray[np.float64]
"""[height, width], shades in 0..1."""

_ASPECT = 2.0  # a grain's length over its width
_BLUNTEST, _SHARPEST = 4.0, 0.55  # exponents p of grains
_ROUGHNESS_WAVES = np.arange(5, 14)  # waves around a grain's boundary that are random
_WIGGLE, _WIGGLE_LENGTH = 0.5, 2.5  # of lamellae: random shift and the length over which it changes, in wavelengths


def grains(rng: np.random.Generator, size: int, scale: float, pointedness: float, noise: float) -> Image:
    """Grains of random shades that hide each other.

    A grain is |x/a|^p + |y/b|^p < 1 with a = 2 b, turned at random, of the area of a circle of radius `scale` whatever
    its p.

    Arguments:
        size: pixels of a side. scale: radius of the circle of equal area, pixels.
        pointedness: 0 is a rounded rectangle (p = 4), 1 a star of four points (p = 0.55); an ellipse is at 0.35.
        noise: relative size of random waves along the boundaries, about 0 to 0.3.
    """
    p = _BLUNTEST * (_SHARPEST / _BLUNTEST) ** pointedness
    b = scale * np.sqrt(np.pi / (4.0 * _ASPECT * gamma(1.0 + 1.0 / p) ** 2 / gamma(1.0 + 2.0 / p)))
    a = _ASPECT * b
    reach = int(np.ceil(a * (1.0 + 2.0 * noise))) + 1
    image, open_ = np.zeros((size, size)), np.ones((size, size), dtype=bool)
    while open_.any():
        y0, x0 = rng.uniform(-reach, size + reach, 2)
        rows = slice(max(int(y0) - reach, 0), max(int(y0) + reach + 1, 0))
        cols = slice(max(int(x0) - reach, 0), max(int(x0) + reach + 1, 0))
        turn, shade = rng.uniform(0.0, 2.0 * np.pi), rng.uniform()
        phases, heights = rng.uniform(0.0, 2.0 * np.pi, len(_ROUGHNESS_WAVES)), rng.normal(size=len(_ROUGHNESS_WAVES))
        y, x = np.nonzero(open_[rows, cols])
        if y.size == 0:
            continue
        dy, dx = y + rows.start - y0, x + cols.start - x0
        along, across = (dx * np.cos(turn) + dy * np.sin(turn)) / a, (dy * np.cos(turn) - dx * np.sin(turn)) / b
        radius = (np.abs(along) ** p + np.abs(across) ** p) ** (1.0 / p)
        waves = np.cos(_ROUGHNESS_WAVES * np.arctan2(across, along)[:, None] + phases) @ heights
        covered = radius < 1.0 + noise * waves / np.sqrt(len(_ROUGHNESS_WAVES))
        y, x = y[covered] + rows.start, x[covered] + cols.start
        image[y, x], open_[y, x] = shade, False
    return image


def lamellae(rng: np.random.Generator, size: int, wavelength: float, orientation: float, fraction: float) -> Image:
    """Stripes of two phases that are bent at random.

    Arguments:
        wavelength: pixels from stripe to stripe. orientation: of the stripes' normal, degrees, 0 to 180.
        fraction: of the bright phase, 0 to 1.
    """
    y, x = np.mgrid[:size, :size]
    angle = np.radians(orientation)
    shift = gaussian_filter(rng.normal(size=(size, size)), _WIGGLE_LENGTH * wavelength, mode="wrap")
    shift *= _WIGGLE / max(float(shift.std()), 1e-12)
    phase = (x * np.cos(angle) + y * np.sin(angle)) / wavelength + shift + rng.uniform()
    return _two_phases(np.cos(2.0 * np.pi * phase), fraction, 4.0 / wavelength)


def spinodal(rng: np.random.Generator, size: int, wavelength: float, spread: float, fraction: float) -> Image:
    """Two phases that interpenetrate: a level set of random waves of about one length, without direction.

    Arguments:
        wavelength: pixels. spread: standard deviation of the waves' lengths over their mean, 0 for the most regular.
        fraction: of the bright phase, 0 to 1.
    """
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    width = max(spread, 0.5 * wavelength / size) / wavelength  # a shell that holds waves of the box
    amplitude = np.exp(-0.25 * ((k - 1.0 / wavelength) / width) ** 2)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * amplitude).real
    return _two_phases(field / field.std(), fraction, 4.0 / wavelength)


def _two_phases(field: Image, fraction: float, width: float) -> Image:
    """The part of the field above a level, with edges about a pixel wide."""
    image: Image = 0.5 + 0.5 * np.tanh((field - np.quantile(field, 1.0 - fraction)) / width)
    return image


# Atoms.


def columnar_polycrystal(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    n_grains: int,
    crystal: Atoms,
    melt: Atoms | None = None,
    *,
    molten: float = 0.0,
) -> Atoms:
    """Grains of a cubic crystal by Voronoi's construction: columns along z, each turned about z at random.

    Arguments:
        size: of the periodic box in lattice constants, so that no column ends along z.
        n_grains: columns. crystal: a conventional cell of one element. melt: a periodic box of the same element as
            thick as the columns, for a share `molten` of the grains.

    Returns:
        The atoms; of two that are closer than 0.8 of the crystal's nearest neighbours one is left out. The arrays
        "grain" and "molten" [N] tell to which grain each belongs, and whether that is liquid.

    Raises:
        InputError: for a cell that is not cubic, no grain, or molten grains without a melt.
    """
    a = crystal.cell.lengths()
    if n_grains < 1 or not np.allclose(crystal.cell.array, a[0] * np.eye(3), atol=1e-6):
        raise InputError(
            f"expected a cubic cell and at least one grain, got {crystal.cell.array.tolist()}, {n_grains}."
        )
    if molten > 0.0 and melt is None:
        raise InputError("a molten share needs a melt: give a periodic box of the liquid, as thick as the columns.")
    box = a[0] * np.asarray(size, dtype=float)
    if melt is not None and not np.isclose(melt.cell.lengths()[2], box[2], rtol=1e-6):
        raise InputError(
            f"the melt is {melt.cell.lengths()[2]:.3f} Å thick and the columns {box[2]:.3f} Å; make them alike."
        )
    centres = rng.uniform(size=(n_grains, 2)) * box[:2]
    is_liquid = rng.permutation(n_grains) < round(molten * n_grains)
    voronoi = cKDTree(centres, boxsize=box[:2])
    parts, owners = [], []
    for grain, centre in enumerate(centres):
        angle, shift = rng.uniform(0.0, np.pi / 2.0), rng.uniform(size=2)
        filling, turn = (melt, 0.0) if is_liquid[grain] else (crystal, angle)
        assert filling is not None
        points = _plane_filled(filling, turn, shift, box) + np.array([*centre, 0.0])
        inside = np.all(np.abs(points[:, :2] - centre) <= 0.5 * box[:2], axis=1)  # one of each periodic copy
        points = points[inside] % box
        owned = voronoi.query(points[:, :2] % box[:2])[1] == grain
        parts.append(points[owned])
        owners.append(np.full(int(owned.sum()), grain))
    positions, owner = np.concatenate(parts) % box, np.concatenate(owners)
    kept = _apart(positions, box, 0.8 * _nearest(crystal))
    atoms = Atoms(f"{crystal.symbols[0]}{len(kept)}", positions=positions[kept], cell=box, pbc=True)
    atoms.set_array("grain", owner[kept])
    atoms.set_array("molten", is_liquid[owner[kept]])
    return atoms


def _plane_filled(
    filling: Atoms, angle: float, shift: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Positions [n, 3] of copies of a cell, shifted by a part of it and turned about z, that fill more than a box."""
    cell = filling.cell.lengths()
    across = int(np.ceil(np.hypot(*box[:2]) / cell[:2].min())) + 2
    points = filling.repeat((across, across, max(round(box[2] / cell[2]), 1))).positions
    points = points - [*((0.5 * across + shift - 0.5) * cell[:2]), 0.0]
    c, s = np.cos(angle), np.sin(angle)
    turned: NDArray[np.float64] = points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return turned


def _nearest(crystal: Atoms) -> float:
    distances = crystal.repeat(2).get_all_distances(mic=True)
    return float(distances[distances > 1e-6].min())


def _apart(positions: NDArray[np.float64], box: NDArray[np.float64], least: float) -> NDArray[np.int64]:
    """Atoms that stay where of two closer than `least` the later goes."""
    gone = np.zeros(len(positions), dtype=bool)
    for i, j in sorted(cKDTree(positions, boxsize=box).query_pairs(least)):
        if not gone[i]:
            gone[j] = True
    return np.flatnonzero(~gone)


def coordination(atoms: Atoms, cutoff: float) -> NDArray[np.int64]:
    """[N] numbers of neighbours within a distance (Å)."""
    found = neighbour_list(Structure.from_ase(atoms), cutoff)
    counts: NDArray[np.int64] = np.bincount(found.i.numpy(), minlength=len(atoms))
    return counts


def slice_image(atoms: Atoms, values: Any, size: int, blur: float = 1.5) -> Image:
    """A picture of a thin periodic box seen along z: the mean of a value of the atoms near each pixel.

    Arguments:
        values: [N], of each atom. size: pixels of a side, whatever the box. blur: standard deviation of an atom's
            weight, Å.

    Returns:
        [size, size] in the unit of the values: bring a set of pictures to shades with one scale for all.

    Raises:
        InputError: where the box is not rectangular.
    """
    lengths = atoms.cell.lengths()
    if not np.allclose(atoms.cell.array, np.diag(lengths), atol=1e-6):
        raise InputError("the box of a slice must be rectangular along x, y, z; take another, or cut one out.")
    places = np.floor(atoms.positions[:, :2] / lengths[:2] * size).astype(int) % size
    width = blur * size / lengths[:2]
    sums = np.zeros((2, size, size))
    np.add.at(sums[0], (places[:, 1], places[:, 0]), np.asarray(values, dtype=float))
    np.add.at(sums[1], (places[:, 1], places[:, 0]), 1.0)
    total, weight = (gaussian_filter(each, (width[1], width[0]), mode="wrap") for each in sums)
    image: Image = total / np.maximum(weight, 1e-9 * weight.max())
    return image
