"""Fuzzing of what comes with a model: its files, those of other programs, manifests, recipes, configurations, states.

python tests/fuzz/models.py --seconds 300 [--seed 1] [--target NAME]
"""

from __future__ import annotations

import bz2
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).resolve().parents[2] / "datasets"))

import h5py
import numpy as np
import torch
import yaml
from ase.build import bulk
from driver import Files, Target, main, mutate
from recipes import hdf5
from safetensors.torch import save

from snnp.analysis.card import card_markdown
from snnp.data.description import card, header, parse_description, read_description
from snnp.errors import SnnpError
from snnp.hub.manifest import make_manifest, read_manifest, verify_folder, write_manifest
from snnp.models import ANI, HIPNN, ANIConfig, Ensemble, HIPNNConfig, Potential, SplineNNP
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.models.hipnn.import_hippynn import import_hippynn
from snnp.models.spline import special_cases
from snnp.models.spline.meam_file import read_meam_spline
from snnp.models.store import dump_model, load_model, save_model
from snnp.sampling import MDSettings
from snnp.sampling.checkpoint import read_checkpoint, starting_point, write_checkpoint
from snnp.structure import Structure
from snnp.training import load_config

__all__ = ["TARGETS"]

_JUNK: tuple[Any, ...] = (
    0,
    1,
    -1,
    True,
    None,
    "",
    "1_000",
    "x",
    1e308,
    1e-308,
    10**400,
    2**40,
    65_536,
    1000,
    0.5,
    [],
    {},
    [[]],
    float("nan"),
)


@cache
def _models() -> dict[str, Potential]:
    linear = special_cases.linear(("Cu",), n_radial=2, n_angular=2, cutoff=4.0)
    network = special_cases.s_nnp(("Si", "C"), n_radial=2, n_angular=2, cutoff=4.0, hidden=(3,))
    hip = HIPNNConfig(elements=("H", "O"), n_features=2, n_sensitivities=3, n_interactions=1, n_atom_layers=1, l_max=1)
    ani = ANIConfig.model_validate(
        {
            "elements": ["H", "O"],
            "hidden": [2],
            "aev": {"radial": {"shifts": [1.0]}, "angular": {"shifts": [1.0], "sections": [1.0]}},
        }
    )
    made: dict[str, Potential] = {"linear": SplineNNP(linear), "network": SplineNNP(network).float()}
    made |= {"hip": HIPNN(hip), "ani": ANI(ani), "ensemble": Ensemble([SplineNNP(linear, seed=k) for k in range(2)])}
    about = {"errors": {"test": {"energy_mae_mev_per_atom": 1.0, "n_structures": 1}}, "licence": "MIT", "limits": ["a"]}
    for model in made.values():
        model.metadata = {**about, "dataset": "d", "reference_energies_from": {"Cu": "least squares"}}
    return made


@cache
def _folders() -> list[Files]:
    found: list[Files] = []
    for model in _models().values():
        text, weights = dump_model(model)
        found.append({"m/config.json": text.encode(), "m/model.safetensors": weights})
    return found


def _change_tree(random: Random, tree: Any) -> Any:
    """One value of a JSON tree replaced, taken away or doubled."""
    if isinstance(tree, dict) and tree and random.random() < 0.9:
        key = random.choice(sorted(tree))
        changed = dict(tree)
        if random.random() < 0.1:
            del changed[key]
        else:
            changed[key] = _change_tree(random, tree[key])
        return changed
    if isinstance(tree, list) and tree and random.random() < 0.8:
        k = random.randrange(len(tree))
        return [*tree[:k], _change_tree(random, tree[k]), *tree[k + 1 :], *(tree if random.random() < 0.1 else [])]
    return random.choice(_JUNK)


