"""Checks of energies, forces and stresses: units, signs, zeros of energy, outliers, sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from snnp.data import check_frames
from snnp.data.consistency import rows_by_file, suspicions
from snnp.doctor.consensus import Consensus, spread
from snnp.doctor.survey import Survey, nearest
from snnp.report import Finding
from snnp.units import BOHR_IN_ANGSTROM, ENERGY_UNITS, NM_IN_ANGSTROM, PRESSURE_UNITS

__all__ = ["COMPARED", "FORCE_FACTORS", "check_completeness", "check_force_sums", "check_plausibility", "check_units"]

# A number in the file is this factor times the number in eV (and Å).
_ENERGY_UNITS = {name: 1.0 / ENERGY_UNITS[name] for name in ("kcal/mol", "kJ/mol", "Hartree", "Rydberg", "meV")}
_LENGTHS = {"Å": 1.0, "nm": NM_IN_ANGSTROM, "Bohr": BOHR_IN_ANGSTROM}
_USUAL_FORCES = ["kcal/mol/Å", "kJ/mol/Å", "kJ/mol/nm", "Hartree/Bohr", "Hartree/Å", "Rydberg/Bohr", "meV/Å"]
_FORCE_UNITS = {
    unit: _ENERGY_UNITS[energy] * _LENGTHS[length]
    for unit, (energy, _, length) in ((unit, unit.rpartition("/")) for unit in _USUAL_FORCES)
}
_STRESS_UNITS = {name: 1.0 / PRESSURE_UNITS[name] for name in ("GPa", "kbar", "bar")}
FORCE_FACTORS = {
    -1.0: "forces have the wrong sign (gradients in place of forces?)",
    **{1.0 / factor: f"forces are in {unit} and energies in eV" for unit, factor in _FORCE_UNITS.items()},
    **{factor: f"energies are in {unit} and forces in eV/Å" for unit, factor in _ENERGY_UNITS.items()},
}
"""By what forces would have to be multiplied, and what that means."""

_OPPOSITE = -0.6  # correlation with the model's forces; clean frames of twenty sets stay above -0.4
_OF_SIZE, _OF_UNIT = 1.1, 0.3  # logarithms of factors: of forces that are as large as others, and of those in a unit
_FOLLOWS = 0.8  # correlation that makes a ratio of sizes meaningful
_RELIABLE = 0.5  # a tenth of all frames may have less than this before the model is no judge
_FAR = 12.0  # robust standard deviations
_LEAST_ENERGY = 0.1  # eV/atom; less is never called an outlier
_MENDED = 0.03  # eV/atom: so near must an energy come in another unit
_IMPOSSIBLE = 5.0  # eV/atom away from what composition and structure lead to
_MOST_OUTLIERS = 0.05  # of the frames: what is more frequent is another kind of structure
_NET_FORCE, _NET_SHARE = 0.02, 0.05  # eV/Å per atom, and of the typical force
_TORQUE = 0.05
_ASYMMETRIC = 0.1
_FUSED = 0.3  # Å
_LEAST_FRAMES = 30
_LEAST_SHARE = 0.02
_GAP = 4.0  # widths of the wider heap; one heap of thousands of normal deviates has gaps below one
_INTERLEAVED, _APART = 0.04, 0.2  # eV/atom, distance of heaps: of like structures, and of unlike ones
_NO_MATTER = 20.0  # eV/atom; two atoms pushed together reach 5
_AS_NEAR, _MIXED = 1.5, 0.3
_CANDIDATES = 50


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n:,} frames"


def check_units(survey: Survey) -> tuple[list[Finding], np.ndarray]:
    """Findings by `suspicions`, and [n] which frames are in files whose energies or forces are wrong for sure."""
    findings, wrong = [], np.zeros(len(survey.frames), dtype=bool)
    files = rows_by_file(survey.frames)
    for found in suspicions({name: survey.frames.take(rows) for name, rows in files.items()}):
        mine = files[found.file]
        splits = ", ".join(dict.fromkeys(survey.split[mine].tolist()))
        wrong[mine] |= found.certain and found.quantity != "stress"
        findings.append(
            Finding(
                "stress" if found.quantity == "stress" else "units",
                "error" if found.certain else "warning",
                f"{found.file} ({splits}, {_frames(len(mine))}): {found.message}",
                "Labels in different units cannot be learned together: forces are minus the derivative of the energy.",
                found.cure[0].upper() + found.cure[1:] + ".",
                survey.names(np.sort(mine)),
            )
        )
    return findings, wrong


def check_completeness(survey: Survey) -> Iterator[Finding]:
    """Which labels are missing, and which are only placeholders."""
    for what, present in (("energies", np.isfinite(survey.frames.energy)), ("forces", survey.frames.has_forces)):
        if not present.all():
            missing, none = int((~present).sum()), not present.any()
            yield Finding(
                "completeness",
                "warning" if none else "note",
                f"no frame has {what}" if none else f"{missing:,} of {len(present):,} frames have no {what}",
                f"Training uses what is there; errors of {what} are averaged over the frames that have them.",
                "If they exist upstream, check the name of the key; otherwise state it on the data set's card.",
                () if none else survey.names(~present),
            )
    zero = survey.frames.has_forces & (survey.frames.counts > 1)
    zero &= (survey.force_max < 1e-12) & (survey.asymmetry > _ASYMMETRIC)
    if zero.any():
        yield Finding(
            "completeness",
            "error",
            f"{_frames(zero.sum())} have forces of exactly zero where no symmetry makes them so",
            "Zeros were written in place of missing forces: a model would learn that these structures are at rest.",
            "Take the force column away from these frames, or compute their forces.",
            survey.names(zero),
        )


def check_plausibility(survey: Survey) -> Iterator[Finding]:
    """Sizes of forces, distances and stresses that no unit but a wrong one would give."""
    # Scans of two atoms go down to 0.3 Å on purpose.
    fused = float(survey.closest.min(initial=np.inf)) < _FUSED
    for found in check_frames(survey.frames):
        if found.check != "energy_outlier":  # looked at more closely by check_energies
            severe = found.check == "short_distance" and fused
            yield replace(found, check="plausibility", severity="error" if severe else "warning")


def check_forces(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Frames whose forces point the other way, are larger or smaller by the factor of a unit, or agree with nothing."""
    size = np.abs(consensus.force_correlation[consensus.comparable])
    if len(size) < 10 or np.quantile(size, 0.1) <= _RELIABLE:
        return  # the model's forces do not follow those of nearly all frames
    correlation = np.where(consensus.comparable, consensus.force_correlation, np.nan)
    # Another sign leaves the size, but for a unit: atoms that clash in a way of their own are beyond the model.
    off = np.log(np.abs(np.where(consensus.comparable, consensus.force_ratio, np.nan)))
    off -= np.nanmedian(off)
    of_units = np.abs(off[:, None] - np.log(list(_FORCE_UNITS.values()))).min(axis=1) < _OF_UNIT
    opposite = (correlation < _OPPOSITE) & ((np.abs(off) < _OF_SIZE) | of_units)
    if opposite.any():
        yield Finding(
            "force sign",
            "error",
            f"forces of {_frames(opposite.sum())} point against those of all others "
            f"(correlation with a model of the whole set down to {correlation[opposite].min():.2f}, "
            f"usually {np.nanmedian(correlation):.2f})",
            "These forces have the wrong sign: gradients were stored in place of forces.",
            "Multiply the forces of these frames by -1, or read them anew from the reference calculation.",
            survey.names(opposite, -np.nan_to_num(correlation)),
        )
    yield from _force_units(survey, consensus)
    odd = (correlation < 0.3) & ~opposite
    if odd.any() and odd.sum() <= _MOST_OUTLIERS * len(odd):
        yield Finding(
            "force direction",
            "warning",
            f"forces of {_frames(odd.sum())} have little to do with those of all others",
            "The structure is of another kind, or forces belong to another structure or order of atoms.",
            "Recompute one of these frames; look whether atoms and forces are in the same order.",
            survey.names(odd, -np.nan_to_num(correlation)),
        )


