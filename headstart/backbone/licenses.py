"""Licences of pretrained weights: what timm states, and whether a licence restricts how a model may be used.

This is a table for orientation and no legal advice: the text of the licence decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import timm

from headstart.backbone.side_by_side import member_names
from headstart.errors import LicenseError

LicenseKind = Literal["permissive", "restricted", "unknown"]

UNKNOWN: Final = "unknown"
"""Licence of weights for which nobody states one, such as a file of the user's own."""

TOGETHER: Final = " + "
"""Between the licences of several weights that are used together."""

NOT_PRETRAINED: Final = "none"
"""In place of a licence where a network starts from random weights."""

PERMISSIVE: Final = frozenset(
    {
        "apache-2.0",
        "apple-ascl",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc0-1.0",
        "cvnets-license",
        "fastvit-license",
        "mit",
        "mobileone-license",
        NOT_PRETRAINED,
    }
)
"""Licences that allow any use, also commercial, on condition of attribution or a notice at most.

``apple-ascl`` and those of CVNets, FastViT and MobileOne are Apple's sample code licence: use, modification and
redistribution are allowed; rights in patents are not granted.
"""

RESTRICTED: Final = {
    "apple-amlr": "for research only",
    "cc-by-nc-4.0": "no commercial use",
    "cc-by-nc-sa-4.0": "no commercial use",
    "dinov3-license": "special terms, which exclude some uses",
    "fair-noncommercial-research-license": "for non-commercial research only",
    "gemma": "special terms, which exclude some uses",
    "nvidia-open-model-license": "special terms, which end if safeguards are removed",
    "other": "special terms",
    "qwen-community-1.0": "special terms",
    "sapiens2-license": "special terms",
    "seer-license": "for non-commercial research only",
}
"""Licence -> why it is not permissive."""


def license_of(name: str) -> str:
    """The licence that timm states for pretrained weights, in lower case; "unknown" if it states none.

    Args:
        name: timm's ``architecture.tag``, or an architecture for its default weights.
    """
    found = [timm.get_pretrained_cfg(member) for member in member_names(name)]
    return together(str((config and config.license) or UNKNOWN).lower() for config in found)


def together(licenses: Iterable[str]) -> str:
    """The licences of several weights that are used together: "apache-2.0 + mit"."""
    return TOGETHER.join(dict.fromkeys(licenses))


def license_of_file(name: str) -> str:
    """The licence of weights in a file: that of the tag which the user gave with it, else "unknown".

    Args:
        name: timm's architecture, with a tag if the file contains the weights of that tag.
    """
    return license_of(name) if "." in name else UNKNOWN


def license_kind(license: str) -> LicenseKind:
    """Whether a licence is permissive. One that is in neither table is restricted: nobody has read it.

    Of several licences, a restricted one decides, then an unknown one.
    """
    kinds = {_kind_of_one(one) for one in license.split(TOGETHER)}
    decisive: tuple[LicenseKind, ...] = ("restricted", "unknown", "permissive")
    return next(kind for kind in decisive if kind in kinds)


def _kind_of_one(license: str) -> LicenseKind:
    if license == UNKNOWN:
        return "unknown"
    return "permissive" if license in PERMISSIVE else "restricted"


def license_text(license: str) -> str:
    """A licence in words: "cc-by-nc-4.0 (restricted: no commercial use)"."""
    if TOGETHER in license:
        return TOGETHER.join(license_text(one) for one in license.split(TOGETHER))
    kind = license_kind(license)
    if license == NOT_PRETRAINED:
        return "none (random weights)"
    if kind == "restricted":
        return f"{license} (restricted: {RESTRICTED.get(license, 'unknown to Headstart')})"
    return license if kind == "permissive" else f"{license} (ask whoever made the weights)"


def require_accepted(what: str, license: str, *, accepted: bool) -> None:
    """Checks that a restricted licence was accepted.

    Args:
        what: the weights or the model, for the message.
        license: see ``license_of``.
        accepted: whether the user has accepted it.

    Raises:
        LicenseError: it is restricted and was not accepted.
    """
    if license_kind(license) == "restricted" and not accepted:
        raise LicenseError(
            f"{what}: licence {license_text(license)}. Read it and, if your use is allowed, give --accept-license "
            "(accept_license=True in Python); or choose other weights."
        )
