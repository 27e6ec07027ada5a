"""Draws the functions of a spline potential on one page (see `snnp.analysis.curves` for what they are)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, reference_states

from snnp.analysis.curves import Curves, Occurrence, crystal_shells
from snnp.errors import InputError
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.report import COLOURS, GREY, colours, new_figure, save_figure, tidy
from snnp.structure import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_page", "stated_errors"]

_FILL, _INK = "#dfe5ec", "#333a44"
_N_HIGHLIGHTED = 5
_N_BARS = 14
_MOST_KEYS = 11
_LEGEND_CHARACTERS = 52  # fit into the width of a panel
_HEADLINE_CHARACTERS = 125  # fit into the width of the page
_FORMATS = (".png", ".pdf", ".svg")


def draw_page(model: Potential, path: str | Path, *, title: str = "", structures: Structure | None = None) -> Path:
    """Write the page of a model, `.png`, `.pdf` or `.svg`, replaced atomically, and return its path.

    Distances and angles of the `structures` are drawn behind the curves; by default the shells of one element's
    crystal. Raises `InputError` for a model that is no `SplineNNP`, or another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"'{path}' is not a picture that can be written; its name must end in {', '.join(_FORMATS)}.")
    seen = None if structures is None else Occurrence(structures, model.cutoff)
    shells = [crystal_shells(symbol, model.cutoff) for symbol in model.elements]
    # The shortest distance worth looking at: seen in the data, or one that vibrations reach in a crystal.
    near = min((0.88 * float(each[0]) for each in shells if len(each)), default=0.0)
    closest = near if seen is None else seen.closest
    curves = Curves(model, structures, closest)
    page = _Page(curves, seen, shells, closest)
    has_angles = curves.shape.shape[1] > 0
    figure = new_figure(13.0, 8.2 if has_angles else 4.4)
    panels = figure.subplots(2 if has_angles else 1, 3, squeeze=False)
    drawn = [page.pair, page.radial, page.worth if curves.embedding is None else page.embedding]
    drawn += [page.shapes, page.angles, page.three_body] if has_angles else []
    for draw, panel, letter in zip(drawn, panels.flat, "abcdef", strict=False):
        draw(panel)
        tidy(panel)
        panel.tick_params(colors=_INK)
        panel.set_title(f"{letter}   {panel.get_title()}", loc="left", fontsize=10, color=_INK, fontweight="bold")
        panel.set_title("", loc="center")
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_fontsize(9)
    figure.suptitle(_headline(model, title), x=0.012, ha="left", fontsize=13, color=_INK)
    save_figure(figure, path)
    return path


