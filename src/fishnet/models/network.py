"""Networks: one trunk, run once per batch, with any number of heads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.config import Memory
from fishnet.models.distributed import balanced, largest
from fishnet.models.heads.types import Answers, Frame, Losses, Maps, Mean, Raw, Size, Targets
from fishnet.models.pyramid import Pyramid
from fishnet.models.timm_types import LayerGroups
from fishnet.models.trunk import Features, Trunk

Images = Tensor | list[Tensor]
"""Images (C, h, w) of any sizes, float in 0..1 or uint8; or a batch (N, C, H, W): images of one size if it is uint8,
already normalized if it is float."""


FeaturesT = TypeVar("FeaturesT", contravariant=True)
TargetsT = TypeVar("TargetsT", contravariant=True)
AnswerT = TypeVar("AnswerT")


class Head(Protocol[FeaturesT, TargetsT, AnswerT]):
    """A prediction head, which takes feature maps (`Maps`) or the pooled features of the trunk (N, C)."""

    def raw(self, features: FeaturesT) -> Raw:
        """Return the outputs before decoding, by name. Must not branch on tensor values, so that it can be exported."""
        ...

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses, in their order."""
        ...

    def losses(self, raw: Raw, frame: Frame, targets: TargetsT) -> Mapping[str, Mean | Tensor]:
        """Return the losses of images that are all labeled, by name; their sum is minimized. A tensor is a loss of the
        joint batch of all processes already.

        There is at least one image, unless the head has `joint` set: then its losses are computed in all processes as
        soon as one has a labeled image, so that they can exchange what they need.
        """
        ...

    def decode(self, raw: Raw, frame: Frame) -> list[AnswerT]:
        """Return one answer per image, in pixels of the network's input."""
        ...


