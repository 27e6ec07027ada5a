"""Evaluation: how far a potential is from reference data, in all, per element and per group.

And the report of a run: parity plots, loss curves, and a summary for people and for programs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from ase.data import chemical_symbols

from snnp.data.frames import Frame, Frames
from snnp.errors import DataError
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.report import Table, fixed, new_figure, plain_ticks, save_figure, shortened, tidy
from snnp.text import markdown
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ERROR_COLUMNS", "REPORT_FILES", "Comparison", "Errors", "Evaluation", "GroupErrors", "evaluate"]
__all__ += ["plot_loss", "plot_parity", "summary_markdown", "write_report"]

ERROR_COLUMNS = (
    ("energy MAE", "energy_mae_mev_per_atom", 2),
    ("RMSE", "energy_rmse_mev_per_atom", 2),
    ("max (meV/atom)", "energy_max_mev_per_atom", 2),
    ("force MAE", "force_mae_ev_per_angstrom", 4),
    ("RMSE", "force_rmse_ev_per_angstrom", 4),
    ("max (eV/Å)", "force_max_ev_per_angstrom", 4),
    ("stress MAE (GPa)", "stress_mae_gpa", 3),
)
"""Of tables of errors: heading, key of `GroupErrors.to_dict`, decimals."""

_NAMES = (("energy", "mev_per_atom"), ("force", "ev_per_angstrom"), ("stress", "gpa"), ("atomic_energy", "mev"))
_SCALES = (1000.0, 1.0, 1.0, 1000.0)  # from the unit of a `Comparison` to that of its errors
_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy

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


@dataclass(frozen=True)
class Errors:
    """Mean absolute, root-mean-square and largest error of `n` numbers, in the unit of the quantity."""

    mae: float
    rmse: float
    max: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Reference and model values [M] of one quantity: energies in eV/atom, force components in eV/Å, stress components
    in GPa, or energies of atoms in eV; with the index [M] of the frame that each came from, and the atomic number [M],
    0 for what belongs to a whole structure."""

    reference: np.ndarray
    model: np.ndarray
    frame: np.ndarray
    number: np.ndarray

    def errors(self, chosen: np.ndarray | None = None, scale: float = 1.0) -> Errors | None:
        """Errors of the chosen entries (all by default) times `scale`; None where there are none."""
        size = scale * np.abs(self.model - self.reference)
        size = size if chosen is None else size[chosen]
        if size.size == 0:
            return None
        return Errors(float(size.mean()), math.sqrt(float(np.mean(np.square(size)))), float(size.max()), size.size)


@dataclass(frozen=True)
class GroupErrors:
    """Errors of some of the structures; a quantity that the data lack is None. Units as in `Evaluation`."""

    n_structures: int
    n_atoms: int
    energy: Errors | None
    forces: Errors | None
    stress: Errors | None
    atoms: Errors | None = None

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON values such as `energy_mae_mev_per_atom`; None where the data lack a quantity.

        Those of atomic energies, `atomic_energy_mae_mev`, are left out then.
        """
        errors_of = (self.energy, self.forces, self.stress, self.atoms)
        values = {
            f"{quantity}_{kind}_{unit}": value if math.isfinite(value := getattr(errors, kind, math.nan)) else None
            for (quantity, unit), errors in zip(_NAMES, errors_of, strict=True)
            for kind in ("mae", "rmse", "max")
            if errors is not None or quantity != "atomic_energy"
        }
        return {**values, "n_structures": self.n_structures, "n_atoms": self.n_atoms}


@dataclass(frozen=True)
class Evaluation:
    """A potential held against reference data.

    Arguments:
        model, data: what was compared with what, for the reader.
        total: all structures: energy in meV/atom, force components in eV/Å, stress components (six each) in GPa, and
            energies of atoms in meV, after the mean difference of each element: their zeros are a convention.
        elements: force errors in eV/Å per chemical symbol.
        groups: the same as `total` for each group (`config_type`) of the data; empty if the data name none.
        energies, forces, stresses: the numbers behind it, for parity plots.
    """

    model: str
    data: str
    total: GroupErrors
    elements: dict[str, Errors]
    groups: dict[str, GroupErrors]
    energies: Comparison
    forces: Comparison
    stresses: Comparison

    def to_dict(self) -> dict[str, Any]:
        """JSON values: errors with their units in the names at the top level, then `elements` and `groups`.

        What the data lack is None, and so is an error that is not finite.
        """
        names = {kind: f"force_{kind}_ev_per_angstrom" for kind in ("mae", "rmse", "max")}
        elements = {
            s: {name: getattr(errors, kind) for kind, name in names.items()} for s, errors in self.elements.items()
        }
        groups = {name: errors.to_dict() for name, errors in self.groups.items()}
        return {"model": self.model, "data": self.data, **self.total.to_dict(), "elements": elements, "groups": groups}


def evaluate(
    model: Potential,
    frames: Sequence[Frame],
    *,
    batch_atoms: int = 2000,
    model_name: str | None = None,
    data_name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a potential with reference frames, each of which may lack any label.

    Errors of energies are per structure (total energy over number of atoms), of forces over all components of all
    atoms, of stresses over the six components of fully periodic structures.

    Arguments:
        batch_atoms: structures are computed together up to this many atoms.
        model_name, data_name: for the report; by default the model's own name and the names of the data files.
        progress: called with the number of frames done and the number of all.

    Raises `DataError` if there are no frames; `UnknownElementError` if the data hold an element that the model does not
    know.
    """
    if not frames:
        raise DataError("there is nothing to evaluate on: no frames were given.")
    frames = Frames.of(frames)
    compared = _compare(frames, *_compute(model, frames, batch_atoms, progress))
    forces = compared[1]
    files = dict.fromkeys(source.rpartition("#")[0] or source for source in frames.sources)
    return Evaluation(
        model=model_name or str(model.metadata.get("name", type(model).__name__)),
        data=data_name or ", ".join(files),
        total=_errors(frames, compared, np.ones(len(frames), dtype=bool)),
        elements={
            chemical_symbols[number]: errors
            for number in np.unique(forces.number).tolist()
            if (errors := forces.errors(forces.number == number)) is not None
        },
        groups={
            label: _errors(frames, compared, np.array([group == label for group in frames.groups]))
            for label in sorted({group for group in frames.groups if group})
        },
        energies=compared[0],
        forces=forces,
        stresses=compared[2],
    )


