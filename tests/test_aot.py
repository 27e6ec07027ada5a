"""Packages of AOTInductor: the model's numbers without the model's code, for any numbers of atoms and neighbours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.build import bulk, molecule
from cli_runs import run_json

from snnp.cli.main import app
from snnp.errors import InputError, MissingDependencyError
from snnp.models import ANI, HIPNN, ANIConfig, Ensemble, HIPNNConfig, Potential, SplineNNP, SplineNNPConfig
from snnp.models.aot import write_package
from snnp.models.aot.package import traced
from snnp.models.aot.padded import PaddedPotential
from snnp.models.spline import special_cases
from snnp.models.store import save_model
from snnp.structure import Structure

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"
ELEMENTS = ("C", "H", "O")
OFFSETS = {"C": -1000.0, "H": -13.0, "O": -2000.0}


def _spline(dtype: torch.dtype = torch.float64, seed: int = 3, **changes: Any) -> SplineNNP:
    """Pair-dependent filters, angles within a shorter cutoff, a network per element, a pair term and a repulsion."""
    form = special_cases.s_nnp(ELEMENTS, n_radial=3, n_angular=3, cutoff=4.0, hidden=(4,)).model_dump()
    form |= {"pair_term": True, "repulsion": {"inner": 0.7, "outer": 1.3}}
    form["angular"] |= {"cutoff": 3.0, **changes}
    model = SplineNNP(SplineNNPConfig.model_validate(form), OFFSETS)
    return _shaken(model, seed).to(dtype)


def _shaken(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _hipnn() -> Potential:
    config = HIPNNConfig.model_validate(
        {"elements": ELEMENTS, "cutoff": 4.0, "n_features": 4, "n_sensitivities": 4, "l_max": 1}
    )
    return _shaken(HIPNN(config, OFFSETS), 1)


def _ani() -> Potential:
    return _shaken(ANI(ANIConfig.model_validate({"elements": ELEMENTS, "hidden": (8, 6)}), OFFSETS), 1)


def _structures() -> list[Atoms]:
    """Two atoms in a skewed cell smaller than the cutoff, a molecule, a crystal, one atom."""
    tiny = Atoms("CO", [[0, 0, 0], [1.2, 0.9, 1.1]], cell=[[2.1, 0, 0], [0.9, 2.0, 0], [-0.7, 0.6, 2.3]], pbc=True)
    crystal = bulk("C", cubic=True).repeat((2, 2, 1))
    crystal.rattle(0.1, seed=2)
    crystal.symbols[::3] = "H"
    return [tiny, molecule("CH3CH2OH"), crystal, Atoms("O")]


def _padded(atoms: Atoms, cutoff: float) -> list[torch.Tensor]:
    """The lists of the page: ASE's, in rows."""
    (code,) = re.findall(
        r"^```python\n([^`]*?def padded.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(code, names)
    return list(names["padded"](atoms, cutoff))


def _assert_same(function: Any, model: Potential, atoms: Atoms, tolerance: float) -> None:
    energy, forces, virial = function(*_padded(atoms, model.cutoff + 0.3))  # what lies beyond the cutoff does not count
    wanted = model.compute(Structure.from_ase(atoms), stress=bool(atoms.pbc.all()))
    assert energy.dtype == forces.dtype == virial.dtype == torch.float64
    e0 = sum(OFFSETS[symbol] for symbol in atoms.symbols)
    assert float(energy) - e0 == pytest.approx(float(wanted.energy[0]) - e0, rel=tolerance, abs=tolerance)
    scale = max(1.0, float(wanted.forces.abs().max()))
    np.testing.assert_allclose(forces, wanted.forces.double(), rtol=0, atol=tolerance * scale)
    if wanted.stress is not None and atoms.pbc.all():
        found = (0.5 * (virial + virial.T) / atoms.get_volume()).numpy()
        np.testing.assert_allclose(found, wanted.stress[0].double(), rtol=0, atol=tolerance * scale)


KINDS: dict[str, Any] = {
    "s-NNP": _spline,
    "s-NNP, exact splines": lambda: _spline(evaluator="spline"),
    "HIP-NN": _hipnn,
    "ANI": _ani,
    "ensemble": lambda: Ensemble([_spline(seed=1), _spline(seed=2)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_padded_twin_is_the_model(kind: str) -> None:
    model = KINDS[kind]()
    twin = PaddedPotential(model).eval().requires_grad_(False)
    for atoms in _structures():
        _assert_same(twin, model, atoms, 1e-10)


@pytest.mark.parametrize("numbers, distance", [([6, 79], 1.5), ([6, -1], 1.5), ([6, 500], 1.5), ([6, 1], 0.05)])
def test_what_is_wrong_gives_no_number(numbers: list[int], distance: float) -> None:
    """A package cannot raise: an unknown element, or two atoms on top of each other, make the energy NaN."""
    model = _spline()
    given = _padded(Atoms("CH", [[0, 0, 0], [0, 0, distance]]), model.cutoff)
    given[0] = torch.tensor(numbers)
    twin = PaddedPotential(model).requires_grad_(False)
    assert bool(torch.isnan(twin(*given)[0]))


ALONE = """
import json, sys, warnings
sys.modules["snnp"] = None  # any import of it fails
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
function = torch._inductor.aoti_load_package(sys.argv[1])
for case in sys.argv[2:]:
    given = load_file(case)
    energy, forces, virial = function(*(given[name] for name in "abcde"))
    save_file({"energy": energy.reshape(1), "forces": forces, "virial": virial}, case)
about = json.loads(function.get_metadata()["snnp"])
print(json.dumps({"about": about, "ours": [name for name in sys.modules if name.startswith("snnp")]}))
"""


def _alone(path: Path, model: Potential, tolerance: float) -> dict[str, Any]:
    """Evaluate all structures where snnp cannot be imported, compare, and return what the package says of itself."""
    from safetensors.torch import load_file, save_file

    cases = []
    for k, atoms in enumerate(_structures()):
        cases.append(path.parent / f"{k}.safetensors")
        given = _padded(atoms, model.cutoff + 0.3)
        save_file({name: value.contiguous() for name, value in zip("abcde", given, strict=True)}, cases[-1])
    command = [sys.executable, "-c", ALONE, str(path), *map(str, cases)]
    done = subprocess.run(
        command,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["ours"] == ["snnp"]
    for case, atoms in zip(cases, _structures(), strict=True):
        found = load_file(case)
        result = found["energy"][0], found["forces"], found["virial"]
        _assert_same(lambda *_, result=result: result, model, atoms, tolerance)
    return said["about"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_package_of_a_spline_model(tmp_path: Path) -> None:
    """By the command; in float32, as bundled models are, of several elements."""
    model = _spline(torch.float32)
    model.metadata = {"licence": "CC0"}
    save_model(model, tmp_path / "model")
    path = tmp_path / "m.pt2"
    told = run_json("export", tmp_path / "model", path, "--format", "aoti")
    about = _alone(path, model, 2e-5)
    assert about["elements"] == list(ELEMENTS)
    assert about["cutoff_angstrom"] == 4.0
    assert (about["length_unit"], about["energy_unit"], about["precision"]) == ("angstrom", "eV", "float32")
    assert about["sha256"] == told["sha256"]
    assert about["metadata"]["licence"] == "CC0"

    whole = path.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError):
        torch._inductor.aoti_load_package(str(tmp_path / "cut.pt2"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_package_of_a_family_that_differentiates(tmp_path: Path) -> None:
    model = _hipnn()
    write_package(model, tmp_path / "m.pt2")
    assert _alone(tmp_path / "m.pt2", model, 1e-9)["format"] == "snnp-aoti"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compiled_is_the_model_for_all_sizes(kind: str) -> None:
    """Compiling ANI takes a minute; what the compiler is given is seen without it."""
    model = KINDS[kind]()
    program = traced(PaddedPotential(model).eval().requires_grad_(False)).module()
    for atoms in [each for each in _structures() if len(each) > 1]:
        _assert_same(program, model, atoms, 1e-10)


class _Stranger(Potential):
    def atomic_energies(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1)


def test_what_export_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"end in \.pt2 alone, got '.*m\.pt'"):
        write_package(_spline(), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"_Stranger cannot be written as aoti; SplineNNP, HIPNN and ANI"):
        write_package(_Stranger(("H",), {}, 3.0), tmp_path / "m.pt2")
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(MissingDependencyError, match=r"C\+\+ compiler, and none was found: install g\+\+"):
        write_package(_spline(), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "snnp-si", str(tmp_path / "m.pt2"), "--format", "aoti", "--unit", "angstrom"]
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main(args=words)
    assert ended.value.code == 1
    assert "leave the other options away" in capsys.readouterr().err
