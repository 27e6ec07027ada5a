"""comp6-s66x8: extended XYZ -> parquet; `manifest.json` says which file is which split."""

from snnp.data.recipes import main

if __name__ == "__main__":
    main()
