"""Fuzzing of what reads data: extended XYZ (beside ASE), packed and not, parquet, configurations, comment lines.

python tests/fuzz/readers.py --seconds 60
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

import ase.io
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from driver import Files, Target, main

from snnp.data import Keys, load_dataset
from snnp.data.frames import Frames
from snnp.data.storage import extxyz as reader
from snnp.data.storage.atoms import to_atoms
from snnp.data.storage.contents import pack, unpack
from snnp.data.storage.extxyz_comment import read_comment, write_pair
from snnp.data.write import parquet_writer, xyz_lines
from snnp.errors import SnnpError
from snnp.training import load_config

__all__ = ["TARGETS"]

_WORDS = [
    *(
        b"Lattice=",
        b"Properties=species:S:1:pos:R:3",
        b"energy=",
        b"-1.5",
        b"pbc=",
        b'"T T F"',
        b"TTF",
        b"ppf",
        b"stress=",
    ),
    *(b'"1 0 0 0 1 0 0 0 1"', b"virial=", b"_JSON [[1, 2], [3]]", b"[[1,0,0],[0,1,0],[0,0,1]]", b"{", b"}", b"[", b"]"),
    *(b'"', b"'", b"\\", b"=", b" = ", b"\n", b"\r\n", b"\n\n", b"\t", b"Si 0 0 0\n", b"REF_energy=2", b":forces:R:3"),
    *(b"\xff", "é".encode(), b"1\nenergy=1\nH 0 0 0\n", b"nan", b"1e400", b"T", b"species", b"Z:I:1", b"config_type=x"),
]
_LATTICE = 'Lattice="4 0 0 0 4 0 0 0 4"'
_SEEDS = [
    f'2\n{_LATTICE} Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T F"\n'
    "Si 0 0 0 0.1 0 0\nSi 1 1 1 -0.1 0 0\n"
    f'1\n{_LATTICE} Properties=species:S:1:pos:R:3:forces:R:3 energy=-2 config_type=a stress="1 2 3 2 4 5 3 5 6"\n'
    "Cu 0 0 0 1 2 3\n",
    "3\nREF_energy=-76.4 note='a = b' alone list=[1, 2]\nO 0 0 0\nH 0 0 0.96\nH 0 0.93 -0.2\n",
    "1\nProperties=species:S:1:pos:R:3:Z:I:1:on:L:1 dft_energy=1 dft_virial={1 0 0 0 1 0 0 0 1} "
    + _LATTICE
    + "\nH 0 0 0 1 T\n\n1\ndft_energy=2\nHe 1 2 3\n",
]


def _labels(blocks: Sequence[Frames]) -> list[tuple[np.ndarray, ...]]:
    whole = Frames.concatenate(blocks)
    found = []
    for row in range(len(whole)):
        one = whole[row : row + 1]
        found.append((one.numbers, one.positions, one.cell[0], one.pbc[0], one.energy, one.forces, one.stress[0]))
    return found


def _check_xyz(path: Path) -> None:
    """Read it in every way: all agree with one another, and with ASE where that understands the file, too."""
    first = _labels(list(reader.read_xyz(path, labelled=False, extras=False)))
    quickly, reader._parse_quickly = reader._parse_quickly, lambda run: None
    try:
        patiently = _labels(list(reader.read_xyz(path, labelled=False, extras=False)))
    finally:
        reader._parse_quickly = quickly
    _assert_same(first, patiently, "Arrow and Python read other numbers")
    assert len(first) > 0
    list(reader.read_plain(path))
    list(reader.read_plain(path, -1))
    with contextlib.suppress(SnnpError):  # not everything that can be read can be kept
        blocks = list(reader.read_xyz(path, labelled=False))
        lines = "".join(line for block in blocks for line in xyz_lines(block))
        list(to_atoms(Frames.concatenate(blocks)))
        again = path.with_name("again.xyz")
        again.write_text(lines)
        _assert_same(first, _labels(list(reader.read_xyz(again, labelled=False, extras=False))), "written and read")
    _compare_with_ase(path, first)


def _compare_with_ase(path: Path, ours: list[tuple[np.ndarray, ...]]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = path.read_bytes().decode().replace("\r\n", "\n")
            theirs = ase.io.read(io.StringIO(text), ":", format="extxyz")
    except Exception:
        return  # it understands less
    if len(theirs) != len(ours):
        return  # it stops at blank lines
    for image, (numbers, positions, cell, pbc, energy, forces, _) in zip(theirs, ours, strict=True):
        results = {} if image.calc is None else image.calc.results
        if not np.array_equal(image.numbers, numbers):
            raise AssertionError("ASE reads other elements")
        np.testing.assert_array_equal(image.positions, positions)
        if image.cell.any():
            np.testing.assert_array_equal(image.cell.array, cell)
            if image.pbc.all() != pbc.all():
                continue  # what it does not understand is periodic to it
        other = any(word in text.lower() for word in ("ref_", "dft_"))  # which we prefer
        if isinstance(results.get("energy"), float) and np.isfinite(energy).all() and not other:
            np.testing.assert_array_equal(results["energy"], energy[0])
        if np.shape(results.get("forces")) == forces.shape and np.isfinite(forces).all() and not other:
            np.testing.assert_array_equal(results["forces"], forces)


def _assert_same(ones: list[tuple[np.ndarray, ...]], others: list[tuple[np.ndarray, ...]], what: str) -> None:
    assert len(ones) == len(others), what
    for one, other in zip(ones, others, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, its, err_msg=what)


def _invent_xyz(random: Random) -> Files:
    """Frames in any dialect."""
    parts = []
    for _ in range(random.randint(1, 3)):
        n = random.randint(1, 3)
        pairs = [_invent_pair(random) for _ in range(random.randint(0, 6))]
        columns, width = random.choice([("", 3), (":forces:R:3", 6), (":tags:I:1", 4), (":dft_force:R:3", 6)])
        if columns or random.random() < 0.5:
            pairs.append(f"Properties{random.choice(['=', ' = ', '= '])}species:S:1:pos:R:3{columns}")
        random.shuffle(pairs)
        rows = []
        for _ in range(n):
            texts = [random.choice(["0", "1.5", "-2e-3", ".5", "+1", "3."]) for _ in range(width)]
            if columns == ":tags:I:1":
                texts[-1] = str(random.randint(-5, 5))
            rows.append(random.choice(["H", "si", "Cu", "O"]) + random.choice([" ", "  ", "\t"]) + " ".join(texts))
        parts.append(f"{n}\n{' '.join(pairs)}\n" + "\n".join(rows) + "\n" + random.choice(["", "", "\n", " \n\n"]))
    return {"a.xyz": "".join(parts).encode()}


def _invent_pair(random: Random) -> str:
    name, value = random.choice(
        [
            ("energy", "-1.25"),
            ("REF_energy", "3"),
            ("Lattice", "4 0 0 0 4 0 0 1 4"),
            ("pbc", random.choice(["T T F", "TFT", "F", "1 0 1", "p p f", "true true false"])),
            ("stress", "1 2 3 2 4 5 3 5 6"),
            ("virial", "1 0 0 0 1 0 0 0 1"),
            ("config_type", random.choice(["bulk", "a b", "x=y", "it's"])),
            ("note", random.choice(["energy=3", "[x]", "a{b}", "T", "1 2 3", ""])),
        ]
    )
    name = random.choice([name, name, name, name.upper(), f'"{name}"'])
    quotes = random.choice(['""', '""', "''", "[]", "{}"]) if " " in value or random.random() < 0.5 else "  "
    return f"{name}{random.choice(['=', '=', ' = ', ' ='])}{quotes[0]}{value}{quotes[1]}".replace("  ", " ").strip()


def _check_comment(path: Path) -> None:
    """What a comment says is written and read back as the same."""
    comment = path.read_bytes().decode(errors="replace").replace("\n", " ")
    values = read_comment(comment, "here", {})
    for name, value in values.items():
        if name in ("Lattice", "pbc", "Properties", "stress", "virial", "comment") or not name.isidentifier():
            continue
        back = read_comment(f"{write_pair(name, value)} a=1", "here", {}).get(name)
        np.testing.assert_equal(back, value)


def _check_packed(folder: Path) -> None:
    list(reader.read_xyz(folder / "a.xyz.gz", labelled=False))


def _parquet_seed(extras: dict[str, object]) -> bytes:
    block = Frames.conformers(np.array([8, 1, 1]), np.arange(18.0).reshape(2, 3, 3), np.array([1.0, 2.0]))
    with tempfile.TemporaryDirectory() as folder:
        with parquet_writer(Path(folder) / "a.parquet", "x", "") as writer:
            writer.add(block.named(["a#0", "a#1"], ["g", None], [json.dumps(extras), None]), "train")
        return (Path(folder) / "a.parquet").read_bytes()


def _check_parquet(folder: Path) -> None:
    dataset = load_dataset(folder / "a.parquet")
    frames = dataset.frames()
    for frame, atoms in zip(frames, dataset.to_ase(), strict=True):
        np.testing.assert_array_equal(frame.structure.positions.numpy(), atoms.positions)
        np.testing.assert_array_equal(frame.structure.numbers.numpy(), atoms.numbers)
    dataset.write(folder / "b.xyz")


def _check_extras(folder: Path) -> None:
    text = (folder / "a.json").read_bytes().decode(errors="replace")
    extras = unpack(text, "here")
    again = unpack(pack(extras, "here"), "here")
    np.testing.assert_equal(again.info, extras.info)


def _check_config(folder: Path) -> None:
    config = load_config(folder / "a.yaml")
    assert isinstance(config.data.keys, Keys)


TARGETS = [
    Target(
        "xyz", lambda folder: _check_xyz(folder / "a.xyz"), [{"a.xyz": s.encode()} for s in _SEEDS], _WORDS, _invent_xyz
    ),
    Target(
        "comment",
        lambda folder: _check_comment(folder / "a.txt"),
        [{"a.txt": line.encode()} for seed in _SEEDS for line in seed.split("\n") if "=" in line],
        _WORDS,
    ),
    Target("packed", _check_packed, [{"a.xyz.gz": gzip.compress(s.encode() * 20)} for s in _SEEDS]),
    Target("parquet", _check_parquet, [{"a.parquet": _parquet_seed({"info": {"a": 1}})}]),
    Target(
        "extras",
        _check_extras,
        [
            {"a.json": b'{"info": {"a": [1, "x"], "b": {"float": "nan"}}, "names": {"energy": "REF_energy"}}'},
            {"a.json": b'{"arrays": {"tags": {"ndarray": [1, 2], "dtype": "int64", "shape": [2]}}}'},
        ],
        [b'"ndarray"', b'"dtype"', b'"shape"', b'"str"', b'"energy"', b"null", b"[", b"{", b'"positions"', b"1e999"],
    ),
    Target(
        "config",
        _check_config,
        [
            {"a.yaml": b"data: {train: [a.xyz], valid: 0.1, units: {energy: kcal/mol}}\nmodel: {family: ani}\n"},
            {"a.yaml": b"data:\n  train: [a.xyz]\n  max_force: 3\noptimiser: {epochs: 3, learning_rate: 1e-2}\n"},
        ],
        [
            b"&a",
            b"*a",
            b"<<:",
            b"!!python/object:os.system",
            b"units: ",
            b"-eV/angstrom",
            b"null",
            b"[",
            b"{",
            b"1e999",
            b"- ",
        ],
    ),
]

if __name__ == "__main__":
    sys.exit(main(TARGETS))
