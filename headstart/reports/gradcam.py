"""Where a network looked: Grad-CAM at the last activation that still has places."""

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
from headstart.data.decode import Rgb, jpeg_bytes
from headstart.model import Model

BATCH = 8

LEAST_PLACES = 4
"""Places that an activation must have to say where."""

STRENGTH = 0.7
"""Share of the heat in the picture that is shown."""

QUALITY = 82

Heat = npt.NDArray[np.float32]


@final
class GradCam:
    """Grad-CAM of one classifier, cut once for many images: cutting a backbone takes two seconds.

    Args:
        model: the classifier.
        split: of the model's backbone, where it is at hand; it is cut here otherwise.
        check: called between steps, here and in ``maps``; what it raises ends the work.

    Attributes:
        possible: whether the network has an activation with places; ``maps`` needs one.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017; by Captum.
    """

    def __init__(
        self, model: Model, *, split: SplittableBackbone | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        import captum.attr  # noqa: F401  (it takes half a second, which is a step of its own)

        check()
        net = model.net
        split = split or split_backbone(net.backbone, net.pool, net.cut)
        check()
        layout = Layout.of(net.backbone.module)
        boundary = _last_with_places(split, layout)
        self._device = net.scale.device
        self._explained = None if boundary is None else _Explained(model, split, boundary.name, layout).to(self._device)
        self.possible = self._explained is not None

    def maps(
        self, pixels: Sequence[Rgb], classes: Sequence[int], *, check: Callable[[], None] = lambda: None
    ) -> list[Heat]:
        """What speaks for a class, place by place.

        Args:
            pixels: of N images, as the network sees them.
            classes: of each image, the number of the class that is asked about.
            check: called before each batch.

        Returns:
            N of (h, w) float32 in [0, 1], coarser than the image.
        """
        from captum.attr import LayerGradCam

        explained = self._explained
        assert explained is not None, "check ``possible`` first"
        cam = LayerGradCam(explained, explained.places)
        found: list[Heat] = []
        for start in range(0, len(pixels), BATCH):
            check()
            own = torch.from_numpy(np.stack(pixels[start : start + BATCH])).to(self._device)
            target = torch.tensor(classes[start : start + BATCH], device=own.device)
            heat = cam.attribute(own, target, relu_attributions=True).detach()[:, 0].float().cpu()
            top = heat.flatten(1).amax(1).clamp(min=1e-12)
            found += list((heat / top[:, None, None]).numpy())
        return found


def heat_maps(
    model: Model, pixels: Sequence[Rgb], classes: Sequence[int], *, split: SplittableBackbone | None = None
) -> list[Heat] | None:
    """``GradCam.maps`` of a few images; None where there are none, or the network keeps no places."""
    if not pixels:
        return None
    cam = GradCam(model, split=split)
    return cam.maps(pixels, classes) if cam.possible else None


def heat_picture(pixels: Rgb, heat: Heat) -> bytes:
    """The picture as the network sees it with the heat over it, as a JPEG; warm where much speaks for it."""
    import matplotlib

    height, width = pixels.shape[:2]
    grown = Image.fromarray((255 * heat).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.asarray(grown, dtype=np.float32) / 255
    colours = matplotlib.colormaps["inferno"](warmth)[..., :3] * 255
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    share = STRENGTH * warmth[..., None]
    shown = grey * (1 - share) + colours * share
    drawn = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    return jpeg_bytes(drawn, quality=QUALITY)


@final
class _Explained(nn.Module):
    """uint8 pixels -> logits, with the activation that is asked about passing through ``places`` as (N, C, h, w)."""

    def __init__(self, model: Model, split: SplittableBackbone, boundary: str, layout: Layout) -> None:
        super().__init__()
        self.before = ActivationNet(model.net.backbone, boundary, split.prefix(boundary))
        self.places = nn.Identity()
        self.behind = split.suffix(boundary)
        self.head = copy.deepcopy(model.head)
        self.layout = layout

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            made = self.before(pixels).float()
        made = made.requires_grad_()
        layout, tokens = self.layout, made.ndim == 3
        if not tokens:
            seen = self.places(made.permute(0, 3, 1, 2) if layout.channels_last else made)
            back = seen.permute(0, 2, 3, 1) if layout.channels_last else seen
        else:
            own, rest = made[:, : layout.prefix_tokens], made[:, layout.prefix_tokens :]
            grid = layout.grid(made.shape)
            assert grid is not None  # or there would be no such boundary
            seen = self.places(rest.transpose(1, 2).unflatten(2, grid))
            back = torch.cat([own, seen.flatten(2).transpose(1, 2)], 1)
        logits: Tensor = self.head(self.behind(back))
        return logits


def _last_with_places(split: SplittableBackbone, layout: Layout) -> Boundary | None:
    """Of sequences of tokens the one before the last: behind the last block the class token alone may count."""
    inner = [b for b in split.boundaries if b.name not in (INPUT, HEAD)]
    places = [b for b in inner if len(b.shape) in (2, 3) and _places(b, layout) >= LEAST_PLACES]
    if not places:
        return None
    own = places[-1]
    alike = [b for b in places if b.shape == own.shape]
    return alike[-2] if len(own.shape) == 2 and len(alike) > 1 else own


def _places(boundary: Boundary, layout: Layout) -> int:
    grid = layout.grid(torch.Size((1, *boundary.shape)))
    return grid[0] * grid[1] if grid else 0
