"""Masks from training targets to pixels: what a mask head learns is where the object is, in both runtimes.

Both differ from torchvision's on purpose: its targets are half a pixel off, and it pastes masks one pixel too wide at
corners that it truncates. References are PyTorch's `grid_sample` and the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from fishnet.data.run_lengths import counts_text, decode
from fishnet.models.heads.region import Regions
from fishnet.models.heads.types import Target
from fishnet.runner.masks import pasted, run_lengths
from fishnet.tasks.detection.detections import encode_masks
from tests.models.heads.test_detectors import CLASSES, detector, region

SIDE = 28
CANVAS = (120, 150)


def ellipse(size: int, generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0 : CANVAS[0], 0 : CANVAS[1]] + 0.5
    a, b = size / 2 * generator.uniform(0.6, 1, 2)
    left, top = generator.uniform(size / 2, CANVAS[1] - size / 2), generator.uniform(size / 2, CANVAS[0] - size / 2)
    turn = generator.uniform(0, math.pi)
    along = (x - left) * math.cos(turn) + (y - top) * math.sin(turn)
    across = (y - top) * math.cos(turn) - (x - left) * math.sin(turn)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def polygon(size: int, generator: np.random.Generator) -> np.ndarray:
    count = generator.integers(3, 9)
    angles, radii = np.sort(generator.uniform(0, 2 * math.pi, count)), size / 2 * generator.uniform(0.6, 1, count)
    x = generator.uniform(size / 2, CANVAS[1] - size / 2) + radii * np.cos(angles)
    y = generator.uniform(size / 2, CANVAS[0] - size / 2) + radii * np.sin(angles)
    image = Image.new("1", CANVAS[::-1])
    ImageDraw.Draw(image).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=1)
    return np.array(image)


def shapes(
    draw: Callable[[int, np.random.Generator], np.ndarray], size: int, count: int = 100
) -> tuple[Tensor, Tensor]:
    """Return masks, uint8 (N, H, W), and the boxes around them, float (N, 4)."""
    generator = np.random.default_rng(size)
    masks = np.stack([draw(size, generator) for _ in range(count)])
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return torch.from_numpy(masks.astype(np.uint8)), torch.tensor(boxes, dtype=torch.float32)


def learned(regions: Regions, boxes: Tensor, masks: Tensor) -> Tensor:
    """Return the probabilities (N, 1, 28, 28) that the loss of masks is minimal at, read from its gradient."""
    count = len(boxes)
    logits = torch.zeros(count, CLASSES + 1, SIDE, SIDE, requires_grad=True)
    regions.mask_logits = lambda *_: logits  # type: ignore[method-assign]
    labels = torch.arange(count) % CLASSES + 1
    target: Target = {"boxes": boxes, "labels": labels, "masks": masks}
    loss = regions.inner_losses({}, [boxes], [torch.arange(count)], [labels], [CANVAS], [target])["loss_mask"]
    assert loss.items == count
    (gradient,) = torch.autograd.grad(loss.value, logits)
    own = gradient[torch.arange(count), labels]
    gradient[torch.arange(count), labels] = 0
    assert not gradient.any()  # masks of other classes are not learned from
    return 0.5 - own[:, None] * (count * SIDE * SIDE)  # the gradient is (sigmoid(0) - target) / numel


def sampled(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Return the probabilities at the pixels of an image (height, width), by `grid_sample`; 0 outside of the box."""
    x1, y1, x2, y2 = box.double().tolist()
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - x1) / (x2 - x1)
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - y1) / (y2 - y1)
    grid = torch.stack(torch.broadcast_tensors(2 * x[None] - 1, 2 * y[:, None] - 1), -1)
    found = F.grid_sample(mask[None].double(), grid[None], align_corners=False)[0, 0]
    inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))[None]
    return found * inside


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize("draw", [ellipse, polygon])
def test_learned_masks_are_pasted_where_the_objects_are(name: str, draw: Callable[..., np.ndarray]) -> None:
    """With torchvision's targets and pasting the mean IoU is 0.86 at 16 pixels, and the centers are 0.36 pixels off."""
    regions = region(detector(name, preset="nano")).regions
    for size in (8, 16, 32, 64):
        masks, boxes = shapes(draw, size)
        found = decode(encode_masks(learned(regions, boxes, masks), boxes, CANVAS), *CANVAS)
        overlap = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
        assert overlap.mean() >= 0.99, size
        shifts = [
            np.subtract(*(np.mean(np.nonzero(one.numpy()), axis=1) for one in pair))
            for pair in zip(found, masks, strict=True)
        ]
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.05, size


