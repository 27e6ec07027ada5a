"""Bundled models that are several in one: what their recipe makes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import mean
import pytest
import torch
import yaml
from trained import Order

from snnp.errors import ConfigError
from snnp.models import Ensemble, load_model


def _order(folder: Path, **asked: object) -> Order:
    recipe = {"mean": asked, "metadata": {"description": "two as one"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return Order("two", folder, folder / "run", partial(print, "two"))


def test_a_mean_is_that_of_its_members_and_is_judged_within_its_limits(tmp_path: Path) -> None:
    asked = {"members": ["model_zoo/snnp-organic"] * 2, "test": "datasets/organic-ani2x/ani-2x.parquet:test"}
    model = mean.make(_order(tmp_path, **asked, max_force=2.0))
    one = load_model("snnp-organic")
    assert isinstance(model, Ensemble)
    assert all(model.reference_energies[s] == pytest.approx(e) for s, e in one.reference_energies.items())
    weights = [member.state_dict() for member in (*model.members, one)]
    assert all(torch.equal(weights[0][key], each[key]) for each in weights for key in weights[0])
    few = model.metadata["metrics"]["n_structures"]
    assert 0 < few < mean.make(_order(tmp_path, **asked, max_force=20.0)).metadata["metrics"]["n_structures"]


def test_other_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mean must have the keys max_force, members, test; got \{'members': \[\]\}"):
        mean.make(_order(tmp_path, members=[]))
