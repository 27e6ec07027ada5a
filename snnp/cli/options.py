"""Arguments and options that several commands share, and the form of the examples below their help."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from snnp.errors import InputError

__all__ = [
    "Data",
    "Device",
    "Dtype",
    "Json",
    "Model",
    "Overwrite",
    "Seed",
    "StructureSpec",
    "Threads",
    "Units",
    "command_meant",
    "examples",
    "options_meant",
    "set_threads",
]

# What other programs call the same thing; the key is compared without dashes and in lower case.
_OPTIONS = {
    "--checkpoint-every": "restart_every save_every checkpoint_interval checkpoint_frequency",
    "--device": "gpu cuda platform",
    "--dt": "timestep time_step tstep step_size stepsize delta_t",
    "--dtype": "precision default_dtype",
    "--every": "stride interval save_interval dump_every dump_interval traj_interval nstxout frame_interval",
    "--fmax": "force_tolerance ftol tolerance tol force_threshold",
    "--force": "redownload",
    "--friction": "gamma damping",
    "--licence": "license",
    "--log": "logfile log_file",
    "--log-every": "log_interval loginterval thermo print_every",
    "--only": "filter select",
    "--out": "output o save outfile output_file out_dir outdir output_dir folder destination",
    "--cell": "relax_cell variable_cell optimize_cell cell_opt vc_relax",
    "--pressure": "press p_ext external_pressure",
    "--properties": "elastic",
    "--resume": "restart continue",
    "--seed": "random_seed rng_seed random_state",
    "--set": "override option opt config_override",
    "--steps": "nsteps num_steps n_steps max_steps maxiter max_iter iterations niter total_steps",
    "--structure": "atoms geometry input",
    "--temperature": "temp t tempk temperature_k kelvin",
    "--threads": "nthreads num_threads cpus cores n_jobs ncores",
    "--trajectory": "traj dump xyz output out o",
    "--energy-key": "energy energy_name e_key",
    "--forces-key": "forces force_key force_name f_key",
    "--stress-key": "stress virial_key virials_key stress_name",
    "--ensemble": "nvt nve npt",
    "--equilibrate": "equilibration equil burn_in warmup n_equilibration",
    "--fix": "freeze frozen fixed constrain hold",
    "--minimise": "relax optimize optimise minimization",
    "--json": "j format output_format",
}
_COMMANDS = {
    "benchmark": "bench speed timing perf",
    "convert": "transform",
    "describe": "inspect",
    "doctor": "check validate lint diagnose",
    "energy": "predict single_point singlepoint sp eval compute forces calculate infer",
    "evaluate": "test validate compare score errors",
    "info": "show about details",
    "ls": "list models dir",
    "md": "run dynamics simulate molecular_dynamics simulation",
    "plot": "draw curves picture",
    "publish": "push upload share",
    "pull": "download fetch get install",
    "relax": "optimize optimise minimize minimise opt min geomopt",
    "train": "fit learn",
    "version": "versions",
}


def examples(*commands: str, after: tuple[str, ...] = ()) -> str:
    """The epilog of a command: one example per line, then further lines (Typer joins lines, so each is a paragraph)."""
    lines = ["Examples:", *(f"  $ {command}" for command in commands), *after]
    return "\n\n".join(escape(line) for line in lines)


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def _meant(word: str, known: Iterable[str], synonyms: dict[str, str]) -> list[str]:
    """Those of `known` that a word may stand for, the nearest first: what others call so, then what is spelt alike."""
    names = {_plain(name): name for name in known}
    same = [name for name in names.values() if _plain(word) in map(_plain, synonyms.get(name, "").split())]
    return same or [names[each] for each in difflib.get_close_matches(_plain(word), names, n=3, cutoff=0.6)]


def options_meant(word: str, known: Iterable[str]) -> list[str]:
    """Options of a command that a mistyped one may stand for, the nearest first."""
    return _meant(word, [name for name in known if name.startswith("--") and name != "--help"], _OPTIONS)


def command_meant(word: str, known: Iterable[str]) -> list[str]:
    """Commands that a mistyped one may stand for, the nearest first."""
    return _meant(word, known, _COMMANDS)


def _bundled_names(incomplete: str) -> list[str]:
    """Names for the shell's completion; looked up without torch, which takes longer than one waits for a Tab."""
    spec = find_spec("snnp_model_zoo")
    roots = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    return sorted(path.parent.name for root in roots for path in root.glob(f"{incomplete}*/config.json"))


def set_threads(number: int | None) -> None:
    """Let the models take so many threads; None leaves it to torch.

    Raises:
        InputError: for less than one.
    """
    import torch

    if number is not None and number < 1:
        raise InputError(f"--threads must be at least 1, got {number}.")
    if number is not None:
        torch.set_num_threads(number)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A bundled model ('snnp ls'), a model or run folder, or org/name on the Hub.",
        autocompletion=_bundled_names,
    ),
]
Data = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DATA...",
        help="Files with reference values (extended XYZ, any format that ASE reads), or datasets (org/name:test).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="Precision: float32 or float64.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist; never an input.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of the random numbers; default: 0.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads of the model; default: what torch takes.")]
Units = Annotated[
    str | None,
    typer.Option(
        metavar="UNITS",
        help="Of the numbers in the files, where they are not eV and Å: kcal/mol, energy=Hartree,length=bohr, "
        "stress=-kbar (a minus turns the sign).",
    ),
]
StructureSpec = Annotated[
    str,
    typer.Argument(
        metavar="STRUCTURE",
        help="A file that ASE reads, a crystal such as fcc:Al:4x4x4 or diamond:Si:3x3x3:a=5.43, or molecule:CH3CH2OH.",
    ),
]
