"""Families of curves whose variables are known: they are found, their formulas too, and bad input is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.discovery.autoencoder import VAESettings, train_autoencoder
from snnp.discovery.curve_family import CurveFamily, discover_curves, read_family
from snnp.discovery.formulas import FormulaSettings, agreement, find_formula
from snnp.errors import DataError, InputError, MissingDependencyError

QUICK = VAESettings(latents=4, beta=2e-2, epochs=100, batch=16, rate=5e-3)


def peaks(n: int = 300) -> CurveFamily:
    """Gaussians of which place and height differ; a third parameter changes nothing."""
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 1.0, 60)
    place, height, idle = rng.uniform(0.3, 0.7, n), rng.uniform(0.5, 1.5, n), rng.uniform(size=n)
    curves = height[:, None] * np.exp(-(((x - place[:, None]) / 0.15) ** 2))
    return CurveFamily(x, curves, {"place": place, "height": height, "idle": idle}, "peaks")


def test_two_variables_are_found_where_two_differ() -> None:
    found = discover_curves(peaks(), QUICK)
    assert len(found.active) == 2
    assert found.kept > 0.9
    assert len(found.held_out) == 30
    told = [max(abs(found.correlations[k][name]) for k in found.active) for name in ("place", "height", "idle")]
    assert told[0] > 0.8
    assert told[1] > 0.5
    assert told[2] < 0.25
    values, curves = found.traverse(found.active[0], 5)
    assert values.shape == (5,)
    assert curves.shape == (5, 60)
    assert np.isfinite(curves).all()


def test_the_same_seed_makes_the_same_network() -> None:
    family, settings = peaks(64), VAESettings(latents=2, epochs=3)
    first, again = (train_autoencoder(family.curves, settings).encode(family.curves).mean for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_negative_curves_come_back() -> None:
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(100, 1)) * np.sin(np.linspace(0.0, 3.0, 40)) - 2.0
    found = discover_curves(CurveFamily(np.arange(40.0), curves), QUICK)
    assert found.kept > 0.9
    assert found.leading(found.active[0]) is None


def test_formula_of_the_kondo_exponent_is_found() -> None:
    pytest.importorskip("gplearn")
    rng = np.random.default_rng(1)
    ratio, place = rng.uniform(5.0, 20.0, 300), rng.uniform(-0.9, -0.1, 300)
    features = {"U/Γ": ratio, "ε/U": place, "ε/Γ": ratio * place}
    expected = ratio * place * (1.0 + place)
    found = find_formula(features, np.exp(expected), 0, FormulaSettings(population=300, generations=12))
    assert agreement(found, features, expected) > 0.999
    assert found.score > 0.999


def test_formulas_refuse_what_no_formula_follows() -> None:
    pytest.importorskip("gplearn")
    with pytest.raises(InputError, match="3 rows without NaN are too few"):
        find_formula({"a": np.arange(4.0)}, np.array([1.0, 2.0, 3.0, np.nan]))
    with pytest.raises(InputError, match="b is the same in all rows"):
        find_formula({"a": np.arange(20.0), "b": np.ones(20)}, np.arange(20.0))


def test_formulas_say_which_extra_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gplearn.genetic", None)
    with pytest.raises(MissingDependencyError, match=r"snnp\[discovery\]"):
        find_formula({"a": np.arange(20.0)}, np.arange(20.0))


def test_fewer_curves_than_variables_are_refused() -> None:
    with pytest.raises(InputError, match="8 curves to learn from are fewer than 10"):
        discover_curves(peaks(8))


def test_equal_curves_are_refused() -> None:
    with pytest.raises(InputError, match="all curves are the same"):
        discover_curves(CurveFamily(np.arange(5.0), np.ones((20, 5))))


def test_gaps_in_curves_are_named() -> None:
    curves = np.ones((3, 5))
    curves[1, 2] = np.nan
    with pytest.raises(DataError, match=r"curve 2 is nan at x = 2 \(1 of 3 curves"):
        CurveFamily(np.arange(5.0), curves)


@pytest.mark.parametrize(
    "text, said",
    [
        ("T,0,1,2,3\n1,1,2,3,4\n2,1,2,3\n", "row 3 has 4 values, the first row names 5"),
        ("T,0,1,2,3\n1,1,x,3,4\n", "row 2 has 'x' at x = 1; a number is expected"),
        ("T,0,1,2,3\n1,1,nan,3,4\n", "curve 1 is nan at x = 1"),
        ("T,p\n1,2\n", "no column is named by a number"),
        ("T,0,1,2,3\n", "holds no curves"),
        ("T,0,1\n1,2,3\n", "2 points are no curve"),
    ],
)
def test_tables_that_hold_no_curves_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_family(tmp_path / "a.csv")


def test_arrays_that_hold_no_curves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, curves=np.array([np.ones(3), np.ones(4)], dtype=object))
    with pytest.raises(DataError, match="as curves of different length do"):
        read_family(path)
    np.savez(path, spectra=np.ones((3, 4)))
    with pytest.raises(DataError, match=r"has no array 'curves' \(it has: spectra\)"):
        read_family(path)
    np.savez(path, curves=np.ones((3, 4)), x=np.arange(5.0))
    with pytest.raises(DataError, match="one row for each curve is expected"):
        read_family(path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_family(path)
    with pytest.raises(DataError, match=r"read from \.csv and \.npz"):
        read_family(Path(__file__))


def test_conditions_and_scales() -> None:
    family = peaks(50)
    assert (family.where(["place=0.4:0.5"]).parameters["place"] <= 0.5).all()
    np.testing.assert_allclose(family.scaled("max").curves.max(axis=1), 1.0)
    with pytest.raises(InputError, match="no parameter 'plac'"):
        family.where(["plac=1"])
    with pytest.raises(InputError, match="is no condition"):
        family.where(["place=a"])
    with pytest.raises(InputError, match="no curve is left"):
        family.where(["place=7"])
    with pytest.raises(InputError, match="cannot be scaled"):
        CurveFamily(family.x, family.curves - 9.0).scaled("max")


def test_command_writes_a_report(tmp_path: Path) -> None:
    family = peaks(80)
    names = ["place", "height", "idle", "material"]
    lines = [",".join([*names, *(f"{x:.4f}" for x in family.x)])]
    for row, curve in enumerate(family.curves):
        known = [f"{family.parameters[name][row]:.6f}" for name in names[:-1]]
        lines.append(",".join([*known, "Si", *(f"{y:.6f}" for y in curve)]))
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "found"
    words = ["discover", "curves", str(tmp_path / "a.csv"), "--parameters", "place", "height", "--epochs", "20"]
    shown = CliRunner().invoke(app, [*words, "--latents", "3", "--out", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["verdict"].split()[1:3] == ["of", "3"]
    assert {path.name for path in out.iterdir()} >= {"report.html", "report.json", "latents.csv", "examples.png"}
    assert (out / "latents.csv").read_text(encoding="utf-8").splitlines()[0].endswith("place,height")
    again = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert again.exit_code != 0
    assert "exists already" in str(again.exception.__context__) + str(again.output)
