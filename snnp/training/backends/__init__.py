"""Ways to the energies, forces and gradients of a batch: the compiled kernel, sums for torch, plain pairs."""
