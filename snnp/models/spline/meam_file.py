r"""LAMMPS `meam/spline` files, read and written as s-MEAM configurations of the s-NNP.

    E = sum_i [U_i(n_i) - U_i(0)] + sum_{i<j} phi_ij(r_ij)
    n_i = sum_j rho_j(r_ij) + sum_{j<k} f_j(r_ij) f_k(r_ik) g_jk(cos theta_jik)

A file holds cubic splines through uniform knots with given slopes at both ends, in the order phi (pairs of elements
i <= j, row by row), rho, U, f (each per element), g (pairs). Outside its knots a spline continues as its tangent; every
pair closer than the largest last knot of phi, rho, and f counts. Two formats exist: an old one for one element, whose
name it does not hold, and the one introduced by a line `meam/spline N El1 ... ElN`, which is also the one written here.

References: T. J. Lenosky et al., Modelling Simul. Mater. Sci. Eng. 8, 825 (2000), doi 10.1088/0965-0393/8/6/305;
https://docs.lammps.org/pair_meam_spline.html
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from ase.data import atomic_numbers
from pydantic import ValidationError

from snnp.errors import InputError, ModelFileError, first_fault
from snnp.files import write_atomically
from snnp.models.formats import check_numbers, read_text
from snnp.models.potential import Potential
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.spline.special_cases import s_meam
from snnp.splines import SplineGrid, SplineSet, fit_knots

__all__ = ["KnotSpline", "MeamSplineFile", "format_meam_spline", "parse_meam_spline", "read_meam_spline"]
__all__ += ["write_meam_spline"]

_KNOT_TOLERANCE = 1e-8  # that LAMMPS accepts (`SplineFunction::prepareSpline` in pair_meam_spline.cpp)
_LARGEST_FILE = 1 << 26  # bytes: a million knots
_MOST_NUMBERS = 1_000_000  # that may be more than a file has bytes, where its splines have different numbers of knots
# LAMMPS numbers the pair (j, i) with j > i like another pair as soon as there are three elements (`ij_to_potl` in
# pair_meam_spline.h is not symmetric), so its energies would depend on the order of the atoms.
_MOST_ELEMENTS = 2


@dataclass(frozen=True)
class KnotSpline:
    """A cubic spline through `values` at uniform knots from `lower` to `upper`, with given slopes at the ends."""

    lower: float
    upper: float
    values: tuple[float, ...]
    lower_slope: float
    upper_slope: float

    @property
    def grid(self) -> SplineGrid:
        return SplineGrid(self.lower, self.upper, len(self.values) - 1)

    def curvatures(self) -> list[float]:
        """Second derivatives at the knots."""
        values = torch.tensor(self.values, dtype=torch.float64)
        c = fit_knots(self.grid, values, self.lower_slope, self.upper_slope)
        curvatures: list[float] = ((c[:-2] - 2.0 * c[1:-1] + c[2:]) / self.grid.spacing**2).tolist()
        return curvatures


@dataclass(frozen=True)
class MeamSplineFile:
    """What a `meam/spline` file holds.

    Arguments:
        comment: the first line, without the leading `#`.
        elements: Z names as written in the file; empty for the old format, which has none (Z is 1 then).
        phi, g: one spline per pair of elements i <= j, Z (Z + 1) / 2 each.
        rho, embedding, f: one spline per element.
    """

    comment: str
    elements: tuple[str, ...]
    phi: tuple[KnotSpline, ...]
    rho: tuple[KnotSpline, ...]
    embedding: tuple[KnotSpline, ...]
    f: tuple[KnotSpline, ...]
    g: tuple[KnotSpline, ...]


class _Lines:
    """The lines of a file one after the other; blank lines and comments below the first line are passed over."""

    def __init__(self, text: str, where: str) -> None:
        first, _, rest = text.partition("\n")
        self.comment = first.lstrip("#").strip()
        stripped = ((n, line.split("#")[0].strip()) for n, line in enumerate(rest.split("\n"), start=2))
        self._lines = [(n, line) for n, line in stripped if line]
        self._next = 0
        self.where = where

    def error(self, what: str, back: int = 0) -> ModelFileError:
        """An error about the line read last, or `back` lines before it."""
        n, line = self._lines[self._next - 1 - back]
        shown = line if len(line) <= 40 else line[:40] + "…"
        return ModelFileError(f"{self.where}, line {n}: expected {what}, got {shown!r}; fetch or write the file again.")

    def peek(self) -> str:
        """The coming line, or nothing at the end."""
        return self._lines[self._next][1] if self._next < len(self._lines) else ""

    def words(self, what: str) -> list[str]:
        """The words of the next line, which should hold `what`."""
        if self._next == len(self._lines):
            last = self._lines[-1][0] if self._lines else 1
            raise ModelFileError(
                f"{self.where} is truncated: it ends after line {last}, where {what} should follow; "
                "fetch or write the file again."
            )
        self._next += 1
        return self._lines[self._next - 1][1].split()

    def numbers(self, count: int, what: str) -> list[float]:
        """The `count` finite numbers on the next line."""
        words = self.words(what)
        try:
            numbers = [float(word.replace("_", "no number")) for word in words]  # Python takes 1_0, LAMMPS does not
        except ValueError:
            raise self.error(what) from None
        if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
            raise self.error(what)
        return numbers

    def integer(self, word: str, least: int, what: str) -> int:
        """A word of the line read last as an integer of at least `least`."""
        if not (word.isascii() and word.isdecimal() and len(word) < 10) or int(word) < least:
            raise self.error(what)
        return int(word)

    def elements(self) -> tuple[str, ...]:
        """The names on the line `meam/spline N El1 ... ElN`; none where it is absent (old format)."""
        if not self.peek().startswith("meam/spline"):
            return ()
        what = "meam/spline, the number of elements, and one name for each"
        words = self.words(what)
        if len(words) < 2 or len(words) != 2 + self.integer(words[1], 1, what):
            raise self.error(what)
        if len(words) - 2 > len(atomic_numbers):
            raise self.error("at most as many elements as there are")
        return tuple(words[2:])

    def spline(self, name: str, named_elements: bool) -> KnotSpline:
        """One spline; `named_elements` tells the two formats apart."""
        if named_elements:
            what = f"the word spline3eq, which opens {name}"
            if self.words(what) != ["spline3eq"]:
                raise self.error(what)
        what = f"the number of knots of {name} (at least 2)"
        words = self.words(what)
        if len(words) != 1:
            raise self.error(what)
        n_knots = self.integer(words[0], 2, what)
        slopes = self.numbers(2, f"the two end slopes of {name}")
        if not named_elements:  # four flags of a fitting program, which LAMMPS passes over, too
            self.numbers(4, f"four flags of {name}")
        # The curvatures follow from values and end slopes; LAMMPS recomputes them likewise.
        rows = [self.numbers(3, f"knot {k + 1} of {n_knots} of {name} (x, value, curvature)") for k in range(n_knots)]
        self._check_uniform([x for x, _, _ in rows], name)
        return KnotSpline(rows[0][0], rows[-1][0], tuple(value for _, value, _ in rows), *slopes)

    def _check_uniform(self, knots: list[float], name: str) -> None:
        """Raise unless the knots, read from the last lines, are uniform and increasing, as LAMMPS wants them."""
        n_intervals = len(knots) - 1
        step = (knots[-1] - knots[0]) / n_intervals
        if step > 0.0 and max(abs(x - (knots[0] + k * step)) for k, x in enumerate(knots)) <= _KNOT_TOLERANCE:
            return
        steps = [after - before for before, after in pairwise(knots)]
        typical = statistics.median(steps)
        deviations = [abs(each - typical) for each in steps]
        # A misplaced knot spoils the step before it and the one after: name the first.
        bad = next((k for k, deviation in enumerate(deviations) if deviation >= 0.5 * max(deviations)), 0)
        what = f"uniform, increasing knots of {name} (most are {typical:.10g} apart, this one is {steps[bad]:.10g})"
        raise self.error(what, back=n_intervals - 1 - bad)


def parse_meam_spline(text: str, where: str = "file") -> MeamSplineFile:
    """The contents of a file in either format; `where` names it in errors.

    Raises `ModelFileError`, which names the line that is wrong and what was expected there.
    """
    lines = _Lines(text, where)
    units = dict(pairwise(lines.comment.split())).get("UNITS:", "metal")
    if units != "metal":
        raise ModelFileError(f"{where} is in LAMMPS units {units!r}; only 'metal' (eV, Å) can be read, convert it.")
    elements = lines.elements()
    names = elements or ("",)
    pairs = [f"{a}-{b}" for k, a in enumerate(names) for b in names[k:]] if len(names) > 1 else list(names)
    kinds = (("phi", pairs), ("rho", names), ("U", names), ("f", names), ("g", pairs))
    phi, rho, embedding, f, g = (
        tuple(lines.spline(f"{kind} {which}".strip(), bool(elements)) for which in whose) for kind, whose in kinds
    )
    if lines.peek():
        lines.words("the end")
        raise lines.error("the end of the file")
    return MeamSplineFile(lines.comment, elements, phi, rho, embedding, f, g)


def format_meam_spline(contents: MeamSplineFile) -> str:
    """The text of a file in the format with element names; numbers are written so that they are read back exactly."""
    rows = [f"# {contents.comment}", f"meam/spline {len(contents.elements)} {' '.join(contents.elements)}"]
    for spline in (*contents.phi, *contents.rho, *contents.embedding, *contents.f, *contents.g):
        rows += ["spline3eq", str(len(spline.values)), f"{spline.lower_slope:.17g} {spline.upper_slope:.17g}"]
        knots = [spline.lower + k * spline.grid.spacing for k in range(len(spline.values) - 1)] + [spline.upper]
        columns = zip(knots, spline.values, spline.curvatures(), strict=True)
        rows += [f"{x:.17g} {value:.17g} {curvature:.17g}" for x, value, curvature in columns]
    return "\n".join(rows) + "\n"


def _symbols(contents: MeamSplineFile, elements: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The chemical symbols of a file, from it or from the caller."""
    named = contents.elements
    if elements is None and not named:
        raise ModelFileError(f"{where} is in the old format, which names no element; pass elements=('Ti',) or so.")
    symbols = tuple(elements) if elements is not None else named
    if len(symbols) != len(contents.rho):
        raise ModelFileError(f"{where} holds {len(contents.rho)} element(s), but elements is {symbols}.")
    if any(name in atomic_numbers and name != symbol for name, symbol in zip(named, symbols, strict=False)):
        raise ModelFileError(f"{where} holds {', '.join(named)}; elements must be in this order, got {symbols}.")
    if not set(symbols) <= set(atomic_numbers) or len(set(symbols)) != len(symbols):
        raise ModelFileError(f"{where}: {symbols} are not distinct chemical symbols; pass elements=(...) with those.")
    return symbols


