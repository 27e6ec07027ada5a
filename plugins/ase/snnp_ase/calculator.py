"""The ASE calculator: one potential, one neighbour list that is reused while atoms move little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, PropertyNotPresent, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.hub import load_model
from snnp.models.potential import Potential
from snnp.models.session import Session
from snnp.models.store import dump_model, parse_model

__all__ = ["SNNPCalculator"]


class _Calculation(NamedTuple):
    """Atoms, and what is known about them. Nothing in it changes, so that threads may share a calculator."""

    first: Atoms | None  # a copy of the first ones of these numbers and periodicity; None where nothing was asked yet
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    results: dict[str, Any]

    @classmethod
    def of(cls, atoms: Atoms) -> _Calculation:
        own = atoms.copy()
        return cls(own, own.numbers, own.positions, own.cell.array, own.pbc, {})

    def changes(self, atoms: Atoms) -> list[str]:
        """What is different in these atoms, by ASE's names."""
        theirs, cell = atoms.arrays, atoms.cell.array
        if self.first is None or self.numbers.shape != theirs["numbers"].shape:
            return list(all_changes)
        same = {
            "positions": (self.positions == theirs["positions"]).all(),
            "numbers": (self.numbers == theirs["numbers"]).all(),
            "cell": (self.cell == cell).all(),
            "pbc": (self.pbc == atoms.pbc).all(),
        }
        return [name for name, unchanged in same.items() if not unchanged]

    def following(self, atoms: Atoms, changes: list[str]) -> _Calculation:
        """The same without results for atoms that differ by `changes`."""
        # Copying whole Atoms would take longer than evaluating a small system.
        if set(changes) - {"positions", "cell"}:
            return _Calculation.of(atoms)
        cell = atoms.cell.array.copy()
        return _Calculation(self.first, self.numbers, atoms.positions.copy(), cell, self.pbc, {})


_NOTHING = _Calculation(None, np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((3, 3)), np.zeros(3, bool), {})


class SNNPCalculator(Calculator):
    """Energy, forces and stress of an snnp potential for `ase.Atoms`.

    Threads may share a calculator, though one each is faster: `get_property`, and with it every `atoms.get_...`,
    answers for the atoms given; `results` and `atoms` are those of the last calculation, whichever thread asked.

    Gives `energy` and `free_energy` (eV), `energies` (eV per atom), `forces` (eV/Å) and, where all directions are
    periodic, `stress` (eV/Å³, Voigt order, ASE's sign).

    Arguments:
        model: name of a bundled model, model folder, or potential.
        device: where to compute; by default the CPU (a potential stays where it is).
        dtype: `"float32"`, `"float64"` or the torch type; by default the model's own. Take float64 for phonons and
            tight relaxations.
        skin: Å, how much farther than the cutoff the neighbour list reaches; it is rebuilt when an atom has moved about
            half of it, or when the atoms or the periodicity changed.

    Raises `ModelFileError` for a missing or damaged model; while computing `InputError`: NaN positions, a flat cell,
    atoms on top of each other, an element the model does not know.

    Example:
        >>> from ase.build import bulk
        >>> atoms = bulk("Si", cubic=True)
        >>> atoms.calc = SNNPCalculator("snnp-si")  # doctest: +SKIP
        >>> energy = atoms.get_potential_energy()  # doctest: +SKIP
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012  ASE's form
    # The energy does not depend on them, so setting them must not drop the results.
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | Potential,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        skin: float = 1.0,
    ) -> None:
        super().__init__()
        self.implemented_properties = list(type(self).implemented_properties)  # its own, as callers may edit it
        self.model = load_model(model, dtype=dtype, device=device)
        self._session = Session(self.model, skin)
        self._stress_expected = False

    _known = _NOTHING

    @property
    def atoms(self) -> Atoms | None:
        """A copy of the atoms of the last calculation."""
        known = self._known
        if known.first is None:
            return None
        atoms = known.first.copy()
        atoms.positions, atoms.cell = known.positions, known.cell
        return atoms

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._known = _NOTHING if atoms is None else _Calculation.of(atoms)

    @property
    def results(self) -> dict[str, Any]:
        """What the last calculation found, whichever thread asked for it."""
        return self._known.results

    @results.setter
    def results(self, results: dict[str, Any]) -> None:
        self._known = self._known._replace(results=results)

    @property
    def n_neighbour_builds(self) -> int:
        return self._session.n_neighbour_builds

    def expect_stress(self) -> None:
        """Let the next calculation include the stress, whatever it is asked for (saves one if the stress follows)."""
        self._stress_expected = True

    def reset(self) -> None:
        """Forget results and the neighbour list."""
        super().reset()
        self._session = Session(self.model, self._session.skin)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation, compared exactly (ASE allows 1e-15, and takes far longer)."""
        return self._known.changes(atoms)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ASE's entry; it remembers whether the stress is asked for, so that the next step computes it with forces."""
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name} property not implemented")
        known = self._known  # read once: another thread may be asking about other atoms
        if atoms is not None and (changes := known.changes(atoms)):
            self._known = known = known.following(atoms, changes)
        if name not in known.results:
            if not allow_calculation:
                return None
            known = self._evaluate(known, stress=name == "stress")
        if name == "stress":
            self._stress_expected = True
        if name not in known.results:
            raise PropertyNotImplementedError(f"{name} not present in this calculation")
        value = known.results[name]
        return value.copy() if isinstance(value, np.ndarray) else value

    def calculate(
        self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes
    ) -> None:
        """Compute everything at once; the stress only where it is asked for or was for the step before."""
        known = self._known if atoms is None else _Calculation.of(atoms)
        self._evaluate(known, stress="stress" in (properties or []))

    def calculate_properties(self, atoms: Atoms, properties: list[str]) -> Properties:
        """ASE's entry for several properties, always of the atoms given.

        Raises `ValueError` for a name that ASE does not know, `PropertyNotPresent` for what these atoms do not have.
        """
        known = self._evaluate(_Calculation.of(atoms), stress="stress" in properties)
        for name in properties:
            if name not in known.results:
                raise PropertyNotPresent(name) if name in all_outputs else ValueError(f"No such property: {name}")
        return Properties(known.results)

    def _evaluate(self, asked: _Calculation, *, stress: bool) -> _Calculation:
        if asked.first is None:
            raise InputError("no atoms to compute: pass them, or use atoms.calc = ... and ask the atoms.")
        self._known = asked  # without results, should it fail
        stress, self._stress_expected = stress or self._stress_expected, False
        result = self._session.evaluate(asked.numbers, asked.positions, asked.cell, asked.pbc, stress=stress)
        results = {"energy": result.energy, "free_energy": result.energy, "energies": result.energies}
        results["forces"] = result.forces
        if result.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(result.stress)
        self._known = done = _Calculation(*asked[:-1], results)  # `_replace` takes a microsecond longer
        return done

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the content of the model folder (JSON and safetensors), with the last results."""
        text, weights = dump_model(self.model)
        return _rebuild, (text, weights, str(self.model.device), self._session.skin, self._known)

    def __deepcopy__(self, memo: dict[int, Any]) -> SNNPCalculator:
        """A calculator of its own with a copy of the model, any class of potential."""
        twin = SNNPCalculator(copy.deepcopy(self.model, memo), skin=self._session.skin)
        twin._known = copy.deepcopy(self._known, memo)
        return twin


def _rebuild(text: str, weights: bytes, device: str, skin: float, known: _Calculation) -> SNNPCalculator:
    calculator = SNNPCalculator(parse_model(text, weights), device=device, skin=skin)
    calculator._known = known
    return calculator
