"""Training beyond the data: the wall, the structures that carry it, and what a tolerance does."""

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
from snnp.training.backends import choose_backend
from snnp.training.batches import prepare
from snnp.training.compressed import CompressionConfig, PairWall, compressed_frames, fit_wall
from snnp.training.config import LossConfig
from snnp.training.loss import Loss
from snnp.training.problem import build_model, load_problem, resolve, standardise

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


def per_atom(wall: PairWall, volume: float, lattice: str = "fcc") -> float:
    crystal = bulk("Cu", lattice, a=3.62 * volume ** (1.0 / 3.0))
    return wall.energy(Structure.from_ase(crystal)) / len(crystal)


def test_the_wall_finds_a_pair_potential_again(wall: PairWall) -> None:
    assert wall.error < 5e-3  # eV/atom
    for volume in (0.92, 1.0, 1.08):
        crystal = bulk("Cu", a=3.62 * volume ** (1.0 / 3.0))
        crystal.calc = morse()
        assert per_atom(wall, volume) == pytest.approx(crystal.get_potential_energy() - 3.0, abs=0.02)


def test_the_wall_rises_up_to_the_nuclei(wall: PairWall) -> None:
    energies = [per_atom(wall, volume) for volume in np.linspace(0.97, 0.1, 60)]
    assert np.all(np.diff(energies) > 0.0)
    # Within 0.6 of the shortest distance it is the nuclear repulsion of two copper nuclei, but for a constant.
    curve = wall.curves[29, 29]
    r = np.array([0.5, 0.8])
    # Z² e² / r times the screening function of Ziegler, Biersack and Littmark, by hand.
    decay = 2 * 29**0.23 / 0.46850
    screened = sum(
        a * np.exp(-b * decay * r)
        for a, b in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    expected = 14.3996454784255 * 29**2 / r * screened
    assert curve(r)[0] - curve(r)[1] == pytest.approx(expected[0] - expected[1], rel=1e-6)
    # No step in value or slope where the parts meet.
    near = curve.r[0] + np.array([-2e-4, -1e-4, 1e-4, 2e-4])
    slopes = np.diff(curve(near)) / np.diff(near)
    assert slopes[0] == pytest.approx(slopes[2], rel=2e-2)


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
        # The label is the data's energy and the wall's rise above it; the tolerance is a share of that rise.
        base = frames[int(each.frame.source.split("#")[1].split(":")[0])]
        rise = wall.energy(each.frame.structure) - wall.energy(base.structure)
        assert each.frame.energy == pytest.approx((base.energy or 0.0) + rise)
        assert each.tolerance == pytest.approx(0.02 + settings.tolerance * abs(rise) / 16)
    again = compressed_frames(frames, wall, settings, seed=3)
    assert [c.frame.energy for c in again] == [c.frame.energy for c in found]


def test_a_molecule_is_squeezed_as_it_is() -> None:
    atoms = molecule("CH3CH2OH")
    made = []
    for k in range(20):
        shaken = atoms.copy()
        shaken.rattle(0.05, seed=k)
        made.append(replace(frame(shaken, f"m#{k}"), stress=None))
    found = compressed_frames(made, fit_wall(made), CompressionConfig(share=0.5), seed=0)
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


@pytest.mark.parametrize("evaluator", ["legendre", "spline"])
def test_a_tolerance_costs_nothing_within_and_pulls_beyond(data: Path, evaluator: str) -> None:
    tree = settings(data)
    tree["model"] = {**MODEL, "angular": {**MODEL["angular"], "evaluator": evaluator}}
    config = load_config(tree)
    problem = load_problem(config)
    config = resolve(config, problem)
    model = build_model(config, problem)
    n = len(problem.split.train)
    few = [*problem.split.train[:2], problem.compressed[0].frame]
    backend, loss = choose_backend(model, torch.float64), Loss.at(LossConfig(force_weight=0.0), 0.0)
    everything = prepare(backend, model, few)
    standardise(model, everything, 2)
    batch = everything.batch([0, 1, 2])
    wide = replace(batch, tolerance=torch.tensor([0.0, 0.0, 1e6], dtype=torch.float64))
    narrow = replace(batch, tolerance=torch.tensor([0.0, 0.0, 1e-3], dtype=torch.float64))
    predicted = backend.predict(model, batch)
    assert loss(predicted, wide).to_energy[2] == 0.0
    pulled = loss(predicted, narrow)
    assert pulled.to_energy[2] != 0.0
    # The gradient is that of the value: central differences in one parameter.
    backend.backward(model, narrow, loss, forces=loss.needs_forces)
    free = model.rho.free
    assert free.grad is not None
    index = tuple(int(k) for k in torch.unravel_index(free.grad.abs().argmax(), free.shape))
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            free[index] += step
            values.append(float(loss(backend.predict(model, narrow), narrow).value))
            free[index] -= step
    assert float(free.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    assert n == 24


@pytest.mark.slow
def test_copper_rises_monotonically_far_beyond_its_data(data: Path, tmp_path: Path) -> None:
    found = {}
    for name, compression in (("with", {}), ("without", None)):
        tree = settings(data, compression=compression, dtype="float32")
        tree["optimiser"] = {"epochs": 120, "batch_atoms": 64}
        model = train(load_config(tree), tmp_path / name).model
        volumes = np.linspace(0.9, 0.2, 71)
        crystals = [bulk("Cu", a=3.62 * volume ** (1.0 / 3.0)) for volume in volumes]
        found[name] = model.compute(Structure.from_ase(crystals), forces=False).energy.numpy()
    assert np.all(np.diff(found["with"]) > 0.0)
    # It follows the wall to about its tolerance; what was never shown anything is off by far more.
    expected = np.array([per_atom(fit_wall(copper()), volume) for volume in volumes])
    rise = expected - expected[0]
    errors = {name: np.abs(energies - expected)[rise > 1.0] / rise[rise > 1.0] for name, energies in found.items()}
    assert np.median(errors["with"]) < 0.25
    assert np.median(errors["without"]) > np.median(errors["with"])


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
    assert np.isfinite(wall.energy(Structure.from_ase(gold)))
