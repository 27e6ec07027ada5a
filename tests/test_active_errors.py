"""The loop of active learning, where something is wrong: settings, labellers that err, units, journals, folders."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from active_runs import EMT, FAST, SPRINGS, copper, events, learn, no_report, place, settings, untrained
from ase.io import write
from typer.testing import CliRunner

from snnp.active import ActiveSettings, Journal, account, read_journal, run, status_of
from snnp.active.journal import NAME
from snnp.active.labellers import Labeller
from snnp.active.labelling import Before, executor_of, wrong_units
from snnp.active.rounds import plan
from snnp.active.stages import Stages, WithFacts
from snnp.cli.main import app
from snnp.distillation.crystals import frames_of
from snnp.errors import ConfigError, DataError, InputError

ODD = '''
import os, time
import numpy as np
from ase.calculators.emt import EMT

class Odd(EMT):
    """EMT that does what is asked of it, from call number `after` on; `mode` may be a file that holds it."""
    def __init__(self, mode, after=0):
        super().__init__()
        self.mode, self.after, self.calls = mode, after, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        mode = open(self.mode).read().strip() if os.path.exists(self.mode) else self.mode
        if self.calls <= self.after:
            return
        if mode == "fails":
            raise ValueError("no licence found")
        if mode == "unconverged":
            raise RuntimeError("SCF did not converge")
        if mode == "hangs":
            time.sleep(60)
        if mode == "nan":
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)
        if mode == "atoms":
            self.results["forces"] = self.results["forces"][:-1]
        if mode.startswith("times"):
            for name in ("energy", "free_energy", "forces"):
                self.results[name] = self.results[name] * float(mode.split()[1])
        if mode.startswith("energy"):
            for name in ("energy", "free_energy"):
                self.results[name] = self.results[name] * float(mode.split()[1])
'''


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures."""
    monkeypatch.setattr(account, "write", no_report)


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a calculator that errs, which is the present one."""
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _odd(mode: str, after: int = 0, **more: Any) -> dict[str, Any]:
    return {"calculator": "odd:Odd", "kwargs": {"mode": mode, "after": after}, "retries": 0, **more}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"members": 1}, "members: 1 is no committee"),
        ({"labeller": {}}, "labeller needs one of calculator, models and command; none was given"),
        ({"labeller": {"calculator": EMT, "command": "x"}}, "calculator and command were given"),
        ({"labeller": {"command": "vasp < {input}"}}, r"lacks \{output\}"),
        ({"labeller": {"calculator": EMT, "units": "Hartree"}}, "belong to a command"),
        ({"labeller": {"calculator": EMT, "retrys": 3}}, r"unknown key 'labeller.retrys'. Did you mean 'retries'"),
        ({"limit": {}}, r"unknown key 'limit'. Did you mean 'limits'"),
        ({"elements": ["Xx"]}, "'Xx' is no chemical symbol"),
        ({"training": {"data": {"train": "a.xyz"}}}, "the data are the labels"),
        ({"training": {"optimizer": {}}}, r"training: unknown key 'optimizer'. Did you mean 'optimiser'"),
        ({"executor": {"workers": 4}}, "say kind: processes"),
        ({"executor": {"kind": "slurm"}}, r"executor.kind: .*'parsl' \(got \"slurm\"\)"),
        ({"limits": {"labels": 0}}, "limits.labels: .* greater than or equal to 1"),
    ],
)
def test_settings_say_what_is_wrong(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(**changed)


@pytest.mark.usefixtures("_quick")
def test_a_labeller_that_always_fails_ends_it_and_can_be_mended(tmp_path: Path) -> None:
    command = f"test -e {tmp_path}/good || exit 5; {SPRINGS}"
    asked = settings(labeller={"command": command, "retries": 1}, start={"number": 12}, limits={"rounds": 0})
    folder = tmp_path / "run"
    with pytest.raises(DataError, match=r"failed on 3 of the 12 structures of round 0 \(3 error; .*exit code 5.*mend"):
        learn(asked, folder)
    status = status_of(folder)
    assert (status.state, status.failures) == ("failed", {"error": 3})
    assert "failed on 3 of the 12" in status.why
    (tmp_path / "good").touch()
    assert learn(None, folder).n_labels == 12  # what failed is asked for again
    attempts = [entry["attempt"] for entry in events(folder, "asked")]
    assert max(attempts) == 3
    assert len(attempts) == 12 + 3 * 2


def test_calculators_that_err_say_how(odd: Path) -> None:
    labeller = Labeller.of(settings(labeller=_odd(str(odd / "mode"))).labeller)
    with executor_of(settings().executor, odd):
        for seed, (mode, why, text) in enumerate(
            (
                ("fails", "error", "no licence found"),
                ("unconverged", "not converged", "SCF did not converge"),
                ("nan", "not finite", "its forces holds NaN"),
                ("atoms", "other atoms", "its forces has shape (3, 3), expected (4, 3) for 4 atoms"),
            )
        ):
            (odd / "mode").write_text(mode)
            job = odd / f"{mode}-job"
            job.mkdir()
            write(job / "structure.extxyz", copper(1, seed))
            reply = labeller.ask(job)
            assert (reply.failure, text in reply.reason) == (why, True), reply


@pytest.mark.usefixtures("_quick")
def test_few_failures_are_counted_and_a_hanging_labeller_is_ended(odd: Path) -> None:
    labeller = _odd("hangs", after=7, timeout=0.6)
    labeller["retries"] = 1
    began = time.monotonic()
    result = learn(settings(labeller=labeller, limits={"labels": 20, "rounds": 0}), odd / "run")
    assert result.finished  # a new process of the labeller answers seven times again
    assert result.n_labels == 8
    assert time.monotonic() - began < 30.0
    (failed,) = events(odd / "run", "failed")
    assert (failed["why"], failed["final"]) == ("too long", False)
    assert "labeller.timeout" in failed["reason"]


@pytest.mark.parametrize(
    ("factor", "meant"),
    [
        (27.211386, "eV were taken for Hartree"),
        (23.060548, "they were in kcal/mol"),
        (1.0 / 27.211386, "they were in Hartree"),
    ],
)
def test_labels_that_change_their_unit_are_named(tmp_path: Path, factor: float, meant: str) -> None:
    frames = frames_of([("", atoms) for atoms in copper(8, 3)], "x")
    models = untrained(settings(), frames, tmp_path, lambda *_: None).value
    found = models.compute(frames.structure())
    rng = np.random.default_rng(0)
    noisy = found.forces.detach().numpy() * rng.normal(1.0, 0.1, (32, 1))
    ones = np.ones(8, dtype=bool)
    energy = found.energy.detach().numpy()
    labelled = replace(frames, energy=energy, forces=noisy, has_energy=ones, has_forces=ones)
    scaled = replace(labelled, energy=factor * energy, forces=factor * noisy)
    assert wrong_units(labelled[4:], Before(models, labelled)) is None
    said = wrong_units(scaled[4:], Before(models, labelled))
    assert said is not None
    assert f"as if {meant} (factor {factor:.5g})" in said.split(" or ")[0]


@pytest.mark.usefixtures("_quick")
def test_energies_and_forces_of_different_units_are_named_before_anything_is_learned(odd: Path) -> None:
    asked = settings(labeller=_odd("energy 27.211386"), start={"number": 16})
    with pytest.raises(
        DataError, match=r"energies change by 2[67]\.\d+ times forces .*known factor 27.21.*Nothing of it was taken"
    ):
        learn(asked, odd / "run")
    assert status_of(odd / "run").n_labels == 0
    assert len(list((odd / "run" / "jobs").glob("*/answer.bin"))) >= 7  # and nothing is lost
    free = settings(labeller=_odd("energy 27.211386", check_units="warn"), start={"number": 16}, limits={"rounds": 0})
    assert learn(free, odd / "free").n_labels == 16
    assert "27.21" in status_of(odd / "free").changes[0]


@pytest.mark.usefixtures("_quick")
def test_another_labeller_is_refused(odd: Path) -> None:
    learn(settings(labeller={"calculator": EMT}, limits={"rounds": 0}), odd / "run")
    path = odd / "run" / "active.yaml"
    good = path.read_text()
    path.write_text(good.replace(EMT, "odd:Odd"))
    with pytest.raises(ConfigError, match=r"labeller.calculator must stay as it was begun .*EMT.*Put it back"):
        learn(None, odd / "run")
    path.write_text(good)
    refused = CliRunner().invoke(app, ["active", "resume", str(odd / "run"), "--set", "elements=[Al]"])
    assert (refused.exit_code, path.read_text()) == (1, good)
    # The same words, and other weights behind them.
    (odd / "input").write_text("cutoff 300")
    command = {"command": SPRINGS, "files": ["input"], "check_units": "off"}
    learn(settings(labeller=command, limits={"rounds": 0}), odd / "other")
    (odd / "input").write_text("cutoff 500")
    with pytest.raises(DataError, match=r"and input of it has other contents .* count as another labeller"):
        learn(None, odd / "other")
    (odd / "input").unlink()
    with pytest.raises(InputError, match=r"labeller.files: .*input does not exist"):
        learn(None, odd / "other")


def test_commands_that_err_say_how(tmp_path: Path) -> None:
    (atoms,) = copper(1, 0)
    for command, why, text in (
        (f"{SPRINGS}; exit 3", "error", "exit code 3, saying: …done"),
        ("cat {input} > /dev/null # {output}", "no label", "wrote nothing to {output}"),
        ("cp {input} {output}", "no label", "holds no energies"),
        ("cat {input} {input} > {output}", "no label", "holds no energies"),
        (SPRINGS.replace("comment,", 'comment, "converged=F",'), "not converged", "converged=F"),
        (SPRINGS.replace("print n;", "n -= 1; NR -= 1; print n;"), "other atoms", "expected one of 4"),
    ):
        job = tmp_path / str(len(list(tmp_path.glob("*"))))
        job.mkdir()
        write(job / "structure.extxyz", atoms)
        reply = Labeller.of(settings(labeller={"command": command}).labeller).ask(job)
        assert (reply.failure, text in reply.reason) == (why, True), reply
    shear = SPRINGS.replace("comment = $0;", 'comment = $0; sub(/Lattice="/, "&9", comment);')
    relax = SPRINGS.replace("line[NR] = $0;", 'line[NR] = $1 " " $2 + 0.1 " " $3 " " $4;')
    wrap = relax.replace("$2 + 0.1", f"$2 + {atoms.cell[0, 0]:.9f}")
    for number, (command, text) in enumerate(((shear, "moved the lattice"), (relax, "moved the atoms"), (wrap, ""))):
        job = tmp_path / f"moved-{number}"
        job.mkdir()
        write(job / "structure.extxyz", atoms)
        reply = Labeller.of(settings(labeller={"command": command}).labeller).ask(job)
        assert (reply.failure is None, text in reply.reason) == (not text, True), reply
    job = tmp_path / "units"
    job.mkdir()
    write(job / "structure.extxyz", atoms)
    reply = Labeller.of(settings(labeller={"command": SPRINGS, "units": "Hartree"}).labeller).ask(job)
    assert reply.labels["energy"] == pytest.approx(27.211386 * (atoms.positions**2).sum(), rel=1e-6)
    with pytest.raises(InputError, match=r"gives no label of .*exit code 3"):
        plan(settings(labeller={"command": f"{SPRINGS}; exit 3"}), FAST)


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_process_that_hangs_is_ended_only_on_its_own_machine(tmp_path: Path, host: str | None) -> None:
    (atoms,) = copper(1, 0)
    write(tmp_path / "structure.extxyz", atoms)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, socket, sys, time\n"
            f"lock = open({str(tmp_path / 'lock')!r}, 'a+'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
            f"lock.write(f'{{os.getpid()}} ' + ({host!r} or socket.gethostname())); lock.flush()\n"
            "print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        reply = Labeller.of(settings(labeller={"command": SPRINGS, "timeout": 1.5}).labeller).ask(tmp_path)
        assert (holder.poll() is None) == (host is not None)
        if host is None:
            assert reply.failure is None
        else:
            assert reply.failure == "too long"
            assert f"process {holder.pid} on elsewhere still holds it" in reply.reason
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.usefixtures("_quick")
def test_a_journal_cut_in_a_line_goes_on_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    learn(settings(), tmp_path / "run")
    path = tmp_path / "run" / NAME
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (1, 7, len(lines[-1]) - 1):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-cut])
        assert learn(None, tmp_path / "run").n_labels == 18
    assert len(events(tmp_path / "run", "torn")) >= 1
    assert "torn" in status_of(tmp_path / "run").changes[0]
    # As if the lines after round 1's labels had never been written: nothing is asked for again.
    last = max(k for k, line in enumerate(lines) if b'"labelled", "time"' in line)
    path.write_bytes(b"".join(lines[: last - 3]))
    assert learn(None, tmp_path / "run").n_labels == 18
    path.write_bytes(b"".join([*lines[:5], lines[5].replace(b"2", b"3", 1), *lines[6:]]))
    with pytest.raises(DataError, match=rf"{NAME}, line 6: its checksum is wrong"):
        status_of(tmp_path / "run")
    path.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(DataError, match=r"line 6: .*a line before it is missing"):
        learn(None, tmp_path / "run")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / NAME) as journal:
        journal.write("session")
        size = (tmp_path / NAME).stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        try:
            with pytest.raises(OSError, match="journal"):
                journal.write("asked", key="x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / NAME).stat().st_size == size
        journal.write("asked", key="y")
    assert [entry["event"] for entry in read_journal(tmp_path / NAME)[0]] == ["session", "asked"]


@pytest.mark.usefixtures("_quick")
def test_folders_are_not_shared_or_mistaken(tmp_path: Path) -> None:
    from snnp.files import hold

    with pytest.raises(ConfigError, match="holds no run of active learning"):
        learn(None, tmp_path / "none")
    with pytest.raises(DataError, match="holds no run of active learning"):
        status_of(tmp_path)
    learn(settings(limits={"rounds": 0}), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run; go on with 'snnp active resume"):
        learn(settings(), tmp_path / "run")
    with hold([tmp_path / "run" / NAME]), pytest.raises(InputError, match="being written by another run"):
        learn(None, tmp_path / "run")
    (tmp_path / "bad.yaml").write_text("just words")
    with pytest.raises(ConfigError, match=r"must hold keys and values"):
        ActiveSettings.read(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        ActiveSettings.read(tmp_path / "missing.yaml")


def test_limits_that_nothing_exceeds_are_named_and_those_that_all_exceed_are_reported(tmp_path: Path) -> None:
    def nothing(*_: Any) -> WithFacts:
        return WithFacts([], {"trajectories": 8, "largest_spread": 0.02})

    def everything(
        asked: ActiveSettings, committee: Any, known: Any, folder: Path, number: int, tell: Any
    ) -> WithFacts:
        return WithFacts(copper(12, number), {"trajectories": 12, "at_once": 12})

    with pytest.raises(DataError, match=r"largest spread was 0.02 of its limit\), .*lower sampling.energy_limit"):
        run(settings(), tmp_path / "nothing", work=Stages(place, untrained, nothing))
    run(settings(limits={"rounds": 2}), tmp_path / "all", work=Stages(place, untrained, everything))
    assert "12 of 12 trajectories ended where they began" in (tmp_path / "all" / "report.md").read_text()
