"""Plans of the seven detectors, and the heads built from them.

torchvision's heads of Faster R-CNN are designed for large backbones: 13.9 M multiply-adds per region in the box head
alone. Presets give smaller trunks heads of matching size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.poolers import initLevelMapper

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.heads.boxes import Anchors
from fishnet.models.heads.cascade import IOUS, CascadePredictor, CascadeRegions
from fishnet.models.heads.dense import FCOS, DenseHead, RetinaNet
from fishnet.models.heads.region import BoxPredictor, ProposalNetwork, Regions, TwoStageHead
from fishnet.models.heads.registry import HeadKind, register_head
from fishnet.models.heads.roi_align import MultiLevelRoIAlign
from fishnet.models.pyramid import Extra, Neck, Pyramid
from fishnet.models.trunk import Trunk

Detector = Literal[
    "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "cascade_rcnn", "cascade_mask_rcnn"
]
DETECTORS: tuple[str, ...] = get_args(Detector)
WITH_MASKS = ("mask_rcnn", "cascade_mask_rcnn")
CASCADES = ("cascade_rcnn", "cascade_mask_rcnn")
ONE_STAGE = ("retinanet", "fcos")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a region head and its neck, and limits of its detections."""

    width: int = 256
    """Channels of the pyramid's maps."""
    box_width: int = 1024
    """Units of each of the two layers of the box head."""
    mask_width: int = 256
    """Channels of the mask head's convolutions."""
    mask_layers: int = 4
    """Convolutions of the mask head before its upsampling."""
    keypoint_width: int = 512
    """Channels of the eight convolutions of the keypoint head."""
    tower_layers: int = 4
    """Convolutions per tower of RetinaNet and FCOS."""
    proposals: int = 1000
    """Regions per image passed from the first to the second stage (twice as many in training).

    In one-stage heads, candidates per level before non-maximum suppression.
    """
    samples: int = 512
    """Regions per image sampled to train the second stage."""
    anchor_scale: float = 8.0
    """Side of the smallest anchor of a level, in strides of the level (RetinaNet: half of this value)."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Aspect ratios of the anchors, height / width."""
    score: float = 0.05
    """Score threshold of detections."""
    nms: float = 0.5
    """IoU threshold for non-maximum suppression (FCOS: 0.6)."""
    detections: int = 100
    """Maximum number of detections per image."""


PRESETS: dict[str, Sizes] = {
    "nano": Sizes(64, 128, 64, 2, 64, 2, 300, 64),
    "tiny": Sizes(96, 256, 96, 2, 128, 2, 500, 128),
    "small": Sizes(128, 512, 128, 4, 256, 4, 1000, 256),
    "base": Sizes(),
}
"""Sizes by preset, for trunks of increasing size."""
DIFFERENT_SIZES: dict[str, dict[str, object]] = {"fcos": {"nms": 0.6}}
"""Sizes that the paper of a detector sets differently, for every preset."""
_PRESET_LIMITS = (("nano", 1e6), ("tiny", 6e6), ("small", 15e6))
"""Presets that `auto` selects for trunks with fewer parameters than the limit; above the last one, `base`."""


@dataclass(frozen=True)
class RegionPlan:
    """Description of a region head and its neck, from which they are built."""

    kind: str = "mask_rcnn"
    """One of `DETECTORS`."""
    num_classes: int = 1
    """Number of classes, without background."""
    neck: Neck = "fpn"
    """Feature pyramid, or 1x1 projections only."""
    norm_relu: bool | None = None
    """Whether to put BatchNorm and ReLU in front of the neck; None does so for pre-activation trunks."""
    preset: str = "auto"
    """Sizes of neck and head: nano, tiny, small, base, or auto to select by the number of parameters of the trunk."""
    sizes: Mapping[str, object] = field(default_factory=dict)
    """Values that replace those of the preset, by field of `Sizes`; None keeps that of the preset."""
    keypoints: int = 0
    """Number of keypoints per object (keypoint_rcnn)."""


def resolve_sizes(plan: RegionPlan, trunk: Trunk) -> Sizes:
    """Return the sizes of neck and head for a trunk.

    Raises:
        UsageError: The preset or a field is unknown, or a size is not above 0.
    """
    preset = plan.preset
    if preset == "auto":
        parameters = sum(parameter.numel() for parameter in trunk.parameters())
        preset = next((name for name, limit in _PRESET_LIMITS if parameters < limit), "base")
    if preset not in PRESETS:
        raise UsageError(f"heads.preset must be auto or one of {', '.join(PRESETS)}, not {preset!r}")
    given: dict[str, Any] = {key: value for key, value in plan.sizes.items() if value is not None}
    known = [entry.name for entry in fields(Sizes)]
    for key in given:
        if key not in known:
            raise UsageError(f"heads.{key} is unknown.{did_you_mean(key, known)} Known are {', '.join(known)}")
    if "aspect_ratios" in given:
        given["aspect_ratios"] = tuple(given["aspect_ratios"])
    sizes = replace(PRESETS[preset], **{**DIFFERENT_SIZES.get(plan.kind, {}), **given})
    for name in known:
        value = getattr(sizes, name)
        least = min(value if isinstance(value, tuple) else (value,))
        if least < 0 or (least == 0 and name != "score"):  # a score of 0 keeps every detection
            raise UsageError(f"heads.{name} must be above 0, not {value}")
    return sizes


def check_region_plan(plan: RegionPlan) -> None:
    """Raise UsageError for a plan from which no head can be built."""
    if plan.kind == "keypoint_rcnn" and plan.keypoints < 1:
        raise UsageError("keypoint_rcnn needs data with keypoints: no category defines any; choose another detector")


