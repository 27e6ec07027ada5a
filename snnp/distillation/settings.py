"""What a distillation is asked to do: one typed value, written into the folder of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from snnp.errors import ConfigError, first_fault, near_matches
from snnp.files import write_atomically

if TYPE_CHECKING:
    from snnp.training import TrainConfig

__all__ = ["Bars", "DistilSettings", "NamedSettings"]


class Bars(BaseModel):
    """What a student must reach to be accepted; None asks for nothing, and what cannot be measured is not reached.

    `force_mae`, `force_rmse` (eV/Å, at most) and `force_cosine` (at least): against the teacher on held-out structures.
    `reference_force_ratio`: at most, the student's force MAE on reference data over the teacher's own there.
    `baseline_force_ratio`: likewise, over that of an equal student that learned labels of the data without a teacher.
    `lattice_constant`, `elastic`: at most, relative deviation from the teacher's lattice constants (of compounds, too),
    and of elastic constants relative to its bulk modulus. `formation_energy` (meV/atom), `bulk_modulus` (relative): at
    most, deviations of compounds. `extensivity`: meV/atom, at most, by which a doubled cell or two parts far apart miss
    the sum. `nve_drift`: meV/atom/ns, at most. `hot_md`: whether a run at 1.5 times the temperature of
    `Crystal.temperature` (molecules: 500 K) must not blow up. `rdf_overlap`: at least, of the liquids' radial
    distributions (elements only; the teacher runs for up to ten minutes, where this bar is set). `speedup`: at least,
    over the teacher. `memory`: MB, at most, of a process with the student.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    force_mae: float | None = Field(None, gt=0.0)
    force_rmse: float | None = Field(None, gt=0.0)
    force_cosine: float | None = Field(0.95, le=1.0)
    reference_force_ratio: float | None = Field(None, gt=0.0)
    baseline_force_ratio: float | None = Field(None, gt=0.0)
    lattice_constant: float | None = Field(None, gt=0.0)
    elastic: float | None = Field(None, gt=0.0)
    formation_energy: float | None = Field(None, gt=0.0)
    bulk_modulus: float | None = Field(None, gt=0.0)
    extensivity: float | None = Field(None, gt=0.0)
    nve_drift: float | None = Field(None, gt=0.0)
    hot_md: bool = True
    rdf_overlap: float | None = Field(None, gt=0.0, le=1.0)
    speedup: float | None = Field(None, gt=0.0)
    memory: float | None = Field(None, gt=0.0)


STRONGEST = 30.0
"""eV/Å: labels with larger forces are neither learned nor compared."""
ATOMIC_ENERGY_WEIGHT = 1.0
"""Of `teacher-student`, beside 1 for forces: a third of that of Matin et al. (100 beside 30), by the study of it."""
CHANGEABLE = ("reference", "bars", "workers", "threads", "most_failures")
"""Settings that may be others when a run is resumed: they change neither structures nor labels nor student."""


