"""Files of whole models, for all structures, that other programs run: AOTInductor's, and of LAMMPS's pair styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from snnp.cli.outputs import input_files, prepare_output
from snnp.hub import load_model
from snnp.models.aot import write_package
from snnp.models.potential import Potential
from snnp.models.spline.uf3_file import write_for_lammps

__all__ = ["exported", "write_whole"]


def write_whole(
    model: str,
    out: Path,
    file_format: Literal["aoti", "lammps", "uf3", "meam-spline"],
    *,
    dtype: str | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Write a model; returns what `snnp export` says of it."""
    default = {"aoti": None, "lammps": "float32"}.get(file_format, "float64")
    potential = load_model(model, dtype=dtype or default)
    prepare_output(out, overwrite=overwrite, inputs=input_files(model))
    more = write_package(potential, out) if file_format == "aoti" else write_for_lammps(potential, out, file_format)
    return exported(potential, out, file_format, **more)


def exported(potential: Potential, out: Path, file_format: str, **more: Any) -> dict[str, Any]:
    about = {"model": potential.name, "out": str(out), "format": file_format}
    return {**about, **more, "dtype": str(potential.dtype).removeprefix("torch."), "bytes": out.stat().st_size}
