"""Teachers: functions from structures to labels, ASE calculators or models of snnp, run in processes of their own.

    Teacher.of(["snnp-cu"])                                  a model by name, folder, or org/name
    Teacher.of(["runs/a", "runs/b"])                         several: their mean, and their spread
    Teacher.of(["sevenn.calculator:SevenNetCalculator"], python="envs/sevenn/bin/python", kwargs={"model": "7net-0"})

The last is any calculator, in the interpreter that has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.data import Frames
from snnp.distillation import worker
from snnp.errors import InputError
from snnp.hub import load_model
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.structure import Structure

__all__ = ["Answer", "Identity", "Models", "Teacher", "TeacherProcess", "WorkerDiedError"]

_CALCULATOR = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SHOWN = 1500  # characters of what a worker printed at last


@dataclass(frozen=True)
class Identity:
    """Which teacher it is: labels of two teachers are never mixed.

    Arguments:
        calculators: what was built, with its keyword arguments.
        packages: of each calculator: name, version and licence of what it is installed from.
        files: sha256 of the files that were opened when it was built -> their names.
        elements: that it knows, where it says so.
        cutoff: Å, where it says so.
        details: whatever else it says of itself.
    """

    calculators: list[list[Any]]
    packages: dict[str, dict[str, str]]
    files: dict[str, str]
    elements: tuple[str, ...] | None = None
    cutoff: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Identity:
        """From the values of `json`, or from what a worker says."""
        elements, known = values.get("elements"), set(cls.__dataclass_fields__)
        details = {key: value for key, value in values.items() if key not in known} | values.get("details", {})
        given = {key: values.get(key) for key in ("calculators", "packages", "files", "cutoff")}
        return cls(**given, elements=tuple(elements) if elements else None, details=details)  # type: ignore[arg-type]

    def json(self) -> dict[str, Any]:
        """JSON values, the name and the key among them."""
        return {**vars(self), "name": self.name, "key": self.key}

    @property
    def name(self) -> str:
        """For people: what it was asked for, with versions."""
        versions = [f"{known['name']} {known['version']}".strip() for known in self.packages.values()]
        return f"{', '.join(_shortly(name, kwargs) for name, kwargs in self.calculators)} ({', '.join(versions)})"

    @property
    def n_members(self) -> int:
        """How many predictions a label is the mean of."""
        return int(self.details.get("members", len(self.calculators)))

    @property
    def licence(self) -> str:
        """Of the packages, where they say so."""
        said = {known["licence"] for known in self.packages.values() if known["licence"]}
        return ", ".join(sorted(said)) or "not stated"

    @property
    def key(self) -> str:
        """Hash of everything that decides about labels; where things are installed does not."""
        versions = sorted(f"{known['name']} {known['version']}" for known in self.packages.values())
        own = [name.startswith(f"{__name__}:") for name, _ in self.calculators]
        # Models of snnp are what is in their files, whatever they are called and whichever version reads them.
        asked = [] if all(own) else [self.calculators, versions]
        text = json.dumps([asked, self.n_members, sorted(self.files)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shortly(name: str, kwargs: Mapping[str, Any]) -> str:
    if name.startswith(f"{__name__}:"):
        return " + ".join(map(str, kwargs["names"]))
    said = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    return f"{name.rpartition(':')[2]}({said})"


@dataclass(frozen=True)
class Teacher:
    """What to ask, and in which interpreter; see `of`."""

    calculators: tuple[tuple[str, dict[str, Any]], ...]
    python: str = sys.executable

    @classmethod
    def of(
        cls,
        names: Sequence[str | Path],
        python: str | Path | None = None,
        kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Teacher:
        """A teacher by names.

        Arguments:
            names: models of snnp (several are an ensemble), or calculators as `module:callable` (several likewise).
            python: interpreter of the calculators; by default this one.
            kwargs: keyword arguments of the calculators, the same for all or one each. With one calculator and several
                arguments it is built once for each of them.

        Raises:
            InputError: for no names, models among calculators, or arguments that do not fit.
        """
        texts = [str(name) for name in names]
        if not texts:
            raise InputError("no teacher was named; give a model, or a calculator such as ase.calculators.emt:EMT.")
        called = [_CALCULATOR.fullmatch(text) is not None and not Path(text).exists() for text in texts]
        if any(called) and not all(called):
            raise InputError(f"{', '.join(texts)}: teachers are models of snnp, or calculators, not some of each.")
        if not any(called):
            if python is not None or kwargs is not None:
                raise InputError(
                    f"{texts[0]} is a model of snnp: python and kwargs are for calculators (module:callable)."
                )
            return cls(((f"{__name__}:Models", {"names": texts}),))
        each = [dict(one) for one in ([kwargs or {}] if isinstance(kwargs, Mapping | None) else kwargs)]
        if len(texts) != len(each) and 1 not in (len(texts), len(each)):
            raise InputError(
                f"there are {len(texts)} calculators and {len(each)} sets of keyword arguments; give one each."
            )
        number = max(len(texts), len(each))
        pairs = zip(texts * (number // len(texts)), each * (number // len(each)), strict=True)
        # Not resolved: the link of a virtual environment is what makes it one.
        return cls(tuple(pairs), str(Path(python).absolute()) if python is not None else sys.executable)

    def start(self, threads: int = 1) -> TeacherProcess:
        """A process that labels; close it, or use it in a `with` block."""
        return TeacherProcess(self, threads)


class Models:
    """Models of snnp as workers call them: one, or several as an ensemble (which may be one itself)."""

    def __init__(self, names: Sequence[str]) -> None:
        models = [load_model(name) for name in names]
        members = [each for model in models for each in (model.potentials if isinstance(model, Ensemble) else [model])]
        self.model: Potential = models[0] if len(models) == 1 else Ensemble(members)
        licence = {str(model.metadata["licence"]) for model in models if "licence" in model.metadata}
        self.identity = {
            "elements": list(self.model.elements),
            "cutoff": self.model.cutoff,
            "members": len(members),
            "models": {
                str(name): model.metadata.get("description", "") for name, model in zip(names, models, strict=True)
            },
            "data_licence": ", ".join(sorted(licence)),
        }

    def label(self, images: Sequence[Atoms]) -> list[dict[str, np.ndarray]]:
        """Labels of all images, computed together."""
        structure = Structure.from_ase(list(images))
        found = self.model.compute(structure, stress=bool(structure.pbc.all(dim=1).any()))
        first, labels = 0, []
        for row, atoms in enumerate(images):
            mine = slice(first, first + len(atoms))
            first = mine.stop
            values = {"energy": found.energy[row], "energies": found.energies[mine]}
            for name, per_atom in (("forces", found.forces), ("forces_std", found.forces_std)):
                values |= {} if per_atom is None else {name: per_atom[mine]}
            values |= {} if found.energy_std is None else {"energy_std": found.energy_std[row]}
            values |= {"stress": found.stress[row]} if found.stress is not None and atoms.pbc.all() else {}
            labels.append({name: value.detach().double().cpu().numpy() for name, value in values.items()})
        return labels


@dataclass(frozen=True)
class Answer:
    """Labels of a frame (a row of those that were asked for), the seconds that it took, or why there are none.

    `peak_bytes` is the largest resident memory that the process had until then, where its system says so.
    """

    row: int
    seconds: float
    labels: dict[str, np.ndarray]
    error: str | None
    peak_bytes: int | None = None


class WorkerDiedError(Exception):
    """The process of a teacher ended while it was asked."""


class TeacherProcess:
    """A teacher's interpreter at work; `identity` says who it is.

    Raises:
        InputError: where it cannot be started, or the calculator not be built; with its own error.
    """

    def __init__(self, teacher: Teacher, threads: int = 1) -> None:
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        command = [teacher.python, str(Path(worker.__file__)), json.dumps({"calculators": teacher.calculators})]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env={**os.environ, **limits},
                start_new_session=True,  # Ctrl-C is for the program that started it
            )
        except OSError as error:
            self._printed.close()
            raise InputError(
                f"the interpreter '{teacher.python}' cannot be started ({error.strerror}); name the python of the "
                "environment that has the teacher, such as ENV/bin/python."
            ) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        body = worker.read_message(self._out)
        hello = {"kind": "failed", "error": self._last_words()} if body is None else worker.unpack(body)[0]
        if hello["kind"] != "ready":
            self.close()
            asked = ", ".join(_shortly(*each) for each in teacher.calculators)
            raise InputError(f"the teacher {asked} does not start in {teacher.python}: {hello['error']}")
        self.identity = Identity.from_json({**hello, "calculators": [list(each) for each in teacher.calculators]})

    def __enter__(self) -> TeacherProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def label(self, frames: Frames, keep: Path | None = None) -> Iterator[Answer]:
        """Labels of each frame as they come.

        Arguments:
            keep: for a single frame: a file in which its answer is kept by the process itself, so that it is there even
                if this program is killed; an answer that is there already is given again.

        Raises:
            WorkerDiedError: if the process ends before; the frames that it has answered are labelled all the same.
        """
        arrays = {name: getattr(frames, name) for name in ("counts", "positions", "cell", "pbc")}
        arrays["numbers"] = frames.numbers.astype(np.int64)
        try:
            self._in.write(worker.pack({} if keep is None else {"keep": str(keep.absolute())}, arrays))
            self._in.flush()
        except OSError:
            raise WorkerDiedError(self._last_words()) from None
        for _ in range(len(frames)):
            body = worker.read_message(self._out)
            if body is None:
                raise WorkerDiedError(self._last_words())
            header, labels = worker.unpack(body)
            yield Answer(header["row"], header["seconds"], labels, header["error"], header["peak_bytes"])

    def lacks(self, name: str, frames: Frames) -> bool:
        """Whether the first of the frames is labelled without the label of this name; its labels are not kept."""
        try:
            return any(answer.error is None and name not in answer.labels for answer in self.label(frames[:1]))
        except WorkerDiedError:
            return False

    def kill(self) -> None:
        """End the process at once, whoever waits for it; `close` takes away what is left."""
        self._process.kill()

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._in, self._out, self._printed):
            try:
                stream.close()
            except OSError:  # what was still to be written to a dead process
                continue

    def _last_words(self) -> str:
        """How the process ended, and what it printed at last."""
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _SHOWN))
        said = " ".join(self._printed.read().decode(errors="replace").split())
        return f"its process ended ({how})" + (f", saying: …{said[-400:]}" if said else "")
