"""Training beyond the data: the wall, the structures that carry it, and what its limits do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.morse import MorsePotential

from snnp.data import Frame
from snnp.structure import Structure
from snnp.training import Progress, load_config, resume, train
from snnp.training.backends import Batch, choose_backend
from snnp.training.batches import prepare
from snnp.training.compressed import CompressionConfig, PairWall, compressed_frames, fit_wall
from snnp.training.config import LossConfig
from snnp.training.loop import Loss
from snnp.training.problem import build_model, features_of, load_problem, resolve

pytestmark = pytest.mark.usefixtures("without_pictures")

DEPTH, SHORT = 0.4, 2.68  # eV, Å


def morse() -> MorsePotential:
    return MorsePotential(epsilon=DEPTH, rho0=6.0, r0=SHORT, rcut1=4.0, rcut2=4.9)


def frame(atoms: Atoms, source: str) -> Frame:
    atoms.calc = morse()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
    energy = atoms.get_potential_energy() - 3.0 * len(atoms)
    return Frame(Structure.from_ase(atoms), energy, atoms.get_forces(), stress, None, source)


def copper(n: int = 24, amplitude: float = 0.12) -> list[Frame]:
    """Rattled, strained copper crystals, whose energies a pair potential gives exactly."""
    frames = []
    for k in range(n):
        rng = np.random.default_rng(k)
        atoms = bulk("Cu", cubic=True, a=3.62) * (2, 2, 1)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(amplitude, rng=rng)
        frames.append(frame(atoms, f"cu#{k}"))
    return frames


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return copper()


@pytest.fixture(scope="module")
def wall(frames: list[Frame]) -> PairWall:
    return fit_wall(frames)


ALL = np.eye(3) / 3.0


def crystal(volume: float) -> Structure:
    return Structure.from_ase(bulk("Cu", a=3.62 * volume ** (1.0 / 3.0)))


def test_the_wall_finds_a_pair_potential_again(frames: list[Frame], wall: PairWall) -> None:
    """The work of compression is the stress of the potential that made the data, times the volume per atom."""
    perfect = [frame(bulk("Cu", a=3.62 * volume ** (1.0 / 3.0)), "") for volume in (0.92, 1.0, 1.08)]
    for each in [*frames[:4], *perfect]:
        assert each.stress is not None
        volume = float(each.structure.volume()[0]) / each.n_atoms
        for way in (ALL, np.outer([0.6, 0.0, 0.8], [0.6, 0.0, 0.8])):
            expected = -volume * float((each.stress * way).sum())
            assert wall.work(each.structure, way) == pytest.approx(expected, abs=0.1)


def test_the_wall_rises_up_to_the_nuclei(wall: PairWall) -> None:
    assert all(wall.work(crystal(volume), ALL) > 0.0 for volume in np.linspace(0.97, 0.1, 60))
    # Within 0.6 of the shortest distance it is the nuclear repulsion of two copper nuclei.
    curve = wall.curves[29, 29]
    # Z² e² / r times the screening function of Ziegler, Biersack and Littmark, by hand.
    decay = 2 * 29**0.23 / 0.46850

    def nuclear(r: float) -> float:
        terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
        return 14.3996454784255 * 29**2 / r * sum(a * np.exp(-b * decay * r) for a, b in terms)

    for r in (0.5, 0.8):
        expected = (nuclear(r + 1e-5) - nuclear(r - 1e-5)) / 2e-5
        assert curve(np.array([r]))[0] == pytest.approx(expected, rel=1e-6)
    # No step where the parts meet.
    for meeting in (curve.r[0], curve.start):
        assert curve(np.array([meeting - 1e-4]))[0] == pytest.approx(curve(np.array([meeting + 1e-4]))[0], rel=2e-2)


def test_structures_lie_beyond_the_data_and_rise(frames: list[Frame], wall: PairWall) -> None:
    settings = CompressionConfig()
    found = compressed_frames(frames, wall, settings, seed=3)
    edge = min(float(f.structure.volume()[0]) / f.n_atoms for f in frames)
    volumes = np.array([float(c.frame.structure.volume()[0]) / c.frame.n_atoms for c in found])
    assert volumes.max() < edge
    assert volumes.min() < 0.2 * edge
    squeezed = [c for c in found if c.frame.n_atoms == 16]
    assert sum(c.frame.n_atoms for c in squeezed) >= settings.share * 16 * len(frames)
    for each in squeezed:
        assert np.trace(each.way) == pytest.approx(1.0)
        assert each.work == pytest.approx(wall.work(each.frame.structure, each.way))
        assert (each.least, each.most) == (0.5, 2.0)
    again = compressed_frames(frames, wall, settings, seed=3)
    assert [c.work for c in again] == [c.work for c in found]


def test_two_atoms_repel_each_other_even_if_they_never_meet(frames: list[Frame]) -> None:
    argon = [
        frame(bulk("Ar", cubic=True, a=5.3) * (1, 1, 2), f"ar#{k}") for k in range(4)
    ]  # the energies are copper's, which does not matter here
    wall = fit_wall([*frames, *argon])
    found = compressed_frames([*frames, *argon], wall, CompressionConfig(levels=5), seed=0)
    dimers = [c for c in found if c.frame.n_atoms == 2 and not c.frame.structure.pbc.any()]
    pairs = {tuple(sorted(c.frame.structure.numbers.tolist())) for c in dimers}
    assert pairs == {(18, 18), (18, 29), (29, 29)}
    assert len(dimers) == 15
    for each in dimers:
        r = float(each.frame.structure.positions[1, 0])
        slope = wall.curves[tuple(sorted(each.frame.structure.numbers.tolist()))](np.array([r]))[0]
        assert each.work == pytest.approx(-slope * r / 6.0)
        assert each.work > 0.0


def test_a_molecule_is_squeezed_as_it_is() -> None:
    atoms = molecule("CH3CH2OH")
    made = []
    for k in range(20):
        shaken = atoms.copy()
        shaken.rattle(0.05, seed=k)
        made.append(replace(frame(shaken, f"m#{k}"), stress=None))
    found = compressed_frames(made, fit_wall(made), CompressionConfig(share=0.5), seed=0)
    found = [c for c in found if c.frame.n_atoms > 2]
    assert len(found) == 10
    assert {c.frame.n_atoms for c in found} == {len(atoms)}
    longest = [Atoms(positions=c.frame.structure.positions.numpy()).get_all_distances().max() for c in found]
    size = atoms.get_all_distances().max()
    assert max(longest) < 1.15 * size
    assert min(longest) < 0.85 * size


def test_frames_without_energies_give_none(frames: list[Frame], wall: PairWall) -> None:
    assert compressed_frames([replace(f, energy=None) for f in frames], wall, CompressionConfig(), seed=0) == []


MODEL = {
    "radial": {"n_filters": 6, "cutoff": 4.5, "intervals": 8},
    "angular": {"n_filters": 4, "cutoff": 4.5, "intervals": 8, "degree": 2},
    "network": {"hidden": [8]},
}


@pytest.fixture(scope="module")
def data(frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    path = tmp_path_factory.mktemp("data") / "cu.xyz"
    images = []
    for each in frames:
        atoms = each.structure.to_ase()[0]
        atoms.calc = SinglePointCalculator(atoms, energy=each.energy, forces=each.forces)
        images.append(atoms)
    ase.io.write(path, images)
    return path


def settings(data: Path, **more: object) -> dict[str, object]:
    return {"data": {"train": [str(data)], "valid": 0.0}, "model": MODEL, "dtype": "float64", "threads": 1, **more}


@pytest.mark.parametrize("most", [0, 25])
def test_only_a_run_without_compressed_structures_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("snnp.training.problem.MOST_ELEMENTS", most)
    tree = settings(data)
    tree["optimiser"] = {"epochs": 1, "batch_atoms": 64}
    heard: list[str | None] = []
    model = train(load_config(tree), tmp_path / "run", lambda now: heard.append(now.message)).model
    said = any("no compressed structures" in message for message in heard if message is not None)
    assert said == (model.metadata["n_compressed_frames"] == 0) == (most == 0)


@pytest.mark.parametrize("family", ["legendre", "spline", "hip-nn"])
def test_work_between_its_limits_costs_nothing_and_beyond_pulls(data: Path, family: str) -> None:
    tree = settings(data)
    tree["model"] = {**MODEL, "angular": {**MODEL["angular"], "evaluator": family}}
    if family == "hip-nn":
        tree["model"] = {"family": family, "n_features": 4, "n_sensitivities": 6, "n_interactions": 1, "cutoff": 4.5}
    config = load_config(tree)
    problem = load_problem(config)
    config = resolve(config, problem)
    model = build_model(config, problem)
    assert model.repulsion is not None
    backend, loss = choose_backend(model, torch.float64), Loss(LossConfig(), 0.0, 0.0, 0.0)
    fcc = next(c for c in problem.compressed if c.frame.source.startswith("compressed:fcc"))
    dimer = next(c for c in problem.compressed if c.frame.source.startswith("compressed:dimer"))
    everything = prepare(backend, model, problem.split.train[:2], [fcc, dimer])
    model.standardise(lambda: features_of(model, everything, 2))
    batch = everything.batch([0, 1, 2, 3])
    with torch.no_grad():
        predicted = backend.predict(model, batch)
    # The work that the loss sees is the model's own, repulsion and all.
    for k, each in ((2, fcc), (3, dimer)):
        energies = [
            model.compute(replace(s, positions=s.positions @ strain, cell=s.cell @ strain)).energy[0]
            for s in [each.frame.structure]
            for strain in (torch.from_numpy(np.eye(3) + step * each.way) for step in (-1e-4, 1e-4))
        ]
        expected = float(energies[0] - energies[1]) / 2e-4 / each.frame.n_atoms / each.work
        own = each.least - batch.limits[k, 0] + (predicted.stress[k] * batch.push[k]).sum()
        assert float(own) == pytest.approx(expected, rel=1e-4, abs=1e-6)

    found = (predicted.stress * batch.push).sum(dim=(1, 2))

    def within(least: float, most: float) -> Batch:
        return replace(batch, limits=torch.stack([found + least, found + most], dim=1))

    free = loss(predicted, within(-0.1, 0.1))
    assert free.value == 0.0
    assert free.to_stress is not None
    assert not free.to_stress.any()
    # The gradient is that of the value: central differences in one parameter.
    for asking in (within(0.03, 0.5), within(0.4, 0.5), within(-0.9, -0.05)):
        model.zero_grad()
        value = backend.backward(model, asking, loss)
        assert value > 0.0
        parameter = next(p for p in model.parameters() if p.grad is not None and bool(p.grad.any()))
        assert parameter.grad is not None
        index = tuple(int(k) for k in torch.unravel_index(parameter.grad.abs().argmax(), parameter.shape))
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[index] += step
                values.append(float(loss(backend.predict(model, asking), asking).value))
                parameter[index] -= step
        assert float(parameter.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.slow
def test_copper_rises_monotonically_far_beyond_its_data(data: Path, wall: PairWall, tmp_path: Path) -> None:
    found = {}
    for name, compression in (("with", {}), ("without", None)):
        tree = settings(data, compression=compression, dtype="float32")
        tree["optimiser"] = {"epochs": 120, "batch_atoms": 64}
        model = train(load_config(tree), tmp_path / name).model
        volumes = np.linspace(0.9, 0.2, 71)
        crystals = [bulk("Cu", a=3.62 * volume ** (1.0 / 3.0)) for volume in volumes]
        found[name] = model.compute(Structure.from_ase(crystals), forces=False).energy.numpy()
    assert np.all(np.diff(found["with"]) > 0.0)
    # It follows the wall within its limits, a factor of two; what was never shown anything is off by more.
    works = np.array([wall.work(crystal(volume), ALL) for volume in volumes])
    rise = np.concatenate([[0.0], np.cumsum(0.5 * (works[1:] + works[:-1]) * -np.diff(np.log(volumes)))])
    shares = {name: (energies - energies[0])[rise > 1.0] / rise[rise > 1.0] for name, energies in found.items()}
    assert np.all((shares["with"] > 0.5) & (shares["with"] < 2.0))
    errors = {name: np.median(np.abs(each - 1.0)) for name, each in shares.items()}
    assert errors["without"] > errors["with"]


def test_an_old_run_goes_on_without_compressed_structures(data: Path, tmp_path: Path) -> None:
    tree = settings(data, compression=None)
    tree["optimiser"] = {"epochs": 3, "batch_atoms": 64}

    def stop(now: Progress) -> None:
        if now.epoch == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(load_config(tree), tmp_path / "run", stop)
    path = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    assert stored.pop("compression", 0) is None
    path.write_text(yaml.safe_dump(stored))  # as the first version wrote it
    assert resume(tmp_path / "run").model.metadata["n_compressed_frames"] == 0


def test_an_element_in_few_frames_has_a_wall_too(frames: list[Frame]) -> None:
    gold = bulk("Cu", cubic=True, a=3.7)
    gold.numbers[0] = 79
    many = [*(replace(f, source=f"{f.source}.{k}") for k in range(12) for f in frames), frame(gold, "gold#0")]
    wall = fit_wall(many)
    assert {(29, 29), (29, 79), (79, 79)} <= set(wall.curves)
    assert np.isfinite(wall.work(Structure.from_ase(gold), ALL))
