"""What a run keeps of its way: the state to continue from, in one file that is replaced in one rename, and metrics."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from snnp.errors import ConfigError, TrainingError
from snnp.files import naming, write_atomically
from snnp.models.potential import Potential

__all__ = ["METRICS_FILE", "STATE_FILE", "Counters", "TrainState", "append_metrics", "load_state", "save_state"]
__all__ += ["truncate_metrics"]

_log = logging.getLogger(__name__)

STATE_FILE, METRICS_FILE = "state.safetensors", "metrics.csv"
_COLUMNS = (
    *("epoch", "step", "learning_rate", "train_loss"),
    *("valid_energy_mae_mev_per_atom", "valid_force_mae_ev_per_angstrom", "seconds"),
)


@dataclass(config=ConfigDict(extra="forbid"))
class Counters:
    """How far a run is: finished epochs and steps, and the best validation so far."""

    epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0
    best_score: NonNegativeFloat = math.inf
    best_epoch: NonNegativeInt = 0
    lowest_loss: NonNegativeFloat = math.inf


class TrainState:
    """Model, optimiser, moving average of the parameters, and counters of a run.

    `run`: what must be the same when the run is continued, as JSON values.
    """

    def __init__(
        self, model: Potential, optimiser: torch.optim.Optimizer, run: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.optimiser, self.run = model, optimiser, dict(run or {})
        self.counters = Counters()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average, self.best = ([p.detach().clone() for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters; early on faster, so that it forgets the random start."""
        decay = min(decay, self.counters.step / (self.counters.step + 10.0))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    @torch.no_grad()
    def swap(self, values: list[Tensor]) -> list[Tensor]:
        """Put values into the model and return those that were there."""
        before = [p.detach().clone() for p in self.parameters]
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
        return before


def save_state(state: TrainState, folder: Path) -> None:
    """Write everything needed to continue; the previous file stays until the new one is complete."""
    metadata = {"counters": json.dumps(asdict(state.counters)), "run": json.dumps(state.run)}
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for kind, values in (("average", state.average), ("best", state.best)):
        tensors |= {f"{kind}.{k}": value for k, value in enumerate(values)}
    for k, entry in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{k}.{name}": torch.as_tensor(value) for name, value in entry.items()}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata=metadata)
    write_atomically(folder / STATE_FILE, content)


def load_state(state: TrainState, folder: Path) -> bool:
    """Restore a state saved by `save_state`; False if the run was stopped before it saved any.

    Raises `TrainingError` if the file is damaged, holds NaN, or belongs to another model; `ConfigError` if it belongs
    to another configuration.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata()
            counters = Counters(**json.loads(metadata["counters"]))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        _check_same_run(state.run, json.loads(metadata.get("run", "null")), folder)
        if spoiled := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(f"{spoiled[0]} holds NaN or infinity: the run had diverged when it was written")
        state.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        device = state.parameters[0].device
        for kind, values in (("average", state.average), ("best", state.best)):
            for k, value in enumerate(values):
                value.copy_(tensors[f"{kind}.{k}"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, k, key = name.split(".")
                # Step counters stay on the CPU wherever the parameters live.
                entries.setdefault(int(k), {})[key] = tensor if key == "step" else tensor.to(device)
        description = state.optimiser.state_dict()
        state.optimiser.load_state_dict({"state": entries, "param_groups": description["param_groups"]})
    except ConfigError:
        raise
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path} cannot be continued from ({reason}); start the run anew.") from None
    state.counters = counters
    return True


def _check_same_run(now: dict[str, Any], before: dict[str, Any] | None, folder: Path) -> None:
    """Compare what must be the same; states of early versions do not say it."""
    if before is None:
        _log.warning("%s does not say with which configuration it was run; see that it is the same.", folder)
        return
    new, old = _flat(json.loads(json.dumps(now))), _flat(before)
    for key in [*new, *old]:
        if new.get(key) != old.get(key):
            raise ConfigError(
                f"{key} is {new.get(key)!r} now, but the run in {folder} was begun with {old.get(key)!r}; put it back, "
                "or start a new run."
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def append_metrics(folder: Path, row: tuple[float | None, ...]) -> None:
    path = folder / METRICS_FILE
    heading = [] if path.exists() else [_COLUMNS]
    with naming(path), path.open("a", newline="") as handle:
        csv.writer(handle).writerows([*heading, ["" if value is None else f"{value:.8g}" for value in row]])


def truncate_metrics(folder: Path, epoch: int) -> None:
    """Drop rows of epochs that the saved state does not know: they are computed again."""
    path = folder / METRICS_FILE
    if not path.exists():
        return
    content = path.read_bytes().decode(errors="replace").replace("\0", "")
    rows = [row for row in csv.reader(io.StringIO(content)) if len(row) == len(_COLUMNS)]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= epoch]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_COLUMNS, *kept])
    write_atomically(path, text.getvalue().encode())
