"""Two ways to the minimum, for all structures of a crowd at once, each at its own pace.

`fire` takes the steps of ASE's FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)), so that it ends where
`snnp.sampling.relax` ends. `lbfgs` is L-BFGS that never climbs: a step that does not lower the energy enough is taken
back and shortened, and curvatures that are not positive are not learned from (where ASE's L-BFGS walks up to saddle
points). It takes a third of the evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from snnp.sampling.many.coordinates import Coordinates, Vector
from snnp.sampling.many.crowd import Found

__all__ = ["OPTIMISERS", "Fire", "Lbfgs", "Optimiser"]

Array = NDArray[np.float64]

_LONGEST = 0.2  # Å: of a step of FIRE the norm, of L-BFGS that of its longest row


class Optimiser(Protocol):
    """Moves a crowd; what it remembers is kept by the crowd."""

    def step(self, found: Found, forces: Vector) -> None:
        """Move all variables once, by what was found where they are."""


class Fire:
    """ASE's FIRE with ASE's parameters."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._at = coordinates
        n = len(coordinates.crowd)
        coordinates.remember("velocity", coordinates.zeros())
        coordinates.crowd.each |= {"dt": np.full(n, 0.1), "mix": np.full(n, 0.1), "downhill": np.zeros(n, np.int64)}
        self._begun = False

    def step(self, found: Found, forces: Vector) -> None:
        at, each = self._at, self._at.crowd.each
        velocity = at.recall("velocity")
        if self._begun:
            along = at.dot(forces, velocity) > 0.0
            mix, norms = each["mix"], np.sqrt(at.dot(forces, forces))
            ratio = mix * np.sqrt(at.dot(velocity, velocity)) / np.where(norms > 0.0, norms, 1.0)
            velocity = at.combine((np.where(along, 1.0 - mix, 0.0), velocity), (np.where(along, ratio, 0.0), forces))
            faster = along & (each["downhill"] > 5)
            each["dt"] = np.where(
                along, np.where(faster, np.minimum(1.1 * each["dt"], 1.0), each["dt"]), 0.5 * each["dt"]
            )
            each["mix"] = np.where(along, np.where(faster, 0.99 * mix, mix), 0.1)
            each["downhill"] = np.where(along, each["downhill"] + 1, 0)
        self._begun = True
        ones = np.ones(len(at.crowd))
        velocity = at.combine((ones, velocity), (each["dt"], forces))
        at.remember("velocity", velocity)
        length = each["dt"] * np.sqrt(at.dot(velocity, velocity))
        scale = np.where(length > _LONGEST, _LONGEST / np.where(length > 0.0, length, 1.0), 1.0)
        at.place(at.combine((ones, at.values()), (scale * each["dt"], velocity)))


