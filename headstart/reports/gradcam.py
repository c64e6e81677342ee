"""Grad-CAM: heat maps of what a classifier's decision rests on (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import ActivationNet, split_backbone
from headstart.backbone.split import HEAD, INPUT, Boundary, SplittableBackbone
from headstart.data.decode import jpeg_bytes
from headstart.data.preprocessing import Rgb
from headstart.model import Model

BATCH = 8
"""Images that go through the network together."""

MIN_POSITIONS = 4
"""Positions that an activation must have to be worth a heat map."""

OPACITY = 0.7
"""Opacity of the hottest position over the grey image."""

QUALITY = 82
"""Of the JPEG, as Pillow counts it."""

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
"""Matplotlib's colour map "inferno" at equal steps; importing Matplotlib for it would take half a second."""

HeatMap = npt.NDArray[np.float32]
"""(h, w) in [0, 1], coarser than the image; 1 is the position that speaks most for the class."""


@final
class GradCam:
    """Grad-CAM of one classifier, prepared once for many images.

    Args:
        model: the classifier.
        split: the model's backbone, cut; it is cut here if not given.
        check: called between steps, here and in ``maps``; an exception that it raises ends the work.

    Attributes:
        possible: whether the network has an activation with positions; ``maps`` needs one.
    """

    def __init__(
        self, model: Model, *, split: SplittableBackbone | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        net = model.net
        split = split or split_backbone(net.backbone, net.pool, net.cut)
        check()
        layout = Layout.of(net.backbone.module)
        boundary = _last_with_positions(split, layout)
        self._device = net.scale.device
        self._network = None if boundary is None else _CutClassifier(model, split, boundary.name, layout)
        if self._network is not None:
            self._network.to(self._device)
        self.possible = self._network is not None

    def maps(
        self, pixels: Sequence[Rgb], classes: Sequence[int], *, check: Callable[[], None] = lambda: None
    ) -> list[HeatMap]:
        """The heat map of each image for one class.

        Args:
            pixels: N images as the network sees them, (H, W, 3) uint8.
            classes: N class numbers, one for each image.
            check: called before each batch.

        Raises:
            ValueError: ``possible`` is False.
        """
        if self._network is None:
            raise ValueError("the network has no activation with positions: see GradCam.possible")
        found: list[HeatMap] = []
        for start in range(0, len(pixels), BATCH):
            check()
            batch = torch.from_numpy(np.stack(pixels[start : start + BATCH])).to(self._device)
            target = torch.tensor(classes[start : start + BATCH], device=self._device)
            heat = _grad_cam(self._network, batch, target)
            highest = heat.flatten(1).amax(1).clamp(min=1e-12)
            found += list((heat / highest[:, None, None]).cpu().numpy())
        return found


def heat_maps(
    model: Model, pixels: Sequence[Rgb], classes: Sequence[int], *, split: SplittableBackbone | None = None
) -> list[HeatMap] | None:
    """``GradCam.maps`` of a few images; None if there are none, or the network has no positions."""
    if not pixels:
        return None
    cam = GradCam(model, split=split)
    return cam.maps(pixels, classes) if cam.possible else None


def heat_map_jpeg(pixels: Rgb, heat: HeatMap) -> bytes:
    """The image in grey with its heat map over it, as a JPEG; bright colours where much speaks for the class."""
    height, width = pixels.shape[:2]
    resized = Image.fromarray((255 * heat).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.asarray(resized, dtype=np.float64) / 255
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    opacity = OPACITY * strength[..., None]
    blended: npt.NDArray[np.float64] = grey * (1 - opacity) + _colours(strength) * opacity
    return jpeg_bytes(Image.fromarray(blended.clip(0, 255).astype(np.uint8)), quality=QUALITY)


def _colours(strength: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(H, W) in [0, 1] -> (H, W, 3) in [0, 255]."""
    stops = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(strength, places, stops[:, channel]) for channel in range(3)], axis=-1)


def _grad_cam(network: _CutClassifier, pixels: Tensor, classes: Tensor) -> Tensor:
    """(N, h, w): the channels of the activation, weighted by the mean gradient of the class's logit, positive part."""
    with torch.inference_mode(False), torch.enable_grad():
        made = network.prefix(pixels).float()
        as_map, as_made = _map_view(made, network.layout)
        as_map = as_map.detach().requires_grad_()
        logits = network.head(network.suffix(as_made(as_map)))
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), as_map)
    return (gradient.mean((2, 3), keepdim=True) * as_map.detach()).sum(1).relu().float()


def _map_view(made: Tensor, layout: Layout) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An activation as (N, C, h, w), and the function that turns such a map back into the network's layout."""
    if made.ndim == 4 and layout.channels_last:
        return made.permute(0, 3, 1, 2), lambda as_map: as_map.permute(0, 2, 3, 1)
    if made.ndim == 4:
        return made, lambda as_map: as_map
    grid = layout.grid(made.shape)
    assert grid is not None  # a boundary without positions is not chosen
    prefix, tokens = made[:, : layout.prefix_tokens], made[:, layout.prefix_tokens :]
    as_map = tokens.transpose(1, 2).reshape(len(made), -1, *grid)
    return as_map, lambda as_map: torch.cat([prefix, as_map.flatten(2).transpose(1, 2)], 1)


@final
class _CutClassifier(nn.Module):
    """A classifier in two parts, with the activation that is explained between them."""

    def __init__(self, model: Model, split: SplittableBackbone, boundary: str, layout: Layout) -> None:
        super().__init__()
        self.prefix = ActivationNet(model.net.backbone, boundary, split.prefix(boundary))
        self.suffix = split.suffix(boundary)
        self.head = copy.deepcopy(model.head)
        self.layout = layout


def _last_with_positions(split: SplittableBackbone, layout: Layout) -> Boundary | None:
    """The deepest boundary with positions; of sequences of tokens the one before the last.

    Behind the last block of a vision transformer the class token alone may count.
    """
    inner = [b for b in split.boundaries if b.name not in (INPUT, HEAD)]
    candidates = [b for b in inner if len(b.shape) in (2, 3) and _num_positions(b, layout) >= MIN_POSITIONS]
    if not candidates:
        return None
    last = candidates[-1]
    alike = [b for b in candidates if b.shape == last.shape]
    return alike[-2] if len(last.shape) == 2 and len(alike) > 1 else last


def _num_positions(boundary: Boundary, layout: Layout) -> int:
    grid = layout.grid(torch.Size((1, *boundary.shape)))
    return grid[0] * grid[1] if grid else 0
