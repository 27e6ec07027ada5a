"""Networks in NeuroChem's format: the published ones and small ones made here; torchani's own loader is the oracle."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.optimize import LBFGS
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import ModelFileError, UnknownElementError
from snnp.models import ANI, Ensemble, load_model
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.structure import Structure
from snnp.units import HARTREE_IN_EV
from snnp_ase import SNNPCalculator

os.environ["TORCHANI_NO_WARN_EXTENSIONS"] = "1"  # it warns about CUDA extensions when it is imported

PARAMS = """TM = 1
Rcr = 5.0000e+00
Rca = 3.5000e+00
EtaR = [1.2000000e+01]
ShfR = [9.0000000e-01,1.9000000e+00,2.9000000e+00]
Zeta = [8.0000000e+00]
ShfZ = [5.0000000e-01,2.0000000e+00]
EtaA = [6.0000000e+00]
ShfA = [1.0000000e+00,2.0000000e+00]
Atyp = [H,O]
"""
INPUTS = 2 * 3 + 3 * 4
SIZES = {"H": (5, 4), "O": (6,)}


def _topology(symbol: str, activation: int = 9) -> str:
    sizes = [INPUTS, *SIZES[symbol], 1]
    text = f"inputsize={INPUTS};\natom_net {symbol} $\n"
    for k, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        text += (
            f"layer [\nnodes={n_out};\nactivation={activation if k < len(sizes) - 1 else 6};\ntype=0;\n"
            f"blocksize={n_in};\ndropout=0;\ndropset=0.000000;\nmaskupdate=0.000000;\nmaxnorm=0;\nnorm=0.000000;\n"
            f"normupdate=0.000000;\nl2norm=1;\nl2valu=0.000100;\nbtchnorm=0;\n"
            f"weights=FILE:ANN-{symbol}.nnf-l{k}.wparam[{n_in * n_out}];\n"
            f"biases=FILE:ANN-{symbol}.nnf-l{k}.bparam[{n_out}];\n]\n"
        )
    return text + "\n $\0"


def _write_topology(path: Path, text: str) -> None:
    path.write_bytes(f"{len(text)}=\n".encode() + bz2.compress(text.encode()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ensemble of two networks for H and O, as NeuroChem lays them out."""
    rng = np.random.default_rng(0)
    root = tmp_path / "ho"
    for member in range(2):
        inner = root / f"train{member}" / "networks"
        inner.mkdir(parents=True)
        for symbol, hidden in SIZES.items():
            _write_topology(inner / f"ANN-{symbol}.nnf", _topology(symbol))
            sizes = [INPUTS, *hidden, 1]
            for k, (n_in, n_out) in enumerate(pairwise(sizes), 1):
                weights = rng.normal(0.0, n_in**-0.5, n_in * n_out).astype("<f4")
                (inner / f"ANN-{symbol}.nnf-l{k}.wparam").write_bytes(weights.tobytes())
                biases = rng.normal(0.0, 0.1, n_out).astype("<f4")
                (inner / f"ANN-{symbol}.nnf-l{k}.bparam").write_bytes(biases.tobytes())
        for place in (root, inner.parent):
            (place / "rHO.params").write_text(PARAMS)
            (place / "sae_linfit.dat").write_text("H,0=-0.5\nO,1=-75.25\n")
    return root


