"""hippynn: HIP-NN and HIP-NN-TS with random weights, in the sizes of hippynn's own examples; forces by autograd.

Its fast kernels on a CPU need numba beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("hippynn", "torch")
_AL, _MOLECULES = "fcc:Al:a=4.05", "molecules"
CASES: list[dict[str, Any]] = [
    {"name": "HIP-NN numba", "structure": _AL, "network": "Hipnn", "kernel": "numba"},
    {"name": "HIP-NN pytorch", "structure": _AL, "network": "Hipnn", "kernel": "pytorch", "atoms": 500},
    {"name": "HIP-NN-TS numba", "structure": _AL, "network": "HipnnVec", "kernel": "numba", "atoms": 500},
    {"name": "HIP-NN numba, molecules", "structure": _MOLECULES, "network": "Hipnn", "kernel": "numba"},
    {"name": "HIP-NN-TS numba, molecules", "structure": _MOLECULES, "network": "HipnnVec", "kernel": "numba"},
]
_HYPERPARAMETERS = {
    "n_features": 20,
    "n_sensitivities": 20,
    "dist_soft_min": 0.85,
    "dist_soft_max": 5.0,
    "dist_hard_max": 6.0,
    "n_interaction_layers": 2,
    "n_atom_layers": 3,
}


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`."""
    # hippynn hands its kernels to torch.compile, which makes them no faster and recompiles for every shape.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from hippynn.custom_kernels import set_custom_kernels
    from hippynn.graphs import inputs, networks, physics, targets

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    set_custom_kernels(case["kernel"])
    species = [0, *sorted(set(system.numbers.tolist()))]
    numbers, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    parents = (numbers, positions, *((inputs.CellNode(db_name="C"),) if system.pbc else ()))
    network = getattr(networks, case["network"])(
        "network",
        parents,
        module_kwargs={**_HYPERPARAMETERS, "possible_species": torch.tensor(species)},
        periodic=system.pbc,
    )
    energy = targets.HEnergyNode("E", network, db_name="E")
    if system.pbc:
        return _with_calculator(energy, system)
    forces = physics.GradientNode("F", (energy, positions), sign=-1, db_name="F")
    return _with_graph(parents, energy, forces, system)


def _with_calculator(energy: Any, system: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A periodic structure through hippynn's ASE calculator, which keeps its neighbour list."""
    import torch
    from ase import Atoms
    from hippynn.interfaces.ase_interface import HippynnCalculator

    calculator = HippynnCalculator(energy, en_unit=1.0, skin=1.0).to(torch.float32)
    atoms = Atoms(system.numbers, system.positions, cell=system.cells[0], pbc=True)

    def call(moved: Any) -> tuple[float, Any]:
        atoms.positions[:] = moved
        calculator.calculate(atoms)
        return calculator.results["energy"], calculator.results["forces"]

    return call, {"parameters": sum(p.numel() for p in calculator.module.parameters()), "dtype": "float32"}


def _with_graph(parents: Any, energy: Any, forces: Any, system: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Molecules as a padded batch; their pairs are found within the graph, in each call."""
    import torch
    from hippynn.graphs import GraphModule

    module = GraphModule(parents, [energy.mol_energy, forces]).to(torch.float32)
    owner = system.structure_of_atom
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    numbers = np.zeros((owner[-1] + 1, place.max() + 1), dtype=np.int64)
    numbers[owner, place] = system.numbers
    padded = np.zeros((*numbers.shape, 3), dtype=np.float32)
    charges = torch.from_numpy(numbers)

    def call(moved: Any) -> tuple[Any, Any]:
        padded[owner, place] = moved
        energies, all_forces = module(charges, torch.from_numpy(padded))
        return energies.detach().numpy(), all_forces.detach().numpy()[owner, place]

    return call, {"parameters": sum(p.numel() for p in module.parameters()), "dtype": "float32"}
