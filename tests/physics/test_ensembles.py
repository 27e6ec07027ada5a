"""The statistical mechanics of molecular dynamics: what each engine samples, against what is known exactly.

Seeds are fixed and tolerances follow from the number of independent samples: four or more standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from scipy import stats

from snnp.models.config import RepulsionConfig
from snnp.models.spline.config import AngularConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.sampling import MDProgress, MDResult, MDSettings, Sample, run_md
from snnp.sampling.thermostats import Ensemble, degrees_of_freedom
from snnp.units import BOLTZMANN_EV_PER_K, GPA_IN_EV_PER_ANGSTROM3
from snnp_ase import SNNPCalculator

ENGINES = ("native", "ase", "openmm")
A = 4.268  # Å, lattice constant of the crystal at rest
engines = pytest.mark.parametrize("engine", ENGINES)


def _pair_model(depth: float) -> SplineNNP:
    """Aluminium and nickel held together by one Morse-like pair term; without depth a gas that knows no forces."""
    config = SplineNNPConfig(
        elements=("Al", "Ni"),
        pair_term=True,
        radial=RadialConfig(n_filters=1, lower=1.8, cutoff=5.0, intervals=20),
        angular=AngularConfig(n_filters=0),
        network=None,
        repulsion=RepulsionConfig(inner=1.2, outer=2.2) if depth else None,
    )
    model = SplineNNP(config, {"Al": 0.0, "Ni": 0.0})
    assert model.phi is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for group, grid in enumerate(model.phi.grids):
        x = torch.exp(-1.7 * (grid.knots() - 3.06))
        model.phi.set_knots((depth * (x * x - 2.0 * x))[None], group)
    return model


@pytest.fixture(scope="module")
def solid() -> SplineNNP:
    return _pair_model(0.25)


@pytest.fixture(scope="module")
def gas() -> SplineNNP:
    return _pair_model(0.0)


def crystal(*, mixed: bool = False) -> Atoms:
    atoms = bulk("Al", cubic=True, a=A)
    if mixed:
        atoms.symbols[1:3] = "Ni"
    return atoms


def sampled(model: SplineNNP, atoms: Atoms, engine: str, **values: Any) -> tuple[list[Sample], MDResult]:
    """The samples after equilibration, and the result."""
    samples: list[Sample] = []

    def report(progress: MDProgress) -> None:
        samples.append(progress.sample)

    settings = MDSettings(**{"dtype": "float64", **values})
    result = run_md(model, atoms, settings, engine=engine, report=report)
    return [sample for sample in samples if sample.step > result.equilibration], result


def looks_like(values: np.ndarray, distribution: Any) -> bool:
    """Kolmogorov and Smirnov's test: one in ten thousand right runs would fail it, but seeds are fixed."""
    return bool(stats.kstest(values, distribution.cdf).pvalue > 1e-4)


# Volume


def _pressure_and_time(n_atoms: int, volume: float, kt: float, dt_fs: float) -> dict[str, float]:
    """Pressure at which an ideal gas has that mean volume, and the barostat that forgets within a step."""
    pressure = (n_atoms + 1) * kt / volume / GPA_IN_EV_PER_ANGSTROM3
    return {"pressure_gpa": pressure, "barostat_time_fs": 0.01 * pressure * dt_fs}


@engines
@pytest.mark.parametrize("n_atoms", [1, 4, 32])
@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_an_ideal_gas_has_its_volume(engine: str, n_atoms: int, thermostat: str, gas: SplineNNP) -> None:
    """p(V) ~ V^N exp(-P V / kT): a gamma distribution, so that <V> = (N + 1) kT / P."""
    kt, volume = BOLTZMANN_EV_PER_K * 300.0, 60.0**3
    atoms = Atoms("Al" * n_atoms, np.random.default_rng(2).random((n_atoms, 3)) * 60.0, cell=[60.0] * 3, pbc=True)
    samples, _ = sampled(
        gas,
        atoms,
        engine,
        ensemble="npt",
        thermostat=thermostat,
        steps=2500,
        dt_fs=2.0,
        friction_per_ps=100.0,
        log_interval=5,
        seed=1,
        **_pressure_and_time(n_atoms, volume, kt, 2.0),
    )
    volumes = np.array([sample.volume_a3 for sample in samples]) * (n_atoms + 1) / volume
    assert looks_like(volumes, stats.gamma(n_atoms + 1))
    assert volumes.mean() == pytest.approx(n_atoms + 1, abs=4.0 * np.sqrt((n_atoms + 1) / len(volumes)))
    pressures = np.array([sample.pressure_gpa for sample in samples])
    target = _pressure_and_time(n_atoms, volume, kt, 2.0)["pressure_gpa"]
    # <N kT / V> = P, but for the mean of 1/V of one atom, whose variance does not exist.
    if n_atoms > 1:
        assert pressures.mean() == pytest.approx(target, rel=4.0 * np.sqrt(1.5 / n_atoms / len(volumes)) + 0.01)


