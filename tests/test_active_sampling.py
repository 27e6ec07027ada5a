"""Nonequilibrium sampling: placements, schedules, and what committees harvest."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.io import write

from snnp.active.placement import closeness, compositions, conformers, density_of, guessed_density, place
from snnp.active.schedule import Schedule
from snnp.active.trajectories import Sampled, SamplingSettings, placements, sample
from snnp.errors import ConfigError, InputError
from snnp.hub import load_model
from snnp.models import Ensemble, Potential
from snnp.structure import Structure
from snnp.uncertainty import Committee


def committee(noise: float, name: str = "snnp-cu") -> list[Potential]:
    model = load_model(name)
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.0 + noise * torch.randn(parameter.shape, generator=generator))
    return [model, other]


@pytest.fixture(scope="module")
def doubting() -> list[Potential]:
    return committee(3e-3)


def small(**changes: Any) -> SamplingSettings:
    usual = {"elements": ("Cu",), "trajectories": 6, "together": 3, "picoseconds": 0.2, "n_atoms": (6, 10)}
    return SamplingSettings(**{**usual, "apart_ps": 0.0, "energy_limit": 0.0015, **changes})


def same(one: Sequence[Atoms], other: Sequence[Atoms]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a.positions, b.positions) and np.array_equal(a.cell, b.cell) for a, b in pairs)


# Placements


@pytest.mark.parametrize("n_atoms", [1, 2, 3, 20, 50])
def test_no_pair_is_closer_than_asked_images_included(n_atoms: int) -> None:
    for seed in range(5):
        numbers = np.resize([29, 13], n_atoms)
        atoms = place(numbers, 11.0 * n_atoms, 0.8, np.random.default_rng(seed))
        assert atoms.get_volume() == pytest.approx(11.0 * n_atoms)
        crowd = atoms.repeat((3, 3, 3))  # whose middle one sees all its images by plain distances
        middle = crowd.positions[13 * n_atoms : 14 * n_atoms]
        radii = covalent_radii[crowd.numbers]
        distances = np.linalg.norm(middle[:, None] - crowd.positions, axis=2)
        distances[np.arange(n_atoms), 13 * n_atoms + np.arange(n_atoms)] = np.inf
        nearest = (distances / (radii[13 * n_atoms : 14 * n_atoms, None] + radii)).min()
        assert nearest >= 0.8
        assert closeness(Structure.from_ase(atoms))[0] == pytest.approx(min(nearest, np.inf)) or nearest > 1.0


def test_what_cannot_be_placed_is_said_with_the_cure() -> None:
    with pytest.raises(InputError, match=r"fill \d+% of .* lower the density, or closest"):
        place(np.full(20, 29), 100.0, 0.9, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"no place in .* lower the density"):
        place(np.full(1, 29), 17.5, 1.0, np.random.default_rng(0))  # an atom is its own neighbour


def test_compositions() -> None:
    rng = np.random.default_rng(0)
    assert sorted(compositions((), "Al2O3", 11, rng)) == [8] * 6 + [13] * 4
    assert set(compositions(("Al", "Cu"), None, 200, rng)) == {13, 29}
    for elements, formula, said in (((), None, "no elements"), (("Zz",), None, "'Zz'"), ((), "Al2Q", "'Al2Q'")):
        with pytest.raises(InputError, match=said):
            compositions(elements, formula, 4, rng)


def test_densities() -> None:
    aluminium = bulk("Al", a=4.05, cubic=True)
    assert density_of(aluminium) == pytest.approx(2.70, abs=0.01)
    assert guessed_density(aluminium) == pytest.approx(2.70, abs=0.01)
    assert np.isnan(density_of(molecule("H2O")))
    settings = small(elements=("Al",), placement_density=(0.7, 0.9))
    densities = [density_of(atoms) / 2.70 for atoms in placements(settings, 12, 0)]
    assert 0.69 < min(densities) < max(densities) < 0.91
    assert density_of(placements(small(reference_density=5.0, placement_density=(1.0, 1.0)), 1, 0)[0]) == pytest.approx(
        5
    )


def test_placements_have_no_crystal_and_differ() -> None:
    first, again = placements(small(), 6, 0), placements(small(), 6, 0)
    assert same(first, again)
    assert not same(first[:1], placements(small(), 1, 1))
    assert same(first[:2], placements(small(), 2, 0))  # number k does not depend on how many there are


@pytest.mark.parametrize("symbol", ["Li", "Cu", "Mo", "Si", "Mg"])
@pytest.mark.parametrize("system", ["metal", "semiconductor"])
def test_usual_placements_find_room_for_any_element(symbol: str, system: str) -> None:
    settings = SamplingSettings(system=system, elements=(symbol,), n_atoms=(4, 40))
    placed = placements(settings, 6, 1)
    assert len(placed) == 6
    assert all(closeness(Structure.from_ase(atoms))[0] > settings.fused + 0.05 for atoms in placed)


def test_conformers(tmp_path: Path) -> None:
    found = conformers(["g2"], 6, 0, apart=())
    assert found
    assert not any(atoms.pbc.any() for atoms in found)
    one = str(tmp_path / "one.xyz")
    write(one, molecule("CH3CH2OH"))
    with pytest.raises(InputError, match="no molecule is left"):
        conformers([one], 4, 0, apart=[one])


# Schedules and settings


def test_the_schedule_is_the_formula() -> None:
    one = Schedule(start=300.0, end=900.0, swing=200.0, period_ps=4.0, length_ps=10.0)
    assert one.at(0.0) == 300.0
    assert one.at(2.0) == pytest.approx(300.0 + 120.0 + 200.0)  # half a period: the sine is one
    assert one.at(4.0) == pytest.approx(300.0 + 240.0)
    assert one.at(3.0) == pytest.approx(300.0 + 180.0 + 200.0 * np.sin(np.pi * 0.75) ** 2)


@pytest.mark.parametrize("system", ["metal", "semiconductor", "molecule"])
def test_usual_values_of_systems(system: str) -> None:
    settings = SamplingSettings(system=system)
    again = SamplingSettings(**json.loads(settings.model_dump_json()))
    assert again == settings
    for seed in range(20):
        temperature, density = settings.schedules(np.random.default_rng(seed))
        times = np.linspace(0.0, settings.picoseconds, 200)
        assert all(0.0 < temperature.at(t) <= settings.temperatures_k[1] + settings.swing_k[1] for t in times)
        assert density.at(0.0) == 1.0
        assert all(0.5 < density.at(t) < 1.5 for t in times)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature_k": (1, 2)}, r"unknown key 'temperature_k'. Did you mean 'temperatures_k'"),
        ({"temperatures_k": (900, 300)}, r"temperatures_k: the first of a range is the lower one, got 900 and 300"),
        ({"n_atoms": (0, 4)}, "n_atoms must be positive"),
        ({"system": "metals"}, "system: .*'metal'"),
        ({"swing_k": (-200, 0)}, "swing_k can bring temperature or density below zero"),
        ({"density_swing": (-0.95, 0)}, "density_swing can bring"),
        ({"energy_limit": 0}, r"energy_limit: .* greater than 0 \(got 0\)"),
        ({"friction_per_ps": float("nan")}, "friction_per_ps"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingSettings(**values)


# Sampling


def test_frames_say_where_they_come_from(doubting: list[Potential], tmp_path: Path) -> None:
    found = sample(doubting, small(), [], tmp_path, 0)
    assert 0 < found.harvested == len(found.frames) == sum(found.reasons.values())
    for atoms in found.frames:
        assert {"trajectory", "step", "temperature", "density", "reason", "spread"} <= set(atoms.info)
        assert atoms.info["step"] % 20 == 0
        assert density_of(atoms) == pytest.approx(atoms.info["density"])
    written = json.loads((tmp_path / "trajectories.json").read_text())
    assert [each["number"] for each in written["trajectories"]] == list(range(6))
    assert all(each["end"] for each in written["trajectories"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.extxyz", "trajectories.json"]


def test_same_seed_same_frames_and_what_is_finished_is_not_run_again(
    doubting: list[Potential], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample(doubting, small(), [], tmp_path / "whole", 0)

    def stop(done: int, total: int, frames: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(doubting, small(), [], tmp_path / "cut", 0, report=stop)
    seen: list[int] = []
    from snnp.active import trajectories

    class Counted(trajectories._Portion):
        def __init__(self, *arguments: Any) -> None:
            seen.extend(arguments[3])
            super().__init__(*arguments)

    monkeypatch.setattr(trajectories, "_Portion", Counted)
    resumed = sample(Ensemble(doubting), small(), [], tmp_path / "cut", 0)
    assert seen == [3, 4, 5]
    assert same(whole.frames, resumed.frames)
    assert (tmp_path / "whole/frames.extxyz").read_bytes() == (tmp_path / "cut/frames.extxyz").read_bytes()
    again = sample(doubting, small(), [], tmp_path / "cut", 0)
    assert seen == [3, 4, 5]
    assert same(again.frames, whole.frames)
    assert again.reasons == whole.reasons


def test_a_folder_of_another_sampling_is_refused(doubting: list[Potential], tmp_path: Path) -> None:
    sample(doubting, small(trajectories=1), [], tmp_path, 0)
    with pytest.raises(InputError, match="another seed; name another folder"):
        sample(doubting, small(trajectories=1), [], tmp_path, 1)
    (tmp_path / "frames.extxyz").write_text("")
    with pytest.raises(InputError, match=r"is not what .* remove both"):
        sample(doubting, small(trajectories=1), [], tmp_path, 0)
    (tmp_path / "trajectories.json").write_text("{")
    with pytest.raises(InputError, match="is damaged; remove it"):
        sample(doubting, small(trajectories=1), [], tmp_path, 0)


def test_limits_that_nothing_or_everything_passes(doubting: list[Potential], tmp_path: Path) -> None:
    wide = {"energy_limit": 99.0, "force_limit": 99.0, "largest_force_limit": 99.0}
    nothing = sample(doubting, small(**wide, trajectories=3), [], tmp_path / "nothing", 0)
    assert not [r for r in nothing.reasons if r not in ("atoms close", "exploded")]
    assert (tmp_path / "nothing/frames.extxyz").is_file()
    everything = sample(doubting, small(energy_limit=1e-9, trajectories=3), [], tmp_path / "all", 0)
    assert everything.reasons == {"energy": 3}  # the first look, beyond which nothing is worth knowing
    assert {atoms.info["step"] for atoms in everything.frames} == {0}
    assert all(each.end.startswith("uncertain") for each in everything.trajectories)


def test_several_frames_of_a_trajectory_and_the_most_different_of_all(
    doubting: list[Potential], tmp_path: Path
) -> None:
    settings = small(energy_limit=1e-6, give_up=1e9, most_frames_each=4, apart_ps=0.04)
    found = sample(doubting, settings, [], tmp_path / "all", 0)
    for number in range(6):
        steps = [atoms.info["step"] for atoms in found.frames if atoms.info["trajectory"] == number]
        assert len(steps) <= 4
        assert all(np.diff(steps) * 0.002 >= 0.04 - 1e-9)
    assert max(found.ends, key=lambda end: found.ends[end]) == "gave its frames"
    few = sample(doubting, settings.model_copy(update={"most_frames": 6}), [], tmp_path / "few", 0)
    assert (len(few.frames), few.harvested) == (6, found.harvested)
    assert len({atoms.info["trajectory"] for atoms in few.frames}) > 3


def test_temperature_and_density_follow_their_schedules(tmp_path: Path) -> None:
    quiet = committee(0.0)
    settings = small(
        trajectories=2, picoseconds=0.8, temperatures_k=(600, 600), swing_k=(0, 0), density_change=(0.9, 0.9),
        density_swing=(0.0, 0.0), check_steps=10,
    )  # fmt: skip
    start = bulk("Cu", cubic=True).repeat((2, 2, 2))
    found = sample(quiet, settings, [start], tmp_path, 0)
    for each in found.trajectories:
        assert each.end == "ran to its end"
        time, kelvin, density, ratio = np.array(each.visited).T
        assert np.mean(kelvin[time > 0.2]) == pytest.approx(600.0, rel=0.15)
        assert density / density_of(start) == pytest.approx(1.0 - 0.1 * time / 0.8, abs=0.002)
        assert ratio.max() == 0.0


def test_calibrated_spreads_are_what_is_limited(doubting: list[Potential], tmp_path: Path) -> None:
    plain = sample(doubting, small(trajectories=1), [], tmp_path / "plain", 0).trajectories[0]
    calibrated = Committee(doubting)
    calibrated.scales = 0.5, 0.5
    halved = sample(calibrated, small(trajectories=1), [], tmp_path / "halved", 0).trajectories[0]
    assert halved.visited[0][3] == pytest.approx(0.5 * plain.visited[0][3], abs=1e-3)


def test_molecules_move_without_a_box(tmp_path: Path) -> None:
    members = committee(2e-3, "snnp-organic")
    settings = SamplingSettings(system="molecule", trajectories=3, picoseconds=0.05, energy_limit=1e-6, give_up=1e9)
    found = sample(members, settings, [molecule("CH3CH2OH")], tmp_path, 0)
    assert found.frames
    assert not any(atoms.pbc.any() or "density" in atoms.info for atoms in found.frames)
    assert all(each.visited[0][2] is None for each in found.trajectories)


def test_fused_atoms_end_a_trajectory_and_the_frame_before_is_kept(doubting: list[Potential], tmp_path: Path) -> None:
    settings = small(trajectories=2, closest=0.8, fused=0.85, energy_limit=9.0, force_limit=9.0, most_frames_each=1)
    start = bulk("Cu", cubic=True)
    found = sample(doubting, settings.model_copy(update={"temperatures_k": (6e3, 6e3)}), [start], tmp_path, 0)
    assert set(found.ends) == {"atoms came close"}
    assert set(found.reasons) == {"atoms close"}
    assert all(closeness(Structure.from_ase(atoms))[0] > 0.85 for atoms in found.frames)


def test_what_cannot_be_sampled_is_said(doubting: list[Potential], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 potentials"):
        sample(doubting[:1], small(), [], tmp_path, 0)
    with pytest.raises(InputError, match="Al"):
        sample(doubting, small(), [bulk("Al")], tmp_path, 0)
    with pytest.raises(InputError, match="no elements were named"):
        sample(doubting, small(elements=()), [], tmp_path, 0)


def test_the_mean_of_the_members_moves_the_atoms(tmp_path: Path) -> None:
    """Two members with opposite errors go where the model goes that is right, within the first steps."""
    model = load_model("snnp-cu", dtype="float64")
    found: list[Sampled] = []
    settings = small(
        trajectories=1, picoseconds=0.02, check_steps=1, energy_limit=1e-12, give_up=1e15, most_frames_each=99
    )
    for k, members in enumerate(([model, model], [model, copy.deepcopy(model), model])):
        found.append(sample(members, settings, [bulk("Cu", cubic=True)], tmp_path / str(k), 0))
    assert not any(each.frames for each in found)  # equal members never disagree
    assert found[0].trajectories[0].visited[-1][1] == pytest.approx(found[1].trajectories[0].visited[-1][1], rel=1e-3)
