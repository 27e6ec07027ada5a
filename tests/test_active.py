"""The loop of active learning: stages as functions of files, a journal, nothing asked for twice, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from active_runs import SMALL, SPRINGS, copper, events, learn, no_report, settings
from ase.calculators.lj import LennardJones
from ase.io import read, write
from cli_runs import run_json
from typer.testing import CliRunner

import snnp.training.evaluation
from snnp.active import account, status_of
from snnp.active.labelling import executor_of
from snnp.cli.main import app
from snnp.errors import ConfigError
from snnp.hub import load_model

RUNS = Path(__file__).with_name("active_runs.py")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures."""
    monkeypatch.setattr(account, "write", no_report)


# The loop.


def test_a_run_ends_with_a_model_and_says_what_it_did(tmp_path: Path) -> None:
    result = learn(settings(), tmp_path / "run")
    assert result.finished
    assert result.n_labels == 8 + (4 + 2) + 4
    assert "2 rounds" in result.why
    stages = [(entry["round"], entry["stage"]) for entry in events(tmp_path / "run", "finished")]
    assert stages[:2] == [(0, "select"), (0, "label")]
    assert stages[2:7] == [(1, "train"), (1, "sample"), (1, "select"), (1, "label"), (1, "measure")]
    assert stages[-2:] == [(3, "train"), (3, "measure")]
    asked, labelled = events(tmp_path / "run", "asked"), events(tmp_path / "run", "labelled")
    assert sorted(entry["key"] for entry in asked) == sorted(entry["key"] for entry in labelled)
    status = status_of(tmp_path / "run")
    assert (status.state, status.n_labels, status.failures) == ("finished", 18, {})
    assert [each.labelled for each in status.rounds] == [8, 6, 4, 0]
    assert [each.measured.get("labels") for each in status.rounds] == [None, 8, 12, 16]
    json.dumps(status.json())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["facts"]["Rounds"][1]["labels"] == 6
    for name in ("progress.png", "map-of-environments.png", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    assert "Cu" in load_model(str(tmp_path / "run")).elements
    probe = {np.round(atoms.positions, 5).tobytes() for atoms in read(tmp_path / "run" / "probe.extxyz", ":")}
    for number in range(3):  # probes are never learned
        chosen = read(tmp_path / "run" / f"round-{number}" / "chosen.extxyz", ":")
        assert not probe & {np.round(atoms.positions, 5).tobytes() for atoms in chosen}


def test_the_command_line_trains_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snnp.training.evaluation, "plot_parity", lambda *_: None)
    monkeypatch.setattr(snnp.training.evaluation, "plot_loss", lambda *_: None)
    tree = settings(training=SMALL, limits={"labels": 40, "rounds": 1}).model_dump(mode="json")
    tree["sampling"] = {"trajectories": 4, "picoseconds": 0.02, "n_atoms": [8, 10], "energy_limit": 1e-4}
    (tmp_path / "active.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / "run"
    said = run_json("active", "start", tmp_path / "active.yaml", "--out", out, "--dry-run")
    assert (said["first"], said["labels"], out.exists()) == (8, 12, False)
    said = run_json("active", "start", tmp_path / "active.yaml", "--out", out)
    assert said["finished"]
    assert (out / "round-1" / "member-1" / "summary.json").exists()
    assert (out / "visited.png").exists()
    before = said["labels"]
    result = CliRunner().invoke(app, ["active", "stop", str(out)])
    assert "is not running" in result.output
    said = run_json("active", "resume", out, "--set", "limits.rounds=2", "--set", "limits.labels=60")
    assert said["labels"] >= before
    shown = CliRunner().invoke(app, ["active", "status", str(out)]).output
    assert "finished" in shown
    assert "limits.rounds: 1 -> 2" in shown
    assert run_json("active", "status", out)["n_labels"] == said["labels"]


@pytest.mark.parametrize(("kind", "times"), [("command", 20), ("calculator", 5)])
def test_kills_at_any_moment_cost_no_label_and_ask_for_none_twice(tmp_path: Path, kind: str, times: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RUNS.parent)}
    done = subprocess.run(
        [sys.executable, str(RUNS), str(tmp_path), str(times), "3", kind],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(times)
    calls = (tmp_path / "calls").read_text().split()
    keys = {entry["key"] for entry in events(tmp_path / "run", "labelled")}
    assert len(calls) == len(set(calls)) == len(keys) == len(events(tmp_path / "run", "asked"))
    assert len(events(tmp_path / "run", "labelled")) == len(keys)
    assert not list((tmp_path / "run" / "jobs").glob("*"))
    assert status_of(tmp_path / "run").n_labels == len(keys)


@pytest.mark.usefixtures("_quick")
def test_a_stop_waits_for_what_is_on_its_way_and_hours_are_those_of_all_sessions(tmp_path: Path) -> None:
    slow = {"command": f"sleep 0.1; {SPRINGS}", "check_units": "off"}
    asked = settings(labeller=slow, limits={"labels": 40, "rounds": 2, "hours": 0.5 / 3600})
    folder = tmp_path / "run"
    first = learn(asked, folder)
    assert not first.finished
    assert "limits.hours" in first.why
    assert 0 < first.n_labels < 8
    assert len(events(folder, "asked")) == first.n_labels
    tree = yaml.safe_load((folder / "active.yaml").read_text())
    tree["limits"]["hours"] = None
    (folder / "active.yaml").write_text(yaml.safe_dump(tree))
    threading.Timer(0.3, lambda: (folder / "stop").write_text("")).start()
    second = learn(None, folder)
    assert "active stop" in second.why
    assert status_of(folder).state == "stopped"
    assert second.n_labels == len(events(folder, "asked"))
    assert learn(None, folder).finished
    assert [entry["attempt"] for entry in events(folder, "asked")] == [1] * 18


@pytest.mark.usefixtures("_quick")
def test_a_plateau_ends_it(tmp_path: Path) -> None:
    result = learn(settings(limits={"labels": 400, "rounds": 20, "plateau_rounds": 2}), tmp_path / "run")
    assert "plateau" in result.why
    assert status_of(tmp_path / "run").rounds[-1].number == 3


@pytest.mark.usefixtures("_quick")
def test_what_has_labels_is_not_asked_for(tmp_path: Path) -> None:
    images = copper(6, 5)
    for atoms in images[:4]:
        atoms.calc = LennardJones()
        atoms.get_forces()
    write(tmp_path / "have.xyz", images[:4])
    write(tmp_path / "ask.xyz", images[4:])
    start = {"data": [str(tmp_path / "have.xyz"), str(tmp_path / "ask.xyz")], "labelled": True, "number": 8}
    learn(settings(start=start, probe={"data": str(tmp_path / "have.xyz")}), tmp_path / "run")
    assert sum(entry["round"] == 0 for entry in events(tmp_path / "run", "asked")) == 2
    measured = status_of(tmp_path / "run").rounds[1].measured
    assert (measured["labels"], measured["probes"]) == (6, 4)
    assert measured["force_mae"] > 0.0
    with pytest.raises(ConfigError, match=r"start.data holds Cu, which elements does not name"):
        learn(settings(start=start, elements=["Al"]), tmp_path / "other")


# Executors.


@pytest.mark.usefixtures("_quick")
def test_executors_give_the_same_labels(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"serial": {"kind": "serial"}, "processes": {"kind": "processes", "workers": 2}}
    try:
        import parsl  # noqa: F401

        kinds["parsl"] = {"kind": "parsl", "workers": 2}
    except ImportError:
        pass
    found = {}
    for name, executor in kinds.items():
        learn(settings(executor=executor), tmp_path / name)
        found[name] = [atoms.get_forces() for atoms in read(tmp_path / name / "round-3" / "labels.extxyz", ":")]
    for name, forces in found.items():
        np.testing.assert_array_equal(forces, found["serial"], err_msg=name)


def test_parsl_that_is_missing_or_misconfigured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parsl", None)
    asked = settings(executor={"kind": "parsl"}).executor
    with pytest.raises(ImportError, match=r"pip install 'snnp\[parsl\]'"), executor_of(asked, tmp_path):
        pass
