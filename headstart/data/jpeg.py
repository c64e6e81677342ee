"""JPEG files that are small but slow to decode: limits on scans and segments, checked before decoding."""

from __future__ import annotations

import re

MAX_SCANS = 200
"""Scans of a progressive JPEG, each a pass over the whole image area. Cameras and programs write about ten. A scan may
take only a few bytes in the file, but its decoding time grows with the number of pixels."""

MAX_SEGMENTS = 5000
"""Segments of a JPEG; Pillow reads each with a function written in Python."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""Markers of segments with a length field, and the end-of-image marker."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def exceeds_limits(data: bytes) -> bool:
    """Whether a JPEG has more than ``MAX_SCANS`` scans or ``MAX_SEGMENTS`` segments.

    Bytes after the end of the image are not counted: phones append a video or a second image there.
    """
    place, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or found[0][1] == END_OF_IMAGE:
            return False
        scans += found[0][1] == START_OF_SCAN
        if scans > MAX_SCANS:
            return True
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True
