"""The model that training goes on from: what is kept of it, which E0 it gets, and how new readouts begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from snnp.data import Frames, ReferenceEnergies
from snnp.data.reference import FROM_ISOLATED_ATOMS, are_isolated_atoms
from snnp.errors import ConfigError, InputError
from snnp.hub import load_model
from snnp.models.config import FamilyConfig
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.models.spline.more_elements import rescale_readout, with_elements

__all__ = ["Start"]

_TELLING_FRAMES, _LEAST_SHIFT = 64, 0.02  # which tell whether labels have the zero of a model, and eV/atom


class Start:
    """A model, and what training on data of some elements takes of it.

    Arguments:
        name: of the model (a folder, a bundled model, org/name). elements: of the data. freezes: whether its filters
            stay as they are; then new elements join those that it knows, and else replace them, as these would be
            spoilt. seed: of new readouts.

    Raises:
        ConfigError: for an ensemble, for elements that it cannot learn, and where there are no filters to freeze.
        ModelError: if it cannot be read.

    Attributes:
        known: the model as it is, in float64. model: the same for the elements that training is about.
    """

    def __init__(self, name: str, elements: Sequence[str], freezes: bool, seed: int) -> None:
        self.name, self._freezes, self.known = name, freezes, load_model(name, dtype="float64")
        if not isinstance(self.known.config, FamilyConfig):
            raise ConfigError(f"start: {name} is an ensemble; name one model.")
        kind = type(self.known).__name__
        if freezes and not isinstance(self.known, SplineNNP):
            raise ConfigError(
                f"freeze: {name} is a {kind}, a model without filters; use freeze: none, or start from an s-NNP."
            )
        self.model: Potential = self.known
        if not (missing := [symbol for symbol in elements if symbol not in self.known.elements]):
            return
        if not isinstance(self.known, SplineNNP):
            raise ConfigError(
                f"start: {name} lacks {', '.join(missing)}, which the training data hold, and a {kind} cannot learn "
                "more elements; name a model that knows them, or leave start away."
            )
        keeps = freezes and self.known.config.filters == "shared"
        try:
            self.model = with_elements(self.known, [*self.known.elements, *missing] if keeps else elements, seed)
        except InputError as error:
            raise ConfigError(f"start: {name} lacks {', '.join(missing)}: {error}") from None

    @cached_property
    def _new(self) -> list[str]:
        return [symbol for symbol in self.model.elements if symbol not in self.known.elements]

    def zeros(self, frames: Frames, fitted: ReferenceEnergies) -> ReferenceEnergies:
        """E0: those of the model, moved where labels have another zero of energy; of new elements those `fitted`.

        Arguments:
            frames: the training set. fitted: E0 of its elements, as if training began from nothing.
        """
        energies, known = self.model.reference_energies, self.known
        stated = known.metadata.get("reference_energies_from", {})
        origin = {symbol: stated.get(symbol, f"as in {self.name}") for symbol in energies}
        others = [symbol not in known.elements for symbol in frames.elements]
        telling = frames.has_energy & (frames.composition()[:, others].sum(axis=1) == 0) & ~are_isolated_atoms(frames)
        if len(rows := np.flatnonzero(telling)):
            some = frames.take(rows[:: -(-len(rows) // _TELLING_FRAMES)])
            rest = some.energy - known.compute(some.structure(), forces=False).energy.cpu().numpy()
            content, rest = some.composition() / some.counts[:, None], rest / some.counts
            shift, *_ = np.linalg.lstsq(content, rest, rcond=1e-8)
            # Labels of the same zero are off by what the model has not learned, and not all to the same side.
            if np.std(rest - content @ shift) < 0.5 * np.sqrt(np.mean(rest**2)) and np.abs(shift).max() > _LEAST_SHIFT:
                offsets = dict(zip(known.elements, known.energy_offsets().tolist(), strict=True))
                moved = {s: round(offsets[s] + each, 6) for s, each in zip(some.elements, shift.tolist(), strict=True)}
                energies |= moved
                origin |= dict.fromkeys(moved, f"those of {self.name}, moved to the zero of the labels")
        # Energies of atoms alone may come from another method; least squares are no energies of atoms, and stay.
        alone = [s for s, how in fitted.provenance.items() if how == FROM_ISOLATED_ATOMS and s in known.isolated_atoms]
        for symbol in (*self._new, *alone):
            energies[symbol], origin[symbol] = fitted.energies[symbol], fitted.provenance[symbol]
        return ReferenceEnergies(energies, origin)

    @torch.no_grad()
    def fill(self, model: Potential, features: Callable[[], Tensor], frames: Frames) -> None:
        """Give a model of this form what was learned, scale new readouts, and leave out of training what is frozen.

        Arguments:
            model: in the type and on the device of the training. features: computes those [N, D] of the atoms of the
                training set `frames` by its present parameters.
        """
        model.load_state_dict(self.model.state_dict())
        if not isinstance(model, SplineNNP):
            return
        if self._new:
            found = features()
            species = model.species_of_number[torch.from_numpy(frames.numbers.astype(np.int64)).to(model.device)]
            for element in map(model.elements.index, self._new):
                rescale_readout(model, element, found[species == element])
        for splines in (model.rho, model.f, model.g) if self._freezes else ():
            splines.free.requires_grad_(False)

    def keep(self, model: Potential, optimiser: torch.optim.Optimizer, elements: Sequence[str]) -> None:
        """With frozen filters, put back after every step the readouts of elements that the data lack.

        Their gradients are zero, but an optimiser that turns matrices of all elements together moves them all the same.

        Arguments:
            model: filled. optimiser: of its parameters. elements: of the data.
        """
        if not self._freezes or not isinstance(model, SplineNNP):
            return
        rows = [k for k, symbol in enumerate(model.elements) if symbol not in elements]
        own = [each for each in model.readout.parameters() if rows and len(each) == len(model.elements)]
        saved = [parameter.detach()[rows].clone() for parameter in own]

        def put_back(*_: object) -> None:
            with torch.no_grad():
                for parameter, values in zip(own, saved, strict=True):
                    parameter[rows] = values

        optimiser.register_step_post_hook(put_back)
