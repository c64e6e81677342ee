"""Corrections that ``serve`` stores are sent to a labelling session."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from labelling import wait_for
from labelling_sessions import named_session, write_names
from random_images import COLOURS, random_image

from headstart.progress import SilentProgress
from headstart.serve.corrections import Corrections
from headstart.serve.labelling.process import follow_corrections


def png(seed: int, name: str) -> bytes:
    data = io.BytesIO()
    random_image(seed, COLOURS[name]).save(data, "PNG")
    return data.getvalue()


def test_corrections_join_an_open_session_when_serve_stores_them(tmp_path: Path) -> None:
    folder = write_names(tmp_path / "photos", {"blue": 20, "red": 20})
    (folder / "blue-99.jpg").write_bytes(png(7, "blue"))
    corrections, stop = Corrections(tmp_path / "photos-run-corrections"), threading.Event()
    corrections.keep(png(1, "red"), "red")
    with named_session(folder) as session:
        given = (session, corrections.folder, SilentProgress(), stop, 0.02)
        thread = threading.Thread(target=follow_corrections, args=given)
        thread.start()
        try:
            wait_for(lambda: session.state()["images"] == 42)
            kept = corrections.keep(png(2, "blue"), "blue")  # while the session is open
            wait_for(lambda: session.state()["images"] == 43)
            last = session.images("all", 0, 99)["items"][-1]
            assert (last["name"], last["label"], last["source"]) == (kept.file.name, ["blue"], "import")
            corrections.keep(png(7, "blue"), "blue")  # an image of the session
            wait_for(lambda: session.state()["labelled"] == 3)
            assert session.state()["images"] == 43
            labelled = {item["name"] for item in session.images("labelled", 0, 99)["items"]}
            assert "blue-99.jpg" in labelled
        finally:
            stop.set()
            thread.join(20)
        assert not thread.is_alive()
