"""Benchmarks: what energies and forces cost in snnp and in other programs, on the same atoms, in one run."""
