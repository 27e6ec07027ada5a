"""`snnp md` and `snnp relax`: move the atoms."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, progress_bar, say, warn
from snnp.cli.options import Json, Model, Overwrite, StructureSpec, Threads, command, set_threads, settings_taken
from snnp.cli.outputs import check_format, input_files, prepare_output, write_structure
from snnp.errors import InputError
from snnp.sampling.settings import MDSettings

if TYPE_CHECKING:
    from ase import Atoms

    from snnp.models.potential import Potential
    from snnp.sampling import MDProgress, MDResult, RelaxProgress, RelaxResult

__all__: list[str] = []

_MINIMISE_FMAX, _MINIMISE_STEPS = 0.05, 500
"""eV/Å, and optimiser steps: enough to begin from, not a relaxation for its own sake."""
_COMPANIONS = {"log": ".csv", "plot": ".png", "checkpoint": ".npz", "harvest": ".harvest.extxyz"}
_SHAPES: dict[str, dict[str, Any]] = {
    "temperature_k": {"kind": str, "metavar": "K[:K]", "short": "-T", "default": "300; two for a ramp, as 3000:300"},
    "pressure_gpa": {"metavar": "GPA", "short": "-P"},
    "fix": {"metavar": "ATOMS"},
    "steps": {"metavar": "N", "short": "-n"},
    "dt_fs": {"metavar": "FS"},
    "friction_per_ps": {"metavar": "1/PS"},
    "trajectory": {"kind": str, "metavar": "FILE", "default": "md.extxyz; 'none' writes none"},
    **{
        name: {"kind": str, "metavar": "FILE", "default": f"the trajectory's name with {suffix}; or 'none'"}
        for name, suffix in _COMPANIONS.items()
    },
    "dtype": {"kind": str, "metavar": "TYPE"},
    "device": {"metavar": "NAME", "default": None},
    "ranks": {"default": None},
    "watch": {"kind": str, "metavar": "uncertainty|FILE", "default": None},
    "limit": {"metavar": "X", "default": None},
}
"""How the settings of a run are said as options of `snnp md`, where their fields do not tell."""
_TAKEN_OVER = ("steps", "checkpoint_interval", "watch", "limit", "on_limit")
_AGAIN = {"engine": "--engine", "topology": "--topology", "file_format": "--format", "threads": "--threads"}
_AGAIN |= {name: f"--{name}" for name in ("trajectory", "checkpoint", "device", "ranks")}
"""Options that must be said again on resuming."""

_Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="Of the structure file: pdb, cif, poscar, lammps, dcd, or ASE's."),
]


@command(
    "md",
    "snnp md snnp-si diamond:Si:3x3x3 --temperature 300 --steps 2000",
    "snnp md snnp-cu fcc:Cu:6x6x6:a=3.63 --ensemble npt --pressure 1 --trajectory cu.dcd",
    "snnp md snnp-si start.cif --engine ase --ensemble nve --dt 0.5 --dtype float64 --json",
    "snnp md snnp-si diamond:Si:3x3x3 --temperature 2500:300 --thermostat bussi --steps 50000",
    "snnp md snnp-al slab.vasp --fix 0-15 --minimise --equilibrate 1000 --steps 20000",
    "snnp md snnp-al fcc:Al:30x30x30 --engine native --steps 500 --trajectory al.dcd",
    "snnp md snnp-al fcc:Al:60x60x60 --engine lammps --ranks 4 --steps 500 --trajectory al.dcd",
    "snnp md snnp-si last.dcd --topology start.pdb --trajectory next.xtc --threads 4",
    "snnp md snnp-si diamond:Si:3x3x3 --steps 50000 --resume",
    "snnp md runs/heads diamond:Si:3x3x3 --watch uncertainty --limit 0.3 --on-limit harvest",
)
@settings_taken(MDSettings, _SHAPES, without=("temperature_end_k", "barostat_time_fs"))
def md_command(
    model: Model,
    structure: StructureSpec,
    engine: str | None = typer.Option(
        None, metavar="NAME", help="openmm, ase, native or lammps; default: openmm if installed, else ase."
    ),
    minimise: bool = typer.Option(
        False, "--minimise", "--minimize", help="Relax the atoms (not the cell) first; not again with --resume."
    ),
    file_format: _Format = None,
    topology: Path | None = typer.Option(None, metavar="FILE", help="Structure with the elements, for DCD."),
    threads: Threads = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Run molecular dynamics: writes a trajectory, a log, a checkpoint and a picture, and says how fast it was."""
    import torch
    from ase.constraints import FixAtoms

    from snnp.hub import load_model
    from snnp.sampling import build_structure
    from snnp.sampling.checkpoint import brings_momenta
    from snnp.sampling.thermostats import held_atoms

    settings, engine = _settings(given, engine)
    if (given["pressure_gpa"] or given["barostat"]) and settings.ensemble != "npt":
        raise InputError(f"--pressure and --barostat act in npt alone, not in {settings.ensemble}: say --ensemble npt.")
    set_threads(threads)
    # OpenMM computes where the model is; both gain from a GPU.
    place = "cuda" if engine == "openmm" and torch.cuda.is_available() else None
    potential = load_model(model, device=settings.device or place)
    _prepare_outputs(settings, input_files(model, structure, topology), given["checkpoint"] is None)
    atoms = build_structure(structure, file_format=file_format, topology=topology)
    if brings_momenta(atoms) and not settings.new_velocities and not settings.resume:
        say(
            f"The structure brings velocities ({atoms.get_temperature():.0f} K); it starts with them, not with new "
            f"ones at {settings.temperature_k:g} K, which --new-velocities draws."
        )
    if minimise and not settings.resume:
        atoms.set_constraint(FixAtoms(mask=held_atoms(atoms, settings.fix)))
        relaxed = _relaxed(potential, atoms, fmax=_MINIMISE_FMAX, steps=_MINIMISE_STEPS)
        atoms = relaxed.atoms
        if not relaxed.converged:
            warn(f"not relaxed after {relaxed.steps} steps: {relaxed.max_force_ev_per_angstrom:.3g} eV/Å are left.")
    again = {**given, "engine": engine, "topology": topology, "file_format": file_format, "threads": threads}
    said = [word for name, option in _AGAIN.items() if again[name] is not None for word in (option, str(again[name]))]
    result = _simulate(potential, atoms, settings, engine, ["snnp", "md", model, structure, *said, "--resume"])
    if as_json:
        print_json({"model": potential.name, "structure": structure, **result.to_json()})
    else:
        _print_md(result, settings)


