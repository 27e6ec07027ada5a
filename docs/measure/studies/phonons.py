"""Phonon densities of states of the crystals of all bundled s-NNPs, over volume, as a family of curves.

python docs/measure/studies/phonons.py phonons.npz
snnp discover curves phonons.npz --out runs/phonons

Each element of each model with an fcc, bcc, hcp or diamond ground state, at nine volumes from 0.92 to 1.08 of that at
rest; hcp with the c/a of lowest energy at that volume. Force constants by displacements of 0.01 Å (ASE) in supercells
of 250 to 490 atoms, 16 x 16 x 16 wave vectors. Frequencies are counted in units of their root mean square, so that a
curve is a shape: masses and stiffness alone do not change it. What has an imaginary frequency is left out, which may be
that of a long wave for which the supercell is too small.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.dft.kpoints import monkhorst_pack
from ase.phonons import Phonons
from scipy.optimize import minimize_scalar

from snnp.analysis.properties import ground_state, lattice_constants
from snnp.discovery.curve_family import CurveFamily, read_family
from snnp.files import replacing
from snnp.models import load_model
from snnp.models.spline.model import SplineNNP
from snnp.models.store import list_models
from snnp_ase import SNNPCalculator

SUPERCELLS = {"fcc": (7, 7, 7), "bcc": (7, 7, 7), "diamond": (5, 5, 5), "hcp": (7, 7, 5)}
VOLUMES = np.linspace(0.92, 1.08, 9)
X, WIDTH = np.linspace(0.0, 1.8, 121), 0.03  # of the frequencies' root mean square
NAMES = ("volume", "rms", "spread", "crystal", *SUPERCELLS)
IMAGINARY = 0.02  # of the root mean square; what lies above minus this is rounding at long waves
EV_IN_THZ = 241.79893


def crystals() -> Iterator[tuple[str, str, str, SNNPCalculator, float]]:
    """Model, element, its structure, a calculator in double precision, and the lattice constant (Å) at rest."""
    for name in list_models():
        model = load_model(name)
        if isinstance(model, SplineNNP):
            for symbol, a in lattice_constants(model).items():
                yield name, symbol, str(ground_state(symbol)), SNNPCalculator(name, dtype="float64"), a


def compressed(symbol: str, structure: str, calculator: SNNPCalculator, a: float, ratio: float) -> Atoms:
    """A primitive cell with that share of its volume at rest; hcp with the c/a of lowest energy."""
    scaled = a * ratio ** (1.0 / 3.0)
    if structure != "hcp":
        return bulk(symbol, structure, a=scaled)
    volume = bulk(symbol, structure, a=scaled).get_volume()

    def cell(c_over_a: float) -> Atoms:
        edge = (2.0 * volume / (np.sqrt(3.0) * c_over_a)) ** (1.0 / 3.0)
        return bulk(symbol, structure, a=edge, c=edge * c_over_a)

    def energy(c_over_a: float) -> float:
        return float(calculator.get_potential_energy(cell(c_over_a)))

    return cell(float(minimize_scalar(energy, bounds=(1.45, 1.75), method="bounded").x))


def frequencies(atoms: Atoms, calculator: SNNPCalculator, supercell: tuple[int, int, int]) -> np.ndarray:
    """THz, of all wave vectors and branches; imaginary ones are negative."""
    with tempfile.TemporaryDirectory() as folder:
        phonons = Phonons(atoms, calculator, supercell, name=f"{folder}/phonons", delta=0.01)
        phonons.run()
        phonons.read(acoustic=True)
    waves, shifts = monkhorst_pack((16, 16, 16)), phonons.compute_lattice_vectors()
    phases = np.exp(-2j * np.pi * waves @ shifts)
    size = phonons.D_N.shape[-1]
    matrices = (phases @ phonons.D_N.reshape(len(phonons.D_N), -1)).reshape(-1, size, size)
    squares = np.linalg.eigvalsh(matrices)
    return np.asarray(EV_IN_THZ * unit() * np.sign(squares) * np.sqrt(np.abs(squares)))


def unit() -> float:
    """Root of eV/(Å² u), as an energy in eV."""
    return float(units._hbar * 1e10 / np.sqrt(units._e * units._amu))


def density(scaled: np.ndarray) -> np.ndarray:
    """Of frequencies over their root mean square, at `X`; its integral is 1 but for what lies outside."""
    edges = np.linspace(-0.2, 2.2, 2401)
    counts = np.histogram(scaled, edges)[0] / scaled.size
    away = (X[:, None] - 0.5 * (edges[1:] + edges[:-1])) / WIDTH
    return np.asarray(np.exp(-0.5 * away**2) @ counts / (WIDTH * np.sqrt(2.0 * np.pi)))


def densities(path: Path) -> tuple[CurveFamily, list[str]]:
    """The family, and "model element" of each crystal in it; from the file of an earlier call if there is one."""
    if not path.is_file():
        curves, known, labels = [], [], []
        for name, symbol, structure, calculator, a in crystals():
            kinds = [float(each == structure) for each in SUPERCELLS]
            for ratio in VOLUMES:
                atoms = compressed(symbol, structure, calculator, a, float(ratio))
                found = frequencies(atoms, calculator, SUPERCELLS[structure])
                rms = float(np.sqrt((found**2).mean()))
                if found.min() < -IMAGINARY * rms:
                    print(f"{name} {symbol} V/V0 {ratio:.2f}: left out, {found.min():.2f} THz", flush=True)
                    continue
                curves.append(density(found / rms))
                known.append((ratio, rms, float(found.std() / rms), len(labels), *kinds))
            labels.append(f"{name} {symbol}")
            print(f"{name} {symbol}, {structure}: {len(curves)} curves", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez(temporary, curves=np.array(curves), x=X, parameters=np.array(known), names=NAMES, labels=labels)
    with np.load(path) as stored:
        return read_family(path), [str(label) for label in stored["labels"]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    densities(parser.parse_args().out)
