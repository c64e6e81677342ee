"""Grad-CAM: heat maps of the image regions that support a class (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, fx, nn

from headstart.backbone.layers import Layout, group_names
from headstart.backbone.pixel_net import FeatureNet, PixelNet, split_backbone
from headstart.backbone.side_by_side import SideBySide
from headstart.backbone.split import HEAD, INPUT
from headstart.data.decode import jpeg_bytes
from headstart.data.preprocessing import Rgb
from headstart.model import Model

GRADCAM_VERSION = 1
"""Version of the method and of the drawing; incremented to invalidate cached overlays."""

MIN_POSITIONS = 4
"""Minimum number of spatial positions of an activation for a heat map."""

OPACITY = 0.7
"""Maximum opacity of the heat map over the grey image."""

QUALITY = 82
"""JPEG quality on Pillow's scale."""

_INFERNO = [
    "000004",
    "0b0724",
    "210c4a",
    "3d0965",
    "57106e",
    "71196e",
    "8a226a",
    "a32c61",
    "bc3754",
    "d24644",
    "e45a31",
    "f1731d",
    "f98e09",
    "fcac11",
    "f9cb35",
    "f2ea69",
    "fcffa4",
]
"""Matplotlib's colour map "inferno", sampled at equal steps; importing Matplotlib takes half a second."""

HeatMap = npt.NDArray[np.float32]
"""(h, w) in [0, 1], coarser than the image; 1 at the position that supports the class most."""


@final
class GradCam:
    """Grad-CAM of a classifier; finds the layer to explain once for many images.

    Args:
        model: the classifier.
        check: called between steps, here and in ``maps``; an exception that it raises cancels the computation.

    Attributes:
        possible: whether the network has a spatial activation, which ``maps`` requires.
    """

    def __init__(self, model: Model, *, check: Callable[[], None] = lambda: None) -> None:
        self._net, self._layer = _explained(model.net, check)
        self._head = copy.deepcopy(model.head)
        self.possible = self._layer is not None

    def maps(
        self, pixels: Sequence[Rgb], classes: Sequence[int], *, check: Callable[[], None] = lambda: None
    ) -> list[HeatMap]:
        """Computes the heat map of each image for one class.

        Images are not batched, so that a map does not depend on other images, not even in its last bits.

        Args:
            pixels: N preprocessed images, (H, W, 3) uint8.
            classes: N class indices, one per image.
            check: called before each image.

        Raises:
            ValueError: ``possible`` is False.
        """
        if self._layer is None:
            raise ValueError("the network has no spatial activation: see GradCam.possible")
        found: list[HeatMap] = []
        for image, index in zip(pixels, classes, strict=True):
            check()
            batch = torch.from_numpy(image[None].copy()).to(self._net.scale.device)
            (heat,) = _grad_cam(self._net, self._layer, self._head, batch, torch.tensor([index], device=batch.device))
            found.append((heat / heat.max().clamp(min=1e-12)).cpu().numpy())
        return found


def heat_maps(model: Model, pixels: Sequence[Rgb], classes: Sequence[int]) -> list[HeatMap] | None:
    """``GradCam.maps`` for a few images; None without images or a spatial activation."""
    if not pixels:
        return None
    cam = GradCam(model)
    return cam.maps(pixels, classes) if cam.possible else None


def heat_map_jpeg(overlay: Rgb) -> bytes:
    """``heat_map_overlay`` as a JPEG."""
    return jpeg_bytes(Image.fromarray(overlay), quality=QUALITY)


