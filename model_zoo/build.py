"""Build bundled models: train by the recipe, or read published networks; measure, and write the folder with its card.

python model_zoo/build.py snnp-si    # train (or take runs/snnp-si where it is finished), measure, write
python model_zoo/build.py snnp-si --allow-holes    # write it even if its energy falls under compression
python model_zoo/build.py snnp-si --speed    # only time the model as it is, and rewrite its card
python model_zoo/build.py ani-1ccx --allow-holes    # read published networks, measure, and write them
python model_zoo/build.py --table    # docs/models.md from the models as they are
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import distilled
import imported
import mean
import numpy as np
import several
import torch
import trained
from ase import Atoms
from ase.build import molecule
from trained import RUNS, Order, Trained, read_recipe
from training_range import training_range

from snnp.analysis.card import card_markdown
from snnp.analysis.properties import compression_scan, holes_in_words, lattice_constants, model_properties
from snnp.analysis.stability import crystal, stability_test, time_step_for
from snnp.doctor.trials import check_dimers, dimer_curves
from snnp.errors import ConfigError, SnnpError
from snnp.files import write_atomically
from snnp.kernels.cpu.library import instruction_set
from snnp.models.potential import Potential
from snnp.models.store import dump_model, load_model, save_model
from snnp.neighbours import neighbour_list
from snnp.report import Finding
from snnp.sampling.settings import MDSettings
from snnp.structure import Structure
from snnp.training.problem import Problem, load_problem
from snnp_ase.md import run_md

__all__ = ["build", "main", "training_range"]

ZOO = Path(__file__).resolve().parent
TABLE_PAGE = ZOO.parent / "docs" / "models.md"

MAX_BYTES = 1_000_000
CEILINGS = {
    "ani-1ccx": 11_000_000,  # published as eight networks of 326,660 numbers each: to shrink them would change them
    "snnp-organic-large": 2_500_000,  # three models
}
HOT_FRACTION, HOT_DISTILLED = 0.8, 1.2  # of the melting point; liquids are among the labels of a teacher
HOT_MOLECULE_K = 600.0
CRYSTAL_ATOMS, CRYSTAL_ATOMS_OF_MANY = 100, 60  # of one element; of each where a model knows several
SPEED_ATOMS = 1000
MELTING_POINTS = {
    **{"Li": 454.0, "Al": 933.0, "Si": 1687.0, "Ni": 1728.0, "Cu": 1358.0, "Ge": 1211.0, "Mo": 2896.0, "Ag": 1235.0},
    **{"Au": 1337.0, "Pd": 1828.0, "Pt": 2041.0, "W": 3695.0, "Ta": 3290.0, "Nb": 2750.0, "Mg": 923.0, "Ti": 1941.0},
    **{"Pb": 601.0, "Zr": 2128.0, "Ca": 1115.0, "Hf": 2506.0, "Na": 371.0},
}
"""K, at atmospheric pressure: CRC Handbook of Chemistry and Physics, 97th ed. (2016), section 4."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: the whole programme, or a short one while developing."""

    picoseconds: float = 20.0
    equilibration_ps: float = 2.0
    calls: int = 15


QUICK = Effort(picoseconds=0.2, equilibration_ps=0.1, calls=3)


@dataclass(frozen=True)
class System:
    """What molecular dynamics runs on: atoms at rest, and the temperature (K) of the hot run."""

    text: str
    atoms: Atoms
    hot_k: float
    melting_point_k: float | None


