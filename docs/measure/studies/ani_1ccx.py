"""ANI-1ccx against coupled cluster (reactions, conformers, interactions) and against the dimers of COMP6.

python docs/measure/studies/ani_1ccx.py          # compute: docs/studies/ani_1ccx.json, tables in ani_1ccx.md
python docs/measure/studies/ani_1ccx.py --tables # tables from docs/studies/ani_1ccx.json

SNNP_DATA names the folder that holds ani-1ccx-weights/, cc-reference/ and comp6-s66x8/.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import platform
import re
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import torch
from ase import Atoms
from pages import between_marks

from snnp.files import write_atomically
from snnp.models import Ensemble
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.structure import Structure
from snnp.units import KCAL_PER_MOL_IN_EV

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
DATA = Path(os.environ.get("SNNP_DATA", STUDY.parents[3] / "shared" / "data"))
PACKAGES = ("snnp", "torch", "numpy", "ase", "vesin")
BATCH = 40  # structures computed at once
KINDS = {
    "interactions": ("s66x8", "adim6", "water27"),
    "conformers": ("amino20x4", "but14diol", "mconf", "sconf", "aconf", "pconf21", "bhrot27"),
    "isomers and reactions": ("bsr36", "iso34", "isol24", "cdie20", "darc", "taut15", "idisp"),
}


def predict(model: Ensemble, frames: list[Atoms], *, forces: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies of all members [M, n] in kcal/mol and, if asked for, mean forces in kcal/mol/Å, in float64."""
    energies, all_forces = [], []
    for first in range(0, len(frames), BATCH):
        batch = frames[first : first + BATCH]
        structure = Structure.from_ase(batch)
        each = [member.compute(structure, forces=forces) for member in model.potentials]
        energies.append(np.stack([prediction.energy.numpy() for prediction in each]))
        if forces:
            mean = np.mean([prediction.forces.numpy() for prediction in each], axis=0)  # type: ignore[union-attr]
            all_forces += np.split(mean / KCAL_PER_MOL_IN_EV, np.cumsum([len(atoms) for atoms in batch])[:-1])
    return np.concatenate(energies, axis=1) / KCAL_PER_MOL_IN_EV, all_forces


def summary(errors: np.ndarray, spread: np.ndarray | None = None) -> dict[str, float]:
    """MAE, RMSE, mean and largest error; with the members' spread also its mean and rank correlation with |error|."""
    result = {
        "n": int(errors.size),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "mean": float(errors.mean()),
        "max": float(np.abs(errors).max()),
    }
    if spread is not None:
        result["spread"] = float(spread.mean())
        result["rank_correlation"] = float(np.corrcoef(_ranks(spread), _ranks(np.abs(errors)))[0, 1])
    return result


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


class Reaction(NamedTuple):
    """One entry of a set: molecules with their coefficients, and the reference energy in kcal/mol."""

    set: str
    entry: int
    text: str
    reference: float

    @property
    def species(self) -> list[tuple[int, str]]:
        """Coefficient and name of each molecule."""
        found = re.findall(r"([+-]?\d+)\*(\S+)", self.text)
        return [(int(coefficient), name) for coefficient, name in found]

    @property
    def distance(self) -> str | None:
        """That of a dimer of S66x8, over its equilibrium's."""
        found = re.search(r"_(\d\.\d+) ", self.text) if self.set == "s66x8" else None
        return found and found[1]


def reactions() -> tuple[dict[str, Atoms], list[Reaction]]:
    """Molecules by name, and the entries between them."""
    with gzip.open(DATA / "cc-reference" / "molecules.xyz.gz", "rt") as packed:
        frames = ase.io.read(io.StringIO(packed.read()), ":", format="extxyz")
    with open(DATA / "cc-reference" / "reactions.csv", newline="") as handle:
        rows = [
            Reaction(row["set"], int(row["entry"]), row["reaction"], float(row["ref_kcal_mol"]))
            for row in csv.DictReader(handle)
        ]
    return {atoms.info["name"]: atoms for atoms in frames}, rows


def coupled_cluster(model: Ensemble) -> dict[str, Any]:
    """Errors of reaction energies by set, kcal/mol."""
    molecules, rows = reactions()
    energies, _ = predict(model, list(molecules.values()), forces=False)
    index = {name: k for k, name in enumerate(molecules)}
    errors, spreads, references, by_distance = (defaultdict(list) for _ in range(4))
    for row in rows:
        total = sum(coefficient * energies[:, index[name]] for coefficient, name in row.species)
        assert isinstance(total, np.ndarray)
        errors[row.set].append(total.mean() - row.reference)
        spreads[row.set].append(total.std())
        references[row.set].append(row.reference)
        if row.distance is not None:
            by_distance[row.distance].append(total.mean() - row.reference)
    result: dict[str, Any] = {"sets": {}, "kinds": {}}
    result["s66x8_by_distance"] = {d: summary(np.array(by_distance[d])) for d in sorted(by_distance)}
    for kind, names in KINDS.items():
        for name in names:
            result["sets"][name] = {
                "kind": kind,
                **summary(np.array(errors[name]), np.array(spreads[name])),
                "mean_reference": float(np.abs(references[name]).mean()),
            }
        joined = [np.concatenate([pool[name] for name in names]) for pool in (errors, spreads)]
        result["kinds"][kind] = summary(*joined)
    assert set(errors) == {name for names in KINDS.values() for name in names}
    return result


