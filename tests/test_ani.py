"""ANI against its formulas as loops, against torchani with the same weights, and the contract of every potential."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from pydantic import ValidationError
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import InputError, UnknownElementError
from snnp.models import ANI, ANIConfig, Ensemble, save_model
from snnp.models.ani import aev
from snnp.models.ani import model as ani
from snnp.models.ani.aev import AEVAngularConfig, AEVConfig, AEVRadialConfig
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.testing import check_potential
from snnp_ase import SNNPCalculator

os.environ["TORCHANI_NO_WARN_EXTENSIONS"] = "1"  # it warns about CUDA extensions when it is imported

RADIAL = AEVRadialConfig(eta=9.0, shifts=(0.8, 1.5, 2.4), cutoff=4.2)
ANGULAR = AEVAngularConfig(eta=5.0, zeta=12.5, shifts=(0.9, 1.7), sections=(0.4, 1.5, 2.7), cutoff=3.3)
AEV_SMALL = AEVConfig(radial=RADIAL, angular=ANGULAR)


def _model(elements: tuple[str, ...] = ("H", "C", "O"), seed: int = 0, **keys: object) -> ANI:
    config = ANIConfig.model_validate({"elements": elements, "aev": AEV_SMALL, "hidden": (8, 6), **keys})
    return ANI(config, {symbol: -3.0 - k for k, symbol in enumerate(elements)}, seed=seed)


def _ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def _crystal() -> Atoms:
    """A skewed cell, smaller than the cutoff in one direction."""
    rng = np.random.default_rng(3)
    cell = np.array([[3.1, 0.0, 0.0], [0.8, 4.9, 0.0], [-0.5, 0.6, 5.2]])
    grid = np.array(list(itertools.product([0.1, 0.6], [0.2, 0.7], [0.1, 0.55])))
    fractional = grid + rng.uniform(-0.06, 0.06, (8, 3))
    return Atoms("HCOHHCHO", fractional @ cell, cell=cell, pbc=True)


def _loops(model: ANI, atoms: Atoms) -> np.ndarray:
    """[N, D] vectors, term by term as the paper writes them; order and factors as NeuroChem's."""
    structure = Structure.from_ase(atoms)
    neighbours = neighbour_list(structure, model.cutoff)
    vectors = pair_vectors(structure, neighbours).numpy()
    species, z = [model.elements.index(symbol) for symbol in atoms.symbols], len(model.elements)
    pairs = list(itertools.combinations_with_replacement(range(z), 2))
    n_angular = len(ANGULAR.shifts) * len(ANGULAR.sections)
    result = np.zeros((len(atoms), z * len(RADIAL.shifts) + len(pairs) * n_angular))

    def cutoff(r: float, reach: float) -> float:
        return 0.5 * np.cos(np.pi * r / reach) + 0.5 if r < reach else 0.0

    for i in range(len(atoms)):
        mine = [(int(neighbours.j[p]), vectors[p]) for p in np.flatnonzero(neighbours.i.numpy() == i)]
        for j, vector in mine:
            r = float(np.linalg.norm(vector))
            for k, shift in enumerate(RADIAL.shifts):
                term = 0.25 * np.exp(-RADIAL.eta * (r - shift) ** 2) * cutoff(r, RADIAL.cutoff)
                result[i, species[j] * len(RADIAL.shifts) + k] += term
        for (j, a), (k, b) in itertools.combinations(mine, 2):
            r_a, r_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
            theta = np.arccos(0.95 * a @ b / (r_a * r_b))
            fall = cutoff(r_a, ANGULAR.cutoff) * cutoff(r_b, ANGULAR.cutoff)
            pair = pairs.index((min(species[j], species[k]), max(species[j], species[k])))
            for m, (shift, section) in enumerate(itertools.product(ANGULAR.shifts, ANGULAR.sections)):
                angle = ((1.0 + np.cos(theta - section)) / 2.0) ** ANGULAR.zeta
                radial = np.exp(-ANGULAR.eta * (0.5 * (r_a + r_b) - shift) ** 2)
                result[i, z * len(RADIAL.shifts) + pair * n_angular + m] += 2.0 * angle * radial * fall
    return result


