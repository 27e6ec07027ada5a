"""The report of a run: parity plots, loss curves, and a summary for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from snnp.errors import DataError
from snnp.files import write_atomically
from snnp.report import Table, fixed, new_figure, plain_ticks, save_figure, shortened, tidy
from snnp.text import markdown
from snnp.training.evaluation import ERROR_COLUMNS, Comparison, Evaluation, GroupErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["REPORT_FILES", "plot_loss", "plot_parity", "summary_markdown", "write_report"]

REPORT_FILES = ("parity_energy.png", "parity_forces.png", "loss.png", "summary.json", "summary.md")

_COLOURS = {"train": "#9db4c0", "valid": "#1f5f8b", "test": "#c8553d"}
_OTHER_COLOURS = ("#1f5f8b", "#c8553d", "#5b8c5a", "#8b5fbf", "#b08900", "#3aa6a6", "#8a8a8a")
_INK, _GRID = "#333333", "#e5e5e5"
_MOST_POINTS = 20_000
_QUANTITIES = {
    # name: title, unit of the axes, unit of the errors, factor between them, digits
    "energy": ("Energies", "eV/atom", "meV/atom", 1000.0, 2),
    "forces": ("Force components", "eV/Å", "eV/Å", 1.0, 4),
}
_PANELS = {
    "train_loss": "Training loss",
    "valid_energy_mae_mev_per_atom": "Energy MAE, validation\n(meV/atom)",
    "valid_force_mae_ev_per_angstrom": "Force MAE, validation\n(eV/Å)",
    "learning_rate": "Learning rate",
}


def write_report(folder: str | Path, evaluations: Mapping[str, Evaluation], details: Mapping[str, Any]) -> None:
    """Write all of `REPORT_FILES` for which there is something into a run folder, each replaced atomically.

    Arguments:
        folder: existing folder; `metrics.csv` in it, if there, becomes the loss curve.
        evaluations: for instance {"train": ..., "valid": ..., "test": ...}, drawn in this order.
        details: further JSON values for the summary (parameters, seconds, E0, ...).
    """
    folder = Path(folder)
    if any(each.energies.reference.size for each in evaluations.values()):
        plot_parity(folder / "parity_energy.png", evaluations, "energy")
    if any(each.forces.reference.size for each in evaluations.values()):
        plot_parity(folder / "parity_forces.png", evaluations, "forces")
    metrics = folder / "metrics.csv"
    if metrics.is_file() and len(metrics.read_bytes().splitlines()) > 1:
        plot_loss(folder / "loss.png", metrics)
    content = {**details, "errors": {name: evaluation.to_dict() for name, evaluation in evaluations.items()}}
    write_atomically(folder / "summary.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(folder / "summary.md", summary_markdown(evaluations, details).encode())


def plot_parity(path: str | Path, evaluations: Mapping[str, Evaluation], quantity: Literal["energy", "forces"]) -> None:
    """Draw model against reference, and the share of values below each error, as a PNG that is replaced atomically.

    Arguments:
        evaluations: name of each set (its colour and label) and its evaluation; sets without the quantity are left out.
        quantity: "energy" (eV/atom) or "forces" (components, eV/Å).
    """
    title, unit, error_unit, scale, digits = _QUANTITIES[quantity]
    sets = {name: each.energies if quantity == "energy" else each.forces for name, each in evaluations.items()}
    sets = {name: comparison for name, comparison in sets.items() if comparison.reference.size}
    figure = new_figure(9.2, 4.7 + 0.2 * len(sets))
    parity, spread = figure.subplots(1, 2)
    others = iter(_OTHER_COLOURS * len(sets))
    for name, comparison in sets.items():
        colour = _COLOURS.get(name) or next(others)
        errors, n = comparison.errors(scale=scale), comparison.reference.size
        assert errors is not None
        sizes = f"MAE {errors.mae:.{digits}f},  RMSE {errors.rmse:.{digits}f} {error_unit}"
        label = f"{shortened(name, 40)}:  {sizes},  {n:,} value{'' if n == 1 else 's'}"
        # More points only darken the picture; always the same ones are drawn.
        shown = np.arange(n) if n <= _MOST_POINTS else np.random.default_rng(0).choice(n, _MOST_POINTS, replace=False)
        points = {"s": 9.0 if len(shown) > 50 else 20.0, "alpha": 0.6, "lw": 0, "color": colour, "label": label}
        parity.scatter(comparison.reference[shown], comparison.model[shown], **points)
        # A cumulative distribution needs no bins, so that small and large sets compare.
        sorted_ = np.sort(scale * np.abs(comparison.model - comparison.reference))
        sorted_ = sorted_[np.isfinite(sorted_)]
        share = 100.0 * np.arange(1, sorted_.size + 1) / max(1, sorted_.size)
        spread.plot(sorted_, share, color=colour, lw=1.6, marker="." if sorted_.size < 10 else "")
    _finish_parity(parity, sets, unit)
    _finish_shares(spread, error_unit)
    legend = figure.legend(*parity.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1.0)
    for axes in (parity, spread):
        axes.set_box_aspect(1)
        tidy(axes)
    models = " / ".join(dict.fromkeys(evaluation.model for evaluation in evaluations.values()))
    figure.suptitle(f"{title} of the model '{shortened(models, 56)}' against reference data", fontsize=11)
    save_figure(figure, Path(path))


def _finish_parity(axes: Axes, sets: Mapping[str, Comparison], unit: str) -> None:
    """Equal axes around all values, and the diagonal."""
    values = np.concatenate([array for one in sets.values() for array in (one.reference, one.model)] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = max(0.05 * (high - low), 0.01)  # eV/atom or eV/Å: less is not worth a picture
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=_INK, lw=0.8, zorder=0)
    axes.set(xlim=limits, ylim=limits, xlabel=f"Reference ({unit})", ylabel=f"Model ({unit})")
    plain_ticks(axes.xaxis, axes.yaxis)


def _finish_shares(axes: Axes, unit: str) -> None:
    """A logarithmic axis over the three decades that matter: forces that vanish by symmetry have errors of 1e-15."""
    axes.set(xlabel=f"Absolute error ({unit})", ylabel="Share of values with a smaller error (%)", ylim=(0, 101))
    largest = max((float(np.max(line.get_xdata(), initial=0.0)) for line in axes.lines), default=0.0)
    # Errors that are all exactly zero leave nothing for a logarithmic axis.
    if largest > 0.0:
        axes.set_xscale("log")
        axes.set_xlim(1e-3 * largest, 1.5 * largest)
        plain_ticks(axes.xaxis)
    axes.grid(True, which="major", color=_GRID, lw=0.7)


def plot_loss(path: str | Path, metrics: str | Path) -> None:
    """Draw the training loss and the validation errors over the epochs as a PNG that is replaced atomically.

    `metrics`: CSV with the columns `epoch` and any of those in `_PANELS`; empty cells are left out. Raises `DataError`
    if the file cannot be read or has no epochs.
    """
    from matplotlib.ticker import MaxNLocator

    columns = _read_columns(Path(metrics))
    drawn = {name: label for name, label in _PANELS.items() if np.isfinite(columns.get(name, np.zeros(0))).any()}
    figure = new_figure(6.4, 1.0 + 1.7 * max(1, len(drawn)))
    rows = figure.subplots(max(1, len(drawn)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(rows, drawn.items(), strict=False):
        _draw_history(axes, columns["epoch"], columns[name], name, label)
    rows[-1].set_xlabel("Epoch")
    rows[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    figure.align_ylabels(list(rows))
    tidy(*rows)
    save_figure(figure, Path(path))


def _draw_history(axes: Axes, epoch: np.ndarray, values: np.ndarray, name: str, label: str) -> None:
    known = np.isfinite(values)
    epoch, values = epoch[known], values[known]
    axes.plot(epoch, values, color=_COLOURS["valid"], lw=1.2, marker="." if len(epoch) < 40 else "")
    positive = values[values > 0]
    if name != "learning_rate" and positive.size and positive.max() > 3.0 * positive.min():
        axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.set_ylabel(label, fontsize=8.5)
    axes.grid(True, which="major", color=_GRID, lw=0.7)
    if name.startswith("valid"):
        at, colour = int(values.argmin()), _COLOURS["test"]
        axes.plot(epoch[at], values[at], "o", color=colour, ms=5)
        axes.set_title(f"best {values[at]:.3g} at epoch {epoch[at]:.0f}", fontsize=8, loc="right", color=colour)


def _read_columns(metrics: Path) -> dict[str, np.ndarray]:
    """Column by column; NaN for what is no number."""
    try:
        with metrics.open(newline="", encoding="utf-8") as stream:
            table = np.genfromtxt(stream, delimiter=",", names=True, ndmin=1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "rows of different lengths"
        raise DataError(f"{metrics} cannot be read as a table of metrics: {reason}.") from error
    names = table.dtype.names or ()
    if not table.size or "epoch" not in names:
        raise DataError(f"{metrics} holds no epochs; expected a CSV with the column 'epoch' and at least one row.")
    return {name: table[name] for name in names}


def summary_markdown(evaluations: Mapping[str, Evaluation], details: Mapping[str, Any]) -> str:
    """A summary in Markdown: the errors of each set, of its groups and elements, and the details as a list."""
    columns = ("structures", "atoms", *(heading for heading, *_ in ERROR_COLUMNS))
    text = "# Summary\n\n"
    text += "".join(f"- {key.replace('_', ' ')}: {markdown(_plain(value))}\n" for key, value in details.items())
    elements = [
        [name, symbol, *(fixed(size, 4) for size in (errors.mae, errors.rmse, errors.max))]
        for name, each in evaluations.items()
        for symbol, errors in each.elements.items()
        if len(each.elements) > 1
    ]
    groups = [[name, k, *_cells(mine)] for name, each in evaluations.items() for k, mine in each.groups.items()]
    tables = [
        Table(("set", *columns), [[name, *_cells(each.total)] for name, each in evaluations.items()], "Errors"),
        Table(("set", "group", *columns), groups, "By group", 2),
        Table(("set", "element", "MAE", "RMSE", "max (eV/Å)"), elements, "Forces by element", 2),
    ]
    shown = [table for table in tables if table.rows or table.title == "Errors"]
    return text + "".join(f"\n## {table.title}\n\n{table.markdown()}" for table in shown)


def _cells(errors: GroupErrors) -> list[str]:
    values = errors.to_dict()
    return [*map(str, (errors.n_structures, errors.n_atoms)), *(fixed(values[key], n) for _, key, n in ERROR_COLUMNS)]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
