"""Configuration of a FishNet: the options that users can set, their checks, and the sizes derived from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from fishnet.errors import FishnetError, UsageError, did_you_mean

Downsample = Literal["max2", "max3", "avg", "conv"]
Upsample = Literal["nearest", "bilinear", "deconv"]
Reduction = Literal["sum", "conv1x1"]
Memory = Literal["fast", "balanced", "saver"]
"""What training keeps for the backward pass: everything, less, or as little as possible."""

STAGES = ("stem_conv", "stem", "t1", "t2", "t3", "bridge", "b1", "b2", "b3", "h1", "h2", "h3")
"""Stages in the order of the forward pass; `stem_conv` is the stem before its pool."""

SKIPS = {"b1": "t2", "b2": "t1", "b3": "stem", "h1": "b2", "h2": "b1", "h3": "bridge"}
"""Skip connections: the stage whose output enters each body and head stage through transfer blocks."""


class FishConfigError(UsageError, ValueError):
    """A configuration from which no network can be built."""


class FishInputError(FishnetError, ValueError):
    """Images that a network cannot process: too small, or too few for training."""


def too_small(height: int, width: int, least: int) -> FishInputError:
    """Return the error for images smaller than the minimum size `least`, in pixels."""
    return FishInputError(
        f"input of {height}x{width} pixels (height x width) is too small for this FishNet: the smallest is "
        f"{least}x{least}; use larger images or a smaller stem_stride"
    )


@dataclass(frozen=True)
class FishConfig:
    """Configuration of a FishNet (arXiv 1901.03495, the released layout); the defaults are those of FishNet-99.

    All other widths follow from these: each body and head stage concatenates its skip to its trunk.

    Raises:
        FishConfigError: The values do not fit together; a subclass of `ValueError`.
    """

    stem_width: int = 64
    """Output channels of the stem; its first two convolutions have half as many."""
    tail_widths: tuple[int, int, int] = (128, 256, 512)
    """Channels of t1, t2, t3; the bridge has as many as t3."""
    body_widths: tuple[int, int, int] = (512, 384, 256)
    """Channels of the blocks of b1, b2, b3, before concatenation of the skips."""
    tail_depths: tuple[int, int, int] = (2, 2, 6)
    """Residual blocks of t1, t2, t3."""
    bridge_depth: int = 2
    """Residual blocks of the bridge."""
    body_depths: tuple[int, int, int] = (1, 1, 1)
    """Residual blocks of b1, b2, b3."""
    head_depths: tuple[int, int, int] = (1, 2, 2)
    """Residual blocks of h1, h2, h3."""
    transfer_depths: tuple[int, int, int, int, int, int] = (1, 1, 1, 1, 1, 4)
    """Residual blocks on the skips that enter b1, b2, b3, h1, h2, h3."""
    bottleneck: float = 0.25
    """Channels of the 3x3 convolution of a block, as a fraction of the block's channels."""
    group_width: int = 0
    """Channels per group of the 3x3 convolutions in blocks (FishNeXt: 4); 0 means no groups."""
    stem_stride: int = 4
    """Stride of the stem: 4 (convolution and pool), 2 (convolution only) or 1 (neither), for small images."""
    output_stride: int = 32
    """Largest stride of any map: 32, 16 or 8; deeper stages keep their resolution and use dilation instead."""
    dilations: tuple[int, int, int] = (1, 2, 4)
    """Dilation of the blocks of b1, b2, b3."""
    dilation: bool = True
    """False sets the dilations of the body to 1 (ablation)."""
    gate: bool = True
    """Whether the bridge has channel attention (ablation)."""
    downsample: Downsample = "max2"
    """2x2 max-pool, 3x3 max-pool, 2x2 average pool, or strided 3x3 convolution (ablation)."""
    upsample: Upsample = "nearest"
    """Nearest neighbor, bilinear, or transposed convolution (ablation)."""
    reduction: Reduction = "sum"
    """How a body stage narrows its input: sum of neighboring channels, or a 1x1 convolution (ablation)."""
    zero_init_last: bool = True
    """Initialize the last convolution of every block with zeros, so that each block starts as its shortcut."""
    drop_path_rate: float = 0.0
    """Probability of dropping a residual branch in the deepest block; grows linearly from 0 in the first block."""

    def __post_init__(self) -> None:
        """Convert lists (from YAML or the command line) to tuples and check every value."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        _check_types(self)
        _check_ranges(self)
        _check_widths(self)

    def middle_width(self, width: int) -> int:
        """Return the number of channels of the 3x3 convolution in a block with `width` channels."""
        return max(1, round(width * self.bottleneck))

    def groups(self, middle: int) -> int:
        """Return the number of groups of a 3x3 convolution with `middle` channels."""
        return middle // self.group_width if self.group_width else 1

    @property
    def bridge_width(self) -> int:
        """Channels of the bridge's blocks and output."""
        return self.tail_widths[2]

    @property
    def gate_width(self) -> int:
        """Channels between the two 1x1 convolutions of the gate, 1/16 of the bridge and at least 8."""
        return max(8, self.bridge_width // 16)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the output of every stage, by name."""
        stem = self.stem_width
        t1, t2, t3 = self.tail_widths
        b1, b2, b3 = (w + skip for w, skip in zip(self.body_widths, (t2, t1, stem), strict=True))
        h1 = b3 + b2
        h2 = h1 + b1
        outputs = (stem, stem, t1, t2, t3, t3, b1, b2, b3, h1, h2, h2 + t3)
        return dict(zip(STAGES, outputs, strict=True))

    @property
    def score_width(self) -> int:
        """Channels of the pooled features: half of the head's output."""
        return self.channels["h3"] // 2

    @property
    def nominal_strides(self) -> dict[str, int]:
        """Stride of the output of every stage, without the limit of `output_stride`."""
        s = self.stem_stride
        strides = (min(s, 2), s, 2 * s, 4 * s, 8 * s, 8 * s, 4 * s, 2 * s, s, 2 * s, 4 * s, 8 * s)
        return dict(zip(STAGES, strides, strict=True))

    @property
    def strides(self) -> dict[str, int]:
        """Stride of the output of every stage."""
        return {name: min(stride, self.output_stride) for name, stride in self.nominal_strides.items()}

    def dilation_after(self, name: str) -> int:
        """Return the dilation after a stage that compensates for the limit of `output_stride`."""
        return self.nominal_strides[name] // self.strides[name]

    @property
    def min_size(self) -> int:
        """Minimum height and width of an input in pixels."""
        return max(self.strides.values())

    def with_options(self, **options: Any) -> FishConfig:
        """Return a copy with the given fields replaced.

        Raises:
            FishConfigError: A name is unknown, or the values do not fit together.
        """
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known)
                raise FishConfigError(f"unknown model option '{name}'.{hint} Options: {', '.join(known)}")
        return FishConfig(**{**known, **options})


