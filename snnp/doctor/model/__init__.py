"""Checks of a potential."""
