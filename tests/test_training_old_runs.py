"""Runs that earlier versions began go on, to the numbers that those versions would have reached."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from snnp.training import resume

OLD = sorted((Path(__file__).parent / "formats").glob("run-v*"))


def numbers(path: Path) -> np.ndarray:
    """All columns but the seconds."""
    with path.open() as handle:
        return np.array([[float(cell or "nan") for cell in row[:-1]] for row in list(csv.reader(handle))[1:]])


@pytest.mark.parametrize("folder", OLD, ids=lambda path: path.name)
def test_an_old_run_reaches_its_old_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its four epochs were done; the numbers of all four were stored beside it by the version that wrote it."""
    monkeypatch.setenv("SNNP_OLD_RUN", str(folder))
    for name in ("config.yaml", "split.json", "metrics.csv", "state.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    heard: list[str | None] = []
    result = resume(tmp_path, lambda now: heard.append(now.message))
    assert heard[0] == "resumed"
    np.testing.assert_allclose(numbers(tmp_path / "metrics.csv"), numbers(folder / "expected.csv"), rtol=1e-5)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == (folder / "expected.csv").read_text().splitlines()[
        0
    ]
    assert set(result.evaluations) == {"train", "valid"}
