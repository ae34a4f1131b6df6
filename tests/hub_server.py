"""A Hugging Face Hub on 127.0.0.1, served from folders, for tests: what huggingface_hub and datasets ask for when they load, and what goes wrong.

    ROOT/models/ORG/NAME/...               the branch "main" of a model
    ROOT/datasets/ORG/NAME/...             the branch "main" of a data set
    ROOT/datasets/ORG/NAME@REVISION/...    another branch or tag; a slash is written %2F (NAME@refs%2Fconvert%2Fparquet)

A commit is the hash of a revision's files. It stays when the files change: history is kept while the server lives.
Large files (by their suffix) are redirected to `localhost`, another host than 127.0.0.1, as the Hub redirects to its CDN.

What is uploaded goes into the branch "main" of a model.

    with HubServer(root) as hub:
        hub.fault("GET .*safetensors", status=403)
        subprocess.run(command, env={**os.environ, **hub.env(tmp_path / "home")})
        assert hub.asked(".*safetensors") and not hub.leaks()

huggingface_hub, transformers and datasets read HF_ENDPOINT and HF_HOME when they are imported: what is tested runs in a process of its own,
such as a Machine, which is started once for many commands.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".model")
NAME = "(?P<name>[^/]+(?:/[^/]+)?)"
API = re.compile(
    f"/api/(?P<kind>models|datasets)/{NAME}(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<rest>.+))?)?"
)
FILE = re.compile(f"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<rest>.+)")
UPLOAD = re.compile("/api/models/(?P<name>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
Files = dict[str, bytes]


@dataclass
class Fault:
    """What goes wrong with the requests in which a regular expression is found (`GET /path?query`)."""

    match: str
    status: int = 0
    """Answer with this status; else as usual."""
    text: str = '{"error": "refused"}'
    """What a status is answered with."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    """Seconds before the answer."""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    times: float = float("inf")
    """How often it happens."""


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", headers: dict[str, str] | None = None):
        self.status, self.headers = status, {**({"X-Error-Code": code} if code else {}), **(headers or {})}


class HubServer(ThreadingHTTPServer):
    """The server; as a context manager it runs in a thread of its own."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.url = root, f"http://127.0.0.1:{self.server_port}"
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        """(request line, host, authorization) of everything asked."""
        self.readers: dict[str, set[str]] = {}
        """Tokens that may read a private repository, by `organisation/name`."""
        self.gated: dict[str, set[str]] = {}
        """Tokens that may read the files of a gated one."""
        self.renamed: dict[str, str] = {}
        """Old names, such as the bare ones, and where they are redirected."""
        self.blobs: dict[str, bytes] = {}
        self.history: dict[str, Files] = {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def env(self, home: Path, **others: str) -> dict[str, str]:
        """Return the environment of a process that asks this server and caches in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            **others,
        }

    def fault(self, match: str, **what) -> None:
        """Let something go wrong from now on."""
        self.faults.append(Fault(match, **what))

    def asked(self, match: str = "") -> list[str]:
        """Return the requests in which `match` is found, but for the registry that huggingface_hub asks for once a day."""
        lines = [line for line, _, _ in self.requests if "/api/agent-harnesses" not in line]
        return [line for line in lines if re.search(match, line)]

    def leaks(self) -> list[str]:
        """Return the requests that carried a token to another host."""
        return [line for line, host, authorization in self.requests if host != "127.0.0.1" and authorization]

    def commit(self, kind: str, name: str, revision: str = "main") -> str:
        """Return the commit of a revision as it is now."""
        return self.files(kind, name, revision)[0]

    def files(self, kind: str, name: str, revision: str) -> tuple[str, Files]:
        """Return the commit and the files of a revision. Raises Refusal if there is none."""
        revisions = {"main": self.root / kind / name}
        revisions |= {unquote(path.name.partition("@")[2]): path for path in (self.root / kind).glob(f"{name}@*")}
        for label, folder in revisions.items():
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            commit = hashlib.sha1(repr([(kind, name), *content.items()]).encode()).hexdigest()
            self.history[f"{kind}/{name}/{commit}"] = content
            if label == revision:
                return commit, content
        if f"{kind}/{name}/{revision}" not in self.history:
            raise Refusal(404, "RevisionNotFound")
        return revision, self.history[f"{kind}/{name}/{revision}"]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.form = parse_qs(self.body.decode())
        line, host = f"{self.command} {self.path}", self.headers["Host"].partition(":")[0]
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.requests.append((line, host, self.token))
        self.fault = next(
            (each for each in self.server.faults if each.times > 0 and re.search(each.match, line)), Fault("")
        )
        self.fault.times -= 1
        time.sleep(self.fault.delay)
        try:
            if self.fault.status:
                return self.send(self.fault.status, self.fault.text.encode(), **self.fault.headers)
            if self.command != "POST" or not self.take(urlsplit(self.path).path):
                self.route(urlsplit(self.path).path)
        except Refusal as refusal:
            self.send(refusal.status, b'{"error": "refused"}', **refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = answer

    def take(self, path: str) -> bool:
        """Answer what belongs to an upload; every file comes in the commit itself. False for other requests."""
        models, upload = self.server.root / "models", UPLOAD.fullmatch(path)
        if path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(self.body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            (models / name).mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"{self.server.url}/{name}", "name": name})
        elif upload and upload["what"] == "preupload":
            files = json.loads(self.body)["files"]
            self.send_json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
            )
        elif upload:
            for entry in map(json.loads, self.body.splitlines()):
                if entry["key"] == "file":
                    file = models / upload["name"] / entry["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(entry["value"]["content"]))
            commit = self.server.commit("models", upload["name"])
            url = f"{self.server.url}/{upload['name']}/commit/{commit}"
            self.send_json({"success": True, "commitOid": commit, "commitUrl": url})
        return bool(upload) or path in ("/api/validate-yaml", "/api/repos/create")

    def route(self, path: str) -> None:
        if path.startswith("/_large/"):
            return self.send_file(self.server.blobs[path.removeprefix("/_large/")])
        asked = API.fullmatch(path) or FILE.fullmatch(path)
        if asked is None:
            raise Refusal(404)
        named = {key: unquote(value) for key, value in asked.groupdict().items() if value}
        kind, name = (named["kind"] if "/api/" in path else "datasets" if "kind" in named else "models"), named["name"]
        if name in self.server.renamed:
            raise Refusal(307, headers={"Location": self.path.replace(name, self.server.renamed[name], 1)})
        if not (self.server.root / kind / name).is_dir() or not self.may(self.server.readers, name):
            raise Refusal(404 if self.token else 401, "RepoNotFound")
        if "/api/" in path:
            self.describe(
                kind, name, named.get("what", "revision"), named.get("revision", "main"), named.get("rest", "")
            )
        else:
            self.resolve(kind, name, named["revision"], named["rest"])

    def may(self, readers: dict[str, set[str]], name: str) -> bool:
        return self.token in readers.get(name, {self.token})

    def describe(self, kind: str, name: str, what: str, revision: str, under: str) -> None:
        commit, files = self.server.files(kind, name, revision)
        entries = [
            {"type": "file", "path": file, "size": len(content), **_ids(file, content)}
            for file, content in files.items()
        ]
        if what == "revision":
            siblings = [{"rfilename": entry["path"], "blobId": entry["oid"], **entry} for entry in entries]
            self.send_json(
                {"_id": commit[:24], "id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            )
        elif what == "paths-info":
            self.send_json([entry for entry in entries if entry["path"] in self.form["paths"]])
        else:
            parents = {parent.as_posix() for file in files for parent in Path(file).parents} - {"."}
            folders = [{"type": "directory", "path": parent, "oid": commit} for parent in sorted(parents)]
            if under and under not in parents:
                raise Refusal(404, "EntryNotFound")
            inside = [entry for entry in entries + folders if not under or entry["path"].startswith(f"{under}/")]
            deep = "recursive=true" in self.path.lower()
            self.send_json([entry for entry in inside if deep or Path(entry["path"]).parent == Path(under)])

    def resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        commit, files = self.server.files(kind, name, revision)
        if not self.may(self.server.gated, name):
            raise Refusal(403 if self.token else 401, "GatedRepo")
        if file not in files:
            raise Refusal(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content, ids = files[file], _ids(file, files[file])
        if "lfs" not in ids:
            return self.send_file(content, ETag=f'"{ids["oid"]}"', **{"X-Repo-Commit": commit})
        sha256 = ids["lfs"]["oid"]
        self.server.blobs[sha256] = content
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": commit}
        raise Refusal(
            302, headers={"Location": f"http://localhost:{self.server.server_port}/_large/{sha256}", **linked}
        )

    def send_json(self, content) -> None:
        self.send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def send_file(self, content: bytes, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self.send(200, content, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        self.send(
            206, content[first : last + 1], **headers, **{"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        )

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.fault.cut])
            self.close_connection = self.close_connection or self.fault.cut is not None

    def log_message(self, *_) -> None:
        """Keep silent: `requests` has it all."""


def _ids(name: str, content: bytes) -> dict:
    """What git and its large file storage call a content."""
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    stored = pointer if name.endswith(LARGE) else content
    large = {"lfs": {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": len(pointer)}}
    return {
        "oid": hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest(),
        **(large if name.endswith(LARGE) else {}),
    }


WORKER = """
import contextlib, io, json, os, sys, traceback
from lora_drop.cli import app as cli

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["env"])
    streams, code = (io.StringIO(), io.StringIO()), 0
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            if "code" in asked:
                exec(asked["code"], {})
            else:
                cli.main(asked["arguments"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    for name in asked["env"]:
        del os.environ[name]
    print(json.dumps([code, *(stream.getvalue() for stream in streams)]), file=sys.__stdout__, flush=True)
"""


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


class Machine:
    """A process that performs one command line after the other, with the environment that it was started in."""

    def __init__(self, env: dict[str, str]):
        path = os.pathsep.join((str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
        for name in ("LORA_DROP_DATA", "HF_TOKEN"):
            environment.pop(name, None)
        command = [sys.executable, "-W", "error", "-c", WORKER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def __call__(self, *arguments, **env: str) -> Outcome:
        """Perform `lora-drop ARGUMENTS`."""
        return self._ask({"arguments": [str(argument) for argument in arguments]}, env)

    def python(self, code: str, **env: str) -> Outcome:
        """Execute Python."""
        return self._ask({"code": code}, env)

    def _ask(self, what: dict, env: dict[str, str]) -> Outcome:
        self.process.stdin.write(json.dumps({**what, "env": env}) + "\n")
        self.process.stdin.flush()
        return Outcome(*json.loads(self.process.stdout.readline()))
