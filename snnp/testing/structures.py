"""Small structures that exercise a potential: open, periodic in some directions or all, skewed, and tiny."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from snnp.models.potential import Potential
from snnp.structure import Structure

__all__ = ["example_structures"]

_SHEAR = np.array([[1.0, 0.0, 0.0], [0.35, 1.0, 0.0], [-0.2, 0.4, 1.0]])


def _grid(counts: tuple[int, int, int], spacing: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fractional-grid positions with noise, and the cell that holds them."""
    points = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    positions = (points + rng.uniform(-0.12, 0.12, points.shape)) * spacing
    return positions, np.diag(np.array(counts) * spacing)


def _atoms(
    model: Potential, counts: tuple[int, int, int], pbc: tuple[bool, bool, bool], rng: np.random.Generator
) -> Atoms:
    """A noisy, sheared grid of the model's elements."""
    # Not a simple fraction: no image lies exactly at the cutoff, where rounding decides about a potential that jumps.
    positions, cell = _grid(counts, 0.47 * model.cutoff, rng)
    symbols = rng.permutation([model.elements[k % len(model.elements)] for k in range(len(positions))])
    # Vectors along open directions mean nothing: files have them as zero or as the size of a box.
    kept = np.array(pbc) | (rng.random(3) < 0.5)
    return Atoms(symbols, positions @ _SHEAR, cell=np.where(kept[:, None], cell @ _SHEAR, 0.0), pbc=pbc)


def example_structures(model: Potential, seed: int = 0) -> list[Structure]:
    """Structures of the model's elements, with atoms about half a cutoff apart, each a batch of one.

    A cluster, a crystal whose skewed cell is not larger than the cutoff, one with two atoms only, a slab, a wire, and
    a pair at a quarter of the cutoff (where a repulsion acts).
    """
    rng = np.random.default_rng(seed)
    frames = [
        _atoms(model, (2, 2, 2), (False, False, False), rng),
        _atoms(model, (2, 2, 1), (True, True, True), rng),
        _atoms(model, (1, 1, 2), (True, True, True), rng),
        _atoms(model, (1, 2, 2), (True, True, False), rng),
        _atoms(model, (2, 1, 2), (False, True, False), rng),
    ]
    direction = rng.normal(size=3)
    bond = 0.25 * model.cutoff * direction / np.linalg.norm(direction)
    frames.append(Atoms([model.elements[0], model.elements[-1]], [np.zeros(3), bond]))
    return [Structure.from_ase(frame) for frame in frames]
