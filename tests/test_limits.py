"""Files from elsewhere: what they can size is bounded before it is allocated, and what they say is what it seems."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from snnp.errors import ConfigError, ModelFileError
from snnp.models import (
    ANI,
    HIPNN,
    ANIConfig,
    Ensemble,
    HIPNNConfig,
    Potential,
    SplineNNP,
    SplineNNPConfig,
    load_model,
    special_cases,
)
from snnp.models.formats import stated
from snnp.models.store import dump_model, model_folder, parse_model
from snnp.training import load_config

SNNP = special_cases.s_nnp(("Si", "C"), n_radial=2, n_angular=2, cutoff=4.0, hidden=(4,))
SMALL_ANI = {
    "elements": ["H", "O"],
    "hidden": [3, 2],
    "aev": {"radial": {"shifts": [1.0, 2.0]}, "angular": {"shifts": [1.0], "sections": [1.0, 2.0]}},
}


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """No more memory than there is now and so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _families() -> dict[str, Potential]:
    hip = HIPNNConfig(elements=("H", "O"), n_features=3, n_sensitivities=2, n_interactions=2, n_atom_layers=1, l_max=2)
    variants: dict[str, dict[str, Any]] = {
        "shared": {"filters": "shared"},
        "pairs": {"filters": "pair", "pair_term": True, "skip": False},
        "angles by pairs": {"angular": {"n_filters": 2, "evaluator": "spline", "elements": "pair", "cutoff": 4.0}},
        "embedding": {"embedding": {"of": "features"}, "network": None, "skip": False},
        "sum": {"embedding": {"of": "sum"}, "ends": "free"},
        "one network": {"network": {"hidden": [3, 2], "elements": "shared"}, "repulsion": {"inner": 0.5, "outer": 1.0}},
        "no angles": {"angular": {"n_filters": 0}},
    }
    base = SNNP.model_dump(mode="json")
    made: dict[str, Potential] = {
        name: SplineNNP(SplineNNPConfig.model_validate({**base, **change})) for name, change in variants.items()
    }
    made |= {"hip": HIPNN(hip), "hip equal widths": HIPNN(hip.model_copy(update={"n_features": 2, "l_max": 0}))}
    made |= {"ani": ANI(ANIConfig.model_validate(SMALL_ANI)), "ensemble": Ensemble([SplineNNP(SNNP), SplineNNP(SNNP)])}
    return made


FAMILIES = _families()


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_follow_from_the_configuration(name: str) -> None:
    """What is compared with a file before a model is made is what the model then stores."""
    model = FAMILIES[name]
    if isinstance(model.config, SplineNNPConfig | HIPNNConfig | ANIConfig):
        stored = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        assert dict(model.config.tensors()) == stored
    again = parse_model(*dump_model(model))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


# Every whole number of every family, in every disguise.


