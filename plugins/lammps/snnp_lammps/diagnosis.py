"""What keeps the pair style `snnp` from running here: compiler, LAMMPS, MPI and plugin, each tried."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from snnp.errors import MissingDependencyError
from snnp.kernels.build import find_compiler
from snnp.report import Finding
from snnp_lammps import plugin_folder
from snnp_lammps.installation import Installation, environment, find_installation
from snnp_lammps.plugin import PLUGIN_FILE

__all__ = ["examine"]

# A style that exists is all that is asked for; the number of ranks shows whether they know of each other.
_SCRIPT = """units metal
region all block 0 1 0 1 0 1
create_box 1 all
pair_style snnp
variable ranks equal extract_setting(world_size)
print "snnp works on ${ranks} ranks"
"""


def examine(
    source: Path | None = None, program: Path | None = None, folder: Path | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts by name, and what is wrong; arguments as of `find_installation` and `compile_plugin`."""
    facts: dict[str, Any] = {"compiler": " ".join(find_compiler() or ["none"])}
    findings: list[Finding] = []

    def found(check: str, message: str, cure: str, severity: Any = "error") -> None:
        findings.append(Finding(check, severity, message, cure=cure))

    if find_compiler() is None:
        found("compiler", "there is no C++ compiler", "install g++ or clang++, or name one with CXX=...")
    try:
        lammps = find_installation(source, program)
    except MissingDependencyError as error:
        what, _, cure = str(error).partition("; ")
        found("LAMMPS", what, cure)
        return facts, findings
    facts |= {"lammps": f"{lammps.version}, {lammps.descriptor}", "program": lammps.program, "mpi": lammps.mpi}
    facts |= {"launcher": lammps.launcher or "none"}
    if not lammps.can_load:
        found("LAMMPS", "it was built without the package PLUGIN", "build it with '-D PKG_PLUGIN=on'")
    other = _foreign_launcher(lammps)
    if other is not None:
        found("MPI", f"{other}, LAMMPS has {lammps.mpi}", f"start LAMMPS with {lammps.launcher}", "warning")
    plugin = (Path(plugin_folder()) if folder is None else folder) / PLUGIN_FILE
    facts["plugin"] = plugin if plugin.is_file() else "not built"
    if not plugin.is_file():
        found("plugin", f"there is no {plugin}", "snnp lammps build" + ("" if folder is None else f" --out {folder}"))
        return facts, findings
    for ranks in [1] if lammps.launcher is None else [1, 2]:
        wrong = _try(lammps, plugin, ranks)
        if wrong is not None:
            found(f"{ranks} rank{'s' if ranks > 1 else ''}", *wrong)
            break
    return facts, findings


def _foreign_launcher(lammps: Installation) -> str | None:
    """The `mpirun` of the search path, where it is that of another MPI than LAMMPS's; in words."""
    path = shutil.which("mpirun")
    if path is None or "MPICH" not in lammps.mpi:
        return None
    asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return f"{path} is Open MPI's" if "Open MPI" in asked.stdout + asked.stderr else None


def _try(lammps: Installation, plugin: Path, ranks: int) -> tuple[str, str] | None:
    """What is wrong and how to mend it, where pair style snnp does not work on so many ranks."""
    command = [str(lammps.program), "-log", "none", "-in", "in.lammps"]
    if ranks > 1:
        command = [str(lammps.launcher), "-n", str(ranks), *command]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "in.lammps").write_text(_SCRIPT)
        variables = environment(LAMMPS_PLUGIN_PATH=str(plugin.parent.resolve()))
        try:
            done = subprocess.run(
                command, cwd=scratch, env=variables, capture_output=True, text=True, check=False, timeout=300
            )
        except subprocess.TimeoutExpired:
            return "LAMMPS starts and does not come back", f"see whether {shutil.which('mpiexec')} fits its MPI"
    text = done.stdout + done.stderr
    seen = re.search(r"snnp works on (\d+) ranks", text)
    if seen is not None and int(seen[1]) == ranks:
        return None
    if seen is not None:
        return (
            f"{ranks} processes do not know of each other",
            f"use the launcher of LAMMPS's own MPI, {lammps.mpi}",
        )
    if refused := re.search(r"snnp: (.+); (.+)", text):
        return refused[1], refused[2]
    said = re.findall(r"^(?:ERROR.*|Open of file.*)", text, re.MULTILINE) or text.strip().splitlines()[-1:]
    return f"LAMMPS says: {said[0] if said else 'nothing'}", "snnp lammps build"