def heat_map_overlay(pixels: Rgb, heat: HeatMap) -> Rgb:
    """Draws a heat map over the grey image; bright colours support the class."""
    height, width = pixels.shape[:2]
    resized = Image.fromarray((255 * heat).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.asarray(resized, dtype=np.float64) / 255
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    opacity = OPACITY * strength[..., None]
    blended: npt.NDArray[np.float64] = grey * (1 - opacity) + _colours(strength) * opacity
    return blended.clip(0, 255).astype(np.uint8)


def _colours(strength: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Applies the colour map: (H, W) in [0, 1] -> (H, W, 3) in [0, 255]."""
    stops = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(strength, places, stops[:, channel]) for channel in range(3)], axis=-1)


def _grad_cam(net: PixelNet, layer: nn.Module, head: nn.Module, pixels: Tensor, classes: Tensor) -> Tensor:
    """(N, h, w): sum of the channels of a layer's output, weighted by the mean gradient of the logit; ReLU."""
    layout, maps = Layout.of(net.backbone.module), list[Tensor]()

    def explained(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        as_map, as_output = _map_view(output.float(), layout)
        maps.append(as_map.detach().requires_grad_())
        return as_output(maps[0])

    with torch.inference_mode(False), torch.enable_grad(), _hooked(layer, explained):
        logits = head(net(pixels))
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps[0])
    return (gradient.mean((2, 3), keepdim=True) * maps[0].detach()).sum(1).relu().float()


def _map_view(activation: Tensor, layout: Layout) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An activation as (N, C, h, w), and the inverse conversion to the layout of the network."""
    if activation.ndim == 4 and layout.channels_last:
        return activation.permute(0, 3, 1, 2), lambda as_map: as_map.permute(0, 2, 3, 1)
    if activation.ndim == 4:
        return activation, lambda as_map: as_map
    grid = layout.grid(activation.shape)
    assert grid is not None  # only layers with a spatial activation are chosen
    prefix, tokens = activation[:, : layout.prefix_tokens], activation[:, layout.prefix_tokens :]
    as_map = tokens.transpose(1, 2).reshape(len(activation), -1, *grid)
    return as_map, lambda as_map: torch.cat([prefix, as_map.flatten(2).transpose(1, 2)], 1)


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., Tensor | None]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class _Call:
    """One call of a layer: name, output, and whether a layer with weights was called after it."""

    name: str
    output: Tensor
    has_weights_after: bool


def _explained(net: FeatureNet, check: Callable[[], None]) -> tuple[PixelNet, nn.Module | None]:
    """A network whose layers accept hooks, and the layer to explain; None without a spatial activation."""
    if isinstance(net.body, (fx.GraphModule, SideBySide)):  # a layer of which does not determine the features
        return _cut_in_two(net)
    shared = {id(tensor): tensor for tensor in (*net.body.parameters(), *net.body.buffers())}
    hookable = PixelNet(net.backbone, copy.deepcopy(net.body, shared)).to(net.scale.device)
    return hookable, _deepest_layer(hookable, check)


def _cut_in_two(net: FeatureNet) -> tuple[PixelNet, nn.Module | None]:
    split, layout = split_backbone(net.backbone, net.spec), Layout.of(net.backbone.module)
    inner = [b for b in split.boundaries if b.name not in (INPUT, HEAD)]
    found = [b for b in inner if _num_positions(torch.Size((1, *b.activation_shape)), layout) >= MIN_POSITIONS]
    if not found:
        return net, None
    alike = [b for b in found if b.activation_shape == found[-1].activation_shape]
    boundary = alike[-2] if len(alike) > 1 and len(alike[-1].activation_shape) == 2 else found[-1]
    body = _Halves(*split.halves(boundary.name))
    return PixelNet(net.backbone, body).to(net.scale.device), body.between


class _Halves(nn.Module):
    """A network in two parts, with a layer between them that accepts hooks."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.between, self.after = before, nn.Identity(), after

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> features."""
        found = self.before(x)
        activation, *beside = found if isinstance(found, tuple) else (found,)
        features: Tensor = self.after(self.between(activation), *beside)
        return features


def _deepest_layer(net: PixelNet, check: Callable[[], None]) -> nn.Module | None:
    """The deepest layer with a spatial output that determines the features, followed by layers with weights.

    For token sequences the layer before is chosen: after the last block of a vision transformer, the prediction may
    depend on the class token only.
    """
    layout, size, groups = Layout.of(net.backbone.module), net.backbone.preprocessing, set(group_names(net.body))
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, size.height, size.width, 3), dtype=np.uint8)
    images = tuple(torch.from_numpy(noise).to(net.scale.device))
    found: list[_Call] = []
    with torch.inference_mode():
        calls, first = _called(net, images[0])
        features = first, net(images[1])
        for call in reversed(calls):
            is_part = call.name in groups or call.name.rpartition(".")[0] in groups
            if not is_part or not call.has_weights_after or (found and call.output.shape != found[0].output.shape):
                continue
            check()
            if _num_positions(call.output.shape, layout) >= MIN_POSITIONS and _decides(net, call, images, features):
                found.append(call)
            if found and (found[0].output.ndim == 4 or len(found) > 1):
                break
    return net.body.get_submodule(found[-1].name) if found else None


def _decides(net: PixelNet, call: _Call, images: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor]) -> bool:
    """Whether the second image gets the first one's features with the first one's output of the layer."""
    with _hooked(net.body.get_submodule(call.name), lambda *_: call.output.clone()):
        replaced = net(images[1])
    error, difference = ((other - features[0]).abs().max() for other in (replaced, features[1]))
    return bool(error <= 1e-3 * difference)


def _called(net: PixelNet, pixels: Tensor) -> tuple[list[_Call], Tensor]:
    """Records the calls of layers, in the order in which they return, and the features."""
    ended: list[tuple[str, Tensor, int]] = []
    with_weights = 0
    handles = []

    def begin(layer: nn.Module, _inputs: object) -> None:
        nonlocal with_weights
        with_weights += any(True for _ in layer.parameters(recurse=False))

    def end(name: str, output: object) -> None:
        if isinstance(output, Tensor) and name:
            ended.append((name, output.clone(), with_weights))

    for name, layer in net.body.named_modules():
        if isinstance(layer, (nn.Identity, nn.Dropout)):
            continue
        handles.append(layer.register_forward_pre_hook(begin))
        handles.append(layer.register_forward_hook(lambda _l, _i, output, name=name: end(name, output)))
    try:
        features = net(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return [_Call(name, output, before < with_weights) for name, output, before in ended], features


def _num_positions(shape: torch.Size, layout: Layout) -> int:
    grid = layout.grid(shape) if len(shape) in (3, 4) else None
    return grid[0] * grid[1] if grid else 0
