"""Code blocks of the documents: parsed, classified by language, and run in this process."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from commands import main
from gunicorn.config import Config
from gunicorn.util import import_app
from served import until
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from uvicorn.importer import import_from_string

import headstart as hs
from headstart import runtime
from headstart.cli import main as cli
from headstart.runtime import command

ROOT = Path(cli.__file__).parents[2]
RECORDS = ("results", "decisions")
"""Folders of docs/ with records: their commands depend on a machine and data, and are not run."""

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
"""Every page; links, names and prose are checked."""

PAGES = sorted(
    (page for page in DOCUMENTS if page.parent.name not in RECORDS and page.name != "CHANGELOG.md"),
    key=lambda page: (page.name != "export.md", page),
)
"""Pages whose commands and Python blocks are run, slowest first."""

PROGRAMS = ("headstart", "headstart-runtime", "python", "curl", "make", ".ci/run", "uvicorn", "gunicorn")
UNTIL_STOPPED = ("serve", "watch", "label")
"""Commands that run until Ctrl-C."""

PORT = re.compile(r"\b8000\b")

Command = Callable[..., tuple[int, str, str]]
"""A command that runs in this process, see ``commands.main``."""


@dataclass(frozen=True)
class Block:
    """A fenced or indented code block of a page.

    Attributes:
        page: the page.
        line: line number of its start.
        language: "sh", "python", "json" or "text".
        text: content without fence and indentation.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """``README.md:12``."""
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Commands of a shell block: the lines after "$ " if there are any, else every line."""
        lines = [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        return typed or [line for line in lines if not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """Every fenced or indented block of a page, in order."""
    found, lines, place = [], [*page.read_text().splitlines(), ""], 0
    while place < len(lines):
        begin, line = place, lines[place]
        place += 1
        if line.startswith("```"):
            while lines[place] != "```":
                place += 1
            content = "\n".join(lines[begin + 1 : place])
            place += 1
        elif line.startswith("    ") and (begin == 0 or not lines[begin - 1].strip()):
            while lines[place].startswith("    ") or (not lines[place].strip() and _goes_on(lines[place + 1 :])):
                place += 1
            content = "\n".join(own[4:] for own in lines[begin:place])
        else:
            continue
        found.append(
            Block(
                page,
                begin + 1,
                _language(line.removeprefix("```").strip() if line.startswith("```") else "", content),
                content.rstrip(),
            )
        )
    return found


def _goes_on(lines: list[str]) -> bool:
    """Whether an indented block continues after a blank line."""
    return next((own for own in lines if own.strip()), "").startswith("    ")


def _language(fence: str, text: str) -> str:
    if fence:
        return {"bash": "sh", "console": "sh", "shell": "sh", "py": "python"}.get(fence, fence)
    if re.sub(r"^(\$ |[A-Z_]+=\S+ )*", "", text).split()[0] in PROGRAMS:
        return "sh"
    try:
        json.loads(text)
        return "json"
    except ValueError:
        pass
    try:
        ast.parse(text)
    except SyntaxError:
        return "text"
    return "python"


@dataclass
class Reader:
    """Runs the code blocks of a page in a folder with the data that the page names.

    Attributes:
        folder: the working directory.
        capsys: the fixture of the test.
        replies: responses to the curl commands of the page.
        said: captured stdout.
    """

    folder: Path
    capsys: pytest.CaptureFixture[str]
    replies: list[Any] = field(default_factory=list)
    said: str = ""

    def read(self, page: Path) -> None:
        """Runs every command and every Python block of a page, in order.

        Raises:
            AssertionError: a command fails; the message names page, line and command.
        """
        blocks = blocks_of(page)
        asked = [line for block in blocks if block.language == "sh" for line in block.commands if _is(line, "curl")]
        names: dict[str, Any] = {"hs": hs, "__name__": "__main__"}
        for block in blocks:
            if block.language == "python":
                self._python(block, names)
            for line in block.commands if block.language == "sh" else []:
                self._shell(block, line, asked)
        assert not asked, f"{page.name}: no server is started before {asked[0]}"

    def _python(self, block: Block, names: dict[str, Any]) -> None:
        port = free_port()
        code = compile("\n" * block.line + PORT.sub(str(port), block.text), str(block.page), "exec", dont_inherit=True)
        with (
            stopped_once_it_answers(port) if re.search(r"\b(serve|label)\(", block.text) else nullcontext(),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setitem(sys.modules, "headstart_runtime", runtime)  # tests/runtime/test_package.py imports the wheel
            exec(code, names)
        self.said += self.capsys.readouterr().out

    def _shell(self, block: Block, line: str, asked: list[str]) -> None:
        where = f"{block.where}: {line}"
        program, *words = shlex.split(line, comments=True)
        with pytest.MonkeyPatch.context() as patch:
            while re.match(r"[A-Z_]+=", program):
                patch.setenv(*program.split("=", 1))
                program, *words = words
            self._run(where, program, words, asked)

    def _run(self, where: str, program: str, words: list[str], asked: list[str]) -> None:
        if program in ("headstart", "headstart-runtime"):
            self._headstart(where, words, asked, main if program == "headstart" else _runtime)
        elif program == "python":
            self._script(where, words)
        elif program == "make":
            makefile = (ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{re.escape(own)}:", makefile, re.MULTILINE) for own in words), where
        elif program in ("uvicorn", "gunicorn"):
            application = (_for_uvicorn if program == "uvicorn" else _for_gunicorn)(words)
            with TestClient(application, base_url="http://127.0.0.1") as client:
                until(lambda: client.get("/readyz").status_code == 200, 60)
        elif program == ".ci/run":
            assert os.access(ROOT / program, os.X_OK), where
        else:
            assert program == "curl", f"{where}: nothing here can run it"

    def _headstart(
        self, where: str, words: list[str], asked: list[str], main: Callable[..., tuple[int, str, str]]
    ) -> None:
        if words[0] not in UNTIL_STOPPED:
            code, out, err = main(*words, capsys=self.capsys)
            assert code == 0, f"{where}\n{out}{err}"
            assert out, where
            self.said += out
            return
        port = free_port()
        curls, asked[:] = (list(asked), []) if words[0] == "serve" else ([], asked)

        def first() -> None:
            self.replies.extend(curl(own, port) for own in curls)
            if words[0] == "label" and "--multi-label" not in words:
                label_by_name(f"http://127.0.0.1:{port}")

        with stopped_once_it_answers(port, first):
            code, _, err = main(*words, "--port", port, capsys=self.capsys)
        assert code in (0, cli.STOPPED), f"{where}\n{err}"

    def _script(self, where: str, words: list[str]) -> None:
        script, given = ROOT / words[0], [own for own in words[1:] if own != "..."]
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(script.parent))
            patch.setattr("sys.argv", [str(script), *given])
            runpy.run_path(str(script), run_name="__main__")
        out = self.capsys.readouterr().out
        assert out, where
        self.said += out


def _runtime(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs ``headstart-runtime`` in this process; returns exit status, stdout and stderr."""
    return command.main([str(word) for word in words]), *capsys.readouterr()


