"""`snnp md` and `snnp relax`: move the atoms."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, progress_bar, say, warn
from snnp.cli.files import prepare_output, write_structure
from snnp.cli.options import Device, Dtype, Json, Model, Seed, StructureSpec, examples
from snnp.errors import InputError

if TYPE_CHECKING:
    from snnp.sampling import MDProgress, MDResult, RelaxProgress, RelaxResult

__all__ = ["MD_EXAMPLES", "RELAX_EXAMPLES", "md_command", "relax_command"]

MD_EXAMPLES = examples(
    "snnp md snnp-si diamond:Si:3x3x3 --temperature 300 --steps 2000",
    "snnp md snnp-cu fcc:Cu:6x6x6:a=3.63 --ensemble npt --pressure 1 --trajectory cu.dcd",
    "snnp md snnp-si start.cif --engine ase --ensemble nve --dt 0.5 --dtype float64 --json",
    "snnp md snnp-al fcc:Al:30x30x30 --engine native --steps 500 --trajectory al.dcd",
    "snnp md snnp-si diamond:Si:3x3x3 --steps 50000 --resume",
)
RELAX_EXAMPLES = examples(
    "snnp relax snnp-si diamond:Si:2x2x2 --cell --out relaxed.extxyz",
    "snnp relax snnp-si diamond:Si:1x1x1 --pressure 5",
    "snnp relax snnp-3bpa molecule.xyz --fmax 0.001 --json",
)


class Ensemble(StrEnum):
    """What is kept constant."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


_Engine = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="openmm, ase or native; default: openmm if installed, else ase."),
]
_Ensemble = Annotated[Ensemble, typer.Option(help="Constant energy, temperature, or temperature and pressure.")]
_Temperature = Annotated[float, typer.Option("--temperature", "-T", metavar="K", help="Of start and thermostat, in K.")]
_Pressure = Annotated[float, typer.Option("--pressure", "-P", metavar="GPA", help="Of the barostat (npt), in GPa.")]
_Steps = Annotated[
    int, typer.Option("--steps", "-n", metavar="N", help="Number of the last step, resumed runs included.")
]
_TimeStep = Annotated[float, typer.Option("--dt", metavar="FS", help="Time step in fs.")]
_Friction = Annotated[float, typer.Option(metavar="1/PS", help="Friction of the Langevin thermostat, in 1/ps.")]
_Trajectory = Annotated[
    str,
    typer.Option(metavar="FILE", help="Ends in .extxyz, .xyz, .dcd or .xtc; 'none' writes no trajectory."),
]
_Log = Annotated[
    str | None, typer.Option(metavar="FILE", help="CSV log; default: the trajectory's name with .csv; or 'none'.")
]
_Plot = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="PNG of temperature, energy and RDF; default: the trajectory's name with .png; or 'none'."
    ),
]
_Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="State to resume from; default: the trajectory's name with .npz; or 'none'."),
]
_Every = Annotated[int, typer.Option("--every", metavar="N", help="Steps between frames of the trajectory.")]
_LogEvery = Annotated[int, typer.Option("--log-every", metavar="N", help="Steps between rows of the log.")]
_CheckpointEvery = Annotated[int, typer.Option("--checkpoint-every", metavar="N", help="Steps between checkpoints.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint up to --steps.")]


