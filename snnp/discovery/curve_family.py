"""What a family of curves has in common: read it, find its latent variables, and say what they follow.

`read_family` takes tables (CSV) and arrays (npz); `discover_curves` trains the autoencoder, looks which variables are
active and what they do to a curve, correlates them with parameters that are known, and finds formulas for them.
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from snnp.discovery.autoencoder import Autoencoder, Encoded, VAESettings, train_autoencoder
from snnp.discovery.formulas import Formula, find_formula
from snnp.errors import DataError, InputError, near_matches

__all__ = ["CurveFamily", "Discovery", "Scale", "discover_curves", "read_family", "spearman"]

Scale = Literal["none", "max", "area"]
_HELD_OUT, _LEAST_TO_HOLD_OUT = 0.1, 60
_LEAST_POINTS = 4
_LEAST_PAIRS = 4  # for a correlation
_FOLLOWS = 0.5  # least |Spearman| of a variable that is said to follow a parameter


@dataclass(frozen=True)
class CurveFamily:
    """Curves over the same points.

    Arguments:
        x: the points, shape (points,). curves: shape (curves, points). parameters: name -> values, shape (curves,), NaN
            where one is not known. name: of the family.

    Raises:
        DataError: for shapes that do not fit, NaN in curves, or fewer than four points.
    """

    x: np.ndarray
    curves: np.ndarray
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "curves"

    def __post_init__(self) -> None:
        if self.curves.ndim != 2 or self.x.shape != self.curves.shape[1:]:
            raise DataError(
                f"{self.name}: curves of the shape {self.curves.shape}, points x of the shape {self.x.shape}; one row "
                "for each curve is expected, all at the same points."
            )
        if len(self.x) < _LEAST_POINTS:
            raise DataError(f"{self.name}: {len(self.x)} points are no curve; give {_LEAST_POINTS} at least.")
        bad = np.argwhere(~np.isfinite(self.curves))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"{self.name}: curve {row + 1} is {self.curves[row, column]} at x = {self.x[column]:g} "
                f"({len(np.unique(bad[:, 0]))} of {len(self.curves)} curves have such values); leave these curves out, "
                "or fill the gaps."
            )
        for name, values in self.parameters.items():
            if values.shape != (len(self.curves),):
                raise DataError(f"{self.name}: the parameter {name} must have one value for each curve.")

    def where(self, conditions: Sequence[str]) -> CurveFamily:
        """Curves of which parameters have a value (`B=0`) or lie in a range (`T_K=1e-5:1e-2`)."""
        taken = np.ones(len(self.curves), dtype=bool)
        for text in conditions:
            name, _, wanted = text.partition("=")
            values = self._known(name)
            try:
                low, high = (float(part) for part in (wanted if ":" in wanted else f"{wanted}:{wanted}").split(":"))
            except ValueError:
                raise InputError(f"{text!r} is no condition; write NAME=VALUE or NAME=LOW:HIGH.") from None
            taken &= (values >= low) & (values <= high)
        if not taken.any():
            raise InputError(f"no curve is left where {' and '.join(conditions)}; widen the ranges.")
        kept = {name: values[taken] for name, values in self.parameters.items()}
        return replace(self, curves=self.curves[taken], parameters=kept)

    def only(self, names: Sequence[str]) -> CurveFamily:
        """With these parameters alone."""
        return replace(self, parameters={name: self._known(name) for name in names})

    def scaled(self, scale: Scale) -> CurveFamily:
        """Each curve divided by its largest value, or by its area."""
        if scale == "none":
            return self
        sizes = self.curves.max(axis=1) if scale == "max" else np.trapezoid(self.curves, self.x, axis=1)
        if not (sizes > 0.0).all():
            first = int(np.argmax(~(sizes > 0.0)))
            raise InputError(
                f"curve {first + 1} has {scale} {sizes[first]:g}, so it cannot be scaled; use --scale none."
            )
        return replace(self, curves=self.curves / sizes[:, None])

    def _known(self, name: str) -> np.ndarray:
        if name not in self.parameters:
            known = ", ".join(self.parameters) or "none"
            raise InputError(
                f"{self.name} has no parameter {name!r}; it has: {known}.{near_matches(name, self.parameters)}"
            )
        return self.parameters[name]


# Reading.


def read_family(path: Path) -> CurveFamily:
    """Read curves.

    Arguments:
        path: `.csv`: a row for each curve; columns whose name is a number are points, the others parameters. `.npz`:
            arrays `curves` (curves, points), and if given `x` (points,), `parameters` (curves, k), `names` (k,).

    Raises:
        DataError: for files that hold something else, or curves of different length.
    """
    if not path.is_file():
        what = "is a folder; name a CSV or npz file in it" if path.is_dir() else "no such file; check the path"
        raise DataError(f"{path}: {what}.")
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: curves are read from .csv and .npz; save them as one of these.")
    return readers[path.suffix.lower()](path)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_csv(path: Path) -> CurveFamily:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of text ({error}); save it as CSV in UTF-8.") from None
    if len(rows) < 2:
        raise DataError(f"{path} holds no curves; the first row names the columns, each further row is a curve.")
    head, *body = rows
    for number, row in enumerate(body, 2):
        if len(row) != len(head):
            raise DataError(
                f"{path}: row {number} has {len(row)} values, the first row names {len(head)}; all curves must be "
                "given at the same points."
            )
    points = [k for k, name in enumerate(head) if math.isfinite(_number(name))]
    if not points:
        raise DataError(
            f"{path}: no column is named by a number, so none is a point of a curve; name the columns of a curve by x."
        )
    table = np.array([[_number(cell) for cell in row] for row in body])
    x = np.array([float(head[k]) for k in points])
    for k in points:
        for number, row in enumerate(body, 2):
            if row[k].strip().lower() not in ("nan", "inf", "-inf") and math.isnan(_number(row[k])):
                raise DataError(f"{path}: row {number} has {row[k][:20]!r} at x = {head[k]}; a number is expected.")
    # Columns of text (names of materials) are no parameters.
    others = [k for k in range(len(head)) if k not in points and np.isfinite(table[:, k]).any()]
    return CurveFamily(x, table[:, points], {head[k]: table[:, k] for k in others}, path.name)


def _read_npz(path: Path) -> CurveFamily:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in ("curves", "x", "parameters", "names") if name in file.files}
            found = ", ".join(file.files)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        why = "it holds Python objects, as curves of different length do" if "pickle" in str(error) else str(error)
        raise DataError(
            f"{path} cannot be read as arrays: {why}; save one array, curves, of all at the same points."
        ) from None
    if "curves" not in held:
        raise DataError(
            f"{path} has no array 'curves' (it has: {found}); save it with numpy.savez(FILE, curves=..., x=...)."
        )
    try:
        curves = held["curves"].astype(float)
        x = held["x"].astype(float) if "x" in held else np.arange(curves.shape[-1], dtype=float)
        table = held["parameters"].astype(float) if "parameters" in held else np.zeros((len(curves), 0))
    except (TypeError, ValueError):
        raise DataError(f"{path}: curves, x and parameters must be numbers.") from None
    names = [str(name) for name in held["names"]] if "names" in held else [f"p{k + 1}" for k in range(table.shape[-1])]
    if table.shape != (len(curves), len(names)):
        raise DataError(
            f"{path}: parameters of the shape {table.shape} do not fit to {len(curves)} curves and {len(names)} names."
        )
    return CurveFamily(x, curves, dict(zip(names, table.T, strict=True)), path.name)


# Finding.


@dataclass(frozen=True)
class Discovery:
    """What was found behind a family.

    Arguments:
        family: the curves. model, encoded: the autoencoder, and all curves in its variables. active: which of those
            tell something, most first. kept: share of the variance of held-out curves (of all, where none were held
            out) that comes back. held_out: indices. settings: of the autoencoder. correlations: Spearman's, active
            variable -> parameter -> value. formulas: active variable -> what was found, one for each seed.
    """

    family: CurveFamily
    model: Autoencoder
    encoded: Encoded
    active: list[int]
    kept: float
    held_out: np.ndarray
    settings: VAESettings
    correlations: dict[int, dict[str, float]]
    formulas: dict[int, list[Formula]]

    @property
    def answer(self) -> str:
        """One sentence."""
        n = len(self.active)
        told = (
            f"{n} of {self.settings.latents} variables {'is' if n == 1 else 'are'} active; the curves come back with "
        )
        told += f"{100.0 * self.kept:.1f} % of their variance"
        for k in self.active:
            name = self.leading(k)
            if name is not None and abs(self.correlations[k][name]) >= _FOLLOWS:
                told += f"; z{k + 1} follows {name} (Spearman {self.correlations[k][name]:.2f})"
        return told

    def leading(self, k: int) -> str | None:
        """The parameter that a variable is most correlated with."""
        known = {name: abs(value) for name, value in self.correlations[k].items() if math.isfinite(value)}
        return max(known, key=known.__getitem__) if known else None

    def traverse(self, k: int, n: int = 9) -> tuple[np.ndarray, np.ndarray]:
        """Values of a variable from its 2nd to 98th percentile, and their curves with the others at their median."""
        mean = self.encoded.mean
        low, high = np.percentile(mean[:, k], (2.0, 98.0))
        values = np.linspace(low, high, n)
        latents = np.tile(np.median(mean, axis=0), (n, 1))
        latents[:, [j for j in range(mean.shape[1]) if j not in self.active]] = 0.0
        latents[:, k] = values
        return values, self.model.decode(latents)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, of pairs without NaN; NaN where there are fewer than four, or one is constant."""
    from scipy.stats import spearmanr

    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < _LEAST_PAIRS or np.ptp(a[known]) == 0.0 or np.ptp(b[known]) == 0.0:
        return math.nan
    return float(spearmanr(a[known], b[known]).statistic)


