"""The ASE calculator: one potential, one neighbour list that is reused while atoms move little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from snnp.errors import InputError
from snnp.hub import load_model
from snnp.models.io import dump_model, parse_model
from snnp.models.potential import Potential
from snnp.models.session import Session

__all__ = ["SNNPCalculator", "own_model"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class SNNPCalculator(Calculator):
    """Energy, forces and stress of an snnp potential for `ase.Atoms`.

    Gives `energy` and `free_energy` (eV), `energies` (eV per atom), `forces` (eV/Å) and, where all directions are
    periodic, `stress` (eV/Å³, Voigt order, ASE's sign).

    Arguments:
        model: name of a bundled model, model folder, or potential.
        device: where to compute; by default the CPU (a potential stays where it is).
        dtype: `"float32"`, `"float64"` or the torch type; by default the model's own. Take float64 for phonons and
            tight relaxations.
        skin: Å, how much farther than the cutoff the neighbour list reaches; it is rebuilt when an atom has moved about
            half of it, or when the atoms or the periodicity changed.

    Raises:
        ModelFileError: a missing or damaged model.
        InputError: while computing: NaN positions, a flat cell, atoms on top of each other, an element the model does
            not know.

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
        self.model = own_model(model, dtype, device)
        self._session = Session(self.model, skin)
        self._stress_expected = False

    @property
    def n_neighbour_builds(self) -> int:
        """How often the neighbour list was built."""
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
        old = self.atoms
        if old is None:
            return list(all_changes)
        mine, theirs = old.arrays, atoms.arrays
        if mine["numbers"].shape != theirs["numbers"].shape:
            return list(all_changes)
        same = {
            "positions": (mine["positions"] == theirs["positions"]).all(),
            "numbers": (mine["numbers"] == theirs["numbers"]).all(),
            "cell": (old.cell.array == atoms.cell.array).all(),
            "pbc": (old.pbc == atoms.pbc).all(),
        }
        return [name for name, unchanged in same.items() if not unchanged]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ASE's entry; remembers whether the stress is asked for, so that the next step computes it with the forces.

        Where only positions and cell differ from the last call, they are copied alone: copying and comparing whole
        Atoms would take longer than evaluating a small system.
        """
        if atoms is not None and self.atoms is not None:
            changes = self.check_state(atoms)
            if changes and not set(changes) - {"positions", "cell"}:
                self.results = {}
                self.atoms.positions[:] = atoms.positions
                self.atoms.cell[:] = atoms.cell.array
                changes = []
            if not changes:
                if name in self.implemented_properties and name not in self.results and allow_calculation:
                    self._evaluate(stress=name == "stress")
                atoms = None
        value = super().get_property(name, atoms, allow_calculation)
        if name == "stress":
            self._stress_expected = True
        return value

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything at once; the stress only where it is asked for or was for the step before."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        self._evaluate(stress="stress" in (properties or []))

    def _evaluate(self, *, stress: bool) -> None:
        """Fill `results` for `self.atoms`."""
        atoms = self.atoms
        assert atoms is not None
        stress, self._stress_expected = stress or self._stress_expected, False
        result = self._session.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, stress=stress)
        self.results = {
            "energy": result.energy,
            "free_energy": result.energy,
            "energies": result.energies,
            "forces": result.forces,
        }
        if result.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(result.stress)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the content of the model folder (JSON and safetensors), with the last results."""
        text, weights = dump_model(self.model)
        arguments = (text, weights, str(self.model.device), self._session.skin)
        return _rebuild, arguments, {"atoms": self.atoms, "results": self.results}

    def __deepcopy__(self, memo: dict[int, Any]) -> SNNPCalculator:
        """A calculator of its own with a copy of the model, any class of potential."""
        twin = SNNPCalculator(copy.deepcopy(self.model, memo), skin=self._session.skin)
        twin.atoms, twin.results = copy.deepcopy(self.atoms, memo), copy.deepcopy(self.results, memo)
        return twin


def own_model(
    model: str | Path | Potential, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> Potential:
    """Load a model, or take the caller's; the caller's is copied before its type or device changes.

    Raises:
        InputError: for a type other than float32 and float64, or a device that torch does not know.
    """
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        dtype = _DTYPES[dtype]
    try:
        target = None if device is None else torch.device(device)
        if isinstance(model, Potential):
            same = dtype in (None, model.dtype) and target in (None, model.device)
            model = model if same else copy.deepcopy(model)
        return load_model(model, dtype=dtype, device=target)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used ({reason}); leave it out to compute on the CPU."
        ) from error


def _rebuild(text: str, weights: bytes, device: str, skin: float) -> SNNPCalculator:
    return SNNPCalculator(parse_model(text, weights), device=device, skin=skin)
