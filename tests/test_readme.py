"""Every command and every Python line of the README and the tutorials, in order, one empty folder for each page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from snnp.cli.main import app
from snnp.training.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "docs/first-simulation.md",
    "docs/openmm.md",
    "docs/openmm-tutorial.md",
    "docs/export.md",
    "docs/train.md",
    "docs/conventions.md",
    "docs/many.md",
    "docs/ase.md",
]

# Lines that set up a checkout; `make` runs them on a fresh machine, here only their names are checked.
SETTING_UP = ("git clone ", "cd ", "make ", "pip install ", "python3 -m venv ", "source ", "export ")

# Pages whose Python lines go on from block to block, and what they have defined; blocks of others stand alone.
CONTINUED: dict[str, dict[str, object]] = {"docs/openmm-tutorial.md": {}}


def _text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def _blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\S*)[^\n]*\n(.*?)^```", _text(page), flags=re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[str]:
    """Lines of a shell block without comments, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    stripped = [line.partition(" #")[0].strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


RUNNABLE = [(page, *block) for page in PAGES for block in _blocks(page) if block[0] in ("bash", "python")]
SHELL_LINES = [line for _, language, text in RUNNABLE if language == "bash" for line in _commands(text)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for all blocks of a page: later blocks use what earlier ones wrote."""
    return {page: tmp_path_factory.mktemp(Path(page).stem) for page in PAGES}


def _run_snnp(words: list[str]) -> None:
    """The command in this process: a new one for each would spend most of its time importing torch."""
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main(args=words)
    assert ended.value.code == 0, f"{shlex.join(['snnp', *words])} ended with code {ended.value.code}"


@pytest.mark.parametrize(
    ("page", "language", "text"), RUNNABLE, ids=[f"{Path(b[0]).stem}-{n}-{b[1]}" for n, b in enumerate(RUNNABLE)]
)
def test_block_runs(
    page: str, language: str, text: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[page])
    if language == "python":
        names = CONTINUED.get(page, {})
        names["__name__"] = "__main__"
        exec(compile(text, page, "exec"), names)
        return
    for line in _commands(text):
        words = shlex.split(line)
        if words[0] == "snnp":
            _run_snnp(words[1:])
        else:
            assert line.startswith(SETTING_UP), f"{page} shows a command that no test runs: {line}"


def test_script_is_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "snnp"
    done = subprocess.run([str(script), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("snnp ")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    known = {"bash", "python", "text", "yaml", "cpp", "{include}"}
    assert {language for language, _ in _blocks(page)} <= known


@pytest.mark.parametrize("page", PAGES)
def test_yaml_lines_are_settings_of_training(page: str) -> None:
    """Each line of a YAML block stands alone, as one key of a training configuration."""
    lines = [line for language, code in _blocks(page) if language == "yaml" for line in code.splitlines() if line]
    for line in lines:
        TrainConfig.model_validate({"data": {"train": ["train.xyz"]}, **yaml.safe_load(line)})


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
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", _text("README.md"))
    assert links, "the README links to nothing: the pattern above no longer fits its links"
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert missing == []
