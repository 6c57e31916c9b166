"""A small Hugging Face hub on this machine, for tests without a network. Standard library only.

It implements what huggingface_hub needs: repository info, trees, resolve with ETag, X-Repo-Commit, X-Linked-Size,
redirects to a store on another host, ranges, moved, private and gated repositories, tokens. Xet is not used.

Files are at ``ROOT/models|datasets/ORG/NAME/REVISION/...``, one folder per branch or tag. Next to them there may be
``repo.json``: ``{"moved_from": ["old-name"], "private": false, "disabled": false, "gated": false, "readers": ["alice"],
"licence": "mit"}``. A commit is a hash of the files, so a changed ``main`` is another commit, and a copy of a folder
under another name keeps its commit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = re.compile(r"\.(bin|parquet|png|pth?|safetensors|zip)$", re.IGNORECASE)
CHUNK = 2**16


@dataclass
class Fault:
    """A fault for requests whose ``PATH?QUERY`` matches.

    Attributes:
        match: Regular expression that is searched.
        times: How often; None is always.
        status: Answer with this status.
        headers: Added to the answer.
        body: Content instead of the file's.
        after: Break the connection after this many bytes of the body.
        damage: Overwrite the middle of the body, keeping the length.
        cut: Truncate the body by this many bytes, with matching headers.
    """

    match: str
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    after: int | None = None
    damage: bool = False
    cut: int = 0


@dataclass
class Request:
    """One received request."""

    method: str
    path: str
    token: str | None
    range: str | None


class AnswerError(Exception):
    """An error response of the hub."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


@dataclass(frozen=True)
class File:
    """One file of a repository."""

    name: str
    path: Path
    size: int
    sha1: str
    sha256: str

    @property
    def lfs(self) -> bool:
        """Whether it is in the store."""
        return bool(LFS.search(self.name))

    @property
    def etag(self) -> str:
        """The hub's hash of the content."""
        return self.sha256 if self.lfs else self.sha1


@functools.cache
def _hashes(path: str, size: int, mtime_ns: int) -> tuple[str, str]:
    """Return the git blob hash and the sha256."""
    raw = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % size + raw).hexdigest(), hashlib.sha256(raw).hexdigest()


class Repo:
    """A repository: a folder with one folder per revision."""

    def __init__(self, root: Path, kind: str, name: str) -> None:
        self.kind, self.name, self.folder = kind, name, root / f"{kind}s" / name
        file = self.folder / "repo.json"
        self.settings: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def at(self, revision: str) -> tuple[str, dict[str, File]]:
        """Return commit and files of a branch, a tag or a commit."""
        for folder in sorted(p for p in self.folder.iterdir() if p.is_dir()):
            files = self._files(folder)
            listed = "\n".join(f"{f.name}\0{f.etag}" for f in files.values())
            commit = hashlib.sha1(listed.encode()).hexdigest()
            if revision in {unquote(folder.name), commit}:
                return commit, files
        raise AnswerError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    @staticmethod
    def _files(folder: Path) -> dict[str, File]:
        found = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            stat, name = path.stat(), path.relative_to(folder).as_posix()
            hashes = _hashes(str(path), stat.st_size, stat.st_mtime_ns)
            found[name] = File(name, path, stat.st_size, *hashes)
        return found