def build_region_head(plan: RegionPlan, trunk: Trunk) -> tuple[Pyramid, TwoStageHead | DenseHead]:
    """Build the neck and the head of a plan for a trunk.

    Raises:
        UsageError: A size or name in the plan is invalid.
    """
    sizes = resolve_sizes(plan, trunk)
    dense = plan.kind in ONE_STAGE
    extra: Extra = "p6p7" if dense else "pool"
    pyramid = Pyramid(trunk, sizes.width, plan.neck, plan.norm_relu, extra, finest=int(dense))
    return pyramid, _HEADS.get(plan.kind, _two_stages)(pyramid, sizes, plan)


def _two_stages(pyramid: Pyramid, sizes: Sizes, plan: RegionPlan) -> TwoStageHead:
    sides: list[tuple[float, ...]] = [(sizes.anchor_scale * stride,) for stride in pyramid.strides]
    anchors = Anchors(sides, sizes.aspect_ratios, pyramid.strides)
    towers = RPNHead(sizes.width, anchors.num_anchors_per_location()[0])
    parts: dict[str, nn.Module] = {}
    if plan.kind in WITH_MASKS:
        parts = _mask_parts(pyramid, sizes, plan.num_classes)
    elif plan.kind == "keypoint_rcnn":
        parts = _keypoint_parts(pyramid, sizes, plan.keypoints)
    box_head, predictor = _box_parts(plan, sizes)
    regions = (CascadeRegions if plan.kind in CASCADES else Regions)(
        _pool(pyramid, 7),
        box_head,
        predictor,
        samples=sizes.samples,
        score=sizes.score,
        nms=sizes.nms,
        detections=sizes.detections,
        **parts,
    )
    return TwoStageHead(ProposalNetwork(anchors, towers, sizes.proposals), regions, pyramid.names)


def _pool(pyramid: Pyramid, size: int) -> MultiLevelRoIAlign:
    """Return the RoI pooling from the levels of the trunk; the size of a region determines its level.

    torchvision derives the strides from the first image that it gets and keeps them; they are wrong if that image is
    small and much of its batch is padding. Here the known strides are set instead.
    """
    names = [name for name in pyramid.names if name.isdigit()]
    pool = MultiLevelRoIAlign(names, size, sampling_ratio=2)
    strides = pyramid.strides[: len(names)]
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)
    return pool


def _box_parts(plan: RegionPlan, sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Return the box head and the box predictor; for a cascade, lists with one of each per stage."""
    classes = plan.num_classes + 1
    if plan.kind in CASCADES:
        heads = nn.ModuleList(_box_head(sizes) for _ in IOUS)
        return heads, nn.ModuleList(CascadePredictor(sizes.box_width, classes) for _ in IOUS)
    predictor = BoxPredictor(sizes.box_width, classes)
    return _box_head(sizes), predictor


def _box_head(sizes: Sizes) -> TwoMLPHead:
    return TwoMLPHead(sizes.width * 49, sizes.box_width)


def _mask_parts(pyramid: Pyramid, sizes: Sizes, num_classes: int) -> dict[str, nn.Module]:
    return {
        "mask_roi_pool": _pool(pyramid, 14),
        "mask_head": MaskRCNNHeads(sizes.width, (sizes.mask_width,) * sizes.mask_layers, 1),
        "mask_predictor": MaskRCNNPredictor(sizes.mask_width, sizes.mask_width, num_classes + 1),
    }


def _keypoint_parts(pyramid: Pyramid, sizes: Sizes, keypoints: int) -> dict[str, nn.Module]:
    return {
        "keypoint_roi_pool": _pool(pyramid, 14),
        "keypoint_head": KeypointRCNNHeads(sizes.width, (sizes.keypoint_width,) * 8),
        "keypoint_predictor": KeypointRCNNPredictor(sizes.keypoint_width, keypoints),
    }


def _retinanet(pyramid: Pyramid, sizes: Sizes, plan: RegionPlan) -> DenseHead:
    # three sizes per level, a third of an octave apart (section 4 of the paper)
    sides = [
        tuple(0.5 * sizes.anchor_scale * stride * 2 ** (third / 3) for third in range(3)) for stride in pyramid.strides
    ]
    anchors = Anchors(sides, sizes.aspect_ratios, pyramid.strides)
    towers = RetinaNetHead(sizes.width, anchors.num_anchors_per_location()[0], plan.num_classes)
    for tower in (towers.classification_head, towers.regression_head):
        tower.conv = tower.conv[: sizes.tower_layers]
    return _dense(RetinaNet, towers, anchors, sizes)


def _fcos(pyramid: Pyramid, sizes: Sizes, plan: RegionPlan) -> DenseHead:
    if sizes.width % 32:
        raise UsageError(f"heads.width must be a multiple of 32 for FCOS (32 groups of channels), not {sizes.width}")
    anchors = Anchors([(stride,) for stride in pyramid.strides], (1.0,), pyramid.strides)
    towers = FCOSHead(sizes.width, 1, plan.num_classes, sizes.tower_layers)
    return _dense(FCOS, towers, anchors, sizes)


def _dense(kind: type[DenseHead], towers: nn.Module, anchors: Anchors, sizes: Sizes) -> DenseHead:
    return kind(towers, anchors, sizes.score, sizes.nms, sizes.detections, candidates=sizes.proposals)


_HEADS: dict[str, Callable[[Pyramid, Sizes, RegionPlan], TwoStageHead | DenseHead]] = {
    "retinanet": _retinanet,
    "fcos": _fcos,
}


for _name in DETECTORS:
    register_head(_name, HeadKind(RegionPlan, build_region_head, check_region_plan))