def read_meam_spline(path: str | Path, elements: tuple[str, ...] | None = None) -> SplineNNP:
    """Read a `meam/spline` file of LAMMPS as an s-MEAM model in float64.

    Energies are LAMMPS's: an isolated atom has none, so the reference energy of each element is -U(0).

    `elements`: chemical symbols in the order of the file. Needed for the old format, which names none, and for files
    whose names are not chemical symbols.

    Raises `ModelFileError` for a missing or malformed file (names the line), or elements that do not fit it.
    """
    where = str(path)
    text = read_text(path, _LARGEST_FILE, "give a LAMMPS meam/spline file")
    contents = parse_meam_spline(text, where)
    symbols = _symbols(contents, elements, where)
    kinds = ("pair", "radial", "embedding", "angular", "angle")
    functions = dict(zip(kinds, (contents.phi, contents.rho, contents.embedding, contents.f, contents.g), strict=True))
    grids = {kind: [(s.lower, s.upper, len(s.values) - 1) for s in splines] for kind, splines in functions.items()}
    try:
        form = SplineNNPConfig.model_validate({**s_meam(symbols).model_dump(), "ends": "free", "grids": grids})
        numbers = sum(math.prod(shape) for _, shape in form.tensors())
        if numbers > max(_MOST_NUMBERS, len(text)):
            raise InputError(f"it would become {numbers:,} coefficients: give all splines about as many knots.")
        model = SplineNNP(form)
    except ValidationError as error:
        raise ModelFileError(f"{where}: {first_fault(error)[2]}.") from None
    except InputError as error:
        raise ModelFileError(f"{where}: {error}") from None
    for splines, read in zip(_splines(model), functions.values(), strict=True):
        for group, spline in enumerate(read):
            values = torch.tensor([spline.values], dtype=torch.float64)
            splines.set_knots(values, group, spline.lower_slope, spline.upper_slope)
    with torch.no_grad():
        model.reference_energies = dict(zip(model.elements, (0.0 - model.readout.at_zero()).tolist(), strict=True))
    model.metadata = {"source": Path(path).name, "comment": contents.comment}
    check_numbers(model.state_dict(), where)
    return model.eval()


