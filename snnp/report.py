"""Findings, tables, figures, and the report that they make: here, and only here, they become Markdown, HTML and JSON.

Text from outside (names in files, metadata) is shown and never obeyed. Below are the means by which figures are drawn:
room around everything, colours that everybody tells apart, plain numbers at the ticks.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from snnp.files import write_atomically
from snnp.text import markdown, printable

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis
    import matplotlib.figure

__all__ = ["COLOURS", "GREY", "Figure", "Finding", "Markup", "Report", "Severity", "Table", "colours", "fixed"]
__all__ += ["jsonable", "new_figure", "new_panels", "plain_ticks", "png", "save_figure", "sentence", "shortened"]
__all__ += ["tidy"]

Severity = Literal["error", "warning", "note"]

_MARKS: dict[Severity, str] = {"error": "✖", "warning": "▲", "note": "●"}  # worst first
# What each kind of report is called: its title, the command that wrote it, its format in JSON, and what is passed.
_KINDS = {
    "data": ("Data examined", "snnp doctor", "snnp-doctor", "Checks that found nothing"),
    "model": ("Model examined", "snnp doctor", "snnp-doctor", "Checks that found nothing"),
    "distillation": ("Distilled", "snnp distill", "snnp-distillation", "Bars that are reached"),
    "discovery": ("What lies behind", "snnp discover", "snnp-discovery", "Files beside this page"),
    "active": ("Learned actively", "snnp active", "snnp-active", "What was said"),
    "explanation": ("Explained", "snnp explain", "snnp-explanation", "What was looked at"),
}
_MOST_FRAMES, _SHOWN_FRAMES, _NAMED_FRAMES = 1000, 40, 5  # in JSON, on a page, on a line
_STYLE = Path(__file__).with_suffix(".css")


class Markup(str):
    """Text that is Markdown already, such as a link in a cell of a table."""

    __slots__ = ()


@dataclass(frozen=True)
class Finding:
    """One thing that was found in data or a model.

    Arguments:
        check: name of the check.
        severity: "error" must be mended before the model or data are used or published; "warning" should be looked
            at; "note" is good to know.
        message: what was seen, with numbers and units. meaning: what follows from it. cure: how to mend it.
        frames: sources of the frames concerned, worst first; empty for a model, and where the whole set is concerned.
    """

    check: str
    severity: Severity
    message: str
    meaning: str = ""
    cure: str = ""
    frames: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The message, and the first five frames."""
        more = f" and {len(self.frames) - _NAMED_FRAMES} more" if len(self.frames) > _NAMED_FRAMES else ""
        return f"{self.message}: {', '.join(self.frames[:_NAMED_FRAMES])}{more}" if self.frames else self.message

    def json(self) -> dict[str, Any]:
        """JSON values; of many frames the first thousand."""
        return {
            **{name: getattr(self, name) for name in ("check", "severity", "message", "meaning", "cure")},
            "n_frames": len(self.frames),
            "frames": list(self.frames[:_MOST_FRAMES]),
        }

    def markdown(self) -> str:
        """An item of a list."""
        said = " ".join(sentence(text) for text in (str(self), self.meaning, self.cure) if text)
        return f"- **{self.severity}, {markdown(self.check)}.** {said}\n"

    def html(self) -> str:
        """A section with the names of up to forty frames."""
        lines = [
            f'<section class="finding {self.severity}">',
            f'<p class="head">{_MARKS[self.severity]} {self.severity} · {escape(self.check)}</p>',
            f"<p>{escape(self.message)}</p>",
        ]
        for head, text in (("What it means", self.meaning), ("How to mend it", self.cure)):
            lines += [f'<p><span class="small">{head}</span><br>{escape(text)}</p>'] if text else []
        if n := len(self.frames):
            shown = " ".join(f"<code>{escape(name)}</code>" for name in self.frames[:_SHOWN_FRAMES])
            more = f" and {n - _SHOWN_FRAMES:,} more" if n > _SHOWN_FRAMES else ""
            lines.append(f"<details><summary>{n:,} frames</summary><p>{shown}{more}</p></details>")
        return "\n".join([*lines, "</section>"])


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers, or None for what is not known.

    Arguments:
        columns: what the cells of each row are; empty for rows of a name and its value.
        n_text: in Markdown, how many columns at the left hold text; the others are set right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    n_text: int = 1

    @classmethod
    def of(cls, title: str, values: Mapping[str, Any]) -> Table:
        return cls((), list(values.items()), title, 2)

    def json(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Names and values; with columns one object per row."""
        if self.rows and not self.columns:
            return {str(name): value for name, value in self.rows}
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def markdown(self) -> str:
        """Lines of a table, with a newline at the end; without the title."""
        columns = [_heading(name) for name in self.columns] or ["", ""]
        rule = ["---"] * self.n_text + ["---:"] * (len(columns) - self.n_text)
        cells = ([cell if isinstance(cell, Markup) else markdown(_shown(cell)) for cell in row] for row in self.rows)
        return "".join(f"| {' | '.join(line)} |\n" for line in (map(markdown, columns), rule, *cells))

    def html(self) -> str:
        """A table that scrolls where it is too wide; without the title."""
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        kinds = [' class="number"' if any(map(_is_number, column)) else "" for column in cells]
        head = "".join(f"<th{k}>{escape(_heading(name))}</th>" for k, name in zip(kinds, self.columns, strict=False))
        marked = [[(' class="number"' if _is_number(cell) else "", cell) for cell in row] for row in self.rows]
        rows = ["".join(f"<td{k}>{escape(_shown(cell))}</td>" for k, cell in row) for row in marked]
        lines = "".join(f"<tr>{line}</tr>" for line in ([head] if head else []) + rows)
        return f'<div class="scroll"><table>{lines}</table></div>'


def _heading(name: str) -> str:
    return name.replace("_", " ").strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A cell as text: four digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) if not _is_number(value) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@dataclass(frozen=True)
class Figure:
    """A picture as PNG bytes, with a title and a sentence that says what to look for."""

    title: str
    caption: str
    png: bytes = field(repr=False)

    def html(self) -> str:
        """The picture itself, its caption below."""
        data = base64.b64encode(self.png).decode("ascii")
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(self.title)}">'
            f"<figcaption><b>{escape(self.title)}.</b> {escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Report:
    """Everything that was found about one thing.

    Arguments:
        subject: what was examined or made. kind: what that is. findings: worst first. passed: names of the checks that
            found nothing. tables: numbers, each with a title. pictures: for the page. seconds: how long it took.
            answer: what was found, in one line; it takes the place of the verdict.
    """

    subject: str
    kind: Literal["data", "model", "distillation", "discovery", "active", "explanation"]
    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    tables: Sequence[Table] = ()
    pictures: Sequence[Figure] = ()
    seconds: float = 0.0
    answer: str = ""

    @property
    def errors(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What should be looked at."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def facts(self) -> dict[str, Any]:
        """The tables by title, as JSON values."""
        return {table.title: table.json() for table in self.tables}

    @property
    def verdict(self) -> str:
        """One line: the answer, or how many findings of which kind."""
        if self.answer:
            return self.answer
        if not self.findings:
            return f"nothing found in {len(self.passed)} checks"
        count = {kind: sum(each.severity == kind for each in self.findings) for kind in _MARKS}
        said = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in count.items() if n]
        return f"{', '.join(said)}; {len(self.passed)} checks found nothing"

    @property
    def _title(self) -> str:
        return f"{_KINDS[self.kind][0]}: {self.subject}"

    def json(self) -> dict[str, Any]:
        """JSON values, without the pictures; NaN and infinities become None."""
        return {
            "format": _KINDS[self.kind][2],
            "kind": self.kind,
            "subject": self.subject,
            "verdict": self.verdict,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [finding.json() for finding in self.findings],
            "passed": list(self.passed),
            "facts": jsonable(self.facts),
            "seconds": round(self.seconds, 2),
        }

    def to_json(self) -> str:
        return json.dumps(self.json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """Findings and tables; the pictures are for the page in HTML."""
        parts = [
            f"# {markdown(self._title)}\n",
            f"{self.verdict}\n",
            "".join(each.markdown() for each in self.findings),
        ]
        parts += [f"## {markdown(table.title)}\n\n{table.markdown()}" for table in self.tables]
        return "\n".join(part for part in parts if part)

    def html(self) -> str:
        """A self-contained page: no scripts, nothing fetched, pictures inside."""
        tone = "error" if self.errors else "warning" if self.warnings else "good"
        body = [
            f"<h1>{escape(self._title)}</h1>",
            f'<p class="verdict {tone}" style="color: var(--tone)">{escape(self.verdict)}</p>',
            f'<p class="small">{_KINDS[self.kind][1]}, {self.seconds:.1f} s</p>',
        ]
        for title, parts in (("Findings", self.findings), ("Pictures", self.pictures)):
            body += [f"<h2>{title}</h2>", *(each.html() for each in parts)] if parts else []
        for table in self.tables:
            body += [f"<h2>{escape(table.title)}</h2>", table.html()]
        style = _STYLE.read_text(encoding="utf-8")
        body += [f"<h2>{_KINDS[self.kind][3]}</h2>", f"<p>{escape(', '.join(self.passed)) or 'none'}</p>"]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            + "\n".join(body)
            + "\n</body>\n</html>\n"
        )


# Words and numbers.


def sentence(text: Any) -> str:
    """The text as Markdown, with a full stop at its end."""
    text = markdown(text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def fixed(value: Any, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    return f"{value:.{digits}f}" if _is_number(value) else "–"


def jsonable(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinities become None, tuples lists, paths and dates text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [jsonable(item) for item in value]
    return str(value)


# Figures.

# Okabe and Ito's, told apart by everybody; black and yellow are left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#b8bcc2"


def new_figure(width: float, height: float) -> matplotlib.figure.Figure:
    """An empty figure (inches) whose parts keep apart from each other and from the edge."""
    # Imported where it is drawn: matplotlib takes a third of a second that nothing else need wait for.
    from matplotlib.figure import Figure as Drawing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Drawing(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1), dpi=150)


def new_panels(
    n: int, width: float, height: float, columns: int = 4
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """A figure of `n` panels of that size (inches), up to `columns` in a row."""
    columns = min(columns, n)
    rows = -(-n // columns)
    figure = new_figure(max(width * columns, 5.0), height * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel in panels[n:]:
        panel.set_axis_off()
    tidy(*panels)
    return figure, panels[:n]


def tidy(*panels: matplotlib.axes.Axes, size: float = 8.0) -> None:
    """No frame above and on the right, and small ticks."""
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="both", which="both", labelsize=size)


def colours(n: int) -> list[str]:
    """`n` colours: the six above, then a map of as many as are needed."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if n <= len(COLOURS):
        return list(COLOURS[:n])
    return [to_hex(each) for each in colormaps["turbo"](np.linspace(0.05, 0.95, n))]


def plain_ticks(*axes: matplotlib.axis.Axis, most: int = 5) -> None:
    """At most about `most` ticks, with numbers such as 0.02 in place of 2 × 10⁻², or of offsets at the end of the axis.

    For linear and logarithmic axes, after their limits are set.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        if axis.get_scale() != "log" or high < 3.0 * low:
            axis.set_major_locator(MaxNLocator(most))
            axis.set_minor_locator(NullLocator())
        else:
            few = math.log10(high / low) * 3.0 <= most + 1
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=most + 4))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


def shortened(name: str, longest: int = 28) -> str:
    """A name that leaves room for the picture: its beginning and its end."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def png(figure: matplotlib.figure.Figure, form: str = "png") -> bytes:
    """A figure as PNG bytes, or those of another format.

    Texts show what they hold: names come from files, and dollars in them, taken for a formula, end in an error.
    """
    from matplotlib.text import Text

    for each in figure.findobj(Text):
        assert isinstance(each, Text)
        each.set_text(printable(each.get_text()))
        if "$" in each.get_text() and not each.get_text().startswith("$\\mathdefault"):  # as ticks of powers begin
            each.set_parse_math(False)
    stream = io.BytesIO()
    figure.savefig(stream, format=form)
    return stream.getvalue()


def save_figure(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Write a figure in the format that the name ends in, PNG where in none; the file is replaced atomically."""
    write_atomically(path, png(figure, path.suffix.lower().removeprefix(".") or "png"))
