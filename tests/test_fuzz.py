"""Readers of data: what fuzzing has found stays mended, and a short run of every target finds nothing new.

More of them: `python tests/fuzz/readers.py --seconds 600`.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent / "fuzz"
TRIES = 100


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


driver = sys.modules["driver"] if "driver" in sys.modules else _load("driver")
TARGETS = _load("readers").TARGETS


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Warnings about what is not read would be thousands."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_kept_cases(target: object) -> None:
    for digest, files in driver.saved(target).items():
        assert driver.try_files(target, files) is None, digest


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_short_run_finds_nothing(target: object) -> None:
    assert driver.run(target, 0, tries=TRIES) == {}
