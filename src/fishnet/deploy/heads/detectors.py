"""Export of detectors: dense graph, graphs of the region stage, and the comparison of objects."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from fishnet.deploy.difference import TOLERANCES, Difference, largest
from fishnet.deploy.heads.registry import HeadExport, HeadT, Part, register_export
from fishnet.files import Json
from fishnet.models.heads.cascade import DELTA_WEIGHTS, CascadeRegions
from fishnet.models.heads.dense import FCOS, DenseHead
from fishnet.models.heads.region import Regions, TwoStageHead
from fishnet.models.heads.roi_align import MultiLevelRoIAlign
from fishnet.models.heads.types import Raw, Size
from fishnet.models.network import Network
from fishnet.models.pyramid import Pyramid
from fishnet.runner.detectors import R_CNN_WEIGHTS

STRONG = 0.5
"""Minimum score of the objects that are compared in reduced precision."""
Objects = Mapping[str, Tensor]
"""Detections of an image."""


class DetectorExport(HeadExport[HeadT, Objects]):
    """Detectors of any kind."""

    def compare(self, found: Difference, wanted: Objects, got: Objects, spec: Json, precision: str) -> None:
        """Match the objects and add the differences."""
        compare_objects(found, wanted, got, precision, least_score(spec, wanted["scores"]))


class OneStageExport(DetectorExport[DenseHead]):
    """RetinaNet and FCOS."""

    def spec(self, head: DenseHead, classes: list[str]) -> Json:
        """Return the entry of export.json."""
        return {
            "type": "one_stage",
            "kind": "fcos" if isinstance(head, FCOS) else "retinanet",
            "classes": classes,
            "anchors": [cells.tolist() for cells in head.anchors.cell_anchors],
            "strides": list(head.anchors.strides),
            "score": head.score,
            "nms": head.nms,
            "detections": head.detections,
            "candidates": head.candidates,
        }


class TwoStageExport(DetectorExport[TwoStageHead]):
    """Faster, Mask and Keypoint R-CNN, and cascades; regions are pooled outside of the graphs."""

    def spec(self, head: TwoStageHead, classes: list[str]) -> Json:
        """Return the entry of export.json."""
        proposals, regions = head.proposals, head.regions
        cascade = isinstance(regions, CascadeRegions)
        pools = {"box": regions.box_roi_pool, "mask": regions.mask_roi_pool, "keypoint": regions.keypoint_roi_pool}
        return {
            "type": "two_stage",
            "classes": classes,
            "anchors": [cells.tolist() for cells in proposals.anchors.cell_anchors],
            "strides": list(proposals.anchors.strides),
            "levels": list(head.names),
            "proposals": proposals._post_nms_top_n["testing"],
            "proposal_nms": proposals.nms_thresh,
            "proposal_side": proposals.min_size,
            "score": regions.score_thresh,
            "nms": regions.nms_thresh,
            "detections": regions.detections_per_img,
            "pools": {name: _pooling(pool) for name, pool in pools.items() if pool is not None},
            "stages": [list(weights) for weights in DELTA_WEIGHTS] if cascade else [list(R_CNN_WEIGHTS)],
            "cascade": cascade,
        }

    def outputs(self, head: TwoStageHead, raw: Raw, size: Size) -> Raw:
        """Return the outputs without the maps that are not used for pooling; maps are channels-last."""
        wanted = {f"map_{name}" for name in head.regions.box_roi_pool.featmap_names}
        return {
            name: value.permute(0, 2, 3, 1).float() if name in wanted else value
            for name, value in raw.items()
            if name in wanted or not name.startswith("map_")
        }

    def parts(self, network: Network, name: str) -> dict[str, Part]:
        """Return the graphs of box, mask and keypoint."""
        head, neck = network.heads[name], network.necks[name]
        assert isinstance(head, TwoStageHead)
        assert isinstance(neck, Pyramid)
        return region_parts(head.regions, neck.out_channels)


class RegionGraph(nn.Module):
    """Pooled maps of regions (R, S, S, C) -> outputs by name, in fp32.

    Args:
        head: Maps (R, C, S, S) -> features.
        predictor: Features -> outputs.
        names: Names of the outputs.
    """

    def __init__(self, head: nn.Module, predictor: nn.Module, *names: str) -> None:
        super().__init__()
        self.head, self.predictor, self.names = head, predictor, names

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        dtype = next(self.head.parameters()).dtype
        outputs = self.predictor(self.head(pooled.permute(0, 3, 1, 2).to(dtype)))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: value.float() for name, value in zip(self.names, outputs, strict=True)}


def region_parts(regions: Regions, channels: int) -> dict[str, Part]:
    """Return the graphs of the region stage by name."""

    def part(graph: RegionGraph, pool: MultiLevelRoIAlign) -> Part:
        return Part(graph, "pooled", torch.zeros(3, *pool.output_size, channels))

    found: dict[str, Part] = {}
    if isinstance(regions, CascadeRegions):
        for stage in range(len(DELTA_WEIGHTS)):
            graph = RegionGraph(regions.box_head[stage], regions.box_predictor[stage], "logits", "deltas")
            found[f"box{stage}"] = part(graph, regions.box_roi_pool)
    else:
        found["box"] = part(
            RegionGraph(regions.box_head, regions.box_predictor, "logits", "deltas"), regions.box_roi_pool
        )
    if regions.has_mask():
        found["mask"] = part(RegionGraph(regions.mask_head, regions.mask_predictor, "logits"), regions.mask_roi_pool)
    if regions.has_keypoint():
        graph = RegionGraph(regions.keypoint_head, regions.keypoint_predictor, "logits")
        found["keypoint"] = part(graph, regions.keypoint_roi_pool)
    return found


def _pooling(pool: MultiLevelRoIAlign) -> Json:
    assert pool.scales is not None
    return {
        "levels": list(pool.featmap_names),
        "strides": [round(1 / scale) for scale in pool.scales],
        "size": pool.output_size[0],
        "samples": pool.sampling_ratio,
        "canonical_size": pool.canonical_scale,
        "canonical_level": pool.canonical_level,
    }


def least_score(spec: Json, scores: Tensor) -> float:
    """Return the score that an object must exceed to be detected, given the scores of all detected objects.

    It is the threshold of the detector, or the lowest score if the detector returns its maximum number of objects.
    """
    full = len(scores) >= int(spec["detections"])
    return float(scores.min()) if full else float(spec["score"])


def compare_objects(
    found: Difference, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], precision: str, least: float
) -> None:
    """Match the objects of two predictions by class and IoU, and add the differences of matched objects.

    Args:
        found: Differences so far; changed in place.
        wanted: Objects that PyTorch detects.
        got: Objects that the exported network detects.
        precision: Numerical precision of the exported network.
        least: Score that an object must exceed to be detected.
    """
    found.has_masks |= "masks" in wanted
    overlap_needed = TOLERANCES[precision].overlap
    # by rounding, both may disagree on objects with scores near the least one
    certain = least + 2e-3 if precision == "fp32" else STRONG
    overlap = box_iou(wanted["boxes"], got["boxes"]) * (wanted["labels"][:, None] == got["labels"])
    extra = got["scores"] > certain
    for place in (wanted["scores"] > certain).nonzero().flatten().tolist():
        found.objects += 1
        if not overlap.shape[1] or float(overlap[place].max()) < overlap_needed:
            continue
        other = int(overlap[place].argmax())
        overlap[place, :] = overlap[:, other] = 0
        extra[other] = False
        found.matched += 1

        def difference(name: str, one: int = place, two: int = other) -> float:
            return float((wanted[name][one] - got[name][two]).abs().max()) if name in wanted else 0.0

        found.score = largest(found.score, difference("scores"))
        found.box = largest(found.box, difference("boxes"))
        found.mask = largest(found.mask, difference("masks"))
        if "keypoints" in wanted:
            found.add_keypoints(wanted["keypoints"][place].numpy(), got["keypoints"][other].numpy())
    # an extra object has no match in PyTorch, not even one with a lower score
    extra &= ~(overlap >= overlap_needed).any(0)
    found.objects += int(extra.sum())


register_export(DenseHead, OneStageExport())
register_export(TwoStageHead, TwoStageExport())
