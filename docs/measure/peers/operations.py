"""How many floating-point operations the formulas of an s-NNP ask for as they stand, counted from its form.

An addition, a multiplication, a division, a root and an exponential are one operation each. Counted are energy and
forces, every filter at every pair. What a program does besides (loading, shuffling, filling up vectors) is its own
affair, and so is what it saves (the kernel sums over filters before it goes back to the pairs), so that the fraction of
the peak that it reaches compares programs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from snnp.models.spline.config import SplineNNPConfig

__all__ = ["Work", "count_work"]

_GEOMETRY = 12  # of a pair: r², root, inverse, unit vector, segment of the grid
_CUBIC = 10  # value and slope of a cubic by Horner's rule: five multiplications, five additions
_FORCE = 9  # a pair's gradient: from slope to vector, added to one atom and taken from the other
_HARMONIC = 6  # a solid harmonic by recursion
_ANGLE = 5  # cosine between two unit vectors


@dataclass(frozen=True)
class Work:
    """Floating-point operations per atom, and the bytes per atom that must cross between memory and caches."""

    flops: float
    bytes: float


def count_work(config: SplineNNPConfig, n_radial: float, n_angular: float) -> Work:
    """Count the work of energy and forces of one atom.

    Bytes: of each neighbour its number and periodic image (4 each), of each atom its position (read), energy and force
    (written) in float64. Positions of neighbours count as cached.

    Arguments:
        config: the form.
        n_radial, n_angular: neighbours within the radial and the angular cutoff.
    """
    pairs = n_radial * (_GEOMETRY + _FORCE + config.radial.n_filters * (_CUBIC + 3))
    if config.pair_term:
        pairs += n_radial * (_CUBIC + 2)
    if config.angular.n_filters:
        direct = config.angular.evaluator == "spline"
        pairs += _over_triples(config, n_angular) if direct else _over_moments(config, n_angular)
    return Work(pairs + _readout(config), 8.0 * n_radial + 8.0 * (3 + 1 + 3))


def _over_moments(config: SplineNNPConfig, n_neighbours: float) -> float:
    filters, harmonics = config.angular.n_filters, (config.angular.degree + 1) ** 2
    # Moments forward; then dE/df_b and dE/dY_m from dE/dA_bm: three products of filters and harmonics per neighbour.
    products = 3 * 2 * filters * harmonics
    functions = filters * (_CUBIC + 2 + 4) + harmonics * (_HARMONIC + 6)  # f with overlaps and slopes; Y with gradient
    per_atom = filters * harmonics * (3 + 2)  # squares weighted by degree, and their derivative
    return n_neighbours * (products + functions + _FORCE) + per_atom


def _over_triples(config: SplineNNPConfig, n_neighbours: float) -> float:
    filters, triples = config.angular.n_filters, n_neighbours * (n_neighbours - 1.0) / 2.0
    per_triple = _ANGLE + filters * (_CUBIC + 3 + 6) + 2 * _FORCE  # f f g summed; to slopes of both f and of g
    return triples * per_triple + n_neighbours * (filters * (_CUBIC + 2) + _FORCE)


def _readout(config: SplineNNPConfig) -> float:
    """Forward and backward through network, skip and embedding."""
    flops = 4.0 * config.n_features  # shift and scale
    if config.network is not None:
        sizes = [config.n_features, *config.network.hidden, 1]
        flops += sum(4.0 * n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
        flops += 6.0 * sum(config.network.hidden)  # activations and their slopes
    if config.skip:
        flops += 2.0 * config.n_features
    if config.embedding is not None:
        flops += _CUBIC * (config.n_features if config.embedding.of == "features" else 1)
    return flops
