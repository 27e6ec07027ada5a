"""Every picture can be read: no text lies on another or beyond the edge, every axis has a name, whatever is drawn."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from matplotlib.figure import Figure
from peers.pictures import draw_comparison, draw_scaling

from snnp.analysis.curve_page import draw_page
from snnp.analysis.properties import Compression, Hole
from snnp.analysis.stability import StabilityRun
from snnp.data import Frame
from snnp.doctor import examine_data
from snnp.doctor.pictures import model_pictures
from snnp.doctor.trials import Dimer, Run, Scaling
from snnp.models import SplineNNP, SplineNNPConfig, load_model
from snnp.models.spline import special_cases
from snnp.sampling import MDSettings, build_structure, run_md
from snnp.structure import Structure
from snnp.training.evaluation import evaluate, plot_loss, plot_parity

ALLOY = ("Al", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zr")
LONG = "org/a-model-with-a-rather-long-name@0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test saves, each of them looked at."""
    seen: list[Figure] = []
    save = Figure.savefig

    def look(figure: Figure, *arguments: Any, **options: Any) -> None:
        save(figure, *arguments, **options)
        _check(figure)
        seen.append(figure)

    monkeypatch.setattr(Figure, "savefig", look)
    return seen


def _check(figure: Figure) -> None:
    width, height = figure.bbox.width, figure.bbox.height
    figure.draw_without_rendering()
    boxes = []
    for panel in figure.axes:
        if not panel.axison:
            continue
        bar = panel.get_label() == "<colorbar>"
        shared = [other for other in figure.axes if panel.get_shared_x_axes().joined(panel, other)]
        assert bar or panel.get_xlabel() or figure.get_supxlabel() or any(other.get_xlabel() for other in shared)
        named = any(character.isalpha() for label in panel.get_yticklabels() for character in label.get_text())
        assert panel.get_ylabel() or figure.get_supylabel() or named
        for axis in (panel.xaxis, panel.yaxis):
            labels = [each.label1 for each in axis.get_major_ticks() if each.label1.get_visible()]
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t, at in zip(labels, axis.get_majorticklocs(), strict=False) if low <= at <= high]
            boxes += [(text.get_text(), text.get_window_extent()) for text in ticks]
            boxes += [(axis.label.get_text(), axis.label.get_window_extent())]
            assert axis.get_offset_text().get_text() == ""
        boxes += [(t.get_text(), t.get_window_extent()) for t in (panel.title, panel._left_title, panel._right_title)]
        boxes += [(t.get_text(), t.get_window_extent()) for t in panel.texts]
    for each in (figure._suptitle, figure._supxlabel, figure._supylabel):
        boxes += [] if each is None else [(each.get_text(), each.get_window_extent())]
    for legend in [*figure.legends, *(panel.legend_ for panel in figure.axes if panel.legend_ is not None)]:
        boxes += [(t.get_text(), t.get_window_extent()) for t in legend.get_texts()]
    boxes = [(text, box) for text, box in boxes if text.strip() and box.width > 0]
    for text, box in boxes:
        assert box.x0 >= 0 <= box.y0, f"{text!r} is cut"
        assert box.x1 <= width, f"{text!r} is cut at the right"
        assert box.y1 <= height, f"{text!r} is cut at the top"
    for (text, box), (other, there) in itertools.combinations(boxes, 2):
        shared_width = min(box.x1, there.x1) - max(box.x0, there.x0)
        shared_height = min(box.y1, there.y1) - max(box.y0, there.y0)
        assert min(shared_width, shared_height) < 1.0, f"{text!r} lies on {other!r}"


def _frames(n: int, elements: tuple[str, ...] = ("Cu",), *, forces: bool = True, group: str = "g") -> list[Frame]:
    frames = []
    for k in range(n):
        atoms: Atoms = bulk("Cu", cubic=True, a=3.7).repeat((2, 1, 1))
        atoms.symbols = np.random.default_rng(k).choice(elements, len(atoms))
        atoms.rattle(0.1, seed=k)
        atoms.calc = LennardJones(epsilon=0.2, sigma=2.4, rc=6.0)
        energy, force = atoms.get_potential_energy(), atoms.get_forces()
        structure = Structure.from_ase(atoms)
        frames.append(Frame(structure, float(energy), force if forces else None, None, f"{group}{k}", f"{group}#{k}"))
    return frames


@pytest.mark.parametrize("name", ["snnp-si", "snnp-3bpa", "snnp-shared6"])
def test_page_of_a_bundled_model(name: str, tmp_path: Path) -> None:
    draw_page(load_model(name), tmp_path / "page.png", title=name)


def test_page_of_other_models(tmp_path: Path) -> None:
    """Ten elements, filters per pair, no angles, an embedding, data behind the curves, a name that is too long."""
    draw_page(SplineNNP(SplineNNPConfig(elements=ALLOY)), tmp_path / "a.png", title=LONG)
    draw_page(SplineNNP(SplineNNPConfig(elements=ALLOY, filters="pair")), tmp_path / "b.svg", title="pairs")
    draw_page(SplineNNP(special_cases.eam(("Cu",))), tmp_path / "c.png")
    seen = Structure.concatenate([frame.structure for frame in _frames(3, ("Cu", "Ni"))])
    draw_page(SplineNNP(special_cases.s_meam(("Cu", "Ni"))), tmp_path / "d.png", title="s-MEAM", structures=seen)


