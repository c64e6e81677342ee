"""The factor by which limits in seconds are longer on a slow machine."""

from __future__ import annotations

import pytest
from machine_speed import IMAGES_PER_SECOND, IMPORT_SECONDS, slowness_of


@pytest.mark.parametrize(
    ("import_factor", "speed_factor", "expected"), [(1, 1, 1), (2, 1, 1.5), (2, 0.5, 2), (0.5, 2, 1), (0.1, 9, 1)]
)
def test_limits_are_longer_on_a_slower_machine_alone(
    import_factor: float, speed_factor: float, expected: float
) -> None:
    slowness = slowness_of(import_factor * IMPORT_SECONDS, speed_factor * IMAGES_PER_SECOND)
    assert slowness == pytest.approx(expected)
