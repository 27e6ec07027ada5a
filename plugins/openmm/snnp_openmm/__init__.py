"""snnp potentials in OpenMM."""
