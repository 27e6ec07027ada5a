"""Every error a user can meet.

All derive from `SnnpError`; each message is one line that names what was wrong, what was expected and the cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from snnp.text import one_line

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["ConfigError", "DataError", "HubError", "InputError", "MissingDependencyError", "ModelFileError"]
__all__ += ["SnnpError", "TrainingError", "UnknownElementError", "first_fault", "near_matches", "overlap_message"]


class SnnpError(Exception):
    """Root of all errors raised on purpose by snnp; a message is one line, whatever the names in it hold."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(SnnpError, ValueError):
    """An argument or a structure that cannot be computed (NaN, zero volume, overlapping atoms, wrong shape)."""


class UnknownElementError(InputError):
    """A structure holds an element that the model was not built for."""


class ModelFileError(SnnpError):
    """A model file or name that is missing, damaged, of an unknown class, or of a newer format."""


class DataError(SnnpError, ValueError):
    """Reference data that cannot be used (empty, without energies, inconsistent shapes)."""


class HubError(SnnpError):
    """A repository on the Hub, or in a mirror, that is missing, out of reach, or not what its manifest says."""


class ConfigError(SnnpError, ValueError):
    """A configuration key or value that is not understood."""


class MissingDependencyError(SnnpError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class TrainingError(SnnpError):
    """Training stopped because of a NaN or a diverging loss."""


def first_fault(error: ValidationError) -> tuple[str, str, str, Any]:
    """Of values that do not fit: pydantic's name of the fault, the key (with dots), why it does not, and the value."""
    first = error.errors()[0]
    why = first["msg"].removeprefix("Value error, ")
    return first["type"], ".".join(str(part) for part in first["loc"]), why, first["input"]


def near_matches(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'a' or 'b'?"`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def overlap_message(i: int, j: int, distance: float) -> str:
    """What an `InputError` says of two atoms in one place, `distance` Å apart."""
    return (
        f"atoms {i} and {j} overlap ({distance:.3f} Å apart); "
        "remove the duplicate, or check the units of the positions (Å expected)."
    )
