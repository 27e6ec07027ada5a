"""Every filter as curves with units, over the distances and angles that occur in the material."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.analysis.curves import Occurrence, all_groups, angle_functions, group_names
from snnp.explain.anatomy import Anatomy
from snnp.explain.pruning import filter_name
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import COLOURS, Figure, new_figure, plain_ticks, png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FilterCurves", "filter_pictures"]

Array = NDArray[np.float64]

_POINTS, _BINS = 300, 120
_MOST_GROUPS = 4  # drawn: the most frequent
_PER_FIGURE = {"radial": 16, "three-body": 12}
_STYLES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
_SHADE, _INK = "#dfe5ec", "#333a44"


@dataclass(frozen=True)
class FilterCurves:
    """The filters of a model as what they are worth in its material; G groups, F radial and T three-body filters.

    Arguments:
        distance: [n] Å; radial: [G, F, n] eV per neighbour, mean gradient times rho. shape: [G, T, n], f over its
            peak among the distances that occur. angle: [m] degrees; angular: [H, T, m] eV per pair of neighbours at
            that peak.
        occurs: [G, n] pairs per r², largest value 1, of each group; occurs_angle: [m] angles between near neighbours.
        n_pairs: [G]. groups, angle_groups: names, "" where all elements share one.
    """

    distance: Array
    radial: Array
    shape: Array
    angle: Array
    angular: Array
    occurs: Array
    occurs_angle: Array
    n_pairs: Array
    groups: tuple[str, ...]
    angle_groups: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, anatomy: Anatomy) -> FilterCurves:
        """Of the model and the atoms of an anatomy."""
        model, n_radial = anatomy.model, anatomy.model.config.radial.n_filters
        seen = Occurrence(anatomy.structure, model.cutoff)
        lower = min(grid.lower for grid in (*model.config.grid("radial"), *model.config.grid("angular")))
        x = torch.linspace(max(min(lower, seen.closest) - 0.2, 0.2), model.cutoff, _POINTS, dtype=torch.float64)
        angle = torch.linspace(0.0, 180.0, 181, dtype=torch.float64)
        occurs, n_pairs = _occurrence(anatomy, x.numpy())
        worth = _worth_of_groups(anatomy)
        radial = all_groups(model.rho, x).numpy() * worth[:, :n_radial, None]
        shape, angular = all_groups(model.f, x).numpy(), angle_functions(model, angle).numpy()
        inside = occurs > 0.0
        peak = np.where(inside[:, None, :], np.abs(shape), 0.0).max(axis=(0, 2), initial=0.0)
        peak = np.where(peak > 0.0, peak, 1.0)
        share = n_pairs / max(n_pairs.sum(), 1.0)
        angular = angular * ((share @ worth[:, n_radial:]) * peak**2)[None, :, None]
        near = np.interp(angle.numpy(), seen.angle, seen.angle_density)
        names = group_names(model)
        shape = shape / peak[None, :, None]
        return cls(x.numpy(), radial, shape, angle.numpy(), angular, occurs, near, n_pairs, *names)

    def json(self, anatomy: Anatomy) -> dict[str, Any]:
        """All of it as JSON values, filter by filter."""
        n_radial, model = self.radial.shape[1], anatomy.model
        found = []
        for k, contribution in enumerate(anatomy.contribution.tolist()):
            each: dict[str, Any] = {"name": filter_name(model, k), "contribution_ev": contribution}
            if k < n_radial:
                each["ev_per_neighbour"] = self.radial[:, k].round(8).tolist()
            else:
                each["shape"] = self.shape[:, k - n_radial].round(6).tolist()
                each["ev_per_pair_of_neighbours"] = self.angular[:, k - n_radial].round(8).tolist()
            found.append(each)
        return {
            "distance_angstrom": self.distance.round(4).tolist(),
            "angle_degrees": self.angle.tolist(),
            "groups": list(self.groups),
            "angle_groups": list(self.angle_groups),
            "pairs_by_group": self.n_pairs.tolist(),
            "occurrence_of_distances": self.occurs.round(5).tolist(),
            "occurrence_of_angles": self.occurs_angle.round(5).tolist(),
            "filters": found,
        }


def _occurrence(anatomy: Anatomy, x: Array) -> tuple[Array, Array]:
    """[G, n] pairs per r² near each distance, by group, largest value 1; and how many pairs there are [G]."""
    model, structure = anatomy.model, anatomy.structure
    lists = neighbour_list(structure, model.cutoff)
    distance = pair_vectors(structure, lists).norm(dim=1).numpy()
    group = model.radial_group[anatomy.species[lists.i], anatomy.species[lists.j]].numpy()
    n_groups = len(model.rho.grids)
    edges = np.linspace(x[0], x[-1], _BINS + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    found = np.zeros((n_groups, len(x)))
    for k in range(n_groups):
        counts, _ = np.histogram(distance[group == k], bins=edges)
        density = counts / middle**2
        # A bin between two that are filled, as between shells of shaken crystals, is not empty.
        density = np.maximum(density, 0.5 * np.minimum(np.roll(density, 1), np.roll(density, -1)))
        found[k] = np.interp(x, middle, density / max(density.max(), 1e-30))
    return found, np.bincount(group, minlength=n_groups).astype(float)


def _worth_of_groups(anatomy: Anatomy) -> Array:
    """[G, D] mean gradient (eV) over the atoms whose neighbours a group describes."""
    model, typical = anatomy.model, anatomy.typical
    gradient, count = typical.gradient.numpy(), typical.count.numpy().astype(float)
    if model.config.filters == "pair":  # groups belong to centres
        z = model.config.n_elements
        return gradient[np.arange(z * z) // z]
    mean = (count / max(count.sum(), 1.0)) @ gradient
    return np.broadcast_to(mean, (len(model.rho.grids), len(mean)))


def filter_pictures(curves: FilterCurves, anatomy: Anatomy) -> list[Figure]:
    """All filters, those that contribute most first."""
    n_radial, worth = curves.radial.shape[1], anatomy.contribution
    order = np.argsort(-worth, kind="stable").tolist()
    radial, angular = [k for k in order if k < n_radial], [k for k in order if k >= n_radial]
    caption = (
        "Thick where such distances occur in the material, thin where the model extrapolates; shaded: how often they "
        "occur. Above each: what it contributes, the standard deviation over all atoms of (feature − mean) times mean "
        "gradient."
    )
    found = []
    for part in _pages(radial, _PER_FIGURE["radial"]):
        title = "Radial filters" + _which(part, radial)
        said = f"h ρ(r), eV per neighbour at that distance. {caption}{_said_groups(curves)}"
        found.append(Figure(title, said, png(_radial_figure(curves, anatomy, part))))
    for part in _pages(angular, _PER_FIGURE["three-body"]):
        title = "Three-body filters" + _which(part, angular)
        said = (
            "Left of each pair of panels: f(r), how far the filter reaches, over its peak. Right: h g(θ), eV for a "
            f"pair of neighbours at that peak, over the angles between near neighbours. {caption}{_said_groups(curves)}"
        )
        found.append(Figure(title, said, png(_three_body_figure(curves, anatomy, part))))
    return found


def _pages(order: list[int], size: int) -> list[list[int]]:
    return [order[k : k + size] for k in range(0, len(order), size)]


def _which(part: list[int], order: list[int]) -> str:
    if len(part) == len(order):
        return f", all {len(order)}" if len(order) > 1 else ""
    first = order.index(part[0])
    return f", {first + 1} to {first + len(part)} of {len(order)}"


def _drawn_groups(curves: FilterCurves) -> list[int]:
    found: list[int] = np.argsort(-curves.n_pairs, kind="stable")[:_MOST_GROUPS].tolist()
    return [k for k in found if curves.n_pairs[k] > 0] or found[:1]


def _said_groups(curves: FilterCurves) -> str:
    if len(curves.groups) == 1:
        return ""
    names = ", ".join(curves.groups[k] for k in _drawn_groups(curves))
    kind = "centre → neighbour" if "→" in curves.groups[0] else "neighbours"
    more = len(curves.groups) - len(_drawn_groups(curves))
    return f" Lines are {kind}: {names}{f'; {more} rarer kinds are in the JSON file' if more else ''}."


def _radial_figure(curves: FilterCurves, anatomy: Anatomy, part: list[int]) -> Any:
    columns = min(4, len(part))
    rows = -(-len(part) // columns)
    figure = new_figure(2.75 * columns + 0.4, 1.9 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel, k in zip(panels, part, strict=False):
        _draw_distances(panel, curves, curves.radial[:, k], f"{_titled(anatomy, k)}")
    _finish(figure, panels, len(part), columns, "h ρ(r)  (eV per neighbour)", "distance r (Å)")
    _legend(figure, curves)
    return figure


def _three_body_figure(curves: FilterCurves, anatomy: Anatomy, part: list[int]) -> Any:
    n_radial = curves.radial.shape[1]
    rows = -(-len(part) // 2)
    figure = new_figure(11.4, 1.75 * rows + 0.7)
    panels = figure.subplots(rows, 4, squeeze=False).ravel()
    for place, k in enumerate(part):
        left, right = panels[2 * place], panels[2 * place + 1]
        _draw_distances(left, curves, curves.shape[:, k - n_radial], _titled(anatomy, k))
        right.fill_between(
            curves.angle,
            0.35 * curves.occurs_angle,
            color=_SHADE,
            transform=right.get_xaxis_transform(),
            lw=0,
            zorder=0,
        )
        for group, values in enumerate(curves.angular[:_MOST_GROUPS, k - n_radial]):
            right.plot(curves.angle, values, color=_colour(group), ls=_STYLES[group], lw=1.7)
        right.axhline(0.0, color="#8a929c", lw=0.7, zorder=0)
        right.set(xlim=(0.0, 180.0), xticks=range(0, 181, 60))
        plain_ticks(right.yaxis, most=3)
    for panel in panels[2 * len(part) :]:
        panel.set_axis_off()
    for panel in panels[max(0, 2 * len(part) - 4) : 2 * len(part)]:
        panel.set_xlabel("distance r (Å)" if panel in panels[::2] else "angle θ (degrees)", fontsize=8)
    figure.supylabel("left: f(r) over its peak; right: h g(θ)  (eV)", fontsize=9)
    tidy(*panels, size=7.0)
    _legend(figure, curves)
    return figure


def _titled(anatomy: Anatomy, k: int) -> str:
    return f"{filter_name(anatomy.model, k)}   {1e3 * float(anatomy.contribution[k]):.3g} meV"


def _draw_distances(panel: Axes, curves: FilterCurves, values: Array, title: str) -> None:
    """Curves [G, n] of a filter; limits come from distances that occur."""
    shown = _drawn_groups(curves)
    together = np.max(curves.occurs[shown], axis=0)
    panel.fill_between(
        curves.distance, 0.35 * together, color=_SHADE, transform=panel.get_xaxis_transform(), lw=0, zorder=0
    )
    seen = list[Array]()
    for place, group in enumerate(shown):
        inside = curves.occurs[group] > 0.0
        thick = np.where(inside, values[group], np.nan)
        panel.plot(curves.distance, values[group], color=_colour(place), lw=0.6)
        panel.plot(curves.distance, thick, color=_colour(place), ls=_STYLES[place], lw=1.8)
        seen.append(values[group][inside] if inside.any() else values[group])
    low, high = min(0.0, *(float(each.min()) for each in seen)), max(0.0, *(float(each.max()) for each in seen))
    span = high - low or 1.0
    panel.axhline(0.0, color="#8a929c", lw=0.7, zorder=0)
    panel.set(xlim=curves.distance[[0, -1]], ylim=(low - 0.12 * span, high + 0.12 * span))
    panel.set_title(title, fontsize=8.5, loc="left", color=_INK)
    plain_ticks(panel.yaxis, most=3)
    plain_ticks(panel.xaxis, most=4)


def _colour(place: int) -> str:
    return ("#1f2933", *COLOURS)[place]


def _finish(figure: Any, panels: Any, n: int, columns: int, y: str, x: str) -> None:
    for panel in panels[n:]:
        panel.set_axis_off()
    for panel in panels[max(0, n - columns) : n]:
        panel.tick_params(labelbottom=True)
    figure.supylabel(y, fontsize=9)
    figure.supxlabel(x, fontsize=9)
    tidy(*panels[:n], size=7.0)


def _legend(figure: Any, curves: FilterCurves) -> None:
    from matplotlib.lines import Line2D

    shown = _drawn_groups(curves)
    lines = [
        Line2D([], [], color=_colour(place), ls=_STYLES[place], lw=1.8, label=curves.groups[group])
        for place, group in enumerate(shown)
        if curves.groups[group]
    ]
    if len(lines) > 1:
        figure.legend(handles=lines, loc="outside upper right", frameon=False, fontsize=8, ncols=len(lines))
