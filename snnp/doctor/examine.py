"""Every check of a data set, or of a model, in one call."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from snnp.analysis.compression import Compression, compression_scan
from snnp.data import Frame
from snnp.doctor import coverage, label_checks, trials
from snnp.doctor.consensus import consensus_of, spread
from snnp.doctor.pictures import data_pictures, model_pictures
from snnp.doctor.promises import CONTRACT_CHECKS, check_contract, check_numbers
from snnp.doctor.survey import survey
from snnp.models.potential import Potential
from snnp.report import Finding, Report, Table
from snnp.uncertainty.statements import CALIBRATION, check_calibration

__all__ = ["DATA_CHECKS", "MODEL_CHECKS", "examine_data", "examine_model"]

_OF_SOUND_UNITS = (
    *("force sign", "force units", "force direction", "energies and forces", "stress", "energy units"),
    *("energy outliers", "level of theory"),
)
DATA_CHECKS = (
    *("readable", "units", "completeness", "plausibility", "distances", "force sums", "torques"),
    *_OF_SOUND_UNITS,
    *("duplicates", "contradictions", "leakage", "near duplicates", "coverage"),
)
"""Names of all checks of data; a report lists those that found nothing."""

MODEL_CHECKS = (*CONTRACT_CHECKS, "dimers", "compression", "dynamics", "size scaling", "statements", CALIBRATION)
"""Names of all checks of models; a report lists those that found nothing."""

_STATED = {"dataset": "data set", "level_of_theory": "level of theory", "licence": "licence"}
_RANK = {"error": 0, "warning": 1, "note": 2}


def examine_data(
    frames_by_split: Mapping[str, Iterable[Frame]],
    *,
    subject: str = "data",
    unreadable: Sequence[Finding] = (),
    pictures: bool = True,
) -> Report:
    """Examine a data set; raises `DataError` if there is no frame at all.

    `frames_by_split` begins with the split that is trained on; `unreadable` is what `snnp.doctor.reading.read_set`
    found; `pictures` take about two seconds.

    Example:
        >>> report = examine_data({"train": read_frames("train.xyz"), "test": read_frames("test.xyz")})
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    seen = survey(frames_by_split)
    units, wrong = label_checks.check_units(seen)
    sound = seen
    if wrong.any() and not wrong.all():
        # What is in other units would be taken for the opinion of the set: the rest is examined without it.
        sound = survey({name: seen.frames.take(~wrong & (seen.split == name)) for name in seen.splits})
    consensus = consensus_of(sound, label_checks.FORCE_FACTORS)
    clusters = coverage.find_clusters(seen)
    findings = [*unreadable, *units, *label_checks.check_completeness(seen), *coverage.check_distances(seen)]
    findings += [*label_checks.check_force_sums(sound), *coverage.check_duplicates(seen, clusters)]
    findings += [*coverage.check_leakage(seen, clusters), *coverage.check_coverage(seen)]
    if not wrong.all():
        told = any(each.check == "stress" for each in units)
        compared = [each for check in label_checks.COMPARED for each in check(sound, consensus)]
        findings += [*label_checks.check_plausibility(sound)]
        findings += [each for each in compared if not (told and each.check == "stress")]
    found = {finding.check for finding in findings}
    found |= {"plausibility", *_OF_SOUND_UNITS} if wrong.all() else set()
    labels = {
        "energy beyond composition, typical (eV/atom)": spread(consensus.composition_residual),
        "energy beyond composition and a linear model, typical (eV/atom)": spread(consensus.residual),
        "misfit of energies and forces in one linear model": consensus.relative_misfit.get(1.0),
    }
    return Report(
        subject,
        "data",
        tuple(sorted(findings, key=lambda each: _RANK[each.severity])),
        passed=tuple(name for name in DATA_CHECKS if name not in found),
        tables=[*coverage.tables(seen), Table.of("Labels", labels)],
        pictures=data_pictures(sound, consensus) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def examine_model(model: Potential, *, subject: str | None = None, pictures: bool = True) -> Report:
    """Examine a potential of any family, on the CPU and in its own float type; it stays as it is.

    `subject` is its name, by default that of its class; `pictures` take about two seconds.

    Example:
        >>> report = examine_model(load_model("snnp-si"))
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    subject = type(model).__name__ if subject is None else subject
    model = copy.deepcopy(model).to("cpu")
    about = {
        "class": type(model).__name__,
        "elements": ", ".join(model.elements),
        "cutoff (Å)": model.cutoff,
        "parameters": model.n_parameters,
        "float type": str(model.dtype).removeprefix("torch."),
        **{f"E0 of {symbol} (eV)": energy for symbol, energy in model.reference_energies.items()},
    }
    tables = [Table.of("Model", about)]
    findings = list(check_numbers(model))
    if findings:
        # Nothing else can be said about a model whose every result is NaN.
        return Report(subject, "model", tuple(findings), (), tables, seconds=time.perf_counter() - begin)
    findings += check_contract(model)
    dimers, scan = trials.dimer_curves(model), compression_scan(model, trials.relaxed_molecule(model))
    runs, scaling = trials.short_runs(model), trials.measure_scaling(model)
    findings += [*trials.check_dimers(dimers), *trials.check_compression(scan), *trials.check_runs(runs)]
    findings += [*trials.check_scaling(scaling), *_check_statements(model), *check_calibration(model)]
    found = {finding.check for finding in findings}
    return Report(
        subject,
        "model",
        tuple(sorted(findings, key=lambda each: _RANK[each.severity])),
        passed=tuple(name for name in MODEL_CHECKS if name not in found),
        tables=[*tables, *_model_tables(scan, runs, scaling)],
        pictures=model_pictures(dimers, scan, runs, scaling) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def _model_tables(scan: list[Compression], runs: list[trials.Run], scaling: trials.Scaling) -> list[Table]:
    words = {True: "yes", False: "no"}
    compression = [(s.system, s.way, float(s.ratio[-1]), float(s.energy[-1]), words[s.hole is None]) for s in scan]
    dynamics = [(run.name, run.seen.picoseconds, run.seen.dt_fs, run.drift, words[run.seen.survived]) for run in runs]
    columns = ("system", "ps", "step_fs", "drift_beyond_noise_mev_per_atom", "survived")
    cost = [(n, 1e6 * seconds / n) for n, seconds in zip(scaling.atoms, scaling.seconds, strict=True)]
    return [
        Table(("system", "way", "down to V/V0", "eV/atom there", "rises all the way"), compression, "Compression"),
        Table(columns, dynamics, "Dynamics"),
        Table(("atoms", "µs_per_atom"), cost, "Cost"),
    ]


def _check_statements(model: Potential) -> Iterator[Finding]:
    """What a user must know about a model and its metadata do not say."""
    missing = [words for key, words in _STATED.items() if not model.metadata.get(key)]
    if missing:
        yield Finding(
            "statements",
            "note",
            f"the metadata do not state: {', '.join(missing)}",
            "Nobody else can judge what the model is good for, or may use it; `snnp publish` refuses it.",
            "Fill in `metadata` before `save_model`, or use --set when publishing.",
        )
