"""Trunks: backbones without classifier that return four maps, pooled features, or both; and those of FishNets.

The head of a FishNet is a pyramid of deep features; body and tail give maps of the same strides at lower cost.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.config import Memory, too_small
from fishnet.models.fishnet import FishNet
from fishnet.models.stages import set_memory
from fishnet.models.timm_types import LayerGroups, Pattern
from fishnet.models.trials import freeze_idle

Taps = Literal["head", "body", "tail"]

TAPS: dict[str, tuple[str, str, str, str]] = {
    "head": ("b3", "h1", "h2", "h3"),
    "body": ("b3", "b2", "b1", "bridge"),
    "tail": ("stem", "t1", "t2", "t3"),
}
"""Stages of a FishNet that form a pyramid, from stride 4 to 32."""

STRIDES = (4, 8, 16, 32)
"""Strides of the four maps of every trunk."""


class Features(NamedTuple):
    """Output of a trunk."""

    maps: list[Tensor]
    """Four raw maps (N, C, H, W), the finest first; empty if no head takes maps."""
    vector: Tensor | None = None
    """Pooled features (N, C), the input of a classifier; None if no head takes them."""


class Trunk(nn.Module):
    """A backbone without its classifier: images (N, C, H, W) -> `Features`.

    Attributes:
        channels: Channels of the maps.
        strides: Strides of the maps.
        pre_activation: Whether the maps are raw sums that need a norm and a ReLU before the next convolution.
        width: Channels of the vector.
    """

    channels: list[int]
    strides: list[int]
    pre_activation: bool
    width: int

    def forward(self, images: Tensor) -> Features:
        """Return maps, vector, or both."""
        raise NotImplementedError

    def named_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of all stages by name, for visualization; empty if stages cannot be distinguished.

        Args:
            images: Normalized images (N, C, H, W).
        """
        return {}

    @property
    def backbone(self) -> nn.Module:
        """Module whose submodules have the usual names of the backbone."""
        return self

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return timm's layer groups in the order of the layers, for layer-wise learning rate decay.

        Args:
            prefix: Regular expression that precedes the names of the trunk's parameters.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the network exempts from weight decay."""
        return set()

    def set_memory(self, memory: Memory) -> None:
        """Set which activations are kept for the backward pass: all (`fast`), fewer (`balanced`), or few (`saver`).

        What is not kept is computed again, to the same gradients and running statistics.

        Raises:
            UsageError: The network cannot recompute anything.
        """
        raise NotImplementedError

    def freeze_idle(self, first: int, in_chans: int = 3) -> None:
        """Disable the gradients of parameters that neither the vector nor a map from index `first` on depends on."""
        freeze_idle(self, first, in_chans)


class FishTrunk(Trunk):
    """A FishNet up to its taps or pooled features, without the modules behind them.

    Args:
        fish: Network to take the modules from; they are shared, not copied.
        taps: Stages that the maps are taken from: head, body or tail; None returns no maps.
        vector: Whether to give pooled features.
    """

    pre_activation = True

    def __init__(self, fish: FishNet, taps: Taps | None = "head", vector: bool = False) -> None:
        super().__init__()
        if taps is not None and taps not in TAPS:
            raise UsageError(f"pyramid.taps must be one of {', '.join(TAPS)}, not {taps!r}")
        self.taps = TAPS[taps] if taps else ()
        self.strides = [fish.stage_info[name][0] for name in self.taps]
        self.channels = [fish.stage_info[name][1] for name in self.taps]
        if len(set(self.strides)) < len(self.taps):
            raise UsageError(f"output_stride={fish.config.output_stride} has maps of equal stride; use a larger one")
        self.min_size, self.width = fish.min_size, fish.head_hidden_size
        self.stem, self.tail = fish.stem, fish.tail
        deep = vector or taps != "tail"
        self.bridge = fish.bridge if deep else None
        self.body = fish.body if deep else None
        self.head = fish.head if vector or taps == "head" else None
        self.score = fish.score if vector else None
        self.global_pool: nn.Module | None = fish.global_pool if vector else None
        self.head_drop: nn.Module | None = fish.head_drop if vector else None
        self._matchers = {coarse: fish.group_matcher(coarse) for coarse in (False, True)}

    def forward(self, images: Tensor) -> Features:
        """Return maps, vector, or both."""
        maps = self.named_maps(images)
        vector = None
        if self.score is not None and self.global_pool is not None and self.head_drop is not None:
            vector = self.head_drop(self.global_pool(self.score(maps["h3"])))
        return Features([maps[name] for name in self.taps], vector)

    def named_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of the stages by name, such as t1, b3 and h2, as far as the trunk goes."""
        images = self._of_usable_size(images)
        maps: dict[str, Tensor] = {"stem": self.stem(images)}
        maps["t1"], maps["t2"], maps["t3"] = self.tail(maps["stem"])
        if self.bridge is not None and self.body is not None:
            maps["bridge"] = self.bridge(maps["t3"])
            body = self.body(maps["bridge"], maps["t2"], maps["t1"], maps["stem"])
            maps["b1"], maps["b2"], maps["b3"] = body
            if self.head is not None:
                outputs = self.head(maps["b3"], maps["b2"], maps["b1"], maps["bridge"])
                maps["h1"], maps["h2"], maps["h3"] = outputs
        return maps

    def _of_usable_size(self, images: Tensor) -> Tensor:
        """Pad images below the minimum size with zeros if the trunk returns maps, otherwise raise FishInputError."""
        side, (height, width) = self.min_size, images.shape[-2:]
        if min(height, width) >= side:
            return images
        if not self.taps:
            raise too_small(height, width, side)
        return F.pad(images, (0, max(0, side - width), 0, max(0, side - height)))

    def layer_groups(self, prefix: str) -> LayerGroups:
        """Return the stages of the FishNet as groups if the trunk returns maps, otherwise its blocks."""
        return with_prefix(self._matchers[bool(self.taps)], prefix)

    def set_memory(self, memory: Memory) -> None:
        """Set which activations are kept for the backward pass (`fishnet.models.stages.set_memory`)."""
        set_memory(self, memory)

    def freeze_idle(self, first: int, in_chans: int = 3) -> None:
        """Disable the gradients of parameters that only an unused first map depends on."""
        if first and self.taps == TAPS["body"]:  # elsewhere each map also feeds later ones
            freeze_idle(self, first, in_chans)


def with_prefix(matcher: LayerGroups, prefix: str) -> LayerGroups:
    """Return timm's layer groups with a prefix in front of every pattern."""

    def longer(text: str) -> str:
        return f"{prefix}(?:{text.removeprefix('^').replace('|^', '|')})"

    def prefixed(pattern: Pattern) -> Pattern:
        return longer(pattern) if isinstance(pattern, str) else (longer(pattern[0]), *pattern[1:])

    return {
        name: [prefixed(pattern) for pattern in entry] if isinstance(entry, list) else prefixed(entry)
        for name, entry in matcher.items()
    }
