"""Capped amino acids in boxes of TIP3P water, with the force field that OpenMM brings along."""

from __future__ import annotations

from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import openmm
from ase import Atoms
from openmm import app, unit

# N-methylacetamide: the shortest piece that the protein force field knows whole.
NMA = """
ATOM      1 HH31 ACE A   1       2.193   1.176  -0.226  1.00  0.00           H
ATOM      2  CH3 ACE A   1       1.865   0.232   0.217  1.00  0.00           C
ATOM      3 HH32 ACE A   1       2.429   0.039   1.134  1.00  0.00           H
ATOM      4 HH33 ACE A   1       2.065  -0.582  -0.485  1.00  0.00           H
ATOM      5  C   ACE A   1       0.400   0.328   0.552  1.00  0.00           C
ATOM      6  O   ACE A   1      -0.008   0.980   1.507  1.00  0.00           O
ATOM      7  N   NME A   2      -0.420  -0.362  -0.312  1.00  0.00           N
ATOM      8  H   NME A   2      -0.034  -0.699  -1.184  1.00  0.00           H
ATOM      9  CH3 NME A   2      -1.854  -0.292  -0.184  1.00  0.00           C
ATOM     10 HH31 NME A   2      -2.145  -0.348   0.869  1.00  0.00           H
ATOM     11 HH32 NME A   2      -2.293  -1.125  -0.737  1.00  0.00           H
ATOM     12 HH33 NME A   2      -2.197   0.655  -0.607  1.00  0.00           H
END
"""

ALANINE_DIPEPTIDE = """
ATOM      1 HH31 ACE A   1       2.760   1.242   1.684  1.00  0.00           H
ATOM      2  CH3 ACE A   1       2.499   1.688   0.721  1.00  0.00           C
ATOM      3 HH32 ACE A   1       1.952   2.619   0.894  1.00  0.00           H
ATOM      4 HH33 ACE A   1       3.425   1.898   0.178  1.00  0.00           H
ATOM      5  C   ACE A   1       1.646   0.760  -0.100  1.00  0.00           C
ATOM      6  O   ACE A   1       1.476   0.913  -1.306  1.00  0.00           O
ATOM      7  N   ALA A   2       1.038  -0.239   0.620  1.00  0.00           N
ATOM      8  H   ALA A   2       0.949  -0.112   1.621  1.00  0.00           H
ATOM      9  CA  ALA A   2       0.128  -1.200  -0.009  1.00  0.00           C
ATOM     10  HA  ALA A   2       0.485  -1.406  -1.026  1.00  0.00           H
ATOM     11  CB  ALA A   2       0.123  -2.501   0.784  1.00  0.00           C
ATOM     12  HB1 ALA A   2      -0.240  -2.343   1.806  1.00  0.00           H
ATOM     13  HB2 ALA A   2       1.133  -2.920   0.850  1.00  0.00           H
ATOM     14  HB3 ALA A   2      -0.524  -3.247   0.310  1.00  0.00           H
ATOM     15  C   ALA A   2      -1.299  -0.614  -0.136  1.00  0.00           C
ATOM     16  O   ALA A   2      -2.301  -1.187   0.285  1.00  0.00           O
ATOM     17  N   NME A   3      -1.356   0.579  -0.830  1.00  0.00           N
ATOM     18  H   NME A   3      -0.515   0.861  -1.336  1.00  0.00           H
ATOM     19  CH3 NME A   3      -2.611   1.188  -1.182  1.00  0.00           C
ATOM     20 HH31 NME A   3      -3.024   0.663  -2.047  1.00  0.00           H
ATOM     21 HH32 NME A   3      -3.313   1.122  -0.347  1.00  0.00           H
ATOM     22 HH33 NME A   3      -2.430   2.235  -1.436  1.00  0.00           H
END
"""

