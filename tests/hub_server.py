"""A Hub on the loopback: the part of huggingface.co's HTTP interface that `huggingface_hub` uses, faults on demand.

    def test(hub: HubServer) -> None:               # the fixture of conftest.py: running, empty, with an empty cache
        hub.add_commit("model", "org/name", {"config.json": b"{}"})
        hub.faults.append(Fault("GET", "/resolve/", status=500, times=2))

It speaks: creation of repositories, preupload, large files (LFS batch, PUT), commits, trees, refs, listings, `resolve`
with redirects to a content store and byte ranges, tokens with roles, and private repositories. Not spoken: Xet.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_writer": "org", "hf_reader": "reader"}  # token -> user; `org` may write to org/...
LARGE = (".safetensors", ".png", ".parquet")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match."""

    method: str
    path: str  # a regular expression, searched for in the path
    times: int = 1
    status: int | None = None  # answer this
    wait: float = 0.0  # seconds before the answer
    drop_after: int | None = None  # send so many bytes of the body, then close the connection
    change: Callable[[bytes], bytes] | None = None  # send another body
    headers: dict[str, str] = field(default_factory=dict)  # send these in place of the true ones


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    """Commits in order, each with its files; branches and tags point at commits."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # hash, message, files
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit hash and files of a branch, tag or commit."""
        wanted = self.refs.get(revision) or self.tags.get(revision) or revision
        return next(((oid, files) for oid, _, files in self.commits if oid == wanted), None)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        """Add a commit that holds exactly these files."""
        seed = json.dumps([len(self.commits), message, {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits.append((oid, message, files))
        self.refs[branch] = oid
        return oid


def git_hash(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """The server (it runs as long as the program), its repositories, what it was asked, and its faults to come."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()
        owner = self

        class Handler(_Handler):
            server_state = owner

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        self.url = f"http://127.0.0.1:{http.server_port}"
        self.store_url = f"http://localhost:{http.server_port}/store"  # another host, as a content network is
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def clear(self) -> None:
        """Forget everything."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.store: dict[str, bytes] = {}  # large files by sha256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []

    def add_commit(
        self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False, branch: str = "main"
    ) -> str:
        """Put files into a repository from behind, whatever their names; returns the commit."""
        with self.lock:
            repository = self.repositories.setdefault((kind, name), Repository(private=private))
            for path, content in files.items():
                if path.endswith(LARGE):
                    self.store[hashlib.sha256(content).hexdigest()] = content
            return repository.commit(dict(files), "from behind", branch)

    def seen(self, method: str, pattern: str) -> list[Request]:
        """Requests of a method whose path matches."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    # Requests come in here.

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        state = self.server_state
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path = unquote(split.path)
        self.query = parse_qs(split.query)
        self.fault: Fault | None = None
        with state.lock:
            state.requests.append(Request(method, path, dict(self.headers)))
            for fault in state.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    self.fault = fault
                    break
        if self.fault is not None:
            time.sleep(self.fault.wait)
        if self.fault is not None and self.fault.status is not None:
            self._error(self.fault.status, "planned fault")
            return
        with state.lock:
            self._route(method, path)

    def _route(self, method: str, path: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        self.user = TOKENS.get(token)
        if token and self.user is None and not path.startswith("/store/"):
            self._error(401, "Invalid credentials in Authorization header")
            return
        for verb, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and (verb == method or (verb == "GET" and method == "HEAD")):
                handler(self, **match.groupdict())
                return
        self._error(404, f"no such route: {method} {path}")

    # Answers.

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        fault = self.fault
        if fault is not None and fault.change is not None:
            content = fault.change(content)
        headers = {"Content-Length": str(len(content)), **headers, **(fault.headers if fault else {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.drop_after is not None:
            self.wfile.write(content[: fault.drop_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(1)
            return
        self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code is not None:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    # Repositories.

    def _find(self, kinds: str | None, name: str, *, write: bool = False) -> Repository | None:
        """The repository if it exists and may be used; answers with the error otherwise."""
        kind = (kinds or "models").rstrip("/").removesuffix("s")
        repository = self.server_state.repositories.get((kind, name))
        owner = name.partition("/")[0]
        if repository is None or (repository.private and self.user != owner):
            self._error(404 if self.user else 401, "Repository not found", "RepoNotFound")
            return None
        if write and self.user != owner:
            self._error(403, f"You have no rights to write to {name}")
            return None
        return repository

    def _at(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = repository.files(revision)
        if found is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def who(self) -> None:
        if self.user is None:
            self._error(401, "Invalid username or password.")
        else:
            self._json({"name": self.user, "type": "user", "auth": {"type": "access_token"}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        owner = wanted.get("organization") or self.user
        if self.user is None or owner != self.user:
            self._error(401 if self.user is None else 403, f"You have no rights to create in {owner}")
            return
        name = f"{owner}/{wanted['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.server_state.url}/{prefix}{name}", "name": name, "id": name}
        if (kind, name) in self.server_state.repositories:
            self._json({**answer, "error": "You already created this model repo"}, status=409)
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = Repository(private=private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.server_state.repositories[kind, name] = repository
        self._json(answer)

    def info(self, kinds: str, name: str, revision: str = "main") -> None:
        repository = self._find(kinds, name)
        found = self._at(repository, revision) if repository else None
        if repository is not None and found is not None:
            self._json(self._summary(name, repository, *found))

    def _summary(self, name: str, repository: Repository, oid: str, files: dict[str, bytes]) -> dict[str, Any]:
        return {
            "_id": oid[:24],
            "id": name,
            "modelId": name,
            "sha": oid,
            "private": repository.private,
            "downloads": 3,
            "likes": 0,
            "tags": ["snnp"],
            "lastModified": "2026-11-21T12:00:00.000Z",
            "siblings": [{"rfilename": path} for path in files],
        }

    def listing(self, kinds: str) -> None:
        owner = self.query.get("author", [None])[0]
        tagged = self.query.get("filter", [])
        found = []
        for (kind, name), repository in self.server_state.repositories.items():
            at = repository.files("main")
            visible = not repository.private or self.user == name.partition("/")[0]
            if kind != kinds.removesuffix("s") or at is None or not visible:
                continue
            card = at[1].get("README.md", b"")
            if (owner is None or name.startswith(f"{owner}/")) and all(tag.encode() in card for tag in tagged):
                found.append(self._summary(name, repository, *at))
        self._json(found)

    def tree(self, kinds: str, name: str, revision: str) -> None:
        repository = self._find(kinds, name)
        found = self._at(repository, revision) if repository else None
        if found is not None:
            self._json([self._tree_entry(path, content) for path, content in found[1].items()])

    def _tree_entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def refs(self, kinds: str, name: str) -> None:
        repository = self._find(kinds, name)
        if repository is not None:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.refs.items()]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
            self._json({"branches": branches, "tags": tags, "converts": []})

    # Downloads.

    def resolve(self, kinds: str | None, name: str, revision: str, path: str) -> None:
        repository = self._find(kinds, name)
        found = self._at(repository, revision) if repository else None
        if found is None:
            return
        oid, files = found
        if path not in files:
            self._error(404, "Entry not found", "EntryNotFound")
            return
        content = files[path]
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.server_state.store_url}/{digest}"
            self._send(302, b"", headers)
        else:
            headers["ETag"] = f'"{git_hash(content)}"'
            self._send_range(content, headers)

    def stored(self, digest: str) -> None:
        content = self.server_state.store.get(digest)
        if content is None:
            self._error(404, "no such object")
        else:
            self._send_range(content, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None:
            self._send(200, content, headers)
            return
        first = int(wanted.group(1))
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206, content[first:], headers)

    # Uploads.

    def preupload(self, kinds: str, name: str, revision: str) -> None:
        repository = self._find(kinds, name, write=True)
        found = self._at(repository, revision) if repository else None
        if found is None:
            return
        answers = []
        for each in json.loads(self.body)["files"]:
            large = each["path"].endswith(LARGE)
            content = found[1].get(each["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else git_hash(content)
            mode = "lfs" if large else "regular"
            answers.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def lfs_batch(self, kinds: str | None, name: str) -> None:
        if self._find(kinds, name, write=True) is None:
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server_state.store:
                put = {"href": f"{self.server_state.store_url}/{each['oid']}", "header": {}}
                answer["actions"] = {"upload": put}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            self._error(400, "content does not match its id")
            return
        self.server_state.store[digest] = self.body
        self._send(200, b"", {})

    def commit(self, kinds: str, name: str, revision: str) -> None:
        repository = self._find(kinds, name, write=True)
        found = self._at(repository, revision) if repository else None
        if repository is None or found is None:
            return
        files, message = dict(found[1]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, found[0]):
                    self._error(412, "A commit has happened since. Please refresh and try again.")
                    return
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server_state.store[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, message, revision)
        url = f"{self.server_state.url}/{name}/commit/{oid}"
        self._json({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None, "success": True})

    def validate_card(self) -> None:
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        else:
            self._json({"errors": [], "warnings": []})


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kinds>models|datasets)/{_NAME}"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", r"/api/(?P<kinds>models|datasets)", _Handler.listing),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("GET", rf"{_API}/tree/(?P<revision>.+)", _Handler.tree),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    ("GET", _API, _Handler.info),
    ("GET", rf"/(?P<kinds>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("POST", rf"/(?P<kinds>datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("GET", r"/store/(?P<digest>[0-9a-f]{64})", _Handler.stored),
    ("PUT", r"/store/(?P<digest>[0-9a-f]{64})", _Handler.put),
]

HUB = HubServer()


def environment() -> dict[str, str]:
    """Environment in which `huggingface_hub` knows no Hub but this one, no token, and an empty cache."""
    home = tempfile.mkdtemp(prefix="snnp-hub-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    silent = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    places = {
        "HF_ENDPOINT": HUB.url,
        "HF_HOME": home,
        "HF_HUB_CACHE": f"{home}/hub",
        "HF_ASSETS_CACHE": f"{home}/assets",
    }
    # Xet would be used for uploads if it could; the server does not speak it.
    return {**places, **silent, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "SNNP_MIRROR": ""}
