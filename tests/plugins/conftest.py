"""The pair style of LAMMPS, compiled once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lammps_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the plugin, compiled without a warning."""
    from snnp_lammps.installation import find_installation
    from snnp_lammps.plugin import compile_plugin

    return compile_plugin(find_installation(), tmp_path_factory.mktemp("plugin"), ("-Werror",)).parent
