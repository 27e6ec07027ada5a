"""What statistics of images know of what the images were made with: a pretrained network beside correlations.

    python docs/measure/studies/images.py                       # images that are missing, numbers, page and picture
    python docs/measure/studies/images.py --sets slices --only-measure     # one set, for several at once
    python docs/measure/studies/images.py --page                # page and picture of the numbers that are there

Sets of 500 images, each for three seeds, are made into runs/images with random parameters. Statistics of all are scaled
alike (`snnp.discovery.manifold.scaled`: standardised, 20 principal components), and embedded in three dimensions
without the parameters. Then these are asked for: R² of the 5 nearest neighbours in five-fold cross-validation, and
distance correlation.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray
from pages import between_marks, provenance, written
from PIL import Image

from snnp.discovery import images, manifold, microstructures
from snnp.files import replacing, write_atomically
from snnp.models import load_model
from snnp.report import new_figure, png
from snnp.sampling import MDSettings, run_md

Array = NDArray[np.float64]

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "images"
SIZE, SEEDS, N_IMAGES = 128, (0, 1, 2), 500

# Ranges from which the parameters are drawn evenly, of each set that `microstructures` makes.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "grains": {"scale": (4.0, 14.0), "pointedness": (0.0, 1.0), "noise": (0.0, 0.15)},
    "lamellae": {"wavelength": (6.0, 24.0), "orientation": (0.0, 180.0), "fraction": (0.2, 0.8)},
    "spinodal": {"wavelength": (6.0, 24.0), "spread": (0.05, 0.5), "fraction": (0.2, 0.8)},
    "slices": {"grains": (2.0, 30.0), "temperature": (100.0, 900.0), "molten": (0.0, 0.7)},
}
KINDS = ("isomap", "components", "mds", "distance_correlation")  # where a parameter is looked for
CHANNELS = (32, 16, 24, 24, 32, 32, 32)  # of the first seven layers

# Slices: aluminium, columnar polycrystals 90 Å wide, some grains molten, 80 fs of dynamics at a temperature.
MODEL, LATTICE, CELLS = "snnp-al", 4.09, (22, 22, 3)


def parameters(name: str, seed: int) -> Array:
    """[n, 3], drawn evenly."""
    low, high = np.array(list(RANGES[name].values())).T
    return np.asarray(np.random.default_rng([seed, 1]).uniform(low, high, (N_IMAGES, 3)))


def melt(thickness: int) -> Atoms:
    """A periodic box of liquid aluminium, as thick as so many cells."""
    atoms = bulk("Al", cubic=True, a=LATTICE).repeat((8, 8, thickness))
    for temperature in (2500.0, 1200.0):
        settings = MDSettings(temperature_k=temperature, steps=1000, dt_fs=2.0, friction_per_ps=10.0)
        atoms = run_md(load_model(MODEL), atoms, settings, engine="native").final
    return atoms


def slices(seed: int, indices: Sequence[int]) -> dict[str, Array]:
    """Pictures [n, SIZE, SIZE] of mean energies (eV) and coordination; the share of molten atoms [n]."""
    model, crystal, liquid = load_model(MODEL), bulk("Al", cubic=True, a=LATTICE), melt(CELLS[2])
    found: dict[str, list[Any]] = {"slices, energy": [], "slices, coordination": [], "_molten": []}
    for index in indices:
        n_grains, temperature, molten = parameters("slices", seed)[index]
        rng = np.random.default_rng([seed, 2, index])
        atoms = microstructures.columnar_polycrystal(rng, CELLS, round(n_grains), crystal, liquid, molten=molten)
        found["_molten"].append(atoms.get_array("molten").mean())
        settings = MDSettings(temperature_k=temperature, steps=40, dt_fs=2.0, friction_per_ps=20.0, seed=index)
        atoms = run_md(model, atoms, settings, engine="native").final
        energies = model.compute(atoms, forces=False).energies.numpy()
        counts = microstructures.coordination(atoms, 0.5 * LATTICE * (1.0 + 0.5**0.5))  # between first and second shell
        for name, values in (("slices, energy", energies), ("slices, coordination", counts)):
            found[name].append(microstructures.slice_image(atoms, values, SIZE))
    return {name: np.stack(each) for name, each in found.items()}


def shades(pictures: Array) -> Array:
    """Pictures of values with one scale from black to white for all; the last per mille at both ends is cut."""
    low, high = np.quantile(pictures, (0.001, 0.999))
    return np.asarray(np.clip((pictures - low) / (high - low), 0.0, 1.0))


def made(name: str, seed: int) -> dict[str, Array]:
    """The images of a set by what they show, from the file of an earlier call if there is one."""
    path = RUNS / f"{name}-{seed}.npz"
    if not path.is_file():
        if name == "slices":
            found = slices(seed, range(N_IMAGES))
            found = {each: values if each.startswith("_") else shades(values) for each, values in found.items()}
        else:
            make: Callable[..., Array] = getattr(microstructures, name)
            rows = enumerate(parameters(name, seed))
            found = {name: np.stack([make(np.random.default_rng([seed, 2, i]), SIZE, *row) for i, row in rows])}
        keep(path, found)
    with np.load(path) as stored:
        return {each: stored[each].astype(float) / 255.0 for each in stored.files if not each.startswith("_")}


def keep(path: Path, found: dict[str, Array]) -> None:
    """Write images of 8 bits, and what begins with an underscore as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images_8_bit = {name: np.round(255.0 * each).astype(np.uint8) for name, each in found.items() if name[0] != "_"}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **(found | images_8_bit))


