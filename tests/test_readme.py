"""Every command and every Python line of README.md, in order, in one empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SECONDS_PER_BLOCK = 120  # each takes a few seconds on an idle core; the rest is room for a busy machine

# Lines that set up a checkout; `make` runs them on a fresh machine, here only their names are checked.
SETTING_UP = ("git clone ", "cd ", "make ", "pip install ", "python3 -m venv ", "source ", "export ")


def _blocks() -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of the README, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[str]:
    """Lines of a shell block without comments, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    stripped = [line.partition(" #")[0].strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


RUNNABLE = [(language, text) for language, text in _blocks() if language in ("bash", "python")]
SHELL_LINES = [line for language, text in RUNNABLE if language == "bash" for line in _commands(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all blocks: later ones use what earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS_PER_BLOCK
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("language", "text"), RUNNABLE, ids=[f"{n}-{block[0]}" for n, block in enumerate(RUNNABLE)]
)
def test_block_runs(language: str, text: str, folder: Path) -> None:
    if language == "python":
        _run([sys.executable, "-c", text], folder)
        return
    for line in _commands(text):
        words = shlex.split(line)
        if words[0] == "snnp":
            _run([str(Path(sys.executable).parent / "snnp"), *words[1:]], folder)
        else:
            assert line.startswith(SETTING_UP), f"README shows a command that no test runs: {line}"


def test_every_block_names_a_language_that_is_checked() -> None:
    assert {language for language, _ in _blocks()} <= {"bash", "python", "text"}


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert set(shlex.split(line)[1:]) <= targets


def test_extras_named_in_pip_lines_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra
        for line in SHELL_LINES
        if line.startswith("pip install ")
        for group in re.findall(r"\[([\w,]+)\]", line)
        for extra in group.split(",")
    }
    assert named <= set(project["optional-dependencies"])


def test_relative_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links, "the README links to nothing: the pattern above no longer fits its links"
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert missing == []
