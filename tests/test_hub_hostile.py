"""Hostile repositories and damaged files: refused with a clear error, nothing run, nothing outside the cache."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnp.errors import HubError, ModelFileError, SnnpError
from snnp.hub import load_model, make_manifest, resolve, write_manifest
from snnp.hub.manifest import Manifest, parse_manifest
from snnp.models import SplineNNP
from snnp.models.formats import read_weights
from snnp.models.spline import special_cases
from snnp.models.store import dump_model, parse_model

Files = dict[str, bytes]


def _sound() -> Files:
    """The files of a small model, all right."""
    model = SplineNNP(special_cases.linear(("Cu",), n_radial=2, n_angular=2, cutoff=4.0), {"Cu": -3.5}, seed=1)
    text, weights = dump_model(model)
    return {"config.json": text.encode(), "model.safetensors": weights, "README.md": b"---\nlicense: mit\n---\n"}


SOUND = _sound()


def _with_manifest(files: Files, **extra: Any) -> Files:
    """The files with a manifest that fits them, however unfit they are."""
    entries = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
    content = {"format": "snnp-manifest", "format_version": 1, "kind": "model", "files": entries, **extra}
    return {**files, "manifest.json": json.dumps(content).encode()}


def _with_weights(weights: bytes) -> Files:
    """Other weights, with checksums that fit them everywhere."""
    config = json.loads(SOUND["config.json"])
    config["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    return _with_manifest({**SOUND, "model.safetensors": weights, "config.json": json.dumps(config).encode()})


def _with_config(**changes: Any) -> Files:
    config = {**json.loads(SOUND["config.json"]), **changes}
    return _with_manifest({**SOUND, "config.json": json.dumps(config).encode()})


class _Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def outside(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a user works; nothing may appear in it or beside it but the cache."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    assert list(work.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "hub-cache", "hub-assets"}
    assert all(path.resolve().is_relative_to(tmp_path / "hub-cache") for path in (tmp_path / "hub-cache").rglob("*"))


def _refused(hub: HubServer, files: Files) -> str:
    hub.add_commit("model", "org/evil", files)
    with pytest.raises((HubError, ModelFileError)) as caught:
        load_model("org/evil")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_the_sound_one_loads(hub: HubServer, outside: Path) -> None:
    """Else the tests below would show nothing."""
    hub.add_commit("model", "org/good", _with_manifest(SOUND))
    assert load_model("org/good").elements == ("Cu",)


# Names.

PATHS = ["../evil.txt", "../../../../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "C:\\evil.txt", "..\\evil.txt"]
PATHS += [
    "",
    ".",
    "a//b.txt",
    "./b.txt",
    ".hidden.txt",
    "a/.git/config.txt",
    "evil.txt\0",
    "evil\n.txt",
    "~/x.txt",
    "*.txt",
]
PATHS += ["x" * 300 + ".txt", "évil.txt"]


@pytest.mark.parametrize("path", PATHS)
def test_names_outside_the_repository(hub: HubServer, outside: Path, path: str) -> None:
    message = _refused(hub, _with_manifest({**SOUND, path: b"evil"}))
    assert "no plain file name inside the repository" in message
    assert hub.seen("GET", r"evil\.txt|resolve/.*(config|safetensors)") == []


def test_names_outside_that_only_the_server_lists(hub: HubServer, outside: Path) -> None:
    """Files that the manifest does not list are not asked for, whatever they are called."""
    hub.add_commit("model", "org/evil", {**_with_manifest(SOUND), "../../evil.txt": b"evil", "/abs.txt": b"evil"})
    assert load_model("org/evil").elements == ("Cu",)
    assert hub.seen("GET", r"evil\.txt|abs\.txt") == []


@pytest.mark.parametrize("commit", ["../../../evil", "main", "0" * 39, "G" * 40, ""])
def test_commit_that_is_none(hub: HubServer, outside: Path, commit: str) -> None:
    def lie(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "sha": commit}).encode()

    hub.add_commit("model", "org/evil", _with_manifest(SOUND))
    hub.faults.append(Fault("GET", "^/api/models/org/evil$", times=9, change=lie))
    with pytest.raises(HubError, match=r"where a commit hash belongs|answered"):
        resolve("org/evil")


# Kinds of files.


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "code.py", "run.sh", "a.so"]
)
def test_kinds_of_files_that_models_do_not_have(hub: HubServer, outside: Path, name: str) -> None:
    trap = pickle.dumps(_Trap(outside / "ran"))
    message = _refused(hub, _with_manifest({**SOUND, name: trap}))
    assert f"lists '{name}': a model repository holds no files of this kind" in message
    assert hub.seen("GET", name) == []


def test_pickle_in_place_of_the_manifest(hub: HubServer, outside: Path) -> None:
    message = _refused(hub, {**SOUND, "manifest.json": pickle.dumps(_Trap(outside / "ran"))})
    assert "is no manifest of snnp" in message


def test_pickle_in_place_of_the_configuration(hub: HubServer, outside: Path) -> None:
    message = _refused(hub, _with_manifest({**SOUND, "config.json": pickle.dumps(_Trap(outside / "ran"))}))
    assert "config.json" in message


# Weights.


def _header(content: Any, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(shape: list[Any], first: int, last: int, dtype: str = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


_UNSOUND = "header is not valid or does not fit its data"
WEIGHTS: dict[str, tuple[bytes, str]] = {
    "a pickle": (pickle.dumps({"weights": 1}), "looks like a pickle, which could run code"),
    "an archive of torch": (b"PK\x03\x04" + b"\0" * 100, "looks like a zip archive"),
    "NumPy": (b"\x93NUMPY\x01\x00" + b"\0" * 100, "looks like a NumPy file"),
    "a header of 10 GB": (struct.pack("<Q", 10 * 10**9) + b"{}", "claims a header of 10,000,000,000 bytes"),
    "a header of 2^63": (struct.pack("<Q", 2**63) + b"{}", "claims a header of 9,223,372,036,854,775,808 bytes"),
    "nothing": (b"", "model.safetensors is empty"),
    "too short": (b"\x02\0\0", "no safetensors file"),
    "a name without end": (
        _header({"x" * 100_000: _tensor([1], 4, 12)}, b"\0" * 8),
        "xx); fetch it again, and do not use it",
    ),
    "no JSON": (struct.pack("<Q", 4) + b"abcd", "header is not valid"),
    "deep JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, "header is not valid"),
    "tensors of terabytes": (_header({"x": _tensor([2**40], 0, 2**43)}), _UNSOUND),
    "shape and bytes that differ": (_header({"x": _tensor([3], 0, 8)}, b"\0" * 8), _UNSOUND),
    "a shape that overflows": (_header({"x": _tensor([2**47] * 8, 0, 8)}, b"\0" * 8), _UNSOUND),
    "negative shapes": (_header({"x": _tensor([-1], 0, 8)}, b"\0" * 8), "header is not valid"),
    "overlapping tensors": (_header({"x": _tensor([1], 0, 8), "y": _tensor([1], 4, 12)}, b"\0" * 12), _UNSOUND),
    "an unknown type": (_header({"x": _tensor([1], 0, 8, "OBJECT")}, b"\0" * 8), _UNSOUND),
    "metadata that is a tensor": (_header({"__metadata__": _tensor([1], 0, 8)}, b"\0" * 8), _UNSOUND),
    "text that is no metadata": (_header({"x": {"a": "b"}}), _UNSOUND),
    "bytes behind the end": (_header({"x": _tensor([1], 0, 8)}, b"\0" * 9), _UNSOUND),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(hub: HubServer, outside: Path, name: str) -> None:
    weights, words = WEIGHTS[name]
    message = _refused(hub, _with_weights(weights))
    assert words in message
    assert "model.safetensors" in message


def test_pickle_in_place_of_weights_does_not_run(hub: HubServer, outside: Path) -> None:
    _refused(hub, _with_weights(pickle.dumps(_Trap(outside / "ran"))))


# Configurations.

_LINEAR = json.loads(SOUND["config.json"])["config"]
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a class outside the package": ({"class": "os.system"}, "unknown class 'os.system'"),
    "a class of another package": ({"class": "torch.nn.Module"}, "unknown class"),
    "a class that is a list": ({"class": ["SplineNNP"]}, "unknown class"),
    "code to import": ({"auto_map": {"AutoModel": "evil.Model"}, "class": "AutoModel"}, "unknown class 'AutoModel'"),
    "a newer format": ({"format_version": 99}, "upgrade with"),
    "a type that is code": ({"dtype": "load"}, "dtype must be float32 or float64"),
    "filters by the billion": ({"config": {**_LINEAR, "radial": {"n_filters": 10**9}}}, "less than or equal to 65536"),
    "a number that is a word": ({"config": {**_LINEAR, "radial": {"n_filters": "1000000000"}}}, "a valid integer"),
    "a number in disguise": ({"config": {**_LINEAR, "radial": {"n_filters": 1e12}}}, "a valid integer"),
    "sizes that multiply": (
        {"config": {**_LINEAR, "radial": {"n_filters": 50_000, "intervals": 1000}}},
        "the configuration asks for [1, 50000, 998]",
    ),
    "a wide network": (
        {"config": {**_LINEAR, "network": {"hidden": [50_000, 50_000]}}},
        "lacks readout.network.weights.0",
    ),
    "a deep network": ({"config": {**_LINEAR, "network": {"hidden": [500] * 10_000}}}, "at most 64 items"),
    "an unknown key": ({"config": {"elements": ["Cu"], "run": "evil"}}, "config key 'run'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_name_what_they_must_not(hub: HubServer, outside: Path, name: str) -> None:
    changes, words = CONFIGS[name]
    assert words in _refused(hub, _with_config(**changes))


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"1" * 10_000, b'{"a":' * 50_000, b'{"format": "snnp-model"', b"\xff\xfe"]
)
def test_configurations_that_are_no_json(hub: HubServer, outside: Path, text: bytes) -> None:
    assert "config.json" in _refused(hub, _with_manifest({**SOUND, "config.json": text}))


# Manifests.

MANIFESTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no manifest of snnp"),
    "deep JSON": (b"[" * 100_000, "no manifest of snnp"),
    "too large": (b'{"a": "' + b"x" * 4_100_000 + b'"}', "more than the 4,000,000"),
    "no files": (b'{"format": "snnp-manifest", "format_version": 1, "kind": "model", "files": {}}', "files"),
    "of something else": (b'{"format": "other", "format_version": 1, "kind": "model", "files": {"a": 1}}', "format"),
    "with further keys": (_with_manifest(SOUND, run="evil")["manifest.json"], "run"),
    "of a dataset": (_with_manifest(SOUND, kind="dataset")["manifest.json"], "describes a dataset, not a model"),
    "of a newer version": (_with_manifest(SOUND, format_version=2)["manifest.json"], "format version 2"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_none(hub: HubServer, outside: Path, name: str) -> None:
    content, words = MANIFESTS[name]
    assert words in _refused(hub, {**SOUND, "manifest.json": content})


def test_manifest_of_unfit_files_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(HubError, match="holds no files of this kind"):
        make_manifest(tmp_path, "model")
    with pytest.raises(HubError, match="holds no files to list"):
        make_manifest(tmp_path / "nothing", "model")


def test_cache_is_where_huggingface_hub_has_it(hub: HubServer) -> None:
    """No second cache: `hf cache` sees and removes what snnp fetched."""
    import huggingface_hub

    hub.add_commit("model", "org/good", _with_manifest(SOUND))
    load_model("org/good")
    scan = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert [repository.repo_id for repository in scan.repos] == ["org/good"]


# Anything at all: only the errors that the docstrings promise.

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@st.composite
def _changed(draw: st.DrawFn, sound: Any) -> Any:
    """A sound value with one of its parts replaced by anything, or dropped."""
    value = json.loads(json.dumps(sound))
    path = draw(st.sampled_from(_places(value)))
    if not path:
        return draw(_JSON)
    target = value
    for key in path[:-1]:
        target = target[key]
    if isinstance(target, dict) and draw(st.booleans()):
        del target[path[-1]]
    else:
        target[path[-1]] = draw(_JSON)
    return value


_MANIFEST = json.loads(_with_manifest(SOUND)["manifest.json"])
_LENGTH = int.from_bytes(SOUND["model.safetensors"][:8], "little")
_HEADER = json.loads(SOUND["model.safetensors"][8 : 8 + _LENGTH])


@_QUICK
@given(st.binary(max_size=300) | _JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_as_manifest(content: bytes) -> None:
    with pytest.raises(HubError):
        parse_manifest(content, "model")


@_QUICK
@given(_changed(_MANIFEST))
def test_any_change_of_a_manifest(content: Any) -> None:
    try:
        manifest = parse_manifest(json.dumps(content).encode(), "model")
    except HubError:
        return
    assert isinstance(manifest, Manifest)
    assert all(".." not in name and not name.startswith(("/", "\\", ".")) for name in manifest.files)


def _file(header: bytes, n_data: int) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(n_data)


@_QUICK
@given(st.binary(max_size=300), st.integers(0, 10_000))
def test_any_bytes_as_header(content: bytes, n_data: int) -> None:
    with pytest.raises(ModelFileError):
        read_weights(_file(content, n_data + 1), "weights")


@_QUICK
@given(_changed(_HEADER))
def test_any_change_of_a_header(content: Any) -> None:
    n_data = len(SOUND["model.safetensors"]) - 8 - _LENGTH
    try:
        tensors = read_weights(_file(json.dumps(content).encode(), n_data), "weights")
    except ModelFileError:
        return
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == n_data


@_QUICK
@given(content=st.binary(max_size=200))
def test_any_bytes_as_weights(content: bytes) -> None:
    try:
        read_weights(content, "weights")
    except ModelFileError:
        return
    assert content[8:10] == b"{}", "only the empty file of tensors is so short"


@_QUICK
@given(st.text(max_size=200) | _JSON.map(json.dumps))
def test_any_text_as_configuration(text: str) -> None:
    with pytest.raises(ModelFileError):
        parse_model(text, SOUND["model.safetensors"])


@_QUICK
@given(_changed(json.loads(SOUND["config.json"])))
def test_any_change_of_a_configuration(content: Any) -> None:
    try:
        model = parse_model(json.dumps(content), SOUND["model.safetensors"])
    except ModelFileError:
        return
    assert model.elements == ("Cu",)


def test_any_change_of_a_file_is_noticed(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in SOUND.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, make_manifest(folder, "model"))
    for name, content in SOUND.items():
        for place in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            (folder / name).write_bytes(bytes(changed))
            with pytest.raises(SnnpError, match=name):
                resolve_checked(folder)
        (folder / name).write_bytes(content)
    resolve_checked(folder)


def resolve_checked(folder: Path) -> None:
    """What pulling does after the download."""
    from snnp.hub.manifest import read_manifest, verify_folder

    verify_folder(folder, read_manifest(folder, "model"))
