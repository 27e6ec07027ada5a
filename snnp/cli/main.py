"""The command `snnp`: collects the subcommands and turns every failure into one line.

Heavy imports (torch, ASE, matplotlib) happen inside the commands, so that `snnp --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, entry_points, version
from types import FrameType, TracebackType
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from snnp.cli import discover, distill, exchange, learn, look, simulate  # noqa: F401  they enter their commands
from snnp.cli.console import fail, print_json, print_pairs, print_trace, tolerate_encoding, warn
from snnp.cli.drivers import active, bundled, ipi, uncertainty  # noqa: F401
from snnp.cli.options import COMMANDS, Json, examples, meant, with_options
from snnp.cli.outputs import leave_no_empty_folder
from snnp.errors import SnnpError
from snnp.files import why_full

__all__ = ["app", "run"]

# Typer carries its own copy of click since 0.26 and uses the installed one before: the base class of the errors about
# the command line itself is reached through the one subclass that Typer always exports.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


def _describe(error: OSError) -> str:
    path = error.filename if error.filename is not None else "the output"
    reason = error.strerror or str(error)
    if (full := why_full(error)) is not None:
        return f"cannot write {path}: {full}; make room there, or write elsewhere."
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file or folder; check the path."
    if isinstance(error, (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)):
        return f"cannot use {path}: {reason}; choose a path in a folder that you can write to."
    return f"{path}: {reason}."


def _say_usage(error: Any) -> str:
    """What is wrong with a command line, and what may have been meant, the nearest first."""
    message = str(error.format_message()).rstrip(".")
    wrong = getattr(error, "option_name", None)
    if wrong is not None and type(error).__name__ == "NoSuchOption":
        known = [name for each in error.ctx.command.params for name in each.opts if name.startswith("--")]
        found = meant(wrong, [name for name in known if name != "--help"])
        if error.ctx.command.name == "train" and not found:
            from snnp.training.config import keys_meant

            found = [f"--set {key}=VALUE" for key in keys_meant(wrong.lstrip("-").replace("-", "_"))]
        message = f"no such option {wrong}"
    elif message.startswith("No such command"):
        wrong = message.split("'")[1]
        near = [f"'{name}'" for name in meant(wrong, error.ctx.command.commands)]
        return f"No such command '{wrong}'." + (f" Did you mean {' or '.join(near)}?" if near else "")
    else:
        return f"{message}."
    return f"{message}; did you mean {' or '.join(found)}?" if found else f"{message}."


class _Commands(TyperGroup):
    """The group of all commands: accepts `--debug` anywhere, prints errors as one line unless it is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        tolerate_encoding()
        kwargs["standalone_mode"] = False
        debug = "--debug" in (kwargs.get("args") or sys.argv[1:])
        try:
            code = super().main(*args, **kwargs)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its help is its message
                sys.exit(0)
            command = error.ctx.command_path if error.ctx is not None else "snnp"
            _give_up(f"{_say_usage(error)} See '{command} --help'.", 2, debug)
        except SnnpError as error:
            _give_up(with_options(str(error)), 1, debug)
        except OSError as error:
            _give_up(_describe(error), 1, debug)
        except (KeyboardInterrupt, typer.Abort):
            _give_up("interrupted.", 128 + signal.SIGINT, debug)
        finally:
            leave_no_empty_folder()
        sys.exit(code if isinstance(code, int) else 0)


def _give_up(message: str, code: int, debug: bool) -> NoReturn:
    error = sys.exception()
    if debug and error is not None:
        print_trace(error)
    fail(message)
    sys.exit(code)


_HELP_ORDER = "ls info pull mirror convert describe train distill evaluate energy md relax ipi"
_HELP_ORDER += " export plot explain benchmark"
app = typer.Typer(
    cls=_Commands,
    name="snnp",
    help="Interatomic potentials made of splines and small neural networks: run, train, evaluate, look inside.",
    epilog=examples(
        "snnp ls",
        "snnp md snnp-si diamond:Si:3x3x3 --temperature 300 --steps 2000",
        "snnp evaluate snnp-si test.xyz --json",
        "snnp train config.yaml --out runs/mine",
    ),
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_GROUPS = {"publish": exchange.publish_app, "doctor": learn.doctor_app, "import": exchange.import_app}
_GROUPS |= {"discover": discover.discover_app, "active": active.active_app, "uncertainty": uncertainty.uncertainty_app}
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)
for _entry in entry_points(group="snnp.commands"):  # those of plugins, which nothing here may import
    try:
        app.add_typer(_entry.load(), name=_entry.name)
    except Exception as _error:  # a plugin that is broken must not take all other commands with it
        warn(f"the commands `snnp {_entry.name}` are not there: {_entry.value} cannot be loaded ({_error}).")
for _name in sorted(COMMANDS, key=_HELP_ORDER.split().index):
    _command, _examples = COMMANDS[_name]
    app.command(_name, epilog=_examples)(_command)


@app.command("version", epilog=examples("snnp version", "snnp version --json"))
def _version_command(as_json: Json = False) -> None:
    """Show the versions of snnp, of what computes, and of the machine: what a report of a fault should hold."""
    import platform

    import torch

    from snnp.kernels.cpu.library import instruction_set

    found: dict[str, str | None] = {"snnp": version("snnp"), "python": platform.python_version()}
    for package in ("torch", "numpy", "ase", "vesin", "openmm", "openmmml", "triton"):
        found[package] = None
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    found |= {"kernel": instruction_set(), "threads": str(torch.get_num_threads()), "gpu": gpu}
    found["platform"] = platform.platform()
    if as_json:
        print_json(found)
    else:
        print_pairs({name: value or "none" for name, value in found.items()})


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"snnp {version('snnp')}")
        raise typer.Exit()


@app.callback()
def _options(
    ctx: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Last resort for an error that snnp does not know: one line here, everything with --debug."""
    if "--debug" in sys.argv[1:]:
        print_trace(error.with_traceback(trace))
    else:
        fail(f"{kind.__name__}: {error} (unexpected: please report it with the traceback that --debug shows).")


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """End with the usual code, but take temporary files away first."""
    # During an import nothing is begun yet, and an exception may get lost: extension modules swallow it, or abort.
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + signum)
        frame = frame.f_back
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signum)


def run() -> None:
    # Threads that spin while they wait make small systems many times slower as soon as anything else runs (measured:
    # 7 times for 108 atoms). OpenMP reads this when torch is imported, which happens in the commands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.excepthook = _report_bug
    # What libraries warn of goes the way of all messages: it may hold names from files.
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(signum) is default:
            signal.signal(signum, _stop)
    typer.main.get_command(app)()


if __name__ == "__main__":
    run()