def discover_curves(
    family: CurveFamily,
    settings: VAESettings | None = None,
    formulas: int = 0,
    report: Callable[[int, float], None] | None = None,
    held_out: np.ndarray | None = None,
) -> Discovery:
    """Find what lies behind curves.

    Arguments:
        settings: of the autoencoder. formulas: how often to search a formula of the parameters for each active
            variable, with seeds 0, 1, ... report: called with the epoch and the loss. held_out: indices of curves
            that are not learned; default: a tenth, drawn at random, of sixty curves or more.

    Raises:
        InputError: as `train_autoencoder` and `find_formula` do.
    """
    settings = settings or VAESettings()
    n = len(family.curves)
    order = np.random.default_rng(settings.seed).permutation(n)
    if held_out is None:
        held_out = np.sort(order[: int(_HELD_OUT * n) if n >= _LEAST_TO_HOLD_OUT else 0])
    learned = np.setdiff1d(np.arange(n), held_out)
    model = train_autoencoder(family.curves[learned], settings, report)
    encoded = model.encode(family.curves)
    judged = held_out if len(held_out) else learned
    back = model.decode(encoded.mean[judged])
    rest = ((back - family.curves[judged]) ** 2).mean() / family.curves[judged].var(axis=0).mean()
    active = encoded.active
    correlations = {
        k: {name: spearman(encoded.mean[:, k], values) for name, values in family.parameters.items()} for k in active
    }
    varied = {
        name: values for name, values in family.parameters.items() if len(np.unique(values[np.isfinite(values)])) > 1
    }
    found: dict[int, list[Formula]] = {k: [] for k in active}
    for k in active if varied else []:
        found[k] = [find_formula(varied, encoded.mean[:, k], seed) for seed in range(formulas)]
    kept = float(1.0 - rest)
    return Discovery(family, model, encoded, active, kept, held_out, settings, correlations, found)
