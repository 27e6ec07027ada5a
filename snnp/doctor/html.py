"""The report as one HTML page. Everything from outside is escaped: names of frames and groups come from files."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["render"]

_SHOWN_FRAMES = 40
_MARKS = {"error": "✖", "warning": "▲", "note": "●"}

_STYLE = """
:root { --ink: #1f2933; --soft: #66717e; --line: #d9dee4; --error: #b3261e; --warning: #9a6700; --note: #2563a8;
        --good: #1a7f37; --paper: #ffffff; --card: #f7f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #3a434d; --error: #ff8a80;
        --warning: #f0c05a; --note: #7fb4ee; --good: #6fd08c; --paper: #14181d; --card: #1d232a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
.verdict { font-size: 1.05rem; margin: .2rem 0 0; }
.small, figcaption { color: var(--soft); font-size: .88rem; }
.finding { border-left: 4px solid var(--tone); background: var(--card); padding: .7rem 1rem; margin: 0 0 .8rem;
           border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.finding p { margin: .25rem 0; }
.finding .head { color: var(--tone); font-weight: 600; }
.error { --tone: var(--error); } .warning { --tone: var(--warning); } .note { --tone: var(--note); }
.good { --tone: var(--good); }
code { font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
figure { margin: 0 0 1.6rem; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
"""


def render(report: Mapping[str, Any], pictures: Sequence[tuple[str, str, bytes]]) -> str:
    """The page of a report.

    Arguments:
        report: `Report.to_dict()`.
        pictures: title, caption and PNG bytes of each.
    """
    title = f"{'Data' if report['kind'] == 'data' else 'Model'} examined: {report['subject']}"
    tone = "error" if report["errors"] else "warning" if report["warnings"] else "good"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {tone}" style="color: var(--tone)">{escape(report["verdict"])}</p>',
        f'<p class="small">snnp doctor, {report["seconds"]:.1f} s</p>',
    ]
    if report["findings"]:
        body += ["<h2>Findings</h2>", *(_finding(each) for each in report["findings"])]
    body += ["<h2>Pictures</h2>", *(_figure(*each) for each in pictures)] if pictures else []
    for name, value in report["facts"].items():
        body += [f"<h2>{escape(name)}</h2>", _table(value)]
    passed = ", ".join(escape(name) for name in report["passed"]) or "none"
    body += ["<h2>Checks that found nothing</h2>", f"<p>{passed}</p>"]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _finding(finding: Mapping[str, Any]) -> str:
    severity = finding["severity"]
    lines = [
        f'<section class="finding {escape(severity)}">',
        f'<p class="head">{_MARKS[severity]} {escape(severity)} · {escape(finding["check"])}</p>',
        f"<p>{escape(finding['message'])}</p>",
        f'<p><span class="small">What it means</span><br>{escape(finding["meaning"])}</p>',
        f'<p><span class="small">How to mend it</span><br>{escape(finding["cure"])}</p>',
    ]
    if finding["frames"]:
        shown = " ".join(f"<code>{escape(name)}</code>" for name in finding["frames"][:_SHOWN_FRAMES])
        hidden = finding["n_frames"] - min(_SHOWN_FRAMES, len(finding["frames"]))
        more = f" and {hidden:,} more" if hidden else ""
        lines.append(f"<details><summary>{finding['n_frames']:,} frames</summary><p>{shown}{more}</p></details>")
    return "\n".join([*lines, "</section>"])


def _figure(title: str, caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>"
    )


def _table(value: Any) -> str:
    """A mapping becomes two columns, a list of mappings one row each."""
    if isinstance(value, Mapping):
        rows = [[str(name), each] for name, each in value.items()]
        return f'<div class="scroll"><table>{"".join(_row(row) for row in rows)}</table></div>'
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in value[0])
        rows = [list(each.values()) for each in value]
        return f'<div class="scroll"><table><tr>{head}</tr>{"".join(_row(row) for row in rows)}</table></div>'
    return f"<p>{escape(str(value))}</p>"


def _row(cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(_cell(each) for each in cells) + "</tr>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"<td>{escape(text)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="number">{text}</td>'