def build(
    name: str, zoo: Path = ZOO, run: Path | None = None, effort: Effort | None = None, *, allow_holes: bool = False
) -> Path:
    """Make the model of `zoo/name/recipe.yaml` unless its run is finished, measure, write config, weights and card.

    What makes it follows from the recipe: `neurochem` names published networks and their checksum, `mean` models that
    become an ensemble, `distil` a teacher, `self` how many models become one, and every other recipe is a training
    configuration. `metadata.measured_on` names the molecule (of ASE's g2 set) that dynamics and speed are measured on;
    else that is the one of lowest energy, or a crystal.

    Arguments:
        name: of the model and its folder.
        zoo: folder of the bundled models.
        run: folder of the training run; by default runs/NAME in the repository.
        effort: how long to measure.
        allow_holes: write a model whose energy falls under compression, too; its card says so.

    Raises:
        SnnpError: for a bad recipe or data, a run of another recipe, a model that is too large, or one with a hole.
    """
    folder, effort = zoo / name, effort or Effort()
    recipe, lengths = read_recipe(folder), dict[str, float]()
    order = Order(name, folder, run or RUNS / name, partial(_tell, name))
    if "neurochem" in recipe or "mean" in recipe:
        model = imported.read(recipe) if "neurochem" in recipe else mean.make(order)
        systems = _one_molecule(_measured_on(recipe))
        torch.set_num_threads(1)
        model.metadata["name"] = name
        pairs = _check_compression(name, model, systems, allow_holes=allow_holes)
        doctor = f"`snnp doctor model {name}` finds"
        model.metadata["limits"] += [f"{doctor} ({each.severity}): {each.message}" for each in pairs]
    else:
        make = distilled.make if "distil" in recipe else several.make if "self" in recipe else trained.make
        made = make(order)
        model = made.model
        torch.set_num_threads(1)
        lengths, systems = _examine(name, made)
        _check_compression(name, model, systems, allow_holes=allow_holes)
        if made.beside_teacher is not None:
            _tell(name, "beside the teacher")
            _put_beside(model, made.beside_teacher(lengths))
    model.metadata["stability"] = {label: _stability(name, model, system, effort) for label, system in systems.items()}
    _tell(name, "speed")
    model.metadata["speed"] = _speed(model, *next(iter(systems.items())), lengths, effort)
    model.metadata["built"] = _provenance(name, effort, allow_holes=allow_holes)
    return _write(name, model, folder)


def _examine(name: str, made: Trained) -> tuple[dict[str, float], dict[str, System]]:
    """Write training, range, errors and properties into the metadata; lattice constants, and what will be run."""
    model, summary = made.model, json.loads((made.run / "summary.json").read_text(encoding="utf-8"))
    about = model.metadata
    about |= made.about | {"name": name}
    named = about.pop("measured_on", None)
    about["training"] = {
        "minutes": summary["training_seconds"] / 60.0,
        **{key: summary[key] for key in ("epochs", "best_epoch", "threads")},
        "device": made.device,
    }
    about["training_range"] = training_range(made.problem.split.train, model)
    _tell(name, "errors on the test data")
    about["metrics"] = made.errors()
    crystals = about["training_range"]["periodic"] != "none" and named is None
    _tell(name, "properties")
    about["properties"] = {found.element: found.to_dict() for found in model_properties(model)} if crystals else {}
    lengths = {symbol: each["lattice_constant_angstrom"] for symbol, each in about["properties"].items()}
    hot = HOT_FRACTION
    if made.beside_teacher is not None:
        lengths, hot = lattice_constants(model) | lengths, HOT_DISTILLED
    return lengths, _systems(model, made.problem, lengths, hot) if named is None else _one_molecule(molecule(named))


def _put_beside(model: Potential, found: dict[str, Any]) -> None:
    """The teacher's crystals among the references of the properties, and the rest into the metadata."""
    for symbol, row in found.pop("references").items():
        each = model.metadata["properties"][symbol]
        each["references"] = {"teacher": row, **each["references"]}
    model.metadata |= found