def test_targets_are_means_of_samples_inside_of_each_cell() -> None:
    """As in Detectron2; RoIAlign samples every pixel of large regions. Regions at the border of the image too."""
    generator = torch.Generator().manual_seed(0)
    regions = region(detector("mask_rcnn", preset="nano")).regions
    boxes = torch.tensor([[3.2, 4.1, 20.9, 30.7], [0, 0, 150, 120], [10, 20, 11.5, 21.5], [90.3, 60.2, 150, 120]])
    masks = (torch.rand(len(boxes), *CANVAS, generator=generator) > 0.5).to(torch.uint8)
    for found, box, mask in zip(learned(regions, boxes, masks)[:, 0], boxes, masks, strict=True):
        width, height = (box[2:] - box[:2]).tolist()
        down, across = math.ceil(height / SIDE), math.ceil(width / SIDE)
        y = box[1] + (torch.arange(SIDE * down) + 0.5) * height / (SIDE * down)
        x = box[0] + (torch.arange(SIDE * across) + 0.5) * width / (SIDE * across)
        size = torch.tensor([CANVAS[1], CANVAS[0]])
        grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1) / size * 2 - 1
        fine = F.grid_sample(mask[None, None].float(), grid[None], padding_mode="border", align_corners=False)
        assert torch.allclose(found, F.avg_pool2d(fine, (down, across))[0, 0], atol=1e-3)


def test_pasting_samples_at_the_centers_of_pixels() -> None:
    """Not torchvision's `paste_masks_in_image`, which truncates corners and makes masks a pixel too wide."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=generator) * 60 + 0.3], 1)
    odd = [[-20.0, -5, 30, 90], [3, 3, 3.2, 3.1], [-9, -9, 200, 300], [5, 5, 5, 9], [100, 2, 120, 9], [-9, 4, -2, 9]]
    boxes = torch.cat([boxes, torch.tensor(odd)])
    masks = torch.rand(len(boxes), 1, SIDE, SIDE, generator=generator)
    found = decode(encode_masks(masks, boxes, (70, 90)), 70, 90).bool()
    for mask, box, shown in zip(masks, boxes, found, strict=True):
        if box[2] <= box[0]:
            assert not shown.any()
            continue
        wanted = sampled(mask, box, 70, 90)
        clear = (wanted - 0.5).abs() > 1e-5
        assert torch.equal(shown[clear], (wanted > 0.5)[clear])


@pytest.mark.parametrize("size", [(1, 1), (70, 90), (2300, 4600)])
def test_exported_networks_paste_the_same_pixels(size: tuple[int, int]) -> None:
    """Also in images of which less than two fit into the memory that is taken at once."""
    generator = torch.Generator().manual_seed(1)
    far = torch.tensor([size[1], size[0]])
    corner = torch.rand(12, 2, generator=generator) * far - 3
    boxes = torch.cat([corner, corner + torch.rand(12, 2, generator=generator) * far / 2 + 1], 1)
    masks = torch.rand(len(boxes), 1, SIDE, SIDE, generator=generator)
    runs = encode_masks(masks, boxes, size)
    for run, mask, box in zip(runs, masks, boxes, strict=True):
        assert run["size"] == list(size)
        assert counts_text(run) == run_lengths(pasted(mask[0].numpy(), box.numpy(), *size))
    assert encode_masks(masks[:0], boxes[:0], size) == []
