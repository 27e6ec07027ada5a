"""What the training data of a bundled model cover: beyond it a model extrapolates, as its card says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.build import bulk
from ase.formula import Formula

from snnp.analysis.properties import ground_state, lattice_constants
from snnp.data import Frame, Frames
from snnp.data.reference import are_isolated_atoms
from snnp.errors import DataError
from snnp.models.potential import Potential

__all__ = ["training_range"]


def training_range(frames: Sequence[Frame], model: Potential) -> dict[str, Any]:
    """What the training data cover, isolated atoms aside, as JSON values: beyond it a model extrapolates."""
    frames = Frames.of(frames)
    frames = frames.take(~are_isolated_atoms(frames))
    if not len(frames):
        raise DataError("the training set holds no frame with more than isolated atoms; there is nothing to describe.")
    counts, elements, periodic = frames.composition(), frames.elements, frames.pbc.any(axis=1)
    zero = counts @ [model.reference_energies[symbol] for symbol in elements]
    energies = ((frames.energy - zero) / frames.counts)[frames.has_energy]
    forces = np.abs(frames.forces[np.repeat(frames.has_forces, frames.counts)])
    formula = Formula.from_dict(dict(zip(elements, counts[0].tolist(), strict=True))).format("hill")
    return {
        "n_frames": len(frames),
        "n_atoms": len(frames.numbers),
        "n_energies": len(energies),
        "groups": dict(sorted(Counter(group for group in frames.groups if group).items())),
        "shortest_distance_angstrom": float(frames.shortest_distances(model.cutoff).min()),
        "energy_span_ev_per_atom": float(np.ptp(energies)) if len(energies) else None,
        "largest_force_ev_per_angstrom": float(forces.max()) if len(forces) else None,
        "periodic": "all" if periodic.all() else "some" if periodic.any() else "none",
        "mixed": bool(((counts > 0).sum(axis=1) > 1).any()),
        "formula": formula if (counts == counts[0]).all() else None,
        **_volumes(frames.take(frames.has_volume), model),
    }


def _volumes(frames: Frames, model: Potential) -> dict[str, Any]:
    """Volumes of crystals, in Å³/atom, and the smallest relative to the model's own crystals."""
    if not len(frames):
        return {"volume_a3_per_atom": None, "smallest_v_over_v0": None}
    crystals = {symbol: bulk(symbol, ground_state(symbol), a=a) for symbol, a in lattice_constants(model).items()}
    known = {symbol: crystal.get_volume() / len(crystal) for symbol, crystal in crystals.items()}
    volumes, counts = frames.volume, frames.composition()
    rest = np.array([known.get(symbol, 0.0) for symbol in frames.elements])
    complete = ~counts[:, rest == 0.0].any(axis=1)
    ratios, each = volumes[complete] / (counts[complete] @ rest), volumes / frames.counts
    smallest = float(ratios.min()) if len(ratios) else None
    return {"volume_a3_per_atom": [float(each.min()), float(each.max())], "smallest_v_over_v0": smallest}
