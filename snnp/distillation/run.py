"""From a teacher to a student, in one call: structures, labels, students in rounds, and a report of what was lost.

    RUN/distil.yaml      what was asked for
    RUN/labels/          every label, as it came (see `snnp.distillation.label_store`)
    RUN/chosen-K.parquet structures of round K, not yet labelled; RUN/student-K/: whose dynamics gave round K + 1
    RUN/labels.parquet   what is learned as a dataset, with splits train and test; RUN/provenance.json: whose they are
    RUN/student/         the last one, a run of training like any other
    RUN/baseline/        an equal one that learned the labels of the data, where a bar asks for it
    RUN/report.*         Markdown, HTML, JSON

A stage whose files are there is not done again, so that a run that was killed goes on from there.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from snnp import training
from snnp.data import Frames, load_dataset, read_frames, split_frames
from snnp.data.storage.parquet import arrow
from snnp.data.write import parquet_writer
from snnp.distillation import verdict
from snnp.distillation.assemblies import MoleculePool
from snnp.distillation.crystals import (
    Crystal,
    bearable,
    crystals_from_scan,
    energy_scale,
    first_scan,
    force_limit,
    frames_of,
    guessed_crystals,
    second_scan,
    within_reach,
)
from snnp.distillation.defects import SHARES, pool, pressed, supercell
from snnp.distillation.exploration import crystal_starts, explore, molecule_starts, shaken_copies
from snnp.distillation.label_store import Crew, Labelling, LabelProgress, LabelStore, label
from snnp.distillation.selection import choose
from snnp.distillation.settings import CHANGEABLE, DistilSettings
from snnp.distillation.teachers import Teacher, TeacherProcess
from snnp.errors import ConfigError, InputError
from snnp.files import hold, write_atomically
from snnp.models.potential import Potential
from snnp.models.store import load_model
from snnp.report import Finding, Report, Table
from snnp.training import Progress

__all__ = ["DistilProgress", "DistilResult", "Plan", "distil", "plan"]

_SETTINGS, _LABELS, _REPORT, _STUDENT, _BASELINE = "distil.yaml", "labels.parquet", "report", "student", "baseline"
_STATIC_SHARE = 0.6  # of the budget, where there are rounds
_POOL = 3  # structures made for each that is chosen
_POOL_OF_MOLECULES = 1.25  # which are many, and all different
_ROUND_EPOCHS = 0.25  # of those of the last student
_STARTS, _MOVING_ATOMS = 16, 90


@dataclass(frozen=True)
class DistilProgress:
    """Which stage, how far it is (in its own units), and a note."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class DistilResult:
    """The run's folder, the student, the number of labels, and the report; accepted if that holds no errors."""

    folder: Path
    model: Potential
    n_labels: int
    report: Report

    @property
    def accepted(self) -> bool:
        """Whether every bar is reached."""
        return not self.report.errors


Reporter = Callable[[DistilProgress], None]


def distil(
    settings: DistilSettings, folder: str | Path, report: Reporter = lambda progress: None, *, resume: bool = False
) -> DistilResult:
    """Distil a teacher into a student; see `DistilSettings` for what can be chosen.

    Arguments:
        folder: of the run, new unless it is resumed.
        report: is told what happens.
        resume: go on with a run in this folder, which must have had the same settings (but for `CHANGEABLE`).

    Raises:
        ConfigError: for settings that do not fit, or a folder that holds another run.
        InputError: for a teacher that does not start, or does not know the elements; MissingDependencyError: pyarrow.
        DataError: for a teacher that fails too often, the labels of another one, or unusable data.
        TrainingError, Interrupted: as `snnp.training.train` says.
    """
    folder = Path(folder)
    given = _Given.of(settings)
    _begin(settings, folder, resume)
    start = time.monotonic()
    teacher = Teacher.of(settings.teachers, settings.python, settings.kwargs)
    with hold([folder / _SETTINGS]), Crew(teacher, settings.threads) as crew:
        with crew.at_work() as process:
            _check(settings, process, given.one(settings.elements), given.elements(settings.elements))
        settings.save(folder / _SETTINGS)
        with LabelStore(folder / "labels", crew.identity) as store:
            run = _Run(settings, folder, crew, store, report, given)
            labelled = run.all_labels()
            student = run.train(_STUDENT, run.as_learned(labelled), folder / _LABELS)
            found = run.measure(student, labelled)
            found_report = run.say(found, labelled, time.monotonic() - start)
    return DistilResult(folder, student, len(labelled), found_report)


