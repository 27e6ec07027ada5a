"""What a model says of its uncertainty: in its card, in the doctor's report, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.report import Finding, Table, fixed, new_figure, save_figure, tidy
from snnp.text import markdown
from snnp.uncertainty.calibration import KEY, LEVELS, scales_of

__all__ = ["CALIBRATION", "calibration_markdown", "check_calibration", "plot_coverage"]

CALIBRATION = "calibration"
"""Name of the doctor's check."""
_DISHONEST, _BLIND = 0.2, 0.2  # miscalibration area, and rank correlation
_QUANTITIES = (("forces", "force components", "eV/Å"), ("energy", "energy per atom", "eV/atom"))


def calibration_markdown(about: Mapping[str, Any]) -> str:
    """A section of the card; empty for a model that states no calibration."""
    if scales_of(about) is None:
        return ""
    found = about[KEY]
    half = LEVELS.index(0.5)
    rows = [
        [
            f"{name} ({unit})",
            fixed(each["scale"], 2),
            *(f"{100 * each['coverage'][k]:.0f} %" for k in (half, LEVELS.index(0.9))),
            *(fixed(each[key], digits) for key, digits in (("area", 3), ("raw_area", 3), ("rank_correlation", 2))),
            fixed(each["rmse"], 4),
        ]
        for key, name, unit in _QUANTITIES
        for each in [found[key]]
    ]
    columns = ["", "scale", "within the 50 % interval", "90 %", "area", "before", "rank correlation", "RMSE"]
    source = f"{found['n_frames']} frames ({markdown(found['data'] or 'held out')})"
    return (
        "## Uncertainty\n\nThe spread of the members times a scale is an expected error. Scale and intervals come from "
        f"two halves of {source}; area: of miscalibration.\n\n{Table(columns, rows).markdown()}"
    )


def check_calibration(model: Potential) -> Iterator[Finding]:
    """What the doctor says about an ensemble's spread: whether it was ever held against errors, and how that went."""
    if not isinstance(model, Ensemble) or len(model.potentials) < 2:
        return
    if scales_of(model.metadata) is None:
        yield Finding(
            CALIBRATION,
            "warning",
            f"the spread of its {len(model.potentials)} members was never calibrated",
            "Members may agree and all be wrong: limits in eV/Å mean nothing yet.",
            "Calibrate it on frames that no member saw: 'snnp uncertainty calibrate MODEL DATA --out FOLDER'.",
        )
        return
    for key, name, _ in _QUANTITIES:
        area, rank = (float(model.metadata[KEY][key].get(each, 0.0)) for each in ("area", "rank_correlation"))
        if area > _DISHONEST or rank < _BLIND:
            yield Finding(
                CALIBRATION,
                "warning",
                f"{name}: miscalibration area {area:.2f}, rank correlation {rank:.2f}",
                "Its intervals hold other shares of errors than they say, or what it doubts most is not most wrong.",
                "Calibrate on more frames; train members on different draws of the data, or more of them.",
            )


def plot_coverage(path: str | Path, sets: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Observed against expected coverage of forces, before and after the scale, one panel per (title, calibration)."""
    figure = new_figure(3.4 * len(sets), 3.6)
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    expected = 100.0 * np.array([0.0, *LEVELS, 1.0])
    for axes, (title, found) in zip(panels, sets, strict=True):
        each = found["forces"]
        axes.plot([0, 100], [0, 100], color="0.5", lw=0.8)
        for key, colour, label in (("raw_coverage", "#d55e00", "spread"), ("coverage", "#0072b2", "calibrated")):
            area = each["raw_area" if key == "raw_coverage" else "area"]
            observed = 100.0 * np.array([0.0, *each[key], 1.0])
            axes.plot(expected, observed, color=colour, lw=1.6, marker=".", label=f"{label}: area {area:.2f}")
        axes.set(xlabel="Expected share of errors (%)", xlim=(0, 100), ylim=(0, 100))
        axes.set_title(f"{title}\nrank correlation {each['rank_correlation']:.2f}", fontsize=9)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.set_box_aspect(1)
        tidy(axes)
    panels[0].set_ylabel("Observed share (%)")
    save_figure(figure, Path(path))