def _for_uvicorn(words: list[str]) -> ASGIApp:
    """The application that ``uvicorn WORDS`` serves; worker processes are tested in test_concurrency.py."""
    options = uvicorn.main.make_context("uvicorn", list(words)).params
    found = import_from_string(options["app"])
    return found() if options["factory"] else found


def _for_gunicorn(words: list[str]) -> ASGIApp:
    """The application that ``gunicorn WORDS`` serves."""
    options = Config().parser().parse_args(words)
    import_from_string(options.worker_class.replace(".Uvicorn", ":Uvicorn"))
    (application,) = options.args
    return import_app(application)


def _is(line: str, program: str) -> bool:
    return line.split()[0] == program


def curl(line: str, port: int) -> Any:
    """Runs a curl command that sends files as a form; returns the JSON response."""
    words = shlex.split(line, comments=True)[1:]
    files = []
    while words[0] == "-F":
        name, _, path = words[1].partition("=@")
        files.append((name, (path, Path(path).read_bytes())))
        words = words[2:]
    (url,) = words
    reply = httpx.post(PORT.sub(str(port), url), files=files, timeout=60, trust_env=False)
    assert reply.status_code == 200, f"{line}\n{reply.text}"
    return reply.json()


def label_by_name(url: str) -> None:
    """Labels all images of a session: a name such as "rose-3.jpg" begins with the class."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/v1/label/state").json()["work"]["stage"] == "ready", 60)
        shown = client.get("/v1/label/images", params={"view": "all", "count": 1000}).json()["items"]
        token = client.get("/v1/label/state").json()["session"]
        for name in sorted({item["name"].partition("-")[0] for item in shown}):
            ids = [item["id"] for item in shown if item["name"].startswith(f"{name}-")]
            action = {"do": "label", "images": ids, "label": name, "source": "grid"}
            reply = client.post("/v1/label/actions", json={"session": token, "action": action})
            assert reply.status_code == 200, reply.text


def free_port() -> int:
    """A free port."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


@contextmanager
def stopped_once_it_answers(port: int, first: Callable[[], None] | None = None) -> Iterator[None]:
    """Sends Ctrl-C to the code in the block, after it responds on a port and ``first`` has run."""
    faults: list[BaseException] = []
    ended = threading.Event()

    def press() -> None:
        try:
            _wait_for_answer(port, ended)
            if first is not None:
                first()
        except BaseException as error:
            faults.append(error)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if faults:
        raise faults[0]


def _wait_for_answer(port: int, ended: threading.Event, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as client:
        while time.monotonic() < end and not ended.is_set():
            with suppress(httpx.TransportError):
                if any(client.get(path).status_code == 200 for path in ("/readyz", "/watch", "/v1/label/state")):
                    return
            time.sleep(0.05)
    raise AssertionError("it never answered")
