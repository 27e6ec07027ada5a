"""HIP-NN and HIP-NN-TS against hippynn: its networks, imported, give its energies and forces."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from safetensors.torch import save_file
from torch import Tensor

from snnp.errors import ModelFileError
from snnp.models import HIPNN, HIPNNConfig
from snnp.models.hipnn.import_hippynn import import_hippynn
from snnp.structure import Structure

SHAPE: dict[str, Any] = {"n_features": 6, "n_sensitivities": 5, "n_atom_layers": 2, "lower": 0.85, "upper": 5.0}
ORGANIC, ALUMINIUM = ("H", "C", "N", "O"), ("Al",)
NUMBERS = {ORGANIC: (1, 6, 7, 8), ALUMINIUM: (13,)}


def _hippynn() -> Any:
    """hippynn and its parts; importing it warns about torch, and so does choosing its kernels in plain torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import hippynn
        import hippynn.graphs

        hippynn.custom_kernels.set_custom_kernels("_pytorch_raw")
    hippynn.settings.WARN_LOW_DISTANCES = False  # hydrogen comes closer than its first sensitivity, which is no error
    return hippynn


def _graph(config: HIPNNConfig, *, seed: int = 0, **more: Any) -> torch.nn.Module:
    """A network of hippynn with random weights, in float64: energies and forces, its own search for pairs included."""
    graphs = _hippynn().graphs
    torch.manual_seed(seed)
    periodic = config.elements == ALUMINIUM
    kind = (graphs.networks.Hipnn, graphs.networks.HipnnVec, graphs.networks.HipnnQuad)[config.l_max]
    species = graphs.inputs.SpeciesNode(db_name="Z")
    positions = graphs.inputs.PositionsNode(db_name="R")
    parents = (species, positions, *((graphs.inputs.CellNode(db_name="C"),) if periodic else ()))
    shape = {
        "n_features": config.n_features,
        "n_sensitivities": config.n_sensitivities,
        "n_interaction_layers": config.n_interactions,
        "n_atom_layers": config.n_atom_layers,
        "dist_soft_min": config.lower,
        "dist_soft_max": config.upper,
        "dist_hard_max": config.cutoff,
        "possible_species": torch.tensor([0, *NUMBERS[config.elements]]),
        **({"cusp_reg": config.cusp} if config.l_max else {}),
        **more,
    }
    network = kind("network", parents, module_kwargs=shape, periodic=periodic)
    energy = graphs.targets.HEnergyNode("E", network, db_name="T")
    forces = graphs.physics.GradientNode("F", (energy, positions), sign=-1, db_name="F")
    outputs = [energy.mol_energy, forces, energy.atom_hier]
    graph: torch.nn.Module = graphs.GraphModule(parents, outputs).double()
    return graph


def _config(elements: tuple[str, ...], l_max: int, n_interactions: int = 2, **more: Any) -> HIPNNConfig:
    cusp = 1e-4 if l_max == 1 else 1e-6
    shape = {**SHAPE, "n_interactions": n_interactions, "cutoff": 6.0, "cusp": cusp, **more}
    return HIPNNConfig(elements=elements, l_max=l_max, **shape)


def _frames(elements: tuple[str, ...]) -> list[Atoms]:
    if elements == ALUMINIUM:
        frames = [bulk("Al", "fcc", 4.05, cubic=True).repeat((2, 2, 2)) for _ in range(2)]
        frames[1].set_cell(frames[1].cell @ np.array([[1, 0, 0], [0.05, 1.02, 0], [0, -0.03, 0.97]]), scale_atoms=True)
    else:
        frames = [molecule(name) for name in ("CH3CH2OH", "C5H5N", "CH3CONH2", "H2O")]
    rng = np.random.default_rng(1)
    for atoms in frames:
        atoms.positions += rng.normal(0.0, 0.08, atoms.positions.shape)
    return frames


def _padded(frames: list[Atoms]) -> list[Tensor]:
    """Numbers, positions and, where periodic, cells as hippynn takes them."""
    largest = max(len(atoms) for atoms in frames)
    numbers = torch.zeros(len(frames), largest, dtype=torch.int64)
    positions = torch.zeros(len(frames), largest, 3, dtype=torch.float64)
    for b, atoms in enumerate(frames):
        numbers[b, : len(atoms)] = torch.from_numpy(atoms.numbers)
        positions[b, : len(atoms)] = torch.from_numpy(atoms.positions)
    cells = torch.from_numpy(np.stack([atoms.cell.array for atoms in frames]))
    return [numbers, positions, *((cells,) if frames[0].pbc.all() else ())]


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("elements", [ORGANIC, ALUMINIUM], ids=["molecules", "aluminium"])
@pytest.mark.parametrize("l_max", [0, 1, 2])
def test_energies_and_forces_of_hippynn(elements: tuple[str, ...], l_max: int) -> None:
    config, frames = _config(elements, l_max), _frames(elements)
    graph = _graph(config)
    inputs = _padded(frames)
    energy, forces, hierarchy = (each.detach() for each in graph(*inputs))
    real = inputs[0].flatten() > 0
    model = import_hippynn(graph.state_dict(), config)
    structure = Structure.from_ase(frames)
    assert _relative(model.hierarchicality(structure), hierarchy.flatten()) < 1e-8
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        ours = model.to(dtype).compute(structure)
        assert ours.forces is not None
        assert _relative(ours.energy, energy.flatten()) < tolerance
        assert _relative(ours.forces.double(), forces.reshape(-1, 3)[real]) < tolerance
    assert float(forces.abs().max()) > 0.01


