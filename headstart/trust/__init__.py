"""Trust: calibration, thresholds, out-of-distribution detection and label errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.trust.calibration import Calibration as Calibration
    from headstart.trust.ood import OodDetector as OodDetector

_MODULES = {
    "Calibration": "headstart.trust.calibration",
    "OodDetector": "headstart.trust.ood",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
