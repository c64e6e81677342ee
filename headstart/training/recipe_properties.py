"""What follows from the options of a recipe: pooling, named layers, and whether effort and depth were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from headstart.training.head_spec import LINEAR
from headstart.training.recipe_rules import LAST_LAYER, LOGISTIC, convolves

PoolName = Literal["auto", "avg", "max", "avgmax", "token", "flatten"]


class RecipeProperties:
    """Base of ``Recipe``, which declares the options."""

    if TYPE_CHECKING:
        cut: str | None
        extend: str | None
        head: str
        layers: str | None
        pool: PoolName
        probe: str
        scratch: bool
        unfreeze: str | None

    @property
    def implied_by(self) -> str:
        """The option that turned effort "auto" into "quick"; "" if the effort was given or is "probe"."""
        return str(getattr(self, "_implied_by", None) or "")

    @property
    def is_effort_given(self) -> bool:
        """Whether the effort was given, itself or by an option of fine-tuning."""
        return not getattr(self, "_is_effort_open", False) or bool(self.implied_by)

    @property
    def is_named_depth(self) -> bool:
        """Whether the layers to fine-tune were given: the result is then kept, even if the probe is better."""
        return self.unfreeze is not None or self.scratch

    @property
    def pooling(self) -> PoolName | Literal["none"]:
        """``pool``, or "none" if the head convolves the feature map."""
        return "none" if convolves(self.head) else self.pool

    @property
    def named_layers(self) -> tuple[str, ...]:
        """The earlier layers that ``layers`` names; none for "last" and where they are chosen."""
        named = "" if self.layers in (None, LAST_LAYER) else str(self.layers)
        return tuple(dict.fromkeys(name.strip() for name in named.split(",") if name.strip()))

    @property
    def chooses_layers(self) -> bool:
        """Whether cross-validation decides if features of earlier layers are used."""
        is_probe = self.layers is None and self.head == LINEAR and self.probe == LOGISTIC
        return is_probe and not (self.cut or self.scratch or self.extend)

    @property
    def min_classes(self) -> int:
        """Classes that the data need: 1 to extend a model, 2 for a new one."""
        return 1 if self.extend else 2
