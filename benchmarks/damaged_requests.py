"""Damaged requests against every route of the server: half in this process, half over connections.

    python benchmarks/damaged_requests.py [--requests 2000] [--seed 0]

Prints the tally of statuses as JSON. Exits 1 where one is answered with a 5xx other than 503, with anything but the one
shape of refusals, or not at all; where the log holds a traceback; or where one took over ``LONGEST`` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from damaged import Damaged, ask, damaged, fault_of
from PIL import Image
from served import jpeg, served, tiny_model

import headstart.serve.batching as services
from headstart.serve.access import AccessPolicy
from headstart.serve.app import build_app
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections
from headstart.serve.limits import ServerLimits

LONGEST = 10.0
CLIENTS = 16
LIMITS = ServerLimits(
    max_body_bytes=200_000, max_images=10, max_pixels=1_000_000, body_timeout=1.0, max_queued_tasks=64
)


def images() -> list[bytes]:
    """Two that are valid, three that are not."""
    held = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(held, "PNG")
    return [jpeg(1), held.getvalue(), jpeg(2)[:200], b"", b"text"]


def in_process(requests: list[Damaged], folder: Path) -> tuple[Counter[int], list[str], float]:
    """Statuses, faults, and the longest time of one request, in seconds."""
    (folder / "run").mkdir()
    (folder / "run" / "log.jsonl").write_text('{"event": "plan", "text": "a"}\n')
    log: list[dict[str, Any]] = []
    service = InferenceService(tiny_model(), run=folder / "run", limits=LIMITS)
    app = build_app(
        service, admission=AccessPolicy("s3cret", True), corrections=Corrections(folder / "kept"), log=log.append
    )
    seen, wrong, times = Counter[int](), list[str](), list[float]()
    line = iter(requests)

    async def client() -> None:
        for request in line:
            began = time.perf_counter()
            status, headers, body = await ask(app, request)
            times.append(time.perf_counter() - began)
            seen[status] += 1
            if fault := fault_of(request, status, headers, body):
                wrong.append(f"{fault}: {request}"[:500])

    async def whole() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    asyncio.run(whole())
    service.close()
    return seen, wrong + [str(entry) for entry in log if "error" in entry], max(times)


def over_connections(requests: list[Damaged]) -> tuple[Counter[int], list[str], float]:
    """The same over real connections; 0 stands for no answer."""
    with served(tiny_model(), limits=LIMITS) as server:

        def say(request: Damaged) -> tuple[int, float, Damaged]:
            began, got = time.perf_counter(), b""
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plug:
                plug.sendall(request.raw())
                while piece := plug.recv(65536):
                    got += piece
            found = re.match(rb"HTTP/1\.1 (\d{3})", got)
            return int(found[1]) if found else 0, time.perf_counter() - began, request

        with ThreadPoolExecutor(CLIENTS) as clients:
            replies = list(clients.map(say, requests))
        alive = server.client.get("/readyz").status_code == 200
        errors = [str(entry) for entry in server.log if "error" in entry]
    bad = [(status, request) for status, _, request in replies if status == 0 or (status >= 500 and status != 503)]
    wrong = [f"status {status}: {request}"[:500] for status, request in bad]
    return (
        Counter(status for status, _, _ in replies),
        wrong + errors + ([] if alive else ["not ready"]),
        max(seconds for _, seconds, _ in replies),
    )


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    services.EXPECTED_IMAGES = 1  # engines are not measured
    chance, made = random.Random(given.seed), images()
    half = given.requests // 2
    keyed = [damaged(chance, made, chance.choice(["s3cret", "s3cret", "s3cret", ""])) for _ in range(half)]
    plain = [damaged(chance, made) for _ in range(given.requests - half)]
    with tempfile.TemporaryDirectory() as folder:
        inner, wrong, longest = in_process(keyed, Path(folder))
    outer, more, longer = over_connections(plain)
    longest, wrong = max(longest, longer), wrong + more
    result = {
        "benchmark": "damaged requests",
        "in this process": dict(sorted(inner.items())),
        "over connections": dict(sorted(outer.items())),
        "longest, seconds": round(longest, 2),
        "faults": wrong[:10],
        "met": not wrong and longest < LONGEST,
    }
    print(json.dumps(result))
    sys.exit(not result["met"])


if __name__ == "__main__":
    main()
