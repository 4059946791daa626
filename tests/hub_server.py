"""A Hugging Face hub on the loopback interface, for tests: repositories in memory, real routes, faults on demand.

It speaks what huggingface_hub 1.16 to 2.4 and datasets 5 ask of the hub to read a repository: its information, its
tree, single paths of it, and files, whole or in ranges. Large files are redirected to a storage route, as on the hub,
and carry their SHA-256.

    with HubServer() as hub:
        hub.add("owner/name", {"config.json": b"{}"})
        hub.fail("model.safetensors", status=503, times=2)
        ... HF_ENDPOINT=hub.endpoint ...
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Kind = Literal["models", "datasets"]

# What a repository keeps as a large file, and so has a SHA-256 of its own on the hub.
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".gguf")


@dataclass(frozen=True)
class Repository:
    """One repository, at one commit."""

    name: str
    """owner/name."""
    files: Mapping[str, bytes]
    """Contents by path."""
    kind: Kind = "models"
    """What it holds."""
    branches: tuple[str, ...] = ("main",)
    """What its commit goes by."""
    gated: bool = False
    """Whether files go to `licensed` tokens alone."""
    private: bool = False
    """Whether it exists for `licensed` tokens alone."""
    licensed: tuple[str, ...] = ()
    """The tokens of accounts that may read it."""
    license: str | None = None
    """What its card says of the licence."""

    @property
    def commit(self) -> str:
        """The commit: it changes with the files."""
        digest = hashlib.sha1(self.name.encode())
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()


@dataclass
class Fault:
    """What goes wrong with requests for paths that end in `suffix`. A large file's storage route ends in its name."""

    suffix: str
    """The end of the request's path."""
    method: str = "GET"
    """The requests that it meets."""
    status: int | None = None
    """The status to answer with, in place of the content."""
    cut_after: int | None = None
    """Bytes of the content after which the connection breaks."""
    times: int = 1
    """How many requests it still meets."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the answer, such as Retry-After."""


class Request(NamedTuple):
    """One request that came."""

    method: str
    path: str
    byte_range: str | None
    token: str | None


