"""Two-stage heads: region proposals from every level of a pyramid, then boxes, masks and keypoints of each region.

Faster R-CNN (arXiv 1506.01497), Mask R-CNN and Keypoint R-CNN (1703.06870), built on torchvision. Matching, sampling,
losses and decoding run in fp32 whatever the dtype of the maps; losses are means over the regions of all processes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    keypointrcnn_inference,
    keypoints_to_heatmap,
    maskrcnn_inference,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import roi_align

from fishnet.models.heads.boxes import (
    Anchors,
    TakeAll,
    drawn,
    generator_of,
    inside_crowds,
    unknown_classes,
    unlabeled_classes,
)
from fishnet.models.heads.roi_align import MultiLevelRoIAlign
from fishnet.models.heads.types import Detections, Frame, Maps, Mean, Means, Raw, Size, Target

POSITIVE_PROPOSALS, POSITIVE_REGIONS = 0.5, 0.25
"""Maximum fraction of positive regions among those sampled for training, in the first and in the second stage."""


class ProposalNetwork(RegionProposalNetwork):
    """Region proposal network: raw outputs of every level -> regions that may contain an object.

    Args:
        anchors: Anchors of the pyramid.
        head: Maps -> objectness and box deltas per level.
        proposals: Number of regions per image passed to the second stage; twice as many in training.
    """

    DRAWS = 256
    """Anchors per image sampled for the losses."""

    def __init__(self, anchors: Anchors, head: nn.Module, proposals: int) -> None:
        counts = {"training": 2 * proposals, "testing": proposals}
        super().__init__(anchors, head, 0.7, 0.3, self.DRAWS, POSITIVE_PROPOSALS, counts, counts, nms_thresh=0.7)
        self.anchors = anchors
        self.fg_bg_sampler = TakeAll()

    def forward(
        self,
        objectness: list[Tensor],
        deltas: list[Tensor],
        frame: Frame,
        targets: list[Target] | None = None,
    ) -> tuple[list[Tensor], Means]:
        """Return regions (N, 4) of each image, and the losses (empty without targets).

        Args:
            objectness: Scores of each level (B, A, H, W), before the sigmoid.
            deltas: Box deltas of each level (B, 4 A, H, W).
            frame: Sizes of the batch and of its images.
            targets: Ground truth of each image, labels from 1.
        """
        counts = [level[0].numel() for level in objectness]
        anchors = [torch.cat(self.anchors.levels(frame.canvas, objectness[0].device))] * len(frame.sizes)
        scores, moves = concat_box_prediction_layers(objectness, deltas)
        boxes = self.box_coder.decode(moves.detach(), anchors).view(len(frame.sizes), -1, 4)
        regions, _ = self.filter_proposals(boxes, scores, frame.sizes, counts)
        return regions, {} if targets is None else self._losses(scores, moves, anchors, targets)

    def _losses(self, scores: Tensor, moves: Tensor, anchors: list[Tensor], targets: list[Target]) -> Means:
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        unknown = unknown_classes(targets)
        if unknown is not None:  # background regions may contain objects of classes that were not annotated
            labels = [part.where((part != 0) | ~row.any(), -1) for part, row in zip(labels, unknown, strict=True)]
        for place, target in enumerate(targets):
            if "crowds" in target:
                inside = inside_crowds(target, anchors[place]).any(1)
                labels[place] = labels[place].where((labels[place] != 0) | ~inside, -1)
        labels = [
            drawn(part, self.DRAWS, POSITIVE_PROPOSALS, generator_of(target, 0))
            for part, target in zip(labels, targets, strict=True)
        ]
        count = sum(int((part >= 0).sum()) for part in labels)
        if not count:
            return {"loss_objectness": Mean(scores.sum() * 0, 0), "loss_rpn_box_reg": Mean(moves.sum() * 0, 0)}
        scoring, regression = self.compute_loss(scores, moves, labels, self.box_coder.encode(matched, anchors))
        return {"loss_objectness": Mean(scoring, count), "loss_rpn_box_reg": Mean(regression, count)}


class BoxPredictor(FastRCNNPredictor):
    """Features (N, C) -> class logits (N, classes + 1) and box deltas per class (N, 4 (classes + 1)), in fp32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and box deltas."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class Regions(RoIHeads):
    """Second stage: boxes of all regions, masks and keypoints of those that contain an object; built on torchvision.

    Labels count from 1 here; 0 is the background.

    Args:
        box_pool: Maps and regions -> features of each region.
        box_head: Features -> vector.
        box_predictor: Vector -> class logits and box deltas, in fp32.
        samples: Number of regions per image sampled for training.
        score: Score threshold of detections.
        nms: IoU threshold for non-maximum suppression.
        detections: Maximum number of detections per image.
        parts: Mask and keypoint modules by torchvision's names, such as `mask_roi_pool`.
    """

    def __init__(
        self,
        box_pool: MultiLevelRoIAlign,
        box_head: nn.Module,
        box_predictor: nn.Module,
        samples: int,
        score: float,
        nms: float,
        detections: int,
        **parts: nn.Module,
    ) -> None:
        super().__init__(
            box_pool,
            box_head,
            box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=samples,
            positive_fraction=POSITIVE_REGIONS,
            bbox_reg_weights=None,
            score_thresh=score,
            nms_thresh=nms,
            detections_per_img=detections,
            **parts,
        )
        self.samples = samples

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        return "loss_classifier", "loss_box_reg", *self.inner_names

    @property
    def inner_names(self) -> tuple[str, ...]:
        """Names of the losses of masks and keypoints."""
        parts = {"loss_mask": self.has_mask(), "loss_keypoint": self.has_keypoint()}
        return tuple(name for name, present in parts.items() if present)

    def losses(self, maps: Maps, regions: list[Tensor], sizes: list[Size], targets: list[Target]) -> Means:
        """Return the losses of boxes, masks and keypoints for regions (N, 4) of each image."""
        regions, matched, labels, truth = self.select(regions, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, regions, sizes)))
        wanted = list(self.box_coder.encode(truth, regions))
        logits = without_unknown(logits, labels, regions, targets)
        scoring, regression = fastrcnn_loss(logits, deltas, labels, wanted)
        count = sum(map(len, labels))
        losses = {"loss_classifier": Mean(scoring, count), "loss_box_reg": Mean(regression, count)}
        return losses | self.inner_losses(maps, regions, matched, labels, sizes, targets)

    def select(
        self, regions: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Return the sampled regions of each image: boxes, index of the matched object, label, box of that object.

        The ground-truth boxes are added to the regions before sampling.
        """
        boxes, classes = [t["boxes"].float() for t in targets], [t["labels"] for t in targets]
        regions = self.add_gt_proposals(regions, boxes)
        matched, labels = self.assign_targets_to_proposals(regions, boxes, classes)
        chosen = [
            torch.where(drawn(part, self.samples, POSITIVE_REGIONS, generator_of(target, 1)) >= 0)[0]
            for part, target in zip(labels, targets, strict=True)
        ]

        def pick(values: list[Tensor]) -> list[Tensor]:
            return [value[places] for value, places in zip(values, chosen, strict=True)]

        regions, matched, labels = pick(regions), pick(matched), pick(labels)
        return regions, matched, labels, objects_of(boxes, matched, regions)

    def inner_losses(
        self,
        maps: Maps,
        regions: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        sizes: list[Size],
        targets: list[Target],
    ) -> Means:
        """Return the losses of masks and keypoints over the regions that contain an object."""
        positive = [torch.where(part > 0)[0] for part in labels]
        boxes = [box[places] for box, places in zip(regions, positive, strict=True)]
        objects = [index[places] for index, places in zip(matched, positive, strict=True)]
        losses: Means = {}
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(maps, boxes, objects, sizes, targets)
        if self.has_keypoint():
            points = [t["keypoints"][index] for t, index in zip(targets, objects, strict=True)]
            losses["loss_keypoint"] = keypoint_loss(self.keypoint_logits(maps, boxes, sizes), boxes, points)
        return losses

    def _mask_loss(
        self, maps: Maps, boxes: list[Tensor], objects: list[Tensor], sizes: list[Size], targets: list[Target]
    ) -> Mean:
        """Return the loss of the masks of regions (N, 4) over those whose object (N,) has a known outline."""
        known = [outlined_of(target)[index] for target, index in zip(targets, objects, strict=True)]
        boxes = [box[kept] for box, kept in zip(boxes, known, strict=True)]
        objects = [index[kept] for index, kept in zip(objects, known, strict=True)]
        classes = [t["labels"][index] for t, index in zip(targets, objects, strict=True)]
        masks = [t["masks"] for t in targets]
        return mask_loss(self.mask_logits(maps, boxes, sizes), boxes, classes, masks, objects)

    def detect(self, maps: Maps, regions: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Return the detections of each image."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, regions, sizes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, regions, sizes)
        found: list[Detections] = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
        self.add_inner(found, maps, sizes)
        return found

    def add_inner(self, found: list[Detections], maps: Maps, sizes: list[Size]) -> None:
        """Add masks and keypoints to detections, in place."""
        boxes = [one["boxes"] for one in found]
        if self.has_mask():
            logits = self.mask_logits(maps, boxes, sizes)
            for one, mask in zip(found, maskrcnn_inference(logits, [f["labels"] for f in found]), strict=True):
                one["masks"] = mask
        if self.has_keypoint():
            places, scores = keypointrcnn_inference(self.keypoint_logits(maps, boxes, sizes), boxes)
            for one, place, score in zip(found, places, scores, strict=True):
                one["keypoints"], one["keypoints_scores"] = place, score

    def mask_logits(self, maps: Maps, boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        """Return mask logits (N, classes + 1, 28, 28) of the regions of all images, in fp32."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes, sizes))).float()

    def keypoint_logits(self, maps: Maps, boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        """Return keypoint heat maps (N, K, 56, 56) of the regions of all images, in fp32."""
        return self.keypoint_predictor(self.keypoint_head(self.keypoint_roi_pool(maps, boxes, sizes))).float()


def without_unknown(logits: Tensor, labels: list[Tensor], regions: list[Tensor], targets: list[Target]) -> Tensor:
    """Return class logits in which background regions are no negatives for classes that were not annotated, or that
    have a crowd there.

    Args:
        logits: Logits (N, classes + 1) of the regions of all images.
        labels: Labels (N_i,) of the regions of each image; 0 is the background.
        regions: Regions (N_i, 4) of each image.
        targets: Ground truth of each image.
    """
    unlabeled = unlabeled_classes(targets, regions, logits.shape[1] - 1)
    if unlabeled is None:
        return logits
    hidden = F.pad(torch.cat(unlabeled) & (torch.cat(labels) == 0)[:, None], (1, 0))
    return logits.masked_fill(hidden, -torch.inf)


def outlined_of(target: Target) -> Tensor:
    """Return which objects of an image have a known outline, bool (N,)."""
    found = target.get("outlined")
    return torch.ones_like(target["labels"], dtype=torch.bool) if found is None else found


def objects_of(boxes: list[Tensor], matched: list[Tensor], regions: list[Tensor]) -> list[Tensor]:
    """Return the box of the object matched to each region; in an image without objects, the region itself."""
    return [box[index] if len(box) else own for box, index, own in zip(boxes, matched, regions, strict=True)]


def mask_loss(
    logits: Tensor, boxes: list[Tensor], classes: list[Tensor], masks: list[Tensor], objects: list[Tensor]
) -> Mean:
    """Return the mean binary cross entropy of the masks of regions, each of the class of its object.

    Args:
        logits: Masks (N, classes + 1, S, S) of the regions of all images.
        boxes: Regions (N_i, 4) of each image.
        classes: Class (N_i,) of the object matched to each region.
        masks: Masks (M_i, H, W) of the objects of each image.
        objects: Index (N_i,) of the object matched to each region.
    """
    chosen = torch.cat(classes)
    if not len(chosen):
        return Mean(logits.sum() * 0, 0)
    wanted = [mask_targets(*one, logits.shape[-1]) for one in zip(boxes, masks, objects, strict=True)]
    own = logits[torch.arange(len(chosen), device=logits.device), chosen]
    return Mean(F.binary_cross_entropy_with_logits(own, torch.cat(wanted)), len(chosen))


def mask_targets(boxes: Tensor, masks: Tensor, objects: Tensor, side: int) -> Tensor:
    """Return the masks of objects in the cells of regions, from 0 to 1, float (N, side, side).

    As in Detectron2 a cell shows what lies in it. torchvision's targets (`aligned=False`) show what lies half a pixel
    to the lower right, so that its masks are found as much too far to the upper left.

    Args:
        boxes: Regions (N, 4).
        masks: Masks (M, H, W) of the objects of the image.
        objects: Index (N,) of the object matched to each region.
        side: Number of cells per side.
    """
    regions = torch.cat([objects[:, None].to(boxes), boxes], 1)
    return roi_align(masks[:, None].to(boxes), regions, side, aligned=True)[:, 0]


def keypoint_loss(logits: Tensor, boxes: list[Tensor], points: list[Tensor]) -> Mean:
    """Return the mean cross entropy of the position of each visible keypoint in the heat map of its region.

    Args:
        logits: Heat maps (N, K, S, S) of the regions of all images.
        boxes: Regions (N_i, 4) of each image.
        points: Keypoints (N_i, K, 3) of the object matched to each region.
    """
    side = logits.shape[-1]
    places, visible = keypoints_to_heatmap(torch.cat(points), torch.cat(boxes), side)
    kept = torch.where(visible.flatten())[0]
    scores = logits.reshape(-1, side * side)[kept]  # not `view`: the maps are in channels-last memory order
    loss = F.cross_entropy(scores, places.flatten()[kept], reduction="sum") / max(1, len(kept))
    return Mean(loss, len(kept))


class TwoStageHead(nn.Module):
    """Two-stage head: maps -> losses in training, detections otherwise.

    Args:
        proposals: First stage, raw outputs -> regions.
        regions: Second stage, maps and regions -> detections.
        names: Names of the maps, the finest first.
    """

    def __init__(self, proposals: ProposalNetwork, regions: Regions, names: list[str]) -> None:
        super().__init__()
        self.proposals, self.regions, self.names = proposals, regions, names

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        return "loss_objectness", "loss_rpn_box_reg", *self.regions.loss_names

    def raw(self, maps: Maps) -> Raw:
        """Return objectness and box deltas of every level, and the maps that region features are pooled from."""
        objectness, deltas = self.proposals.head(list(maps.values()))
        outputs: Raw = {}
        for name, score, delta in zip(self.names, objectness, deltas, strict=True):
            outputs |= {f"objectness_{name}": score.float(), f"deltas_{name}": delta.float()}
        return outputs | {f"map_{name}": maps[name] for name in self.names}

    def losses(self, raw: Raw, frame: Frame, targets: list[Target]) -> Means:
        """Return the losses of both stages."""
        counted: list[Target] = [{**target, "labels": target["labels"] + 1} for target in targets]
        regions, losses = self.proposals(*self._levels(raw), frame, counted)
        return losses | self.regions.losses(self._maps(raw), regions, frame.sizes, counted)

    def decode(self, raw: Raw, frame: Frame) -> list[Detections]:
        """Return the detections of each image."""
        regions, _ = self.proposals(*self._levels(raw), frame)
        found = self.regions.detect(self._maps(raw), regions, frame.sizes)
        return [{**one, "labels": one["labels"] - 1} for one in found]

    def _levels(self, raw: Raw) -> tuple[list[Tensor], list[Tensor]]:
        return [raw[f"objectness_{name}"] for name in self.names], [raw[f"deltas_{name}"] for name in self.names]

    def _maps(self, raw: Raw) -> Maps:
        return OrderedDict((name, raw[f"map_{name}"]) for name in self.names)
