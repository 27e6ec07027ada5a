"""Pictures of a data set: histograms, forces against a model, coverage, and a map of environments."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from snnp.doctor.consensus import Consensus
from snnp.doctor.report import Picture
from snnp.doctor.survey import Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "data_pictures", "figure", "png"]

# Okabe and Ito's colours, told apart by everybody.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_BINS = 60
_MOST_LABELS = 12


def figure(width: float, height: float) -> Figure:
    """An empty figure (inches)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure) -> bytes:
    """A figure as PNG bytes."""
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def data_pictures(survey: Survey, consensus: Consensus) -> list[Picture]:
    """All pictures of a data set."""
    drawn = [_histograms(survey, consensus), _agreement(survey, consensus)]
    # One element has one pair: its numbers are in the table.
    return [*drawn, *([_coverage(survey)] if len(survey.elements) > 1 else []), _map(survey)]


def _by_split(panel: Axes, survey: Survey, values: np.ndarray, log: bool = False) -> None:
    """One outline per split of values [n]; what lies far out is drawn at the edge."""
    known = np.isfinite(values) & ((values > 0) | (not log))
    if not known.any():
        panel.text(0.5, 0.5, "none", ha="center", va="center", transform=panel.transAxes)
        return
    low, high = np.quantile(values[known], [0.002, 0.998])
    pad = 0.1 * (high - low) + 1e-9
    if log:
        edges = np.geomspace(max(low / 1.5, 1e-9), high * 1.5, _BINS + 1)
        panel.set_xscale("log")
    else:
        edges = np.linspace(low - pad, high + pad, _BINS + 1)
    split = np.array(survey.split)
    for k, name in enumerate(survey.splits):
        mine = np.clip(values[known & (split == name)], edges[0], edges[-1])
        panel.hist(mine, bins=edges, histtype="step", color=COLOURS[k % len(COLOURS)], label=name)  # type: ignore[arg-type]
    panel.set_yscale("log")
    panel.set_ylim(bottom=0.7)


def _histograms(survey: Survey, consensus: Consensus) -> Picture:
    drawn = figure(9.0, 5.4)
    panels = drawn.subplots(2, 2)
    shortest = survey.closest.min(axis=1, initial=np.inf)
    for panel, values, label, log in (
        (panels[0, 0], consensus.composition_residual, "energy beyond composition (eV/atom)", False),
        (panels[0, 1], consensus.residual, "energy beyond composition and model (eV/atom)", False),
        (panels[1, 0], survey.force_max, "largest force (eV/Å)", True),
        (panels[1, 1], shortest, "shortest distance (Å)", False),
    ):
        _by_split(panel, survey, values, log)
        panel.set_xlabel(label)
        panel.set_ylabel("frames")
    if len(survey.splits) > 1:
        panels[0, 0].legend(frameon=False, fontsize=8)
    caption = (
        "Per frame, on a logarithmic scale so that single frames show; what lies outside is drawn at the edge. Two "
        "heaps of energies are two levels of theory; frames far from the rest are listed among the findings."
    )
    return Picture("Energies, forces, distances", caption, png(drawn))


def _agreement(survey: Survey, consensus: Consensus) -> Picture:
    drawn = figure(9.0, 3.4)
    left, right = drawn.subplots(1, 2)
    known = np.isfinite(consensus.force_correlation) & (survey.force_rms > 0)
    judged = known & consensus.comparable
    kinds = {"too small or uniform to judge": (known & ~judged, "#b8bcc2"), "judged": (judged, COLOURS[0])}
    for label, (which, colour) in kinds.items():
        points = survey.force_rms[which], consensus.force_correlation[which]
        left.plot(*points, ".", ms=3, color=colour, label=label, rasterized=True)
    if known.any():
        left.set_xscale("log")
        left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set_ylim(-1.05, 1.05)
    left.axhline(0.0, color="#b8bcc2", lw=0.8)
    left.set_xlabel("typical force of a frame (eV/Å)")
    left.set_ylabel("correlation with the model's forces")
    energy = np.isfinite(consensus.residual)
    right.plot(np.flatnonzero(energy), consensus.residual[energy], ".", ms=3, color=COLOURS[1], rasterized=True)
    right.set_yscale("symlog", linthresh=0.1)
    right.set_xlabel("frame")
    right.set_ylabel("energy beyond model (eV/atom)")
    caption = (
        "Every frame against a linear model of the whole set. Forces of the wrong sign lie at -1, those in another "
        "order of atoms near 0; energies in another unit or at another level of theory leave the line."
    )
    return Picture("Agreement among the frames", caption, png(drawn))


def _coverage(survey: Survey) -> Picture:
    n = len(survey.elements)
    table = np.zeros((n, n))
    for q, (a, b) in enumerate(survey.pairs):
        i, j = survey.elements.index(a), survey.elements.index(b)
        table[i, j] = table[j, i] = np.isfinite(survey.closest[:, q]).sum()
    drawn = figure(*(3.0 + 0.36 * max(n, 3), 2.2 + 0.36 * max(n, 3)))
    panel = drawn.subplots()
    image = panel.imshow(np.log10(np.where(table > 0, table, np.nan)), cmap="viridis", vmin=0.0)
    names = [chemical_symbols[z] for z in survey.elements]
    panel.set_xticks(range(n), names, fontsize=8)
    panel.set_yticks(range(n), names, fontsize=8)
    if n <= _MOST_LABELS:
        middle = 0.5 * np.log10(max(float(table.max()), 1.0))
        for i in range(n):
            for j in range(n):
                light = table[i, j] > 0 and np.log10(table[i, j]) < middle
                panel.text(
                    j, i, f"{int(table[i, j])}", ha="center", va="center", fontsize=7, color="w" if light else "k"
                )
    drawn.colorbar(image, ax=panel, label="log10 of frames", shrink=0.8)
    caption = "Frames in which two elements are within 5 Å of each other; white pairs never meet."
    return Picture("Pairs of elements", caption, png(drawn))


def _map(survey: Survey) -> Picture:
    described, owner, numbers = survey.atoms
    rows = np.log1p(described)
    rows = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    plane = rows @ axes[:2].T
    drawn = figure(9.0, 4.2)
    panels = drawn.subplots(1, 2)
    split = np.array(survey.split)[owner]
    elements = np.array([chemical_symbols[z] for z in numbers])
    for panel, label, title in ((panels[0], elements, "by element"), (panels[1], split, "by split")):
        values, counts = np.unique(label, return_counts=True)
        # The largest first, so that the smaller stay visible on top.
        for k, value in enumerate(values[np.argsort(-counts)]):
            mine = label == value
            name = value if k < _MOST_LABELS else None
            panel.plot(
                *plane[mine].T, ".", ms=2.5, alpha=0.6, color=COLOURS[k % len(COLOURS)], label=name, rasterized=True
            )
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.legend(frameon=False, fontsize=8, markerscale=4.0)
    caption = (
        "Up to six thousand atoms, placed by the two main directions in which their surroundings differ: like "
        "surroundings lie close together. Islands of one split are what another split has never seen."
    )
    return Picture("Map of environments", caption, png(drawn))
