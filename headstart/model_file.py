"""Model file: one safetensors file, whose metadata hold a JSON document. Reading, writing, and earlier formats.

``model_schema`` has the bounds of every field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.licenses import UNKNOWN
from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import Backbone, build_architecture, fingerprint
from headstart.data.preprocessing import Preprocessing
from headstart.errors import ModelFileError, first_line
from headstart.extras import version_of
from headstart.model_schema import (
    FORMAT_VERSION,
    InvalidField,
    check_depth,
    check_model,
    check_tensor,
    check_version,
)
from headstart.training.former_options import with_current_names
from headstart.trust.calibration import OLD_KEYS
from headstart.trust.ood import OodDetector

MODEL_FILE = "model.safetensors"
HUB_MODEL_FILE = "headstart.safetensors"
"""Name of the model file on the hub, where timm and transformers expect their network in ``model.safetensors``."""

"""File name of the model in a run folder."""

KEY: Final = "headstart"
"""Key of the document in the file's metadata."""

_RENAMED_TENSORS: Final = {
    "familiar.references": "ood.references",
    "familiar.usual": "ood.inlier_distances",
    "familiar.limits": "ood.limits",
}
"""Tensors of formats 1 and 2 -> their names since."""


@dataclass(frozen=True)
class ModelContent:
    """A model file's content, checked and in the current format.

    Attributes:
        header: the JSON document, without its digest.
        tensors: name -> tensor.
        sha256: digest of the file, in hex; it identifies the model.
    """

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str

    def tensors_of(self, part: str) -> dict[str, Tensor]:
        """Tensors of a part ("backbone", "head", "ood"), without the part's name."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def read_model_file(path: Path) -> ModelContent:
    """Reads and checks a model file, of this format or an earlier one.

    Raises:
        ModelFileError: no such file, damaged, not a Headstart model, of a newer format, or a field is out of bounds.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file.")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{path}: damaged, or not a model file ({first_line(error)}).") from error
    if KEY not in metadata:
        raise ModelFileError(
            f"{path}: contains tensors, but not a Headstart model. If these are backbone weights, train with the "
            "option weights."
        )
    return read_content(metadata[KEY], tensors, path)


def read_content(text: str, tensors: Mapping[str, Tensor], path: Path) -> ModelContent:
    """Reads and checks the document and the tensors of a model file.

    Args:
        text: the document, JSON.
        tensors: name -> tensor.
        path: of the file, for the messages.

    Raises:
        ModelFileError: see ``read_model_file``.
    """
    header = _parsed(text, path)
    if header["format_version"] > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: written in format {header['format_version']}; Headstart {version_of('headstart')} reads formats "
            f"up to {FORMAT_VERSION}. Install a newer Headstart."
        )
    try:
        for name, tensor in tensors.items():
            check_tensor(name, tensor, earlier=_RENAMED_TENSORS)
        sha256 = header.pop("sha256", None)
        if sha256 != digest(header, tensors):
            raise ModelFileError(f"{path}: damaged: the checksum does not match the content. Copy the file again.")
        header, current = upgraded(header, tensors)
        check_model(header, current)
    except InvalidField as error:
        raise ModelFileError(
            f"{path}: {error}. The file was not written by Headstart, or was changed afterwards."
        ) from error
    return ModelContent(header, current, sha256)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text)
        check_depth(header)
        check_version(header)
    except (ValueError, RecursionError, InvalidField) as error:
        raise ModelFileError(f"{path}: damaged: its header cannot be read ({first_line(error)}).") from error
    return header


