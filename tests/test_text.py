"""Text from files on the terminal, in Markdown, YAML and HTML: it is shown, never obeyed."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner, Result

from snnp.analysis.card import card_markdown
from snnp.analysis.curve_page import draw_page
from snnp.cli.main import app
from snnp.cli.options import with_options
from snnp.data.description import Description, card, header, parse_description, read_description
from snnp.errors import ConfigError, DataError, InputError, SnnpError
from snnp.models import load_model
from snnp.models.store import model_folder
from snnp.report import Finding, Report, Table
from snnp.sampling import MDSettings
from snnp.text import code, markdown, one_line, printable

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
from recipes import table

# Clears the screen, renames the window, turns writing round, colours; C0, C1, and Unicode's own.
EVIL = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202ejpg.exe\u2066\x00\x7f\r[red]b[/red]\u2028c"
SEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066]")
DATASETS = Path(__file__).resolve().parents[1] / "datasets"
MARKUP = "x | y `z [l](http://e.org) <b onclick=1>t</b> ![p](q) $1$ \\"


def _snnp(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundled model whose metadata, and whose folder, hold what a terminal would obey."""
    folder, source = tmp_path / "[bold]m[red]\x1b[31m", model_folder("snnp-si")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    description = json.loads((source / "config.json").read_text(encoding="utf-8"))
    description["metadata"] |= {"licence": EVIL, EVIL: ["[/]", EVIL], "limits": [EVIL, MARKUP], "citation": MARKUP}
    (folder / "config.json").write_text(json.dumps(description))
    return folder


# The terminal.


def test_printable() -> None:
    assert printable("plain Å µ – 中 é\n\tx") == "plain Å µ – 中 é\n\tx"
    assert printable("\x1b[2J\x9b\u202e\udc80") == "\\x1b[2J\\x9b\\u202e\\udc80"
    assert not SEEN.search(printable(EVIL))
    assert one_line("a\nb\r\n c\x1b") == "a b c\\x1b"
    assert len(one_line("x" * 10_000)) == 2001


def test_errors_are_one_line_whatever_names_they_hold() -> None:
    for kind in (SnnpError, InputError, DataError):
        assert str(kind(f"file {EVIL}\nmore")) == one_line(f"file {EVIL}\nmore")
        assert "\n" not in str(kind("a\nb"))


@pytest.mark.parametrize("words", [["info"], ["evaluate"], ["export"], ["md"]])
def test_commands_show_and_do_not_obey(words: list[str], model: Path, tmp_path: Path) -> None:
    more = {"evaluate": [tmp_path / f"{EVIL[:9]}.xyz"], "export": [tmp_path / "m.pt"], "md": ["nothing\x1b[2J:Si"]}
    done = _snnp(*words, model, *more.get(words[0], []))
    for text in (done.stdout, done.stderr):
        assert not SEEN.search(text)
    if words == ["info"]:
        assert done.exit_code == 0
        assert "[bold]m[red]\\x1b[31m" in done.stdout.replace("\n", "")
        assert "[red]b[/red]" in done.stdout
        assert "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202ejpg.exe" in done.stdout


def test_json_keeps_every_character_and_sends_none_that_a_terminal_obeys(model: Path) -> None:
    done = _snnp("info", model, "--json")
    assert not SEEN.search(done.stdout)
    assert json.loads(done.stdout)["metadata"]["licence"] == EVIL


