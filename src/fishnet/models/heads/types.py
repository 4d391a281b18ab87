"""What goes into region heads and what comes out."""

from __future__ import annotations

from typing import NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


class Frame(NamedTuple):
    """Where the images of a batch lie."""

    canvas: Size
    """Height and width of the padded batch."""
    sizes: list[Size]
    """Height and width of each image, from the upper left corner."""


Maps = dict[str, Tensor]
"""Maps of a pyramid by name, the finest first."""
Raw = dict[str, Tensor]
"""Outputs of a head before decoding, by name, in fp32."""
Losses = dict[str, Tensor]
"""Scalars by name, whose sum is minimised."""


class Target(TypedDict):
    """Objects of one image; N may be 0."""

    boxes: Tensor
    """float (N, 4): x1 y1 x2 y2 in pixels of the network's input."""
    labels: Tensor
    """int64 (N,): classes from 0."""
    masks: NotRequired[Tensor]
    """uint8 (N, H, W)."""
    keypoints: NotRequired[Tensor]
    """float (N, K, 3): x, y, visibility."""
    seed: NotRequired[Tensor]
    """int64 scalar: seeds the choice of the regions that losses are taken of; without it torch's generator draws."""


class Detections(TypedDict):
    """Objects found in one image, the best first."""

    boxes: Tensor
    """float (N, 4): x1 y1 x2 y2 in pixels of the network's input."""
    labels: Tensor
    """int64 (N,): classes from 0."""
    scores: Tensor
    """float (N,), in falling order."""
    masks: NotRequired[Tensor]
    """float (N, 1, 28, 28): probability inside the box."""
    keypoints: NotRequired[Tensor]
    """float (N, K, 3): x, y, visibility."""
    keypoints_scores: NotRequired[Tensor]
    """float (N, K)."""


class Targets(TypedDict, total=False):
    """Truth of a batch by head."""

    image: Tensor
    """int64 (N,), or float (N, classes): see `ImageHead.losses`."""
    region: list[Target]
    """Objects of each image."""


class Answers(TypedDict, total=False):
    """Answers to a batch by head, one entry per image."""

    image: list[Tensor]
    """float (classes,): logits of each image."""
    region: list[Detections]
    """Objects found in each image."""


class HeadPlan(Protocol):
    """Frozen dataclass that describes a head; the values of its fields are plain data."""

    @property
    def kind(self) -> str:
        """Name of the kind of head."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        ...