def _begin(settings: DistilSettings, folder: Path, resume: bool) -> None:
    settings.training(Path(_LABELS))  # what is wrong with the student is said before a teacher has worked for it
    arrow()  # labels become parquet: without pyarrow, too, nothing starts
    if (path := folder / _SETTINGS).exists():
        if not resume:
            raise ConfigError(f"{folder} already holds a distillation; go on with it (resume), or name a new folder.")
        before = DistilSettings.load(path)
        changed = [
            name
            for name in DistilSettings.model_fields
            if name not in CHANGEABLE and getattr(before, name) != getattr(settings, name)
        ]
        if changed:
            raise ConfigError(f"{folder} was begun with another {', '.join(changed)}; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)


def _check(settings: DistilSettings, process: TeacherProcess, frames: Frames, elements: Sequence[str]) -> None:
    """Teacher, student and method must fit, before anything is computed; what a teacher gives one frame shows."""
    identity = process.identity
    if missing := [symbol for symbol in elements if identity.elements and symbol not in identity.elements]:
        raise InputError(f"the teacher {identity.name} does not know {', '.join(missing)}.")
    if settings.elements:
        _check_budget(settings.budget, len(first_scan(settings.elements, settings.crystals)))
    student = settings.training(Path(_LABELS)).model
    if missing := [symbol for symbol in elements if student.elements and symbol not in student.elements]:
        raise ConfigError(f"student.model.elements lacks {', '.join(missing)}, which are to be distilled.")
    if settings.method in ("ekd", "self") and identity.n_members < 2:
        raise InputError(
            f"method {settings.method} needs an ensemble, but {identity.name} is one model; name several teachers."
        )
    reach = student.model_copy(update={"elements": tuple(elements)}).reach
    if settings.method == "self" and identity.cutoff is not None and reach < identity.cutoff - 1e-6:
        raise ConfigError(
            f"student.model sees {reach:g} Å, the models that it is to become {identity.cutoff:g} Å; method "
            "self makes one model of several equal ones, so give it their cutoff (or take method labels)."
        )
    if settings.method == "teacher-student" and process.lacks("energies", frames):
        raise InputError(
            f"method teacher-student learns energies of single atoms, of which {identity.name} gives none (no "
            "'energies' among the calculator's results); take method labels, or another teacher."
        )


def _check_budget(budget: int, needed: int) -> None:
    if budget <= needed:
        raise ConfigError(
            f"a budget of {budget} leaves nothing beside the {needed} labels of perfect crystals by which volumes are "
            "found; raise it."
        )


@dataclass(frozen=True)
class _Given:
    """What the settings name, read once and first: what is wrong with it is said before anything is computed."""

    data: Frames | None
    molecules: MoleculePool | None
    reference: Frames | None

    @classmethod
    def of(cls, settings: DistilSettings) -> _Given:
        """Read all of it."""
        data, reference = (
            Frames.of(read_frames(list(names))) if names else None for names in (settings.data, settings.reference)
        )
        if settings.method == "ekd" and data is not None and not data.has_energy.all():
            raise InputError("method ekd learns the energies of the data, but some frames have none; leave them out.")
        return cls(data, MoleculePool.of(settings.molecules, settings.apart) if settings.molecules else None, reference)

    @property
    def labelled(self) -> bool:
        """Whether all of the data have labels of their own."""
        return self.data is not None and bool(self.data.has_energy.all())

    def elements(self, symbols: Sequence[str]) -> Sequence[str]:
        """Of the structures that will be labelled: the symbols that were asked for, or those of what was given."""
        if self.molecules is not None:
            return sorted({symbol for atoms in self.molecules.molecules for symbol in atoms.symbols})
        return symbols if self.data is None else self.data.elements

    def one(self, elements: Sequence[str]) -> Frames:
        """A structure of those that will be labelled."""
        if self.molecules is not None:
            return frames_of([("", self.molecules.molecules[0])], "first")
        return (first_scan(elements) if self.data is None else self.data)[:1]

    def own(self, labelled: Frames) -> Frames:
        """Those that are structures of the data, with labels of these in place of the teacher's but for atoms."""
        assert self.data is not None
        labelled = labelled.take(np.isin(labelled.sources, self.data.sources))
        rows = {source: row for row, source in enumerate(self.data.sources)}
        mine = self.data.take([rows[source] for source in labelled.sources])
        return replace(mine, energies=labelled.energies, has_energies=labelled.has_energies)


@dataclass
class _Run:
    """A distillation at work."""

    settings: DistilSettings
    folder: Path
    crew: Crew
    store: LabelStore
    report: Reporter
    given: _Given
    crystals: list[Crystal] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def all_labels(self) -> Frames:
        """The structures that are asked for and those of every round, labelled."""
        set_ = self.settings
        parts = [self._seeds()] if set_.elements else []
        rest, rounds = set_.budget - sum(map(len, parts)), 0 if set_.data else set_.rounds
        static = round(_STATIC_SHARE * rest) if rounds else rest
        parts.append(self._label("structures", self._kept(0, lambda: self._made(static, parts))))
        for number, share in enumerate(_even(rest - static, rounds), start=1):
            known = Frames.concatenate(parts)
            chosen = self._kept(number, partial(self._explored, number, share, known))
            parts.append(self._label(f"round {number}", chosen))
        return Frames.concatenate(parts)

    def _seeds(self) -> Frames:
        """Perfect crystals in all volumes, and isolated atoms."""
        labelled = self._label("crystals", first_scan(self.settings.elements, self.settings.crystals))
        second = second_scan(labelled)
        _check_budget(self.settings.budget, len(labelled) + len(second))
        second = self._label("crystals", second)
        self.crystals = crystals_from_scan(second, labelled)
        along = pressed(self.crystals, (self.settings.budget - len(labelled) - len(second)) // 4)
        return Frames.concatenate([within_reach(labelled), second, within_reach(self._label("crystals", along))])

    def _label(self, stage: str, frames: Frames) -> Frames:
        def tell(now: LabelProgress) -> None:
            left = "" if now.seconds_left is None else f"{now.seconds_left:.0f} s left"
            self.report(DistilProgress(f"labels: {stage}", now.done, now.total, f"{left}, {now.failed} failed"))

        set_ = self.settings
        how = Labelling(set_.workers, set_.most_failures, tell)
        done = label(frames, self.crew, self.store, how)
        self.failures += done.failures
        return done.frames

    def _kept(self, number: int, make: Callable[[], Frames]) -> Frames:
        """Structures of a round: from their file, or made now and written there."""
        path = self.folder / f"chosen-{number}.parquet"
        if not path.exists():
            with parquet_writer(path, "none", "snnp") as writer:
                frames = make()
                writer.add(frames.named(frames.sources, frames.groups), "train")
        return load_dataset(path).frames()

    def _made(self, number: int, parts: Sequence[Frames]) -> Frames:
        """Structures before any student: of the elements, the molecules, or the data."""
        set_ = self.settings
        self.report(DistilProgress("structures", 0, number))
        if set_.elements:
            made = pool(self.crystals, _POOL * number, set_.seed)
            return choose(made, number, SHARES, Frames.concatenate(list(parts)), set_.seed)
        if self.given.molecules is not None:
            made = self.given.molecules.frames(round(_POOL_OF_MOLECULES * number), set_.seed)
        else:
            assert self.given.data is not None
            made = self.given.data
            if set_.method == "self" and number > len(made):
                return Frames.concatenate([made, shaken_copies(made, number - len(made), set_.seed)])
        groups = Counter(group or "" for group in made.groups)
        return choose(made, number, groups, seed=set_.seed)

    def _explored(self, number: int, share: int, known: Frames) -> Frames:
        """Structures to which the last student goes by itself."""
        set_ = self.settings
        data, learned = self.folder / f"labels-{number - 1}.parquet", self.as_learned(known)
        student = self.train(f"{_STUDENT}-{number - 1}", learned, data)
        if set_.elements:
            starts = crystal_starts(self.crystals, _STARTS, set_.seed + number)
        else:
            assert self.given.molecules is not None
            starts = molecule_starts(self.given.molecules, share, set_.seed + number)

        def tell(done: int, total: int, broken: int) -> None:
            self.report(DistilProgress(f"dynamics: round {number}", done, total, f"{broken} blew up"))

        frames, broken = explore(student, starts, set_.seed + 100 * number, f"round-{number}", tell)
        self.broken.append(broken)
        return choose(frames, share, Counter(group or "" for group in frames.groups), known, set_.seed + number)

    def train(self, name: str, learned: Frames, data: Path) -> Potential:
        """The student of this name: finished before, continued, or trained now on frames that are written to `data`."""
        run = self.folder / name
        if (run / "summary.json").exists():
            return load_model(run / "best")

        def tell(now: Progress) -> None:
            if now.message is None:
                self.report(DistilProgress(f"training: {name}", now.epoch, now.epochs))

        if (run / "config.yaml").exists():
            return training.resume(run, tell).model
        self._write(learned, data)
        scale = energy_scale(self.crystals) if self.crystals else None
        config = self.settings.training(data, 1.0 if name in (_STUDENT, _BASELINE) else _ROUND_EPOCHS, scale)
        who = self.crew.identity
        origin = {**config.metadata, "teacher": who.name, "teacher_licence": who.licence, "teacher_key": who.key}
        config = config.model_copy(update={"metadata": origin})
        if name == _BASELINE:
            loss = config.loss.model_copy(update={"atomic_energy_weight": 0.0, "atomic_energy_weight_end": None})
            config = config.model_copy(update={"loss": loss, "metadata": {"description": "learned without a teacher"}})
        return training.train(config, run, tell, overwrite=True).model

    def as_learned(self, labelled: Frames) -> Frames:
        """Those that are learned, with labels of the data instead of the teachers' where the method says so."""
        data, labelled = self.given.data, bearable(labelled, self.crystals)
        if data is not None and self.settings.method == "self":
            own = data.take(self._own(data))
            return Frames.concatenate([own, labelled.take(~np.isin(labelled.sources, own.sources))])
        if self.settings.method == "teacher-student" and self.given.labelled:
            return self.given.own(labelled)
        if self.settings.method != "ekd":
            return labelled
        energy, nothing = self.given.own(labelled).energy, np.zeros(len(labelled), dtype=bool)
        return replace(labelled, energy=energy, stress=np.full_like(labelled.stress, np.nan), has_stress=nothing)

    def _own(self, data: Frames) -> NDArray[np.bool_]:
        """[B] Which frames of the data keep their labels, energies and forces: an ensemble of them knows no better."""
        own: NDArray[np.bool_] = data.has_energy & data.has_forces & (self.settings.method == "self")
        return own

    def _write(self, labelled: Frames, path: Path) -> None:
        """The dataset of labels, and beside it whose they are."""
        data = self.given.data
        own = np.isin(labelled.sources, [] if data is None else data.take(self._own(data)).sources)
        split = split_frames(labelled.take(~own), valid=0.0, test=self.settings.held_out, seed=self.settings.seed)
        versions = ", ".join(f"{known['name']} {known['version']}" for known in self.crew.identity.packages.values())
        method = "reference data" if path.stem == _BASELINE else self.crew.identity.name
        with parquet_writer(path, method, versions) as writer:
            for part, frames in (("train", labelled.take(own)), ("train", split.train), ("test", split.test)):
                if len(frames):
                    writer.add(frames, part)
        said = {"teacher": self.crew.identity.json(), "licence": self.crew.identity.licence, "failures": self.failures}
        text = json.dumps({**said, "kinds": Counter(labelled.groups)}, indent=1, default=str)
        write_atomically(self.folder / "provenance.json", (text + "\n").encode())

    def measure(self, student: Potential, labelled: Frames) -> verdict.Measured:
        """Everything that the bars may ask for of a student of some frames with the teacher's labels."""
        found = verdict.Measured()
        self.report(DistilProgress("report", 0, 5, "against the teacher"))
        dataset = load_dataset(self.folder / _LABELS)
        if "test" in dataset.splits:
            # With the teacher's labels, whatever was learned.
            verdict.against_teacher(found, student, self.store.labelled(dataset.select("test").frames()))
        if self.given.reference is not None:
            self._against_reference(found, student, self.given.reference)
            if self.settings.wanted_bars.baseline_force_ratio is not None and self.given.labelled:
                data = self.folder / f"{_BASELINE}.parquet"
                baseline = self.train(_BASELINE, self.given.own(labelled), data)
                verdict.against_baseline(found, student, baseline, self.given.reference)
        self.report(DistilProgress("report", 2, 5, "beside the teacher"))
        atoms, hot = self._mover()
        with self.crew.at_work() as process:
            liquid = self.settings.wanted_bars.rdf_overlap is not None
            verdict.beside(found, student, self.crystals or atoms, process, seed=self.settings.seed, liquid=liquid)
            verdict.memory(found, self.folder / _STUDENT, atoms, process)
        self.report(DistilProgress("report", 3, 5, "dynamics"))
        verdict.moving(found, student, atoms, hot, self.settings.seed)
        self.report(DistilProgress("report", 4, 5, "speed"))
        verdict.speed(found, student, atoms, self.store.seconds_per_atom())
        self.report(DistilProgress("report", 5, 5))
        return found

    def _against_reference(self, found: verdict.Measured, student: Potential, frames: Frames) -> None:
        if unknown := set(frames.elements) - set(student.elements):
            raise InputError(f"the reference data hold {', '.join(sorted(unknown))}, which the student does not know.")
        labelled = self._label("reference", frames)
        verdict.against_reference(found, student, frames.take(np.isin(frames.sources, labelled.sources)), labelled)

    def _mover(self) -> tuple[Atoms, float]:
        """What is set in motion, and how hot."""
        if self.crystals:
            return supercell(self.crystals[0].atoms, _MOVING_ATOMS), verdict.HOT * self.crystals[0].temperature
        if self.given.molecules:
            return max(self.given.molecules.molecules, key=len), 500.0
        assert self.given.data is not None
        return self.given.data[int(np.argmax(self.given.data.counts))].structure.to_ase()[0], 300.0

    def say(self, found: verdict.Measured, labelled: Frames, seconds: float) -> Report:
        """The report, written as three files."""
        failed, passed, bars, answer = verdict.judge(found, self.settings.wanted_bars)
        notes = list(found.notes)
        if self.failures:
            said = f"the teacher failed on {len(self.failures)} structures, such as {self.failures[0][0]}: "
            notes.append(Finding("labels", "note", said + self.failures[0][1]))
        if strong := len(labelled) - len(bearable(labelled, self.crystals)):
            notes.append(Finding("labels", "note", f"{strong} over {force_limit(self.crystals):.0f} eV/Å left out"))
        kinds, who = Counter(map(verdict.kind_of, labelled.groups)), self.crew.identity
        teacher = {"name": who.name, "licence": who.licence, "key": who.key, "files": list(who.files.values())}
        tables = (
            bars,
            Table.of("Teacher", teacher),
            *found.tables,
            verdict.table("What was labelled", [{"kind": kind, "structures": n} for kind, n in sorted(kinds.items())]),
            Table.of("Runs of the students that blew up", {f"round {k + 1}": n for k, n in enumerate(self.broken)}),
        )
        name, shown = f"{self.folder.name}, a student of {who.name}", [table for table in tables if table.rows]
        report = Report(name, "distillation", (*failed, *notes), tuple(passed), shown, found.pictures, seconds, answer)
        for ending, text in (("md", report.markdown()), ("html", report.html()), ("json", report.to_json())):
            write_atomically(self.folder / f"{_REPORT}.{ending}", text.encode())
        return report


def _even(number: int, parts: int) -> list[int]:
    """A number in parts that differ by one at most."""
    return [number * (k + 1) // parts - number * k // parts for k in range(parts)]


@dataclass(frozen=True)
class Plan:
    """What a distillation would do; structures of students' dynamics are counted as if they were of the other kinds.

    Arguments:
        teacher: its name.
        labels: kind of structure -> number of labels.
        n_atoms: of all labels together, about.
        seconds_per_atom: of the teacher, measured on a few structures.
        workers: processes at the same time.
    """

    teacher: str
    labels: dict[str, int]
    n_atoms: int
    seconds_per_atom: float
    workers: int

    @property
    def seconds(self) -> float:
        """Wall time of the labels, about."""
        return self.n_atoms * self.seconds_per_atom / self.workers


def plan(settings: DistilSettings) -> Plan:
    """Counts, cost and time of a distillation, from a few labels; nothing is written.

    Raises:
        ConfigError, InputError: as `distil` says.
    """
    settings.training(Path(_LABELS))
    teacher = Teacher.of(settings.teachers, settings.python, settings.kwargs)
    with teacher.start(settings.threads) as process:
        name, frames = process.identity.name, _first_structures(settings)
        _check(settings, process, frames, frames.elements)
        trial = frames.take(np.argsort(np.abs(frames.counts - np.median(frames.counts)))[:3])
        answers = [*process.label(trial[:1]), *process.label(trial)]  # the first call warms up
    worked = [answer for answer in answers[1:] if answer.error is None]
    if not worked:
        raise InputError(f"the teacher {name} fails on {trial.sources[0]}: {answers[-1].error}.")
    atoms = sum(int(trial.counts[answer.row]) for answer in worked)
    kinds = Counter((group or "data").split(" ")[0] for group in frames.groups)
    return Plan(name, kinds, int(frames.counts.sum()), sum(a.seconds for a in worked) / atoms, settings.workers)


def _first_structures(settings: DistilSettings) -> Frames:
    if settings.elements:
        asked = settings.elements, settings.crystals
        seeds = first_scan(*asked)
        number = max(settings.budget - len(seeds), 1)
        return Frames.concatenate([seeds, pool(guessed_crystals(*asked), number, settings.seed)])
    if settings.molecules:
        return MoleculePool.of(settings.molecules, settings.apart).frames(settings.budget, settings.seed)
    return Frames.of(read_frames(list(settings.data)))[: settings.budget]