TWO_ALANINES = """
ATOM      1 HH31 ACE A   1       4.731   1.874   1.226  1.00  0.00           H
ATOM      2  CH3 ACE A   1       4.801   1.673   0.153  1.00  0.00           C
ATOM      3 HH32 ACE A   1       4.522   2.574  -0.399  1.00  0.00           H
ATOM      4 HH33 ACE A   1       5.835   1.403  -0.077  1.00  0.00           H
ATOM      5  C   ACE A   1       3.895   0.543  -0.257  1.00  0.00           C
ATOM      6  O   ACE A   1       4.009  -0.024  -1.339  1.00  0.00           O
ATOM      7  N   ALA A   2       2.943   0.219   0.683  1.00  0.00           N
ATOM      8  H   ALA A   2       2.689   0.961   1.326  1.00  0.00           H
ATOM      9  CA  ALA A   2       1.849  -0.683   0.335  1.00  0.00           C
ATOM     10  HA  ALA A   2       2.152  -1.333  -0.493  1.00  0.00           H
ATOM     11  CB  ALA A   2       1.456  -1.529   1.538  1.00  0.00           C
ATOM     12  HB1 ALA A   2       0.649  -2.226   1.288  1.00  0.00           H
ATOM     13  HB2 ALA A   2       2.310  -2.112   1.898  1.00  0.00           H
ATOM     14  HB3 ALA A   2       1.106  -0.903   2.367  1.00  0.00           H
ATOM     15  C   ALA A   2       0.647   0.171  -0.117  1.00  0.00           C
ATOM     16  O   ALA A   2       0.518   1.353   0.205  1.00  0.00           O
ATOM     17  N   ALA A   3      -0.292  -0.511  -0.865  1.00  0.00           N
ATOM     18  H   ALA A   3      -0.288  -1.521  -0.780  1.00  0.00           H
ATOM     19  CA  ALA A   3      -1.600   0.084  -1.111  1.00  0.00           C
ATOM     20  HA  ALA A   3      -1.514   1.176  -1.102  1.00  0.00           H
ATOM     21  CB  ALA A   3      -2.156  -0.377  -2.450  1.00  0.00           C
ATOM     22  HB1 ALA A   3      -1.478  -0.106  -3.267  1.00  0.00           H
ATOM     23  HB2 ALA A   3      -2.287  -1.465  -2.473  1.00  0.00           H
ATOM     24  HB3 ALA A   3      -3.132   0.077  -2.651  1.00  0.00           H
ATOM     25  C   ALA A   3      -2.546  -0.351   0.028  1.00  0.00           C
ATOM     26  O   ALA A   3      -2.326  -1.342   0.723  1.00  0.00           O
ATOM     27  N   NME A   4      -3.680   0.426   0.154  1.00  0.00           N
ATOM     28  H   NME A   4      -3.670   1.348  -0.264  1.00  0.00           H
ATOM     29  CH3 NME A   4      -4.612   0.190   1.228  1.00  0.00           C
ATOM     30 HH31 NME A   4      -4.811  -0.880   1.327  1.00  0.00           H
ATOM     31 HH32 NME A   4      -5.540   0.723   1.007  1.00  0.00           H
ATOM     32 HH33 NME A   4      -4.180   0.568   2.158  1.00  0.00           H
END
"""

SOLUTES = {"N-methylacetamide": NMA, "alanine dipeptide": ALANINE_DIPEPTIDE}


class Solution(NamedTuple):
    """A solute in water: `positions` [N, 3] in nm, the solute's `n_solute` atoms first."""

    topology: Any
    positions: np.ndarray
    n_solute: int
    forcefield: Any

    def classical(self, *, solute_alone: bool = False, constraints: Any = None) -> openmm.System:
        """The classical system: all of it, with PME and rigid water; or the solute in vacuum, all pairs of it."""
        if solute_alone:
            kept = app.Modeller(self.topology, self.positions * unit.nanometer)
            kept.deleteWater()
            return self.forcefield.createSystem(kept.topology, constraints=constraints)
        pme: dict[str, Any] = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.75 * unit.nanometer}
        return self.forcefield.createSystem(self.topology, constraints=constraints, rigidWater=True, **pme)

    def solute(self) -> Atoms:
        """In vacuum."""
        symbols = [atom.element.symbol for atom in self.topology.atoms()][: self.n_solute]
        return Atoms(symbols, self.positions[: self.n_solute] * 10.0)


def dissolve(pdb: str, edge_nm: float | None = None, *, n_waters: int | None = None) -> Solution:
    """A solute in a cubic box with an edge of so many nm, or in so many waters."""
    molecule = app.PDBFile(StringIO(pdb.strip()))
    forcefield = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(molecule.topology, molecule.positions)
    size: dict[str, Any] = {"numAdded": n_waters}
    if edge_nm is not None:
        size = {"boxSize": openmm.Vec3(edge_nm, edge_nm, edge_nm) * unit.nanometer}
    modeller.addSolvent(forcefield, **size)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    return Solution(modeller.topology, positions, molecule.topology.getNumAtoms(), forcefield)
