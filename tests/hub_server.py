"""
A Hub on 127.0.0.1: the routes that huggingface_hub, transformers and datasets use to push and pull, with the real
one's status codes and headers, repositories in memory, and trouble on demand.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # tokens; other ones are not valid
LFS = (".safetensors", ".parquet", ".png")
KINDS = r"(?P<kind>models|datasets|spaces)"
ID = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Commits by hash, each a mapping from path to content; branches by name; and all commits in their order."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        names = "".join(f"{name}\0{hashlib.sha1(content).hexdigest()}\n" for name, content in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.history)}\n{names}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.history.append(commit)
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Trouble:
    """
    What happens to the next `times` requests whose "METHOD path" matches: a status in place of the answer; a reset
    connection after `reset` bytes of the body, or once all is done, before the answer; a body that arrives with
    one bit flipped; or a call before it is served.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    damage: bool = False
    call: Callable[[], None] | None = None
    lose_answer: bool = False


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS
        self.requests: list[str] = []
        self.troubles: list[Trouble] = []
        self.lock = threading.RLock()

    def model(self, repo_id: str) -> Repository:
        return self.repositories["models", repo_id]

    def dataset(self, repo_id: str) -> Repository:
        return self.repositories["datasets", repo_id]

    def space(self, repo_id: str) -> Repository:
        return self.repositories["spaces", repo_id]

    def environment(self, cache: Any, token: str | None = WRITER) -> dict[str, str]:
        """Variables that lead the clients of a process here, with a cache of its own."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
        return variables | ({"HF_TOKEN": token} if token else {})

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that were reset on purpose


@contextlib.contextmanager
def serve() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms a request

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {path}"
        with self.server.lock:
            self.server.requests.append(request)
            trouble = next((t for t in self.server.troubles if t.times and re.search(t.pattern, request)), None)
            if trouble:
                trouble.times -= 1
        if trouble and trouble.reset is not None:
            self.rfile.read(trouble.reset)
            self._reset()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._read_chunks()
        if trouble and trouble.damage:
            self.body = bytes([self.body[0] ^ 1]) + self.body[1:]
        if trouble and trouble.call:
            trouble.call()
        if trouble and trouble.status:
            self._send(trouble.status, {"error": "made up by the test"}, trouble.headers)
            return
        for method, pattern, route in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                try:
                    with self.server.lock:
                        answer = route(self, **{name: unquote(value) for name, value in match.groupdict("").items()})
                except _Refused as refused:
                    headers = {"X-Error-Message": refused.message}
                    headers |= {"X-Error-Code": refused.code} if refused.code else {}
                    answer = (refused.status, {"error": refused.message}, headers)
                break
        else:
            answer = (404, {"error": f"no route {request}"}, {})
        if trouble and trouble.lose_answer:
            self._reset()
            return
        self._send(*answer)

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _reset(self) -> None:
        # Without lingering, closing sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        headers = headers or {}
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    def _token(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in (WRITER, READER):
            raise _Refused(401, "Invalid credentials in Authorization header")
        return given or None

    def whoami(self) -> tuple:
        if self._token() is None:
            raise _Refused(401, "Invalid username or password.")
        return 200, {"type": "user", "name": "me"}, {}

    def _check_writer(self) -> None:
        if self._token() is None:
            raise _Refused(401, "Invalid username or password.")
        if self._token() != WRITER:
            raise _Refused(403, "Forbidden: you must use a write token to upload to a repository.")

    def _repository(self, kind: str, id: str) -> Repository:
        token = self._token()
        repository = self.server.repositories.get((kind, id))
        if repository is None or (repository.private and token is None):
            raise _Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Routes

    def create(self) -> tuple:
        self._check_writer()
        asked = json.loads(self.body)
        key = f"{asked.get('type') or 'model'}s", f"{asked['organization'] or 'me'}/{asked['name']}"
        if asked["organization"] not in (None, "me"):
            raise _Refused(403, "You don't have the rights to create a model under this namespace")
        if key[0] == "spaces" and asked.get("sdk") != "gradio":
            raise _Refused(400, "a Space needs an sdk")
        url = f"{self.server.url}/{'' if key[0] == 'models' else key[0] + '/'}{key[1]}"
        if key in self.server.repositories:
            return 409, {"error": "You already created this repository", "url": url}, {}
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        repository = self.server.repositories[key] = Repository(private)
        repository.add("main", {".gitattributes": "".join(f"*{end} filter=lfs\n" for end in LFS).encode()})
        return 200, {"url": url, "name": key[1]}, {}

    def delete(self) -> tuple:
        self._check_writer()
        asked = json.loads(self.body)
        key = f"{asked.get('type') or 'model'}s", f"{asked['organization']}/{asked['name']}"
        return (200, {}, {}) if self.server.repositories.pop(key, None) else (404, {}, {})

    def validate(self) -> tuple:
        asked = json.loads(self.body)
        text = asked["content"]
        unknown = re.search(r"^license: (?!(apache-2\.0|cc-by-4\.0|other)$)", text, re.M)  # none at all is fine
        if unknown or not text.startswith("---\n"):
            return 400, {"errors": [{"message": '"license" must be one of a list of names'}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    def info(self, kind: str, id: str, revision: str = "") -> tuple:
        repository = self._repository(kind, id)
        commit = self._commit(repository, revision)
        siblings = [{"rfilename": name} for name in sorted(repository.commits[commit])]
        facts = {"_id": "0", "id": id, "author": id.split("/")[0], "sha": commit, "siblings": siblings}
        facts |= {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        return 200, facts | {"tags": [], "lastModified": "2026-01-01T00:00:00.000Z"}, {}

    def refs(self, kind: str, id: str) -> tuple:
        branches = self._repository(kind, id).branches
        found = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
        return 200, {"branches": found, "tags": [], "converts": []}, {}

    def branch(self, kind: str, id: str, name: str) -> tuple:
        self._check_writer()
        repository = self._repository(kind, id)
        if self.command == "DELETE":
            del repository.branches[name]
            return 200, {}, {}
        if name in repository.branches:
            raise _Refused(409, "Reference already exists")
        start = json.loads(self.body or "{}").get("startingPoint", "main")
        repository.branches[name] = self._commit(repository, start)
        return 200, {}, {}

    def preupload(self, kind: str, id: str, revision: str) -> tuple:
        self._check_writer()
        repository = self._repository(kind, id)
        files = repository.commits[self._commit(repository, revision)]
        found = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(LFS) else "regular"
            oid = _entry(name, files[name])["lfs" if mode == "lfs" else "oid"] if name in files else None
            oid = oid["oid"] if isinstance(oid, dict) else oid
            found.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": found}, {}

    def batch(self, id: str, prefix: str = "") -> tuple:
        self._check_writer()
        self._repository(prefix.strip("/") or "models", id)
        found = []
        for asked in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"},
                "verify": {"href": f"{self.server.url}/verify/{asked['oid']}"},
            }
            there = asked["oid"] in self.server.objects
            found.append({**asked, **({} if there else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": found}, {}

    def put(self, oid: str) -> tuple:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "BadDigest: the sha256 that was sent is not that of the content")
        self.server.objects[oid] = self.body
        return 200, b"", {}

    def verify(self, oid: str) -> tuple:
        whole = len(self.server.objects.get(oid, b"")) == json.loads(self.body)["size"]
        return (200, {}, {}) if whole else (422, {"error": "size differs"}, {})

    def commit(self, kind: str, id: str, revision: str) -> tuple:
        self._check_writer()
        repository = self._repository(kind, id)
        head = self._commit(repository, revision)
        files = dict(repository.commits[head])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", head) != head:
                raise _Refused(412, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _Refused(422, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            if item["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.add(revision, files)
        return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{id}/commit/{commit}"}, {}

    def tree(self, kind: str, id: str, revision: str, path: str = "") -> tuple:
        repository = self._repository(kind, id)
        files = repository.commits[self._commit(repository, revision)]
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("1", "true")
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        inside = {name: content for name, content in files.items() if name.startswith(prefix)}
        if prefix and not inside:
            raise _Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        folders = {name[: name.index("/", len(prefix))] for name in inside if "/" in name[len(prefix) :]}
        found = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
        found += [_entry(n, c) for n, c in sorted(inside.items()) if recursive or "/" not in n[len(prefix) :]]
        return 200, found, {}

    def paths_info(self, kind: str, id: str, revision: str) -> tuple:
        repository = self._repository(kind, id)
        files = repository.commits[self._commit(repository, revision)]
        if self.headers["Content-Type"].startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        found = [_entry(name, files[name]) for name in paths if name in files]
        for path in paths:
            if any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return 200, found, {}

    def resolve(self, id: str, revision: str, path: str, prefix: str = "") -> tuple:
        repository = self._repository(prefix.strip("/") or "models", id)
        commit = self._commit(repository, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in repository.commits[commit]:
            return 404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"}
        content = repository.commits[commit][path]
        entry = _entry(path, content)
        if "lfs" in entry:  # as the Hub sends clients to its CDN, which has another name
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
            place = f"http://localhost:{self.server.server_port}/cdn/{entry['lfs']['oid']}"
            return 302, b"", {**headers, "Location": place}
        return self._ranged(content, {**headers, "ETag": f'"{entry["oid"]}"'})

    def cdn(self, oid: str) -> tuple:
        return self._ranged(self.server.objects[oid], {"ETag": f'"{oid}"'})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> tuple:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers["Accept-Ranges"] = "bytes"
        if not asked:
            return 200, content, headers
        first, last = int(asked.group(1)), int(asked.group(2) or len(content) - 1)
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return 206, part, headers


def _entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
    entry = {"type": "file", "path": name, "oid": blob, "size": len(content)}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", rf"/api/{KINDS}/{ID}", _Handler.info),
    ("GET", rf"/api/{KINDS}/{ID}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/{KINDS}/{ID}/refs", _Handler.refs),
    ("POST DELETE", rf"/api/{KINDS}/{ID}/branch/(?P<name>[^/]+)", _Handler.branch),
    ("POST", rf"/api/{KINDS}/{ID}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/(?P<prefix>(datasets|spaces)/)?{ID}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.put),
    ("POST", r"/verify/(?P<oid>\w+)", _Handler.verify),
    ("POST", rf"/api/{KINDS}/{ID}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", rf"/api/{KINDS}/{ID}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    ("POST", rf"/api/{KINDS}/{ID}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET HEAD", rf"/(?P<prefix>(datasets|spaces)/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET HEAD", r"/cdn/(?P<oid>\w+)", _Handler.cdn),
]
