"""Readable spline-based neural network interatomic potentials."""
