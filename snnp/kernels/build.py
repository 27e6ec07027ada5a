"""Compile `src/` into the library in `lib/`: `python -m snnp.kernels.build`, for all machines of this architecture.

With `--own` it holds the instruction set of this machine alone, in a third of the time.

Only the standard library is imported here: `packaging.py` runs this file before snnp is installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

__all__ = ["BuildError", "build", "find_compiler", "library_name"]

_HERE = Path(__file__).resolve().parent
_COMMON = ("api.cpp", "check.cpp", "list.cpp", "pool.cpp", "small_cells.cpp", "train_api.cpp")
_PER_TARGET = ("train.cpp", "kernel.cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Wall", "-Wno-psabi"),
    # What lets the compiler fuse and vectorise; results do not depend on errno, traps or the sign of zero.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
# Namespace in the sources, bytes of a vector, and flags of each instruction set; "portable" is the architecture's base.
_PORTABLE = (("portable", 16, ()),)
_X86 = (
    ("avx512", 64, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    ("avx2", 32, ("-march=x86-64-v3",)),
    *_PORTABLE,
)

# Macros by which a compiler says that a machine has them; the same as api.cpp asks the processor for.
_NEEDS = {
    "avx512": {"__AVX512F__", "__AVX512DQ__", "__AVX512VL__", "__AVX512BW__", "__AVX512CD__"},
    "avx2": {"__AVX2__", "__FMA__"},
}


class BuildError(RuntimeError):
    """No compiler, or one that failed; the text says which command and why."""


def library_name() -> str:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return f"libsnnp_kernels{suffix}"


def find_compiler() -> list[str] | None:
    """Command of a C++ compiler: $CXX, c++, g++, clang++, or the one of the package ziglang; None without any."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


def _targets(compiler: list[str], own: bool) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """The instruction sets to compile for; all where the compiler does not say what this machine has."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return _PORTABLE
    if not own:
        return _X86
    command = [*compiler, "-march=native", "-x", "c++", "-dM", "-E", os.devnull]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        return _X86
    here = {line.split()[1] for line in asked.stdout.splitlines() if line.startswith("#define ")}
    return tuple(target for target in _X86 if _NEEDS.get(target[0], set()) <= here)[:1]


def build(target: Path | None = None, flags: tuple[str, ...] = (), *, own: bool = False) -> Path:
    """Compile into `target` (by default in `lib/`) and return it; it appears whole or not at all.

    Arguments:
        flags: for compiler and linker, behind the usual ones (sanitizers, debugging).
        own: for the instruction set of this machine alone; elsewhere such a library counts as absent.

    Raises `BuildError` without a working compiler.
    """
    target = target or _HERE / "lib" / library_name()
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or 'pip install ziglang'.")
    targets = _targets(compiler, own)
    names = ", ".join(name for name, _, _ in targets)
    print(f"kernels: compiling for {names} with {compiler[0]} ...", file=sys.stderr, flush=True)
    # Sources and flags of everything to compile, the slowest first.
    jobs = [
        (source, [f"-DSNNP_TARGET={name}", f"-DSNNP_BYTES={width}", *own_flags])
        for source in _PER_TARGET
        for name, width, own_flags in targets
    ]
    jobs += [(source, [f"-DSNNP_WITH_{name.upper()}" for name, _, _ in targets]) for source in _COMMON]
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{k}.o") for k in range(len(jobs))]
        commands = [
            [*compiler, *_FLAGS, *extra, *flags, "-c", str(_HERE / "src" / source), "-o", out]
            for (source, extra), out in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        libraries = [] if sys.platform == "win32" else ["-lm", "-lpthread"]
        # Nothing of the C++ runtime is used, so it need not be there.
        alone = ["-nostdlib++"] if "clang" in compiler[0] or "ziglang" in compiler else []
        linked = Path(folder) / library_name()
        _run([*compiler, "-shared", *flags, *objects, *alone, *libraries, "-o", str(linked)])
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(linked, temporary)
        temporary.chmod(0o755)
        os.replace(temporary, target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Build from the command line; with --optional a missing compiler is only reported."""
    parser = argparse.ArgumentParser(description="Compile the kernels of snnp.")
    parser.add_argument("--optional", action="store_true", help="succeed without a compiler (snnp then runs on torch)")
    parser.add_argument("--own", action="store_true", help="for the instruction set of this machine alone")
    parser.add_argument("--output", type=Path, help="where to write the library")
    parser.add_argument("--flags", default="", help="further compiler flags, as one string")
    chosen = parser.parse_args(arguments)
    try:
        print(build(chosen.output, tuple(shlex.split(chosen.flags)), own=chosen.own))
    except BuildError as error:
        print(f"kernels not built: {error}", file=sys.stderr)
        return 0 if chosen.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
