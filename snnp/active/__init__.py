"""Active learning: the model's own dynamics find what it does not know, a labeller says what is true there, again.

    settings = ActiveSettings.read("active.yaml")
    result = run(settings, "runs/aluminium")
    result.why, result.n_labels

The names are loaded when they are first used: the command line reads settings and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnp.active.journal import Journal, read_journal
    from snnp.active.labellers import Labeller
    from snnp.active.rounds import ActiveProgress, ActiveResult, run
    from snnp.active.settings import ActiveSettings
    from snnp.active.status import Status, status_of

__all__ = [
    "ActiveProgress",
    "ActiveResult",
    "ActiveSettings",
    "Journal",
    "Labeller",
    "Status",
    "read_journal",
    "run",
    "status_of",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("settings", "journal", "labellers", "rounds", "status"):
            module = importlib.import_module(f"snnp.active.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'snnp.active' has no attribute {name!r}")
