"""The engine "torch": its module computes here, its versions are told apart here, and it runs where it is installed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from openmmml import MLPotential

import snnp
from snnp.errors import InputError, MissingDependencyError
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM
from snnp_openmm import doctor, to_openmm
from snnp_openmm.torch_engine import NEEDS, check_torch_engine, compiled_module

REPOSITORY = Path(__file__).resolve().parents[2]
FORCE_UNIT = EV_IN_KJ_PER_MOL * NM_IN_ANGSTROM


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let packages have other versions; those without one are missing."""

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("periodic", [False, True])
def test_module_for_some_of_the_atoms(periodic: bool) -> None:
    """What TorchForce calls in a mixed system: all positions come in, all forces go out."""
    solute = molecule("CH3OH")
    model = snnp.load_model("snnp-organic", dtype="float64")
    rng = np.random.default_rng(0)
    everything = rng.uniform(20.0, 25.0, (20, 3))
    indices = [3, 4, 7, 11, 12, 19]
    everything[indices] = solute.positions
    everything[indices[2]] += [30.0, 0.0, -30.0]  # another image
    if not periodic:
        everything[indices] = solute.positions
    with torch.jit.optimized_execution(False):
        module = compiled_module(model, solute.numbers, periodic, indices)
        box = (3.0 * torch.eye(3, dtype=torch.float64),) if periodic else ()
        energy, forces = module(torch.from_numpy(everything / NM_IN_ANGSTROM), *box)
    wanted = model.compute(solute)
    assert wanted.forces is not None
    assert float(energy) == pytest.approx(float(wanted.energy[0]) * EV_IN_KJ_PER_MOL, rel=1e-10)
    np.testing.assert_allclose(forces[indices] / FORCE_UNIT, wanted.forces, rtol=0.0, atol=1e-9)
    assert not np.delete(forces.numpy(), indices, axis=0).any()


def test_the_extra_is_the_working_combination_and_leaves_the_others_alone() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    pins = dict(entry.split("==") for entry in extras["openmm-torch"])
    assert {name: pin.removesuffix(".*") for name, pin in pins.items() if name in NEEDS} == NEEDS
    assert all("openmm-torch" not in entry for name in extras for entry in extras[name])


def test_the_working_combination_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, openmmtorch="1.5", torch="2.9.1+cu128", openmm="8.4.0.post2")
    check_torch_engine()


WRONG = [
    ({"openmmtorch": "1.5", "torch": "2.10.0", "openmm": "8.4.0"}, r"found .*torch 2\.10\.0"),
    ({"openmmtorch": "1.5", "torch": "2.9.1", "openmm": "8.6.1"}, r"found .*openmm 8\.6\.1"),
    ({"openmmtorch": "1.50", "torch": "2.9.1", "openmm": "8.4"}, r"found openmmtorch 1\.50"),
    ({"torch": "2.9.1", "openmm": "8.4"}, "found openmmtorch missing"),
]


@pytest.mark.parametrize(("versions", "words"), WRONG)
def test_other_combinations_are_refused(versions: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **versions)
    with pytest.raises(MissingDependencyError, match=words) as caught:
        check_torch_engine()
    assert "needs openmmtorch 1.5.x, torch 2.9.x, openmm 8.4.x" in str(caught.value)
    assert "pip install 'snnp[openmm-torch]'" in str(caught.value)


def test_mlpotential_chooses_the_engine() -> None:
    topology = to_openmm(molecule("CH4")).topology
    with pytest.raises(MissingDependencyError, match=r"engine 'torch' needs"):
        MLPotential("snnp", model="snnp-organic", engine="torch").createSystem(topology)
    with pytest.raises(MissingDependencyError, match=r"engine 'torch' needs"):
        MLPotential("snnp", model="snnp-organic").createSystem(topology, engine="torch")
    with pytest.raises(InputError, match="engine must be 'python' or 'torch', got 'tensorflow'"):
        MLPotential("snnp", model="snnp-organic", engine="tensorflow").createSystem(topology)


# The doctor.


def test_doctor_says_what_works_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "engine python: works\n  openmm 8." in said
    assert "energy and forces are the model's to" in said
    assert f"engine torch: does not work\n  openmmtorch missing (needs 1.5.x), torch {torch.__version__}" in said
    assert "cure: python -m venv torchforce && torchforce/bin/pip install 'snnp[openmm-torch]'" in said


def test_doctor_fails_where_the_engine_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda engine: doctor.Verdict(engine, False, "no"))
    assert doctor.main(["--engine", "torch"]) == 1
    assert "engine python" not in capsys.readouterr().out


ENDS = [
    (-11, "", "", "it crashed (SIGSEGV)"),
    (1, "", "Traceback\n  ...\nopenmm.OpenMMException: no kernel\n", "openmm.OpenMMException: no kernel"),
    (0, "off 0.5\n", "", "energy and forces are the model's to 5e-01"),
    (3, "", "", "it ended without a word"),
]


@pytest.mark.parametrize(("code", "out", "err", "words"), ENDS)
def test_doctor_survives_what_it_tries(
    code: int, out: str, err: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    assert doctor.examine("torch") == doctor.Verdict("torch", False, words)


def test_trial_compares_with_the_core() -> None:
    assert doctor.trial("python") < 1e-6


@pytest.mark.skipif("SNNP_TORCHFORCE_PYTHON" not in os.environ, reason="no interpreter with snnp[openmm-torch] named")
def test_torchforce_itself(tmp_path: Path) -> None:
    """In an environment with the extra `openmm-torch`, named by its interpreter."""
    command = [os.environ["SNNP_TORCHFORCE_PYTHON"], "-m", "snnp_openmm.doctor", "--engine", "torch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_openmm_names_versions_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import openmm

    from snnp_openmm import create_force

    monkeypatch.setattr(openmm, "__version__", "8.4")
    with pytest.raises(MissingDependencyError, match=r"OpenMM 8\.4 is too old.*8\.6 or newer.*snnp\[openmm\]"):
        create_force("snnp-organic", to_openmm(Atoms("H2", [[0, 0, 0], [0.74, 0, 0]])).topology)
