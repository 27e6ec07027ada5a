"""One set of filters for nine chemical systems: errors, which filters each uses, how alike systems are by that.

python docs/measure/studies/shared_filters.py             # what is missing, then page and picture; 10 CPU minutes
python docs/measure/studies/shared_filters.py --page      # page and picture of what is there

The six elements of mlearn, the four of NbMoTaW, indium phosphide and the tantalum of Thompson et al.: 13 heads, two of
which belong to a second set of an element, molybdenum and tantalum. Heads belong to elements here, so these two go
under symbols next to theirs (Tc, Hf), to which nothing is attached: there is no repulsion, and E0 are fitted.
Shared filters see where neighbours are, not what they are; what that costs, models of the two compounds tell that have
filters for each element of neighbours. InP and Ta have no test file: a fifth of their frames is set apart. Nothing is
chosen by errors on test frames.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from matplotlib.axes import Axes
from numpy.typing import NDArray
from pages import averaged, between_marks, provenance, written
from scipy.stats import rankdata, spearmanr

from snnp.data import Frames, read_frames
from snnp.data.write import xyz_lines
from snnp.explain import Anatomy, spline_model
from snnp.explain.elements import Elements
from snnp.files import write_atomically
from snnp.models import load_model
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import new_figure, save_figure
from snnp.training import evaluate, load_config, train

Array = NDArray[np.float64]

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / Path(__file__).stem
DATA = Path(os.path.expandvars("$SNNP_DATA"))
ATOMS, TEST_ATOMS, SEEDS, EPOCHS = 8000, 4000, (0, 1, 2), 40
HIGHEST = 1.0  # eV/atom above the lowest frame, beyond a fit to the composition
ERRORS = {"energy_mae_mev_per_atom": 1, "force_mae_ev_per_angstrom": 4}  # and the digits of the table


@dataclass(frozen=True)
class System:
    """Files of a set; without a test file a fifth of the frames. `stand_ins`: symbols that a head of its own needs."""

    train: str
    test: str | None
    symbols: tuple[str, ...]
    stand_ins: dict[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.stand_ins.get(each, each) for each in self.symbols)


SYSTEMS = {
    s: System(f"mlearn/{s}_train.xyz", f"mlearn/{s}_test.xyz", (s,)) for s in ("Ni", "Cu", "Li", "Mo", "Si", "Ge")
}
SYSTEMS |= {
    "NbMoTaW": System("nbmotaw/train.xyz.gz", "nbmotaw/test.xyz", ("Nb", "Mo", "Ta", "W"), {"Mo": "Tc"}),
    "InP": System("inp-snap/data.xyz.gz", None, ("In", "P")),
    "Ta": System("ta-snap/data.xyz", None, ("Ta",), {"Ta": "Hf"}),
}
REAL = {"Tc": ("Mo", "Mo, alloys"), "Hf": ("Ta", "Ta, alone")}  # stand-ins: the element, and its name in pictures
COLUMN = {"Li": 1, "Ta": 5, "Nb": 5, "Mo": 6, "W": 6, "Ni": 10, "Cu": 11, "In": 13, "Si": 14, "Ge": 14, "P": 15}
ROW = {"Li": 2, "Si": 3, "P": 3, "Ni": 4, "Cu": 4, "Ge": 4, "Nb": 5, "Mo": 5, "In": 5, "Ta": 6, "W": 6}
LATTICE = {"Ni": "fcc", "Cu": "fcc", "Si": "diamond", "Ge": "diamond", "In": "diamond", "P": "diamond"}  # else bcc
_FORM: dict[str, Any] = {
    "filters": "shared",
    "radial": {"n_filters": 18, "cutoff": 5.0, "intervals": 14},
    "angular": {"n_filters": 18, "cutoff": 5.0, "intervals": 12, "degree": 4},
    "network": {"hidden": [32, 32]},
}
_FEW = {**_FORM, "radial": {**_FORM["radial"], "n_filters": 2}, "angular": {**_FORM["angular"], "n_filters": 2}}
METHODS = {
    "shared": _FORM,
    "separate": _FORM,
    "separate, a ninth of the filters": _FEW,
    "separate, filters of neighbours": {**_FORM, "filters": "element"},
}


@dataclass(frozen=True)
class Case:
    """One training: of a system, or of all of them ("all")."""

    method: str
    system: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}, {self.system}, {self.seed}"


def cases() -> Iterator[Case]:
    """Seed by seed, so that an interruption leaves whole comparisons."""
    for seed in SEEDS:
        yield Case("shared", "all", seed)
        for method in list(METHODS)[1:]:
            one_element = method.endswith("neighbours")  # where there is nothing to tell apart
            yield from (Case(method, name, seed) for name, each in SYSTEMS.items() if len(each.symbols) > one_element)


def usual(frames: Frames) -> Frames:
    """Frames up to `HIGHEST` above the lowest, both counted from a fit to the composition."""
    symbols, owner = np.unique(frames.numbers, return_inverse=True)
    rows = np.repeat(np.arange(len(frames)), frames.counts)
    content = np.zeros((len(frames), len(symbols)))
    np.add.at(content, (rows, owner), 1.0 / frames.counts[rows])
    energy = frames.energy / frames.counts
    beyond = energy - content @ np.linalg.lstsq(content, energy, rcond=None)[0]
    return frames.take(np.flatnonzero(beyond < beyond.min() + HIGHEST))


def up_to(frames: Frames, atoms: int, seed: int) -> Frames:
    """Frames drawn by the seed, as many as hold so many atoms."""
    order = np.random.default_rng([seed, 7]).permutation(len(frames))
    n = int(np.searchsorted(np.cumsum(frames.counts[order]), atoms, side="right"))
    return frames.take(np.sort(order[:n]))


def read(name: str, seed: int, *, test: bool = False) -> Frames:
    """Frames of a system to learn from, or to measure errors on (alike for all seeds), under the names of its heads."""
    system = SYSTEMS[name]
    if system.test is not None:
        frames = Frames.of(read_frames(DATA / (system.test if test else system.train)))
    else:
        frames = Frames.of(read_frames(DATA / system.train))
        order = np.random.default_rng(0).permutation(len(frames))
        fifth = len(frames) // 5
        frames = frames.take(np.sort(order[:fifth] if test else order[fifth:]))
    frames = up_to(usual(frames), TEST_ATOMS if test else ATOMS, 0 if test else seed)
    numbers = frames.numbers.copy()
    for symbol, stand_in in system.stand_ins.items():
        numbers[frames.numbers == atomic_numbers[symbol]] = atomic_numbers[stand_in]
    return replace(frames, numbers=numbers)


def measure(case: Case) -> dict[str, Any]:
    """Train, and give for each system the errors on its test frames."""
    systems = list(SYSTEMS) if case.system == "all" else [case.system]
    chosen = Frames.concatenate([read(name, case.seed) for name in systems])
    folder = RUNS / case.name.replace(", ", "-").replace(" ", "-")
    file = folder.with_suffix(".xyz")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(xyz_lines(chosen)).encode())
    tree = {
        "data": {"train": str(file), "valid": 0.0, "check_units": "off"},
        "model": METHODS[case.method],
        "loss": {"energy_weight": 30, "energy_weight_end": 300},
        "optimiser": {"epochs": EPOCHS, "learning_rate": 0.01, "batch_atoms": 216},
        **{"ranges": "given", "compression": None, "threads": 1, "validate_every": 1000, "seed": case.seed},
    }
    began = time.process_time()
    result = train(load_config(tree), folder, overwrite=True)
    seconds = time.process_time() - began
    model, errors = load_model(result.folder / "last"), {}
    for name in systems:
        total = evaluate(model, read(name, 0, test=True), model_name="", data_name="").total.to_dict()
        errors[name] = {key: total[key] for key in ERRORS}
    found = {"errors": errors, "atoms": len(chosen.numbers), "cpu_seconds": round(seconds, 1)}
    return found | {"parameters": model.n_parameters}


def anatomy_of(seed: int) -> Anatomy:
    """The shared model of a seed, on up to 1,000 atoms of each system that it learned from."""
    model = spline_model(load_model(RUNS / f"shared-all-{seed}" / "last"), "shared")
    return Anatomy(model, Frames.concatenate([up_to(read(name, seed), 1000, 1) for name in SYSTEMS]))


def nearest(anatomy: Anatomy) -> dict[str, float]:
    """Median distance (Å) to the nearest neighbour, by head."""
    lists = neighbour_list(anatomy.structure, 5.0)
    distance = pair_vectors(anatomy.structure, lists).norm(dim=1)
    least = torch.full((anatomy.structure.n_atoms,), np.inf, dtype=distance.dtype)
    least = least.scatter_reduce(0, lists.i, distance, "amin").numpy()
    symbols = np.array([chemical_symbols[z] for z in anatomy.structure.numbers.tolist()])
    return {symbol: float(np.median(least[symbols == symbol])) for symbol in dict.fromkeys(symbols.tolist())}


def explain(seed: int) -> dict[str, Any]:
    """Use of filters and similarity of the heads; and atoms of all of them in one plane."""
    anatomy = anatomy_of(seed)
    elements = Elements.of(anatomy)
    assert elements is not None
    rows = anatomy.standard.numpy()
    _, values, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    drawn = np.random.default_rng(0).permutation(len(rows))[:2500]
    plane = (rows - rows.mean(axis=0))[drawn] @ axes[:2].T
    entropy = -(elements.share * np.log(elements.share.clip(min=1e-30))).sum(axis=1)
    return {
        **{"heads": list(elements.symbols), "filters": list(elements.filters)},
        "share": elements.share.round(5).tolist(),
        "similarity": elements.similarity.round(5).tolist(),
        "filters used": np.exp(entropy).round(2).tolist(),
        "nearest": nearest(anatomy),
        "held": (values[:2] ** 2 / (values**2).sum()).round(4).tolist(),
        "atoms": [[anatomy.labels()[k], *np.round(xy, 3).tolist()] for k, xy in zip(drawn, plane, strict=True)],
    }


def _pairs(matrix: Array) -> Array:
    """Upper triangle."""
    return matrix[np.triu_indices(len(matrix), 1)]


def _ranks_without(values: Array, others: Array) -> Array:
    """Ranks of the values, less what is linear in the ranks of the others."""
    x = np.column_stack([np.ones(len(values)), rankdata(others)])
    y = rankdata(values)
    return np.asarray(y - x @ np.linalg.lstsq(x, y, rcond=None)[0])


def follows(explained: dict[str, Any]) -> dict[str, Any]:
    """Spearman's correlation of mean similarity with kinds of nearness over pairs of heads, and a permutation's p.

    Heads are permuted, not pairs, which are not independent (Mantel).
    """
    runs = list(explained.values())
    similarity = np.mean([run["similarity"] for run in runs], axis=0)
    heads = [REAL.get(each, (each, ""))[0] for each in runs[0]["heads"]]
    length = np.log([np.mean([run["nearest"][each] for run in runs]) for each in runs[0]["heads"]])
    tables = {name: np.array([each[h] for h in heads], dtype=float) for name, each in (("c", COLUMN), ("r", ROW))}
    apart = {
        "columns of the periodic table": np.abs(tables["c"][:, None] - tables["c"]),
        "rows": np.abs(tables["r"][:, None] - tables["r"]),
        "distance of neighbours": np.abs(length[:, None] - length),
        "crystal structure": np.array(
            [[float(LATTICE.get(a, "bcc") != LATTICE.get(b, "bcc")) for b in heads] for a in heads]
        ),
    }
    rng, found = np.random.default_rng(0), {}
    for name, far in apart.items():
        value = spearmanr(_pairs(similarity), -_pairs(far)).statistic
        orders = [rng.permutation(len(heads)) for _ in range(2000)]
        chance = [spearmanr(_pairs(similarity), -_pairs(far[np.ix_(o, o)])).statistic for o in orders]
        found[name] = {"spearman": float(value), "p": float(np.mean(np.array([*chance, value]) >= value))}
        for fixed in ("distance of neighbours", "crystal structure"):
            known = _pairs(apart[fixed])
            rest = np.corrcoef(_ranks_without(_pairs(similarity), known), -_ranks_without(_pairs(far), known))[0, 1]
            found[name][f"without {fixed}"] = None if name == fixed else float(rest)
    seeds = [
        spearmanr(*(_pairs(np.array(run["similarity"])) for run in two)).statistic for two in combinations(runs, 2)
    ]
    return {"follows": found, "between seeds": [float(each) for each in seeds]}


def _named(head: str) -> str:
    return REAL.get(head, ("", head))[1]


def table(found: dict[str, Any]) -> str:
    """Markdown: errors of all systems by method, mean and deviation over seeds."""
    lines = [f"| system | | {' | '.join(METHODS)} |", "|---|---|" + "--:|" * len(METHODS)]
    for name in SYSTEMS:
        for key, unit in zip(ERRORS, ("meV/atom", "eV/Å"), strict=True):
            cells = []
            for method in METHODS:
                system = "all" if method == "shared" else name
                runs = [found["results"].get(Case(method, system, seed).name) for seed in SEEDS]
                values = [run["errors"][name][key] for run in runs if run]
                cells.append(averaged(values, ERRORS[key]))
            lines.append(f"| {name if unit.startswith('meV') else ''} | {unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def likeness(found: dict[str, Any]) -> str:
    """Markdown: what similarity follows, and of each head the two that are most like it."""
    lines = ["| nearness in | Spearman | p | besides distance | besides structure |", "|---|--:|--:|--:|--:|"]
    for name, each in found["follows"].items():
        rest = [each[f"without {fixed}"] for fixed in ("distance of neighbours", "crystal structure")]
        said = " | ".join("" if number is None else f"{number:.2f}" for number in rest)
        lines.append(f"| {name} | {each['spearman']:.2f} | {each['p']:.4f} | {said} |")
    runs = list(found["explained"].values())
    heads, similarity = runs[0]["heads"], np.mean([run["similarity"] for run in runs], axis=0)
    spread = np.std([run["similarity"] for run in runs], axis=0, ddof=1) if len(runs) > 1 else 0.0 * similarity
    used = np.mean([run["filters used"] for run in runs], axis=0)
    lines += ["", "| head | nearest neighbour (Å) | filters used | most like it | then |", "|---|--:|--:|---|---|"]
    for k, head in enumerate(heads):
        first, second = [j for j in np.argsort(-similarity[k]) if j != k][:2]
        said = [f"{_named(heads[j])} ({similarity[k, j]:.2f} ± {spread[k, j]:.2f})" for j in (first, second)]
        length = np.mean([run["nearest"][head] for run in runs])
        lines.append(f"| {_named(head)} | {length:.2f} | {used[k]:.1f} | {said[0]} | {said[1]} |")
    return "\n".join(lines)


def picture(explained: dict[str, Any]) -> None:
    """Use of filters (first seed), similarity and its map (means over seeds), atoms of all heads in one plane."""
    runs = list(explained.values())
    first, similarity = runs[0], np.mean([run["similarity"] for run in runs], axis=0)
    names = [_named(each) for each in first["heads"]]
    share, n = np.array(first["share"]), len(names)
    order = _along(similarity)
    drawn = new_figure(12.0, 9.6)
    (use, alike), (plane, atoms) = drawn.subplots(2, 2)
    columns = sorted(
        range(share.shape[1]), key=lambda k: float((share[order, k] * np.arange(n)).sum() / share[:, k].sum())
    )
    use.imshow(share[np.ix_(order, columns)], aspect="auto", cmap="Greys", vmin=0.0)
    use.set_yticks(range(n), [names[k] for k in order])
    use.set_xticks(range(len(columns)), [first["filters"][k] for k in columns], rotation=90)
    use.set_title("share of each filter in what moves the energy (seed 0)", loc="left", fontsize=9)
    alike.imshow(similarity[np.ix_(order, order)], cmap="cividis", vmin=0.0, vmax=1.0)
    alike.set_xticks(range(n), [names[k] for k in order], rotation=90)
    alike.set_yticks(range(n), [names[k] for k in order])
    for (i, j), value in np.ndenumerate(similarity[np.ix_(order, order)]):
        colour = "white" if value < 0.55 else "black"
        alike.text(j, i, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=6.5, color=colour)
    alike.set_title("similarity: cosine of these rows, mean over seeds", loc="left", fontsize=9)
    _draw_map(plane, similarity, names)
    _draw_atoms(atoms, first)
    for panel in (use, alike, plane, atoms):
        panel.tick_params(labelsize=7)
    save_figure(drawn, STUDY.with_suffix(".png"))


def _along(similarity: Array) -> list[int]:
    """Heads in the order of their first coordinate among each other."""
    return [int(k) for k in np.argsort(_places(similarity)[0][:, 0])]


def _places(similarity: Array) -> tuple[Array, float]:
    """Classical scaling of sqrt(2 - 2 s) to two dimensions, and the share of it that they hold."""
    centre = np.eye(len(similarity)) - 1.0 / len(similarity)
    values, vectors = np.linalg.eigh(centre @ similarity @ centre)
    held = values[-2:].sum() / values.clip(min=0.0).sum()
    return vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(min=0.0)), float(held)


_MARKS = {"bcc": ("o", "#0072B2"), "fcc": ("s", "#D55E00"), "diamond": ("^", "#1f2933")}


def _draw_map(panel: Axes, similarity: Array, names: list[str]) -> None:
    places, held = _places(similarity)
    between = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(len(names), np.inf))
    for name, (x, y), other in zip(names, places, places[between.argmin(axis=1)], strict=True):
        mark, colour = _MARKS[LATTICE.get(name.partition(",")[0], "bcc")]
        panel.plot(x, y, mark, color=colour, ms=6)
        left = other[0] > x  # away from the nearest one
        look: Any = {"ha": "right" if left else "left", "va": "center", "textcoords": "offset points", "fontsize": 8}
        panel.annotate(name, (x, y), xytext=(-6 if left else 6, 0), **look)
    for kind, (mark, colour) in _MARKS.items():
        panel.plot([], [], mark, color=colour, ms=6, label=kind)
    panel.margins(0.15)
    panel.set(xticks=[], yticks=[], aspect="equal")
    panel.legend(frameon=False, fontsize=8)
    panel.set_title(f"the same as a map, which holds {100 * held:.0f} % of it", loc="left", fontsize=9)


def _draw_atoms(panel: Axes, run: dict[str, Any]) -> None:
    marks = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d")
    shades = ("#1f2933", "#0072B2", "#b8bcc2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")
    for k, head in enumerate(run["heads"]):
        x, y = np.array([each[1:] for each in run["atoms"] if each[0] == head]).reshape(-1, 2).T
        look: Any = {"ls": "", "ms": 3.5, "alpha": 0.7, "mew": 0.0, "color": shades[k % len(shades)]}
        panel.plot(x, y, marks[k], label=_named(head), **look)
    panel.legend(frameon=False, fontsize=7, markerscale=1.8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    first, second = (100 * each for each in run["held"])
    panel.set_xlabel(f"first main direction of the features ({first:.0f} %)", fontsize=8)
    panel.set_ylabel(f"second ({second:.0f} %)", fontsize=8)
    panel.set_title("surroundings of atoms of all systems (seed 0)", loc="left", fontsize=9)


def collect() -> dict[str, Any]:
    """All that was found, from the files of single trainings where there are any, else from the page's own."""
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}, "explained": {}}
    for each in sorted(RUNS.glob("*.json")):
        found["results"][each.stem] = json.loads(each.read_text(encoding="utf-8"))
    for seed in SEEDS:
        if str(seed) not in found["explained"] and Case("shared", "all", seed).name in found["results"]:
            found["explained"][str(seed)] = explain(seed)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--only", metavar="NAME", nargs="*", help="trainings whose names begin so, without the page")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = collect()["results"] if not asked.page else {}
    for case in [] if asked.page else cases():
        path = RUNS / f"{case.name}.json"
        if case.name in known or path.is_file() or not case.name.startswith(tuple(asked.only or [""])):
            continue
        result = measure(case)
        write_atomically(path, (json.dumps(result) + "\n").encode())
        print(case.name, result, flush=True)
    if asked.only:
        return
    found = collect()
    if not asked.page or "versions" not in found:  # a page made anew keeps the date of what it shows
        found |= provenance(("snnp", "torch", "numpy"))
    found |= follows(found["explained"])
    write_atomically(STUDY.with_suffix(".json"), (json.dumps(found) + "\n").encode())
    picture(found["explained"])
    minutes = sum(each["cpu_seconds"] for each in found["results"].values()) / 60
    words = written(found, more=f"{minutes:.0f} CPU minutes")
    between_marks(STUDY.with_suffix(".md"), {"errors": f"{table(found)}\n\n{words}", "likeness": likeness(found)})


if __name__ == "__main__":
    main()
