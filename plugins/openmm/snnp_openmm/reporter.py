"""An eye on the uncertainty of whatever OpenMM moves; see `snnp.uncertainty.Watch`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.uncertainty import Measure, Watch
from snnp.units import NM_IN_ANGSTROM
from snnp_openmm.force import atomic_numbers, check_indices

__all__ = ["UncertaintyReporter"]


class UncertaintyReporter:
    """A reporter of an `openmm.app.Simulation`: `simulation.reporters.append(reporter)`.

    Whatever forces move the particles, the ensemble is evaluated once more for a look.

    Arguments:
        model: an ensemble or a HIP-NN, by name, folder or itself; or a `Measure`. topology: of the simulation.
        interval: steps between two looks. atoms, periodic: to which the potential applies, as in `create_force`.
        how: `log`, `limit`, `on_limit` and `harvest` of `snnp.uncertainty.Watch`.

    Raises what `Watch` raises, and `InputError` for bad indices, atoms without an element, no interval; while running
    `snnp.uncertainty.TooUncertainError` beyond a limit that ends the run.

    Example:
        >>> reporter = UncertaintyReporter("runs/heads", topology, 20, log="spread.csv")  # doctest: +SKIP
        >>> simulation.reporters.append(reporter)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | Potential | Measure,
        topology: Any,
        interval: int,
        *,
        atoms: Iterable[int] | None = None,
        periodic: bool | None = None,
        **how: Any,
    ) -> None:
        if interval < 1:
            raise InputError(f"interval must be at least one step, got {interval}; a usual one is 20.")
        self._indices = None if atoms is None else check_indices(atoms, topology.getNumAtoms())
        self._numbers = atomic_numbers(topology, self._indices)
        self._periodic = topology.getPeriodicBoxVectors() is not None if periodic is None else bool(periodic)
        self._interval, self.watch = interval, Watch(model, **how)

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802  OpenMM's name
        """What OpenMM asks for: when the next look is, and what it needs."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": False, "include": ["positions"]}

    def report(self, simulation: Any, state: Any) -> None:
        """Look now."""
        positions = state.getPositions(asNumpy=True)._value * NM_IN_ANGSTROM
        positions = positions if self._indices is None else positions[self._indices]
        cell = np.array(state.getPeriodicBoxVectors()._value) * NM_IN_ANGSTROM if self._periodic else None
        atoms = Atoms(self._numbers, positions, cell=cell, pbc=self._periodic)
        self.watch.look(atoms, int(simulation.currentStep), float(state.getTime()._value))
