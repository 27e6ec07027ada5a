"""The report of a run, written after every round: Markdown, HTML with pictures, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.active.status import STAGES, Round, Status, seconds_by_stage, status_of
from snnp.data import Frames
from snnp.distillation.label_store import LabelStore
from snnp.distillation.selection import describe
from snnp.files import write_atomically
from snnp.report import COLOURS, GREY, Figure, Finding, Report, Table, colours, new_panels, plain_ticks, png

__all__ = ["report_of", "write"]

_MOST_ATOMS, _MOST_FRAMES = 4000, 600  # on the map
_EVERYTHING = 0.8  # share of trajectories that end where they begin, from which that is said
_COLUMNS = (
    *("round", "labels", "failed", "force_spread (eV/Å)", "force_MAE (eV/Å)", "energy_MAE (meV/atom)"),
    *("frames harvested", "temperatures (K)", "densities (g/cm³)", "seconds"),
)


def write(folder: Path, store: LabelStore, chosen: Sequence[Frames]) -> Report:
    """Write report.md, report.html, report.json and the pictures beside them.

    Arguments:
        chosen: the structures of each round, from 0.
    """
    made = report_of(folder, [store.labelled(frames) for frames in chosen])
    for ending, text in (("md", made.markdown()), ("html", made.html()), ("json", made.to_json())):
        write_atomically(folder / f"report.{ending}", text.encode())
    for picture in made.pictures:
        write_atomically(folder / f"{picture.title.lower().replace(' ', '-')}.png", picture.png)
    return made


def report_of(folder: Path, labelled: Sequence[Frames]) -> Report:
    """What a run did until now, from its journal, its trajectories and its labels of each round."""
    status = status_of(folder)
    pictures = [_progress(status.rounds)] if status.n_labels else []
    visited = _visited(folder, len(status.rounds))
    if any(len(each) for each in visited.values()):
        pictures.append(_visits(visited))
    if sum(map(len, labelled)) > 2:
        pictures.append(_map(labelled))
    tables = [
        Table(_COLUMNS, [_row(each) for each in status.rounds], "Rounds", n_text=0),
        Table.of("Failed labels", status.failures),
        Table.of("Seconds by stage", seconds_by_stage(status.rounds)),
        Table.of(
            "Run",
            {
                "labeller": status.labeller,
                "state": status.state,
                "why": status.why,
                "hours": status.hours,
                "hours left, at most": status.hours_left,
                **{f"limit of {name.replace('_', ' ')}": value for name, value in status.limits.items()},
            },
        ),
    ]
    tables = [table for table in tables if table.rows]
    asked = sum(each.number > 0 and each.labelled > 0 for each in status.rounds)
    said = f"{status.n_labels:,} labels, {asked} rounds; {status.state}: {status.why}"
    findings, name = tuple(_findings(status)), folder.resolve().name
    return Report(name, "active", findings, tuple(STAGES), tables, pictures, 3600.0 * status.hours, said)


def _row(one: Round) -> list[Any]:
    measured, sampled = one.measured, one.sampled
    energy = measured.get("energy_mae")
    spans = [_span(sampled.get(name), form) for name, form in (("temperature", ".0f"), ("density", ".2f"))]
    numbers = [measured.get("force_spread"), measured.get("force_mae"), None if energy is None else 1000.0 * energy]
    seconds = round(sum(one.seconds.values()), 1)
    return [one.number, one.labelled, one.failed, *numbers, sampled.get("harvested"), *spans, seconds]


def _span(values: Sequence[float] | None, form: str) -> str | None:
    return None if values is None else f"{values[0]:{form}} to {values[1]:{form}}"


def _findings(status: Status) -> list[Finding]:
    found = []
    if status.state == "failed":
        found.append(Finding("run", "error", status.why, cure="Mend it, and go on with 'snnp active resume'."))
    if n := sum(status.failures.values()):
        said = ", ".join(f"{number} {why}" for why, number in status.failures.items())
        cure = "The journal names each structure with its reason."
        found.append(Finding("labels", "note", f"{n} structures have no label: {said}", cure=cure))
    for one in status.rounds:
        total = one.sampled.get("trajectories") or 0
        if one.number > 1 and total and one.sampled.get("at_once", 0) > _EVERYTHING * total:
            said = f"round {one.number}: {one.sampled['at_once']} of {total} trajectories ended where they began"
            meaning = "Nothing is certain enough to move, so that nothing but starts is labelled."
            cure = "Raise the limits of sampling, or begin with more labels."
            found.append(Finding("limits that nothing passes", "warning", said, meaning, cure))
    found += [Finding("journal", "note", said) for said in status.changes]
    return sorted(found, key=lambda each: ("error", "warning", "note").index(each.severity))


# Pictures.


def _progress(rounds: Sequence[Round]) -> Figure:
    figure, (labels, errors, seconds) = new_panels(3, 3.6, 3.0, columns=3)
    numbers = [each.number for each in rounds]
    labels.bar(numbers, [each.labelled for each in rounds], color=COLOURS[0], label="labelled")
    if any(each.failed for each in rounds):
        below = [each.labelled for each in rounds]
        labels.bar(numbers, [each.failed for each in rounds], bottom=below, color=COLOURS[1], label="failed")
        labels.legend(frameon=False, fontsize=8)
    labels.set(xlabel="round", ylabel="labels")
    measured = [each for each in rounds if each.measured]
    for name, colour, text in (("force_spread", COLOURS[0], "disagreement"), ("force_mae", COLOURS[1], "force MAE")):
        points = [(m.measured["labels"], m.measured[name]) for m in measured if m.measured.get(name)]
        if points:
            errors.plot(*zip(*points, strict=True), "o-", color=colour, label=text, markersize=4)
    if errors.lines:
        errors.set_yscale("log")
        errors.legend(frameon=False, fontsize=8)
    errors.set(xlabel="labels", ylabel="on the probes (eV/Å)")
    below_ = np.zeros(len(rounds))
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        heights = np.array([each.seconds.get(stage, 0.0) for each in rounds])
        if heights.any():
            seconds.bar(numbers, heights, bottom=below_, color=colour, label=stage)
            below_ += heights
    seconds.legend(frameon=False, fontsize=8)
    seconds.set(xlabel="round", ylabel="wall time (s)", ylim=(0.0, 1.45 * max(below_.max(), 1e-3)))
    plain_ticks(labels.yaxis, errors.xaxis, errors.yaxis, seconds.yaxis)
    for panel in (labels, seconds):
        panel.set_xticks(numbers[:: max(1, len(numbers) // 8)])
    said = "Labels of each round; the committee's disagreement about the probes, and its error there; time by stage"
    return Figure("Progress", f"{said}.", png(figure))


def _visited(folder: Path, rounds: int) -> dict[int, list[tuple[float, float, float | None, float]]]:
    """Round -> moments of its trajectories: ps, K, g/cm³, spread."""
    found: dict[int, list[tuple[float, float, float | None, float]]] = {}
    for number in range(1, rounds):
        path = folder / f"round-{number}" / "sample" / "trajectories.json"
        if path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            found[number] = [tuple(moment) for each in tree["trajectories"] for moment in each["visited"]]
    return found


def _visits(visited: dict[int, list[tuple[float, float, float | None, float]]]) -> Figure:
    moments = [moment for each in visited.values() for moment in each]
    periodic = any(moment[2] is not None for moment in moments)
    figure, (where, when) = new_panels(2, 4.6, 3.4, columns=2)
    for (number, each), colour in zip(visited.items(), colours(len(visited)), strict=True):
        if each:
            time, kelvin, density, spread = zip(*each, strict=True)
            across = [np.nan if value is None else value for value in density] if periodic else time
            where.scatter(across, kelvin, s=5, color=colour, alpha=0.6, linewidths=0, label=f"round {number}")
            when.scatter(time, np.maximum(spread, 1e-3), s=5, color=colour, alpha=0.6, linewidths=0)
    where.set(xlabel="density (g/cm³)" if periodic else "time (ps)", ylabel="temperature (K)")
    when.axhline(1.0, color=GREY, linewidth=1.0, zorder=0)
    when.set(xlabel="time (ps)", ylabel="disagreement / limit", yscale="log")
    plain_ticks(where.xaxis, where.yaxis, when.xaxis, when.yaxis)
    if len(visited) <= 8:
        where.legend(frameon=False, fontsize=8, markerscale=2.0, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    said = (
        "Where the trajectories were (left), and how far the committee disagreed (right; above 1 a frame is harvested)"
    )
    return Figure("Visited", f"{said}.", png(figure))


def _map(labelled: Sequence[Frames]) -> Figure:
    """Environments of labelled atoms, in the plane in which they differ most."""
    parts, rounds = [], []
    each = max(8, _MOST_FRAMES // max(1, len(labelled)))
    for number, frames in enumerate(labelled):
        if len(frames):
            rows = np.unique(np.linspace(0, len(frames) - 1, min(each, len(frames))).round().astype(int))
            features = describe(frames.take(rows))
            step = max(1, len(features) * len(labelled) // _MOST_ATOMS)
            parts.append(features[::step])
            rounds += [number] * len(parts[-1])
    plane, of_round = _plane(np.concatenate(parts)), np.array(rounds)
    figure, (panel,) = new_panels(1, 5.6, 4.4)
    present = np.unique(of_round)
    for number, colour in zip(present.tolist(), colours(len(present)), strict=True):
        mine = plane[of_round == number]
        label = "start" if number == 0 else f"round {number}"
        panel.scatter(mine[:, 0], mine[:, 1], s=5, color=colour, alpha=0.6, linewidths=0, label=label)
    panel.set(xlabel="first component", ylabel="second component", xticks=[], yticks=[])
    panel.legend(frameon=False, fontsize=8, markerscale=2.0, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    said = (
        "Each point is the surroundings of a labelled atom; near points are alike. Later rounds should reach new places"
    )
    return Figure("Map of environments", f"{said}.", png(figure))


def _plane(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, 2] principal components of scaled features [N, D]."""
    centred = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-3)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, :-3:-1], dtype=np.float64)
