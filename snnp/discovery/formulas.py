"""Formulas between numbers, by genetic programming (gplearn): which combination of parameters a variable follows.

A formula is found up to what it is passed through: with the metric "spearman" anything monotonic, with "pearson" a
factor and an offset. Sums, differences, products and quotients of the parameters and of numbers are looked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from snnp.errors import InputError, MissingDependencyError

__all__ = ["Formula", "FormulaSettings", "agreement", "find_formula"]

_SYMBOLS = {"add": "+", "sub": "-", "mul": "·", "div": "/"}
_LEAST_ROWS = 10


@dataclass(frozen=True)
class FormulaSettings:
    """How to search.

    Arguments:
        metric: what of the target counts, its order ("spearman") or its values up to scale ("pearson").
        population: formulas in a generation. generations: how often they breed. parsimony: what each of its parts costs
            a formula. rows: used at most. constants: largest number that formulas may hold; 0 for none.
    """

    metric: Literal["spearman", "pearson"] = "spearman"
    population: int = 1000
    generations: int = 15
    parsimony: float = 0.001
    rows: int = 400
    constants: float = 1.0


@dataclass(frozen=True)
class Formula:
    """What was found.

    Arguments:
        text: the formula. score: |correlation| with the target. length: parts. seed: of the search.
    """

    text: str
    score: float
    length: int
    seed: int
    program: Any = field(repr=False, compare=False)

    def values(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of the features that it was found with, in any number."""
        return np.asarray(self.program.execute(np.column_stack(list(features.values()))), dtype=float)


def find_formula(
    features: Mapping[str, np.ndarray], target: np.ndarray, seed: int = 0, settings: FormulaSettings | None = None
) -> Formula:
    """The formula of the features that follows the target best.

    Arguments:
        features: name -> values, shape (rows,). target: shape (rows,); rows with NaN are left out.

    Raises:
        InputError: for fewer than ten rows, or a target or features that are constant.
        MissingDependencyError: without gplearn.
    """
    try:
        from gplearn.genetic import SymbolicRegressor
    except ImportError:
        raise MissingDependencyError(
            "formulas are found with gplearn; install it with: pip install 'snnp[discovery]'."
        ) from None
    settings = settings or FormulaSettings()
    table = np.column_stack([target, *features.values()])
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) < _LEAST_ROWS:
        raise InputError(f"{len(table)} rows without NaN are too few for a formula; give {_LEAST_ROWS} at least.")
    for name, column in zip(("the target", *features), table.T, strict=True):
        if np.ptp(column) == 0.0:
            raise InputError(f"{name} is the same in all rows, so no formula follows it; leave it out.")
    rng = np.random.default_rng(seed)
    table = table[rng.permutation(len(table))[: settings.rows]]
    search = SymbolicRegressor(
        population_size=settings.population,
        generations=settings.generations,
        tournament_size=20,
        const_range=(-settings.constants, settings.constants) if settings.constants else None,
        init_depth=(2, 4),
        function_set=tuple(_SYMBOLS),
        metric=settings.metric,
        parsimony_coefficient=settings.parsimony,
        p_crossover=0.7,
        p_subtree_mutation=0.1,
        p_hoist_mutation=0.05,
        p_point_mutation=0.1,
        feature_names=list(features),
        random_state=seed,
    )
    search.fit(table[:, 1:], table[:, 0])
    best = search._program
    text = _written(iter(best.program), list(features))[0]
    return Formula(text, float(best.raw_fitness_), int(best.length_), seed, best)


def _written(parts: Iterator[Any], names: list[str]) -> tuple[str, bool]:
    """A program, which is in prefix order, as it is read; and whether it needs brackets in a product."""
    part = next(parts)
    if not hasattr(part, "arity"):
        return (names[part], False) if isinstance(part, int) else (f"{part:.3g}", part < 0.0)
    symbol = _SYMBOLS[part.name]
    (left, left_sum), (right, right_sum) = _written(parts, names), _written(parts, names)
    if symbol in "+-":
        return f"{left} {symbol} {f'({right})' if right_sum and symbol == '-' else right}", True
    left = f"({left})" if left_sum else left
    quotient = symbol == "/" and any(each in right for each in "·/ ")
    return f"{left} {symbol} {f'({right})' if right_sum or quotient else right}", False


def agreement(formula: Formula, features: Mapping[str, np.ndarray], expected: np.ndarray) -> float:
    """|Pearson correlation| of a formula with what was expected: 1 where they differ by a factor and an offset only."""
    values = formula.values(features)
    known = np.isfinite(values) & np.isfinite(expected)
    if known.sum() < 2 or np.ptp(values[known]) == 0.0:
        return 0.0
    return float(abs(np.corrcoef(values[known], expected[known])[0, 1]))
