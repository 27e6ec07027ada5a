"""Which filters each element uses, and how alike elements are by that."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.stats import spearmanr

from snnp.explain.anatomy import Anatomy
from snnp.explain.pruning import filter_name

__all__ = ["Elements"]

Array = NDArray[np.float64]
_NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
_BEFORE_GROUP_3 = 2  # columns of the table before the transition metals


@dataclass(frozen=True)
class Elements:
    """The elements of a model with several, those that occur.

    Arguments:
        symbols: Z of them. filters: D names. share: [Z, D] of each filter in the contributions of an element.
        similarity: [Z, Z] cosines of the shares. plane: [Z, 2] a map of it; held: which part of it lies in the plane.
        filter_order: [D] filters, those of the same elements together.
        follows_table: Spearman's correlation of similarity with nearness in the periodic table (columns apart), and how
            many pairs of elements there are; None below six pairs.
    """

    symbols: tuple[str, ...]
    filters: tuple[str, ...]
    share: Array
    similarity: Array
    plane: Array
    held: float
    filter_order: list[int]
    follows_table: tuple[float, int] | None

    @classmethod
    def of(cls, anatomy: Anatomy) -> Elements | None:
        """None for one element, and where filters belong to centres and have nothing to do with each other."""
        model = anatomy.model
        rows = [k for k, n in enumerate(anatomy.typical.count.tolist()) if n > 0]
        if len(rows) < 2 or model.config.filters == "pair":
            return None
        usage = anatomy.usage[rows]
        share = usage / usage.sum(axis=1, keepdims=True).clip(min=1e-30)
        unit = share / np.linalg.norm(share, axis=1, keepdims=True).clip(min=1e-30)
        similarity = unit @ unit.T
        plane, held = _plane(similarity)
        symbols = tuple(model.elements[k] for k in rows)
        order = sorted(range(share.shape[1]), key=lambda k: (int(share[:, k].argmax()), -float(share[:, k].max())))
        names = tuple(filter_name(model, k) for k in range(share.shape[1]))
        return cls(symbols, names, share, similarity, plane, held, order, _table(symbols, similarity))

    def nearest(self) -> dict[str, tuple[str, float]]:
        """Of each element the one that is most like it, and the similarity."""
        apart = self.similarity - 2.0 * np.eye(len(self.symbols))
        best = apart.argmax(axis=1)
        rows = zip(self.symbols, best, self.similarity, strict=True)
        return {symbol: (self.symbols[k], float(alike[k])) for symbol, k, alike in rows}

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "elements": list(self.symbols),
            "filters": list(self.filters),
            "share": self.share.round(6).tolist(),
            "similarity": self.similarity.round(6).tolist(),
            "map": self.plane.round(6).tolist(),
            "follows_periodic_table": None if self.follows_table is None else self.follows_table[0],
        }


def _plane(similarity: Array) -> tuple[Array, float]:
    """Classical scaling of the distances sqrt(2 - 2 s) to two dimensions."""
    n = len(similarity)
    centre = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(centre @ similarity @ centre)
    values = values.clip(min=0.0)[::-1]
    vectors = vectors[:, ::-1]
    plane = np.zeros((n, 2))
    plane[:, : min(2, n)] = vectors[:, :2] * np.sqrt(values[:2])
    # The sign of an axis is free: the first element lies to the left and below.
    plane *= np.where(plane[0] > 0, -1.0, 1.0)
    return plane, float(values[:2].sum() / max(values.sum(), 1e-30))


def _column(symbol: str) -> int:
    """Group of the periodic table, 1 to 18; lanthanides and actinides count as 3."""
    z = atomic_numbers[symbol]
    before = max(noble for noble in _NOBLE if noble < z)
    step, left = z - before, min(noble for noble in _NOBLE if noble >= z) - z
    if step <= _BEFORE_GROUP_3 and z != 2:
        return step
    return max(3, 18 - left)


def _table(symbols: tuple[str, ...], similarity: Array) -> tuple[float, int] | None:
    pairs = list(combinations(range(len(symbols)), 2))
    if len(pairs) < 6:
        return None
    apart = [abs(_column(symbols[i]) - _column(symbols[j])) for i, j in pairs]
    if len(set(apart)) < 2:
        return None
    return float(spearmanr([-each for each in apart], [similarity[i, j] for i, j in pairs]).statistic), len(pairs)
