"""How long `snnp-organic` and its larger twin hold molecules and liquids together: a run ends when a bond breaks.

python docs/measure/studies/organic_stability.py    # what is missing, then the table
python docs/measure/studies/organic_stability.py --models snnp-organic=runs/snnp-organic/best --again

50 molecules of the NCI list that comes with RDKit, none of which was sampled for the models, at 500 K, and two
liquids at 300 K. What ends a run: `broken_bonds.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.optimize import FIRE
from broken_bonds import survive
from pages import between_marks, save, written
from scipy.spatial.transform import Rotation

from snnp.distillation.molecules import graph_key, read_molecules
from snnp.errors import InputError
from snnp.models import load_model
from snnp.models.potential import Potential
from snnp.sampling import MDSettings
from snnp_ase import SNNPCalculator

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
SAMPLED = Path(__file__).resolve().parents[3] / "model_zoo" / "snnp-organic" / "molecules.smi"

MODELS, MOLECULES, PICOSECONDS, DT = ("snnp-organic", "snnp-organic-large"), 50, 100.0, 0.5  # fs
TOGETHER = 10  # molecules that run together
HOT, WARM = 500.0, 300.0  # K
HEAVY = (6, 18)  # atoms other than hydrogen
LIQUIDS = {
    "64 water": ({"O": 64}, 0.997),
    "16 water, 8 methanol, 6 acetone, 6 acetonitrile": ({"O": 16, "CO": 8, "CC(C)=O": 6, "CC#N": 6}, 0.85),
}
"""Molecules by SMILES, and the density in g/cm³."""
GRAMS = 1.66054  # g/cm³ per u/Å³


def varied(number: int) -> list[tuple[str, Atoms]]:
    """Neutral molecules of the elements of the model, in a fixed random order, without those that it has seen."""
    from rdkit import Chem, RDConfig

    known = {graph_key(atoms) for atoms in read_molecules([str(SAMPLED)])}
    lines = [line.split()[0] for line in (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").open(encoding="utf-8")]
    found: list[tuple[str, Atoms]] = []
    for k in np.random.default_rng(0).permutation(len(lines)):
        molecule = Chem.MolFromSmiles(lines[k])
        if molecule is None or "." in lines[k] or not HEAVY[0] <= molecule.GetNumHeavyAtoms() <= HEAVY[1]:
            continue
        odd = (
            a.GetAtomicNum() not in (1, 6, 7, 8, 9, 16, 17) or a.GetNumRadicalElectrons() for a in molecule.GetAtoms()
        )
        if any(odd) or any(atom.GetFormalCharge() for atom in molecule.GetAtoms()):
            continue
        try:
            (atoms,) = read_molecules([lines[k]])
        except InputError:
            continue  # no shape was found
        if graph_key(atoms) not in known:
            known.add(graph_key(atoms))
            found.append((Chem.MolToSmiles(molecule), atoms))
        if len(found) == number:
            return found
    raise SystemExit(f"the list has only {len(found)} of {number} molecules.")


def liquid(members: dict[str, int], density: float, model: Potential) -> Atoms:
    """Molecules in random orientations on the points of a lattice, relaxed a little by the model."""
    rng, parts = np.random.default_rng(0), list[Atoms]()
    for smiles, number in members.items():
        parts += read_molecules([smiles]) * number
    edge = (GRAMS * sum(part.get_masses().sum() for part in parts) / density) ** (1.0 / 3.0)
    n = int(np.ceil(len(parts) ** (1.0 / 3.0) - 1e-9))
    points = (
        rng.permutation(np.stack(np.meshgrid(*[np.arange(n)] * 3), axis=-1).reshape(-1, 3))[: len(parts)] * edge / n
    )
    whole = Atoms(cell=[edge] * 3, pbc=True)
    for k, point in zip(rng.permutation(len(parts)), points, strict=True):
        part = parts[k].copy()
        part.positions = Rotation.random(rng=rng).apply(part.positions - part.positions.mean(axis=0)) + point
        whole += part
    whole.calc = SNNPCalculator(model)
    FIRE(whole, logfile=None).run(fmax=0.3, steps=400)
    whole.calc = None
    return whole


def table(found: dict[str, Any]) -> str:
    """Markdown: liquids, then molecules; a cell says how long each model held, and the largest deviation of a bond."""
    models = found["results"]
    lines = [f"| | K | {' | '.join(f'`{name}`' for name in models)} |", f"|---|--:|{'--:|' * len(models)}"]
    systems = {name: run["kelvin"] for runs in models.values() for name, run in runs.items()}
    for name, kelvin in sorted(systems.items(), key=lambda each: (each[1], each[0])):
        cells = []
        for runs in models.values():
            run = runs.get(name)
            far = "" if run is None or run["deviation"] is None else f", {run['deviation']:.2f} Å"
            cells.append("–" if run is None else f"{run['ps']:g} ps{far}{_why(run)}")
        lines.append(f"| {name if kelvin == WARM else f'`{name}`'} | {kelvin:.0f} | {' | '.join(cells)} |")
    lines.append("")
    for name, runs in models.items():
        hot = [run["ended"] is None for run in runs.values() if run["kelvin"] == HOT]
        lines += [f"**`{name}`: {sum(hot)} of {len(hot)} molecules held for {PICOSECONDS:g} ps.**", ""]
    lines.append(written(found))
    return "\n".join(lines)


def _why(run: dict[str, Any]) -> str:
    return "" if run["ended"] is None else f" ({re.split(':| at step', run['ended'])[0]})"


def run_all(name: str, model: Potential, path: Path) -> None:
    """Every run of the model that is missing in the file, which other runs of this command may write to meanwhile.

    Molecules go in groups; liquids take longest, and come last.
    """
    molecules, liquids = varied(MOLECULES), list(LIQUIDS.items())
    for begin in range(0, MOLECULES, TOGETHER):
        run_group(name, model, molecules[begin : begin + TOGETHER], HOT, len(liquids) + begin, path)
    for seed, (system, about) in enumerate(liquids):
        run_group(name, model, [(system, liquid(*about, model))], WARM, seed, path)


def run_group(
    name: str, model: Potential, systems: list[tuple[str, Atoms]], kelvin: float, seed: int, path: Path
) -> None:
    """Run the systems together, unless all of them are known, and add what was found to the file."""
    if {system for system, _ in systems} <= read(path)["results"].get(name, {}).keys():
        return
    steps = round(1000.0 * PICOSECONDS / DT)
    settings = MDSettings(temperature_k=kelvin, friction_per_ps=2.0, steps=steps, dt_fs=DT, seed=seed)
    runs = survive(model, [atoms for _, atoms in systems], settings)
    found = read(path)
    for (system, _), run in zip(systems, runs, strict=True):
        print(name, system, run, flush=True)
        found["results"].setdefault(name, {})[system] = {"kelvin": kelvin, **run}
    save(path, found, ("snnp", "torch", "numpy", "rdkit"))


def read(path: Path) -> dict[str, Any]:
    """What is known, by model and system."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME[=FOLDER]", default=MODELS)
    parser.add_argument("--again", action="store_true", help="forget their runs that are there: the models are others")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    for text in asked.models:
        name, _, folder = text.partition("=")
        if asked.again and name in (found := read(path))["results"]:
            del found["results"][name]
            save(path, found, ("snnp", "torch", "numpy", "rdkit"))
        run_all(name, load_model(folder or name), path)
    between_marks(STUDY.with_suffix(".md"), {"table": table(read(path))})


if __name__ == "__main__":
    main()
