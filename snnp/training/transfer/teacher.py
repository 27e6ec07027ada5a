"""Labels of a teacher: frames far above the ground count less, and its energies of atoms have zeros of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnp.data import Frames
from snnp.models.potential import Potential

__all__ = ["atomic_zeros", "frame_weights"]


def frame_weights(model: Potential, frames: Frames, scale: float | None) -> np.ndarray:
    """[B] weights (scale / (scale + E))² of frames an energy E per atom above the lowest, one on average.

    That of mixtures is counted from the line between the lowest frames of pure elements, where these are known. Frames
    without energy, or below the line, count as lowest.

    Arguments:
        model: whose E0 are taken off.
        frames: those of the training set, or a part that is like them.
        scale: eV/atom, from where on weights fall; None: all are one.
    """
    if scale is None:
        return np.ones(len(frames))
    content = frames.composition() / frames.counts[:, None]
    bound = frames.energy / frames.counts - content @ [model.reference_energies[s] for s in frames.elements]
    known, pure = frames.has_energy & (frames.counts > 1), content == 1.0
    overall = bound[known].min(initial=0.0)
    lowest = [bound[known & of].min() if (known & of).any() else overall for of in pure.T]
    above = np.where(frames.has_energy, bound - content @ lowest, 0.0).clip(min=0.0)
    weight: np.ndarray = (scale / (scale + above)) ** 2
    return weight / (weight.mean() if len(weight) else 1.0)


def atomic_zeros(frames: Frames, e0: Mapping[str, float]) -> dict[str, float]:
    """Zeros of the labels of atomic energies, eV per element, that go with E0; none if there are no such labels.

    A teacher counts the energies of atoms from zeros of its own. Least squares find those with which the rest sums to
    the labels of energy without `e0` (eV per element); where compositions leave them open, those that are nearest to
    the mean energy of an element's atoms.
    """
    frames = frames.take(frames.has_energies & frames.has_energy)
    if not len(frames):
        return {}
    composition, element = frames.composition(), np.unique(frames.numbers, return_inverse=True)[1]
    mean = np.bincount(element, weights=frames.energies) / composition.sum(axis=0)
    rest = frames.energy - composition @ np.array([e0[symbol] for symbol in frames.elements])
    surplus = frames.per_frame(frames.energies) - rest - composition @ mean
    shift, *_ = np.linalg.lstsq(composition / frames.counts[:, None], surplus / frames.counts, rcond=1e-8)
    return dict(zip(frames.elements, (mean + shift).tolist(), strict=True))
