"""Arguments and options that several commands share, what others call them, and the examples below a command's help."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from rich.markup import escape
from typer.models import ArgumentInfo

from snnp.errors import InputError
from snnp.files import bundled_folders

if TYPE_CHECKING:
    from pydantic import BaseModel

    from snnp.data import Keys

__all__ = ["COMMANDS", "Data", "Device", "Dtype", "Json", "Model", "Overwrite", "StructureSpec", "Threads", "command"]
__all__ += ["examples", "group", "keys_given", "meant", "set_threads", "settings_taken", "with_labels", "with_options"]

_OPTION_OF = {
    "temperature_k": "--temperature",
    "temperature_end_k": "--temperature K:K",
    "pressure_gpa": "--pressure",
    "dt_fs": "--dt",
    "friction_per_ps": "--friction",
    "trajectory_interval": "--every",
    "log_interval": "--log-every",
    "checkpoint_interval": "--checkpoint-every",
    **{f"{name}_key": f"--{name}-key" for name in ("energy", "forces", "stress", "group")},
}
"""Options by the arguments and fields that they set, where the names differ: errors from inside name the latter."""
_Command = TypeVar("_Command", bound=Callable[..., None])
_SETTING = re.compile(r"molecular dynamics setting '(\w+)'")
_ASSIGNED = re.compile(
    r"(?<![\w.'-])(checkpoint|method|trajectory|log|plot|dtype|device|fmax|steps|seed|software)=(\.\.\.)?(?=['.]|$)"
)
_ARGUMENT = re.compile(rf"(?<![\w.-])({'|'.join(_OPTION_OF)})(?!\w)")
_DTYPE = re.compile(r"^dtype(?= must be)")

# What other programs call the same option or command; compared without dashes and in lower case.
_SYNONYMS = {
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
    "--ranks": "np nprocs mpi processes n_ranks",
    "--fix": "freeze frozen fixed constrain hold",
    "--minimise": "relax optimize optimise minimization",
    "--json": "j format output_format",
    "benchmark": "bench speed timing perf",
    "convert": "transform",
    "describe": "inspect",
    "distill": "distil teach student compress",
    "doctor": "check validate lint diagnose",
    "energy": "predict single_point singlepoint sp eval compute forces calculate infer",
    "explain": "interpret understand importance prune",
    "evaluate": "test validate compare score errors",
    "info": "show about details",
    "ipi": "i-pi socket driver",
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


def group(about: str, *shown: str) -> typer.Typer:
    """A group of commands, which shows its help where none is named."""
    return typer.Typer(help=about, epilog=examples(*shown), no_args_is_help=True, pretty_exceptions_enable=False)


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {}
"""The commands by name, each with its examples; the modules of commands fill it."""


def command(
    name: str, *shown: str, after: tuple[str, ...] = (), of: typer.Typer | None = None
) -> Callable[[_Command], _Command]:
    """Enter a command, of a group if not of snnp, with examples to show below its help, and further lines."""

    def decorate(function: _Command) -> _Command:
        if of is not None:
            return of.command(name, epilog=examples(*shown, after=after))(function)
        COMMANDS[name] = function, examples(*shown, after=after)
        return function

    return decorate


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def meant(word: str, known: Iterable[str]) -> list[str]:
    """Options or commands that a mistyped one may stand for: what others call so, else what is spelt alike."""
    names = {_plain(name): name for name in known}
    same = [name for name in names.values() if _plain(word) in map(_plain, _SYNONYMS.get(name, "").split())]
    return same or [names[each] for each in difflib.get_close_matches(_plain(word), names, n=3, cutoff=0.6)]


def _bundled_names(incomplete: str) -> list[str]:
    """Names for the shell's completion; looked up without torch, which takes longer than one waits for a Tab."""
    return sorted(name for name in bundled_folders("model_zoo", "config.json") if name.startswith(incomplete))


