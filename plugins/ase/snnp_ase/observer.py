"""An eye on the uncertainty of whatever ASE moves; see `snnp.uncertainty.Watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import units

from snnp.models.potential import Potential

if TYPE_CHECKING:
    from snnp.uncertainty import Measure

__all__ = ["UncertaintyObserver"]


class UncertaintyObserver:
    """Looks at the atoms of an ASE dynamics or optimiser: `dynamics.attach(observer, interval=20)`.

    The atoms have an array `uncertainty` after each look, which an extended XYZ writer that is attached later writes.
    Whatever calculator moves them, the ensemble is evaluated once more for a look.

    Arguments:
        dynamics: whose `atoms` are looked at. model: an ensemble or a HIP-NN, by name, folder or itself; or a
            `Measure`. how: `log`, `limit`, `on_limit` and `harvest` of `snnp.uncertainty.Watch`.

    Raises what `Watch` raises; while running `snnp.uncertainty.TooUncertainError` beyond a limit that ends the run.

    Example:
        >>> observer = UncertaintyObserver(
        ...     dynamics, "runs/heads", log="spread.csv", limit=0.3, on_limit="stop"
        ... )  # doctest: +SKIP
        >>> dynamics.attach(observer, interval=20)  # doctest: +SKIP
    """

    def __init__(self, dynamics: Any, model: str | Path | Potential | Measure, **how: Any) -> None:
        from snnp.uncertainty import Watch  # half of all that a calculator loads, which most runs do not need

        self._dynamics, self.watch = dynamics, Watch(model, **how)

    def __call__(self) -> None:
        """Look now."""
        dynamics = self._dynamics
        atoms = getattr(dynamics.atoms, "atoms", dynamics.atoms)  # of a filter, those that it moves
        time = dynamics.get_time() / (1000.0 * units.fs) if hasattr(dynamics, "get_time") else 0.0
        self.watch.look(atoms, int(dynamics.nsteps), float(time))
