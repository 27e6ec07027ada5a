"""Two models side by side: the energies that they give, their pair energies, the filters that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from snnp.analysis.curves import Curves, Occurrence
from snnp.explain.anatomy import Anatomy
from snnp.explain.filter_curves import FilterCurves
from snnp.explain.pruning import filter_name
from snnp.report import Figure, Table, new_panels, plain_ticks, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["agreement", "change_picture", "changed_filters", "pair_picture"]

Array = NDArray[np.float64]
_MOST_PAIRS = 6
_MOST_CHANGED = 8
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "#1f2933", "lw": 2.0},
    {"color": "#D55E00", "lw": 1.5, "ls": (0, (5, 1.5))},
)
_SHADE = "#dfe5ec"


def agreement(anatomies: Mapping[str, Anatomy]) -> Table:
    """How far two models agree on the same atoms, and what part of them differs most."""
    (one, first), (other, second) = anatomies.items()
    rows: list[list[Any]] = []
    names = {part: None for each in (first, second) for part in each.parts if part != "typical"}
    symbols = np.array(first.labels())
    for name in ["all", *names]:
        values = [
            _beyond(each.energies.numpy() if name == "all" else each.parts.get(name), symbols)
            for each in (first, second)
        ]
        a, b = values
        if a is None or b is None:
            rows.append([name, *(None if v is None else 1e3 * float(v.std()) for v in values), None, None])
            continue
        known = a.std() > 0.0 and b.std() > 0.0
        correlation = float(np.corrcoef(a, b)[0, 1]) if known else None
        rows.append([name, 1e3 * float(a.std()), 1e3 * float(b.std()), 1e3 * float((a - b).std()), correlation])
    columns = ("part", f"{one} (meV)", f"{other} (meV)", "difference (meV)", "correlation")
    return Table(columns, rows, "Energies of atoms, standard deviations")


def _beyond(values: Array | None, symbols: NDArray[np.str_]) -> Array | None:
    """Values [N] less the mean over the atoms of each element."""
    if values is None:
        return None
    found = values.copy()
    for symbol in dict.fromkeys(symbols.tolist()):
        found[symbols == symbol] -= values[symbols == symbol].mean()
    return found


def pair_picture(anatomies: Mapping[str, Anatomy]) -> Figure:
    """Pair energies of both: what one more neighbour changes, however a model divides that among its filters."""
    first = next(iter(anatomies.values()))
    cutoff = max(each.model.cutoff for each in anatomies.values())
    seen = Occurrence(first.structure, cutoff)
    curves = {name: Curves(each.model, each.structure, seen.closest) for name, each in anatomies.items()}
    wanted = [pair for pair in next(iter(curves.values())).pair if set(pair) <= {*first.labels()}]
    wanted.sort(key=lambda pair: pair[0] != pair[1])  # of equal atoms first
    wanted = wanted[:_MOST_PAIRS]
    drawn, panels = new_panels(len(wanted), 3.6, 2.7, columns=3)
    for panel, pair in zip(panels, wanted, strict=True):
        low, high = 0.0, 0.0
        for (name, each), look in zip(curves.items(), _LINES, strict=True):
            values = each.pair.get(pair, each.pair.get((pair[1], pair[0])))
            if values is None:
                continue
            panel.plot(each.distance, values, label=name, **look)
            inside = values[each.distance >= 0.98 * seen.closest]
            low, high = min(low, float(inside.min())), max(high, float(inside.max()))
        span = high - low or 1.0
        _shade(panel, seen)
        panel.set(xlim=(0.9 * seen.closest, cutoff), ylim=(low - 0.08 * span, high + 0.12 * span))
        panel.set_title(f"{pair[0]}–{pair[1]}", fontsize=9, loc="left")
        panel.axhline(0.0, color="#8a929c", lw=0.7, zorder=0)
        plain_ticks(panel.xaxis, panel.yaxis)
    panels[0].legend(frameon=False, fontsize=8)
    drawn.supxlabel("distance r (Å)", fontsize=9)
    drawn.supylabel("pair energy (eV)", fontsize=9)
    caption = (
        "What one more neighbour at that distance changes to first order, averaged over its direction, in the "
        "material: the same meaning for both models, whatever their filters are."
    )
    return Figure("Pair energies, side by side", caption, png(drawn))


def _shade(panel: Axes, seen: Occurrence) -> None:
    height, transform = 0.3 * seen.distance_density, panel.get_xaxis_transform()
    panel.fill_between(seen.distance, height, color=_SHADE, transform=transform, zorder=0, lw=0)


def changed_filters(one: FilterCurves, other: FilterCurves, anatomies: Mapping[str, Anatomy]) -> Table | None:
    """By how much each filter of two models of one form changed; None where forms differ."""
    first, second = anatomies.values()
    if first.model.config != second.model.config:
        return None
    n_radial = one.radial.shape[1]
    rows = []
    for k, (a, b) in enumerate(zip(first.contribution, second.contribution, strict=True)):
        before, after = (_curves_of(each, k, n_radial) for each in (one, other))
        scale = float(np.sqrt(np.mean(before**2))) or 1.0
        rows.append(
            [filter_name(first.model, k), 1e3 * a, 1e3 * b, float(np.sqrt(np.mean((after - before) ** 2))) / scale]
        )
    rows.sort(key=lambda row: -max(row[1], row[2]))
    names = list(anatomies)
    columns = ("filter", f"contributes in {names[0]} (meV)", f"in {names[1]} (meV)", "rms change, relative")
    return Table(columns, rows, "Filters, one by one")


def _curves_of(curves: FilterCurves, k: int, n_radial: int) -> Array:
    """What a filter is worth over the distances that occur, or over angles."""
    inside = curves.occurs > 0.0
    found: Array = curves.radial[:, k][inside] if k < n_radial else curves.angular[:, k - n_radial].ravel()
    return found


def change_picture(one: FilterCurves, other: FilterCurves, anatomies: Mapping[str, Anatomy]) -> Figure:
    """The strongest filters of two models of one form, drawn over each other."""
    first, second = anatomies.values()
    n_radial = one.radial.shape[1]
    order = np.argsort(-np.maximum(first.contribution, second.contribution), kind="stable")
    radial = [int(k) for k in order if k < n_radial][: _MOST_CHANGED // 2]
    angular = [int(k) for k in order if k >= n_radial][: _MOST_CHANGED - len(radial)]
    drawn, panels = new_panels(len(radial) + len(angular), 2.8, 2.2, columns=4)
    for panel, k in zip(panels, [*radial, *angular], strict=True):
        inside = one.occurs[0] > 0.0
        for (name, each), look in zip(zip(anatomies, (one, other), strict=True), _LINES, strict=True):
            if k < n_radial:
                panel.plot(each.distance, np.where(each.occurs[0] > 0.0, each.radial[0, k], np.nan), label=name, **look)
            else:
                panel.plot(each.angle, each.angular[0, k - n_radial], label=name, **look)
        if k < n_radial:
            panel.set_xlim(float(one.distance[inside][0]), float(one.distance[-1]))
        panel.set_xlabel("r (Å)" if k < n_radial else "θ (degrees)", fontsize=8)
        panel.set_title(filter_name(first.model, k), fontsize=9, loc="left")
        panel.axhline(0.0, color="#8a929c", lw=0.7, zorder=0)
        plain_ticks(panel.xaxis, panel.yaxis, most=4)
    panels[0].legend(frameon=False, fontsize=7)
    drawn.supylabel("h ρ(r), or h g(θ)  (eV)", fontsize=9)
    group = f" Of groups, the first is drawn ({one.groups[0]})." if one.groups[0] else ""
    caption = f"The filters that contribute most, of models of one form; where such distances occur.{group}"
    return Figure("Filters, side by side", caption, png(drawn))
