"""`snnp ls`, `info`, `energy`, `plot`, `benchmark`: which models there are, what one says and costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from snnp.cli import console
from snnp.cli.exchange import print_remote
from snnp.cli.options import Device, Dtype, Json, Model, Overwrite, Threads, command, set_threads
from snnp.cli.outputs import input_files, prepare_output, write_structure
from snnp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from snnp.models.potential import Potential

__all__: list[str] = []


@command("ls", "snnp ls", "snnp ls --json", "snnp ls --remote", "snnp ls --remote --owner org")
def list_command(
    remote: bool = typer.Option(False, "--remote", help="What is on the Hub instead: models and datasets."),
    owner: str | None = typer.Option(None, metavar="ORG", help="Of this user or organisation on the Hub."),
    as_json: Json = False,
) -> None:
    """List the bundled models with their elements, sizes and test errors, or what is on the Hub."""
    from snnp.models.store import list_models

    if remote:
        print_remote(owner, as_json)
        return
    if owner is not None:
        raise InputError("--owner goes with --remote.")
    models = [_summary(name) for name in list_models()]
    if as_json:
        console.print_json(models)
        return
    columns = ["model", "elements", "parameters", "cutoff (Å)", "energy MAE (meV/atom)", "force MAE (eV/Å)", "µs/atom"]
    keys = ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom", "us_per_atom")
    rows = [
        [each["name"], " ".join(each["elements"]), each["n_parameters"], f"{each['cutoff_angstrom']:g}"]
        + [console.number(each[key]) for key in keys]
        for each in models
    ]
    if rows:
        console.print_table(columns, rows)
        console.say("Errors are on data that the model was not trained on; 'snnp info MODEL' says which.")
    else:
        console.say("No models are bundled with this installation; train one with 'snnp train', or reinstall snnp.")


@command("info", "snnp info snnp-si", "snnp info runs/mine --json", "snnp info org/name@v1.0")
def info_command(model: Model, as_json: Json = False) -> None:
    """Show all that is known about a model: form, data, errors, checksum."""
    from snnp.models.formats import stated

    details = _details(model)
    if as_json:
        console.print_json(details)
        return
    known, config = stated(details.pop("metadata")), details.pop("config")
    console.print_pairs(console.flat(details), title=details["name"])
    console.print_pairs(console.flat(config), title="\nForm")
    errors, metrics, properties = (known.pop(key, {}) for key in ("errors", "metrics", "properties"))
    if known:
        console.print_pairs(console.flat(known), title="\nProvenance")
    if metrics:
        parts = {"all": metrics, **metrics.get("groups", {}), **metrics.get("pure_elements", {})}
        console.print_errors(parts, title=f"\nErrors on {metrics.get('data', 'test data')}")
    elif errors:
        console.print_errors(errors, title="\nErrors")
    console.print_properties(properties.values())


def _summary(name: str) -> dict[str, Any]:
    from snnp.analysis.curve_page import stated_errors
    from snnp.models.store import load_model

    model = load_model(name)
    part, errors = stated_errors(model.metadata)
    return {
        "name": name,
        "elements": list(model.elements),
        "n_parameters": model.n_parameters,
        "cutoff_angstrom": model.cutoff,
        "errors_on": part or None,
        "energy_mae_mev_per_atom": errors.get("energy_mae_mev_per_atom"),
        "force_mae_ev_per_angstrom": errors.get("force_mae_ev_per_angstrom"),
        "us_per_atom": model.metadata.get("speed", {}).get("us_per_atom"),
    }


def _details(name: str) -> dict[str, Any]:
    from snnp.analysis.properties import stated_properties
    from snnp.hub import load_model, resolve
    from snnp.hub.manifest import fingerprint
    from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE

    found = resolve(name)
    folder, model = found.folder, load_model(found.pinned)
    evaluator = model.evaluator()
    stored = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    files = {name: fingerprint(folder / name).model_dump() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return {
        "name": name if name != str(folder) else folder.name,
        "source": found.source,
        "commit": found.commit,
        "class": type(model).__name__,
        "elements": list(model.elements),
        "cutoff_angstrom": model.cutoff,
        "n_parameters": model.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "computed_by": "torch" if evaluator is None else f"native kernel ({evaluator.target})",  # on this CPU
        "reference_energies_ev": model.reference_energies,
        "isolated_atoms": list(model.isolated_atoms),
        "format_version": stored["format_version"],
        "folder": str(folder),
        "files": files,
        "config": stored["config"],
        "metadata": model.metadata | ({"properties": stated} if (stated := stated_properties(model)) else {}),
    }


@command(
    "energy",
    "snnp energy snnp-si frames.xyz --out computed.xyz",
    "snnp energy snnp-si diamond:Si:1x1x1 --json",
    "snnp energy runs/mine POSCAR --dtype float64",
)
def energy_command(
    model: Model,
    structures: str = typer.Argument(
        metavar="FILE", help="Structures in any format that ASE reads, or one in words, such as fcc:Al:4x4x4."
    ),
    out: Path | None = typer.Option(None, metavar="FILE", help="Extended XYZ to write; by default it goes to stdout."),
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compute energy, forces and stress of every structure of a file; an ensemble adds its spread."""
    from snnp.data.read import read_images
    from snnp.hub import load_model
    from snnp.sampling import build_structure

    if out is not None:
        if out.suffix.lower() not in (".xyz", ".extxyz"):
            raise InputError(f"--out {out}: the results are extended XYZ; give a name that ends in .xyz or .extxyz.")
        prepare_output(out, overwrite=overwrite, inputs=input_files(model, structures))
    potential = load_model(model, dtype=dtype, device=device)
    frames = read_images(structures) if Path(structures).is_file() else [build_structure(structures)]
    done: list[Atoms] = []
    with console.progress_bar("computing", len(frames)) as update:
        for frame in frames:
            done.append(_single_point(potential, frame))
            update(len(done))
    if out is not None:
        write_structure(out, done, "extxyz")
    if as_json:
        console.print_json(
            {"model": potential.name, "data": structures, "out": out, "frames": list(map(_as_json, done))}
        )
    elif out is None:
        import ase.io

        ase.io.write(sys.stdout, done, format="extxyz")
    else:
        console.print_pairs({"structures": f"{len(done):,}", "written to": str(out)})


