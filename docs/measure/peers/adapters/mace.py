"""mace-torch: small MACE models with random weights; the graph is built once, forces by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("mace-torch", "e3nn", "torch")
_AL, _FEW = "fcc:Al:a=4.05", 256
CASES: list[dict[str, Any]] = [
    {"name": "MACE 16x0e, 1 layer", "structure": _AL, "atoms": _FEW, "channels": 16, "layers": 1},
    {"name": "MACE 32x0e, 2 layers", "structure": _AL, "atoms": _FEW, "channels": 32, "layers": 2},
    {"name": "MACE 128x0e, 2 layers", "structure": _AL, "atoms": _FEW, "channels": 128, "layers": 2},
]
_CUTOFF = 5.0  # Å


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`."""
    import mace  # noqa: F401  before e3nn, which does not load under torch >= 2.6 by itself
    import torch
    from ase import Atoms
    from e3nn import o3
    from mace import data, modules
    from mace.tools import AtomicNumberTable, torch_geometric

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    numbers = sorted(set(system.numbers.tolist()))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=_CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=case["layers"],
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(f"{case['channels']}x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=30.0,
        atomic_numbers=numbers,
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    atoms = Atoms(system.numbers, system.positions, cell=system.cells[0], pbc=system.pbc)
    graph = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=AtomicNumberTable(numbers), cutoff=_CUTOFF
    )
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1, shuffle=False))).to_dict()

    def call(moved: Any) -> tuple[float, Any]:
        positions = torch.from_numpy(moved).to(torch.float32)
        result = model({**batch, "positions": positions}, training=False, compute_force=True)
        return float(result["energy"][0]), result["forces"].detach().numpy()

    parameters = sum(p.numel() for p in model.parameters())
    return call, {"parameters": parameters, "cutoff": _CUTOFF, "dtype": "float32"}
