"""What families of curves and images have in common: few hidden variables, found without being told.

Nothing else of snnp imports this package; it needs the extra `discovery` (`pip install 'snnp[discovery]'`).
"""

__all__: list[str] = []
