"""Every family and every special case of the s-NNP keeps the contract of a potential."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snnp.models import SplineNNP, SplineNNPConfig
from snnp.models.spline import special_cases
from snnp.testing import check_potential

ONE, TWO, THREE = ("Si",), ("Ni", "Al"), ("O", "H", "C")
SMALL: dict[str, Any] = {"n_radial": 3, "n_angular": 3, "cutoff": 4.0}


def _several(filters: str, elements: str, evaluator: str, **changes: Any) -> SplineNNPConfig:
    """An s-NNP of three elements with everything small; three-body filters reach less far than radial ones."""
    keys: dict[str, Any] = {
        "elements": THREE,
        "filters": filters,
        "radial": {"n_filters": 2, "lower": 0.8, "cutoff": 4.0, "intervals": 8},
        "angular": {
            "n_filters": 2,
            "lower": 0.8,
            "cutoff": 3.5,
            "intervals": 7,
            "elements": elements,
            "evaluator": evaluator,
            "degree": 3,
        },
        "network": {"hidden": [6]},
    }
    return SplineNNPConfig.model_validate({**keys, **changes})


def _read_from_file() -> SplineNNPConfig:
    """The form of a `meam/spline` file: free ends, and grids that differ between groups."""
    config = special_cases.s_meam(TWO)
    grids = {
        "pair": ((1.6, 4.4, 9), (1.5, 4.0, 7), (1.4, 4.2, 8)),
        "radial": ((1.6, 4.4, 9), (1.5, 4.0, 7)),
        "angular": ((1.6, 3.5, 5), (1.5, 4.0, 6)),
        "angle": ((-1.0, 0.9, 6), (-1.0, 1.0, 7), (-0.9, 1.0, 5)),
        "embedding": ((-3.0, 2.0, 5), (-2.0, 5.0, 7)),
    }
    return SplineNNPConfig.model_validate({**config.model_dump(), "ends": "free", "grids": grids})


REPULSION = {"inner": 1.1, "outer": 1.9}

CASES: dict[str, SplineNNPConfig] = {
    "eam": special_cases.eam(TWO, cutoff=4.5),
    "s-meam": special_cases.s_meam(TWO, cutoff=4.0),
    "linear": special_cases.linear(ONE, **SMALL),
    "linear, spline angles": special_cases.linear(ONE, **SMALL, evaluator="spline"),
    "s-nnp with skip": special_cases.s_nnp(TWO, **SMALL, hidden=(6, 5)),
    "s-nnp without skip": special_cases.s_nnp(ONE, **SMALL, hidden=(6, 5), skip=False),
    "s-nnp, spline angles": special_cases.s_nnp(TWO, **SMALL, hidden=(6, 5), evaluator="spline"),
    "monotone": special_cases.constrained(ONE, "monotone", **SMALL, hidden=(5, 4)),
    "convex": special_cases.constrained(ONE, "convex", **SMALL, hidden=(5, 4)),
    "monotone-convex": special_cases.constrained(TWO, "monotone-convex", **SMALL, hidden=(5, 4)),
    "shared, shared, legendre": _several("shared", "shared", "legendre", repulsion=REPULSION),
    "shared, pair, legendre": _several("shared", "pair", "legendre", pair_term=True),
    "element, pair, legendre": _several("element", "pair", "legendre", embedding={"of": "features"}),
    "pair, shared, legendre": _several("pair", "shared", "legendre", pair_term=True, repulsion=REPULSION),
    "pair, pair, legendre": _several("pair", "pair", "legendre", network={"hidden": [5], "activation": "tanh"}),
    "shared, pair, spline": _several("shared", "pair", "spline", embedding={"of": "sum"}, network=None),
    "element, shared, spline": _several("element", "shared", "spline", pair_term=True, repulsion=REPULSION),
    "pair, pair, spline": _several("pair", "pair", "spline", network={"hidden": [5], "elements": "shared"}),
}


def _model(config: SplineNNPConfig) -> SplineNNP:
    """A model none of whose parameters is zero, so that no term hides."""
    model = SplineNNP(config, {symbol: -1.5 * k for k, symbol in enumerate(config.elements)}, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.readout.mean.normal_(generator=generator)
        model.readout.std.uniform_(0.7, 1.5, generator=generator)
    model.metadata = {"data": "none", "numbers": [1, 2.5, None]}
    model.isolated_atoms = config.elements[-1:]
    return model


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    check_potential(_model(CASES[name]))


def test_contract_in_float32() -> None:
    """Checks of derivatives run on a float64 copy; storage and types on the model itself."""
    check_potential(_model(CASES["s-nnp with skip"]).float())


def test_contract_of_potentials_read_from_files() -> None:
    """Free ends need not vanish at the cutoff; all else holds."""
    check_potential(_model(_read_from_file()), skip=["smoothness"])
