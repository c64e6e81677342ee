"""Head specification: the layers of a head, written as one word such as "1024-512-0.2"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from headstart.errors import OptionError

LINEAR = "linear"
"""Specification of a head with a single linear layer."""

MapPooling = Literal["flatten", "avg", "max", "avgmax"]
"""How the feature map of a convolution head is pooled into one vector."""

EXAMPLES = "linear, 1024-512-0.2 (hidden layers, then dropout), conv1280-flatten (a 1x1 convolution, then pooling)"

MAX_DIGITS = 9
"""Maximum digits of a width; Python refuses to parse numbers with thousands of digits."""

_CONV = re.compile(r"conv(\d{1,9})")


@dataclass(frozen=True)
class HeadSpec:
    """The layers of a head.

    Attributes:
        channels: of a 1x1 convolution with BatchNorm and ReLU, on an unpooled map; 0 for none.
        pool: pooling after this convolution.
        widths: of the hidden layers, each followed by a ReLU.
        dropout: dropout rate before the last layer.
        single: two classes share a single logit, that of the second class (binary cross-entropy).
    """

    channels: int = 0
    pool: MapPooling = "flatten"
    widths: tuple[int, ...] = ()
    dropout: float = 0.0
    single: bool = False

    @classmethod
    def parse(cls, text: str) -> HeadSpec:
        """Parses a specification: layers in order, separated by "-"; the inverse of ``str``.

        "linear"; "512-0.5": a hidden layer of 512, then dropout of 0.5; "conv1280-flatten": a convolution to 1,280
        channels, then flattening.

        Raises:
            OptionError: a part is not understood.
        """
        spec, parts = cls(), text.strip().lower().split("-")
        if parts == [LINEAR]:
            return spec
        for place, part in enumerate(parts):
            if place == 0 and (found := _CONV.fullmatch(part)):
                spec = replace(spec, channels=int(found[1]))
            elif place == 1 and spec.channels and part in get_args(MapPooling):
                spec = replace(spec, pool=cast(MapPooling, part))
            elif part.isdecimal() and len(part) <= MAX_DIGITS and int(part) > 0 and not spec.dropout:
                spec = replace(spec, widths=(*spec.widths, int(part)))
            elif re.fullmatch(r"0?\.\d+", part) and 0 < float(part) < 1 and place == len(parts) - 1:
                spec = replace(spec, dropout=float(part))
            else:
                raise OptionError(f"head {text!r}: {part!r} is not understood. Examples: {EXAMPLES}.")
        return spec

    def __str__(self) -> str:
        parts = [f"conv{self.channels}", self.pool] if self.channels else []
        parts += [str(width) for width in self.widths]
        parts += [f"{self.dropout:g}"] if self.dropout else []
        return "-".join(parts) or LINEAR


def parse_heads(text: str) -> tuple[HeadSpec, ...]:
    """Parses head specifications separated by ","; duplicates are dropped.

    Raises:
        OptionError: a part is not understood, or some heads need a map and others pooled features.
    """
    specs = tuple(dict.fromkeys(HeadSpec.parse(part) for part in text.split(",")))
    if len({bool(spec.channels) for spec in specs}) > 1:
        raise OptionError(
            f"head {text!r}: a convolution head needs feature maps, the other heads pooled features. Train them in "
            "separate runs."
        )
    return specs