@pytest.mark.parametrize("quantity", ["energy", "forces"])
def test_parity(quantity: Any, tmp_path: Path, drawn: list[Figure]) -> None:
    model = load_model("snnp-cu")
    for names, size, title in ((["valid"], 1, "run"), (["train", "valid", "test"], 4, LONG)):
        sets = {name: evaluate(model, _frames(size), model_name=title) for name in names}
        plot_parity(tmp_path / "parity.png", sets, quantity)
    sets = {f"a set of data with a very long name {k}": evaluate(model, _frames(2), model_name="x") for k in range(9)}
    plot_parity(tmp_path / "parity.png", sets, quantity)
    assert "'run' against reference data" in drawn[0].get_suptitle()


@pytest.mark.parametrize("epochs", [1, 3, 500])
def test_loss(epochs: int, tmp_path: Path) -> None:
    columns = "epoch,train_loss,valid_energy_mae_mev_per_atom,valid_force_mae_ev_per_angstrom,learning_rate\n"
    rows = [f"{k},{1.0 / k},{1000.0 / k**2},{0.1 / k},{1e-5 / k}\n" for k in range(1, epochs + 1)]
    (tmp_path / "metrics.csv").write_text(columns + "".join(rows))
    plot_loss(tmp_path / "loss.png", tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    "sets",
    [
        {"all": _frames(1)},
        {"train": _frames(20), "test": _frames(3)},
        {"train": _frames(12, forces=False)},
        {"all": _frames(12, ALLOY)},
        {f"a_split_with_a_very_long_name_number_{k}": _frames(3, group=f"group {k} " * 5) for k in range(7)},
    ],
    ids=["one frame", "two splits", "no forces", "ten elements", "many long names"],
)
def test_examined_data(sets: dict[str, list[Frame]], drawn: list[Figure]) -> None:
    examine_data(sets, subject="x")
    assert len(drawn) >= 3


def test_examined_model() -> None:
    r = np.linspace(0.5, 5.0, 200)
    seen = StabilityRun("nve", 300.0, 1.0, 2.0, "float32", 64, None, 300.0, 330.0, 2.2, 0.1, 0.0, 0.0)
    pairs = list(itertools.combinations_with_replacement(ALLOY, 2))
    for n in (1, 4, 55):
        dimers = [
            Dimer(pair, r, 50.0 * np.exp(-3.0 * r) - 0.2 * k, 1.0 if k == 2 else None, 1.0, 0.5)
            for k, pair in enumerate(pairs[:n])
        ]
        runs = [
            Run(f"{each} crystal with a name", True, seen, r, 10.0**k * np.sin(r)) for k, each in enumerate(ALLOY[:n])
        ]
        ways = ("hydrostatic", "[100]", "[110]", "[111]")
        hole = Hole(0.6, 3.0, 90.0, -40.0, 0.4)
        v = np.linspace(1.0, 0.2, 50)
        scan = [
            Compression(f"fcc {each}", way, True, v, (10.0 ** (k % 5)) * (1.0 - v) ** 2, hole if k == 1 else None)
            for k, each in enumerate(ALLOY[:n])
            for way in ways
        ]
        model_pictures(dimers, scan, runs, Scaling([108, 864, 4000][:n], [1e-3, 9e-3, 2e-2][:n]))


def test_benchmarks(repository: Path, tmp_path: Path) -> None:
    """The documentation's own, and what is left of them where one case or one point was measured."""
    folder = repository / "docs" / "benchmarks"
    document = json.loads((folder / "2026-11-21-cpu.json").read_text())
    draw_comparison(tmp_path / "a.png", document)
    for row in document["rows"][::12]:
        one = copy.deepcopy(row)
        draw_comparison(tmp_path / "b.png", {**document, "rows": [one]})
        one["case"] = LONG
        draw_comparison(tmp_path / "b.png", {**document, "rows": [one]})
    document = json.loads((folder / "2026-11-21-scaling.json").read_text())
    for kept in (None, 1):
        curves = {axis: points[:kept] for axis, points in document["scaling"].items()}
        draw_scaling(tmp_path / "c.png", {**document, "scaling": curves})
        for axis, points in curves.items():
            draw_scaling(tmp_path / "c.png", {**document, "scaling": {axis: points}})


@pytest.mark.parametrize("ensemble, steps", [("nve", 0), ("nvt", 1), ("npt", 40)])
def test_run(ensemble: Any, steps: int, tmp_path: Path) -> None:
    settings = MDSettings(ensemble=ensemble, steps=steps, plot=tmp_path / "md.png", log_interval=1)
    run_md("snnp-si", build_structure("diamond:Si:2x2x2"), settings, engine="ase")
    assert (tmp_path / "md.png").exists()
