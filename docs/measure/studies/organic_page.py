"""Tables of the page about `snnp-organic`: errors of every model on every set, and what fails beside the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ani_1ccx import KINDS
from pages import written

__all__ = ["excess", "tables"]

STUDENTS, TEACHER = ("snnp-organic", "snnp-organic-large"), "ani-2x"
ORDER = ("snnp-organic", "snnp-organic-large", "ani-2x", "ani-1x", "ani-1ccx")
OTHER_LEVEL = "ani-1ccx"  # learned coupled cluster: its energies have another zero
DISTANCES = ("0.90", "0.95", "1.00", "1.05", "1.10", "1.25", "1.50")
WORST = 12
FEWEST = 200  # atoms with the same neighbours, to be listed
LEVELS = {"b3lyp": "B3LYP", "ccsdt": "CCSD(T)"}
MEV = 1000.0


def excess(student: Mapping[str, float], teacher: Mapping[str, float]) -> list[str]:
    """Names that both have, by how much farther from zero the student's value is: most first."""
    return sorted(set(student) & set(teacher), key=lambda name: (abs(teacher[name]) - abs(student[name]), name))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(np.abs(list(values))))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _of_kind(model: Mapping[str, Any], kind: str) -> list[float]:
    return [error for name, error in model["reactions"].items() if name.split()[0] in KINDS[kind]]