def _numbers(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if isinstance(value, int) and not isinstance(value, bool):
            yield (*path, key)
        yield from _numbers(value, (*path, key))


def _with(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(tree)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


DISGUISES = [10**9, 60_000, 2**63, -1, 1e9, 4e4, "40000", "4_0", "1e9", True, [10**9], None, float("nan"), {}]
SIZED = {
    "snnp": SplineNNP(SNNP),
    "grids": SplineNNP(
        SplineNNPConfig.model_validate(
            {**SNNP.model_dump(mode="json"), "ends": "free", "grids": {"radial": [[1.0, 4.0, 5], [1.0, 4.0, 6]]}}
        )
    ),
    "hip": FAMILIES["hip"],
    "ani": FAMILIES["ani"],
    "ensemble": FAMILIES["ensemble"],
}


@pytest.mark.parametrize("name", SIZED)
def test_no_size_is_believed(name: str) -> None:
    text, weights = dump_model(SIZED[name])
    description = json.loads(text)
    paths = list(_numbers(description["config"]))
    assert paths
    with at_most(1 << 30):
        for path in paths:
            for value in DISGUISES:
                changed = {**description, "config": _with(description["config"], path, value)}
                with pytest.raises(ModelFileError) as caught:
                    parse_model(json.dumps(changed), weights)
                assert "\n" not in str(caught.value)


PRODUCTS: dict[str, dict[str, Any]] = {
    "118 elements by pairs": {"elements": None, "filters": "pair", "pair_term": True},
    "filters and intervals": {"radial": {"n_filters": 60_000, "intervals": 1000}},
    "no filters of many intervals": {"radial": {"n_filters": 0, "intervals": 10**8}},
    "wide layers": {"network": {"hidden": [60_000] * 60}},
    "many layers": {"network": {"hidden": [1] * 100_000}},
    "an embedding of features": {"embedding": {"of": "features", "intervals": 1000}, "radial": {"n_filters": 60_000}},
    "grids by the thousand": {"grids": {"radial": [[1.0, 4.0, 5]] * 100_000}},
    "elements by the thousand": {"elements": ["Si"] * 100_000},
    "a long reach": {"radial": {"n_filters": 2, "cutoff": 300.0}, "angular": {"n_filters": 2, "cutoff": 300.0}},
    "a long reach of angles": {"angular": {"n_filters": 2, "cutoff": 30.0}},
    "a long reach of grids": {"ends": "free", "grids": {"radial": [[1.0, 300.0, 5]] * 2}},
    "a grid without width": {"ends": "free", "grids": {"radial": [[1.0, 1.0 + 1e-16, 5]] * 2}},
    "a grid of infinite width": {"ends": "free", "grids": {"angle": [[-1e308, 1e308, 5]]}},
    "fewer grids than groups": {"ends": "free", "grids": {"radial": [[1.0, 4.0, 12]]}},
    "no grids": {"grids": {"radial": []}},
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_product_of_sizes_is_believed(name: str) -> None:
    from ase.data import chemical_symbols

    text, weights = dump_model(SplineNNP(SNNP))
    description = json.loads(text)
    change = dict(PRODUCTS[name])
    if change.get("elements", ()) is None:
        change["elements"] = chemical_symbols[1:]
    elements = change.get("elements", ["Si", "C"])
    description |= {"config": {**description["config"], **change}, "elements": elements}
    description["reference_energies"] = dict.fromkeys(elements, 0.0)
    with at_most(1 << 30), pytest.raises(ModelFileError):
        parse_model(json.dumps(description), weights)


def test_an_ensemble_is_no_larger_than_its_weights() -> None:
    text, weights = dump_model(FAMILIES["ensemble"])
    description = json.loads(text)
    description["config"]["members"] *= 5_000
    with at_most(1 << 30), pytest.raises(ModelFileError, match=r"lacks members\.2\."):
        parse_model(json.dumps(description), weights)


# Types and values of weights.


def _reading(change: Callable[[dict[str, torch.Tensor]], Any], **description: Any) -> Potential:
    text, weights = dump_model(SplineNNP(SNNP, {"Si": -1.0, "C": -2.0}).float())
    state = load(weights)
    change(state)
    weights = save(state)
    return parse_model(
        json.dumps({**json.loads(text), **description, "weights_sha256": hashlib.sha256(weights).hexdigest()}), weights
    )


WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    **{
        str(dtype): lambda state, dtype=dtype: state.update({k: v.to(dtype) for k, v in state.items()})
        for dtype in (torch.int64, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float64)
    },
    "one of another type": lambda state: state.update({"f.free": state["f.free"].double()}),
    "infinite in float32": lambda state: state.update({"f.free": torch.full_like(state["f.free"], 3e38)}),
    "NaN": lambda state: state["rho.free"].fill_(float("nan")),
    "divided by zero": lambda state: state["readout.std"].zero_(),
    "turned round": lambda state: state.update({"readout.linear": state["readout.linear"].T.contiguous()}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_what_the_configuration_states(name: str) -> None:
    _reading(lambda _: None)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        _reading(WEIGHTS[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "int64", "Tensor", True, None, ["float32"]])
def test_types_of_weights(dtype: Any) -> None:
    with pytest.raises(ModelFileError, match="dtype must be float32 or float64"):
        _reading(lambda _: None, dtype=dtype)


@pytest.mark.parametrize("energy", [1e308, 10**400, -1e12, True, None, "-1.0", float("nan"), float("inf"), [1.0]])
def test_energies_of_atoms(energy: Any) -> None:
    with pytest.raises(ModelFileError):
        _reading(lambda _: None, reference_energies={"Si": energy, "C": 0.0})


def test_weights_that_only_float64_can_hold(tmp_path: Path) -> None:
    """They load as they are stored; what float32 cannot hold is said when float32 is asked for."""
    from snnp.models import save_model

    model = SplineNNP(SNNP)
    with torch.no_grad():
        model.readout.std.fill_(1e-9)
    folder = save_model(model, tmp_path / "m")
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32
    (folder / "model.safetensors").write_bytes(weights := save({**model.state_dict(), "f.free": model.f.free * 1e300}))
    text = json.loads((folder / "config.json").read_text()) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(ModelFileError, match=r"f\.free holds NaN, infinity or numbers beyond"):
        load_model(folder)


# JSON that programs read in different ways.

TEXTS: dict[str, tuple[Callable[[str], str], str]] = {
    "a key twice": (
        lambda text: text.replace('"dtype"', '"dtype": "float64", "dtype"', 1),
        "'dtype' stands there twice",
    ),
    "a key twice inside": (
        lambda text: text.replace('"skip"', '"skip": false, "skip"', 1),
        "'skip' stands there twice",
    ),
    "deep metadata": (lambda text: text.replace('"metadata": {}', '"metadata": ' + "[" * 99 + "]" * 99), "nested more"),
    "endless numbers": (
        lambda text: text.replace('"metadata": {}', f'"metadata": {{"a": {"9" * 400}}}'),
        "beyond 2^63",
    ),
    "half a character": (lambda text: text.replace('"metadata": {}', '"metadata": {"a": "\\ud800"}'), "surrogates"),
    "a huge text": (
        lambda text: text.replace('"metadata": {}', f'"metadata": {{"a": "{"a" * 9_000_000}"}}'),
        "allowed",
    ),
    "a cutoff beyond all numbers": (lambda text: text.replace('"cutoff": 4.0', '"cutoff": 1e400'), "cutoff"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_with_two_meanings(name: str) -> None:
    change, words = TEXTS[name]
    text, weights = dump_model(SplineNNP(SNNP))
    assert change(text) != text
    with pytest.raises(ModelFileError, match=words.replace("^", r"\^")):
        parse_model(change(text), weights)


def test_metadata_of_other_forms_stop_no_reader() -> None:
    about = {"errors": [1e-300], "metrics": {"groups": 3}, "limits": "none", "speed": 7, "licence": "MIT", "own": [1]}
    assert stated(about) == {"licence": "MIT", "own": [1]}
    for name in ("snnp-si", "snnp-shared6", "hipnn-si", "snnp-3bpa"):
        known = json.loads((model_folder(name) / "config.json").read_text(encoding="utf-8"))["metadata"]
        assert stated(known) == known


# Files that are none.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "far too large"])
def test_files_that_are_none(name: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for each in ("config.json", "model.safetensors"):
        (folder / each).write_bytes((model_folder("snnp-si") / each).read_bytes())
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="m"):
        load_model(folder)


def test_a_header_of_a_hundred_megabytes() -> None:
    text, _ = dump_model(SplineNNP(SNNP))
    weights = struct.pack("<Q", 100_000_000) + b"{" + b" " * 99_999_998 + b"}"
    changed = {**json.loads(text), "weights_sha256": hashlib.sha256(weights).hexdigest()}
    with pytest.raises(ModelFileError, match="claims a header of 100,000,000 bytes"):
        parse_model(json.dumps(changed), weights)


# Configurations of training, which come with models as recipes.

YAML: dict[str, tuple[str, str]] = {
    "nothing": ("", "is empty"),
    "a list that holds itself": ("metadata: &a [*a]\n", "it holds lists nested more than 32 deep"),
    "a list of lists of lists": (
        "a0: &a0 [0,0,0,0,0,0,0,0,0,0]\n"
        + "".join(f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)),
        "more than 100,000 values",
    ),
    "a date": ("data: {train: [a.xyz]}\nmetadata: {made: 2026-01-01}\n", "metadata.made"),
    "a date that is none": ("data: {train: [a.xyz]}\nseed: 2026-13-45\n", "cannot be read as YAML"),
    "an object": ("data: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
    "a far reach": ("data: {train: [a.xyz]}\nmodel: {radial: {cutoff: 300}}\n", "less than or equal to 30"),
}


@pytest.mark.parametrize("name", YAML)
def test_configurations_of_training(name: str, tmp_path: Path) -> None:
    text, words = YAML[name]
    (tmp_path / "c.yaml").write_text(text)
    with at_most(1 << 30), pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "c.yaml")


# As users meet it: one line, before any allocation.


_PROGRAM = "from snnp.cli.main import run; run()"


def test_sizes_on_the_command_line(tmp_path: Path) -> None:
    from snnp.models import save_model

    folder = save_model(SplineNNP(SNNP), tmp_path / "m")
    description = json.loads((folder / "config.json").read_text())
    description["config"]["network"]["hidden"] = [60_000, 60_000]
    (folder / "config.json").write_text(json.dumps(description))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 8000000; exec {sys.executable} -c '{_PROGRAM}' info {folder}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "the configuration asks for" in done.stderr
