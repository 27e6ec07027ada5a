"""`snnp discover`: what families of images and curves have in common."""

from __future__ import annotations

from snnp.cli.options import group

__all__ = ["discover_app"]

discover_app = group("The few variables behind many images or curves.", "snnp discover images micrographs --out found")
