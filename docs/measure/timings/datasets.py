"""How fast datasets are: opening, a shuffled epoch and its memory, one frame at random, conversion from extended XYZ.

    python docs/measure/timings/datasets.py [--molecules 5000000] [--folder FOLDER] [--out docs/benchmarks/datasets.md]

Writes a parquet file with molecules as many and as large as those of ANI-1x (2 GB for five million) into FOLDER,
measures each thing in a process of its own, and removes the files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SIZES = np.array([9, 12, 15, 18, 24])  # atoms per molecule; 15.6 on average, as in ANI-1x
CHUNK = 8192
BATCH = 256
THREADS = {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}


def generate(path: Path, molecules: int) -> float:
    """Random molecules with energies and forces, in single precision as published sets have them; seconds."""
    from snnp.data.frames import Frames
    from snnp.data.write import parquet_writer

    random = np.random.default_rng(0)
    start = time.perf_counter()
    with parquet_writer(path, "wB97X/6-31G(d)", "none") as writer:
        for first in range(0, molecules, CHUNK):
            n = int(SIZES[(first // CHUNK) % len(SIZES)])
            b = min(CHUNK, molecules - first)
            positions = random.normal(scale=2.0, size=(b, n, 3)).astype(np.float32)
            forces = random.normal(size=(b, n, 3)).astype(np.float32)
            numbers = random.choice([1, 1, 6, 7, 8], size=n)
            block = Frames.conformers(numbers, positions, random.normal(size=b) - 1e4, forces)
            split = "test" if first > 0.9 * molecules else "train"
            writer.add(block.named([f"molecule#{first + k}" for k in range(b)]), split)
    return time.perf_counter() - start


def measure_open(path: str) -> dict[str, float]:
    """Time to open and to know the splits, without the time to import the libraries."""
    from snnp.data import load_dataset

    start = time.perf_counter()
    dataset = load_dataset(path)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    train = load_dataset(path, split="train")
    return {"open": opened, "open_split": time.perf_counter() - start, "frames": len(dataset), "train": len(train)}


def measure_epoch(path: str) -> dict[str, float]:
    """One shuffled epoch of batches as training takes them; peak memory includes Python, torch and Arrow."""
    import torch

    from snnp.data import load_dataset

    torch.set_num_threads(1)
    dataset = load_dataset(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, frames, atoms, total = time.perf_counter(), 0, 0, 0.0
    for batch in dataset.batches(BATCH, shuffle=0, dtype=torch.float32):
        frames += batch.structure.n_structures
        atoms += batch.structure.n_atoms
        total += float(batch.energy.sum())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert frames == len(dataset)
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time(),
        "molecules_per_second": frames / seconds,
        "atoms_per_second": atoms / seconds,
        "peak_mb": peak / 1024,
        "libraries_mb": before / 1024,
    }


def measure_random(path: str) -> dict[str, float]:
    """Single frames at random places, as somebody who looks around asks for them."""
    from snnp.data import load_dataset

    dataset = load_dataset(path)
    rows = np.random.default_rng(1).integers(len(dataset), size=100).tolist()
    start = time.perf_counter()
    for row in rows:
        dataset[row]
    return {"ms_per_frame": (time.perf_counter() - start) / len(rows) * 1e3}


def xyz_files(folder: Path) -> dict[str, Path]:
    """Small molecules and crystals as extended XYZ, as ASE writes them."""
    import ase.io
    from ase.build import bulk, molecule
    from ase.calculators.singlepoint import SinglePointCalculator

    files = {}
    for name, start, number in (
        ("molecules", molecule("CH3CH2OH"), 5000),
        ("crystals", bulk("Cu", cubic=True) * 3, 500),
    ):
        images = []
        for k in range(number):
            atoms = start.copy()
            atoms.rattle(0.1, seed=k)
            forces = np.random.default_rng(k).normal(size=(len(atoms), 3))
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - k, forces=forces)
            atoms.info |= {"config_type": "md", "temperature": 300}
            images.append(atoms)
        files[name] = folder / f"{name}.xyz"
        ase.io.write(files[name], images, format="extxyz")
    return files


def measure_xyz(path: str) -> dict[str, float]:
    """Reading as ASE and as we do, and the whole conversion to parquet: medians of interleaved repeats, CPU time."""
    import ase.io

    from snnp.data import convert
    from snnp.data.storage.extxyz import read_xyz

    def timed(action: Any) -> float:
        start = time.process_time()
        action()
        return time.process_time() - start

    target = Path(path).with_suffix(".parquet")
    list(read_xyz(path))
    frames = len(ase.io.read(path, ":", format="extxyz"))
    rounds = [
        (
            timed(lambda: ase.io.read(path, ":", format="extxyz")),
            timed(lambda: list(read_xyz(path))),
            timed(lambda: convert({"train": [path]}, target, method="none")),
        )
        for _ in range(5)
    ]
    ase_s, read_s, convert_s = np.median(rounds, axis=0).tolist()
    return {
        "frames": frames,
        "ase_us": ase_s / frames * 1e6,
        "read_us": read_s / frames * 1e6,
        "convert_us": convert_s / frames * 1e6,
        "read_times_faster": ase_s / read_s,
        "convert_times_faster": ase_s / convert_s,
        "bytes_xyz": Path(path).stat().st_size,
        "bytes_parquet": target.stat().st_size,
    }


def alone(what: str, path: Path) -> dict[str, float]:
    """One measurement in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--only", what, str(path)]
    done = subprocess.run(command, env={**os.environ, **THREADS}, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(found: dict[str, Any], arguments: str) -> str:
    """The page that is kept."""
    opened, epoch = found["open"], found["epoch"]
    lines = [
        "# Datasets: speed and memory",
        "",
        f"    python docs/measure/timings/datasets.py {arguments}".rstrip(),
        "",
        f"{found['machine']}, {time.strftime('%Y-%m-%d')}; one thread each; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "torch", "numpy", "ase"))
        + f". Load of the machine at start and end: {found['load'][0]:.1f}, {found['load'][1]:.1f}.",
        "",
        f"**{opened['frames']:,} molecules** of 9 to 24 atoms with energies and forces, {found['bytes'] / 1e9:.2f} GB "
        f"of parquet, written in {found['write']:.0f} s:",
        "",
        "| what | measured | goal |",
        "|---|---|---|",
        f"| open | {opened['open']:.2f} s | < 2 s |",
        f"| open one split | {opened['open_split']:.2f} s | < 2 s |",
        f"| shuffled epoch, batches of {BATCH} in single precision | {epoch['molecules_per_second']:,.0f} molecules/s "
        f"({epoch['atoms_per_second'] / 1e6:.1f} million atoms/s) | ≥ 50,000 molecules/s |",
        f"| the same against CPU time | {opened['frames'] / epoch['cpu_seconds']:,.0f} molecules/s | |",
        f"| peak memory of the epoch | {epoch['peak_mb']:,.0f} MB, of which libraries {epoch['libraries_mb']:,.0f} MB "
        "| < 2 GB |",
        f"| one frame at a random place | {found['random']['ms_per_frame']:.1f} ms | |",
        "",
        "**Extended XYZ** as ASE writes it, CPU time, medians of five interleaved rounds. Reading gives the same "
        "numbers and names as ASE (tested); converting includes writing the parquet file:",
        "",
        "| file | frames | ASE reads, µs/frame | we read | we convert | reading | converting | bytes, XYZ → parquet |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["xyz"].items():
        lines.append(
            f"| {name} | {row['frames']:,} | {row['ase_us']:.0f} | {row['read_us']:.0f} | {row['convert_us']:.0f} "
            f"| {row['read_times_faster']:.1f}x | {row['convert_times_faster']:.1f}x "
            f"| {row['bytes_xyz']:,} → {row['bytes_parquet']:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="write the report to this file, too")
    parser.add_argument("--machine", default=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        actions = {"open": measure_open, "epoch": measure_epoch, "random": measure_random, "xyz": measure_xyz}
        print(json.dumps(actions[given.only[0]](given.only[1])))
        return
    needed = given.molecules * 1_000 + 1_000_000_000
    if shutil.disk_usage(given.folder).free < needed:
        sys.exit(f"error: {given.folder} has less than {needed / 1e9:.0f} GB left; name another with --folder.")
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        path = Path(temporary) / "molecules.parquet"
        found: dict[str, Any] = {"machine": given.machine, "load": [os.getloadavg()[0]]}
        found["write"] = generate(path, given.molecules)
        found["bytes"] = path.stat().st_size
        found |= {what: alone(what, path) for what in ("open", "epoch", "random")}
        found["xyz"] = {name: alone("xyz", file) for name, file in xyz_files(Path(temporary)).items()}
        found["load"].append(os.getloadavg()[0])
    arguments = "" if given.molecules == 5_000_000 else f"--molecules {given.molecules}"
    text = report(found, arguments)
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
