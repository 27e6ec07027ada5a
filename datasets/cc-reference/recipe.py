"""cc-reference: extended XYZ -> parquet; the tables of reactions go beside it as they are."""

from snnp.data.recipes import main

if __name__ == "__main__":
    main()
