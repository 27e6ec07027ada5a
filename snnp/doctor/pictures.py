"""Pictures of a data set (histograms, forces against a model, coverage, a map) and of a model at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from snnp.analysis.properties import Compression
from snnp.doctor.consensus import Consensus
from snnp.doctor.survey import Survey
from snnp.doctor.trials import Dimer, Run, Scaling
from snnp.report import COLOURS, GREY, Figure, colours, new_figure, new_panels, plain_ticks, png, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["data_pictures", "model_pictures"]

_BINS = 60
_MOST_LABELS = 12
_MOST_PANELS = 28
_TOP = 30.0  # eV


def data_pictures(survey: Survey, consensus: Consensus) -> list[Figure]:
    # One element has one pair: its numbers are in the table.
    pairs = [_coverage(survey)] if len(survey.elements) > 1 else []
    return [_histograms(survey, consensus), _agreement(survey, consensus), *pairs, _map(survey)]


def model_pictures(dimers: list[Dimer], scan: Sequence[Compression], runs: list[Run], scaling: Scaling) -> list[Figure]:
    drawn = [_dimers(dimers), *([_compression(scan)] if scan else []), *([_runs(runs)] if runs else [])]
    return [*drawn, _scaling(scaling)]


def _say_none(panel: Axes) -> None:
    panel.text(0.5, 0.5, "the data hold none", ha="center", va="center", transform=panel.transAxes)
    panel.set(xticks=[], yticks=[])


def _symlog(panel: Axes, low: float, high: float, linear: float = 1.0) -> None:
    """Limits of the vertical axis, which is linear up to `linear` and logarithmic beyond; with few ticks."""
    from matplotlib.ticker import FuncFormatter

    decades = linear * 10.0 ** np.arange(12)
    decades = decades[decades <= max(high, -low)]
    decades = decades[:: -(-len(decades) // 4) or 1]
    panel.set_yscale("symlog", linthresh=linear)
    panel.set_yticks([each for each in (*-decades, 0.0, *decades) if low <= each <= high])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_ylim(low, high)


def _histograms(survey: Survey, consensus: Consensus) -> Figure:
    drawn, panels = new_panels(4, 4.5, 2.65, columns=2)
    drawings = {
        "energy beyond composition (eV/atom)": consensus.composition_residual,
        "energy beyond composition and model (eV/atom)": consensus.residual,
        "largest force (eV/Å)": survey.force_max,
        "shortest distance (Å)": survey.closest.min(axis=1, initial=np.inf),
    }
    for panel, (label, values) in zip(panels, drawings.items(), strict=True):
        _by_split(panel, survey, values, log="force" in label)
        panel.set(xlabel=label, ylabel="frames")
    if len(survey.splits) > 1:
        handles = panels[3].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    caption = (
        "Per frame, on a logarithmic scale so that single frames show; what lies outside is drawn at the edge. Two "
        "heaps of energies are two levels of theory; frames far from the rest are listed among the findings."
    )
    return Figure("Energies, forces, distances", caption, png(drawn))


def _by_split(panel: Axes, survey: Survey, values: np.ndarray, log: bool) -> None:
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
    most = 0.0
    for name, colour in zip(survey.splits, colours(len(survey.splits)), strict=True):
        mine = np.clip(values[known & (survey.split == name)], edges[0], edges[-1])
        counts, _, _ = panel.hist(mine, bins=edges, histtype="step", color=colour, label=shortened(name))  # type: ignore[arg-type]
        most = max(most, float(np.max(counts)))
    panel.set_yscale("log")
    panel.set(xlim=(edges[0], edges[-1]), ylim=(0.7, max(10.0, 1.5 * most)))
    plain_ticks(panel.xaxis, panel.yaxis)


def _agreement(survey: Survey, consensus: Consensus) -> Figure:
    drawn, (left, right) = new_panels(2, 4.5, 3.1)
    size = 3.0 if len(survey.frames) > 100 else 6.0
    _draw_forces(left, survey, consensus, size)
    _draw_energies(right, consensus.residual, size)
    caption = (
        "Every frame against a linear model of the whole set. Forces of the wrong sign lie at -1, those in another "
        "order of atoms near 0; energies in another unit or at another level of theory leave the line."
    )
    return Figure("Agreement among the frames", caption, png(drawn))


def _draw_forces(panel: Axes, survey: Survey, consensus: Consensus, size: float) -> None:
    panel.set(xlabel="typical force of a frame (eV/Å)", ylabel="correlation with the model's forces")
    rms, correlation = survey.force_rms, consensus.force_correlation
    known = np.isfinite(correlation) & (rms > 0)
    if not known.any():
        _say_none(panel)
        return
    judged = known & consensus.comparable
    kinds = {"too small or uniform to judge": (known & ~judged, GREY), "judged": (judged, COLOURS[0])}
    for label, (which, colour) in kinds.items():
        if which.any():
            panel.plot(rms[which], correlation[which], ".", ms=size, color=colour, label=label, rasterized=True)
    panel.set(xscale="log", xlim=(rms[known].min() / 1.3, 1.3 * rms[known].max()), ylim=(-1.08, 1.08))
    panel.axhline(0.0, color=GREY, lw=0.8)
    panel.legend(frameon=False, fontsize=8, loc="lower right", markerscale=9.0 / size)
    plain_ticks(panel.xaxis)


def _draw_energies(panel: Axes, residual: np.ndarray, size: float) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set(xlabel="number of the frame", ylabel="energy beyond model (eV/atom)")
    known = np.isfinite(residual)
    if not known.any():
        _say_none(panel)
        return
    panel.plot(np.flatnonzero(known), residual[known], ".", ms=size, color=COLOURS[1], rasterized=True)
    panel.set_xlim(-0.03 * len(known) - 0.5, 1.03 * len(known) - 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    bound = max(1.2 * float(np.abs(residual[known]).max()), 1e-3)
    if bound > 1.0:  # a few frames far out must not flatten the rest
        _symlog(panel, -bound, bound, linear=0.1)
    else:
        panel.set_ylim(-bound, bound)
        plain_ticks(panel.yaxis)


def _coverage(survey: Survey) -> Figure:
    from matplotlib.colors import LogNorm

    n = len(survey.elements)
    table = np.zeros((n, n))
    rows, columns = np.triu_indices(n)  # in the order of the pairs
    table[rows, columns] = table[columns, rows] = np.isfinite(survey.closest).sum(axis=0)
    drawn = new_figure(2.6 + 0.42 * max(n, 4), 1.6 + 0.42 * max(n, 4))
    panel = drawn.subplots()
    most = max(float(table.max()), 10.0)
    image = panel.imshow(np.where(table > 0, table, np.nan), cmap="viridis", norm=LogNorm(1.0, most))
    names = [chemical_symbols[z] for z in survey.elements]
    panel.set_xticks(range(n), names, fontsize=8)
    panel.set_yticks(range(n), names, fontsize=8)
    if n <= _MOST_LABELS:
        for (i, j), met in np.ndenumerate(table):
            fits = f"{met:.0f}" if met < 10_000 else f"{met / 1e3:.0f}k" if met < 1_000_000 else f"{met / 1e6:.1f}M"
            colour = "w" if 0 < met < most**0.5 else "k"
            panel.text(j, i, fits, ha="center", va="center", fontsize=7, color=colour)
    panel.set(xlabel="element", ylabel="element")
    plain_ticks(drawn.colorbar(image, ax=panel, label="frames").ax.yaxis)
    caption = "Frames in which two elements are within 5 Å of each other; white pairs never meet."
    return Figure("Pairs of elements", caption, png(drawn))


def _map(survey: Survey) -> Figure:
    described, owner, numbers = survey.atoms
    rows = np.log1p(described)
    rows = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    plane = rows @ axes[:2].T
    drawn, panels = new_panels(2, 4.5, 4.1)
    elements = np.array([chemical_symbols[z] for z in numbers])
    labels = {"by element": elements, "by split": survey.split[owner]}
    for panel, (title, label) in zip(panels, labels.items(), strict=True):
        values, counts = np.unique(label, return_counts=True)
        # The largest first, so that the smaller stay visible on top.
        for k, (value, colour) in enumerate(zip(values[np.argsort(-counts)], colours(len(values)), strict=True)):
            name = shortened(str(value)) if k < _MOST_LABELS else None
            points = plane[label == value].T
            panel.plot(*points, ".", ms=2.5, alpha=0.6, color=colour, label=name, rasterized=True)
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="first main direction", ylabel="second main direction", xticks=[], yticks=[])
        ncols = max(1, 50 // (max(len(shortened(str(value))) for value in values) + 4))
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "ncols": ncols}
        panel.legend(**place, frameon=False, fontsize=8, markerscale=4.0, handletextpad=0.2, columnspacing=1.2)
    caption = (
        "Up to six thousand atoms, placed by the two main directions in which their surroundings differ: like "
        "surroundings lie close together. Islands of one split are what another split has never seen."
    )
    return Figure("Map of environments", caption, png(drawn))


def _energy_panel(panel: Axes, title: str, low: float, high: float) -> None:
    panel.axhline(0.0, color=GREY, lw=0.7)
    _symlog(panel, 1.5 * low - 0.3, 1.5 * high)
    plain_ticks(panel.xaxis)
    panel.set_title(title, fontsize=9)
    panel.tick_params(labelsize=7)


def _dimers(dimers: list[Dimer]) -> Figure:
    # Those with holes come first, in case there are too many to draw.
    shown = sorted(dimers, key=lambda each: each.hole is None)[:_MOST_PANELS]
    drawn, panels = new_panels(len(shown), 2.3, 1.9)
    for panel, dimer in zip(panels, shown, strict=True):
        finite = np.isfinite(dimer.energy)
        energy = dimer.energy[finite]
        panel.plot(dimer.distance[finite], energy, color=COLOURS[0], lw=1.4)
        if dimer.hole is not None:
            panel.axvline(dimer.hole, color=COLOURS[1], lw=1.0, ls="--")
        high = 600.0 if energy.max(initial=0.0) > _TOP else _TOP / 1.5
        _energy_panel(panel, "-".join(dimer.pair), float(energy.min(initial=0.0)), high)
    drawn.supxlabel("distance (Å)", fontsize=9)
    drawn.supylabel("energy (eV)", fontsize=9)
    hidden = f" {len(dimers) - len(shown)} pairs are not shown." if len(dimers) > len(shown) else ""
    caption = (
        "Two atoms alone, relative to far apart; the scale is linear between -1 and 1 eV and logarithmic beyond. To "
        f"the left the curves must rise: a dashed line marks where one falls again.{hidden}"
    )
    return Figure("Dimers", caption, png(drawn))


def _compression(scan: Sequence[Compression]) -> Figure:
    systems = list(dict.fromkeys(each.system for each in scan))[:_MOST_PANELS]
    drawn, panels = new_panels(len(systems), 2.6, 2.2)
    for panel, system in zip(panels, systems, strict=True):
        mine = [each for each in scan if each.system == system]
        for each, colour in zip(mine, colours(len(mine)), strict=True):
            finite = np.isfinite(each.energy)
            panel.plot(each.ratio[finite], each.energy[finite], color=colour, lw=1.2, label=each.way)
            if each.hole is not None:
                panel.plot(each.hole.v_over_v0, each.hole.barrier_ev_per_atom, "v", color=colour, ms=5)
        seen = np.concatenate([each.energy[np.isfinite(each.energy)] for each in mine])
        _energy_panel(panel, system, float(seen.min(initial=0.0)), float(seen.max(initial=1.0)))
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper center", ncols=min(len(labels), 3))
    drawn.supxlabel("V / V0", fontsize=9)
    drawn.supylabel("energy (eV/atom)", fontsize=9)
    caption = (
        "Crystals, or a molecule, under compression, relative to equilibrium; linear between -1 and 1 eV/atom and "
        "logarithmic beyond. To the left every curve must rise: a triangle marks where one begins to fall."
    )
    return Figure("Compression", caption, png(drawn))


def _runs(runs: list[Run]) -> Figure:
    drawn, (panel,) = new_panels(1, 8.0, 2.7)
    for run, colour in zip(runs, colours(len(runs)), strict=True):
        panel.plot(run.picoseconds, run.energy, color=colour, lw=1.2, label=run.name)
    widest = max(1.0, 1.2 * max(float(np.abs(run.energy).max(initial=0.0)) for run in runs))
    # A thermal energy of 300 K is 39 meV: less than 1 is nothing.
    panel.set(xlabel="time (ps)", ylabel="total energy (meV/atom)", ylim=(-widest, widest))
    plain_ticks(panel.xaxis, panel.yaxis)
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "At constant energy the line is flat up to small waves; a slope is a drift, a kink a jump of the forces."
    return Figure("Conservation of energy", caption, png(drawn))


def _scaling(scaling: Scaling) -> Figure:
    drawn, (panel,) = new_panels(1, 5.0, 2.7)
    cost = 1e6 * np.array(scaling.seconds) / np.array(scaling.atoms)
    panel.loglog(scaling.atoms, cost, "o-", color=COLOURS[0], ms=4)
    panel.set(xlabel="atoms", ylabel="µs per atom", ylim=(0.3 * cost.min(), 3.0 * cost.max()))
    plain_ticks(panel.xaxis, panel.yaxis)
    caption = "Energy and forces on one core, the neighbour list kept; level at large sizes if the cost is linear."
    return Figure("Cost by size", caption, png(drawn))
