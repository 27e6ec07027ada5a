"""Named special cases of the s-NNP: the classical potentials it contains, each one a configuration of the same class.

From few parameters to many: `eam`, `s_meam`, `linear`, `s_nnp`; `constrained` is an s-NNP whose network keeps to an
expected physical behaviour. Any other key of the result can be changed with `config.model_copy(update={...})`.

All take chemical symbols. `lower` and `cutoff` are ends of all functions of distance in Å, `intervals` theirs each,
`n_radial` and `n_angular` numbers of filters, `hidden` the layer sizes of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from snnp.models.spline.config import AngularConfig, EmbeddingConfig, NetworkConfig, RadialConfig, SplineNNPConfig

__all__ = ["constrained", "eam", "linear", "s_meam", "s_nnp"]


def _embedded_sum(elements: Sequence[str], radial: RadialConfig, angular: AngularConfig) -> SplineNNPConfig:
    parts: dict[str, Any] = {"radial": radial, "angular": angular, "embedding": EmbeddingConfig(of="sum")}
    return SplineNNPConfig(elements=tuple(elements), pair_term=True, network=None, skip=False, **parts)


def eam(elements: Sequence[str], *, lower: float = 1.5, cutoff: float = 6.0, intervals: int = 14) -> SplineNNPConfig:
    """The embedded-atom method: `E_i = U(sum_j rho(r_ij)) + 1/2 sum_j phi(r_ij)`.

    M. S. Daw, M. I. Baskes, Phys. Rev. B 29, 6443 (1984).
    """
    radial = RadialConfig(n_filters=1, lower=lower, cutoff=cutoff, intervals=intervals)
    return _embedded_sum(elements, radial, AngularConfig(n_filters=0))


def s_meam(elements: Sequence[str], *, lower: float = 1.5, cutoff: float = 5.0, intervals: int = 12) -> SplineNNPConfig:
    """The spline-based modified embedded-atom method: one radial and one three-body filter, embedded together.

        E_i = U(sum_j rho(r_ij) + sum_{j<k} f(r_ij) f(r_ik) g(cos theta)) + 1/2 sum_j phi(r_ij)

    with g exactly a spline per pair of neighbour elements, as in LAMMPS's `meam/spline`. T. J. Lenosky et al.,
    Modelling Simul. Mater. Sci. Eng. 8, 825 (2000).
    """
    radial = RadialConfig(n_filters=1, lower=lower, cutoff=cutoff, intervals=intervals)
    angular = AngularConfig(**radial.model_dump(), evaluator="spline", elements="pair")
    return _embedded_sum(elements, radial, angular)


def linear(
    elements: Sequence[str],
    *,
    n_radial: int = 16,
    n_angular: int = 16,
    cutoff: float = 5.0,
    evaluator: Literal["spline", "legendre"] = "legendre",
) -> SplineNNPConfig:
    """A linear model in the manner of UF3: `E_i = w . [G2, G3]`.

    S. R. Xie, M. Rupp, R. G. Hennig, npj Comput. Mater. 9, 162 (2023).
    """
    return SplineNNPConfig(
        elements=tuple(elements),
        radial=RadialConfig(n_filters=n_radial, cutoff=cutoff),
        angular=AngularConfig(n_filters=n_angular, cutoff=cutoff, evaluator=evaluator),
        network=None,
    )


def s_nnp(
    elements: Sequence[str],
    *,
    n_radial: int = 16,
    n_angular: int = 16,
    cutoff: float = 5.0,
    evaluator: Literal["spline", "legendre"] = "legendre",
    hidden: tuple[int, ...] = (64, 64),
    skip: bool = True,
) -> SplineNNPConfig:
    """The spline-based neural network potential: `E_i = NN([G2, G3])`, with `skip` also `+ w . [G2, G3]`.

    J. A. Vita, D. R. Trinkle, Comput. Mater. Sci. (2023), doi 10.1016/j.commatsci.2023.112655.
    """
    form = linear(elements, n_radial=n_radial, n_angular=n_angular, cutoff=cutoff, evaluator=evaluator)
    return form.model_copy(update={"network": NetworkConfig(hidden=hidden), "skip": skip})


def constrained(
    elements: Sequence[str],
    constraint: Literal["monotone", "convex", "monotone-convex"],
    *,
    n_radial: int = 16,
    n_angular: int = 16,
    cutoff: float = 5.0,
    hidden: tuple[int, ...] = (64, 64),
) -> SplineNNPConfig:
    """An s-NNP without skip whose energy never falls with any feature, is convex in the features, or both."""
    form = s_nnp(elements, n_radial=n_radial, n_angular=n_angular, cutoff=cutoff, skip=False)
    network = NetworkConfig(hidden=hidden, activation="softplus", constraint=constraint)
    return form.model_copy(update={"network": network})
