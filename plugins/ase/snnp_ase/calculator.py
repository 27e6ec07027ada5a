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
from snnp.neighbours import Neighbours, VerletList
from snnp.structure import Structure

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
        skin: Å, how much farther than the cutoff the neighbour list reaches; it is rebuilt when an atom has moved half
            of it, or when the atoms, the cell or the periodicity changed.

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
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        self.implemented_properties = list(type(self).implemented_properties)  # its own, as callers may edit it
        self.model = own_model(model, dtype, device)
        self._verlet = VerletList(self.model.cutoff, skin)
        self._on_host: Neighbours | None = None
        self._on_device: Neighbours | None = None
        self._stress_expected = False

    @property
    def n_neighbour_builds(self) -> int:
        """How often the neighbour list was built."""
        return self._verlet.n_builds

    def expect_stress(self) -> None:
        """Let the next calculation include the stress, whatever it is asked for (saves one if the stress follows)."""
        self._stress_expected = True

    def reset(self) -> None:
        """Forget results and the neighbour list."""
        super().reset()
        self._verlet = VerletList(self.model.cutoff, self._verlet.skin)
        self._on_host = self._on_device = None

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ASE's entry; remembers whether the stress is asked for, so that the next step computes it with the forces."""
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
        assert self.atoms is not None
        structure = Structure.from_ase(self.atoms)
        periodic = bool(self.atoms.pbc.all())
        stress = periodic and (self._stress_expected or "stress" in (properties or []))
        self._stress_expected = False
        prediction = self.model.compute(structure, self._neighbours(structure), forces=True, stress=stress)
        assert prediction.forces is not None
        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": prediction.energies.cpu().numpy(),
            "forces": prediction.forces.double().cpu().numpy(),
        }
        if prediction.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].double().cpu().numpy())

    def _neighbours(self, structure: Structure) -> Neighbours:
        """The list where the model computes; it travels only when it was rebuilt."""
        neighbours = self._verlet.update(structure)
        if self._on_device is None or neighbours is not self._on_host:
            self._on_host, self._on_device = neighbours, neighbours.to(self.model.device)
        return self._on_device

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the content of the model folder (JSON and safetensors), with the last results."""
        text, weights = dump_model(self.model)
        arguments = (text, weights, str(self.model.device), self._verlet.skin)
        return _rebuild, arguments, {"atoms": self.atoms, "results": self.results}

    def __deepcopy__(self, memo: dict[int, Any]) -> SNNPCalculator:
        """A calculator of its own with a copy of the model, any class of potential."""
        twin = SNNPCalculator(copy.deepcopy(self.model, memo), skin=self._verlet.skin)
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
