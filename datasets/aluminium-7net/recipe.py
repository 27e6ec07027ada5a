"""aluminium-7net: RUN/labels.parquet of the distillation in `model_zoo/snnp-al/recipe.yaml` -> parquet, as it is.

    python datasets/aluminium-7net/recipe.py runs/snnp-al aluminium-7net

All labels but the energies of atoms.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from snnp.data import Frames, load_dataset
from snnp.data.description import Description

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, main


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """The labels of each split."""
    dataset = load_dataset(raw / "labels.parquet")
    for split in ("train", "test"):
        yield Piece("7net-l3i5", split, Frames.concatenate([each.checked() for each in dataset.select(split).chunks()]))


if __name__ == "__main__":
    main(make)
