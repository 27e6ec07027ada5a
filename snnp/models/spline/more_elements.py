"""An s-NNP for elements that its filters never saw: the curves are kept, each new element gets a readout of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import ValidationError
from torch import Tensor

from snnp.errors import InputError
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.model import SplineNNP

__all__ = ["rescale_readout", "with_elements"]


def with_elements(model: SplineNNP, elements: Sequence[str], seed: int = 0) -> SplineNNP:
    """A copy in float64 for `elements`: those that the model knows keep their readout, others get a fresh one.

    E0 of new elements is zero, and their readout still stands for features as large as those of the old elements: see
    `rescale_readout`.

    Raises:
        InputError: if filters belong to elements, so that new ones would have none; one element's serve any other.
    """
    new = [symbol for symbol in elements if symbol not in model.elements]
    single, config = len(model.elements) == 1, model.config
    if not single and (config.filters != "shared" or len(model.g.grids) > 1 or model.phi is not None):
        raise InputError(
            f"filters of this model belong to its elements ({', '.join(model.elements)}), so that {', '.join(new)} "
            "would have none; name a model whose filters all elements share (filters: shared), or of one element."
        )
    if config.embedding is not None:
        raise InputError(
            f"an embedding spline of {', '.join(new)} cannot be made of those of {', '.join(model.elements)}; train a "
            "new model, or name one with a network."
        )
    try:
        form = SplineNNPConfig.model_validate({**config.model_dump(), "elements": tuple(elements)})
    except ValidationError as error:
        raise InputError(f"the form of this model does not allow other elements: {error.errors()[0]['msg']}.") from None
    e0 = model.reference_energies
    made = SplineNNP(form, {symbol: e0.get(symbol, 0.0) for symbol in elements}, seed=seed)
    made.isolated_atoms = [symbol for symbol in model.isolated_atoms if symbol in elements]
    made.metadata = dict(model.metadata)
    _copy(model, made)
    return made


@torch.no_grad()
def _copy(model: SplineNNP, made: SplineNNP) -> None:
    """Filters, scales, and the readouts of elements that both models know."""
    for name in ("rho", "f", "g", "phi"):
        source, target = getattr(model, name), getattr(made, name)
        if source is not None:  # with one group, or as many as before
            target.free.copy_(source.free.to(target.free).expand_as(target.free))
    made.readout.mean.copy_(model.readout.mean)
    made.readout.std.copy_(model.readout.std)
    both = [symbol for symbol in made.elements if symbol in model.elements]
    rows = [[each.elements.index(symbol) for symbol in both] for each in (made, model)]
    network, before = made.readout.network, model.readout.network
    if network is not None and before is not None:
        # A network that all elements share is known to new ones, too.
        to, of = ([0], [0]) if network.config.elements == "shared" else rows
        for target, source in zip(network.parameters(), before.parameters(), strict=True):
            target[to] = source[of].to(target)
    if made.readout.linear is not None and model.readout.linear is not None:
        made.readout.linear[rows[0]] = model.readout.linear[rows[1]].to(made.readout.linear)


@torch.no_grad()
def rescale_readout(model: SplineNNP, element: int, features: Tensor) -> None:
    """Let the fresh readout of an element see its own features [n, D] with mean zero and deviation one.

    The scales of the model are those of all elements and stay: the change goes into the weights of the first layer.
    """
    if (network := model.readout.network) is None or network.config.elements == "shared":
        return
    std = features.std(dim=0, correction=0)
    std = std.clamp_min(1e-2 * float(std.max().clamp_min(1e-6)))
    ratio, shift = model.readout.std / std, (model.readout.mean - features.mean(dim=0)) / std
    weight, bias = network.weights[0], network.biases[0]
    bias[element] += weight[element] @ shift.to(weight)
    weight[element] *= ratio.to(weight)