def _invent_model(random: Random) -> Files:
    """A configuration with other values, and weights whose checksum fits."""
    files = random.choice(_folders())
    description = json.loads(files["m/config.json"])
    weights = files["m/model.safetensors"]
    for _ in range(random.randint(0, 3)):
        description = _change_tree(random, description)
    if random.random() < 0.5:
        target = Target("weights", lambda _: None, [{"w": weights}], [b"F64", b"I64", b"BOOL", b"[]", b'"shape":[1]'])
        weights = mutate(random, target)["w"]
    if isinstance(description, dict):
        description["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    return {"m/config.json": json.dumps(description).encode(), "m/model.safetensors": weights}


def _check_model(folder: Path) -> None:
    """What loads can be computed with, shown, described and stored again."""
    model = load_model(folder / "m")
    atoms = bulk("Si").repeat(1)
    atoms.symbols[:] = model.elements[0]
    atoms.rattle(0.05, seed=0)
    found = model.compute(Structure.from_ase(atoms))
    assert bool(torch.isfinite(found.energy).all()), "an energy that is no number"
    save_model(model, folder / "again")
    load_model(folder / "again")
    try:
        assert "\x1b" not in card_markdown("name", model)
    except SnnpError:
        return


_PARAMS = b"""TM = 1
Rcr = 5.2
Rca = 3.5
EtaR = [16.0]
ShfR = [0.9]
Zeta = [32.0]
ShfZ = [0.2]
EtaA = [8.0]
ShfA = [0.9]
Atyp = [H,O]
"""
_LAYER = """layer [
nodes={after};
activation={activation};
type=0;
blocksize={before};
btchnorm=0;
weights=FILE:{name}.wparam[{count}];
biases=FILE:{name}.bparam[{after}];
]
"""


def _neurochem() -> list[Files]:
    files: dict[str, bytes] = {"f/a.params": _PARAMS, "f/sae_linfit.dat": b"H,0=-0.6\nO,1=-75.0\n"}
    for symbol in ("H", "O"):
        text = f"inputsize=5;\natom_net {symbol} $\n"
        for k, (before, after, activation) in enumerate([(5, 2, 9), (2, 1, 6)], 1):
            name, count = f"ANN-{symbol}.nnf-l{k}", before * after
            text += _LAYER.format(name=name, before=before, after=after, activation=activation, count=count)
            for kind, n in (("wparam", count), ("bparam", after)):
                files[f"f/networks/{name}.{kind}"] = np.ones(n, "<f4").tobytes()
        files[f"f/networks/ANN-{symbol}.nnf"] = f"{len(text)}=\n".encode() + bz2.compress(text.encode())
    return [files]


def _invent_neurochem(random: Random) -> Files:
    """A changed topology, packed as it should be."""
    files = dict(_neurochem()[0])
    name = "f/networks/ANN-H.nnf"
    text = bz2.decompress(files[name].partition(b"=\n")[2])
    words = [b"layer [\n", b"]\n", b"nodes=9;", b"FILE:", b"=", b";"]
    text = mutate(random, Target("t", lambda _: None, [{"t": text}], words))["t"]
    return {**files, name: f"{len(text)}=\n".encode() + bz2.compress(text)}


def _check_neurochem(folder: Path) -> None:
    read_neurochem(folder / "f")


_HIP = HIPNNConfig(elements=("H", "O"), n_features=2, n_sensitivities=3, n_interactions=1, n_atom_layers=0)


def _hippynn() -> list[Files]:
    base = "blocks.0.0.base_layer"
    shapes = {
        f"{base}.sensitivity.mu": (1, 3),
        f"{base}.sensitivity.sigma": (1, 3),
        f"{base}.int_weights": (3, 2, 2),
        f"{base}.selfint.weight": (2, 2),
        f"{base}.selfint.bias": (2,),
        "blocks.0.0.res_layer.weight": (2, 2),
        "blocks.0.0.res_layer.bias": (2,),
        "energy.layers.0.weight": (1, 2),
        "energy.layers.1.weight": (1, 2),
        "energy.layers.1.bias": (1,),
    }
    state = {name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return [
        {"s.safetensors": save(state)},
        {"s.safetensors": save({**state, "species_map": torch.tensor([0, 1, *[0] * 6, 2])})},
    ]


def _check_hippynn(folder: Path) -> None:
    import_hippynn(folder / "s.safetensors", _HIP)


def _check_meam(folder: Path) -> None:
    model = read_meam_spline(folder / "m.meam.spline", ("Ti",))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def _meam() -> list[Files]:
    spline = "4\n0.5 -0.5\n{}1.0 0.0 0.0\n2.0 1.0 0.0\n3.0 0.5 0.0\n4.0 0.0 0.0\n"
    new = "# comment\nmeam/spline 1 Ti\n" + 5 * f"spline3eq\n{spline.format('')}"
    old = "# comment\n" + 5 * spline.format("1 0 1 0\n")
    return [{"m.meam.spline": new.encode()}, {"m.meam.spline": old.encode()}]


def _in_folder(write: Callable[[Path], Any]) -> Files:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        return {
            str(path.relative_to(place)): path.read_bytes() for path in sorted(Path(place).rglob("*")) if path.is_file()
        }


def _hdf5() -> list[Files]:
    def write(folder: Path) -> None:
        with h5py.File(folder / "raw.h5", "w", libver="earliest") as file:
            for name in ("A", "A/B"):
                group = file.require_group(name)
                group["species"] = np.array([b"H", b"O"])
                group["energies"] = np.zeros(4)
                group.create_dataset("coordinates", data=np.zeros((4, 2, 3)), chunks=(2, 2, 3), compression="gzip")

    return [_in_folder(write)]


def _check_hdf5(folder: Path) -> None:
    for _, arrays in hdf5(folder / "raw.h5", {"species", "energies", "coordinates"}):
        del arrays


def _manifest() -> list[Files]:
    def write(folder: Path) -> None:
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "notes").mkdir()
        (folder / "notes" / "a.txt").write_text("text")
        write_manifest(folder, make_manifest(folder, "model", about={"free": [1, {"x": None}]}))

    return [_in_folder(write)]


def _check_manifest(folder: Path) -> None:
    verify_folder(folder, read_manifest(folder, "model"), quick=False)


def _description() -> list[Files]:
    folders = sorted((Path(__file__).resolve().parents[2] / "datasets").glob("*/manifest.json"))
    return [{"d.json": path.read_bytes()} for path in folders]


def _invent_description(random: Random) -> Files:
    tree = json.loads(random.choice(_description())["d.json"])
    for _ in range(random.randint(1, 3)):
        tree = _change_tree(random, tree)
    return {"d.json": json.dumps(tree).encode()}


def _check_description(folder: Path) -> None:
    description = read_description(folder / "d.json")
    head = yaml.safe_load(header(description).split("---\n")[1])
    assert head["pretty_name"] == description.title
    assert "\x1b" not in card(description)
    parse_description(json.loads(description.model_dump_json()), "again")


def _yaml() -> list[Files]:
    tree = {
        "data": {"train": ["a.xyz"], "valid": 0.1, "test": "b.xyz"},
        "model": {"family": "s-nnp", "radial": {"n_filters": 2}, "network": {"hidden": [4]}},
        "optimiser": {"epochs": 2, "learning_rate": 0.01},
        "metadata": {"licence": "MIT", "limits": ["none"]},
    }
    hip = {"data": {"train": ["a.xyz"]}, "model": {"family": "hip-nn"}, "loss": {"hierarchicality_weight": 0.1}}
    return [{"c.yaml": yaml.safe_dump(each).encode()} for each in (tree, hip)]


def _check_yaml(folder: Path) -> None:
    json.dumps(load_config(folder / "c.yaml").model_dump(mode="json"))


def _checkpoint() -> list[Files]:
    start = starting_point(bulk("Cu").repeat(2), MDSettings(temperature_k=300.0), "native")
    return [_in_folder(lambda folder: write_checkpoint(folder / "c.npz", start))]


def _check_checkpoint(folder: Path) -> None:
    read_checkpoint(folder / "c.npz")


TARGETS = (
    Target("model", _check_model, _folders(), [b"NaN", b"1e400", b"true", b'"cutoff": 1', b"[", b"{"], _invent_model),
    Target("neurochem", _check_neurochem, _neurochem(), [b"ANN-H", b"layer [\n", b"[H,O]", b"="], _invent_neurochem),
    Target("hippynn", _check_hippynn, _hippynn(), [b"F32", b"I64", b"species_map"]),
    Target("meam", _check_meam, _meam(), [b"spline3eq\n", b"meam/spline 2 Ti Zr\n", b"# ", b"UNITS: real"]),
    Target("hdf5", _check_hdf5, _hdf5()),
    Target("manifest", _check_manifest, _manifest(), [b'"files"', b"../", b"/etc/passwd", b"\\u0000"]),
    Target("description", _check_description, _description(), [b'"', b"\\n", b"\\u001b"], _invent_description),
    Target(
        "yaml", _check_yaml, _yaml(), [b"&a ", b"*a", b"<<: *a\n", b"!!python/name:os.system ", b"2026-01-01", b"- "]
    ),
    Target("checkpoint", _check_checkpoint, _checkpoint()),
)

if __name__ == "__main__":
    sys.exit(main(TARGETS))