def _splines(model: SplineNNP) -> tuple[SplineSet, SplineSet, SplineSet, SplineSet, SplineSet]:
    """phi, rho, U, f, g of an s-MEAM."""
    assert model.phi is not None
    assert model.readout.embedding is not None
    return model.phi, model.rho, model.readout.embedding, model.f, model.g


def _check_is_smeam(config: SplineNNPConfig) -> None:
    """Raise an error that says why no `meam/spline` file can hold a model of this form."""
    wanted = {
        "radial.n_filters: 1": config.radial.n_filters == 1,
        "angular.n_filters: 1": config.angular.n_filters == 1,
        "angular.evaluator: spline": config.angular.evaluator == "spline",
        "filters: shared or element": config.filters != "pair" or config.n_elements == 1,
        "pair_term: true": config.pair_term,
        "network: null": config.network is None,
        "skip: false": not config.skip,
        "embedding.of: sum": config.embedding is not None and config.embedding.of == "sum",
        "repulsion: null": config.repulsion is None,
    }
    if missing := [what for what, holds in wanted.items() if not holds]:
        raise InputError(
            f"a meam/spline file holds exactly an s-MEAM, and this model is none: it would need {'; '.join(missing)}."
        )
    if config.n_elements > _MOST_ELEMENTS:
        raise InputError(
            f"LAMMPS evaluates meam/spline files of more than {_MOST_ELEMENTS} elements wrongly (it confuses pairs), "
            f"this model has {config.n_elements}; write a model of fewer elements."
        )


