"""LAMMPS with pair style snnp: a step on one rank and two, beside our own engine and other potentials, in one run.

    python docs/measure/timings/ranks.py --out docs/benchmarks/DATE-lammps.md --json docs/benchmarks/DATE-lammps.json
    python docs/measure/timings/ranks.py --large 1000000 ...         and a million atoms on two ranks

NVE of crystals from 600 K, a list with a skin of 1 Å for all, energy and virial at the first and last step alone. Cases
are run in turn, repeat after repeat; medians. CPU time on one rank is wall time times the share of a processor that
LAMMPS says it had, so that other work on the machine counts little; ranks that wait for each other wait busily, so for
two of them wall time is given, which means something where the share is nearly one. What communication takes is fitted
to runs on two ranks from 2,000 atoms on. Needs `snnp lammps build`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from snnp_lammps import plugin_folder
from snnp_lammps.installation import Installation, environment, find_installation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.document import machine

from snnp.hub import load_model
from snnp.models.spline.lammps_file import write_lammps
from snnp.sampling import MDSettings, build_structure
from snnp.sampling.embedded import run_md

MODEL, SKIN = "snnp-al", 1.0
BYTES_PER_GHOST = 2 * 24  # a position forward and a force back, three doubles each, in a step
# Of a common cluster network, for the model below: not measured here.
LATENCY_US, GIGABYTES_PER_S, MESSAGES = 2.0, 10.0, 12
OTHER_SIZES = ((", twice the atoms", 2.0), (", a quarter", 0.25), (", a sixteenth", 1 / 16))


@dataclass(frozen=True)
class Case:
    """A potential on a crystal; `share` of the atoms that are asked for, where a potential is slow."""

    name: str
    lattice: str
    element: str
    mass: float
    per_cell: int
    pair: tuple[str, ...]
    share: float = 1.0


def cases(file: Path) -> list[Case]:
    """Ours first; the others are potentials that come with LAMMPS."""
    fcc, bcc = ("fcc 4.05", "Al", 26.98, 4), ("bcc 3.316", "Ta", 180.95, 2)
    hcp = "custom 2.95 a1 1 0 0 a2 0 1.7320508 0 a3 0 0 1.5864 basis 0 0 0 basis .5 .5 0 basis .5 .8333333 .5"
    hcp += " basis 0 .3333333 .5"
    overlay = "pair_style hybrid/overlay zbl 4 4.8 snap", "pair_coeff 1 1 zbl 73 73"
    return [
        Case(f"snnp ({MODEL})", *fcc, ("pair_style snnp", f"pair_coeff * * {file} Al")),
        Case("eam/alloy Al", *fcc, ("pair_style eam/alloy", "pair_coeff * * AlCu.eam.alloy Al")),
        Case(
            "meam/spline Ti", hcp, "Ti", 47.87, 4, ("pair_style meam/spline", "pair_coeff * * Ti.meam.spline Ti"), 0.125
        ),
        Case("uf3 Nb", "bcc 3.31", "Nb", 92.9, 2, ("pair_style uf3 3", "pair_coeff * * Nb.uf3 Nb"), 0.125),
        Case("snap Ta", *bcc, (*overlay, "pair_coeff * * snap Ta06A.snapcoeff Ta06A.snapparam Ta"), 0.03),
    ]


def script(case: Case, atoms: int, steps: int) -> tuple[str, int]:
    """The input, and the number of atoms: cells of as nearly equal sides as it can be."""
    side = max(3, round((atoms / case.per_cell) ** (1 / 3)))
    lines = [
        "units metal",
        f"lattice {case.lattice}",
        f"region all block 0 {side} 0 {side} 0 {side}",
        "create_box 1 all",
    ]
    lines += ["create_atoms 1 box", f"mass 1 {case.mass}", *case.pair, "velocity all create 600 4711 loop geom"]
    lines += [f"neighbor {SKIN} bin", "neigh_modify delay 0 every 1 check yes", "fix 1 all nve", "timestep 0.001"]
    return "\n".join([*lines, "thermo 0", "run 10", f"run {steps}", ""]), side**3 * case.per_cell


def lammps(found: Installation, text: str, ranks: int) -> dict[str, float]:
    """Wall and CPU seconds of the last run, and what LAMMPS says of it, by name."""
    potentials = found.program.parent / "share" / "lammps" / "potentials"
    variables = environment(LAMMPS_PLUGIN_PATH=plugin_folder(), LAMMPS_POTENTIALS=str(potentials), OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in.lammps").write_text(text)
        command = [str(found.program), "-in", "in.lammps", "-log", "none", "-nocite"]
        command = command if ranks == 1 else [str(found.launcher), "-n", str(ranks), *command]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    last = done.stdout.rpartition("Loop time of ")[2]
    wall, percent = float(last.split()[0]), float(re.findall(r"([\d.]+)% CPU use", last)[0])
    said = {"wall": wall, "cpu": wall * percent / 100.0}
    for part in ("Pair", "Neigh", "Comm"):
        said[part.lower()] = float(re.findall(rf"^{part}\s*\|[^|]*\|\s*([\d.e+-]+)", last, re.MULTILINE)[0])
    said["ghosts"] = float(re.findall(r"^Nghost:\s+([\d.e+]+) ave", last, re.MULTILINE)[0])
    said["mib"] = float(re.findall(r"memory allocation .*= \S+ \| \S+ \| (\S+) Mbytes", done.stdout)[-1])
    return said


def native(atoms: int, steps: int, threads: int) -> tuple[dict[str, float], int]:
    """The same run by our own engine."""
    torch.set_num_threads(threads)
    side = max(3, round((atoms / 4) ** (1 / 3)))
    structure = build_structure(f"fcc:Al:{side}x{side}x{side}:a=4.05")
    settings: dict[str, Any] = {"ensemble": "nve", "temperature_k": 600.0, "log_interval": 10**6}
    model = load_model(MODEL, dtype="float32")
    seconds: list[tuple[float, float]] = []
    for n in (10, 10 + steps):  # the difference is of the steps alone
        wall, cpu = time.perf_counter(), time.process_time()
        run_md(model, structure, MDSettings(steps=n, **settings))
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    (wall, cpu), (wall_all, cpu_all) = seconds
    return {"wall": wall_all - wall, "cpu": cpu_all - cpu}, len(structure)


def measure(atoms: int, steps: int, repeats: int, file: Path) -> list[dict[str, Any]]:
    """A row per case and number of ranks (threads, for our own engine); medians over interleaved repeats."""
    found, rows = find_installation(), {}
    plan: list[tuple[str, Case | None, int, float]] = [(f"our own engine ({MODEL})", None, n, 1.0) for n in (1, 2)]
    plan += [(case.name, case, n, case.share) for case in cases(file) for n in (1, 2)]
    plan += [(f"snnp ({MODEL}){what}", cases(file)[0], 2, share) for what, share in OTHER_SIZES]
    for repeat in range(repeats):
        for name, case, n, share in plan:
            if case is None:
                numbers, count = native(atoms, steps, n)
            else:
                text, count = script(case, int(atoms * share), steps)
                numbers = lammps(found, text, n)
            row = rows.setdefault((name, n), {"case": name, "ranks": n, "atoms": count, "repeats": []})
            row |= {"threads": n if case is None else 1, "steps": steps}  # LAMMPS tells of its first rank
            row["repeats"].append(numbers)
            per = 1e6 / (count * steps)
            print(f"{repeat + 1}/{repeats} {name}, {n}: CPU {numbers['cpu'] * per:.2f} µs", file=sys.stderr, flush=True)
    for row in rows.values():
        row["share"] = statistics.median(each["cpu"] / each["wall"] for each in row["repeats"]) / row["threads"]
        per = 1e6 / (row["atoms"] * steps)
        for key in row["repeats"][0]:
            value = statistics.median(each[key] for each in row["repeats"])
            row[key] = value * per if key not in ("ghosts", "mib") else value
    return list(rows.values())


def communication(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """What LAMMPS calls communication in a step on two ranks of this machine: µs, and ns for each ghost of a rank."""
    mine = [row for row in rows if row["case"].startswith("snnp") and row["ranks"] == 2]
    took = [1e6 / row["steps"] * min(each["comm"] for each in row["repeats"]) for row in mine]  # the least of waiting
    slope, start = statistics.linear_regression([row["ghosts"] for row in mine], took)
    return start, 1e3 * slope


def on_paper(cost_us: float, ghost_ns: float, density: float, reach: float) -> list[list[str]]:
    """Time of a step on 1,000 ranks by size: computing, and what moves over the network; µs.

    cost_us: per atom and step. ghost_ns: for packing, copying and unpacking. density: atoms/Å³. reach: Å, with skin.
    """
    rows = []
    for total in (10**6, 10**7, 10**8):
        own = total / 1000
        side = (own / density) ** (1 / 3)
        ghosts = density * ((side + 2 * reach) ** 3 - side**3)
        compute = own * cost_us
        network = MESSAGES * LATENCY_US + ghosts * (BYTES_PER_GHOST / (GIGABYTES_PER_S * 1e3) + 1e-3 * ghost_ns)
        share = compute / (compute + network)
        rows.append(
            [f"{total:,}", f"{own:,.0f}", f"{ghosts:,.0f}", f"{compute:,.0f}", f"{network:.0f}", f"{share:.0%}"]
        )
    return rows


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def page(document: dict[str, Any]) -> str:
    """The document as Markdown."""
    rows = []
    for row in document["rows"]:
        cpu = f"{row['cpu']:.2f}" if row["ranks"] == 1 else "–"
        shown = [row["case"], f"{row['ranks']}", f"{row['atoms']:,}", cpu, f"{row['wall']:.2f}", f"{row['share']:.2f}"]
        rows.append([*shown, *(f"{row[key]:.2f}" if key in row else "–" for key in ("pair", "neigh", "comm"))])
    columns = ["case", "ranks (threads)", "atoms", "CPU µs/atom-step", "wall", "share of a processor"]
    text = f"# LAMMPS, {document['date']}\n\n{table([*columns, 'pair', 'lists', 'communication'], rows)}\n"
    if min(row["share"] for row in document["rows"]) < 0.95:
        text += (
            "Where the share is below one, other programs had the rest: wall times are as much longer, and waiting for "
        )
        text += "each other, which counts as communication, too.\n\n"
    by = {(row["case"], row["ranks"]): row for row in document["rows"]}
    ours, own = f"snnp ({MODEL})", f"our own engine ({MODEL})"
    one, two, threads, twice = by[ours, 1], by[ours, 2], by[own, 2], by[ours + OTHER_SIZES[0][0], 2]
    faster = {key: one[key] / two[key] for key in ("wall", "cpu")}
    longer = {key: twice[key] * twice["atoms"] / one[key] / one["atoms"] for key in ("wall", "cpu")}
    text += (
        f"On one rank LAMMPS takes {document['ratio']:.3f} times the CPU time of our own engine on one thread, on two "
        f"ranks {2 * two['cpu'] / threads['cpu']:.3f} times that on two threads "
        f"({two['wall'] / threads['wall']:.3f} by the clock). Two ranks are {faster['wall']:.2f} times as fast as one "
        f"for the same atoms by the clock ({faster['cpu']:.2f} in CPU time per rank), and for {twice['atoms']:,} atoms "
        f"take {longer['wall']:.2f} times as long as one rank for {one['atoms']:,} ({longer['cpu']:.2f}).\n\n"
    )
    if document["large"]:
        big = document["large"]
        text += (
            f"{big['atoms']:,} atoms on {big['ranks']} ranks: {big['wall_us']:.2f} µs/atom-step of wall time, our own "
            f"engine on two threads {big['own_wall_us']:.2f}; {big['mib']:,.0f} MiB of LAMMPS's arrays per rank, "
            f"{big['ghosts']:,.0f} ghosts each, {big['comm_us']:,.0f} µs of communication a step.\n\n"
        )
    start, slope = document["communication"]
    text += (
        "## A thousand ranks, on paper\n\nA step moves the position of every ghost forward and its force back, 48 "
        f"bytes, in {MESSAGES} messages. Between two ranks here that takes {start:.0f} µs and {slope:.1f} ns for each "
        "ghost, in memory, waiting for each other included (a straight line through the runs above). For a network "
        f"{LATENCY_US:g} µs a message and {GIGABYTES_PER_S:g} GB/s per rank, which are assumed, are added to the time "
        "for each ghost; the cost of an atom is as above, the number of ghosts by geometry.\n\n"
    )
    columns = ["atoms", "per rank", "ghosts", "computing (µs)", "network (µs)", "share of computing"]
    text += table(columns, document["on_paper"]) + "\n"
    about = document["machine"]
    text += f"- machine: {about['cpu']}, {about['cores']} cores; load average {about['load_average']:.1f} at the end"
    text += f"{document['note']}\n- {document['versions']}; pace is not in this LAMMPS\n"
    text += f"- command: `{document['command']}`\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", type=int, default=0, help="atoms of a large run on two ranks, 20 steps")
    parser.add_argument("--note", default="", help="what else to tell about the machine")
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--json", type=Path, help="all numbers")
    chosen = parser.parse_args()
    model = load_model(MODEL, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        file = write_lammps(model, Path(folder) / "model.snnp")
        rows = measure(chosen.atoms, chosen.steps, chosen.repeats, file)
        large: dict[str, Any] = {}
        if chosen.large:
            text, count = script(cases(file)[0], chosen.large, 20)
            said = lammps(find_installation(), text, 2)
            own, own_count = native(chosen.large, 20, 2)
            large = {"atoms": count, "ranks": 2, "wall_us": said["wall"] * 1e6 / (count * 20), **said}
            large |= {"own_wall_us": own["wall"] * 1e6 / (own_count * 20), "comm_us": said["comm"] * 1e6 / 20}
    ours = {(row["case"], row["ranks"]): row["cpu"] for row in rows}
    cost = ours[f"snnp ({MODEL})", 1]
    document = {
        "date": f"{date.today():%Y-%m-%d}",
        "command": f"python {' '.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])}",
        "machine": machine(),
        "note": f"; {chosen.note}" if chosen.note else "",
        "versions": f"LAMMPS {find_installation().version}, {find_installation().mpi}, torch {torch.__version__}",
        "rows": rows,
        "ratio": cost / ours[f"our own engine ({MODEL})", 1],
        "large": large,
        "communication": communication(rows),
        "on_paper": on_paper(cost, communication(rows)[1], 4 / 4.05**3, model.cutoff + SKIN),
    }
    print(page(document))
    if chosen.out:
        chosen.out.write_text(page(document), encoding="utf-8")
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
