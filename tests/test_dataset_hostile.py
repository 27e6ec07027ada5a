"""Parquet files that are damaged or hostile: refused with one line, before they are unpacked."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.build import bulk

from snnp.data import load_dataset
from snnp.data.frames import Frames
from snnp.data.storage.atoms import from_atoms
from snnp.data.storage.parquet_checks import check_pages
from snnp.data.write import parquet_writer
from snnp.errors import DataError, InputError


def plain(rows: int = 2, **more: Any) -> dict[str, Any]:
    return {"atomic_numbers": [[1, 1]] * rows, "positions": [[[0.0, 0, 0], [0, 0, 0.75]]] * rows, **more}


def refused(path: Path) -> str:
    """The message, which is one line; nothing else may come out of a bad file."""
    with pytest.raises(DataError) as caught:
        load_dataset(path).frames()
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file of ours, several pages per column."""
    path = tmp_path / "good.parquet"
    positions = np.random.default_rng(0).normal(size=(3000, 5, 3)) * 5
    block = Frames.conformers(np.full(5, 6), positions, np.arange(3000.0), positions)
    with parquet_writer(path, "x", "") as writer:
        writer.add(block.named([f"a#{k}" for k in range(3000)]), "train")
    return path


BOMBS = {
    # Twelve million zeros in a few kilobytes: as one run of a dictionary, and as compressed bytes.
    "runs": {"use_dictionary": True},
    "zeros": {"use_dictionary": False},
}


def test_bombs_are_refused_unopened(tmp_path: Path) -> None:
    """In a process of its own, whose memory is looked at."""
    numbers = 2_000_000
    values = pa.array(np.zeros(3 * numbers))
    inner = pa.ListArray.from_arrays(np.arange(0, 3 * numbers + 1, 3, dtype=np.int32), values)
    ones = pa.array(np.ones(numbers, dtype=np.int32))
    offsets = np.array([0, numbers], dtype=np.int32)
    columns = {
        "atomic_numbers": pa.ListArray.from_arrays(offsets, ones),
        "positions": pa.ListArray.from_arrays(offsets, inner),
        "atomic_forces": pa.ListArray.from_arrays(offsets, inner),
    }
    paths = [write(tmp_path / f"{kind}.parquet", columns, **options) for kind, options in BOMBS.items()]
    assert max(path.stat().st_size for path in paths) < 300_000
    code = (
        "import resource, sys; from snnp.data import load_dataset\n"
        "from snnp.data.storage import parquet_checks as limits\n"
        "limits.MOST_GROUP_BYTES = 1 << 26\n"  # a smaller limit for a smaller bomb
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_dataset(path)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *messages, kilobytes = done.stdout.strip().splitlines()
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("DataError")
        assert "would unpack row group 0 to" in message
        assert "more than the 67,108,864 allowed" in message
    assert int(kilobytes) < 40_000


def test_texts_that_all_rows_share_are_unpacked_once(tmp_path: Path) -> None:
    """One text of a megabyte in each of 20,000 rows would be 20 GB; as a dictionary it is one."""
    rows = 20_000
    note = '{"info": {"x": "' + "a" * 1_000_000 + '"}}'
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), [note])
    path = write(tmp_path / "shared.parquet", plain(rows, configuration_metadata=texts))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_dataset(path)[rows - 1].energy is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_too_many_rows_in_a_group(tmp_path: Path) -> None:
    rows = 1_100_000
    positions = pa.array([[[0.0, 0, 0]]]).take(pa.array(np.zeros(rows, dtype=np.int32)))
    numbers = pa.array([[1]]).take(pa.array(np.zeros(rows, dtype=np.int32)))
    columns = {"atomic_numbers": numbers, "positions": positions}
    path = write(tmp_path / "rows.parquet", columns, row_group_size=rows)
    assert "1,100,000 rows in row group 0, more than the 1,048,576 allowed" in refused(path)


def test_pages_that_hold_more_than_the_footer_says(good: Path) -> None:
    """A footer may lie: the pages are asked, too."""
    content = memoryview(good.read_bytes())
    metadata = pq.read_metadata(good).row_group(0)
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        check_pages(good, content, column)
        with pytest.raises(DataError, match="damaged or hostile"):
            check_pages(good, content, _Liar(column, "num_values", column.num_values - 1))
        with pytest.raises(DataError, match="damaged or hostile"):
            check_pages(good, content, _Liar(column, "total_uncompressed_size", 3))
    column = metadata.column(3)
    for name, value in (("data_page_offset", 1 << 40), ("data_page_offset", 7), ("total_compressed_size", 1 << 50)):
        with pytest.raises(DataError, match="damaged or hostile"):
            check_pages(good, content, _Liar(column, name, value))


class _Liar:
    """Metadata of a column with one number changed, as a forged footer would have it."""

    def __init__(self, column: Any, name: str, value: int) -> None:
        self._column, self._name, self._value = column, name, value

    def __getattr__(self, name: str) -> Any:
        return self._value if name == self._name else getattr(self._column, name)