def comp6(model: Ensemble) -> dict[str, Any]:
    """Errors against ωB97X/6-31G(d), another level of theory than the model's: kcal/mol and kcal/mol/Å."""
    frames = ase.io.read(DATA / "comp6-s66x8" / "data.xyz", ":")
    energies, forces = predict(model, frames, forces=True)
    reference = np.array([atoms.get_potential_energy() for atoms in frames]) / KCAL_PER_MOL_IN_EV
    wanted = [atoms.get_forces() / KCAL_PER_MOL_IN_EV for atoms in frames]
    difference = energies.mean(axis=0) - reference
    # The levels differ by a constant for each atom: fitted by least squares, as nothing else could be compared.
    counts = np.array([[atoms.symbols.count(symbol) for symbol in model.elements] for atoms in frames])
    constants = np.linalg.lstsq(counts, difference, rcond=None)[0]
    dimers = np.array([atoms.info["dimer"] for atoms in frames])
    relative = np.concatenate([difference[dimers == d] - difference[dimers == d].mean() for d in np.unique(dimers)])
    pairs = np.concatenate([_pairs(difference[dimers == d]) for d in np.unique(dimers)])
    return {
        "energy": summary(difference - counts @ constants, energies.std(axis=0)),
        "relative energy": summary(pairs),
        "energy within a scan": summary(relative),
        "force": summary(np.concatenate([(a - b).ravel() for a, b in zip(forces, wanted, strict=True)])),
    }


def _pairs(values: np.ndarray) -> np.ndarray:
    """Differences of all pairs of one dimer: COMP6's relative energy error."""
    first, second = np.triu_indices(len(values), 1)
    return values[first] - values[second]


def tables(result: dict[str, Any]) -> str:
    """Markdown."""
    cc = result["coupled_cluster"]
    lines = [
        "| set | entries | mean size | MAE | RMSE | mean error | largest | spread | rank correlation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, total in cc["kinds"].items():
        for name, row in cc["sets"].items():
            if row["kind"] == kind:
                lines.append(f"| {name} | {row['n']} | {row['mean_reference']:.1f} | {_cells(row)} |")
        lines.append(f"| **{kind}** | **{total['n']}** | | {_cells(total)} |")
    by_distance = cc["s66x8_by_distance"]
    lines += [
        "",
        "| S66x8, distance over equilibrium | " + " | ".join(by_distance) + " |",
        "|---" * (len(by_distance) + 1) + "|",
    ]
    for key, name in (("mae", "MAE (kcal/mol)"), ("mean", "mean error (kcal/mol)")):
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for row in by_distance.values()) + " |")
    lines += ["", "| COMP6 S66x8 | values | MAE | RMSE | mean error | largest |", "|---|---|---|---|---|---|"]
    for name, row in result["comp6_s66x8"].items():
        unit = "kcal/mol/Å" if name == "force" else "kcal/mol"
        values = " | ".join(f"{row[key]:.2f}" for key in ("mae", "rmse", "mean", "max"))
        lines.append(f"| {name} ({unit}) | {row['n']} | {values} |")
    about = result["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines += ["", f"`python docs/measure/studies/ani_1ccx.py`, {about['date']}, {about['machine']}; {versions}."]
    return "\n".join(lines)


def _cells(row: dict[str, float]) -> str:
    return " | ".join(f"{row[key]:.2f}" for key in ("mae", "rmse", "mean", "max", "spread", "rank_correlation"))


def write_tables(result: dict[str, Any]) -> None:
    """Put the tables between the marks in the page."""
    between_marks(STUDY.with_suffix(".md"), {"tables": tables(result)})


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="write the tables from the JSON file, compute nothing")
    parser.add_argument("--date", default="2026-11-21", help="of the measurement")
    arguments = parser.parse_args()
    if not arguments.tables:
        torch.set_num_threads(1)
        model = read_neurochem(DATA / "ani-1ccx-weights").double()
        assert isinstance(model, Ensemble)
        machine = f"AMD EPYC, 2 cores, Python {platform.python_version()}"
        about = {"date": arguments.date, "machine": machine, "versions": {name: version(name) for name in PACKAGES}}
        about["files_sha256"] = model.metadata["source"]["files_sha256"]
        result = {"about": about, "coupled_cluster": coupled_cluster(model), "comp6_s66x8": comp6(model)}
        write_atomically(STUDY.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    write_tables(json.loads(STUDY.with_suffix(".json").read_text()))


if __name__ == "__main__":
    main()
