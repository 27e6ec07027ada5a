"""What a molecular dynamics run is asked to do, in terms that every engine understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from snnp.errors import ConfigError, first_fault, near_matches
from snnp.units import GPA_IN_EV_PER_ANGSTROM3

__all__ = ["MDSettings"]

_FORMATS = (".extxyz", ".xyz", ".dcd", ".xtc")
_OUTPUTS = ("trajectory", "log", "plot", "checkpoint", "harvest")
_WATCHING = ("watch", "limit", "on_limit")
_COMPRESSIBILITY = 0.01 / GPA_IN_EV_PER_ANGSTROM3
"""1 / (100 GPa), in the range of metals and semiconductors; it sets nothing but the meaning of `barostat_time_fs`."""

_EQUILIBRATION_FS, _EQUILIBRATION_OF_BOX = 100.0, 0.3
"""fs, and in units of the barostat's time; `snnp.sampling.thermostats.Ensemble.bath` says how."""


class MDSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Settings of a molecular dynamics run; the same for every engine."""

    ensemble: Literal["nve", "nvt", "npt"] = Field(
        "nvt", description="Constant energy, temperature (a thermostat), or temperature and pressure (and a barostat)"
    )
    temperature_k: float = Field(300.0, ge=0.0, description="Of start and thermostat, in K; of the start in nve, too")
    temperature_end_k: float | None = Field(
        None, gt=0.0, description="Where the thermostat goes from there, linearly in time over the run, in K"
    )
    thermostat: Literal["langevin", "bussi"] = Field(
        "langevin", description="Langevin friction and noise, or stochastic velocity rescaling, which keeps momentum"
    )
    pressure_gpa: float = Field(0.0, description="Of the barostat (npt), in GPa; 1 bar is 1e-4")
    barostat: Literal["isotropic", "anisotropic"] = Field(
        "isotropic", description="Scale the cell as a whole, or each length of a rectangular cell"
    )
    fix: str | None = Field(
        None,
        description="Atoms that stay where they are: elements, numbers, ranges; such as Cu,0-15,20. FixAtoms "
        "constraints of the structure count, too",
    )
    equilibrate: int | None = Field(
        None,
        ge=0,
        description="First steps, with a strong thermostat (and a fast barostat) and left out of all means; default: "
        "0.1 ps or more in nvt and npt if velocities are drawn, else none",
    )
    steps: int = Field(1000, ge=0, description="Number of the last step, resumed runs included")
    dt_fs: float = Field(1.0, gt=0.0, description="Time step in fs")
    friction_per_ps: float = Field(
        1.0, gt=0.0, description="Rate of the thermostat: friction, or 1 / relaxation time, in 1/ps"
    )
    barostat_time_fs: float = Field(1000.0, gt=0.0, description="In which a box of bulk modulus 100 GPa relaxes, in fs")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the initial velocities and the thermostat")
    trajectory: Path | None = Field(None, description="Frames; the file ends in .extxyz, .xyz, .dcd or .xtc")
    log: Path | None = Field(None, description="CSV log")
    plot: Path | None = Field(None, description="PNG of temperature, energy and RDF, made at the end")
    checkpoint: Path | None = Field(None, description="NPZ file with the state, to resume from")
    trajectory_interval: int = Field(100, ge=1, description="Steps between frames of the trajectory")
    log_interval: int = Field(10, ge=1, description="Steps between rows of the log")
    checkpoint_interval: int = Field(1000, ge=1, description="Steps between checkpoints; there is one at the end, too")
    resume: bool = Field(
        False, description="Continue from the checkpoint; trajectory and log are cut back to it, so nothing is doubled"
    )
    accept_changes: bool = Field(
        False, description="When resuming, settings may differ from the run's; the checkpoint records what changed"
    )
    new_velocities: bool = Field(False, description="Draw velocities though the structure brings some")
    overwrite: bool = Field(True, description="Replace output files that exist; never an input")
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the model: float32 or float64")
    device: str | None = Field(None, description="Where the model runs: cpu, cuda, cuda:1; else the engine chooses")
    watch: str | None = Field(None, description="Watched besides: uncertainty, or a file of training structures")
    limit: float | None = Field(None, gt=0.0, description="Uncertainty of an atom (eV/Å) that is too large")
    on_limit: Literal["stop", "harvest", "log"] = Field("log", description="What happens at a step beyond the limit")
    harvest: Path | None = Field(None, description="Structures beyond the limit, for snnp active and snnp distill")
    ranks: int | None = Field(None, ge=1, description="Processes of MPI, which engine lammps alone has")

    def __init__(self, **values: Any) -> None:
        """Raises `ConfigError` on an unknown key (with the nearest known one) or a wrong value."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            kind, key, why, got = first_fault(error)
            said = f"molecular dynamics setting '{key}': {why[0].lower()}{why[1:]}, got {got!r}." if key else f"{why}."
            if kind == "extra_forbidden":
                said = f"unknown molecular dynamics setting '{key}'.{near_matches(key, MDSettings.model_fields)}"
            raise ConfigError(said) from None

    @model_validator(mode="after")
    def _check_together(self) -> MDSettings:
        if self.trajectory is not None and self.trajectory.suffix.lower() not in _FORMATS:
            raise ValueError(f"trajectory '{self.trajectory}' has no known suffix; use one of {', '.join(_FORMATS)}")
        if self.watch is None and (self.limit is not None or self.on_limit != "log"):
            raise ValueError("limit and on_limit are about what is watched; say watch=uncertainty, too")
        if self.on_limit != "log" and self.limit is None:
            raise ValueError(f"on_limit '{self.on_limit}' needs a limit; give one in eV/Å, such as limit=0.3")
        if (self.on_limit == "harvest") != (self.harvest is not None):
            raise ValueError("on_limit 'harvest' and the file harvest go together; give both or neither")
        if self.resume and self.checkpoint is None:
            raise ValueError("resume needs a checkpoint; name the file with checkpoint=...")
        if self.ensemble != "nve" and self.temperature_k == 0.0:
            raise ValueError(f"temperature_k must be positive for ensemble '{self.ensemble}', got 0")
        if self.temperature_end_k is not None and (self.ensemble == "nve" or self.steps == 0):
            reason = "are no steps" if self.steps == 0 else "is no thermostat (ensemble 'nve')"
            raise ValueError(f"temperature_end_k asks for a ramp, but there {reason}")
        if self.equilibrate and self.temperature_k == 0.0:
            raise ValueError("equilibrate needs a positive temperature_k, got 0")
        if len({path.resolve() for path in self.outputs.values()}) < len(self.outputs):
            raise ValueError("trajectory, log, plot and checkpoint must be different files")
        return self

    @property
    def outputs(self) -> dict[str, Path]:
        return {name: path for name in _OUTPUTS if (path := getattr(self, name)) is not None}

    @property
    def binary(self) -> bool:
        """Whether the trajectory holds positions and cells alone, with one time step and interval for all."""
        return self.trajectory is not None and self.trajectory.suffix.lower() in _FORMATS[2:]

    @property
    def barostat_rate(self) -> float:
        """How far the barostat moves ln V in a step per pressure, Å³/eV: compressibility over time scale times step."""
        return _COMPRESSIBILITY * self.dt_fs / self.barostat_time_fs

    def temperature_at(self, step: int) -> float:
        """Temperature of the thermostat in the step that begins at `step`, K."""
        if self.temperature_end_k is None:
            return self.temperature_k
        return self.temperature_k + (self.temperature_end_k - self.temperature_k) * step / self.steps

    def equilibration(self, *, drawn: bool) -> int:
        """Steps that count as equilibration; drawn: whether the initial velocities were."""
        if self.equilibrate is not None:
            return self.equilibrate
        box = _EQUILIBRATION_OF_BOX * self.barostat_time_fs if self.ensemble == "npt" else 0.0
        return round(max(_EQUILIBRATION_FS, box) / self.dt_fs) if drawn and self.ensemble != "nve" else 0

    def defining(self) -> dict[str, Any]:
        """The settings that must stay the same when a run is resumed, as JSON values."""
        names = (
            "ensemble temperature_k temperature_end_k thermostat pressure_gpa barostat fix equilibrate dt_fs "
            "friction_per_ps barostat_time_fs seed trajectory_interval log_interval dtype"
        )
        if self.temperature_end_k is not None:
            names += " steps"  # another end would be another ramp
        return {name: getattr(self, name) for name in names.split()}

    def plan(self) -> dict[str, Any]:
        """What a resumed run takes over where it is not told otherwise, beside `defining`, as JSON values."""
        files = dict.fromkeys(_OUTPUTS) | {name: path.name for name, path in self.outputs.items()}
        watching = {name: getattr(self, name) for name in _WATCHING} if self.watch else {}
        return {"steps": self.steps, "checkpoint_interval": self.checkpoint_interval, **watching, **files}
