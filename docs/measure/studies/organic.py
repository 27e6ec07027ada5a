"""`snnp-organic` beside ANI-2x, its teacher, and others: S66x8 of COMP6, 3BPA, QM-22, and coupled cluster.

python docs/measure/studies/organic.py                        # the bundled models: JSON, then tables
python docs/measure/studies/organic.py --models ani-2x=FOLDER # one more; what other runs found stays
python docs/measure/studies/organic.py --tables               # tables from the JSON

SNNP_DATA names the folder that holds comp6-s66x8/, 3bpa/, qm22/ and cc-reference/.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ani_1ccx import DATA, Reaction, reactions
from ase import Atoms
from ase.data import covalent_radii
from organic_page import tables
from pages import between_marks, provenance, save

from snnp.models import Ensemble, list_models, load_model
from snnp.models.potential import Potential
from snnp.sampling.cost import measure_cost, usual_atoms
from snnp.structure import Structure
from snnp.units import KCAL_PER_MOL_IN_EV

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
PACKAGES = ("snnp", "torch", "numpy", "ase")
BUNDLED = ("snnp-organic", "snnp-organic-large", "ani-1ccx")
QM22 = ("ethanol_b3lyp", "methane_b3lyp", "nma_b3lyp", "tropolone_b3lyp", "malonaldehyde_ccsdt")
SETS = {
    "S66x8": ("comp6-s66x8/data",),
    "3BPA 300 K": ("3bpa/train_300K",),
    "3BPA 300-1200 K": ("3bpa/train_mixedT",),
    **{name: (f"qm22/{name}_train", f"qm22/{name}_test") for name in (*QM22, "formic_acid_dimer_ccsdt")},
}
"""Files of each set; `_train` and `_test` as well, since none of the models was trained on either."""
LOW = 2.0  # eV above the lowest frame of the same atoms: what a simulation at usual temperatures visits
BATCH_ATOMS = 1500
COST_ATOMS, REPEATS = 1000, 5
EQUILIBRIUM = 2  # of a scan of S66x8: 0.90, 0.95, 1.00, 1.05, 1.10, 1.25, 1.50, 2.00
SAME = 0.02  # Å, of distances in two files of one structure
BOND = 1.3  # times the sum of covalent radii


def predicted(model: Potential, frames: Sequence[Atoms], *, forces: bool) -> tuple[np.ndarray, np.ndarray]:
    """Energies [B] in eV, and forces [N, 3] in eV/Å of all frames one after another, without `forces` none."""
    energies, all_forces, batch = [], [np.zeros((0, 3))], list[Atoms]()
    for k, atoms in enumerate(frames):
        batch.append(atoms)
        if k + 1 == len(frames) or sum(map(len, batch)) > BATCH_ATOMS:
            found = model.compute(Structure.from_ase(batch), forces=forces)
            energies.append(found.energy.detach().double().numpy())
            if found.forces is not None:
                all_forces.append(found.forces.detach().double().numpy())
            batch = []
    return np.concatenate(energies), np.concatenate(all_forces)


def centred(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Values less the mean of their group."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    return values - (np.bincount(group, values) / np.bincount(group))[group]


def low(energies: np.ndarray, groups: Sequence[str], above: float) -> np.ndarray:
    """Which are at most `above` higher than the lowest of their group."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    lowest = np.full(len(names), np.inf)
    np.minimum.at(lowest, group, energies)
    return energies - lowest[group] <= above


