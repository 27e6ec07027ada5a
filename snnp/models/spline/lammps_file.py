"""Files of the LAMMPS pair style `snnp`: a model as the compiled kernel reads it, behind a header that people can read.

    snnp-lammps FORMAT HEADER_BYTES MODEL_BYTES CRC32
    name value                (lines; the pair style reads that of the elements, the rest is provenance)
    ...
    (the packed model, MODEL_BYTES bytes)

The checksum, in hexadecimal as zlib has it, is of everything behind the first line. `plugins/lammps` reads the file.
"""

from __future__ import annotations

import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from snnp.errors import InputError
from snnp.files import write_atomically
from snnp.kernels.cpu.call import supports
from snnp.kernels.cpu.library import VERSION, pack_parameters
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.models.store import fingerprint
from snnp.text import one_line

__all__ = ["FORMAT", "write_lammps"]

FORMAT = 1
_STATED = ("description", "level_of_theory", "licence", "citation", "dataset")
_LONGEST = 300


def write_lammps(model: Potential, path: str | Path) -> Path:
    """Write the file that `pair_coeff * * FILE` of the LAMMPS pair style `snnp` reads, and return its path.

    LAMMPS then computes in the float type of the model; energies hold E0, as everywhere.

    Raises:
        InputError: for anything but an s-NNP whose form the compiled kernel covers.
        OSError: if the file cannot be written.
    """
    if not isinstance(model, SplineNNP):
        members = model.potentials if isinstance(model, Ensemble) else [model]
        what = " of ".join([*(["an Ensemble"] if isinstance(model, Ensemble) else []), type(members[0]).__name__])
        cure = "run it with the engines ase, openmm or native"
        cure += "; or export one member" if all(isinstance(member, SplineNNP) for member in members) else ""
        raise InputError(f"{what} does not run in LAMMPS: its pair style is the kernel of the s-NNP alone; {cure}.")
    parameters = model.kernel_parameters()
    if not supports(parameters):
        raise InputError(
            "the compiled kernel, and with it LAMMPS, covers networks of up to 8 layers and Legendre degrees of up to "
            "8; this model is beyond that: train one within."
        )
    single = model.dtype == torch.float32
    packed = pack_parameters(parameters, np.float32 if single else np.float64).tobytes()
    header = {
        "elements": " ".join(model.elements),
        "cutoff": f"{model.cutoff:.12g} Angstrom",
        "units": "metal",
        "precision": "float32" if single else "float64",
        "model": model.name or "without a name",
        "sha256": fingerprint(model),
        "written_by": f"snnp {version('snnp')}, kernel {VERSION}",
    }
    header |= {name: model.metadata[name] for name in _STATED if model.metadata.get(name)}
    lines = [f"{name} {_plain(value)}\n" for name, value in header.items()]
    behind = "".join(lines).encode() + packed
    first = f"snnp-lammps {FORMAT} {len(behind) - len(packed)} {len(packed)} {zlib.crc32(behind):08x}\n"
    write_atomically(Path(path), first.encode() + behind)
    return Path(path)


def _plain(value: object) -> str:
    line = one_line(value)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
