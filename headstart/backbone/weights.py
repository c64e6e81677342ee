"""Pretrained weights: loading any timm architecture from a file, an installed package, timm's cache or the hub."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headstart.backbone.hub_weights import cached_file, download
from headstart.backbone.licenses import (
    NOT_PRETRAINED,
    UNKNOWN,
    license_of,
    license_of_file,
    require_accepted,
    together,
)
from headstart.backbone.names import default_image_size, image_size_note, resolution_note, resolve_architecture
from headstart.backbone.offline_packages import OFFLINE_PACKAGES, offline_name, offline_state
from headstart.backbone.side_by_side import SideBySide, member_names
from headstart.backbone.timm_layers import recompute_position_biases
from headstart.backbone.weight_files import MatchedWeights, match_weights
from headstart.data.preprocessing import CropMode, Fit, Preprocessing
from headstart.errors import OptionError, WeightsError
from headstart.files import user_path
from headstart.progress import Progress, SilentProgress
from headstart.quiet import quiet

DEFAULT_BACKBONE = "tf_efficientnet_lite0"

SAME_FEATURES = 1e-6
"""Largest difference between two images' features, relative to the largest feature, that counts as equal."""

HUB_LOGGERS = ("timm", "huggingface_hub", "httpx", "urllib3")
DRAWS = frozenset(
    {"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"}
)
"""Names of torch's functions that initialise weights randomly; ``trunc_normal_`` uses these."""


@dataclass(frozen=True)
class PretrainedClassifier:
    """The classifier that a backbone was pretrained with: logits = features @ weight.T + bias.

    Attributes:
        weight: (classes, D) float32.
        bias: (classes,) float32.
        classes: names: "n11939491 daisy" for ImageNet's 1,000, "class 17" if timm does not have the names.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Backbone:
    """A pretrained network without its classifier, frozen and in inference mode.

    Attributes:
        architecture: timm's name, with the tag of the weights: "resnet50.a1_in1k".
        source: where the weights came from, in words.
        module: (N, 3, H, W) float -> (N, features) float. Its weights must not be changed.
        preprocessing: of images, as the weights expect it.
        fingerprint: SHA-256 of all parameters and buffers; backbones with equal fingerprints are equal.
        build: arguments of ``build_architecture``, with which a model file rebuilds the network.
        license: of the weights it was pretrained with, see ``licenses.license_of``.
        notes: how the name or the tensors' names were changed to load the weights, one sentence each.
    """

    architecture: str
    source: str
    module: nn.Module
    preprocessing: Preprocessing
    fingerprint: str
    build: dict[str, Any]
    license: str = UNKNOWN
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights, without BatchNorm statistics."""
        return sum(p.numel() for p in self.module.parameters())

    def with_fit(self, fit: Fit) -> Backbone:
        """The backbone with another way to fit an image into its input.

        Raises:
            OptionError: no such fit.
        """
        return replace(self, preprocessing=self.preprocessing.with_fit(fit))

    def fine_tuned(self, module: nn.Module, boundary: str) -> Backbone:
        """The backbone after fine-tuning.

        Args:
            module: the network with the trained weights, frozen.
            boundary: the freeze boundary after which it was trained.
        """
        source = f"{self.source}, fine-tuned after {boundary}"
        return replace(self, module=module, fingerprint=fingerprint(module.state_dict()), source=source)


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    accept_license: bool = False,
    fit: Fit = "auto",
    progress: Progress | None = None,
) -> Backbone:
    """Loads a pretrained backbone.

    Weights are read from ``weights`` if given; else from an installed package (``offline_packages``); else from timm's
    local cache; else from the Hugging Face hub.

    Args:
        name: a timm architecture, with or without the tag of its weights, or torchvision's name of it; see
            ``names.resolve_architecture``. ``A+B`` is a combination: features of both, on images as A expects them.
        weights: a .safetensors file, or a .pth, .pt or .bin file that contains only tensors and plain values (nothing
            is unpickled). Prefixes that training tools add to the tensors' names are removed, see ``notes``.
        image_size: side of the square input in pixels; default: the size that the weights were trained with, see
            ``names.default_image_size``.
        accept_license: whether weights may be used whose licence is restricted, see ``licenses.RESTRICTED``.
        fit: how an image is fitted into the input: "auto" (as the weights were trained), "crop", "pad" or "squash".
        progress: receives the progress of a download.

    Raises:
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: no such architecture or fit, or it does not support this image size.
        WeightsError: the weights cannot be read or do not fit (lists the keys that differ), contain values that are not
            finite, or give the same features for every image.
    """
    resolved = resolve_architecture(name)
    if len(member_names(resolved)) > 1:
        return _load_side_by_side(
            resolved, weights, image_size, accept_license=accept_license, progress=progress
        ).with_fit(fit)
    notes = [resolution_note(name, resolved), "" if image_size else image_size_note(resolved)]
    image_size = image_size or default_image_size(resolved)
    license = license_of(resolved) if weights is None else license_of_file(resolved)
    require_accepted(f"weights of {resolved}", license, accepted=accept_license)
    if weights is not None:
        backbone = _from_file(resolved, user_path(weights), image_size)
    elif (offline := offline_name(resolved)) is not None:
        backbone = _from_package(offline, image_size)
    else:
        backbone = _from_hub(resolved, image_size, progress or SilentProgress())
    backbone = backbone.with_fit(fit)
    return replace(backbone, license=license, notes=(*filter(None, notes), *backbone.notes))