class RefusedError(Exception):
    """An answer that is an error, with the hub's code for it."""

    def __init__(self, status: int, code: str | None = None, message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing for a client that went away; what else goes wrong is the test's own mistake and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """The hub. Use it as a context manager; it serves on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.valid_tokens: set[str] = set()
        self._history: dict[tuple[Kind, str], list[Repository]] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files lie: another host, so that no token goes there."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes], **options: Any) -> Repository:
        """Put a repository on the hub, or a new commit on top of its others."""
        repository = Repository(name, dict(files), **options)
        self.valid_tokens.update(repository.licensed)
        self._history.setdefault((repository.kind, name), []).append(repository)
        return repository

    def add_folder(self, name: str, folder: Path, **options: Any) -> Repository:
        """Put the files of a folder on the hub."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self.add(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **options)

    def fail(self, suffix: str, **options: Any) -> None:
        """Have the next requests for paths with this end go wrong."""
        self._faults.append(Fault(suffix, **options))

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The fault that meets a request, which is one of its times."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and path.endswith(fault.suffix):
                    fault.times -= 1
                    return fault
        return None

    def repository(self, kind: Kind, name: str, revision: str, token: str | None) -> Repository:
        """A repository at a revision, as far as an account may know of it."""
        if token is not None and token not in self.valid_tokens:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        commits = self._history.get((kind, name), [])
        if not commits or (commits[-1].private and token not in commits[-1].licensed):
            # The hub does not tell strangers whether a repository is private or not there.
            raise RefusedError(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if revision in commits[-1].branches:
            return commits[-1]
        for repository in commits:
            if repository.commit == revision:
                return repository
        raise RefusedError(404, "RevisionNotFound", "Invalid rev id")

    def stored(self, oid: str) -> bytes:
        """The content of a large file."""
        for repository in chain.from_iterable(self._history.values()):
            for content in repository.files.values():
                if hashlib.sha256(content).hexdigest() == oid:
                    return content
        raise RefusedError(404, "EntryNotFound")


def is_large(path: str) -> bool:
    """Whether a repository keeps a file outside git."""
    return path.endswith(LFS_SUFFIXES)


def _object_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _large_file(content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 134}


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _object_id(content)}
    return entry | ({"lfs": _large_file(content)} if is_large(path) else {})


def _folders(paths: list[str]) -> list[str]:
    return sorted({str(parent) for path in paths for parent in PurePosixPath(path).parents if str(parent) != "."})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Else a small answer waits for the acknowledgement of its headers.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests read `requests`."""

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        self.hub.requests.append(Request(self.command, unquote(url.path), self.headers.get("Range"), token))
        fault = self.hub.fault_for(self.command, unquote(url.path))
        try:
            if fault is not None and fault.status is not None:
                raise RefusedError(
                    fault.status, **{name.replace("-", "_"): value for name, value in fault.headers.items()}
                )
            self._route(url.path, parse_qs(url.query), body, token, fault.cut_after if fault else None)
        except RefusedError as refusal:
            self._send(refusal.status, b'{"error": "refused"}', refusal.headers)

    def _route(
        self, path: str, query: dict[str, list[str]], body: bytes, token: str | None, cut_after: int | None
    ) -> None:
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})/.+", path):
            return self._send_file(self.hub.stored(match[1]), {"ETag": f'"{match[1]}"'}, cut_after)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.*))?", path):
            name, what, rest = match.groups()[1:]
            revision, _, inside = (rest or "main").partition("/")
            kind = "datasets" if match[1] == "datasets" else "models"
            repository = self.hub.repository(kind, name, unquote(revision), token)
            if what == "tree":
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                return self._send_json(self._tree(repository, unquote(inside), recursive=recursive))
            if what == "paths-info":
                return self._send_json(self._paths_info(repository, body))
            return self._send_json(self._information(repository))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            repository = self.hub.repository(kind, match[2], unquote(match[3]), token)
            return self._resolve(repository, unquote(match[4]), token, cut_after)
        raise RefusedError(404)

    def _information(self, repository: Repository) -> dict[str, Any]:
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": _object_id(content)}
            | ({"lfs": _large_file(content)} if is_large(path) else {})
            for path, content in sorted(repository.files.items())
        ]
        return {
            "_id": repository.commit[:24],
            "id": repository.name,
            "sha": repository.commit,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": {"license": repository.license} if repository.license else None,
            "siblings": siblings,
        }

    def _tree(self, repository: Repository, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder.rstrip('/')}/" if folder.strip("/") else ""
        inside = [path for path in sorted(repository.files) if path.startswith(prefix)]
        if not inside:
            raise RefusedError(404, "EntryNotFound", X_Repo_Commit=repository.commit)
        folders = [path for path in _folders(inside) if path.startswith(prefix) and path != prefix.rstrip("/")]
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
        ]
        entries += [_tree_entry(path, repository.files[path]) for path in inside]
        return [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)]

    def _paths_info(self, repository: Repository, body: bytes) -> list[dict[str, Any]]:
        if (self.headers.get("Content-Type") or "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        found = [_tree_entry(path, repository.files[path]) for path in paths if path in repository.files]
        folders = [path for path in paths if path in _folders(list(repository.files))]
        return found + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]

    def _resolve(self, repository: Repository, path: str, token: str | None, cut_after: int | None) -> None:
        if repository.gated and token not in repository.licensed:
            raise RefusedError(401 if token is None else 403, "GatedRepo", "Access to this repository is restricted.")
        commit = {"X-Repo-Commit": repository.commit}
        if path not in repository.files:
            raise RefusedError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=repository.commit)
        content = repository.files[path]
        if is_large(path):
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
            location = {"Location": f"{self.hub.storage}/storage/{digest}/{path}"}
            return self._send(302, b"", {**commit, **linked, **location})
        return self._send_file(content, {**commit, "ETag": f'"{_object_id(content)}"'}, cut_after)

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, content: bytes, headers: dict[str, str], cut_after: int | None) -> None:
        status, headers = 200, {**headers, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
            if first >= len(content):
                raise RefusedError(416, Content_Range=f"bytes */{len(content)}")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self._send(status, content, headers, cut_after)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], cut_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_after])
            if cut_after is not None and cut_after < len(content):
                self.close_connection = True


@contextmanager
def reachable_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """A hub that this process' huggingface_hub talks to, with an empty cache and no token.

    The library reads its environment when it is imported, so that what it made of it is what changes.
    """
    from huggingface_hub import constants

    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        # Where `hf auth login` leaves a token.
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "saved_token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def hub_environment(hub: HubServer, home: Path) -> dict[str, str]:
    """What a process of its own needs in its environment to talk to this hub."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
