"""The function that OpenMM calls: from positions in a State to energy and forces, in OpenMM's units and types."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import numpy as np

from snnp.errors import InputError, SnnpError
from snnp.models.session import Evaluation, Session
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM
from snnp_openmm.source import ModelSource

__all__ = ["Evaluation", "Evaluator", "PotentialError"]

logger = logging.getLogger(__name__)

_FORCE_UNIT = EV_IN_KJ_PER_MOL * NM_IN_ANGSTROM  # 1 eV/Å in kJ/mol/nm


class PotentialError(SnnpError):
    """A potential failed inside OpenMM; the message holds the cause, because OpenMM keeps nothing but the message."""


class _Last(NamedTuple):
    """The last result, and its positions: as they came, and without jumps by lattice vectors. Nothing in it changes."""

    positions: np.ndarray
    continuous: np.ndarray
    cell: np.ndarray
    result: Evaluation


class Evaluator:
    """Callable for `openmm.PythonForce`: evaluates a potential for atomic numbers [N], in OpenMM's order.

    It keeps a neighbour list with a skin between calls, and the last result: OpenMM asks again at the same positions
    for reporters, minimisers and barostats. Several contexts and threads may use it; one each is faster. It pickles as
    its model does (see `ModelSource`).
    """

    def __init__(
        self, source: ModelSource, numbers: np.ndarray, pbc: tuple[bool, bool, bool], skin: float = 1.0
    ) -> None:
        self.model = source.model
        self.error: BaseException | None = None
        self._source, self._skin, self._expects_stress = source, skin, False
        self._numbers, self._pbc = np.asarray(numbers).astype(np.int64), np.array(pbc, dtype=bool)
        self.forget()
        # Elements are checked now: an error here keeps its type, one inside OpenMM does not.
        self.model.check_elements(self._numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Evaluator, (self._source, self._numbers.astype(np.uint8), tuple(self._pbc.tolist()), self._skin)

    @property
    def is_periodic(self) -> bool:
        return bool(self._pbc.any())

    def forget(self) -> None:
        """Drop the neighbour list and the last result, so that the next call does not depend on the ones before."""
        self._session = Session(self.model, self._skin)
        self._last: _Last | None = None

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Energy (kJ/mol) and forces [N, 3] (kJ/mol/nm) for an `openmm.State`.

        Raises `PotentialError` with type and text of whatever went wrong; the exception itself is kept in `error`.
        """
        self.error = None
        try:
            result = self.evaluate_state(state, stress=self._expects_stress)
        except BaseException as error:
            self.error = error
            is_bug = isinstance(error, Exception) and not isinstance(error, SnnpError)
            logger.log(logging.ERROR if is_bug else logging.DEBUG, "the potential failed in OpenMM", exc_info=error)
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise PotentialError(f"the snnp potential failed: {text}") from error
        self._expects_stress = False
        return result.energy * EV_IN_KJ_PER_MOL, result.forces * _FORCE_UNIT

    def expect_stress(self) -> None:
        """Let the next call by OpenMM compute the stress too, for an `evaluate_state` at the same positions."""
        self._expects_stress = True

    def evaluate_state(self, state: Any, *, stress: bool = False) -> Evaluation:
        # What `getPositions(asNumpy=True)` does, without units, whose machinery is slow where caches are cold.
        positions = np.empty((state._getNumParticles(), 3))
        state._getVectorAsNumpy(state.Positions, positions)
        positions *= NM_IN_ANGSTROM
        cell = np.array(state.getPeriodicBoxVectors()._value) * NM_IN_ANGSTROM if self.is_periodic else np.zeros((3, 3))
        return self.evaluate(positions, cell, stress=stress)

    def evaluate(self, positions: np.ndarray, cell: np.ndarray, *, stress: bool = False) -> Evaluation:
        """Evaluate the potential at positions [N, 3] and cell [3, 3], both in Å and float64.

        Raises `InputError` for positions or a result that are not finite, and overlapping atoms.
        """
        last = self._last  # read once: another thread may replace it
        if last is not None and not np.array_equal(cell, last.cell):
            last = None
        if last and (last.result.stress is not None or not stress) and np.array_equal(positions, last.positions):
            return last.result
        continuous = positions if last is None else self._unwrap(positions, last)
        result = self._session.evaluate(self._numbers, continuous, cell, self._pbc, stress=stress)
        # The sum of squares is finite only if every force is.
        if not (math.isfinite(result.energy) and math.isfinite(float(np.vdot(result.forces, result.forces)))):
            raise InputError(
                f"the potential gave energy {result.energy} eV and forces that are not finite (largest coordinate "
                f"{np.abs(positions).max():.3g} Å); use a shorter time step or relax the structure first."
            )
        self._last = _Last(positions, continuous, cell, result)
        return result

    def _unwrap(self, positions: np.ndarray, last: _Last) -> np.ndarray:
        """Undo jumps by lattice vectors since the last call: OpenCL and CUDA make them whenever they sort the atoms."""
        if not self.is_periodic:
            return positions
        moved = positions - last.continuous
        if not np.abs(moved).max(initial=0.0) > self._skin:
            return positions
        images = np.rint(moved @ np.linalg.pinv(last.cell)) * self._pbc
        return positions - images @ last.cell
