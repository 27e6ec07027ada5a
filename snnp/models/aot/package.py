"""Packages of AOTInductor: a model compiled to one file that `torch._inductor.aoti_load_package` opens without snnp.

The file holds machine code for the kind of processor that it was written on, weights, and a description. Neighbours
come in from outside: a search has shapes that depend on the data, which `torch.export` does not trace.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from snnp.errors import InputError, MissingDependencyError
from snnp.files import write_atomically
from snnp.models.aot.padded import PaddedPotential
from snnp.models.potential import Potential
from snnp.models.store import fingerprint

__all__ = ["traced", "write_package"]

_logger = logging.getLogger(__name__)


def write_package(model: Potential, path: str | Path) -> dict[str, Any]:
    """Compile a model and write what `torch._inductor.aoti_load_package(path)` opens; return what to tell about it.

    The loaded function is `energy, forces, virial = f(numbers, positions, cell, neighbours, shifts)`: see
    `PaddedPotential.forward`. Any numbers of atoms N and of columns J; units are Å and eV, arrays float64, whatever the
    float type of the model, in which it computes. `f.get_metadata()["snnp"]` is JSON: what the file is.

    Raises:
        InputError: for a model that cannot be exported, or one on a GPU, and for a name that does not end in .pt2.
        MissingDependencyError: without a C++ compiler.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"torch opens packages whose names end in .pt2 alone, got '{path}'.")
    padded = PaddedPotential(model).eval().requires_grad_(False)
    if model.device.type != "cpu":
        raise InputError(f"packages are for CPUs, and this model is on {model.device}; load it with device='cpu'.")
    _refuse_without_compiler()
    _logger.info("tracing and compiling, which takes a minute or a few")
    about = {
        "format": "snnp-aoti",
        "elements": list(model.elements),
        "cutoff_angstrom": model.cutoff,
        "length_unit": "angstrom",
        "energy_unit": "eV",
        "precision": str(model.dtype).removeprefix("torch."),
        "inputs": ["numbers [N]", "positions [N, 3]", "cell [3, 3]", "neighbours [N, J]", "shifts [N, J, 3]"],
        "outputs": ["energy []", "forces [N, 3]", "virial [3, 3]"],
        "sha256": fingerprint(model),
        "written_by": f"snnp {version('snnp')}, torch {torch.__version__}",
        "metadata": model.metadata,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own use of what it deprecates
        write_atomically(path, _compiled(padded, about))
    return {name: about[name] for name in ("inputs", "outputs", "length_unit", "energy_unit", "sha256")}


def _example(model: PaddedPotential) -> tuple[Tensor, ...]:
    """Five atoms on a circle and seven columns: numbers of neither kind, so that no two lengths look like one."""
    symbol_of = (model.species_of_number >= 0).nonzero()[:, 0]
    angles = torch.arange(5, dtype=torch.float64) * (2.0 * math.pi / 5)
    positions = 2.0 * torch.stack([angles.cos(), angles.sin(), 0.0 * angles], dim=1)
    neighbours = torch.full((5, 7), -1)
    for k in range(1, 5):
        neighbours[:, k - 1] = (torch.arange(5) + k) % 5
    numbers = symbol_of[torch.arange(5) % len(symbol_of)]
    return numbers, positions, torch.zeros(3, 3, dtype=torch.float64), neighbours, torch.zeros(5, 7, 3).long()


def traced(model: PaddedPotential) -> ExportedProgram:
    """The model as a program of plain operators, for any numbers of atoms and of columns."""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = _example(model)
    atoms, columns = Dim("atoms", min=2), Dim("columns", min=2)
    shapes = ({0: atoms}, {0: atoms}, None, {0: atoms, 1: columns}, {0: atoms, 1: columns})
    module: nn.Module = model
    if not model.is_analytic:  # export does not trace autograd; this does, and what it leaves are plain operators
        module = make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    # Some guards hold for all sizes, which torch cannot prove; they become checks of the exported program.
    return export(module, inputs, dynamic_shapes=shapes, strict=False, prefer_deferred_runtime_asserts_over_guards=True)


def _compiled(model: PaddedPotential, about: dict[str, Any]) -> bytes:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    program = traced(model)
    options = {
        "aot_inductor.metadata": {"snnp": json.dumps(about)},
        "aot_inductor.check_lowerbound": False,  # one atom, or one column, is served too
        "cpp.dynamic_threads": True,  # those of the program that loads it
    }
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder) / "model.pt2")
        try:
            aoti_compile_and_package(program, package_path=made, inductor_configs=options)
        except CppCompileError as error:
            raise MissingDependencyError(f"the C++ compiler failed on torch's code: {str(error)[-2000:]}") from error
        return Path(made).read_bytes()


def _refuse_without_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise MissingDependencyError(
            "a package is compiled here by a C++ compiler, and none was found: install g++ (or clang++, named with "
            "CXX=clang++). Where the package is loaded none is needed."
        ) from error
