"""HIP-NN and HIP-NN-TS networks trained with hippynn, from their state without unpickling anything.

hippynn stores checkpoints as pickles, which this project never opens. Whoever made or trusts the checkpoint writes its
tensors to a safetensors file once, in an environment with torch:

    state = torch.load("best_model.pt", weights_only=True)
    save_file({k: v.contiguous() for k, v in state.items() if isinstance(v, torch.Tensor)}, "best_model.safetensors")

or hands over `module.state_dict()` of a model in memory. Hyperparameters are not in the state and have to be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from snnp.errors import ModelFileError
from snnp.models.formats import check_numbers, read_bounded, read_weights
from snnp.models.hipnn.config import HIPNNConfig
from snnp.models.hipnn.model import HIPNN

__all__ = ["import_hippynn"]

_MARK = "blocks.0.0.base_layer.int_weights"
_LARGEST_FILE = 1 << 31  # bytes
_SCALES = ("vecscales", "quadscales")


def import_hippynn(
    source: str | Path | Mapping[str, Any], config: HIPNNConfig, *, energy_node: str = "", energy_in_ev: float = 1.0
) -> HIPNN:
    """A `HIPNN` with the weights of a hippynn network (`Hipnn`, `HipnnVec`, or `HipnnQuad`, with `resnet=True`).

    Arguments:
        source: a safetensors file of the network's tensors, or its `state_dict()`: of the whole graph module, or of
            network and `HEnergy` layer together.
        config: the network's hyperparameters; `elements` in the order of `possible_species`, `cutoff` and the others in
            Å. `lower` and `upper` only say where training began: the state holds the sensitivities.
        energy_node: prefix of the names of the `HEnergy` layer, such as "moddict.node17."; by default found by name.
        energy_in_ev: eV per unit of energy of the network.

    The model has the state's float type; the network's own energy of a bare atom becomes E0. Raises `ModelFileError`,
    which names the tensor that is missing or has another shape than the configuration asks for.
    """
    where = "the state" if isinstance(source, Mapping) else str(source)
    state = _tensors(source, where)
    if (prefix := next((name.removesuffix(_MARK) for name in state if name.endswith(_MARK)), None)) is None:
        raise ModelFileError(
            f"the state holds no hippynn network: no tensor is named ...{_MARK}; give the state of a Hipnn, HipnnVec "
            "or HipnnQuad with resnet=True."
        )
    _check_elements(state, config)
    # A state dictionary also holds `cusp_reg`; a safetensors file, which has tensors only, does not.
    for name, value in source.items() if isinstance(source, Mapping) and config.l_max else ():
        if name.endswith("base_layer._extra_state") and value["cusp_reg"] != config.cusp:
            raise ModelFileError(f"the network has cusp_reg {value['cusp_reg']}, the configuration cusp {config.cusp}.")
    found = _network(state, prefix, config) | _readouts(state, energy_node, config, energy_in_ev)
    for name, shape in config.tensors():
        if name in found and tuple(found[name].shape) != shape:
            raise ModelFileError(
                f"{name} has shape {list(found[name].shape)} in the state, by the configuration {list(shape)}; "
                "check n_features, n_sensitivities, elements and l_max."
            )
    dtype = found["blocks.0.interaction.mu"].dtype
    if dtype not in (torch.float32, torch.float64) or any(value.dtype != dtype for value in found.values()):
        raise ModelFileError(f"{where} must hold numbers of one type, float32 or float64.")
    check_numbers(found, where)
    bare = found["readouts.0.weight"][0].double()
    found["readouts.0.weight"] = torch.zeros_like(found["readouts.0.weight"])
    model = HIPNN(config).to(dtype)
    model.load_state_dict(found)
    model.reference_energies = dict(zip(config.elements, bare.tolist(), strict=True))
    return model.eval()


def _tensors(source: str | Path | Mapping[str, Any], where: str) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        return {name: value.detach().cpu() for name, value in source.items() if isinstance(value, Tensor)}
    content = read_bounded(Path(source), _LARGEST_FILE)
    try:
        return read_weights(content, where)
    except ModelFileError as error:
        raise ModelFileError(
            f"{error} A checkpoint of hippynn is a pickle: write its tensors with safetensors.torch.save_file first."
        ) from None


def _check_elements(state: Mapping[str, Tensor], config: HIPNNConfig) -> None:
    """The state of a whole graph says which element is which feature."""
    if (table := next((value for name, value in state.items() if name.endswith("species_map")), None)) is None:
        return
    if table.dim() != 1 or table.dtype.is_floating_point or table.dtype.is_complex:
        raise ModelFileError("species_map must be a list of whole numbers; give the state of a hippynn graph.")
    order = [z for _, z in sorted((int(index), z) for z, index in enumerate(table.tolist()) if int(index) > 0)]
    given = [atomic_numbers.get(symbol) for symbol in config.elements]
    if order != given:
        raise ModelFileError(
            f"the network knows the atomic numbers {order} in this order, the configuration's elements "
            f"are {given}; give the elements of possible_species in their order."
        )


def _take(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ModelFileError(
            f"the state lacks {name}; check n_interactions, n_atom_layers and l_max, and that the network was made "
            "with resnet=True."
        )
    return state[name]


def _network(state: Mapping[str, Tensor], prefix: str, config: HIPNNConfig) -> dict[str, Tensor]:
    """Our names and shapes for the tensors of the network."""
    beyond = (f"{prefix}blocks.{config.n_interactions}.", f"{prefix}blocks.0.{config.n_atom_layers + 1}.")
    scales = tuple(f".{name}" for name in _SCALES)
    for name in state:
        if name.startswith(beyond) or name.endswith(scales[config.l_max :]):
            raise ModelFileError(
                f"the state holds {name}, for which the configuration has no place; raise n_interactions, "
                "n_atom_layers or l_max."
            )
    found: dict[str, Tensor] = {}
    for n, n_in in enumerate(config.widths[:-1]):
        theirs, ours = f"{prefix}blocks.{n}", f"blocks.{n}"
        base = f"{theirs}.0.base_layer"
        for name in ("mu", "sigma"):
            found[f"{ours}.interaction.{name}"] = _take(state, f"{base}.sensitivity.{name}").reshape(-1)
        found[f"{ours}.interaction.weights"] = _take(state, f"{base}.int_weights").permute(2, 0, 1)
        if config.l_max:
            parts = [_take(state, f"{base}{name}") for name in scales[: config.l_max]]
            found[f"{ours}.interaction.scales"] = torch.stack(parts)
        pairs = {f"{ours}.interaction.own": f"{base}.selfint", f"{ours}.residual.linear": f"{theirs}.0.res_layer"}
        for k in range(config.n_atom_layers):
            pairs[f"{ours}.layers.{k}.linear"] = f"{theirs}.{k + 1}.base_layer"
            pairs[f"{ours}.layers.{k}.residual.linear"] = f"{theirs}.{k + 1}.res_layer"
        for mine, other in pairs.items():
            found |= {f"{mine}.{name}": _take(state, f"{other}.{name}") for name in ("weight", "bias")}
        if n_in != config.n_features:
            found[f"{ours}.residual.adjust.weight"] = _take(state, f"{theirs}.0.adjust_layer.weight")
    return found


def _readouts(state: Mapping[str, Tensor], node: str, config: HIPNNConfig, energy_in_ev: float) -> dict[str, Tensor]:
    """The weights of `HEnergy`, in eV."""
    last = f"layers.{config.n_interactions}.weight"
    nodes = [node] if node else [name.removesuffix(last) for name in state if name.endswith(last)]
    if len(nodes) != 1:
        raise ModelFileError(
            f"the state holds {len(nodes)} layers that could be the energy ({', '.join(nodes) or 'none'}); name it "
            "with energy_node."
        )
    return {
        f"readouts.{n}.{name}": _take(state, f"{nodes[0]}layers.{n}.{name}") * energy_in_ev
        for n in range(config.n_interactions + 1)
        for name in (("weight", "bias") if n > 0 else ("weight",))
    }
