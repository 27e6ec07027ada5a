"""A variational autoencoder for curves: it keeps only as many latent variables as pay for what they tell.

    loss = mean_i (y_i - ŷ_i)² / var + β Σ_k KL(q(z_k | y) || N(0, 1))

Variables that tell too little stay at their prior and have no KL; the others are active. Layers are those of C. Miles
et al., Phys. Rev. B 104, 235111 (2021): dense, 240, 160, 80, 60 and back, batch normalisation, ReLU, softplus at last.
β rises from zero in the beginning, so that variables are found before they are paid for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from snnp.errors import InputError, TrainingError

__all__ = ["Autoencoder", "Encoded", "VAESettings", "train_autoencoder"]

_ACTIVE_NATS = 0.1  # mean KL; of variables at their prior it is below 0.01, of used ones above 0.5
_STEPS, _LEAST_EPOCHS = 4000, 100
_WIDEST = 50.0  # softplus and exp stay finite: log-variances are cut at plus and minus this


@dataclass(frozen=True)
class VAESettings:
    """How to train.

    Arguments:
        latents: variables offered. beta: what a nat of KL costs, in variances of the curves. epochs: times through all;
            default: as many as make 4,000 steps, and a hundred at least. ramp: share of the epochs in which β rises.
            batch: curves in a step, half of them at most. rate: of Adam at first, then a cosine. seed: of weights,
            order and noise.
    """

    latents: int = 10
    beta: float = 0.02
    epochs: int | None = None
    ramp: float = 0.3
    batch: int = 64
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"latents": (1, 100), "beta": (0.0, 10.0), "epochs": (1, 100_000), "ramp": (0.0, 1.0)}
        for name, (low, high) in {**ranges, "batch": (2, 100_000), "rate": (1e-6, 1.0)}.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} must lie between {low:g} and {high:g}, got {value}.")

    def passes(self, n: int) -> tuple[int, int, int]:
        """Epochs, steps of each, and curves in a step, for so many curves."""
        batch = min(self.batch, max(2, n // 2))
        steps = n // batch  # what is left over is another epoch's: the order is drawn anew
        return self.epochs or max(_LEAST_EPOCHS, math.ceil(_STEPS / steps)), steps, batch


@dataclass(frozen=True)
class Encoded:
    """Curves in latent variables.

    Arguments:
        mean: of each curve's distribution, shape (curves, latents). kl: of it and the prior, nats; same shape.
    """

    mean: np.ndarray
    kl: np.ndarray

    @property
    def nats(self) -> np.ndarray:
        """Mean KL of every variable."""
        return self.kl.mean(axis=0)

    @property
    def active(self) -> list[int]:
        """Variables that tell more than a tenth of a nat, those that tell most first."""
        order = np.argsort(-self.nats)
        return [int(k) for k in order if self.nats[k] > _ACTIVE_NATS]


def _layers(sizes: list[int]) -> list[nn.Module]:
    made: list[nn.Module] = []
    for before, after in pairwise(sizes):
        made += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return made


class Autoencoder(nn.Module):
    """Curves to distributions of latent variables, and back.

    Arguments:
        n_points: of a curve. n_latents: variables. lowest, scale: curves are taken as (y - lowest) / scale, which is
            not negative.
    """

    _HIDDEN = (240, 160, 80, 60)

    def __init__(self, n_points: int, n_latents: int, lowest: float, scale: float) -> None:
        super().__init__()
        self.lowest, self.scale = lowest, scale
        inner = self._HIDDEN[-1]
        self.encoder = nn.Sequential(*_layers([n_points, *self._HIDDEN]), nn.Linear(inner, 2 * n_latents))
        back = _layers([n_latents, *reversed(self._HIDDEN)])
        self.decoder = nn.Sequential(*back, nn.Linear(self._HIDDEN[0], n_points), nn.Softplus())

    def forward(self, curves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Curves anew (scaled), mean and log-variance of the variables; noise is drawn in training only."""
        mean, logs = self.encoder(curves).chunk(2, dim=1)
        logs = logs.clamp(-_WIDEST, _WIDEST)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * torch.exp(0.5 * logs)), mean, logs

    @torch.no_grad()
    def encode(self, curves: np.ndarray) -> Encoded:
        """Latent variables of curves, shape (curves, points)."""
        self.eval()
        mean, logs = self.encoder(self._scaled(curves)).chunk(2, dim=1)
        logs = logs.clamp(-_WIDEST, _WIDEST)
        return Encoded(mean.double().numpy(), _kl(mean, logs).double().numpy())

    @torch.no_grad()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Curves of latent variables, shape (curves, latents), in the units of those that it learned."""
        self.eval()
        found = self.decoder(torch.as_tensor(latents, dtype=torch.float32)).double().numpy()
        return np.asarray(found * self.scale + self.lowest)

    def _scaled(self, curves: np.ndarray) -> torch.Tensor:
        return torch.as_tensor((curves - self.lowest) / self.scale, dtype=torch.float32)


def _kl(mean: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    return 0.5 * (mean**2 + torch.exp(logs) - 1.0 - logs)


def train_autoencoder(
    curves: np.ndarray, settings: VAESettings | None = None, report: Callable[[int, float], None] | None = None
) -> Autoencoder:
    """Learn a family of curves.

    Arguments:
        curves: shape (curves, points), finite, not all the same. report: called with the epoch and its mean loss.

    Returns:
        The trained network; the same for the same settings and numbers of threads.

    Raises:
        InputError: for fewer curves than latent variables, or curves that are all the same.
        TrainingError: where the loss is not finite.
    """
    settings = settings or VAESettings()
    n, points = curves.shape
    if n < max(settings.latents, 4):
        raise InputError(
            f"{n} curves to learn from are fewer than {max(settings.latents, 4)} (latent variables, four at least); "
            "give more curves, or ask for fewer with --latents."
        )
    spread = float(np.sqrt(curves.var(axis=0).mean()))
    if not spread > 1e-9 * float(np.abs(curves).max()):
        raise InputError("all curves are the same, so nothing lies behind them; give curves that differ.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Autoencoder(points, settings.latents, float(curves.min()), spread)
        _train(model, model._scaled(curves), settings, report)
    return model.eval()


def _train(
    model: Autoencoder,
    curves: torch.Tensor,
    settings: VAESettings,
    report: Callable[[int, float], None] | None,
) -> None:
    epochs, steps, batch = settings.passes(len(curves))
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    ramp = max(1.0, settings.ramp * epochs)
    model.train()
    for epoch in range(epochs):
        beta = settings.beta * min(1.0, epoch / ramp)
        order, total = torch.randperm(len(curves)), 0.0
        for step in range(steps):
            part = curves[order[step * batch : (step + 1) * batch]]
            found, mean, logs = model(part)
            loss = ((found - part) ** 2).mean() + beta * _kl(mean, logs).sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise TrainingError(f"the loss is {total} in epoch {epoch + 1}; lower the rate, or look at the curves.")
        if report is not None:
            report(epoch + 1, total / steps)
