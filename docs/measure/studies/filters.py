"""The radial filters of all bundled s-NNPs as a family of curves.

python docs/measure/studies/filters.py filters.npz
snnp discover curves filters.npz --out runs/filters
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from snnp.analysis.curves import all_groups
from snnp.files import replacing
from snnp.models import load_model
from snnp.models.spline.model import SplineNNP
from snnp.models.store import list_models


def filters(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Filters at r / cutoff = x, each over its peak; and cutoff, peak (Å), peak / cutoff, sign changes of each."""
    curves, known = [], []
    for model in map(load_model, list_models()):
        if not isinstance(model, SplineNNP):
            continue
        with torch.no_grad():
            values = all_groups(model.rho, torch.tensor(x * model.cutoff, dtype=torch.float64)).double().numpy()
        for curve in values.reshape(-1, len(x)):
            peak = int(np.argmax(np.abs(curve)))
            if curve[peak] == 0.0:
                continue
            curves.append(curve / curve[peak])
            turns = int((np.diff(np.sign(curve)) != 0).sum())
            known.append((model.cutoff, x[peak] * model.cutoff, x[peak], turns))
    return np.array(curves), np.array(known)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    x = np.linspace(0.15, 1.0, 120)
    curves, known = filters(x)
    with replacing(parser.parse_args().out) as temporary:
        np.savez(
            temporary, curves=curves, x=x, parameters=known, names=["cutoff", "r_peak", "peak/cutoff", "sign changes"]
        )
