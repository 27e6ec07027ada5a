"""Commands run in this process, for tests of the command line."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from snnp.cli.main import app


def run_snnp(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: object) -> Any:
    """What a command prints with --json: the whole of stdout."""
    return json.loads(run_snnp(*arguments, "--json").stdout)
