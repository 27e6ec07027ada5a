"""Readers of what comes with a model: the cases that once failed, and a few damaged files of each kind anew.

More of them: `python tests/fuzz/models.py --seconds 600`.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parent / "fuzz"


def _module(name: str) -> ModuleType:
    """A module of the folder `fuzz`, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FUZZ / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


driver = _module("driver")
TARGETS = {target.name: target for target in _module("models").TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    """Else nothing that follows would mean anything."""
    for k, files in enumerate(TARGETS[name].seeds):
        for path, content in files.items():
            (tmp_path / str(k) / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(k) / path).write_bytes(content)
        TARGETS[name].check(tmp_path / str(k))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name: str) -> None:
    target = TARGETS[name]
    assert {digest: driver.try_files(target, files) for digest, files in driver.saved(target).items()} == dict.fromkeys(
        driver.saved(target)
    )
    assert driver.run(target, zlib.crc32(name.encode()), tries=150) == {}
