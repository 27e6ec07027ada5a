"""Which potentials share their filters, and their compiled code: one encoding, many heads.

Members share where radial and angular functions, pair term, cutoffs and repulsion are the same to the bit; readout, its
scale, and E0 are each one's own. Nothing in a file says so: it is seen in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.call import ListKeeper, NeighbourRows, pack_pairs
from snnp.kernels.cpu.heads import PreparedHeads, pack_heads
from snnp.models.potential import Evaluated, Evaluator, Potential, Prediction, Stepper
from snnp.models.spline.compiled import CPU_LIST, CpuEvaluator
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["HeadsEvaluator", "HeadsStepper", "SharedFilters"]

Array = NDArray[np.float64]


def share_filters(potentials: Sequence[Potential]) -> bool:
    """Whether all are s-NNPs on the CPU that differ in nothing but readout, its scale and E0."""
    first = potentials[0]
    for each in potentials:
        if type(each) is not SplineNNP or each.elements != first.elements or each.device.type != "cpu":
            return False
    form, tensors = _encoding(first), _functions(first)
    return all(_encoding(each) == form and all(map(torch.equal, _functions(each), tensors)) for each in potentials[1:])


def _encoding(model: Potential) -> dict[str, Any]:
    """What of a form is not the readout's."""
    readout = ("network", "skip", "embedding")
    return {"dtype": model.dtype, **model.config.model_dump(exclude={*readout})}


def _functions(model: Potential) -> list[Tensor]:
    return [value for name, value in model.named_parameters() if not name.startswith("readout.")]


class HeadsEvaluator:
    """The compiled code of heads on one encoding. Energies, forces and virial are those of their mean."""

    target: str | None

    def __init__(self, members: Sequence[CpuEvaluator], potentials: Sequence[SplineNNP]) -> None:
        real = np.float32 if potentials[0].dtype == torch.float32 else np.float64
        parameters = [potential.kernel_parameters() for potential in potentials]
        self.kernel: Any = pack_heads(parameters, [member.kernel for member in members], real)
        self.target = members[0].target
        self.stepper: Callable[[float, float], Stepper] | None = HeadsStepper

    def evaluate(self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool) -> Evaluated:
        """As the contract has it."""
        return self.evaluate_each(structure, species, neighbours, forces=forces)[0]

    def evaluate_each(
        self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool, each: bool = False
    ) -> tuple[Evaluated, Array, Array | None]:
        """What the mean says, energies [M, N] eV of every head, and forces [M, N, 3] eV/Å if asked for `each`."""
        owner = structure.structure_of_atom.to(torch.int32).numpy() if structure.n_structures > 1 else None
        rows: NeighbourRows | None = neighbours.derived.get(CPU_LIST)
        if rows is None or len(rows.first) != structure.n_atoms + 1:
            pairs = (neighbours.i.numpy(), neighbours.j.numpy(), neighbours.shift.to(torch.int32).numpy())
            neighbours.derived[CPU_LIST] = rows = pack_pairs(pairs, structure.n_atoms, structure=owner)
        positions = structure.positions.detach().to(torch.float64).contiguous().numpy()
        images = rows.images(structure.cell.detach().to(torch.float64).numpy())
        elements, threads = species.to(torch.int32).contiguous().numpy(), torch.get_num_threads()
        call = PreparedHeads(self.kernel, elements, rows, images, threads, owner, structure.n_structures)
        energies, per_atom, virial, apart = call(positions, forces=forces, each=each)
        mean = torch.from_numpy(energies.mean(axis=0))
        whole = Evaluated(mean, None if per_atom is None else torch.from_numpy(per_atom), torch.from_numpy(virial))
        return whole, energies, apart


class HeadsStepper:
    """One system step by step, as the s-NNP's own; `evaluate` also gives what each head says."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self._keeper = ListKeeper(cutoff, skin)
        self._prepared: tuple[tuple[Any, ...], PreparedHeads] | None = None

    @property
    def n_builds(self) -> int:
        """How often a neighbour list was built."""
        return self._keeper.n_builds

    def __call__(
        self,
        evaluator: Evaluator,
        species: NDArray[np.int32],
        positions: Array,
        cell: Array,
        pbc: tuple[bool, bool, bool],
    ) -> tuple[Array, Array, Array]:
        """Energies [N], forces [N, 3] and virial [3, 3] of the mean."""
        energies, forces, virial, _ = self.evaluate(evaluator, species, positions, cell, pbc)
        return energies.mean(axis=0), forces, virial

    def evaluate(
        self,
        evaluator: Evaluator,
        species: NDArray[np.int32],
        positions: Array,
        cell: Array,
        pbc: tuple[bool, bool, bool],
        *,
        each: bool = False,
    ) -> tuple[Array, Array, Array, Array | None]:
        """Energies [M, N] of every head, forces and virial of the mean, and forces [M, N, 3] if asked for `each`."""
        system = (evaluator, species, *self._keeper.update(positions, cell, pbc), torch.get_num_threads())
        prepared = self._prepared
        if prepared is None or not all(map(is_, system, prepared[0])):
            assert isinstance(evaluator, HeadsEvaluator)
            self._prepared = prepared = system, PreparedHeads(evaluator.kernel, *system[1:])
        energies, forces, virial, apart = prepared[1](positions, each=each)
        assert forces is not None
        return energies, forces, virial[0], apart


class SharedFilters:
    """Keeps the code of potentials that share their filters; looks anew when a parameter has changed."""

    def __init__(self) -> None:
        self._known: tuple[list[Evaluator | None], HeadsEvaluator | None] = [], None

    def evaluator(self, potentials: Sequence[Potential]) -> HeadsEvaluator | None:
        """For their present parameters; None where they do not share their filters, or no compiled code covers them."""
        members = [each.evaluator() for each in potentials]
        known, shared = self._known
        if len(known) == len(members) and all(map(is_, members, known)):
            return shared
        compiled = [member for member in members if isinstance(member, CpuEvaluator)]
        splines = [each for each in potentials if isinstance(each, SplineNNP)]
        alike = len(compiled) == len(members) > 1 and share_filters(potentials)
        self._known = members, HeadsEvaluator(compiled, splines) if alike else None
        return self._known[1]

    def predict(
        self, potentials: Sequence[Potential], structure: Structure, neighbours: Neighbours, **wanted: bool
    ) -> list[Prediction] | None:
        """What each says, as `Potential.compute_each` (`forces`, `stress`, `apart`); None where they do not share.

        The stress is that of their mean.
        """
        if (evaluator := self.evaluator(potentials)) is None:
            return None
        forces, stress = wanted["forces"], wanted["stress"]
        species, each = potentials[0].species(structure), wanted["apart"] and forces
        mean, energies, apart = evaluator.evaluate_each(
            structure, species, neighbours, forces=forces or stress, each=each
        )
        found = []
        for m, potential in enumerate(potentials):
            own = mean.forces if apart is None else torch.from_numpy(apart[m])
            says = Evaluated(torch.from_numpy(energies[m]), own, mean.virial)
            found.append(potential.prediction(structure, says, forces=forces, stress=stress))
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedFilters:
        """Copies of a model start afresh."""
        return SharedFilters()

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedFilters, ()
