"""anderson-spectra: spectral functions of the Anderson impurity model, computed here; there are no raw files.

    python datasets/anderson-spectra/recipe.py OUT --spectra 10000 --workers 2
    python datasets/anderson-spectra/recipe.py OUT --spectra 10000 --moments     # a third of them, those of moments

Spectrum number i has the parameters that (seed, i) draw, whatever else is asked for: a run that was stopped goes on
where it was, and 2,000 spectra are the first of 10,000. Of four spectra three have no field and a temperature far below
all else ("ground"), the fourth has both ("general"). `--moments` leaves out all but ground spectra of a local moment
(ε < -Γ and ε + U > Γ), which have a Kondo temperature. OUT gets `spectra.npz`, the card, and the folder `pieces`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices are small: processes share the work

import numpy as np

from snnp.discovery.anderson import Impurity, Settings, frequencies, half_width, kondo_temperature, spectrum
from snnp.errors import InputError, SnnpError
from snnp.files import replacing, write_atomically
from snnp.hub.manifest import fingerprint

GENERAL = "**General.** {:,} spectra: besides, B and T are drawn logarithmically from 1e-5 ... 0.1."
MOMENTS = "**Left out** are all that lack a local moment, ε < -Γ and ε + U > Γ."
COLUMNS = ("U", "Gamma", "eps_d", "B", "T", "n_up", "n_down", "half_width", "T_K")
PIECE = 20
SETTINGS = Settings()
CARD = """# anderson-spectra: spectral functions of the Anderson impurity model

{n:,} spectra A(ω) of the ↑ electron at {points} frequencies on a signed logarithmic grid (±{least:g} ... ±{most:g}, and
0), by the numerical renormalization group of `snnp.discovery.anderson`. Energies in half band widths (flat band,
D = 1), k_B = 1, A in 1/D.

- **Origin.** Computed by `python datasets/anderson-spectra/recipe.py OUT --spectra {asked}` (seed {seed}): {settings}.
- **Licence.** MIT, that of this project.
- **Ground.** {ground:,} spectra: B = 0, T = 1e-8. U is drawn logarithmically from 0.05 ... 0.5, U/Γ evenly from
  3 ... 20, ε/U evenly from -1.2 ... 0.2.
- {rest}
- **Checked.** Total weight of the peaks: 1 to {weight:.0e}. πΓA(0) against sin²(πn) of the ground part: the mean
  difference is {friedel:.4f}, the largest {worst:.3f}.

| array in `spectra.npz` | shape | what |
| --- | --- | --- |
| `x` | {points} | ω |
| `curves` | {n} × {points} | A(ω), float32 |
| `parameters` | {n} × {columns} | {names} |
| `names` | {columns} | the names of these columns |
| `ground` | {n} | whether a spectrum is of the ground part |

`n_up` and `n_down` are occupations, `half_width` is measured on the curve (NaN where the peak at zero does not fall to
its half), `T_K` is √(UΓ/2) exp(πε(ε+U)/(2UΓ)).

| file | bytes | sha256 |
| --- | --- | --- |
| `spectra.npz` | {size:,} | `{sha}` |

