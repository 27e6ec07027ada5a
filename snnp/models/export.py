"""Models for programs without snnp: self-contained TorchScript files, as openmm-torch's `TorchForce` expects them.

A file holds the whole way from positions to energy and forces in plain torch operators, the neighbour search included.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snnp.errors import InputError
from snnp.files import write_atomically
from snnp.models.ensemble import Ensemble
from snnp.models.families import FAMILIES, family_of
from snnp.models.gradients import SHORTEST_DISTANCE
from snnp.models.potential import Potential
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM

__all__ = ["export_torchscript", "find_pairs", "scripted_module", "without_deprecation"]

_LENGTHS = {"nm": NM_IN_ANGSTROM, "angstrom": 1.0}
_ENERGIES = {"kJ/mol": EV_IN_KJ_PER_MOL, "eV": 1.0}
_DESCRIPTION = "snnp.json"


def _bins(points: Tensor, origin: Tensor, cutoff: float) -> Tensor:
    """[M, 3] int64 bins of side `cutoff / 2`, from 2 on, so that every bin has two neighbours on each side."""
    return ((points - origin) * (2.0 / cutoff)).floor().to(torch.int64) + 2


def _images(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of atoms that may lie within `cutoff` of one in the first cell: atom [M], shift [M, 3]; and wraps [N, 3].

    Fractional coordinates come from the pseudo-inverse of the periodic vectors: open directions have none.
    """
    periodic = pbc.to(cell.dtype)
    inverse = torch.linalg.pinv(cell * periodic.unsqueeze(1)) * periodic
    fractional = positions @ inverse
    wraps = fractional.floor()
    fractional = fractional - wraps
    # A pair within the cutoff differs by at most this much; the margin is for rounding.
    reach = cutoff * torch.linalg.vector_norm(inverse, dim=0) * (1.0 + 1e-9) + 1e-9 * periodic
    n: list[int] = reach.ceil().to(torch.int64).tolist()
    axes = [torch.arange(-k, k + 1, device=cell.device) for k in n]
    shifts = torch.stack([axis.flatten() for axis in torch.meshgrid(axes, indexing="ij")], dim=1)
    low, high = fractional.amin(dim=0) - reach, fractional.amax(dim=0) + reach
    moved = fractional[None] + shifts[:, None]
    which = ((moved >= low) & (moved <= high)).all(dim=2).nonzero()
    return which[:, 1], shifts[which[:, 0]], wraps.to(torch.int64)


