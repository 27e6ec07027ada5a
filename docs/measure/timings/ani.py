"""ANI beside torchani: the same network and weights (ANI-2x's form), energy and forces, one core, one interleaved run.

    OMP_NUM_THREADS=1 python docs/measure/timings/ani.py [--repeats 7] [--json FILE]

Needs torchani (`pip install torchani==2.9.0`), which runs eagerly: its CPU path has no compiled kernels. Every repeat
runs every case once; the table holds medians of process CPU time. Pairs are found within the timed call on both sides,
with each of torchani's searches that takes the system; "list kept" is snnp with a neighbour list made before, as in
dynamics. torchani differentiates the mean of an ensemble; snnp each network, for the spread of the forces, or with
`force_spread = False` ("mean only") the mean as well.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["TORCHANI_NO_WARN_EXTENSIONS"] = "1"

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from torchani.arch import Assembler

from snnp.models import ANI, ANIConfig, Ensemble
from snnp.models.ani.aev import AEVAngularConfig, AEVConfig, AEVRadialConfig
from snnp.neighbours import neighbour_list
from snnp.structure import Structure

SYMBOLS = ("H", "C", "N", "O", "S", "F", "Cl")
MOLECULES = ("C6H6", "CH3CH2OH", "C5H5N", "CH3COCH3", "isobutane", "C4H4O", "CH3CONH2", "trans-butane")
SEARCHES = ("all_pairs", "cell_list", "adaptive")


@dataclass
class Case:
    """One thing to time."""

    system: str
    networks: int
    program: str
    n_atoms: int
    call: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """µs per atom and call."""
        return 1e6 * statistics.median(self.seconds) / self.n_atoms


def molecules(n: int) -> list[Atoms]:
    """A batch of small organic molecules with 0.05 Å of noise."""
    rng = np.random.default_rng(1)
    frames = [molecule(MOLECULES[k % len(MOLECULES)]) for k in range(n)]
    for atoms in frames:
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
    return frames


def water(n: int) -> Atoms:
    """n molecules at 1 g/cm³, randomly turned, on a jittered grid."""
    side = (n * 18.015 / 0.602214) ** (1 / 3)
    points = int(np.ceil(n ** (1 / 3)))
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(*[np.arange(points)] * 3, indexing="ij"), -1).reshape(-1, 3)
    centres = (grid[rng.permutation(len(grid))[:n]] + 0.5) * (side / points) + rng.normal(0, 0.1, (n, 3))
    angle = np.deg2rad(104.52)
    shape = 0.9572 * np.array([[0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]])
    turned = [shape @ np.linalg.qr(rng.normal(size=(3, 3)))[0].T + centre for centre in centres]
    return Atoms("OHH" * n, np.concatenate(turned), cell=[side] * 3, pbc=True)


def torchani_model(networks: int, search: str) -> Any:
    """ANI-2x's form with random weights."""
    torch.manual_seed(0)
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(SYMBOLS)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x", strategy="pyaev")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist(search)
    assembler.set_zeros_as_self_energies()
    model = assembler.assemble(networks)
    model.requires_grad_(False)
    return model


def same_model(theirs: Any) -> ANI | Ensemble:
    """The same networks here, in float32."""
    radial, angular = theirs.aev_computer.radial, theirs.aev_computer.angular
    aev = AEVConfig(
        radial=AEVRadialConfig(eta=float(radial.eta), shifts=tuple(radial.shifts.tolist()), cutoff=radial.cutoff),
        angular=AEVAngularConfig(
            eta=float(angular.eta),
            zeta=float(angular.zeta),
            shifts=tuple(angular.shifts.tolist()),
            sections=tuple(angular.sections.tolist()),
            cutoff=angular.cutoff,
        ),
    )
    members = getattr(theirs.neural_networks, "members", [theirs.neural_networks])
    models = []
    for member in members:
        hidden = {symbol: tuple(layer.out_features for layer in member.atomics[symbol].layers) for symbol in SYMBOLS}
        model = ANI(ANIConfig(elements=SYMBOLS, aev=aev, hidden=hidden)).float()
        for symbol in SYMBOLS:
            stored = [*member.atomics[symbol].layers, member.atomics[symbol].final_layer]
            for ours, layer in zip(model.network(symbol).layers, stored, strict=True):
                ours.weight.data = layer.weight.data.clone()
                ours.bias.data = torch.zeros_like(ours.bias) if layer.bias is None else layer.bias.data.clone()
        models.append(model)
    return models[0] if len(models) == 1 else Ensemble(models)


