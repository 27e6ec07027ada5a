"""Which compiled code serves several potentials: one encoding and many heads where they share their filters.

Members share where radial and angular functions, pair term, cutoffs and repulsion are the same to the bit; readout, its
scale, and E0 are each one's own. Nothing in a file says so: it is seen in the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from snnp.models.heads.joint import HeadsEvaluator, JointEvaluator, MembersEvaluator
from snnp.models.potential import Evaluated, Evaluator, Potential, Prediction
from snnp.models.spline.compiled import CpuEvaluator
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["SharedFilters"]


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


class SharedFilters:
    """Keeps the code of potentials, with one encoding where they share it; looks anew when a parameter has changed."""

    def __init__(self) -> None:
        self._known: tuple[list[Evaluator | None], JointEvaluator | None] = [], None

    def evaluator(self, potentials: Sequence[Potential]) -> JointEvaluator | None:
        """For their present parameters; None where no compiled code covers all, or elements differ in their order."""
        members = [each.evaluator() for each in potentials]
        known, shared = self._known
        if len(known) == len(members) and all(map(is_, members, known)):
            return shared
        compiled = [member for member in members if isinstance(member, CpuEvaluator)]
        splines = [each for each in potentials if isinstance(each, SplineNNP)]
        found: JointEvaluator | None = None
        if len(compiled) == len(members) > 1 and len({each.elements for each in potentials}) == 1:
            alike = share_filters(potentials)
            found = HeadsEvaluator(compiled, splines) if alike else MembersEvaluator(compiled)
        self._known = members, found
        return self._known[1]

    def predict(
        self, potentials: Sequence[Potential], structure: Structure, neighbours: Neighbours, **wanted: bool
    ) -> list[Prediction] | None:
        """What each says, as `Potential.compute_each` (`forces`, `stress`, `apart`); None without such code.

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