def load_with_classifier(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    accept_license: bool = False,
    fit: Fit = "auto",
    progress: Progress | None = None,
) -> tuple[Backbone, PretrainedClassifier]:
    """Loads a pretrained backbone and the classifier that it was trained with; see ``load_backbone``.

    Raises:
        LicenseError: the licence of the weights is restricted, and was not accepted.
        OptionError: no such architecture, a combination, or its classifier is not a linear layer on its features.
        WeightsError: the weights cannot be read, do not fit, or contain no classifier.
    """
    backbone = load_backbone(
        name, weights=weights, image_size=image_size, fit=fit, accept_license=accept_license, progress=progress
    )
    name = resolve_architecture(name)
    if len(member_names(name)) > 1:
        raise OptionError(f"{name}: a combination was not pretrained with a classifier, so there is none to extend.")
    image_size = image_size or default_image_size(name)
    if weights is not None:
        module = _whole_from_file(name, user_path(weights), image_size)
    elif (offline := offline_name(name)) is not None:
        module = _offline_network(offline, image_size)
    else:
        module = _cached_network(name, cached_file(timm.get_pretrained_cfg(name)), image_size)
    layers = [module.get_submodule(layer_name) for layer_name in classifier_names(module)]
    layer = layers[0] if len(layers) == 1 else None
    if not isinstance(layer, nn.Linear):
        raise OptionError(f"{name}: its classifier is not a single linear layer, so it cannot be extended.")
    size = backbone.preprocessing
    with torch.inference_mode():
        x = torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
        if not torch.allclose(layer(backbone.module(x)), module.eval()(x), atol=1e-3, rtol=1e-3):
            raise OptionError(f"{name}: its classifier uses more than the features, so it cannot be extended.")
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    return backbone, PretrainedClassifier(weight, bias, _class_names(module, len(weight)))


def _class_names(module: nn.Module, count: int) -> tuple[str, ...]:
    data = cast(Any, timm.data)
    subset = data.infer_imagenet_subset(module)
    info = data.ImageNetInfo(subset) if subset else None
    if info is None or info.num_classes() != count:
        return tuple(f"class {i}" for i in range(count))
    return tuple(f"{info.index_to_label_name(i)} {info.index_to_description(i).split(',')[0]}" for i in range(count))


