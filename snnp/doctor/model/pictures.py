"""Pictures of a model: its dimers, the energy under compression and along short runs, and its cost by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnp.analysis.compression import Compression
from snnp.doctor.model.dimers import Dimer
from snnp.doctor.model.dynamics import Run, Scaling
from snnp.doctor.report import Picture
from snnp.report import COLOURS, GREY, colours, new_figure, plain_ticks, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["model_pictures"]

_COLUMNS = 4
_MOST_PANELS = 28
_TOP = 30.0  # eV


def model_pictures(
    dimers: list[Dimer], scan: Sequence[Compression], runs: list[Run], scaling: Scaling
) -> list[Picture]:
    """All pictures of a model."""
    compression = [_compression(scan)] if scan else []
    return [_dimers(dimers), *compression, *([_runs(runs)] if runs else []), _scaling(scaling)]


def _panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels of that size (inches), in rows."""
    columns = min(_COLUMNS, n)
    rows = math.ceil(n / columns)
    drawn = new_figure(max(width * columns, 5.0), height * rows + 0.5)
    panels = drawn.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel in panels[n:]:
        panel.set_axis_off()
    return drawn, panels


def _dimers(dimers: list[Dimer]) -> Picture:
    # Those with holes come first, in case there are too many to draw.
    shown = sorted(dimers, key=lambda each: each.hole is None)[:_MOST_PANELS]
    drawn, panels = _panels(len(shown), 2.3, 1.9)
    for panel, dimer in zip(panels, shown, strict=False):
        finite = np.isfinite(dimer.energy)
        panel.plot(dimer.distance[finite], dimer.energy[finite], color=COLOURS[0], lw=1.4)
        panel.axhline(0.0, color=GREY, lw=0.7)
        if dimer.hole is not None:
            panel.axvline(dimer.hole, color=COLOURS[1], lw=1.0, ls="--")
        lowest = float(dimer.energy[finite].min(initial=0.0))
        _symmetric_scale(panel, lowest, 600.0 if dimer.energy[finite].max(initial=0.0) > _TOP else _TOP / 1.5)
        panel.set_title("-".join(dimer.pair), fontsize=9)
        panel.tick_params(labelsize=7)
        plain_ticks(panel.xaxis)
    drawn.supxlabel("distance (Å)", fontsize=9)
    drawn.supylabel("energy (eV)", fontsize=9)
    hidden = f" {len(dimers) - len(shown)} pairs are not shown." if len(dimers) > len(shown) else ""
    caption = (
        "Two atoms alone, relative to far apart; the scale is linear between -1 and 1 eV and logarithmic beyond. To "
        f"the left the curves must rise: a dashed line marks where one falls again.{hidden}"
    )
    return Picture("Dimers", caption, png(drawn))


def _symmetric_scale(panel: Axes, low: float, high: float) -> None:
    """Linear between -1 and 1, logarithmic beyond, a little wider than `low` to `high`; with few ticks."""
    from matplotlib.ticker import FuncFormatter

    low, high = 1.5 * low - 0.3, 1.5 * high
    decades = [10.0**k for k in range(12) if 10.0**k <= max(high, -low)]
    decades = decades[:: -(-len(decades) // 4) or 1]
    panel.set_yscale("symlog", linthresh=1.0)
    panel.set_yticks([each for each in (*(-one for one in decades), 0.0, *decades) if low <= each <= high])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_ylim(low, high)


def _compression(scan: Sequence[Compression]) -> Picture:
    systems = list(dict.fromkeys(each.system for each in scan))[:_MOST_PANELS]
    drawn, panels = _panels(len(systems), 2.6, 2.2)
    for panel, system in zip(panels, systems, strict=False):
        mine = [each for each in scan if each.system == system]
        for each, colour in zip(mine, colours(len(mine)), strict=True):
            finite = np.isfinite(each.energy)
            panel.plot(each.ratio[finite], each.energy[finite], color=colour, lw=1.2, label=each.way)
            if each.hole is not None:
                panel.plot(each.hole.ratio, each.hole.barrier, "v", color=colour, ms=5)
        panel.axhline(0.0, color=GREY, lw=0.7)
        seen = np.concatenate([each.energy[np.isfinite(each.energy)] for each in mine])
        _symmetric_scale(panel, float(seen.min(initial=0.0)), float(seen.max(initial=1.0)))
        plain_ticks(panel.xaxis)
        panel.set_title(system, fontsize=9)
        panel.tick_params(labelsize=7)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper center", ncols=min(len(labels), 3))
    drawn.supxlabel("V / V0", fontsize=9)
    drawn.supylabel("energy (eV/atom)", fontsize=9)
    caption = (
        "Crystals, or a molecule, under compression, relative to equilibrium; linear between -1 and 1 eV/atom and "
        "logarithmic beyond. To the left every curve must rise: a triangle marks where one begins to fall."
    )
    return Picture("Compression", caption, png(drawn))


def _runs(runs: list[Run]) -> Picture:
    drawn = new_figure(8.0, 3.2)
    panel = drawn.subplots()
    for run, colour in zip(runs, colours(len(runs)), strict=True):
        panel.plot(run.picoseconds, run.energy, color=colour, lw=1.2, label=run.name)
    panel.set_xlabel("time (ps)")
    panel.set_ylabel("total energy (meV/atom)")
    widest = max(1.0, 1.2 * max(float(np.abs(run.energy).max(initial=0.0)) for run in runs))
    panel.set_ylim(-widest, widest)  # a thermal energy of 300 K is 39 meV: less than 1 is nothing
    plain_ticks(panel.xaxis, panel.yaxis)
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "At constant energy the line is flat up to small waves; a slope is a drift, a kink a jump of the forces."
    return Picture("Conservation of energy", caption, png(drawn))


def _scaling(scaling: Scaling) -> Picture:
    drawn = new_figure(5.0, 3.2)
    panel = drawn.subplots()
    atoms, seconds = np.array(scaling.atoms), np.array(scaling.seconds)
    panel.loglog(atoms, seconds / atoms * 1e6, "o-", color=COLOURS[0], ms=4)
    panel.set_xlabel("atoms")
    panel.set_ylabel("µs per atom")
    panel.set_ylim(bottom=0.3 * float((seconds / atoms).min()) * 1e6, top=3.0 * float((seconds / atoms).max()) * 1e6)
    plain_ticks(panel.xaxis, panel.yaxis)
    caption = "Energy and forces on one core, neighbour list included; level at large sizes if the cost is linear."
    return Picture("Cost by size", caption, png(drawn))
