"""Anchors, computed in fp32 whatever the dtype of the maps, and the sampling of regions for the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fishnet.models.heads.types import Size, Target


class Anchors(AnchorGenerator):
    """Anchors of a pyramid whose strides are known.

    torchvision derives the stride of a level from the sizes of image and map, which is wrong where the size of a map is
    rounded up (the level beyond stride 32), and computes anchors in the dtype of the maps, which rounds them in half
    precision.

    Args:
        sizes: Sides of the anchors in pixels, per level.
        ratios: Aspect ratios of the anchors, height / width.
        strides: Stride of each level in pixels.
    """

    def __init__(self, sizes: list[tuple[float, ...]], ratios: tuple[float, ...], strides: list[int]) -> None:
        super().__init__(tuple(sizes), (ratios,) * len(sizes))
        self.strides = strides

    def levels(self, canvas: Size, device: torch.device) -> list[Tensor]:
        """Return the anchors of each level (A, 4), for a batch padded to `canvas`."""
        self.set_cell_anchors(torch.float32, device)
        grids = [[-(-side // stride) for side in canvas] for stride in self.strides]
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        return self.grid_anchors(grids, steps)


def drawn(labels: Tensor, count: int, positive_share: float, generator: torch.Generator | None) -> Tensor:
    """Sample regions: return their labels, with -1 for the regions that are not sampled.

    At most `count * positive_share` positive regions are drawn at random, then negative ones up to `count` in total.

    Args:
        labels: Class of each region (N,), from 1; 0 is background, -1 is ignored.
        count: Maximum number of regions to sample.
        positive_share: Maximum fraction of positive regions among them.
        generator: CPU generator; None uses torch's global generator.
    """
    positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
    positive = _some(positive, min(len(positive), int(count * positive_share)), generator)
    negative = _some(negative, min(len(negative), count - len(positive)), generator)
    result = torch.full_like(labels, -1)
    for part in (positive, negative):
        result[part] = labels[part]
    return result


def _some(places: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]


def generator_of(target: Target, stage: int) -> torch.Generator | None:
    """Return the generator that samples the regions of an image in a stage (0 or 1), or None without a seed.

    An image gets the same samples in an epoch whichever process it is assigned to.
    """
    if "seed" not in target:
        return None
    return torch.Generator().manual_seed(int(target["seed"]) + stage)


class TakeAll:
    """Replacement for torchvision's random sampler: takes every region that `drawn` has not marked with -1."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of the positive and of the negative regions of each image."""
        return [part >= 1 for part in labels], [part == 0 for part in labels]


IN_CROWD = 0.7
"""A region is in a crowd if at least this fraction of its area is; Detectron ignores such proposals."""


def inside_crowds(target: Target, boxes: Tensor) -> Tensor:
    """Return which crowds of an image contain each box (N, 4), bool (N, M)."""
    crowds = target["crowds"].to(boxes) if "crowds" in target else boxes[:0]
    corner = torch.minimum(boxes[:, None, 2:], crowds[:, 2:])
    shared = (corner - torch.maximum(boxes[:, None, :2], crowds[:, :2])).clamp(min=0).prod(-1)
    inside = shared >= IN_CROWD * (boxes[:, 2:] - boxes[:, :2]).prod(-1, keepdim=True)
    return inside & (crowds[:, 2:] > crowds[:, :2]).all(-1)  # a crop may have left a crowd no area


def unlabeled_classes(targets: Sequence[Target], boxes: Sequence[Tensor], classes: int) -> list[Tensor] | None:
    """Return the classes of which each box may contain objects without a label, bool (N_i, classes) per image: those
    that were not annotated in the image, and those of crowds that contain the box. None if there are none.

    Args:
        targets: Ground truth of each image.
        boxes: Boxes (N_i, 4) in each image.
        classes: Number of classes.
    """
    unknown = unknown_classes(targets)
    if unknown is None and not any("crowds" in target for target in targets):
        return None
    found = []
    for place, (target, own) in enumerate(zip(targets, boxes, strict=True)):
        hidden = torch.zeros(len(own), classes, dtype=torch.bool, device=own.device)
        if "crowds" in target:
            hidden = inside_crowds(target, own).float() @ one_hot(target["crowd_labels"], classes).float() > 0
        found.append(hidden if unknown is None else hidden | unknown[place])
    return found


def unknown_classes(targets: Sequence[Target]) -> Tensor | None:
    """Return which classes were not annotated in each image, bool (images, classes); None if all were annotated."""
    listed = [target.get("annotated") for target in targets]
    known = next((one for one in listed if one is not None), None)
    if known is None:
        return None
    return torch.stack([torch.zeros_like(known) if one is None else ~one for one in listed])