def random_backbone(name: str, *, image_size: int | None = None, fit: Fit = "auto", seed: int = 0) -> Backbone:
    """A backbone with random weights, for training from scratch and for tests; no file is read.

    Raises:
        OptionError: no such architecture or fit, or it does not support this image size.
    """
    name = resolve_architecture(name)
    image_size = image_size or default_image_size(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_architecture(name, image_size=image_size)
    backbone = _finish(name, module, source=f"random, seed {seed}", image_size=image_size)
    return replace(backbone, license=NOT_PRETRAINED).with_fit(fit)


class _SkipInitialisation(TorchFunctionMode):
    """Skips the random initialisation of weights: they keep the content of uninitialised memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_architecture(
    name: str, *, image_size: int | None = None, classes: int = 0, initialise: bool = True, try_size: bool = True
) -> nn.Module:
    """A timm network with random weights.

    Args:
        name: of the architecture, or of a combination.
        image_size: side of the input in pixels; None: the architecture's default.
        classes: number of classes of its classifier; 0: no classifier.
        initialise: initialise the weights, which takes 0.1 to 2.4 s; not needed if all weights are loaded afterwards.
        try_size: run the network once if ``image_size`` is given.

    Raises:
        OptionError: the architecture does not support this image size.
    """
    if len(members := member_names(name)) > 1:
        size = image_size or native_side(members[0])
        return _side_by_side(
            [build_architecture(m, image_size=size, initialise=initialise, try_size=try_size) for m in members]
        )
    fixed = timm.get_pretrained_cfg(name)
    extra: dict[str, Any] = {"img_size": image_size} if image_size and fixed and fixed.fixed_input_size else {}
    try:
        with quiet(*HUB_LOGGERS), nullcontext() if initialise else _SkipInitialisation():
            module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **extra).eval()
        recompute_position_biases(module)
        if image_size and try_size:
            _try_size(module, image_size)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        if not image_size:
            raise
        raise OptionError(f"{name} does not accept images of {image_size} pixels: {_short(error)}") from error
    return module


def native_side(name: str) -> int:
    """Side of the images that an architecture's weights expect, in pixels; the shorter one if they are not square."""
    config = timm.get_pretrained_cfg(name)
    return default_image_size(name) or (min(config.input_size[1:]) if config else 224)


def _side_by_side(members: list[nn.Module]) -> SideBySide:
    expected = [preprocessing_of(member) for member in members]
    return SideBySide(members, [(one.mean, one.std) for one in expected]).eval()


def _load_side_by_side(
    name: str, weights: object, image_size: int | None, *, accept_license: bool, progress: Progress | None
) -> Backbone:
    """Loads a combination; arguments as ``load_backbone``."""
    if weights is not None:
        raise OptionError(
            f"backbone {name}: weights from a file can be used only for a single backbone. Leave weights out, or "
            "name one backbone."
        )
    require_accepted(f"weights of {name}", license_of(name), accepted=accept_license)  # before anything is downloaded
    size = image_size or native_side(member_names(name)[0])
    members = [
        load_backbone(member, image_size=size, accept_license=accept_license, progress=progress)
        for member in member_names(name)
    ]
    module = _side_by_side([member.module for member in members])
    source = " and ".join(dict.fromkeys(member.source for member in members))
    whole = _finish("+".join(member.architecture for member in members), module, source=source, image_size=size)
    license, notes = together(member.license for member in members), [note for m in members for note in m.notes]
    return replace(whole, license=license, notes=tuple(notes))


def _try_size(module: nn.Module, image_size: int) -> None:
    with torch.inference_mode():
        module(torch.zeros(1, 3, image_size, image_size))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode())
        if tensor.numel():  # an empty tensor cannot be viewed as bytes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_package(name: str, image_size: int | None) -> Backbone:
    module = _offline_network(name, image_size)
    _drop_classifier(module)
    return _finish(name, module, source=f"package {OFFLINE_PACKAGES[name].name}", image_size=image_size)


def _offline_network(name: str, image_size: int | None) -> nn.Module:
    """The network of a key of ``OFFLINE_PACKAGES``, with its classifier."""
    module = build_architecture(name, image_size=image_size, classes=1000, initialise=False)
    module.load_state_dict(offline_state(name, module.state_dict()))
    return module


def _from_file(name: str, path: Path, image_size: int | None) -> Backbone:
    module = build_architecture(name, image_size=image_size, initialise=False)
    found = _matched(name, path, module)
    module.load_state_dict({key: found.state[key] for key in module.state_dict()})
    _require_finite(module.state_dict(), str(path))
    backbone = _finish(name, module, source=f"file {path.name}", image_size=image_size)
    _require_varied(backbone, path)
    return replace(backbone, notes=(found.note,) if found.note else ())


def _matched(name: str, path: Path, module: nn.Module) -> MatchedWeights:
    with quiet(*HUB_LOGGERS):
        return match_weights(path, module, architecture=name, classifier=classifier_names(module))


def _whole_from_file(name: str, path: Path, image_size: int | None) -> nn.Module:
    """The network with its classifier."""
    bare = build_architecture(name, image_size=image_size, initialise=False)
    state = _matched(name, path, bare).state
    names = [f"{layer}.{part}" for layer in classifier_names(bare) for part in ("weight", "bias")]
    if not names or any(key not in state for key in names):
        raise WeightsError(f"{path}: contains no classifier of {name}, so there is nothing to extend.")
    module = build_architecture(name, image_size=image_size, classes=len(state[names[0]]), initialise=False)
    module.load_state_dict(state)
    _require_finite(module.state_dict(), str(path))
    return module