def test_a_forged_page_is_refused(good: Path) -> None:
    """The size that a page claims, raised in place from a few kilobytes to two gigabytes."""
    content = bytearray(good.read_bytes())
    column = next(
        column
        for column in map(pq.read_metadata(good).row_group(0).column, range(15))
        if column.path_in_schema == "energy"
    )
    start = column.data_page_offset
    assert content[start : start + 3] == b"\x15\x00\x15"  # a data page (type 0), then its unpacked size as a varint
    end = start + 3
    while content[end] >= 0x80:
        end += 1
    room = end - start - 2
    claim = (1 << (7 * room)) - 2  # the largest even varint of that room: a positive number in zigzag form
    forged = bytes([(claim >> (7 * k)) & 0x7F | (0x80 if k < room - 1 else 0) for k in range(room)])
    content[start + 3 : end + 1] = forged
    good.write_bytes(content)
    assert "the column energy is damaged or hostile" in refused(good)


WRONG = {
    "energy is list": plain(energy=[[1.0], [2.0]]),
    "positions is": {"atomic_numbers": [[1]], "positions": [["x"]]},
    "has no column positions": {"atomic_numbers": [[1]]},
    "do not have three numbers": {"atomic_numbers": [[1, 1]], "positions": [[[0.0, 0], [0.0, 1]]]},
    "have different lengths": {"atomic_numbers": [[1, 1, 1]], "positions": [[[0.0, 0, 0], [0, 0, 1]]]},
    "not one vector for each": plain(1, atomic_forces=[[[0.0, 0, 0]]]),
    "a frame has no atoms": {"atomic_numbers": [[1], []], "positions": [[[0.0, 0, 0]], []]},
    "expected 1 to 118": {"atomic_numbers": [[119]], "positions": [[[0.0, 0, 0]]]},
    "pbc has not three": plain(1, pbc=[[True]]),
    "positions must be finite": {"atomic_numbers": [[1]], "positions": [[[0.0, 0, float("nan")]]]},
    "energy holds NaN": plain(1, energy=[float("nan")], configuration_id=["wrong.parquet#0"]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_contents(tmp_path: Path, message: str) -> None:
    assert message in refused(write(tmp_path / "wrong.parquet", WRONG[message]))


def test_cut_short_and_nonsense(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    cases = {
        "is empty": [b""],
        "is no parquet file": [b"PAR1", content[:-1], content[: len(content) // 2], b"x" * 100],
        "claims a footer of": [content[:-8] + struct.pack("<I", 1 << 31) + b"PAR1"],
        "cannot be read as parquet": [content[:-600] + b"\xff" * 592 + content[-8:]],
    }
    for message, contents in cases.items():
        for bad in contents:
            path = tmp_path / "bad.parquet"
            path.write_bytes(bad)
            assert message in refused(path)


def test_random_damage_never_gets_further_than_an_error(good: Path, tmp_path: Path) -> None:
    """Bytes are changed anywhere; either the numbers stay possible or there is one clear line."""
    random = np.random.default_rng(7)
    content = good.read_bytes()
    path = tmp_path / "bad.parquet"
    refusals: list[str] = []
    for _ in range(60):
        bad = bytearray(content)
        region = (len(bad) - 3000, len(bad)) if random.random() < 0.5 else (0, len(bad))
        for place in random.integers(*region, size=4):
            bad[place] = random.integers(256)
        path.write_bytes(bad)
        try:
            for _ in load_dataset(path).batches(256):
                pass
        except (DataError, InputError) as error:  # InputError: coordinates that became infinite
            refusals.append(str(error))
    assert len(refusals) > 10
    assert not any("\n" in message for message in refusals)


def test_newer_formats_are_refused(good: Path, tmp_path: Path) -> None:
    table = pq.read_table(good)
    for said, message in (
        (b'{"format_version": 2}', "has format version 2, this snnp reads up to 1"),
        (b"{", "damaged"),
    ):
        path = tmp_path / "new.parquet"
        pq.write_table(table.replace_schema_metadata({b"snnp": said}), path)
        assert message in refused(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"info": 3}',
        "{",
        "[1]",
        '{"arrays": {"a": {"ndarray": [1], "dtype": "object", "shape": [1]}}}',
        '{"info": {"a": {"ndarray": [1], "dtype": "float64", "shape": [1000000000, 10]}}}',
        '{"arrays": {"a": [1, 2]}}',
    ],
)
def test_metadata_of_frames(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "extra.parquet", plain(1, configuration_metadata=[text], energy=[1.0]))
    with pytest.raises(DataError, match="configuration_metadata cannot be read"):
        load_dataset(path).to_ase()


@pytest.mark.parametrize("name", ["method", "split", "configuration_id", "configuration_metadata", "labels"])
def test_texts_that_are_none(tmp_path: Path, name: str) -> None:
    assert "expected texts" in refused(write(tmp_path / "texts.parquet", plain(1, **{name: [[["a"]]]})))


def _array(*values: float, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"ndarray": list(values), "dtype": "float64", "shape": list(shape)}


@pytest.mark.parametrize(
    "tree",
    [
        {"info": {"energy": -999.0}},
        {"info": {"stress": _array(*range(9), shape=(3, 3))}},
        {"info": {"forces": _array(*range(6), shape=(2, 3))}},
        {"info": {"pbc": [True, True, True]}},
        {"info": {"Lattice": _array(*range(9), shape=(3, 3))}},
        {"info": {"lattice": _array(*range(9), shape=(9,))}},
        {"arrays": {"positions": _array(*range(6), shape=(2, 3))}},
        {"arrays": {"numbers": _array(79, 79, shape=(2,))}},
        {"arrays": {"forces": _array(*range(6), shape=(2, 3))}},
        {"arrays": {"pos": _array(*range(6), shape=(2, 3))}},
        {"arrays": {"tags": _array(1, 2, 3, shape=(3,))}},
        {"names": {"forces": "positions"}},
        {"names": {"energy": "forces"}},
        {"names": {"energy": "x", "forces": "x"}},
        {"names": {"energy": "REF_energy"}, "info": {"REF_energy": -999.0}},
        {"names": {"forces": "dft_forces"}, "arrays": {"dft_forces": _array(*range(6), shape=(2, 3))}},
        {"names": {"stress": "REF_stress"}, "info": {"REF_stress": _array(*range(9), shape=(3, 3))}},
        {"energy": -999.0},
    ],
)
def test_metadata_cannot_replace_what_a_frame_says(tmp_path: Path, tree: dict[str, Any]) -> None:
    labels = {"energy": [1.0], "atomic_forces": [[[0.0, 0, 0]] * 2], "cauchy_stress": [np.eye(3).tolist()]}
    cell = {"cell": [(4 * np.eye(3)).tolist()], "pbc": [[True] * 3]}
    path = write(tmp_path / "a.parquet", plain(1, configuration_metadata=[json.dumps(tree)], **labels, **cell))
    dataset = load_dataset(path)
    for use in (dataset.to_ase, lambda: dataset.write(tmp_path / "b.xyz")):
        with pytest.raises(DataError, match=r"a\.parquet#0: .*(stands? for|another stress|not one value for each)"):
            use()
    assert not (tmp_path / "b.xyz").exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"info": {"boundary": "p p p"}},
        {"info": {"": 1}},
        {"info": {"a\nb": 1}},
        {"info": {"a\ud800": 1}},
        {"info": {"cell": _array(*range(9), shape=(9,))}},
        {"names": {"energy": "\n2\n"}},
        {"arrays": {"a:R:1": _array(1, 2, shape=(2,))}},
        {"arrays": {"a": _array(shape=(2, 0))}},
    ],
)
def test_metadata_that_would_be_misread_are_not_written(tmp_path: Path, tree: dict[str, Any]) -> None:
    text = {"configuration_metadata": [json.dumps(tree)]}
    path = write(tmp_path / "a.parquet", plain(1, energy=[1.0], **text))
    with pytest.raises(DataError, match=r"a\.parquet#0: its metadata cannot be written as extended XYZ"):
        load_dataset(path).write(tmp_path / "b.xyz")
    assert not (tmp_path / "b.xyz").exists()


