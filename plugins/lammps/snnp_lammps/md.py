"""Molecular dynamics with LAMMPS, on one rank of MPI or several, with the settings and files of the other engines.

`nve` is velocity Verlet. The Langevin thermostat is `fix langevin` beside it, velocity rescaling `fix temp/csvr`.
LAMMPS has no barostat that means what the settings of `npt` say, so that is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from snnp.errors import ConfigError, MissingDependencyError
from snnp.models.potential import Potential
from snnp.models.spline.lammps_file import write_lammps
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.run import MDResult, ModelLike, Report, run_engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import ASE_FS, Ensemble, degrees_of_freedom, held_atoms, without_drift
from snnp_lammps import plugin_folder
from snnp_lammps.box import LammpsBox, read_dump
from snnp_lammps.conversation import Conversation
from snnp_lammps.plugin import PLUGIN_FILE

__all__ = ["BAR_PER_EV_ANGSTROM3", "LammpsDynamics", "run_md"]

_SKIN = 1.0  # Å, as of the other engines
BAR_PER_EV_ANGSTROM3 = 1.6021765e6
"""LAMMPS's own constant of metal units, by which its pressures are undone; 8e-8 below CODATA's."""
_COLUMNS = "id xu yu zu vx vy vz fx fy fz"
_VALUES = " ".join(f"$({name}:%.17g)" for name in ("pe", *(f"c_virial[{k}]" for k in range(1, 7))))


class LammpsDynamics:
    """An engine for `snnp.sampling.drive`; `potential`: an s-NNP in the precision of the run."""

    name = "lammps"

    def __init__(self, potential: Potential, start: Checkpoint, settings: MDSettings) -> None:
        potential.check_elements(start.atoms.numbers)
        self._atoms, self._settings, self._ranks = start.atoms.copy(), settings, settings.ranks or 1
        self._periodic = bool(self._atoms.pbc.all())
        self._ensemble = Ensemble(start.atoms, settings, start.step, start.equilibration)
        self._lammps = Conversation(_plugin(), self._ranks)
        self.close = self._lammps.close
        write_lammps(potential, self._lammps.folder / "model.snnp")
        self._begin(start.atoms)

    def _begin(self, atoms: Atoms) -> None:
        """Set LAMMPS up anew for atoms at the present step, with random numbers that follow from seed and step."""
        self._box = LammpsBox.of(atoms)
        elements, held = self._box.write_data(self._lammps.folder / "start.data", atoms)
        threads = max(1, torch.get_num_threads() // self._ranks)
        commands = [
            *("clear", "units metal", "atom_style atomic", "newton on", "box tilt large"),
            f"boundary {' '.join('p' if periodic else 's' for periodic in atoms.pbc)}",
            "read_data start.data",
            f"pair_style snnp threads {threads}",
            f"pair_coeff * * model.snnp {' '.join(elements)}",
            f"neighbor {_SKIN} bin",
            "neigh_modify every 1 delay 0 check yes",
            f"timestep {self._settings.dt_fs / 1000.0!r}",
            f"reset_timestep {self._ensemble.step}",
            f"group held type {' '.join(map(str, held))}" if held else "group held empty",
            "group free subtract all held",
            "compute virial all pressure NULL virial",
            f"thermo_style custom step pe {' '.join(f'c_virial[{k}]' for k in range(1, 7))}",
            "thermo 0",
            "fix motion free nve",
            *self._bath(atoms),
            "run 0 post no",
        ]
        self._lammps.ask(commands)

    def _bath(self, atoms: Atoms) -> list[str]:
        """The thermostat of the steps that follow, up to the end of the equilibration or of the run."""
        settings, ensemble, bath = self._settings, self._ensemble, self._ensemble.bath
        if bath.kind == "none":
            return []
        end = settings.temperature_k if settings.temperature_end_k is None else settings.temperature_end_k
        seed = int(np.random.SeedSequence([settings.seed, ensemble.step, 0]).generate_state(1)[0]) % 900_000_000 + 1
        law = f"{settings.temperature_k!r} {end!r} {1.0 / bath.friction_per_ps!r} {seed}"
        if bath.kind == "langevin":
            return [f"fix bath free langevin {law}"]
        lacking = 3 * int((~held_atoms(atoms, None)).sum()) - degrees_of_freedom(atoms, settings)
        counted = ["compute warmth free temp", f"compute_modify warmth extra/dof {lacking}"]
        return [*counted, f"fix bath free temp/csvr {law}", "fix_modify bath temp warmth"]

    def advance(self, n_steps: int) -> None:
        ensemble = self._ensemble
        end = ensemble.step + n_steps
        while ensemble.step < end:
            stop = min(end, ensemble.equilibration) if ensemble.step < ensemble.equilibration else end
            # The forces are those of the last step: nothing is computed twice.
            ramp = f"start 0 stop {max(self._settings.steps, stop)}"
            self._lammps.ask([f"run {stop - ensemble.step} {ramp} pre no post no"])
            ensemble.step = stop
            if stop == ensemble.equilibration:
                atoms = self.snapshot().atoms
                if ensemble.keeps_momentum:
                    atoms.set_momenta(without_drift(atoms.get_momenta(), atoms.get_masses()))
                self._begin(atoms)

    def snapshot(self) -> Snapshot:
        dump = self._lammps.folder / "now.bin"
        commands = [f"write_dump all custom {dump.name} {_COLUMNS} modify sort id"]
        energy, *pressures = map(float, self._lammps.ask(commands, _VALUES))
        rows = read_dump(dump, len(_COLUMNS.split()))
        positions, velocities, forces = (self._box.back(rows[:, k : k + 3]) for k in (1, 4, 7))
        atoms, held = self._atoms.copy(), held_atoms(self._atoms, None)
        positions[held] = atoms.positions[held]  # where boxes are wrapped, LAMMPS's have a rounding
        atoms.positions = positions
        atoms.set_velocities(velocities / (1000.0 * ASE_FS))
        xx, yy, zz, xy, xz, yz = -np.array(pressures) / BAR_PER_EV_ANGSTROM3
        stress = self._box.tensor_back(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
        return Snapshot(atoms, energy, forces, stress if self._periodic else None)

    def state(self) -> EngineState:
        """Nothing beyond the atoms: this run begins anew from them, as a resumed one does, so that both agree."""
        self._begin(self.snapshot().atoms)
        return EngineState()


def _plugin() -> Path:
    """The folder of the compiled pair style: of LAMMPS_PLUGIN_PATH, or where it is built by default."""
    named = [Path(name) for name in os.environ.get("LAMMPS_PLUGIN_PATH", "").split(":") if name]
    for folder in [*named, Path(plugin_folder())]:
        if (folder / PLUGIN_FILE).is_file():
            return folder
    raise MissingDependencyError("the pair style for LAMMPS is not compiled yet; snnp lammps build.")


def _check(settings: MDSettings) -> None:
    if settings.ensemble == "npt":
        raise ConfigError(
            "engine 'lammps' offers nve and nvt: LAMMPS has no barostat that means what these settings say; take "
            "engine 'native' or 'openmm' for npt, or write an input script with 'fix npt'."
        )
    if settings.device not in (None, "cpu"):
        raise ConfigError(f"engine 'lammps' computes on processors, not on '{settings.device}'; leave the device away.")


def run_md(model: ModelLike, structure: Atoms, settings: MDSettings, report: Report | None = None) -> MDResult:
    """As `snnp.sampling.run_md`, with LAMMPS.

    Raises `ConfigError` for npt or another device than the CPU, `MissingDependencyError` without LAMMPS or the compiled
    pair style, `InputError` for a model that is no s-NNP.
    """
    _check(settings)
    made: list[LammpsDynamics] = []

    def make(potential: Potential, start: Checkpoint, settings: MDSettings) -> LammpsDynamics:
        made.append(LammpsDynamics(potential, start, settings))
        return made[0]

    try:
        return run_engine(make, LammpsDynamics.name, model, structure, settings, report)
    finally:
        for engine in made:
            engine.close()
