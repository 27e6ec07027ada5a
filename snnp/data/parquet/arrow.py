"""Arrow, which reads and writes parquet: an optional dependency, imported where it is needed."""

from __future__ import annotations

from types import ModuleType

from snnp.errors import MissingDependencyError

__all__ = ["arrow", "parquet"]

_CURE = "datasets need pyarrow; install it with: pip install 'snnp[data]'."


def arrow() -> ModuleType:
    """The module `pyarrow`.

    Raises:
        MissingDependencyError: names the extra that installs it.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError(_CURE) from None
    return pyarrow


def parquet() -> ModuleType:
    """The module `pyarrow.parquet`.

    Raises:
        MissingDependencyError: names the extra that installs it.
    """
    arrow()
    import pyarrow.parquet

    return pyarrow.parquet
