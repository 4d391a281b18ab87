"""Cascade R-CNN on torchvision's region heads: three box stages, each on the boxes of the one before.

Cai & Vasconcelos: Cascade R-CNN, arXiv 1712.00726. Stage t is trained on regions that overlap an object by at least
0.5, 0.6, 0.7; its regression starts from better boxes, so its deltas are smaller and scaled up. The score of a box is
the mean over the stages.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import boxes as box_ops

IOUS = (0.5, 0.6, 0.7)
"""Overlap from which a region counts as an object, per stage."""
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Scale of the regression targets (x, y, width, height), per stage."""
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
"""Weight of each stage's losses: later ones are fed by earlier ones and must not drown them."""

Target = dict[str, Tensor]


class CascadePredictor(nn.Module):
    """Class scores (N, classes + 1) and one box per region, whatever its class (N, 4), from features (N, C)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores before softmax, and deltas."""
        return self.cls_score(x), self.bbox_pred(x)


class CascadeRoIHeads(RoIHeads):
    """Box heads of three stages, and a mask head as in Mask R-CNN.

    Args:
        box_heads: Regions' maps -> features, per stage.
        box_predictors: Features -> scores and deltas, per stage.
        options: As of torchvision's `RoIHeads`, without what a single stage needs.
    """

    def __init__(self, box_heads: list[nn.Module], box_predictors: list[nn.Module], **options: Any) -> None:
        super().__init__(
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            fg_iou_thresh=IOUS[0],
            bg_iou_thresh=IOUS[0],
            bbox_reg_weights=DELTA_WEIGHTS[0],
            **options,
        )
        self.coders = [detection_utils.BoxCoder(weights) for weights in DELTA_WEIGHTS]
        self.matchers = [detection_utils.Matcher(iou, iou, allow_low_quality_matches=False) for iou in IOUS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections per image (empty in training) and losses (empty otherwise)."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        scores: list[Tensor] = []
        for stage in range(len(IOUS)):
            logits, deltas = self._stage(stage, features, proposals, image_shapes)
            scores.append(logits.float().softmax(-1))
            proposals = self._refine(stage, deltas, proposals, image_shapes)
        results = self._select(torch.stack(scores).mean(0), proposals)
        if self.has_mask():
            boxes, labels = [r["boxes"] for r in results], [r["labels"] for r in results]
            for result, mask in zip(
                results, maskrcnn_inference(self._masks(features, boxes, image_shapes), labels), strict=True
            ):
                result["masks"] = mask
        return results, {}

    def _stage(
        self, stage: int, features: dict[str, Tensor], boxes: list[Tensor], shapes: Any
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, shapes)
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _masks(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: Any) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, shapes)))

    def _refine(self, stage: int, deltas: Tensor, boxes: list[Tensor], shapes: Any) -> list[Tensor]:
        """Return the boxes moved by a stage's deltas, inside their images; no gradient goes through them."""
        moved = self.coders[stage].decode(deltas.detach().float(), boxes)[:, 0]
        parts = moved.split([len(b) for b in boxes])
        return [box_ops.clip_boxes_to_image(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], shapes: Any, targets: list[Target]
    ) -> dict[str, Tensor]:
        proposals, matched, labels, _ = self.select_training_samples(proposals, targets)
        losses: dict[str, Tensor] = {}
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(features, proposals, matched, labels, shapes, targets)
        truth = [t["boxes"].to(proposals[0].dtype) for t in targets]
        classes = [t["labels"] for t in targets]
        for stage, weight in enumerate(LOSS_WEIGHTS):
            if stage:
                self.proposal_matcher = self.matchers[stage]
                matched, labels = self.assign_targets_to_proposals(proposals, truth, classes)
                self.proposal_matcher = self.matchers[0]
            logits, deltas = self._stage(stage, features, proposals, shapes)
            wanted = self._deltas_wanted(stage, proposals, matched, truth)
            scoring, regression = _box_losses(logits, deltas, torch.cat(labels), wanted)
            losses[f"loss_classifier_{stage + 1}"] = weight * scoring
            losses[f"loss_box_reg_{stage + 1}"] = weight * regression
            proposals = [_without_empty(b) for b in self._refine(stage, deltas, proposals, shapes)]
        return losses

    def _deltas_wanted(self, stage: int, boxes: list[Tensor], matched: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Return the deltas from each region to its object (N, 4); an image without objects gives any."""
        aims = [t[m] if len(t) else b for b, m, t in zip(boxes, matched, truth, strict=True)]
        return torch.cat(self.coders[stage].encode(aims, boxes))

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        shapes: Any,
        targets: list[Target],
    ) -> Tensor:
        """Return the loss of the mask head on the regions of the first stage that hold an object."""
        positive = [torch.where(part > 0)[0] for part in labels]
        boxes = [b[p] for b, p in zip(proposals, positive, strict=True)]
        chosen = [m[p] for m, p in zip(matched, positive, strict=True)]
        logits = self._masks(features, boxes, shapes)
        masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
        return maskrcnn_loss(logits, boxes, masks, classes, chosen)

    def _select(self, scores: Tensor, boxes: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image: scores above the threshold, NMS per class, the best of them."""
        results = []
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
    """Leave out boxes that refinement has shrunk to nothing: their deltas would not be finite."""
    return boxes[box_ops.remove_small_boxes(boxes, min_size=1.0)]


def _box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross entropy over all regions, and smooth L1 of the deltas of those that hold an object."""
    if not len(labels):
        return logits.sum() * 0, deltas.sum() * 0
    positive = torch.where(labels > 0)[0]
    regression = F.smooth_l1_loss(deltas[positive], wanted[positive], beta=1 / 9, reduction="sum") / len(labels)
    return F.cross_entropy(logits, labels), regression
