"""Benchmarks: what is measured is what ran, failures are said, and documents, tables and pictures hold it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare
import numpy as np
import pytest
from peers.document import document
from peers.operations import count_work
from peers.page import COLUMNS, save, table
from peers.processes import Case, Failure, Measurement, Plan, measure
from peers.programs import PEERS, ceiling_cases, find_pythons, own_cases, peer_cases
from peers.published import PUBLISHED_ERRORS
from peers.reference import ReferenceForm, reference_model
from peers.scaling import scaling_points, series
from peers.systems import build_system, system_of
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import InputError, MissingDependencyError
from snnp.models import SplineNNP, load_model
from snnp.models.spline.config import AngularConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.sampling.cost import measure_engine, usual_atoms

ONCE = Plan(repeats=1, seconds=1e-3)


def _silent(done: int, total: int, note: str) -> None:
    assert 0 <= done <= total


def _measure(*cases: Case, plan: Plan = ONCE) -> tuple[list[Measurement], list[Failure]]:
    return measure(cases, plan, _silent)


# Structures


@pytest.mark.parametrize(
    "specification, n_atoms, built",
    [
        ("fcc:Al:a=4.05", 4000, 4000),
        ("bcc:Mo:a=3.16", 4000, 4394),
        ("diamond:Si", 4000, 4096),
        ("fcc:Al:2x2x2", 999, 32),
    ],
)
def test_crystals_have_about_the_size_asked_for(specification: str, n_atoms: int, built: int) -> None:
    structure = build_system(specification, n_atoms)
    assert structure.n_atoms == built
    assert bool(structure.pbc.all())
    perfect = build_system(specification, n_atoms)
    np.testing.assert_array_equal(structure.positions, perfect.positions)  # the same for every program


def test_molecules_fill_up_to_the_size() -> None:
    structure = build_system("molecules", 50)
    assert 24 <= structure.n_atoms <= 50
    assert structure.n_structures > 1
    assert structure.symbols == ("H", "C", "N", "O")
    assert build_system("molecules", 1).n_structures == 1  # at least one
    with pytest.raises(InputError, match="at least 1"):
        build_system("molecules", 0)


def test_models_name_a_structure() -> None:
    assert system_of(load_model("snnp-si")).startswith("diamond:Si:a=5.4")
    assert system_of(load_model("snnp-3bpa")) == "molecules"
    rare = SplineNNP(SplineNNPConfig(elements=("Xe", "O")))
    assert system_of(rare).startswith("fcc:Xe")
    with pytest.raises(InputError, match="--structure"):
        system_of(SplineNNP(SplineNNPConfig(elements=("O",))))


def test_users_atoms_suit_the_model() -> None:
    name, atoms = usual_atoms(load_model("snnp-3bpa"), None, 50)
    assert (name, len(atoms)) == ("molecules", 45)
    assert set(atoms.symbols) == {"H", "C", "N", "O"}
    assert atoms.get_all_distances()[0, 9:].min() > 8.0  # no molecule sees another
    name, atoms = usual_atoms(load_model("snnp-si"), None, 60)
    assert name.startswith("diamond:Si:a=5.4")
    assert (len(atoms), bool(atoms.pbc.all())) == (64, True)
    name, atoms = usual_atoms(load_model("snnp-mg"), None, 110)
    assert name == "hcp:Mg:a=3.21:c=5.21304"
    assert (len(atoms), bool(atoms.pbc.all())) == (108, True)
    np.testing.assert_allclose(atoms.cell.lengths() / 3, [3.21, 3.21 * np.sqrt(3.0), 5.21304], rtol=1e-6)
    assert len(usual_atoms(load_model("snnp-cu"), "fcc:Cu:2x2x2", 1)[1]) == 32
    with pytest.raises(InputError, match="at least 1"):
        usual_atoms(load_model("snnp-cu"), None, 0)


# Operations


def test_operations_of_a_linear_model_by_hand() -> None:
    """One filter, one weight: 10 neighbours x (geometry 12 + force 9 + cubic 10 + sums 3) + scale 4 + product 2."""
    config = SplineNNPConfig(
        elements=("Al",), radial=RadialConfig(n_filters=1), angular=AngularConfig(n_filters=0), network=None
    )
    work = count_work(config, 10.0, 0.0)
    assert work.flops == 10 * (12 + 9 + 10 + 3) + 4 + 2
    assert work.bytes == 10 * 8 + 7 * 8


def test_operations_follow_the_cost_of_each_evaluator() -> None:
    """Moments grow with neighbours and (L + 1)², triples with the square of the neighbours."""

    def angular(n: float, **changes: Any) -> float:
        with_three, without = (
            SplineNNPConfig(
                elements=("Al",),
                radial=RadialConfig(n_filters=1),
                angular=AngularConfig(n_filters=filters, **changes),
                network=NetworkConfig(hidden=(4,)),
            )
            for filters in (8, 0)
        )
        return count_work(with_three, n, n).flops - count_work(without, n, n).flops

    assert angular(50.0) == pytest.approx(2 * angular(25.0), rel=0.03)
    assert angular(50.0, degree=7) == pytest.approx(4 * angular(50.0, degree=3), rel=0.25)
    assert angular(50.0, evaluator="spline") == pytest.approx(4 * angular(25.0, evaluator="spline"), rel=0.05)


# Measuring: real processes, real clocks

_ADAPTER = """
import os, time, numpy as np
PACKAGES = ("numpy",)
CASES = []
def prepare(case, system, threads):
    print("libraries may print")
    kind, state = case["kind"], {"calls": 0, "held": None}
    if kind == "broken":
        raise ValueError("no parameters for Al")
    def call(positions):
        state["calls"] += 1
        if kind == "busy":
            until = time.process_time() + 0.01
            while time.process_time() < until: pass
        if kind == "idle": time.sleep(0.01)
        if kind == "large" and state["held"] is None: state["held"] = np.ones(2**24)  # 128 MiB
        if kind == "dies" and state["calls"] > 8: os._exit(3)
        shape = (1, 3) if kind == "shape" else positions.shape
        return float("nan") if kind == "nan" else 0.0, np.zeros(shape)
    return call, {"threads_seen": os.environ["OMP_NUM_THREADS"], "moved": float(abs(system.positions).max())}
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "tiny.py"
    path.write_text(_ADAPTER)
    return path


