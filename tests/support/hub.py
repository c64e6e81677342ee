"""A fake Hugging Face hub on a free local port."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import constants
from plain_http import answering

TOKEN = "hf_for_tests"


@dataclass
class Hub:
    """State of the fake hub.

    Attributes:
        address: URL of the server.
        repositories: "owner/name" -> file -> content.
        private: names of private repositories.
        asked: (method, path) of each request.
        seconds: that a download takes.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0


@contextmanager
def hub_on_this_machine() -> Iterator[Hub]:
    """Serves creating, committing (large files through LFS) and downloading; writing needs ``TOKEN``."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            held.asked.append(("POST", self.path))
            body = self.body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send(401, {"error": "Invalid credentials"})
            parts = self.path.strip("/").split("/")
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in held.repositories:
                    return self.send(409, {"url": f"{held.address}/{name}"})
                held.repositories[name] = {}
                if asked.get("private") or asked.get("visibility") == "private":
                    held.private.add(name)
                return self.send(200, {"url": f"{held.address}/{name}"})
            if self.path == "/api/validate-yaml":
                return self.send(200, {"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "lfs" if f["size"] > 10_000 else "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.send(200, {"files": files})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    own | {"actions": {"upload": {"href": f"{held.address}/blob/{own['oid']}"}}}
                    for own in json.loads(body)["objects"]
                ]
                return self.send(200, {"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                files = held.repositories[f"{parts[2]}/{parts[3]}"]
                for line in body.splitlines():
                    entry = json.loads(line)
                    own = entry["value"]
                    if entry["key"] == "file":
                        files[own["path"]] = base64.b64decode(own["content"])
                    if entry["key"] == "deletedFile":
                        del files[own["path"]]
                    if entry["key"] == "lfsFile":
                        files[own["path"]] = held.blobs[own["oid"]]
                url = f"{held.address}/{parts[2]}/{parts[3]}/commit/{'b' * 40}"
                return self.send(200, {"commitUrl": url, "commitOid": "b" * 40})
            return self.send(404, {})

        def do_PUT(self) -> None:
            held.asked.append(("PUT", self.path))
            body = self.body()
            oid = self.path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                return self.send(400, {"error": "other content"})
            held.blobs[oid] = body
            return self.send(200, {})

        def do_HEAD(self) -> None:
            self.give(body=False)

        def do_GET(self) -> None:
            self.give(body=True)

        def give(self, *, body: bool) -> None:
            held.asked.append((self.command, self.path))
            repository, _, rest = self.path.strip("/").partition("/resolve/")
            files = held.repositories.get(repository)
            name = rest.partition("/")[2]
            if files is None or rest.startswith("no-such"):
                return self.send(404, {}, error="RepoNotFound" if files is None else "RevisionNotFound")
            if name not in files:
                return self.send(404, {}, error="EntryNotFound")
            data = files[name]
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                time.sleep(held.seconds)
                self.wfile.write(data)
            return None

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, status: int, document: object, *, error: str = "") -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as held.address:
        yield held


@contextmanager
def hub_for_tests(cache: Path) -> Iterator[Hub]:
    """``hub_on_this_machine`` as the hub of this process; downloads are stored in ``cache``."""
    with hub_on_this_machine() as held, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", held.address)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield held
