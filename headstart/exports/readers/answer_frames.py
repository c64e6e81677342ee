"""The program that runs a reader: pixels on standard input, outputs on standard output.

    python -P answer_frames.py READER FILE

Runs outside Headstart: imports nothing of it. Each message is a kind (J: JSON, A: arrays), its length, and its bytes;
arrays follow each other as .npy. First {"metadata": text} or {"error": words}; then an answer for each array of pixels.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
from collections.abc import Sequence
from typing import IO, Any

import numpy

HEADER = struct.Struct("<cQ")


def send_json(out: IO[bytes], document: object) -> None:
    """Writes a message of JSON."""
    _send(out, b"J", json.dumps(document).encode())


def send_arrays(out: IO[bytes], arrays: Sequence[numpy.ndarray]) -> None:
    """Writes a message of arrays."""
    data = io.BytesIO()
    for array in arrays:
        numpy.save(data, numpy.ascontiguousarray(array), allow_pickle=False)
    _send(out, b"A", data.getbuffer())


def receive(source: IO[bytes]) -> Any:
    """Reads a message: a JSON document, or a list of arrays.

    Raises:
        EOFError: the other side has ended.
    """
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        raise EOFError("the other process has ended")
    kind, length = HEADER.unpack(header)
    data = source.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended")
    if kind == b"J":
        return json.loads(data)
    arrays, content = [], io.BytesIO(data)
    while content.tell() < length:
        arrays.append(numpy.load(content, allow_pickle=False))
    return arrays


def _send(out: IO[bytes], kind: bytes, data: bytes | memoryview) -> None:
    out.write(HEADER.pack(kind, len(data)))
    out.write(data)
    out.flush()


def main(reader: str, file: str) -> None:
    """Opens a file and answers until standard input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = importlib.util.spec_from_file_location("reader", reader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        metadata, run = module.open_file(file)
    except ValueError as error:
        send_json(out, {"error": str(error)})
        return
    send_json(out, {"metadata": metadata})
    while True:
        try:
            (pixels,) = receive(sys.stdin.buffer)
        except EOFError:
            return
        send_arrays(out, run(pixels))


if __name__ == "__main__":
    main(*sys.argv[1:])