def _torchani(folder: Path, n_networks: int, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV, without E0) and forces (eV/Å) of torchani with the same files, in float64."""
    from torchani import neurochem

    info = neurochem.NeurochemInfo(
        sae=next(folder.glob("sae*.dat")),
        const=next(folder.glob("*.params")),
        ensemble_prefix=folder / "train",
        ensemble_size=n_networks,
    )
    computer, networks, _, symbols = neurochem.modules_from_info(info)
    species = torch.tensor([[symbols.index(symbol) for symbol in atoms.symbols]])
    positions = torch.tensor(atoms.positions[None], requires_grad=True)
    cell = (torch.tensor(atoms.cell.array), torch.tensor(atoms.pbc)) if atoms.pbc.any() else (None, None)
    energy = networks.double()(species, computer.double()(species, positions, *cell)).sum() * HARTREE_IN_EV
    forces = -torch.autograd.grad(energy, positions)[0][0]
    return float(energy.detach()), forces.numpy()


def _require_torchani(model: Ensemble, folder: Path, atoms: Atoms, tolerance: float = 1e-5) -> None:
    """In float64 to the tolerance, in float32 (in which the networks are stored) to ten times that."""
    energy, forces = _torchani(folder, len(model.potentials), atoms)
    e0 = sum(model.reference_energies[symbol] for symbol in atoms.symbols)
    for precise, allowed in ((copy.deepcopy(model).double(), tolerance), (model, 10 * tolerance)):
        result = precise.compute(Structure.from_ase(atoms))
        assert result.forces is not None
        assert float(result.energy[0]) - e0 == pytest.approx(energy, rel=allowed)
        np.testing.assert_allclose(result.forces.numpy(), forces, rtol=0, atol=allowed * np.abs(forces).max())


def test_small_ensemble_is_torchanis(folder: Path) -> None:
    model = read_neurochem(folder)
    assert isinstance(model, Ensemble)
    assert model.elements == ("H", "O")
    assert model.dtype == torch.float32
    assert [round(e / HARTREE_IN_EV, 9) for e in model.reference_energies.values()] == [-0.5, -75.25]
    atoms = molecule("H2O") + molecule("H2O")
    atoms.positions[3:] += (0.3, 2.2, 1.1)
    _require_torchani(model, folder, atoms)
    assert float(model.compute(Structure.from_ase(atoms)).energy_std[0]) > 1e-2  # type: ignore[index]


def test_one_network_is_no_ensemble(folder: Path) -> None:
    both, one = read_neurochem(folder), read_neurochem(folder / "train1")
    assert isinstance(both, Ensemble)
    assert isinstance(one, ANI)
    structure = Structure.from_ase(molecule("H2O"))
    torch.testing.assert_close(one.compute(structure).energy, both.potentials[1].compute(structure).energy)


def test_networks_sort_by_number_and_share_what_lies_beside_them(folder: Path) -> None:
    for path in folder.glob("train*/*.*"):
        path.unlink()
    (folder / "train0").rename(folder / "train10")
    (folder / "train1").rename(folder / "train9")
    again = read_neurochem(folder.parent)  # the folder around it, where it is the only one
    assert isinstance(again, Ensemble)
    ninth = _alone(folder, "train9")
    assert torch.equal(again.potentials[0].network("O").layers[0].bias, ninth.network("O").layers[0].bias)  # type: ignore[attr-defined]


def _alone(folder: Path, name: str) -> ANI:
    """One network of an ensemble, with the files that all share put beside it."""
    for path in (*folder.glob("*.params"), *folder.glob("sae*.dat")):
        shutil.copy(path, folder / name)
    model = read_neurochem(folder / name)
    assert isinstance(model, ANI)
    return model


def test_gaussian_activation(folder: Path) -> None:
    """torchani refuses it, so the network is written out: one hidden layer of exp(-x²) for oxygen."""
    for symbol in SIZES:
        _write_topology(folder / f"train0/networks/ANN-{symbol}.nnf", _topology(symbol, activation=5))
    model = read_neurochem(folder / "train0")
    assert isinstance(model, ANI)
    alone = float(model.compute(Structure.from_ase(Atoms("O"))).energy[0])
    numbers = [
        np.frombuffer((folder / f"train0/networks/ANN-O.nnf-l{k}.{kind}").read_bytes(), "<f4")
        for k, kind in ((1, "bparam"), (2, "wparam"), (2, "bparam"))
    ]
    hidden = np.exp(-(numbers[0].astype(float) ** 2))
    assert alone == pytest.approx((-75.25 + hidden @ numbers[1] + numbers[2][0]) * HARTREE_IN_EV, rel=1e-8)


def _without(name: str):  # type: ignore[no-untyped-def]
    return lambda root: [path.unlink() for path in root.rglob(name)]


def _replaced(name: str, old: str, new: str):  # type: ignore[no-untyped-def]
    def change(root: Path) -> None:
        for path in root.rglob(name):
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))

    return change


def _topology_with(old: str, new: str):  # type: ignore[no-untyped-def]
    def change(root: Path) -> None:
        text = _topology("H")
        assert old in text
        _write_topology(root / "train0/networks/ANN-H.nnf", text.replace(old, new, 1))

    return change


def _bytes_of(name: str, content: bytes):  # type: ignore[no-untyped-def]
    return lambda root: (root / "train0" / "networks" / name).write_bytes(content)


BOMB = b"1112=\n" + bz2.compress(b"0" * (1 << 26))
NAN = np.full(INPUTS * 5, np.nan, dtype="<f4").tobytes()

DAMAGE = {
    "no networks": (
        lambda root: [shutil.rmtree(p) for p in root.glob("train*/networks")],
        "holds no NeuroChem networks",
    ),
    "no params": (_without("*.params"), r"holds no file \*\.params"),
    "no energies": (_without("sae_linfit.dat"), "holds no file sae"),
    "no topology": (_without("ANN-O.nnf"), "ANN-O.nnf is missing"),
    "no weights": (_without("ANN-H.nnf-l2.wparam"), "ANN-H.nnf-l2.wparam is missing"),
    "short weights": (
        _bytes_of("ANN-H.nnf-l1.wparam", b"\0" * 12),
        "has 12 bytes, but the topology asks for 90 numbers",
    ),
    "NaN weights": (_bytes_of("ANN-H.nnf-l1.wparam", NAN), "NaN or infinity"),
    "two params": (lambda root: shutil.copy(root / "rHO.params", root / "train0" / "b.params"), "2 files"),
    "another AEV": (
        _replaced("*.params", "ShfA = [1.0000000e+00,", "ShfA = [1.0,1.5,"),
        "takes 18 inputs, but rHO.params",
    ),
    "another TM": (_replaced("*.params", "TM = 1", "TM = 2"), "TM = 2 is not supported"),
    "two widths": (_replaced("*.params", "Zeta = [8.0000000e+00]", "Zeta = [8.0,16.0]"), "Zeta has 2 values"),
    "no cutoff": (_replaced("*.params", "Rcr", "Rcx"), "Rcr is missing"),
    "a word": (_replaced("*.params", "5.0000e+00", "five"), "Rcr must be numbers, got five"),
    "infinity": (_replaced("*.params", "Rca = 3.5000e+00", "Rca = -1"), "aev.angular.cutoff"),
    "no elements": (_replaced("*.params", "Atyp", "Btyp"), "Atyp must be distinct chemical symbols"),
    "unknown element": (_replaced("*.params", "[H,O]", "[H,Qq]"), "Atyp must be distinct chemical symbols"),
    "energy of one": (_replaced("sae_linfit.dat", "O,1", "N,1"), "no energy of O"),
    "energy a word": (_replaced("sae_linfit.dat", "-75.25", "minus"), "energy of O is no number"),
    "activation": (_topology_with("activation=9", "activation=7"), "activation 7 is not supported"),
    "mixed": (_topology_with("activation=9", "activation=5"), "are mixed"),
    "linear inside": (_topology_with("activation=9", "activation=6"), "is not supported; hidden layers have 9"),
    "sizes": (_topology_with("nodes=5", "nodes=6"), "weights has 90 numbers, but 6 nodes of 18 inputs need 108"),
    "widths": (_topology_with("blocksize=5", "blocksize=4"), "4 nodes of 4 inputs need 16"),
    "batch norm": (_topology_with("btchnorm=0", "btchnorm=1"), "btchnorm 1 is not supported"),
    "outside": (_topology_with("FILE:ANN-H.nnf-l1.w", "FILE:../ANN-H.nnf-l1.w"), "must be FILE:name"),
    "hidden file": (_topology_with("FILE:ANN-H.nnf-l1.w", "FILE:..w"), "must be FILE:name"),
    "no layers": (_bytes_of("ANN-H.nnf", b"3=\n" + bz2.compress(b"abc")), "holds no layers"),
    "another length": (_bytes_of("ANN-H.nnf", b"4=\n" + bz2.compress(b"abc")), "has 3 bytes instead of 4"),
    "no length": (_bytes_of("ANN-H.nnf", bz2.compress(b"abc")), "is no NeuroChem topology"),
    "long length": (_bytes_of("ANN-H.nnf", b"9" * 9999 + b"=\n"), "is no NeuroChem topology"),
    "cut": (_bytes_of("ANN-H.nnf", b"3=\n" + bz2.compress(b"abc")[:-9]), "is damaged"),
    "no bzip2": (_bytes_of("ANN-H.nnf", b"3=\nabc"), "cannot be decompressed"),
    "endless numbers": (_topology_with("blocksize=18", "blocksize=" + "9" * 5000), "must be whole numbers"),
    "sizes of terabytes": (_topology_with("blocksize=18", "blocksize=999999999"), "has 90 numbers, but"),
    "one file for two layers": (
        _topology_with("l3.bparam", "l1.bparam"),
        "two layers take their numbers from one file",
    ),
    "energy twice": (_replaced("sae*.dat", "O,1", "H,0=-0.6\nO,1"), "has two energies of H"),
    "Python's digits": (_replaced("*.params", "Rcr = 5.0", "Rcr = 5_0.0"), "Rcr must be numbers"),
    "infinite power": (_replaced("*.params", "Zeta = [8.0000000e+00]", "Zeta = [1e39]"), r"angular\.zeta.*less than"),
    "infinite width": (_replaced("*.params", "EtaR = [1.2000000e+01]", "EtaR = [1e39]"), r"radial\.eta.*less than"),
    "far shell": (_replaced("*.params", "ShfA = [1.0000000e+00", "ShfA = [1e39"), r"angular\.shifts.*less than"),
    "energy beyond all atoms": (_replaced("sae*.dat", "H,0=-0.5", "H,0=1e308"), "is no energy of an atom of H"),
    "a bomb": (_bytes_of("ANN-H.nnf", BOMB), "65536 bytes instead of 1112"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_named(folder: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_neurochem(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_ensembles_of_different_elements(folder: Path) -> None:
    text = PARAMS.replace("[H,O]", "[O,H]")
    (folder / "train1" / "rHO.params").write_text(text)
    assert isinstance(read_neurochem(folder), Ensemble)  # another order is allowed
    (folder / "train1" / "rHO.params").write_text(PARAMS.replace("[H,O]", "[H,S]"))
    (folder / "train1" / "sae_linfit.dat").write_text("H,0=-0.5\nS,1=-398.0\n")
    for path in (folder / "train1" / "networks").glob("ANN-O*"):
        path.rename(path.with_name(path.name.replace("ANN-O", "ANN-S")))
    _write_topology(folder / "train1/networks/ANN-S.nnf", _topology("O").replace("ANN-O", "ANN-S"))
    with pytest.raises(ModelFileError, match="do not belong together"):
        read_neurochem(folder)


def test_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "ho"
    runner = CliRunner()
    done = runner.invoke(app, ["import", "neurochem", str(folder), str(out), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["class"], report["networks"], report["elements"]) == ("Ensemble", 2, ["H", "O"])
    loaded, direct = load_model(out), read_neurochem(folder)
    assert loaded.metadata["source"]["files_sha256"] == report["files_sha256"]
    structure = Structure.from_ase(molecule("H2O"))
    assert torch.equal(loaded.compute(structure).energy, direct.compute(structure).energy)
    with pytest.raises(UnknownElementError, match="knows H, O but the structure holds C"):
        loaded.compute(Structure.from_ase(molecule("CO")))
    assert runner.invoke(app, ["import", "neurochem", str(folder), str(folder)]).exit_code == 1
    missing = runner.invoke(app, ["import", "neurochem", str(tmp_path / "none"), str(out)])
    assert missing.exit_code == 1
    assert "is not a folder" in missing.stderr
    assert "$ snnp import neurochem" in runner.invoke(app, ["import", "neurochem", "--help"]).stdout


# The published networks.


@pytest.fixture(scope="module")
def ani_1ccx(snnp_data: Path) -> tuple[Path, Ensemble]:
    folder = snnp_data / "ani-1ccx-weights"
    model = read_neurochem(folder)
    assert isinstance(model, Ensemble)
    return folder / "ani-1ccx_8x", model


@pytest.fixture(scope="module")
def ani_al(snnp_data: Path) -> tuple[Path, Ensemble]:
    folder = snnp_data / "ani-al-weights"
    model = read_neurochem(folder)
    assert isinstance(model, Ensemble)
    return folder / "model-Al-75", model


def test_water_has_its_published_energy(ani_1ccx: tuple[Path, Ensemble]) -> None:
    """README of the repository of the weights; it used the Hartree of CODATA 2010, 27.21138505 eV."""
    folder, model = ani_1ccx
    old_hartree = 27.21138505 / HARTREE_IN_EV
    water = ase.io.read(folder.parent / "quicktest_water.xyz")
    water.calc = SNNPCalculator(model, dtype="float64")
    assert water.get_potential_energy() * old_hartree == pytest.approx(-2078.502822821320, abs=2e-6)
    LBFGS(water, logfile=None).run(fmax=0.001)
    assert water.get_potential_energy() * old_hartree == pytest.approx(-2078.504266011399, abs=2e-6)


def test_ani_1ccx_is_torchanis(ani_1ccx: tuple[Path, Ensemble], snnp_data: Path) -> None:
    folder, model = ani_1ccx
    with gzip.open(snnp_data / "cc-reference" / "molecules.xyz.gz", "rt") as handle:
        frames = ase.io.read(io.StringIO(handle.read()), ":60:12", format="extxyz")
    frames += ase.io.read(snnp_data / "comp6-s66x8" / "data.xyz", "::160")
    assert {symbol for atoms in frames for symbol in atoms.symbols} == {"H", "C", "N", "O"}
    for atoms in frames:
        _require_torchani(model, folder, atoms)


# eV, in float64; docs/ani.md gives the first of each.
@pytest.mark.parametrize(
    ("name", "files_sha256", "energies"),
    [
        (
            "ani-1x",
            "35fa37fb35fbd7fc0e357e0c2918bbf68d8edabf5dfc44f452e615a0f4528373",
            {"CH3CH2OH": -4217.496692, "CH3CONH2": -5691.472341},
        ),
        (
            "ani-2x",
            "32757c8d61de5ce40912da4091574ee8863a808df0652ad2b4964cf8b505792a",
            {"CH3CH2OH": -4217.499214, "CH3SH": -11936.604573, "CH3Cl": -13607.777056, "C2F4": -12936.290496},
        ),
    ],
)
def test_ani_1x_and_2x_are_torchanis(
    name: str, files_sha256: str, energies: dict[str, float], snnp_data: Path, repository: Path
) -> None:
    folder = snnp_data / f"{name}-weights" / f"{name}_8x"
    model = read_neurochem(folder)
    assert isinstance(model, Ensemble)
    page = (repository / "docs" / "ani.md").read_text(encoding="utf-8")
    assert model.metadata["source"]["files_sha256"] == files_sha256
    assert f"| {name}_8x | `{files_sha256}` | {model.n_parameters:,} |" in page
    for symbols, energy in energies.items():
        moved = molecule(symbols)
        moved.rattle(0.05, seed=0)  # forces of the size that tolerances are relative to
        _require_torchani(model, folder, moved)
        found = copy.deepcopy(model).double().compute(Structure.from_ase(molecule(symbols)))
        assert float(found.energy[0]) == pytest.approx(energy, abs=2e-6)
    assert f"{energies['CH3CH2OH']:.4f} eV" in page


def test_ani_al_is_torchanis(ani_al: tuple[Path, Ensemble]) -> None:
    """A crystal with a vacancy, and a slab; cells are wider than twice the cutoff, which torchani needs."""
    folder, model = ani_al
    crystal = bulk("Al", cubic=True).repeat((4, 4, 4))
    crystal.rattle(0.1, seed=0)
    del crystal[7]
    _require_torchani(model, folder, crystal)
    slab = bulk("Al", cubic=True).repeat((4, 4, 1))
    slab.center(vacuum=8.0, axis=2)
    _require_torchani(model, folder, slab)


def test_ani_al_knows_its_crystal(ani_al: tuple[Path, Ensemble]) -> None:
    _, model = ani_al
    assert model.n_parameters == 8 * 24_897
    assert model.cutoff == 7.0
    volumes = np.linspace(3.9, 4.2, 7)
    structures = Structure.from_ase([bulk("Al", a=a) for a in volumes])
    result = model.compute(structures)
    assert int(result.energy.argmin()) in (2, 3, 4)
    assert result.energy_std is not None
    assert 0.0 < float(result.energy_std.max()) < 0.1
