"""Files of the `meam/spline` format: reading, writing, and what malformed ones get. LAMMPS itself: tests/physics."""

from __future__ import annotations

import itertools
import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols
from scipy.interpolate import CubicSpline
from torch import Tensor

from snnp.errors import InputError, ModelFileError
from snnp.models.potential import Potential
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.meam_file import (
    KnotSpline,
    MeamSplineFile,
    format_meam_spline,
    parse_meam_spline,
    read_meam_spline,
    write_meam_spline,
)
from snnp.models.spline.model import SplineNNP
from snnp.models.store import load_model, save_model
from snnp.neighbours import Neighbours
from snnp.structure import Structure

ELEMENTS = ("Si", "Ge", "O")


def random_spline(lower: float, upper: float, n_knots: int, rng: np.random.Generator) -> KnotSpline:
    return KnotSpline(lower, upper, tuple(rng.normal(size=n_knots)), *(float(x) for x in rng.normal(size=2)))


def random_file(elements: tuple[str, ...], seed: int = 0) -> MeamSplineFile:
    """Noise, with a grid of its own for every function."""
    rng = np.random.default_rng(seed)
    n = len(elements)
    n_pairs = n * (n + 1) // 2
    return MeamSplineFile(
        "noise",
        elements,
        phi=tuple(random_spline(1.1 + 0.1 * k, 4.5 + 0.1 * k, 5 + k, rng) for k in range(n_pairs)),
        rho=tuple(random_spline(1.2, 3.9 - 0.1 * k, 4 + k, rng) for k in range(n)),
        embedding=tuple(random_spline(-3.0 + k, 2.0 + k, 2 + 2 * k, rng) for k in range(n)),
        f=tuple(random_spline(1.0, 4.1 - 0.2 * k, 7 - k, rng) for k in range(n)),
        g=tuple(random_spline(-1.0, 1.0 - 0.1 * k, 6 + k, rng) for k in range(n_pairs)),
    )


def old_format(contents: MeamSplineFile) -> str:
    """The text of a file of one element in the format without its name."""
    lines = format_meam_spline(contents).splitlines()
    kept = [line for line in lines if not line.startswith("meam/spline")]
    # Each block loses its first line, and gets a line of flags after the end slopes.
    rows = []
    for k, line in enumerate(kept):
        if line != "spline3eq":
            rows.append(line)
        if kept[k - 2] == "spline3eq":
            rows.append("1 0 1 0")
    return "\n".join(rows) + "\n"


def evaluate(spline: KnotSpline, x: np.ndarray) -> np.ndarray:
    """SciPy's clamped cubic spline with tangents beyond the ends: shares no code with the package."""
    knots = np.linspace(spline.lower, spline.upper, len(spline.values))
    cubic = CubicSpline(knots, spline.values, bc_type=((1, spline.lower_slope), (1, spline.upper_slope)))
    inside = np.clip(x, spline.lower, spline.upper)
    return cubic(inside) + cubic(inside, 1) * (x - inside)


def reference_energy(contents: MeamSplineFile, atoms: Atoms) -> float:
    """The formula of the format on a cluster, with plain loops."""
    species = [contents.elements.index(symbol) for symbol in atoms.symbols]
    pairs = list(itertools.combinations_with_replacement(range(len(contents.elements)), 2))
    cutoff = max(s.upper for s in (*contents.phi, *contents.rho, *contents.f))
    vectors = atoms.positions[None] - atoms.positions[:, None]
    distances = np.linalg.norm(vectors, axis=-1)
    energy = 0.0
    for i in range(len(atoms)):
        near = [j for j in range(len(atoms)) if j != i and distances[i, j] < cutoff]
        density = sum(evaluate(contents.rho[species[j]], distances[i, j]) for j in near)
        for j, k in itertools.combinations(near, 2):
            cosine = vectors[i, j] @ vectors[i, k] / (distances[i, j] * distances[i, k])
            g = contents.g[pairs.index(tuple(sorted((species[j], species[k]))))]
            f_j, f_k = (evaluate(contents.f[species[m]], distances[i, m]) for m in (j, k))
            density += f_j * f_k * evaluate(g, cosine)
        embedding = contents.embedding[species[i]]
        energy += evaluate(embedding, density) - evaluate(embedding, np.zeros(()))
        for j in near:
            pair = pairs.index(tuple(sorted((species[i], species[j]))))
            energy += 0.5 * evaluate(contents.phi[pair], distances[i, j])
    return float(energy)


