"""`python -m snnp_openmm.doctor`: which of OpenMM's engines work here, and what to change where they do not.

Every engine is tried in a process of its own, because some combinations of versions end in a segmentation fault.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from snnp_openmm.torch_engine import NEEDS, installed

__all__ = ["ENGINES", "Verdict", "examine", "main", "trial"]

ENGINES = {
    "python": ({"openmm": "8.6 or newer"}, "pip install 'snnp[openmm]', not where engine 'torch' is to work"),
    "torch": (
        {name: f"{release}.x" for name, release in NEEDS.items()},
        "python -m venv torchforce && torchforce/bin/pip install 'snnp[openmm-torch]' (an environment of its own)",
    ),
}
"""What each needs, and the command that brings it."""
_TOLERANCE = 1e-5


class Verdict(NamedTuple):
    """Of one engine: whether it works, and why or how well."""

    engine: str
    works: bool
    words: str


def trial(engine: str) -> float:
    """The largest relative deviation of energy and forces of eight silicon atoms in OpenMM from the core's."""
    import numpy as np
    from ase.build import bulk

    from snnp.hub import load_model
    from snnp.structure import Structure
    from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM
    from snnp_openmm.force import create_system
    from snnp_openmm.geometry import openmm, to_openmm

    silicon = bulk("Si", cubic=True)
    silicon.rattle(0.1, seed=1)
    wanted = load_model("snnp-si").compute(Structure.from_ase(silicon))
    assert wanted.forces is not None
    geometry, mm = to_openmm(silicon), openmm()
    system = create_system("snnp-si", geometry.topology, engine=engine)
    context = mm.Context(system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference"))
    context.setPositions(geometry.positions)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy()._value / EV_IN_KJ_PER_MOL
    forces = geometry.rotate_back(state.getForces(asNumpy=True)._value) / EV_IN_KJ_PER_MOL / NM_IN_ANGSTROM
    expected = wanted.forces.numpy()
    off = np.abs(forces - expected).max() / np.abs(expected).max()
    return max(float(off), abs(energy / float(wanted.energy[0]) - 1.0))


def examine(engine: str) -> Verdict:
    """Try an engine in a process of its own."""
    command = [sys.executable, "-c", f"from snnp_openmm.doctor import trial; print('off', trial({engine!r}))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("off ")]
    if done.returncode == 0 and found:
        off = float(found[0])
        return Verdict(engine, off <= _TOLERANCE, f"energy and forces are the model's to {off:.0e}")
    if done.returncode < 0:
        return Verdict(engine, False, f"it crashed ({signal.Signals(-done.returncode).name})")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    words = said[-1].removeprefix("snnp.errors.MissingDependencyError: ") if said else "it ended without a word"
    return Verdict(engine, False, words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what works; 0 if the engine that was asked for does, or, without one, any."""
    parser = argparse.ArgumentParser(prog="python -m snnp_openmm.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engine", choices=list(ENGINES), help="only this one")
    asked = parser.parse_args(arguments).engine
    verdicts = [examine(engine) for engine in ([asked] if asked else ENGINES)]
    for verdict in verdicts:
        needs, cure = ENGINES[verdict.engine]
        found = installed(*needs)
        print(f"engine {verdict.engine}: {'works' if verdict.works else 'does not work'}")
        print("  " + ", ".join(f"{name} {found[name]} (needs {need})" for name, need in needs.items()))
        print(f"  {verdict.words}")
        if not verdict.works:
            print(f"  cure: {cure}")
    return 0 if any(verdict.works for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