def upgraded(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of an earlier format in the current one.

    Format 1 has neither thresholds (each image has one class) nor calibration. Format 2 has other names for fields of
    the calibration (``trust.calibration.OLD_KEYS``) and for the tensors of the out-of-distribution detector. Format 3
    has features of the last layer only, and does not state the licence of the pretrained weights.
    """
    if header["format_version"] == FORMAT_VERSION:
        return header, dict(tensors)
    header = header | {"format_version": FORMAT_VERSION}
    if isinstance(header.get("backbone"), dict):
        header["backbone"] = {"layers": [], "license": UNKNOWN} | header["backbone"]
    if isinstance(header.get("calibration"), dict):
        header["calibration"] = with_current_names(header["calibration"], OLD_KEYS)
    return header, with_current_names(tensors, _RENAMED_TENSORS)


def digest(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of a document without its digest, and of the tensors."""
    return hashlib.sha256(f"{json.dumps(header, sort_keys=True)}\n{fingerprint(tensors)}".encode()).hexdigest()


def model_bytes(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelFileError: a value is one that ``read_model_file`` would refuse.
    """
    header = json.loads(json.dumps(header))
    check_model(header, tensors)
    return save(tensors, {KEY: json.dumps(header | {"sha256": digest(header, tensors)})})


def network_header(net: FeatureNet) -> dict[str, Any]:
    """The part of the document that describes the network: preprocessing, backbone, and which outputs are used."""
    backbone = net.backbone
    return {
        "preprocessing": asdict(backbone.preprocessing),
        "backbone": {
            "architecture": backbone.architecture,
            "source": backbone.source,
            "fingerprint": backbone.fingerprint,
            "license": backbone.license,
            "build": backbone.build,
            "pool": net.spec.pool,
            "cut": net.spec.cut,
            "layers": list(net.spec.layers),
        },
    }


def network_tensors(net: FeatureNet) -> dict[str, Tensor]:
    """The network's part of the tensors."""
    return {f"backbone.{name}": tensor.cpu() for name, tensor in net.state().items()}


def network_of(content: ModelContent) -> FeatureNet:
    """Builds the network of a model file: backbone, layers and pooling.

    Raises:
        ModelFileError: a tensor is missing, or does not fit the architecture.
    """
    about = content.header["backbone"]
    net = FeatureNet(backbone_of(content), FeatureSpec(about["pool"], about["cut"], tuple(about["layers"])))
    if missing := [name for name in net.state() if f"backbone.{name}" not in content.tensors]:
        raise ModelFileError(f"tensor backbone.{missing[0]}: missing")
    return net


def network_bytes(net: FeatureNet) -> bytes:
    """A network without head, to be sent to another process; ``network_from_bytes`` builds it again."""
    tensors = {name: tensor.contiguous() for name, tensor in network_tensors(net).items()}
    return save(tensors, {KEY: json.dumps(network_header(net))})


def network_from_bytes(data: bytes) -> FeatureNet:
    """Builds the network that ``network_bytes`` wrote."""
    return network_of(ModelContent(json.loads(_metadata(data)[KEY]), load(data), ""))


def model_content(data: bytes) -> ModelContent:
    """As ``read_model_file``, of a file's content."""
    return read_content(_metadata(data)[KEY], load(data), Path(MODEL_FILE))


def _metadata(data: bytes) -> dict[str, str]:
    """Metadata of a safetensors file: its header, after 8 bytes with the header's length."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def backbone_of(content: ModelContent) -> Backbone:
    """Builds the backbone of a model file.

    Raises:
        ModelFileError: a tensor does not fit the architecture.
    """
    about, state = content.header["backbone"], content.tensors_of("backbone")
    build = about["build"]
    module = build_architecture(
        build["name"], image_size=build["image_size"], initialise=bool(about["cut"]), try_size=False
    )
    expected = module.state_dict()
    for name, tensor in state.items():
        if name not in expected or expected[name].shape != tensor.shape:
            shape = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}" if name in expected else "unknown"
            raise ModelFileError(f"tensor backbone.{name:.100} does not fit {build['name']}: {shape}")
    module.load_state_dict(state, strict=not about["cut"])
    preprocessing: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in content.header["preprocessing"].items()
    }
    return Backbone(
        architecture=about["architecture"],
        source=about["source"],
        module=module.requires_grad_(False),
        preprocessing=Preprocessing(**preprocessing),
        fingerprint=about["fingerprint"],
        build=build,
        license=about["license"],
    )


def ood_tensors(detector: OodDetector) -> dict[str, Tensor]:
    """An out-of-distribution detector as tensors."""
    arrays = {field.name: getattr(detector, field.name) for field in fields(detector)}
    return {f"ood.{name}": torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def ood_detector_of(content: ModelContent) -> OodDetector | None:
    """The out-of-distribution detector of a model file; None for a model without one."""
    tensors = content.tensors_of("ood")
    return OodDetector(**{name: tensor.numpy() for name, tensor in tensors.items()}) if tensors else None