def cluster(elements: tuple[str, ...]) -> Atoms:
    """Ten atoms, none closer than 1 Å, some beyond the cutoff of others."""
    rng = np.random.default_rng(3)
    grid = np.array(list(itertools.product(range(5), range(2), range(1))), dtype=float)
    positions = 1.9 * grid + rng.uniform(-0.3, 0.3, grid.shape)
    return Atoms([elements[k % len(elements)] for k in range(len(grid))], positions)


def smeam_config(**changes: Any) -> SplineNNPConfig:
    radial = {"n_filters": 1, "lower": 1.5, "cutoff": 4.5, "intervals": 8}
    angular = {"n_filters": 1, "lower": 1.5, "cutoff": 4.0, "intervals": 6, "evaluator": "spline", "elements": "pair"}
    base: dict[str, Any] = {
        "elements": ("Si", "Ge"),
        "ends": "free",
        "radial": radial,
        "angular": angular | changes.pop("angular", {}),
        "pair_term": True,
        "network": None,
        "skip": False,
        "embedding": {"of": "sum"},
    }
    return SplineNNPConfig.model_validate(base | changes)


def randomise(model: SplineNNP) -> SplineNNP:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("elements", [ELEMENTS[:1], ELEMENTS[:2], ELEMENTS])
def test_energy_is_the_formula(elements: tuple[str, ...], tmp_path: Path) -> None:
    contents = random_file(elements)
    path = tmp_path / "noise.meam.spline"
    path.write_text(format_meam_spline(contents))
    model = read_meam_spline(path)
    assert model.elements == elements
    assert model.cutoff == max(s.upper for s in contents.phi)
    assert model.dtype == torch.float64
    atoms = cluster(elements)
    energy = model.compute(Structure.from_ase(atoms)).energy
    assert float(energy) == pytest.approx(reference_energy(contents, atoms), rel=1e-11)


def test_curvatures_are_those_of_the_spline() -> None:
    spline = random_spline(-1.0, 2.0, 7, np.random.default_rng(1))
    cubic = CubicSpline(
        np.linspace(-1.0, 2.0, 7), spline.values, bc_type=((1, spline.lower_slope), (1, spline.upper_slope))
    )
    np.testing.assert_allclose(spline.curvatures(), cubic(np.linspace(-1.0, 2.0, 7), 2), rtol=1e-11, atol=1e-11)


def test_old_format_is_the_same_model(tmp_path: Path) -> None:
    contents = random_file(("Si",))
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text(format_meam_spline(contents))
    old.write_text(old_format(contents))
    ours, theirs = read_meam_spline(new), read_meam_spline(old, elements=("Si",))
    assert ours.config == theirs.config
    assert ours.reference_energies == theirs.reference_energies
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("elements", [ELEMENTS[:1], ELEMENTS])
def test_text_keeps_every_digit(elements: tuple[str, ...]) -> None:
    contents = random_file(elements, seed=8)
    assert parse_meam_spline(format_meam_spline(contents)) == contents


def test_blank_lines_and_comments_are_passed_over() -> None:
    text = format_meam_spline(random_file(("Si",)))
    first, rest = text.split("\n", 1)
    assert parse_meam_spline(f"{first}\n\n# a comment\n{rest}\n\n") == parse_meam_spline(text)
    lines = text.splitlines()
    lines[5] += "  # the first knot of phi"
    assert parse_meam_spline("\n".join(lines)) == parse_meam_spline(text)


@pytest.mark.parametrize(
    "changes", [{}, {"ends": "smooth"}, {"filters": "shared"}, {"angular": {"elements": "shared"}}]
)
def test_reading_what_was_written_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    model = randomise(SplineNNP(smeam_config(**changes)))
    again = read_meam_spline(write_meam_spline(model, tmp_path / "model.meam.spline"))
    structure = Structure.from_ase(cluster(model.elements))
    first, second = model.compute(structure), again.compute(structure)
    isolated = -sum(again.reference_energies[symbol] for symbol in cluster(model.elements).symbols)
    assert float(second.energy) + isolated == pytest.approx(float(first.energy), rel=1e-11)
    torch.testing.assert_close(second.forces, first.forces, rtol=1e-10, atol=1e-10)
    if not changes:
        for name, parameter in model.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], parameter, rtol=1e-11, atol=1e-11)
    twice = read_meam_spline(write_meam_spline(again, tmp_path / "twice.meam.spline"))
    assert twice.config == again.config
    assert twice.metadata["comment"] == again.metadata["comment"]
    torch.testing.assert_close(twice.compute(structure).energy, second.energy, rtol=1e-11, atol=0.0)


