"""Draws the pictures of architecture.md: `python docs/architecture.py [FOLDER FOR PNG, TOO]`.

Every box names a file of the repository, and a file that is not there is an error: the pictures follow the code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INK, SIDE, FILL, GREY = "#1f2d3d", "#5b7083", "#eef3f8", "#f7f7f4"


@dataclass(frozen=True)
class Step:
    """A file, what it does, and what travels on to the next; `aside`: what may stand in its place, or helps it."""

    file: str
    does: str
    carries: str = ""
    aside: tuple[tuple[str, str], ...] = ()
    word: str = "or"


PICTURES: dict[str, tuple[str, list[Step]]] = {}
PICTURES["positions"] = (
    "Positions, from snnp md to the compiled kernel",
    [
        Step(
            "snnp/cli/simulate.py",
            "options become MDSettings; structure and model are loaded, once",
            "Potential, Atoms, MDSettings",
        ),
        Step(
            "snnp/sampling/run.py",
            "one driver for all engines: steps in portions, log, trajectory, checkpoint",
            "starting point; number of steps",
        ),
        Step(
            "snnp/sampling/embedded.py",
            "the integrator owns positions and momenta and moves them in place",
            "positions [N, 3] float64, cell [3, 3]",
            (
                ("plugins/ase/snnp_ase/calculator.py", "ASE's integrators and yours"),
                ("plugins/openmm/snnp_openmm/evaluator.py", "OpenMM's integrators"),
            ),
        ),
        Step(
            "snnp/models/session.py",
            "the one door of engines: elements are known, the stress is formed",
            "the same array",
        ),
        Step(
            "snnp/models/spline/compiled.py",
            "keeps the neighbour list, and the call that was prepared for it",
            "the same array",
            (("snnp/models/potential.py", "torch computes where a family has no kernel"),),
        ),
        Step("snnp/kernels/cpu/call.py", "a prepared call: only the address of the positions is new", "a pointer"),
        Step("snnp/kernels/src/snnp_kernels.h", "C++: energies, forces and virial into arrays of the caller"),
    ],
)
PICTURES["frame"] = (
    "A frame, from a file to a training step",
    [
        Step(
            "snnp/data/storage/extxyz.py",
            "every frame of a text file, or an error with its line",
            "numbers, positions, cell, labels as arrays of many frames",
            (("snnp/data/storage/parquet.py", "row groups of a dataset, through a memory map"),),
        ),
        Step("snnp/data/frames.py", "Frames: structures with labels, few arrays, sliced without a loop", "Frames"),
        Step("snnp/training/problem.py", "parts by rows, E0, ranges, compressed structures", "Frames of a part"),
        Step(
            "snnp/training/batches.py",
            "the one repacking: all frames of a part as one batch, E0 taken off",
            "Structure and labels",
        ),
        Step(
            "snnp/training/backends/compiled.py",
            "what training needs of each pair, formed once; a batch is cut out by rows",
            "Batch",
            (("snnp/training/backends/through_torch.py", "any family, also on a GPU; directional force training"),),
        ),
        Step(
            "snnp/training/loop.py",
            "prediction, loss, gradient, step; average; validation",
            "gradient of the loss in all parameters",
        ),
        Step("snnp/kernels/cpu/training.py", "two compiled passes: energies and forces, then the gradient"),
    ],
)
PICTURES["model"] = (
    "A published model, from a run to another machine",
    [
        Step("snnp/training/run.py", "a finished run: the best weights, errors, provenance", "a run folder"),
        Step(
            "snnp/models/store.py", "config.json and model.safetensors, written whole or not at all", "a model folder"
        ),
        Step(
            "snnp/publish/__init__.py",
            "what a model must state; the doctor examines it; the card",
            "folder with card and manifest of checksums",
            (("snnp/analysis/card.py", "errors, properties, stability, limits"),),
            "with",
        ),
        Step("snnp/hub/client.py", "one commit to the Hub", "org/name@commit"),
        Step(
            "snnp/hub/resolver.py",
            "one name: bundled, a folder, a mirror, the Hub; every file is checked",
            "a checked folder",
        ),
        Step("snnp/models/store.py", "bounds before anything is allocated; nothing is unpickled", "config, tensors"),
        Step("snnp/models/families.py", "one record per family builds the potential", "Potential"),
    ],
)


def _box(axes: Axes, x: float, y: float, width: float, file: str, does: str, *, main: bool) -> None:
    assert (ROOT / file).is_file(), f"{file}, which a picture names, is not there"
    style = {"facecolor": FILL if main else GREY, "edgecolor": INK if main else SIDE, "linewidth": 1.1 if main else 0.8}
    axes.add_patch(FancyBboxPatch((x, y), width, 0.62, boxstyle="round,pad=0.02,rounding_size=0.08", **style))
    axes.text(
        x + 0.12,
        y + 0.43,
        file,
        family="monospace",
        fontsize=9.5,
        color=INK,
        va="center",
        weight="bold" if main else "normal",
    )
    axes.text(x + 0.12, y + 0.17, does, fontsize=8.8, color=INK if main else SIDE, va="center")


def draw(name: str, title: str, steps: list[Step], target: Path | None = None) -> None:
    """One picture: boxes from top to bottom, arrows with what they carry, and other ways in at the right."""
    height = 1.05 * len(steps)
    figure, axes = plt.subplots(figsize=(11.0, 0.92 * height + 0.5))
    axes.set(xlim=(0, 12.8), ylim=(-0.25, height + 0.3))
    axes.axis("off")
    axes.text(0.05, height + 0.12, title, fontsize=13, color=INK, weight="bold", va="center")
    for k, step in enumerate(steps):
        y = height - 1.05 * (k + 1) + 0.3
        _box(axes, 0.1, y, 6.9, step.file, step.does, main=True)
        for n, (file, does) in enumerate(step.aside):
            beside = y + 0.36 * (len(step.aside) - 1) - 0.72 * n
            _box(axes, 7.8, beside, 4.9, file, does, main=False)
            axes.plot((7.05, 7.75), (y + 0.31, beside + 0.31), color=SIDE, linewidth=0.8)
        if step.aside:
            axes.text(7.3, y + 0.42, step.word, fontsize=8.8, style="italic", color=SIDE, ha="center", va="bottom")
        if step.carries:
            axes.annotate("", (0.75, y - 0.41), (0.75, y - 0.03), arrowprops={"arrowstyle": "-|>", "color": INK})
            axes.text(0.95, y - 0.215, step.carries, fontsize=8.8, style="italic", color=SIDE, va="center")
    figure.savefig(DOCS / "_static" / f"architecture-{name}.svg", bbox_inches="tight", metadata={"Date": None})
    if target:
        figure.savefig(target / f"architecture-{name}.png", bbox_inches="tight", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams.update({"svg.hashsalt": "snnp", "svg.fonttype": "none"})
    for key, (heading, chain) in PICTURES.items():
        draw(key, heading, chain, Path(sys.argv[1]) if sys.argv[1:] else None)