def without_spread(model: Ensemble) -> Ensemble:
    """The same networks in an ensemble that differentiates their mean only."""
    mean = Ensemble(model.potentials)
    mean.force_spread = False
    return mean


def torchani_call(model: Any, frames: list[Atoms]) -> Callable[[], torch.Tensor]:
    """Forces [N, 3] of a batch, padded as torchani takes it."""
    largest = max(len(atoms) for atoms in frames)
    numbers = torch.full((len(frames), largest), -1)
    positions = torch.zeros(len(frames), largest, 3)
    for b, atoms in enumerate(frames):
        numbers[b, : len(atoms)] = torch.from_numpy(atoms.numbers)
        positions[b, : len(atoms)] = torch.from_numpy(atoms.positions).float()
    positions.requires_grad_()
    periodic = bool(frames[0].pbc.any())
    cell = torch.from_numpy(frames[0].cell.array).float() if periodic else None
    pbc = torch.tensor([True] * 3) if periodic else None
    real = numbers >= 0

    def call() -> torch.Tensor:
        energies = model((numbers, positions), cell=cell, pbc=pbc).energies
        return -torch.autograd.grad(energies.sum(), positions)[0][real]

    return call


def compared(system: str, frames: list[Atoms], networks: int) -> list[Case]:
    """Cases of one system, once their forces have been seen to agree."""
    n_atoms, structure = sum(len(atoms) for atoms in frames), Structure.from_ase(frames)
    model = same_model(torchani_model(networks, "all_pairs"))
    kept = neighbour_list(structure, model.cutoff)
    calls: dict[str, Callable[[], Any]] = {
        "snnp": lambda: model.compute(structure).forces,
        "snnp, list kept": lambda: model.compute(structure, kept).forces,
    }
    if isinstance(model, Ensemble):
        mean = without_spread(model)
        calls["snnp, mean only"] = lambda: mean.compute(structure).forces
    for search in SEARCHES if len(frames) == 1 else SEARCHES[:1]:
        calls[f"torchani {search}"] = torchani_call(torchani_model(networks, search), frames)
    wanted = calls["torchani all_pairs"]().double()
    for program, call in calls.items():
        worst = float((call().double() - wanted).abs().max() / wanted.abs().max())
        print(f"{system}, {networks} networks, {program}: forces differ from torchani's by {worst:.1e} of the largest")
        if worst > 1e-4:
            raise SystemExit("the programs do not compute the same thing")
    return [Case(system, networks, program, n_atoms, call) for program, call in calls.items()]


def table(cases: list[Case]) -> str:
    """One row per system and number of networks."""
    columns = ("snnp", "snnp, list kept", "snnp, mean only", *(f"torchani {search}" for search in SEARCHES))
    rows = [f"| system | networks | {' | '.join(columns)} | ratio |", "|---" * (len(columns) + 3) + "|"]
    for system, networks in dict.fromkeys((case.system, case.networks) for case in cases):
        cost = {c.program: c.cost for c in cases if (c.system, c.networks) == (system, networks)}
        fastest = min(value for program, value in cost.items() if program.startswith("torchani"))
        best = cost.get("snnp, mean only", cost["snnp"])
        cells = " | ".join(f"{cost[program]:.1f}" if program in cost else "–" for program in columns)
        rows.append(f"| {system} | {networks} | {cells} | {fastest / best:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Set up, time, print."""
    parser = argparse.ArgumentParser(description="ANI here and in torchani, µs per atom, energy and forces")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for networks in (1, 8):
        cases += compared("one molecule, 24 atoms", [molecule("C6H6") + _apart(molecule("C6H6"))], networks)
        cases += compared("64 molecules, 704 atoms", molecules(64), networks)
        cases += compared("water, 576 atoms, periodic", [water(192)], networks)
    for _ in range(options.repeats):
        for case in cases:
            calls = max(1, 1000 // case.n_atoms)
            case.call()
            started = time.process_time()
            for _ in range(calls):
                case.call()
            case.seconds.append((time.process_time() - started) / calls)
    print(table(cases))
    versions = {name: importlib.metadata.version(name) for name in ("snnp", "torchani", "torch", "numpy", "vesin")}
    print(versions)
    if options.json is not None:
        rows = [
            {k: getattr(c, k) for k in ("system", "networks", "program", "n_atoms", "cost", "seconds")} for c in cases
        ]
        options.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


def _apart(atoms: Atoms) -> Atoms:
    atoms.positions += (1.6, 0.0, 3.5)
    return atoms


if __name__ == "__main__":
    main()