def stated_errors(metadata: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The errors that a model's file states and the set they belong to: test before valid; ("", {}) if none.

    Bundled models state those of their cards (`metrics`), others those of their training run (`errors`).
    """
    known = stated(metadata)
    errors = {"test": known["metrics"]} if "metrics" in known else known.get("errors", {})
    return next(((name, errors[name]) for name in ("test", "valid") if name in errors), ("", {}))


def _headline(model: Potential, title: str) -> str:
    facts = [title] if title else []
    facts += [", ".join(model.elements), f"{model.n_parameters:,} parameters", f"cutoff {model.cutoff:g} Å"]
    _, errors = stated_errors(model.metadata)
    units = {"energy_mae_mev_per_atom": "meV/atom", "force_mae_ev_per_angstrom": "eV/Å"}
    stated_in = {name: unit for name, unit in units.items() if isinstance(errors.get(name), float)}
    facts += [f"{name.partition('_')[0]} MAE {errors[name]:.2g} {unit}" for name, unit in stated_in.items()]
    lines = [""]
    for fact in facts:  # as many to a line as fit
        line = f"{lines[-1]}   |   {fact}" if lines[-1] else fact
        lines[-1:] = [line] if len(line) <= _HEADLINE_CHARACTERS or not lines[-1] else [lines[-1], fact]
    return "\n".join(lines)


class _Page:
    """The panels of one page; scales are for distances (Å) beyond the `closest`."""

    def __init__(self, curves: Curves, seen: Occurrence | None, shells: list[np.ndarray], closest: float) -> None:
        self._curves, self._seen, self._shells, self._closest = curves, seen, shells, closest
        # Filters by what they are worth.
        n_radial, self._order = curves.radial.shape[1], np.argsort(-curves.worth, kind="stable").tolist()
        self._radial_order = [k for k in self._order if k < n_radial]
        self._angular_order = [k - n_radial for k in self._order if k >= n_radial]

    def _distance_axis(self, panel: Axes) -> None:
        """The axis of distances, with those that occur behind the curves."""
        panel.set_xlim(*self._curves.distance[[0, -1]])
        note = ""
        if self._seen is not None:
            _shade(panel, self._seen.distance, self._seen.distance_density)
            note = "   shaded: in the data"
        elif len(self._shells) == 1 and len(self._shells[0]):
            for shell in self._shells[0]:
                panel.axvline(shell, ymax=0.05, color=GREY, zorder=0, linewidth=2.5)
            element = self._curves.elements[0]
            crystal: dict[str, Any] = reference_states[atomic_numbers[element]] or {}
            note = f"   ticks: shells of {crystal.get('symmetry')} {element}"
        panel.set_xlabel(f"distance r (Å){note}")

    def _filters(self, panel: Axes, x: np.ndarray, values: np.ndarray, groups: tuple[str, ...], symbol: str) -> None:
        """Curves [G, F, n]: with one group a colour per filter, else a colour per group and its strongest filters."""
        order = self._radial_order if symbol == "ρ" else self._angular_order
        if len(groups) == 1:
            panel.plot(x, values[0, order[_N_HIGHLIGHTED:]].T, color=GREY, linewidth=0.7)
            for index, colour in reversed(list(zip(order[:_N_HIGHLIGHTED], COLOURS, strict=False))):
                panel.plot(x, values[0, index], label=_label(symbol, index), color=colour, linewidth=1.8)
        else:
            for group, (name, colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
                for rank, index in enumerate(order[:_N_HIGHLIGHTED]):
                    label = name if rank == 0 else None
                    panel.plot(x, values[group, index], color=colour, linewidth=1.8 - 0.3 * rank, label=label)
        # Scaled to distances that occur: a repulsive wall would flatten the rest.
        inside = slice(None) if symbol == "g" else x >= self._closest
        _finish(panel, values[..., inside] if order else np.zeros(1), reverse=len(groups) == 1)

    def pair(self, panel: Axes) -> None:
        curves = self._curves
        chosen = {f"{a}–{b}": e for (a, b), e in curves.pair.items() if len(curves.elements) <= 3 or a == b}
        if not any(np.any(energy) for energy in chosen.values()):
            _say(panel, "zero everywhere")
        _draw_lines(panel, curves.distance, chosen, curves.distance >= 0.95 * min(curves.nearest))
        self._distance_axis(panel)
        title = f"Pair energy {curves.where or 'of the radial filters'}" if curves.in_ev else "Pair term φ(r)"
        panel.set(ylabel="energy (eV)", title=title)

    def radial(self, panel: Axes) -> None:
        self._filters(panel, self._curves.distance, self._curves.radial, self._curves.groups, "ρ")
        if not self._radial_order:
            _say(panel, "no radial filters")
        self._distance_axis(panel)
        unit = "h ρ(r)  (eV per neighbour)" if self._curves.in_ev else "ρ(r)"
        panel.set(ylabel=unit, title="Radial filters")

    def shapes(self, panel: Axes) -> None:
        self._filters(panel, self._curves.distance, self._curves.shape, self._curves.groups, "f")
        self._distance_axis(panel)
        scaled = " / max |f|" if self._curves.in_ev else ""
        panel.set(ylabel=f"f(r){scaled}", title="Three-body filters: reach")

    def angles(self, panel: Axes) -> None:
        self._filters(panel, self._curves.angle, self._curves.angular, self._curves.angle_groups, "g")
        if self._seen is not None:
            _shade(panel, self._seen.angle, self._seen.angle_density)
        _angle_axis(panel)
        unit = "h g(θ)  (eV per pair of neighbours)" if self._curves.in_ev else "g(θ)"
        panel.set(ylabel=unit, title="Three-body filters: angle")

    def worth(self, panel: Axes) -> None:
        n_radial, order = self._curves.radial.shape[1], self._order[:_N_BARS]
        shades = dict.fromkeys(order, COLOURS[0])
        if len(self._curves.groups) == 1:
            shades = dict.fromkeys(order, GREY) | dict(zip(self._radial_order[:_N_HIGHLIGHTED], COLOURS, strict=False))
            shades |= {k + n_radial: c for k, c in zip(self._angular_order[:_N_HIGHLIGHTED], COLOURS, strict=False)}
        worth, hatch = 1000.0 * self._curves.worth[order], ["" if k < n_radial else "////" for k in order]
        panel.barh(range(len(order)), worth, color=[shades[k] for k in order], hatch=hatch, edgecolor="white")
        names = [_label("ρ", k) if k < n_radial else _label("fg", k - n_radial) for k in order]
        panel.set_yticks(range(len(order)), names)
        panel.invert_yaxis()
        note = "  (hatched: three-body)" if self._angular_order else ""
        panel.set(xlabel=f"meV per standard deviation{note}", title="What each filter is worth")

    def embedding(self, panel: Axes) -> None:
        assert self._curves.embedding is not None
        x, values = self._curves.embedding
        _draw_lines(panel, x, dict(zip(self._curves.elements, values, strict=True)))
        panel.set(xlabel="feature n", ylabel="U(n)  (eV)", title="Embedding")

    def three_body(self, panel: Axes) -> None:
        """The sum of all three-body filters: a map for one element, cuts at the nearest distance for several."""
        curves = self._curves
        kind = "energy" if curves.in_ev else "density"
        if len(curves.elements) == 1:
            inside = curves.distance >= self._closest
            values = curves.three_body[0][inside]
            bound = max(float(np.abs(values).max()), 1e-12)
            extent = (0.0, 180.0, float(curves.distance[inside][0]), float(curves.distance[-1]))
            how: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
            bar = panel.figure.colorbar(panel.imshow(values, extent=extent, **how), ax=panel, pad=0.02)
            bar.set_label("Σ h f(r)² [g(θ) − ⟨g⟩]  (eV)" if curves.in_ev else "f(r)² g(θ)", fontsize=9)
            bar.ax.tick_params(labelsize=8)
            bar.outline.set_visible(False)
            angular = ", angular part" if curves.in_ev else ""
            panel.set(ylabel="distance r of both neighbours (Å)", title=f"Three-body {kind}{angular}")
        else:
            rows = [int(np.abs(curves.distance - nearest).argmin()) for nearest in curves.nearest]
            names = [f"{name}, {r:.2f} Å" for name, r in zip(curves.triples, curves.nearest, strict=True)]
            _draw_lines(panel, curves.angle, {name: curves.three_body[k, rows[k]] for k, name in enumerate(names)})
            label = "Σ h f² [g(θ) − ⟨g⟩]  (eV)" if curves.in_ev else "f² g(θ)"
            panel.set(ylabel=label, title=f"Three-body {kind}, nearest atoms")
        _angle_axis(panel)


def _draw_lines(panel: Axes, x: np.ndarray, lines: Mapping[str, np.ndarray], inside: Any = slice(None)) -> None:
    """A colour for each name and its curves [n] or [k, n]; the axis is scaled to those points that are `inside`."""
    for (name, values), colour in zip(lines.items(), colours(len(lines)), strict=True):
        for rank, curve in enumerate(np.atleast_2d(values)):
            panel.plot(x, curve, color=colour, linewidth=1.8, label=name if rank == 0 else None)
    _finish(panel, np.stack(list(lines.values()))[..., inside])


def _say(panel: Axes, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", color=_INK, fontsize=9)


def _shade(panel: Axes, x: np.ndarray, density: np.ndarray) -> None:
    panel.fill_between(x, 0.3 * density, color=_FILL, transform=panel.get_xaxis_transform(), zorder=0, linewidth=0)


def _angle_axis(panel: Axes) -> None:
    panel.set(xlim=(0.0, 180.0), xticks=range(0, 181, 30), xlabel="angle θ (degrees)")


def _finish(panel: Axes, values: np.ndarray, reverse: bool = False) -> None:
    """A line at zero, limits around zero and the values, and rows of keys in the room above them."""
    from matplotlib.lines import Line2D

    panel.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > _MOST_KEYS:
        labels = [*labels[:_MOST_KEYS], f"and {len(labels) - _MOST_KEYS} more"]
        handles = [*handles[:_MOST_KEYS], Line2D([], [], linestyle="none")]
    per_row = max(1, _LEGEND_CHARACTERS // max([len(label) + 4 for label in labels], default=1))
    rows = -(-len(labels) // per_row)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    span = high - low or 1.0
    panel.set_ylim(low - 0.08 * span, high + (0.08 + 0.1 * rows) * span)
    if rows:
        step = -1 if reverse else 1
        how = {"handlelength": 1.1, "handletextpad": 0.4, "columnspacing": 1.0, "borderaxespad": 0.1}
        ncols = -(-len(labels) // rows)
        panel.legend(handles[::step], labels[::step], loc="upper center", ncols=ncols, fontsize=8, frameon=False, **how)


def _label(symbol: str, index: int) -> str:
    return symbol + str(index + 1).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
