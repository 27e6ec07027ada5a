"""A model on trial: the promises of `snnp.testing`, and at work.

What a broken promise means is said, and where to look. Then atoms are pushed together, the energy must be conserved in
short runs, and the cost grow with the number of atoms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import atomic_numbers, covalent_radii

from snnp.analysis.properties import GROUND_STATES, Compression, holes_in_words, lattice_constants
from snnp.analysis.stability import StabilityRun, crystal, time_step_for, watch_run
from snnp.data import Frames
from snnp.errors import SnnpError
from snnp.models.potential import Potential
from snnp.report import Finding, Severity
from snnp.sampling.cost import measure_cost
from snnp.sampling.run import MDProgress, find_entry_point, relax
from snnp.sampling.settings import MDSettings
from snnp.structure import Structure
from snnp.testing import CHECKS, ContractError

__all__ = ["CONTRACT_CHECKS", "Dimer", "Run", "Scaling", "check_compression", "check_contract", "check_dimers"]
__all__ += ["check_numbers", "check_runs", "check_scaling", "dimer_curves", "measure_scaling", "ordinary_structures"]
__all__ += ["relaxed_molecule", "short_runs"]

_POINTS = 240
_CLOSEST = 0.3  # of the sum of covalent radii
_SHORT, _TOO_SHORT = 0.75, 0.55  # of it: no bond of two of these atoms is shorter; triple bonds come close
_FALL = 0.1  # eV; smaller ripples of a repulsion hold nobody
_MOST_HOLES = 6  # named in a message
_REACHABLE = 10.0  # eV: hot matter gets over less, and so do searches with random structures

_STEPS, _KELVIN = 500, 300.0
_ATOMS = 32
_MOST_RUNS = 4
_MOLECULES = ("CH3CONH2", "CH3CH2OH", "CH3NO2", "C2H6", "H2CO", "H2O", "NH3", "CH4", "CO2", "N2", "O2", "H2")
# meV/atom over the run, beyond the noise: a thermal energy of 300 K is 39.
_DRIFT_WARNING, _DRIFT_ERROR = 0.3, 3.0
_SIZES = (2, 3, 4, 6, 8, 10)  # fcc cells along each axis: 32 to 4,000 atoms
_ENOUGH_SECONDS = 0.5
_STEEP = 1.35

_DERIVATIVES = ("forces", "stress")
_NAMES = {name: name.replace("_", " ") for name in CHECKS}
CONTRACT_CHECKS = ("numbers", *_NAMES.values())
"""Names of the checks in this module."""

_SPACING = 2.3  # mean covalent radii between neighbours: loose enough for models that were trained on anything
_RATTLE = 0.06  # of the spacing

# What a model's own code may raise; a patient that screams is examined all the same.
_MODEL_FAULTS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

# What it means, and how to mend it.
_ADVICE = {
    "permutation": (
        "Energy or forces depend on the order of the atoms, which is no physics.",
        "Sum over neighbours and atoms; look for results that are stored by position in the neighbour list.",
    ),
    "rotation": (
        "Energy changes when the structure is turned or mirrored: molecules would start to spin by themselves.",
        "Build features from distances and angles (or equivariant products), never from coordinates.",
    ),
    "translation": (
        "Energy changes when the structure is moved: momentum is not conserved.",
        "Use differences of positions only.",
    ),
    "conservation": (
        "Forces do not sum to zero, there is a net torque, or the stress is not symmetric; simulations drift and heat.",
        "Every pair must act with equal and opposite force; use `sum_forces` and `sum_stress` of the base class.",
    ),
    "extensivity": (
        "A supercell is not the sum of its parts: energies per atom depend on the size of the cell.",
        "Look for normalisation over all atoms (means, batch statistics) and for images that are left out.",
    ),
    "periodicity": (
        "The choice of cell or image changes the result; wrapping atoms during a simulation would change forces.",
        "Use vectors from the neighbour list with their shifts; never wrap or compare raw positions.",
    ),
    "forces": (
        "Forces are not the derivative of the energy: dynamics does not conserve energy, relaxation stops elsewhere.",
        "Compare the analytic gradient with automatic differentiation term by term.",
    ),
    "stress": (
        "Stress is not the derivative of the energy with strain: constant-pressure runs find the wrong volume.",
        "Stress is the sum of r dE/dr over pairs divided by the volume; check the sign and the images.",
    ),
    "analytic gradients": (
        "Hand-written gradients disagree with automatic differentiation.",
        "Compare both term by term; training and simulation would see different models.",
    ),
    "smoothness": (
        "Energy or forces jump as an atom moves, usually where it crosses the cutoff: energy is not conserved in "
        "molecular dynamics.",
        "Multiply radial functions by a switch whose value and slope vanish at the cutoff.",
    ),
    "batch": (
        "A structure gives another result in a batch than alone, so training and use differ.",
        "Look for padding that takes part in sums, and for normalisation over the batch.",
    ),
    "isolated atoms": (
        "An atom without neighbours does not have one fixed energy, or feels a force.",
        "E0 must be the whole energy of an atom alone; let all features vanish without neighbours.",
    ),
    "empty": ("An empty batch fails, which happens in parallel runs.", "Handle zero atoms and zero pairs."),
    "unknown element": (
        "Elements that the model was not trained on are computed as if they were others.",
        "Call `self.species(structure)`, which raises an error that names the element.",
    ),
    "precision": (
        "float32 differs from float64 by more than rounding: forces are noisy in fast simulations.",
        "Keep E0 and sums of energies in float64; look for differences of large numbers and steep functions.",
    ),
    "longer list": (
        "Pairs beyond the cutoff change the result: neighbour lists with a skin, as in dynamics, are not safe.",
        "Mask pairs beyond the cutoff, or let all functions be zero there.",
    ),
    "save load": (
        "The stored model is not the model: what is published differs from what was measured.",
        "Register every parameter and constant; put every option into the configuration.",
    ),
    "export": (
        "The exported TorchScript module differs from the model.",
        "Use the exporter of this version, and report the case: export is tested for every bundled model.",
    ),
}
# Checks that some models need not pass, and what it means that they are refused.
_REFUSED: dict[str, tuple[Severity, str, str]] = {
    "export": (
        "note",
        "Programs that read TorchScript files cannot run this model; ASE and OpenMM's Python forces can.",
        "Nothing, unless such a program is needed; then distil the model into an s-NNP.",
    ),
    "save load": (
        "warning",
        "The model cannot be kept as a folder, so it cannot be published or loaded by name.",
        "Add the class to `snnp.models.families`, with its configuration.",
    ),
}


def check_numbers(model: Potential) -> Iterator[Finding]:
    """Parameters and E0 must be finite."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    broken = [name for name, value in floats.items() if not bool(torch.isfinite(value).all())]
    broken += [f"E0 of {symbol}" for symbol, energy in model.reference_energies.items() if not np.isfinite(energy)]
    if broken:
        yield Finding(
            "numbers",
            "error",
            f"NaN or infinite numbers in {', '.join(broken[:5])}",
            "Every result of the model is NaN.",
            "Training has diverged or the file is damaged; go back to an earlier checkpoint, or fetch it again.",
        )


