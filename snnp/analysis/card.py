"""The card of a model: everything a user should know before trusting it, written from what its file states.

`metadata` may hold, besides free text (`description`, `dataset`, `licence`, `level_of_theory`, `citation`, `limits`,
and `accuracy`: errors that were measured elsewhere): `metrics` (`Evaluation.to_dict()` on the test data), `training`,
`training_range`, `properties`, `compression` and `stability` (`to_dict()` of what `snnp.analysis` computes), `speed`
and `built`. What is missing is left out of the card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from snnp.analysis.properties import GROUND_STATES, ground_state, holes_in_words, stated_properties
from snnp.errors import DataError
from snnp.models.config import FamilyConfig
from snnp.models.ensemble import Ensemble
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.report import Table, fixed, sentence
from snnp.text import code, markdown
from snnp.uncertainty.statements import calibration_markdown

__all__ = ["card_markdown", "drift_in_words"]

_MELTING_POINTS = "CRC Handbook of Chemistry and Physics, 97th ed. (2016), section 4"  # of model_zoo/build.py

# Columns of tables: heading, key of the metadata, decimals.
_FORCES = (
    ("force MAE (eV/Å)", "force_mae_ev_per_angstrom", 4),
    ("RMSE", "force_rmse_ev_per_angstrom", 4),
    ("max", "force_max_ev_per_angstrom", 2),
)
_ERRORS = (
    ("energy MAE (meV/atom)", "energy_mae_mev_per_atom", 2),
    ("RMSE", "energy_rmse_mev_per_atom", 2),
    ("max", "energy_max_mev_per_atom", 1),
    *_FORCES,
    ("stress MAE (GPa)", "stress_mae_gpa", 3),
)
_PROPERTIES = (
    ("a (Å)", "lattice_constant_angstrom", 3),
    ("E coh (eV/atom)", "cohesive_energy_ev_per_atom", 3),
    ("B (GPa)", "bulk_modulus_gpa", 0),
    *(("C11", "c11_gpa", 0), ("C12", "c12_gpa", 0), ("C44", "c44_gpa", 0)),
)


def _table(
    names: Sequence[str],
    columns: Sequence[tuple[str, str, int]],
    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    n_text: int = 1,
) -> str:
    cells = [[*row, *(fixed(values.get(key), digits) for _, key, digits in columns)] for row, values in rows]
    return Table([*names, *(heading for heading, *_ in columns)], cells, n_text=n_text).markdown()


def card_markdown(name: str, model: Potential) -> str:
    """The card as Markdown; `name` is that under which the model is loaded.

    Raises `DataError` for metadata that are not of the form that docs/format.md gives.
    """
    about = stated(model.metadata)
    try:
        parts = [
            f"# {name}\n\n{sentence(about.get('description', 's-NNP'))}\n",
            _overview(model, about),
            _use(name, model, about),
            _data(model, about),
            _errors(about),
            _properties(stated_properties(model)) if about.get("properties") else "",
            _stability(about["stability"]) if "stability" in about else "",
            _speed(about["speed"]) if "speed" in about else "",
            calibration_markdown(about),
            _limits(model, about),
            f"## Citation\n\n{sentence(about['citation'])}\n" if "citation" in about else "",
            _making(about),
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"the metadata of {name} are not of the form that the card needs ({type(error).__name__}: {error}); see "
            "docs/format.md, and state them anew with --set."
        ) from error
    return "\n".join(part for part in parts if part)


def _overview(model: Potential, about: Mapping[str, Any]) -> str:
    rows = {
        "elements": ", ".join(model.elements),
        "parameters": f"{model.n_parameters:,}",
        "cutoff": f"{model.cutoff:g} Å",
        "form": _form(model),
        "precision": str(model.dtype).removeprefix("torch."),
        "units": "eV, Å, eV/Å, eV/Å³",
        "licence" if _imported(about) else "licence of the data": str(about.get("licence", "not stated")),
    }
    return Table.of("", rows).markdown()


def _form(model: Potential) -> str:
    if isinstance(model, Ensemble):
        forms = Counter(map(_form, model.potentials))
        return "ensemble of " + "; ".join(f"{count} × {form}" for form, count in forms.items())
    return model.config.summary if isinstance(model.config, FamilyConfig) else type(model).__name__


def _imported(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the networks of another program came from; empty for a model that was trained here."""
    source = about.get("source")
    return source if isinstance(source, dict) and "files_sha256" in source else {}


def _use(name: str, model: Potential, about: Mapping[str, Any]) -> str:
    element, ways = model.elements[0], {scan["way"] for scan in about.get("compression", [])}
    lattice = ground_state(element)
    module, made = "ase.build", f'ase.build.bulk("{element}", {"orthorhombic" if lattice == "hcp" else "cubic"}=True)'
    file = f"{lattice}:{element}:3x3x3" if element in GROUND_STATES or lattice == "hcp" else "structure.xyz"
    if about.get("training_range", {}).get("periodic") == "none" or ways == {"scaled"}:
        module, made, file = "ase.io", 'ase.io.read("molecule.xyz")', "molecule.xyz"
    return f"""## Use

```python
import {module}
from snnp_ase import SNNPCalculator

atoms = {made}
atoms.calc = SNNPCalculator("{name}")
print(atoms.get_potential_energy(), atoms.get_forces())
```

Or from the shell: `snnp md {name} {file} --temperature 300 --steps 1000`.
"""


