"""HIP-NN and HIP-NN-TS beside hippynn: the same networks and weights, energy and forces, one core, one interleaved run.

    TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1 python -W ignore docs/measure/timings/hip_nn.py [--repeats 7] [--json FILE]

Needs hippynn and numba (`pip install hippynn==0.1.3 numba`). hippynn runs with its numba kernels, and with its PyTorch
kernels in eager mode (without TORCHDYNAMO_DISABLE they go through torch.compile, which needs a compiler and starts over
for each shape). Every repeat runs every case for about 0.2 s; the table holds medians of process CPU time. Periodic
systems go through the ASE calculator of either side, neighbour list kept with a skin of 1 Å, all atoms moved by 1e-5 Å
per call. Molecules are one batch, pairs found within the timed call.
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

import hippynn
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hippynn.graphs import GraphModule, inputs, networks, physics, targets
from hippynn.interfaces.ase_interface import HippynnCalculator

from snnp.models import HIPNN, HIPNNConfig
from snnp.models.hipnn.import_hippynn import import_hippynn
from snnp.structure import Structure
from snnp_ase import SNNPCalculator

SHAPE = HIPNNConfig(
    n_features=20, n_sensitivities=20, n_interactions=2, n_atom_layers=3, lower=0.85, upper=5.0, cutoff=6.0
)
NAMES = ("HIP-NN", "HIP-NN-TS", "HIP-NN-TS l=2")
MOLECULES = ("C6H6", "CH3CH2OH", "C5H5N", "CH3COCH3", "isobutane", "C4H4O", "CH3CONH2", "trans-butane")
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "Al": 13}


@dataclass
class Case:
    """One thing to time."""

    system: str
    network: str
    program: str
    n_atoms: int
    call: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """µs per atom and call."""
        return 1e6 * statistics.median(self.seconds) / self.n_atoms


def aluminium(n: int) -> Atoms:
    """4 n³ atoms of fcc aluminium with 0.1 Å of noise."""
    atoms = bulk("Al", "fcc", 4.05, cubic=True).repeat((n, n, n))
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def molecules(n: int) -> list[Atoms]:
    """A batch of small organic molecules with 0.05 Å of noise."""
    rng = np.random.default_rng(1)
    frames = [molecule(MOLECULES[k % len(MOLECULES)]) for k in range(n)]
    for atoms in frames:
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
    return frames


def padded(frames: list[Atoms]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and positions as hippynn takes them."""
    largest = max(len(atoms) for atoms in frames)
    numbers = torch.zeros(len(frames), largest, dtype=torch.int64)
    positions = torch.zeros(len(frames), largest, 3)
    for b, atoms in enumerate(frames):
        numbers[b, : len(atoms)] = torch.from_numpy(atoms.numbers)
        positions[b, : len(atoms)] = torch.from_numpy(atoms.positions).float()
    return numbers, positions


def nodes(config: HIPNNConfig, *, periodic: bool) -> tuple[Any, Any, Any]:
    """Inputs, energy and forces of a network of hippynn with random weights."""
    torch.manual_seed(0)
    positions = inputs.PositionsNode(db_name="R")
    parents = (inputs.SpeciesNode(db_name="Z"), positions, *((inputs.CellNode(db_name="C"),) if periodic else ()))
    shape = {
        "n_features": config.n_features,
        "n_sensitivities": config.n_sensitivities,
        "n_interaction_layers": config.n_interactions,
        "n_atom_layers": config.n_atom_layers,
        "dist_soft_min": config.lower,
        "dist_soft_max": config.upper,
        "dist_hard_max": config.cutoff,
        "possible_species": torch.tensor([0, *(NUMBERS[symbol] for symbol in config.elements)]),
    }
    kind = (networks.Hipnn, networks.HipnnVec, networks.HipnnQuad)[config.l_max]
    energy = targets.HEnergyNode("E", kind("net", parents, module_kwargs=shape, periodic=periodic), db_name="T")
    return parents, energy, physics.GradientNode("F", (energy, positions), sign=-1, db_name="F")


