"""Atoms pushed together: pairs of elements alone, and systems under compression; holes into which they could fall."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from snnp.analysis.compression import Compression, holes_in_words
from snnp.data import Frames
from snnp.models.potential import Potential
from snnp.report import Finding
from snnp.structure import Structure

__all__ = ["Dimer", "check_compression", "check_dimers", "dimer_curves"]

_POINTS = 240
_CLOSEST = 0.3  # of the sum of covalent radii
_SHORT, _TOO_SHORT = 0.75, 0.55  # of it: no bond of two of these atoms is shorter; triple bonds come close
_FALL = 0.1  # eV; smaller ripples of a repulsion hold nobody
_MOST_HOLES = 6  # named in a message
_REACHABLE = 10.0  # eV: hot matter gets over less, and so do searches with random structures


@dataclass(frozen=True)
class Dimer:
    """One pair of elements.

    Arguments:
        pair: symbols; distance: [n] Å, ascending; energy: [n] eV, relative to the atoms far apart.
        hole: Å, where the energy is lower than further out, behind `barrier` (eV above the well outside); None where
            atoms repel each other ever more.
        deeper: eV by which the hole lies below the well outside; negative if it is shallower.
    """

    pair: tuple[str, str]
    distance: np.ndarray
    energy: np.ndarray
    hole: float | None
    barrier: float
    deeper: float


def dimer_curves(model: Potential) -> list[Dimer]:
    """Energies of all pairs of elements from 0.3 times the sum of their covalent radii to the cutoff."""
    result = []
    # Not E0: without neighbours, a network may still say something.
    atoms = Structure.from_ase([Atoms(symbol) for symbol in model.elements])
    alone = dict(zip(model.elements, model.compute(atoms, forces=False).energy.tolist(), strict=True))
    for a, b in itertools.combinations_with_replacement(model.elements, 2):
        za, zb = atomic_numbers[a], atomic_numbers[b]
        contact = float(covalent_radii[za] + covalent_radii[zb])
        r = np.geomspace(max(_CLOSEST * contact, 0.15), model.cutoff, _POINTS)
        positions = np.zeros((_POINTS, 2, 3))
        positions[:, 1, 0] = r
        pairs = Frames.conformers(np.array([za, zb]), positions).structure()
        energy = model.compute(pairs, forces=False).energy.cpu().numpy() - alone[a] - alone[b]
        result.append(Dimer((a, b), r, energy, *_hole(r, energy, contact)))
    return result


def _hole(r: np.ndarray, energy: np.ndarray, contact: float) -> tuple[float | None, float, float]:
    """Distance of the hole, barrier and depth below the well outside."""
    if not np.isfinite(energy).all():
        return None, 0.0, 0.0
    # The well: the lowest place where bonds may be, and downhill from there to the true bottom of it.
    outside = np.flatnonzero(r >= _SHORT * contact)
    start = int(outside[energy[outside].argmin()]) if len(outside) else len(r) - 1
    while start > 0 and energy[start - 1] < energy[start]:
        start -= 1
    if r[start] < _TOO_SHORT * contact:
        return float(r[start]), 0.0, float(energy[outside].min(initial=0.0) - energy[start])
    well = min(float(energy[start]), 0.0)
    inward = energy[: start + 1][::-1]
    fall = np.where(r[: start + 1][::-1] < _SHORT * contact, np.maximum.accumulate(inward) - inward, 0.0)
    worst = int(fall.argmax())
    if fall[worst] < _FALL:
        return None, 0.0, 0.0
    return float(r[: start + 1][::-1][worst]), float(inward[: worst + 1].max()) - well, well - float(inward[worst])


def check_dimers(dimers: list[Dimer]) -> Iterator[Finding]:
    """Energies that are not finite, and attraction at distances where atoms must repel each other."""
    broken = ["-".join(each.pair) for each in dimers if not np.isfinite(each.energy).all()]
    if broken:
        yield Finding(
            "dimers",
            "error",
            f"the energy of {', '.join(broken)} is not finite at some distance",
            "A simulation in which two atoms come close ends with NaN.",
            "Look for divisions by zero and overflowing exponentials at short distance.",
        )
    holes = [each for each in dimers if each.hole is not None]
    for severe in (True, False):
        some = [each for each in holes if (each.deeper > 0.0 and each.barrier < _REACHABLE) == severe]
        if not some:
            continue
        said = "; ".join(
            f"{'-'.join(each.pair)} at {each.hole:.2f} Å behind a barrier of {each.barrier:.2g} eV"
            for each in sorted(some, key=lambda each: each.barrier)[:_MOST_HOLES]
        )
        more = f" and {len(some) - _MOST_HOLES} more pairs" if len(some) > _MOST_HOLES else ""
        yield Finding(
            "dimers",
            "error" if severe else "warning",
            f"two atoms attract each other at short distance: {said}{more}",
            "Atoms that get that close fuse and release energy: hot or random structures collapse."
            if severe
            else "The repulsion has a dent at short distance, too high or too shallow for atoms to stay in it; "
            "dynamics does not get there, searches with random structures may.",
            "Add a short-range repulsion to the model (ZBL: `model.repulsion` in the training file), or structures "
            "with short distances to the training data.",
        )


def check_compression(scan: Sequence[Compression]) -> Iterator[Finding]:
    """Crystals, or molecules, whose energy falls when they are compressed."""
    for solid in (True, False):
        holes = holes_in_words([each.to_dict() for each in scan if each.solid == solid])
        if holes:
            more = f"; and {len(holes) - _MOST_HOLES} more" if len(holes) > _MOST_HOLES else ""
            yield Finding(
                "compression",
                "error" if solid else "warning",
                f"matter implodes: {'; '.join(holes[:_MOST_HOLES])}{more}",
                "Under pressure, or where hot atoms come close, all atoms fall together and release energy: dynamics "
                "ends in nonsense, and equations of state are wrong beyond the barrier."
                if solid
                else "A molecule that is squeezed collapses; if nothing like it was trained on, that is no surprise.",
                "Train on compressed structures, if need be labelled by a repulsive potential, and let the short-range "
                "repulsion (`model.repulsion`) begin where the data end.",
            )