def _summary(models: Mapping[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        cells = [f"{model['cost']['cpu_us_per_atom']:.3g}"]
        for key in ("S66x8", "3BPA 300 K", "3BPA 300-1200 K"):
            found = model["sets"][key]
            cells.append(f"{found['force']:.3f} / {MEV * found['relative']:.0f}")
        for kind in KINDS:
            each = _of_kind(model, kind)
            cells.append(f"{_mean(each):.1f} ({np.median(np.abs(each)):.1f})")
        rows.append([f"`{name}`", *cells])
    return _table(["", "µs/atom", "S66x8", "3BPA, 300 K", "3BPA, to 1200 K", *KINDS], rows)


def _s66x8(models: Mapping[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        found, scans = model["sets"]["S66x8"], list(model["curves"].values())
        each = np.array([scan[:-1] for scan in scans])
        at = DISTANCES.index("1.00")
        cells = [_number(found["force"], 3), _number(None if name == OTHER_LEVEL else MEV * found["energy"], 1)]
        cells += [_number(MEV * found["relative"], 0), _number(_mean(each.ravel()), 2), _number(_mean(each[:, at]), 2)]
        rows.append([f"`{name}`", *cells, f"{each[:, at].mean():+.2f}"])
    first = _table(
        [
            *("", "force (eV/Å)", "energy (meV/atom)", "relative energy (meV)"),
            *("curves (kcal/mol)", "at equilibrium", "mean error there"),
        ],
        rows,
    )
    second = _table(
        ["curves by distance", *DISTANCES],
        [
            [
                f"`{name}`",
                *(f"{value:.2f}" for value in np.abs([c[:-1] for c in model["curves"].values()]).mean(axis=0)),
            ]
            for name, model in models.items()
        ],
    )
    return f"{first}\n\n{second}"


def _bpa(models: Mapping[str, Any]) -> str:
    rows = []
    for key in ("3BPA 300 K", "3BPA 300-1200 K"):
        about = next(iter(models.values()))["sets"][key]
        size = [f"{about['size']:.2f}", "", "", f"{MEV * about['spread'] / 27:.1f}", f"{MEV * about['spread']:.0f}"]
        rows.append([f"{key.replace('-', ' to ')}, {about['frames']} frames: *size*", *size])
        for name, model in models.items():
            found, same = model["sets"][key], name != OTHER_LEVEL
            cells = [_number(MEV * found["energy"] if same else None, 1)]
            cells += [f"{MEV * found['offset']:+.1f}" if same else "–", _number(MEV * found["relative"] / 27, 2)]
            rows.append([f"`{name}`", _number(found["force"], 3), *cells, _number(MEV * found["relative"], 0)])
    head = ["", "force (eV/Å)", "energy (meV/atom)", "mean error", "without the mean error"]
    return _table([*head, "the same of a molecule (meV)"], rows)


def _qm22(models: Mapping[str, Any]) -> str:
    keys = [key for key in next(iter(models.values()))["sets"] if not key.startswith(("S66x8", "3BPA"))]
    parts = []
    for quantity, size, scale, digits in (("force", "size", 1.0, 3), ("relative", "spread", MEV, 0)):
        rows = []
        for key in keys:
            for low in (False, True):
                found = [m["sets"][key]["low"] if low else m["sets"][key] for m in models.values()]
                if quantity not in found[0]:
                    continue
                molecule, _, level = key.rpartition("_")
                name = "within 2 eV" if low else f"{molecule.replace('_', ' ')} ({LEVELS[level]})"
                cells = [_number(scale * each[quantity], digits) for each in found]
                rows.append([name, str(found[0]["frames"]), _number(scale * found[0][size], digits), *cells])
        title = "force MAE (eV/Å)" if quantity == "force" else "relative energy MAE (meV)"
        parts.append(_table([title, "frames", "size", *(f"`{name}`" for name in models)], rows))
    return "\n\n".join(parts)


def _coupled(models: Mapping[str, Any]) -> str:
    rows = []
    for kind, names in KINDS.items():
        for name in (*names, kind):
            keys = names if name == kind else (name,)
            found = [[e for key, e in m["reactions"].items() if key.split()[0] in keys] for m in models.values()]
            cells = [_number(_mean(each) if each else None, 2) for each in found]
            mark = "**" if name == kind else ""
            rows.append([f"{mark}{name}{mark}", str(max(map(len, found))), *(f"{mark}{c}{mark}" for c in cells)])
    rows.append(["entries outside its elements", "", *(str(model["outside"]) for model in models.values())])
    return _table(["MAE (kcal/mol)", "entries", *(f"`{name}`" for name in models)], rows)


def _fails(models: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    shown = [name for name in (*STUDENTS, TEACHER) if name in models]
    all_shown, ours, theirs = [models[name] for name in shown], models[shown[0]], models[TEACHER]
    head, parts = [f"`{name}`" for name in shown], []
    rows = [
        [name, *(f"{model['dimers'][name]:.3f}" for model in all_shown)]
        for name in excess(ours["dimers"], theirs["dimers"])[:WORST]
    ]
    parts.append(_table(["S66x8: force MAE (eV/Å)", *head], rows))
    rows = [
        [name, *(f"{_along(m)[name]:.2f} ({m['curves'][name][DISTANCES.index('1.00')]:+.2f})" for m in all_shown)]
        for name in excess(_along(ours), _along(theirs))[:WORST]
    ]
    parts.append(_table(["S66x8: MAE along the curve, and error at equilibrium (kcal/mol)", *head], rows))
    rows = []
    for name in [n for n in excess(ours["reactions"], theirs["reactions"]) if not n.startswith("s66x8")][:WORST]:
        text, reference = entries[name]
        cells = [f"{model['reactions'][name]:+.1f}" for model in all_shown]
        rows.append([f"{name.split()[0]}: `{text}`", f"{reference:.1f}", *cells])
    parts.append(_table(["coupled cluster: error (kcal/mol)", "reference", *head], rows))
    kinds = {k: v for k, (n, v) in ours["surroundings"].items() if n >= FEWEST}
    rows = [
        [k, str(ours["surroundings"][k][0]), *(f"{model['surroundings'][k][1]:.3f}" for model in all_shown)]
        for k in sorted(kinds, key=lambda kind: -kinds[kind])
    ]
    parts.append(_table(["S66x8 and 3BPA: an atom and what it is bonded to", "atoms", *head], rows))
    return "\n\n".join(parts)


def _along(model: Mapping[str, Any]) -> dict[str, float]:
    """Mean error of each curve without its last point, which is 0 by definition."""
    return {name: _mean(scan[:-1]) for name, scan in model["curves"].items()}


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by the names of the page's marks; the worst are those of the first of `STUDENTS` that was measured."""
    known = found["models"]
    models = {name: known[name] for name in (*(n for n in ORDER if n in known), *sorted(set(known) - set(ORDER)))}
    when = "; ".join(f"`{name}` {model['date']}" for name, model in models.items() if model["date"] != found["date"])
    more = f"measured earlier: {when}" if when else ""
    parts = {"summary": _summary(models) + "\n\n" + written(found, more=more)}
    parts |= {"s66x8": _s66x8(models), "3bpa": _bpa(models), "qm22": _qm22(models), "coupled": _coupled(models)}
    compared = TEACHER in models and set(STUDENTS) & set(models)
    return parts | {"fails": _fails(models, found["reactions"]) if compared else "Not compared yet."}
