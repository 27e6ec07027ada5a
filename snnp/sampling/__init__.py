"""Molecular dynamics: settings, logs and results shared by the engines."""
