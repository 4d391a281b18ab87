"""One trunk, run once per batch, and any heads on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from fishnet.models.distributed import largest
from fishnet.models.heads.types import Answers, Frame, Losses, Raw, Size, Targets
from fishnet.models.pyramid import Pyramid
from fishnet.models.timm_types import LayerGroups
from fishnet.models.trunk import Trunk

Images = Tensor | list[Tensor]
"""A normalised batch (N, C, H, W), or images (C, h, w) of any sizes, float in 0..1 or uint8."""


FeaturesT = TypeVar("FeaturesT", contravariant=True)
TargetsT = TypeVar("TargetsT", contravariant=True)
AnswerT = TypeVar("AnswerT")


class Head(Protocol[FeaturesT, TargetsT, AnswerT]):
    """What stands on a trunk: it takes the levels of its neck, or without a neck the pooled features."""

    def raw(self, features: FeaturesT) -> Raw:
        """Return the outputs before decoding, by name; free of Python control flow on values, so that it exports."""
        ...

    def losses(self, raw: Raw, frame: Frame, targets: TargetsT) -> Losses:
        """Return the losses by name, whose sum is minimised."""
        ...

    def decode(self, raw: Raw, frame: Frame) -> list[AnswerT]:
        """Return an answer per image, in pixels of the image as the network saw it."""
        ...


class Batcher:
    """Normalise images and put them into one batch, padded with zeros to whole strides; nothing is resized here.

    Args:
        mean: Channel means, for images in 0..1.
        std: Channel standard deviations.
        stride: Number that height and width of a batch are multiples of.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        self.mean, self.std, self.stride = mean, std, stride

    def __call__(self, images: Images, common: bool = False) -> tuple[Tensor, Frame]:
        """Return the batch (N, C, H, W) in NHWC memory order, and where the images lie in it.

        Args:
            images: Images; a batch is taken as it is.
            common: Whether the batches of all processes get one size. The padding of an image then does not depend on
                which others share its process; the largest sets the pace of a step anyway.
        """
        if isinstance(images, Tensor):
            return images, Frame(_size(images), [_size(images)] * len(images))
        sizes: list[Size] = [_size(image) for image in images]
        sides = [-(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True)]
        device = images[0].device
        height, width = largest(sides, device) if common else sides
        batch = torch.zeros(len(images), len(images[0]), height, width, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = self._normalised(image)
        return batch, Frame((height, width), sizes)

    def groups(self, images: Images) -> list[list[int]]:
        """Return the places of the images that may share a batch.

        Only images of one padded size do: a fish pools globally, and more padding would change its answer.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            found.setdefault(tuple(-(-side // self.stride) for side in image.shape[-2:]), []).append(place)
        return list(found.values())

    def _normalised(self, image: Tensor) -> Tensor:
        values = image.float() if image.is_floating_point() else image.float() / 255
        mean, std = (torch.tensor(value, device=image.device)[:, None, None] for value in (self.mean, self.std))
        return (values - mean) / std


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


class Network(nn.Module):
    """Images -> batch -> trunk (once) -> necks -> heads.

    In training `network(images, targets)` returns the losses by name, else `network(images)` the answers by head, each
    a list with an entry per image. Where several heads are composed, the names of losses begin with that of the head.

    Args:
        trunk: Backbone.
        necks: Pyramid of every head that takes maps, by the head's name.
        heads: Heads by name, such as `image` and `region`.
        batcher: Makes a batch of images.
    """

    def __init__(self, trunk: Trunk, necks: dict[str, Pyramid], heads: dict[str, nn.Module], batcher: Batcher) -> None:
        super().__init__()
        self.trunk, self.batcher = trunk, batcher
        self.necks, self.heads = nn.ModuleDict(necks), nn.ModuleDict(heads)

    if TYPE_CHECKING:

        @overload
        def __call__(self, images: Images) -> Answers: ...

        @overload
        def __call__(self, images: Images, targets: Targets) -> Losses: ...

        def __call__(self, images: Images, targets: Targets | None = None) -> Losses | Answers:
            """Run `forward`; the overloads say which of the two answers a call has."""

    def forward(self, images: Images, targets: Targets | None = None) -> Losses | Answers:
        """Return losses in training (targets by head), answers by head otherwise."""
        if self.training:
            assert targets is not None, "training needs targets"
            batch, frame = self.batcher(images, common=True)
            return self._losses(self._raw(batch), frame, targets)
        answers: dict[str, dict[int, object]] = {name: {} for name in self.heads}
        for places in [list(range(len(images)))] if isinstance(images, Tensor) else self.batcher.groups(images):
            batch, frame = self.batcher(images if isinstance(images, Tensor) else [images[place] for place in places])
            for name, found in self._decode(self._raw(batch), frame).items():
                answers[name].update(zip(places, found, strict=True))
        ordered = {name: [found[place] for place in range(len(images))] for name, found in answers.items()}
        return cast(Answers, ordered)

    def raw(self, batch: Tensor) -> Raw:
        """Return the raw outputs of all heads of a normalised batch, by `<head>.<output>`; this is what is exported."""
        outputs = self._raw(batch)
        return {f"{head}.{name}": value for head, raw in outputs.items() for name, value in raw.items()}

    def decode(self, raw: Mapping[str, Raw], frame: Frame) -> Answers:
        """Return the answers of every head from raw outputs by head, which may come from elsewhere."""
        return cast(Answers, self._decode(raw, frame))

    def _decode(self, raw: Mapping[str, Raw], frame: Frame) -> dict[str, list[object]]:
        return {name: self._head(name).decode(outputs, frame) for name, outputs in raw.items()}

    def _raw(self, batch: Tensor) -> dict[str, Raw]:
        features = self.trunk(batch)
        return {
            name: self._head(name).raw(self.necks[name](features.maps) if name in self.necks else features.vector)
            for name in self.heads
        }

    def _losses(self, raw: dict[str, Raw], frame: Frame, targets: Targets) -> Losses:
        losses: Losses = {}
        for name, target in targets.items():
            prefix = f"{name}_" if len(self.heads) > 1 else ""
            found = self._head(name).losses(raw[name], frame, target)
            losses |= {prefix + loss: value for loss, value in found.items()}
        return losses

    def _head(self, name: str) -> Head[Any, Any, object]:
        return cast(Head[Any, Any, object], self.heads[name])

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Return timm's description of layer groups: the trunk's from its stem on; necks and heads are the last one."""
        return self.trunk.layer_groups(r"^trunk\.")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the backbone wants no weight decay for, such as position embeddings."""
        return {f"trunk.{name}" for name in self.trunk.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the trunk's activations in the backward pass: less memory, about a third more time."""
        self.trunk.set_grad_checkpointing(enable)
