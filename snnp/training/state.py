"""The state of a run: weights, averaged weights, optimiser and counters in one file, replaced in one rename."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from snnp.errors import TrainingError
from snnp.files import write_atomically
from snnp.models.potential import Potential

__all__ = ["Counters", "TrainState", "load_state", "save_state"]

STATE_FILE = "state.safetensors"


@dataclass
class Counters:
    """How far a run is: finished epochs and steps, and the best validation so far."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_score: float = math.inf
    best_epoch: int = 0
    lowest_loss: float = math.inf


class TrainState:
    """Model, optimiser, moving average of the parameters, and counters of a run."""

    def __init__(self, model: Potential, optimiser: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimiser = optimiser
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.best = [p.detach().clone() for p in self.parameters]
        self.counters = Counters()

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


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for kind, values in (("average", state.average), ("best", state.best)):
        tensors.update({f"{kind}.{k}": value for k, value in enumerate(values)})
    for k, entry in state.optimiser.state_dict()["state"].items():
        tensors.update({f"optimiser.{k}.{name}": torch.as_tensor(value) for name, value in entry.items()})
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_state(state: TrainState, folder: Path) -> None:
    """Write everything needed to continue; the previous file stays until the new one is complete."""
    counters = json.dumps(asdict(state.counters))
    write_atomically(folder / STATE_FILE, save(_tensors(state), metadata={"counters": counters}))


def load_state(state: TrainState, folder: Path) -> bool:
    """Restore a state saved by `save_state`; False if the run was stopped before it saved any.

    Raises:
        TrainingError: if the file is damaged or belongs to another model.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    try:
        with safe_open(str(path), framework="pt") as handle:
            counters = Counters(**json.loads(handle.metadata()["counters"]))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
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
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path} cannot be continued from ({reason}); start the run anew.") from None
    state.counters = counters
    return True
