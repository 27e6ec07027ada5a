"""The loop of active learning: stages as functions of files, a journal, nothing asked for twice, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from active_runs import learn, settings

from snnp.active import read_journal, status_of
from snnp.active.journal import NAME


def _events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [entry for entry in read_journal(folder / NAME)[0] if entry["event"] in kinds]


def test_a_run_ends_with_a_model_and_says_what_it_did(tmp_path: Path) -> None:
    result = learn(settings(), tmp_path / "run")
    assert result.finished
    assert result.n_labels == 8 + (4 + 2) + 4
    assert "2 rounds" in result.why
    stages = [(entry["round"], entry["stage"]) for entry in _events(tmp_path / "run", "finished")]
    assert stages[:2] == [(0, "select"), (0, "label")]
    assert stages[2:7] == [(1, "train"), (1, "sample"), (1, "select"), (1, "label"), (1, "measure")]
    assert stages[-2:] == [(3, "train"), (3, "measure")]
    asked, labelled = _events(tmp_path / "run", "asked"), _events(tmp_path / "run", "labelled")
    assert sorted(entry["key"] for entry in asked) == sorted(entry["key"] for entry in labelled)
    status = status_of(tmp_path / "run")
    assert (status.state, status.n_labels, status.failures) == ("finished", 18, {})
    assert [each.labelled for each in status.rounds] == [8, 6, 4, 0]
    json.dumps(status.json())