@torch.no_grad()
def write_meam_spline(model: Potential, path: str | Path) -> Path:
    """Write an s-MEAM model of one or two elements as a `meam/spline` file that LAMMPS reads, and return its path.

    LAMMPS gives the model's forces and stress; its energies are relative to isolated atoms, because a file has no place
    for E0 + U(0). In LAMMPS, atom types must be the elements in the order of the model.

    Raises `InputError` if the model is not an s-MEAM with exact spline angles (names what differs), `OSError` if the
    file cannot be written.
    """
    if not isinstance(model, SplineNNP):
        raise InputError(f"only an s-MEAM SplineNNP can be written as meam/spline, got {type(model).__name__}.")
    _check_is_smeam(model.config)

    def knots(splines: SplineSet, group: int) -> KnotSpline:
        group = min(group, len(splines.grids) - 1)  # a set that all groups share is repeated
        grid, slopes = splines.grids[group], (float(slope[0]) for slope in splines.end_slopes(group))
        return KnotSpline(grid.lower, grid.upper, tuple(splines.knot_values(group)[0].tolist()), *slopes)

    n_elements, n_pairs = model.config.n_elements, model.config.n_groups("pair")
    counts = (n_pairs, n_elements, n_elements, n_elements, n_pairs)
    functions = (tuple(knots(splines, k) for k in range(n)) for splines, n in zip(_splines(model), counts, strict=True))
    contents = MeamSplineFile("UNITS: metal s-MEAM written by snnp", model.elements, *functions)
    write_atomically(Path(path), format_meam_spline(contents).encode())
    return Path(path)