def _simulate(model: Potential, atoms: Atoms, settings: MDSettings, engine: str, command: list[str]) -> MDResult:
    """Run with a progress bar; a run that is interrupted says how far it is, and the `command` that goes on."""
    from snnp.process import Interrupted
    from snnp.sampling import run_md

    with progress_bar(f"{settings.ensemble} with {engine}", settings.steps) as update:

        def report(now: MDProgress) -> None:
            update(now.step, note=f"{now.sample.temperature_k:.0f} K  {number(now.ns_per_day)} ns/day")

        try:
            return run_md(model, atoms, settings, engine=engine, report=report)
        except Interrupted as stop:
            say(f"Interrupted: {stop.where}.")
            if settings.checkpoint is not None:
                say(f"Go on with: {shlex.join(command)}")
            raise typer.Exit(128 + stop.signum) from None


def _temperatures(text: str) -> dict[str, float | None]:
    """`300` or a ramp `3000:300`; one without the other is no setting."""
    first, colon, last = text.partition(":")
    try:
        return {"temperature_k": float(first), "temperature_end_k": float(last) if colon else None}
    except ValueError:
        message = f"--temperature '{text}' is not understood; give K, such as 300, or a ramp 3000:300."
        raise InputError(message) from None


def _relaxed(model: Potential, atoms: Atoms, *, steps: int, **more: Any) -> RelaxResult:
    from snnp.sampling import relax

    with progress_bar("relaxing", steps) as update:

        def report(now: RelaxProgress) -> None:
            update(now.step, note=f"{now.max_force_ev_per_angstrom:.4f} eV/Å")

        return relax(model, atoms, steps=steps, report=report, **more)


