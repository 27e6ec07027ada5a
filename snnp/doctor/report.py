"""What the doctor says: findings with their meaning and cure, facts and pictures, as JSON and as one HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from snnp.doctor.html import render

__all__ = ["Finding", "Picture", "Report", "Severity", "sorted_findings"]

Severity = Literal["error", "warning", "note"]

_FORMAT = "snnp-doctor"
_MOST_FRAMES = 1000  # listed in the JSON; the message says how many there are in all


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Arguments:
        check: name of the check.
        severity: "error" must be mended before the model or data are used or published; "warning" should be looked
            at; "note" is good to know.
        message: what was seen, with numbers and units.
        meaning: what follows from it.
        cure: how to mend it.
        frames: sources of the frames concerned, worst first; empty for a model, and where the whole set is concerned.
    """

    check: str
    severity: Severity
    message: str
    meaning: str
    cure: str
    frames: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; of many frames the first thousand."""
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "meaning": self.meaning,
            "cure": self.cure,
            "n_frames": len(self.frames),
            "frames": list(self.frames[:_MOST_FRAMES]),
        }


@dataclass(frozen=True)
class Picture:
    """A picture of the report: PNG bytes with a title and a sentence that says what to look for."""

    title: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Everything the doctor found.

    Arguments:
        subject: what was examined.
        kind: "data" or "model".
        findings: worst first.
        passed: names of the checks that found nothing.
        facts: tables of numbers by title; JSON values.
        pictures: for the HTML page.
        seconds: how long it took.
    """

    subject: str
    kind: Literal["data", "model"]
    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    seconds: float = 0.0

    @property
    def errors(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What should be looked at."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def verdict(self) -> str:
        """One line: how many findings of which kind."""
        if not self.findings:
            return f"nothing found in {len(self.passed)} checks"
        count = {kind: sum(each.severity == kind for each in self.findings) for kind in ("error", "warning", "note")}
        said = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in count.items() if n]
        return f"{', '.join(said)}; {len(self.passed)} checks found nothing"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the pictures; NaN and infinities become None."""
        values = {
            "format": _FORMAT,
            "kind": self.kind,
            "subject": self.subject,
            "verdict": self.verdict,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [finding.to_dict() for finding in self.findings],
            "passed": list(self.passed),
            "facts": dict(self.facts),
            "seconds": round(self.seconds, 2),
        }
        plain: dict[str, Any] = _plain(values)
        return plain

    def to_json(self) -> str:
        """One JSON object as text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """A self-contained page: no scripts, nothing fetched, pictures inside."""
        return render(self.to_dict(), [(each.title, each.caption, each.png) for each in self.pictures])


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise in their order."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda finding: rank[finding.severity]))
