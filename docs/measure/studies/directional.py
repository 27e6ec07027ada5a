"""Exact and directional force training: gradients, the errors that both reach, and what a step of each costs.

python docs/measure/studies/directional.py          # train and measure what is missing, then picture and tables
python docs/measure/studies/directional.py --plot   # picture and tables from docs/studies/directional.json

The settings are in docs/studies/directional.yaml. A run that is finished is not trained again. `--device cuda` measures
the costs on a GPU, beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from pages import between_marks, provenance, written
from torch.profiler import ProfilerActivity, profile

from snnp.data import Frame
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.training import TrainConfig, load_config, resume, train
from snnp.training.backends import choose_backend
from snnp.training.batches import prepare
from snnp.training.loop import Loss
from snnp.training.problem import build_model, load_problem, resolve

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "directional"
PACKAGES = ("snnp", "torch", "numpy")
KINDS = ("energy", "exact", "directional")
INK, GRID = "#22303c", "#e3e8ec"
COLOURS = {"energy": "#8a97a3", "exact": "#4477aa", "directional": "#d1603d"}
NAMES = {"energy": "energy only", "exact": "forces, exact", "directional": "forces, directional"}

Found = dict[str, Any]


def configuration(study: Found, kind: str, family: str, **changes: Any) -> TrainConfig:
    """Training of one family on one set."""
    chosen = study["sets"][kind]
    tree = {"data": chosen["data"], "loss": chosen["loss"], "model": study["families"][family], "threads": 1}
    return load_config({**tree, **changes})


def train_all(study: Found, runs: Path, found: Found, save: Callable[[], None]) -> None:
    """Test errors of every set, family, kind of force training and seed."""
    errors = study["errors"]
    cases = [
        (kind, family, seed, mode)
        for kind, families in errors["families"].items()
        for family in families
        for seed in errors["seeds"]
        for mode in ("exact", "directional")
    ]
    for kind, family, seed, mode in cases:
        name = f"{kind}-{family}-{mode}-{seed}"
        if name in found["runs"]:
            continue
        optimiser = {**errors["optimiser"], "epochs": errors["epochs"][kind], "force_training": mode}
        config = configuration(study, kind, family, seed=seed, optimiser=optimiser, validate_every=1000)
        began = time.process_time()
        folder = runs / name
        result = resume(folder) if (folder / "config.yaml").exists() else train(config, folder)
        total = {part: evaluation.total.to_dict() for part, evaluation in result.evaluations.items()}
        found["runs"][name] = {
            **{"set": kind, "family": family, "mode": mode, "seed": seed, "n_parameters": result.model.n_parameters},
            **{"cpu_seconds": round(time.process_time() - began, 1), "errors": total},
        }
        print(name, found["runs"][name]["cpu_seconds"], "s", flush=True)
        save()


def steps_of(study: Found, kind: str, family: str, n_atoms: int, device: str) -> tuple[dict[str, Callable], int]:
    """One training step (without the optimiser) of each kind on one batch, and the number of its atoms."""
    config = configuration(study, kind, family, optimiser={"force_training": "directional"}, device=device)
    problem = load_problem(config)
    config = resolve(config, problem)
    frames, chosen = problem.split.train, list[Frame]()
    order = np.random.default_rng(0).permutation(len(frames))
    while sum(frame.n_atoms for frame in chosen) < n_atoms:
        chosen.append(frames[order[len(chosen) % len(frames)]])
    model = build_model(config, problem)
    still, moving = (
        prepare(choose_backend(model, torch.float32, device, displacement), model, chosen)
        for displacement in (None, config.displacement)
    )
    model.to(dtype=torch.float32, device=device)
    loss = Loss.at(config.loss, 0.0)

    def energy() -> None:
        still.backend.backward(model, still.everything, Loss(config.loss, 1.0, 0.0, 0.0), forces=False)

    def exact() -> None:
        still.backend.backward(model, still.everything, loss)

    def directional() -> None:
        moving.backend.backward(model, moving.everything, loss)

    def cleared(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            step()

        return run

    return {name: cleared(step) for name, step in zip(KINDS, (energy, exact, directional), strict=True)}, len(
        still.everything.owner
    )


def measure_gradients(study: Found, found: Found, save: Callable[[], None]) -> None:
    """Relative difference between directional and exact (float64) parameter gradients, fresh models."""
    for kind in study["sets"]:
        for family in study["families"]:
            if f"{kind}-{family}" in found["gradients"]:
                continue
            config = configuration(study, kind, family)
            problem = load_problem(config)
            config = resolve(config, problem)
            frames, loss = problem.split.train[: study["gradients"]["frames"]], Loss.at(config.loss, 0.0)
            model = build_model(config, problem)
            data = prepare(choose_backend(model, torch.float64), model, frames)
            data.backend.backward(model, data.everything, loss)
            exact = _gradient(model)
            results: dict[str, dict[str, float]] = {"float64": {}, "float32": {}}
            for dtype, errors in results.items():
                for displacement in study["gradients"]["displacements"]:
                    model = build_model(config, problem)
                    kind = getattr(torch, dtype)
                    data = prepare(choose_backend(model, kind, displacement=displacement), model, frames)
                    model.to(kind)
                    data.backend.backward(model, data.everything, loss)
                    errors[f"{displacement:g}"] = float((_gradient(model) - exact).norm() / exact.norm())
            found["gradients"][f"{kind}-{family}"] = results
            save()


def _gradient(model: Potential) -> torch.Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def _peak_bytes(step: Callable[[], None], device: str) -> int:
    """Memory that a step holds at most, beyond what was there before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    kineto = record.profiler.kineto_results
    events = sorted((e for e in kineto.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def _seconds(device: str) -> float:
    if device == "cpu":
        return time.process_time()  # CPU time: other work on the machine must not count
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_all(study: Found, found: Found, device: str, save: Callable[[], None]) -> None:
    """Time and peak memory of a step, kinds in turn so that a busy machine is unfair to none."""
    for kind in study["sets"]:
        for family in study["families"]:
            for wanted in study["cost"]["batch_atoms"]:
                key = f"{device}-{kind}-{family}-{wanted}"
                if key in found["costs"]:
                    continue
                steps, n_atoms = steps_of(study, kind, family, wanted, device)
                seconds: dict[str, list[float]] = {name: [] for name in steps}
                for repeat in range(study["cost"]["repeats"] + 2):
                    for name, step in steps.items():
                        began = _seconds(device)
                        step()
                        if repeat >= 2:
                            seconds[name].append(_seconds(device) - began)
                found["costs"][key] = {
                    **{"device": device, "set": kind, "family": family, "n_atoms": n_atoms},
                    "us_per_atom": {n: round(1e6 * statistics.median(v) / n_atoms, 2) for n, v in seconds.items()},
                    "kib_per_atom": {n: round(_peak_bytes(s, device) / 1024 / n_atoms, 2) for n, s in steps.items()},
                }
                print(key, found["costs"][key]["us_per_atom"], flush=True)
                save()


def errors_table(study: Found, found: Found) -> str:
    """Mean and standard deviation over seeds of the test errors, exact beside directional."""
    lines = [
        "| set | family | parameters | force training | energy MAE (meV/atom) | force MAE (eV/Å) | CPU s |",
        "|---|---|--:|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for run in found["runs"].values():
        groups.setdefault((run["set"], run["family"], run["mode"]), []).append(run)
    for (kind, family, mode), runs in groups.items():
        cells = [kind, family, f"{runs[0]['n_parameters']:,}", mode]
        for key, digits in (("energy_mae_mev_per_atom", 2), ("force_mae_ev_per_angstrom", 4)):
            values = np.array([run["errors"]["test"][key] for run in runs])
            cells.append(f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}")
        lines.append(f"| {' | '.join(cells)} | {np.mean([run['cpu_seconds'] for run in runs]):.0f} |")
    return "\n".join(lines)


def gradients_table(study: Found, found: Found) -> str:
    """Relative errors of directional gradients, a column for each displacement."""
    displacements = [f"{displacement:g}" for displacement in study["gradients"]["displacements"]]
    head = " | ".join(f"{displacement} Å" for displacement in displacements)
    lines = [f"| set, family | type | {head} |", "|---|---|" + "--:|" * len(displacements)]
    for name, results in found["gradients"].items():
        for dtype, errors in results.items():
            lines.append(f"| {name} | {dtype} | {' | '.join(f'{errors[each]:.1e}' for each in displacements)} |")
    return "\n".join(lines)


def costs_table(study: Found, found: Found) -> str:
    """Time and memory per atom of each kind of step; in brackets the multiple of the energy-only step."""
    head = [f"{NAMES[name]} ({unit})" for unit in ("µs/atom", "KiB/atom") for name in KINDS]
    lines = [f"| device | set | family | atoms | {' | '.join(head)} |", "|---|---|---|--:|" + "--:|" * len(head)]
    for case in found["costs"].values():
        cells = []
        for quantity in ("us_per_atom", "kib_per_atom"):
            values, unit = case[quantity], case[quantity]["energy"]
            forces = [values["exact"], values["directional"]]
            cells.append(f"{unit:.1f}")
            for value in forces:
                bold = "**" * (value == min(forces))
                multiple = f" ({value / unit:.1f})" if unit >= 0.05 else ""
                cells.append(f"{bold}{value:.1f}{bold}{multiple}")
        device = "CPU, one thread" if case["device"] == "cpu" else case["device"]
        lines.append(f"| {device} | {case['set']} | {case['family']} | {case['n_atoms']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(study: Found, found: Found, path: Path) -> None:
    """Time and memory against batch size: a column for each family, two rows for each set."""
    rows = [(kind, quantity) for kind in study["sets"] for quantity in ("us_per_atom", "kib_per_atom")]
    families = list(study["families"])
    figure = Figure(figsize=(12.5, 11.5), dpi=130, layout="constrained", facecolor="white")
    panels = figure.subplots(len(rows), len(families), sharex=True, sharey="row", squeeze=False)
    for (kind, quantity), row in zip(rows, panels, strict=True):
        for family, axes in zip(families, row, strict=True):
            cases = [
                c for c in found["costs"].values() if (c["set"], c["family"], c["device"]) == (kind, family, "cpu")
            ]
            for name in KINDS:
                points = [(case["n_atoms"], case[quantity][name]) for case in cases]
                axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], ms=4, lw=1.6, label=NAMES[name])
            axes.set(xscale="log", yscale="log")
            axes.grid(True, which="major", color=GRID, lw=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.tick_params(labelsize=8.5, colors=INK)
        unit = "µs/atom" if quantity == "us_per_atom" else "peak KiB/atom"
        row[0].set_ylabel(f"{kind}: {unit}", fontsize=10, color=INK)
    for family, axes in zip(families, panels[0], strict=True):
        axes.set_title(family, loc="left", fontsize=12, color=INK, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("atoms in the batch", fontsize=9.5, color=INK)
    panels[0, 0].legend(fontsize=8.5, frameon=False)
    figure.suptitle("One training step on one CPU core: time and peak memory per atom", x=0.01, ha="left", fontsize=14)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def write_page(study: Found, found: Found) -> None:
    """The picture, and the tables between their marks in docs/studies/directional.md."""
    picture(study, found, STUDY.with_suffix(".png"))
    origin = written(found, "`python docs/measure/studies/directional.py`")
    tables = {"errors": errors_table, "gradients": gradients_table, "costs": costs_table}
    contents = {name: f"{table(study, found)}\n\n{origin}" for name, table in tables.items()}
    between_marks(STUDY.with_suffix(".md"), contents)


def main() -> None:
    """Read the study, run what is missing, write picture and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only draw picture and tables from the JSON")
    parser.add_argument("--costs", action="store_true", help="measure costs only")
    parser.add_argument("--device", default="cpu", help="where to measure costs (default: cpu)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    arguments = parser.parse_args()
    study = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
    path = STUDY.with_suffix(".json")
    found: Found = json.loads(path.read_text()) if path.exists() else {"runs": {}, "gradients": {}, "costs": {}}

    def save() -> None:
        found.update(provenance(PACKAGES))
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())

    if not arguments.plot:
        torch.set_num_threads(1)
        measure_gradients(study, found, save)
        measure_all(study, found, arguments.device, save)
        if not arguments.costs:
            train_all(study, arguments.runs, found, save)
    write_page(study, found)


if __name__ == "__main__":
    main()