def _spacing(model: Potential) -> float:
    """Å between neighbours."""
    return _SPACING * float(np.mean([covalent_radii[atomic_numbers[symbol]] for symbol in model.elements]))


def ordinary_structures(model: Potential) -> dict[str, Structure]:
    """A rattled bulk crystal, a slab and a molecule of the model's elements, with bonds of usual length."""
    rng, spacing = np.random.default_rng(7), _spacing(model)
    crystal = bulk("Cu", "fcc", a=np.sqrt(2.0) * spacing, cubic=True)
    slab = crystal.repeat((1, 1, 2))
    slab.center(vacuum=1.5 * model.cutoff, axis=2)
    slab.pbc = (True, True, False)
    tetrahedron = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3.0)
    molecule = Atoms("X5", tetrahedron * spacing)
    kinds = {"bulk": crystal, "slab": slab, "molecule": molecule}
    for atoms in kinds.values():
        symbols = [model.elements[k % len(model.elements)] for k in range(len(atoms))]
        atoms.symbols = list(rng.permutation(symbols))
        atoms.positions += rng.normal(0.0, _RATTLE * spacing, atoms.positions.shape)
    return {name: Structure.from_ase(each) for name, each in kinds.items()}


def check_contract(model: Potential) -> Iterator[Finding]:
    """Every check of `snnp.testing`; forces and stress of a bulk crystal, a slab and a molecule besides."""
    ordinary = ordinary_structures(model)
    for name, check in CHECKS.items():
        title, others = _NAMES[name], ordinary if name in _DERIVATIVES else {}
        for where in ("small test structures", *others):
            said, refused = "", ""
            try:
                check(model, [others[where]] if where in others else None)
            except ContractError as error:
                said = str(error).removeprefix(f"{title}: ").rstrip(".")
            except SnnpError as error:
                refused = str(error)
            except _MODEL_FAULTS as error:
                said = f"the model fails with {type(error).__name__}" + (f": {error}".rstrip(".") if str(error) else "")
            if refused and title in _REFUSED:
                severity, meaning, cure = _REFUSED[title]
                yield Finding(title, severity, refused, meaning, cure)
            elif refused or said:
                message = f"{said} ({where})" if said else f"the check could not run: {refused}"
                yield Finding(title, "error", message, *_ADVICE[title])
            else:
                continue
            break  # the other structures would say the same


