"""Build the datasets whose raw files are at hand, bring manifests and cards up to date, and check that they are.

python datasets/build.py OUT [NAME...]     # raw files in $SNNP_DATA/NAME; counts go to NAME/manifest.json
python datasets/build.py --cards           # README.md of every dataset from its manifest.json

Datasets whose parquet files lie here are bundled: their manifest holds the checksum of every file, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from recipes import Make, build, from_xyz

from snnp.data.description import Description, card, finish, read_description
from snnp.data.read import dataset_files
from snnp.files import write_atomically

HERE = Path(__file__).resolve().parent


def recipe(folder: Path) -> Make:
    """The function that reads the raw files of a dataset."""
    spec = importlib.util.spec_from_file_location(f"recipe_of_{folder.name}", folder / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Make = getattr(module, "make", from_xyz)
    return make


def names() -> list[str]:
    """All datasets."""
    return sorted(path.parent.name for path in HERE.glob("*/manifest.json"))


def write_description(folder: Path, description: Description) -> None:
    """Manifest and card, from one source; of a bundled dataset with checksums, and counted anew."""
    if dataset_files(folder):
        finish(folder, description)
        return
    write_atomically(folder / "manifest.json", (description.model_dump_json(indent=2) + "\n").encode())
    write_atomically(folder / "README.md", card(description).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder for the parquet files")
    parser.add_argument("names", nargs="*", metavar="NAME", help="datasets; default: all whose raw files are there")
    parser.add_argument("--cards", action="store_true", help="write the cards only")
    given = parser.parse_args()
    if given.cards:
        for name in names():
            write_description(HERE / name, read_description(HERE / name / "manifest.json"))
        return
    if given.out is None or "SNNP_DATA" not in os.environ:
        sys.exit("error: name a folder to write, and set SNNP_DATA to the folder of the raw files (see README.md).")
    for name in given.names or names():
        raw = Path(os.environ["SNNP_DATA"]) / name
        if not raw.is_dir():
            print(f"{name}: no raw files at {raw}, left as it is")
            continue
        start = time.perf_counter()
        description = build(raw, given.out / name, HERE / name, recipe(HERE / name))
        write_description(HERE / name, description)
        frames = sum(part.frames or 0 for part in description.parts.values())
        print(f"{name}: {frames:,} frames in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
