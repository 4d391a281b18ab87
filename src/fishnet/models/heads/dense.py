"""One-stage heads: class and box at every position of every level.

RetinaNet (arXiv 1708.02002) and FCOS (1904.01355), with torchvision's convolutions and losses. Matching, losses and
decoding run in fp32 whatever the dtype of the maps; the losses of FCOS are means over the positions of all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher
from torchvision.ops import boxes as box_ops

from fishnet.models.heads.boxes import Anchors, unlabeled_classes
from fishnet.models.heads.types import Detections, Frame, Maps, Mean, Means, Raw, Size, Target


class DenseHead(nn.Module):
    """Base class of one-stage heads: maps -> losses in training, detections otherwise.

    Args:
        towers: Maps -> `cls_logits` (B, A, classes), `bbox_regression` (B, A, 4) and further outputs of the head.
        anchors: Anchors of the pyramid, A in total.
        score: Score threshold of detections.
        nms: IoU threshold for non-maximum suppression.
        detections: Maximum number of detections per image.
        candidates: Maximum number of candidates per level before non-maximum suppression.
    """

    def __init__(
        self, towers: nn.Module, anchors: Anchors, score: float, nms: float, detections: int, candidates: int
    ) -> None:
        super().__init__()
        self.towers, self.anchors = towers, anchors
        self.score, self.nms, self.detections, self.candidates = score, nms, detections, candidates

    loss_names: tuple[str, ...] = ("classification", "bbox_regression")
    """Names of the losses."""

    def raw(self, maps: Maps) -> Raw:
        """Return the outputs of the towers, concatenated over the levels."""
        return {name: value.float() for name, value in self.towers(list(maps.values())).items()}

    def losses(self, raw: Raw, frame: Frame, targets: list[Target]) -> Means:
        """Return the losses by name."""
        levels = self.anchors.levels(frame.canvas, raw["cls_logits"].device)
        matched = [self.match(levels, target["boxes"]) for target in targets]
        every = [torch.cat(levels)] * len(targets)
        unlabeled = unlabeled_classes(targets, every, raw["cls_logits"].shape[-1])
        if unlabeled is not None:  # a logit of -10,000 has neither loss nor gradient where there is no object
            hidden = torch.stack(unlabeled) & (torch.stack(matched) < 0)[..., None]
            raw = {**raw, "cls_logits": raw["cls_logits"].masked_fill(hidden, -1e4)}
        return self.tower_losses(raw, every, matched, targets)

    def match(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """Return the index of the object matched to each anchor (A,); negative if there is none."""
        raise NotImplementedError

    def tower_losses(self, raw: Raw, anchors: list[Tensor], matched: list[Tensor], targets: list[Target]) -> Means:
        """Return the losses by name for matched anchors, as means over the images."""
        losses = self.towers.compute_loss(targets, raw, anchors, matched)  # type: ignore[operator]
        return {name: Mean(losses[name], len(targets)) for name in self.loss_names}

    def scores(self, raw: Raw) -> Tensor:
        """Return the score of every anchor and class (B, A, classes)."""
        return raw["cls_logits"].sigmoid()

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return anchors (N, 4) moved by deltas (N, 4)."""
        raise NotImplementedError

    def decode(self, raw: Raw, frame: Frame) -> list[Detections]:
        """Return the detections of each image."""
        levels = self.anchors.levels(frame.canvas, raw["cls_logits"].device)
        counts = [len(level) for level in levels]
        scores = self.scores(raw)
        return [
            self._select(score.split(counts), deltas.split(counts), levels, size)
            for score, deltas, size in zip(scores, raw["bbox_regression"], frame.sizes, strict=True)
        ]

    def _select(
        self, scores: tuple[Tensor, ...], deltas: tuple[Tensor, ...], levels: list[Tensor], size: Size
    ) -> Detections:
        """Return the detections of one image: best candidates of each level above the threshold, then NMS per class."""
        boxes, kept, labels = [], [], []
        for score, delta, anchors in zip(scores, deltas, levels, strict=True):
            place, label = torch.where(score > self.score)
            values = score[place, label]
            values, best = values.topk(min(self.candidates, len(values)))
            place, label = place[best], label[best]
            boxes.append(box_ops.clip_boxes_to_image(self.boxes(delta[place], anchors[place]), size))
            kept.append(values)
            labels.append(label)
        box, value, label = torch.cat(boxes), torch.cat(kept), torch.cat(labels)
        best = box_ops.batched_nms(box, value, label, self.nms)[: self.detections]
        return {"boxes": box[best], "labels": label[best], "scores": value[best]}


class RetinaNet(DenseHead):
    """RetinaNet: focal loss on anchors; an anchor is matched to the object with which its IoU is at least 0.5.

    The losses are means over images. `towers` is torchvision's `RetinaNetHead`.
    """

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def match(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """Return the index of the object matched to each anchor (A,)."""
        anchors = torch.cat(levels)
        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.matcher(box_ops.box_iou(boxes, anchors))

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return anchors moved by deltas."""
        return self.coder.decode_single(deltas, anchors)


class FCOS(DenseHead):
    """FCOS: distances to the four edges of the box at every position, and the center-ness of the position.

    A position is matched to the smallest object that contains it, whose center is within 1.5 strides and whose farthest
    edge is between 4 and 8 strides away (section 3 of the paper; center sampling as in its improved version, arXiv
    2006.09214).

    `towers` is torchvision's `FCOSHead`; the anchors are squares of one stride.
    """

    loss_names = ("classification", "bbox_regression", "bbox_ctrness")
    RADIUS, NEAREST, FARTHEST = 1.5, 4, 8
    coder = BoxLinearCoder(normalize_by_size=True)

    def match(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """Return the index of the object matched to each position (A,)."""
        anchors = torch.cat(levels)
        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        centers, strides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
        least, most = strides * self.NEAREST, strides * self.FARTHEST
        least[: len(levels[0])], most[-len(levels[-1]) :] = 0, torch.inf
        offsets = (centers[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
        edges = torch.cat([centers[:, None] - boxes[:, :2], boxes[:, 2:] - centers[:, None]], 2)
        farthest = edges.amax(2)
        fits = (offsets < self.RADIUS * strides[:, None]) & (edges.amin(2) > 0)
        fits &= (farthest > least[:, None]) & (farthest < most[:, None])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).expand(len(anchors), -1)
        smallest, index = torch.where(fits, areas, torch.inf).min(1)
        return torch.where(smallest.isfinite(), index, -1)

    def tower_losses(self, raw: Raw, anchors: list[Tensor], matched: list[Tensor], targets: list[Target]) -> Means:
        """Return the losses by name, as means over the matched positions."""
        losses = super().tower_losses(raw, anchors, matched, targets)
        count = sum(int((index >= 0).sum()) for index in matched)
        return {name: Mean(loss.value, count) for name, loss in losses.items()}

    def scores(self, raw: Raw) -> Tensor:
        """Return the geometric mean of class probability and center-ness (B, A, classes)."""
        return (raw["cls_logits"].sigmoid() * raw["bbox_ctrness"].sigmoid()).sqrt()

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes whose edges are `deltas` strides away from the centers of the anchors."""
        return self.coder.decode(deltas, anchors)