def _energies_of_volume(model: SplineNNP, atoms: Atoms, volumes: np.ndarray) -> np.ndarray:
    calculator, energies = SNNPCalculator(model, dtype="float64"), []
    for volume in volumes:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
        energies.append(calculator.get_potential_energy(scaled))
    return np.array(energies)


def _quadrature(volumes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    mean = np.average(volumes, weights=weights)
    return float(mean), float(np.average((volumes - mean) ** 2, weights=weights))


@engines
def test_one_atom_in_its_cell_samples_what_quadrature_gives(engine: str, solid: SplineNNP) -> None:
    """All that happens is that the lattice breathes: p(V) ~ V exp(-(U(V) + P V) / kT), far from harmonic."""
    atoms, kelvin, pressure = bulk("Al", a=A), 900.0, 4.0
    kt = BOLTZMANN_EV_PER_K * kelvin
    volumes = np.linspace(0.5, 2.0, 600) * atoms.get_volume()
    exponent = (_energies_of_volume(solid, atoms, volumes) + pressure * GPA_IN_EV_PER_ANGSTROM3 * volumes) / kt
    weights = volumes * np.exp(exponent.min() - exponent)
    mean, variance = _quadrature(volumes, weights)
    assert np.sqrt(variance) > 0.04 * mean
    samples, result = sampled(
        solid,
        atoms,
        engine,
        ensemble="npt",
        temperature_k=kelvin,
        pressure_gpa=pressure,
        steps=6000,
        dt_fs=2.0,
        barostat_time_fs=20.0,
        log_interval=5,
        seed=1,
    )
    found = np.array([sample.volume_a3 for sample in samples])
    error = block_error(found)
    assert error < 0.01 * mean
    assert found.mean() == pytest.approx(mean, abs=4.0 * error)
    assert found.var() == pytest.approx(variance, rel=0.3)
    assert result.mean_pressure_gpa == pytest.approx(pressure, abs=4.0 * block_error(_pressures(samples)))


def _pressures(samples: list[Sample]) -> np.ndarray:
    return np.array([sample.pressure_gpa for sample in samples])


def block_error(values: np.ndarray, n_blocks: int = 20) -> float:
    """Standard error of the mean of correlated values."""
    means = [block.mean() for block in np.array_split(values, n_blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(n_blocks))


def _moves(
    settings: MDSettings, cell: np.ndarray, stress: Callable[[np.ndarray], np.ndarray], n_atoms: int, n: int
) -> np.ndarray:
    """[n, 3] lengths of a rectangular cell under the barostat alone."""
    ensemble, lengths = Ensemble(Atoms(f"H{n_atoms}"), settings), []
    for ensemble.step in range(n):
        cell = cell @ ensemble.box_move(cell, stress(cell))
        lengths.append(np.linalg.norm(cell, axis=1))
    return np.array(lengths)


@pytest.mark.parametrize("barostat", ["isotropic", "anisotropic"])
def test_the_barostat_alone_samples_an_elastic_box(barostat: str) -> None:
    """U = V0 (C e.e + C' (sum e)²) / 2 with strains e of the three lengths, against quadrature; U sets the spread."""
    kelvin, pressure, n_atoms, a, c, c_mixed = 1200.0, 3.0, 2, 2.0, 0.25, 0.4
    kt, p = BOLTZMANN_EV_PER_K * kelvin, pressure * GPA_IN_EV_PER_ANGSTROM3

    def stress(cell: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(cell, axis=1)
        strain = lengths / a - 1.0
        slopes = a**2 * (c * strain + c_mixed * strain.sum())  # dU / d length
        return np.diag(slopes * lengths / np.prod(lengths))

    settings = MDSettings(
        ensemble="npt", temperature_k=kelvin, pressure_gpa=pressure, barostat=barostat, dt_fs=1.0, barostat_time_fs=50.0
    )
    found = _moves(settings, a * np.eye(3), stress, n_atoms, 40000)[1000:]
    grid = np.linspace(0.2, 2.5, 101) * a
    if barostat == "isotropic":
        lengths = np.repeat(grid[None], 3, axis=0)
        measure = 3.0 * grid**2  # of dV
        assert np.ptp(found, axis=1).max() < 1e-9
    else:
        lengths = np.array(np.meshgrid(grid, grid, grid)).reshape(3, -1)
        measure = np.ones(lengths.shape[1])
    strain, volumes = lengths / a - 1.0, lengths.prod(axis=0)
    energies = 0.5 * a**3 * (c * (strain**2).sum(axis=0) + c_mixed * strain.sum(axis=0) ** 2)
    weights = measure * volumes**n_atoms * np.exp(-(energies + p * volumes) / kt)
    for quantity, exact_values in (
        (found.prod(axis=1), volumes),
        (found[:, 0], lengths[0]),
        (found[:, 0] * found[:, 1], lengths[0] * lengths[1]),
    ):
        mean, variance = _quadrature(exact_values, weights)
        assert quantity.mean() == pytest.approx(mean, abs=4.0 * block_error(quantity))
        assert quantity.var() == pytest.approx(variance, rel=0.2)


@engines
def test_a_crystal_breathes_as_its_bulk_modulus_says(engine: str, solid: SplineNNP) -> None:
    """<P> is the target; kT <V> / var(V) is the bulk modulus, as the response of the volume to pressure gives it."""
    kelvin, means, fluctuations = 200.0, [], []
    for pressure in (0.0, 4.0):
        samples, result = sampled(
            solid,
            crystal(),
            engine,
            ensemble="npt",
            temperature_k=kelvin,
            pressure_gpa=pressure,
            steps=4000,
            dt_fs=4.0,
            friction_per_ps=5.0,
            barostat_time_fs=40.0,
            log_interval=5,
            seed=1,
        )
        volumes = np.array([sample.volume_a3 for sample in samples])
        assert result.mean_pressure_gpa == pytest.approx(pressure, abs=4.0 * block_error(_pressures(samples)))
        means.append(volumes.mean())
        fluctuations.append(BOLTZMANN_EV_PER_K * kelvin * volumes.mean() / volumes.var())
    response = 4.0 * np.mean(means) / (means[0] - means[1])
    assert np.mean(fluctuations) / GPA_IN_EV_PER_ANGSTROM3 == pytest.approx(response, rel=0.25)


@engines
def test_an_anisotropic_barostat_moves_three_lengths(engine: str, solid: SplineNNP) -> None:
    samples, result = sampled(
        solid,
        crystal(),
        engine,
        ensemble="npt",
        barostat="anisotropic",
        temperature_k=200.0,
        pressure_gpa=2.0,
        steps=3000,
        dt_fs=4.0,
        friction_per_ps=5.0,
        barostat_time_fs=40.0,
        log_interval=5,
    )
    assert np.ptp(result.final.cell.lengths()) > 1e-3
    assert np.allclose(result.final.cell.angles(), 90.0)
    assert result.mean_pressure_gpa == pytest.approx(2.0, abs=4.0 * block_error(_pressures(samples)))


# Temperature

RAMP = {"temperature_k": 150.0, "temperature_end_k": 450.0}


@engines
@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
@pytest.mark.parametrize("asked", [{}, {"fix": "0"}, RAMP], ids=["all free", "one held", "ramp"])
def test_kinetic_energies_are_those_of_the_canonical_ensemble(
    engine: str, thermostat: str, asked: dict[str, Any], solid: SplineNNP
) -> None:
    """2 K / kT has the chi-squared distribution of the degrees of freedom, also while kT changes slowly."""
    atoms = crystal(mixed=True)
    settings = {"thermostat": thermostat, "steps": 6000, "dt_fs": 2.0, "friction_per_ps": 50.0, **asked}
    samples, result = sampled(solid, atoms, engine, log_interval=20, seed=1, **settings)
    asked_for = MDSettings(**settings)
    n_freedom = degrees_of_freedom(result.final, asked_for)
    assert n_freedom == (9 if "fix" in asked or thermostat == "bussi" else 12)
    kt = BOLTZMANN_EV_PER_K * np.array([asked_for.temperature_at(sample.step) for sample in samples])
    reduced = 2.0 * np.array([sample.kinetic_energy_ev for sample in samples]) / kt
    assert looks_like(reduced, stats.chi2(n_freedom))
    assert reduced.mean() == pytest.approx(n_freedom, abs=4.0 * np.sqrt(2.0 * n_freedom / len(samples)))
    if "fix" in asked:
        assert np.array_equal(result.final.positions[0], atoms.positions[0])
    momentum = np.abs(result.final.get_momenta().sum(axis=0)).max()
    assert (momentum < 1e-8) == (thermostat == "bussi" and "fix" not in asked)


@engines
@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_every_element_and_the_potential_have_their_share(engine: str, thermostat: str, solid: SplineNNP) -> None:
    """Equipartition, with masses of 6 and 60: kT / 2 per momentum, as much per mode of a nearly harmonic crystal."""
    atoms, kelvin, kinetic = crystal(mixed=True), 40.0, []
    atoms.set_masses([6.0, 60.0, 60.0, 6.0])
    rest = SNNPCalculator(solid, dtype="float64").get_potential_energy(atoms)
    potential = []
    for seed in range(4):
        samples, result = sampled(
            solid,
            atoms,
            engine,
            thermostat=thermostat,
            temperature_k=kelvin,
            steps=2500,
            dt_fs=2.0,
            friction_per_ps=20.0,
            log_interval=10,
            seed=seed,
            equilibrate=500,
        )
        potential += [sample.potential_energy_ev - rest for sample in samples]
        kinetic += [sample.kinetic_energy_ev for sample in samples]
    share = 0.5 * BOLTZMANN_EV_PER_K * kelvin
    n_momenta = degrees_of_freedom(result.final, MDSettings(thermostat=thermostat))
    assert np.mean(kinetic) == pytest.approx(n_momenta * share, rel=0.1)
    assert np.mean(potential) == pytest.approx(9.0 * share, rel=0.15)


# Energy


@engines
def test_the_error_of_the_energy_is_of_second_order(engine: str, solid: SplineNNP) -> None:
    """Half the step, a quarter of the error of the energy; and all engines follow one path."""
    _, warm = sampled(solid, crystal(mixed=True), "native", steps=500, temperature_k=400.0, friction_per_ps=20.0)
    spread = []
    for dt_fs in (4.0, 2.0):
        steps = round(800.0 / dt_fs)
        samples, result = sampled(solid, warm.final, engine, ensemble="nve", steps=steps, dt_fs=dt_fs, log_interval=1)
        spread.append(np.std([sample.total_energy_ev for sample in samples]))
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.1)
    script = warm.final.copy()
    script.calc = SNNPCalculator(solid, dtype="float64")
    VelocityVerlet(script, 2.0 * units.fs).run(400)
    assert np.abs(script.positions - warm.final.positions).max() > 0.05
    assert np.abs(script.positions - result.final.positions).max() < 1e-5


def test_equilibration_gives_potential_and_kinetic_energy_their_share(solid: SplineNNP) -> None:
    """A perfect crystal turns half of its kinetic into potential energy: without it, the temperature halves."""
    temperatures = []
    for equilibrate in (0, 200):
        found = [
            sampled(
                solid,
                crystal() * (2, 2, 2),
                "native",
                ensemble="nve",
                steps=equilibrate + 500,
                dt_fs=2.0,
                equilibrate=equilibrate,
                seed=seed,
            )[1]
            for seed in range(4)
        ]
        temperatures.append(np.mean([result.mean_temperature_k for result in found]))
        assert all(np.abs(result.final.get_momenta().sum(axis=0)).max() < 1e-8 for result in found)
    assert temperatures[0] == pytest.approx(150.0, rel=0.15)
    assert temperatures[1] == pytest.approx(300.0, rel=0.15)
