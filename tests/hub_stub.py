"""A stub of the Hugging Face Hub on 127.0.0.1, in memory, with the requests that uploads and downloads here make.

As on the real Hub, the server decides which files go through LFS; a private repository does not exist for those who
may not see it; and a request without a login for a missing repository is answered with 401. The stub counts requests
by kind and can let the next ones of a kind fail.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

WRITE_TOKEN, READ_TOKEN = "hf_" + "w" * 34, "hf_" + "r" * 34
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER = "someone"
LFS_BYTES = 10_000  # a regular file is at most this large


@dataclass
class Repository:
    """Files by commit: an LFS file as its oid (str), a regular one as its content (bytes)."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, str | bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str | bytes]) -> str:
        said = repr((len(self.commits), sorted(files.items()))).encode()
        self.commits[sha := hashlib.sha1(said).hexdigest()] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubStub:
    """The Hub's state, with what tests read and change of it."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.counts: Counter[str] = Counter()
        self.failures: defaultdict[str, list[str]] = defaultdict(
            list
        )  # by kind, for each next request: "", "cut", "hang" or a status
        self.logins: set[str] = set()  # tokens that were sent
        self.hanging, self.released = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.url = ""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The contents of a repository's files, without the Hub's own .gitattributes."""
        repository = self.repositories[repo]
        found = repository.commits[repository.find(revision)]
        return {
            name: self.objects[content] if isinstance(content, str) else content
            for name, content in found.items()
            if name != ".gitattributes"
        }

    def put(self, repo: str, changes: dict[str, bytes | None], *, private: bool = True) -> str:
        """Commits files behind the library's back; None deletes one."""
        with self.lock:
            repository = self.repositories.get(repo) or self.create(repo, private)
            files = dict(repository.commits[repository.branches["main"]])
            for name, content in changes.items():
                files.pop(name, None)
                if content is not None:
                    files[name] = self.store(content) if is_large(name, len(content)) else content
            return repository.commit("main", files)

    def create(self, repo: str, private: bool) -> Repository:
        self.repositories[repo] = repository = Repository(private)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return repository

    def store(self, content: bytes) -> str:
        self.objects[oid := hashlib.sha256(content).hexdigest()] = content
        return oid

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """The environment of a process that talks only to this Hub, with its own cache and login."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return kept | own | ({"HF_TOKEN": token} if token else {})

    def connect(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = WRITE_TOKEN) -> None:
        """Connects this process to the stub: huggingface_hub reads the environment only once, at import."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN", raising=False)


def is_large(name: str, size: int) -> bool:
    return size > LFS_BYTES or (name.endswith(".safetensors") and size > 0)


