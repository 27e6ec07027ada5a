"""Neighbour lists against ASE's, which is slow and independent; and lists that are kept between steps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from snnp.errors import InputError
from snnp.neighbours import VerletList, neighbour_list, pair_vectors
from snnp.structure import Structure

Pairs = Counter[tuple[int, int, int, int, int]]


def _random(pbc: tuple[bool, bool, bool], cell: list[list[float]], n_atoms: int, seed: int) -> Atoms:
    """Atoms anywhere, many of them outside the cell."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1.5, 2.5, (n_atoms, 3)) @ np.array(cell)
    return Atoms(f"H{n_atoms}", positions, cell=cell, pbc=pbc)


def _ours(structure: Structure, cutoff: float) -> Pairs:
    pairs = neighbour_list(structure, cutoff)
    columns = torch.cat([pairs.i[:, None], pairs.j[:, None], pairs.shift], dim=1)
    return Counter((a, b, x, y, z) for a, b, x, y, z in columns.tolist())


def _ase(atoms: Atoms, cutoff: float) -> Pairs:
    # ASE wants vectors along open directions to be independent of the others; they have no part in the shifts.
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    return Counter(zip(i.tolist(), j.tolist(), *shift.T.tolist(), strict=True))


CUBE = [[6.0, 0, 0], [0, 7.0, 0], [0, 0, 8.0]]
SKEWED = [[5.0, 0, 0], [4.0, 3.0, 0], [-3.0, 2.0, 4.0]]
THIN = [[20.0, 0, 0], [19.0, 2.0, 0], [0, 0, 3.0]]
LEFT_HANDED = [[0, 5.0, 0], [4.0, 0, 0], [1.0, 0, 6.0]]
ALL, SLAB, WIRE, NONE = (True, True, True), (True, False, True), (False, True, False), (False, False, False)


@pytest.mark.parametrize("pbc", [ALL, SLAB, WIRE, NONE])
@pytest.mark.parametrize("cell", [CUBE, SKEWED, THIN, LEFT_HANDED])
@pytest.mark.parametrize("cutoff", [1.2, 3.7])
def test_same_pairs_as_ase(pbc: tuple[bool, bool, bool], cell: list[list[float]], cutoff: float) -> None:
    atoms = _random(pbc, cell, 12, seed=len(cell) + sum(pbc))
    assert _ours(Structure.from_ase(atoms), cutoff) == _ase(atoms, cutoff)


TINY = {
    "copper, one atom": bulk("Cu"),
    "silicon, two atoms": bulk("Si"),
    "needle": Atoms("H", cell=[[1.1, 0, 0], [0, 9.0, 0], [0.3, 0, 9.0]], pbc=True),
    "layer": Atoms("H2", [[0, 0, 0], [0.4, 0.2, 1.5]], cell=[[1.2, 0, 0], [0.5, 1.3, 0], [0, 0, 1]], pbc=SLAB[::-1]),
}