class Batcher:
    """Normalize images and pad them with zeros to one batch; images are not resized.

    Args:
        mean: Channel means of images in 0..1.
        std: Channel standard deviations of images in 0..1.
        stride: Height and width of a batch are multiples of this number of pixels.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        self.mean, self.std, self.stride = mean, std, stride

    def __call__(self, images: Images, common: bool = False) -> tuple[Tensor, Frame]:
        """Return the batch (N, C, H, W) in channels-last memory order, and the sizes of its images.

        Args:
            images: Images to batch; a float tensor is normalized already, and is only padded if it has to be.
            common: Whether to pad the batches of all processes to one size. The padding of an image then does not
                depend on the other images of its process; the largest batch determines the step time anyway.
        """
        if isinstance(images, Tensor) and images.ndim != 4:
            raise UsageError(f"a batch has the shape (N, C, H, W), not {tuple(images.shape)}: add [None] to one image")
        if isinstance(images, Tensor) and images.is_floating_point():
            height, width = (-(-side // self.stride) * self.stride for side in _size(images))
            padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
            batch = nn.functional.pad(images, padding) if any(padding) else images
            return batch, Frame(_size(batch), [_size(images)] * len(images))
        sizes: list[Size] = [_size(image) for image in images]
        sides = [-(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True)]
        device = images[0].device
        height, width = largest(sides, device) if common else sides
        batch = torch.zeros(len(images), len(images[0]), height, width, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = self._normalized(image)
        return batch, Frame((height, width), sizes)

    def groups(self, images: Images) -> list[list[int]]:
        """Return the indices of the images that may share a batch.

        These are the images of one padded size: FishNet pools globally, so more padding would change its output.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            found.setdefault(tuple(-(-side // self.stride) for side in image.shape[-2:]), []).append(place)
        return list(found.values())

    def _normalized(self, image: Tensor) -> Tensor:
        values = image.float() if image.is_floating_point() else image.float() / 255
        mean, std = (torch.tensor(value, device=image.device)[:, None, None] for value in (self.mean, self.std))
        return (values - mean) / std


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _labeled(targets: Tensor | Sequence[object] | None) -> list[int]:
    """Return the indices of the images that have a target."""
    if targets is None:
        return []
    if isinstance(targets, Tensor):
        return list(range(len(targets)))
    return [place for place, target in enumerate(targets) if target is not None]


def _selected(raw: Raw, frame: Frame, targets: Any, places: list[int]) -> tuple[Raw, Frame, Any]:
    """Return the outputs, sizes and targets of some images of a batch."""
    if len(places) == len(frame.sizes):
        return raw, frame, targets
    outputs = {name: value[places] for name, value in raw.items()}
    sizes = [frame.sizes[place] for place in places]
    return outputs, Frame(frame.canvas, sizes), [targets[place] for place in places]


def _zero_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return zero with a gradient of zeros for all tensors, whatever their values.

    The backward pass then runs through all that they were computed from: norms that share statistics wait for it.
    """
    return torch.stack([tensor.flatten()[:0].float().sum() for tensor in tensors]).sum()


class Network(nn.Module):
    """Images -> batch -> trunk (once) -> necks -> heads.

    In training mode `network(images, targets)` returns the losses by name; in eval mode `network(images)` returns the
    answers by head, each a list with one entry per image. With several heads, the name of a loss starts with the name
    of its head.

    A head is trained on the images that are labeled for it, and its losses are means over the images of all processes.
    A head for which no process has a labeled image is not run.

    Args:
        trunk: Backbone.
        necks: Pyramids by the name of the head; a head on maps without one takes those of the trunk.
        heads: Heads by name, such as `image` and `region`.
        batcher: Turns images into a batch.
        pooled: Names of the heads that take the pooled features of the trunk instead of maps.
        uncertainty: Whether to learn the weights of the heads' losses: the losses of a head are multiplied by exp(-s),
            and s / 2 is added, where s is a parameter of the head, the logarithm of a variance (Kendall et al., arXiv
            1705.07115, equation 10).
    """

    def __init__(
        self,
        trunk: Trunk,
        necks: Mapping[str, Pyramid],
        heads: Mapping[str, nn.Module],
        batcher: Batcher,
        pooled: Collection[str],
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        self.log_variances: nn.ParameterDict | None = None
        if uncertainty:
            self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in heads})
        self.trunk, self.batcher, self.pooled = trunk, batcher, frozenset(pooled)
        self.necks, self.heads = nn.ModuleDict(necks), nn.ModuleDict(heads)

    if TYPE_CHECKING:

        @overload
        def __call__(self, images: Images) -> Answers: ...

        @overload
        def __call__(self, images: Images, targets: Targets) -> Losses: ...

        def __call__(self, images: Images, targets: Targets | None = None) -> Losses | Answers:
            """Run `forward`; the overloads give the type of the result with and without targets."""

    def forward(self, images: Images, targets: Targets | None = None) -> Losses | Answers:
        """Return the losses by name in training mode, the answers by head otherwise.

        Args:
            images: List of images, or a batch: of uint8 images, or of normalized floats.
            targets: Targets by head; required in training mode. None in place of the target of an image, or of those
                of a head, means that it is not labeled.
        """
        if self.training:
            assert targets is not None, "training needs targets"
            batch, frame = self.batcher(images, common=True)
            labeled = {name: _labeled(targets.get(name)) for name in self.heads}
            counts = largest([len(places) for places in labeled.values()], batch.device)
            wanted = [name for name, count in zip(labeled, counts, strict=True) if count]
            return self._losses(self.raw(batch, wanted), frame, targets, labeled)
        answers: dict[str, dict[int, Any]] = {name: {} for name in self.heads}
        for places in [list(range(len(images)))] if isinstance(images, Tensor) else self.batcher.groups(images):
            batch, frame = self.batcher(images if isinstance(images, Tensor) else [images[place] for place in places])
            for name, found in self.decode(self.raw(batch), frame).items():
                answers[name].update(zip(places, found, strict=True))
        return {name: [found[place] for place in range(len(images))] for name, found in answers.items()}

    def raw(self, batch: Tensor, heads: Collection[str] | None = None) -> dict[str, Raw]:
        """Return the raw outputs of heads for a normalized batch, by head; this is what is exported.

        Args:
            batch: Normalized images (N, C, H, W).
            heads: Names of the heads to run; None runs all.
        """
        features = self.trunk(batch)
        chosen = [name for name in self.heads if heads is None or name in heads]
        return {name: self._head(name).raw(self._input_of(name, features)) for name in chosen}

    def _input_of(self, name: str, features: Features) -> Tensor | Maps | None:
        if name in self.pooled:
            return features.vector
        if name in self.necks:
            return self.necks[name](features.maps)
        return {str(index): level for index, level in enumerate(features.maps)}

    def decode(self, raw: Mapping[str, Raw], frame: Frame) -> Answers:
        """Return the answers of every head from raw outputs by head, such as those of an exported network."""
        return {name: self._head(name).decode(outputs, frame) for name, outputs in raw.items()}

    def _losses(
        self, raw: Mapping[str, Raw], frame: Frame, targets: Targets, labeled: Mapping[str, list[int]]
    ) -> Losses:
        """Return the losses of the heads that ran, from the indices of the images that are labeled for each."""
        losses: dict[str, Any] = {}
        for name, outputs in raw.items():
            places, head = labeled[name], self._head(name)
            prefix = f"{name}_" if len(self.heads) > 1 else ""
            if places or getattr(head, "joint", False):
                found = head.losses(*_selected(outputs, frame, targets.get(name), places))
            else:  # another process has labels: it waits for the counts of this one
                found = {loss: Mean(_zero_of(outputs.values()), 0) for loss in head.loss_names}
            losses |= {prefix + loss: found[loss] for loss in head.loss_names}
        means = {name: loss for name, loss in losses.items() if isinstance(loss, Mean)}
        values = balanced([mean.value for mean in means.values()], [mean.items for mean in means.values()])
        losses |= dict(zip(means, values, strict=True))
        losses = self._balanced(losses, list(raw))
        if not all(labeled.values()):
            # DistributedDataParallel waits for the gradient of every parameter, that of a head without labels too
            first = next(iter(losses), "loss")
            losses[first] = losses.get(first, 0) + _zero_of(p for p in self.parameters() if p.requires_grad)
        return losses

    def _balanced(self, losses: Losses, heads: list[str]) -> Losses:
        """Return the losses of heads, weighted by their learned variances if there are any."""
        if self.log_variances is None:
            return losses
        found: Losses = {}
        for name in heads:
            prefix = f"{name}_" if len(self.heads) > 1 else ""
            scale = self.log_variances[name]
            own = {loss: value for loss, value in losses.items() if loss.startswith(prefix)}
            found |= {loss: value * torch.exp(-scale) for loss, value in own.items()}
            found[f"{prefix}log_variance"] = scale / 2
        return found

    def _head(self, name: str) -> Head[Any, Any, object]:
        return cast("Head[Any, Any, object]", self.heads[name])  # as text: torch.compile would stop at the type

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Return timm's layer groups: those of the trunk, from its stem on; necks and heads are in the last group."""
        return self.trunk.layer_groups(r"^trunk\.")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters exempt from weight decay: those that the backbone names, such as position embeddings,
        and learned weights of losses."""
        own = {f"log_variances.{name}" for name in self.log_variances or ()}
        return own | {f"trunk.{name}" for name in self.trunk.no_weight_decay()}

    def set_memory(self, memory: Memory) -> None:
        """Set which activations the trunk keeps for backward: all (`fast`), fewer (`balanced`), or few (`saver`).

        Raises:
            UsageError: The trunk cannot recompute anything.
        """
        self.trunk.set_memory(memory)
