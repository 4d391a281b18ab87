"""Inputs and outputs of heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


class Frame(NamedTuple):
    """Size of a padded batch and of the images in it, in pixels."""

    canvas: Size
    """Height and width of the padded batch."""
    sizes: list[Size]
    """Height and width of each image; it is in the upper left corner of its part of the batch."""


Maps = dict[str, Tensor]
"""Feature maps (N, C, H, W) by name, the finest first."""
Raw = dict[str, Tensor]
"""Outputs of a head before decoding, by name, in fp32."""
Losses = dict[str, Tensor]
"""Scalar losses by name; their sum is minimized."""


class Mean(NamedTuple):
    """A loss that is a mean over items, such as regions or pixels, whose number differs between processes."""

    value: Tensor
    """Sum over the items of this process, divided by their number or 1: a scalar."""
    items: int | Tensor
    """Number of items in this process; at least 1 if there are any."""


Means = dict[str, Mean]
"""Losses of a head in this process, by name."""


class Target(TypedDict):
    """Ground-truth objects of one image; N may be 0."""

    boxes: Tensor
    """float (N, 4): x1 y1 x2 y2 in pixels of the network's input."""
    labels: Tensor
    """int64 (N,): class indices from 0, without background."""
    masks: NotRequired[Tensor]
    """uint8 (N, H, W): 1 inside the object."""
    outlined: NotRequired[Tensor]
    """bool (N,): whether the outline of an object is known; without it all are. Losses of masks leave out the others,
    whose entry in `masks` is only the region that may contain them."""
    keypoints: NotRequired[Tensor]
    """float (N, K, 3): x, y, visibility."""
    annotated: NotRequired[Tensor]
    """bool (classes,): which classes were annotated in the image; all if missing. Losses do not treat the others as
    absent."""
    crowds: NotRequired[Tensor]
    """float (M, 4): boxes of crowds, in which objects of a class are not annotated one by one. Losses do not treat
    regions in them as background."""
    crowd_labels: NotRequired[Tensor]
    """int64 (M,): class indices of the crowds."""
    seed: NotRequired[Tensor]
    """int64 scalar: seed of the sampling of regions for the losses; without it torch's global generator is used."""


class Detections(TypedDict):
    """Objects found in one image, in descending order of score."""

    boxes: Tensor
    """float (N, 4): x1 y1 x2 y2 in pixels of the network's input."""
    labels: Tensor
    """int64 (N,): class indices from 0, without background."""
    scores: Tensor
    """float (N,): scores from 0 to 1."""
    masks: NotRequired[Tensor]
    """float (N, 1, 28, 28): mask probabilities inside each box."""
    keypoints: NotRequired[Tensor]
    """float (N, K, 3): x, y, visibility (always 1)."""
    keypoints_scores: NotRequired[Tensor]
    """float (N, K): score of each keypoint."""


Targets = Mapping[str, Any]
"""Targets of a batch by head: a tensor with an entry per image, or a list with one, such as a `Target`. None in a list
marks an image that is not labeled for the head, which is not the same as an image without objects."""
Answers = dict[str, list[Any]]
"""Answers to a batch by head, one entry per image, such as logits (classes,) or `Detections`."""


class HeadPlan(Protocol):
    """Frozen dataclass that describes a head; the values of its fields are plain data.

    A head that predicts classes has the field `num_classes`: their number, without background.
    """

    @property
    def kind(self) -> str:
        """Name of the kind of head."""
        ...


def count_classes(plan: HeadPlan) -> int | None:
    """Return the number of classes of a head, without background; None if it does not predict classes."""
    return getattr(plan, "num_classes", None)
