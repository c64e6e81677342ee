"""Head specification: the layers of a head, written as one word such as "1024-512-0.2"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from headstart.errors import OptionError

LINEAR = "linear"
"""The head that is one linear layer."""

MapPooling = Literal["flatten", "avg", "max", "avgmax"]
"""How the feature map of a convolution head is pooled into one vector."""

EXAMPLES = "linear, 1024-512-0.2 (hidden layers, then dropout), conv1280-flatten (a 1x1 convolution, then pooling)"

MAX_DIGITS = 9
"""Digits of a width; Python refuses to read numbers of some thousand digits."""

_CONV = re.compile(r"conv(\d{1,9})")


@dataclass(frozen=True)
class HeadSpec:
    """What a head is made of.

    Attributes:
        channels: of a 1x1 convolution with BatchNorm and ReLU, on a map that is not pooled; 0 for none.
        pool: of the map behind that convolution.
        widths: of the hidden layers, each with a ReLU behind it.
        dropout: share of the numbers that are set to 0 before the last layer, in training.
        single: whether two classes share one logit, as binary cross-entropy has it: that of the second class.
    """

    channels: int = 0
    pool: MapPooling = "flatten"
    widths: tuple[int, ...] = ()
    dropout: float = 0.0
    single: bool = False

    @classmethod
    def parse(cls, text: str) -> HeadSpec:
        """Reads what ``str`` writes: parts in the order of the layers, with "-" between them.

        "linear"; "512-0.5": a hidden layer of 512, then dropout of 0.5; "conv1280-flatten": a convolution to 1,280
        channels, then all of its numbers.

        Raises:
            OptionError: it cannot be read so.
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
    """Heads with "," between them, each once.

    Raises:
        OptionError: one cannot be read, or some want a map and others features.
    """
    specs = tuple(dict.fromkeys(HeadSpec.parse(part) for part in text.split(",")))
    if len({bool(spec.channels) for spec in specs}) > 1:
        raise OptionError(
            f"head {text!r}: a convolution head needs feature maps, the other heads pooled features. Train them in "
            "separate runs."
        )
    return specs
