"""Many structures evaluated as one batch, from which those leave that are finished or cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from snnp.errors import InputError, SnnpError
from snnp.hub import load_model
from snnp.kernels.cpu.call import NeighbourRows
from snnp.models.heads import JointEvaluator
from snnp.models.potential import Evaluator, Potential
from snnp.models.session import Evaluation, Session
from snnp.models.spline.compiled import CpuEvaluator
from snnp.neighbours import Neighbours
from snnp.sampling.many.small_cells import Batch, SmallCellLists, UnfitError
from snnp.sampling.run import ModelLike
from snnp.structure import Structure

__all__ = ["Crowd", "Failed", "Found", "evaluate_many"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Failed:
    """A structure that could not be computed: its number in the input, from 0, and why."""

    index: int
    reason: str


class Found(NamedTuple):
    """Of B structures: energy [B] eV, energies [N] eV, forces [N, 3] eV/Å, stress [B, 3, 3] eV/Å³; all float64.

    The stress is zero where not all directions are periodic.
    """

    energy: Array
    energies: Array
    forces: Array
    stress: Array


class Crowd:
    """Structures that are moved and evaluated together.

    Those that cannot be evaluated leave, with a reason in `failed` by their number in the input. What belongs to atoms
    or structures is kept in `atoms` ([N, ...]) and `each` ([B, ...]) by name, and leaves with them. What is evaluated
    are `atoms["positions"]` and `each["cells"]`, in Å, which may be replaced by arrays of the same shape.

    Arguments:
        potential: any; the compiled kernel serves where there is one, batches of torch do otherwise.
        structures: in any number; they stay as they are.
        skin: Å, how much farther than the cutoff the neighbour lists reach.
    """

    def __init__(self, potential: Potential, structures: Sequence[Atoms], skin: float = 0.8) -> None:
        self.potential = potential
        self.failed: dict[int, str] = {}
        fit = [k for k, atoms in enumerate(structures) if self._accepts(k, atoms)]
        chosen = [structures[k] for k in fit]
        self.index = np.array(fit, dtype=np.int64)
        self.sizes = np.array([len(atoms) for atoms in chosen], dtype=np.int64)
        batch = Structure.from_ase(chosen)
        species = potential.species_of_number.cpu()[batch.numbers].to(torch.int32)
        self.atoms: dict[str, NDArray[Any]] = {
            "positions": batch.positions.numpy(),
            "numbers": batch.numbers.numpy(),
            "species": species.numpy(),
        }
        self.each: dict[str, NDArray[Any]] = {"cells": batch.cell.numpy(), "pbc": batch.pbc.numpy()}
        self._lists = SmallCellLists(potential.cutoff, skin)
        self._place()

    def _accepts(self, index: int, atoms: Atoms) -> bool:
        try:
            if len(atoms) == 0:
                raise InputError("it holds no atoms; at least one is needed.")
            known = {atomic_numbers[symbol] for symbol in self.potential.elements}
            if not known.issuperset(atoms.numbers.tolist()):
                self.potential.check_elements(atoms.numbers)
        except SnnpError as error:
            self.failed[index] = str(error)
            return False
        return True

    def _place(self) -> None:
        """What follows from the sizes."""
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self._prepared: tuple[Evaluator, NeighbourRows, Array, int, Callable[..., Any]] | None = None
        self._torch: tuple[NeighbourRows, Neighbours] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def n_neighbour_builds(self) -> int:
        """How many lists were built."""
        return self._lists.n_builds

    def sums(self, values: Array) -> Array:
        """[B, ...] sums over the atoms of each structure of values [N, ...]."""
        return np.asarray(np.add.reduceat(values, self.starts)) if len(self) else values[:0]

    def largest(self, values: Array) -> Array:
        """[B] the largest of values [N] in each structure."""
        return np.asarray(np.maximum.reduceat(values, self.starts)) if len(self) else values[:0]

    def keep(self, kept: Mask) -> None:
        """Let all structures leave but those [B]."""
        if kept.all():
            return
        atoms = np.repeat(kept, self.sizes)
        self.atoms = {name: values[atoms] for name, values in self.atoms.items()}
        self.each = {name: values[kept] for name, values in self.each.items()}
        self.index, self.sizes = self.index[kept], self.sizes[kept]
        self._lists.keep(kept)
        self._place()

    def fail(self, reasons: dict[int, str]) -> None:
        """Let structures leave, by their present numbers, for the reasons given."""
        self.failed |= {int(self.index[b]): reason for b, reason in reasons.items()}
        self.keep(~np.isin(np.arange(len(self)), list(reasons)))

    def evaluate(self) -> Found:
        """Energies, forces and stresses of those that can be computed; the others leave."""
        while len(self):
            finite = np.isfinite(self.sums(self.atoms["positions"])).all(axis=1)
            finite &= np.isfinite(self.each["cells"]).all(axis=(1, 2))
            if not finite.all():
                why = "its positions or its cell are NaN or infinite; check the file or the step that made them."
                self.fail(dict.fromkeys(_where(~finite), why))
                continue
            try:
                found = self._evaluate()
            except UnfitError as error:
                self.fail(error.reasons)
            except InputError as error:
                reasons = self._culprits()
                if not reasons:
                    raise
                del error
                self.fail(reasons)
            else:
                sound = np.isfinite(found.energy) & np.isfinite(self.sums(found.forces)).all(axis=1)
                if sound.all():
                    return found
                why = "the model gives an energy or a force that is NaN; look at the structure and the model."
                self.fail(dict.fromkeys(_where(~sound), why))
        nothing = np.zeros((0, 3, 3))
        return Found(nothing[:, 0, 0], nothing[:, 0, 0], nothing[:, 0], nothing)

    def _batch(self) -> Batch:
        return Batch(self.atoms["positions"], self.sizes, self.each["cells"], self.each["pbc"])

    def _evaluate(self) -> Found:
        positions = np.ascontiguousarray(self.atoms["positions"])
        rows, cells = self._lists.update(replace(self._batch(), positions=positions)), self.each["cells"]
        evaluator = self.potential.evaluator()
        periodic = self.each["pbc"].all(axis=1)
        volume = np.where(periodic, np.abs(np.linalg.det(cells)), np.inf)[:, None, None]
        if not isinstance(evaluator, CpuEvaluator | JointEvaluator):
            return self._through_torch(rows, positions)
        prepared, threads = self._prepared, torch.get_num_threads()
        if prepared is None or not (prepared[0] is evaluator and prepared[1] is rows and prepared[3] == threads):
            prepared = None
        if prepared is None or prepared[2] is not cells:
            owner = self.owner.astype(np.int32)
            system = self.atoms["species"], rows, rows.images(cells), threads, owner, len(self)
            self._prepared = prepared = evaluator, rows, cells, threads, evaluator.prepare(*system)
        energies, forces, virial = prepared[4](positions)[:3]
        assert forces is not None
        if isinstance(evaluator, JointEvaluator):
            energies = energies.mean(axis=0)
        virial /= volume
        return Found(self.sums(energies), energies, forces, 0.5 * (virial + virial.transpose(0, 2, 1)))

    def _through_torch(self, rows: NeighbourRows, positions: Array) -> Found:
        potential, kept = self.potential, self._torch
        if kept is None or kept[0] is not rows:
            i = np.repeat(np.arange(len(positions)), np.diff(rows.first))
            columns = i, rows.neighbour.astype(np.int64), rows.shifts.astype(np.int64)[rows.image]
            i_t, j_t, shift = map(torch.from_numpy, columns)
            pairs = Neighbours(i_t, j_t, shift, potential.cutoff + self._lists.skin)
            self._torch = kept = rows, pairs.to(potential.device)
        arrays = self.atoms["numbers"], positions, self.each["cells"], self.each["pbc"], self.owner
        structure = Structure(*(torch.from_numpy(np.ascontiguousarray(x)) for x in arrays))
        found = potential.compute(structure, kept[1], forces=True, stress=True)
        assert found.forces is not None
        assert found.stress is not None
        tensors = found.energy, found.energies, found.forces, found.stress
        return Found(*(tensor.double().cpu().numpy() for tensor in tensors))

    def _culprits(self) -> dict[int, str]:
        """Which structures cannot be evaluated by themselves, and why."""
        reasons = {}
        for b, (first, size) in enumerate(zip(self.starts.tolist(), self.sizes.tolist(), strict=True)):
            own = slice(first, first + size)
            arrays = self.atoms["numbers"][own], self.atoms["positions"][own], self.each["cells"][b]
            try:
                Session(self.potential).evaluate(*arrays, self.each["pbc"][b], stress=True)
            except InputError as error:
                reasons[b] = str(error)
        return reasons


def _where(mask: Mask) -> list[int]:
    return [int(b) for b in np.flatnonzero(mask)]


def evaluate_many(
    model: ModelLike, structures: Sequence[Atoms], *, dtype: str | None = None
) -> list[Evaluation | Failed]:
    """Energy, forces and stress of many structures by one call; those that cannot be computed say why, in their place.

    Arguments:
        model: a name, a folder or a potential. dtype: "float32" or "float64"; by default the model's own.

    Returns:
        In the order of the structures; the stress is None where not all directions are periodic.
    """
    crowd = Crowd(load_model(model, dtype=dtype), structures, skin=0.0)
    found = crowd.evaluate()
    results: list[Evaluation | Failed] = [Failed(k, crowd.failed.get(k, "")) for k in range(len(structures))]
    for b, (k, first, size) in enumerate(zip(crowd.index.tolist(), crowd.starts, crowd.sizes, strict=True)):
        own = slice(first, first + size)
        stress = found.stress[b] if crowd.each["pbc"][b].all() else None
        results[k] = Evaluation(float(found.energy[b]), found.energies[own], found.forces[own], stress)
    return results