def _data(model: Potential, about: Mapping[str, Any]) -> str:
    named = {"Data set": "dataset", "Level of theory": "level_of_theory"}
    lines = [f"- {title}: {sentence(about[key])}" for title, key in named.items() if key in about]
    if seen := about.get("training_range"):
        groups = ", ".join(f"{markdown(group)} {count}" for group, count in seen["groups"].items())
        text = f"- Trained on {seen['n_frames']} structures with {seen['n_atoms']:,} atoms"
        lines.append(f"{text}: {groups}." if groups else f"{text}.")
    origin = about.get("reference_energies_from", {})
    zeros = ", ".join(
        f"{symbol} {energy:.6f} ({markdown(origin.get(symbol, 'unknown origin'))})"
        for symbol, energy in model.reference_energies.items()
    )
    lines.append(f"- E0 (eV per atom, added to the energy of each atom): {zeros}.")
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _errors(about: Mapping[str, Any]) -> str:
    """Those on the test data, or what `snnp train` states: one row per part of the data."""
    metrics = about.get("metrics")
    if metrics is not None:
        rows = {"all": metrics, **metrics.get("groups", {})}
        rows |= {f"pure {symbol}": errors for symbol, errors in metrics.get("pure_elements", {}).items()}
        which = f"On {markdown(metrics['data'])}, never used in training. "
    else:
        rows = {name: part for name, part in about.get("errors", {}).items() if "n_structures" in part}
        metrics, which = {}, ""
    elsewhere = "".join(f"- {sentence(line)}\n" for line in about.get("accuracy", []))
    if not rows:
        return f"## Errors\n\n{elsewhere}" if elsewhere else ""
    named = [([label, str(part["n_structures"])], part) for label, part in rows.items()]
    text = f"## Errors\n\n{which}Energies per structure, forces over all components, stresses over six components.\n\n"
    text += _table(["", "structures"], _ERRORS, named)
    if len(metrics.get("elements", {})) > 1 and not metrics.get("pure_elements"):
        text += "\n" + _table(["element"], _FORCES, [([each], part) for each, part in metrics["elements"].items()])
    return f"{text}\n{elsewhere}" if elsewhere else text


def _properties(properties: Mapping[str, Mapping[str, Any]]) -> str:
    atoms = any(crystal["cohesive_energy_ev_per_atom"] is not None for crystal in properties.values())
    columns = [each for each in _PROPERTIES if atoms or not each[0].startswith("E coh")]
    rows: list[tuple[Sequence[str], Mapping[str, Any]]] = []
    sources: dict[tuple[str, str], list[str]] = {}
    for symbol, crystal in properties.items():
        rows.append(([f"{crystal['structure']} {symbol}", "this model"], crystal))
        for kind, values in crystal["references"].items():
            rows.append((["", kind], values))
            sources.setdefault((kind, values["source"]), []).append(symbol)
    text = "## Properties\n\nPerfect crystals at zero temperature and stress; elastic constants in GPa.\n\n"
    lines = [
        f"- {', '.join(map(markdown, symbols))}, {markdown(kind)}: {sentence(source)}"
        for (kind, source), symbols in sources.items()
    ]
    return text + _table(["crystal", ""], columns, rows, n_text=2) + "\n" + "\n".join(lines) + "\n"


def _stability(stability: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            label,
            f"{title} {run['target_k']:.0f} K",
            f"{run['picoseconds']:.3g} ps at {run['dt_fs']:g} fs",
            "stable" if run["survived"] else f"**blew up**: {run['failure']}",
            f"{fixed(run['mean_temperature_k'], 0)} / {fixed(run['max_temperature_k'], 0)}",
            fixed(run["shortest_distance_angstrom"], 2),
            fixed(run["rms_displacement_angstrom"], 2),
            drift_in_words(run),
        ]
        for label, system in stability.items()
        for title, run in (("NVE", system["nve"]), ("Langevin", system["langevin"]))
    ]
    columns = ["system", "run", "length", "result", "mean / max T (K)", "shortest distance (Å)"]
    columns += ["rms displacement (Å)", "drift (meV/atom/ns)"]
    systems = "; ".join(dict.fromkeys(markdown(system["system"]) for system in stability.values()))
    run = next(iter(stability.values()))["nve"]
    text = f"## Stability\n\nMolecular dynamics in {markdown(run['dtype'])} of {systems}. "
    text += "The NVE run follows equilibration at its temperature; its drift is the slope of the total energy."
    if melting := [each for each in stability.values() if "melting_point_k" in each]:
        share = melting[0]["langevin"]["target_k"] / melting[0]["melting_point_k"]
        text += f" The Langevin run is at {share:.1f} of the melting point ({_MELTING_POINTS})."
    return f"{text}\n\n{Table(columns, rows, n_text=4).markdown()}"


