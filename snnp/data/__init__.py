"""Reference structures with energies, forces and stresses, as read from files."""
