"""What the pair style `snnp`, its files and its commands refuse, and in which words."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snnp.errors import InputError, MissingDependencyError
from snnp.hub import load_model
from snnp.kernels.cpu.library import LIBRARY_FILE
from snnp.models import SplineNNP
from snnp.models.ensemble import Ensemble
from snnp.models.spline.lammps_file import write_lammps

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

from snnp_lammps import diagnosis, installation, plugin
from snnp_lammps.installation import Installation, environment, find_installation
from snnp_lammps.plugin import compile_plugin

SCRIPT = """units metal
atom_style atomic
newton on
region all block 0 8 0 8 0 8
create_box 2 all
create_atoms 1 single 1 1 1
create_atoms 2 single 3 1 1
mass * 60
pair_style snnp
pair_coeff * * good.snnp Cu Cu
run 0
"""


@pytest.fixture(scope="module")
def lammps() -> Installation:
    return find_installation()


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    found = load_model("snnp-cu", dtype="float32")
    assert isinstance(found, SplineNNP)
    return found


def run(lammps: Installation, folder: Path, script: str, plugins: Path, ranks: int = 1) -> tuple[int, str]:
    """Exit code, and what a run says."""
    (folder / "in.lammps").write_text(script)
    command = [str(lammps.program), "-in", "in.lammps", "-log", "none"]
    command = command if ranks == 1 else [str(lammps.launcher), "-n", str(ranks), *command]
    variables = environment(LAMMPS_PLUGIN_PATH=str(plugins))
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def changed(old: str, new: str) -> Callable[[str], str]:
    def change(script: str) -> str:
        assert old in script
        return script.replace(old, new)

    return change


SCRIPTS = {
    "no such file": (changed("good", "none"), "cannot read the snnp file 'none.snnp'", "snnp export"),
    "too few elements": (changed("Cu Cu", "Cu"), "names 1 element, but the system has 2 atom types", "or NULL"),
    "too many elements": (changed("Cu Cu", "Cu Cu Cu"), "names 3 elements, but the system has 2", "or NULL"),
    "one type": (
        lambda script: changed("box 2", "box 1")(script).replace("create_atoms 2", "create_atoms 1"),
        "names 2 elements, but the system has 1 atom type;",
        "or NULL",
    ),
    "unknown element": (
        changed("Cu Cu", "Cu Ag"),
        "Atom type 2: the model in 'good.snnp' does not know 'Ag'",
        "but Cu",
    ),
    "case of an element": (changed("Cu Cu", "Cu cu"), "does not know 'cu'", "but Cu"),
    "no file": (changed("good.snnp Cu Cu", ""), "needs a file, and an element or NULL", ""),
    "one pair of types": (changed("* * good", "1 1 good"), "must start with * * for pair style snnp", ""),
    "NULL alone": (changed("Cu Cu", "Cu NULL"), "All pair coeffs are not set", ""),
    "other units": (changed("metal", "real"), "needs 'units metal', not 'real'", "eV"),
    "newton off": (changed("newton on", "newton off"), "needs 'newton on'", "ghost"),
    "a word too many": (changed("pair_style snnp", "pair_style snnp 5.0"), "takes nothing, or 'threads N'", ""),
    "no threads": (changed("pair_style snnp", "pair_style snnp threads 0"), "at least one thread", ""),
    "atoms written twice": (changed("3 1 1", "1 1 1.05"), "atoms 1 and 2 are 0.05", "written twice"),
    "bonded pairs left out": (
        lambda script: changed("atom_style atomic", "atom_style bond")(script).replace("mass", "bond_style none\nmass"),
        "special_bonds lj/coul 1.0 1.0 1.0",
        "take out of the list",
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_scripts(case: str, lammps: Installation, model: SplineNNP, lammps_plugin: Path, tmp_path: Path) -> None:
    change, *words = SCRIPTS[case]
    write_lammps(model, tmp_path / "good.snnp")
    code, said = run(lammps, tmp_path, change(SCRIPT), lammps_plugin)
    assert code != 0
    for word in words:
        assert word in said
    assert said.count("ERROR") == 1


def test_the_script_itself_runs(lammps: Installation, model: SplineNNP, lammps_plugin: Path, tmp_path: Path) -> None:
    write_lammps(model, tmp_path / "good.snnp")
    code, said = run(lammps, tmp_path, SCRIPT, lammps_plugin)
    assert code == 0, said
    bonded = changed("atom_style atomic", "atom_style bond\nspecial_bonds lj/coul 1.0 1.0 1.0")(SCRIPT)
    assert run(lammps, tmp_path, bonded, lammps_plugin)[0] == 0


def test_positions_that_are_no_numbers(
    lammps: Installation, model: SplineNNP, lammps_plugin: Path, tmp_path: Path
) -> None:
    write_lammps(model, tmp_path / "good.snnp")
    script = SCRIPT.replace("run 0", "fix 1 all nve\nvelocity all set 1e300 0 0\nrun 5")
    code, said = run(lammps, tmp_path, script, lammps_plugin)
    assert code != 0
    assert "ERROR" in said  # LAMMPS's own words, or ours


def _newer(content: bytes) -> bytes:
    return content.replace(b"snnp-lammps 1 ", b"snnp-lammps 7 ", 1)


def _other_kernel(content: bytes) -> bytes:
    """Whole, but with a model of the next version of the kernel."""
    first, behind = content.split(b"\n", 1)
    _, _, header, _, _ = first.split()
    place = int(header) + 8  # the version stands behind the magic number
    behind = behind[:place] + bytes([behind[place] + 1]) + behind[place + 1 :]
    return b" ".join([*first.split()[:-1], f"{zlib.crc32(behind):08x}".encode()]) + b"\n" + behind


FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda _: b"# UF3 POT UNITS: metal\n", "is no snnp file for LAMMPS"),
    "empty": (lambda _: b"", "cannot read the snnp file"),
    "cut short": (lambda content: content[:-100], "is cut short or damaged"),
    "longer": (lambda content: content + b"x", "is cut short or damaged"),
    "numbers missing": (lambda content: b"snnp-lammps 1\n" + content, "is cut short or damaged"),
    "one bit": (lambda content: content[:-77] + bytes([content[-77] ^ 4]) + content[-76:], "its checksum is wrong"),
    "header": (lambda content: content.replace(b"elements Cu", b"elements Ni", 1), "its checksum is wrong"),
    "newer": (_newer, "has format 7, this plugin reads up to 1"),
    "other kernel": (_other_kernel, "not packed for the kernel of this plugin"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, lammps: Installation, model: SplineNNP, lammps_plugin: Path, tmp_path: Path) -> None:
    """One line from the first of two ranks, and an end in good order."""
    change, word = FILES[case]
    path = write_lammps(model, tmp_path / "good.snnp")
    path.write_bytes(change(path.read_bytes()))
    ranks = 2 if case in ("one bit", "newer") else 1
    code, said = run(lammps, tmp_path, SCRIPT, lammps_plugin, ranks)
    assert code != 0
    assert word in said
    assert said.count("ERROR") == 1
    assert "snnp export" in said or "build the plugin again" in said


def test_a_file_can_be_read_by_people(model: SplineNNP, tmp_path: Path) -> None:
    path = write_lammps(model, tmp_path / "good.snnp")
    lines = path.read_bytes()[:2000].split(b"\n")
    header = dict(line.decode().split(" ", 1) for line in lines[1:9])
    assert header["elements"] == "Cu"
    assert header["cutoff"] == "5 Angstrom"
    assert header["precision"] == "float32"
    assert header["model"] == "snnp-cu"
    assert header["written_by"].startswith("snnp ")


def test_other_families_say_that_they_do_not_run_there(tmp_path: Path) -> None:
    for name in ("hipnn-si", "ani-1ccx"):
        with pytest.raises(InputError, match="does not run in LAMMPS: its pair style is the kernel of the s-NNP alone"):
            write_lammps(load_model(name), tmp_path / "file")
    several = Ensemble([load_model("snnp-cu"), load_model("snnp-cu")])
    with pytest.raises(InputError, match="export one member"):
        write_lammps(several, tmp_path / "file")


def test_a_plugin_of_another_lammps_is_left_out(lammps: Installation, tmp_path: Path) -> None:
    """Classes may differ, so nothing is touched: LAMMPS runs on, without the pair style."""
    other = compile_plugin(replace(lammps, descriptor="stable_29Aug2024"), tmp_path / "other").parent
    code, said = run(lammps, tmp_path, 'print "runs on"\npair_style snnp\n', other)
    assert code != 0
    assert "compiled for LAMMPS stable_29Aug2024, this is stable_22Jul2025_update4; build it again" in said
    assert "runs on" in said
    assert "Unrecognized pair style 'snnp'" in said
    facts, findings = diagnosis.examine(folder=other)
    assert facts["lammps"].endswith(lammps.descriptor)
    assert [each.check for each in findings] == ["1 rank"]
    assert "snnp lammps build" in findings[0].cure


def test_the_doctor_finds_nothing_where_all_is_well(lammps_plugin: Path) -> None:
    facts, findings = diagnosis.examine(folder=lammps_plugin)
    assert findings == []
    assert "MPICH" in facts["mpi"]


def _program(path: Path, text: str, code: int = 0) -> Path:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_the_doctor_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lammps_plugin: Path) -> None:
    assert [each.check for each in diagnosis.examine(folder=tmp_path)[1]] == ["plugin"]
    _program(tmp_path / "mpirun", "mpirun (Open MPI) 4.1.4")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        (found,) = diagnosis.examine(folder=lammps_plugin)[1]
        assert "is Open MPI's, LAMMPS has MPICH" in found.message
        assert found.cure.startswith("start LAMMPS with ")
    with monkeypatch.context() as patch:
        for module in (diagnosis, plugin):
            patch.setattr(module, "find_compiler", lambda: None)
        assert diagnosis.examine(folder=lammps_plugin)[1][0].check == "compiler"
        with pytest.raises(MissingDependencyError, match="no C\\+\\+ compiler found"):
            compile_plugin(find_installation(), tmp_path / "plugin")
    with monkeypatch.context() as patch:
        patch.setattr(installation, "find_spec", lambda name: None)
        (found,) = diagnosis.examine()[1]
        assert (found.check, "pip install" in found.cure) == ("LAMMPS", True)


def test_folders_of_sources(
    lammps: Installation, lammps_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingDependencyError, match=r"holds no src/pair\.h"):
        find_installation(tmp_path)
    (tmp_path / "src").symlink_to(lammps.headers)
    with pytest.raises(MissingDependencyError, match="holds no program"):
        find_installation(tmp_path)
    (tmp_path / "build").mkdir()
    silent = _program(tmp_path / "build" / "lmp", "error while loading shared libraries: libmpi.so.40", 127)
    with pytest.raises(MissingDependencyError, match=r"does not start: .*libmpi\.so\.40"):
        find_installation(tmp_path)
    title = "Large-scale Atomic/Molecular Massively Parallel Simulator - 2 Aug 2023"
    _program(silent, f"{title}\n-DLAMMPS_BIGBIG\nInstalled packages:\n\nMANYBODY\n\nList of individual style options")
    found = find_installation(tmp_path)
    assert (found.descriptor, found.version, found.flags) == ("(unknown)", "2 Aug 2023", ("-DLAMMPS_BIGBIG",))
    with pytest.raises(InputError, match="PKG_PLUGIN=on"):
        compile_plugin(found, tmp_path / "plugin")
    silent.unlink()
    silent.symlink_to(lammps.program)
    assert find_installation(tmp_path).descriptor == lammps.descriptor
    with pytest.raises(MissingDependencyError, match="no LAMMPS program"):
        find_installation(tmp_path, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="name their folder with --source"):
        find_installation(None, lammps.program)
    monkeypatch.chdir(tmp_path)
    assert find_installation(Path(".")).program.is_absolute()
    assert "1 rank" not in [each.check for each in diagnosis.examine(Path("."), folder=lammps_plugin)[1]]


def test_kernels_of_other_sources_are_compiled_anew(tmp_path: Path) -> None:
    assert plugin._fits(LIBRARY_FILE)
    assert not plugin._fits(tmp_path / "none.so")
    old = tmp_path / "old.so"
    done = subprocess.run(["c++", "-shared", "-x", "c++", os.devnull, "-o", str(old)], check=False)
    assert done.returncode == 0
    assert not plugin._fits(old)


def test_compilers_that_fail_are_quoted(lammps: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(MissingDependencyError, match="compiling failed: false -std"):
        compile_plugin(lammps, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("CXX", "python -m ziglang c++")
    with pytest.raises(MissingDependencyError, match="ziglang"):
        compile_plugin(lammps, tmp_path)
