"""`examine_data`: every check of a data set in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from snnp.data import Frame
from snnp.doctor.data import coverage, duplicates, mixture
from snnp.doctor.data import label_checks as labels
from snnp.doctor.data.consensus import Consensus, consensus_of, spread
from snnp.doctor.data.pictures import data_pictures
from snnp.doctor.data.survey import Survey, survey
from snnp.doctor.report import Finding, Report, sorted_findings

__all__ = ["DATA_CHECKS", "examine_data"]

DATA_CHECKS = (
    *("readable", "units", "completeness", "plausibility", "distances", "force sums", "torques"),
    *(
        "force sign",
        "force units",
        "force direction",
        "energies and forces",
        "stress",
        "energy units",
        "energy outliers",
        "level of theory",
    ),
    *("duplicates", "contradictions", "leakage", "near duplicates", "coverage"),
)
"""Names of all checks; a report lists those that found nothing."""

_OF_SOUND_UNITS = (
    *("plausibility", "force sign", "force units", "force direction", "energies and forces", "stress", "energy units"),
    *("energy outliers", "level of theory"),
)


def examine_data(
    frames_by_split: Mapping[str, Iterable[Frame]],
    *,
    subject: str = "data",
    unreadable: Sequence[Finding] = (),
    pictures: bool = True,
) -> Report:
    """Examine a data set.

    Arguments:
        frames_by_split: the frames of each split by name, the one that is trained on first; a set without splits has
            one entry of any name.
        subject: the set's name for the report.
        unreadable: what was found while reading (see `snnp.doctor.data.reading.read_set`).
        pictures: draw them; they take about two seconds.

    Raises:
        DataError: if there is no frame at all.

    Example:
        >>> report = examine_data({"train": read_frames("train.xyz"), "test": read_frames("test.xyz")})
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    seen = survey(frames_by_split)
    units, wrong = labels.check_units(seen)
    # What is in other units would be taken for the opinion of the set: the rest is examined without it.
    sound = _without(seen, wrong)
    consensus = consensus_of(sound, labels.FORCE_FACTORS)
    asked = {finding.check for finding in units}
    clusters = duplicates.find_clusters(seen)
    runs: list[Callable[[], Iterator[Finding]]] = [
        lambda: labels.check_completeness(seen),
        lambda: coverage.check_distances(seen),
        lambda: labels.check_force_sums(sound),
        lambda: duplicates.check_duplicates(seen, clusters),
        lambda: duplicates.check_leakage(seen, clusters),
        lambda: coverage.check_coverage(seen),
    ]
    if not wrong.all():
        runs += [
            lambda: labels.check_plausibility(sound),
            lambda: labels.check_forces(sound, consensus),
            lambda: labels.check_relation(sound, consensus),
            lambda: iter(()) if "stress" in asked else labels.check_stresses(sound, consensus),
            lambda: labels.check_energies(sound, consensus),
            lambda: mixture.check_mixture(sound, consensus),
        ]
    findings = [*unreadable, *units, *(finding for run in runs for finding in run())]
    found = {finding.check for finding in findings} | (set(_OF_SOUND_UNITS) if wrong.all() else set())
    return Report(
        subject=subject,
        kind="data",
        findings=sorted_findings(findings),
        passed=tuple(name for name in DATA_CHECKS if name not in found),
        facts=_facts(seen, consensus),
        pictures=data_pictures(sound, consensus) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def _without(seen: Survey, wrong: np.ndarray) -> Survey:
    """The survey of the other frames; of all where none or all are wrong."""
    if not wrong.any() or wrong.all():
        return seen
    rest = [(frame, split) for frame, split, bad in zip(seen.frames, seen.split, wrong, strict=True) if not bad]
    return survey({name: [frame for frame, split in rest if split == name] for name in seen.splits})


def _facts(seen: Survey, consensus: Consensus) -> dict[str, object]:
    return {
        "Splits": coverage.split_table(seen),
        "Elements": coverage.element_table(seen),
        "Pairs of elements": coverage.pair_table(seen),
        "Labels": {
            "energy beyond composition, typical (eV/atom)": spread(consensus.composition_residual),
            "energy beyond composition and a linear model, typical (eV/atom)": spread(consensus.residual),
            "misfit of energies and forces in one linear model": consensus.relative_misfit.get(1.0),
        },
    }