def errors(frames: Sequence[Atoms], energy: np.ndarray, forces: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Mean absolute errors, eV and eV/Å, against the frames' energies and the forces `wanted`, [0, 3] if none.

    `energy`: per atom as it stands, `offset` its mean error, `relative`: of a frame, relative to the mean of all frames
    of its composition; `spread` and `size`: mean magnitudes of the reference's relative energies and of its forces.
    """
    n = np.array([len(atoms) for atoms in frames])
    reference = np.array([atoms.get_potential_energy() for atoms in frames])
    formulas = [atoms.get_chemical_formula() for atoms in frames]
    difference = energy - reference
    found = {
        "frames": len(frames),
        "energy": np.abs(difference / n).mean(),
        "offset": (difference / n).mean(),
        "relative": np.abs(centred(difference, formulas)).mean(),
        "spread": np.abs(centred(reference, formulas)).mean(),
    }
    if len(wanted):
        found["force"], found["size"] = np.abs(forces - wanted).mean(), np.abs(wanted).mean()
    return found


def split_by_energy(frames: Sequence[Atoms], energy: np.ndarray, forces: np.ndarray) -> dict[str, Any]:
    """`errors` of all frames, and under `low` of those near the lowest of their composition."""
    has = all("forces" in atoms.calc.results for atoms in frames)
    wanted = np.concatenate([atoms.get_forces() for atoms in frames]) if has else np.zeros((0, 3))
    reference = np.array([atoms.get_potential_energy() for atoms in frames])
    kept = low(reference, [atoms.get_chemical_formula() for atoms in frames], LOW)
    of_kept = np.repeat(kept, [len(atoms) for atoms in frames]) if has else np.zeros(0, bool)
    chosen = [atoms for atoms, near in zip(frames, kept, strict=True) if near]
    near = errors(chosen, energy[kept], forces[of_kept], wanted[of_kept])
    return errors(frames, energy, forces, wanted) | {"low": near}


def curves(frames: Sequence[Atoms], energy: np.ndarray, names: dict[str, str]) -> dict[str, list[float]]:
    """Errors in kcal/mol along each dimer's scan, relative to its last point, where the two are apart twice as far."""
    rows: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for atoms, value in zip(frames, energy, strict=True):
        difference = (value - atoms.get_potential_energy()) / KCAL_PER_MOL_IN_EV
        rows[names[atoms.info["dimer"]]][int(atoms.info["scan_index"])] = float(difference)
    return {name: [points[k] - points[max(points)] for k in sorted(points)] for name, points in rows.items()}


def dimer_names(frames: Sequence[Atoms], molecules: dict[str, Atoms]) -> dict[str, str]:
    """What the dimers of COMP6 are called: as those of S66x8 that have the same atoms at the same distances."""

    def distances(atoms: Atoms) -> np.ndarray:
        return np.sort(atoms.get_all_distances().ravel())

    candidates: defaultdict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for name, atoms in molecules.items():
        if name.endswith("_1.00"):
            candidates[atoms.get_chemical_formula()].append((name.removesuffix("_1.00"), distances(atoms)))
    found = {}
    for atoms in frames:
        if int(atoms.info["scan_index"]) == EQUILIBRIUM:
            own, dimer = distances(atoms), atoms.info["dimer"]
            apart = [(np.abs(own - other).max(), name) for name, other in candidates[atoms.get_chemical_formula()]]
            found[dimer] = min(apart)[1] if apart and min(apart)[0] < SAME else dimer
    return found


def surroundings(atoms: Atoms) -> list[str]:
    """Of each atom its element and, in brackets, those that it is bonded to: N(CHH)."""
    radii = BOND * covalent_radii[atoms.numbers]
    bonded = atoms.get_all_distances() < radii[:, None] + radii[None, :]
    np.fill_diagonal(bonded, False)
    symbols = np.array(atoms.get_chemical_symbols())
    return [f"{symbol}({''.join(sorted(symbols[row]))})" for symbol, row in zip(symbols, bonded, strict=True)]


def by_name(values: np.ndarray, names: Sequence[str]) -> dict[str, list[float]]:
    """Number and mean of the values of each name."""
    kinds, group = np.unique(np.asarray(names), return_inverse=True)
    counts = np.bincount(group)
    return {
        str(k): [int(n), float(v)] for k, n, v in zip(kinds, counts, np.bincount(group, values) / counts, strict=True)
    }


def reaction_errors(model: Potential, molecules: dict[str, Atoms], rows: Sequence[Reaction]) -> dict[str, float]:
    """Errors in kcal/mol by set and entry; entries with an element that the model lacks are left out."""
    can = [name for name, atoms in molecules.items() if set(atoms.get_chemical_symbols()) <= set(model.elements)]
    energies, _ = predicted(model, [molecules[name] for name in can], forces=False)
    energy = dict(zip(can, energies / KCAL_PER_MOL_IN_EV, strict=True))
    return {
        f"{row.set} {row.entry}": float(sum(c * energy[name] for c, name in row.species) - row.reference)
        for row in rows
        if all(name in energy for _, name in row.species)
    }


def rounded(value: Any) -> Any:
    """Floats to five digits, within lists and dictionaries too: what is written can be read."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def measured(model: Potential) -> dict[str, Any]:
    """Everything about one model."""
    if isinstance(model, Ensemble):
        model.force_spread = False  # which none of this asks for, and which costs
    cost = measure_cost(model, usual_atoms(model, None, COST_ATOMS)[1], REPEATS)
    found: dict[str, Any] = {"parameters": model.n_parameters, "cost": cost, "sets": {}}
    molecules, rows = reactions()
    names, values = list[str](), list[np.ndarray]()
    for name, files in SETS.items():
        frames = [atoms for file in files for atoms in ase.io.read(DATA / f"{file}.xyz", ":")]
        energy, forces = predicted(model, frames, forces="forces" in frames[0].calc.results)
        found["sets"][name] = split_by_energy(frames, energy, forces)
        if not name.startswith(("S66x8", "3BPA")):
            continue
        each = np.abs(forces - np.concatenate([atoms.get_forces() for atoms in frames])).mean(axis=1)
        names += [kind for atoms in frames for kind in surroundings(atoms)]
        values.append(each)
        if name == "S66x8":
            called = dimer_names(frames, molecules)
            found["curves"] = curves(frames, energy, called)
            owners = np.repeat([called[atoms.info["dimer"]] for atoms in frames], [len(atoms) for atoms in frames])
            found["dimers"] = {dimer: value for dimer, (_, value) in by_name(each, owners.tolist()).items()}
    found["surroundings"] = by_name(np.concatenate(values), names)
    found["reactions"] = reaction_errors(model, molecules, rows)
    found["outside"] = len(rows) - len(found["reactions"])
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME[=FOLDER]", help="default: the bundled ones")
    parser.add_argument("--tables", action="store_true", help="write the tables from the JSON file, compute nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": {}}
    for text in [] if asked.tables else asked.models or [name for name in BUNDLED if name in list_models()]:
        name, _, folder = text.partition("=")
        result = rounded(measured(load_model(folder or name)))
        found["models"][name] = {"date": provenance(())["date"], **result}
        found["reactions"] = {f"{row.set} {row.entry}": [row.text, row.reference] for row in reactions()[1]}
        save(path, found, PACKAGES, indent=None)
        print(name, result["cost"], {key: each.get("force") for key, each in result["sets"].items()}, flush=True)
    between_marks(STUDY.with_suffix(".md"), tables(found))


if __name__ == "__main__":
    main()
