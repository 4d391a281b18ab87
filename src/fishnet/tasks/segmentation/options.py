"""Settings and prediction options of segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fishnet.config import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    Keywords,
    Rules,
    TrainConfig,
    named_numbers,
)
from fishnet.data.segmentation.transforms import AugmentConfig
from fishnet.errors import UsageError
from fishnet.models.heads.pixel import PixelPlan
from fishnet.tasks.base import Given, RecipeChoice
from fishnet.tasks.segmentation.inference import Passes


@dataclass
class PixelConfig:
    """The segmentation head and its losses."""

    decoder: str = "fish"
    """fish, hypercolumn, fpn, upernet, or smp:NAME for a decoder of segmentation_models_pytorch, such as smp:unet."""
    width: int | None = None
    """Channels of the decoder; None: chosen by the decoder and the size of the backbone."""
    layers: int = 2
    """Number of convolutions after the fusion of the pyramid levels."""
    decoder_options: Keywords = field(default_factory=dict)
    """Keyword arguments of an smp decoder, such as decoder_segmentation_channels=64."""
    dropout: float | None = None
    """Dropout probability of a channel before the last layer; None: 0.1, or for smp the decoder's default."""
    norm_relu: bool | None = None
    """BatchNorm and ReLU before the decoder; None: only if the maps are raw sums, as those of a FishNet."""
    losses: list[str] = field(default_factory=lambda: ["cross_entropy"])
    """Losses to sum: cross_entropy, dice, focal, lovasz, ohem; each may have a weight, such as
    cross_entropy,dice=0.5."""
    class_weights: Literal["none", "median_frequency", "enet"] = "none"
    """Class weights in cross_entropy, focal and ohem, computed from the numbers of training pixels."""
    label_smoothing: float = 0.0
    """Label smoothing in cross_entropy and ohem: fraction of the target that is distributed over all classes."""
    focal_gamma: float = 2.0
    """Focusing exponent (gamma) of the focal loss."""
    ohem_threshold: float = 0.7
    """OHEM selects pixels whose true class has at most this probability."""
    ohem_keep: float = 1 / 16
    """Minimum fraction of the labeled pixels that OHEM selects."""
    auxiliary: bool = False
    """Train an auxiliary head on one pyramid level; it is not used for predictions."""
    auxiliary_level: int = 2
    """Pyramid level of the auxiliary head: 0 has stride 4, 3 has stride 32."""
    auxiliary_weight: float = 0.4
    """Weight of the loss of the auxiliary head."""

    RULES: ClassVar[Rules] = {
        AT_LEAST_1: "width",
        NOT_NEGATIVE: "layers focal_gamma auxiliary_level",
        BELOW_1: "dropout label_smoothing",
        PROBABILITY: "ohem_threshold ohem_keep",
        POSITIVE: "auxiliary_weight",
    }


@dataclass
class SegmentationConfig(TrainConfig):
    """Settings of a run that trains a segmentation network."""

    longest: int = 2048
    """Maximum of the longer side of an image in pixels, before the random scale in training; --size is the shorter
    side."""
    taps: Literal["head", "body", "tail"] = "head"
    """Part of a FishNet that the maps are taken from."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)

    RULES: ClassVar[Rules] = {AT_LEAST_1: "longest"}


@dataclass
class SegmentationOptions:
    """Prediction options of a segmentation network."""

    tile: int | None = None
    """Size of overlapping square tiles that images are cut into, in pixels after resizing; None keeps images whole."""
    overlap: float = 0.25
    """Minimum fraction of a tile that overlaps with the next."""
    flip: bool = False
    """Average the probabilities with those of the horizontally flipped image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Scale factors of multi-scale inference; the probabilities are averaged over them."""

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 32:
            raise UsageError(f"--tile must be at least 32 pixels, not {self.tile}")
        self.passes(1)

    def passes(self, batch_size: int) -> Passes:
        """Return the passes over an image.

        Args:
            batch_size: Tiles per forward pass.
        """
        return Passes(self.tile, self.overlap, self.flip, tuple(self.scales), batch_size)


def pixel_plan(
    config: PixelConfig, classes: Sequence[str], ignore_index: int, class_weights: tuple[float, ...] | None
) -> PixelPlan:
    """Return the description of a pixel head.

    Args:
        config: Settings of the head.
        classes: Class names.
        ignore_index: Label of ignored pixels.
        class_weights: Weight of each class.
    """
    own: Mapping[str, object] = vars(config)
    taken = {name: value for name, value in own.items() if name not in ("losses", "class_weights")}
    return PixelPlan(
        num_classes=len(classes),
        ignore_index=ignore_index,
        losses=named_numbers("pixel.losses", config.losses, 1.0),
        class_weights=class_weights,
        **taken,  # type: ignore[arg-type]
    )


def choose_recipe(settings: Given) -> RecipeChoice:
    """Return the default recipe of a run; it depends on whether weights are given."""
    if settings.get("weights"):
        return RecipeChoice("finetune", "weights are given")
    return RecipeChoice("scratch_small", "no weights are given")