@contextmanager
def serve_hub() -> Iterator[HubStub]:
    """A Hub that answers until the block ends."""
    stub = HubStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str = "", message: str = "refused"):
        self.status, self.code, self.message = status, code, message


ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("branch", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("verify", "POST", r"/lfs/verify"),
    ("put", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("file", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"),
    ("head", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: HubStub

    def _route(self) -> None:
        path = urlsplit(self.path).path
        found = [(k, match) for k, method, r in ROUTES if method == self.command and (match := re.fullmatch(r, path))]
        if not found:
            return self._answer({"error": f"no route {self.command} {path}"}, 404)
        kind, match = found[0]
        with self.stub.lock:
            self.stub.counts[kind] += 1
            failure = self.stub.failures[kind].pop(0) if self.stub.failures[kind] else ""
        if failure == "hang":
            self.stub.hanging.set()
            self.stub.released.wait()
        if failure in ("cut", "hang"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        body = self._read_body()
        try:
            if failure:
                raise _Refusal(int(failure), message="the stub was told to fail")
            self._check_token()
            with self.stub.lock:
                answer = getattr(self, f"_{kind}")(body, **{k: v and unquote(v) for k, v in match.groupdict().items()})
            return self._answer(*answer) if isinstance(answer, tuple) else self._answer(answer)
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return self._answer({"error": refusal.message}, refusal.status, headers)

    do_GET = do_POST = do_PUT = do_HEAD = _route

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content, status: int = 200, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass

    # --- who may do what ---

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _check_token(self) -> None:
        if self.token:
            self.stub.logins.add(self.token)
            if self.token not in ROLES:
                raise _Refusal(401, message="Invalid credentials in Authorization header")

    def _require_writer(self) -> None:
        if ROLES.get(self.token) != "write":
            raise _Refusal(403 if self.token else 401, message="You don't have the rights to do this")

    def _find(self, repo: str, revision: str | None = None) -> tuple[Repository, str]:
        found = self.stub.repositories.get(repo)
        if found is None or (found.private and not self.token):
            raise _Refusal(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if (sha := found.find(revision or "main")) is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, sha

    # --- routes ---

    def _whoami(self, body):
        if not self.token:
            raise _Refusal(401, message="Invalid username or password.")
        return {"name": USER, "orgs": [], "auth": {"accessToken": {"role": ROLES[self.token]}}}

    def _create(self, body):
        self._require_writer()
        asked = json.loads(body)
        if asked["organization"] not in (None, USER):
            raise _Refusal(403, message="You don't have the rights to create a model under this namespace")
        repo = f"{asked['organization'] or USER}/{asked['name']}"
        url = {"url": f"{self.stub.url}/{repo}"}
        if repo in self.stub.repositories:
            return url | {"error": "You already created this model repo"}, 409
        self.stub.create(repo, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return url

    def _validate(self, body):
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
        except yaml.YAMLError as error:
            return {"errors": [{"message": str(error)}], "warnings": []}, 400
        return {"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]}

    def _branch(self, body, repo, revision):
        self._require_writer()
        repository, sha = self._find(repo)
        if revision in repository.branches:
            return {"error": "Reference already exists"}, 409
        repository.branches[revision] = sha
        return {}

    def _preupload(self, body, repo, revision):
        self._require_writer()
        repository, sha = self._find(repo, revision)
        there = repository.commits[sha]
        ignored = there.get(".gitignore", b"").decode().split()
        files = []
        for file in json.loads(body)["files"]:
            name, oid = file["path"], there.get(file["path"])
            oid = hash_blob(oid) if isinstance(oid, bytes) else oid
            mode = "lfs" if is_large(name, file["size"]) else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": name in ignored, "oid": oid})
        return {"files": files}

    def _batch(self, body, repo):
        self._require_writer()
        objects = []
        for entry in json.loads(body)["objects"]:
            if entry["oid"] not in self.stub.objects:
                href = f"{self.stub.url}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.stub.url}/lfs/verify"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _put(self, body, oid):
        if self.stub.store(body) != oid:
            raise _Refusal(400, message="other content than announced")
        return b""

    def _verify(self, body):
        asked = json.loads(body)
        if len(self.stub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(404, message="no such object")
        return {}

    def _commit(self, body, repo, revision):
        self._require_writer()
        repository, sha = self._find(repo, revision)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", sha) != sha:
            raise _Refusal(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[sha])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.stub.objects:
                    raise _Refusal(400, message="LFS pointer to an object that was not uploaded")
                files[value["path"]] = value["oid"]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        oid = repository.commit(revision, files)
        return {"commitUrl": f"{self.stub.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}

    def _info(self, body, repo, revision=None):
        repository, sha = self._find(repo, revision)
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        return {"id": repo, "sha": sha, "private": repository.private, "siblings": siblings}

    def _tree(self, body, repo, revision):
        repository, sha = self._find(repo, revision)
        entries = []
        for name, content in repository.commits[sha].items():
            entry = {"type": "file", "path": name}
            if isinstance(content, str):
                size = len(self.stub.objects[content])
                entry |= {"lfs": {"oid": content, "size": size, "pointerSize": 130}, "oid": hash_blob(content.encode())}
            else:
                size = len(content)
                entry["oid"] = hash_blob(content)
            entries.append({**entry, "size": size})
        return entries

    def _file(self, body, repo, revision, name):
        repository, sha = self._find(repo, revision)
        if repository.gated:
            raise _Refusal(403 if self.token else 401, "GatedRepo", "Access to this model is restricted")
        content = repository.commits[sha].get(name)
        if content is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        etag = content if isinstance(content, str) else hash_blob(content)
        data = self.stub.objects[content] if isinstance(content, str) else content
        return data, 200, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}

    _head = _file


def hash_blob(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
