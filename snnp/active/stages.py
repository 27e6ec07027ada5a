"""The stages of a round as functions of files: a beginning, a committee, its trajectories, a choice, a measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp import training
from snnp.active.journal import Journal
from snnp.active.settings import ActiveSettings, Limits
from snnp.data import Frames
from snnp.data.read import read_any
from snnp.data.write import write_frames
from snnp.distillation.crystals import frames_of
from snnp.distillation.label_store import LabelStore, structure_keys
from snnp.distillation.selection import choose
from snnp.errors import ConfigError, DataError
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.models.store import load_model

__all__ = [
    *(
        "Stages",
        "WithFacts",
        "chosen",
        "first_structures",
        "known_labels",
        "measure",
        "place",
        "plateau",
        "probe_of",
        "sample",
    ),
    *("select", "to_label", "train"),
]

_CHOSEN, _GIVEN, _PROBE = "chosen.extxyz", "given.extxyz", "probe.extxyz"
_TWINS, _TWIN_SHIFT = 6, 0.03  # Å: near enough that energies change by the work of forces, far enough to be seen


@dataclass(frozen=True)
class WithFacts:
    """What a stage made, and what the journal keeps of it."""

    value: Any
    facts: dict[str, Any]


def place(settings: ActiveSettings, number: int, round_number: int = 0) -> list[Atoms]:
    """Conformers of the molecules that are named, others in each round; else atoms at random places and densities."""
    from snnp.active.placement import conformers
    from snnp.active.trajectories import placements

    names, found = settings.start.molecules, list[Atoms]()
    if not names:
        return placements(_sampling(settings), number, settings.seed)
    while len(found) < number:  # it gives about as many as it is asked for
        found += conformers(names, number, 10_000 * settings.seed + 100 * round_number + len(found))
    if unknown := {symbol for atoms in found for symbol in atoms.symbols} - set(settings.elements):
        raise ConfigError(
            f"start.molecules hold {', '.join(sorted(unknown))}, which elements does not name; add what is missing."
        )
    return found[:number]


def _sampling(settings: ActiveSettings) -> Any:
    from snnp.active.trajectories import SamplingSettings

    usual = {"elements": settings.elements, "system": "molecule" if settings.start.molecules else "metal"}
    return SamplingSettings(**{**usual, **settings.sampling})


def train(settings: ActiveSettings, known: Frames, folder: Path, report: Callable[[int, int, int], None]) -> WithFacts:
    """A committee: equal models whose seeds, and with these their held-out frames, differ; or heads of one model.

    Arguments:
        known: labelled frames. folder: of the round. report: is told member, epoch, and epochs of each.
    """
    data = folder / "labels.extxyz"
    if not data.exists():
        write_frames([("train", replace(known, extras=()))], data, "", "snnp")
    facts = {"frames": len(known), "members": settings.members}
    if settings.heads:
        return WithFacts(_train_heads(settings, data, folder, report), facts)
    members = []
    for member in range(settings.members):
        config = settings.trained_on([data], member)
        members.append(_trained(config, folder / f"member-{member}", partial(report, member)))
    return WithFacts(Ensemble(members), facts)


def _trained(config: training.TrainConfig, path: Path, report: Callable[[int, int], None]) -> Potential:
    """A model; what is there of its training already is kept."""

    def tell(now: training.Progress) -> None:
        if now.message is None:
            report(now.epoch, now.epochs)

    if (path / "summary.json").exists():
        return load_model(path / "best")
    if (path / "config.yaml").exists():
        return training.resume(path, tell).model
    return training.train(config, path, tell, overwrite=True).model


def _train_heads(
    settings: ActiveSettings, data: Path, folder: Path, report: Callable[[int, int, int], None]
) -> Ensemble:
    """One model, and readouts on its filters; calibrated where enough frames are held out."""
    from snnp.uncertainty.bootstrap import train_heads

    config, head = settings.trained_on([data], 0), count(1)
    _trained(config, folder / "filters", partial(report, 0))
    shared = config.model_copy(update={"start": str(folder / "filters" / "best")})
    return train_heads(
        shared,
        folder / "heads",
        n_heads=settings.members,
        say=lambda _: report(next(head), 0, config.optimiser.epochs),
    )


def sample(
    settings: ActiveSettings,
    committee: Ensemble,
    known: Frames,
    folder: Path,
    number: int,
    report: Callable[[int, int, int], None],
) -> WithFacts:
    """Frames in which the committee disagrees, from its own dynamics; see `snnp.active.trajectories`."""
    from snnp.active.trajectories import sample as run_trajectories

    how, starts = _sampling(settings), list[Atoms]()
    if settings.start.molecules:
        starts = place(settings, how.trajectories, number)
    elif settings.start.data:
        starts = _drawn_starts(settings, known, number)
    seed = 1000 * settings.seed + number
    found = run_trajectories(committee, how, starts, folder, seed, known=known, report=report)
    moments = [moment for each in found.trajectories for moment in each.visited]
    densities = [moment[2] for moment in moments if moment[2] is not None]
    kelvin, spreads = [moment[1] for moment in moments], [moment[3] for moment in moments]
    facts = {
        "trajectories": len(found.trajectories),
        "harvested": found.harvested,
        "reasons": found.reasons,
        "ends": found.ends,
        "picoseconds": round(sum(each.picoseconds for each in found.trajectories), 3),
        "at_once": sum(each.steps == 0 for each in found.trajectories),
        "temperature": [min(kelvin), max(kelvin)] if kelvin else None,
        "density": [min(densities), max(densities)] if densities else None,
        "largest_spread": max(spreads, default=None),
    }
    return WithFacts(found.frames, facts)


def _drawn_starts(settings: ActiveSettings, known: Frames, number: int) -> list[Atoms]:
    """Structures that are known, drawn anew in each round."""
    order = np.random.default_rng([settings.seed, number, 3]).permutation(len(known))
    return [known[int(row)].structure.to_ase()[0] for row in order[: settings.start.number]]


@dataclass(frozen=True)
class Stages:
    """How structures are made, models trained and trajectories run; studies put in others."""

    place: Callable[[ActiveSettings, int], list[Atoms]] = place
    train: Callable[[ActiveSettings, Frames, Path, Callable[[int, int, int], None]], WithFacts] = train
    sample: Callable[[ActiveSettings, Ensemble, Frames, Path, int, Callable[[int, int, int], None]], WithFacts] = sample


# Files.


def _write(frames: Frames, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frames([("", replace(frames, extras=()))], path, "", "snnp")


def _read(path: Path, name: str) -> Frames:
    """Frames of a file of ours, named by their round; an empty one holds none."""
    if not path.exists() or not path.stat().st_size:
        return Frames.of([])
    found = Frames.concatenate(list(read_any(path, label=name, labelled=False, extras=False)))
    return replace(found, extras=[None] * len(found))


def chosen(folder: Path, number: int) -> Frames:
    """The structures of a round, without labels; none where it has none yet."""
    return _read(folder / f"round-{number}" / _CHOSEN, f"round-{number}")


def first_structures(settings: ActiveSettings, folder: Path, work: Stages) -> Frames:
    """What a run begins with, written to round-0; a few displaced copies of one of them show the labeller's units."""
    path = folder / "round-0" / _CHOSEN
    if not path.exists():
        number = min(settings.start.number, settings.limits.labels)
        twins = _TWINS if settings.labeller.check_units != "off" and number > 2 * _TWINS else 0
        asked, given = Frames.of([]), Frames.of([])
        if settings.start.data:
            asked, given = _start_data(settings)
        if len(asked) > number - twins:
            asked = choose(asked, number - twins, Counter(group or "" for group in asked.groups), seed=settings.seed)
        if not len(asked) and not len(given):
            asked = frames_of([("placed", atoms) for atoms in work.place(settings, number - twins)], "start")
        if twins and len(asked):
            asked = Frames.concatenate([_twins(asked, twins, settings.seed), asked])
        _write(given, path.with_name(_GIVEN))
        _write(asked, path)
    return chosen(folder, 0)