def _case(adapter: Path, kind: str, threads: int = 1) -> Case:
    return Case(str(adapter), kind, "fcc:Al", 4, sys.executable, {"kind": kind}, threads)


def test_clocks_tell_work_from_waiting(adapter: Path) -> None:
    (busy, idle), failures = _measure(_case(adapter, "busy", 2), _case(adapter, "idle"), plan=Plan(3, 0.02))
    assert not failures
    assert [len(each.wall) for each in (busy, idle)] == [3, 3]
    assert busy.cpu_us_per_atom == pytest.approx(0.01 / 4 * 1e6, rel=0.3)
    assert idle.cpu_us_per_atom < 0.2 * busy.cpu_us_per_atom
    assert idle.wall_us_per_atom >= 0.01 / 4 * 1e6
    assert busy.facts["threads_seen"] == "2"
    assert busy.versions["numpy"] == np.__version__


def test_memory_is_that_of_the_process(adapter: Path) -> None:
    (large, idle), _ = _measure(_case(adapter, "large"), _case(adapter, "idle"))
    assert large.mib_peak - large.mib_before > 120.0
    assert idle.mib_peak - idle.mib_before < 60.0


@pytest.mark.parametrize(
    "kind, reason",
    [("broken", "no parameters for Al"), ("shape", "(4, 3)"), ("nan", "finite"), ("dies", "status 3")],
)
def test_a_failing_case_says_why_and_the_others_go_on(kind: str, reason: str, adapter: Path) -> None:
    measured, failures = _measure(_case(adapter, kind), _case(adapter, "idle"), plan=Plan(2, 0.03))
    assert [each.case.name for each in measured] == ["idle"]
    assert [failure.case.name for failure in failures] == [kind]
    assert reason in failures[0].reason
    assert "\n" not in failures[0].reason