def _check_compression(
    name: str, model: Potential, systems: Mapping[str, System], *, allow_holes: bool
) -> list[Finding]:
    """Note in the metadata what compression does to the model; refuse one that falls into a hole.

    Returns what the doctor says of pairs of atoms alone.
    """
    _tell(name, "compression")
    scan = compression_scan(model, {label: system.atoms for label, system in systems.items()})
    model.metadata["compression"] = [each.to_dict() for each in scan]
    pairs = list(check_dimers(dimer_curves(model)))
    holes = holes_in_words(model.metadata["compression"])
    holes += [finding.message for finding in pairs if finding.severity == "error"]
    if holes and not allow_holes:
        raise ConfigError(
            f"{name} implodes ({'; '.join(holes)}); train it on compressed structures, or write it with --allow-holes."
        )
    return pairs


def time_again(name: str, zoo: Path = ZOO, effort: Effort | None = None) -> Path:
    """Measure the speed of a built model anew, after a change of what evaluates it; nothing else of it changes."""
    folder, effort = zoo / name, effort or Effort()
    torch.set_num_threads(1)
    model = load_model(folder)
    properties, label = model.metadata.get("properties", {}), next(iter(model.metadata["stability"]))
    lengths = {symbol: each["lattice_constant_angstrom"] for symbol, each in properties.items()}
    if label in model.elements:
        lengths = lattice_constants(model) | lengths
    system = None
    if label not in lengths:
        recipe = read_recipe(folder)
        if "neurochem" in recipe or "measured_on" in recipe["metadata"]:
            systems = _one_molecule(_measured_on(recipe))
        else:
            systems = _systems(model, load_problem(several.config_of(recipe)), {})
        system = systems[label]
    _tell(name, "speed")
    model.metadata["speed"] = _speed(model, label, system, lengths, effort)
    return _write(name, model, folder)


def _measured_on(recipe: dict[str, Any]) -> Atoms:
    """The molecule that a recipe names for dynamics and speed."""
    if "neurochem" in recipe:
        return imported.measured_on(recipe)
    atoms: Atoms = molecule(recipe["metadata"]["measured_on"])
    return atoms


