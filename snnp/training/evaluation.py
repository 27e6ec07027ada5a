"""Evaluation: how far a potential is from reference data, in all, per element and per group."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from snnp.data.frames import Frame, Frames
from snnp.errors import DataError
from snnp.models.potential import Potential
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

__all__ = ["ERROR_COLUMNS", "Comparison", "Errors", "Evaluation", "GroupErrors", "evaluate"]

ERROR_COLUMNS = (
    ("energy MAE", "energy_mae_mev_per_atom", 2),
    ("RMSE", "energy_rmse_mev_per_atom", 2),
    ("max (meV/atom)", "energy_max_mev_per_atom", 2),
    ("force MAE", "force_mae_ev_per_angstrom", 4),
    ("RMSE", "force_rmse_ev_per_angstrom", 4),
    ("max (eV/Å)", "force_max_ev_per_angstrom", 4),
    ("stress MAE (GPa)", "stress_mae_gpa", 3),
)
"""Of tables of errors: heading, key of `GroupErrors.to_dict`, decimals."""

_NAMES = (("energy", "mev_per_atom"), ("force", "ev_per_angstrom"), ("stress", "gpa"), ("atomic_energy", "mev"))
_SCALES = (1000.0, 1.0, 1.0, 1000.0)  # from the unit of a `Comparison` to that of its errors
_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


@dataclass(frozen=True)
class Errors:
    """Mean absolute, root-mean-square and largest error of `n` numbers, in the unit of the quantity."""

    mae: float
    rmse: float
    max: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Reference and model values [M] of one quantity: energies in eV/atom, force components in eV/Å, stress components
    in GPa, or energies of atoms in eV; with the index [M] of the frame that each came from, and the atomic number [M],
    0 for what belongs to a whole structure."""

    reference: np.ndarray
    model: np.ndarray
    frame: np.ndarray
    number: np.ndarray

    def errors(self, chosen: np.ndarray | None = None, scale: float = 1.0) -> Errors | None:
        """Errors of the chosen entries (all by default) times `scale`; None where there are none."""
        size = scale * np.abs(self.model - self.reference)
        size = size if chosen is None else size[chosen]
        if size.size == 0:
            return None
        return Errors(float(size.mean()), math.sqrt(float(np.mean(np.square(size)))), float(size.max()), size.size)


@dataclass(frozen=True)
class GroupErrors:
    """Errors of some of the structures; a quantity that the data lack is None. Units as in `Evaluation`."""

    n_structures: int
    n_atoms: int
    energy: Errors | None
    forces: Errors | None
    stress: Errors | None
    atoms: Errors | None = None

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON values such as `energy_mae_mev_per_atom`; None where the data lack a quantity.

        Those of atomic energies, `atomic_energy_mae_mev`, are left out then.
        """
        errors_of = (self.energy, self.forces, self.stress, self.atoms)
        values = {
            f"{quantity}_{kind}_{unit}": value if math.isfinite(value := getattr(errors, kind, math.nan)) else None
            for (quantity, unit), errors in zip(_NAMES, errors_of, strict=True)
            for kind in ("mae", "rmse", "max")
            if errors is not None or quantity != "atomic_energy"
        }
        return {**values, "n_structures": self.n_structures, "n_atoms": self.n_atoms}


@dataclass(frozen=True)
class Evaluation:
    """A potential held against reference data.

    Arguments:
        model, data: what was compared with what, for the reader.
        total: all structures: energy in meV/atom, force components in eV/Å, stress components (six each) in GPa, and
            energies of atoms in meV, after the mean difference of each element: their zeros are a convention.
        elements: force errors in eV/Å per chemical symbol.
        groups: the same as `total` for each group (`config_type`) of the data; empty if the data name none.
        energies, forces, stresses: the numbers behind it, for parity plots.
    """

    model: str
    data: str
    total: GroupErrors
    elements: dict[str, Errors]
    groups: dict[str, GroupErrors]
    energies: Comparison
    forces: Comparison
    stresses: Comparison

    def to_dict(self) -> dict[str, Any]:
        """JSON values: errors with their units in the names at the top level, then `elements` and `groups`.

        What the data lack is None, and so is an error that is not finite.
        """
        names = {kind: f"force_{kind}_ev_per_angstrom" for kind in ("mae", "rmse", "max")}
        elements = {
            s: {name: getattr(errors, kind) for kind, name in names.items()} for s, errors in self.elements.items()
        }
        groups = {name: errors.to_dict() for name, errors in self.groups.items()}
        return {"model": self.model, "data": self.data, **self.total.to_dict(), "elements": elements, "groups": groups}

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)


def evaluate(
    model: Potential,
    frames: Sequence[Frame],
    *,
    batch_atoms: int = 2000,
    model_name: str | None = None,
    data_name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a potential with reference frames, each of which may lack any label.

    Errors of energies are per structure (total energy over number of atoms), of forces over all components of all
    atoms, of stresses over the six components of fully periodic structures.

    Arguments:
        batch_atoms: structures are computed together up to this many atoms.
        model_name, data_name: for the report; by default the model's own name and the names of the data files.
        progress: called with the number of frames done and the number of all.

    Raises `DataError` if there are no frames; `UnknownElementError` if the data hold an element that the model does not
    know.
    """
    if not frames:
        raise DataError("there is nothing to evaluate on: no frames were given.")
    frames = Frames.of(frames)
    compared = _compare(frames, *_compute(model, frames, batch_atoms, progress))
    forces = compared[1]
    files = dict.fromkeys(source.rpartition("#")[0] or source for source in frames.sources)
    return Evaluation(
        model=model_name or str(model.metadata.get("name", type(model).__name__)),
        data=data_name or ", ".join(files),
        total=_errors(frames, compared, np.ones(len(frames), dtype=bool)),
        elements={
            chemical_symbols[number]: errors
            for number in np.unique(forces.number).tolist()
            if (errors := forces.errors(forces.number == number)) is not None
        },
        groups={
            label: _errors(frames, compared, np.array([group == label for group in frames.groups]))
            for label in sorted({group for group in frames.groups if group})
        },
        energies=compared[0],
        forces=forces,
        stresses=compared[2],
    )