@pytest.mark.parametrize("atoms", [_ethanol(), _crystal()], ids=["molecule", "crystal"])
def test_vectors_are_the_sums_of_the_paper(atoms: Atoms) -> None:
    model = _model()
    structure = Structure.from_ase(atoms)
    neighbours = neighbour_list(structure, model.cutoff)
    species = model.species(structure)
    vectors = pair_vectors(structure, neighbours)
    features, _ = model.aev(neighbours.i, species[neighbours.j], vectors, (len(atoms), 3))
    np.testing.assert_allclose(features.numpy(), _loops(model, atoms), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        _model(("H", "O")),
        _model(("N", "C", "H"), hidden={"H": (4,), "C": (5, 3), "N": (2, 2)}, activation="gaussian"),
        Ensemble([_model(("Al",), seed) for seed in (0, 1)]),
    ],
    ids=["celu", "gaussian, layers by element", "ensemble"],
)
def test_contract(model: ANI | Ensemble) -> None:
    check_potential(model)


def _torchani(model: ANI):  # type: ignore[no-untyped-def]  # torchani's modules are untyped
    """torchani's modules with the constants and weights of `model`: energies in Hartree become eV here."""
    from torchani.aev import AEVComputer
    from torchani.nn import ANINetworks, AtomicNetwork

    aev, angular = model.config.aev.radial, model.config.aev.angular
    computer = AEVComputer.from_constants(
        radial_cutoff=aev.cutoff,
        angular_cutoff=angular.cutoff,
        radial_eta=aev.eta,
        radial_shifts=aev.shifts,
        angular_eta=angular.eta,
        angular_zeta=angular.zeta,
        angular_shifts=angular.shifts,
        sections=angular.sections,
        num_species=len(model.elements),
    )
    networks = {}
    for symbol in model.elements:
        ours = list(model.network(symbol).layers)
        sizes = [ours[0].in_features, *(layer.out_features for layer in ours)]
        networks[symbol] = AtomicNetwork(sizes, activation="celu", bias=True)
        for theirs, layer in zip([*networks[symbol].layers, networks[symbol].final_layer], ours, strict=True):
            theirs.weight.data, theirs.bias.data = layer.weight.data.clone(), layer.bias.data.clone()
    return computer.double(), ANINetworks(networks).double()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "atoms", [_ethanol(), molecule("H2O"), _crystal().repeat((3, 2, 2))], ids=["all", "two", "box"]
)
def test_torchani_with_the_same_weights(atoms: Atoms, dtype: torch.dtype, tolerance: float) -> None:
    """Without E0, which would hide everything else; torchani keeps its constants in float32."""
    model = _model(("C", "H", "O"), seed=4).to(dtype)
    computer, networks = _torchani(model)
    species = torch.tensor([[model.elements.index(symbol) for symbol in atoms.symbols]])
    positions = torch.tensor(atoms.positions[None], requires_grad=True)
    periodic = (torch.tensor(atoms.cell.array), torch.tensor(atoms.pbc)) if atoms.pbc.any() else (None, None)
    total = networks(species, computer(species, positions, *periodic)).sum()
    forces = -torch.autograd.grad(total, positions)[0][0].numpy()
    energy = float(total.detach())
    result = model.compute(Structure.from_ase(atoms))
    e0 = sum(model.reference_energies[symbol] for symbol in atoms.symbols)
    assert abs(energy) > 0.1
    assert float(result.energy[0]) - e0 == pytest.approx(energy, rel=tolerance)
    assert result.forces is not None
    np.testing.assert_allclose(result.forces.numpy(), forces, rtol=0, atol=tolerance * np.abs(forces).max())


def test_chunks_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = Structure.from_ase([_ethanol(), _crystal(), molecule("CO2"), _crystal().repeat((2, 1, 1))])
    model = _model()
    whole = model.compute(structure, stress=True)
    monkeypatch.setitem(ani._CHUNK_TRIPLES, "cpu", 40)
    monkeypatch.setattr(aev, "_MERGE", 0)
    parts = model.compute(structure, stress=True)
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["celu", "gaussian"])
def test_forces_are_differentiable_in_the_weights(activation: str) -> None:
    """Training needs d/dw of a function of the forces: automatic against a central difference."""
    model = _model(activation=activation)
    structure = Structure.from_ase(_crystal())
    neighbours = neighbour_list(structure, model.cutoff)
    vectors = pair_vectors(structure, neighbours).requires_grad_()
    weight = model.network("C").layers[1].weight
    assert isinstance(weight, torch.nn.Parameter)

    def squared_gradients() -> torch.Tensor:
        energies = model.atomic_energies(structure, vectors, neighbours)
        (gradients,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        return gradients.square().sum()

    (automatic,) = torch.autograd.grad(squared_gradients(), weight)
    step = torch.randn_like(weight)
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight.add_(step, alpha=sign * 1e-5)
        values.append(float(squared_gradients().detach()))
        with torch.no_grad():
            weight.sub_(step, alpha=sign * 1e-5)
    expected = float((automatic * step).sum())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-6)
    assert abs(expected) > 1e-8