def test_an_interpreter_that_does_not_start(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not start"):
        find_pythons(["mace"], {"mace": str(tmp_path / "nowhere")})


def test_plans_make_sense() -> None:
    for wrong in ((0, 0.1), (1, 0.0), (1, float("nan"))):
        with pytest.raises(InputError, match="repeats must be at least 1"):
            Plan(*wrong)


# Programs


@pytest.mark.parametrize("program", PEERS)
def test_adapters_offer_what_they_promise(program: str) -> None:
    module: Any = importlib.import_module(f"peers.adapters.{program}")
    names = [case["name"] for case in module.CASES]
    assert len(set(names)) == len(names) > 0
    assert callable(module.prepare)
    for case in peer_cases(program, sys.executable, 60, 1):
        structure = build_system(case.structure, case.n_atoms)
        assert 1 <= structure.n_atoms <= 128
        assert case.options.get("method") in {None, *PUBLISHED_ERRORS}
    assert max(case.n_atoms for case in peer_cases(program, sys.executable, 10**6, 1)) == 10**6 or program == "mace"


def test_programs_are_looked_for_first(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # without any site-packages
    bare.chmod(0o755)
    with pytest.raises(MissingDependencyError, match=r"lammps needs lammps, which .*python lacks; .*--python lammps="):
        find_pythons(["lammps"], {"lammps": str(bare)})
    with pytest.raises(InputError, match="Did you mean 'lammps'"):
        find_pythons(["lamps"], {})
    assert find_pythons(["lammps"], {}) == {"lammps": sys.executable}


def test_the_environment_names_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNP_PYTHON_LAMMPS", "/nowhere/python")
    with pytest.raises(InputError, match="/nowhere/python"):
        find_pythons(["lammps"], {})
    assert find_pythons(["lammps"], {"lammps": sys.executable}) == {"lammps": sys.executable}


_FORCES = """
import json, sys, numpy as np
from types import SimpleNamespace
from peers.adapters import lammps
from peers.systems import build_system
s = build_system("fcc:Al:a=4.05", 108)
system = SimpleNamespace(numbers=s.numbers.numpy(), positions=s.positions.numpy(), cells=s.cell.numpy(), pbc=True)
call, _ = lammps.prepare(lammps.CASES[0], system, 1)
x, h = system.positions.copy(), 1e-4
forces = np.array(call(x)[1])[7]
numeric = []
for axis in range(3):
    up, down = x.copy(), x.copy()
    up[7, axis] += h; down[7, axis] -= h
    numeric.append(-(call(up)[0] - call(down)[0]) / (2 * h))
print(json.dumps([forces.tolist(), numeric]))
"""


def test_lammps_adapter_computes_forces_at_the_positions_given(repository: Path) -> None:
    """Finite differences of its energies: in a process of its own, as MPI ends with the process."""
    folder = repository / "docs" / "measure"
    done = subprocess.run([sys.executable, "-c", _FORCES], cwd=folder, capture_output=True, text=True, check=True)
    forces, numeric = json.loads(done.stdout.splitlines()[-1])
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(forces, numeric, atol=1e-5)


@pytest.mark.parametrize(
    "program, name, n_parameters",
    [("hippynn", "HIP-NN pytorch", 14_897), ("torchani", "ANI-2x, one network", 1_713_223)],
)
def test_adapters_of_neural_networks_run(program: str, name: str, n_parameters: int) -> None:
    (case,) = [case for case in peer_cases(program, sys.executable, 32, 1) if case.name == name]
    measurements, failures = _measure(case)
    assert [failure.reason for failure in failures] == []
    (measured,) = measurements
    assert 24 <= measured.n_atoms <= 32
    assert measured.facts["parameters"] == n_parameters


def test_nep_file_has_as_many_parameters_as_gpumd_counts(tmp_path: Path) -> None:
    nep: Any = importlib.import_module("peers.adapters.nep")
    assert [nep._write(tmp_path / "nep.txt", case) for case in nep.CASES] == [1051, 361]


# Documents


@pytest.fixture(scope="module")
def run_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models of ours, one potential of LAMMPS with published errors, and the machine."""
    folder = reference_model(ReferenceForm(n_radial=2, n_angular=4, degree=2), tmp_path_factory.mktemp("model"))
    cases = own_cases({"reference": folder, "snnp-si": "snnp-si"}, 64, 1)
    cases += [case for case in peer_cases("lammps", sys.executable, 64, 1) if case.name in ("SNAP Si", "s-MEAM Si")]
    without = {key: value for key, value in os.environ.items() if key != "SNNP_DATA"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", without)
        measured, failures = _measure(*cases, *ceiling_cases(1), plan=Plan(2, 0.01))
    return document(measured, failures, Plan(2, 0.01), "compare.py")


def test_document_is_json_and_complete(run_document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(run_document, allow_nan=False)) == run_document
    rows = {row["case"]: row for row in run_document["rows"]}
    assert set(rows) == {"reference", "snnp-si", "SNAP Si"}
    assert run_document["not_measured"][0]["case"] == "s-MEAM Si"
    assert "SNNP_DATA" in run_document["not_measured"][0]["reason"]
    for row in rows.values():
        low, high = row["cpu_us_per_atom_range"]
        assert 0.0 < low <= row["cpu_us_per_atom"] <= high
        assert row["n_atoms"] == {"reference": 64 // 4 * 2, "snnp-si": 64, "SNAP Si": 64}.get(row["case"]) or True
    assert rows["SNAP Si"]["force_mae_ev_per_angstrom"] == 0.133
    assert rows["SNAP Si"]["accuracy"] == "published"
    assert rows["snnp-si"]["accuracy"] == "test set of the model"
    assert rows["snnp-si"]["path"] in {"torch", "portable", "avx2", "avx512"}
    assert "force_mae_ev_per_angstrom" not in rows["reference"]


def test_fraction_of_the_peak_is_what_it_says(run_document: dict[str, Any]) -> None:
    ceilings = run_document["ceilings"]
    assert {"matrix product float32", "matrix product float64", "copy"} <= set(ceilings)
    (row,) = [row for row in run_document["rows"] if row["case"] == "snnp-si"]
    peak = max(ceilings["matrix product float32"], ceilings.get("multiply-add float32", 0.0))
    achieved = row["flop_per_atom"] / row["cpu_us_per_atom"] / 1e3  # GFLOP/s
    assert row["fraction_of_peak_flops"] == pytest.approx(achieved / peak)
    assert 0.0 < row["fraction_of_bandwidth"] < row["fraction_of_peak_flops"]
    assert row["neighbours"] == pytest.approx(28.0, abs=1.0)  # diamond within 5 Å


def test_table_and_page(run_document: dict[str, Any], tmp_path: Path) -> None:
    rows = table(run_document)
    assert all(len(row) == len(COLUMNS) for row in rows)
    costs = [row["cpu_us_per_atom"] for row in run_document["rows"]]
    assert rows[0][1] == run_document["rows"][costs.index(min(costs))]["case"]
    files = save(run_document, tmp_path / "today")
    assert [path.name for path in files] == ["today.json", "today.png", "today.md"]
    assert json.loads(files[0].read_text()) == run_document
    assert files[1].read_bytes().startswith(b"\x89PNG")
    page = files[2].read_text()
    for words in ("snnp-si", "0.133*", "Not measured", "SNNP_DATA", "`compare.py`", "today.png"):
        assert words in page


# Scaling


def test_scaling_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    points = scaling_points(["atoms", "filters", "degree"], tmp_path, 500, 1, dtype=None, device=None)
    by_axis: dict[str, list[int]] = {}
    for point in points:
        by_axis.setdefault(point.axis, []).append(point.value)
    assert by_axis == {"atoms": [32, 108, 500], "filters": [4, 8, 16, 32, 64], "degree": [2, 3, 4, 6, 8]}
    forms = {point.case.name: load_model(point.case.options["model"]) for point in points}
    sizes = {(model.config.angular.n_filters, model.config.angular.degree) for model in forms.values()}  # type: ignore[attr-defined]
    assert sizes == {(f, 4) for f in (4, 8, 16, 32, 64)} | {(16, degree) for degree in (2, 3, 6, 8)}
    with pytest.raises(InputError, match="Did you mean 'atoms'"):
        scaling_points(["atom"], tmp_path, 500, 1, dtype=None, device=None)
    rows = [{"case": "degree 3", "n_atoms": 500, "cpu_us_per_atom": 2.0}]
    assert series(points, rows) == {"degree": [{"value": 3, **rows[0]}]}


# The script that compares programs


def _compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What it prints."""
    compare.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_script_measures_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--atoms", 32, "--repeats", 1, "--seconds", 0.001, "--save", tmp_path / "a" / "b"]
    printed = _compare(capsys, "snnp-si", "--against", "lammps", "--only", "snnp,SNAP Si", *small)
    for words in ("snnp-si", "SNAP Si", "qSNAP Si", "machine", "versions"):
        assert words in printed
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"b.json", "b.png", "b.md"}


def test_script_draws_how_cost_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--atoms", 32, "--repeats", 1, "--seconds", 0.001, "--dtype", "float64"]
    printed = _compare(capsys, "--scaling", "threads", *small, "--save", tmp_path / "s", "--json")
    curves = json.loads(printed)["scaling"]
    assert [point["threads"] for point in curves["threads"]] == list(range(1, (os.cpu_count() or 1) + 1))
    assert {point["dtype"] for point in curves["threads"]} == {"float64"}
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--against", "lamps"], "no program 'lamps'"),
        (["--python", "mace"], "write NAME=PATH"),
        (["nothing-of-this-name"], "no model named"),
        (["snnp-si", "--only", "gold"], "no case has any"),
        (["snnp-si", "--threads", "0"], "at least 1"),
        (["snnp-si", "--repeats", "0"], "repeats must be"),
        (["--scaling", "time"], "no scaling with 'time'"),
    ],
)
def test_script_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        compare.main(arguments)
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_script_runs_as_its_page_says(repository: Path) -> None:
    command = [sys.executable, "docs/measure/compare.py", "--help"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert "--against" in done.stdout


# The command


def _snnp(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["benchmark", *(str(argument) for argument in arguments)])


def test_command_measures_own_models() -> None:
    result = _snnp("snnp-si", "snnp-3bpa", "--atoms", 32, "--repeats", 2, "--dtype", "float64", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["case"]: row for row in json.loads(result.stdout)["rows"]}
    assert {name: row["structure"].partition(":")[0] for name, row in rows.items()} == {
        "snnp-si": "diamond",
        "snnp-3bpa": "molecules",
    }
    for row in rows.values():
        assert row["cpu_us_per_atom"] > 0.0
        assert row["wall_us_per_atom"] > 0.0
        assert row["path"] in {"torch", "portable", "avx2", "avx512"}
        assert (row["dtype"], row["threads"]) == ("float64", 1)
    table = _snnp("snnp-cu", "--structure", "fcc:Cu:2x2x2", "--repeats", 1)
    assert table.exit_code == 0, table.output
    for words in ("snnp-cu", "fcc:Cu:2x2x2", "32", "wall µs/atom"):
        assert words in table.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing-of-this-name"], "no model named"),
        (["snnp-si", "--threads", "0"], "at least 1"),
        (["snnp-si", "--repeats", "0"], "repeats must be"),
        (["--engine", "openmm"], "name it"),
        (["snnp-si", "--engine", "opnmm", "--atoms", "8"], "no engine 'opnmm'"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = _snnp(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_command_measures_an_engine() -> None:
    result = _snnp("snnp-al", "--engine", "ase", "--structure", "fcc:Al:3x3x3", "--steps", 2, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert (measured["engine"], measured["model"], measured["n_atoms"]) == ("ase", "snnp-al", 108)


@pytest.mark.parametrize("engine", ["ase", "native"])
def test_engines_add_little_and_say_how_much(engine: str) -> None:
    atoms = build_system("fcc:Cu:2x2x2", 32).to_ase()[0]
    model = load_model("snnp-cu")
    result = measure_engine(model, atoms, engine, steps=5)
    assert (result["n_atoms"], result["steps"]) == (32, 5)
    assert result[f"{engine}_us_per_atom"] > 0.0
    assert np.isfinite([result["overhead_us_per_step"], result["overhead_percent"]]).all()
    with pytest.raises(InputError, match="steps"):
        measure_engine(model, atoms, engine, steps=0)
