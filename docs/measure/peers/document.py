"""What was measured as one document of plain values: a row per case with cost, accuracy, and fraction of the peak."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from peers.operations import count_work
from peers.processes import Failure, Measurement, Plan
from peers.published import PUBLISHED_ERRORS
from peers.systems import build_system

from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.models.store import load_model
from snnp.neighbours import neighbour_list, pair_vectors

__all__ = ["document", "machine"]

_SAMPLE_ATOMS = 4000  # on which neighbours are counted: a crystal has as many everywhere


def machine() -> dict[str, Any]:
    """Processor, number of cores, load, system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }


def document(measured: Sequence[Measurement], failures: Sequence[Failure], plan: Plan, command: str) -> dict[str, Any]:
    """Everything about a run as JSON values.

    `rows` hold, per case: program, case, structure, n_atoms, threads, medians `cpu_us_per_atom` (all threads together)
    and `wall_us_per_atom` with the smallest and largest repeat, memory in MiB, versions, what the adapter said, errors
    of energy and force where they are known, and for an s-NNP the work per atom and the fraction of the machine's peak.
    """
    ceilings = _ceilings(measured)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": command,
        "machine": machine(),
        "repeats": plan.repeats,
        "seconds_per_repeat": plan.seconds,
        "ceilings": ceilings,
        "rows": [_row(each, ceilings) for each in measured if each.case.program != "machine"],
        "not_measured": [
            {"program": failure.case.program, "case": failure.case.name, "reason": failure.reason}
            for failure in failures
        ],
    }


def _seconds(measured: Measurement) -> float:
    """Per call: CPU time, which other work hardly disturbs; wall time where a GPU works."""
    on_gpu = "cuda" in str(measured.case.options.get("device"))
    per_atom = measured.wall_us_per_atom if on_gpu else measured.cpu_us_per_atom
    return per_atom * measured.n_atoms * 1e-6


def _ceilings(measured: Sequence[Measurement]) -> dict[str, float]:
    """GFLOP/s and GB/s by what was done, per CPU second (of one core) or per second of a GPU."""
    found = {}
    for each in measured:
        if each.case.program == "machine":
            work = each.facts.get("flops") or each.facts["bytes"]
            found[each.case.name] = work / _seconds(each) / 1e9
    return found


def _row(measured: Measurement, ceilings: Mapping[str, float]) -> dict[str, Any]:
    case, per_atom = measured.case, 1e6 / measured.n_atoms
    row = {
        "program": "snnp" if case.program == "own" else case.program,
        "case": case.name,
        "structure": case.structure,
        "n_atoms": measured.n_atoms,
        "threads": case.threads,
        "cpu_us_per_atom": measured.cpu_us_per_atom,
        "cpu_us_per_atom_range": [min(measured.cpu) * per_atom, max(measured.cpu) * per_atom],
        "wall_us_per_atom": measured.wall_us_per_atom,
        "wall_us_per_atom_range": [min(measured.wall) * per_atom, max(measured.wall) * per_atom],
        "calls_per_repeat": measured.n_calls,
        "mib_before": measured.mib_before,
        "mib_peak": measured.mib_peak,
        "versions": measured.versions,
        **measured.facts,
    }
    if case.program != "own":
        return row | _published(case.options.get("method"), case.structure)
    model = load_model(case.options["model"])
    return row | _own_errors(model, case.structure) | _floor(measured, model, ceilings)


def _symbol(structure: str) -> str | None:
    """The element of a crystal's specification."""
    parts = structure.split(":")
    return parts[1] if len(parts) > 1 and parts[1] in chemical_symbols else None


def _published(method: str | None, structure: str) -> dict[str, Any]:
    errors = PUBLISHED_ERRORS.get(method or "", {}).get(_symbol(structure) or "")
    if errors is None:
        return {}
    return {"energy_mae_mev_per_atom": errors[0], "force_mae_ev_per_angstrom": errors[1], "accuracy": "published"}


def _own_errors(model: Potential, structure: str) -> dict[str, Any]:
    metrics = model.metadata.get("metrics")
    if metrics is None:
        return {}
    metrics = metrics.get("pure_elements", {}).get(_symbol(structure), metrics)
    names = ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom")
    return {**{name: metrics[name] for name in names}, "accuracy": "test set of the model"}


def _floor(measured: Measurement, model: Potential, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """Work per atom of an s-NNP, and which part of the machine's peak was reached."""
    if not isinstance(model, SplineNNP):
        return {}
    structure = build_system(measured.case.structure, min(measured.case.n_atoms, _SAMPLE_ATOMS))
    distances = pair_vectors(structure, neighbour_list(structure, model.cutoff)).norm(dim=1)
    within = [
        int((distances < reach).sum()) / structure.n_atoms
        for reach in (model.config.radial_cutoff or model.cutoff, model.config.angular_cutoff)
    ]
    work = count_work(model.config, *within)
    seconds = _seconds(measured) / measured.n_atoms
    floor = {"neighbours": within[0], "flop_per_atom": work.flops, "bytes_per_atom": work.bytes}
    peaks = [speed for name, speed in ceilings.items() if name.endswith(f" {measured.facts['dtype']}")]
    if peaks:
        floor["fraction_of_peak_flops"] = work.flops / seconds / 1e9 / max(peaks)
    if "copy" in ceilings:
        floor["fraction_of_bandwidth"] = work.bytes / seconds / 1e9 / ceilings["copy"]
    return floor