```bash
snnp discover curves spectra.npz --where B=0 --out runs/spectra
```
"""


def draw(seed: int, index: int) -> Impurity:
    """Parameters of a spectrum."""
    rng = np.random.default_rng((seed, index))
    u = 0.05 * 10.0 ** rng.uniform()
    gamma = u / rng.uniform(3.0, 20.0)
    level = u * rng.uniform(-1.2, 0.2)
    field, temperature = 10.0 ** rng.uniform(-5.0, -1.0, 2)
    return Impurity(u, gamma, level) if index % 4 else Impurity(u, gamma, level, field, temperature)


def is_moment(impurity: Impurity) -> bool:
    """Whether it is of the ground part, with a level below and another above zero by more than Γ."""
    upper = impurity.level + impurity.u
    return impurity.field == 0.0 and impurity.level < -impurity.gamma and upper > impurity.gamma


def make_piece(job: tuple[int, int, int, Path, bool]) -> Path:
    """Spectra of one piece, unless it is there: all of them, or those of moments where the whole piece is not there."""
    seed, begin, end, whole, moments = job
    if whole.is_file():
        return whole
    part = whole.with_name(f"{whole.stem}-moments.npz")
    path = part if moments else whole
    drawn = [draw(seed, index) for index in range(begin, end)]
    drawn = [impurity for impurity in drawn if not moments or is_moment(impurity)]
    if path.is_file() or not drawn:
        return path
    known: dict[tuple[float, ...], tuple[np.ndarray, Sequence[float]]] = {}
    if part.is_file():
        with np.load(part) as old:
            known = {tuple(row[:5]): (curve, row) for curve, row in zip(old["curves"], old["rows"], strict=True)}
    found = [known.get(astuple(impurity)) or compute(impurity) for impurity in drawn]
    curves, rows = zip(*found, strict=True)
    with replacing(path) as temporary:
        np.savez(temporary, curves=np.array(curves, dtype=np.float32), rows=np.array(rows))
    return path


def compute(impurity: Impurity) -> tuple[np.ndarray, Sequence[float]]:
    """A↑ and what is known of it."""
    found = spectrum(impurity, frequencies(), SETTINGS)
    width = half_width(found.omega, found.values[0])
    expected = float(kondo_temperature(impurity.u, impurity.gamma, impurity.level))
    return found.values[0], (*astuple(impurity), *found.occupation, width, expected, found.weight[0])


def collect(out: Path, paths: list[Path], seed: int, *, moments: bool, asked: int) -> str:
    """One file of all pieces, and the card; returns a line about it."""
    pieces = [np.load(path) for path in paths if path.is_file()]
    if not pieces:
        raise InputError(f"none of the first {asked} spectra has a local moment; ask for more with --spectra.")
    curves, rows = (np.concatenate([piece[name] for piece in pieces]) for name in ("curves", "rows"))
    if moments:
        taken = [is_moment(Impurity(*row[:5])) for row in rows]
        curves, rows = curves[taken], rows[taken]
    omega, parameters, ground = frequencies(), rows[:, :9], rows[:, 3] == 0.0
    with replacing(out / "spectra.npz") as temporary:
        np.savez_compressed(temporary, x=omega, curves=curves, parameters=parameters, names=COLUMNS, ground=ground)
    height = np.pi * rows[ground, 1] * curves[ground, len(omega) // 2]
    gap = np.abs(height - np.sin(np.pi * rows[ground, 5]) ** 2)
    file = fingerprint(out / "spectra.npz")
    told = {
        "n": len(curves),
        "asked": f"{asked}{' --moments' * moments}",
        "points": len(omega),
        "least": omega[omega > 0][0],
        "most": omega[-1],
        "seed": seed,
    }
    told |= {"settings": str(SETTINGS), "ground": int(ground.sum())}
    told["rest"] = MOMENTS if moments else GENERAL.format(int((~ground).sum()))
    told |= {"weight": np.abs(rows[:, 9] - 1.0).max(), "friedel": gap.mean(), "worst": gap.max()}
    told |= {"columns": len(COLUMNS), "names": ", ".join(COLUMNS), "size": file.bytes, "sha": file.sha256}
    write_atomically(out / "README.md", CARD.format(**told).encode())
    return f"{out / 'spectra.npz'}: {len(curves):,} spectra, sum rule {gap.mean():.4f} (largest {gap.max():.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--spectra", type=int, default=10_000, metavar="N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", action="store_true", help="only ground spectra of local moments among them")
    given = parser.parse_args()
    if given.spectra < 1 or given.workers < 1:
        sys.exit("error: --spectra and --workers must be at least 1.")
    (given.out / "pieces").mkdir(parents=True, exist_ok=True)
    jobs = []
    for begin in range(0, given.spectra, PIECE):
        end = min(begin + PIECE, given.spectra)
        path = given.out / "pieces" / f"{given.seed}-{begin:06d}-{end:06d}.npz"
        jobs.append((given.seed, begin, end, path, given.moments))
    start = time.perf_counter()
    try:
        with ExitStack() as stack:
            several = given.workers > 1
            run = stack.enter_context(ProcessPoolExecutor(given.workers)).map if several else map
            paths = []
            for done, path in enumerate(run(make_piece, jobs), 1):
                paths.append(path)
                print(f"{done}/{len(jobs)} pieces, {time.perf_counter() - start:.0f} s", flush=True)
        print(collect(given.out, paths, given.seed, moments=given.moments, asked=given.spectra))
    except SnnpError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
