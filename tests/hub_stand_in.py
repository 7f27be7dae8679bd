"""A stand-in for the Hugging Face Hub on loopback: the requests that huggingface_hub makes for packs, and no others.

Repositories are dicts in memory. Files that end in .safetensors go the way of large files: a batch request, an upload
to another address, and a redirection when they are read.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclasses.dataclass
class Repository:
    """Commits by hash, each with its message and all its files; branches by name."""

    private: bool = False
    commits: dict[str, tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, message: str, changes: dict[str, bytes], branch: str = "main") -> str:
        """Adds files to a branch and returns the commit's hash."""
        files = {**self.files(branch), **changes} if branch in self.branches else changes
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = message, files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """Returns the hash of the commit that a branch or hash stands for."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Returns the files of a revision."""
        return self.commits[self.find(revision)][1]

    @property
    def messages(self) -> list[str]:
        """The messages of all commits."""
        return [message for message, _ in self.commits.values()]


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: By name.
        writers: Owners in whose name `TOKEN` may write.
        before_commit: Called before each commit, for what somebody else does meanwhile.
        extra_names: Names that listings hold besides those of files, as a forged listing might.
        sizes: Sizes that listings give, by name, where they are not those of the files.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.writers = {"me"}
        self.blobs: dict[str, bytes] = {}
        self.before_commit = lambda: None
        self.extra_names: list[str] = []
        self.sizes: dict[str, int] = {}

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """Adds a repository with one commit."""
        self.repositories[name] = Repository(private)
        self.repositories[name].commit("initial commit", {".gitattributes": b"", **files})
        return self.repositories[name]


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Runs a hub while the block does."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Refusal(Exception):
    """An answer that is an error: status, X-Error-Code, message."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            self._route()
        except _Refusal as refusal:
            status, code, message = refusal.args
            headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
            self._send({"error": message}, status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _route(self) -> None:
        match self.command, self._parts:
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(self._body))
            case "POST", ["api", "validate-yaml"]:
                self._send({"errors": [], "warnings": []})
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                self._find(f"{owner}/{name.removesuffix('.git')}", write=True)
                self._send({"transfer": "basic", "objects": [self._blob(o) for o in json.loads(self._body)["objects"]]})
            case (("PUT" | "GET" | "HEAD"), ["blobs", oid]):
                if self.command == "PUT":
                    assert hashlib.sha256(self._body).hexdigest() == oid
                    self.server.blobs[oid] = self._body
                self._send(self.server.blobs[oid])
            case "GET", ["api", "models", owner, name, *rest] if rest[:1] in ([], ["revision"], ["tree"]):
                repository = self._find(f"{owner}/{name}")
                sha = self._revision(repository, rest[1] if rest else "main")
                tree = _listing(repository.files(sha), "".join(f"{part}/" for part in rest[2:]))
                tree += [_entry(path, b"") for path in self.server.extra_names]
                tree = [{**entry, "size": self.server.sizes.get(entry["path"], entry.get("size"))} for entry in tree]
                info = {"id": f"{owner}/{name}", "sha": sha, "private": repository.private}
                self._send(tree if rest[:1] == ["tree"] else info)
            case "POST", ["api", "models", owner, name, "branch", branch]:
                repository = self._find(f"{owner}/{name}", write=True)
                if branch in repository.branches:
                    raise _Refusal(409, "", "Reference already exists")
                repository.branches[branch] = repository.branches["main"]
                self._send({})
            case "POST", ["api", "models", owner, name, "preupload", revision]:
                present = self._find(f"{owner}/{name}", write=True).files(revision)
                paths = [file["path"] for file in json.loads(self._body)["files"]]
                self._send({"files": [_upload_mode(path, present.get(path)) for path in paths]})
            case "POST", ["api", "models", owner, name, "commit", branch]:
                self.server.before_commit()
                self._commit(self._find(f"{owner}/{name}", write=True), f"{owner}/{name}", branch)
            case (("GET" | "HEAD"), [owner, name, "resolve", revision, *path]):
                self._resolve(self._find(f"{owner}/{name}"), revision, "/".join(path))
            case _:
                raise _Refusal(404, "", f"The stand-in does not know {self.command} {self.path}.")

    def _create(self, request: dict) -> None:
        owner = request["organization"]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refusal(401, "", "Invalid username or password.")
        if owner not in self.server.writers:
            raise _Refusal(403, "", f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{owner}/{request['name']}"
        existed = name in self.server.repositories
        if not existed:
            self.server.add(name, {}, private=request.get("visibility") == "private")
        self._send({"url": f"{self.server.address}/{name}"}, 409 if existed else 200)

    def _find(self, name: str, write: bool = False) -> Repository:
        """Returns a repository that the request may read or write; what may not be read is not there."""
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repository = self.server.repositories.get(name)
        if self.headers.get("Authorization") and not signed:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and not signed):
            raise _Refusal(404 if signed else 401, "RepoNotFound", "Repository not found")
        if write and not (signed and name.split("/")[0] in self.server.writers):
            raise _Refusal(403, "", "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        if (sha := repository.find(revision)) is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _blob(self, wanted: dict) -> dict:
        upload = {"upload": {"href": f"{self.server.address}/blobs/{wanted['oid']}", "header": {}}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": upload}

    def _commit(self, repository: Repository, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in self._body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self._revision(repository, branch)):
            raise _Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        changes = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                changes[value["path"]] = self.server.blobs[value["oid"]]
            else:
                assert line["key"] == "file"
                changes[value["path"]] = base64.b64decode(value["content"])
        sha = repository.commit(header["summary"], changes, branch)
        self._send({"commitOid": sha, "commitUrl": f"{self.server.address}/{name}/commit/{sha}"})

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        sha = self._revision(repository, revision)
        data = repository.files(sha).get(path)
        if data is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        oid = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid}"'}
        if not path.endswith(".safetensors"):
            self._send(data, headers=headers)
            return
        self.server.blobs[oid] = data
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{oid}"'}
        # Another host, as at the Hub: to the same one, huggingface_hub would follow with its request for headers.
        elsewhere = self.server.address.replace("127.0.0.1", "localhost")
        self._send(b"", 302, {**headers, **linked, "Location": f"{elsewhere}/blobs/{oid}"})

    def _send(self, content: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _listing(files: dict[str, bytes], folder: str) -> list[dict]:
    """Returns what lies in a folder, without what lies in its folders."""
    paths = {path: path[len(folder) :].split("/") for path in files if path.startswith(folder)}
    folders = {folder + parts[0] for parts in paths.values() if len(parts) > 1}
    found = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
    return found + [_entry(path, files[path]) for path, parts in paths.items() if len(parts) == 1]


def _entry(path: str, data: bytes) -> dict:
    """Returns a file's line in a listing."""
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _upload_mode(path: str, present: bytes | None) -> dict:
    """Returns how a file is to be uploaded, and the hash of the present one, by which nothing is uploaded twice."""
    large = path.endswith(".safetensors")
    mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if present is None:
        return mode
    blob = b"blob %d\0" % len(present) + present
    return mode | {"oid": hashlib.sha256(present).hexdigest() if large else hashlib.sha1(blob).hexdigest()}