def _twins(frames: Frames, number: int, seed: int) -> Frames:
    rng = np.random.default_rng([seed, 5])
    (atoms,) = frames[0].structure.to_ase()
    copies = []
    for _ in range(number):
        copy = atoms.copy()
        copy.positions += rng.normal(0.0, _TWIN_SHIFT, copy.positions.shape)
        copies.append(("twin", copy))
    return frames_of(copies, "start")


def _start_data(settings: ActiveSettings) -> tuple[Frames, Frames]:
    """Structures to be labelled, and those whose labels serve."""
    found = Frames.concatenate([frames for name in settings.start.data for frames in read_any(name, labelled=False)])
    found = replace(found, extras=[None] * len(found))
    if unknown := set(found.elements) - set(settings.elements):
        raise ConfigError(f"start.data holds {', '.join(sorted(unknown))}, which elements does not name; add them.")
    served = found.has_energy & found.has_forces & settings.start.labelled
    if settings.start.labelled and not served.any():
        raise DataError("start.labelled: none of the structures of start.data has energy and forces; leave it away.")
    nothing = Frames.of(
        frame.__class__(frame.structure, None, None, None, frame.group, frame.source) for frame in found
    )
    return nothing.take(~served), found.take(served)


def known_labels(settings: ActiveSettings, folder: Path, store: LabelStore, number: int) -> Frames:
    """Labels of all rounds before this one, without the probes."""
    parts = [_read(folder / "round-0" / _GIVEN, "given")]
    parts += [store.labelled(chosen(folder, k)) for k in range(number)]
    parts = [replace(part, extras=()) for part in parts if len(part)]
    if not parts:
        raise DataError("there are no labels yet to train on.")
    return Frames.concatenate(parts)


