"""The impurity model against what is known of it: no repulsion, sum rules, symmetries, and the Kondo width."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snnp.discovery import wilson
from snnp.discovery.anderson import (
    Impurity,
    Settings,
    frequencies,
    half_width,
    kondo_temperature,
    spectrum,
    wilson_chain,
)
from snnp.errors import InputError, MissingDependencyError

QUICK = Settings(kept=120, shifts=1, broadening=0.6, least=1e-6)
RECIPE = Path(__file__).resolve().parents[1] / "datasets/anderson-spectra/recipe.py"


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_hoppings_fall_by_the_root_of_the_ratio_for_as_long_as_the_chain_is(shift: float) -> None:
    hoppings = wilson_chain(3.0, 60, shift)
    np.testing.assert_allclose(hoppings[20:-1] / hoppings[21:], np.sqrt(3.0), rtol=1e-8)


def test_without_repulsion_the_peaks_make_a_lorentzian() -> None:
    impurity = Impurity(0.0, 0.01, 0.004)
    omega = frequencies(201, 1e-5, 0.1)
    found = spectrum(impurity, omega, Settings(self_energy=False, shifts=2, broadening=0.5))
    expected = 0.01 / np.pi / ((omega - 0.004) ** 2 + 0.01**2)
    np.testing.assert_allclose(found.values[0, omega != 0.0], expected[omega != 0.0], rtol=0.2)
    cumulated = np.cumsum(0.5 * (found.values[0, 1:] + found.values[0, :-1]) * np.diff(omega))
    np.testing.assert_allclose(cumulated, np.diff(np.arctan((omega - 0.004) / 0.01) / np.pi).cumsum(), atol=0.03)
    assert found.occupation[0] == pytest.approx(0.3781, abs=0.002)  # the integral up to 0 of the band's exact curve
    exact = spectrum(impurity, omega[np.abs(omega) < 1e-3], QUICK).values[0]
    np.testing.assert_allclose(exact, expected[np.abs(omega) < 1e-3], rtol=0.01)  # the band has an edge


@pytest.mark.parametrize("level", [-0.05, -0.025, 0.0, -0.11])
def test_height_at_zero_is_what_friedel_says(level: float) -> None:
    found = spectrum(Impurity(0.1, 0.01, level), np.array([0.0]), Settings(shifts=1))
    height = np.pi * 0.01 * found.values[0, 0]
    assert height == pytest.approx(np.sin(np.pi * found.occupation[0]) ** 2, abs=0.015)
    assert found.weight == pytest.approx((1.0, 1.0), abs=1e-12)


def test_spins_mirror_each_other_in_a_field_and_lose_no_weight_with_temperature() -> None:
    found = spectrum(Impurity(0.1, 0.01, -0.05, field=0.003, temperature=1e-3), None, QUICK)
    np.testing.assert_allclose(found.values[0], found.values[1][::-1], rtol=1e-6, atol=1e-9 * found.values.max())
    assert found.weight == pytest.approx((1.0, 1.0), abs=1e-12)
    assert sum(found.occupation) == pytest.approx(1.0, abs=1e-9)
    assert found.occupation[0] > 0.55


@pytest.mark.parametrize("level", [-0.05, -0.09, 0.02])
def test_exchange_of_spins_tells_what_all_blocks_do(level: float) -> None:
    found = spectrum(Impurity(0.1, 0.01, level), None, QUICK)
    whole = spectrum(Impurity(0.1, 0.01, level, field=1e-15), None, QUICK)  # a field has both spins' blocks computed
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-9, atol=1e-9)
    assert found.occupation == pytest.approx(whole.occupation, abs=1e-10)
    assert found.weight == pytest.approx((1.0, 1.0), abs=1e-12)


def test_kondo_width_follows_the_exponential_over_two_decades() -> None:
    u, ratios = 0.1, np.array([8.0, 12.0, 16.0, 20.0])
    widths = []
    for ratio in ratios:
        found = spectrum(
            Impurity(u, u / ratio, -0.5 * u), None, Settings(kept=120, shifts=1, broadening=0.6, least=3e-7)
        )
        widths.append(half_width(found.omega, found.values[0]))
    assert widths[0] / widths[-1] > 10**1.5
    slope = np.polyfit(-0.25 * ratios, np.log(widths / np.sqrt(0.5 * u * u / ratios)), 1)[0]
    assert slope == pytest.approx(np.pi / 2, rel=0.06)
    assert kondo_temperature(u, u / 8.0, -0.5 * u) == pytest.approx(u / 4.0 * np.exp(-np.pi))


def test_width_of_a_peak() -> None:
    omega = frequencies(401, 1e-5, 1.0)
    assert half_width(omega, 1.0 / ((omega - 1e-3) ** 2 + 4e-6)) == pytest.approx(2e-3, rel=0.01)
    assert np.isnan(half_width(omega, 2.0 + np.exp(-(omega**2))))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"gamma": -0.01}, "gamma of the impurity is -0.01; it must be 1e-06 or more"),
        ({"u": float("nan")}, "u of the impurity is nan; it must be 0 or more"),
        ({"temperature": 0.0}, "temperature of the impurity is 0; it must be 1e-11 or more"),
    ],
)
def test_impurities_without_meaning_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("-", r"\-")):
        Impurity(**{"u": 0.1, "gamma": 0.01, "level": -0.05, **given})


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(InputError, match="scale must lie between"):
        Settings(scale=1.0)
    with pytest.raises(InputError, match="must be odd"):
        frequencies(10)


def test_chain_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpmath", None)
    wilson._hoppings.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"snnp\[discovery\]"):
        wilson_chain(3.0, 5, 1.0)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("recipe_of_spectra", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SETTINGS", QUICK)
    return module


def test_recipe_goes_on_where_it_was(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", str(tmp_path), "--spectra", "4", "--workers", "1"])
    recipe.main()
    found = np.load(tmp_path / "spectra.npz")
    assert found["curves"].shape == (4, 333)
    assert found["ground"].tolist() == [False, True, True, True]
    monkeypatch.setattr(recipe, "spectrum", None)  # nothing is computed twice
    recipe.main()
    assert "4 spectra A(ω)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--moments"])  # of what is there
    recipe.main()
    u, gamma, level = np.load(tmp_path / "spectra.npz")["parameters"].T[:3]
    assert 0 < len(u) < 4
    assert ((level < -gamma) & (level + u > gamma)).all()
    assert "Left out" in (tmp_path / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["recipe.py", str(tmp_path / "new"), "--spectra", "1", "--workers", "1", "--moments"]
    )
    with pytest.raises(SystemExit, match="none of the first 1 spectra"):
        recipe.main()


def test_recipe_makes_the_rest_of_a_piece_of_moments(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["recipe.py", str(tmp_path), "--spectra", "4", "--workers", "1"]
    made: list[Impurity] = []

    def counted(impurity: Impurity, *given: Any) -> Any:
        made.append(impurity)
        return spectrum(impurity, *given)

    monkeypatch.setattr(recipe, "spectrum", counted)
    monkeypatch.setattr(sys, "argv", [*asked, "--moments"])
    recipe.main()
    moments = np.load(tmp_path / "spectra.npz")
    assert len(made) == len(moments["curves"]) < 4
    monkeypatch.setattr(sys, "argv", asked)
    recipe.main()
    assert len(made) == len(set(made)) == 4
    whole = np.load(tmp_path / "spectra.npz")
    np.testing.assert_array_equal(
        whole["parameters"][:, :5], [list(vars(recipe.draw(0, k)).values()) for k in range(4)]
    )
    taken = np.isin(whole["parameters"][:, 0], moments["parameters"][:, 0])
    np.testing.assert_array_equal(whole["curves"][taken], moments["curves"])
