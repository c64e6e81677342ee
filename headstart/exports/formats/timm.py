"""A folder that timm and transformers load: the network with the head as its classifier, and its configuration.

Files: ``config.json`` (architecture, class names, preprocessing), ``model.safetensors`` (tensors by timm's names),
``README.md`` (card) and the metadata of every export. A repository of the Hugging Face hub with these files is a model
of timm: ``timm.create_model("hf-hub:OWNER/NAME", pretrained=True)``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import ExportError
from headstart.exports.formats.interface import ExportFormat, WriteRequest, WrittenFiles
from headstart.exports.metadata import ExportMetadata
from headstart.exports.readers.timm_reader import METADATA_FILE
from headstart.exports.snippets import timm_snippet
from headstart.files import text_bytes, write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.model import Model

NAME = "timm"

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
"""Names that timm, transformers and the hub expect."""

NETWORK_FILES = (CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE)
"""The files of a folder besides the card."""

COPIED = ("fixed_input_size", "first_conv", "classifier")
"""Facts about the architecture that timm's configuration of the weights is asked for."""

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest one, between the network with its classifier and features
with the head."""


def timm_obstacle(model: Model) -> str:
    """Why a model cannot be written as a network of timm, in words; "" if it can."""
    from headstart.exports.linear_classifier import obstacle_to_linear

    return obstacle_to_linear(model)


def classifying_network(model: Model) -> nn.Module:
    """Timm's network with the model's weights, and its head and temperature as the classifier.

    Returns:
        (N, 3, H, W) float32, normalised -> (N, classes) logits, whose softmax are the model's probabilities.

    Raises:
        ExportError: the model has parts that a network of timm does not have.
    """
    from headstart.exports.linear_classifier import folded_classifier

    if obstacle := timm_obstacle(model):
        raise _inexpressible(obstacle)
    import torch

    from headstart.backbone.weights import build_architecture, classifier_names

    backbone, (weight, bias) = model.net.backbone, folded_classifier(model)
    network = build_architecture(**backbone.build, classes=len(bias), initialise=False, try_size=False)
    layers: list[Any] = [network.get_submodule(name) for name in classifier_names(network)]
    tensors = [(layer.weight, layer.bias) for layer in layers if hasattr(layer, "weight")]
    given = backbone.module.state_dict()
    missing, unexpected = network.load_state_dict(given, strict=False)
    if unexpected or not tensors or len(missing) != 2 * len(tensors):
        raise _inexpressible(f"the classifier of {backbone.architecture} is more than a linear layer")
    with torch.no_grad():
        for layer_weight, layer_bias in tensors:
            layer_weight.copy_(weight.reshape(layer_weight.shape))
            layer_bias.copy_(bias)
        _require_equal(network.eval(), backbone.module, weight, bias, model)
    return network


def _require_equal(network: nn.Module, features: nn.Module, weight: Tensor, bias: Tensor, model: Model) -> None:
    """Compares the network on noise with its features and the linear layer.

    Raises:
        ExportError: they differ.
    """
    import torch

    size = model.preprocessing
    noise = torch.randn(2, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    expected, found = features(noise) @ weight.T + bias, network(noise)
    if not float((expected - found).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise _inexpressible(f"the classifier of {model.net.backbone.architecture} uses more than the features")


def _inexpressible(reason: str) -> ExportError:
    return ExportError(
        f"--to timm: this model is not a network of timm with a linear classifier: {reason}. Export to onnx or torch "
        "(--to onnx), which can hold any model."
    )


def configuration(model: Model, network: Any) -> dict[str, Any]:
    """Content of ``config.json``, as timm and transformers read it.

    Args:
        model: the exported model.
        network: see ``classifying_network``.
    """
    size, backbone = model.preprocessing, model.net.backbone
    document: dict[str, Any] = {
        "architecture": backbone.build["name"].partition(".")[0],
        "num_classes": len(model.classes),
        "num_features": network.num_features,
        "label_names": list(model.classes),
    }
    fixed = network.pretrained_cfg.get("fixed_input_size", False)
    if fixed and backbone.build["image_size"]:
        document["model_args"] = {"img_size": backbone.build["image_size"]}
    known = {name: network.pretrained_cfg[name] for name in COPIED if network.pretrained_cfg.get(name) is not None}
    preprocessing = {
        "input_size": [3, size.height, size.width],
        "interpolation": size.interpolation,
        "crop_pct": size.crop_pct,
        "crop_mode": size.crop_mode,
        "mean": list(size.mean),
        "std": list(size.std),
    }
    document["pretrained_cfg"] = known | preprocessing | {"num_classes": len(model.classes), "custom_load": False}
    return document


def _write(request: WriteRequest) -> WrittenFiles:
    import timm
    import torch
    from safetensors.torch import save

    from headstart.exports.graph import export_metadata
    from headstart.exports.timm_card import timm_card

    model, folder = request.model, request.file
    network = classifying_network(model)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    versions = {"timm": timm.__version__, "torch": str(torch.__version__)}
    metadata = replace(export_metadata(model, written_with=versions), none_above=None)
    files = {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: json.dumps(configuration(model, network), indent=2).encode(),
        CARD_FILE: text_bytes(timm_card(model)),
        METADATA_FILE: metadata.text().encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return WrittenFiles(metadata, {NAME: folder})


def _snippet(folder: Path, metadata: ExportMetadata) -> str:
    return timm_snippet(f"local-dir:{folder}", metadata)


FORMAT = ExportFormat(
    NAME,
    "_timm",
    _write,
    "timm_reader.py",
    snippets={"python": _snippet},
    marker=METADATA_FILE,
    has_outlier_scores=False,
)
