"""snnp potentials in ASE."""
