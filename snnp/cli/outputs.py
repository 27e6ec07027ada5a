"""Output files of the commands: checked before the work, replaced only with --overwrite, and written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from snnp.errors import DataError, InputError, ModelFileError, SnnpError
from snnp.files import refuse_existing, refuse_inputs, replacing

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["check_format", "input_files", "leave_no_empty_folder", "prepare_folder", "prepare_output", "readable"]
__all__ += ["write_structure"]

_made: list[Path] = []
_MISFITS = ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError


@contextmanager
def readable(*names: object) -> Iterator[None]:
    """Turn what readers of ASE and others raise for files that they do not understand into one `DataError`."""
    try:
        yield
    except SnnpError:
        raise
    except _MISFITS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{', '.join(map(str, names))}: cannot be read ({reason}); look at the file, or write it anew."
        ) from error


def prepare_folder(folder: Path) -> None:
    """Make a folder, and refuse one into which nothing can be written, before hours of work depend on it."""
    cure = "choose a path in a folder that you can write to"
    _made.extend(path.absolute() for path in (folder, *folder.parents) if not path.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        obstacle = next(path for path in (folder, *folder.parents) if path.exists())
        raise InputError(f"cannot make the folder '{folder}': '{obstacle}' is not a folder; {cure}.") from None
    except OSError as error:
        raise InputError(f"cannot make the folder '{folder}': {error.strerror}; {cure}.") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder '{folder}' is not writable; {cure}.")


def leave_no_empty_folder() -> None:
    """Remove what `prepare_folder` made and nothing was written into."""
    for path in sorted(_made, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            path.rmdir()
    _made.clear()


def prepare_output(path: Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Make the folder of an output file, and refuse one that cannot be written, or not replaced (never `inputs`)."""
    prepare_folder(path.parent)
    if path.is_dir():
        raise InputError(f"cannot write '{path}': it is a folder; choose the name of a file.")
    refuse_inputs(path, inputs)
    if not overwrite:
        refuse_existing([path], "choose another name, or say --overwrite")


def input_files(model: str, structure: str | None = None, topology: Path | None = None) -> list[Path]:
    """The files on this disk that a model and a structure are read from, for `prepare_output`."""
    from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE
    from snnp.models.store import model_folder
    from snnp.sampling import structure_files

    files = [] if structure is None else structure_files(structure, topology)
    with suppress(ModelFileError):  # a name on the Hub
        files += [model_folder(model) / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return files


def check_format(path: Path, atoms: Atoms) -> None:
    """Refuse a file whose format cannot hold a structure, before hours of work depend on it."""
    with tempfile.TemporaryDirectory() as folder:
        write_structure(Path(folder) / path.name, atoms, shown=path)


def write_structure(
    path: Path, atoms: Atoms | list[Atoms], file_format: str | None = None, *, shown: Path | None = None
) -> None:
    """Write structures in the format named, or that the name of the file stands for; messages say `shown` if given."""
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    cure = "use .extxyz, .cif or .vasp, for example"
    try:
        with replacing(path) as temporary:
            ase.io.write(temporary, atoms, format=file_format)
    except UnknownFileTypeError:
        raise InputError(f"'{shown or path}' has no ending that ASE can write; {cure}.") from None
    except (OSError, SnnpError):
        raise
    except Exception as error:  # ASE's writers raise whatever they trip over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"'{shown or path}' cannot hold this structure ({reason.rstrip('.')}); {cure}.") from error
