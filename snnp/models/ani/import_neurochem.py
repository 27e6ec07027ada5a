"""Networks in the format of NeuroChem, the program that trained the published ANI potentials.

A folder holds `*.params` (constants of the environment vector), `sae_linfit.dat` (energies of atoms, Hartree) and
`networks/ANN-<element>.nnf` (topology, compressed text) with `*.wparam` and `*.bparam` (little-endian float32, weights
row by row, one row per output). An ensemble is a folder of such folders, `train0`, `train1`, ...

Everything is read as text or as plain numbers of an expected count: no file can run code or ask for more memory than it
fills itself.
"""

from __future__ import annotations

import bz2
import hashlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers
from pydantic import ValidationError

from snnp.errors import InputError, ModelFileError, first_fault
from snnp.models.ani.model import ANI, ANIConfig
from snnp.models.ensemble import Ensemble
from snnp.models.formats import check_numbers, read_bounded, read_text
from snnp.models.store import LARGEST_ENERGY
from snnp.units import HARTREE_IN_EV

__all__ = ["read_neurochem"]

_ACTIVATIONS = {9: "celu", 5: "gaussian"}
_LINEAR = 6
_LONGEST_TEXT = 1 << 16  # bytes of a text, and of a topology file once decompressed; real ones have about a thousand
_LARGEST_FILE = 1 << 28
_DEEPEST = 3  # folders that may lie around the networks
_TYPE = 1  # the only kind of environment vector (TM) that the published networks use
_CONSTANTS = {
    **{"EtaR": ("radial", "eta"), "ShfR": ("radial", "shifts"), "Rcr": ("radial", "cutoff")},
    **{"EtaA": ("angular", "eta"), "Zeta": ("angular", "zeta"), "Rca": ("angular", "cutoff")},
    **{"ShfA": ("angular", "shifts"), "ShfZ": ("angular", "sections")},
}


class _Layer(NamedTuple):
    n_in: int
    n_out: int
    activation: int
    weights: str
    biases: str


def read_neurochem(folder: str | Path) -> ANI | Ensemble:
    """Read a folder of NeuroChem's: an `Ensemble` where it holds several networks per element, else an `ANI`.

    `folder`: of an ensemble (`train0/`, `train1/`, ...), of one network (`networks/`), or the folder around one. The
    potential is in float32, as stored, and gives energies in eV (1 Hartree = 27.211386245988 eV).

    Raises `ModelFileError`, which names the file that is missing, damaged, or not understood.
    """
    folder = Path(folder)
    models, digest = [], hashlib.sha256()
    for params, energies, networks in _find_members(folder):
        models.append(_read_member(params, energies, networks))
        for path in (params, energies, *sorted(networks.glob("ANN-*"))):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(_bytes(path)).digest())
    try:
        model = models[0] if len(models) == 1 else Ensemble(models)
    except InputError as error:
        raise ModelFileError(f"{folder}: the networks do not belong together: {error}") from None
    source = {"format": "NeuroChem", "folder": folder.resolve().name, "files_sha256": digest.hexdigest()}
    model.metadata = {"source": source}
    return model.eval()


def _find_members(folder: Path, depth: int = _DEEPEST) -> list[tuple[Path, Path, Path]]:
    """Of each network the files of constants and of energies, and the folder of the layers."""
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is not a folder; give the folder that holds train0/, train1/, ...")
    inside = [path for path in folder.iterdir() if path.is_dir()]
    trained = [path for path in inside if (path / "networks").is_dir()]
    if (folder / "networks").is_dir():
        trained = [folder]
    if not trained:
        if len(inside) == 1 and depth:
            return _find_members(inside[0], depth - 1)
        raise ModelFileError(
            f"{folder} holds no NeuroChem networks: expected networks/, or train0/networks/, train1/networks/, ..."
        )
    trained.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)[-1:]])
    # What all members share may lie beside them only.
    return [(_one(m, "*.params", folder), _one(m, "sae*.dat", folder), m / "networks") for m in trained]


def _one(folder: Path, pattern: str, fallback: Path) -> Path:
    found = sorted(folder.glob(pattern)) or sorted(fallback.glob(pattern))
    if len(found) != 1:
        what = "no file" if not found else f"{len(found)} files"
        raise ModelFileError(f"{folder} holds {what} {pattern}; expected one, as NeuroChem writes it.")
    return found[0]


