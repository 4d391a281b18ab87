"""Boxes stay exact whatever the arithmetic, anchors lie on the strides, regions are drawn by the image."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from fishnet.models.build_trunk import build_trunk
from fishnet.models.heads.boxes import Anchors, drawn, generator_of
from fishnet.models.heads.detectors import DETECTORS, RegionPlan, resolve_sizes
from fishnet.models.heads.region import keypoint_loss
from tests.models.heads.test_detectors import detector, found_in, images, losses_of, region, target


def silence(model: nn.Module) -> None:
    """Let every box layer predict no movement at all."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("bbox_pred", "bbox_reg"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(640, 901)])
@torch.no_grad()
def test_half_precision_leaves_boxes_exact(name: str, size: tuple[int, int]) -> None:
    """Heads that move nothing answer with anchors, clipped to the image: in bf16 those above 512 would be rounded."""
    model = detector(name, sizes={"score": 1e-6, "nms": 1.0, "detections": 2000}).eval()
    head = region(model)
    silence(model)
    if name == "fcos":  # its distances are one stride each, so that boxes have an area
        head.towers.regression_head.bbox_reg.bias.fill_(1.0)
    if "rcnn" in name:
        head.proposals.nms_thresh = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = found_in(model, images(size))
    canvas = (640, 928)
    levels = (head.proposals.anchors if "rcnn" in name else head.anchors).levels(canvas, torch.device("cpu"))
    anchors = torch.cat(levels).double()
    if name == "fcos":
        center, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        anchors = torch.cat([center - side, center + side], 1)
    anchors[:, 0::2] = anchors[:, 0::2].clamp(0, size[1])
    anchors[:, 1::2] = anchors[:, 1::2].clamp(0, size[0])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert len(found["boxes"]) > 50
    assert float(found["boxes"].max()) > 512
    known = {tuple(box) for box in (anchors * 8).round().int().tolist()}
    off = [box for box in found["boxes"].tolist() if tuple(round(8 * value) for value in box) not in known]
    assert not off, off[:5]


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn", "keypoint_rcnn"])
def test_half_precision_regression_targets_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions and their objects reach the box coder as they are, not in multiples of 4 pixels."""
    model = detector(name).train()
    seen: list[Tensor] = []
    coder = type(region(model).regions.box_coder)
    encode = coder.encode

    def watch(self: Any, objects: list[Tensor], regions: list[Tensor]) -> Any:
        seen.extend([*objects, *regions])
        return encode(self, objects, regions)

    monkeypatch.setattr(coder, "encode", watch)
    box = [601.3, 40.7, 777.1, 250.9]
    with torch.autocast("cpu", torch.bfloat16):
        losses_of(model, images((288, 801)), [target([box], (288, 801))])
    assert seen
    assert all(part.dtype == torch.float32 for part in seen)
    assert any(bool((part == torch.tensor(box)).all(1).any()) for part in seen if len(part))


def test_anchors_lie_on_the_strides_where_maps_are_rounded_up() -> None:
    anchors = Anchors([(32,), (64,)], (1.0,), [32, 64])
    fine, coarse = anchors.levels((96, 160), torch.device("cpu"))
    assert len(fine) == 3 * 5
    centers = (coarse[:, :2] + coarse[:, 2:]) / 2
    assert centers.tolist() == [[x, y] for y in (0, 64) for x in (0, 64, 128)]


def test_a_draw_takes_the_stated_shares_and_depends_on_the_image_only() -> None:
    labels = torch.cat([torch.full((30,), 2), torch.zeros(500), torch.full((70,), -1)]).long()
    seeded: Any = {"seed": torch.tensor(5)}
    first, again = (drawn(labels, 64, 0.25, generator_of(seeded, 0)) for _ in range(2))
    assert torch.equal(first, again)
    assert int((first == 2).sum()) == 16
    assert int((first == 0).sum()) == 48
    assert bool((first[labels == -1] == -1).all())
    assert not torch.equal(first, drawn(labels, 64, 0.25, generator_of(seeded, 1)))
    few = drawn(labels[25:], 64, 0.5, None)
    assert int((few == 2).sum()) == 5
    assert int((few == 0).sum()) == 59


def test_fcos_suppresses_at_the_threshold_of_its_paper() -> None:
    trunk, _ = build_trunk("fishnet_nano")
    assert region(detector("fcos")).nms == 0.6
    assert region(detector("fcos", sizes={"nms": 0.4})).nms == 0.4
    assert region(detector("retinanet")).nms == resolve_sizes(RegionPlan(preset="nano"), trunk).nms == 0.5
    assert math.isclose(region(detector("faster_rcnn")).regions.nms_thresh, 0.5)


def test_the_keypoint_loss_takes_maps_in_any_memory_order() -> None:
    logits = torch.randn(2, 5, 8, 8, requires_grad=True)
    boxes = [torch.tensor([[0.0, 0, 16, 16], [4, 4, 20, 12]])]
    points = [torch.cat([torch.rand(2, 5, 2) * 8 + 4, torch.ones(2, 5, 1)], 2)]
    first = keypoint_loss(logits, boxes, points).value
    torch.testing.assert_close(
        keypoint_loss(logits.contiguous(memory_format=torch.channels_last), boxes, points).value, first
    )
    torch.testing.assert_close(first, keypointrcnn_loss(logits, boxes, points, [torch.arange(2)]))
