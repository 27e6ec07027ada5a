"""What a run of active learning is asked to do: one typed value, a YAML file of the user and of the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from snnp.errors import ConfigError, first_fault, near_matches
from snnp.files import write_atomically
from snnp.text import one_line

if TYPE_CHECKING:
    from snnp.training import TrainConfig

__all__ = [
    *("FIXED", "ActiveSettings", "ExecutorSettings", "LabellerSettings", "Limits", "ProbeSettings", "StartSettings"),
    *("differences", "refuse_changes"),
]

FIXED = (
    *("elements", "start", "probe", "seed"),
    *(f"labeller.{name}" for name in ("calculator", "kwargs", "models", "command", "files", "units")),
)
"""What stays as it was begun: labels of two labellers are never mixed, and probes compare rounds."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabellerSettings(_Settings):
    """Who says what is true: an ASE calculator, models of snnp, or a command; one of the three.

    `calculator`: `module:callable`, with `kwargs` and the `python` that has it. `models`: names or folders.
    `command`: run by the shell in a folder of its own for each structure; `{input}` and `{output}` are extended XYZ
    files, `{here}` is the folder in which the loop was started. `files`: what the command reads besides (inputs,
    pseudopotentials); their contents belong to who the labeller is. `units`: of what the command writes, as in
    `data.units` of training.
    `timeout`: seconds for one structure. `retries`: how often a structure is asked for again whose process died, ran
    too long or ended with an error. `most_failures`: fraction of a round's structures that may fail.
    `check_units`: whether labels that are off by the factor of a unit end the run, are only said, or not looked for.
    """

    calculator: str | None = None
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    python: str | None = None
    models: tuple[str, ...] = ()
    command: str | None = None
    files: tuple[str, ...] = ()
    units: dict[str, str] | str | None = None
    threads: int = Field(1, ge=1)
    timeout: float | None = Field(None, gt=0.0)
    retries: int = Field(1, ge=0, le=20)
    most_failures: float = Field(0.2, ge=0.0, le=1.0)
    check_units: Literal["error", "warn", "off"] = "error"

    @field_validator("models", "files", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> LabellerSettings:
        given = [name for name in ("calculator", "models", "command") if getattr(self, name)]
        if len(given) != 1:
            said = f"{' and '.join(given)} were given" if given else "none was given"
            raise ValueError(f"labeller needs one of calculator, models and command; {said}")
        if self.command is not None:
            lacking = [word for word in ("{input}", "{output}") if word not in self.command]
            if lacking:
                raise ValueError(
                    f"labeller.command lacks {' and '.join(lacking)}: it reads the structure from {{input}} and writes "
                    "it with energy and forces to {output}, both extended XYZ"
                )
        elif self.units is not None or self.files:
            raise ValueError("labeller.units and labeller.files belong to a command; calculators speak eV and Å")
        return self


class ExecutorSettings(_Settings):
    """Where labels are computed: `serial`, one after the other; `processes`, `workers` at the same time on this
    machine; `parsl`, wherever `config` says (`module:callable`, which returns a `parsl.Config`; without it, `workers`
    threads of this machine)."""

    kind: Literal["serial", "processes", "parsl"] = "serial"
    workers: int = Field(1, ge=1, le=4096)
    config: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ExecutorSettings:
        if self.kind == "serial" and self.workers > 1:
            raise ValueError("executor.kind serial has one worker; say kind: processes")
        if self.config is not None and self.kind != "parsl":
            raise ValueError("executor.config is a parsl.Config; say kind: parsl")
        return self


class ProbeSettings(_Settings):
    """Structures that are never learned and stay the same: what the committee says of them shows whether it still
    learns. `data`: files, whose labels serve where there are some; without it, `number` of the first round's frames,
    drawn at random, which are labelled like the others and count as labels."""

    data: tuple[str, ...] = ()
    number: int = Field(12, ge=0)

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Limits(_Settings):
    """When it ends, whichever comes first: number of `labels`, of `rounds`, `hours` of wall time (of all sessions
    together), or a plateau: the committee's disagreement about the probes fell by less than the fraction
    `plateau_change` in each of the last `plateau_rounds` rounds (0: never for that reason)."""

    labels: int = Field(400, ge=1)
    rounds: int = Field(20, ge=0)
    hours: float | None = Field(None, gt=0.0)
    plateau_rounds: int = Field(3, ge=0)
    plateau_change: float = Field(0.05, ge=0.0, lt=1.0)


class StartSettings(_Settings):
    """With what it begins: `number` of random placements; of conformers of `molecules` (SMILES, structure files, or
    `g2`), turned about their bonds and displaced; or structures of `data` files, whose labels serve where there are
    some (`labelled: false` leaves them aside). Each round's trajectories begin with others of the same kind."""

    data: tuple[str, ...] = ()
    molecules: tuple[str, ...] = ()
    number: int = Field(40, ge=2)
    labelled: bool = False

    @field_validator("data", "molecules", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> StartSettings:
        if self.data and self.molecules:
            raise ValueError("start.data and start.molecules were both given; a run begins with one of them")
        return self


class ActiveSettings(_Settings):
    """Everything that determines a run of active learning.

    `elements`: symbols, of which structures are made. `members`: of the committee. `heads`: one s-NNP and `members`
    readouts on its filters, each trained on a draw of its own, in place of so many models. `per_round`: labels of each
    round. `training`: a training configuration without data. `sampling`: see below. Building one raises a
    `ConfigError` that names the key, and what was expected.
    """

    elements: tuple[str, ...] = Field(min_length=1)
    labeller: LabellerSettings
    start: StartSettings = StartSettings()
    members: int = Field(4, ge=1, le=64)
    heads: bool = False
    per_round: int = Field(40, ge=1)
    training: dict[str, JsonValue] = Field(default_factory=dict)
    sampling: dict[str, JsonValue] = Field(default_factory=dict)
    probe: ProbeSettings = ProbeSettings()
    limits: Limits = Limits()
    executor: ExecutorSettings = ExecutorSettings()
    seed: int = Field(0, ge=0)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_said(error)) from None

    @field_validator("elements", mode="before")
    @classmethod
    def _symbols(cls, value: Any) -> Any:
        from ase.data import chemical_symbols

        value = value.replace(",", " ").split() if isinstance(value, str) else value
        for symbol in value if isinstance(value, list | tuple) else ():
            if symbol not in chemical_symbols[1:]:
                raise ValueError(f"{symbol!r} is no chemical symbol, such as Al")
        return value

    @model_validator(mode="after")
    def _check(self) -> ActiveSettings:
        if self.members < 2:
            raise ValueError("members: 1 is no committee, and one model cannot disagree with itself; use 2 or more")
        family = self.trained_on([Path("labels.xyz")], 0).model.family
        if self.heads and family != "s-nnp":
            raise ValueError(
                f"heads: true needs filters to share, which an s-nnp has; training.model.family is {family}"
            )
        return self

    def trained_on(self, data: list[Path], member: int) -> TrainConfig:
        """The configuration of a member's training.

        Raises:
            ConfigError: for keys that there are not, or data named beside the labels.
        """
        from snnp.training import load_config

        given = dict(self.training)
        tree: dict[str, Any] = {
            "loss": {"energy_weight": 30.0, "energy_weight_end": 300.0, "stress_weight": 100.0},
            "threads": 1,
        }
        # Held-out frames calibrate heads, which needs eight of them.
        limits: dict[str, Any] = {"valid": 0.2 if self.heads else 0.1, "max_force": 60.0, "check_units": "off"}
        own = given.pop("data", {})
        allowed = ("valid", "max_force", "max_energy", "check_units")
        if not isinstance(own, dict) or set(own) - set(allowed):
            raise ConfigError(
                f"training.data: the data are the labels; of this group only {', '.join(allowed)} may be given."
            )
        for key, value in given.items():
            inner = tree.get(key)
            tree[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
        tree["seed"] = self.seed * 1000 + member
        tree["data"] = {"train": [str(path) for path in data], **limits, **own}
        tree["model"] = {**(tree.get("model") or {}), "elements": list(self.elements)}
        try:
            return load_config(tree)
        except ConfigError as error:
            raise ConfigError(f"training: {str(error).removeprefix('config: ')}") from None

    def save(self, path: Path) -> None:
        """Write it as YAML."""
        write_atomically(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode())

    @classmethod
    def read(cls, path: Path, assignments: tuple[str, ...] | list[str] = ()) -> ActiveSettings:
        """Read a YAML file, and apply `key=value` assignments.

        Raises:
            ConfigError: if it is missing or not understood.
        """
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else one_line(error)
            raise ConfigError(f"{path} cannot be read ({why}); see 'snnp active start --help'.") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} must hold keys and values (elements:, labeller:, ...).")
        for text in assignments:
            _set(tree, text)
        try:
            return cls(**tree)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _set(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {}) if isinstance(tree, dict) else tree
    if not equals or not last or not isinstance(tree, dict):
        raise ConfigError(f"--set {text!r}: expected key=value, such as --set limits.labels=800.")
    try:
        tree[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {text!r}: {value!r} is not a YAML value ({one_line(error)}).") from None


def _said(error: ValidationError) -> str:
    kind, key, why, got = first_fault(error)
    if kind == "extra_forbidden":
        group: Any = ActiveSettings
        *above, last = key.split(".")
        for part in above:
            group = group.model_fields[part].annotation
        hint = near_matches(last, group.model_fields)
        return f"unknown key {key!r}.{hint or ' There are ' + ', '.join(group.model_fields) + '.'}"
    said = why.rstrip(".")
    if kind == "missing":
        return f"{key} is missing; give it, as in the example of 'snnp active start --help'."
    if kind == "value_error" or not key:
        return said if said.endswith("?") else f"{said}."
    return f"{key}: {said} (got {json.dumps(got, default=str)[:80]})."


def differences(old: ActiveSettings, new: ActiveSettings) -> dict[str, list[Any]]:
    """Key -> [old, new] of what differs, keys with their groups as in `limits.labels`."""

    def leaves(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {name: value}
        return {k: v for key, each in value.items() for k, v in leaves(each, f"{name}.{key}" if name else key).items()}

    before, after = (leaves(each.model_dump(mode="json"), "") for each in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def refuse_changes(old: ActiveSettings, new: ActiveSettings, where: Path) -> dict[str, list[Any]]:
    """What differs, as `differences` says it.

    Raises:
        ConfigError: if something differs that must stay as it was begun.
    """
    changed = differences(old, new)
    fixed = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in FIXED)]
    if fixed:
        was, now = changed[fixed[0]]
        raise ConfigError(
            f"{where}: {', '.join(fixed)} must stay as it was begun ({fixed[0]} was {was!r}, is {now!r}): labels of "
            "two labellers, or of other elements, are not mixed. Put it back, or begin a new run."
        )
    return changed