def _read_member(params: Path, sae: Path, networks: Path) -> ANI:
    elements, aev = _read_params(params)
    energies = _read_energies(sae, elements)
    layers = {symbol: _read_topology(networks / f"ANN-{symbol}.nnf") for symbol in elements}
    files = [name for each in layers.values() for layer in each for name in (layer.weights, layer.biases)]
    if len(set(files)) < len(files):  # a small file could stand for any number of layers
        raise ModelFileError(f"{networks}: two layers take their numbers from one file; each has its own.")
    activations = {layer.activation for each in layers.values() for layer in each[:-1]}
    if len(activations) != 1:
        raise ModelFileError(f"{networks}: activations {sorted(activations)} are mixed; one for all is known.")
    hidden = {symbol: [layer.n_out for layer in each[:-1]] for symbol, each in layers.items()}
    tree = {"elements": elements, "aev": aev, "hidden": hidden, "activation": _ACTIVATIONS[activations.pop()]}
    try:
        config = ANIConfig.model_validate(tree)
    except ValidationError as error:
        _, key, reason, _ = first_fault(error)
        raise ModelFileError(f"{params}: {key}: {reason}.") from None
    length = config.aev.length(len(elements))
    for symbol, each in layers.items():
        if each[0].n_in != length:
            raise ModelFileError(
                f"{networks}/ANN-{symbol}.nnf takes {each[0].n_in} inputs, but {params.name} makes "
                f"{length}; the two files do not belong together."
            )
    # All numbers are read before a network is made of them: sizes that no file bears out end here.
    state = {}
    for symbol, each in layers.items():
        for k, layer in enumerate(each):
            scale = HARTREE_IN_EV if layer.activation == _LINEAR else 1.0  # the last layer gives Hartree
            for name, file, shape in (
                ("weight", layer.weights, (layer.n_out, layer.n_in)),
                ("bias", layer.biases, (layer.n_out,)),
            ):
                numbers = scale * _numbers(networks / file, math.prod(shape))
                state[f"networks.{symbol}.layers.{k}.{name}"] = numbers.reshape(shape)
    check_numbers(state, str(networks))
    try:
        model = ANI(config, energies).float()
    except InputError as error:
        raise ModelFileError(f"{params}: {error}") from None
    model.load_state_dict(state)
    return model


def _numbers(path: Path, count: int) -> torch.Tensor:
    content = _bytes(path)
    if len(content) != 4 * count:
        raise ModelFileError(
            f"{path} has {len(content)} bytes, but the topology asks for {count} numbers of 4 bytes; "
            "the file is damaged or of another network."
        )
    values = np.frombuffer(content, dtype="<f4")
    if not np.isfinite(values).all():
        raise ModelFileError(f"{path} holds NaN or infinity; fetch it again.")
    return torch.from_numpy(values.astype(np.float64))


def _bytes(path: Path) -> bytes:
    content = read_bounded(path, _LARGEST_FILE)
    if not content:
        raise ModelFileError(f"{path} is empty; fetch it again.")
    return content


