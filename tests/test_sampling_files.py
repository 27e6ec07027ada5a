"""Trajectories, logs, checkpoints and radial distributions, read back by independent readers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import ase.io
import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry import cellpar_to_cell
from test_files import largest_file

from snnp.errors import ConfigError, InputError, MissingDependencyError
from snnp.files import why_full
from snnp.sampling.checkpoint import (
    Checkpoint,
    EngineState,
    FileMark,
    read_checkpoint,
    starting_point,
    write_checkpoint,
)
from snnp.sampling.plots import RadialDistribution, plot_run
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, Snapshot, energy_drift
from snnp.sampling.trajectory import LogWriter, open_trajectory, read_dcd_frame, read_log
from snnp.units import BOLTZMANN_EV_PER_K, EV_PER_ANGSTROM3_IN_GPA

SUFFIXES = (".extxyz", ".dcd", ".xtc")


def skewed_crystal() -> Atoms:
    """Eight atoms in a triclinic left-handed cell that points anywhere."""
    atoms = bulk("Si", cubic=True)
    strain = np.array([[1.0, 0.1, 0.0], [-0.05, 1.1, 0.2], [0.1, 0.0, 0.9]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rotate(40.0, (1.0, 2.0, -0.5), rotate_cell=True)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]], scale_atoms=False)
    assert atoms.cell.handedness == -1
    return atoms


def snapshots(atoms: Atoms, count: int) -> list[Snapshot]:
    """The atoms drifting, with momenta, forces, and a cell that grows where there is one."""
    rng = np.random.default_rng(1)
    frames = []
    for k in range(count):
        frame = atoms.copy()
        frame.positions += 0.1 * k * rng.standard_normal(frame.positions.shape)
        if atoms.pbc.any():
            frame.set_cell(atoms.cell.array * (1.0 + 0.01 * k), scale_atoms=True)
        frame.set_momenta(rng.standard_normal(frame.positions.shape))
        stress = rng.standard_normal((3, 3)) if atoms.pbc.all() else None
        stress = None if stress is None else stress + stress.T
        frames.append(Snapshot(frame, -3.0 - k, rng.standard_normal(frame.positions.shape), stress))
    return frames


def write(path: Path, frames: list[Snapshot], settings: MDSettings) -> None:
    writer = open_trajectory(path, frames[0].atoms, settings)
    for k, frame in enumerate(frames):
        writer.write(frame, k * settings.trajectory_interval)
    writer.close()


def test_extended_xyz_gives_back_everything(tmp_path: Path) -> None:
    frames = snapshots(skewed_crystal(), 3)
    write(tmp_path / "run.extxyz", frames, MDSettings(dt_fs=2.0, trajectory_interval=5))
    read = ase.io.read(tmp_path / "run.extxyz", index=":")
    assert len(read) == 3
    for k, (atoms, frame) in enumerate(zip(read, frames, strict=True)):
        assert np.allclose(atoms.positions, frame.atoms.positions, atol=1e-7)
        assert np.allclose(atoms.cell.array, frame.atoms.cell.array, atol=1e-7)
        assert np.allclose(atoms.get_momenta(), frame.atoms.get_momenta(), atol=1e-7)
        assert np.allclose(atoms.get_forces(), frame.forces, atol=1e-7)
        assert np.allclose(atoms.get_stress(voigt=False), frame.stress, atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(frame.potential_energy)
        assert (atoms.info["step"], atoms.info["time_fs"]) == (5 * k, 10.0 * k)


@pytest.mark.parametrize("suffix, tolerance", [(".dcd", 2e-6), (".xtc", 0.011)])
@pytest.mark.parametrize("make", [skewed_crystal, lambda: bulk("Cu", cubic=True) * (2, 2, 2)])
def test_binary_trajectories_keep_all_distances(
    tmp_path: Path, suffix: str, tolerance: float, make: Callable[[], Atoms]
) -> None:
    frames = snapshots(make(), 4)
    write(tmp_path / f"run{suffix}", frames, MDSettings(dt_fs=2.0, trajectory_interval=5))
    loaded = mdtraj.load(str(tmp_path / f"run{suffix}"), top=str(tmp_path / "run_topology.pdb"))
    assert [atom.element.symbol for atom in loaded.topology.atoms] == list(frames[0].atoms.symbols)
    assert loaded.n_frames == 4
    if suffix == ".xtc":  # mdtraj does not read the times of a DCD file
        assert np.allclose(loaded.time, [0.0, 0.01, 0.02, 0.03])
    for k, frame in enumerate(frames):
        seen = Atoms(frame.atoms.symbols, 10.0 * loaded.xyz[k], cell=10.0 * loaded.unitcell_vectors[k], pbc=True)
        expected = frame.atoms.get_all_distances(mic=True)
        assert np.abs(seen.get_all_distances(mic=True) - expected).max() < 10.0 * tolerance
        assert seen.get_volume() == pytest.approx(frame.atoms.get_volume(), rel=1e-5)
    if np.allclose(frames[0].atoms.cell.angles(), 90.0):
        assert np.abs(10.0 * loaded.xyz[0] - frames[0].atoms.positions).max() < tolerance


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
def test_molecules_and_slabs_are_written(tmp_path: Path, suffix: str) -> None:
    frames = snapshots(molecule("CH3CH2OH"), 2)
    write(tmp_path / f"ethanol{suffix}", frames, MDSettings())
    loaded = mdtraj.load(str(tmp_path / f"ethanol{suffix}"), top=str(tmp_path / "ethanol_topology.pdb"))
    assert loaded.unitcell_vectors is None or not loaded.unitcell_vectors.any()
    assert np.abs(10.0 * loaded.xyz[1] - frames[1].atoms.positions).max() < 0.011
    slab = bulk("Al", cubic=True) * (2, 2, 3)
    slab.pbc = (True, True, False)
    slab.cell[2] = 0.0
    write(tmp_path / f"slab{suffix}", snapshots(slab, 2), MDSettings())
    loaded = mdtraj.load(str(tmp_path / f"slab{suffix}"), top=str(tmp_path / "slab_topology.pdb"))
    assert np.allclose(10.0 * loaded.unitcell_lengths[0, :2], 8.1, atol=1e-3)
    assert 10.0 * loaded.unitcell_lengths[0, 2] > np.ptp(slab.positions[:, 2])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_resumed_trajectory_is_that_of_an_uninterrupted_run(tmp_path: Path, suffix: str) -> None:
    frames = snapshots(skewed_crystal(), 5)
    settings = MDSettings(trajectory_interval=5)
    whole, torn = tmp_path / f"whole{suffix}", tmp_path / f"torn{suffix}"
    write(whole, frames, settings)
    writer = open_trajectory(torn, frames[0].atoms, settings)
    writer.write(frames[0], 0)
    writer.write(frames[1], 5)
    mark = writer.mark()
    writer.write(frames[2], 10)
    writer.close()
    with open(torn, "ab") as file:  # the killed process was in the middle of the next frame
        file.write(whole.read_bytes()[mark.n_bytes : mark.n_bytes + 17])
    writer = open_trajectory(torn, frames[0].atoms, settings, mark, next_step=10)
    for k in (2, 3, 4):
        writer.write(frames[k], 5 * k)
    writer.close()
    a, b = whole.read_bytes(), torn.read_bytes()
    if suffix == ".dcd":  # the header ends with the time of writing
        a, b = a[:180] + a[264:], b[:180] + b[264:]
    assert a == b


def test_resuming_needs_the_trajectory_of_the_run(tmp_path: Path) -> None:
    atoms = bulk("Si", cubic=True)
    with pytest.raises(InputError, match=r"'.*run.extxyz' holds 0 bytes but had 100 at the checkpoint"):
        open_trajectory(tmp_path / "run.extxyz", atoms, MDSettings(), FileMark(100, 1), next_step=10)


@pytest.mark.parametrize("name", ["run.dcd", "run.xtc"])
def test_formats_that_need_openmm_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)  # what an absent package looks like to `import`
    with pytest.raises(MissingDependencyError, match=r"pip install 'snnp\[openmm\]', or choose the suffix .extxyz"):
        open_trajectory(tmp_path / name, bulk("Si"), MDSettings())


def sample(step: int) -> Sample:
    return Sample.of(snapshots(skewed_crystal(), 1)[0], step, 2.0 * step, 24)


def test_the_numbers_of_a_sample_follow_from_its_snapshot() -> None:
    snapshot = snapshots(skewed_crystal(), 1)[0]
    row = Sample.of(snapshot, 10, 20.0, 24)
    momenta, masses = snapshot.atoms.get_momenta(), snapshot.atoms.get_masses()
    kinetic = 0.5 * (momenta**2 / masses[:, None]).sum()
    assert row.time_ps == pytest.approx(0.02)
    assert row.kinetic_energy_ev == pytest.approx(kinetic)
    assert row.total_energy_ev == pytest.approx(snapshot.potential_energy + kinetic)
    assert row.temperature_k == pytest.approx(2.0 * kinetic / 24.0 / BOLTZMANN_EV_PER_K)
    assert snapshot.stress is not None
    virial = -np.trace(snapshot.stress) * row.volume_a3
    expected = (2.0 * kinetic + virial) / (3.0 * row.volume_a3) * EV_PER_ANGSTROM3_IN_GPA
    assert row.pressure_gpa == pytest.approx(expected)
    free = Sample.of(snapshots(molecule("H2O"), 1)[0], 0, 0.0, 6)
    assert np.isnan(free.pressure_gpa)
    assert np.isnan(free.volume_a3)


def test_the_log_is_cut_back_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    log = LogWriter(path)
    log.write(sample(0))
    log.write(sample(10))
    mark = log.mark()
    log.write(sample(20))
    log.close()
    log = LogWriter(path, mark)
    log.write(sample(20))
    log.close()
    assert path.read_text().splitlines()[0] == (
        "step,time_ps,potential_energy_ev,kinetic_energy_ev,total_energy_ev,temperature_k,volume_a3,pressure_gpa"
    )
    assert [row.step for row in read_log(path)] == [0, 10, 20]
    assert read_log(path)[1] == pytest.approx(sample(10), abs=1e-8, nan_ok=True)
    path.write_text("time,energy\n0,1\n")
    with pytest.raises(InputError, match="is not a molecular dynamics log"):
        read_log(path)


def test_energy_drift_is_the_slope_per_atom() -> None:
    time_ps = np.linspace(0.0, 10.0, 101)
    column = {"step": time_ps, "time_ps": time_ps, "total_energy_ev": -5.0 + 0.003 * time_ps}
    # 0.003 eV/ps is 3000 meV/ns.
    assert energy_drift(column, 10) == pytest.approx(300.0)
    assert energy_drift({name: values[:2] for name, values in column.items()}, 10) is None


def test_checkpoints_are_exact_and_hold_no_pickle(tmp_path: Path) -> None:
    atoms = snapshots(skewed_crystal(), 1)[0].atoms
    rng = np.random.default_rng(3).bit_generator.state
    state = EngineState({"p": np.array([0.1, 1.0 / 3.0])}, {"rng": rng})
    written = Checkpoint("ase", 40, atoms, state, MDSettings().defining(), {"log": FileMark(120, 4)})
    path = tmp_path / "run.npz"
    write_checkpoint(path, written)
    read = read_checkpoint(path)
    assert (read.engine, read.step, read.settings, read.files) == ("ase", 40, written.settings, written.files)
    for name in ("positions", "momenta", "numbers"):
        assert np.array_equal(read.atoms.arrays[name], atoms.arrays[name])
    assert np.array_equal(read.atoms.get_masses(), atoms.get_masses())
    assert np.array_equal(read.atoms.cell.array, atoms.cell.array)
    assert np.array_equal(read.state.arrays["p"], state.arrays["p"])
    assert read.state.values["rng"] == rng
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_damaged_or_foreign_checkpoints_are_named(tmp_path: Path) -> None:
    atoms = bulk("Si", cubic=True)
    path = tmp_path / "run.npz"
    settings = MDSettings(checkpoint=path, resume=True)
    with pytest.raises(InputError, match=r"no checkpoint '.*run.npz' to resume from; run once without resume"):
        starting_point(atoms, settings, "ase")
    write_checkpoint(path, starting_point(atoms, MDSettings(), "ase"))
    whole = path.read_bytes()
    for broken in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            starting_point(atoms, settings, "ase")
    np.savez(path, header=np.array('{"format": "snnp-md-checkpoint", "format_version": 99}'))
    with pytest.raises(InputError, match="version 99, expected snnp-md-checkpoint up to version 1; update snnp"):
        starting_point(atoms, settings, "ase")
    path.write_bytes(whole)
    with pytest.raises(InputError, match="written by engine 'ase', not 'openmm'"):
        starting_point(atoms, settings, "openmm")
    with pytest.raises(InputError, match="holds Si8, the structure is Al4"):
        starting_point(bulk("Al", cubic=True), settings, "ase")
    with pytest.raises(ConfigError, match=r"temperature_k is 500.0 but the run to resume had 300.0"):
        starting_point(atoms, settings.model_copy(update={"temperature_k": 500.0}), "ase")


def test_radial_distribution_counts_neighbours_and_goes_to_one() -> None:
    crystal = bulk("Al", cubic=True, a=4.0) * (2, 2, 2)
    rdf = RadialDistribution(reach=6.0, width=0.05)
    rdf.add(crystal, 0)
    (curve,) = rdf.curves().values()
    shells = curve * 4.0 * np.pi * rdf.centres**2 * 0.05 * len(crystal) / crystal.get_volume()
    first = (rdf.centres > 2.5) & (rdf.centres < 3.2)
    assert shells[first].sum() == pytest.approx(12.0, rel=1e-3)
    gas = Atoms("NaCl" * 200, np.random.default_rng(0).random((400, 3)) * 15.0, cell=[15.0] * 3, pbc=True)
    rdf = RadialDistribution(reach=6.0, width=0.5)
    rdf.add(gas, 0)
    assert set(rdf.curves()) == {"Na-Na", "Na-Cl", "Cl-Cl"}
    for curve in rdf.curves().values():
        assert curve[4:].mean() == pytest.approx(1.0, abs=0.05)


def test_without_a_density_the_radial_distribution_counts_per_angstrom() -> None:
    water = molecule("H2O")
    rdf = RadialDistribution(reach=3.0, width=0.1)
    rdf.add(water, 0)
    assert not rdf.normalised
    curves = rdf.curves()
    # Elements are ordered by atomic number: each H has one H and one O.
    assert (curves["H-O"] * 0.1).sum() == pytest.approx(1.0)
    assert (curves["H-H"] * 0.1).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_the_picture_is_a_png(tmp_path: Path, ensemble: str) -> None:
    atoms = bulk("Al", cubic=True)
    rdf = RadialDistribution()
    if ensemble == "npt":
        rdf.add(atoms, 0)
    settings = MDSettings.model_validate({"ensemble": ensemble, "steps": 100})
    plot_run(tmp_path / "run.png", [sample(k) for k in range(0, 100, 10)], rdf, settings, atoms, 0)
    assert (tmp_path / "run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


# Cells in any form.


CELLS = {
    "fcc": bulk("Cu") * (3, 3, 3),
    "bcc": bulk("Mo") * (3, 3, 3),
    "hcp": bulk("Mg") * (3, 3, 2),
    "left-handed": Atoms("Si2", [[0, 0, 0], [1, 1, 1]], cell=[[0, 5, 5], [5, 5, 0], [5, 0, 5]], pbc=True),
    "oblique": Atoms("Si2", [[0, 0, 0], [1, 1, 1]], cell=cellpar_to_cell([4, 5, 9, 40, 60, 35]), pbc=True),
    "long": Atoms("Si2", [[0, 0, 0], [1, 1, 1]], cell=[[4, 0, 0], [11, 4, 0], [-9, 13, 5]], pbc=True),
}


@pytest.mark.parametrize("suffix, tolerance", [(".dcd", 2e-5), (".xtc", 0.03)])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_written_and_frames_match_the_atoms(
    tmp_path: Path, name: str, suffix: str, tolerance: float
) -> None:
    frames = snapshots(CELLS[name], 3)
    write(tmp_path / f"run{suffix}", frames, MDSettings())
    top = str(tmp_path / "run_topology.pdb")
    loaded, first = mdtraj.load(str(tmp_path / f"run{suffix}"), top=top), mdtraj.load(top)
    assert np.abs(loaded.xyz[0] - first.xyz[0]).max() < 1.1e-3  # one set of axes for both files
    for k, frame in enumerate(frames):
        seen = Atoms(frame.atoms.symbols, 10.0 * loaded.xyz[k], cell=10.0 * loaded.unitcell_vectors[k], pbc=True)
        expected = frame.atoms.get_all_distances(mic=True)
        assert np.abs(seen.get_all_distances(mic=True) - expected).max() < tolerance
        # The same lattice: every old vector is a whole combination of the new ones, and the volumes agree.
        assert seen.get_volume() == pytest.approx(frame.atoms.get_volume(), rel=1e-4)
        lengths = Atoms("H", [[0, 0, 0]], cell=seen.cell, pbc=True).repeat((5, 5, 5)).get_all_distances()[62]
        for vector in frame.atoms.cell.lengths():
            assert name in ("long", "oblique") or np.abs(lengths - vector).min() < tolerance


def test_the_box_keeps_its_vectors_while_the_cell_breathes(tmp_path: Path) -> None:
    """An fcc primitive cell lies exactly between two choices of vectors."""
    atoms, rng = CELLS["fcc"], np.random.default_rng(0)
    frames = []
    for _ in range(20):
        frame = atoms.copy()
        frame.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.standard_normal((3, 3))), scale_atoms=True)
        frames.append(Snapshot(frame, 0.0, np.zeros((27, 3)), None))
    write(tmp_path / "run.dcd", frames, MDSettings())
    loaded = mdtraj.load(str(tmp_path / "run.dcd"), top=str(tmp_path / "run_topology.pdb"))
    assert np.abs(loaded.unitcell_angles - [60.0, 120.0, 120.0]).max() < 6.0


@pytest.mark.filterwarnings("ignore:DCDReader currently makes independent timesteps:DeprecationWarning")
def test_mdanalysis_reads_them_alike(tmp_path: Path) -> None:
    universe = pytest.importorskip("MDAnalysis").Universe
    for suffix in (".dcd", ".xtc"):
        frames = snapshots(CELLS["fcc"], 3)
        write(tmp_path / f"run{suffix}", frames, MDSettings())
        seen = universe(str(tmp_path / "run_topology.pdb"), str(tmp_path / f"run{suffix}"))
        loaded = mdtraj.load(str(tmp_path / f"run{suffix}"), top=str(tmp_path / "run_topology.pdb"))
        assert seen.trajectory.n_frames == 3
        for k, step in enumerate(seen.trajectory):
            assert np.allclose(step.positions, 10.0 * loaded.xyz[k], atol=1e-3)
            assert np.allclose(step.triclinic_dimensions, 10.0 * loaded.unitcell_vectors[k], atol=1e-3)


def test_frames_of_dcd_files_are_read_back(tmp_path: Path) -> None:
    frames = snapshots(bulk("Cu", cubic=True), 4)
    write(tmp_path / "run.dcd", frames, MDSettings())
    for index in (-1, 0, 2):
        positions, cell = read_dcd_frame(tmp_path / "run.dcd", index, 4)
        assert np.abs(positions - frames[index].atoms.positions).max() < 1e-5
        assert cell is not None
        assert np.abs(cell - frames[index].atoms.cell.array).max() < 1e-5
    with open(tmp_path / "run.dcd", "ab") as file:
        file.write(b"torn")
    assert np.array_equal(read_dcd_frame(tmp_path / "run.dcd", -1, 4)[0], read_dcd_frame(tmp_path / "run.dcd", 3, 4)[0])
    for index, n_atoms, message in (
        (4, 4, "has 4 frames; there is no frame 4"),
        (0, 5, "holds 4 atoms, its topology 5"),
    ):
        with pytest.raises(InputError, match=message):
            read_dcd_frame(tmp_path / "run.dcd", index, n_atoms)
    (tmp_path / "no.dcd").write_bytes(b"T\0\0\0CORD")
    with pytest.raises(InputError, match="cut short in its header"):
        read_dcd_frame(tmp_path / "no.dcd", 0, 4)


# Full disks.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_said_and_leaves_whole_frames(tmp_path: Path, suffix: str) -> None:
    frames = snapshots(bulk("Si", cubic=True) * (2, 2, 2), 12)
    whole, full, settings = tmp_path / f"whole{suffix}", tmp_path / f"full{suffix}", MDSettings(trajectory_interval=5)
    write(whole, frames, settings)
    writer = open_trajectory(full, frames[0].atoms, settings)
    written, errors = 0, []
    with largest_file(int(0.6 * whole.stat().st_size)):
        while not errors:
            try:
                writer.write(frames[written], 5 * written)
                written += 1
            except OSError as error:
                errors.append(error)
    assert errors[0].filename == str(full)
    assert why_full(errors[0]) is not None
    writer.close()
    assert 0 < written < 12
    mark = FileMark(full.stat().st_size, written)
    writer = open_trajectory(full, frames[0].atoms, settings, mark, next_step=5 * written)
    for k in range(written, 12):
        writer.write(frames[k], 5 * k)
    writer.mark()
    writer.close()
    a, b = whole.read_bytes(), full.read_bytes()
    assert (a[:180] + a[264:] == b[:180] + b[264:]) if suffix == ".dcd" else (a == b)


def test_a_file_that_somebody_else_changes_is_noticed(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "run.csv")
    log.write(sample(0))
    mark = log.mark()
    (tmp_path / "run.csv").write_text("short")
    with pytest.raises(InputError, match=r"run.csv' holds 5 bytes although .* were written; another program"):
        log.mark()
    log.close()
    (tmp_path / "run.csv").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="is not the file that the run wrote"):
        LogWriter(tmp_path / "run.csv", mark)
