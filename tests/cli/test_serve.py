from __future__ import annotations

from pathlib import Path

import pytest
from commands import main
from served import tiny_model

from headstart.errors import ServerError
from headstart.serve import server as servers
from headstart.serve.server import listen


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().save(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def test_a_used_port_is_an_error_with_a_remedy(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        status, _, err = main("serve", model_file, "--port", port, capsys=capsys)
    assert status == 1
    assert f"127.0.0.1:{port}: cannot listen there" in err
    assert "--port" in err
    with pytest.raises(ServerError, match="cannot listen"):
        listen("no.such.host.invalid", 0)


def test_a_missing_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = main("serve", tmp_path / "gone.safetensors", capsys=capsys)
    assert (status, "no such model file" in err) == (1, True)


def test_a_public_server_without_a_key_warns(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(servers, "run_until_stopped", lambda app, *given, **more: seen.append(app))
    for arguments, warned in ((["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--key", "k"], False), ([], False)):
        status, _, err = main("serve", model_file, "--port", 0, *arguments, capsys=capsys)
        assert (status, "Warning: anybody who can reach" in err) == (0, warned)
    monkeypatch.setenv("HEADSTART_KEY", "from the environment is refused: blanks")
    status, _, err = main("serve", model_file, "--port", 0, capsys=capsys)
    assert (status, "The API key may contain" in err) == (1, True)
    assert len(seen) == 3


def test_limits_of_the_command_reach_the_server(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[servers.InferenceService] = []
    monkeypatch.setattr(servers, "run_until_stopped", lambda app, service, *given, **more: seen.append(service))
    options = "--max-body 1 --max-images 5 --max-pixels 2 --queue 7 --connections 9 --timeout 3 --gather 4"
    assert main("serve", model_file, "--port", 0, *options.split(), capsys=capsys)[0] == 0
    own = seen[0].limits
    assert (own.max_body_bytes, own.max_images, own.max_pixels, own.max_queued_images) == (1_000_000, 5, 2_000_000, 7)
    assert (own.max_connections, own.response_timeout, own.batch_wait_ms) == (9, 3, 4)