@pytest.mark.parametrize("name", TINY)
def test_cells_smaller_than_the_cutoff(name: str) -> None:
    """One neighbour appears through many images, an atom is its own neighbour."""
    atoms = TINY[name]
    ours = _ours(Structure.from_ase(atoms), 5.3)
    assert ours == _ase(atoms, 5.3)
    assert sum(ours.values()) >= 8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_zero_vectors_along_open_directions(axis: int) -> None:
    """A slab or wire needs no third vector; ASE's list is asked with one that is orthogonal."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    order = np.roll([0, 1, 2], axis)
    turned = Atoms(slab.numbers, slab.positions[:, order], cell=slab.cell.array[:, order][order], pbc=slab.pbc[order])
    turned.rattle(0.1, seed=1)
    wanted = _ase(turned, 4.0)
    turned.cell[list(order).index(2)] = 0.0
    assert _ours(Structure.from_ase(turned), 4.0) == wanted


def test_vectors_are_those_of_ase() -> None:
    atoms = _random(ALL, SKEWED, 10, seed=4)
    structure = Structure.from_ase(atoms)
    pairs = neighbour_list(structure, 3.0)
    i, j, shift, vectors = neighbor_list("ijSD", atoms, 3.0)
    wanted = {(a, b, *s): v for a, b, s, v in zip(i, j, map(tuple, shift), vectors, strict=True)}
    for a, b, s, v in zip(pairs.i, pairs.j, pairs.shift, pair_vectors(structure, pairs), strict=True):
        np.testing.assert_allclose(v, wanted[(int(a), int(b), *s.tolist())], atol=1e-12)


def test_a_batch_is_the_lists_of_its_structures() -> None:
    frames = [molecule("C2H6"), Atoms(), _random(ALL, CUBE, 8, 1), Atoms("He"), _random(SLAB, SKEWED, 7, 2)]
    batch = Structure.from_ase(frames)
    pairs = neighbour_list(batch, 3.0)
    assert bool((pairs.i.diff() >= 0).all())
    assert torch.equal(batch.structure_of_atom[pairs.i], batch.structure_of_atom[pairs.j])
    first, together = 0, pair_vectors(batch, pairs)
    for frame in frames:
        single = Structure.from_ase(frame)
        alone = neighbour_list(single, 3.0)
        mine = (pairs.i >= first) & (pairs.i < first + len(frame))
        assert torch.equal(pairs.i[mine] - first, alone.i)
        assert torch.equal(pairs.j[mine] - first, alone.j)
        torch.testing.assert_close(together[mine], pair_vectors(single, alone), atol=1e-13, rtol=0.0)
        first += len(frame)


def test_nothing_to_find() -> None:
    for atoms in ([], [Atoms()], Atoms("H"), Atoms("H2", [[0, 0, 0], [0, 0, 50.0]])):
        pairs = neighbour_list(Structure.from_ase(atoms), 3.0)
        assert pairs.n_pairs == 0
        assert pairs.shift.shape == (0, 3)


def test_distance_exactly_below_and_above_the_cutoff() -> None:
    pair = Structure.from_ase(Atoms("H2", [[0, 0, 0], [0, 0, 2.0]]))
    assert neighbour_list(pair, 2.0 + 1e-9).n_pairs == 2
    assert neighbour_list(pair, 2.0 - 1e-9).n_pairs == 0


def test_vectors_are_differentiable_in_positions_and_cell() -> None:
    structure = Structure.from_ase(_random(ALL, SKEWED, 4, seed=9))
    pairs = neighbour_list(structure, 3.0)

    def vectors(positions: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        moved = Structure(structure.numbers, positions, cell, structure.pbc, structure.structure_of_atom)
        return pair_vectors(moved, pairs)

    inputs = (structure.positions.requires_grad_(), structure.cell.requires_grad_())
    assert torch.autograd.gradcheck(vectors, inputs)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_cutoff_must_be_a_length(cutoff: float) -> None:
    with pytest.raises(InputError, match="cutoff must be positive and finite"):
        neighbour_list(Structure.from_ase(molecule("H2O")), cutoff)


@pytest.mark.parametrize("farthest", [1e6, 1e12, 1e100])
@pytest.mark.parametrize("periodic", [False, True])
def test_exploded_structures_are_refused(farthest: float, periodic: bool) -> None:
    """The cell list would overflow, which ends the interpreter without a word."""
    atoms = Atoms("H2", [[0, 0, 0], [farthest, 0, 0]], cell=[farthest] * 3, pbc=periodic)
    with pytest.raises(InputError, match="has exploded"):
        neighbour_list(Structure.from_ase(atoms), 3.0)


@pytest.mark.parametrize("pbc", [True, (True, True, False), (False, False, True)])
def test_collapsed_cells_are_refused(pbc: object) -> None:
    """Their images would take all memory."""
    atoms = Atoms("H8", np.random.default_rng(0).random((8, 3)), cell=[1e-3] * 3, pbc=pbc)
    with pytest.raises(InputError, match="denser than any matter"):
        neighbour_list(Structure.from_ase(atoms), 5.0)


def test_far_outside_the_cell_is_fine() -> None:
    """Unwrapped trajectories leave the cell."""
    inside = _random(ALL, CUBE, 6, seed=5)
    outside = inside.copy()
    outside.positions += np.array([1000, -2000, 700]) @ inside.cell.array
    lists = [neighbour_list(Structure.from_ase(atoms), 3.0) for atoms in (inside, outside)]
    assert lists[0].n_pairs == lists[1].n_pairs > 0


def test_flat_cell_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match="no volume"):
        neighbour_list(Structure.from_ase(Atoms("H", cell=[[2, 0, 0], [4, 0, 0], [0, 0, 9]], pbc=(1, 1, 0))), 3.0)
    with pytest.raises(InputError, match="NaN"):
        neighbour_list(Structure.from_ase(Atoms("H", [[0, 0, float("nan")]])), 3.0)


# Lists that are kept.


def _moved(structure: Structure, offset: torch.Tensor) -> Structure:
    return Structure(
        structure.numbers, structure.positions + offset, structure.cell, structure.pbc, structure.structure_of_atom
    )


def test_list_is_reused_until_an_atom_moved_half_the_skin() -> None:
    structure = Structure.from_ase(_random(ALL, CUBE, 10, seed=3))
    kept = VerletList(2.5, skin=0.6)
    first = kept.update(structure)
    assert first.cutoff == pytest.approx(3.1)
    offset = torch.zeros_like(structure.positions)
    offset[4] = torch.tensor([0.2, -0.2, 0.09])
    assert kept.update(_moved(structure, offset)) is first
    offset[4] = torch.tensor([0.2, -0.2, 0.11])  # 0.303 Å
    assert kept.update(_moved(structure, offset)) is not first
    assert kept.n_builds == 2


def test_kept_list_holds_every_pair_along_a_walk() -> None:
    """However atoms move, pairs within the cutoff are those of a fresh list."""
    structure = Structure.from_ase(_random(SLAB, SKEWED, 12, seed=8))
    kept, generator = VerletList(2.5, skin=0.5), torch.Generator().manual_seed(1)
    for _ in range(60):
        step = 0.05 * torch.randn(structure.positions.shape, generator=generator, dtype=torch.float64)
        structure = _moved(structure, step)
        pairs, fresh = kept.update(structure), neighbour_list(structure, 2.5)
        lengths = pair_vectors(structure, pairs).norm(dim=1)
        wanted = pair_vectors(structure, fresh).norm(dim=1)
        torch.testing.assert_close(lengths[lengths < 2.5].sort().values, wanted.sort().values, atol=1e-12, rtol=0.0)
    assert 3 < kept.n_builds < 40


def test_kept_list_does_not_share_memory_with_the_caller() -> None:
    structure = Structure.from_ase(_random(ALL, CUBE, 5, seed=6))
    kept = VerletList(2.5, skin=0.4)
    kept.update(structure)
    structure.positions[0] += 0.3  # an engine may write into its own array
    kept.update(structure)
    assert kept.n_builds == 2


def test_any_other_change_rebuilds() -> None:
    two = Structure.from_ase([Atoms("HO", [[0, 0, 0], [0, 0, 2]]), Atoms("H", [[0, 0, 1]])])
    parts = {
        "numbers": torch.tensor([8, 1, 1]),
        "cell": two.cell + 1e-9,
        "pbc": ~two.pbc,
        "structure_of_atom": torch.tensor([0, 1, 1]),
    }
    for name, value in parts.items():
        fields = {key: getattr(two, key) for key in ("numbers", "positions", "cell", "pbc", "structure_of_atom")}
        changed = Structure(**{**fields, "cell": two.cell + 10.0 * torch.eye(3), name: value})
        fields["cell"] = two.cell + 10.0 * torch.eye(3) if name != "cell" else two.cell
        kept = VerletList(2.5)
        kept.update(Structure(**fields))
        kept.update(changed)
        assert kept.n_builds == 2, name
        kept.update(changed)
        assert kept.n_builds == 2, name


def test_more_atoms_or_structures_rebuild() -> None:
    kept = VerletList(2.5)
    for frames in ([molecule("H2O")], [molecule("H2O"), Atoms("H")], [molecule("CH4")], []):
        kept.update(Structure.from_ase(frames))
    assert kept.n_builds == 4


def test_nan_reaches_the_error() -> None:
    structure = Structure.from_ase(molecule("H2O"))
    kept = VerletList(2.5)
    kept.update(structure)
    broken = _moved(structure, torch.tensor([float("nan"), 0.0, 0.0]))
    with pytest.raises(InputError, match="NaN"):
        kept.update(broken)


def test_skin_zero_rebuilds_and_negative_is_refused() -> None:
    kept = VerletList(2.5, skin=0.0)
    structure = Structure.from_ase(molecule("H2O"))
    kept.update(structure)
    kept.update(_moved(structure, torch.tensor([1e-6, 0.0, 0.0])))
    assert kept.n_builds == 2
    with pytest.raises(InputError, match="skin must not be negative"):
        VerletList(2.5, skin=-0.1)


@pytest.mark.parametrize("largest", [8, 40])
def test_a_batch_of_molecules_is_its_molecules(largest: int) -> None:
    """Small ones are searched all at once, which is another way to the same pairs; a larger one goes the common way."""
    rng = np.random.default_rng(0)
    sizes = [3, 0, 1, 8, largest, 5]
    frames = [Atoms(f"H{n}" if n else "", rng.uniform(-2.0, 2.0, (n, 3)), cell=CUBE) for n in sizes]
    wanted: Pairs = Counter()
    first = 0
    for atoms in frames:
        wanted.update((i + first, j + first, x, y, z) for i, j, x, y, z in _ours(Structure.from_ase(atoms), 2.1))
        first += len(atoms)
    batch = Structure.from_ase(frames)
    assert sum(wanted.values()) > 20
    assert _ours(batch, 2.1) == wanted
    assert bool((neighbour_list(batch, 2.1).i.diff() >= 0).all())
    assert neighbour_list(Structure.from_ase([Atoms(), Atoms()]), 2.1).n_pairs == 0
