"""Programs that are killed and run again leave what an undisturbed run leaves; `kills.py` says how that is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_three_random_kills_of_every_job() -> None:
    # In a process of its own: it forks, which this one must not with its threads.
    program = Path(__file__).with_name("kills.py")
    tried = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=280, check=False)
    assert tried.returncode == 0, tried.stdout + tried.stderr
