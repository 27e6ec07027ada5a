"""`python -m snnp` is the command `snnp`."""

from __future__ import annotations

from snnp.cli.main import run

__all__: list[str] = []

if __name__ == "__main__":
    run()
