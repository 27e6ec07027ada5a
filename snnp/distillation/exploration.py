"""Where the student goes by itself: its own dynamics, whose frames the teacher labels next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from snnp.analysis.stability import time_step_for
from snnp.data import Frames
from snnp.data.read import read_images
from snnp.data.reference import are_isolated_atoms
from snnp.distillation.assemblies import MoleculePool
from snnp.distillation.crystals import Crystal, frames_of, melting
from snnp.distillation.defects import pool
from snnp.distillation.molecules import overlapping
from snnp.errors import InputError, TrainingError
from snnp.models.potential import Potential
from snnp.neighbours import shortest_distances
from snnp.sampling import MDSettings, run_md
from snnp.structure import Structure

__all__ = ["Start", "crystal_starts", "explore", "molecule_starts", "shaken_copies"]

Start = tuple[str, Atoms, float]
"""Kind, atoms, temperature in K."""

_TEMPERATURES = (0.4, 0.8, 1.2, 2.0, 3.0)  # of that of the crystal, about that of melting
_MOLECULE_RUNS = {
    "turned": (0.55, 150.0, 1200.0),
    "dimer": (0.15, 100.0, 600.0),
    "cluster": (0.12, 100.0, 500.0),
    "liquid": (0.18, 200.0, 600.0),
}
"""Kind -> share of the runs, and temperatures (K) between which that of each is drawn."""
_PICOSECONDS, _MOLECULE_PICOSECONDS, _FRAMES = 2.0, 1.0, 25
_SHAKEN, _STRAINED = (0.005, 0.05), 0.04  # of the shortest distance; norm of the strain
_REACH = 4.0  # Å, where there is none shorter
_CLOSEST = 0.5  # of the shortest distance at the start: closer frames are the student's mistakes, of which few suffice


def crystal_starts(crystals: Sequence[Crystal], number: int, seed: int) -> list[Start]:
    """Crystals, their vacancies and surfaces, and random packings, at temperatures of the solid and the liquid."""
    rng = np.random.default_rng([seed, 3])
    starts = pool(crystals, 12 * number, seed + 1000)
    kinds = {"strained": 0.3, "random": 0.4, "vacancy": 0.1, "surface": 0.2}
    temperature = melting(crystals)
    found: list[Start] = []
    for kind, share in kinds.items():
        rows = [row for row in range(len(starts)) if starts.groups[row] == kind and starts.counts[row] >= 8]
        for k in rng.permutation(rows)[: max(1, round(share * number))].tolist():
            atoms = starts[k].structure.to_ase()[0]
            factor = _TEMPERATURES[int(rng.integers(len(_TEMPERATURES)))]
            found.append((f"md {kind}", atoms, max(factor * temperature, 50.0)))
    return found


def molecule_starts(molecules: MoleculePool, number: int, seed: int) -> list[Start]:
    """Molecules alone and together at many temperatures, as many as give twice the `number` of frames."""
    rng = np.random.default_rng([seed, 5])
    runs = max(len(_MOLECULE_RUNS), round(2.0 * number / _FRAMES))
    found: list[Start] = []
    for kind, (share, coldest, hottest) in _MOLECULE_RUNS.items():
        for atoms in molecules.structures(kind, max(1, round(share * runs)), rng):
            found.append((f"md {kind}", atoms, float(np.exp(rng.uniform(np.log(coldest), np.log(hottest))))))
    return found


def shaken_copies(data: Frames, number: int, seed: int) -> Frames:
    """Copies of the frames, one frame after the other, strained (where periodic) and with all atoms displaced.

    They lie so near that models which learned the data still agree about them, and so far that these models differ:
    what several of them say there in the mean is what one of them can learn.
    """
    rng = np.random.default_rng([seed, 6])
    data = data.take(~are_isolated_atoms(data))
    spacings = shortest_distances(data.structure(), _REACH).clamp_max(_REACH).tolist()
    images: list[tuple[str, Atoms]] = []
    while len(images) < number and len(data):
        row = len(images) % len(data)
        (atoms,) = data[row].structure.to_ase()
        if atoms.pbc.any():
            strain = rng.standard_normal((3, 3))
            strain = (strain + strain.T) * rng.uniform(0.0, _STRAINED) / np.linalg.norm(strain + strain.T)
            strain[:, ~atoms.pbc] = strain[~atoms.pbc] = 0.0
            atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        size = spacings[row] * np.exp(rng.uniform(*np.log(_SHAKEN)))
        atoms.positions += size * rng.standard_normal(atoms.positions.shape)
        images.append((f"shaken {data.groups[row] or ''}".strip(), atoms))
    return frames_of(images, "copies")


def explore(
    student: Potential,
    starts: Sequence[Start],
    seed: int,
    name: str,
    report: Callable[[int, int, int], None] = lambda done, total, broken: None,
) -> tuple[Frames, int]:
    """Frames of short runs of the student, and how many runs blew up.

    What a run gave before it blew up counts, too: there the teacher can say what is wrong. The first frame in which
    atoms have fused and all after it are left out.

    Raises:
        TrainingError: if no frame is left.
    """
    images: list[tuple[str, Atoms]] = []
    broken, why = 0, ""
    for done, (kind, atoms, kelvin) in enumerate(starts):
        frames, failure = _run(student, atoms, kelvin, seed + done)
        distances = shortest_distances(Structure.from_ase([atoms, *frames]), student.cutoff).clamp_max(student.cutoff)
        for frame, fused in zip(frames, (distances[1:] < _CLOSEST * distances[0]).tolist(), strict=True):
            if fused or (kind.removeprefix("md ") in _MOLECULE_RUNS and overlapping(frame)):
                break
            images.append((kind, frame))
        if failure is not None:
            broken, why = broken + 1, f"; the last: {failure}"
        report(done + 1, len(starts), broken)
    if not images:
        raise TrainingError(
            f"no run of the student gave a frame ({broken} blew up{why}); raise the budget, or its epochs."
        )
    return frames_of(images, name), broken


def _run(student: Potential, atoms: Atoms, kelvin: float, seed: int) -> tuple[list[Atoms], str | None]:
    """Frames, and what ended the run early, if anything did."""
    dt = time_step_for(atoms)
    # Free molecules are hot at once and know no slow motion that others do not have, too.
    steps = round(1000.0 * (_PICOSECONDS if atoms.pbc.any() else _MOLECULE_PICOSECONDS) / dt)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.extxyz"
        settings = MDSettings(
            temperature_k=kelvin,
            friction_per_ps=10.0,
            steps=steps,
            dt_fs=dt,
            seed=seed,
            trajectory=path,
            trajectory_interval=max(1, steps // _FRAMES),
        )
        try:
            run_md(student, atoms, settings, engine="native")
            failure = None
        except InputError as error:
            failure = str(error)
        return (read_images(path)[1:] if path.is_file() else []), failure
