"""What the bundled s-NNPs have in common: for each, how many of its filters are enough, and how linear it is.

python docs/measure/studies/explain_zoo.py snnp-si ...    # those that are missing (default: all), then the table

Each is explained on its training data where they are at hand (SNNP_DATA), as `snnp explain MODEL` does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from pages import between_marks, provenance, written

from snnp.explain import Anatomy, eliminate, material_for, spline_model
from snnp.files import write_atomically
from snnp.hub import load_model
from snnp.models.store import list_models

ROOT = Path(__file__).resolve().parents[3]
PAGE, FOUND = ROOT / "docs/explain.md", ROOT / "docs/studies/explain_zoo.json"
_BOUND, _FLOOR = 1.1, (0.5, 0.005)  # of errors that are smaller, such as those against the model itself: meV/atom, eV/Å


def summary(name: str) -> dict[str, Any]:
    """What the table says of a model; as `snnp explain` finds it, without the pictures."""
    stored = load_model(name)
    model, material = spline_model(stored, name), material_for(stored)
    fit, choose, tell = material.parts()
    anatomy = Anatomy(model, fit)
    removal = eliminate(anatomy, choose, tell)
    full, total = removal.stages[0].errors, len(removal.alone)
    enough = total
    for stage in removal.stages:
        if any(e > _BOUND * max(f, floor) for e, f, floor in zip(stage.errors, full, _FLOOR, strict=True)):
            break
        enough = stage.n_filters
    half = min(removal.stages, key=lambda stage: abs(2 * stage.n_filters - total))
    return {
        "filters": total,
        "combinations": removal.exact,
        "enough": enough,
        "whole": full,
        "half": half.errors,
        "parts_mev": {part: 1e3 * float(values.std()) for part, values in anatomy.parts.items()},
        "linear": anatomy.linear_share["best"],
        "labelled": material.labelled,
        "on": material.origin,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| model | filters | combinations of others | enough for errors within 10 % | whole: meV/atom, eV/Å "
        "| half: meV/atom, eV/Å | pair, three-body, network (meV) | linear |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, it in sorted(found["models"].items()):
        parts = ", ".join(f"{it['parts_mev'].get(part, 0.0):.0f}" for part in ("pair", "three-body", "network"))
        whole, half = (f"{energy:.2f}, {force:.4f}" for energy, force in (it["whole"], it["half"]))
        cells = [name if it["labelled"] else f"{name} ¹", it["filters"], it["combinations"], it["enough"], whole, half]
        lines.append(f"| {' | '.join(map(str, cells))} | {parts} | {100 * it['linear']:.1f} % |")
    return "\n".join(
        [
            *lines,
            "",
            "Errors on frames of the training data that the refit did not see, without any training; parts are "
            "standard deviations over atoms; linear is the share of the variance of atomic energies that a linear "
            "function of the filters explains. ¹ on structures made for it, against the whole model.",
            "",
            written(found, "`python docs/measure/studies/explain_zoo.py`"),
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in list_models() if type(load_model(name)).__name__ == "SplineNNP"]
    parser.add_argument("models", nargs="*", default=usual)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {"models": {}}
    for name in asked.models:
        if name in found["models"]:
            continue
        found["models"][name] = summary(name)
        print(name, found["models"][name], flush=True)
        found |= provenance(("snnp", "torch", "numpy"))
        write_atomically(FOUND, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    between_marks(PAGE, {"zoo": table(found)})


if __name__ == "__main__":
    main()
