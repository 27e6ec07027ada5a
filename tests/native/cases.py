"""Case files for `driver.cpp`, the driver itself, and random models and structures to fill cases with."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnp.kernels.build import find_compiler
from snnp.kernels.cpu.call import pack_pairs
from snnp.kernels.cpu.library import MAX_DEGREE, pack_parameters
from snnp.models import SplineNNP
from snnp.models.spline.config import SplineNNPConfig
from snnp.neighbours import find_pairs, neighbour_list
from snnp.structure import Structure

__all__ = ["Case", "blob", "build_driver", "number", "random_case", "run_driver", "write_case"]

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE.parents[1] / "snnp" / "kernels" / "src"
_DRIVER = ("driver.cpp", "training_driver.cpp")
_SKIN = 0.4  # Å: lists hold pairs that do not count


@dataclass(frozen=True)
class Case:
    """A model on a batch of structures; a half list (one structure) is entered in both directions by the kernel."""

    model: SplineNNP
    structure: Structure
    half: bool = False
    weights: np.ndarray | None = None


def write_case(path: Path, case: Case) -> None:
    """Write the arrays of a case in the order in which the driver reads them."""
    structure, reach = case.structure, case.model.cutoff + _SKIN
    positions, cells = structure.positions.double().numpy(), structure.cell.double().numpy()
    several = structure.n_structures > 1
    owner = structure.structure_of_atom.to(torch.int32).numpy() if several else None
    if case.half:
        assert not several
        pairs: Any = find_pairs(positions, cells[0], structure.pbc[0].numpy(), reach, half=True)
    else:
        found = neighbour_list(structure, reach)
        pairs = found.i.numpy(), found.j.numpy(), found.shift.numpy()
    i, j, shift = (np.ascontiguousarray(column, dtype=np.int64) for column in pairs)
    packed = pack_pairs((i, j, shift), structure.n_atoms, half=case.half, structure=owner)
    real: Any = np.float32 if case.model.dtype == torch.float32 else np.float64
    arrays = [
        pack_parameters(case.model.kernel_parameters(), real),
        positions,
        case.model.species(structure).to(torch.int32).numpy(),
        owner,
        i,
        j,
        shift.astype(np.int32),
        np.abs(shift).max(axis=0, initial=0).astype(np.int64),
        np.array([case.half], dtype=np.int64),
        packed.images(cells),
        case.weights,
        cells,
    ]
    path.write_bytes(number(0) + b"".join(blob(array) for array in arrays))


def number(value: int) -> bytes:
    """A number as the driver reads it."""
    return np.int64(value).tobytes()


def blob(array: np.ndarray | None) -> bytes:
    """An array behind its length in bytes; None is as an empty one."""
    content = b"" if array is None else np.ascontiguousarray(array).tobytes()
    return number(len(content)) + content


def build_driver(folder: Path, library: Path, flags: Sequence[str] = ()) -> Path:
    """Compile the driver beside a library that was built with the same flags; needs a compiler."""
    compiler = find_compiler()
    assert compiler is not None
    driver = folder / "driver"
    command = [
        *compiler,
        "-std=c++17",
        "-O1",
        "-g",
        f"-I{_SOURCES}",
        *flags,
        *(str(_HERE / name) for name in _DRIVER),
        str(library),
    ]
    command += [f"-Wl,-rpath,{library.parent}", "-lpthread", "-o", str(driver)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return driver


def run_driver(
    driver: Path,
    case: Path,
    target: str,
    *,
    counts: tuple[int, int, int] = (1, 1, 1),
    before: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> tuple[np.ndarray, str]:
    """Run the driver; returns its result (energies [N], forces [3 N], virials [9 B]) and what went to stderr.

    Arguments:
        counts: calls, threads of the kernel, callers at once.
        before: a command to run it under, such as valgrind with its options.

    Raises:
        RuntimeError: with the driver's last words, if it fails.
    """
    result = case.with_suffix(".result")
    command = [*before, str(driver), str(case), str(result), target, *(str(count) for count in counts)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed with status {done.returncode}:\n{done.stderr[-8000:]}")
    return np.fromfile(result), done.stderr


def random_case(seed: int) -> Case:
    """A model of random form on random atoms: free clusters, crystals, slabs, single atoms, none at all."""
    rng = np.random.default_rng(seed)
    elements = tuple(rng.choice(["Al", "Si", "Cu", "O"], size=rng.integers(1, 4), replace=False).tolist())
    model = SplineNNP(_random_config(rng, elements), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.from_numpy(rng.standard_normal(parameter.shape)))
    structure = Structure.concatenate([_random_structure(rng, elements) for _ in range(rng.integers(1, 4))])
    half = structure.n_structures == 1 and structure.n_atoms > 0 and bool(rng.integers(2))
    weights = rng.standard_normal(structure.n_atoms) if rng.integers(2) else None
    return Case(model.to(torch.float32) if rng.integers(2) else model, structure, half, weights)


def _random_config(rng: np.random.Generator, elements: tuple[str, ...]) -> SplineNNPConfig:
    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    upper = float(rng.uniform(2.5, 5.0))
    activation = pick("silu", "tanh", "softplus")
    network = pick(None, {"hidden": pick((3,), (17, 5), (32, 32)), "activation": activation})
    return SplineNNPConfig.model_validate(
        {
            "elements": elements,
            "filters": pick("shared", "element", "pair"),
            "ends": pick("smooth", "free"),
            "radial": {"n_filters": int(rng.integers(1, 20)), "cutoff": upper, "intervals": int(rng.integers(4, 15))},
            "angular": {
                "n_filters": int(rng.integers(0, 36)),
                "cutoff": upper - pick(0.0, 0.7),
                "intervals": int(rng.integers(4, 13)),
                "evaluator": pick("legendre", "legendre", "spline"),
                "degree": int(rng.integers(0, MAX_DEGREE + 1)),
                "elements": pick("shared", "pair"),
            },
            "pair_term": pick(True, False),
            "network": network,
            "skip": pick(True, False) or network is None,
            "embedding": pick(None, {}, {"of": "sum"}),
            "repulsion": pick(None, {"inner": 0.8, "outer": 1.6}),
        }
    )


def _random_structure(rng: np.random.Generator, elements: tuple[str, ...]) -> Structure:
    """Atoms at least 0.9 Å apart on a jittered grid, in a cell that may be sheared, narrow, and open on some sides."""
    from ase import Atoms

    shape = np.array([0, 1, 1]) if rng.integers(10) == 0 else rng.integers(1, 5, size=3)
    spacing = rng.uniform(1.7, 2.6)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3) * spacing
    positions = grid + rng.uniform(-0.2, 0.2, size=grid.shape)
    cell = np.diag(np.maximum(shape, 1) * spacing) + np.triu(rng.uniform(-0.4, 0.4, size=(3, 3)), 1)
    return Structure.from_ase(
        Atoms(rng.choice(elements, size=len(grid)), positions, cell=cell, pbc=rng.integers(0, 2, size=3).astype(bool))
    )
