"""Pixel head: semantic segmentation, a class per pixel, from maps of strides 4 to 32.

`raw` returns logits at the stride of the decoder (4 except for smp); they are resized to the padded batch, bilinear
with align_corners=False, only where losses are computed or answers are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.models.heads.pixel_decoders import (
    DECODERS,
    AuxiliaryHead,
    DecoderNorm,
    classifier,
    default_width,
    resized,
)
from fishnet.models.heads.pixel_losses import LossOptions, Pixels, check_losses, weighted_losses
from fishnet.models.heads.registry import HeadKind, register_head
from fishnet.models.heads.smp_decoders import PREFIX, build_smp_decoder, smp_decoders
from fishnet.models.heads.types import Frame, Losses, Maps, Raw
from fishnet.models.trunk import STRIDES, Trunk


@dataclass(frozen=True)
class PixelPlan:
    """Description of a pixel head, from which it is built."""

    kind: str = "pixel"
    num_classes: int = 2
    """Number of classes; a background is one of them."""
    decoder: str = "fish"
    """fish, hypercolumn, fpn, upernet, or smp:NAME for a decoder of segmentation_models_pytorch, such as smp:unet."""
    width: int | None = None
    """Channels of the decoder; None selects them by the decoder and the number of parameters of the trunk."""
    layers: int = 2
    """Number of convolutions after the fusion of the levels (fish: 3x3, hypercolumn: 1x1)."""
    decoder_options: Mapping[str, object] = field(default_factory=dict)
    """Keyword arguments of the model of segmentation_models_pytorch, such as decoder_channels."""
    dropout: float | None = None
    """Dropout probability of a channel before the classifiers; None: 0.1, or for smp the decoder's default."""
    norm_relu: bool | None = None
    """Whether to put BatchNorm and ReLU in front of the decoder; None does so for pre-activation trunks."""
    ignore_index: int = 255
    """Label of pixels that are ignored by the losses."""
    losses: Mapping[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    """Weights of the losses that are summed, by name: cross_entropy, dice, focal, lovasz, ohem."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in cross_entropy, focal and ohem; None weights all classes equally."""
    label_smoothing: float = 0.0
    """Label smoothing in cross_entropy and ohem: fraction of the target that is distributed over all classes."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    ohem_threshold: float = 0.7
    """ohem takes the pixels whose true class has at most this probability."""
    ohem_keep: float = 1 / 16
    """Minimum fraction of the labeled pixels that OHEM selects."""
    auxiliary: bool = False
    """Whether to train a second, fully convolutional head on one level; answers do not use it."""
    auxiliary_level: int = 2
    """Level of the auxiliary head: 0 is the finest, of stride 4, and 3 the deepest."""
    auxiliary_weight: float = 0.4
    """Weight of the cross-entropy of the auxiliary head (0.4 in PSPNet, arXiv 1612.01105)."""


class PixelHead(nn.Module):
    """Maps of strides 4 to 32 -> logits of every pixel -> losses in training, logits of each image otherwise.

    Args:
        norms: Module in front of each level.
        decoder: Levels -> the map that is classified.
        classify: That map -> logits.
        auxiliary: A level -> logits, used in training only; None for no auxiliary head.
        plan: Settings of the losses.
    """

    def __init__(
        self,
        norms: nn.ModuleList,
        decoder: nn.Module,
        classify: nn.Module,
        auxiliary: nn.Module | None,
        plan: PixelPlan,
    ) -> None:
        super().__init__()
        self.norms, self.decoder, self.classify, self.auxiliary = norms, decoder, classify, auxiliary
        self.plan, self.options = plan, _loss_options(plan)

    joint = True
    """Losses of all processes are computed together, also in one without a labeled image."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        names = tuple(f"loss_{name}" for name in self.plan.losses)
        return names if self.auxiliary is None else (*names, "loss_auxiliary")

    def raw(self, maps: Maps) -> Raw:
        """Return `logits` (N, classes, H/s, W/s), and in training `auxiliary` if there is an auxiliary head, in fp32.

        Args:
            maps: Maps of strides 4 to 32, the finest first.
        """
        levels = [norm(x) for norm, x in zip(self.norms, maps.values(), strict=True)]
        outputs = {"logits": self.classify(self.decoder(levels)).float()}
        if self.training and self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(levels[self.plan.auxiliary_level]).float()
        return outputs

    def losses(self, raw: Raw, frame: Frame, targets: list[Tensor]) -> Losses:
        """Return the weighted losses by name; their sum is minimized.

        Args:
            raw: Output of `raw`.
            frame: Sizes of the batch and of its images.
            targets: Label map (h, w) of each image, integers, at the size of the image in the batch. Images may differ
                in size; the padding around them is ignored like pixels with `ignore_index`.

        Raises:
            FishnetError: A label map has another size than its image, or labels that are no classes.
        """
        labels = self._labels(frame, targets, raw["logits"].device)
        plan, found = self.plan, {}
        for name, loss in self._weighted(raw["logits"], labels, plan.losses, self.options).items():
            found[f"loss_{name}"] = loss
        if "auxiliary" in raw:
            weights = {"cross_entropy": plan.auxiliary_weight}
            (found["loss_auxiliary"],) = self._weighted(raw["auxiliary"], labels, weights, self.options).values()
        return found

    def decode(self, raw: Raw, frame: Frame) -> list[Tensor]:
        """Return the logits (classes, h, w) of each image in fp32, at its size in the network's input."""
        return [
            resized(logits[None].float(), frame.canvas)[0, :, :height, :width]
            for logits, (height, width) in zip(raw["logits"], frame.sizes, strict=True)
        ]

    def _weighted(
        self, logits: Tensor, labels: Tensor, weights: Mapping[str, float], options: LossOptions
    ) -> dict[str, Tensor]:
        pixels = Pixels(resized(logits, labels.shape[-2:]), labels, self.plan.ignore_index)
        return weighted_losses(pixels, weights, options)

    def _labels(self, frame: Frame, targets: list[Tensor], device: torch.device) -> Tensor:
        """Return the labels of the padded batch, int64 (N, H, W)."""
        ignore, classes = self.plan.ignore_index, self.plan.num_classes
        labels = torch.full((len(targets), *frame.canvas), ignore, dtype=torch.int64, device=device)
        for place, target, (height, width) in zip(labels, targets, frame.sizes, strict=True):
            if target.shape != (height, width):
                given = "x".join(map(str, target.shape))
                raise FishnetError(f"a label map of {given} pixels belongs to an image of {height}x{width} pixels")
            place[:height, :width] = target
        wrong = labels[(labels != ignore) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise FishnetError(
                f"a label map has the label {int(wrong[0])}, which is neither a class (0 to {classes - 1}) nor the "
                f"ignored label {ignore}; `fishnet data check segmentation DIR` lists such files"
            )
        return labels


def check_pixel_plan(plan: PixelPlan) -> None:
    """Raise UsageError for a plan from which no head can be built."""
    if plan.num_classes < 2:
        raise UsageError(
            f"a pixel head needs at least 2 classes, not {plan.num_classes}: pixels without object are a class too"
        )
    if 0 <= plan.ignore_index < plan.num_classes:
        raise UsageError(f"ignore_index {plan.ignore_index} is a class (0 to {plan.num_classes - 1}); use 255 or -1")
    smp = plan.decoder.startswith(PREFIX)
    if not smp and plan.decoder not in DECODERS:
        near = did_you_mean(plan.decoder, [*DECODERS])
        raise UsageError(
            f"unknown decoder {plan.decoder!r} of a pixel head.{near} Known are {', '.join(DECODERS)}, and those of "
            f"segmentation_models_pytorch as {PREFIX}NAME"
        )
    if smp and plan.width is not None:
        raise UsageError(f"width is for {', '.join(DECODERS)}; {plan.decoder} takes its widths by decoder_options")
    if not smp and plan.decoder_options:
        raise UsageError(f"decoder_options are for decoders of segmentation_models_pytorch, not for {plan.decoder}")
    if plan.width is not None and plan.width < 1:
        raise UsageError(f"the width of a decoder must be at least 1 channel, not {plan.width}")
    if plan.layers < 0:
        raise UsageError(f"the layers of a decoder must be at least 0, not {plan.layers}")
    if plan.dropout is not None and not 0 <= plan.dropout < 1:
        raise UsageError(f"the dropout of a decoder must be at least 0 and below 1, not {plan.dropout}")
    if not 0 <= plan.auxiliary_level < len(STRIDES):
        raise UsageError(f"auxiliary_level must be from 0 to {len(STRIDES) - 1}, not {plan.auxiliary_level}")
    if plan.auxiliary and not 0 < plan.auxiliary_weight < float("inf"):
        raise UsageError(f"auxiliary_weight must be above 0, not {plan.auxiliary_weight}; or leave auxiliary out")
    check_losses(plan.losses, _loss_options(plan), plan.num_classes)


def build_pixel_head(plan: PixelPlan, trunk: Trunk) -> tuple[None, PixelHead]:
    """Build the head of a plan for a trunk; it takes the maps of the trunk without a neck.

    Raises:
        UsageError: The decoder does not exist, or cannot be built with these options.
    """
    channels, classes = trunk.channels, plan.num_classes
    wanted = trunk.pre_activation if plan.norm_relu is None else plan.norm_relu
    # ReLU not in place: other heads use the raw maps too
    norms = nn.ModuleList([nn.Sequential(DecoderNorm(c), nn.ReLU()) if wanted else nn.Identity() for c in channels])
    decoder: nn.Module
    last: nn.Module
    if plan.decoder.startswith(PREFIX):
        decoder, last = build_smp_decoder(plan.decoder.removeprefix(PREFIX), channels, classes, plan.decoder_options)
    else:
        width = plan.width or default_width(plan.decoder, sum(p.numel() for p in trunk.parameters()))
        decoder = DECODERS[plan.decoder](channels, width, plan.layers)
        last = classifier(decoder.out_channels, classes)  # type: ignore[arg-type]
    dropout = 0.1 * (plan.decoder in DECODERS) if plan.dropout is None else plan.dropout
    aside = 0.1 if plan.dropout is None else plan.dropout
    auxiliary = AuxiliaryHead(channels[plan.auxiliary_level], classes, aside) if plan.auxiliary else None
    return None, PixelHead(norms, decoder, nn.Sequential(nn.Dropout2d(dropout), last), auxiliary, plan)


def pixel_decoders() -> list[str]:
    """Return the names of all decoders; those of segmentation_models_pytorch if it is installed."""
    try:
        return [*DECODERS, *(PREFIX + name for name in smp_decoders())]
    except UsageError:
        return [*DECODERS]


def _loss_options(plan: PixelPlan) -> LossOptions:
    return LossOptions(plan.class_weights, plan.label_smoothing, plan.focal_gamma, plan.ohem_threshold, plan.ohem_keep)


register_head("pixel", HeadKind(PixelPlan, build_pixel_head, check_pixel_plan))
