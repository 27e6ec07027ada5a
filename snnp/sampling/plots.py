"""The picture of a run: temperature, energy, and the radial distribution function, which is gathered on the way."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import new_figure, save_figure, tidy
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, columns, energy_drift
from snnp.structure import Structure

__all__ = ["RadialDistribution", "plot_run"]

_LINE, _SECOND, _GUIDE = "#1f5f8b", "#c8553d", "#888888"
_MOST_PAIRS = 6
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class RadialDistribution:
    """Averages g(r) per pair of elements over the structures added, at `centres` [M] (Å).

    Fully periodic structures give `g(r) = n(r) V / (N_a N_b 4 pi r² dr)`, which goes to one at large distance. Others
    have no density, so the curve is the number of neighbours of the second element per atom of the first and per Å.
    """

    def __init__(self, reach: float = 8.0, width: float = 0.05) -> None:
        self.reach = reach
        self.edges = np.linspace(0.0, reach, round(reach / width) + 1)
        self.centres = 0.5 * (self.edges[1:] + self.edges[:-1])
        self.last_step, self.n_added, self.normalised = -1, 0, True
        self._sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(self.centres)))

    def add(self, atoms: Atoms, step: int) -> None:
        structure = Structure.from_ase(atoms)
        neighbours = neighbour_list(structure, self.reach)
        distances = pair_vectors(structure, neighbours).norm(dim=1).numpy()
        first, second = atoms.numbers[neighbours.i.numpy()], atoms.numbers[neighbours.j.numpy()]
        self.normalised = bool(atoms.pbc.all())
        shells = 4.0 / 3.0 * np.pi * np.diff(self.edges**3)
        for a, b in combinations_with_replacement(np.unique(atoms.numbers).tolist(), 2):
            counts, _ = np.histogram(distances[(first == a) & (second == b)], self.edges)
            usual = np.diff(self.edges)
            if self.normalised:
                usual = shells * np.count_nonzero(atoms.numbers == b) / atoms.get_volume()
            curve = counts / np.count_nonzero(atoms.numbers == a) / usual
            self._sums[f"{chemical_symbols[a]}-{chemical_symbols[b]}"] += curve
        self.n_added += 1
        self.last_step = step

    def curves(self) -> dict[str, np.ndarray]:
        """[M] mean curve by pair of elements; empty if nothing was added."""
        return {pair: total / self.n_added for pair, total in self._sums.items()}


def plot_run(
    path: Path, samples: list[Sample], rdf: RadialDistribution, settings: MDSettings, atoms: Atoms, equilibration: int
) -> None:
    """Write a PNG with three panels: temperature, energy change per atom, radial distribution.

    The first `equilibration` steps are shaded, and left out of the mean and the drift.
    """
    column, figure = columns(samples), new_figure(11.5, 3.6)
    counted, panels = column["step"] >= equilibration, figure.subplots(1, 3)
    _draw_temperature(panels[0], column, counted, settings)
    _draw_energy(panels[1], column, counted, settings, len(atoms))
    _draw_radial(panels[2], rdf)
    for panel in panels[:2]:
        panel.margins(y=0.15)  # room for the legend
        if equilibration > 0:
            end = min(equilibration * settings.dt_fs / 1000.0, column["time_ps"][-1])
            panel.axvspan(0.0, end, color=_GUIDE, alpha=0.15, linewidth=0.0)
    for panel in panels:
        tidy(panel)
        panel.title.set_fontsize(10)
    formula = atoms.get_chemical_formula("hill").translate(_SUBSCRIPTS)
    title = f"{formula}  {settings.ensemble.upper()}"
    title += "" if settings.ensemble == "nve" else f" at {_target(settings)}"
    title += f" and {settings.pressure_gpa:g} GPa" if settings.ensemble == "npt" else ""
    figure.suptitle(f"{title},  {len(atoms)} atoms,  {settings.steps} steps of {settings.dt_fs:g} fs", fontsize=10)
    save_figure(figure, path)


def _draw_line(panel: Any, time: np.ndarray, values: np.ndarray, **how: Any) -> None:
    """Of few points a line would hardly be seen, of one not at all: they are marked."""
    panel.plot(time, values, linewidth=0.9, marker="." if len(time) < 10 else "", **how)


def _target(settings: MDSettings) -> str:
    end = settings.temperature_end_k
    return f"{settings.temperature_k:g} K" if end is None else f"{settings.temperature_k:g} to {end:g} K"


def _draw_temperature(panel: Any, column: dict[str, np.ndarray], counted: np.ndarray, settings: MDSettings) -> None:
    time, temperature, steps = column["time_ps"], column["temperature_k"], column["step"]
    _draw_line(panel, time, temperature, color=_LINE)
    labels, guide = [], np.array([settings.temperature_at(int(step)) for step in steps])
    if settings.ensemble != "nve":
        labels.append(f"target {_target(settings)}")
    if counted.any() and settings.temperature_end_k is None:
        labels.append(f"mean {temperature[counted].mean():.0f} K")
        if settings.ensemble == "nve":
            guide[:] = temperature[counted].mean()
    if labels:
        panel.plot(time, guide, color=_GUIDE, linestyle="--", label=", ".join(labels))
        panel.legend(fontsize=8, frameon=False)
    panel.set(xlabel="time (ps)", ylabel="temperature (K)", title="Temperature")


def _draw_energy(
    panel: Any, column: dict[str, np.ndarray], counted: np.ndarray, settings: MDSettings, n_atoms: int
) -> None:
    curves = [("potential_energy_ev", "potential", _SECOND), ("total_energy_ev", "total", _LINE)]
    if settings.ensemble == "nve":
        # Here the total energy tells whether the run is sound; beside the potential energy it would look flat.
        drift = energy_drift({name: values[counted] for name, values in column.items()}, n_atoms)
        curves = [("total_energy_ev", "total" if drift is None else f"total, drift {drift:.2g} meV/atom/ns", _LINE)]
    for name, label, color in curves:
        change = (column[name] - column[name][0]) * 1000.0 / n_atoms
        _draw_line(panel, column["time_ps"], change, color=color, label=label)
    panel.legend(fontsize=8, frameon=False)
    panel.set(xlabel="time (ps)", ylabel="energy since start (meV/atom)", title="Energy")


def _draw_radial(panel: Any, rdf: RadialDistribution) -> None:
    curves = sorted(rdf.curves().items(), key=lambda item: -item[1].max())
    curves = [(pair, curve) for pair, curve in curves if curve.any()]
    seen = [rdf.centres[curve > 0.0].max() for _, curve in curves]
    for pair, curve in curves[:_MOST_PAIRS]:
        panel.plot(rdf.centres, curve, linewidth=1.1, label=pair, color=_LINE if len(curves) == 1 else None)
    if curves:
        panel.legend(fontsize=8, frameon=False)
    else:
        panel.text(0.5, 0.5, "no pairs were sampled", transform=panel.transAxes, ha="center", color=_GUIDE)
    if rdf.normalised:
        panel.axhline(1.0, color=_GUIDE, linestyle="--", linewidth=0.8, zorder=0)
    label = "g(r)" if rdf.normalised else "neighbours per atom and Å"
    panel.set(xlabel="distance (Å)", ylabel=label, title="Radial distribution")
    panel.set(xlim=(0.0, min(rdf.reach, max(seen, default=rdf.reach) + 0.5)), ylim=(0.0, None))
