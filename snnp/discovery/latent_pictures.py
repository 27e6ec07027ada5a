"""The report on a family of curves: what each latent variable does to a curve, what it follows, what is lost."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snnp.discovery.curve_family import Discovery
from snnp.files import write_atomically
from snnp.report import COLOURS, GREY, Figure, Finding, Report, Table, new_figure, new_panels, png, shortened, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["report_on", "write_report"]

_MOST_PANELS = 6
_FEW_CURVES = 200  # below, what is found depends on the seed


def write_report(found: Discovery, folder: Path, seconds: float = 0.0) -> Report:
    """Write `report.html`, `report.json`, `latents.csv` and the pictures (PNG) into a folder; returns the report."""
    report = report_on(found, seconds)
    for name, figure in zip(_names(found), report.pictures, strict=True):
        write_atomically(folder / name, figure.png)
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["curve", *(f"z{k + 1}" for k in found.active), *found.family.parameters])
    for row, latents in enumerate(found.encoded.mean):
        known = [f"{values[row]:.8g}" for values in found.family.parameters.values()]
        table.writerow([row + 1, *(f"{latents[k]:.6g}" for k in found.active), *known])
    write_atomically(folder / "latents.csv", stream.getvalue().encode())
    write_atomically(folder / "report.html", report.html().encode())
    write_atomically(folder / "report.json", report.to_json().encode())
    return report


def _names(found: Discovery) -> list[str]:
    return [
        *(["traversals.png"] if found.active else []),
        *(["variables.png"] if found.active and found.family.parameters else []),
        *("nats.png", "examples.png"),
    ]


def report_on(found: Discovery, seconds: float = 0.0) -> Report:
    """Tables, pictures and findings of a discovery."""
    family = found.family
    figures = [_nats(found), _examples(found)]
    if found.active and family.parameters:
        figures.insert(0, _variables(found))
    if found.active:
        figures.insert(0, _traversals(found))
    return Report(
        family.name,
        "discovery",
        tuple(_findings(found)),
        (*_names(found), "latents.csv", "report.json"),
        _tables(found),
        figures,
        seconds,
        found.answer,
    )


def _findings(found: Discovery) -> list[Finding]:
    n = len(found.family.curves)
    said = []
    if not found.active:
        said.append(
            Finding(
                "active variables",
                "warning",
                "no variable is active: all curves are taken for one",
                "What a variable would tell costs more than it brings.",
                f"Lower beta (now {found.settings.beta:g}), or train longer.",
            )
        )
    if n < _FEW_CURVES:
        said.append(
            Finding(
                "number of curves",
                "note",
                f"{n} curves are few",
                "Which variables are found may depend on the seed.",
                "Compare several seeds, and give more curves if there are any.",
            )
        )
    return said


def _tables(found: Discovery) -> list[Table]:
    names = list(found.family.parameters)
    rows = [
        [f"z{k + 1}", float(found.encoded.nats[k]), *(found.correlations[k][name] for name in names)]
        for k in found.active
    ]
    settings = vars(found.settings)
    sizes = {"curves": len(found.family.curves), "points": len(found.family.x), "held out": len(found.held_out)}
    about = {**sizes, "variance that comes back": found.kept, **settings}
    formulas = [
        [f"z{k + 1}", each.text, each.score, each.length, each.seed] for k in found.active for each in found.formulas[k]
    ]
    tables = [Table(("variable", "nats", *names), rows, "Active variables, and Spearman's correlation with parameters")]
    if formulas:
        columns = ("variable", "formula", "score", "parts", "seed")
        tables.append(Table(columns, formulas, "Formulas that the variables follow", 2))
    return [*tables, Table.of("How it was found", about)]


# Pictures.


def _scale_axis(panel: Axes, x: np.ndarray) -> None:
    """A logarithmic axis where the points are spaced so, on one side of zero or on both."""
    steps = np.diff(x)
    if (steps <= 0.0).any() or steps.max() < 20.0 * steps.min():
        return
    if x[0] > 0.0:
        panel.set_xscale("log")
    elif x[0] < 0.0 < x[-1]:
        linear = 3.0 * float(np.abs(x[x != 0.0]).min())
        panel.set_xscale("symlog", linthresh=linear)
        decades = np.arange(np.floor(np.log10(x[-1])), np.log10(2.0 * linear), -2.0)[:3]  # zero keeps its room
        panel.set_xticks([*-(10.0**decades), 0.0, *10.0 ** decades[::-1]])
        panel.minorticks_off()


def _traversals(found: Discovery) -> Figure:
    from matplotlib import colormaps

    shown = found.active[:_MOST_PANELS]
    figure, panels = new_panels(len(shown), 4.2, 3.0, columns=3)
    for panel, k in zip(panels, shown, strict=True):
        values, curves = found.traverse(k)
        for value, curve, tone in zip(values, curves, np.linspace(0.0, 0.88, len(values)), strict=True):
            ends = value in (values[0], values[-1])
            label = f"{value:.1f}" if ends or value == values[len(values) // 2] else None
            panel.plot(found.family.x, curve, color=colormaps["viridis"](tone), lw=1.4 if ends else 0.9, label=label)
        _scale_axis(panel, found.family.x)
        panel.set_title(f"z{k + 1}, {found.encoded.nats[k]:.1f} nats", fontsize=9)
        panel.legend(fontsize=7, frameon=False)
    return Figure(
        "What each variable does to a curve",
        "Curves that the decoder makes when one variable goes from its 2nd to its 98th percentile (dark to bright), "
        "the others at their median.",
        png(figure),
    )


def _variables(found: Discovery) -> Figure:
    shown = found.active[:_MOST_PANELS]
    figure, panels = new_panels(len(shown), 3.6, 3.0, columns=3)
    for panel, k in zip(panels, shown, strict=True):
        name = found.leading(k)
        if name is None:
            panel.set_axis_off()
            continue
        values = found.family.parameters[name]
        panel.plot(values, found.encoded.mean[:, k], ".", ms=3, alpha=0.5, color=COLOURS[0], mec="none")
        positive = values[np.isfinite(values)]
        if positive.min() > 0.0 and positive.max() > 30.0 * positive.min():
            panel.set_xscale("log")
        panel.set_xlabel(shortened(name), fontsize=9)
        panel.set_ylabel(f"z{k + 1}", fontsize=9)
        panel.set_title(f"Spearman {found.correlations[k][name]:.2f}", fontsize=9)
    return Figure(
        "What each variable follows",
        "Each active variable against the parameter that it is most correlated with; one point per curve.",
        png(figure),
    )


def _nats(found: Discovery) -> Figure:
    figure = new_figure(5.0, 2.6)
    panel = figure.subplots()
    nats = found.encoded.nats
    order = np.argsort(-nats)
    names = [f"z{k + 1}" for k in order]
    colour = [COLOURS[0] if k in found.active else GREY for k in order]
    panel.bar(names, nats[order], color=colour)
    panel.set_ylabel("nats per curve", fontsize=9)
    tidy(panel)
    return Figure(
        "How much each variable tells",
        "Mean KL divergence from the prior; variables below 0.1 (grey) tell nothing.",
        png(figure),
    )


def _examples(found: Discovery) -> Figure:
    family = found.family
    among = found.held_out if len(found.held_out) else np.arange(len(family.curves))
    errors = ((found.model.decode(found.encoded.mean[among]) - family.curves[among]) ** 2).mean(axis=1)
    ranks = np.argsort(errors)[np.linspace(0, len(among) - 1, min(3, len(among))).astype(int)]
    figure, panels = new_panels(len(ranks), 3.6, 2.8, columns=3)
    for panel, place, word in zip(panels, ranks, ("best", "median", "worst"), strict=False):
        row = among[place]
        panel.plot(family.x, family.curves[row], color=GREY, lw=3.0, label="curve")
        panel.plot(family.x, found.model.decode(found.encoded.mean[[row]])[0], "k-", lw=0.9, label="comes back")
        _scale_axis(panel, family.x)
        panel.set_title(f"{word}: curve {row + 1}", fontsize=9)
    panels[0].legend(fontsize=7, frameon=False)
    kind = "held-out curves" if len(found.held_out) else "curves"
    return Figure("What comes back", f"Best, median and worst of the {kind}.", png(figure))
