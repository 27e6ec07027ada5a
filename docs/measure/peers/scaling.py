"""How cost grows: with atoms, filters, degree and threads, for the reference model."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers.processes import Case
from peers.reference import REFERENCE_SYSTEM, ReferenceForm, reference_model

from snnp.errors import InputError, near_matches

__all__ = ["AXES", "ScalingPoint", "scaling_points", "series"]

AXES = ("atoms", "filters", "degree", "threads")
_SIZES = (32, 108, 500, 1372, 4000, 32_000, 256_000, 1_000_188)  # of fcc crystals, 4 n³
_FILTERS = (4, 8, 16, 32, 64)
_DEGREES = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class ScalingPoint:
    """One point of a curve: the axis, where on it, and the case that measures it."""

    axis: str
    value: int
    case: Case


def scaling_points(
    axes: Sequence[str], folder: Path, n_atoms: int, threads: int, *, dtype: str | None, device: str | None
) -> list[ScalingPoint]:
    """The points of the curves; each differs from the reference (`n_atoms`, 8+16 filters, degree 4) in one thing.

    Arguments:
        axes: of `AXES`. folder: for the models. n_atoms: also the largest size on the axis `atoms`.

    Raises:
        InputError: for an unknown axis.
    """
    for axis in axes:
        if axis not in AXES:
            raise InputError(f"no scaling with '{axis}'.{near_matches(axis, AXES)} Known: {', '.join(AXES)}.")
    points, models = [], dict[ReferenceForm, Path]()

    def add(axis: str, value: int, form: ReferenceForm, size: int, n_threads: int) -> None:
        if form not in models:
            models[form] = reference_model(form, folder / f"{len(models)}")
        options = {"model": str(models[form]), "dtype": dtype, "device": device}
        case = Case("own", f"{axis} {value}", REFERENCE_SYSTEM, size, sys.executable, options, n_threads)
        points.append(ScalingPoint(axis, value, case))

    reference = ReferenceForm()
    if "atoms" in axes:
        for size in [size for size in _SIZES if size < n_atoms] + [n_atoms]:
            add("atoms", size, reference, size, threads)
    if "filters" in axes:
        for count in _FILTERS:
            add("filters", count, replace(reference, n_angular=count), n_atoms, threads)
    if "degree" in axes:
        for degree in _DEGREES:
            add("degree", degree, replace(reference, degree=degree), n_atoms, threads)
    if "threads" in axes:
        for count in range(1, (os.cpu_count() or 1) + 1):
            add("threads", count, reference, n_atoms, count)
    return points


def series(points: Sequence[ScalingPoint], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The curves: per axis the values with the rows of a document that belong to them, as far as they were measured.

    The value on the axis `atoms` is the number of atoms as built.
    """
    by_name = {row["case"]: row for row in rows}
    curves: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        row = by_name.get(point.case.name)
        if row is not None:
            value = row["n_atoms"] if point.axis == "atoms" else point.value
            curves.setdefault(point.axis, []).append({"value": value, **row})
    return curves