class NamedSettings(BaseModel):
    """Settings whose faults are a `ConfigError` that names the key, and what was expected; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            kind, key, why, got = first_fault(error)
            if kind == "extra_forbidden":
                raise ConfigError(f"unknown key {key!r}.{near_matches(key, type(self).model_fields)}") from None
            raise ConfigError(f"{key}: {why} (got {got!r})." if key else f"{why}.") from None


class DistilSettings(NamedSettings):
    """Everything that determines a distillation; each field says what it is.

    Raises:
        ConfigError: names the key, and what was expected.
    """

    teachers: tuple[str, ...] = Field(min_length=1, description="Models of snnp, or ASE calculators as module:callable")
    python: str | None = Field(None, description="Interpreter in which calculators run; by default this one")
    kwargs: dict[str, JsonValue] | list[dict[str, JsonValue]] | None = Field(
        None, description="Keyword arguments of the calculators as JSON; a list gives each its own"
    )
    elements: tuple[str, ...] = Field((), description="Symbols, of which structures are made")
    crystals: tuple[str, ...] = Field(
        (),
        description="Files of crystals of these elements (CIF, POSCAR, ...), for which the student is made above all",
    )
    data: tuple[str, ...] = Field((), description="Files or datasets whose structures are labelled")
    molecules: tuple[str, ...] = Field(
        (),
        description="Files of molecules, lists of SMILES (*.smi), SMILES, or g2: displaced, brought together and run",
    )
    apart: tuple[str, ...] = Field(
        (),
        description="Molecules and, as SMILES with a dot, pairs of them that are not sampled, such as those of a test",
    )
    budget: int = Field(400, ge=1, description="Number of labels in all")
    rounds: int = Field(2, ge=0, le=20, description="How often the student's own dynamics give more structures")
    method: Literal["labels", "teacher-student", "ekd", "self"] = Field(
        "labels",
        description="labels: energies, forces and stresses of the teacher; teacher-student: its energies of single "
        "atoms too, beside the labels of the data where these have some; ekd: energies of the data, mean forces of the "
        "teachers; self: the data, and beside them copies, shaken and strained, with the mean of several equal models",
    )
    student: dict[str, JsonValue] = Field(
        default_factory=dict, description="A training configuration without data; everything has a default"
    )
    reference: tuple[str, ...] = Field(
        (), description="Reference data, never trained on, to which student and teacher are compared"
    )
    held_out: float = Field(0.1, gt=0.0, lt=0.9, description="Fraction of labels kept for the comparison")
    bars: Bars | None = Field(None, description="What the student must reach, such as force_cosine=0.98")
    workers: int = Field(1, ge=1, le=256, description="Processes of the teacher at the same time")
    threads: int = Field(1, ge=1, description="Threads of each")
    most_failures: float = Field(0.1, ge=0.0, le=1.0, description="Fraction of structures on which a teacher may fail")
    seed: int = Field(0, ge=0, description="Of all that is drawn")

    @model_validator(mode="after")
    def _check(self) -> DistilSettings:
        given = [name for name in ("elements", "data", "molecules") if getattr(self, name)]
        if len(given) != 1:
            said = f"{' and '.join(given)} were given" if given else "none was given"
            raise ValueError(f"structures come from one of elements, data and molecules; {said}")
        if self.crystals and not self.elements:
            raise ValueError("crystals stand beside elements: name the elements that are in them, too")
        if self.apart and not self.molecules:
            raise ValueError("apart keeps molecules out of what is sampled; it goes with molecules=...")
        if self.method == "ekd" and not self.data:
            raise ValueError("method ekd learns energies of reference data; name them with data=...")
        return self

    @property
    def wanted_bars(self) -> Bars:
        """Those that were set, or the usual ones of what is distilled."""
        crystals = {"lattice_constant": 0.01, "elastic": 0.15} if self.elements else {}
        return self.bars or Bars(nve_drift=None if self.data else 5.0, hot_md=not self.data, **crystals)

    def training(self, data: Path, epochs: float = 1.0, energy_scale: float | None = None) -> TrainConfig:
        """The configuration of a student's training on the parquet file of labels, or of a part of its `epochs`.

        `energy_scale` (eV/atom) is that of its loss, unless the settings name another.

        Raises:
            ConfigError: for keys that there are not, or data named beside the teacher's.
        """
        from snnp.training import load_config

        if "data" in self.student:
            raise ConfigError("student.data: the data are the teacher's labels; leave this group away.")
        tree: dict[str, Any] = {
            "loss": {"energy_weight": 30.0, "energy_weight_end": 300.0, "stress_weight": 300.0},
            "seed": self.seed,
            "threads": self.threads,
        }
        if self.method == "teacher-student":
            tree["loss"]["atomic_energy_weight"] = ATOMIC_ENERGY_WEIGHT
        if self.elements:  # what the teacher does not know of compression, the wall must hold in all directions
            tree["compression"] = {"share": 1.0, "levels": 36}
        if energy_scale is not None:
            tree["loss"]["energy_scale"] = round(energy_scale, 3)
        for key, value in self.student.items():
            inner = tree.get(key)
            tree[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
        # What lies beyond is no matter that holds together, and would be all that a squared error sees.
        # Labels come in ASE's units; frames that were drawn are no trajectory, of which these could be doubted.
        limits: dict[str, Any] = {"max_force": STRONGEST, "check_units": "off"}
        if self.elements:  # energies of molecules of other elements are hundreds of eV/atom apart
            limits["max_energy"] = 12.0
        tree["data"] = {"train": [f"{data}:train"], "valid": 0.05, **limits}
        tree["metadata"] = {"description": f"distilled from {', '.join(self.teachers)}", **tree.get("metadata", {})}
        config = load_config(tree)
        fewer = config.optimiser.model_copy(update={"epochs": max(1, round(epochs * config.optimiser.epochs))})
        return config.model_copy(update={"optimiser": fewer})

    def save(self, path: Path) -> None:
        """Write it as YAML."""
        write_atomically(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode())

    @classmethod
    def load(cls, path: Path) -> DistilSettings:
        """Read what `save` wrote.

        Raises:
            ConfigError: if it is missing or not understood.
        """
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path} cannot be read ({' '.join(str(error).split())}); is this a distillation?"
            ) from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} does not hold the settings of a distillation.")
        return cls(**tree)
