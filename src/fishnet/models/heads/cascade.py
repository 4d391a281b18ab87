"""Cascade R-CNN on torchvision's region heads: three box stages, each refining the boxes of the previous one.

Cai & Vasconcelos: Cascade R-CNN, arXiv 1712.00726. The stages use IoU thresholds of 0.5, 0.6 and 0.7 for positive
regions. Later stages start from better boxes, so their deltas are smaller and are scaled up. The score of a box is the
mean over the stages.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.ops import boxes as box_ops

from fishnet.models.heads.region import Regions, objects_of, without_unknown
from fishnet.models.heads.types import Detections, Maps, Mean, Means, Size, Target

IOUS = (0.5, 0.6, 0.7)
"""IoU threshold for positive regions, per stage."""
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Scale of the regression targets (x, y, width, height), per stage."""
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
"""Weight of the losses of each stage: later stages depend on earlier ones and must not dominate them."""


class CascadePredictor(nn.Module):
    """Features (N, C) -> class logits (N, classes + 1) and class-agnostic box deltas (N, 4), in fp32."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and box deltas."""
        return self.cls_score(x).float(), self.bbox_pred(x).float()


class CascadeRegions(Regions):
    """Box heads of three stages, with an optional mask head as in Mask R-CNN.

    Args:
        box_head: `nn.ModuleList` with one module per stage: pooled maps of a region -> features.
        box_predictor: `nn.ModuleList` with one module per stage: features -> logits and deltas.

    The other arguments are those of `Regions`.
    """

    coders: ClassVar = [detection_utils.BoxCoder(weights) for weights in DELTA_WEIGHTS]
    matchers: ClassVar = [detection_utils.Matcher(iou, iou, allow_low_quality_matches=False) for iou in IOUS]

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        stages = range(1, len(IOUS) + 1)
        return *self.inner_names, *(f"{name}_{i}" for i in stages for name in ("loss_classifier", "loss_box_reg"))

    def losses(self, maps: Maps, regions: list[Tensor], sizes: list[Size], targets: list[Target]) -> Means:
        """Return the losses of every box stage, and of the masks on the regions of the first stage."""
        regions, matched, labels, _ = self.select(regions, targets)
        losses = self.inner_losses(maps, regions, matched, labels, sizes, targets)
        truth, classes = [t["boxes"].float() for t in targets], [t["labels"] for t in targets]
        for stage, weight in enumerate(LOSS_WEIGHTS):
            if stage:
                matched, labels = self._assigned(stage, regions, truth, classes)
            logits, deltas = self._stage(stage, maps, regions, sizes)
            wanted = torch.cat(self.coders[stage].encode(objects_of(truth, matched, regions), regions))
            logits = without_unknown(logits, labels, regions, targets)
            scoring, regression = _box_losses(logits, deltas, torch.cat(labels), wanted)
            count = sum(map(len, labels))
            losses[f"loss_classifier_{stage + 1}"] = Mean(weight * scoring, count)
            losses[f"loss_box_reg_{stage + 1}"] = Mean(weight * regression, count)
            regions = [_without_empty(boxes) for boxes in self._refine(stage, deltas, regions, sizes)]
        return losses

    def detect(self, maps: Maps, regions: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Return the detections of each image."""
        scores: list[Tensor] = []
        for stage in range(len(IOUS)):
            logits, deltas = self._stage(stage, maps, regions, sizes)
            scores.append(logits.softmax(-1))
            regions = self._refine(stage, deltas, regions, sizes)
        found = self._best(torch.stack(scores).mean(0), regions)
        self.add_inner(found, maps, sizes)
        return found

    def _assigned(
        self, stage: int, regions: list[Tensor], truth: list[Tensor], classes: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the matched object and the label of each region, by the IoU threshold of a later stage."""
        self.proposal_matcher = self.matchers[stage]
        try:
            return self.assign_targets_to_proposals(regions, truth, classes)
        finally:
            self.proposal_matcher = self.matchers[0]

    def _stage(self, stage: int, maps: Maps, boxes: list[Tensor], sizes: list[Size]) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(maps, boxes, sizes)
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _refine(self, stage: int, deltas: Tensor, boxes: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        """Return the boxes moved by the deltas of a stage, clipped to their images and detached."""
        moved = self.coders[stage].decode(deltas.detach(), boxes)[:, 0]
        parts = moved.split([len(b) for b in boxes])
        return [box_ops.clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]

    def _best(self, scores: Tensor, boxes: list[Tensor]) -> list[Detections]:
        """Return the detections of each image: score threshold, NMS per class, then the best ones."""
        results: list[Detections] = []
        for part, box in zip(scores.split([len(b) for b in boxes]), boxes, strict=True):
            row, label = torch.where(part[:, 1:] > self.score_thresh)
            label = label + 1
            kept, score = box[row], part[row, label]
            good = box_ops.remove_small_boxes(kept, min_size=1e-2)
            kept, score, label = kept[good], score[good], label[good]
            best = box_ops.batched_nms(kept, score, label, self.nms_thresh)[: self.detections_per_img]
            results.append({"boxes": kept[best], "labels": label[best], "scores": score[best]})
        return results


def _without_empty(boxes: Tensor) -> Tensor:
    """Remove boxes that refinement has shrunk below 1 pixel: their deltas would not be finite."""
    return boxes[box_ops.remove_small_boxes(boxes, min_size=1.0)]


def _box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross entropy over all regions, and smooth L1 loss of the deltas of positive regions."""
    positive, count = torch.where(labels > 0)[0], len(labels)
    scoring = F.cross_entropy(logits, labels, reduction="sum") / max(1, count)
    regression = F.smooth_l1_loss(deltas[positive], wanted[positive], beta=1 / 9, reduction="sum") / max(1, count)
    return scoring, regression
