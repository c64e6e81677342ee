"""Stand-ins on 127.0.0.1 for Google Cloud Storage and for data sets on the Hugging Face hub: reading only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from plain_http import answering

REPOSITORY = "OWNER/NAME"
COMMIT = "c" * 40


class _Reading(BaseHTTPRequestHandler):
    """Answers with JSON documents, and with files or ranges of them."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that is closed
            super().handle()

    def document(self, value: object, status: int = 200, **headers: str) -> None:
        self.give(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | headers)

    def file(self, data: bytes, headers: Mapping[str, str]) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            self.give(data, 200, headers)
            return
        first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        self.give(data[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def give(self, data: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def gs_server(files: Mapping[str, bytes]) -> Iterator[str]:
    """The bucket "flowers" with some files, as Google's JSON API shows it, and "private" without access."""

    class Handler(_Reading):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            head, _, name = url.path.partition("/b/flowers/o")
            name = unquote(name.removeprefix("/"))
            if "/b/private/" in url.path:
                self.document({"error": {"code": 403, "message": "no access"}}, 403)
            elif not head.endswith("/storage/v1"):
                self.document({"error": {"code": 404, "message": "no such bucket"}}, 404)
            elif not name:
                self.document(_listed(files, asked.get("prefix", ""), asked.get("delimiter", "")))
            elif name not in files:
                self.document({"error": {"code": 404, "message": f"No such object: {name}"}}, 404)
            elif asked.get("alt") == "media":
                self.file(files[name], {})
            else:
                self.document(_object(name, files[name]))

    with answering(Handler) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        yield address


def _object(name: str, data: bytes) -> dict[str, Any]:
    return {"kind": "storage#object", "name": name, "bucket": "flowers", "size": str(len(data)), "generation": "1"}


def _listed(files: Mapping[str, bytes], prefix: str, delimiter: str) -> dict[str, Any]:
    below = {name: data for name, data in files.items() if name.startswith(prefix)}
    if not delimiter:
        return {"items": [_object(name, data) for name, data in below.items()]}
    rests = {name: name[len(prefix) :].partition(delimiter) for name in below}
    folders = dict.fromkeys(f"{prefix}{head}{delimiter}" for head, mark, _ in rests.values() if mark)
    return {
        "items": [_object(name, data) for name, data in below.items() if not rests[name][1]],
        "prefixes": list(folders),
    }


@contextmanager
def dataset_hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """A hub with the data set repository ``REPOSITORY``, which has some files."""

    class Handler(_Reading):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith(api := f"api/datasets/{REPOSITORY}"):
                rest = path.removeprefix(api).strip("/")
                if rest.startswith("tree/"):
                    self.tree(rest.split("/", 2)[2] if rest.count("/") > 1 else "")
                else:
                    self.document({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
                return
            name = path.removeprefix(f"datasets/{REPOSITORY}/resolve/").partition("/")[2]
            if path.startswith(f"datasets/{REPOSITORY}/resolve/") and name in files:
                tag = hashlib.sha256(files[name]).hexdigest()
                self.file(files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
                return
            code = "EntryNotFound" if REPOSITORY in path else "RepoNotFound"
            self.document({"error": "not found"}, 404, **{"X-Error-Code": code})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            asked = parse_qs(body).get("paths") or json.loads(body)["paths"]
            self.document([entry for path in asked for entry in _entries(files, path, itself=True)])

        def tree(self, folder: str) -> None:
            entries = _entries(files, folder, itself=False)
            if entries:
                self.document(entries)
            else:
                self.document({"error": "not found"}, 404, **{"X-Error-Code": "EntryNotFound"})

    with answering(Handler) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", address)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        yield address


def _entries(files: Mapping[str, bytes], path: str, *, itself: bool) -> list[dict[str, Any]]:
    """Descriptions of a path itself, or of everything below it."""
    start = f"{path}/" if path else ""
    below = {name: data for name, data in files.items() if name.startswith(start)}
    folders = {name[:place] for name in below for place in range(len(name)) if name[place] == "/"}
    found = [_entry("file", name, data) for name, data in files.items() if (name == path if itself else name in below)]
    wanted = [own for own in sorted(folders) if (own == path if itself else own.startswith(start))]
    return found + [_entry("directory", own, own.encode()) for own in wanted]


def _entry(kind: str, path: str, data: bytes) -> dict[str, Any]:
    size = len(data) if kind == "file" else 0
    return {"type": kind, "path": path, "size": size, "oid": hashlib.sha1(data).hexdigest()}
