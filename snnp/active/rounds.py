"""The loop: train a committee, sample with it, select, label, again. Each stage is a function of files.

    RUN/active.yaml                 what was asked for; may be changed between rounds, which is noted
    RUN/journal.jsonl               what happened (see `snnp.active.journal`)
    RUN/labels/                     every label, as it came (see `snnp.distillation.label_store`)
    RUN/jobs/                       what is being asked (see `snnp.active.labellers`)
    RUN/probe.extxyz                structures that are never learned, in which rounds are compared
    RUN/round-K/labels.extxyz       what was known when round K began
    RUN/round-K/member-M/           runs of training like any other (with heads: filters/, heads/)
    RUN/round-K/sample/             the committee's own dynamics, and the frames in which it disagreed
    RUN/round-K/chosen.extxyz       what is asked in this round
    RUN/best/                       the last committee as an ensemble: RUN is a model like any run
    RUN/report.*                    Markdown, HTML, JSON

Round 0 is what a run begins with. A stage whose files are there is not done again: a run that was killed goes on where
it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.active import account, stages
from snnp.active.journal import NAME, Journal
from snnp.active.labellers import STRUCTURE, Labeller
from snnp.active.labelling import Before, Bench, Stop, executor_of, label_frames
from snnp.active.settings import ActiveSettings, ExecutorSettings, refuse_changes
from snnp.active.status import hours_of
from snnp.data import Frames
from snnp.data.write import write_frames
from snnp.distillation.label_store import LabelStore
from snnp.distillation.teachers import Identity
from snnp.errors import ConfigError, DataError, InputError, SnnpError
from snnp.files import hold
from snnp.models.ensemble import Ensemble
from snnp.models.store import save_model
from snnp.process import Interrupted, StopRequest, stop_requests

__all__ = ["CONFIG", "STOP", "ActiveProgress", "ActiveResult", "Plan", "plan", "run"]

CONFIG, STOP = "active.yaml", "stop"
_TRIED = 3


@dataclass(frozen=True)
class ActiveProgress:
    """Which stage of which round, how far it is (in its own units), and a note."""

    round: int
    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class ActiveResult:
    """The run's folder, whether it is finished, why it ended, labels so far, and the last committee if there is one."""

    folder: Path
    finished: bool
    why: str
    n_labels: int
    model: Ensemble | None


Reporter = Callable[[ActiveProgress], None]
USUAL = stages.Stages()


def run(
    settings: ActiveSettings | None,
    folder: str | Path,
    report: Reporter = lambda progress: None,
    *,
    work: stages.Stages = USUAL,
) -> ActiveResult:
    """Run the loop until a limit ends it, or somebody stops it.

    Arguments:
        settings: of a new run; None goes on with the one in the folder, with the settings that stand there.
        report: is told what happens.
        work: how structures are made, models trained and trajectories run, for studies that do it in other ways.

    Raises:
        ConfigError: for a folder that holds a run already, or none, or changes of what must stay as it was.
        InputError: for a labeller that does not start, or another loop in the same folder.
        DataError: for a labeller that fails too often, is another one, or gives other units; for a damaged journal.
        Interrupted: at Ctrl-C or SIGTERM, once what was on its way is done.
    """
    folder = Path(folder)
    begun = (folder / NAME).exists() and (folder / NAME).stat().st_size > 0
    if settings is not None and begun:
        raise ConfigError(f"{folder} already holds a run; go on with 'snnp active resume {folder}', or name another.")
    if settings is None and not begun:
        raise ConfigError(f"{folder} holds no run of active learning (no {NAME}); begin one with 'snnp active start'.")
    folder.mkdir(parents=True, exist_ok=True)
    with hold([folder / NAME]), stop_requests() as request, ExitStack() as stack:
        if settings is not None:
            settings.save(folder / CONFIG)
        (folder / STOP).unlink(missing_ok=True)
        journal = stack.enter_context(Journal(folder / NAME))
        loop = _Loop(folder, journal, report, work, request)
        try:
            return loop.run()
        except SnnpError as error:
            journal.write("failure", why=str(error))
            raise