class Lbfgs:
    """L-BFGS with a memory of ten steps, and backtracking; see the head of this module."""

    memory = 10
    first_curvature = 70.0  # eV/Å², as ASE's
    sufficient, shorten, give_up = 1e-4, 0.4, 1e-3

    def __init__(self, coordinates: Coordinates) -> None:
        self._at, self._known = coordinates, 0
        n = len(coordinates.crowd)
        coordinates.crowd.each |= {"scale": np.zeros(n), "energy": np.full(n, np.inf), "slope": np.zeros(n)}
        coordinates.crowd.each["curvature"] = np.full(n, self.first_curvature)
        for name in ("x", "force", "direction"):
            coordinates.remember(name, coordinates.zeros())

    def step(self, found: Found, forces: Vector) -> None:
        at, each = self._at, self._at.crowd.each
        energy, old = at.energies(found), each["energy"]
        # Energies are sums, rounded in the last digits: what differs less than that says nothing.
        noise = 1e-12 * np.abs(energy) * np.sqrt(at.crowd.sizes)
        good = ~np.isfinite(old) | (energy <= old - self.sufficient * each["scale"] * each["slope"] + noise)
        again = each["scale"] * self.shorten
        # Where no shorter step helps, what was learned is forgotten, and the old place taken for good.
        lost = ~good & (again < self.give_up)
        self._learn(forces, good & np.isfinite(old))
        self._forget(lost)
        # Where the step is accepted, the new place and forces count; else the old ones.
        pick, rest = good.astype(float), (~good).astype(float)
        x = at.combine((pick, at.values()), (rest, at.recall("x")))
        force = at.combine((pick, forces), (rest, at.recall("force")))
        direction = self._direction(force)
        new = (good | lost).astype(float)
        direction = at.combine((new, direction), (1.0 - new, at.recall("direction")))
        longest = at.largest(direction)
        whole = np.where(longest > _LONGEST, _LONGEST / np.where(longest > 0.0, longest, 1.0), 1.0)
        each["scale"] = np.where(good | lost, whole, again)
        each["energy"] = np.where(good, energy, old)
        each["slope"] = at.dot(force, direction)
        for name, vector in (("x", x), ("force", force), ("direction", direction)):
            at.remember(name, vector)
        at.place(at.combine((np.ones(len(at.crowd)), x), (each["scale"], direction)))

    def _learn(self, forces: Vector, accepted: NDArray[np.bool_]) -> None:
        """Remember the step from the old place to here, as number 0, where it was accepted and the curvature positive.

        What a structure remembers is its own affair, whatever the others of the batch do.
        """
        at, each, one = self._at, self._at.crowd.each, np.ones(len(self._at.crowd))
        s = at.combine((one, at.values()), (-one, at.recall("x")))
        y = at.combine((one, at.recall("force")), (-one, forces))
        sy, ss, yy = at.dot(s, y), at.dot(s, s), at.dot(y, y)
        useful = accepted & (sy > 1e-8 * np.sqrt(ss * yy)) & (yy > 0.0)
        if not useful.any():
            return
        self._known = min(self._known + 1, self.memory)
        if f"rho{self._known - 1}" not in each:
            self._enter(self._known - 1, at.zeros(), at.zeros(), np.zeros(len(at.crowd)))
        for k in range(self._known - 1, 0, -1):
            self._enter(k, at.recall(f"s{k - 1}"), at.recall(f"y{k - 1}"), each[f"rho{k - 1}"], useful)
        safe = np.where(useful, sy, 1.0)
        self._enter(0, s, y, 1.0 / safe, useful)
        each["curvature"] = np.where(useful, np.clip(yy / safe, 1.0, 1e4), each["curvature"])

    def _enter(self, k: int, s: Vector, y: Vector, rho: Array, where: NDArray[np.bool_] | None = None) -> None:
        """Set number k of what is remembered, of those structures alone if not all are meant."""
        at, each = self._at, self._at.crowd.each
        if where is not None and not where.all():
            new, old = where.astype(float), (~where).astype(float)
            s = at.combine((new, s), (old, at.recall(f"s{k}")))
            y = at.combine((new, y), (old, at.recall(f"y{k}")))
            rho = np.where(where, rho, each[f"rho{k}"])
        at.remember(f"s{k}", s)
        at.remember(f"y{k}", y)
        each[f"rho{k}"] = rho

    def _forget(self, lost: NDArray[np.bool_]) -> None:
        each = self._at.crowd.each
        for slot in range(self._known):
            each[f"rho{slot}"] = np.where(lost, 0.0, each[f"rho{slot}"])
        each["curvature"] = np.where(lost, self.first_curvature, each["curvature"])

    def _direction(self, force: Vector) -> Vector:
        """The inverse curvature times the force (two loops; Nocedal and Wright, algorithm 7.4)."""
        at, each, one = self._at, self._at.crowd.each, np.ones(len(self._at.crowd))
        direction, slots = force, range(self._known)
        weights = {}
        for slot in slots:
            weights[slot] = each[f"rho{slot}"] * at.dot(at.recall(f"s{slot}"), direction)
            direction = at.combine((one, direction), (-weights[slot], at.recall(f"y{slot}")))
        direction = at.combine((1.0 / each["curvature"], direction))
        for slot in reversed(slots):
            back = each[f"rho{slot}"] * at.dot(at.recall(f"y{slot}"), direction)
            direction = at.combine((one, direction), (weights[slot] - back, at.recall(f"s{slot}")))
        return direction


OPTIMISERS: dict[str, Callable[[Coordinates], Optimiser]] = {"fire": Fire, "lbfgs": Lbfgs}