class Hub:
    """The server; a context manager.

    Args:
        root: Folder of the repositories.
        tokens: Token -> user.
    """

    def __init__(self, root: Path, *, tokens: dict[str, str] | None = None) -> None:
        self.root, self.tokens = root, tokens or {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.stored: dict[str, Path] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.port = int(self.server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def handler(self) -> type[Handler]:
        """Return the class that answers requests."""
        return Handler

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path) -> dict[str, str]:
        """Return environment variables that redirect a process here, with its own hub cache under ``home``."""
        return {
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_ENDPOINT": self.url,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def constants(self, cache: Path) -> dict[str, Any]:
        """Return attributes of ``huggingface_hub.constants`` that redirect this process here."""
        return {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
        }

    def fault(self, match: str, **what: Any) -> None:
        """Add a fault, see :class:`Fault`."""
        with self.lock:
            self.faults.append(Fault(match, **what))

    def asked(self, match: str) -> list[Request]:
        """Return the requests received so far whose path matches."""
        with self.lock:
            return [r for r in self.log if re.search(match, r.path)]

    def take_fault(self, path: str) -> Fault | None:
        """Return the first fault that matches, and count it."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault.match, path):
                    if fault.times is not None:
                        fault.times -= 1
                        if not fault.times:
                            self.faults.remove(fault)
                    return fault
        return None

    def moved(self, kind: str, name: str) -> str | None:
        """Return the current name of a repository that was renamed from ``name``."""
        for settings in (self.root / f"{kind}s").glob("**/repo.json"):
            if name in json.loads(settings.read_text()).get("moved_from", ()):
                return settings.parent.relative_to(self.root / f"{kind}s").as_posix()
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        """The server."""
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: object) -> None:
        """Log nothing: the hub keeps its own log."""

    def do_GET(self) -> None:
        """Answer any method."""
        url = urlsplit(self.path)
        self.where = url.path + (f"?{url.query}" if url.query else "")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = (self.headers.get("Authorization") or "").split()
        self.token = words[-1] if words else None
        with self.hub.lock:
            range_ = self.headers.get("Range")
            self.hub.log.append(Request(self.command, self.where, self.token, range_))
        self.broken = self.hub.take_fault(self.where)
        try:
            if self.broken and self.broken.status:
                self._send(self.broken.status, b"fault", self.broken.headers)
            elif self.broken and self.broken.body is not None:
                self._send(200, self.broken.body.encode(), {"Content-Type": "text/html"})
            else:
                self._route(url.path, parse_qs(url.query))
        except AnswerError as err:
            headers = dict(err.headers)
            if err.status >= 400:
                headers["X-Error-Message"] = err.message
            if err.code:
                headers["X-Error-Code"] = err.code
            self._send(err.status, json.dumps({"error": err.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    # ------------------------------------------------------------ routes

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if parts[0] == "store":
            self._stored(parts[1])
        elif parts[:2] == ["api", "resolve-cache"]:
            repo = self._repo(parts[2].removesuffix("s"), "/".join(parts[3:5]))
            self._file(repo, parts[5], "/".join(parts[6:]), direct=True)
        elif parts[0] == "api" and parts[1:2] and parts[1] in {"models", "datasets"}:
            self._api(parts[1].removesuffix("s"), parts[2:])
        elif "resolve" in parts:
            kind = "model"
            if parts[0] == "datasets":
                kind, parts = "dataset", parts[1:]
            at = parts.index("resolve")
            repo = self._repo(kind, "/".join(parts[:at]))
            self._file(repo, parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            raise AnswerError(404, "Not Found")

    def _api(self, kind: str, parts: list[str]) -> None:
        at = next((i for i, p in enumerate(parts) if p in {"revision", "tree"}), len(parts))
        repo, word, rest = self._repo(kind, "/".join(parts[:at])), parts[at:], parts[at + 1 :]
        commit, files = repo.at(rest[0] if rest else "main")
        if word[:1] == ["tree"]:
            listed = [
                {"type": "file", "oid": f.sha1, "size": f.size, "path": f.name}
                | ({"lfs": {"oid": f.sha256, "size": f.size, "pointerSize": 134}} if f.lfs else {})
                for f in files.values()
            ]
            self._json(listed)
        else:
            licence = repo.settings.get("licence")
            self._json({
                "id": repo.name,
                "sha": commit,
                "private": bool(repo.settings.get("private")),
                "gated": repo.settings.get("gated", False),
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
                **({"cardData": {"license": licence}} if licence else {}),
            })

    # ------------------------------------------------------------ permissions

    def _user(self) -> str | None:
        if self.token is not None and self.token not in self.hub.tokens:
            raise AnswerError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(self.token or "")

    def _repo(self, kind: str, name: str) -> Repo:
        user = self._user()
        repo = Repo(self.hub.root, kind, name)
        readers = repo.settings.get("readers", ())
        if not (repo.folder / "main").is_dir() or (
            repo.settings.get("private") and user not in readers
        ):
            new = self.hub.moved(kind, name)
            if new is not None:
                # Like the hub, replace only the path and send a relative location.
                place = self.where.replace(f"/{quote(name)}", f"/{quote(new)}", 1)
                raise AnswerError(307, f"moved to {new}", Location=place)
            raise AnswerError(404 if user else 401, "Repository not found", "RepoNotFound")
        if repo.settings.get("disabled"):
            raise AnswerError(403, "Access to this resource is disabled.")
        return repo

    # ------------------------------------------------------------ files

    def _file(self, repo: Repo, revision: str, name: str, *, direct: bool = False) -> None:
        if repo.settings.get("gated") and self._user() not in repo.settings.get("readers", ()):
            raise AnswerError(403 if self._user() else 401, "Access is restricted.", "GatedRepo")
        commit, files = repo.at(revision)
        if name not in files:
            raise AnswerError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        file = files[name]
        size = file.size - (self.broken.cut if self.broken else 0)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "X-Linked-Size": str(size)}
        headers["X-Linked-ETag"] = f'"{file.etag}"'
        if file.lfs:
            self.hub.stored[file.sha256] = file.path
            store = f"http://localhost:{self.hub.port}/store"
            headers["Location"] = f"{store}/{file.sha256}?name={quote(name, safe='')}"
            self._send(302, b"", headers)
        elif not direct:
            path = f"{repo.kind}s/{repo.name}/{commit}/{quote(name)}"
            headers |= {"ETag": f'"{file.etag}"', "Location": f"/api/resolve-cache/{path}"}
            self._send(307, b"", headers)
        else:
            self._content(file.path, headers | {"ETag": f'"{file.etag}"'})

    def _stored(self, digest: str) -> None:
        if self.token is not None:
            raise AnswerError(400, "A token was sent to the store's host")
        self._content(self.hub.stored[digest], {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _content(self, path: Path, headers: dict[str, str]) -> None:
        raw = path.read_bytes()
        if self.broken and self.broken.damage:
            middle = len(raw) // 2
            raw = raw[:middle] + b"\xff" * min(64, len(raw) - middle) + raw[middle + 64 :]
        if self.broken and self.broken.cut:
            raw = raw[: max(len(raw) - self.broken.cut, 0)]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(raw) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(raw) - 1)}/{len(raw)}"
            self._send(206, raw[first : last + 1], headers)
        else:
            self._send(200, raw, headers)

    # ------------------------------------------------------------ output

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), CHUNK):
            piece = body[start : start + CHUNK]
            after = self.broken.after if self.broken else None
            if after is not None and start + len(piece) > after:
                self.wfile.write(piece[: max(after - start, 0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(piece)