def _compute(
    model: Potential, frames: Frames, batch_atoms: int, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, ...]:
    """The model's energies [B], forces [N, 3], stresses [B, 3, 3], energies of atoms [N]; NaN for what is not asked."""
    labels = (frames.energy, frames.forces, frames.stress, frames.energies)
    energy, forces, stress, of_atoms = (np.full_like(values, np.nan) for values in labels)
    for rows in frames.pieces(batch_atoms):
        batch, atoms = frames[rows], slice(frames.starts[rows.start], frames.starts[rows.stop])
        asked = bool(batch.has_forces.any()), bool(batch.has_stress.any())
        found = model.compute(batch.structure(), forces=asked[0], stress=asked[1])
        energy[rows], of_atoms[atoms] = found.energy.cpu().numpy(), found.energies.cpu().numpy()
        if found.forces is not None:
            forces[atoms] = found.forces.cpu().numpy()
        if found.stress is not None:
            stress[rows] = found.stress.cpu().numpy()
        if progress is not None:
            progress(rows.stop, len(frames))
    return energy, forces, stress, of_atoms


def _compare(
    frames: Frames, energy: np.ndarray, forces: np.ndarray, stress: np.ndarray, of_atoms: np.ndarray
) -> tuple[Comparison, ...]:
    """Energies, forces, stresses and energies of atoms beside those that are known."""
    owner, number = frames.owner, frames.numbers.astype(np.int64)
    rows, atoms = np.flatnonzero(frames.has_energy), np.flatnonzero(frames.has_forces[owner])
    said, found = ((values / frames.counts)[rows] for values in (frames.energy, energy))
    energies = Comparison(said, found, rows, np.zeros_like(rows))
    said, found = (values[atoms].ravel() for values in (frames.forces, forces))
    of_forces = Comparison(said, found, owner[atoms].repeat(3), number[atoms].repeat(3))
    rows = np.flatnonzero(frames.has_stress)
    said, found = (EV_PER_ANGSTROM3_IN_GPA * values[rows][:, *_VOIGT].ravel() for values in (frames.stress, stress))
    stresses = Comparison(said, found, rows.repeat(6), np.zeros(len(said), dtype=np.int64))
    atoms = np.flatnonzero(frames.has_energies[owner])
    said, found, numbers = (values[atoms] for values in (frames.energies, of_atoms, number))
    _, element = np.unique(numbers, return_inverse=True)
    shift = np.bincount(element, weights=found - said) / np.bincount(element)
    return energies, of_forces, stresses, Comparison(said, found - shift[element], owner[atoms], numbers)


def _errors(frames: Frames, compared: tuple[Comparison, ...], chosen: np.ndarray) -> GroupErrors:
    """Errors over the frames where `chosen` [number of frames] is true."""
    errors = (each.errors(chosen[each.frame], scale) for each, scale in zip(compared, _SCALES, strict=True))
    return GroupErrors(int(chosen.sum()), int(frames.counts[chosen].sum()), *errors)
