"""`examine_model`: every check of a potential in one call."""

from __future__ import annotations

import copy
import time

from snnp.analysis.compression import Compression, compression_scan
from snnp.doctor.model.dimers import check_compression, check_dimers, dimer_curves
from snnp.doctor.model.dynamics import (
    Run,
    Scaling,
    check_runs,
    check_scaling,
    measure_scaling,
    relaxed_molecule,
    short_runs,
)
from snnp.doctor.model.pictures import model_pictures
from snnp.doctor.model.promises import CONTRACT_CHECKS, check_contract, check_numbers
from snnp.doctor.report import Finding, Report, sorted_findings
from snnp.models.potential import Potential

__all__ = ["MODEL_CHECKS", "examine_model"]

MODEL_CHECKS = (*CONTRACT_CHECKS, "dimers", "compression", "dynamics", "size scaling", "statements")
"""Names of all checks; a report lists those that found nothing."""

_STATED = {"dataset": "data set", "level_of_theory": "level of theory", "licence": "licence"}


def examine_model(model: Potential, *, subject: str | None = None, pictures: bool = True) -> Report:
    """Examine a potential of any family, on the CPU and in its own float type.

    Arguments:
        model: stays as it is.
        subject: its name for the report; by default that of its class.
        pictures: draw them; they take about two seconds.

    Example:
        >>> report = examine_model(load_model("snnp-si"))
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    model = copy.deepcopy(model).to("cpu")
    findings = list(check_numbers(model))
    if findings:
        # Nothing else can be said about a model whose every result is NaN.
        seconds = time.perf_counter() - begin
        return Report(_subject(model, subject), "model", tuple(findings), (), _facts(model), (), seconds)
    findings += check_contract(model)
    dimers = dimer_curves(model)
    findings += check_dimers(dimers)
    scan = compression_scan(model, relaxed_molecule(model))
    findings += check_compression(scan)
    runs = short_runs(model)
    findings += check_runs(runs)
    scaling = measure_scaling(model)
    findings += check_scaling(scaling)
    findings += _statements(model)
    found = {finding.check for finding in findings}
    facts = {**_facts(model), **_tables(scan, runs, scaling)}
    return Report(
        subject=_subject(model, subject),
        kind="model",
        findings=sorted_findings(findings),
        passed=tuple(name for name in MODEL_CHECKS if name not in found),
        facts=facts,
        pictures=model_pictures(dimers, scan, runs, scaling) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def _subject(model: Potential, subject: str | None) -> str:
    return type(model).__name__ if subject is None else subject


def _facts(model: Potential) -> dict[str, object]:
    return {
        "Model": {
            "class": type(model).__name__,
            "elements": ", ".join(model.elements),
            "cutoff (Å)": model.cutoff,
            "parameters": model.n_parameters,
            "float type": str(model.dtype).removeprefix("torch."),
            **{f"E0 of {symbol} (eV)": energy for symbol, energy in model.reference_energies.items()},
        }
    }


def _tables(scan: list[Compression], runs: list[Run], scaling: Scaling) -> dict[str, object]:
    return {
        "Compression": [
            {
                "system": each.system,
                "way": each.way,
                "down to V/V0": float(each.ratio[-1]),
                "eV/atom there": float(each.energy[-1]),
                "rises all the way": "no" if each.hole else "yes",
            }
            for each in scan
        ],
        "Dynamics": [
            {
                "system": run.name,
                "ps": run.seen.picoseconds,
                "step_fs": run.seen.dt_fs,
                "drift_beyond_noise_mev_per_atom": run.drift,
                "survived": "yes" if run.seen.survived else "no",
            }
            for run in runs
        ],
        "Cost": [
            {"atoms": n, "µs_per_atom": 1e6 * seconds / n}
            for n, seconds in zip(scaling.atoms, scaling.seconds, strict=True)
        ],
    }


def _statements(model: Potential) -> list[Finding]:
    """What a user must know about a model and its metadata do not say."""
    missing = [words for key, words in _STATED.items() if not model.metadata.get(key)]
    if not missing:
        return []
    return [
        Finding(
            "statements",
            "note",
            f"the metadata do not state: {', '.join(missing)}",
            "Nobody else can judge what the model is good for, or may use it; `snnp publish` refuses it.",
            "Fill in `metadata` before `save_model`, or use --set when publishing.",
        )
    ]