def select(
    settings: ActiveSettings, folder: Path, sampled: Sequence[Atoms], store: LabelStore, number: int, room: int
) -> WithFacts:
    """Those of the sampled frames that are asked for, different from each other and from what is known; in the first
    round the probes, too.

    Arguments:
        room: how many labels may still be asked for.
    """
    path = folder / f"round-{number}" / _CHOSEN
    if path.exists():
        return WithFacts(chosen(folder, number), {})
    if not sampled:
        return WithFacts(Frames.of([]), {"sampled": 0, "chosen": 0})
    frames = frames_of([(str(a.info.get("reason", "sampled")), a) for a in sampled], f"round-{number}")
    keys = structure_keys(frames)
    new = [row for row, key in enumerate(keys) if key not in store and key not in keys[:row]]
    frames, probes = frames.take(new), 0
    if number == 1 and not settings.probe.data and settings.probe.number and len(frames) > 1:
        order = np.random.default_rng([settings.seed, 4]).permutation(len(frames))
        probes = min(settings.probe.number, len(frames) // 2, max(0, room - 1))
        _write(frames.take(np.sort(order[:probes])), folder / _PROBE)
        frames = frames.take(np.sort(order[probes:]))
    number_asked = max(0, min(settings.per_round, room - probes))
    known = known_labels(settings, folder, store, number)
    picked = choose(
        frames, number_asked, Counter(group or "" for group in frames.groups), known, settings.seed + number
    )
    _write(picked, path)
    facts = {"sampled": len(sampled), "known": len(sampled) - len(new), "probes": probes, "chosen": len(picked)}
    return WithFacts(chosen(folder, number), facts)


def to_label(settings: ActiveSettings, folder: Path, number: int) -> Frames:
    """What is asked for in a round: what was chosen, and in the first one the probes."""
    asked = chosen(folder, number)
    probe = probe_of(settings, folder) if number == 1 and not settings.probe.data else None
    return asked if probe is None else Frames.concatenate([asked, probe])


def probe_of(settings: ActiveSettings, folder: Path) -> Frames | None:
    """The probes; None where there are none yet."""
    if settings.probe.data:
        found = [frames for name in settings.probe.data for frames in read_any(name, labelled=False)]
        return replace(Frames.concatenate(found), extras=())
    probe = _read(folder / _PROBE, "probe")
    return probe if len(probe) else None


def measure(settings: ActiveSettings, folder: Path, store: LabelStore, committee: Ensemble, number: int) -> WithFacts:
    """The disagreement about the probes of round `number`'s committee, and its errors where these have labels."""
    probe = probe_of(settings, folder)
    assert probe is not None
    labelled = probe if settings.probe.data else store.labelled(probe)
    found = committee.compute(probe.structure())
    assert found.energy_std is not None
    assert found.forces_std is not None
    spread = found.forces_std.detach().double().square().sum(dim=1).sqrt().cpu().numpy()
    facts: dict[str, Any] = {
        "labels": len(known_labels(settings, folder, store, number)),
        "probes": len(probe),
        "energy_spread": float((found.energy_std.detach().double().cpu().numpy() / probe.counts).mean()),
        "force_spread": float(spread.mean()),
    }
    known = labelled.take(labelled.has_energy & labelled.has_forces)
    if len(known):
        said = committee.compute(known.structure())
        assert said.forces is not None
        energy = (said.energy.detach().double().cpu().numpy() - known.energy) / known.counts
        forces = said.forces.detach().double().cpu().numpy() - known.forces
        facts |= {"energy_mae": float(np.abs(energy).mean()), "force_mae": float(np.abs(forces).mean())}
        facts |= {"force_rmse": float(np.sqrt((forces**2).mean())), "force_scale": float(np.abs(known.forces).mean())}
    return WithFacts(facts, facts)


def plateau(limits: Limits, journal: Journal) -> str | None:
    """That the disagreement about the probes no longer falls, in words; None while it does."""
    if not limits.plateau_rounds:
        return None
    by_round = {each["round"]: each["facts"]["force_spread"] for each in journal.of("finished", stage="measure")}
    spreads = [by_round[number] for number in sorted(by_round)]
    last = spreads[-limits.plateau_rounds - 1 :]
    if len(last) <= limits.plateau_rounds:
        return None
    falls = [1.0 - after / before if before > 0.0 else 0.0 for before, after in pairwise(last)]
    if max(falls) >= limits.plateau_change:
        return None
    return (
        f"a plateau: the disagreement about the probes fell by less than {limits.plateau_change:.0%} in each of the "
        f"last {limits.plateau_rounds} rounds (to {last[-1]:.3g} eV/Å)"
    )