def _settings(options: dict[str, Any], engine: str | None) -> tuple[MDSettings, str]:
    """Settings and engine: as given, else those of the run to resume, else the defaults."""
    from snnp.sampling.checkpoint import read_checkpoint

    if options["accept_changes"] and not options["resume"]:
        raise InputError("--accept-changes goes with --resume.")
    files = _outputs(options)
    before: dict[str, Any] = {}
    if options["resume"] and files["checkpoint"] is not None:
        found = read_checkpoint(files["checkpoint"])
        plan, engine = found.record.plan, engine or found.engine
        for name in ("trajectory", "log", "plot", "harvest"):
            if options[name] is None and name in plan:
                files[name] = None if plan[name] is None else files["checkpoint"].parent / Path(plan[name]).name
        before = found.settings | {name: plan[name] for name in _TAKEN_OVER if name in plan}
    given = {name: value for name, value in options.items() if value is not None}
    if "temperature_k" in given:
        given |= _temperatures(given["temperature_k"])
    default = "openmm" if importlib.util.find_spec("openmm") is not None else "ase"
    return MDSettings(**{**before, **given, **files}), engine or default


def _outputs(given: dict[str, Any]) -> dict[str, Path | None]:
    """Names of the output files: as given, 'none' for none, else the trajectory's name with another suffix."""
    trajectory = given["trajectory"] or "md.extxyz"
    stem = Path("md") if trajectory == "none" else Path(trajectory)
    if not stem.name:
        raise InputError(f"cannot write '{stem}': it is a folder; choose the name of a file.")
    names = {name: given[name] or str(stem.with_suffix(suffix)) for name, suffix in _COMPANIONS.items()}
    if given["on_limit"] != "harvest":
        names["harvest"] = given["harvest"] or "none"
    return {name: None if text == "none" else Path(text) for name, text in {"trajectory": trajectory, **names}.items()}


def _prepare_outputs(settings: MDSettings, inputs: list[Path], checkpoint_is_companion: bool) -> None:
    """Refuse outputs that cannot be written or are somebody's, before anything is computed."""
    from snnp.sampling.checkpoint import read_checkpoint
    from snnp.sampling.run import output_files

    for path in output_files(settings).values():
        prepare_output(path, overwrite=settings.overwrite or settings.resume, inputs=inputs)
    # Whose the companions of another trajectory are --overwrite does not say.
    checkpoint = settings.checkpoint
    if checkpoint is None or not checkpoint_is_companion or settings.resume or not settings.overwrite:
        return
    try:
        other = read_checkpoint(checkpoint).record.plan.get("trajectory")
    except InputError:  # none, or one that is of no use to anybody
        return
    ours = None if settings.trajectory is None else settings.trajectory.name
    if other is not None and other != ours and (checkpoint.parent / Path(other).name).is_file():
        raise InputError(
            f"'{checkpoint}' belongs to the run that wrote '{other}'; give this run a trajectory of another name, or "
            "name its --log, --plot and --checkpoint."
        )


def _print_md(result: MDResult, settings: MDSettings) -> None:
    pairs = {
        "run": f"{result.ensemble} with {result.engine}, {result.n_atoms:,} atoms",
        "steps": f"{result.first_step} to {result.last_step}" + (f"; {result.stopped}" if result.stopped else ""),
        "time": f"{result.steps * settings.dt_fs / 1000.0:g} ps in {number(result.seconds)} s",
    }
    if result.ns_per_day is not None:
        per_atom = 1e6 * result.seconds / (result.steps * result.n_atoms)
        pairs["speed"] = f"{number(result.ns_per_day)} ns/day ({number(per_atom)} µs per atom and step)"
    if result.equilibration:
        pairs["equilibration"] = f"the first {result.equilibration} steps; no mean holds them"
    if settings.temperature_end_k is not None:
        pairs["temperature"] = f"a ramp from {settings.temperature_k:g} to {settings.temperature_end_k:g} K"
    elif result.mean_temperature_k is not None:
        spread = "" if result.temperature_std_k is None else f" ± {result.temperature_std_k:.1f}"
        pairs["temperature"] = f"{result.mean_temperature_k:.1f}{spread} K"
    if result.drift_mev_per_atom_per_ns is not None:
        pairs["energy drift"] = f"{number(result.drift_mev_per_atom_per_ns)} meV/atom/ns"
    if result.mean_pressure_gpa is not None and result.mean_volume_a3 is not None:
        pairs["pressure"] = (
            f"{number(result.mean_pressure_gpa)} GPa at {number(result.mean_volume_a3 / result.n_atoms, 4)} Å³/atom"
        )
    print_pairs({**pairs, **{name: str(path) for name, path in result.files.items()}})


