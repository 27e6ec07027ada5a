"""What `snnp relax` does with a file of many structures: all of them in one batch."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, progress_bar, say, warn
from snnp.cli.outputs import check_format, prepare_output, write_structure

if TYPE_CHECKING:
    from ase import Atoms

    from snnp.models.potential import Potential
    from snnp.sampling import RelaxResult
    from snnp.sampling.many import Failed

__all__ = ["relax_frames"]

_SHOWN = 10  # structures that are named one by one; of all of them JSON tells


def relax_frames(
    potential: Potential, frames: Sequence[Atoms], out: Path | None, shown: dict[str, Any], *, as_json: bool, **how: Any
) -> None:
    """Relax all, write those that could be relaxed, and report; exit code 1 where any could not.

    Arguments:
        out: where to write, made ready here but for `overwrite` and `inputs` in `how`. shown: what to print beside.
        how: of `snnp.sampling.many.relax_many`.
    """
    from snnp.sampling import RelaxResult
    from snnp.sampling.many import relax_many

    overwrite, inputs = how.pop("overwrite"), how.pop("inputs")
    if out is not None:
        prepare_output(out, overwrite=overwrite, inputs=inputs)
        check_format(out, frames[0])
    began = time.perf_counter()
    with progress_bar("relaxing", len(frames)) as update:
        results = relax_many(potential, frames, report=lambda done, total: update(done), **how)
    seconds = time.perf_counter() - began
    good = [result for result in results if isinstance(result, RelaxResult)]
    failed = [result for result in results if not isinstance(result, RelaxResult)]
    if out is not None and good:
        first = _frame_named(str(shown["structure"]))
        told = [(first + k, result) for k, result in enumerate(results)]
        write_structure(out, [_labelled(result, k) for k, result in told if isinstance(result, RelaxResult)])
    late = [k for k, result in enumerate(results) if isinstance(result, RelaxResult) and not result.converged]
    _warn(failed, late, how["steps"])
    if as_json:
        each = [_as_json(k, result) for k, result in enumerate(results)]
        counts = {"n_structures": len(results), "n_relaxed": len(good) - len(late), "n_failed": len(failed)}
        print_json({**shown, **counts, "seconds": seconds, "results": each, "out": out})
    else:
        _print(good, len(results), len(late), seconds, out)
    if failed:
        raise typer.Exit(1)


def _frame_named(spec: str) -> int:
    """The number of the one frame that `file.xyz@3` names; 0 for what names none, whose first frame is number 0."""
    name, _, index = spec.rpartition("@")
    return int(index) if name and not Path(spec).exists() and re.fullmatch(r"-?\d+", index) else 0


def _labelled(result: RelaxResult, index: int) -> Atoms:
    """The relaxed atoms with their energy, and their number in the file that they come from."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = result.atoms.copy()
    atoms.info |= {"frame": index, "converged": result.converged}
    atoms.calc = SinglePointCalculator(atoms, energy=result.energy_ev)
    return atoms


def _as_json(index: int, result: RelaxResult | Failed) -> dict[str, Any]:
    said = {"error": result.reason} if not hasattr(result, "to_json") else result.to_json()
    return {"index": index, **said}


def _warn(failed: list[Failed], late: list[int], steps: int) -> None:
    for one in failed[:_SHOWN]:
        warn(f"structure {one.index}: {one.reason}")
    if len(failed) > _SHOWN:
        warn(f"{len(failed) - _SHOWN} more structures could not be relaxed; --json says why.")
    if late:
        names = ", ".join(map(str, late[:_SHOWN])) + (", ..." if len(late) > _SHOWN else "")
        warn(
            f"{len(late)} structures are not relaxed after {steps} steps ({names}); allow more with "
            f"--steps {2 * steps} or larger forces with --fmax."
        )


def _print(good: list[RelaxResult], total: int, n_late: int, seconds: float, out: Path | None) -> None:
    pairs = {"relaxed": f"{len(good) - n_late} of {total} structures in {number(seconds)} s"}
    if good:
        best = min(good, key=lambda result: result.energy_ev / len(result.atoms))
        taken = [result.steps for result in good]
        pairs["steps"] = f"{sum(taken) / len(taken):.1f} in the mean, {max(taken)} at most"
        per_atom = best.energy_ev / len(best.atoms)
        pairs["lowest energy"] = f"{per_atom:.6f} eV/atom ({best.atoms.get_chemical_formula()})"
    if out is None and good:
        say("Give --out FILE to keep the relaxed structures.")
    print_pairs(pairs if out is None or not good else {**pairs, "written to": str(out)})
