"""The pair style of LAMMPS, compiled once for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def active_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of this environment come first, as in an activated one: an Open MPI of the system is not asked."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="session")
def lammps_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the plugin, compiled without a warning."""
    from snnp_lammps.installation import find_installation
    from snnp_lammps.plugin import compile_plugin

    return compile_plugin(find_installation(), tmp_path_factory.mktemp("plugin"), ("-Werror",)).parent
