"""The YAML header of a model's card: what the Hub shows, searches and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snnp.analysis.curve_page import stated_errors
from snnp.hub.failures import hub_library
from snnp.hub.names import parse_reference
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.publish.requirements import licence_id
from snnp.text import one_line

__all__ = ["card_header"]

_TASK = "graph-ml"  # the Hub's task for models of atoms and bonds
_METRICS = {
    "energy_mae_mev_per_atom": ("mae", "energy MAE (meV/atom)"),
    "energy_rmse_mev_per_atom": ("rmse", "energy RMSE (meV/atom)"),
    "force_mae_ev_per_angstrom": ("mae", "force MAE (eV/Å)"),
    "force_rmse_ev_per_angstrom": ("rmse", "force RMSE (eV/Å)"),
    "stress_mae_gpa": ("mae", "stress MAE (GPa)"),
}


def card_header(name: str, model: Potential) -> str:
    """The header, with its `---` lines.

    Arguments:
        name: of the model, without its owner.
        model: with its metadata; licence, data sets, base model and errors are taken from there.

    Raises:
        MissingDependencyError: without huggingface_hub, which knows the form.
    """
    library, about = hub_library(), stated(model.metadata)
    results = _results(library, about)
    data = library.ModelCardData(
        license=licence_id(about.get("licence")),
        library_name="snnp",
        pipeline_tag=_TASK,
        tags=["snnp", "interatomic-potential", "molecular-dynamics", "chemistry", "materials-science", *model.elements],
        datasets=_datasets(about) or None,
        base_model=_base_model(about),
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def _datasets(about: Mapping[str, Any]) -> list[str]:
    """Data sets that lie on the Hub."""
    each = about.get("provenance", {}).get("datasets") or about.get("datasets") or []
    return sorted({str(one["name"]) for one in each if isinstance(one, Mapping) and one.get("commit")})


def _base_model(about: Mapping[str, Any]) -> str | None:
    """The model on the Hub that this one was distilled or continued from."""
    base = about.get("base_model") or about.get("loaded_from", {}).get("name")
    return base if isinstance(base, str) and parse_reference(base) is not None else None


def _results(library: Any, about: Mapping[str, Any]) -> list[Any]:
    part, errors = stated_errors(about)
    title = one_line(about.get("dataset", "held-out data"))
    return [
        library.EvalResult(
            task_type=_TASK,
            task_name="energies and forces of atoms",
            dataset_type=(_datasets(about) or ["other"])[0],
            dataset_name=title,
            dataset_split=part,
            metric_type=kind,
            metric_name=label,
            metric_value=round(errors[key], 5),
        )
        for key, (kind, label) in _METRICS.items()
        if isinstance(errors.get(key), float)
    ]
