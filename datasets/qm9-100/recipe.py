"""qm9-100: extended XYZ -> parquet; `manifest.json` says which file is which split."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import main

if __name__ == "__main__":
    main()