def drift_in_words(run: Mapping[str, Any]) -> str:
    """Slope of the total energy in meV/atom/ns with its error, or a dash."""
    if run["drift_mev_per_atom_per_ns"] is None:
        return "–"
    return f"{run['drift_mev_per_atom_per_ns']:.2f} ± {run['drift_error']:.2f}"


def _speed(speed: Mapping[str, Any]) -> str:
    return (
        f"## Speed\n\n{speed['us_per_atom']:.1f} µs per atom for energy and forces of {markdown(speed['system'])} "
        f"by {markdown(speed.get('computed_by', 'torch'))} "
        f"({markdown(speed['dtype'])}, {speed['threads']:d} thread of {markdown(speed['cpu'])}, neighbour list kept; "
        f"CPU time, best of {speed['n_calls']} calls, median {speed['us_per_atom_median']:.1f}).\n"
    )


def _limits(model: Potential, about: Mapping[str, Any]) -> str:
    repulsion = model.repulsion
    lines = [str(line) for line in about.get("limits", [])]
    if seen := about.get("training_range"):
        closest = f"No two atoms of the training data are closer than {seen['shortest_distance_angstrom']:.2f} Å"
        if repulsion is not None:
            closest += (
                f"; inside {repulsion.outer:g} Å a screened nuclear repulsion sets in (whole at "
                f"{repulsion.inner:g} Å), which keeps atoms apart but is not fitted"
            )
        lines.append(closest)
        if volumes := seen.get("volume_a3_per_atom"):
            smallest, ratio = f"{volumes[0]:.2f} to {volumes[1]:.2f} Å³ per atom", seen["smallest_v_over_v0"]
            least = "" if ratio is None else f"; V/V0 is at least {ratio:.3f}, V0 being that of the crystals at rest"
            lines.append(f"Volumes of the training data reach from {smallest}{least}")
        if (span := seen["energy_span_ev_per_atom"]) is not None:
            lines.append(f"Energies of the training data span {span:.2f} eV/atom")
        if (largest := seen["largest_force_ev_per_angstrom"]) is not None:
            lines.append(f"Force components there reach {largest:.1f} eV/Å")
        if seen["formula"] is not None and seen["periodic"] == "none":
            lines.append(f"It knows one molecule, {seen['formula']}: others are extrapolation")
        if len(model.elements) > 1 and not seen["mixed"]:
            lines.append("The training data hold pure elements only: compounds and alloys are extrapolation")
        unseen = {"none": "periodic crystals or liquids", "all": "free molecules or clusters"}.get(seen["periodic"])
        lines += [f"The training data hold no {unseen}"] if unseen else []
    if scan := about.get("compression"):
        ways = ", ".join(f"{each['system']} {each['way']} to V/V0 = {each['down_to_v_over_v0']:g}" for each in scan)
        holes = [f"**It implodes.** {words}" for words in holes_in_words(scan)]
        lines += holes or [f"Compressed beyond the data without relaxation, the energy rises all the way: {ways}"]
    lines.append(f"Interactions end at {model.cutoff:g} Å; there are no charges, no spins and no long-range dispersion")
    return "## Limits\n\n" + "\n".join(f"- {sentence(line)}" for line in lines) + "\n"


def _making(about: Mapping[str, Any]) -> str:
    lines, known = [], about.get("provenance") or {}
    if training := about.get("training"):
        lines.append(
            f"Trained for {training['epochs']} epochs in {training['minutes']:.0f} minutes on {training['threads']} "
            f"thread; weights of epoch {training['best_epoch']}."
        )
    if source := _imported(about):
        place = f" of {markdown(source['repository'])}" if "repository" in source else ""
        place += f", commit {code(source['commit'])}, {code(source.get('path', '.'))}" if "commit" in source else ""
        lines.append(
            f"Imported from files of {markdown(source.get('format', 'another program'))}{place}; sha256 of all files "
            f"read: {code(source['files_sha256'])}."
        )
    if built := about.get("built"):
        versions = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in built["versions"].items())
        what = "Import, compression, stability and speed" if source else "Training and every number above"
        lines.append(
            f"{what}: {code(built['command'])} ({markdown(built['date'])}; "
            f"{markdown(built['cpu'])}; {versions}); the configuration is in `recipe.yaml`."
        )
    sets = []
    for each in known.get("datasets", []):
        kind = "commit" if each.get("commit") else "sha256"
        sets.append(code(each["name"]) + (f" ({kind} {code(each[kind])})" if each.get(kind) else ""))
    lines += [f"Data: {', '.join(sets)}."] if sets else []
    lines += [f"Split: sha256 {code(known['split_sha256'])}."] if "split_sha256" in known else []
    if "built" not in about and "command" in known:
        lines.append(f"Command: {code(known['command'])}.")
    return "## How it was made\n\n" + " ".join(lines) + "\n" if lines else ""