def _single_point(potential: Potential, atoms: Atoms) -> Atoms:
    """The structure with what the model says about it, in place of what it carried under the same names."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    found = potential.compute(atoms, stress=bool(atoms.pbc.all()))
    tensors = {name: getattr(found, name) for name in ("forces", "stress", "forces_std")}
    arrays = {name: each.detach().cpu().double().numpy() for name, each in tensors.items() if each is not None}
    frame: Atoms = atoms.copy()
    for name in ("energy", "forces", "stress", "free_energy", "energy_std", "forces_std"):
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    if found.energy_std is not None:
        frame.info["energy_std"] = float(found.energy_std)
    if "forces_std" in arrays:
        frame.arrays["forces_std"] = arrays.pop("forces_std")
    if "stress" in arrays:
        arrays["stress"] = full_3x3_to_voigt_6_stress(arrays["stress"][0])
    frame.calc = SinglePointCalculator(frame, energy=float(found.energy), **arrays)
    return frame


def _as_json(frame: Atoms) -> dict[str, Any]:
    results = frame.calc.results
    return {
        "formula": str(frame.symbols),
        "n_atoms": len(frame),
        "energy_ev": results["energy"],
        "energy_std_ev": frame.info.get("energy_std"),
        "forces_ev_per_angstrom": results["forces"],
        "forces_std_ev_per_angstrom": frame.arrays.get("forces_std"),
        "stress_ev_per_angstrom3": results.get("stress"),  # xx, yy, zz, yz, xz, xy
    }


@command("plot", "snnp plot snnp-si curves.png", "snnp plot runs/mine curves.pdf --data train.xyz")
def plot_command(
    model: Model,
    out: Path = typer.Argument(metavar="OUT", help="Picture to write: .png, .pdf or .svg."),
    data: Path | None = typer.Option(
        None, metavar="FILE", help="Reference data whose distances and angles are drawn behind the curves."
    ),
    overwrite: Overwrite = False,
) -> None:
    """Draw everything that a spline model has learned on one page."""
    from snnp.analysis.curve_page import draw_page
    from snnp.data import read_frames
    from snnp.hub import load_model

    potential = load_model(model)
    prepare_output(out, overwrite=overwrite, inputs=[*input_files(model), *([] if data is None else [data])])
    seen = None if data is None else read_frames(data).structure()
    console.print_pairs({"written to": str(draw_page(potential, out, title=Path(model).name, structures=seen))})


@command(
    "benchmark",
    "snnp benchmark snnp-si runs/mine",
    "snnp benchmark runs/mine --structure fcc:Al:10x10x10 --threads 2 --json",
    "snnp benchmark snnp-al --engine openmm --structure fcc:Al:10x10x10",
    after=("Beside LAMMPS, HIP-NN, ANI, MACE and NEP: docs/measure/compare.py in the source code of snnp.",),
)
def benchmark_command(
    models: list[str] | None = typer.Argument(
        None,
        metavar="[MODEL...]",
        help="Bundled models, model or run folders, names on the Hub; by default all bundled models.",
    ),
    structure: str | None = typer.Option(
        None, metavar="STRUCTURE", help="For the models: fcc:Al:a=4.05 (any size), fcc:Al:4x4x4, or a file."
    ),
    atoms: int = typer.Option(4000, metavar="N", help="About how many atoms."),
    threads: Threads = 1,
    repeats: int = typer.Option(7, metavar="N", help="Repeats of 0.2 s; medians are reported."),
    engine: str | None = typer.Option(None, metavar="NAME", help="What an engine (ase, openmm, native) adds instead."),
    steps: int = typer.Option(50, "--steps", "-n", metavar="N", help="Steps to measure with --engine."),
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure energy and forces: time per atom on this machine, and what an engine adds to it."""
    from snnp.hub import load_model
    from snnp.models.store import list_models
    from snnp.sampling.cost import measure_cost, measure_engine, usual_atoms

    set_threads(threads)
    if engine is not None and (models is None or len(models) != 1):
        raise InputError("--engine measures one model; name it, for example: snnp benchmark snnp-si --engine openmm.")
    names, rows = models or list_models(), []
    with console.progress_bar("measuring", len(names)) as update:
        for name in names:
            model = load_model(name, dtype=dtype, device=device)
            given, frame = usual_atoms(model, structure, atoms)
            if engine is not None:
                measured = measure_engine(model, frame, engine, steps)
                console.print_result({"model": model.name, "structure": given, "engine": engine, **measured}, as_json)
                return
            evaluator = model.evaluator()
            row = {"case": model.name, "structure": given, **measure_cost(model, frame, repeats)}
            row |= {"parameters": model.n_parameters, "dtype": str(model.dtype).removeprefix("torch.")}
            row |= {"path": "torch" if evaluator is None else evaluator.target, "threads": threads}
            rows.append(row)
            update(len(rows), note=name)
    rows.sort(key=lambda row: row["cpu_us_per_atom"])
    if as_json:
        console.print_json({"repeats": repeats, "rows": rows})
        return
    columns = ("model", "structure", "atoms", "CPU µs/atom", "wall µs/atom", "parameters", "computed by")
    keys = ("case", "structure", "n_atoms", "cpu_us_per_atom", "wall_us_per_atom", "parameters", "path")
    console.print_table(columns, [[row[key] for key in keys] for row in rows])
    console.say("CPU time, of all threads, hardly depends on what else the machine does; 'snnp version' describes it.")