def find_pairs(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """All directed pairs closer than `cutoff`, sorted by the centre: i [P], j [P], shift [P, 3] (int64).

    A cell list over the atoms and their images, whatever the shape and size of the cell; memory grows with the number
    of pairs, not with the square of the number of atoms. Compiles under TorchScript.

    Arguments:
        positions: [N, 3] float64. cell: [3, 3], rows are lattice vectors; `r_ij = r_j - r_i + shift @ cell`.
        pbc: [3] bool.
    """
    n_atoms = positions.shape[0]
    if n_atoms == 0:
        none = torch.zeros(0, dtype=torch.int64, device=positions.device)
        return none, none, none.reshape(0, 3)
    atom, shift, wraps = _images(positions, cell, pbc, cutoff)
    wrapped = positions - wraps.to(cell.dtype) @ cell
    points = wrapped[atom] + shift.to(cell.dtype) @ cell
    origin = points.amin(dim=0)
    if float(((points.amax(dim=0) - origin) * (2.0 / cutoff) + 6.0).prod()) > 4e18:  # bins are numbered in int64
        raise ValueError("atoms are too far apart to be searched for neighbours: has the simulation exploded?")
    bins = _bins(points, origin, cutoff)
    size = bins.amax(dim=0) + 3
    number = (bins[:, 0] * size[1] + bins[:, 1]) * size[2] + bins[:, 2]
    number, order = number.sort()
    # Bins along the last axis are consecutive: 25 ranges of five bins hold all candidates.
    side = torch.arange(-2, 3, device=cell.device)
    columns = torch.stack([side.repeat_interleave(5), side.repeat(5)], dim=1)
    found_i: list[Tensor] = []
    found_j: list[Tensor] = []
    found_shift: list[Tensor] = []
    for first in range(0, n_atoms, 4096):
        centre = torch.arange(first, min(first + 4096, n_atoms), device=cell.device)
        home = _bins(wrapped[centre], origin, cutoff)[:, None, :]
        middle = ((home[:, :, 0] + columns[:, 0]) * size[1] + home[:, :, 1] + columns[:, 1]) * size[2] + home[:, :, 2]
        start = torch.searchsorted(number, middle.flatten() - 2)
        count = torch.searchsorted(number, middle.flatten() + 2, right=True) - start
        which = torch.arange(count.shape[0], device=cell.device).repeat_interleave(count)
        rank = torch.arange(which.shape[0], device=cell.device) - (count.cumsum(0) - count)[which]
        candidate = order[start[which] + rank]
        i = centre[which // 25]
        near = (points[candidate] - wrapped[i]).square().sum(dim=1) < cutoff * cutoff
        itself = (atom[candidate] == i) & (shift[candidate] == 0).all(dim=1)
        near = (near & ~itself).nonzero()[:, 0]
        i, candidate = i[near], candidate[near]
        j = atom[candidate]
        found_i.append(i)
        found_j.append(j)
        found_shift.append(shift[candidate] - wraps[j] + wraps[i])
    return torch.cat(found_i), torch.cat(found_j), torch.cat(found_shift)


class _Mean(nn.Module):
    """The mean of the members of an ensemble; arguments and results as of `ScriptedPotential`."""

    def __init__(self, model: Ensemble, forces: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(_twin(member, forces) for member in model.potentials)

    def forward(self, i: Tensor, j: Tensor, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        energy = torch.zeros([], dtype=torch.float64, device=vectors.device)
        gradients: list[Tensor] = []
        for member in self.members:
            one, slopes = member(i, j, vectors, species)
            energy = energy + one
            gradients.append(slopes)
        return energy / len(gradients), torch.stack(gradients).mean(dim=0)


def _twin(model: Potential, forces: bool) -> nn.Module:
    """The compilable twin of a potential, for atoms of all its elements in its own order of species."""
    if isinstance(model, Ensemble):
        if all(member.elements == model.elements for member in model.potentials):
            return _Mean(model, forces)
        raise InputError("an Ensemble whose members list their elements in different orders cannot be exported.")
    family = family_of(model)
    if family is not None and family.scripted is not None:
        return family.scripted(model, forces)
    known = ", ".join(each.potential.__name__ for each in FAMILIES.values() if each.scripted is not None)
    raise InputError(f"models of class {type(model).__name__} cannot be exported to TorchScript; {known} can.")


class _Exported(nn.Module):
    """Positions in the user's units to energy and forces in the user's units; what all entry points share."""

    species_of_number: Tensor
    numbers: Tensor

    def __init__(self, model: Potential, forces: bool, units: tuple[float, float], numbers: Tensor | None) -> None:
        super().__init__()
        self.cutoff, self.shortest = model.cutoff, SHORTEST_DISTANCE
        self.forces, (self.to_angstrom, self.from_ev) = forces, units
        self.known = ", ".join(model.elements)
        self.register_buffer("species_of_number", model.species_of_number.clone())
        self.register_buffer("numbers", torch.zeros(0, dtype=torch.int64) if numbers is None else numbers)
        self.potential = _twin(model, forces).requires_grad_(False)

    def check(self, numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor) -> None:
        if numbers.dim() != 1 or pbc.dim() != 1 or pbc.shape[0] != 3:
            raise ValueError(f"numbers must have shape [N] and pbc [3], got {numbers.shape} and {pbc.shape}")
        n_atoms = numbers.shape[0]
        if positions.dim() != 2 or positions.shape[0] != n_atoms or positions.shape[1] != 3:
            raise ValueError(f"positions must have shape [{n_atoms}, 3], got {positions.shape}")
        if cell.dim() != 2 or cell.shape[0] != 3 or cell.shape[1] != 3:
            raise ValueError(f"box vectors must have shape [3, 3], got {cell.shape}")
        if not bool(torch.isfinite(positions).all()) or not bool(torch.isfinite(cell).all()):
            raise ValueError("positions and box vectors must be finite numbers, got NaN or infinity")
        if bool(pbc.all()):
            directions = cell / torch.linalg.vector_norm(cell, dim=1, keepdim=True).clamp_min(1e-30)
            if float(torch.linalg.det(directions).abs()) < 1e-6:
                raise ValueError("the periodic box has no volume: give three independent lattice vectors")
        if bool(((torch.linalg.vector_norm(cell, dim=1) < 1e-6) & pbc).any()):
            raise ValueError("a periodic direction has no lattice vector: give one, or make the direction open")

    def species(self, numbers: Tensor) -> Tensor:
        """[N] species of atomic numbers [N]."""
        inside = (numbers >= 0) & (numbers < self.species_of_number.shape[0])
        species = self.species_of_number[numbers * inside]
        if bool((species < 0).any()):
            bad = int(numbers[(species < 0).nonzero()[0, 0]])
            raise ValueError(f"this model knows {self.known}, not atomic number {bad}")
        return species

    def fixed(self, positions: Tensor, cell: Tensor, periodic: bool) -> tuple[Tensor, Tensor]:
        """`evaluate` for the atoms of the file."""
        pbc = torch.full([3], periodic, dtype=torch.bool, device=positions.device)
        return self.evaluate(self.numbers, positions, cell.to(positions.device), pbc)

    def evaluate(self, numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [] float64 and forces [N, 3] of the type of the positions; without a graph where forces are wanted."""
        if self.forces:
            positions, cell = positions.detach(), cell.detach()
        self.check(numbers, positions, cell, pbc)
        # Differences of positions are formed in float64, whatever comes in: boxes are large, bonds short.
        r, cell = positions.double() * self.to_angstrom, cell.double() * self.to_angstrom
        species = self.species(numbers)
        i, j, shift = find_pairs(r.detach(), cell.detach(), pbc, self.cutoff)
        vectors = r[j] - r[i] + shift.to(cell.dtype) @ cell
        if i.shape[0] > 0:
            least = vectors.detach().square().sum(dim=1).min(dim=0)
            if float(least.values) <= self.shortest**2:
                pair = f"{int(i[least.indices])} and {int(j[least.indices])}"
                raise ValueError(f"atoms {pair} overlap; are the positions in the unit of this file?")
        energy, gradients = self.potential(i, j, vectors, species)
        gradients = gradients.double()
        forces = torch.zeros_like(r).index_add(0, i, gradients).index_add(0, j, -gradients)
        scale = self.from_ev * self.to_angstrom
        return energy * self.from_ev, (forces * scale).to(positions.dtype)


class _Molecule(_Exported):
    def forward(self, positions: Tensor) -> Tensor:
        return self.fixed(positions, torch.zeros([3, 3]), False)[0]


class _MoleculeForces(_Exported):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.fixed(positions, torch.zeros([3, 3]), False)


class _Box(_Exported):
    def forward(self, positions: Tensor, boxvectors: Tensor) -> Tensor:
        return self.fixed(positions, boxvectors, True)[0]


class _BoxForces(_Exported):
    def forward(self, positions: Tensor, boxvectors: Tensor) -> tuple[Tensor, Tensor]:
        return self.fixed(positions, boxvectors, True)


class _Any(_Exported):
    def forward(self, numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
        return self.evaluate(numbers, positions, cell, pbc)[0]


class _AnyForces(_Exported):
    def forward(self, numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
        return self.evaluate(numbers, positions, cell, pbc)


@contextmanager
def without_deprecation() -> Iterator[None]:
    """TorchScript is deprecated since torch 2.13, but the one format that openmm-torch reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        yield


def scripted_module(
    model: Potential,
    *,
    length_unit: Literal["nm", "angstrom"] = "nm",
    energy_unit: Literal["kJ/mol", "eV"] = "kJ/mol",
    numbers: Sequence[int] | None = None,
    periodic: bool = False,
    forces: bool = False,
) -> torch.jit.ScriptModule:
    """The compiled module that `export_torchscript` writes; arguments and errors are described there."""
    for name, value, known in (("length_unit", length_unit, _LENGTHS), ("energy_unit", energy_unit, _ENERGIES)):
        if value not in known:
            raise InputError(f"{name} must be {' or '.join(repr(each) for each in known)}, got {value!r}.")
    if numbers is None and periodic:
        raise InputError("periodic=True needs numbers; without numbers, periodicity is the argument pbc of each call.")
    fixed = None if numbers is None else torch.as_tensor([int(n) for n in numbers], device=model.device).long()
    if fixed is not None:
        model.check_elements(fixed.cpu().numpy(), "numbers")
    kinds = {(False, False): _Molecule, (False, True): _MoleculeForces, (True, False): _Box, (True, True): _BoxForces}
    kind = kinds[periodic, forces] if numbers is not None else (_AnyForces if forces else _Any)
    module = kind(model, forces, (_LENGTHS[length_unit], _ENERGIES[energy_unit]), fixed).eval()
    with without_deprecation():
        compiled: torch.jit.ScriptModule = torch.jit.script(module)
    return compiled


def export_torchscript(
    model: Potential,
    path: str | Path,
    *,
    length_unit: Literal["nm", "angstrom"] = "nm",
    energy_unit: Literal["kJ/mol", "eV"] = "kJ/mol",
    numbers: Sequence[int] | None = None,
    periodic: bool = False,
    forces: bool = False,
) -> Path:
    """Write a TorchScript file that `torch.jit.load` opens without snnp, and return its path.

    The call of the loaded module depends on what is fixed here; it returns the energy (a float64 scalar,
    differentiable in the positions), or with `forces` a tuple of energy and forces [N, 3] (analytic, without graph).

    - `numbers` given: `module(positions)`, or with `periodic` `module(positions, boxvectors)`: what `TorchForce` calls.
    - `numbers` None: `module(numbers, positions, cell, pbc)` with `numbers` [N] int64 and `pbc` [3] bool.

    Arguments:
        length_unit: of positions [N, 3] and box vectors [3, 3] (rows).
        energy_unit: of the energy; forces are in `energy_unit` per `length_unit`.
        numbers: atomic numbers of all atoms, in order.

    The file computes in the float type of `model`; distances are formed in float64. Its extra file `snnp.json` says
    what it is.

    Raises `InputError` for a unit or a model that cannot be exported, `UnknownElementError` for an element in `numbers`
    that the model does not know, `OSError` if the file cannot be written.

    Example:
        >>> from snnp.models import load_model
        >>> export_torchscript(load_model("snnp-si"), "si.pt", numbers=[14] * 64, periodic=True)  # doctest: +SKIP
    """
    form: dict[str, Any] = {"length_unit": length_unit, "energy_unit": energy_unit, "forces": forces}
    module = scripted_module(model, numbers=numbers, periodic=periodic, **form)
    atoms = {"n_atoms": None, "periodic": None} if numbers is None else {"n_atoms": len(numbers), "periodic": periodic}
    model_is = {"elements": list(model.elements), "cutoff_angstrom": model.cutoff, "metadata": model.metadata}
    description = {"format": "snnp-torchscript", **model_is, **form, **atoms}
    buffer = io.BytesIO()
    with without_deprecation():
        torch.jit.save(module, buffer, _extra_files={_DESCRIPTION: json.dumps(description)})
    write_atomically(Path(path), buffer.getvalue())
    return Path(path)