@dataclass(frozen=True)
class Dimer:
    """One pair of elements: energy [n] in eV, relative to the atoms far apart, at distances [n] in Å, ascending."""

    pair: tuple[str, str]
    distance: np.ndarray
    energy: np.ndarray
    hole: float | None  # Å, where the energy is lower than further out; None where atoms repel each other ever more
    barrier: float  # eV above the well outside
    deeper: float  # eV by which the hole lies below that well


def dimer_curves(model: Potential) -> list[Dimer]:
    """Energies of all pairs of elements from 0.3 times the sum of their covalent radii to the cutoff."""
    # Not E0: without neighbours, a network may still say something.
    atoms = Structure.from_ase([Atoms(symbol) for symbol in model.elements])
    alone = dict(zip(model.elements, model.compute(atoms, forces=False).energy.tolist(), strict=True))
    result = []
    for a, b in itertools.combinations_with_replacement(model.elements, 2):
        numbers = np.array([atomic_numbers[a], atomic_numbers[b]])
        contact = float(covalent_radii[numbers].sum())
        r = np.geomspace(max(_CLOSEST * contact, 0.15), model.cutoff, _POINTS)
        positions = np.zeros((_POINTS, 2, 3))
        positions[:, 1, 0] = r
        pairs = Frames.conformers(numbers, positions).structure()
        energy = model.compute(pairs, forces=False).energy.cpu().numpy() - alone[a] - alone[b]
        result.append(Dimer((a, b), r, energy, *_hole(r, energy, contact)))
    return result


def _hole(r: np.ndarray, energy: np.ndarray, contact: float) -> tuple[float | None, float, float]:
    """Distance of the hole, barrier and depth below the well outside."""
    if not np.isfinite(energy).all():
        return None, 0.0, 0.0
    # The well: the lowest place where bonds may be, and downhill from there to the true bottom of it.
    outside = np.flatnonzero(r >= _SHORT * contact)
    start = int(outside[energy[outside].argmin()]) if len(outside) else len(r) - 1
    while start > 0 and energy[start - 1] < energy[start]:
        start -= 1
    if r[start] < _TOO_SHORT * contact:
        return float(r[start]), 0.0, float(energy[outside].min(initial=0.0) - energy[start])
    well = min(float(energy[start]), 0.0)
    inward = energy[: start + 1][::-1]
    fall = np.where(r[: start + 1][::-1] < _SHORT * contact, np.maximum.accumulate(inward) - inward, 0.0)
    worst = int(fall.argmax())
    if fall[worst] < _FALL:
        return None, 0.0, 0.0
    return float(r[: start + 1][::-1][worst]), float(inward[: worst + 1].max()) - well, well - float(inward[worst])