@pytest.mark.parametrize(
    "change", [{"n_interactions": 1}, {"n_interactions": 3}, {"n_atom_layers": 0}, {"cutoff": 4.5}]
)
def test_other_shapes(change: dict[str, Any]) -> None:
    config, frames = _config(ORGANIC, 1, **change), _frames(ORGANIC)
    graph = _graph(config, seed=3)
    energy, forces, _ = (each.detach() for each in graph(*_padded(frames)))
    ours = import_hippynn(graph.state_dict(), config).compute(Structure.from_ase(frames))
    assert ours.forces is not None
    assert _relative(ours.energy, energy.flatten()) < 1e-8
    assert _relative(ours.forces, forces.reshape(-1, 3)[_padded(frames)[0].flatten() > 0]) < 1e-8


def test_a_file_of_tensors(tmp_path: Path) -> None:
    """The way for a checkpoint: its tensors in a safetensors file; E0 is the network's own energy of a bare atom."""
    config, frames = _config(ORGANIC, 2), _frames(ORGANIC)
    state = {k: v.contiguous() for k, v in _graph(config).float().state_dict().items() if isinstance(v, Tensor)}
    save_file(state, tmp_path / "best.safetensors")
    model = import_hippynn(tmp_path / "best.safetensors", config, energy_in_ev=0.5)
    assert model.dtype == torch.float32
    whole = import_hippynn(state, config)
    ours, wanted = (each.compute(Structure.from_ase(frames)) for each in (model, whole))
    assert _relative(2.0 * ours.energy, wanted.energy) < 1e-6
    bare = next(value for name, value in state.items() if name.endswith("layers.0.weight") and "blocks" not in name)
    assert model.reference_energies == pytest.approx(dict(zip(ORGANIC, (0.5 * bare[0]).tolist(), strict=True)))


def _refused(source: Any, config: HIPNNConfig, **more: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        import_hippynn(source, config, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit(tmp_path: Path) -> None:
    config = _config(ORGANIC, 1)
    state = _graph(config).state_dict()
    no_network = {name: value for name, value in state.items() if "blocks" not in name}
    assert "no hippynn network" in _refused(no_network, config)
    assert "the state lacks" in _refused(state, _config(ORGANIC, 1, n_interactions=3))
    assert "has no place" in _refused(state, _config(ORGANIC, 1, n_interactions=1))
    assert "blocks.0.2.base_layer" in _refused(state, _config(ORGANIC, 1, n_atom_layers=1))
    assert "has no place" in _refused(state, _config(ORGANIC, 0))
    assert "quadscales" in _refused(state, _config(ORGANIC, 2, cusp=1e-4))
    assert "interaction.mu has shape [5]" in _refused(state, _config(ORGANIC, 1, n_sensitivities=7))
    assert "[1, 6, 7, 8] in this order" in _refused(state, _config(("H", "C", "O", "N"), 1))
    assert "cusp_reg 0.0001" in _refused(state, _config(ORGANIC, 1, cusp=1e-6))
    assert "1 layers that could" not in _refused({**state, "other.layers.2.weight": torch.zeros(1, 6)}, config)
    assert "the state lacks other.layers.0" in _refused(state, config, energy_node="other.")
    (tmp_path / "best.pt").write_bytes(b"\x80\x04a pickle")
    assert "write its tensors with safetensors" in _refused(tmp_path / "best.pt", config)
    assert "missing.safetensors is missing" in _refused(tmp_path / "missing.safetensors", config)
    other = {**state, next(name for name in state if name.endswith("selfint.bias")): torch.zeros(6, dtype=torch.int64)}
    assert "numbers of one type" in _refused(other, config)


def test_imported_models_are_stored_like_others(tmp_path: Path) -> None:
    from snnp.models import load_model, save_model

    config = _config(ALUMINIUM, 1)
    model = import_hippynn(_graph(config).state_dict(), config)
    loaded = load_model(save_model(model, tmp_path / "m"))
    assert isinstance(loaded, HIPNN)
    structure = Structure.from_ase(_frames(ALUMINIUM))
    assert torch.equal(loaded.compute(structure).energy, model.compute(structure).energy)
