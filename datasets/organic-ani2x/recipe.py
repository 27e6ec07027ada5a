"""organic-ani2x: from RUN/labels.parquet of the distillation in `model_zoo/snnp-organic/distil.yaml` -> a part of it.

    python datasets/organic-ani2x/recipe.py runs/snnp-organic-labels organic-ani2x

Every frame that was held out, and of the others as many as fit, drawn at random, without energies of atoms and
standard deviations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from snnp.data import Frames, load_dataset
from snnp.data.description import Description

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, main

_TRAINING_FRAMES = 3300  # about 5 MB with those held out


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """Some of the labels of each split."""
    dataset = load_dataset(raw / "labels.parquet")
    for split in ("train", "test"):
        chunks = [chunk.checked() for chunk in dataset.select(split).chunks()]
        frames = Frames.concatenate(chunks)
        chosen = np.random.default_rng(0).permutation(len(frames))[:_TRAINING_FRAMES]
        kept = frames.take(np.sort(chosen))
        unknown, nothing = np.zeros(len(kept), dtype=bool), np.full(len(kept.energies), np.nan)
        yield Piece("ani-2x", split, replace(kept, has_energies=unknown, energies=nothing, extras=[None] * len(kept)))


if __name__ == "__main__":
    main(make)