def _check_types(config: FishConfig) -> None:
    for name, hint in get_type_hints(FishConfig).items():
        value = getattr(config, name)
        choices = get_args(hint)
        if choices and isinstance(choices[0], str):
            fits, wanted = value in choices, " or ".join(map(repr, choices))
        elif choices:
            fits = isinstance(value, tuple) and len(value) == len(choices) and all(type(v) is int for v in value)
            wanted = f"{len(choices)} integers"
        elif hint is float:
            fits, wanted = type(value) in (int, float), "a number"
        else:
            fits, wanted = type(value) is hint, {int: "an integer", bool: "true or false"}[hint]
        if not fits:
            raise FishConfigError(f"model option {name}={value!r} must be {wanted}")


def _check_ranges(config: FishConfig) -> None:
    for name, allowed in (("stem_stride", (1, 2, 4)), ("output_stride", (8, 16, 32))):
        if getattr(config, name) not in allowed:
            raise FishConfigError(f"model option {name}={getattr(config, name)} must be one of {allowed}")
    for name in ("tail_widths", "body_widths", "tail_depths", "body_depths", "head_depths", "dilations"):
        if min(getattr(config, name)) < 1:
            raise FishConfigError(f"model option {name}={getattr(config, name)}: every number must be at least 1")
    if config.stem_width < 2 or config.stem_width % 2:
        raise FishConfigError(f"model option stem_width={config.stem_width} must be an even number, at least 2")
    if config.bridge_depth < 1:
        raise FishConfigError(f"model option bridge_depth={config.bridge_depth} must be at least 1")
    if min(config.transfer_depths) < 0 or config.group_width < 0:
        raise FishConfigError("model options transfer_depths and group_width must not be negative")
    if not 0 < config.bottleneck <= 1:
        raise FishConfigError(f"model option bottleneck={config.bottleneck} must be above 0 and at most 1")
    if not 0 <= config.drop_path_rate < 1:
        raise FishConfigError(f"model option drop_path_rate={config.drop_path_rate} must be at least 0 and below 1")


