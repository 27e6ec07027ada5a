"""Arguments and options that several commands share, and the form of the examples below their help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from snnp.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["Data", "Device", "Dtype", "Json", "Model", "Overwrite", "Seed", "StructureSpec", "as_dtype", "examples"]


def examples(*commands: str, after: tuple[str, ...] = ()) -> str:
    """The epilog of a command: one example per line, then further lines (Typer joins lines, so each is a paragraph)."""
    lines = ["Examples:", *(f"  $ {command}" for command in commands), *after]
    return "\n\n".join(escape(line) for line in lines)


def as_dtype(name: str | None) -> torch.dtype | None:
    """The torch type of a name; None stays None.

    Raises:
        InputError: for anything but float32 and float64.
    """
    import torch

    known = {"float32": torch.float32, "float64": torch.float64}
    if name is not None and name not in known:
        raise InputError(f"--dtype must be float32 or float64, got '{name}'.")
    return None if name is None else known[name]


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A bundled model ('snnp ls'), a model or run folder, or org/name on the Hub."),
]
Data = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DATA...",
        help="Files with reference values (extended XYZ, any format that ASE reads), or datasets (org/name:test).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="Precision: float32 or float64.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist; never an input.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of the random numbers; default: 0.")]
StructureSpec = Annotated[
    str,
    typer.Argument(
        metavar="STRUCTURE",
        help="A file that ASE reads, a crystal such as fcc:Al:4x4x4 or diamond:Si:3x3x3:a=5.43, or molecule:CH3CH2OH.",
    ),
]