def check_dimers(dimers: list[Dimer]) -> Iterator[Finding]:
    """Energies that are not finite, and attraction at distances where atoms must repel each other."""
    broken = ["-".join(each.pair) for each in dimers if not np.isfinite(each.energy).all()]
    if broken:
        yield Finding(
            "dimers",
            "error",
            f"the energy of {', '.join(broken)} is not finite at some distance",
            "A simulation in which two atoms come close ends with NaN.",
            "Look for divisions by zero and overflowing exponentials at short distance.",
        )
    holes = [each for each in dimers if each.hole is not None]
    for severe in (True, False):
        some = [each for each in holes if (each.deeper > 0.0 and each.barrier < _REACHABLE) == severe]
        if not some:
            continue
        said = "; ".join(
            f"{'-'.join(each.pair)} at {each.hole:.2f} Å behind a barrier of {each.barrier:.2g} eV"
            for each in sorted(some, key=lambda each: each.barrier)[:_MOST_HOLES]
        )
        more = f" and {len(some) - _MOST_HOLES} more pairs" if len(some) > _MOST_HOLES else ""
        yield Finding(
            "dimers",
            "error" if severe else "warning",
            f"two atoms attract each other at short distance: {said}{more}",
            "Atoms that get that close fuse and release energy: hot or random structures collapse."
            if severe
            else "The repulsion has a dent at short distance, too high or too shallow for atoms to stay in it; "
            "dynamics does not get there, searches with random structures may.",
            "Add a short-range repulsion to the model (ZBL: `model.repulsion` in the training file), or structures "
            "with short distances to the training data.",
        )


def check_compression(scan: Sequence[Compression]) -> Iterator[Finding]:
    """Crystals, or molecules, whose energy falls when they are compressed."""
    for solid in (True, False):
        holes = holes_in_words([each.to_dict() for each in scan if each.solid == solid])
        if holes:
            more = f"; and {len(holes) - _MOST_HOLES} more" if len(holes) > _MOST_HOLES else ""
            yield Finding(
                "compression",
                "error" if solid else "warning",
                f"matter implodes: {'; '.join(holes[:_MOST_HOLES])}{more}",
                "Under pressure, or where hot atoms come close, all atoms fall together and release energy: dynamics "
                "ends in nonsense, and equations of state are wrong beyond the barrier."
                if solid
                else "A molecule that is squeezed collapses; if nothing like it was trained on, that is no surprise.",
                "Train on compressed structures, if need be labelled by a repulsive potential, and let the short-range "
                "repulsion (`model.repulsion`) begin where the data end.",
            )


@dataclass(frozen=True)
class Run:
    """A short run at constant energy of what has the name, a crystal of an element if `solid`."""

    name: str
    solid: bool
    seen: StabilityRun
    picoseconds: np.ndarray  # [n]
    energy: np.ndarray  # [n] meV/atom from the start

    @property
    def drift(self) -> float:
        """meV/atom over the run that the noise does not explain."""
        slope, error = self.seen.drift_mev_per_atom_per_ns, self.seen.drift_error
        if slope is None or error is None:
            return 0.0
        return max(0.0, abs(slope) - 3.0 * error) * self.seen.picoseconds / 1000.0


@dataclass(frozen=True)
class Scaling:
    """[n] atoms, seconds of one core per energy and forces, and the exponent for large systems."""

    atoms: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """d log(time) / d log(atoms) over the larger half."""
        half = len(self.atoms) // 2
        slope, _ = np.polyfit(np.log(self.atoms[half:]), np.log(self.seconds[half:]), 1)
        return float(slope)


def relaxed_molecule(model: Potential) -> dict[str, Atoms]:
    """A common molecule of the model's elements by name, at rest in its eyes; none if there is none."""
    names = [name for name in _MOLECULES if set(molecule(name).symbols) <= set(model.elements)]
    # Measured geometries are strained in the eyes of a model, which would heat the run.
    return {name: relax(model, molecule(name), steps=200).atoms for name in names[:1]}