def _compute(
    model: Potential, frames: Frames, batch_atoms: int, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, ...]:
    """The model's energies [B], forces [N, 3], stresses [B, 3, 3], energies of atoms [N]; NaN for what is not asked."""
    labels = (frames.energy, frames.forces, frames.stress, frames.energies)
    energy, forces, stress, of_atoms = (np.full_like(values, np.nan) for values in labels)
    for rows in frames.pieces(batch_atoms):
        batch, atoms = frames[rows], slice(frames.starts[rows.start], frames.starts[rows.stop])
        asked = bool(batch.has_forces.any()), bool(batch.has_stress.any())
        found = model.compute(batch.structure(), forces=asked[0], stress=asked[1])
        energy[rows], of_atoms[atoms] = found.energy.cpu().numpy(), found.energies.cpu().numpy()
        if found.forces is not None:
            forces[atoms] = found.forces.cpu().numpy()
        if found.stress is not None:
            stress[rows] = found.stress.cpu().numpy()
        if progress is not None:
            progress(rows.stop, len(frames))
    return energy, forces, stress, of_atoms


def _compare(
    frames: Frames, energy: np.ndarray, forces: np.ndarray, stress: np.ndarray, of_atoms: np.ndarray
) -> tuple[Comparison, ...]:
    """Energies, forces, stresses and energies of atoms beside those that are known."""
    owner, number = frames.owner, frames.numbers.astype(np.int64)
    rows, atoms = np.flatnonzero(frames.has_energy), np.flatnonzero(frames.has_forces[owner])
    said, found = ((values / frames.counts)[rows] for values in (frames.energy, energy))
    energies = Comparison(said, found, rows, np.zeros_like(rows))
    said, found = (values[atoms].ravel() for values in (frames.forces, forces))
    of_forces = Comparison(said, found, owner[atoms].repeat(3), number[atoms].repeat(3))
    rows = np.flatnonzero(frames.has_stress)
    said, found = (EV_PER_ANGSTROM3_IN_GPA * values[rows][:, *_VOIGT].ravel() for values in (frames.stress, stress))
    stresses = Comparison(said, found, rows.repeat(6), np.zeros(len(said), dtype=np.int64))
    atoms = np.flatnonzero(frames.has_energies[owner])
    said, found, numbers = (values[atoms] for values in (frames.energies, of_atoms, number))
    _, element = np.unique(numbers, return_inverse=True)
    shift = np.bincount(element, weights=found - said) / np.bincount(element)
    return energies, of_forces, stresses, Comparison(said, found - shift[element], owner[atoms], numbers)


def _errors(frames: Frames, compared: tuple[Comparison, ...], chosen: np.ndarray) -> GroupErrors:
    """Errors over the frames where `chosen` [number of frames] is true."""
    errors = (each.errors(chosen[each.frame], scale) for each, scale in zip(compared, _SCALES, strict=True))
    return GroupErrors(int(chosen.sum()), int(frames.counts[chosen].sum()), *errors)


# The report of a run.


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
