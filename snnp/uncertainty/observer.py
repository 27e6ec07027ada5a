"""An eye on the uncertainty of atoms that another program moves; the plugins for ASE and OpenMM give it their own form.

Each look appends a row to a CSV file (step, time, the largest uncertainty of an atom, the mean), and beyond a limit
ends the run or keeps the structure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ase import Atoms

from snnp.errors import ConfigError, InputError, SnnpError
from snnp.hub import load_model
from snnp.models.potential import Potential
from snnp.uncertainty.harvest import Harvest
from snnp.uncertainty.measures import Doubt, Measure, measure_for

__all__ = ["TooUncertainError", "Watch"]


class TooUncertainError(SnnpError):
    """A run met atoms beyond the limit that was set for it; `doubt` holds their uncertainty, `step` when."""

    def __init__(self, message: str, doubt: Doubt, step: int) -> None:
        super().__init__(message)
        self.doubt, self.step = doubt, step


class Watch:
    """Looks at structures, and does what was asked for beyond a limit.

    Arguments:
        model: an ensemble or a HIP-NN, by name, folder or itself; or a `Measure`, such as
            `FeatureDistance(model, training)`.
        log: CSV file of the looks. limit: uncertainty of an atom that is too large. Both are in the
            measure's unit, eV/Å for ensembles.
        on_limit: `log` (nothing happens), `stop` (`TooUncertainError`), or `harvest` into the extended XYZ file
            `harvest`. Both files begin anew.

    Raises:
        ConfigError: for arguments that do not go together.
        InputError: for a model that has no sign of its own uncertainty, and for files in folders that are not there.
    """

    def __init__(
        self,
        model: str | Path | Potential | Measure,
        *,
        log: str | Path | None = None,
        limit: float | None = None,
        on_limit: Literal["log", "stop", "harvest"] = "log",
        harvest: str | Path | None = None,
    ) -> None:
        if on_limit not in ("log", "stop", "harvest"):
            raise ConfigError(f"on_limit is log, stop or harvest, got {on_limit!r}.")
        if limit is not None and not limit > 0.0:
            raise ConfigError(f"limit must be positive, got {limit!r}; for ensembles it is in eV/Å.")
        if on_limit != "log" and limit is None:
            raise ConfigError(f"on_limit {on_limit!r} needs a limit; give one, such as limit=0.3 (eV/Å).")
        if (on_limit == "harvest") != (harvest is not None):
            raise ConfigError("on_limit 'harvest' and the file harvest go together; give both or neither.")
        if isinstance(model, str | Path):
            model = load_model(model)
        self.measure: Measure = measure_for(model) if isinstance(model, Potential) else model
        self.limit, self._stops = limit, on_limit == "stop"
        for name, file in (("log", log), ("harvest", harvest)):
            if file is not None and not Path(file).parent.is_dir():
                raise InputError(f"{name}: the folder of {file} does not exist; make it, or name another.")
        self._harvest = None if harvest is None else Harvest(harvest)
        if self._harvest is not None:
            self._harvest.begin()
        self._log = None if log is None else Path(log)
        if self._log is not None:
            self._log.write_text("step,time_ps,uncertainty,mean\n")

    def look(self, atoms: Atoms, step: int, time_ps: float) -> Doubt:
        """Uncertainty of the atoms; their array `uncertainty` holds it afterwards.

        Raises:
            TooUncertainError: beyond the limit, where that is to end the run.
        """
        doubt = self.measure(atoms)
        atoms.arrays["uncertainty"] = doubt.atoms
        if self._log is not None:
            mean = doubt.atoms.mean() if len(doubt.atoms) else 0.0
            with self._log.open("a") as stream:
                stream.write(f"{step},{time_ps:.6g},{doubt.structure:.6g},{mean:.6g}\n")
        if self.limit is not None and doubt.structure > self.limit:
            if self._harvest is not None:
                self._harvest.add(atoms, doubt, step, self.measure)
            if self._stops:
                where = int(doubt.atoms.argmax())
                value = f"{doubt.structure:.4g} {self.measure.unit}".rstrip()
                raise TooUncertainError(
                    f"step {step}: the {self.measure.name} of atom {where} is {value}, more than {self.limit:g}.",
                    doubt,
                    step,
                )
        return doubt
