"""`snnp ipi`: give energies and forces to i-PI, or to any other program that speaks its protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from snnp.cli.console import number, say
from snnp.cli.options import Device, Dtype, Model, StructureSpec, Threads, command, set_threads
from snnp.errors import InputError

__all__ = ["serve"]

_LONGEST_PATH = 100  # bytes of the name of a UNIX socket, on every system
_PORTS = 65536


def serve(
    calculator: Any, atoms: Any, *, host: str = "localhost", port: int = 31415, unix: str | None = None
) -> tuple[int, str | None]:
    """Answer a server of the i-PI protocol until it ends, and say how many evaluations it asked for, and what failed.

    Arguments:
        calculator: an ASE calculator. atoms: with the elements, order and periodicity that the server means; positions
            and cells come from there.
        unix: name of a UNIX socket, /tmp/ipi_NAME; host and port are not used then.

    Raises:
        InputError: where nobody listens.
    """
    from ase.calculators.socketio import SocketClient, actualunixsocketname

    where = f"{host}:{port}" if unix is None else actualunixsocketname(unix)
    try:
        client = SocketClient(host=host, port=port, unixsocket=unix)
    except OSError as error:
        raise InputError(
            f"nobody listens at {where} ({error.strerror or error}); start the server first (i-pi input.xml), and give "
            "the address or the name of the socket that its input states."
        ) from None
    atoms = atoms.copy()
    atoms.calc, count = calculator, 0
    periodic = bool(atoms.pbc.all())
    try:
        for _ in client.irun(atoms, use_stress=periodic):
            count += 1
    except ValueError as error:  # as ASE assigns arrays of another number of atoms
        if isinstance(error, InputError) or "broadcast" not in str(error):
            return count, str(error)
        return count, (
            f"the server's structure has another number of atoms than the {len(atoms)} of "
            f"{atoms.get_chemical_formula()}; give the same structure here as in its input."
        )
    except AssertionError:  # of ASE about what it received
        return (
            count,
            "the server sent numbers that are NaN or infinite; its simulation has blown up: look at its input.",
        )
    except (BrokenPipeError, ConnectionError) as error:
        return count, f"the server closed the connection within an evaluation ({error}); look at its log."
    return count, None


@command(
    "ipi",
    "snnp ipi snnp-si start.xyz --unix silicon",
    "snnp ipi snnp-organic molecule.xyz --host node7 --port 31415",
)
def ipi_command(
    model: Model,
    structure: StructureSpec,
    host: str = typer.Option("localhost", metavar="NAME", help="Where the server listens."),
    port: int = typer.Option(31415, metavar="N", help="The server's port."),
    unix: str | None = typer.Option(
        None, metavar="NAME", help="Name of a UNIX socket, /tmp/ipi_NAME, in place of host and port."
    ),
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Serve i-PI: answer with energies, forces and virials until the server ends."""
    from snnp import SNNPCalculator
    from snnp.sampling import build_structure

    if not 0 < port < _PORTS:
        raise InputError(f"--port must lie between 1 and {_PORTS - 1}, got {port}.")
    if unix is not None and (re.search(r"[\s/]", unix) or not 0 < len(unix.encode()) < _LONGEST_PATH):
        raise InputError(f"--unix '{unix}' is no name of a socket; give the <address> of i-PI's <ffsocket>, no path.")
    set_threads(threads)
    atoms = build_structure(structure)
    calculator = SNNPCalculator(model, dtype=dtype, device=device)
    calculator.model.check_elements(atoms.numbers, Path(structure).name)
    say(f"Connecting to {host}:{port}." if unix is None else f"Connecting to the socket '{unix}'.")
    count, failure = serve(calculator, atoms, host=host, port=port, unix=unix)
    if failure is not None:
        raise InputError(f"stopped after {count} evaluations: {failure}")
    say(f"The server has ended; it asked for {number(count)} evaluations.")