def test_cell_smaller_than_the_cutoffs() -> None:
    """One atom per cell, 2.1 Å apart, sees its images: as a large cell of the same crystal does."""
    model = _model(("Al",))
    one = bulk("Al", "sc", a=2.1)
    small = model.compute(Structure.from_ase(one), stress=True)
    large = model.compute(Structure.from_ase(one.repeat((5, 5, 5))), stress=True)
    assert float(large.energy[0]) / 125 == pytest.approx(float(small.energy[0]), abs=1e-12)
    assert abs(float(small.energy[0]) - model.reference_energies["Al"]) > 1e-3
    torch.testing.assert_close(large.stress, small.stress, rtol=0, atol=1e-12)


def test_unknown_elements_and_overlaps() -> None:
    with pytest.raises(UnknownElementError, match="knows H, C, O but the structure holds N"):
        _model().compute(Structure.from_ase(molecule("NH3")))
    with pytest.raises(InputError, match="atoms 0 and 1 overlap"):
        _model().compute(Structure.from_ase(Atoms("H2", [[0, 0, 0], [0, 0, 0.01]])))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"hidden": ()}, "at least one layer"),
        ({"hidden": {"H": (4,)}}, "exactly the elements H, O"),
        ({"activation": "relu"}, "celu"),
        ({"aev": {"angular": {"sections": (0.0, 3.5)}}}, "must be in \\[0, pi\\]"),
        ({"aev": {"radial": {"shifts": ()}}}, "at least 1 item"),
    ],
)
def test_configurations_that_make_no_sense(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ANIConfig.model_validate({"elements": ("H", "O"), **keys})


def test_programs_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calculator, evaluation, and dynamics on both engines take an ensemble of ANI networks as any model."""
    monkeypatch.chdir(tmp_path)  # dynamics writes its trajectory where it runs
    ensemble = Ensemble([_model(("Al",), seed) for seed in (0, 1)])
    folder = save_model(ensemble, tmp_path / "ani")
    atoms = bulk("Al", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.05, seed=0)
    expected = ensemble.compute(Structure.from_ase(atoms))
    assert expected.forces is not None
    atoms.calc = SNNPCalculator(ensemble)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), atol=1e-9)
    write(tmp_path / "data.xyz", atoms)
    runner = CliRunner()
    evaluated = runner.invoke(app, ["evaluate", str(folder), str(tmp_path / "data.xyz")])
    assert evaluated.exit_code == 0, evaluated.output
    for engine in ("ase", "openmm"):
        log = tmp_path / f"{engine}.csv"
        run = ["md", str(folder), str(tmp_path / "data.xyz"), "--steps", "4", "--dt", "1", "--overwrite"]
        run += ["--engine", engine]
        done = runner.invoke(app, [*run, "--ensemble", "nve", "--log-every", "2", "--log", str(log)])
        assert done.exit_code == 0, done.output
        assert len(log.read_text().splitlines()) == 4


def test_networks_of_an_ensemble_share_their_vectors() -> None:
    """Computed together as one by one; without the spread of forces the mean is the same."""
    members = [_model(seed=seed) for seed in range(3)]
    structure = Structure.from_ase([_ethanol(), _crystal()])
    each = [member.compute(structure, stress=True) for member in members]
    ensemble = Ensemble(members)
    for spread in (True, False):
        ensemble.force_spread = spread
        result = ensemble.compute(structure, stress=True)
        for name in ("energies", "forces", "stress"):
            mean = torch.stack([getattr(one, name) for one in each]).mean(dim=0)
            torch.testing.assert_close(getattr(result, name), mean, rtol=0, atol=1e-12)
        energies = torch.stack([one.energy for one in each])
        torch.testing.assert_close(result.energy_std, energies.std(dim=0, correction=0), rtol=0, atol=1e-12)
        if spread:
            forces = torch.stack([one.forces for one in each if one.forces is not None])
            torch.testing.assert_close(result.forces_std, forces.std(dim=0, correction=0), rtol=0, atol=1e-12)
        else:
            assert result.forces_std is None
    other = Ensemble([members[0], _model(seed=1, aev=AEVConfig())])  # other vectors: one by one
    assert other.compute(structure).forces_std is not None
