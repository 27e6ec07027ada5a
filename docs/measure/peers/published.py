"""Bundled models side by side, and beside published potentials, as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snnp.analysis.card import drift_in_words
from snnp.errors import DataError
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.report import Table, fixed

__all__ = ["PUBLISHED_ERRORS", "comparison_page"]

# Energy (meV/atom) and force (eV/Å) errors on the upstream test files of the data set of Zuo et al. (2020).
_ELEMENTS = ("Ni", "Cu", "Li", "Mo", "Si", "Ge")
_PUBLISHED = {
    "s-MEAM [1]": ("2.64 / 0.080", "1.14 / 0.062", "1.08 / 0.039", "5.98 / 0.209", "5.22 / 0.172", "6.45 / 0.145"),
    "SNAP [2]": ("0.78 / 0.038", "0.53 / 0.037", "1.03 / 0.028", "5.49 / 0.207", "6.44 / 0.133", "6.59 / 0.188"),
    "qSNAP [2]": ("0.78 / 0.031", "0.56 / 0.024", "0.73 / 0.033", "2.77 / 0.184", "3.81 / 0.116", "6.45 / 0.133"),
    "GAP [3]": ("0.42 / 0.02", "0.46 / 0.01", "0.49 / 0.01", "2.24 / 0.09", "2.91 / 0.07", "2.06 / 0.05"),
    "MTP [3]": ("0.48 / 0.01", "0.41 / 0.01", "0.49 / 0.01", "2.83 / 0.09", "2.21 / 0.06", "1.79 / 0.05"),
    "ACE [4]": ("0.34 / 0.015", "0.23 / 0.005", "0.17 / 0.005", "2.91 / 0.097", "2.03 / 0.066", "2.16 / 0.050"),
}
PUBLISHED_ERRORS = {
    name.partition(" [")[0]: {
        symbol: (float(energy), float(force))
        for symbol, (energy, _, force) in zip(_ELEMENTS, (text.partition(" / ") for text in texts), strict=True)
    }
    for name, texts in _PUBLISHED.items()
}
"""(meV/atom, eV/Å) by method and element: mean absolute errors on the upstream test files of Zuo et al."""
_PUBLISHED_NOTES = """\
1. J. A. Vita, D. R. Trinkle, Comput. Mater. Sci. 200, 110752 (2021): the published coefficients, evaluated with LAMMPS,
   with one constant of energy per element fitted on the test set.
2. Models of Y. Zuo et al., J. Phys. Chem. A 124, 731 (2020), evaluated with LAMMPS.
3. As published by Zuo et al.
4. About 1000 functions, Y. Lysogorskiy et al., npj Comput. Mater. 7, 97 (2021); quoted second hand, not checked.
"""


_MEASURED = ("metrics", "speed", "training", "stability")


def comparison_page(models: Mapping[str, Potential]) -> str:
    """Markdown: the six-element benchmark, and all models with errors, size, speed, training and stability.

    Arguments:
        models: by name; their metadata hold `speed` and `stability`, and `metrics` and `training` unless a `source`
            says that they were published by others, and `training` of an ensemble (see `snnp.analysis.card`).

    Raises:
        DataError: names a model whose metadata lack one of these.
    """
    for name, model in models.items():
        needed = ("speed", "stability") if "source" in model.metadata else _MEASURED
        if isinstance(model, Ensemble):
            needed = tuple(key for key in needed if key != "training")  # its members were trained
        if lacking := [key for key in needed if key not in model.metadata]:
            raise DataError(
                f"the file of {name} states no {', '.join(lacking)}; run 'python model_zoo/build.py {name}'."
            )
    machines = sorted({model.metadata["speed"]["cpu"] for model in models.values()})
    head = ["*published, other test structures:*", *[""] * len(_ELEMENTS)]
    published = [head, *([name, *values] for name, values in _PUBLISHED.items())]
    benchmark = Table(["", *_ELEMENTS], [*_benchmark_rows(models), *published]).markdown()
    everything = Table(_COLUMNS, [_model_row(name, model) for name, model in models.items()], n_text=2).markdown()
    return _PAGE.format(
        benchmark=benchmark, notes=_PUBLISHED_NOTES, everything=everything, machines=" / ".join(machines)
    )


_PAGE = """\
# Accuracy, speed, stability

Written by `python model_zoo/build.py --table` from what `python model_zoo/build.py NAME` measured for each
[bundled model](zoo.md). All errors are mean absolute errors on data that no training saw; models that others published
were not measured on such data in these units (a dash), and their cards say what was.

## The six-element benchmark

Energy (meV/atom) / force (eV/Å). **The two halves of the table are measured on different test structures:** ours on
`*_test.xyz` (10 % of the training files of Zuo et al., drawn at random per group), the published ones on the test files
of Zuo et al.; compare the size of the numbers, not their last digits.

{benchmark}
{notes}
## All bundled models

{everything}
Speed: energy and forces of about 1000 atoms in float32 on one thread of {machines}. Stable: 20 ps at constant energy
and 300 K, and 20 ps Langevin at 0.8 of the melting point (molecules: 600 K), without blowing up. Drift: slope of the
total energy at 300 K with its standard error; the largest where a model was run on several elements.
"""
_COLUMNS = ["model", "elements", "parameters", "energy (meV/atom)", "force (eV/Å)", "µs/atom", "training (min)"]
_COLUMNS += ["stable", "drift (meV/atom/ns)"]


def _pair(errors: Mapping[str, Any]) -> str:
    return f"{errors['energy_mae_mev_per_atom']:.2f} / {errors['force_mae_ev_per_angstrom']:.3f}"


def _benchmark_rows(models: Mapping[str, Potential]) -> list[list[str]]:
    """One row of the s-NNPs of one element each, one row per model of several or of another family."""
    own: dict[str, str] = {}
    rows = []
    for name, model in models.items():
        metrics = model.metadata.get("metrics", {})
        if "mlearn/" not in metrics.get("data", ""):
            continue
        pure = metrics.get("pure_elements")
        if pure is None and isinstance(model, SplineNNP):
            own[model.elements[0]] = _pair(metrics)
        else:
            pure = pure or {model.elements[0]: metrics}
            rows.append([f"`{name}`", *(_pair(pure[s]) if s in pure else "–" for s in _ELEMENTS)])
    single = [["s-NNP, one model per element", *(own.get(symbol, "–") for symbol in _ELEMENTS)]] if own else []
    return [*single, *rows]


def _model_row(name: str, model: Potential) -> list[str]:
    about = model.metadata
    systems = about["stability"].values()
    runs = [system[kind] for system in systems for kind in ("nve", "langevin")]
    drifts = [system["nve"] for system in systems if system["nve"]["drift_mev_per_atom_per_ns"] is not None]
    worst = max(drifts, key=lambda run: abs(run["drift_mev_per_atom_per_ns"]), default=None)
    return [
        f"`{name}`",
        " ".join(model.elements),
        f"{model.n_parameters:,}",
        fixed(about.get("metrics", {}).get("energy_mae_mev_per_atom"), 2),
        fixed(about.get("metrics", {}).get("force_mae_ev_per_angstrom"), 3),
        fixed(about["speed"]["us_per_atom"], 1),
        fixed(about.get("training", {}).get("minutes"), 0),
        "yes" if all(run["survived"] for run in runs) else "no",
        "–" if worst is None else drift_in_words(worst),
    ]