def short_runs(model: Potential) -> list[Run]:
    """Half a picosecond or more at constant energy, 300 K: crystals at the model's constants, else a molecule."""
    solids = [each for each in lattice_constants(model).items() if each[0] in GROUND_STATES][:_MOST_RUNS]
    systems = {f"{symbol} crystal": crystal(symbol, a, _ATOMS) for symbol, a in solids}
    if not systems:
        systems = {f"{name} molecule": atoms for name, atoms in relaxed_molecule(model).items()}
    dtype = "float64" if str(model.dtype) == "torch.float64" else "float32"
    engine, result = find_entry_point("snnp.md_engines", "ase"), []
    for name, atoms in systems.items():
        settings = MDSettings(
            ensemble="nve", temperature_k=_KELVIN, steps=_STEPS, dt_fs=time_step_for(atoms), seed=1, dtype=dtype
        )
        kept: list[tuple[float, float]] = []

        def keep(progress: MDProgress, kept: list[tuple[float, float]] = kept) -> None:
            kept.append((progress.sample.time_ps, progress.sample.total_energy_ev))

        seen, _ = watch_run(model, atoms, settings, engine, report=keep)
        times, energies = np.array(kept).T
        result.append(Run(name, bool(solids), seen, times, (energies - energies[0]) * 1000.0 / len(atoms)))
    return result


def check_runs(runs: list[Run]) -> Iterator[Finding]:
    """Runs that blow up or do not conserve energy."""
    for run in runs:
        if run.seen.failure is not None:
            untrained = "" if run.solid else "; if nothing like it was trained on, that is no surprise"
            yield Finding(
                "dynamics",
                "error" if run.solid else "warning",
                f"{run.name}, constant energy from {_KELVIN:g} K: {run.seen.failure} "
                f"after {run.seen.picoseconds:.2f} ps",
                f"The model cannot keep this together{untrained}.",
                "Add hot structures with short distances to the training data, and a short-range repulsion.",
            )
        elif run.drift > _DRIFT_WARNING:
            yield Finding(
                "dynamics",
                "error" if run.drift > _DRIFT_ERROR else "warning",
                f"{run.name}: the total energy drifts by {run.drift:.2g} meV/atom within {run.seen.picoseconds:.2g} ps",
                "Energy is not conserved: long runs heat up or cool down, whatever the thermostat says.",
                "If the checks of forces, smoothness and precision pass, the energy surface is rougher than the time "
                "step resolves: train with smoother functions, or use a smaller step.",
            )


def measure_scaling(model: Potential) -> Scaling:
    """Seconds of one core per call for cells of 32 to 4,000 atoms, as far as half a second goes."""
    a, rng, result = np.sqrt(2.0) * _spacing(model), np.random.default_rng(3), Scaling()
    for size in _SIZES:
        atoms = bulk("Cu", "fcc", a=a, cubic=True).repeat(size)
        atoms.symbols = [model.elements[k % len(model.elements)] for k in range(len(atoms))]
        atoms.positions += rng.normal(0.0, 0.03 * a, atoms.positions.shape)
        result.atoms.append(len(atoms))
        result.seconds.append(1e-6 * len(atoms) * measure_cost(model, atoms, 1)["cpu_us_per_atom"])
        if result.seconds[-1] > _ENOUGH_SECONDS:
            break
    return result


def check_scaling(scaling: Scaling) -> Iterator[Finding]:
    """Cost must grow in proportion to the number of atoms."""
    if len(scaling.atoms) >= 4 and scaling.exponent >= _STEEP:
        yield Finding(
            "size scaling",
            "warning",
            f"the cost of energy and forces grows with the number of atoms to the power {scaling.exponent:.2f} "
            f"({scaling.seconds[-1]:.2g} s for {scaling.atoms[-1]:,} atoms)",
            "Large systems are out of reach: a potential with a cutoff should cost the same per atom at any size.",
            "Look for matrices over all pairs of atoms where a neighbour list would do.",
        )
