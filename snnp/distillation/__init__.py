"""Distillation: from any teacher to a fast student."""

__all__: list[str] = []
