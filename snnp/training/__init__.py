"""Fitting a potential to reference data."""
