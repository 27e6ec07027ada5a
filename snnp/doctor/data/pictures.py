"""Pictures of a data set: histograms, forces against a model, coverage, and a map of environments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from snnp.doctor.data.consensus import Consensus
from snnp.doctor.data.survey import Survey
from snnp.doctor.report import Picture
from snnp.report import COLOURS, GREY, colours, new_figure, plain_ticks, png, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["data_pictures"]

_BINS = 60
_MOST_LABELS = 12


def data_pictures(survey: Survey, consensus: Consensus) -> list[Picture]:
    """All pictures of a data set."""
    drawn = [_histograms(survey, consensus), _agreement(survey, consensus)]
    # One element has one pair: its numbers are in the table.
    return [*drawn, *([_coverage(survey)] if len(survey.elements) > 1 else []), _map(survey)]


def _say_none(panel: Axes) -> None:
    panel.text(0.5, 0.5, "the data hold none", ha="center", va="center", transform=panel.transAxes)
    panel.set_xticks([])
    panel.set_yticks([])


def _by_split(panel: Axes, survey: Survey, values: np.ndarray, log: bool = False) -> None:
    """One outline per split of values [n]; what lies far out is drawn at the edge."""
    known = np.isfinite(values) & ((values > 0) | (not log))
    if not known.any():
        _say_none(panel)
        return
    low, high = np.quantile(values[known], [0.002, 0.998])
    if log:
        edges = np.geomspace(max(low / 1.5, 1e-9), high * 1.5, _BINS + 1)
        panel.set_xscale("log")
    else:
        pad = max(0.1 * (high - low), 1e-3)  # eV/atom or Å: frames that differ by less are drawn as alike
        edges = np.linspace(low - pad, high + pad, _BINS + 1)
    split = np.array(survey.split)
    most = 0.0
    for name, colour in zip(survey.splits, colours(len(survey.splits)), strict=True):
        mine = np.clip(values[known & (split == name)], edges[0], edges[-1])
        counts, _, _ = panel.hist(mine, bins=edges, histtype="step", color=colour, label=shortened(name))  # type: ignore[arg-type]
        most = max(most, float(np.max(counts)))
    panel.set_yscale("log")
    panel.set_ylim(0.7, max(10.0, 1.5 * most))
    panel.set_xlim(edges[0], edges[-1])
    plain_ticks(panel.xaxis, panel.yaxis)


def _histograms(survey: Survey, consensus: Consensus) -> Picture:
    drawn = new_figure(9.0, 5.8)
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
    handles, labels = panels[1, 1].get_legend_handles_labels()
    if len(survey.splits) > 1:
        drawn.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    caption = (
        "Per frame, on a logarithmic scale so that single frames show; what lies outside is drawn at the edge. Two "
        "heaps of energies are two levels of theory; frames far from the rest are listed among the findings."
    )
    return Picture("Energies, forces, distances", caption, png(drawn))


def _agreement(survey: Survey, consensus: Consensus) -> Picture:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn = new_figure(9.0, 3.6)
    left, right = drawn.subplots(1, 2)
    known = np.isfinite(consensus.force_correlation) & (survey.force_rms > 0)
    judged = known & consensus.comparable
    size = 3.0 if len(known) > 100 else 6.0
    kinds = {"too small or uniform to judge": (known & ~judged, GREY), "judged": (judged, COLOURS[0])}
    for label, (which, colour) in kinds.items():
        points = survey.force_rms[which], consensus.force_correlation[which]
        if which.any():
            left.plot(*points, ".", ms=size, color=colour, label=label, rasterized=True)
    left.set_xlabel("typical force of a frame (eV/Å)")
    left.set_ylabel("correlation with the model's forces")
    if known.any():
        low, high = survey.force_rms[known].min(), survey.force_rms[known].max()
        left.set_xscale("log")
        left.set_xlim(low / 1.3, 1.3 * high)
        left.set_ylim(-1.08, 1.08)
        left.axhline(0.0, color=GREY, lw=0.8)
        left.legend(frameon=False, fontsize=8, loc="lower right", markerscale=9.0 / size)
        plain_ticks(left.xaxis)
    else:
        _say_none(left)
    energy = np.isfinite(consensus.residual)
    right.set_xlabel("number of the frame")
    right.set_ylabel("energy beyond model (eV/atom)")
    if energy.any():
        right.plot(np.flatnonzero(energy), consensus.residual[energy], ".", ms=size, color=COLOURS[1], rasterized=True)
        right.set_xlim(-0.03 * len(energy) - 0.5, 1.03 * len(energy) - 0.5)
        right.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        bound = 1.2 * float(np.abs(consensus.residual[energy]).max())
        if bound > 1.0:  # a few frames far out must not flatten the rest
            right.set_yscale("symlog", linthresh=0.1)
            decades = [10.0**k for k in range(-1, math.ceil(math.log10(bound)) + 1)]
            step = -(-len(decades) // 4)
            right.set_yticks([-each for each in decades[::step]] + [0.0, *decades[::step]], minor=False)
            right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            right.set_ylim(-bound, bound)
        else:
            right.set_ylim(-max(bound, 1e-3), max(bound, 1e-3))
            plain_ticks(right.yaxis)
    else:
        _say_none(right)
    caption = (
        "Every frame against a linear model of the whole set. Forces of the wrong sign lie at -1, those in another "
        "order of atoms near 0; energies in another unit or at another level of theory leave the line."
    )
    return Picture("Agreement among the frames", caption, png(drawn))


def _count(n: int) -> str:
    """A number of frames that fits into a small square."""
    return str(n) if n < 10_000 else f"{n / 1e3:.0f}k" if n < 1_000_000 else f"{n / 1e6:.1f}M"


def _coverage(survey: Survey) -> Picture:
    from matplotlib.colors import LogNorm

    n = len(survey.elements)
    table = np.zeros((n, n))
    for q, (a, b) in enumerate(survey.pairs):
        i, j = survey.elements.index(a), survey.elements.index(b)
        table[i, j] = table[j, i] = np.isfinite(survey.closest[:, q]).sum()
    drawn = new_figure(2.6 + 0.42 * max(n, 4), 1.6 + 0.42 * max(n, 4))
    panel = drawn.subplots()
    most = max(float(table.max()), 10.0)
    image = panel.imshow(np.where(table > 0, table, np.nan), cmap="viridis", norm=LogNorm(1.0, most))
    names = [chemical_symbols[z] for z in survey.elements]
    panel.set_xticks(range(n), names, fontsize=8)
    panel.set_yticks(range(n), names, fontsize=8)
    if n <= _MOST_LABELS:
        for i in range(n):
            for j in range(n):
                light = 0 < table[i, j] < most**0.5
                panel.text(
                    j, i, _count(int(table[i, j])), ha="center", va="center", fontsize=7, color="w" if light else "k"
                )
    panel.set_xlabel("element")
    panel.set_ylabel("element")
    bar = drawn.colorbar(image, ax=panel, label="frames")
    plain_ticks(bar.ax.yaxis)
    caption = "Frames in which two elements are within 5 Å of each other; white pairs never meet."
    return Picture("Pairs of elements", caption, png(drawn))


def _map(survey: Survey) -> Picture:
    described, owner, numbers = survey.atoms
    rows = np.log1p(described)
    rows = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    plane = rows @ axes[:2].T
    drawn = new_figure(9.0, 4.6)
    panels = drawn.subplots(1, 2)
    split = np.array(survey.split)[owner]
    elements = np.array([chemical_symbols[z] for z in numbers])
    for panel, label, title in ((panels[0], elements, "by element"), (panels[1], split, "by split")):
        values, counts = np.unique(label, return_counts=True)
        # The largest first, so that the smaller stay visible on top.
        for k, (value, colour) in enumerate(zip(values[np.argsort(-counts)], colours(len(values)), strict=True)):
            mine = label == value
            name = shortened(str(value)) if k < _MOST_LABELS else None
            panel.plot(*plane[mine].T, ".", ms=2.5, alpha=0.6, color=colour, label=name, rasterized=True)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("first main direction")
        panel.set_ylabel("second main direction")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.legend(
            *panel.get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.08),
            ncols=max(1, 50 // (max(len(shortened(str(value))) for value in values) + 4)),
            frameon=False,
            fontsize=8,
            markerscale=4.0,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    caption = (
        "Up to six thousand atoms, placed by the two main directions in which their surroundings differ: like "
        "surroundings lie close together. Islands of one split are what another split has never seen."
    )
    return Picture("Map of environments", caption, png(drawn))
