"""`examine_data`: every check of a data set in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from snnp.data import Frame
from snnp.doctor import coverage, duplicates, labels, mixture
from snnp.doctor.consensus import Consensus, consensus_of, spread
from snnp.doctor.data_pictures import data_pictures
from snnp.doctor.report import Finding, Report, sorted_findings
from snnp.doctor.survey import Survey, survey

__all__ = ["DATA_CHECKS", "examine_data"]

DATA_CHECKS = (
    *("readable", "completeness", "plausibility", "distances", "force sums", "torques", "force sign", "force units"),
    *("force direction", "energies and forces", "stress", "energy units", "energy outliers", "level of theory"),
    *("duplicates", "contradictions", "leakage", "near duplicates", "coverage"),
)
"""Names of all checks; a report lists those that found nothing."""


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
        unreadable: what was found while reading (see `snnp.doctor.reading.read_set`).
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
    consensus = consensus_of(seen, labels.FORCE_FACTORS)
    clusters = duplicates.find_clusters(seen)
    runs: list[Callable[[], Iterator[Finding]]] = [
        lambda: labels.check_completeness(seen),
        lambda: labels.check_plausibility(seen),
        lambda: coverage.check_distances(seen),
        lambda: labels.check_force_sums(seen),
        lambda: labels.check_forces(seen, consensus),
        lambda: labels.check_relation(seen, consensus),
        lambda: labels.check_stresses(seen, consensus),
        lambda: labels.check_energies(seen, consensus),
        lambda: mixture.check_mixture(seen, consensus),
        lambda: duplicates.check_duplicates(seen, clusters),
        lambda: duplicates.check_leakage(seen, clusters),
        lambda: coverage.check_coverage(seen),
    ]
    findings = [*unreadable, *(finding for run in runs for finding in run())]
    found = {finding.check for finding in findings}
    return Report(
        subject=subject,
        kind="data",
        findings=sorted_findings(findings),
        passed=tuple(name for name in DATA_CHECKS if name not in found),
        facts=_facts(seen, consensus),
        pictures=data_pictures(seen, consensus) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


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