def test_a_read_model_is_a_model_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "si-ge.meam.spline"
    path.write_text(format_meam_spline(random_file(("Si", "Ge"))))
    model = read_meam_spline(path)
    structure = Structure.from_ase(cluster(model.elements))
    expected = model.compute(structure)
    loaded = load_model(save_model(model, tmp_path / "folder"))
    torch.testing.assert_close(loaded.compute(structure).energy, expected.energy, rtol=0.0, atol=0.0)
    assert loaded.metadata == {"source": "si-ge.meam.spline", "comment": "noise"}
    single = load_model(tmp_path / "folder", dtype=torch.float32).compute(structure)
    torch.testing.assert_close(single.energy, expected.energy, rtol=1e-5, atol=0.0)


# What malformed files get. Lines of the text below: 1 comment, 2 elements, 3 spline3eq, 4 number of knots, 5 slopes,
# 6 to 10 knots of phi, 11 spline3eq of rho, ...
DAMAGE = {
    "elements miscounted": (2, "meam/spline 2 Si", "line 2: expected meam/spline, the number of elements"),
    "elements not counted": (2, "meam/spline Si", "line 2: expected meam/spline, the number of elements"),
    "no spline3eq": (3, "5", "line 3: expected the word spline3eq, which opens phi Si, got '5'"),
    "one knot": (4, "1", "line 4: expected the number of knots of phi Si"),
    "negative number of knots": (4, "-5", "line 4: expected the number of knots"),
    "number of knots not whole": (4, "5.0", "line 4: expected the number of knots"),
    "two numbers of knots": (4, "5 5", "line 4: expected the number of knots"),
    "too few knots": (4, "4", "line 10: expected the word spline3eq, which opens rho Si"),
    "too many knots": (4, "6", "line 11: expected knot 6 of 6 of phi Si .*, got 'spline3eq'"),
    "one slope": (5, "0.5", "line 5: expected the two end slopes of phi Si, got '0.5'"),
    "not a number": (6, "1.1 abc 0", "line 6: expected knot 1 of 5 of phi Si .*, got '1.1 abc 0'"),
    "Python's digits": (7, "1.95 1_0 0", "line 7: expected knot 2 of 5"),
    "NaN": (7, "1.95 nan 0", "line 7: expected knot 2 of 5"),
    "infinite": (7, "1.95 1e999 0", "line 7: expected knot 2 of 5"),
    "two columns": (8, "2.8 0.1", "line 8: expected knot 3 of 5"),
    "knot out of line": (8, "2.9 0.1 0", "line 8: expected uniform, increasing knots of phi Si"),
    "knots fall": (10, "1.0 0.1 0", "line 10: expected uniform, increasing knots"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_malformed_lines_are_named(damage: str, tmp_path: Path) -> None:
    number, replacement, message = DAMAGE[damage]
    lines = format_meam_spline(random_file(("Si",))).splitlines()
    lines[number - 1] = replacement
    path = tmp_path / "bad.meam.spline"
    path.write_text("\n".join(lines))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_meam_spline(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_knots_take_memory_in_proportion(tmp_path: Path) -> None:
    """Twenty thousand knots; a square of them would be 3 GB for each of the five functions."""
    few = random_file(("Si",))
    knots = tuple(math.sin(0.001 * k) for k in range(20_000))
    many = {name: (replace(getattr(few, name)[0], values=knots),) for name in ("phi", "rho", "embedding", "f", "g")}
    path = tmp_path / "many"
    path.write_text(format_meam_spline(replace(few, **many)))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limit[1]))
    try:
        model = read_meam_spline(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert model.rho.knot_values()[0].tolist() == pytest.approx(knots, abs=1e-12)


SIZES = {
    "a word of digits": ("\n5\n", f"\n{'1' * 5000}\n", "number of knots"),
    "digits of another script": ("\n5\n", "\n٥\n", "number of knots"),
    "elements by the thousand": ("meam/spline 1 Si", f"meam/spline 999 {' Si' * 999}", "as many elements as there are"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_none(name: str, tmp_path: Path) -> None:
    old, new, words = SIZES[name]
    text = format_meam_spline(random_file(("Si",)))
    assert old in text
    with pytest.raises(ModelFileError, match=words):
        parse_meam_spline(text.replace(old, new, 1))


def test_one_long_spline_among_thousands_of_short_ones(tmp_path: Path) -> None:
    """All would be stored as long as the longest."""
    symbols = tuple(chemical_symbols[1:60])
    short = (KnotSpline(0.5, 4.0, (1.0, 0.0), 0.0, 0.0),)
    n, n_pairs = len(symbols), len(symbols) * (len(symbols) + 1) // 2
    phi = (KnotSpline(0.5, 4.0, (0.5,) * 10_000, 0.0, 0.0), *short * (n_pairs - 1))
    contents = MeamSplineFile("noise", symbols, phi, short * n, short * n, short * n, short * n_pairs)
    (tmp_path / "f").write_text(format_meam_spline(contents))
    with pytest.raises(ModelFileError, match="give all splines about as many knots"):
        read_meam_spline(tmp_path / "f")


@pytest.mark.parametrize("n_lines", [1, 2, 3, 4, 8, 20])
def test_truncated_files(n_lines: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.meam.spline"
    path.write_text("\n".join(format_meam_spline(random_file(("Si",))).splitlines()[:n_lines]))
    with pytest.raises(ModelFileError, match=rf"cut.meam.spline is truncated: it ends after line {n_lines}, where"):
        read_meam_spline(path, elements=("Si",))


def test_other_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    good = format_meam_spline(random_file(("Si", "Ge")))
    path.write_text(good + "1 2 3\n")
    with pytest.raises(ModelFileError, match="expected the end of the file, got '1 2 3'"):
        read_meam_spline(path)
    path.write_text(good.replace("# noise", "# UNITS: real"))
    with pytest.raises(ModelFileError, match="units 'real'"):
        read_meam_spline(path)
    path.write_text(old_format(random_file(("Si",))).replace("1 0 1 0\n", "", 1))
    with pytest.raises(ModelFileError, match="line 4: expected four flags of phi"):
        read_meam_spline(path, elements=("Si",))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError, match="is not a text file"):
        read_meam_spline(path)
    path.write_text("")
    with pytest.raises(ModelFileError, match="is empty"):
        read_meam_spline(path)
    with pytest.raises(ModelFileError, match="nowhere is no file"):
        read_meam_spline(tmp_path / "nowhere")


def test_elements_must_fit_the_file(tmp_path: Path) -> None:
    new, old, odd = tmp_path / "new", tmp_path / "old", tmp_path / "odd"
    new.write_text(format_meam_spline(random_file(("Si", "Ge"))))
    old.write_text(old_format(random_file(("Si",))))
    odd.write_text(format_meam_spline(random_file(("Si1", "Ge"))))
    with pytest.raises(ModelFileError, match="names no element; pass elements="):
        read_meam_spline(old)
    with pytest.raises(ModelFileError, match="holds 1 element"):
        read_meam_spline(old, elements=("Si", "Ge"))
    with pytest.raises(ModelFileError, match="holds Si, Ge; elements must be in this order"):
        read_meam_spline(new, elements=("Ge", "Si"))
    with pytest.raises(ModelFileError, match="not distinct chemical symbols"):
        read_meam_spline(odd)
    with pytest.raises(ModelFileError, match="not distinct chemical symbols"):
        read_meam_spline(odd, elements=("Ge", "Ge"))
    assert read_meam_spline(odd, elements=("Si", "Ge")).elements == ("Si", "Ge")


# What cannot be written.

NOT_SMEAM = {
    "radial.n_filters: 1": {"radial": {"n_filters": 2}},
    "angular.n_filters: 1": {"angular": {"n_filters": 3}},
    "angular.evaluator: spline": {"angular": {"evaluator": "legendre"}},
    "filters: shared or element": {"filters": "pair"},
    "pair_term: true": {"pair_term": False},
    "network: null": {"network": {"hidden": (4,)}},
    "skip: false": {"skip": True},
    "embedding.of: sum": {"embedding": {"of": "features"}},
    "repulsion: null": {"repulsion": {"inner": 0.5, "outer": 1.0}},
}


@pytest.mark.parametrize("reason", NOT_SMEAM)
def test_models_that_the_format_cannot_hold(reason: str, tmp_path: Path) -> None:
    model = SplineNNP(smeam_config(**NOT_SMEAM[reason]))
    with pytest.raises(InputError, match=f"would need {reason}\\.$"):
        write_meam_spline(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_three_elements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this model has 3"):
        write_meam_spline(SplineNNP(smeam_config(elements=ELEMENTS)), tmp_path / "model")


class Nothing(Potential):
    """A potential of another family."""

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        return torch.zeros(structure.n_atoms, dtype=torch.float64)


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got Nothing"):
        write_meam_spline(Nothing(("Si",), {}, 5.0), tmp_path / "model")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_meam_spline(SplineNNP(smeam_config()), tmp_path / "no" / "model")
