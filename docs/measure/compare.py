"""Cost of models and of other programs on the same atoms, and how it grows: every case in a process of its own.

    python docs/measure/compare.py                                     the reference model and all bundled models
    python docs/measure/compare.py snnp-si --against lammps --only Si
    python docs/measure/compare.py --against lammps,mace --python mace=envs/mace/bin/python --save results/today
    python docs/measure/compare.py --scaling atoms,threads --atoms 32000

'reference' is the s-NNP of 8 + 16 filters, L = 4, that speed targets name, with random weights.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.document import document
from peers.page import COLUMNS, about, save, table
from peers.processes import Case, Plan, measure
from peers.programs import ceiling_cases, find_pythons, own_cases, peer_cases
from peers.reference import ReferenceForm, reference_model
from peers.scaling import scaling_points, series

from snnp.cli.console import fail, print_json, print_pairs, print_table, progress_bar, say, warn
from snnp.cli.outputs import prepare_output
from snnp.errors import InputError, SnnpError
from snnp.hub import resolve
from snnp.models.store import as_dtype, list_models

__all__ = ["main"]

_REFERENCE = "reference"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="models, run folders, names on the Hub; default: all bundled ones")
    add("--against", metavar="NAMES", help="other programs: lammps, hippynn, torchani, mace, nep; or 'none'")
    add("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a program's environment")
    add("--structure", help="for the models: fcc:Al:a=4.05 (any size), fcc:Al:4x4x4, or a file")
    add("--only", metavar="WORDS", help="only cases whose name contains one of these")
    add("--atoms", type=int, default=4000, help="about how many atoms; slow programs take fewer")
    add("--threads", type=int, default=1, help="threads of each program")
    add("--repeats", type=int, default=7, help="interleaved repeats; medians are reported")
    add("--seconds", type=float, default=0.2, help="seconds that a repeat should last")
    add("--scaling", metavar="AXES", help="how cost grows instead: atoms, filters, degree, threads")
    add("--save", type=Path, metavar="STEM", help="write STEM.md (table), STEM.png (picture) and STEM.json")
    add("--dtype", help="precision: float32 or float64")
    add("--device", help="where to compute: cpu, cuda, cuda:1")
    add("--overwrite", action="store_true", help="replace output files that exist")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; an error is one line on stderr and the exit code 1."""
    options = _options(arguments)
    command = shlex.join(["python", "docs/measure/compare.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        _compare(options, command)
    except SnnpError as error:
        fail(str(error))
        sys.exit(1)


def _compare(options: argparse.Namespace, command: str) -> None:
    as_dtype(options.dtype)
    if options.threads < 1:
        raise InputError(f"--threads must be at least 1, got {options.threads}.")
    if options.save is not None:
        for ending in (".md", ".png", ".json"):
            prepare_output(options.save.with_name(f"{options.save.name}{ending}"), overwrite=options.overwrite)
    plan = Plan(options.repeats, options.seconds)
    how = {"dtype": options.dtype, "device": options.device}
    with tempfile.TemporaryDirectory(prefix="snnp-models-") as folder:
        if options.scaling is not None:
            axes = options.scaling.split(",")
            points = scaling_points(axes, Path(folder), options.atoms, options.threads, **how)
            found = _run([point.case for point in points], plan, options, command)
            found["scaling"] = series(points, found["rows"])
        else:
            models = _models(options.models, Path(folder))
            cases = own_cases(models, options.atoms, options.threads, structure=options.structure, **how)
            cases += _peers(options)
            if options.only is not None:
                cases = [case for case in cases if any(word in case.name for word in options.only.split(","))]
                if not cases:
                    raise InputError(f"--only {options.only}: no case has any of these in its name; see all without.")
            found = _run(cases, plan, options, command)
    _print(found, options)


def _models(names: list[str], folder: Path) -> dict[str, str | Path]:
    sources: dict[str, str | Path] = {}
    for name in names or [_REFERENCE, *list_models()]:
        if name == _REFERENCE:
            sources[name] = reference_model(ReferenceForm(), folder)
        else:
            found = resolve(name)
            sources[found.pinned] = found.folder
    return sources


def _peers(options: argparse.Namespace) -> list[Case]:
    given = {}
    for text in options.python:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InputError(
                f"--python {text} is not understood; write NAME=PATH, for example mace=envs/mace/bin/python."
            )
        given[name] = path
    names = [] if options.against in (None, "none") else list(dict.fromkeys(options.against.split(",")))
    pythons = find_pythons(names, given)
    return [case for name in names for case in peer_cases(name, pythons[name], options.atoms, options.threads)]


def _run(cases: list[Case], plan: Plan, options: argparse.Namespace, command: str) -> dict[str, Any]:
    with progress_bar("measuring") as update:
        measured, failures = measure([*cases, *ceiling_cases(options.threads, options.device)], plan, update)
    return document(measured, failures, plan, command)


def _print(found: dict[str, Any], options: argparse.Namespace) -> None:
    for failure in found["not_measured"]:
        warn(f"not measured: {failure['program']}: {failure['case']}: {failure['reason']}")
    if not found["rows"]:
        raise InputError("nothing could be measured; the warnings say why.")
    files = [] if options.save is None else save(found, options.save)
    if options.json:
        print_json(found)
        return
    print_table(COLUMNS, table(found))
    print_pairs(about(found), title="\nMeasured on")
    if any(row.get("accuracy") == "published" for row in found["rows"]):
        say("* published, on the upstream test files; ours are on the test set of each model.")
    for path in files:
        say(f"written: {path}")


if __name__ == "__main__":
    main()
