"""`snnp explain`: one page about what a model learned, or two models side by side; and smaller models."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnp.analysis.curve_page import draw_page
from snnp.data import Frames
from snnp.distillation.crystals import frames_of
from snnp.errors import InputError
from snnp.explain.anatomy import Anatomy, spline_model
from snnp.explain.elements import Elements
from snnp.explain.filter_curves import FilterCurves, filter_pictures
from snnp.explain.material import Material, material_for
from snnp.explain.other_pictures import (
    atoms_picture,
    elements_picture,
    environments_picture,
    parts_picture,
    removal_picture,
)
from snnp.explain.pruning import Errors, Removal, eliminate, filter_name, measured, pruned
from snnp.explain.two_models import agreement, change_picture, changed_filters, pair_picture
from snnp.files import write_atomically
from snnp.hub import load_model
from snnp.models.spline.model import SplineNNP
from snnp.models.store import save_model
from snnp.report import Figure, Finding, Report, Table, jsonable
from snnp.sampling import build_structure
from snnp.sampling.cost import measure_cost, usual_atoms

__all__ = ["PAGES", "Explained", "Progress", "explain"]

PAGES = ("explain.html", "explain.json")
PRUNED = "pruned"

Progress = Callable[[str, int, int], None]
"""Stage, and how many of how many steps are done."""

_MOST_SHOWN_ATOMS, _FEWEST_SHOWN_ATOMS = 80, 12
_NEARLY = 1.1  # times the errors of the whole model
_COST_ATOMS, _COST_REPEATS = 1000, 5
_STALE = ("metrics", "errors", "properties", "stability", "speed", "training", "accuracy", "compression", "name")


@dataclass(frozen=True)
class Explained:
    """The report, everything that is drawn as JSON values, and the smaller model if one was asked for."""

    report: Report
    values: dict[str, Any]
    smaller: SplineNNP | None = None

    def write(self, folder: Path) -> None:
        """The page, the values, each picture as a PNG, and the smaller model in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        drawn = dict[Path, bytes]()
        for k, picture in enumerate(self.report.pictures, 1):
            name = re.sub(r"[^a-z0-9]+", "-", picture.title.lower()).strip("-")
            drawn[folder / f"{k:02d}-{name}.png"] = picture.png
        if (folder / PAGES[1]).exists():  # pictures of the page that is replaced
            for path in folder.glob("[0-9][0-9]-*.png"):
                path.unlink()
        for path, content in drawn.items():
            write_atomically(path, content)
        text = json.dumps(jsonable({**self.report.json(), **self.values}), ensure_ascii=False, allow_nan=False)
        for page, said in zip(PAGES, (self.report.html(), text + "\n"), strict=True):
            write_atomically(folder / page, said.encode())
        if self.smaller is not None:
            save_model(self.smaller, folder / PRUNED)
            tables = [table for table in self.report.tables if table.title.startswith("Pruned")]
            smaller = Report(f"{self.report.subject}, pruned", "explanation", self.report.findings[:1], (), tables)
            write_atomically(folder / PRUNED / "report.md", smaller.markdown().encode())


@dataclass(frozen=True)
class _Subject:
    """A model with the material that it is explained on."""

    name: str
    model: SplineNNP
    material: Material
    anatomy: Anatomy
    curves: FilterCurves
    removal: Removal | None


