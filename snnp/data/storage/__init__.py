"""How files hold frames: extended XYZ, parquet, what a frame says beside its numbers, and ASE's `Atoms`."""