def _read_params(path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Elements and the keys of an `AEVConfig`."""
    entries: dict[str, list[str]] = {}
    for line in read_text(path, _LONGEST_TEXT, "fetch it again", "ascii").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            entries[key.strip()] = [part.strip() for part in value.strip().strip("[]").split(",")]
    kind = entries.get("TM", [str(_TYPE)])
    if kind != [str(_TYPE)]:
        raise ModelFileError(f"{path}: TM = {', '.join(kind)} is not supported; only TM = {_TYPE} is.")
    elements = tuple(entries.get("Atyp", ()))
    if not elements or not set(elements) <= set(atomic_numbers) or len(set(elements)) < len(elements):
        raise ModelFileError(f"{path} names no elements: Atyp must be distinct chemical symbols.")

    aev: dict[str, dict[str, Any]] = {"radial": {}, "angular": {}}
    for key, (part, name) in _CONSTANTS.items():
        if key not in entries:
            raise ModelFileError(f"{path}: {key} is missing; the file is not complete.")
        try:
            values = [_number(word) for word in entries[key]]
        except ValueError:
            raise ModelFileError(f"{path}: {key} must be numbers, got {', '.join(entries[key])}.") from None
        if name not in ("shifts", "sections") and len(values) != 1:
            raise ModelFileError(f"{path}: {key} has {len(values)} values; only one is supported.")
        aev[part][name] = values if name in ("shifts", "sections") else values[0]
    return elements, aev


def _read_energies(path: Path, elements: tuple[str, ...]) -> dict[str, float]:
    """E0 in eV of each element; lines are `H,0=-0.5991` in Hartree."""
    found: dict[str, float] = {}
    lines = read_text(path, _LONGEST_TEXT, "fetch it again", "ascii").splitlines()
    for match in filter(None, (re.fullmatch(r"\s*([A-Z][a-z]?)\s*,\s*\d+\s*=\s*(\S+)\s*", line) for line in lines)):
        symbol, text = match.groups()
        if symbol in found:
            raise ModelFileError(f"{path} has two energies of {symbol}; remove one of them.")
        try:
            found[symbol] = _number(text) * HARTREE_IN_EV
        except ValueError:
            raise ModelFileError(f"{path}: the energy of {symbol} is no number: {text}.") from None
        if not abs(found[symbol]) <= LARGEST_ENERGY:
            raise ModelFileError(f"{path}: {text} Hartree is no energy of an atom of {symbol}.")
    if missing := [symbol for symbol in elements if symbol not in found]:
        raise ModelFileError(f"{path} has no energy of {', '.join(missing)}.")
    return {symbol: found[symbol] for symbol in elements}


def _read_topology(path: Path) -> list[_Layer]:
    """Layers of one element; the last is linear with one output."""
    head, *blocks = re.split(r"\blayer\s{0,9}\[", _decompress(path))
    inputs = re.search(r"inputsize=([0-9]{1,9});", head)
    if inputs is None or not blocks:
        raise ModelFileError(f"{path} holds no layers; it is no NeuroChem topology.")
    layers, width = [], int(inputs[1])
    for number, block in enumerate(blocks, 1):
        where, layer = f"{path}, layer {number}", _read_layer(block.partition("]\n")[0], f"{path}, layer {number}")
        if layer.n_in != width:
            raise ModelFileError(f"{where} takes {layer.n_in} inputs, the layer before gives {width}.")
        last = number == len(blocks)
        if layer.activation not in ((_LINEAR,) if last else _ACTIVATIONS) or (last and layer.n_out != 1):
            raise ModelFileError(
                f"{where} with {layer.n_out} nodes: activation {layer.activation} is not supported; hidden layers have "
                f"9 (CELU) or 5 (Gaussian), the last has {_LINEAR} (linear) and one node."
            )
        layers.append(layer)
        width = layer.n_out
    if len(layers) < 2:
        raise ModelFileError(f"{path} has no hidden layer.")
    return layers


def _number(text: str) -> float:
    """As the program that wrote it: not Python's 1_0."""
    return float(text.replace("_", "no number"))


def _read_layer(text: str, where: str) -> _Layer:
    """A layer from its `key=value;` pairs."""
    pairs = (piece.partition("=") for piece in text.split(";"))
    keys = {"type": "0", "btchnorm": "0"} | {k.split()[-1]: value for k, equals, value in pairs if equals and k.split()}
    sizes = [keys.get(key, "").strip() for key in ("blocksize", "nodes", "activation", "type", "btchnorm")]
    if not all(re.fullmatch(r"[0-9]{1,9}", size) for size in sizes):
        raise ModelFileError(f"{where}: blocksize, nodes and activation must be whole numbers (got {sizes!r:.60}).")
    n_in, n_out, activation, kind, normalised = map(int, sizes)
    if kind != 0 or normalised != 0:
        raise ModelFileError(f"{where}: type {kind} with btchnorm {normalised} is not supported; plain layers are.")
    files = []
    for key, count in (("weights", n_in * n_out), ("biases", n_out)):
        match = re.fullmatch(r"FILE:([A-Za-z0-9_-][A-Za-z0-9_.-]*)\[([0-9]{1,18})\]", keys.get(key, ""))
        if match is None:
            raise ModelFileError(f"{where}: {key} must be FILE:name[count], got {keys.get(key, '')[:60]!r}.")
        if int(match[2]) != count:
            raise ModelFileError(
                f"{where}: {key} has {match[2]} numbers, but {n_out} nodes of {n_in} inputs need {count}."
            )
        files.append(match[1])
    return _Layer(n_in, n_out, activation, *files)


def _decompress(path: Path) -> str:
    """The text of a topology file: its length in decimal, `=`, a newline, and bzip2."""
    head, mark, packed = _bytes(path).partition(b"=\n")
    if not mark or not head.isdigit() or len(head) > 12:
        raise ModelFileError(f"{path} is no NeuroChem topology: it does not begin with the length of its text.")
    unpacker = bz2.BZ2Decompressor()
    try:
        content = unpacker.decompress(packed, _LONGEST_TEXT)
    except OSError:
        raise ModelFileError(f"{path} is damaged: its text cannot be decompressed.") from None
    if not unpacker.eof or len(content) != int(head):
        raise ModelFileError(f"{path} is damaged: its text has {len(content)} bytes instead of {int(head)}.")
    return content.decode("ascii", errors="replace")