def test_traceback_shows_and_does_not_obey(tmp_path: Path) -> None:
    done = _snnp("info", tmp_path / "no\x1b[2J[red]", "--debug")
    assert "Traceback" in done.stderr
    assert not SEEN.search(done.stderr)
    assert "[red]" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("ascii", ["info", "snnp-si"]), ("latin-1", ["ls"]), ("cp1252", ["info", "snnp-si", "--json"])],
)
def test_output_that_is_no_unicode(encoding: str, words: list[str]) -> None:
    """Å and µ are replaced; a run does not fail in its last line."""
    program = "from snnp.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    if "--json" in words:
        assert json.loads(text)["name"] == "snnp-si"
    else:
        assert "snnp-si" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature_k": -1.0}, "--temperature: input should be"),
        ({"dt_fs": 0.0}, "--dt: input should be"),
        ({"pressure_gpa": float("nan")}, "--pressure: input should be"),
        ({"friction_per_ps": 0.0}, "--friction: "),
        ({"trajectory_interval": 0}, "--every: "),
        ({"log_interval": 0}, "--log-every: "),
        ({"checkpoint_interval": 0}, "--checkpoint-every: "),
        ({"temperature_k": 0.0}, "--temperature must be positive"),
        ({"resume": True}, "--checkpoint VALUE"),
        ({"steps": -1}, "--steps: "),
    ],
)
def test_errors_name_options(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MDSettings(**values)
    assert words in with_options(str(caught.value))
    assert with_options("see data.energy_key and run_dt_fs") == "see data.energy_key and run_dt_fs"


def test_convert_names_its_option(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text('1\nLattice="3 0 0 0 3 0 0 0 3" energy=1.0 pbc="T T T"\nAr 0 0 0\n')
    done = _snnp("convert", tmp_path / "a.xyz", tmp_path / "a.parquet")
    assert done.exit_code == 1
    assert "--method" in done.stderr


# Markdown, YAML, HTML.


def test_markdown_shows_text() -> None:
    """Rendered and stripped of tags, it is the text again."""
    for text in (MARKUP, "# no heading", "> no quote", "- no list", "a ``b` c", "<script>1</script>", "[a]: http://x"):
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(text))
        assert re.findall(r"<(?!/?(?:p|code)>)", html) == [], html
        shown = re.sub(r"</?(?:p|code)>", "", html).strip()
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            shown = shown.replace(entity, character)
        assert shown.replace("`", "") == text.replace("`", "")
    assert markdown("-0.5") == "-0.5"
    assert markdown("use `code_here` and a_b") == "use `code_here` and a_b"
    assert code("a`b|c\nd") == "`a'b\\|c d`"


def test_tables_keep_their_cells() -> None:
    lines = Table(["a", "b"], [[MARKUP, EVIL], ["x\ny", "1"]]).markdown().splitlines()
    assert len(lines) == 4
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render("\n".join(lines))
    assert html.count("<td") == 4
    assert "<b" not in html.replace("<tbody", "")
    assert "<img" not in html


def test_card_of_a_model(model: Path) -> None:
    text = card_markdown("org/name", load_model(model))
    assert not SEEN.search(text)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "onclick=1>" not in html.replace("&gt;", "")
    assert "<img" not in html
    assert "http://e.org" not in re.findall(r'href="([^"]*)"', html)


@pytest.mark.parametrize(
    "about",
    [
        {"metrics": {"data": "x"}},
        {"speed": {"us_per_atom": "fast"}},
        {"stability": {"Xx": {}}},
        {"training_range": {"groups": {}}},
    ],
)
def test_card_of_metadata_of_another_form_is_one_line(about: dict[str, Any]) -> None:
    made = copy.copy(load_model("snnp-si"))
    made.metadata = about
    with pytest.raises(DataError, match="--set"):
        card_markdown("name", made)


def _description(**changes: Any) -> Description:
    tree = json.loads((DATASETS / "mlearn" / "manifest.json").read_text(encoding="utf-8"))
    return parse_description({**tree, **changes}, "here")


@pytest.mark.parametrize("key", ["title", "summary", "origin", "licence", "licence_note", "conversions", "splits"])
def test_statements_about_data_are_single_lines(key: str) -> None:
    for text in ("mit\nlicense: evil", "a\x1b[2J", "a\u202eb", "a\rb"):
        with pytest.raises(DataError, match=f"{key}: .*one line"):
            _description(**{key: text})


def test_header_is_yaml_whatever_it_holds() -> None:
    for text in ("a: b # c \"d\" 'e'", "- x", "&a *b", "yes", "2026-01-01", "{}", "---", "% @", MARKUP):
        made = _description(title=text, licence=text)
        lines = header(made)
        assert lines.startswith("---\n")
        assert lines.endswith("\n---\n")
        found = yaml.safe_load(lines.split("\n---\n")[0])
        assert (found["pretty_name"], found["license"]) == (text, text)
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card(made, recipe=False))
        assert "onclick=1>" not in html
        assert len({line.count(" | ") for line in table([made]).splitlines()[2:]}) == 1


@pytest.mark.parametrize("name", ["a\nb", "../x", "x y", "<b>", ""])
def test_names_of_parts(name: str) -> None:
    parts = read_description(DATASETS / "mlearn" / "manifest.json").model_dump()["parts"]
    with pytest.raises(DataError, match="parts"):
        _description(parts={name: next(iter(parts.values()))})


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://x) <b>", "http://a b", "file:///etc/passwd"])
def test_addresses(url: str) -> None:
    with pytest.raises(DataError, match="url"):
        _description(raw=[{"name": "a", "url": url}])


def test_pages_of_the_doctor() -> None:
    tag = "<script>alert(1)</script>"
    finding = Finding(tag, "error", tag, tag, tag, (tag,))
    tables = [Table.of(tag, {tag: tag}), Table([tag], [[tag]], "t"), Table.of("l", {tag: [tag]})]
    report = Report(tag, "data", (finding,), (tag,), tables)
    page = report.html()
    assert "<script" not in page
    assert "<script" not in report.markdown().replace("\\<", "")
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(report.markdown())
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 10
    assert page.count("&lt;script&gt;") >= 10


def test_titles_of_pictures_are_no_formulas(tmp_path: Path) -> None:
    path = draw_page(load_model("snnp-si"), tmp_path / "p.png", title="$\\bad$ \x1b[2J $x")
    assert path.read_bytes().startswith(b"\x89PNG")