def _check_widths(config: FishConfig) -> None:
    if config.bridge_width % 2:
        raise FishConfigError(
            f"model option tail_widths={config.tail_widths}: the last must be even (the bridge halves it)"
        )
    if config.reduction == "sum":
        for before, width in zip(("bridge", "b1", "b2"), config.body_widths, strict=True):
            wide = config.channels[before]
            if wide % width:
                raise FishConfigError(
                    f"model option body_widths={config.body_widths}: {width} must divide the {wide} channels of "
                    f"{before}, because groups of channels are summed; choose a divisor or reduction=conv1x1"
                )
    if config.group_width:
        for width in (*config.channels.values(), *config.body_widths):
            middle = config.middle_width(width)
            if middle % config.group_width:
                raise FishConfigError(
                    f"model option group_width={config.group_width} does not divide the {middle} inner channels of "
                    f"blocks of width {width}; change group_width, bottleneck or the widths"
                )


_FISHNET150 = FishConfig(
    tail_depths=(2, 4, 8),
    bridge_depth=4,
    body_depths=(2, 2, 2),
    head_depths=(2, 2, 4),
    transfer_depths=(2, 2, 2, 2, 2, 4),
)

VARIANTS: dict[str, FishConfig] = {
    "fishnet99": FishConfig(),
    "fishnet150": _FISHNET150,
    "fishnet201": _FISHNET150.with_options(
        tail_depths=(3, 4, 12), head_depths=(2, 3, 10), transfer_depths=(2, 2, 2, 2, 2, 9)
    ),
    "fishnext150": _FISHNET150.with_options(bottleneck=0.5, group_width=4),
    "fishnet_nano": FishConfig(
        stem_width=32,
        tail_widths=(32, 64, 96),
        body_widths=(32, 32, 32),
        tail_depths=(1, 1, 1),
        bridge_depth=1,
        head_depths=(1, 1, 1),
        transfer_depths=(1, 1, 0, 1, 1, 1),
        bottleneck=0.5,
    ),
    "fishnet_tiny": FishConfig(
        stem_width=32,
        tail_widths=(48, 96, 192),
        body_widths=(192, 144, 96),
        tail_depths=(2, 4, 8),
        head_depths=(1, 2, 3),
        transfer_depths=(1, 1, 1, 1, 2, 4),
    ),
    "fishnet_small": FishConfig(
        stem_width=32,
        tail_widths=(64, 128, 256),
        body_widths=(256, 192, 128),
        tail_depths=(2, 4, 8),
        bridge_depth=4,
        body_depths=(2, 2, 2),
        head_depths=(2, 3, 6),
        transfer_depths=(2, 2, 2, 2, 2, 4),
    ),
}
"""Configurations of all FishNets, by name."""