def with_kernel(kernel: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, with hippynn's kernels chosen before."""

    def chosen() -> Any:
        hippynn.custom_kernels.set_custom_kernels(kernel)
        return call()

    return chosen


def model_of(module: torch.nn.Module, config: HIPNNConfig) -> HIPNN:
    """The same network here."""
    return import_hippynn(module.float().state_dict(), config)


def moving(atoms: Atoms, calculator: Any) -> Callable[[], Any]:
    """Energy and forces after a step too small to rebuild a neighbour list."""
    atoms, rng = atoms.copy(), np.random.default_rng(0)

    def call() -> Any:
        atoms.positions += rng.normal(0.0, 1e-5, atoms.positions.shape)
        calculator.calculate(atoms, ["energy", "forces"])
        return calculator.results["forces"]

    return call


def periodic_cases(system: str, atoms: Atoms, l_max: int) -> list[Case]:
    """Both programs on one crystal."""
    config = SHAPE.model_copy(update={"elements": ("Al",), "l_max": l_max})
    _, energy, _ = nodes(config, periodic=True)
    theirs = HippynnCalculator(energy, en_unit=1.0, skin=1.0).to(torch.float32)
    ours = SNNPCalculator(model_of(theirs.module, config), skin=1.0)
    calls = {"snnp": moving(atoms, ours)}
    for kernel in ("numba", "pytorch"):
        calls[f"hippynn {kernel}"] = with_kernel(kernel, moving(atoms, theirs))
    return compared(system, len(atoms), l_max, calls)


def molecular_cases(system: str, frames: list[Atoms], l_max: int) -> list[Case]:
    """Both programs on one batch of molecules."""
    config = SHAPE.model_copy(update={"elements": ("H", "C", "N", "O"), "l_max": l_max})
    parents, energy, forces = nodes(config, periodic=False)
    graph, batch, structure = GraphModule(parents, [forces, energy.mol_energy]).float(), padded(frames), None
    model, structure = model_of(graph, config), Structure.from_ase(frames)
    real = batch[0].flatten() > 0
    calls: dict[str, Callable[[], Any]] = {"snnp": lambda: model.compute(structure).forces}
    for kernel in ("numba", "pytorch"):
        calls[f"hippynn {kernel}"] = with_kernel(kernel, lambda: graph(*batch)[0].detach().reshape(-1, 3)[real])
    return compared(system, structure.n_atoms, l_max, calls)


def compared(system: str, n_atoms: int, l_max: int, calls: dict[str, Callable[[], Any]]) -> list[Case]:
    """Cases, once their forces have been seen to agree."""
    found = {program: torch.as_tensor(call()).double() for program, call in calls.items()}
    wanted = found["hippynn numba"]
    for program, forces in found.items():
        worst = float((forces - wanted).abs().max() / wanted.abs().max())
        print(f"{system}, {NAMES[l_max]}, {program}: forces differ from hippynn's by {worst:.1e} of the largest")
        if worst > 1e-4:
            raise SystemExit("the programs do not compute the same thing")
    return [Case(system, NAMES[l_max], program, n_atoms, call) for program, call in calls.items()]


def seconds(case: Case, n_calls: int) -> float:
    """CPU time of a call, mean of some in a row."""
    before = time.process_time()
    for _ in range(n_calls):
        case.call()
    return (time.process_time() - before) / n_calls


def table(cases: list[Case]) -> str:
    """One row per system and network."""
    rows = ["| system | network | snnp | hippynn numba | hippynn PyTorch | ratios |", "|---|---|---|---|---|---|"]
    for system, network in dict.fromkeys((case.system, case.network) for case in cases):
        cost = {case.program: case.cost for case in cases if (case.system, case.network) == (system, network)}
        ours, numba, eager = cost["snnp"], cost["hippynn numba"], cost["hippynn pytorch"]
        ratios = f"{numba / ours:.1f}, {eager / ours:.1f}"
        rows.append(f"| {system} | {network} | {ours:.1f} | {numba:.0f} | {eager:.0f} | {ratios} |")
    return "\n".join(rows)


def main() -> None:
    """Set up, time, print."""
    parser = argparse.ArgumentParser(description="HIP-NN here and in hippynn, µs per atom, energy and forces")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.environ.get("TORCHDYNAMO_DISABLE") != "1":
        raise SystemExit("set TORCHDYNAMO_DISABLE=1, so that hippynn's PyTorch kernels run eagerly")
    torch.set_num_threads(1)
    cases = []
    for l_max in range(3):
        cases += molecular_cases("64 molecules, 704 atoms", molecules(64), l_max)
        cases += periodic_cases("Al, 256 atoms", aluminium(4), l_max)
        cases += periodic_cases("Al, 4000 atoms", aluminium(10), l_max)
    calls = [max(1, int(0.2 / seconds(case, 1))) for case in cases]
    for _ in range(options.repeats):
        for case, n_calls in zip(cases, calls, strict=True):
            case.call()  # the caches belong to the case before
            case.seconds.append(seconds(case, n_calls))
    versions = {name: importlib.metadata.version(name) for name in ("hippynn", "numba", "torch", "snnp")}
    print(versions, f"median CPU time of {options.repeats} interleaved repeats, µs/atom, one thread, float32", sep="\n")
    print(table(cases))
    if options.json:
        rows = [{k: getattr(c, k) for k in ("system", "network", "program", "n_atoms", "seconds")} for c in cases]
        options.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
