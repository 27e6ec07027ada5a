"""Pictures of the parts of the energy, of atoms, of filters taken out, and of what elements have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from snnp.explain.anatomy import Anatomy
from snnp.explain.elements import Elements
from snnp.explain.pruning import Removal, filter_name
from snnp.report import Figure, new_figure, new_panels, plain_ticks, png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["atoms_picture", "elements_picture", "environments_picture", "parts_picture", "removal_picture"]

Array = NDArray[np.float64]

# Dark to light, so that they differ in grey; hatches tell what is close.
_SHADES = ("#1f2933", "#0072B2", "#b8bcc2", "#D55E00", "#56B4E9", "#E69F00")
_HATCHES = ("", "////", "", "....", "", "\\\\\\\\")
_MOST_BARS = 16
_MOST_NAMES = 12
_LEAST_SHOWN = 1e-3  # eV
_INK = "#333a44"


def parts_picture(parts: Mapping[str, Mapping[str, Array]], symbols: Sequence[str]) -> Figure:
    """How much each part of the energy varies over the atoms of each element; a row of panels for each model.

    Arguments:
        parts: name of a model -> name of a part -> [N] eV. symbols: [N] element of each atom.
    """
    elements = list(dict.fromkeys(symbols))
    named = np.array(symbols)
    names = [name for name in next(iter(parts.values())) if name != "typical"]
    names = [n for n in names if max(float(np.std(each[n])) for each in parts.values() if n in each) > _LEAST_SHOWN]
    figure = new_figure(max(5.6, 1.2 + 0.9 * len(elements) * max(len(names), 1) * 0.45 + 1.5), 2.7 * len(parts) + 0.3)
    panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for panel, (model, each) in zip(panels, parts.items(), strict=True):
        width = 0.8 / max(len(names) + 1, 1)
        for k, name in enumerate([*names, "together"]):
            if name != "together" and name not in each:
                continue
            values = np.sum([each[n] for n in (names if name == "together" else [name]) if n in each], axis=0)
            heights = [1e3 * float(np.std(values[named == symbol])) for symbol in elements]
            place = np.arange(len(elements)) + (k - 0.5 * len(names)) * width
            look = {"color": "white", "edgecolor": _INK} if name == "together" else {"color": _SHADES[k % 6]}
            hatch = "" if name == "together" else _HATCHES[k % 6]
            panel.bar(place, heights, 0.92 * width, label=name, hatch=hatch, **({"edgecolor": "white"} | look))
        panel.set_xticks(range(len(elements)), elements)
        panel.set_ylabel("standard deviation (meV)", fontsize=9)
        if len(parts) > 1:
            panel.set_title(model, fontsize=9, loc="left")
        panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        plain_ticks(panel.yaxis)
    tidy(*panels)
    caption = (
        "How much each part of the energy varies from atom to atom; where parts cancel, all together vary less. Pair "
        "and three-body parts are to first order in the features; the network is what bends."
    )
    return Figure("Parts of the energy", caption, png(figure))


def atoms_picture(anatomy: Anatomy, far: Array, said: str) -> Figure:
    """The atoms of one structure, coloured by the parts of their energy and by how far they are from the material."""
    parts = anatomy.parts
    shown = {name: 1e3 * values for name, values in parts.items() if name != "typical"}
    together = sum(shown.values(), np.zeros(len(far)))
    shown = {n: v for n, v in shown.items() if float(np.abs(v).max(initial=0.0)) > 1e3 * _LEAST_SHOWN}
    shown = {"all parts": together, **shown}
    drawn, panels = new_panels(len(shown) + 1, 3.5, 3.0, columns=3)
    atoms = _Projected(anatomy)
    for panel, (name, values) in zip(panels, shown.items(), strict=False):
        atoms.draw(panel, values, f"{name} (meV)")
    atoms.draw(panels[-1], far, "far from the data (σ)", mark=not bool(np.isfinite(far).any()))
    caption = (
        f"{said} Energies are those beyond a typical atom of the element, in meV. The last picture tells where the "
        "model extrapolates: about 1 is like the material, several standard deviations is unlike all of it."
    )
    return Figure("Atom by atom", caption, png(drawn))


class _Projected:
    """Atoms seen along the direction in which they extend least, the farthest drawn first."""

    def __init__(self, anatomy: Anatomy) -> None:
        positions = anatomy.structure.positions.double().numpy()
        cell = anatomy.structure.cell[0].double().numpy()
        self._pbc = bool(anatomy.structure.pbc[0].any())
        self._symbols = anatomy.labels()
        extent = np.ptp(positions, axis=0)
        depth = int(np.argmin(extent))
        flat = [k for k in range(3) if k != depth]
        flat.sort(key=lambda k: -extent[k])
        if not self._pbc:  # molecules: their main axes
            centred = positions - positions.mean(axis=0)
            _, _, axes = np.linalg.svd(centred, full_matrices=False)
            positions, flat, depth = centred @ axes.T, [0, 1], 2
            positions = np.pad(positions, ((0, 0), (0, 3 - positions.shape[1])))
        self._order = np.argsort(positions[:, depth], kind="stable")
        self._plane = positions[:, flat]
        # A little turned, so that rows of a crystal do not hide each other.
        self._plane = self._plane + 0.12 * (positions[:, depth] - positions[:, depth].mean())[:, None] * [1.0, 0.6]
        self._radius = 0.62 * covalent_radii[anatomy.structure.numbers.numpy()]
        self._outline = cell[flat][:, flat] if self._pbc else None

    def draw(self, panel: Axes, values: Array, title: str, mark: bool = False) -> None:
        """Circles in colours from dark to light."""
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Circle

        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        if high - low < 1e-3 * max(abs(high), abs(low), 1.0):
            low, high = low - 0.5, high + 0.5
        circles = [Circle(tuple(self._plane[k]), float(self._radius[k])) for k in self._order]
        drawn = PatchCollection(circles, cmap="cividis", edgecolor="#ffffff", linewidth=0.4)
        drawn.set_array(np.ma.masked_invalid(values[self._order]))
        drawn.set_clim(low, high)
        panel.add_collection(drawn)
        margin = 1.3 * float(self._radius.max())
        panel.set_xlim(self._plane[:, 0].min() - margin, self._plane[:, 0].max() + margin)
        panel.set_ylim(self._plane[:, 1].min() - margin, self._plane[:, 1].max() + margin)
        panel.set_aspect("equal")
        panel.set_axis_off()
        panel.set_title(title + (": unknown" if mark else ""), fontsize=9, loc="left", color=_INK)
        bar = panel.figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)


def removal_picture(removals: Mapping[str, Removal], anatomy: Anatomy, labelled: bool) -> Figure:
    """Errors against the number of filters left, and what it costs to lose one; of one model or two."""
    several = len(removals) > 1
    drawn = new_figure(7.6 if several else 11.0, 3.1 if several else 3.9)
    panels = list(drawn.subplots(1, 2 if several else 3))
    for k, (label, index, unit) in enumerate((("energy", 0, "meV/atom"), ("force", 1, "eV/Å"))):
        panel = panels[k]
        for place, (name, removal) in enumerate(removals.items()):
            n = [stage.n_filters for stage in removal.stages]
            errors = np.array([stage.errors[index] for stage in removal.stages])
            floor = 1e-2 * float(errors.max(initial=1e-9))
            style = {"color": ("#1f2933", "#D55E00")[place], "ls": ("-", "--")[place], "marker": ("o", "s")[place]}
            panel.plot(n, np.maximum(errors, floor if not labelled else 0.0), ms=2.6, lw=1.3, label=name, **style)
        panel.set(yscale="log", xlabel="filters left", ylabel=f"{label} MAE ({unit})")
        panel.set_xlim(0, max(len(each.alone) for each in removals.values()) + 1)
        panel.grid(True, which="major", axis="y", color="#e3e7ec", lw=0.7)
        plain_ticks(panel.yaxis)
        plain_ticks(panel.xaxis)
    if several:
        panels[0].legend(frameon=False, fontsize=8)
    else:
        _draw_losses(panels[2], next(iter(removals.values())), anatomy)
    tidy(*panels)
    against = "the labels" if labelled else "the whole model"
    caption = (
        f"Filters taken out one after the other, the least missed first, and the readout refitted each time by linear "
        f"least squares on the features, without any training; errors against {against}, on frames apart."
    )
    last = "" if several else " Right: what one filter costs when it alone is taken out; diamonds: what it contributes."
    return Figure("Filters taken out", caption + last, png(drawn))


def _draw_losses(panel: Axes, removal: Removal, anatomy: Anatomy) -> None:
    full, n_radial = removal.stages[0].errors, anatomy.model.config.radial.n_filters
    loss = np.array([each[1] - full[1] for each in removal.alone])
    order = np.argsort(-loss, kind="stable")[:_MOST_BARS]
    hatch = ["" if k < n_radial else "////" for k in order]
    panel.barh(range(len(order)), 1e3 * loss[order], color="#0072B2", hatch=hatch, edgecolor="white", height=0.8)
    panel.set_yticks(range(len(order)), [filter_name(anatomy.model, int(k)) for k in order])
    panel.invert_yaxis()
    panel.set_xlabel("force MAE added without it (meV/Å)")
    plain_ticks(panel.xaxis)
    above = panel.twiny()
    above.plot(
        1e3 * anatomy.contribution[order], range(len(order)), "D", ms=4.5, color="#E69F00", mec="#1f2933", mew=0.6
    )
    above.set_xlabel("diamonds: contributes (meV)", fontsize=8, color="#66717e")
    above.set_xlim(0.0, None)
    above.tick_params(labelsize=7, colors="#66717e")
    above.spines[["right"]].set_visible(False)


def elements_picture(elements: Elements) -> Figure:
    """Which filters each element uses, how alike they are, and a map of that."""
    names, n = elements.symbols, len(elements.symbols)
    drawn = new_figure(11.4, 3.6 + 0.12 * n)
    left, middle, right = drawn.subplots(1, 3, width_ratios=[2.0, 1.0, 1.0])
    share = elements.share[:, elements.filter_order]
    image = left.imshow(share, aspect="auto", cmap="Greys", vmin=0.0, vmax=float(share.max()))
    left.set_yticks(range(n), names)
    step = max(1, share.shape[1] // 24)
    left.set_xticks(range(0, share.shape[1], step), [elements.filters[k] for k in elements.filter_order[::step]])
    left.tick_params(axis="x", labelrotation=90)
    left.set_title("share of a filter in what moves the energy", fontsize=9, loc="left")
    drawn.colorbar(image, ax=left, fraction=0.04, pad=0.01).ax.tick_params(labelsize=7)
    middle.imshow(elements.similarity, cmap="cividis", vmin=0.0, vmax=1.0)
    middle.set_xticks(range(n), names)
    middle.set_yticks(range(n), names)
    for (i, j), value in np.ndenumerate(elements.similarity):
        if n <= _MOST_NAMES:
            colour = "white" if value < 0.55 else "black"
            middle.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    middle.set_title("similarity (1: same use)", fontsize=9, loc="left")
    right.plot(*elements.plane.T, "o", ms=5, color="#0072B2")
    for k, (name, (x, y)) in enumerate(zip(names, elements.plane, strict=True)):
        right.annotate(name, (x, y), xytext=(5, 4 if k % 2 else -13), textcoords="offset points", fontsize=10)
    span = max(float(np.ptp(elements.plane)), 0.1)
    middle_point = 0.5 * (elements.plane.max(axis=0) + elements.plane.min(axis=0))
    right.set_xlim(middle_point[0] - 0.75 * span, middle_point[0] + 0.75 * span)
    right.set_ylim(middle_point[1] - 0.75 * span, middle_point[1] + 0.75 * span)
    right.set(xticks=[], yticks=[], aspect="equal")
    right.set_title("map of similarity", fontsize=9, loc="left")
    tidy(left, middle, right, size=7.5)
    caption = (
        "Left: of each element, the share of each filter in its contributions (rows sum to 1). Middle: cosine of these "
        f"rows. Right: the same, flattened to two dimensions, which hold {100 * elements.held:.0f} % of it."
    )
    return Figure("Elements and the filters that they use", caption, png(drawn))


def environments_picture(anatomy: Anatomy) -> Figure:
    """Atoms of all elements in one plane: the main directions in which their features differ."""
    rows = anatomy.standard.numpy()
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), 5000)).astype(int)]
    symbols = np.array(anatomy.labels())
    symbols = symbols[np.linspace(0, len(symbols) - 1, len(rows)).astype(int)]
    centred = rows - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ axes[:2].T
    drawn, (panel,) = new_panels(1, 6.4, 4.6)
    named = list(dict.fromkeys(symbols.tolist()))
    marks = ("o", "s", "^", "D", "v", "P", "X", "*")
    look: Any = {"ls": "", "ms": 3.2, "alpha": 0.65, "mew": 0.0, "rasterized": True}
    for k, name in enumerate(named):
        mine = plane[symbols == name]
        panel.plot(*mine.T, marks[k % len(marks)], color=(*_SHADES, "#009E73", "#CC79A7")[k % 8], label=name, **look)
    share = values**2 / float((values**2).sum())
    panel.set_xlabel(f"first main direction ({100 * share[0]:.0f} % of the variance)")
    panel.set_ylabel(f"second ({100 * share[1]:.0f} %)" if len(share) > 1 else "")
    panel.legend(frameon=False, fontsize=9, markerscale=2.0, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain_ticks(panel.xaxis, panel.yaxis)
    caption = "Up to 5,000 atoms, placed by the features that the filters give them: like surroundings lie together."
    return Figure("Surroundings of all elements in one map", caption, png(drawn))