def md_command(
    model: Model,
    structure: StructureSpec,
    engine: _Engine = None,
    ensemble: _Ensemble = Ensemble.nvt,
    temperature: _Temperature = 300.0,
    pressure: _Pressure = 0.0,
    steps: _Steps = 1000,
    dt: _TimeStep = 1.0,
    friction: _Friction = 1.0,
    trajectory: _Trajectory = "md.extxyz",
    log: _Log = None,
    plot: _Plot = None,
    checkpoint: _Checkpoint = None,
    every: _Every = 100,
    log_every: _LogEvery = 10,
    checkpoint_every: _CheckpointEvery = 1000,
    resume: _Resume = False,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run molecular dynamics: writes a trajectory, a log, a checkpoint and a picture, and says how fast it was."""
    from snnp.hub import load_pinned
    from snnp.sampling import MDSettings, build_structure, run_md

    settings = MDSettings(
        ensemble=ensemble.value,
        temperature_k=temperature,
        pressure_gpa=pressure,
        steps=steps,
        dt_fs=dt,
        friction_per_ps=friction,
        seed=seed,
        **_outputs(trajectory, log=(log, ".csv"), plot=(plot, ".png"), checkpoint=(checkpoint, ".npz")),
        trajectory_interval=every,
        log_interval=log_every,
        checkpoint_interval=checkpoint_every,
        resume=resume,
        dtype=dtype or "float32",
        device=device,
    )
    _, model = load_pinned(model)  # a wrong name is said before anything else is built
    atoms = build_structure(structure)
    for path in (settings.trajectory, settings.log, settings.plot, settings.checkpoint):
        if path is not None:
            prepare_output(path)
    chosen = engine or _default_engine()
    with progress_bar(f"{ensemble.value} with {chosen}", steps) as update:

        def report(now: MDProgress) -> None:
            update(now.step, note=f"{now.sample.temperature_k:.0f} K  {number(now.ns_per_day)} ns/day")

        result = run_md(model, atoms, settings, engine=chosen, report=report)
    if as_json:
        print_json({"model": model, "structure": structure, **result.to_json()})
    else:
        _print_md(result, settings.dt_fs)


def _outputs(trajectory: str, **others: tuple[str | None, str]) -> dict[str, Path | None]:
    """Names of the output files: as given, 'none' for none, else the trajectory's name with another suffix."""
    stem = Path("md") if trajectory == "none" else Path(trajectory)
    names: dict[str, Path | None] = {"trajectory": None if trajectory == "none" else Path(trajectory)}
    for name, (given, suffix) in others.items():
        names[name] = None if given == "none" else stem.with_suffix(suffix) if given is None else Path(given)
    return names


def _default_engine() -> str:
    return "openmm" if importlib.util.find_spec("openmm") is not None else "ase"


def _print_md(result: MDResult, dt_fs: float) -> None:
    per_atom = 1e6 * result.seconds / max(result.steps * result.n_atoms, 1)
    pairs = {
        "run": f"{result.ensemble} with {result.engine}, {result.n_atoms:,} atoms",
        "steps": f"{result.first_step} to {result.last_step}",
        "time": f"{result.steps * dt_fs / 1000.0:g} ps in {number(result.seconds)} s",
        "speed": f"{number(result.ns_per_day)} ns/day ({number(per_atom)} µs per atom and step)",
        "temperature": f"{result.mean_temperature_k:.1f} ± {result.temperature_std_k:.1f} K",
    }
    if result.drift_mev_per_atom_per_ns is not None:
        pairs["energy drift"] = f"{number(result.drift_mev_per_atom_per_ns)} meV/atom/ns"
    if result.mean_pressure_gpa is not None and result.mean_volume_a3 is not None:
        pairs["pressure"] = (
            f"{number(result.mean_pressure_gpa)} GPa at {number(result.mean_volume_a3 / result.n_atoms, 4)} Å³/atom"
        )
    print_pairs({**pairs, **{name: str(path) for name, path in result.files.items()}})


def relax_command(
    model: Model,
    structure: StructureSpec,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the relaxed structure goes; any ASE format.")
    ] = None,
    fmax: Annotated[
        float, typer.Option(metavar="EV/Å", help="Largest force on an atom that counts as relaxed.")
    ] = 0.01,
    cell: Annotated[
        bool | None, typer.Option("--cell/--no-cell", help="Relax the cell, too; --pressure implies it.")
    ] = None,
    pressure: Annotated[
        float, typer.Option("--pressure", "-P", metavar="GPA", help="Hydrostatic pressure on the cell, in GPa.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(metavar="N", help="Stop after so many steps.")] = 500,
    as_json: Json = False,
) -> None:
    """Move the atoms (and the cell) of a structure to the nearest minimum of the energy."""
    from snnp.hub import load_pinned
    from snnp.sampling import build_structure, relax

    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}; 'snnp energy' computes without moving atoms.")
    if pressure and cell is False:
        raise InputError(f"--pressure {pressure:g} acts on the cell: leave --no-cell away.")
    potential, model = load_pinned(model)
    atoms = build_structure(structure)
    if out is not None:
        prepare_output(out)
    cell = bool(cell or pressure)
    with progress_bar("relaxing", steps) as update:

        def report(now: RelaxProgress) -> None:
            update(now.step, note=f"{now.max_force_ev_per_angstrom:.4f} eV/Å")

        result = relax(potential, atoms, fmax=fmax, cell=cell, steps=steps, pressure_gpa=pressure, report=report)
    if out is not None:
        write_structure(out, result.atoms)
    if not result.converged:
        warn(
            f"not relaxed after {result.steps} steps; allow more with --steps {2 * steps} or larger forces with --fmax."
        )
    if as_json:
        print_json({"model": model, "structure": structure, **result.to_json(), "out": out})
        return
    _print_relaxed(result, out)


def _print_relaxed(result: RelaxResult, out: Path | None) -> None:
    values: dict[str, Any] = result.to_json()
    pairs = {
        "relaxed": f"{'yes' if result.converged else 'no'}, {result.steps} steps",
        "energy": f"{result.energy_ev:.6f} eV (started at {result.initial_energy_ev:.6f} eV)",
        "largest force": f"{number(result.max_force_ev_per_angstrom)} eV/Å",
    }
    if result.max_stress_gpa is not None:
        beyond = f" beyond the pressure of {result.pressure_gpa:g} GPa" if result.pressure_gpa else ""
        pairs["largest stress"] = f"{number(result.max_stress_gpa)} GPa{beyond}"
        pairs["volume"] = f"{number(values['volume_a3'] / values['n_atoms'], 5)} Å³/atom"
    if out is not None:
        pairs["written to"] = str(out)
    else:
        say("Give --out FILE to keep the relaxed structure.")
    print_pairs(pairs)
