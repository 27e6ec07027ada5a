"""snnp potentials in openmmml: `MLPotential("snnp", model="snnp-si")`.

openmmml imports this module with itself, so nothing here may fail: torch and snnp are imported when forces are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

__all__ = ["SNNPPotentialImpl", "SNNPPotentialImplFactory"]


class SNNPPotentialImplFactory(MLPotentialImplFactory):
    """Makes `SNNPPotentialImpl` for the name "snnp"."""

    def createImpl(  # noqa: N802 - openmmml's name
        self, name: str, model: Any = None, dtype: Any = None, device: Any = None, engine: str = "python", **others: Any
    ) -> SNNPPotentialImpl:
        """The potential for `MLPotential("snnp", model=..., dtype=..., device=..., engine=...)`; as `create_force`.

        Another name is taken as the model's. Raises `ConfigError` without a model, or for an unknown argument.
        """
        from snnp.errors import ConfigError, near_matches

        if others:
            key = next(iter(others))
            known = ("model", "dtype", "device", "engine")
            hint = near_matches(key, known)
            raise ConfigError(f"MLPotential('{name}') has no argument {key!r}; it takes {', '.join(known)}.{hint}")
        if model is None and name == "snnp":
            raise ConfigError(
                "MLPotential('snnp') needs a model: a bundled name, a folder, or a Potential, "
                "for example MLPotential('snnp', model='snnp-si')."
            )
        return SNNPPotentialImpl(name if model is None else model, {"dtype": dtype, "device": device, "engine": engine})


class SNNPPotentialImpl(MLPotentialImpl):
    """An snnp potential as openmmml wants it; made by the factory."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        self._model, self._options = model, options

    def addForces(  # noqa: N802 - openmmml's name
        self, topology: Any, system: Any, atoms: Iterable[int] | None, forceGroup: int, **args: Any
    ) -> None:
        """Add the force for `atoms` (None: all) to a System; it is periodic if that is, or the topology has a box.

        `dtype`, `device` and `engine` in `args` go before those of `MLPotential(...)`; openmmml passes the options of
        other parts along, so unknown ones are left alone.
        """
        from snnp_openmm.force import create_force
        from snnp_openmm.mixed import molecule_bonds

        atoms = None if atoms is None else list(atoms)
        periodic = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        options = {key: args.get(key, value) for key, value in self._options.items()}
        force = create_force(self._model, topology, atoms, periodic=periodic, **options)
        # With interpolate=True the system is an empty one, and the classical bonds stay elsewhere.
        bonds = molecule_bonds(topology, atoms) if atoms is not None and system.getNumParticles() else None
        for each in (force, bonds):
            if each is not None:
                each.setForceGroup(forceGroup)
                system.addForce(each)

    def getMLLongRange(self) -> bool:  # noqa: N802 - openmmml's name
        """False: the potential ends at its cutoff."""
        return False