def test_another_energy_beside_the_label_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {"info": {"REF_energy": -999.0}, "arrays": {"dft_forces": _array(*range(6), shape=(2, 3))}}
    path = write(tmp_path / "a.parquet", plain(2, energy=[1.0] * 2, configuration_metadata=[json.dumps(tree)] * 2))
    load_dataset(path).write(tmp_path / "b.xyz")
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        f" beside its {name} it says {other}, which a reader of extended XYZ may take instead; read what is written "
        f"with --{name}-key {name} (data.{name}_key)."
        for name, other in (("energy", "REF_energy"), ("forces", "dft_forces"))
    ]


def test_columns_and_groups_of_other_programs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = {"dft_energy": [3.0], "forces": [[[0.0] * 3] * 2], "labels": [["bulk"]]}
    path = write(tmp_path / "a.parquet", plain(1, **others))
    (atoms,) = load_dataset(path).to_ase()
    assert atoms.info["config_type"] == "bulk"
    assert "no energy are read; the column dft_energy may hold them: if so, rename it to energy" in caplog.text
    assert "no forces are read; the column forces may hold them: if so, rename it to atomic_forces" in caplog.text
    halves = write(tmp_path / "b.parquet", plain(1, energy=[1.0]) | {"atomic_numbers": [[1.5, 1]]})
    with pytest.raises(DataError, match="atomic_numbers are no whole numbers"):
        load_dataset(halves).frames()


@pytest.mark.parametrize("name", ["pbc", "Lattice"])
def test_atoms_cannot_bring_a_second_cell(name: str) -> None:
    atoms = bulk("Cu")
    atoms.info |= {"energy": -1.0, name: np.eye(3)}
    with pytest.raises(DataError, match=f"info holds '{name}'"):
        from_atoms([atoms], ["a#0"])
    del atoms.info[name]
    atoms.set_array("pos", np.ones((1, 3)))
    with pytest.raises(DataError, match=r"arrays\['pos'\] has a name that stands for atoms"):
        from_atoms([atoms], ["a#0"])