@command(
    "relax",
    "snnp relax snnp-si diamond:Si:2x2x2 --cell --out relaxed.extxyz",
    "snnp relax snnp-si diamond:Si:1x1x1 --pressure 5",
    "snnp relax snnp-3bpa molecule.xyz --fmax 0.001 --json",
    "snnp relax snnp-si many.xyz --cell --optimiser lbfgs --out relaxed.xyz",
)
def relax_command(
    model: Model,
    structure: StructureSpec,
    out: Path | None = typer.Option(None, metavar="FILE", help="Where the relaxed structure goes; any ASE format."),
    fmax: float = typer.Option(0.01, metavar="EV/Å", help="Largest force on an atom that counts as relaxed."),
    cell: bool | None = typer.Option(None, "--cell/--no-cell", help="Relax the cell, too; --pressure implies it."),
    pressure: float = typer.Option(0.0, "--pressure", "-P", metavar="GPA", help="Pressure on the cell, in GPa."),
    steps: int = typer.Option(500, metavar="N", help="Stop after so many steps."),
    optimiser: str = typer.Option("fire", "--optimiser", "--optimizer", metavar="NAME", help="fire, or lbfgs: faster."),
    overwrite: Overwrite = False,
    file_format: _Format = None,
    as_json: Json = False,
) -> None:
    """Move the atoms (and the cell) to the nearest minimum of the energy; of a file of many structures, all at once."""
    from snnp.cli.drivers.crowds import relax_frames
    from snnp.hub import load_model
    from snnp.sampling.many import build_structures

    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}; 'snnp energy' computes without moving atoms.")
    if pressure and cell is False:
        raise InputError(f"--pressure {pressure:g} acts on the cell: leave --no-cell away.")
    inputs = input_files(model, structure)
    potential = load_model(model)
    frames = build_structures(structure, file_format=file_format)
    how: dict[str, Any] = {"fmax": fmax, "cell": bool(cell or pressure), "pressure_gpa": pressure}
    if len(frames) > 1 or optimiser != "fire":
        how |= {"steps": steps, "optimiser": optimiser, "overwrite": overwrite, "inputs": inputs}
        return relax_frames(
            potential, frames, out, {"model": potential.name, "structure": structure}, as_json=as_json, **how
        )
    (atoms,) = frames
    if out is not None:
        prepare_output(out, overwrite=overwrite, inputs=inputs)
        check_format(out, atoms)
    result = _relaxed(potential, atoms, steps=steps, **how)
    if out is not None:
        write_structure(out, result.atoms)
    if not result.converged:
        more = f"allow more with --steps {2 * steps} or larger forces with --fmax."
        warn(f"not relaxed after {result.steps} steps; {more}")
    if as_json:
        return print_json({"model": potential.name, "structure": structure, **result.to_json(), "out": out})
    return _print_relaxed(result, out)


def _print_relaxed(result: RelaxResult, out: Path | None) -> None:
    pairs = {
        "relaxed": f"{'yes' if result.converged else 'no'}, {result.steps} steps",
        "energy": f"{result.energy_ev:.6f} eV (started at {result.initial_energy_ev:.6f} eV)",
        "largest force": f"{number(result.max_force_ev_per_angstrom)} eV/Å",
    }
    if result.max_stress_gpa is not None:
        beyond = f" beyond the pressure of {result.pressure_gpa:g} GPa" if result.pressure_gpa else ""
        pairs["largest stress"] = f"{number(result.max_stress_gpa)} GPa{beyond}"
        pairs["volume"] = f"{number(result.atoms.get_volume() / len(result.atoms), 5)} Å³/atom"
    if out is None:
        say("Give --out FILE to keep the relaxed structure.")
    print_pairs(pairs if out is None else {**pairs, "written to": str(out)})