def statistics(pictures: Array, seed: int) -> dict[str, Callable[[], Array]]:
    """All that are compared, as functions that give [n, features]."""
    grams = cache(partial(images.gram_features, pictures))
    radial, full = (cache(partial(each, pictures)) for each in (images.two_point, images.full_two_point))
    first = sum(n * (n + 1) // 2 for n in CHANNELS)
    return {
        "network, 11 layers": grams,
        "network, 7 layers": lambda: grams()[:, :first],
        "random weights": lambda: images.gram_features(pictures, images.random_weights(seed)),
        "two-point, radial": radial,
        "two-point, full": full,
        "C(r) / C(0) alone": lambda: np.hsplit(radial(), 2)[1],
        "C(dx, dy) / C(0) alone": lambda: np.hsplit(full(), 2)[1],
        "pixels": lambda: pictures.reshape(len(pictures), -1),
    }


def targets(name: str, seed: int) -> dict[str, Array]:
    """Parameters [n] to recover; of angles, which 180 degrees bring back, [n, 2]; of slices the grains' diameter."""
    columns = dict(zip(RANGES[name], parameters(name, seed).T, strict=True))
    if "orientation" in columns:
        doubled = np.radians(2.0 * columns["orientation"])
        columns["orientation"] = np.column_stack([np.cos(doubled), np.sin(doubled)])
    if "grains" in columns:
        columns = {"grain diameter": np.round(columns.pop("grains")) ** -0.5, **columns}
        with np.load(RUNS / f"{name}-{seed}.npz") as stored:
            columns["molten"] = stored["_molten"]  # of the atoms; drawn was the share of grains
    return columns


def measure(name: str, seed: int, path: Path) -> None:
    """By picture, statistic and parameter: R² in 20 components, in three of Isomap and of MDS; distance correlation.

    What the file holds already is left as it is; the rest is added to it.
    """
    known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    for shown, pictures in made(name, seed).items():
        wanted = targets(name, seed)
        for statistic, features in statistics(pictures, seed).items():
            if statistic in known.setdefault(shown, {}):
                continue
            points = manifold.scaled(features())
            maps = {kind: manifold.embed(points, 3, kind) for kind in ("isomap", "mds")}  # type: ignore[arg-type]
            known[shown][statistic] = {
                parameter: {
                    "components": manifold.recovery(points, values),
                    **{kind: manifold.recovery(places, values) for kind, places in maps.items()},
                    "distance_correlation": manifold.distance_correlation(maps["isomap"], values),
                }
                for parameter, values in wanted.items()
            }
            found = {"results": known} | provenance(("snnp", "torch", "numpy", "scipy", "scikit-learn"))
            write_atomically(path, json.dumps(found).encode())
            print(name, seed, shown, statistic, flush=True)


def table(results: dict[str, Any], kind: str) -> str:
    """Markdown: mean and deviation over seeds, a row per parameter, a column per statistic, the best in bold."""
    pooled: dict[str, list[dict[str, Any]]] = {}
    for found in (found for seeds in results.values() for found in seeds.values()):
        for shown, by_statistic in found.items():
            pooled.setdefault(shown, []).append(by_statistic)
    columns = list(statistics(np.empty(0), 0))  # their order; nothing is computed
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for shown, runs in pooled.items():
        lines.append(f"| **{shown}** |" + " |" * len(columns))
        for parameter in runs[0][columns[0]]:
            values = np.array([[run[statistic][parameter][kind] for statistic in columns] for run in runs])
            cells = []
            for column, best in zip(values.T, values.mean(axis=0) == values.mean(axis=0).max(), strict=True):
                mean = f"**{column.mean():.2f}**" if best else f"{column.mean():.2f}"
                cells.append(mean + (f" ± {column.std(ddof=1):.2f}" if len(column) > 1 else ""))
            lines.append(f"| {parameter} | {' | '.join(cells)} |")
    return "\n".join(lines).replace("-0.", "−0.")


def draw() -> None:
    """The picture of the page: a map of each set, images at their places."""
    figure = new_figure(13.0, 11.0)
    shown = {"grains": "grains", "lamellae": "lamellae", "spinodal": "spinodal", "slices": "slices, energy"}
    for panel, (name, picture) in zip(figure.subplots(2, 2).ravel(), shown.items(), strict=True):
        pictures = made(name, 0)[picture]
        places = manifold.embed(manifold.scaled(images.gram_features(pictures)), 2)
        manifold.draw_map(panel, places, pictures, f"{picture}: {len(pictures)} images")
    stream = io.BytesIO()
    with Image.open(io.BytesIO(png(figure))) as drawn:
        drawn.convert("L").quantize(32).save(stream, "png", optimize=True)  # grey all over, and a third of the size
    write_atomically(STUDY.with_suffix(".png"), stream.getvalue())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(RANGES), default=list(RANGES))
    parser.add_argument("--only-measure", action="store_true", help="into runs/images, without the page")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in () if asked.page else asked.sets:
        for seed in SEEDS:
            measure(name, seed, RUNS / f"{name}-{seed}.json")
    if asked.only_measure:
        return
    runs = {name: sorted(RUNS.glob(f"{name}-*.json")) for name in RANGES}
    read = {name: {path.stem: json.loads(path.read_text()) for path in paths} for name, paths in runs.items()}
    known = [run for each in read.values() for run in each.values()]
    found = {key: known[-1][key] for key in ("date", "machine", "versions")}
    kept = STUDY.with_suffix(".json")  # of sets that were measured elsewhere
    before = json.loads(kept.read_text())["results"] if kept.is_file() else {}
    now = {name: {stem: run["results"] for stem, run in each.items()} for name, each in read.items()}
    found["results"] = {name: {**before.get(name, {}), **each} for name, each in now.items()}
    write_atomically(STUDY.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    tables = {kind: table(found["results"], kind) for kind in KINDS}
    between_marks(STUDY.with_suffix(".md"), tables | {"versions": written(found)})
    draw()


if __name__ == "__main__":
    main()