def with_options(message: str) -> str:
    """The message of an error with options in place of the arguments and fields that they set."""
    message = _SETTING.sub(lambda match: _option_of(match[1]), message)
    message = _DTYPE.sub("--dtype", _ARGUMENT.sub(lambda match: _OPTION_OF[match[1]], message))
    return _ASSIGNED.sub(lambda match: f"--{match[1]} VALUE" if match[2] else f"--{match[1]} ", message)


def set_threads(number: int | None) -> None:
    """Let the models take so many threads; None leaves it to torch."""
    import torch

    if number is not None:
        if number < 1:
            raise InputError(f"--threads must be at least 1, got {number}.")
        torch.set_num_threads(number)


def _taking(options: Iterable[inspect.Parameter]) -> Callable[[_Command], _Command]:
    """Let a command with `**given` take further options, which its help names first."""

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        n_arguments = sum(isinstance(each.default, ArgumentInfo) or each.default is each.empty for each in own)
        parameters = [*own[:n_arguments], *options, *own[n_arguments:]]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _option_of(name: str) -> str:
    return _OPTION_OF.get(name, f"--{name.replace('_', '-')}")


def _option(name: str, kind: Any, *words: str, metavar: str | None, text: str) -> inspect.Parameter:
    """An option that sets the argument `name`; None, or False for a flag, if it is not said."""
    is_flag = kind is bool
    annotation: Any = Annotated[kind if is_flag else kind | None, typer.Option(*words, metavar=metavar, help=text)]
    default = False if is_flag else None
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def settings_taken(
    settings: type[BaseModel], shapes: Mapping[str, Mapping[str, Any]], without: Iterable[str] = ()
) -> Callable[[_Command], _Command]:
    """Let a command take the fields of settings as options, with their names, types, descriptions and defaults.

    `shapes` say by field what differs: `kind` (in place of the type), `metavar`, `short` (a second word), `default` (in
    words).
    """
    options = []
    for name, field in settings.model_fields.items():
        if name in without:
            continue
        shape = shapes.get(name, {})
        given = [each for each in get_args(field.annotation) if each is not type(None)]  # typer takes it without None
        own = given[0] if given and get_origin(field.annotation) is not Literal else field.annotation
        kind = shape.get("kind") or own
        metavar = shape.get("metavar", "N" if kind is int else None)
        default = shape.get("default", field.default)
        words = f"{default:g}" if isinstance(default, float) else str(default)
        text = f"{field.description}{'' if default is None or isinstance(default, bool) else f'; default: {words}'}."
        names = [_option_of(name), *([shape["short"]] if "short" in shape else [])]
        options.append(_option(name, kind, *names, metavar=metavar, text=text))
    return _taking(options)


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
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads of the model; default: what torch takes.")]
StructureSpec = Annotated[
    str,
    typer.Argument(
        metavar="STRUCTURE",
        help="A file that ASE reads, a crystal such as fcc:Al:4x4x4 or diamond:Si:3x3x3:a=5.43, or molecule:CH3CH2OH.",
    ),
]
_QUANTITIES = ("energy", "forces", "stress", "group")
_LABELS = {
    **{f"{name}_key": ("NAME", "Name of this quantity in the files, where it is unusual.") for name in _QUANTITIES},
    "units": (
        "UNITS",
        "Of the numbers in the files, where they are not eV and Å: kcal/mol, energy=Hartree,length=bohr, "
        "stress=-kbar (a minus turns the sign).",
    ),
}
with_labels = _taking([_option(name, str, metavar=of, text=text) for name, (of, text) in _LABELS.items()])
"""Lets a command take options that say how files name their labels, and in which units they are."""


def keys_given(given: Mapping[str, Any]) -> Keys:
    """What the options of `with_labels` say."""
    from snnp.data import keys_of

    energy, forces, stress, group = (given[f"{name}_key"] for name in _QUANTITIES)
    return keys_of(energy, forces, stress, group, given["units"])