def _require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Checks that every tensor is finite.

    Raises:
        WeightsError: a tensor contains NaN or infinity.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float64)):
            raise WeightsError(
                f"{source}: {name} contains values that are not finite (NaN or infinity). The training that wrote it "
                "diverged, or the file is damaged. Use an earlier checkpoint."
            )


def _require_varied(backbone: Backbone, path: Path) -> None:
    """Runs the backbone on two different images.

    Raises:
        WeightsError: the features are equal, or not finite.
    """
    size = backbone.preprocessing
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, size.height, size.width, generator=generator)
    with torch.inference_mode():
        one, other = backbone.module(noise + torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)).float().flatten(1)
    if not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise WeightsError(f"{path}: its features are not finite. Use another file.")
    if float((one - other).abs().max()) <= SAME_FEATURES * float(one.abs().max()):
        raise WeightsError(
            f"{path}: these weights give the same features for every image, so no classifier can be trained on them. "
            "Was the file written before the training, or its layers set to zero? Use another file."
        )


def _from_hub(name: str, image_size: int | None, progress: Progress) -> Backbone:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsError(
            f"timm has no pretrained weights for {name}. Give a file with --weights, or use one of "
            f"{', '.join(timm.list_pretrained(name.split('.')[0] + '*')[:5]) or 'timm.list_pretrained()'}."
        )
    if image_size:
        build_architecture(name, image_size=image_size, initialise=False)
    file = cached_file(config) or _downloaded(name, config, progress)
    module = _cached_network(name, file, image_size, num_classes=0)
    _require_finite(module.state_dict(), f"the weights of {name}")
    tagged = name if "." in name or not config.tag else f"{name}.{config.tag}"
    return _finish(tagged, module.eval(), source=f"hub {config.hf_hub_id or config.url}", image_size=image_size)


def _downloaded(name: str, config: Any, progress: Progress) -> Path:
    try:
        with quiet(*HUB_LOGGERS):
            return download(config, name, progress)
    except Exception as error:  # huggingface_hub raises errors of three kinds: hub, HTTP client and operating system
        raise WeightsError(
            f"the weights of {name} are not in timm's cache and cannot be downloaded ({_short(error)}). Connect to the "
            f"network once, give a file with --weights FILE, or use the offline default {DEFAULT_BACKBONE}."
        ) from error


def _cached_network(name: str, file: Path | None, image_size: int | None, **options: Any) -> nn.Module:
    """A network with the weights of a file that timm names, in the format of that release."""
    config = timm.get_pretrained_cfg(name)
    if image_size and config and config.fixed_input_size:
        options["img_size"] = image_size
    try:
        with quiet(*HUB_LOGGERS):
            module: nn.Module = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **options
            )
    except Exception as error:  # timm's loaders raise whatever the content of a file leads to
        raise WeightsError(
            f"{file}: the weights of {name} in timm's cache cannot be read ({_short(error)}). Remove the file, so that "
            "it is downloaded again."
        ) from error
    recompute_position_biases(module)
    return module


def _finish(name: str, module: nn.Module, *, source: str, image_size: int | None) -> Backbone:
    module.eval().requires_grad_(False)
    state = module.state_dict()
    return Backbone(
        architecture=name,
        source=source,
        module=module,
        preprocessing=preprocessing_of(module, image_size),
        fingerprint=fingerprint(state),
        build={"name": name, "image_size": image_size},
    )


def preprocessing_of(module: nn.Module, image_size: int | None = None) -> Preprocessing:
    """The preprocessing of images that a timm network's weights expect.

    Args:
        module: created by timm.
        image_size: side of the input in pixels; default: that of the weights.
    """
    config: dict[str, Any] = cast(Any, timm.data).resolve_model_data_config(module)
    _, height, width = config["input_size"]
    mode: CropMode = config["crop_mode"] if config.get("crop_mode") in get_args(CropMode) else "center"
    found = Preprocessing(
        height=height,
        width=width,
        crop_pct=float(config["crop_pct"]),
        crop_mode=mode,
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bilinear",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return replace(found, height=image_size, width=image_size) if image_size else found


def classifier_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a timm network's classifier: ("fc",), ("head.fc",). A combination has none."""
    if isinstance(module, SideBySide):
        return ()
    names = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _drop_classifier(module: Any) -> None:
    module.reset_classifier(0)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text[:117] + "...") if len(text) > 120 else text or type(error).__name__