def _force_units(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    size, correlation = np.abs(consensus.force_ratio), consensus.force_correlation
    usual = np.log(size[consensus.comparable])
    centre, width = float(np.median(usual)), max(spread(usual), 0.05)
    # By the size that the model expects: forces in a large unit look like those of a structure at rest.
    expected = np.exp(centre) * survey.force_rms * correlation / size
    typical = float(np.median(survey.force_rms[consensus.comparable]))
    judged = consensus.varied & (correlation > _FOLLOWS) & (expected > 0.3 * typical)
    off = np.log(np.where(judged, size, np.nan)) - centre
    for unit, factor in _FORCE_UNITS.items():
        wanted = float(np.log(factor))
        tolerance = min(0.35 * abs(wanted), max(4.0 * width, 0.3))
        # Of all units the nearest: Hartree/Å and Rydberg/Bohr are within a factor of two.
        closest = np.abs(off - wanted) <= np.min([np.abs(off - np.log(f)) for f in _FORCE_UNITS.values()], axis=0)
        bad = (np.abs(off - wanted) < tolerance) & (np.abs(off) > 6.0 * width) & closest
        if bad.any():
            yield Finding(
                "force units",
                "error",
                f"forces of {_frames(bad.sum())} are {factor:.3g} times as large as a model of the whole set "
                f"expects: they seem to be in {unit}",
                "Frames in another unit spoil the fit of all others, in proportion to the factor squared.",
                f"Divide the forces of these frames by {factor:.6g}; then look at their energies too.",
                survey.names(bad),
            )


def check_relation(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Whether forces are the derivatives of the energies: for any other sign or unit one model cannot have both."""
    misfit = consensus.relative_misfit
    if not misfit or np.isfinite(survey.frames.energy).sum() < 20:
        return
    heaps = _find_heaps(consensus.composition_residual, survey.fingerprint)
    if heaps is not None and heaps.distance > _IMPOSSIBLE:
        return  # their distance is all that such a model sees of the energies
    best = min(misfit, key=lambda factor: misfit[factor])
    if best == 1.0 or misfit[best] > 0.5 * misfit[1.0] or misfit[best] > 0.5:
        return
    yield Finding(
        "energies and forces",
        "error",
        f"energies and forces do not belong together, but would if forces were multiplied by {best:.4g} "
        f"(relative misfit of a common model {misfit[1.0]:.2f}, then {misfit[best]:.2f}): {FORCE_FACTORS[best]}",
        "Forces must be minus the derivative of the energy; no model can learn both as they are.",
        "Convert energies to eV and forces to eV/Å, with the sign of forces (minus the gradient).",
    )


def check_energies(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Energies in another unit, given per atom, or far from what the structure leads one to expect."""
    residual, n_atoms, n_known = consensus.residual, survey.frames.counts, np.isfinite(consensus.residual).sum()
    if n_known < 10:
        return
    size, sigma = np.abs(np.nan_to_num(residual)), max(spread(residual), 1e-4)
    far = size > max(_FAR * sigma, _LEAST_ENERGY)
    explained = np.zeros(len(far), dtype=bool)
    hypotheses: list[tuple[str, str, float | np.ndarray]] = [
        *((f"in {unit}", f"divide them by {one:.6g}", 1.0 / one) for unit, one in _ENERGY_UNITS.items()),
        ("energies per atom, others per structure", "multiply them by the number of atoms", n_atoms),
        ("of the opposite sign", "multiply them by -1", -1.0),
    ]
    for said, cure, factor in hypotheses:
        mended = residual + survey.frames.energy * (factor - 1.0) / n_atoms
        hit = far & ~explained & (np.abs(mended) < max(6.0 * sigma, _MENDED))
        # Among many outliers of another kind one may fit by chance, unless it is farther off than matter can be.
        certain = hit.any() and (size[hit].min() > _IMPOSSIBLE or hit.sum() >= 0.2 * far.sum())
        if certain and hit.sum() < 0.5 * n_known:
            explained |= hit
            yield Finding(
                "energy units",
                "error",
                f"energies of {_frames(hit.sum())} are off by up to {size[hit].max():.3g} eV/atom, "
                f"but fit if they are {said}",
                "Frames in another unit spoil the fit of all others.",
                f"In these frames {cure}; then look at their forces too.",
                survey.names(hit, size),
            )
    rest = far & ~explained
    if rest.any() and rest.sum() <= _MOST_OUTLIERS * len(rest):
        yield Finding(
            "energy outliers",
            "warning",
            f"energies of {_frames(rest.sum())} lie up to {size[rest].max():.3g} eV/atom away from what their "
            f"composition and structure lead one to expect (typical deviation {sigma:.2g})",
            "A failed or unconverged calculation, another magnetic state, or matter far from the rest of the set.",
            "Look at the worst frames first; keep them if they are meant, remove or recompute them if not.",
            survey.names(rest, size),
        )


def check_force_sums(survey: Survey) -> Iterator[Finding]:
    """Forces of a frame must sum to zero, and those of a molecule must not turn it."""
    moving = survey.frames.has_forces & (survey.frames.counts > 1)
    if not moving.any():
        return
    usual = float(np.median(survey.force_rms[moving]))
    limit = np.maximum(_NET_FORCE, _NET_SHARE * np.maximum(survey.force_rms, usual))
    pushed = moving & (survey.net_force > limit)
    if pushed.any():
        yield Finding(
            "force sums",
            "warning",
            f"forces of {_frames(pushed.sum())} do not sum to zero "
            f"(up to {survey.net_force[pushed].max():.3g} eV/Å per atom)",
            "An external field, atoms held fixed or left out, a coarse grid, or damaged columns; no potential can "
            "learn a net force.",
            "Recompute with tighter settings, or subtract the mean force of each frame and say so on the card.",
            survey.names(pushed, survey.net_force),
        )
    turned = moving & (np.nan_to_num(survey.torque) > _TORQUE) & (survey.force_max > _NET_FORCE) & ~pushed
    if turned.any():
        yield Finding(
            "torques",
            "warning",
            f"forces of {_frames(turned.sum())} would turn the molecule "
            f"(up to {survey.torque[turned].max():.2f} of the largest possible torque)",
            "Positions and forces are in different orientations or orders of atoms, or there is an external field.",
            "Take positions and forces from the same block of the output (programs may reorient molecules).",
            survey.names(turned, np.nan_to_num(survey.torque)),
        )


def check_stresses(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Sign and unit of stresses, by what energies and forces say about the volume."""
    norm = np.nan_to_num(np.linalg.norm(survey.frames.stress, axis=(1, 2)))
    correlation, misfit = consensus.stress_correlation, consensus.relative_misfit
    # Where forces fit better with another factor the model's stress has no meaning, and no sign.
    if (norm > 0).sum() < 10 or not misfit or min(misfit, key=lambda factor: misfit[factor]) != 1.0:
        return
    telling = (norm > np.median(norm[norm > 0])) & np.isfinite(correlation)
    middle = float(np.median(correlation[telling])) if telling.sum() >= 5 else 0.0
    if abs(middle) < 0.8:
        return
    size = float(np.median(np.abs(consensus.stress_ratio[telling])))
    unit = min(_STRESS_UNITS, key=lambda name: abs(np.log(size / _STRESS_UNITS[name])))
    faults = ["have the opposite sign"] if middle < 0 else []
    faults += [f"seem to be in {unit}"] if size > 30.0 else []
    if not faults:
        return
    yield Finding(
        "stress",
        "error",
        f"stresses {' and '.join(faults)} (median correlation with a model of energies and forces {middle:.2f}, "
        f"ratio {size:.3g})",
        "Stress here is dE/dstrain/V in eV/Å³: positive under tension, as in ASE. Many programs print pressure or the "
        "virial, with the opposite sign, in GPa or kbar.",
        "Convert, or name a key that holds 'virial' where the file has virials in eV.",
    )


class _Heaps(NamedTuple):
    """Two heaps of energies, by the indices of their frames."""

    smaller: np.ndarray
    larger: np.ndarray
    distance: float  # eV/atom between their medians
    mixed: float  # share of the smaller that has a structure of the other about as near as one of its own


def _find_heaps(residual: np.ndarray, fingerprint: np.ndarray) -> _Heaps | None:
    """Split energies [n] (eV/atom, NaN where unknown) of frames at the clearest gap; None where there is none."""
    known = np.flatnonzero(np.isfinite(residual))
    if len(known) < _LEAST_FRAMES:
        return None
    order = known[np.argsort(residual[known])]
    values = residual[order]
    least = max(5, int(_LEAST_SHARE * len(values)))
    gaps = np.diff(values)
    gaps[: least - 1] = gaps[len(values) - least :] = 0.0
    widths = {k: max(spread(values[: k + 1]), spread(values[k + 1 :]), 1e-4) for k in np.argsort(-gaps)[:_CANDIDATES]}
    where = max(widths, key=lambda k: gaps[k] / widths[k])
    if gaps[where] / widths[where] < _GAP:
        return None
    lower, upper = order[: where + 1], order[where + 1 :]
    smaller, larger = sorted((np.sort(upper), np.sort(lower)), key=len)
    few, many = fingerprint[smaller], fingerprint[larger]
    own, other = nearest(few, few, 2)[0][:, 1], nearest(few, many, 1)[0][:, 0]
    distance = float(np.median(residual[upper]) - np.median(residual[lower]))
    return _Heaps(smaller, larger, distance, float((other < _AS_NEAR * own).mean()))


def check_mixture(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Two heaps of energies beyond composition and structure: mixed codes, functionals or zeros of energy."""
    heaps = _find_heaps(consensus.residual, survey.fingerprint)
    if heaps is None:
        # Heaps so far apart spoil the model; no matter differs as much for the same composition.
        heaps = _find_heaps(consensus.composition_residual, survey.fingerprint)
        if heaps is None or heaps.distance < _NO_MATTER:
            return
    alike = heaps.mixed > _MIXED
    if heaps.distance < (_INTERLEAVED if alike else _APART):
        return
    owners = _owners(survey, heaps.smaller, heaps.larger)
    among = "among structures that are alike" if alike else "though these may be structures of another kind"
    yield Finding(
        "level of theory",
        "error" if alike else "warning",
        f"energies fall into two heaps {heaps.distance:.3g} eV/atom apart, {among}: "
        f"{len(heaps.smaller):,} and {len(heaps.larger):,} frames{owners}",
        "Two codes, functionals, pseudopotentials, magnetic states or zeros of energy are mixed; their difference is "
        "no physics, but a model would try to learn it from the structures.",
        "Keep one level of theory per data set; or bring the zeros together with the energies of isolated atoms at "
        "each level, and say so on the card.",
        survey.names(heaps.smaller),
    )


def _owners(survey: Survey, smaller: np.ndarray, larger: np.ndarray) -> str:
    columns = {
        "file": [source.rpartition("#")[0] for source in survey.frames.sources],
        "split": survey.split.tolist(),
        "group": [group or "" for group in survey.frames.groups],
    }
    for what, labels in columns.items():
        inside, outside = {labels[k] for k in smaller}, {labels[k] for k in larger}
        if inside and "" not in inside and not inside & outside:
            return f"; the smaller heap is {what} {', '.join(sorted(inside)[:5])}"
    return ""


COMPARED = (check_forces, check_relation, check_stresses, check_energies, check_mixture)
"""Checks of a survey by its consensus."""
