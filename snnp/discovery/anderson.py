"""Spectral functions of the Anderson impurity model by Wilson's numerical renormalization group.

One level (energies ε_σ = ε - σB/2, repulsion U) hybridises with a flat band, D = 1 = half of its width:

    H = Σ_σ ε_σ n_σ + U n_↑ n_↓ + Σ_kσ [ξ_k c†_kσ c_kσ + V (d†_σ c_kσ + h.c.)],   Γ = π ρ V²,  |ξ| < 1

The band becomes a chain (logarithmic discretisation without artefacts at its edge [1], hoppings by Lanczos in
multiple precision), which is diagonalised site by site in blocks of (N_↑, N_↓); spectra are those of the full density
matrix over all shells [2], averaged over shifted grids (z), broadened by log-Gaussians [2], and made exact in what the
band alone does by the self-energy Σ = U ⟨⟨d n; d†⟩⟩ / ⟨⟨d; d†⟩⟩ [3].

[1] R. Zitko, T. Pruschke, Phys. Rev. B 79, 085106 (2009). [2] A. Weichselbaum, J. von Delft, Phys. Rev. Lett. 99,
076402 (2007). [3] R. Bulla, A. C. Hewson, T. Pruschke, J. Phys. Condens. Matter 10, 8365 (1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from snnp.discovery.wilson import (
    HELD,
    LOWER,
    Blocks,
    Shell,
    add_site,
    annihilator,
    between_kept,
    less,
    mirror,
    mirrored_annihilator,
    transform,
    truncate,
    wilson_chain,
)
from snnp.errors import InputError

__all__ = [
    *("Impurity", "Settings", "Spectrum", "frequencies", "half_width", "kondo_temperature", "spectrum"),
    "hybridization",
]

_PER_DECADE = 100  # bins of the weights; far finer than any broadening
_LEAST, _MOST = 1e-12, 30.0  # energies of the bins


@dataclass(frozen=True)
class Impurity:
    """Parameters of the model, all in units of half of the band's width.

    Arguments:
        u: repulsion U, not negative. gamma: hybridisation Γ > 0. level: ε. field: Zeeman splitting B.
        temperature: T > 0 (k_B = 1).

    Raises:
        InputError: for values that the model has no meaning for.
    """

    u: float
    gamma: float
    level: float
    field: float = 0.0
    temperature: float = 1e-8

    def __post_init__(self) -> None:
        least = {"u": 0.0, "gamma": 1e-6, "level": -math.inf, "field": -math.inf, "temperature": 1e-11}
        for name, low in least.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < low:
                wanted = f"{low:g} or more" if math.isfinite(low) else "a finite number"
                raise InputError(f"{name} of the impurity is {value:g}; it must be {wanted}.")

    @property
    def energies(self) -> tuple[float, float]:
        """ε_↑ and ε_↓."""
        return self.level - 0.5 * self.field, self.level + 0.5 * self.field


@dataclass(frozen=True)
class Settings:
    """How exactly to compute.

    Arguments:
        scale: Λ, ratio of neighbouring energies of the band. kept: states kept of each shell. shifts: grids to average.
        broadening: α of the log-Gaussians. least: energy to resolve; the chain ends a factor of `scale` below.
        self_energy: whether Σ is computed and the band's part added exactly.
    """

    scale: float = 3.0
    kept: int = 200
    shifts: int = 2
    broadening: float = 0.5
    least: float = 1e-7
    self_energy: bool = True

    def __post_init__(self) -> None:
        ranges = {"scale": (1.5, 10.0), "kept": (20, 5000), "shifts": (1, 64), "broadening": (0.05, 2.0)}
        for name, (low, high) in {**ranges, "least": (1e-11, 0.1)}.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie between {low:g} and {high:g}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Spectrum:
    """A spectral function A_σ(ω) = -Im G_σ(ω) / π.

    Arguments:
        omega: frequencies, in half band widths; shape (n,). values: A_σ, per half band width; shape (2, n), ↑ and ↓.
        occupation: ⟨n_↑⟩, ⟨n_↓⟩. weight: total weight of the peaks before broadening, 1 if all is right; for ↑ and ↓.
    """

    omega: np.ndarray
    values: np.ndarray
    occupation: tuple[float, float]
    weight: tuple[float, float]


def hybridization(omega: np.ndarray, gamma: float) -> np.ndarray:
    """Δ(ω) of a flat band: (Γ/π) ln|(1+ω)/(1-ω)| - iΓ inside of it; complex, in half band widths."""
    with np.errstate(divide="ignore"):
        real = np.log(np.abs((1.0 + omega) / (1.0 - omega)))
    return gamma / np.pi * np.clip(real, -40.0, 40.0) - 1j * gamma * (np.abs(omega) < 1.0)


def _start(impurity: Impurity) -> tuple[Blocks, list[Blocks], list[list[Blocks]]]:
    """The level alone: energies, d_σ as what the first site couples to, and d_σ and d_σ n_-σ as what is looked at."""
    up, down = impurity.energies
    values = (0.0, up, down, up + down + impurity.u)
    energies = {held: np.array([value]) for held, value in zip(HELD, values, strict=True)}
    lower = [{HELD[a]: np.array([[amplitude]]) for a, _, amplitude in LOWER[spin]} for spin in (0, 1)]
    watched = [[each, {(1, 1): each[1, 1]}] for each in lower]
    return energies, lower, watched


def _chain(impurity: Impurity, settings: Settings, shift: float, spins: Sequence[int]) -> list[Shell]:
    """All shells, from the one with the first site to the last, where nothing is kept."""
    least = max(settings.least, impurity.temperature / 10.0)  # nothing changes far below the temperature
    n = max(6, 2 + math.ceil(2.0 * math.log(1.0 / least) / math.log(settings.scale)))
    hoppings = [math.sqrt(2.0 * impurity.gamma / math.pi), *wilson_chain(settings.scale, n, shift)]
    energies, coupled, watched = _start(impurity)
    exchange = None if impurity.field else {(0, 0): np.eye(1), (1, 1): -np.eye(1)}  # d†_↑ d†_↓ = -d†_↓ d†_↑
    shells: list[Shell] = []
    for index, hopping in enumerate(hoppings):
        shell = add_site(energies, coupled, hopping, exchange)
        if index + 1 == len(hoppings):
            shell.kept = dict.fromkeys(shell.energies, 0)
        else:
            truncate(shell, settings.kept)
        shell.operators = [[transform(shell, each, s) for each in watched[s]] if s in spins else [] for s in (0, 1)]
        watched = [[between_kept(shell, each, s) for each in shell.operators[s]] for s in (0, 1)]
        if shell.exchange is not None:
            exchange = {key: each[: shell.kept[key], : shell.kept[key]] for key, each in shell.exchange.items()}
        of_up = annihilator(shell, 0)
        coupled = [of_up, annihilator(shell, 1) if exchange is None else mirrored_annihilator(of_up, exchange)]
        energies = {key: each[: shell.kept[key]] for key, each in shell.energies.items() if shell.kept[key]}
        shells.append(shell)
    return shells


# From the last shell to the first: density matrix and peaks.


def _probabilities(shells: list[Shell], temperature: float) -> list[Blocks]:
    """What each discarded state of each shell weighs, all its copies (4 for every later site) together."""
    later, logs = 0.0, []
    for index in range(len(shells) - 1, -1, -1):
        shell = shells[index]
        copies = (len(shells) - 1 - index) * math.log(4.0)
        logs.append(
            {key: copies - (each[shell.kept[key] :] + later) / temperature for key, each in shell.energies.items()}
        )
        later -= shell.ground
    logs.reverse()
    most = max(float(each.max()) for shell in logs for each in shell.values() if each.size)
    total = sum(float(np.exp(each - most).sum()) for shell in logs for each in shell.values())
    return [{key: np.exp(each - most) / total for key, each in shell.items()} for shell in logs]


class _Peaks:
    """Weights of δ peaks in logarithmic bins: of d and of d n, first of negative frequencies, then of positive ones."""

    n: int = math.ceil(math.log10(_MOST / _LEAST) * _PER_DECADE)

    def __init__(self) -> None:
        self.weights, self.occupied = np.zeros((2, 2, self.n)), 0.0

    def add(self, omega: np.ndarray, weights: Sequence[np.ndarray]) -> None:
        logs = np.log10(np.maximum(np.abs(omega), _LEAST) / _LEAST)
        place = np.minimum((logs * _PER_DECADE).astype(np.int64), self.n - 1) + self.n * (omega > 0.0)
        for kind, each in enumerate(weights):
            counts = np.bincount(place.ravel(), each.ravel(), minlength=2 * self.n)
            self.weights[kind] += counts.reshape(2, self.n)


def _collect(impurity: Impurity, shells: list[Shell], spins: Sequence[int], peaks: dict[int, _Peaks]) -> None:
    """Go through the shells backwards: what the kept states of one weigh is told by all that follow."""
    of_kept: Blocks = {}
    for shell, lost in zip(reversed(shells), reversed(_probabilities(shells, impurity.temperature)), strict=True):
        density: Blocks = {}
        for key, states in shell.energies.items():
            density[key] = np.zeros((len(states), len(states)))
            kept = shell.kept[key]
            if kept and key in of_kept:
                density[key][:kept, :kept] = of_kept[key]
            diagonal = np.arange(kept, len(states))
            density[key][diagonal, diagonal] = lost[key]
        for spin in spins:
            _add_peaks(shell, density, spin, peaks[spin])
        of_kept = _reduced(shell, density)


def _reduced(shell: Shell, density: Blocks) -> Blocks:
    """The density matrix of the old states, the newest site traced out."""
    found: Blocks = {}
    images = shell.exchange is not None
    for key, parts in shell.rows.items():
        if images and key[0] > key[1] + 1:  # all its parts are images
            continue
        turned = shell.vectors[key] @ density[key]
        for _, old, span in parts:
            if not (images and old[0] > old[1]):
                part = turned[span] @ shell.vectors[key][span].T
                found[old] = found[old] + part if old in found else part
    return found | {mirror(old): each for old, each in found.items()} if images else found


def _add_peaks(shell: Shell, density: Blocks, spin: int, peaks: _Peaks) -> None:
    """Peaks between the states of a shell, of which one at least is discarded."""
    lower, counted = shell.operators[spin]
    for key, block in lower.items():
        target = less(key, spin)
        kept = shell.kept[target], shell.kept[key]
        if kept == block.shape:
            continue
        filled = block @ density[key]
        both = filled + density[target] @ block
        weights = [block * both, counted[key] * both if key in counted else np.zeros_like(block)]
        filled *= block
        for each in (*weights, filled):
            each[: kept[0], : kept[1]] = 0.0
        peaks.add(shell.energies[key][None, :] - shell.energies[target][:, None], weights)
        peaks.occupied += float(filled.sum())


@lru_cache(maxsize=8)
def _grid(least: float) -> np.ndarray:
    """Frequencies on which propagators are computed, both signs; 45 points a decade."""
    positive = np.geomspace(0.1 * least, 10.0, math.ceil(45 * math.log10(100.0 / least)))
    return np.concatenate([-positive[::-1], positive])


@lru_cache(maxsize=8)
def _hilbert(least: float) -> np.ndarray:
    """Matrix of the principal value ∫ f(x) / (ω - x) dx for f given on the grid, linear between its points."""
    x = _grid(least)
    y = x[:, None] - x[None, :]
    g = y * np.log(np.abs(y) + np.eye(len(x)))  # its second derivative is 1 / y
    slopes = 1.0 / np.diff(x)
    matrix = np.zeros_like(g)
    matrix[:, 1:-1] = g[:, :-2] * slopes[:-1] - g[:, 1:-1] * (slopes[:-1] + slopes[1:]) + g[:, 2:] * slopes[1:]
    return matrix


@lru_cache(maxsize=8)
def _kernel(least: float, alpha: float, thermal: float) -> tuple[np.ndarray, np.ndarray]:
    """Curves of peaks on the positive half of the grid, of the same and of the other sign; of every bin.

    A log-Gaussian, and below the thermal energy a Gaussian, which crosses zero.
    """
    omega = _grid(least)
    omega = omega[len(omega) // 2 :, None]
    peak = _LEAST * 10.0 ** ((np.arange(_Peaks.n) + 0.5) / _PER_DECADE)[None, :]
    log = np.exp(-((np.log(omega / peak) / alpha - alpha / 4.0) ** 2)) / (math.sqrt(math.pi) * alpha * omega)
    near = np.exp(-(((omega - peak) / thermal) ** 2)) / (math.sqrt(math.pi) * thermal)
    far = np.exp(-(((omega + peak) / thermal) ** 2)) / (math.sqrt(math.pi) * thermal)
    part = np.where(peak >= thermal, 1.0, np.exp(-((np.log(peak / thermal) / alpha) ** 2)))
    return log * part + near * (1.0 - part), far * (1.0 - part)


def _propagators(peaks: np.ndarray, settings: Settings, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """⟨⟨d; d†⟩⟩ and ⟨⟨d n; d†⟩⟩ on the grid, complex."""
    thermal = max(0.5 * temperature, 3.0 * settings.least)  # levels of the last shell are no closer
    same, other = _kernel(settings.least, settings.broadening, thermal)
    found = []
    for negative, positive in peaks:
        right = same @ positive + other @ negative
        left = same @ negative + other @ positive
        curve = np.concatenate([left[::-1], right])
        found.append(_hilbert(settings.least) @ curve - 1j * math.pi * curve)
    return found[0], found[1]


def spectrum(impurity: Impurity, omega: np.ndarray | None = None, settings: Settings | None = None) -> Spectrum:
    """Spectral function of the impurity.

    Arguments:
        omega: frequencies, in half band widths; default: `frequencies()`. settings: how exactly.

    Returns:
        A for both spins.
    """
    settings = settings or Settings()
    omega = frequencies() if omega is None else np.asarray(omega, dtype=float)
    spins = (0, 1) if impurity.field else (0,)
    peaks = {spin: _Peaks() for spin in spins}
    for index in range(settings.shifts):
        shells = _chain(impurity, settings, (index + 1) / settings.shifts, spins)
        _collect(impurity, shells, spins, peaks)
    found = [peaks[spin].weights / settings.shifts for spin in spins]
    curves = [_curve(each, impurity, spin, omega, settings) for each, spin in zip(found, spins, strict=True)]
    occupied = [peaks[spin].occupied / settings.shifts for spin in spins]
    weights = [float(each[0].sum()) for each in found]
    up, down = 0, len(spins) - 1
    pair = np.stack([curves[up], curves[down]])
    return Spectrum(omega, pair, (occupied[up], occupied[down]), (weights[up], weights[down]))


def _curve(peaks: np.ndarray, impurity: Impurity, spin: int, omega: np.ndarray, settings: Settings) -> np.ndarray:
    first, second = _propagators(peaks, settings, impurity.temperature)
    grid = _grid(settings.least)
    if not settings.self_energy:
        return np.interp(omega, grid, -first.imag / math.pi)
    sigma = impurity.u * second / first
    # Smooth, so it may be interpolated where the spectrum may not; rounding must not make it acausal.
    smooth = np.interp(omega, grid, sigma.real) + 1j * np.interp(omega, grid, np.minimum(sigma.imag, 0.0))
    bare = omega - impurity.energies[spin] - hybridization(omega, impurity.gamma)
    return np.asarray(-(1.0 / (bare - smooth)).imag / math.pi)


def frequencies(n: int = 333, least: float = 1e-6, most: float = 0.9) -> np.ndarray:
    """A grid that is logarithmic on both sides of zero, which is its middle; n is odd."""
    if n < 3 or n % 2 == 0:
        raise InputError(f"the number of frequencies must be odd and at least 3, got {n}.")
    positive = np.geomspace(least, most, n // 2)
    return np.concatenate([-positive[::-1], [0.0], positive])


def kondo_temperature(u: np.ndarray | float, gamma: np.ndarray | float, level: np.ndarray | float) -> Any:
    """√(UΓ/2) exp(π ε(ε+U) / (2UΓ)): F. D. M. Haldane, Phys. Rev. Lett. 40, 416 (1978)."""
    u, gamma, level = (np.asarray(each, dtype=float) for each in (u, gamma, level))
    return np.sqrt(0.5 * u * gamma) * np.exp(0.5 * np.pi * level * (level + u) / (u * gamma))


def half_width(omega: np.ndarray, values: np.ndarray) -> float:
    """Half of the full width at half maximum of the peak nearest to zero; NaN where it does not fall to its half.

    Arguments:
        omega: ascending frequencies, shape (n,). values: of the curve, shape (n,).
    """
    left = right = at = int(np.argmin(np.abs(omega)))
    while True:  # higher places than the one it began with may lie within the peak
        while left > 0 and values[left] > 0.5 * values[at]:
            left -= 1
        while right < len(omega) - 1 and values[right] > 0.5 * values[at]:
            right += 1
        higher = left + int(np.argmax(values[left : right + 1]))
        if values[higher] <= values[at]:
            break
        left = right = at = higher
    half = 0.5 * values[at]
    if max(values[left], values[right]) > half:
        return math.nan
    edges = [np.interp(half, values[[k, k + step]], omega[[k, k + step]]) for k, step in ((left, 1), (right, -1))]
    return 0.5 * float(edges[1] - edges[0])
