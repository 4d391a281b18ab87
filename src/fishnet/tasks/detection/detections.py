"""Detections in pixels of the original image, for evaluators, pictures and results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from fishnet.data.detection.dataset import PIXEL_CENTER
from fishnet.data.run_lengths import RunLengths, encode
from fishnet.models.heads.types import Detections, Size
from fishnet.runner.masks import paste
from fishnet.tasks.base import Runtime

HEAD = "region"
"""Name of the detection head."""


class Objects(TypedDict):
    """Objects in one image, in pixels of that image, sorted by score."""

    boxes: Tensor
    """float (N, 4): x1 y1 x2 y2."""
    labels: Tensor
    """int64 (N,): class indices from 0."""
    scores: Tensor
    """float (N,)."""
    masks: NotRequired[list[RunLengths]]
    """A mask per object."""
    keypoints: NotRequired[Tensor]
    """float (N, K, 3): x, y, visibility; x and y are pixel indices (0 is the center of a pixel), as in COCO files."""


def detect(runtime: Runtime, images: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
    """Return the detections per image, on the CPU, with boxes and keypoints in pixels of the original images.

    Args:
        runtime: Runs the detector.
        images: Prepared images (3, H, W).
        sizes: Height and width of each image before it was resized.
    """
    return in_original_pixels(runtime(images)[HEAD], images, sizes)


def in_original_pixels(
    answers: Sequence[Detections], images: Sequence[Tensor], sizes: Sequence[Size]
) -> list[Detections]:
    """Return the detections of a network, on the CPU, with boxes and keypoints in pixels of the original images.

    Args:
        answers: Detections in pixels of the prepared images.
        images: Prepared images (3, H, W).
        sizes: Height and width of each image before it was resized.
    """
    return [
        _original(found, (image.shape[-2], image.shape[-1]), size)
        for found, image, size in zip(answers, images, sizes, strict=True)
    ]


def _original(found: Detections, seen: Size, size: Size) -> Detections:
    """Scale the detections of one image from the size that the network saw to that of its file."""
    values = {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in tensors(found)}
    across, down = size[1] / seen[1], size[0] / seen[0]
    values["boxes"] = values["boxes"] * torch.tensor([across, down, across, down])
    if "keypoints" in values:
        center = torch.tensor([PIXEL_CENTER, PIXEL_CENTER, 0.0])  # COCO gives keypoints as pixel indices
        values["keypoints"] = values["keypoints"] * torch.tensor([across, down, 1.0]) - center
    return cast(Detections, values)


def tensors(found: Detections) -> list[tuple[str, Tensor]]:
    """Return name and value of all fields; each has an entry per object."""
    return [(name, cast(Tensor, value)) for name, value in found.items()]


def select(found: Detections, index: Tensor) -> Detections:
    """Return some of the detections of an image.

    Args:
        found: Detections of one image.
        index: Positions, or a bool per detection.
    """
    return cast(Detections, {name: value[index] for name, value in tensors(found)})


def as_objects(found: Detections, size: Size) -> Objects:
    """Return detections with their masks pasted into the image.

    Args:
        found: Detections in pixels of the image.
        size: Height and width of the image.
    """
    objects: Objects = {"boxes": found["boxes"], "labels": found["labels"], "scores": found["scores"]}
    if "masks" in found:
        objects["masks"] = encode_masks(found["masks"], found["boxes"], size)
    if "keypoints" in found:
        objects["keypoints"] = found["keypoints"]
    return objects


def encode_masks(masks: Tensor, boxes: Tensor, size: Size) -> list[RunLengths]:
    """Return run-length encoded masks of a whole image, pasted by the code of exported networks.

    Args:
        masks: float (N, 1, 28, 28): probability inside the box.
        boxes: float (N, 4): x1 y1 x2 y2 in pixels.
        size: Height and width of the image.
    """
    runs: list[RunLengths] = []
    step = max(1, 10_000_000 // (size[0] * size[1]))  # all masks of a panorama with 100 objects would exceed the memory
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
        probabilities, corners = masks[part, 0].cpu().numpy(), boxes[part].cpu().numpy()
        images = np.zeros((len(corners), size[1], size[0]), np.uint8).transpose(0, 2, 1)  # columns, as runs go
        for mask, box, image in zip(probabilities, corners, images, strict=True):
            paste(mask, box, image)
        runs += encode(torch.from_numpy(images))
    return runs
