"""Region heads against torchvision's detectors of the same weights: losses in training, detections otherwise.

The targets of masks deviate on purpose: torchvision's are half a pixel off (RoIAlign with `aligned=False`), so that it
is given aligned ones here, as Detectron2 has them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet, roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign, roi_align

from fishnet.models.network import Network
from tests.models.heads.test_detectors import CLASSES, detector, found_in, images, losses_of, region, target

TWO_STAGES = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "keypoint_rcnn": KeypointRCNN}
# multiples of the largest stride: elsewhere torchvision guesses the strides of the coarsest levels wrongly
SHAPES = (128, 256), (256, 128)


class Prepared(nn.Module):
    """Stands for torchvision's transform: images come as they shall be seen."""

    def __init__(self, own: Network) -> None:
        super().__init__()
        self.batcher = own.batcher

    def forward(self, pictures: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        batch, frame = self.batcher(pictures)
        return ImageList(batch, frame.sizes), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        return result


class Body(nn.Module):
    """Trunk and neck in the form of torchvision's backbones."""

    def __init__(self, own: Network) -> None:
        super().__init__()
        self.trunk, self.neck = own.trunk, own.necks["region"]
        self.out_channels = self.neck.out_channels

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return self.neck(self.trunk(batch).maps)


def pool_like(own: MultiScaleRoIAlign) -> MultiScaleRoIAlign:
    """Return torchvision's pooling with the settings of another."""
    other = MultiScaleRoIAlign(own.featmap_names, own.output_size, own.sampling_ratio)
    other.scales, other.map_levels = own.scales, own.map_levels
    return other


def twin(name: str, own: Network) -> nn.Module:
    """Return torchvision's detector on the same modules."""
    head = region(own)
    options: dict[str, Any] = {"backbone": Body(own)}
    if name in TWO_STAGES:
        stage = head.regions
        anchors = head.proposals.anchors
        options |= {
            "rpn_anchor_generator": AnchorGenerator(anchors.sizes, anchors.aspect_ratios),
            "rpn_head": head.proposals.head,
            "rpn_pre_nms_top_n_train": 600, "rpn_post_nms_top_n_train": 600,
            "rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 300,
            "box_roi_pool": pool_like(stage.box_roi_pool),
            "box_head": stage.box_head, "box_predictor": stage.box_predictor,
            "box_batch_size_per_image": 64, "box_score_thresh": 0.01,
        }  # fmt: skip
        inner = {"mask_rcnn": "mask", "keypoint_rcnn": "keypoint"}.get(name)
        for part in ("roi_pool", "head", "predictor") if inner else ():
            own_part = getattr(stage, f"{inner}_{part}")
            options[f"{inner}_{part}"] = pool_like(own_part) if part == "roi_pool" else own_part
        other = TWO_STAGES[name](**options)
    else:
        kind, empty = (RetinaNet, RetinaNetHead) if name == "retinanet" else (FCOS, FCOSHead)
        anchors = AnchorGenerator(head.anchors.sizes, head.anchors.aspect_ratios)
        options |= {"score_thresh": 0.01, "nms_thresh": 0.6 if name == "fcos" else 0.5, "topk_candidates": 300}
        stand_in = empty(64, anchors.num_anchors_per_location()[0], CLASSES)
        other = kind(num_classes=CLASSES, anchor_generator=anchors, head=stand_in, detections_per_img=100, **options)
        other.head = head.towers
    other.transform = Prepared(own)
    return other


def aligned(masks: Tensor, boxes: Tensor, objects: Tensor, side: int) -> Tensor:
    """Return what stands for torchvision's `project_masks_on_boxes`: one object after the other, aligned."""
    found = [
        roi_align(masks[index][None, None].float(), [box[None]], (side, side), aligned=True)[0, 0]
        for box, index in zip(boxes, objects.tolist(), strict=True)
    ]
    return torch.stack(found) if found else boxes.new_zeros(0, side, side)


@pytest.mark.parametrize("name", [*TWO_STAGES, "retinanet", "fcos"])
def test_losses_and_detections_are_those_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", aligned)
    own = detector(name, preset="nano", sizes={"score": 0.01})
    other = twin(name, own)
    shift = int(name in TWO_STAGES)
    pictures = images(*SHAPES)
    targets = [target([[10, 12, 60, 70], [130, 5, 250, 120]], SHAPES[0]), target([], SHAPES[1])]
    for model in (own, other):
        model.train()
    torch.manual_seed(3)  # both draw regions in the same order
    losses = losses_of(own, pictures, targets)
    torch.manual_seed(3)
    expected = other(pictures, [{**t, "labels": t["labels"] + shift} for t in targets])
    assert losses.keys() == expected.keys()
    for loss in losses:
        torch.testing.assert_close(losses[loss], expected[loss], rtol=1e-5, atol=1e-6)
    for model in (own, other):
        model.eval()
    with torch.no_grad():
        for picture in pictures:
            (found,), (wanted,) = found_in(own, [picture]), other([picture])
            assert len(found["scores"]) > 0
            torch.testing.assert_close(found["scores"], wanted["scores"])
            torch.testing.assert_close(found["boxes"], wanted["boxes"])
            assert torch.equal(found["labels"] + shift, wanted["labels"])
            # another order of sums, which may turn the choice between two equal maxima of a keypoint's heatmap
            if "masks" in wanted:
                torch.testing.assert_close(found["masks"], wanted["masks"], rtol=1e-4, atol=1e-4)
            if "keypoints" in wanted:
                close = torch.isclose(found["keypoints"], wanted["keypoints"], rtol=1e-4, atol=1e-4)
                assert close.float().mean() > 0.99
