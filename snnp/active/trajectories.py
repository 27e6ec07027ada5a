"""Nonequilibrium sampling: a committee's own dynamics, driven through temperatures and densities until it disagrees.

Many trajectories move together under the mean force of all members. Every few steps each is looked at: where the spread
of the members crosses a limit, its frame is harvested for a label, and where it is far beyond, or atoms have come too
close, the trajectory ends. Of all frames the most different are kept.

    sample(potentials, SamplingSettings(elements=("Al",)), [], Path("round-1"), seed=0)

writes `round-1/frames.extxyz` and `round-1/trajectories.json`. Trajectories are run in portions (`together`), each of
which is written when it is finished and not run again after a kill: what comes out is the same to the digit.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from snnp.active.placement import closeness, compositions, density_of, guessed_density, place, roomy
from snnp.active.schedule import SamplingSettings, Schedule
from snnp.analysis.stability import time_step_for
from snnp.data import Frames
from snnp.data.labels import Keys
from snnp.data.read import read_images
from snnp.data.storage.atoms import from_atoms
from snnp.data.write import xyz_lines
from snnp.distillation.crystals import frames_of
from snnp.distillation.selection import choose
from snnp.errors import DataError, InputError
from snnp.files import hold, write_atomically
from snnp.models.potential import Potential
from snnp.sampling.many.crowd import Crowd
from snnp.sampling.thermostats import ASE_FS
from snnp.structure import Structure
from snnp.uncertainty import Committee
from snnp.units import AMU_PER_ANGSTROM3_IN_G_PER_CM3, BOLTZMANN_EV_PER_K

__all__ = ["Sampled", "SamplingSettings", "Trajectory", "placements", "sample"]

Array = NDArray[np.float64]

_RESIZE = 5  # steps between two changes of the density
_EXPLODED, _SLACK = 5.0, 2000.0  # times the temperature of the bath, and K beyond, at which nothing is physical
_VISITED = 40  # moments of a trajectory that are written down
_FRAMES, _TRAJECTORIES = "frames.extxyz", "trajectories.json"


@dataclass
class Trajectory:
    """What became of one: how it was driven, what ended it (`end`), and how many frames it gave, for which reasons.

    `visited` holds moments: ps, K of the atoms, g/cm³ (None for molecules), and the spread in units of its limit.
    """

    number: int
    start: str
    temperature: dict[str, float]
    density: dict[str, float]
    steps: int = 0
    picoseconds: float = 0.0
    end: str = ""
    reasons: list[str] = field(default_factory=list)
    visited: list[tuple[float, float, float | None, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Sampled:
    """Frames that were kept, in `path` too, the trajectories, and how many frames were harvested before the selection.

    `seconds` is the wall time of the dynamics; of portions that an earlier call finished, theirs.
    """

    frames: list[Atoms]
    trajectories: list[Trajectory]
    harvested: int
    seconds: float
    path: Path

    @property
    def reasons(self) -> dict[str, int]:
        """Why frames were harvested -> how many."""
        return dict(Counter(reason for each in self.trajectories for reason in each.reasons))

    @property
    def ends(self) -> dict[str, int]:
        """What ended trajectories -> how many."""
        return dict(Counter(each.end.split(":")[0] for each in self.trajectories))


def placements(settings: SamplingSettings, number: int, seed: int) -> list[Atoms]:
    """Random placements as the settings ask for them.

    Raises:
        InputError: where none can be made; see `snnp.active.placement.place`.
    """
    found = []
    for k in range(number):
        rng = np.random.default_rng([seed, 11, k])
        wanted = int(rng.integers(settings.n_atoms[0], settings.n_atoms[1] + 1))
        atoms = Atoms(compositions(settings.elements, settings.formula, wanted, rng))
        density = settings.reference_density or guessed_density(atoms)
        density *= float(rng.uniform(*settings.placement_density))
        volume = float(atoms.get_masses().sum()) / density * AMU_PER_ANGSTROM3_IN_G_PER_CM3
        found.append(place(atoms.numbers, volume, roomy(atoms.numbers, volume, settings.closest), rng))
    return found


def sample(
    potentials: Sequence[Potential] | Potential | Committee,
    settings: SamplingSettings,
    starts: Sequence[Atoms],
    out_folder: str | Path,
    seed: int,
    *,
    known: Frames | None = None,
    report: Callable[[int, int, int], None] = lambda done, total, frames: None,
) -> Sampled:
    """Run the trajectories of one round and write what they found.

    Arguments:
        potentials: two or more of the same elements, an `Ensemble` of as many, or a `Committee`, whose calibration then
            scales the spreads.
        starts: structures, of which trajectory k takes number k (in turn); none: random placements of the settings.
        out_folder: is created. One that holds the same sampling, finished or not, is gone on with.
        known: frames that have labels; what resembles them is left out first, where there are too many frames.
        report: called with the numbers of trajectories finished, of all, and of frames.

    Raises:
        InputError: for fewer than two members, structures that these do not know, or a folder of another sampling.
    """
    committee = potentials if isinstance(potentials, Committee) else Committee(potentials)
    members, scales = committee.potentials, committee.scales
    for atoms in starts:
        members[0].check_elements(atoms.numbers)
    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with hold([folder / _TRAJECTORIES]):
        work = _Work(folder, _key(members, scales, settings, starts, seed), settings)
        if (found := work.finished()) is not None:
            return found
        total, trajectories, images, seconds = settings.trajectories, list[Trajectory](), list[Atoms](), 0.0
        for portion, first in enumerate(range(0, total, settings.together)):
            numbers = range(first, min(first + settings.together, total))
            part = work.portion(portion)
            if part is None:
                begun = _starts(settings, starts, numbers, seed)
                part = _Portion(members, settings, begun, numbers, seed, scales).run()
                work.keep(portion, part)
            trajectories += part.trajectories
            images += part.frames
            seconds += part.seconds
            report(len(trajectories), total, len(images))
        kept = _most_different(images, settings.most_frames, known, seed)
        return work.finish(Sampled(kept, trajectories, len(images), seconds, folder / _FRAMES))


def _starts(
    settings: SamplingSettings, starts: Sequence[Atoms], numbers: Sequence[int], seed: int
) -> list[tuple[str, Atoms]]:
    if not starts:
        placed = placements(settings, numbers[-1] + 1, seed)  # each from its own number: cheap, and always the same
        return [("placed at random", placed[k]) for k in numbers]
    chosen = [(k % len(starts), starts[k % len(starts)]) for k in numbers]
    return [(str(atoms.info.get("config_type", f"structure {k}")), atoms) for k, atoms in chosen]


def _key(
    members: Sequence[Potential],
    scales: tuple[float, float],
    settings: SamplingSettings,
    starts: Sequence[Atoms],
    seed: int,
) -> str:
    """Hash of everything that decides about the frames."""
    found = hashlib.sha256(json.dumps([settings.model_dump(mode="json"), seed, scales]).encode())
    for member in members:
        for name, tensor in sorted(member.state_dict().items()):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for atoms in starts:
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def _most_different(images: list[Atoms], number: int | None, known: Frames | None, seed: int) -> list[Atoms]:
    """At most `number` of the frames: farthest-point sampling over those of all trajectories."""
    if number is None or len(images) <= number:
        return images
    chosen = choose(frames_of([("", atoms) for atoms in images], "sampled"), number, {"": 1.0}, known, seed)
    return [images[int(source.rpartition("#")[2])] for source in chosen.sources]


@dataclass
class _Part:
    trajectories: list[Trajectory]
    frames: list[Atoms]
    seconds: float


class _Portion:
    """Trajectories that move together. What belongs to atoms and structures lies in the crowd of the first member."""

    def __init__(
        self,
        members: Sequence[Potential],
        settings: SamplingSettings,
        starts: Sequence[tuple[str, Atoms]],
        numbers: Sequence[int],
        seed: int,
        scales: tuple[float, float],
    ) -> None:
        self.settings, self.scales = settings, scales
        self.starts = [atoms for _, atoms in starts]
        self.crowds = [Crowd(member, self.starts) for member in members]
        self.rngs = [np.random.default_rng([seed, 12, k]) for k in numbers]
        self.drives: list[tuple[Schedule, Schedule]] = [settings.schedules(rng) for rng in self.rngs]
        self.found = [
            Trajectory(k, kind, temperature.model_dump(), density.model_dump())
            for k, (kind, _), (temperature, density) in zip(numbers, starts, self.drives, strict=True)
        ]
        self.frames: list[list[Atoms]] = [[] for _ in numbers]
        self.before: list[Atoms | None] = [None for _ in numbers]
        self.last_harvest = [-math.inf for _ in numbers]
        self.dt_fs = settings.dt_fs or min(time_step_for(atoms) for atoms in self.starts)
        lead = self.crowds[0]
        here = [self.starts[k] for k in lead.index.tolist()]
        masses = np.concatenate([np.zeros((0, 1)), *(atoms.get_masses()[:, None] for atoms in here)])
        kelvin = np.array([self.drives[k][0].at(0.0) for k in lead.index.tolist()])
        noise = [self.rngs[k].standard_normal((len(self.starts[k]), 3)) for k in lead.index.tolist()]
        kt = BOLTZMANN_EV_PER_K * kelvin[lead.owner][:, None]
        lead.atoms |= {"masses": masses, "momenta": np.sqrt(kt * masses) * np.concatenate([np.zeros((0, 3)), *noise])}
        volumes = np.abs(np.linalg.det(lead.each["cells"]))
        lead.each["first_volume"] = np.where(lead.each["pbc"].all(axis=1), volumes, np.nan)

    def run(self) -> _Part:
        """All trajectories to their ends."""
        started, settings = time.perf_counter(), self.settings
        total = max(1, round(1000.0 * settings.picoseconds / self.dt_fs))
        energies, forces = self._evaluate(0)
        for step in range(total + 1):
            last = step == total
            if last or step % settings.check_steps == 0:
                energies, forces = self._look(step, energies, forces, last)
                if not len(self.crowds[0]) or last:
                    break
                self._draw_noise()
            energies, forces = self._step(step, forces.mean(axis=0))
        frames = [atoms for each in self.frames for atoms in each]
        return _Part(self.found, frames, time.perf_counter() - started)

    def _time(self, step: int) -> float:
        return step * self.dt_fs / 1000.0

    def _draw_noise(self) -> None:
        lead, n = self.crowds[0], self.settings.check_steps
        drawn = [self.rngs[k].standard_normal((s, n, 3)) for k, s in zip(lead.index, lead.sizes, strict=True)]
        lead.atoms["noise"] = np.concatenate(drawn)

    def _step(self, step: int, forces: Array) -> tuple[Array, Array]:
        """One step of BAOAB (see `snnp.sampling.embedded`), with the density that belongs to it."""
        lead, dt = self.crowds[0], self.dt_fs * ASE_FS
        if step % _RESIZE == 0:
            self._resize(self._time(step))
        atoms = lead.atoms
        kelvin = np.array([self.drives[k][0].at(self._time(step)) for k in lead.index.tolist()])
        keep = math.exp(-1e-3 * self.settings.friction_per_ps * self.dt_fs)
        size = np.sqrt((1.0 - keep**2) * BOLTZMANN_EV_PER_K * kelvin[lead.owner][:, None] * atoms["masses"])
        momenta = atoms["momenta"] + 0.5 * dt * forces
        positions = atoms["positions"] + 0.5 * dt * momenta / atoms["masses"]
        momenta = keep * momenta + size * atoms["noise"][:, step % self.settings.check_steps]
        atoms["positions"] = positions + 0.5 * dt * momenta / atoms["masses"]
        atoms["momenta"] = momenta
        energies, forces = self._evaluate(step + 1)
        lead.atoms["momenta"] = lead.atoms["momenta"] + 0.5 * dt * forces.mean(axis=0)
        return energies, forces

    def _resize(self, time_ps: float) -> None:
        """Cells and positions at the density of the moment; what is open stays."""
        lead = self.crowds[0]
        periodic = np.isfinite(lead.each["first_volume"])
        if not periodic.any():
            return
        density = np.array([self.drives[k][1].at(time_ps) for k in lead.index.tolist()])
        volumes = np.abs(np.linalg.det(lead.each["cells"]))
        wanted = np.where(periodic, lead.each["first_volume"] / density, 1.0)
        factor = np.where(periodic, np.cbrt(wanted / np.where(periodic, volumes, 1.0)), 1.0)
        lead.each["cells"] = lead.each["cells"] * factor[:, None, None]
        lead.atoms["positions"] = lead.atoms["positions"] * factor[lead.owner][:, None]

    def _evaluate(self, step: int) -> tuple[Array, Array]:
        """[M, B] eV and [M, N, 3] eV/Å of all members; trajectories that one of them cannot compute end."""
        lead = self.crowds[0]
        while True:
            there = set(lead.index.tolist())
            found = []
            for crowd in self.crowds:
                crowd.atoms["positions"], crowd.each["cells"] = lead.atoms["positions"], lead.each["cells"]
                found.append(crowd.evaluate())
                if len(crowd) < len(there):
                    break
            failed = {k: reason for crowd in self.crowds for k, reason in crowd.failed.items()}
            left = there - set(failed)
            if len(left) == len(there):
                return np.stack([each.energy for each in found]), np.stack([each.forces for each in found])
            for k in there - left:
                self._end(k, step, f"blew up: {failed[k]}", "blown up")
            for crowd in self.crowds:
                crowd.keep(np.isin(crowd.index, sorted(left)))
            if not left:
                return np.zeros((len(self.crowds), 0)), np.zeros((len(self.crowds), 0, 3))

    def _look(self, step: int, energies: Array, forces: Array, last: bool) -> tuple[Array, Array]:
        """Harvest and end what has to; energies and forces of those that go on."""
        lead, settings = self.crowds[0], self.settings
        if not len(lead):
            return energies, forces
        ratios = self._ratios(energies, forces)
        kinetic = 0.5 * lead.sums((lead.atoms["momenta"] ** 2 / lead.atoms["masses"]).sum(axis=1))
        kelvin = kinetic / (1.5 * lead.sizes * BOLTZMANN_EV_PER_K)
        snapshots = [self._snapshot(b) for b in range(len(lead))]
        near = closeness(Structure.from_ase(snapshots)) if len(snapshots) else np.zeros(0)
        kept = np.ones(len(lead), dtype=bool)
        for b, k in enumerate(lead.index.tolist()):
            atoms, bath = snapshots[b], self.drives[k][0].at(self._time(step))
            reason = max(ratios, key=lambda name: ratios[name][b])
            ratio = float(ratios[reason][b])
            atoms.info |= {"temperature": float(kelvin[b]), "spread": round(ratio, 4), "step": step, "reason": reason}
            self._visit(k, step, atoms, ratio)
            if near[b] < settings.fused:
                end = f"atoms came close: {near[b]:.2f} of their covalent radii"
                self._end(k, step, end, "atoms close")
            elif not kelvin[b] < _EXPLODED * bath + _SLACK:
                self._end(k, step, f"exploded: {kelvin[b]:.0f} K", "exploded")
            else:
                if ratio > 1.0 and self._time(step) - self.last_harvest[k] >= settings.apart_ps - 1e-9:
                    self._harvest(k, step, atoms, reason)
                self.before[k] = atoms
                if ratio > settings.give_up:
                    self._end(k, step, f"uncertain: {reason} beyond {settings.give_up:g} times its limit")
                elif len(self.frames[k]) >= settings.most_frames_each:
                    self._end(k, step, "gave its frames")
                elif last:
                    self._end(k, step, "ran to its end")
            kept[b] = not self.found[k].end
        rows = kept[lead.owner]
        for crowd in self.crowds:
            crowd.keep(kept)
        return energies[:, kept], forces[:, rows]

    def _ratios(self, energies: Array, forces: Array) -> dict[str, Array]:
        """[B] spreads in units of their limits, by what is limited."""
        lead, settings = self.crowds[0], self.settings
        mean = forces.mean(axis=0)
        each = self.scales[1] * np.sqrt(((forces - mean) ** 2).sum(axis=2).mean(axis=0))
        own = lead.sums((mean**2).sum(axis=1)) / lead.sizes
        scale = np.sqrt(settings.force_scale**2 + own)
        return {
            "energy": self.scales[0] * energies.std(axis=0) / lead.sizes / settings.energy_limit,
            "forces": lead.sums(each) / lead.sizes / (settings.force_limit * scale),
            "largest force": lead.largest(each) / (settings.largest_force_limit * scale),
        }

    def _snapshot(self, b: int) -> Atoms:
        lead = self.crowds[0]
        k = int(lead.index[b])
        own = slice(int(lead.starts[b]), int(lead.starts[b] + lead.sizes[b]))
        start = self.starts[k]
        cell = lead.each["cells"][b] if start.pbc.any() else None
        return Atoms(start.numbers, lead.atoms["positions"][own].copy(), cell=cell, pbc=start.pbc)

    def _visit(self, k: int, step: int, atoms: Atoms, ratio: float) -> None:
        found, settings = self.found[k], self.settings
        density = density_of(atoms)
        atoms.info |= {"trajectory": found.number} | ({"density": density} if math.isfinite(density) else {})
        looks = round(1000.0 * settings.picoseconds / self.dt_fs) // settings.check_steps
        if step // settings.check_steps % max(1, looks // _VISITED) == 0:
            moment = round(self._time(step), 4), round(atoms.info["temperature"], 1)
            found.visited.append((*moment, round(density, 4) if math.isfinite(density) else None, round(ratio, 4)))

    def _harvest(self, k: int, step: int, atoms: Atoms, reason: str) -> None:
        frame = atoms.copy()
        frame.info |= {"reason": reason, "config_type": f"active {reason}"}
        self.frames[k].append(frame)
        self.found[k].reasons.append(reason)
        self.last_harvest[k] = self._time(step)

    def _end(self, k: int, step: int, end: str, harvest: str | None = None) -> None:
        """The end of a trajectory; with `harvest`, the frame of the look before is what the reference should see."""
        found, before = self.found[k], self.before[k]
        found.end, found.steps, found.picoseconds = end, step, round(self._time(step), 4)
        if harvest is not None and before is not None:
            since = self._time(before.info["step"]) - self.last_harvest[k]
            if since > 0.0 and len(self.frames[k]) < self.settings.most_frames_each:
                self._harvest(k, before.info["step"], before, harvest)


class _Work:
    """The files of a sampling: portions as they finish, and in the end the two that stay."""

    def __init__(self, folder: Path, key: str, settings: SamplingSettings) -> None:
        self.folder, self.key, self.settings = folder, key, settings
        self.parts = folder / "portions"

    def finished(self) -> Sampled | None:
        """What an earlier call has written."""
        values = self._read(self.folder / _TRAJECTORIES)
        if values is None:
            return None
        path = self.folder / _FRAMES
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != values["frames_sha256"]:
            raise InputError(
                f"'{path}' is not what '{self.folder / _TRAJECTORIES}' says was written; remove both to sample again."
            )
        trajectories = [Trajectory(**each) for each in values["trajectories"]]
        return Sampled(_read_frames(path), trajectories, values["harvested"], values["seconds"], path)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            key = values["key"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"'{path}' is damaged; remove it to run its trajectories again.") from None
        if key != self.key:
            raise InputError(
                f"'{path}' is of a sampling with other models, settings, structures or another seed; name another "
                "folder, or remove it."
            )
        return values

    def portion(self, number: int) -> _Part | None:
        """A portion that is finished."""
        path = self.parts / f"{number:05d}.json"
        values = self._read(path)
        if values is None:
            return None
        trajectories = [Trajectory(**each) for each in values["trajectories"]]
        return _Part(trajectories, _read_frames(path.with_suffix(".extxyz")), values["seconds"])

    def keep(self, number: int, part: _Part) -> None:
        """Write a portion that is finished: its frames, then the file whose presence says so."""
        self.parts.mkdir(exist_ok=True)
        path = self.parts / f"{number:05d}.json"
        _write_frames(path.with_suffix(".extxyz"), part.frames)
        values = {"key": self.key, "seconds": part.seconds, "trajectories": [asdict(t) for t in part.trajectories]}
        write_atomically(path, json.dumps(values).encode())

    def finish(self, found: Sampled) -> Sampled:
        """Write the two files that stay, and take the portions away."""
        _write_frames(found.path, found.frames)
        sha256 = hashlib.sha256(found.path.read_bytes()).hexdigest()
        values = {
            "key": self.key,
            "settings": self.settings.model_dump(mode="json"),
            "harvested": found.harvested,
            "frames": len(found.frames),
            "frames_sha256": sha256,
            "reasons": found.reasons,
            "ends": found.ends,
            "seconds": found.seconds,
            "trajectories": [asdict(each) for each in found.trajectories],
        }
        write_atomically(self.folder / _TRAJECTORIES, (json.dumps(values) + "\n").encode())
        shutil.rmtree(self.parts, ignore_errors=True)
        return found


def _write_frames(path: Path, frames: Sequence[Atoms]) -> None:
    """With all digits, so that what is read again is the same."""
    sources = [f"{path.stem}#{k}" for k in range(len(frames))]
    lines = xyz_lines(from_atoms(frames, sources, Keys(), labelled=False)) if frames else []
    write_atomically(path, "".join(lines).encode())


def _read_frames(path: Path) -> list[Atoms]:
    try:
        return read_images(path) if path.stat().st_size else []
    except (OSError, DataError) as error:
        raise InputError(
            f"the frames of '{path}' cannot be read ({error}); remove its folder to sample again."
        ) from None
