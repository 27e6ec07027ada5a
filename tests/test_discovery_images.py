"""Images: statistics against sums, maps of known shape, parameters found again, and every kind of bad file."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from cli_runs import run_json, run_snnp
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.discovery import images as statistics
from snnp.discovery.images import (
    ImageSet,
    activations,
    full_two_point,
    gram_features,
    map_images,
    network_weights,
    random_weights,
    read_images,
    two_point,
)
from snnp.discovery.manifold import distance_correlation, draw_map, embed, nearest, recovery, scaled, unexplained
from snnp.discovery.microstructures import (
    columnar_polycrystal,
    coordination,
    grains,
    lamellae,
    slice_image,
    spinodal,
)
from snnp.errors import DataError, InputError, MissingDependencyError, ModelFileError

SIZE = 64


@pytest.fixture(scope="module")
def patterns() -> tuple[np.ndarray, np.ndarray]:
    """Spinodal patterns [60, 64, 64] and their wavelengths."""
    rng = np.random.default_rng(0)
    wavelengths = rng.uniform(5.0, 16.0, 60)
    return np.stack([spinodal(rng, SIZE, each, 0.1, 0.5) for each in wavelengths]), wavelengths


def _save(folder: Path, pictures: np.ndarray, ending: str = "png") -> Path:
    folder.mkdir(exist_ok=True)
    for index, each in enumerate(pictures):
        Image.fromarray(np.round(255.0 * each).astype(np.uint8)).save(folder / f"{index:02d}.{ending}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, patterns: tuple[np.ndarray, np.ndarray]) -> Path:
    return _save(tmp_path / "micrographs", patterns[0][:8])


# The network.


def test_the_network_is_that_of_the_card() -> None:
    card = (Path(statistics.__file__).parent / "weights" / "README.md").read_text(encoding="utf-8")
    data = (Path(statistics.__file__).parent / "weights" / "mobilenet_v2.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() in card
    assert f"{len(data):,} bytes" in card
    weights = network_weights()
    assert f"{sum(each.numel() for each in weights.values()):,}" in card
    shapes = [each.shape[1:] for each in activations(weights, np.zeros((2, SIZE, SIZE)))]
    assert [tuple(shape) for shape in shapes] == [
        *[(32, 32, 32), (16, 32, 32), (24, 16, 16), (24, 16, 16), (32, 8, 8), (32, 8, 8), (32, 8, 8)],
        *[(64, 4, 4)] * 4,
    ]


def test_weights_card_and_licence_are_installed(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["snnp.discovery"]
    packed = {path for pattern in patterns for path in (repository / "snnp/discovery").glob(pattern)}
    assert packed == set((repository / "snnp/discovery/weights").iterdir())


def test_first_layer_is_a_convolution_of_normalised_shades() -> None:
    """An edge by hand: one place of one channel, summed over the 3 x 3 x 3 weights."""
    weights = network_weights()
    image = np.random.default_rng(0).uniform(size=(1, SIZE, SIZE))
    found = activations(weights, image)[0][0, 5, 3, 4]
    patch = image[0, 5:8, 7:10]  # stride 2, one pixel of padding
    rgb = [(patch - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    expected = (np.stack(rgb) * weights["0.0.weight"][5].numpy()).sum() + float(weights["0.0.bias"][5])
    assert float(found) == pytest.approx(float(np.clip(expected, 0.0, 6.0)), abs=1e-5)


def test_gram_matrices_are_means_of_products(patterns: tuple[np.ndarray, np.ndarray]) -> None:
    two = patterns[0][:2]
    layer = activations(network_weights(), two)[0].numpy()
    gram = np.einsum("nahw,nbhw->nab", layer, layer) / layer[0, 0].size
    found = gram_features(two)
    assert found.shape == (2, sum(c * (c + 1) // 2 for c in (32, 16, 24, 24, 32, 32, 32, 64, 64, 64, 64)))
    np.testing.assert_allclose(found[:, : 32 * 33 // 2], gram[:, *np.triu_indices(32)], rtol=1e-4, atol=1e-5)


def test_random_weights_have_the_shapes_and_are_reproducible() -> None:
    first, second, other = random_weights(1), random_weights(1), random_weights(2)
    assert {name: each.shape for name, each in first.items()} == {n: w.shape for n, w in network_weights().items()}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.0.weight"], other["0.0.weight"])


def test_changed_or_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    monkeypatch.setattr(statistics, "_WEIGHTS", path)
    with pytest.raises(ModelFileError, match=r"No such file.*reinstall"):
        network_weights()
    path.write_bytes(b"other")
    with pytest.raises(ModelFileError, match=r"sha256 differs.*reinstall"):
        network_weights()


# Correlations.


def test_two_point_correlations_are_means_over_pairs() -> None:
    image = np.random.default_rng(0).uniform(size=(1, 12, 16))
    centred = image[0] - image.mean()
    found = full_two_point(image)[0]
    dy, dx = 2, -3
    pairs = [centred[y, x] * centred[y + dy, x + dx] for y in range(10) for x in range(3, 16)]
    lags = [(y, x) for y in range(4) for x in range(-4, 5)]
    assert found[lags.index((0, 0))] == pytest.approx((image**2).mean())
    assert found[lags.index((dy, dx))] == pytest.approx(np.mean(pairs) + image.mean() ** 2)
    assert found[len(lags) + lags.index((dy, dx))] == pytest.approx(np.mean(pairs) / image.var(), abs=1e-12)


def test_two_point_correlations_of_stripes_are_a_cosine() -> None:
    x = np.arange(128)
    image = np.broadcast_to(0.5 + 0.5 * np.cos(2.0 * np.pi * x / 16.0), (128, 128))
    along = full_two_point(image[None])[0].reshape(2, 33, 65)[1, 0, 32:]
    np.testing.assert_allclose(along, np.cos(2.0 * np.pi * np.arange(33) / 16.0), atol=0.05)
    radial = two_point(image[None])[0, 65:]
    assert radial.shape == (65,)
    assert radial[:16].argmin() == pytest.approx(10, abs=2)  # the first minimum of J0(2 pi r / 16)


# Maps.


def test_scaled_features_do_not_know_units() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6))
    changed = np.column_stack([1e6 * features + 3.0, np.full(50, 7.0)])
    first, second = scaled(features), scaled(changed)
    assert (first**2).sum() / 50 == pytest.approx(1.0)
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-8)
    with pytest.raises(InputError, match="same statistics"):
        scaled(np.ones((5, 3)))


def test_isomap_unrolls_and_mds_does_not() -> None:
    """A roll in space has two coordinates: the place along the spiral, and the height."""
    rng = np.random.default_rng(0)
    turn, height = rng.uniform(1.5 * np.pi, 4.5 * np.pi, 600), rng.uniform(0.0, 20.0, 600)
    roll = np.column_stack([turn * np.cos(turn), height, turn * np.sin(turn)])
    flat, left = embed(roll, 2, n_neighbours=8), unexplained(roll, n_most=3)
    along = 0.5 * (turn * np.hypot(turn, 1.0) + np.arcsinh(turn))
    assert max(abs(np.corrcoef(flat.T, along)[2, :2])) > 0.99
    assert left[0] > 3.0 * left[1]
    assert left[1] < 0.005
    assert max(abs(np.corrcoef(embed(roll, 2, "mds").T, along)[2, :2])) < 0.8


def test_parts_that_hang_apart_are_joined() -> None:
    points = np.vstack([np.random.default_rng(0).normal(size=(20, 2)), 100.0 + np.zeros((20, 2)) + np.eye(20, 2)])
    assert np.isfinite(embed(points, 2, n_neighbours=3)).all()


def test_recovery_and_distance_correlation_know_nothing_from_something() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 2))
    assert recovery(points, points[:, 0]) > 0.9
    assert recovery(points, rng.normal(size=300)) < 0.05
    assert distance_correlation(points, points @ np.array([[0.0, 2.0], [-2.0, 0.0]])) == pytest.approx(1.0)
    assert distance_correlation(points, rng.normal(size=300)) < 0.2


def test_nearest_leaves_out_the_point_itself() -> None:
    order, distances = nearest(np.array([[0.0], [1.0], [3.0], [3.5]]), 2)
    assert order.tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    np.testing.assert_allclose(distances[0], [1.0, 3.0])
    with pytest.raises(InputError, match="name 1 to 3"):
        nearest(np.zeros((4, 1)), 4)


@pytest.mark.parametrize("features", ["cnn", "two-point"])
def test_wavelengths_are_found_again(features: Any, patterns: tuple[np.ndarray, np.ndarray]) -> None:
    pictures, wavelengths = patterns
    found = map_images(ImageSet(tuple(map(str, range(60))), pictures), features)
    assert recovery(found.places, wavelengths) > 0.8
    name, distance = found.near("7")[0]
    assert abs(wavelengths[int(name)] - wavelengths[7]) < 2.0
    assert 0.0 < distance < 1.0


# Patterns and slices.


def test_patterns_hold_what_they_were_asked_for() -> None:
    rng = np.random.default_rng(0)
    stripes = lamellae(rng, 128, 16.0, 90.0, 0.3)
    assert (stripes > 0.5).mean() == pytest.approx(0.3, abs=0.01)
    spectrum = np.abs(np.fft.fft2(stripes - stripes.mean()))[:64, :64]
    y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert y == pytest.approx(8, abs=3)  # bent, so not 128 / 16 everywhere
    assert x <= 3
    assert (spinodal(rng, 128, 12.0, 0.1, 0.6) > 0.5).mean() == pytest.approx(0.6, abs=0.01)
    few, many = (len(np.unique(grains(rng, SIZE, scale, 0.3, 0.05))) for scale in (12.0, 4.0))
    assert many > 3 * few
    assert np.array_equal(*(grains(np.random.default_rng(3), SIZE, 6.0, 1.0, 0.1) for _ in range(2)))


def test_polycrystal_has_its_density_and_its_boundaries() -> None:
    crystal = bulk("Al", cubic=True, a=4.05)
    atoms = columnar_polycrystal(np.random.default_rng(0), (12, 12, 2), 4, crystal)
    assert 0.88 * 4 * 288 < len(atoms) <= 4 * 288  # what boundaries lack
    distances = np.sort(atoms.get_all_distances(mic=True) + 100.0 * np.eye(len(atoms)), axis=1)[:, 0]
    assert distances.min() > 0.8 * 4.05 / 2**0.5 - 1e-6
    counts = coordination(atoms, 0.5 * 4.05 * (1.0 + 0.5**0.5))
    assert 0.4 < (counts == 12).mean() < 0.95
    assert set(atoms.get_array("grain")) == {0, 1, 2, 3}
    picture = slice_image(atoms, counts, SIZE)
    assert picture.shape == (SIZE, SIZE)
    assert picture.min() >= counts.min() - 1e-9
    assert picture.max() <= counts.max() + 1e-9
    assert abs(picture.mean() - counts.mean()) < 0.5


def test_molten_grains_are_those_of_the_melt() -> None:
    crystal = bulk("Al", cubic=True, a=4.05)
    melt = crystal.repeat((5, 5, 2))
    melt.rattle(0.3, seed=1)
    atoms = columnar_polycrystal(np.random.default_rng(1), (12, 12, 2), 4, crystal, melt, molten=0.5)
    counts, is_liquid = coordination(atoms, 3.457), atoms.get_array("molten")
    assert 0.0 < is_liquid.mean() < 1.0
    assert counts[is_liquid].std() > counts[~is_liquid].std()
    with pytest.raises(InputError, match="needs a melt"):
        columnar_polycrystal(np.random.default_rng(0), (12, 12, 2), 4, crystal, molten=0.5)
    with pytest.raises(InputError, match=r"12\.150 Å thick"):
        columnar_polycrystal(np.random.default_rng(0), (12, 12, 2), 4, crystal, crystal.repeat((5, 5, 3)), molten=0.5)
    with pytest.raises(InputError, match="cubic cell"):
        columnar_polycrystal(np.random.default_rng(0), (12, 12, 2), 4, bulk("Mg"))
    with pytest.raises(InputError, match="rectangular"):
        slice_image(bulk("Al"), [1.0], SIZE)


# The command.


def test_command_writes_table_picture_and_neighbours(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_json("discover", "images", folder, "--out", out, "--near", "03.png", "--neighbours", "3")
    assert found["format"] == "snnp-discovery-images"
    assert [each["name"] for each in found["images"]] == [f"{n:02d}.png" for n in range(8)]
    assert found["near"] == found["images"][3]["nearest"]
    assert len(found["near"]) == 3
    assert (out / "map.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((out / "map.json").read_text(encoding="utf-8"))
    assert stored["images"] == found["images"]
    rows = list(csv.DictReader((out / "map.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["name", "x1", "x2", "nearest_1", "nearest_2", "nearest_3"]
    assert float(rows[3]["x1"]) == pytest.approx(stored["images"][3]["place"][0], rel=1e-5)
    shown = run_snnp(
        *("discover", "images", folder, "--out", out, "--overwrite", "--features", "two-point"),
        *("--method", "mds", "--dimensions", "3", "--near", folder / "03.png"),
    )
    assert "most like 03.png" in shown.stdout


def test_a_map_says_how_many_images_it_cannot_show() -> None:
    panel = Figure().subplots()
    draw_map(panel, np.array([[0.0, 0.0], [0.001, 0.0], [1.0, 1.0]]), np.zeros((3, 8, 8)), "3 images")
    assert panel.get_title(loc="left") == "3 images; 1 that would overlap others is a dot"
    draw_map(panel, np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros((2, 8, 8)), "2 images")
    assert panel.get_title(loc="left") == "2 images"


def _fails(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["discover", "images", *map(str, arguments)])
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def test_command_refuses_to_replace_and_to_mix(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("mine")
    assert "--overwrite" in _fails(folder, "--out", tmp_path)
    assert "name another" in _fails(folder, "--out", folder)
    assert "Did you mean '03.png'" in _fails(folder, "--out", tmp_path / "out", "--near", "3.png")
    assert "name 1 to 7" in _fails(folder, "--out", tmp_path / "out", "--neighbours", "8")
    assert "name 1 to 7" in _fails(folder, "--out", tmp_path / "out", "--dimensions", "0")
    assert not (tmp_path / "out").exists()


def test_shades_are_the_same_whatever_the_format(tmp_path: Path, patterns: tuple[np.ndarray, np.ndarray]) -> None:
    """8 bit PNG and TIFF, colours that are grey, and 16 bit, whose shades span what the set holds."""
    pictures = patterns[0][:6]
    grey = read_images(_save(tmp_path / "png", pictures))
    assert np.array_equal(grey.shades, read_images(_save(tmp_path / "tiff", pictures, "tiff")).shades)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "deep").mkdir()
    for index, each in enumerate(np.round(255.0 * pictures)):
        Image.fromarray(each.astype(np.uint8)).convert("RGB").save(tmp_path / "rgb" / f"{index:02d}.png")
        Image.fromarray((16 * each + 100).astype(np.uint16)).save(tmp_path / "deep" / f"{index:02d}.tif")
    assert np.array_equal(grey.shades, read_images(tmp_path / "rgb").shades)
    np.testing.assert_allclose(read_images(tmp_path / "deep").shades, grey.shades, atol=1e-12)
    assert read_images(tmp_path / "png", crop=SIZE).shades.shape == (6, SIZE, SIZE)


def _colour(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)


def _uint8(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))


def _pages(path: Path) -> None:
    _uint8(SIZE, SIZE).save(path.with_suffix(".tif"), save_all=True, append_images=[_uint8(SIZE, SIZE)])


def _nan(path: Path) -> None:
    Image.fromarray(np.full((SIZE, SIZE), np.nan, dtype=np.float32)).save(path.with_suffix(".tif"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: _uint8(80, 100).save(path),
            "one size: '00.png' has 64 x 64 pixels and 'x.png' 100 x 80.*--crop 64",
        ),
        (_colour, "'x.png' is in colour.*--grey"),
        (
            lambda path: Image.fromarray(np.arange(SIZE**2, dtype=np.uint16).reshape(SIZE, SIZE)).save(path),
            "one depth: '00.png' holds uint8 and 'x.png' uint16; convert",
        ),
        (_pages, "'x.tif' has 2 pages.*split"),
        (_nan, "(NaN|one depth)"),
        (lambda path: path.write_text("no image"), "'x.png' cannot be read as an image.*leave it out"),
        (lambda path: path.write_bytes(b""), "'x.png' cannot be read as an image.*leave it out"),
        (
            lambda path: Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(path),
            "'x.png' has one shade.*leave it out",
        ),
    ],
    ids=["size", "colour", "depth", "pages", "NaN", "text", "empty", "flat"],
)
def test_bad_files_are_named(folder: Path, write: Callable[[Path], Any], message: str) -> None:
    write(folder / "x.png")
    with pytest.raises(DataError, match=message):
        read_images(folder)


def test_truncated_file_is_named(folder: Path) -> None:
    path = folder / "03.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"'03.png' cannot be read"):
        read_images(folder)


def test_images_of_floats_with_nan_are_named(tmp_path: Path) -> None:
    for index in range(6):
        values = np.random.default_rng(index).normal(size=(SIZE, SIZE)).astype(np.float32)
        values[0, 0] = np.nan if index == 4 else 0.0
        Image.fromarray(values).save(tmp_path / f"{index}.tif")
    with pytest.raises(DataError, match=r"'4.tif' holds NaN"):
        read_images(tmp_path)


def test_too_small_too_few_and_none(tmp_path: Path, patterns: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="is no folder; name one"):
        read_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file that ends in"):
        read_images(tmp_path / "empty")
    with pytest.raises(DataError, match=r"1 image is too few.*at least 6"):
        read_images(_save(tmp_path / "one", patterns[0][:1]))
    with pytest.raises(DataError, match="40 x 40 pixels, and at least 64 x 64 are needed"):
        read_images(_save(tmp_path / "small", patterns[0][:6, :40, :40]))
    with pytest.raises(InputError, match=r"--crop 65: '00.png' has 64 x 64 pixels; name 64 to 64"):
        read_images(_save(tmp_path / "crop", patterns[0][:6]), crop=65)


def test_colour_is_taken_as_luminance_where_asked(folder: Path) -> None:
    _colour(folder / "x.png")
    assert len(read_images(folder, grey=True).names) == 9


def test_copies_of_one_image_are_refused(tmp_path: Path, patterns: tuple[np.ndarray, np.ndarray]) -> None:
    pictures = np.repeat(patterns[0][:1], 6, axis=0)
    with pytest.raises(InputError, match="nothing tells them apart; look for copies"):
        map_images(read_images(_save(tmp_path / "same", pictures)))


def test_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"Pillow.*pip install 'snnp\[discovery\]'"):
        read_images(folder)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn.*pip install 'snnp\[discovery\]'"):
        embed(np.zeros((8, 2)))


def test_unknown_features_are_refused(patterns: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="expected cnn or two-point"):
        map_images(ImageSet(tuple("abcdef"), patterns[0][:6]), "pixels")  # type: ignore[arg-type]
