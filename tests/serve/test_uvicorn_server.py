"""Undocumented names of uvicorn, and the capped version."""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
import tomllib
from contextlib import ExitStack
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

import headstart.serve
from headstart.serve.limits import ServerLimits
from headstart.serve.listener import listen
from headstart.serve.middleware import ServerState
from headstart.serve.uvicorn_server import bounded_server, ignore_new_clients, quiet_uvicorn

ROOT = Path(headstart.serve.__file__).parents[2]
MODULE = "uvicorn_server.py"


def test_the_undocumented_names_of_uvicorn_are_there() -> None:
    assert inspect.isgeneratorfunction(uvicorn.Server.capture_signals.__wrapped__)  # type: ignore[attr-defined]
    assert "with self.capture_signals()" in inspect.getsource(uvicorn.Server.serve)
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)
    assert "config.http_protocol_class(" in inspect.getsource(uvicorn.Server.startup)
    assert issubclass(H11Protocol, asyncio.Protocol)


def test_uvicorn_is_imported_in_one_module_and_no_private_attribute_of_a_web_library_is_used() -> None:
    folder = Path(headstart.serve.__file__).parent
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [own.name for node in ast.walk(tree) if isinstance(node, ast.Import) for own in node.names]
        assert path.name == MODULE or not any(name.split(".")[0] == "uvicorn" for name in imported), path
        private = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and ast.unparse(node.value) not in ("self", "cls", "os")
        ]
        assert private == [], path


def test_the_version_of_uvicorn_has_a_cap_that_holds_the_installed_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    (capped,) = {own for own in requirements if own.startswith("uvicorn>") and "," in own}
    cap = capped.split("<")[1]
    assert "." in cap, "a minor version: undocumented names change with those"
    assert tuple(map(int, version("uvicorn").split(".")[:2])) < tuple(map(int, cap.split(".")))


def test_clients_that_are_not_accepted_yet_are_answered_when_the_server_stops_listening() -> None:
    """The event loop has accepted none of them when it is asked to stop."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    async def whole() -> list[bytes]:
        server = bounded_server(PlainTextResponse("here"), ServerLimits(), ServerState())
        with listen("127.0.0.1", 0) as listener, quiet_uvicorn(), ExitStack() as stack:
            address = listener.getsockname()
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            clients = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(20)]
            await server.stop_listening()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=20)
            received = [await asyncio.to_thread(exchange, client) for client in clients]
            server.should_exit = True
            await serving
        return received

    def exchange(client: socket.socket) -> bytes:
        client.sendall(request)
        received = b""
        while piece := client.recv(65536):  # a reset raises an error
            received += piece
        return received

    assert all(received.endswith(b"here") for received in asyncio.run(whole()))


def test_a_client_that_comes_while_the_server_stops_listening_is_refused_not_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=20) as client:
            if not ignore_new_clients(listener):
                pytest.skip("this system cannot ignore new clients")
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"a")
                assert accepted.recv(1) == b"a"
