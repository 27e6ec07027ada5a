"""Where a run stands, read from its journal alone: rounds, labels, failures, time by stage, and what is left of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snnp.active.journal import NAME, Entry, read_journal
from snnp.errors import InputError
from snnp.files import hold

__all__ = ["Round", "Status", "hours_of", "status_of"]

STAGES = ("train", "measure", "sample", "select", "label")


@dataclass
class Round:
    """What the journal says of one round; `seconds` by stage, `measured` as the stage measure wrote it."""

    number: int
    asked: int = 0
    labelled: int = 0
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    sampled: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """A run as its journal tells it.

    Arguments:
        state: "running", "stopped" (it can go on), "failed" (likewise), "finished", or "killed" (likewise).
        why: the last reason to end, or the stage at which it is.
        rounds: from 0, the structures that it began with. failures: reason -> number.
        hours: wall time of all sessions. hours_left: about, by the limits; None where that cannot be said.
        limits: as they were last set. changes: of the configuration, and other notes, oldest first.
    """

    folder: str
    state: str
    why: str
    rounds: list[Round]
    failures: dict[str, int]
    hours: float
    hours_left: float | None
    limits: dict[str, Any]
    changes: list[str]
    labeller: str

    @property
    def n_labels(self) -> int:
        """Labels so far."""
        return sum(each.labelled for each in self.rounds)

    def json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "n_labels": self.n_labels, "rounds": [vars(each) for each in self.rounds]}


def status_of(folder: str | Path) -> Status:
    """Where the run in a folder stands.

    Raises:
        DataError: where there is no run, or its journal is damaged.
    """
    path = Path(folder) / NAME
    entries, _, _ = read_journal(path)
    rounds, failures = _rounds(entries), Counter[str]()
    for entry in entries:
        if entry["event"] == "failed" and entry["final"]:
            failures[entry["why"]] += 1
    limits: dict[str, Any] = next((e["settings"]["limits"] for e in reversed(entries) if "settings" in e), {})
    labeller = next((e["name"] for e in entries if e["event"] == "labeller"), "")
    state, why = _state(path, entries)
    hours = hours_of(entries, state == "running")
    left = None if state == "finished" else _hours_left(rounds, limits, hours)
    return Status(str(folder), state, why, rounds, dict(failures), hours, left, limits, _notes(entries), labeller)


def _rounds(entries: Iterable[Entry]) -> list[Round]:
    found: dict[int, Round] = {}
    for entry in entries:
        number = entry.get("round")
        if number is None:
            continue
        one = found.setdefault(number, Round(number))
        event = entry["event"]
        one.asked += event == "asked"
        one.labelled += event == "labelled"
        one.failed += event == "failed" and entry["final"]
        if event == "finished":
            one.seconds[entry["stage"]] = one.seconds.get(entry["stage"], 0.0) + entry["seconds"]
            if entry["stage"] == "measure":
                one.measured = entry["facts"]
            elif entry["stage"] in ("sample", "select"):
                one.sampled |= entry["facts"]
    return [found[number] for number in sorted(found)]


def _state(path: Path, entries: Sequence[Entry]) -> tuple[str, str]:
    last = entries[-1] if entries else {"event": "killed"}
    for event, state in (("ended", "finished"), ("stopped", "stopped"), ("failure", "failed")):
        if last["event"] == event:
            return state, str(last["why"])
    begun = next((e for e in reversed(entries) if e["event"] == "begun"), None)
    at = f"round {begun['round']}, {begun['stage']}" if begun is not None else "the beginning"
    try:
        with hold([path]):
            return "killed", f"at {at}; resume it"
    except InputError:
        return "running", at
    except OSError:  # a folder that cannot be written to, of somebody else
        return "running or killed", at


def hours_of(entries: Sequence[Entry], running: bool = False) -> float:
    """Wall time of all sessions together, of a running one until now."""
    total = 0.0
    first: datetime | None = None
    last: datetime | None = None
    for entry in entries:
        when = datetime.fromisoformat(entry["time"])
        if entry["event"] == "session" and first is not None and last is not None:
            total += (last - first).total_seconds()
            first = when
        first, last = first or when, when
    if first is not None and last is not None:
        total += ((datetime.now(UTC) if running else last) - first).total_seconds()
    return total / 3600.0


def _hours_left(rounds: Sequence[Round], limits: dict[str, Any], hours: float) -> float | None:
    """By the last whole round, until the labels, the rounds or the hours are used up."""
    whole = [each for each in rounds if each.number and "label" in each.seconds]
    if not whole or not limits:
        return None
    last = whole[-1]
    each = sum(last.seconds.values()) / 3600.0
    more = [limits["rounds"] - last.number]
    if last.labelled:
        more.append((limits["labels"] - sum(one.labelled for one in rounds)) / last.labelled)
    left = max(0.0, min(more)) * each
    return left if limits.get("hours") is None else min(left, max(0.0, limits["hours"] - hours))


def _notes(entries: Iterable[Entry]) -> list[str]:
    found = []
    for entry in entries:
        if entry["event"] == "config":
            said = ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in entry["changed"].items())
            found.append(f"{entry['time'][:19]} configuration changed: {said}")
        elif entry["event"] in ("warning", "torn"):
            said = entry["said"] if entry["event"] == "warning" else "the last line of the journal was torn and cut off"
            found.append(f"{entry['time'][:19]} {said}")
    return found


def seconds_by_stage(rounds: Iterable[Round]) -> dict[str, float]:
    """Wall time of each stage over all rounds."""
    total: defaultdict[str, float] = defaultdict(float)
    for one in rounds:
        for stage, seconds in one.seconds.items():
            total[stage] += seconds
    return {stage: total[stage] for stage in STAGES if stage in total}
