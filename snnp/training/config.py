"""The configuration of a training run: one typed value, read from YAML and changed by `key=value`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError
from pydantic.functional_serializers import PlainSerializer
from pydantic.functional_validators import PlainValidator, field_validator, model_validator

from snnp.data import Keys, Units, keys_of
from snnp.errors import ConfigError, first_fault
from snnp.models.config import FamilyConfig
from snnp.models.families import FAMILIES
from snnp.models.spline.config import SplineNNPConfig
from snnp.text import nested, one_line
from snnp.training.compressed import CompressionConfig

__all__ = ["DataConfig", "LossConfig", "ModelConfig", "OptimiserConfig", "TrainConfig", "keys_meant", "load_config"]

# What other programs call the same thing.
_SYNONYMS = {
    "data.elements": "species chemical_symbols type_map atomic_numbers type_names",
    "data.energy_key": "energy energy_name",
    "data.forces_key": "forces force_key forces_name",
    "data.isolated_atoms": "e0s e0 isolated atomic_energies",
    "data.stress_key": "stress virial_key virials_key",
    "data.test": "test_file test_set test_data test_fraction",
    "data.train": "train_file train_set training training_data training_set dataset data_file n_train",
    "data.valid": "valid_file validation valid_fraction validation_fraction val val_file valid_set n_val valid_split",
    "dtype": "precision default_dtype",
    "start": "from pretrained init_model finetune foundation_model restart restore",
    "freeze": "frozen freeze_layers fix",
    "device": "gpu cuda accelerator",
    "loss.atomic_energy_weight": "w_atomic atomic_energies atom_ener atom_ener_weight start_pref_ae energies_weight",
    "loss.energy_weight": "w_energy energy energy_coeff energy_coefficient weight_energy energy_loss_weight",
    "loss.force_weight": "w_forces forces_weight forces forces_coeff weight_forces force_coefficient",
    "loss.stress_weight": "w_stress stress virial_weight weight_stress",
    "model.angular.degree": "l_max lmax max_ell degree max_l",
    "model.angular.cutoff": "cutoff r_max rcut r_cut cutoff_radius angular_cutoff",
    "model.family": "architecture model_type type model_class",
    "model.network.hidden": "hidden layers mlp hidden_layers hidden_sizes hidden_features width n_neurons",
    "model.radial.cutoff": "cutoff r_max rcut r_cut cutoff_radius radial_cutoff",
    "model.radial.n_filters": "n_radial num_radial n_filters num_basis n_max",
    "model.angular.n_filters": "n_angular num_angular n_filters",
    "optimiser": "optimizer optim training trainer",
    "optimiser.batch_atoms": "batch_size batchsize batch",
    "optimiser.ema_decay": "ema",
    "optimiser.epochs": "n_epochs max_epochs num_epochs max_num_epochs epoch steps n_steps max_steps",
    "optimiser.final_learning_rate": "min_lr lr_min eta_min final_lr",
    "optimiser.gradient_clip": "clip_grad max_grad_norm grad_clip gradient_clip_val clip",
    "optimiser.learning_rate": "lr rate learningrate step_size",
    "optimiser.method": "optimizer algorithm optimizer_name",
    "optimiser.warmup_steps": "warmup warmup_epochs",
    "optimiser.weight_decay": "l2 wd",
    "seed": "random_seed rng_seed dataset_seed",
    "threads": "num_threads n_threads n_jobs num_workers cores",
    "validate_every": "eval_interval validation_interval val_every check_val_every_n_epoch",
}


# Å. The error of the difference grows with the square of the displacement, that of rounding with its inverse: here
# they are 2e-3 of the gradient or less in float32, 1e-8 in float64, for every family (docs/studies/directional.md).
_DISPLACEMENT = {"float32": 1e-3, "float64": 1e-5}
_MOST_VALUES, _DEEPEST = 100_000, 32


class DataConfig(BaseModel, extra="forbid", frozen=True):
    """Where reference data come from: files, or datasets (`org/name`, a folder, a parquet file; `org/name:split`).

    Paths may use environment variables (`$SNNP_DATA`) and `~`. Datasets that name no split give `train`, `valid`,
    `test` or `isolated_atoms` where that key asks for it and they have it, else everything.

    `valid`: files, or the fraction of `train` held out for choosing the best weights. `test`: files never trained on,
    or a fraction. `forces_only`: more training files whose energies are ignored (another zero of energy, another
    cutoff of the reference method). `isolated_atoms`: a file of single atoms that fixes E0 (otherwise least squares).
    `units`: of the numbers in files, where they are not eV and Å: `{energy: kcal/mol}` (forces and stresses follow from
    energy and length unless `forces`, `stress` say otherwise), `{energy: Hartree, length: bohr}`, `{stress: -kbar}`; a
    minus sign turns the sign. `check_units`: whether labels that do not belong together stop a run before it starts.
    Limits, applied to every set: `elements` keeps frames made of these elements only, `max_energy` those whose energy
    per atom lies at most this far (eV) above the lowest one (`test_max_energy`: in the test set, where that is to be
    narrower), `max_force` those without larger forces (eV/Å).
    `stream`: `train` is one dataset, larger than memory, whose frames are read anew in every epoch; valid and test sets
    are held in memory. E0, ranges, checks and the errors of the training set come from a sample of it.
    """

    train: tuple[str, ...]
    valid: float | str | tuple[str, ...] = 0.05
    test: float | str | tuple[str, ...] | None = None
    stream: bool = False
    forces_only: tuple[str, ...] = ()
    elements: tuple[str, ...] | None = None
    isolated_atoms: str | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    group_key: str | None = None
    units: dict[str, str] | str | None = None
    check_units: Literal["error", "warn", "off"] = "error"
    max_energy: float | None = Field(None, gt=0.0)
    test_max_energy: float | None = Field(None, gt=0.0)
    max_force: float | None = Field(None, gt=0.0)

    @field_validator("train", "forces_only", "elements", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def keys(self) -> Keys:
        """Names under which files hold their labels, and their units."""
        return keys_of(self.energy_key, self.forces_key, self.stress_key, self.group_key, self.units)

    @model_validator(mode="after")
    def _check_stream(self) -> DataConfig:
        if self.stream and (len(self.train) != 1 or self.forces_only or self.keys != Keys()):
            raise ValueError("data.stream takes one dataset as data.train, without forces_only, keys and units")
        return self

    @field_validator("units")
    @classmethod
    def _check_units(cls, value: dict[str, str] | str | None) -> dict[str, str] | str | None:
        if value is not None:
            Units.parse(value)
        return value


class LossConfig(BaseModel, extra="forbid", frozen=True):
    """Weights of the errors: energy in eV/atom, forces in eV/Å, stress in eV/Å³, energies of single atoms in eV.

    Each weight runs geometrically from `*_weight` to `*_weight_end` (None: constant). `shape`: "mse" squares errors,
    "huber" grows linearly beyond `energy_delta`, `force_delta`, `stress_delta`, `atomic_energy_delta`, which serves the
    mean absolute error. Energies of atoms are a teacher's; frames that lack them are learned without.
    `energy_scale`: frames an energy E per atom above the lowest weigh (energy_scale / (energy_scale + E))² times as
    much, in eV/atom, also in the validation that chooses the best epoch; None weighs all alike.
    `hierarchicality_weight`: of HIP-NN's mean hierarchicality (see `snnp.models.hipnn`), which other families lack.
    """

    energy_weight: float = Field(10.0, ge=0.0)
    energy_weight_end: float | None = None
    force_weight: float = Field(1.0, ge=0.0)
    force_weight_end: float | None = None
    stress_weight: float = Field(0.0, ge=0.0)
    stress_weight_end: float | None = None
    atomic_energy_weight: float = Field(0.0, ge=0.0)
    atomic_energy_weight_end: float | None = None
    shape: Literal["mse", "huber"] = "huber"
    energy_delta: float = Field(0.003, gt=0.0)
    force_delta: float = Field(0.3, gt=0.0)
    stress_delta: float = Field(0.002, gt=0.0)
    atomic_energy_delta: float = Field(0.1, gt=0.0)
    energy_scale: float | None = Field(None, gt=0.0)
    hierarchicality_weight: float = Field(0.0, ge=0.0)

    @property
    def teaches_atoms(self) -> bool:
        return self.atomic_energy_weight > 0.0 or (self.atomic_energy_weight_end or 0.0) > 0.0


class OptimiserConfig(BaseModel, extra="forbid", frozen=True):
    """SOAP or AdamW with linear warm-up and cosine decay of the learning rate, and a moving average of the weights.

    `force_training`: "exact" differentiates forces by the parameters, "directional" takes the difference of the energy
    gradients of two displaced copies (see `snnp.training.backends.through_torch`), "auto" what is faster for
    the family. `displacement`: Å, the farthest that a pair vector is displaced then; None chooses by `dtype`.
    """

    method: Literal["soap", "adamw"] = "soap"
    epochs: int = Field(200, ge=1)
    batch_atoms: int = Field(216, ge=1)
    learning_rate: float = Field(1e-2, gt=0.0)
    final_learning_rate: float = Field(1e-5, ge=0.0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0.0)
    gradient_clip: float = Field(10.0, gt=0.0)
    ema_decay: float = Field(0.995, ge=0.0, lt=1.0)
    divergence_factor: float = Field(1e4, gt=1.0)
    force_training: Literal["auto", "exact", "directional"] = "auto"
    displacement: float | None = Field(None, gt=0.0, le=0.1)


def _read_model(value: Any) -> Any:
    """The configuration of the family that `family` names; without it, of an s-NNP."""
    if isinstance(value, BaseModel):
        return value
    if not isinstance(value, dict):
        raise ValueError("expected a group of keys")
    tree = dict(value)
    family = tree.pop("family", "s-nnp")
    if family not in list(FAMILIES):
        raise ValueError(f"no family {family!r} of models; there are {', '.join(FAMILIES)}")
    return FAMILIES[family].config.model_validate(tree)


def _write_model(config: FamilyConfig) -> dict[str, Any]:
    return {"family": config.family, **config.model_dump(mode="json")}


ModelConfig = Annotated[FamilyConfig, PlainValidator(_read_model), PlainSerializer(_write_model, return_type=dict)]
"""The form of the model; its key `family` (s-nnp, hip-nn, ani; by default s-nnp) decides which other keys there are."""


class TrainConfig(BaseModel, extra="forbid", frozen=True):
    """Everything that determines a run; `ranges: auto` sets what follows from the shortest distance in the data.

    That is: lower ends of filters and the repulsion of an s-NNP, the innermost sensitivity of a HIP-NN, the shifts of
    an ANI. The key `model.family` ("s-nnp", "hip-nn", "ani") chooses the family, and with it the other keys of `model`.
    `start` names a model whose form, E0 and weights training goes on from; `model` is then not looked at. An s-NNP
    whose filters all elements share, or of one element, learns elements that it never saw. Where labels have another
    zero of energy, E0 follow it. `freeze`: "filters" leaves the filters of an s-NNP as they are and trains the readout,
    and a pair term where there is one; elements that the data lack then stay as they were.
    """

    data: DataConfig
    model: ModelConfig = SplineNNPConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    compression: CompressionConfig | None = CompressionConfig()
    start: str | None = None
    freeze: Literal["none", "filters"] = "none"
    ranges: Literal["auto", "given"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    validate_every: int = Field(5, ge=1)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def displacement(self) -> float | None:
        """Å by which directional training displaces pairs; None for exact training."""
        chosen = self.optimiser.force_training
        if chosen == "auto":
            chosen = self.model.force_training
        return (self.optimiser.displacement or _DISPLACEMENT[self.dtype]) if chosen == "directional" else None

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.loss.hierarchicality_weight > 0.0 and not self.model.penalises:
            raise ValueError("loss.hierarchicality_weight is for model.family hip-nn only; leave it at 0")
        if self.freeze != "none" and self.start is None:
            raise ValueError("freeze keeps what a model has learned; name the model with start (--from MODEL)")
        return self


def _known_keys(model: type[BaseModel], family: str, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        inside: tuple[Any, ...] = (field.annotation, *getattr(field.annotation, "__args__", ()))
        keys.append(f"{prefix}{name}")
        if model is TrainConfig and name == "model":
            keys.append("model.family")
            inside = (FAMILIES[family].config,)
        groups = (each for each in inside if isinstance(each, type) and issubclass(each, BaseModel))
        keys += [key for group in groups for key in _known_keys(group, family, f"{prefix}{name}.")]
    return keys


def keys_meant(key: str, family: str = "s-nnp") -> list[str]:
    """At most three keys of a configuration that an unknown one may stand for, the nearest first.

    Those of the same last name come first (`learning_rate` is `optimiser.learning_rate`), then what other programs call
    so (`lr`), then what is spelt alike; among these, keys of the same group.
    """
    known = _known_keys(TrainConfig, family)
    group, _, leaf = key.lower().rpartition(".")
    ends = {each: each.rpartition(".")[2] for each in known}
    same = [each for each in known if ends[each] == leaf]
    others = [each for each in known if leaf.replace("-", "_") in _SYNONYMS.get(each, "").split()]
    alike = difflib.get_close_matches(leaf, set(ends.values()), n=3, cutoff=0.6)
    spelt = [each for word in alike for each in known if ends[each] == word]
    found = list(dict.fromkeys([*same, *others, *spelt]))
    return sorted(found, key=lambda each: bool(group) and not each.startswith(f"{group}."))[:3]


def _set(tree: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {assignment!r}: expected key=value, such as --set optimiser.epochs=100.")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {assignment!r}: {parent!r} is not a group of keys.")
    try:
        node[last] = yaml.safe_load(text)
    except (OverflowError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {assignment!r}: {text!r} is not a YAML value ({one_line(error)}).") from None


def _hint(key: str, tree: dict[str, Any]) -> str:
    model = tree.get("model")
    family = model.get("family", "s-nnp") if isinstance(model, dict) else "s-nnp"
    meant = keys_meant(key, family if family in list(FAMILIES) else "s-nnp")
    return f". Did you mean {' or '.join(map(repr, meant))}?" if meant else "; the page on training lists all keys."


def _read(path: str | Path) -> Any:
    advice = "write one as shown by 'snnp train --help'"
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        list(nested(tree, _DEEPEST, _MOST_VALUES))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; {advice}.") from None
    except (OSError, OverflowError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config file {path} cannot be read as YAML: {one_line(error)}.") from None
    if not text.strip():
        raise ConfigError(f"config file {path} is empty; {advice}.")
    return tree


def load_config(source: str | Path | dict[str, Any], assignments: tuple[str, ...] | list[str] = ()) -> TrainConfig:
    """Read a YAML file (or take a mapping), apply `key=value` assignments, and validate.

    Raises `ConfigError`: one line that names the key, what was expected, and near matches of unknown keys.
    """
    tree = json.loads(json.dumps(source)) if isinstance(source, dict) else _read(source)
    where = "config" if isinstance(source, dict) else str(source)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must hold keys and values (data:, model:, ...), got {type(tree).__name__}.")
    for assignment in assignments:
        _set(tree, assignment)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        kind, key, why, got = first_fault(error)
        said = f"key {key!r}: {why} (got {got!r})." if key else f"{why}."  # none is named where it is about several
        if kind == "model_type":
            said = f"{key!r} must be a group of keys and values, got {got!r}."
        elif kind == "extra_forbidden":
            said = f"unknown key {key!r}{_hint(key, tree)}"
        raise ConfigError(f"{where}: {said}") from None