@dataclass
class _Loop:
    """A run at work."""

    folder: Path
    journal: Journal
    report: Reporter
    work: stages.Stages
    request: StopRequest
    settings: ActiveSettings = field(init=False)
    bench: Bench = field(init=False)
    round: int = 0

    def run(self) -> ActiveResult:
        self.journal.write("session")
        self.take_up_changes()
        labeller, identity = Labeller.of(self.settings.labeller).identified()
        self._same_labeller(identity, self.settings.labeller.command or identity.name)
        with (
            executor_of(self.settings.executor, self.folder) as executor,
            LabelStore(self.folder / "labels", identity) as store,
        ):
            workers = self.settings.executor.workers
            self.bench = Bench(self.folder, self.journal, store, labeller, executor, workers, self.why_stop, self._tell)
            try:
                why, committee = self._rounds()
            except Stop as stop:
                return self._stopped(str(stop))
            save_model(committee, self.folder / "best")
            self.journal.write("ended", why=why)
            self._write_report()
            return ActiveResult(self.folder, True, why, len(store), committee)

    def _stopped(self, why: str) -> ActiveResult:
        self.journal.write("stopped", why=why)
        self._write_report()
        if self.request.signum is not None:
            raise Interrupted(self.request.signum, f"stopped in round {self.round}; it can go on from there")
        return ActiveResult(self.folder, False, why, len(self.bench.store), None)

    def _rounds(self) -> tuple[str, Ensemble]:
        self.round = self._labelled_rounds()
        if self.round == 0:
            self._stage("select", lambda: stages.first_structures(self.settings, self.folder, self.work))
            self._label(None)
        while True:
            self.round += 1
            if not any(self.journal.of("begun", round=self.round)):
                self.take_up_changes()
            committee = self._stage("train", self._train)
            if self._probe() is not None:
                self._measure(committee)
            if (why := self.why_end()) is not None:
                return why, committee
            sampled = self._stage("sample", partial(self._sample, committee))
            chosen = self._stage("select", partial(self._select, sampled))
            if len(chosen) == 0:
                return self._nothing_new(), committee
            self._label(committee)
            if not self._measured(self.round):
                self._measure(committee)
            self._write_report()

    # Stages.

    def _stage(self, name: str, do: Callable[[], Any]) -> Any:
        """Do a stage whose files may be there already; the journal says when it began and how long it took."""
        self._check_stop()
        known = next(self.journal.of("finished", stage=name, round=self.round), None)
        if known is None:
            self.journal.write("begun", stage=name, round=self.round)
        start = time.monotonic()
        self.report(ActiveProgress(self.round, name, 0, 0))
        made = do()
        if known is None:
            facts = made.facts if isinstance(made, stages.WithFacts) else {}
            seconds = round(time.monotonic() - start, 3)
            self.journal.write("finished", stage=name, round=self.round, seconds=seconds, facts=facts)
        return made.value if isinstance(made, stages.WithFacts) else made

    def _label(self, committee: Ensemble | None) -> None:
        if not any(self.journal.of("finished", stage="label", round=self.round)):
            frames = stages.to_label(self.settings, self.folder, self.round)
            before = None if committee is None else Before(committee, self._known())
            self._stage("label", lambda: label_frames(self.bench, self.round, frames, before) and None)

    def _train(self) -> stages.WithFacts:
        def tell(member: int, epoch: int, epochs: int) -> None:
            self.report(ActiveProgress(self.round, "train", epoch, epochs, f"member {member}"))

        return self.work.train(self.settings, self._known(), self._here(), tell)

    def _sample(self, committee: Ensemble) -> stages.WithFacts:
        def tell(done: int, total: int, frames: int) -> None:
            self.report(ActiveProgress(self.round, "sample", done, total, f"{frames} frames"))

        return self.work.sample(self.settings, committee, self._known(), self._here() / "sample", self.round, tell)

    def _known(self) -> Frames:
        return stages.known_labels(self.settings, self.folder, self.bench.store, self.round)

    def _select(self, sampled: list[Atoms]) -> stages.WithFacts:
        settings, store = self.settings, self.bench.store
        room = max(0, settings.limits.labels - len(store))
        return stages.select(settings, self.folder, sampled, store, self.round, room)

    def _measure(self, committee: Ensemble) -> None:
        args = self.settings, self.folder, self.bench.store, committee, self.round
        self._stage("measure", partial(stages.measure, *args))

    def _labelled_rounds(self) -> int:
        """The last round that is whole; a first one whose probes were not looked at yet is gone through again."""
        whole = [each["round"] for each in self.journal.of("finished", stage="label")]
        last = max(whole, default=0)
        return 0 if last == 1 and not self._measured(1) else last

    def _probe(self) -> Frames | None:
        return stages.probe_of(self.settings, self.folder)

    def _measured(self, number: int) -> bool:
        return any(self.journal.of("finished", stage="measure", round=number)) or self._probe() is None

    def _write_report(self) -> None:
        account.write(self.folder, self.bench.store, [stages.chosen(self.folder, k) for k in range(self.round + 1)])

    def _here(self) -> Path:
        return self.folder / f"round-{self.round}"

    def _tell(self, done: int, total: int, failed: int) -> None:
        self.report(ActiveProgress(self.round, "label", done, total, f"{failed} failed"))

    # Ends and changes.

    def why_stop(self) -> str | None:
        """Why the run should stop now, though it is not finished."""
        if self.request.signum is not None:
            return "a signal asked for it"
        if (self.folder / STOP).exists():
            return "'snnp active stop' asked for it"
        hours = self.settings.limits.hours
        if hours is not None and hours_of(self.journal.entries, running=True) >= hours:
            return f"the {hours:g} hours of limits.hours are used up"
        return None

    def _check_stop(self) -> None:
        if (why := self.why_stop()) is not None:
            raise Stop(why)

    def why_end(self) -> str | None:
        """Which limit is reached after the training of this round."""
        limits, n = self.settings.limits, len(self.bench.store)
        if n >= limits.labels:
            return f"{n} labels (limits.labels {limits.labels})"
        if self.round > limits.rounds:
            return f"{self.round - 1} rounds (limits.rounds)"
        return stages.plateau(limits, self.journal)

    def _nothing_new(self) -> str:
        facts = next(self.journal.of("finished", stage="sample", round=self.round))["facts"]
        said = f"no frame of round {self.round} went beyond the limits of sampling"
        most = facts.get("largest_spread")
        said += f" (the largest spread was {most:.2f} of its limit)" if most is not None else ""
        if self.round == 1:
            raise DataError(
                f"{said}, though the committee has hardly learned anything: the limits let everything pass; lower "
                "sampling.energy_limit, force_limit and largest_force_limit, and resume."
            )
        return said

    def take_up_changes(self) -> None:
        """Read the settings anew, and note what has changed since they were last read.

        What decides about models and structures counts from the next round on, if one is begun.

        Raises:
            ConfigError: if something has changed that must not.
        """
        new = ActiveSettings.read(self.folder / CONFIG)
        last = next((e["settings"] for e in reversed(self.journal.entries) if "settings" in e), None)
        if last is None:
            self.journal.write("started", settings=new.model_dump(mode="json"), seed=new.seed)
        else:
            changed = refuse_changes(ActiveSettings(**last), new, self.folder / CONFIG)
            if changed:
                self.journal.write("config", changed=changed, settings=new.model_dump(mode="json"))
        self.settings = self._of_round(new)

    def _of_round(self, new: ActiveSettings) -> ActiveSettings:
        """The settings of a round that is under way: those that it began with where files depend on them."""
        begun = [k for k, each in enumerate(self.journal.entries) if each["event"] == "begun"]
        if not begun:
            return new
        entry = self.journal.entries[begun[-1]]
        if entry["round"] <= self._labelled_rounds():
            return new
        first = next(k for k in begun if self.journal.entries[k]["round"] == entry["round"])
        then = next(each["settings"] for each in reversed(self.journal.entries[:first]) if "settings" in each)
        names = ("training", "members", "heads", "sampling", "per_round", "start")
        old = ActiveSettings(**then)
        return new.model_copy(update={name: getattr(old, name) for name in names})

    def _same_labeller(self, identity: Identity, name: str) -> None:
        known = next(self.journal.of("labeller"), None)
        if known is None:
            self.journal.write("labeller", key=identity.key, name=name, files=identity.files)
        elif known["key"] != identity.key:
            before, now = (
                {(name, key) for key, name in each.items()} for each in (known.get("files", {}), identity.files)
            )
            other = sorted({name for name, _ in before ^ now}) if "files" in known else []
            change = f"the labeller is now {name}" if name != known["name"] else "something of it is another one now"
            change = (
                f"{', '.join(other)} of it {'have' if len(other) > 1 else 'has'} other contents" if other else change
            )
            raise DataError(
                f"{self.folder} has labels of {known['name']}, and {change} (another version, other weights or other "
                "files count as another labeller); bring back the former, or begin a new run."
            )


