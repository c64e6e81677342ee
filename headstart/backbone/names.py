"""Architecture names: timm's in any spelling, and torchvision's."""

from __future__ import annotations

import difflib
import re

import timm

from headstart.backbone.side_by_side import MOST_MEMBERS, member_names
from headstart.errors import OptionError

_PREFIX = re.compile(r"(?:hf[-_]hub:|https?://huggingface\.co/)?(?:timm/)?", re.IGNORECASE)
_OTHER_REPOSITORY = re.compile(r"(?:hf[-_]hub:|https?://huggingface\.co/)?[\w.-]+/[\w.-]+", re.IGNORECASE)

TORCHVISION = {
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "efficientnet_v2_m": "tf_efficientnetv2_m",
    "efficientnet_v2_l": "tf_efficientnetv2_l",
    "maxvit_t": "maxvit_tiny_tf_224",
    "mnasnet0_5": "mnasnet_050",
    "mnasnet0_75": "mnasnet_075",
    "mnasnet1_0": "mnasnet_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "regnet_x_400mf": "regnetx_004",
    "regnet_x_800mf": "regnetx_008",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_x_3_2gf": "regnetx_032",
    "regnet_x_8gf": "regnetx_080",
    "regnet_x_16gf": "regnetx_160",
    "regnet_x_32gf": "regnetx_320",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_y_8gf": "regnety_080",
    "regnet_y_16gf": "regnety_160",
    "regnet_y_32gf": "regnety_320",
    "regnet_y_128gf": "regnety_1280",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}
"""Torchvision's name -> timm's name of the same architecture, if they differ; the pretrained weights are timm's."""


DINOV2_IMAGE_SIZE = 224
"""Side of the images for DINOv2, in pixels.

Its networks were trained at 224 pixels and for a short time at 518 (Oquab et al., 2023, section 4). 518 is timm's
default and takes more than seven times as many operations.
"""


def default_image_size(name: str) -> int | None:
    """Image size that replaces timm's default for a backbone, in pixels; None where timm's is used.

    Networks side by side have the image size of the first one.
    """
    return DINOV2_IMAGE_SIZE if "_dinov2" in member_names(name)[0] else None


def image_size_note(name: str) -> str:
    """A sentence about ``default_image_size``; "" where timm's default is used."""
    if (size := default_image_size(name)) is None:
        return ""
    return f"{name}: images of {size} pixels are used, which is less than timm's default; image_size changes it."


def resolve_architecture(name: str) -> str:
    """Timm's name of an architecture, with the tag of its weights if one is given.

    Surrounding spaces, upper case and the prefixes ``timm/``, ``hf-hub:timm/`` and ``https://huggingface.co/timm/`` are
    removed; torchvision's names are replaced by timm's. ``A+B`` is a combination, see ``side_by_side``.

    Raises:
        OptionError: timm has no such architecture or weights; suggests similar names. Or a combination of too many
            networks, or of a network and itself.
    """
    if len(members := member_names(name)) == 1:
        return _resolve_one(name)
    if "" in members:
        raise OptionError(f"backbone {name!r}: a name is missing beside the +; expected NAME+NAME.")
    resolved = [_resolve_one(member) for member in members]
    if len(set(resolved)) < len(resolved) or len(resolved) > MOST_MEMBERS:
        raise OptionError(f"backbone {name!r}: expected 2 to {MOST_MEMBERS} different networks, NAME+NAME.")
    return "+".join(resolved)


def _resolve_one(name: str) -> str:
    """``resolve_architecture`` for one network."""
    bare = _PREFIX.sub("", name.strip(), count=1)
    for candidate in (bare, bare.lower()):
        if _is_known(candidate):
            return candidate
        if candidate in TORCHVISION:
            return TORCHVISION[candidate]
    near = similar_names(bare)
    if _OTHER_REPOSITORY.fullmatch(bare) and _letters(bare) not in map(_letters, (*TORCHVISION, *near)):
        raise OptionError(
            f"backbone {name!r}: only timm's repositories on the hub can be used by name. Download the weight "
            "file; then give timm's name of the architecture with --backbone and the file with --weights."
        )
    raise OptionError(
        f"no backbone named {name!r} in timm {timm.__version__}. Similar names: {', '.join(near) or 'none'}. All "
        "names: timm.list_models()."
    )


def resolution_note(name: str, resolved: str) -> str:
    """A sentence about how a name was interpreted; "" if it is timm's name, except for its prefix."""
    if _PREFIX.sub("", name.strip(), count=1).lower() == resolved.lower():
        return ""
    return f"Backbone {name.strip()!r} is torchvision's name; timm's {resolved} is used, with timm's weights."


def similar_names(name: str) -> list[str]:
    """At most five similar names of timm, the most similar first; with tags if only the tag is unknown."""
    base = name.split(".")[0].lower()
    if timm.is_model(base):
        tagged = list(timm.list_pretrained(f"{base}.*"))
        return list(dict.fromkeys([*difflib.get_close_matches(name.lower(), tagged, n=5), *tagged]))[:5]
    names = [*timm.list_models(), *TORCHVISION]
    same = [other for other in names if _letters(other) == _letters(base)]
    near = difflib.get_close_matches(base, names, n=5)
    longer = [other for other in names if base and base in other]
    return list(dict.fromkeys(TORCHVISION.get(other, other) for other in (*same, *near, *longer)))[:5]


def _letters(name: str) -> str:
    """Letters and digits of a name, in lower case: "ResNet-50" becomes "resnet50"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_known(name: str) -> bool:
    if not name or "/" in name or ":" in name or not timm.is_model(name):
        return False
    base, _, tag = name.partition(".")
    return not tag or name in timm.list_pretrained(f"{base}.*") or bool(timm.is_model_pretrained(name))
