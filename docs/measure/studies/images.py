"""What statistics of images know of what the images were made with: a pretrained network beside correlations.

    python docs/measure/studies/images.py                       # images that are missing, numbers, page and picture
    python docs/measure/studies/images.py --sets slices --only-measure     # one set, for several at once

Sets of 500 images, each for three seeds, are made into runs/images with random parameters (300 slices of molecular
dynamics, one seed). Statistics of all are scaled alike (`snnp.discovery.manifold.scaled`: standardised, 20 principal
components), and embedded in three dimensions without the parameters. Then these are asked for: R² of the 5 nearest
neighbours in five-fold cross-validation, and distance correlation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray
from pages import between_marks, provenance

from snnp.discovery import images, manifold, microstructures
from snnp.files import replacing, write_atomically
from snnp.models import load_model
from snnp.report import new_figure, save_figure
from snnp.sampling import MDSettings, run_md

Array = NDArray[np.float64]

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "images"
SIZE, SEEDS = 128, (0, 1, 2)
N_IMAGES = {"grains": 500, "lamellae": 500, "spinodal": 500, "slices": 300}

# Ranges from which the parameters are drawn evenly, of each set that `microstructures` makes.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "grains": {"scale": (4.0, 14.0), "pointedness": (0.0, 1.0), "noise": (0.0, 0.15)},
    "lamellae": {"wavelength": (6.0, 24.0), "orientation": (0.0, 180.0), "fraction": (0.2, 0.8)},
    "spinodal": {"wavelength": (6.0, 24.0), "spread": (0.05, 0.5), "fraction": (0.2, 0.8)},
    "slices": {"grains": (2.0, 30.0), "temperature": (100.0, 900.0), "molten": (0.0, 0.7)},
}
STATISTICS = {
    "network, 11 layers": "MobileNetV2, trained",
    "network, 7 layers": "its first 7 layers",
    "random weights": "the 11 layers, untrained",
    "two-point, radial": "C(r)",
    "two-point, full": "C(dx, dy)",
    "pixels": "shades of pixels",
}

CHANNELS = (32, 16, 24, 24, 32, 32, 32)  # of the first seven layers

# Slices: aluminium, columnar polycrystals 90 Å wide, some grains molten, 80 fs of dynamics at a temperature.
MODEL, LATTICE, CELLS = "snnp-al", 4.09, (22, 22, 3)


def parameters(name: str, seed: int) -> Array:
    """[n, 3], drawn evenly."""
    low, high = np.array(list(RANGES[name].values())).T
    return np.asarray(np.random.default_rng([seed, 1]).uniform(low, high, (N_IMAGES[name], 3)))


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
            found = slices(seed, range(N_IMAGES[name]))
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


def statistics(pictures: Array, seed: int) -> dict[str, Array]:
    """All that are compared, [n, features] each."""
    grams, channels = images.gram_features(pictures), np.array(CHANNELS)
    return {
        "network, 11 layers": grams,
        "network, 7 layers": grams[:, : (channels * (channels + 1) // 2).sum()],
        "random weights": images.gram_features(pictures, images.random_weights(seed)),
        "two-point, radial": images.two_point(pictures),
        "two-point, full": images.full_two_point(pictures),
        "pixels": pictures.reshape(len(pictures), -1),
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


def measure(name: str, seed: int) -> dict[str, Any]:
    """By picture, statistic and parameter: R² in 20 components, in three of Isomap and of MDS; distance correlation."""
    found: dict[str, Any] = {}
    wanted = targets(name, seed)
    for shown, pictures in made(name, seed).items():
        found[shown] = {}
        for statistic, features in statistics(pictures, seed).items():
            points = manifold.scaled(features)
            maps = {kind: manifold.embed(points, 3, kind) for kind in ("isomap", "mds")}  # type: ignore[arg-type]
            found[shown][statistic] = {
                parameter: {
                    "components": manifold.recovery(points, values),
                    **{kind: manifold.recovery(places, values) for kind, places in maps.items()},
                    "distance_correlation": manifold.distance_correlation(maps["isomap"], values),
                }
                for parameter, values in wanted.items()
            }
        print(name, seed, shown, json.dumps(found[shown]["network, 11 layers"]), flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: means over seeds, of each set its statistics by its parameters."""
    lines = []
    for shown in dict.fromkeys(shown for seeds in results.values() for found in seeds.values() for shown in found):
        runs = [found[shown] for seeds in results.values() for found in seeds.values() if shown in found]
        columns = list(runs[0]["pixels"])
        lines += ["", f"**{shown}** ({len(runs)} {'seeds' if len(runs) > 1 else 'seed'})", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
        for statistic in STATISTICS:
            cells = []
            for parameter in columns:
                values = {
                    kind: np.array([run[statistic][parameter][kind] for run in runs])
                    for kind in ("components", "isomap", "mds", "distance_correlation")
                }
                spread = f" ± {values['isomap'].std(ddof=1):.2f}" if len(runs) > 1 else ""
                first, *others = (f"{values[kind].mean():.2f}" for kind in ("isomap", "components", "mds"))
                correlation = f"{values['distance_correlation'].mean():.2f}"
                cells.append(f"**{first}**{spread} ({', '.join(others)}; {correlation})")
            lines.append(f"| {statistic} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def draw() -> None:
    """The picture of the page: maps of grains and of slices, images at their places."""
    figure = new_figure(13.0, 6.6)
    for panel, (name, shown) in zip(
        figure.subplots(1, 2), (("grains", "grains"), ("slices", "slices, energy")), strict=True
    ):
        pictures = made(name, 0)[shown]
        places = manifold.embed(manifold.scaled(images.gram_features(pictures)), 2)
        manifold.draw_map(panel, places, pictures, f"{shown}: {len(pictures)} images")
    save_figure(figure, STUDY.with_suffix(".png"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(RANGES), default=list(RANGES))
    parser.add_argument("--only-measure", action="store_true", help="into runs/images, without the page")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.sets:
        for seed in SEEDS[:1] if name == "slices" else SEEDS:
            path = RUNS / f"{name}-{seed}.json"
            if not path.is_file():
                found = {"results": measure(name, seed)} | provenance(
                    ("snnp", "torch", "numpy", "scipy", "scikit-learn")
                )
                write_atomically(path, json.dumps(found).encode())
    if asked.only_measure:
        return
    runs = {name: sorted(RUNS.glob(f"{name}-*.json")) for name in RANGES}
    read = {name: {path.stem: json.loads(path.read_text()) for path in paths} for name, paths in runs.items()}
    known = [run for each in read.values() for run in each.values()]
    found = {key: known[-1][key] for key in ("date", "machine", "versions")}
    found["results"] = {name: {stem: run["results"] for stem, run in each.items()} for name, each in read.items()}
    write_atomically(STUDY.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    said = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    written = f"Written by the command above on {found['date']}; {found['machine']}; {said}."
    between_marks(STUDY.with_suffix(".md"), {"table": f"{table(found['results'])}\n\n{written}"})
    draw()


if __name__ == "__main__":
    main()
