"""Wilson's chain: a band as sites with falling hoppings, diagonalised site by site in blocks of (N_↑, N_↓).

Without a field the exchange of the spins maps blocks (a, b) and (b, a) onto each other, so that one of the two is
diagonalised; states of the other are the images of its states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from snnp.errors import MissingDependencyError

__all__ = [
    *("HELD", "LOWER", "Blocks", "Key", "Shell", "add_site", "annihilator", "between_kept", "less", "mirror"),
    *("mirrored_annihilator", "transform", "truncate", "wilson_chain"),
]

Key = tuple[int, int]
Blocks = dict[Key, np.ndarray]

# The states of a site, with the electrons (↑, ↓) that they hold: empty, ↑, ↓, both (c†_↑ c†_↓ |0⟩).
HELD: tuple[Key, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))
_SIGN = (1.0, -1.0, -1.0, 1.0)  # of an operator that passes them
# What annihilates spin σ on a site: from, to, amplitude.
LOWER = (((1, 0, 1.0), (3, 2, 1.0)), ((2, 0, 1.0), (3, 1, -1.0)))
# The exchange of spins: what a site's states become, and with which sign.
_EXCHANGED, _EXCHANGE_SIGN = (0, 2, 1, 3), (1.0, 1.0, 1.0, -1.0)


def wilson_chain(scale: float, n: int, shift: float) -> np.ndarray:
    """Hoppings of the chain of a flat band: t_0 ... t_{n-1}, in half band widths.

    Arguments:
        scale: Λ. n: how many. shift: z, in (0, 1].

    Lanczos loses a factor of Λ in precision with each site, so it is done with 60 + 16 n log10(Λ) digits.
    """
    return np.array(_hoppings(float(scale), int(n), float(shift)))


@lru_cache(maxsize=256)
def _hoppings(scale: float, n: int, shift: float) -> tuple[float, ...]:
    try:
        from mpmath import mp, mpf
    except ImportError:
        raise MissingDependencyError(
            "the Wilson chain needs mpmath; install it: pip install 'snnp[discovery]'."
        ) from None
    with mp.workdps(60 + math.ceil(16 * n * math.log10(scale))):
        base, z, log = mpf(scale), mpf(shift), mp.log(mpf(scale))
        # Intervals of the band between edges 1, Λ^-z, Λ^-z-1 ..., as functions of x = j + z: edge(x) = Λ^(2-x).
        points = [z + j for j in range(1, n + 12)]

        def edge(x: Any) -> Any:
            return mpf(1) if x <= 2 else base ** (2 - x)

        def energy(x: Any) -> Any:
            """What makes the average over z flat: dE/dx = edge(x+1) - edge(x), E(1) = 1, solved for a flat band."""
            return (1 - 1 / base) / log * base ** (2 - x) if x >= 2 else 2 - x + (1 - base ** (1 - x)) / log

        levels = [energy(x) for x in points]
        now = [mp.sqrt(edge(x) - edge(x + 1)) for x in points]  # of ±E together; the halves of both signs are one
        norm = mp.sqrt(mp.fsum(v * v for v in now))
        now, before, hopping = [v / norm for v in now], [mpf(0)] * len(now), mpf(0)
        found = []
        for _ in range(n):
            new = [e * v - hopping * b for e, v, b in zip(levels, now, before, strict=True)]
            hopping = mp.sqrt(mp.fsum(v * v for v in new))
            before, now = now, [v / hopping for v in new]
            found.append(float(hopping))
    return tuple(found)


@dataclass
class Shell:
    """What one more site made.

    Arguments:
        energies: of every block's states, ascending, in half band widths above the lowest of the shell.
        vectors: of every block: rows are the parts (old block, site state), columns the states. rows: those parts.
        kept: how many states of each block go on. ground: lowest energy, above that of the shell before.
        operators: of each spin, d and d n, from block (key) to the block with one electron less.
        exchange: that of the spins within blocks (a, a); of others, states of (b, a) are the images of those of (a, b).
            None in a field.
    """

    energies: Blocks
    vectors: Blocks
    rows: dict[Key, list[tuple[int, Key, slice]]]
    kept: dict[Key, int] = field(default_factory=dict)
    ground: float = 0.0
    operators: list[list[Blocks]] = field(default_factory=list)
    exchange: Blocks | None = None


def less(key: Key, spin: int) -> Key:
    """The block with one electron less."""
    return (key[0] - 1, key[1]) if spin == 0 else (key[0], key[1] - 1)


def mirror(key: Key) -> Key:
    """The block with spins exchanged."""
    return key[1], key[0]


def add_site(energies: Blocks, coupled: Sequence[Blocks], hopping: float, exchange: Blocks | None) -> Shell:
    """Diagonalise with one more site; `coupled` and `exchange` are those of the last one between kept states."""
    rows: dict[Key, list[tuple[int, Key, slice]]] = {}
    sizes: dict[Key, int] = {}
    for old in energies:
        for state, held in enumerate(HELD):
            new = (old[0] + held[0], old[1] + held[1])
            begin = sizes.get(new, 0)
            sizes[new] = begin + len(energies[old])
            rows.setdefault(new, []).append((state, old, slice(begin, sizes[new])))
    found, vectors = {}, {}
    for key, parts in rows.items():
        if exchange is None or key[0] <= key[1]:
            found[key], vectors[key] = np.linalg.eigh(_lower_triangle(parts, energies, coupled, hopping))
    shell = Shell(found, vectors, rows)
    if exchange is not None:
        shell.exchange = {}
        for key in rows:
            image = _images(shell, key, exchange)
            if key[0] == key[1]:
                shell.exchange[key] = vectors[key].T @ image
            elif key[0] > key[1]:
                found[key], vectors[key] = found[mirror(key)], image
    shell.ground = min(float(each[0]) for each in found.values())
    shell.energies = {key: found[key] - shell.ground for key in rows}
    return shell


def _lower_triangle(
    parts: Sequence[tuple[int, Key, slice]], energies: Blocks, coupled: Sequence[Blocks], hopping: float
) -> np.ndarray:
    """Of a block of the Hamiltonian; what is above the diagonal is not looked at."""
    diagonal = np.concatenate([energies[old] for _, old, _ in parts])
    matrix = np.zeros((len(diagonal), len(diagonal)))
    np.fill_diagonal(matrix, diagonal)
    place = {state: (old, span) for state, old, span in parts}
    for spin in (0, 1):
        for full, empty, amplitude in LOWER[spin]:
            if full not in place or empty not in place:
                continue
            (old, span), there = place[empty], place[full][1]
            if old in coupled[spin]:  # t c†_new c_old: the old annihilator passes what the site holds
                block = hopping * amplitude * _SIGN[empty] * coupled[spin][old]
                if there.start > span.start:
                    matrix[there, span] = block
                else:
                    matrix[span, there] = block.T
    return matrix


def _images(shell: Shell, key: Key, exchange: Blocks) -> np.ndarray:
    """Vectors in block `key` of the states of its mirror, spins exchanged; `exchange` is that of the old states."""
    vectors = shell.vectors[mirror(key)]
    place = {state: span for state, _, span in shell.rows[mirror(key)]}
    found = np.empty_like(vectors)
    for state, old, span in shell.rows[key]:
        part = _EXCHANGE_SIGN[state] * vectors[place[_EXCHANGED[state]]]
        found[span] = exchange[old] @ part if old[0] == old[1] else part
    return found


def truncate(shell: Shell, kept: int) -> None:
    """Keep the lowest states, and never cut through a degenerate set."""
    everything = np.append(np.sort(np.concatenate(list(shell.energies.values()))), np.inf)
    last = min(kept, len(everything) - 1)
    while everything[last] - everything[last - 1] < 1e-4 * everything[last]:
        last += 1
    limit = 0.5 * (everything[last - 1] + everything[last])
    shell.kept = {key: int(np.searchsorted(each, limit)) for key, each in shell.energies.items()}


def transform(shell: Shell, blocks: Blocks, spin: int) -> Blocks:
    """An operator of the old states, which lowers a spin, between all states of the shell."""
    found: Blocks = {}
    for key, parts in shell.rows.items():
        if (target := less(key, spin)) not in shell.rows:
            continue
        place = {state: (old, span) for state, old, span in shell.rows[target]}
        total: np.ndarray | None = None
        for state, old, span in parts:
            if state in place and old in blocks:
                left = shell.vectors[target][place[state][1]]
                part = _SIGN[state] * (left.T @ blocks[old] @ shell.vectors[key][span])
                total = part if total is None else total + part
        if total is not None:
            found[key] = total
    return found


def annihilator(shell: Shell, spin: int) -> Blocks:
    """That of the newest site, between the kept states."""
    found: Blocks = {}
    for key, parts in shell.rows.items():
        if (target := less(key, spin)) not in shell.rows or not (shell.kept[key] and shell.kept[target]):
            continue
        here = {state: span for state, _, span in parts}
        there = {state: span for state, _, span in shell.rows[target]}
        total = np.zeros((shell.kept[target], shell.kept[key]))
        for full, empty, amplitude in LOWER[spin]:
            if full in here and empty in there:
                left = shell.vectors[target][there[empty], : shell.kept[target]]
                total += amplitude * (left.T @ shell.vectors[key][here[full], : shell.kept[key]])
        found[key] = total
    return found


def mirrored_annihilator(of_up: Blocks, exchange: Blocks) -> Blocks:
    """That of ↓ from that of ↑, spins exchanged; both between the kept states."""
    found: Blocks = {}
    for key, block in of_up.items():
        target = less(key, 0)
        if key[0] == key[1]:
            block = block @ exchange[key]
        elif target[0] == target[1]:
            block = exchange[target] @ block
        found[mirror(key)] = block
    return found


def between_kept(shell: Shell, blocks: Blocks, spin: int) -> Blocks:
    """An operator, which lowers a spin, between the states that go on."""
    cut = ((key, each[: shell.kept[less(key, spin)], : shell.kept[key]]) for key, each in blocks.items())
    return {key: each for key, each in cut if each.size}
