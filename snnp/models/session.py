"""Repeated evaluation of one system, for simulation: arrays in, arrays out, and a neighbour list that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray

from snnp.models.potential import Potential, Stepper
from snnp.neighbours import Neighbours, VerletList
from snnp.structure import Structure

__all__ = ["Evaluation", "Session"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Energy (eV), energies [N] (eV), forces [N, 3] (eV/Å), stress [3, 3] (eV/Å³) or None; all float64."""

    energy: float
    energies: Array
    forces: Array
    stress: Array | None


class Session:
    """Evaluates a potential for atoms that move a little from call to call.

    The potential's own evaluator serves where it steps by itself, without passing through torch; torch does otherwise.
    Threads may share a session: it keeps nothing but values that do not change, and replaces each as a whole. It has
    one list, though, so threads that move different atoms do better with a session each.

    Arguments:
        potential: may change its parameters between calls.
        skin: Å, how much farther than the cutoff the neighbour list reaches; it is rebuilt when an atom has moved about
            half of it, or when atoms or periodicity changed.
        lists_of: a session of a potential that sees at least as far, whose list is used for the same atoms.

    Raises `InputError` for a negative skin.
    """

    def __init__(self, potential: Potential, skin: float = 1.0, lists_of: Session | None = None) -> None:
        self.potential, self.skin, self._owner = potential, float(skin), lists_of or self
        self.forget()

    def forget(self) -> None:
        """Drop the neighbour list, so that the next call does not depend on the ones before."""
        self._stepper: Stepper | None = None
        self._verlet = VerletList(self.potential.cutoff, self.skin)
        # Atomic numbers, and their indices in the model.
        self._known: tuple[NDArray[np.int64], NDArray[np.int32]] = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self._moved: tuple[Neighbours, Neighbours] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start afresh: what is kept between calls points into memory."""
        return Session, (self.potential, self.skin)

    @property
    def n_neighbour_builds(self) -> int:
        """How often a neighbour list was built."""
        return self._verlet.n_builds + (0 if self._stepper is None else self._stepper.n_builds)

    def species(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """[N] index of each atom's element in the model: the same object while the atomic numbers [N] stay."""
        known = self._known
        if not (numbers.shape == known[0].shape and bool((numbers == known[0]).all())):
            self.potential.check_elements(numbers)
            index = {atomic_numbers[symbol]: k for k, symbol in enumerate(self.potential.elements)}
            own = np.array(numbers)
            self._known = known = own, np.array([index[number] for number in own.tolist()], dtype=np.int32)
        return known[1]

    def evaluate(
        self, numbers: NDArray[np.int64], positions: Array, cell: Array, pbc: NDArray[np.bool_], *, stress: bool = False
    ) -> Evaluation:
        """Energy, forces and, for fully periodic systems, the stress if asked for (or where it comes for free).

        `numbers`: [N] atomic numbers; `positions`: [N, 3] Å; `cell`: [3, 3] Å, rows are lattice vectors; `pbc`: [3].
        Raises `UnknownElementError` for an element that the potential does not know; `InputError` for NaN positions, a
        flat cell, or atoms closer than 0.1 Å.
        """
        evaluator = self.potential.evaluator()
        if evaluator is None or evaluator.stepper is None:
            return self._through_torch(numbers, positions, cell, pbc, stress)
        stepper = self._owner._stepper
        if stepper is None:
            self._owner._stepper = stepper = evaluator.stepper(self._owner.potential.cutoff, self.skin)
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        cell = np.ascontiguousarray(cell, dtype=np.float64)
        periodic = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
        energies, forces, virial = stepper(evaluator, self.species(numbers), positions, cell, periodic)
        tensor = None
        if all(periodic):  # costs nothing here, and saves an evaluation if it is asked for later
            a, b, c = cell.tolist()  # numpy's determinant is slow for nine numbers
            virial = virial / abs(sum(a[k] * (b[k - 2] * c[k - 1] - b[k - 1] * c[k - 2]) for k in range(3)))
            tensor = 0.5 * (virial + virial.T)
        return Evaluation(float(energies.sum()), energies, forces, tensor)

    def _through_torch(
        self, numbers: NDArray[np.int64], positions: Array, cell: Array, pbc: NDArray[np.bool_], stress: bool
    ) -> Evaluation:
        structure = Structure(
            numbers=torch.as_tensor(np.asarray(numbers, dtype=np.int64)),
            positions=torch.as_tensor(np.asarray(positions, dtype=np.float64)),
            cell=torch.as_tensor(np.asarray(cell, dtype=np.float64))[None],
            pbc=torch.as_tensor(np.asarray(pbc, dtype=bool))[None],
            structure_of_atom=torch.zeros(len(numbers), dtype=torch.int64),
        )
        neighbours = self._owner._verlet.update(structure)
        # A list travels to the device only when it was rebuilt.
        moved = self._owner._moved
        if moved is None or moved[0] is not neighbours:
            self._owner._moved = moved = neighbours, neighbours.to(self.potential.device)
        with_stress = stress and bool(np.all(pbc))
        prediction = self.potential.compute(structure, moved[1], forces=True, stress=with_stress)
        assert prediction.forces is not None
        tensor = None if prediction.stress is None else prediction.stress[0].double().cpu().numpy()
        forces = prediction.forces.double().cpu().numpy()
        return Evaluation(float(prediction.energy[0]), prediction.energies.cpu().numpy(), forces, tensor)
