"""Potentials, their files and the contract they share."""
