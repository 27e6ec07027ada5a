"""What a molecular dynamics run is asked to do, in terms that every engine understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snnp.errors import ConfigError, near_matches
from snnp.units import GPA_IN_EV_PER_ANGSTROM3

__all__ = ["MDSettings"]

_FORMATS = (".extxyz", ".xyz", ".dcd", ".xtc")
_COMPRESSIBILITY = 0.01 / GPA_IN_EV_PER_ANGSTROM3
"""1 / (100 GPa), in the range of metals and semiconductors; it sets nothing but the meaning of `barostat_time_fs`."""

_EQUILIBRATION_FS, _EQUILIBRATION_OF_BOX = 100.0, 0.3
"""fs, and in units of the barostat's time; `snnp.sampling.thermostats.bath` says how."""


class MDSettings(BaseModel):
    """Settings of a molecular dynamics run; the same for every engine.

    Arguments:
        ensemble: `"nve"`, `"nvt"` (with a thermostat) or `"npt"` (with a thermostat and a barostat).
        temperature_k: K; the thermostat's, and that of the initial velocities (also in `nve`).
        temperature_end_k: K; the thermostat goes there from `temperature_k`, linearly in time, over the run.
        thermostat: `"langevin"`, or `"bussi"` (stochastic velocity rescaling, which keeps the total momentum).
        pressure_gpa: GPa; the barostat's target in `npt`, 1 bar = 1e-4 GPa.
        barostat: `"isotropic"` (the cell keeps its shape), or `"anisotropic"` (three lengths of a rectangular cell).
        fix: atoms that stay where they are, such as `"Cu,0-15,20"`; FixAtoms constraints of the structure count, too.
        equilibrate: first steps, run with strong Langevin friction in every ensemble (and a fast barostat), and left
            out of all means. By default 0.1 ps (in `npt` 0.3 `barostat_time_fs`, if that is longer) where velocities
            are drawn; none in `nve`, or if the structure has velocities.
        steps: number of the last step. A resumed run goes on to this step, it does not add to it.
        dt_fs: time step, fs.
        friction_per_ps: rate of the thermostat, 1/ps: Langevin friction, or 1 / relaxation time of `"bussi"`.
        barostat_time_fs: time in which a box with a bulk modulus of 100 GPa relaxes, fs.
        seed: of the initial velocities and the thermostat.
        trajectory: file to write; its suffix chooses extended XYZ (`.extxyz`, `.xyz`), `.dcd` or `.xtc`.
        log: CSV file to write.
        plot: PNG file to write at the end.
        checkpoint: NPZ file to write, and to read where `resume` is set.
        trajectory_interval: steps between frames (and step 0).
        log_interval: steps between rows (and step 0).
        checkpoint_interval: steps between checkpoints (and at the end).
        resume: continue from `checkpoint`; trajectory and log are cut back to it, so nothing is doubled or lost.
        accept_changes: resume although settings differ from those of the run; the checkpoint records what changed.
        new_velocities: draw velocities although the structure brings momenta.
        overwrite: replace files that exist; False refuses.
        dtype: precision of the model.
        device: where the model runs; `None` leaves it to the engine.

    Raises:
        ConfigError: on an unknown key (with the nearest known one) or a wrong value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    temperature_k: float = Field(default=300.0, ge=0.0, allow_inf_nan=False)
    temperature_end_k: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    thermostat: Literal["langevin", "bussi"] = "langevin"
    pressure_gpa: float = Field(default=0.0, allow_inf_nan=False)
    barostat: Literal["isotropic", "anisotropic"] = "isotropic"
    fix: str | None = None
    equilibrate: int | None = Field(default=None, ge=0)
    steps: int = Field(default=1000, ge=0)
    dt_fs: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    friction_per_ps: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    barostat_time_fs: float = Field(default=1000.0, gt=0.0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**31)
    trajectory: Path | None = None
    log: Path | None = None
    plot: Path | None = None
    checkpoint: Path | None = None
    trajectory_interval: int = Field(default=100, ge=1)
    log_interval: int = Field(default=10, ge=1)
    checkpoint_interval: int = Field(default=1000, ge=1)
    resume: bool = False
    accept_changes: bool = False
    new_velocities: bool = False
    overwrite: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    device: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None

    @model_validator(mode="after")
    def _check_together(self) -> MDSettings:
        if self.trajectory is not None and self.trajectory.suffix.lower() not in _FORMATS:
            raise ValueError(f"trajectory '{self.trajectory}' has no known suffix; use one of {', '.join(_FORMATS)}")
        if self.resume and self.checkpoint is None:
            raise ValueError("resume needs a checkpoint; name the file with checkpoint=...")
        if self.ensemble != "nve" and self.temperature_k == 0.0:
            raise ValueError(f"temperature_k must be positive for ensemble '{self.ensemble}', got 0")
        if self.temperature_end_k is not None and (self.ensemble == "nve" or self.steps == 0):
            reason = "are no steps" if self.steps == 0 else "is no thermostat (ensemble 'nve')"
            raise ValueError(f"temperature_end_k asks for a ramp, but there {reason}")
        if self.equilibrate and self.temperature_k == 0.0:
            raise ValueError("equilibrate needs a positive temperature_k, got 0")
        outputs = [path for path in (self.trajectory, self.log, self.plot, self.checkpoint) if path is not None]
        if len({path.resolve() for path in outputs}) < len(outputs):
            raise ValueError("trajectory, log, plot and checkpoint must be different files")
        return self

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
        if self.equilibrate is None:
            span = _EQUILIBRATION_FS
            if self.ensemble == "npt":
                span = max(span, _EQUILIBRATION_OF_BOX * self.barostat_time_fs)
            return round(span / self.dt_fs) if drawn and self.ensemble != "nve" else 0
        return self.equilibrate

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
        files = {name: getattr(self, name) for name in ("trajectory", "log", "plot", "checkpoint")}
        names = {name: None if path is None else path.name for name, path in files.items()}
        return {"steps": self.steps, "checkpoint_interval": self.checkpoint_interval, **names}


def _one_line(error: ValidationError) -> str:
    """The first of pydantic's findings as one sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown molecular dynamics setting '{key}'.{near_matches(key, MDSettings.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message + "."
    return f"molecular dynamics setting '{key}': {message[0].lower()}{message[1:]}, got {first['input']!r}."