def _tell(name: str, what: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {name}: {what}", flush=True)


def _systems(
    model: Potential, problem: Problem, lengths: Mapping[str, float], hot: float = HOT_FRACTION
) -> dict[str, System]:
    """A perfect crystal of each element, or the molecule of lowest energy in the training data."""
    if not lengths:
        known = [frame for frame in problem.split.train if frame.energy is not None and frame.n_atoms > 1]
        atoms = min(known, key=lambda frame: frame.energy or 0.0).structure.to_ase()[0]
        return _one_molecule(atoms)
    systems, n_atoms = {}, CRYSTAL_ATOMS if len(lengths) == 1 else CRYSTAL_ATOMS_OF_MANY
    for symbol, length in lengths.items():
        if symbol not in MELTING_POINTS:
            raise ConfigError(f"no melting point of {symbol} is known; there are those of {', '.join(MELTING_POINTS)}.")
        atoms, melting = crystal(symbol, length, n_atoms), MELTING_POINTS[symbol]
        text = f"{len(atoms)} {symbol} atoms (perfect crystal, a = {length:.3f} Å)"
        systems[symbol] = System(text, atoms, hot * melting, melting)
    return systems


def _one_molecule(atoms: Atoms) -> dict[str, System]:
    formula = atoms.get_chemical_formula()
    return {formula: System(f"one free molecule {formula}", atoms, HOT_MOLECULE_K, None)}


def _stability(name: str, model: Potential, system: System, effort: Effort) -> dict[str, Any]:
    _tell(name, f"molecular dynamics of {system.text}")
    step = time_step_for(system.atoms)
    settings = MDSettings(temperature_k=300.0, steps=round(1000.0 * effort.picoseconds / step), dt_fs=step)
    warm = {"hot_k": system.hot_k, "equilibration_ps": effort.equilibration_ps}
    runs = stability_test(model, system.atoms, settings, run_md, **warm)
    melting = {} if system.melting_point_k is None else {"melting_point_k": system.melting_point_k}
    return {"system": system.text, **melting, **{kind: run.to_dict() for kind, run in runs.items()}}


def _speed(
    model: Potential, label: str, system: System | None, lengths: Mapping[str, float], effort: Effort
) -> dict[str, Any]:
    """CPU time for energy and forces of about 1000 atoms, one thread, with the neighbour list kept.

    `system` may be None where `label` is an element whose lattice constant is among the `lengths`.
    """
    if label in lengths:
        atoms = crystal(label, lengths[label], SPEED_ATOMS)
        structure, text = _shaken(atoms), f"{len(atoms)} {label} atoms"
    else:
        assert system is not None
        copies = round(SPEED_ATOMS / len(system.atoms))
        structure = Structure.concatenate([Structure.from_ase(system.atoms)] * copies)
        text = f"{structure.n_atoms} atoms in {copies} molecules"
    neighbours = neighbour_list(structure, model.cutoff + 0.5)
    seconds = []
    for _ in range(effort.calls + 1):
        # CPU time, not wall time: other work on the machine must not count.
        began = time.process_time()
        model.compute(structure, neighbours)
        seconds.append(time.process_time() - began)
    per_atom = 1e6 / structure.n_atoms
    return {
        "us_per_atom": min(seconds[1:]) * per_atom,
        "us_per_atom_median": statistics.median(seconds[1:]) * per_atom,
        "system": text,
        "n_atoms": structure.n_atoms,
        "n_calls": effort.calls,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "computed_by": "torch" if model.evaluator() is None else f"the native kernel ({instruction_set()})",
        "cpu": _cpu(),
    }


def _shaken(atoms: Atoms) -> Structure:
    """The crystal with displacements as at room temperature, so that shells of neighbours are not all of one size."""
    atoms = atoms.copy()
    atoms.positions += 0.1 * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    return Structure.from_ase(atoms)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _provenance(name: str, effort: Effort, *, allow_holes: bool) -> dict[str, Any]:
    packages = ("snnp", "torch", "numpy", "ase")
    options = " --quick" * (effort == QUICK) + " --allow-holes" * allow_holes
    return {
        "command": f"python model_zoo/build.py {name}{options}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": _cpu(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _write(name: str, model: Potential, folder: Path) -> Path:
    """Config, weights and card, each file replaced in one rename."""
    card = card_markdown(name, model).encode()
    text, weights = dump_model(model)
    size = len(text.encode()) + len(weights) + len(card)
    if size > (most := CEILINGS.get(name, MAX_BYTES)):
        raise ConfigError(f"{name} takes {size:,} bytes, more than {most:,}; make the model smaller.")
    save_model(model, folder)
    write_atomically(folder / "README.md", card)
    _tell(name, f"written to {folder} ({size:,} bytes)")
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to build: folders with a recipe.yaml")
    parser.add_argument("--run", type=Path, help="folder of the training run (default: runs/NAME); for one model only")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the models (default: this one)")
    parser.add_argument("--quick", action="store_true", help="short measurements, for development")
    parser.add_argument("--speed", action="store_true", help="only measure the speed of built models anew")
    parser.add_argument("--allow-holes", action="store_true", help="write models that implode under compression, too")
    parser.add_argument("--table", action="store_true", help="write the page that compares all models")
    parser.add_argument("--page", type=Path, default=TABLE_PAGE, help="where --table writes (default: docs/models.md)")
    options = parser.parse_args(arguments)
    if not options.names and not options.table:
        parser.error("name the models to build, or ask for --table")
    if options.run is not None and len(options.names) != 1:
        parser.error("--run goes with one NAME")
    try:
        for name in options.names:
            effort = QUICK if options.quick else None
            if options.speed:
                time_again(name, options.zoo, effort)
            else:
                build(name, options.zoo, options.run, effort, allow_holes=options.allow_holes)
        if options.table:
            sys.path.insert(0, str(ZOO.parent / "docs" / "measure"))
            from peers.published import comparison_page

            models = {path.parent.name: load_model(path) for path in sorted(options.zoo.glob("*/config.json"))}
            write_atomically(options.page, comparison_page(models).encode())
    except (SnnpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
