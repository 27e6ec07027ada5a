"""The C++ program of docs/export.md, built against the libtorch of this environment."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

import snnp
from snnp.models.export import export_torchscript

LIBTORCH = Path(torch.__path__[0])
PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not (LIBTORCH / "include/torch/script.h").is_file(), reason="this torch brings no headers")
def test_program_of_the_page(tmp_path: Path) -> None:
    """It builds, gives the model's numbers, and says what is wrong with a file."""
    (source,) = re.findall(r"^```cpp\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "energy.cpp").write_text(source)
    build = ["g++", "-std=c++20", "-O0", "energy.cpp", "-o", "energy"]
    build += [f"-I{LIBTORCH}/include", f"-I{LIBTORCH}/include/torch/csrc/api/include"]
    build += [f"-L{LIBTORCH}/lib", f"-Wl,-rpath,{LIBTORCH}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]

    model = snnp.load_model("snnp-si", dtype="float64")
    export_torchscript(model, tmp_path / "si.pt", length_unit="angstrom", energy_unit="eV", forces=True)
    done = subprocess.run(["./energy", "si.pt"], cwd=tmp_path, capture_output=True, text=True, check=True)
    about, energy, *forces = done.stdout.splitlines()
    a = 2.715
    cell = [[0.0, a, a], [a, 0.0, a], [a, a, 0.0]]
    wanted = model.compute(Atoms("Si2", [[0, 0, 0], [1.4, 1.3, 1.35]], cell=cell, pbc=True))
    assert wanted.forces is not None
    assert json.loads(about)["elements"] == ["Si"]
    assert float(energy.split()[0]) == pytest.approx(float(wanted.energy[0]), rel=1e-12)
    np.testing.assert_allclose([[float(x) for x in row.split()] for row in forces], wanted.forces, rtol=0, atol=1e-10)

    (tmp_path / "bad.pt").write_bytes(b"not a module")
    bad = subprocess.run(["./energy", "bad.pt"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (bad.returncode, bool(bad.stderr.strip())) == (1, True)