@dataclass(frozen=True)
class Plan:
    """What a run would do: who is asked, how many structures of how many atoms (the median) it begins with, the most
    labels and rounds, seconds of a label (of three), and hours of all of them."""

    labeller: str
    first: int
    atoms: float
    labels: int
    rounds: int
    seconds: float
    hours: float


def plan(settings: ActiveSettings, work: stages.Stages = USUAL) -> Plan:
    """What a run would do, from three labels; nothing is kept.

    Raises:
        InputError: for a labeller that does not start, or gives no label.
    """
    with tempfile.TemporaryDirectory() as name, executor_of(ExecutorSettings(), Path(name)):
        folder = Path(name)
        frames = stages.first_structures(settings, folder, work)
        labeller, identity = Labeller.of(settings.labeller).identified()
        middle = np.argsort(np.abs(frames.counts - np.median(frames.counts)), kind="stable")[:_TRIED]
        seconds = []
        for row in middle.tolist():
            job = folder / str(row)
            write_frames([("", frames[row : row + 1])], job / STRUCTURE, "", "snnp")
            reply = labeller.ask(job)
            if reply.failure is not None:
                raise InputError(
                    f"the labeller {identity.name} gives no label of {frames.sources[row]} ({reply.failure}: "
                    f"{reply.reason}); mend it before the run."
                )
            seconds.append(reply.seconds)
    each, limits = float(np.median(seconds)) if seconds else 0.0, settings.limits
    rounds = min(limits.rounds, -(-max(0, limits.labels - len(frames)) // settings.per_round))
    labels = min(limits.labels, len(frames) + rounds * settings.per_round)
    atoms = float(np.median(frames.counts)) if len(frames) else 0.0
    hours = labels * each / settings.executor.workers / 3600.0
    return Plan(identity.name, len(frames), atoms, labels, rounds, each, hours)