def explain(
    model: str,
    other: str | None = None,
    data: Sequence[str] = (),
    structure: str | None = None,
    prune: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Explained:
    """Explain a model, or two of them on the same data.

    Arguments:
        model, other: names or folders. data: files or datasets; by default the model's own training data, where they
            are at hand, else structures made for it. structure: whose atoms are drawn, as `snnp md` takes it; by
            default one of the data. prune: how many filters a smaller model shall keep.

    Raises:
        InputError: for models without filters, and numbers of filters that cannot be kept.
        DataError: for data that cannot be read. ModelError: for a model that cannot.
        UnknownElementError: for a structure with elements that the model does not know.
    """
    began = time.monotonic()
    if prune is not None and other is not None:
        raise InputError("--prune makes a smaller model of one model; leave the second away.")
    loaded = [load_model(name, dtype="float64") for name in (model, *([] if other is None else [other]))]
    models = [(each.name, spline_model(each, each.name)) for each in loaded]
    if len(models) == 2 and models[0][0] == models[1][0]:
        raise InputError(f"{models[0][0]} was named twice; name two models to see them side by side.")
    n_filters = models[0][1].config.n_features
    if prune is not None and not 0 < prune < n_filters:
        raise InputError(f"--prune {prune}: this model has {n_filters} filters; keep between 1 and {n_filters - 1}.")
    if prune is not None and models[0][1].readout.embedding is not None:
        raise InputError("--prune refits a network or a linear readout; this model embeds its features in splines.")
    progress("reading", 0, 1)
    material = material_for(loaded[0], data)
    frames = _of_all(material.frames, [each for _, each in models])
    material = Material(frames, material.origin, material.labelled, material.sources)
    shown, said = _shown(material, models[0][1], structure)
    for _, each in models:
        each.check_elements(shown.numbers)
    names = _short([name for name, _ in models])
    subjects = [_subject(name, each, material, progress) for name, (_, each) in zip(names, models, strict=True)]
    page = _Page(subjects, shown, said)
    found = page.explained() if other is None else page.side_by_side()
    if prune is None:
        return _finished(found, time.monotonic() - began, None)
    progress("pruning", 0, 1)
    dtype = load_model(model).dtype
    smaller, table = _smaller(subjects[0], prune, dtype)
    return _finished(found, time.monotonic() - began, (smaller, table))


def _short(names: Sequence[str]) -> list[str]:
    """Names for the page: of folders the last part, unless two models would have the same."""
    short = [Path(name).name if Path(name).exists() else name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _of_all(frames: Frames, models: Sequence[SplineNNP]) -> Frames:
    """Frames whose elements all models know."""
    known = set.intersection(*(set(each.elements) for each in models))
    others = [symbol not in known for symbol in frames.elements]
    frames = frames.take(frames.composition()[:, others].sum(axis=1) == 0)
    if not len(frames):
        names = " and ".join("/".join(each.elements) for each in models)
        raise InputError(
            f"no frame is made of elements that both models know ({names}); name data of both with --data."
        )
    return frames


def _subject(name: str, model: SplineNNP, material: Material, progress: Progress) -> _Subject:
    fit, choose, tell = material.parts()
    progress(f"features of {name}", 0, 1)
    anatomy = Anatomy(model, fit)
    removal = None
    if model.readout.embedding is None and model.config.n_features > 1:
        removal = eliminate(anatomy, choose, tell, lambda done, total: progress(f"filters of {name}", done, total))
    whole = Anatomy(model, material.frames)
    return _Subject(name, model, material, whole, FilterCurves.of(whole), removal)


def _shown(material: Material, model: SplineNNP, structure: str | None) -> tuple[Frames, str]:
    """The structure whose atoms are drawn, and what it is."""
    if structure is not None:
        return frames_of([("structure", build_structure(structure))], structure), f"{structure}."
    counts = material.frames.counts
    small = np.flatnonzero((counts <= _MOST_SHOWN_ATOMS) & (counts >= min(_FEWEST_SHOWN_ATOMS, int(counts.max()))))
    frames = material.frames.take(small if len(small) else [int(np.argmin(counts))])
    whole = frames.structure()
    with torch.no_grad():
        beyond = model.compute(whole, forces=False).energies - model.energy_offsets()[model.species(whole)]
    spread = [float(beyond[torch.from_numpy(frames.owner == k)].std(correction=0)) for k in range(len(frames))]
    k = int(np.argsort(spread)[int(0.9 * (len(spread) - 1))])  # a lively one, not the strangest
    group = f" ({frames.groups[k]})" if frames.groups[k] else ""
    return frames.take([k]), f"{frames.sources[k]}{group}, a structure of the material; --structure names another."


class _Page:
    """The parts of a page on one model or two."""

    def __init__(self, subjects: Sequence[_Subject], shown: Frames, said: str) -> None:
        self._subjects, self._said = subjects, said
        self._first = subjects[0]
        self._atoms = [Anatomy(each.model, shown, each.anatomy.typical) for each in subjects]

    def explained(self) -> tuple[Report, dict[str, Any]]:
        """One model."""
        it, atoms = self._first, self._atoms[0]
        far = atoms.farness(it.anatomy)
        elements = Elements.of(it.anatomy)
        pictures = [_plotted(it), parts_picture({it.name: it.anatomy.parts}, it.anatomy.labels())]
        pictures += [atoms_picture(atoms, far, self._said)]
        if it.removal is not None:
            pictures.append(removal_picture({it.name: it.removal}, it.anatomy, it.material.labelled))
        if elements is not None:
            pictures += [elements_picture(elements), environments_picture(it.anatomy)]
        pictures += filter_pictures(it.curves, it.anatomy)
        tables = [self._facts(), _parts_table(it), _filters_table(it), *_removal_tables(it), _structure_table(atoms)]
        looked = ("distances and angles", "parts of the energy", "linear share", "removal of filters", "structure")
        report = Report(it.name, "explanation", tuple(_answers(it, elements)), looked, tables, pictures)
        values = {
            "curves": it.curves.json(it.anatomy),
            "structure": _structure_json(atoms, far),
            "removal": None if it.removal is None else _removal_json(it),
            "elements": None if elements is None else elements.json(),
        }
        return report, values

    def side_by_side(self) -> tuple[Report, dict[str, Any]]:
        """Two models."""
        subjects = self._subjects
        anatomies = {each.name: each.anatomy for each in subjects}
        one, other = subjects
        changes = changed_filters(one.curves, other.curves, anatomies)
        pictures = [pair_picture(anatomies)]
        if changes is not None:
            pictures.append(change_picture(one.curves, other.curves, anatomies))
        pictures.append(parts_picture({n: each.parts for n, each in anatomies.items()}, one.anatomy.labels()))
        removals = {each.name: each.removal for each in subjects if each.removal is not None}
        if len(removals) == 2:
            pictures.append(removal_picture(removals, one.anatomy, one.material.labelled))
        for each, atoms in zip(subjects, self._atoms, strict=True):
            drawn = atoms_picture(atoms, atoms.farness(each.anatomy), self._said)
            pictures.append(Figure(f"{drawn.title}: {each.name}", drawn.caption, drawn.png))
        same = agreement(anatomies)
        tables = [self._facts(), same, *([] if changes is None else [changes])]
        tables += [table for each in subjects for table in _removal_tables(each, each.name)]
        whole = same.rows[0]
        said = (
            f"Energies of atoms in {one.name} and {other.name}, beyond the mean of each element, differ by "
            f"{whole[3]:.3g} meV (standard deviation; they themselves vary by {whole[1]:.3g} and {whole[2]:.3g} meV)."
        )
        notes = [Finding("agreement", "note", said)]
        for each in subjects:
            notes += [Finding(f"{each.name}, {n.check}", n.severity, n.message) for n in _answers(each, None)]
        looked = ("pair energies", "parts of the energy", "removal of filters", "structure")
        report = Report(f"{one.name} and {other.name}", "explanation", tuple(notes), looked, tables, pictures)
        values = {"curves": {each.name: each.curves.json(each.anatomy) for each in subjects}}
        return report, values

    def _facts(self) -> Table:
        """What the models are, and what they are explained on."""
        rows: list[tuple[str, Any]] = []
        for each in self._subjects:
            form = f"{each.model.config.summary}; {each.model.n_parameters:,} parameters"
            rows.append((each.name, f"{', '.join(each.model.elements)}; {form}"))
        material = self._first.material
        rows += [("explained on", material.origin), ("atoms", len(self._first.anatomy.species))]
        against = "the labels" if material.labelled else "the whole model"
        apart = "frames apart" if material.is_divided else "the same few frames that were fitted to"
        rows.append(("errors", f"against {against}, on {apart}"))
        for each in self._subjects:
            if each.removal is not None:
                energy, force = each.removal.stages[0].errors
                rows.append((f"errors of {each.name}", f"{energy:.3g} meV/atom, {force:.3g} eV/Å"))
        return Table.of("What is explained", dict(rows))


def _plotted(it: _Subject) -> Figure:
    """The page of `snnp plot`."""
    with tempfile.TemporaryDirectory() as folder:
        path = draw_page(it.model, Path(folder) / "page.png", title=it.name, structures=it.anatomy.structure)
        return Figure("On one page", "As 'snnp plot' draws it, over the material.", path.read_bytes())


def _answers(it: _Subject, elements: Elements | None) -> list[Finding]:
    """What the page says, in sentences."""
    share, removal, anatomy = it.anatomy.linear_share, it.removal, it.anatomy
    skip = "" if share["skip"] is None else f"; the linear skip alone {_percent(share['skip'])}"
    told = {
        "linear share": f"A linear function of the filters explains {_percent(share['best'])} of the variance of "
        f"atomic energies, element by element{skip}: the rest is what the network bends."
    }
    if removal is not None:
        told["filters"] = _enough(it, removal)
    spread = {name: float(np.std(values)) for name, values in anatomy.parts.items() if name != "typical"}
    most = max(spread, key=lambda name: spread[name])
    told["parts"] = f"What varies most from atom to atom is the {most} part ({1e3 * spread[most]:.3g} meV)."
    near = [float(it.curves.distance[row][0]) for row in it.curves.occurs > 0.0 if row.any()]
    told["extrapolation"] = f"No distance below {min(near):.2f} Å occurs in the material: curves there are guesses."
    found = [Finding(name, "note", said) for name, said in told.items()]
    if (network := it.model.config.network) is not None:
        found.append(_constraint(anatomy, network.constraint))
    if not it.material.labelled:
        said = f"Explained on {it.material.origin}."
        found.append(Finding("data", "warning", said, "", "Name data with --data SET."))
    if elements is not None:
        pairs = ", ".join(f"{a} → {b} ({s:.2f})" for a, (b, s) in elements.nearest().items())
        table = "Similarity follows nearness in the periodic table with Spearman's ρ = {:.2f} over {} pairs."
        follows = f" {table.format(*elements.follows_table)}" if elements.follows_table else ""
        found.append(Finding("elements", "note", f"Most alike in the filters that they use: {pairs}.{follows}"))
    return found


def _constraint(anatomy: Anatomy, constraint: str) -> Finding:
    """Whether what the network was trained to keep holds for the whole readout; a linear skip is not bound by it."""
    turned = f"A filter pulls the other way than on average for {_percent(anatomy.turned)} of atoms"
    if constraint == "none":
        return Finding("constraint", "note", f"{turned}; no constraint was to prevent it.")
    told = {"monotone": "the energy falls with a filter in {} of cases", "convex": "it bends down in {} of pairs"}
    broken = {each: anatomy.broken[each] for each in constraint.split("-")}
    said = ", ".join(told[each].format(_percent(share)) for each, share in broken.items())
    holds, n = not any(broken.values()), len(anatomy.species)
    said = f"Trained to be {constraint}, which {'holds' if holds else 'does not hold'} for these {n:,} atoms: {said}."
    return Finding("constraint", "note" if holds else "warning", f"{said} {turned}.")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100.0 * share:.1f} %"


def _enough(it: _Subject, removal: Removal) -> str:
    """How many filters suffice."""
    total, full = len(removal.alone), removal.stages[0].errors
    floor = (0.5, 0.005) if not it.material.labelled else (0.0, 0.0)  # meV/atom, eV/Å against the model itself
    enough = total
    for stage in removal.stages:
        if any(e > max(_NEARLY * f, m) for e, f, m in zip(stage.errors, full, floor, strict=True)):
            break
        enough = stage.n_filters
    exact = f"{removal.exact} of {total} filters are combinations of others and go without a trace; "
    bound = "errors within 10 %" if it.material.labelled else "0.5 meV/atom and 5 meV/Å of the whole model"
    advice = f" (snnp explain MODEL --prune {enough})" if enough < total else ""
    return f"{exact if removal.exact else ''}{enough} of {total} keep {bound}{advice}."


def _parts_table(it: _Subject) -> Table:
    parts = it.anatomy.parts
    rows = [[name, 1e3 * float(np.std(v)), 1e3 * float(np.mean(v))] for name, v in parts.items() if name != "typical"]
    return Table(("part", "standard deviation (meV)", "mean (meV)"), rows, "Parts of the energy of an atom")


def _filters_table(it: _Subject) -> Table:
    rows = []
    for k in np.argsort(-it.anatomy.contribution, kind="stable").tolist():
        without: tuple[Any, Any] = (None, None) if it.removal is None else it.removal.alone[k]
        rows.append([filter_name(it.model, k), 1e3 * float(it.anatomy.contribution[k]), *without])
    columns = ("filter", "contributes (meV)", "energy MAE without it (meV/atom)", "force MAE without it (eV/Å)")
    return Table(columns, rows, "Filters")


def _removal_tables(it: _Subject, name: str = "") -> list[Table]:
    if it.removal is None:
        return []
    stages = it.removal.stages
    step = max(1, len(stages) // 24)
    rows = [[each.n_filters, *each.errors] for k, each in enumerate(stages) if k % step == 0 or each.n_filters < 4]
    title = "Filters left, and errors" + (f": {name}" if name else "")
    return [Table(("filters", "energy MAE (meV/atom)", "force MAE (eV/Å)"), rows, title)]


def _structure_table(atoms: Anatomy) -> Table:
    """Sums of the parts over the structure, per atom."""
    n = len(atoms.species)
    rows: list[tuple[str, Any]] = [("atoms", n), ("energy (eV/atom)", float(atoms.energies.mean()))]
    rows += [(f"{name} (eV/atom)", float(np.mean(values))) for name, values in atoms.parts.items()]
    return Table.of("The structure", dict(rows))


def _structure_json(atoms: Anatomy, far: Any) -> dict[str, Any]:
    return {
        "symbols": atoms.labels(),
        "positions_angstrom": atoms.structure.positions.tolist(),
        "energies_ev": atoms.energies.tolist(),
        "parts_ev": {name: values.tolist() for name, values in atoms.parts.items()},
        "far_from_data": far.tolist(),
    }


def _removal_json(it: _Subject) -> dict[str, Any]:
    assert it.removal is not None
    names = [filter_name(it.model, k) for k in range(len(it.removal.alone))]
    columns = ("filters", "energy_mae_mev_per_atom", "force_mae_ev_per_angstrom")
    return {
        "order": [names[k] for k in it.removal.order],
        "combinations_of_others": it.removal.exact,
        "stages": [dict(zip(columns, (each.n_filters, *each.errors), strict=True)) for each in it.removal.stages],
    }


def _smaller(it: _Subject, prune: int, dtype: torch.dtype) -> tuple[SplineNNP, Table]:
    """The pruned model in its stored type, and what it costs and is worth beside the whole one."""
    assert it.removal is not None
    fit, _, tell = it.material.parts()
    kept = it.removal.kept(prune)
    smaller = pruned(Anatomy(it.model, fit), kept)
    errors = measured(smaller, tell)
    found = smaller.to(dtype)
    whole = spline_model(it.model, it.name).to(dtype)
    _, atoms = usual_atoms(found, None, _COST_ATOMS)
    cost = [measure_cost(each, atoms, _COST_REPEATS)["cpu_us_per_atom"] for each in (whole, found)]
    rows = [
        ["filters", len(it.removal.alone), prune],
        ["parameters", whole.n_parameters, found.n_parameters],
        ["energy MAE (meV/atom)", it.removal.stages[0].errors[0], errors[0]],
        ["force MAE (eV/Å)", it.removal.stages[0].errors[1], errors[1]],
        [f"energy and forces (µs/atom, {len(atoms):,} atoms)", *cost],
    ]
    found.metadata = {key: value for key, value in it.model.metadata.items() if key not in _STALE}
    found.metadata |= _provenance(it, kept, errors)
    return found, Table(("", it.name, "pruned"), rows, "Pruned model")


def _provenance(it: _Subject, kept: Sequence[int], errors: Errors) -> dict[str, Any]:
    """What the file of a pruned model says of its origin."""
    names = [filter_name(it.model, k) for k in kept]
    values: dict[str, Any] = {
        "pruned_from": it.name,
        "filters_kept": names,
        "refitted_on": it.material.origin,
        "description": f"{it.model.metadata.get('description', it.name)}, pruned to {len(names)} filters",
    }
    if it.material.labelled and it.material.is_divided:
        known = {"energy_mae_mev_per_atom": errors[0], "force_mae_ev_per_angstrom": errors[1]}
        values["errors"] = {"valid": known}
    return values


def _finished(
    found: tuple[Report, dict[str, Any]], seconds: float, smaller: tuple[SplineNNP, Table] | None
) -> Explained:
    report, values = found
    tables, findings = list(report.tables), report.findings
    if smaller is not None:
        tables.insert(1, smaller[1])
        rows = {row[0]: row[1:] for row in smaller[1].rows}
        (filters, kept), (energy, left), (force, less) = (
            rows[name] for name in ("filters", "energy MAE (meV/atom)", "force MAE (eV/Å)")
        )
        said = (
            f"Pruned from {filters} to {kept} filters, no training: {energy:.3g} → {left:.3g} meV/atom, "
            f"{force:.3g} → {less:.3g} eV/Å. A short training makes it better: snnp train CONFIG --from it."
        )
        findings = (Finding("pruned", "note", said), *findings)
    answer = findings[0].message
    made = Report(report.subject, report.kind, findings, report.passed, tables, report.pictures, seconds, answer)
    return Explained(made, values, None if smaller is None else smaller[0])
