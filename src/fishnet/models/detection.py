"""Detectors: torchvision's heads on a pyramid, behind one form of input and output.

Faster R-CNN (arXiv 1506.01497), Mask R-CNN (1703.06870), Keypoint R-CNN (ibid.), RetinaNet (1708.02002), FCOS
(1904.01355), Cascade R-CNN with and without masks (1712.00726). The stock heads are made for large backbones: 13.9 M
multiply-adds per region in the box head alone. Presets give smaller trunks heads of their own size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.cascade import CascadePredictor, CascadeRoIHeads
from fishnet.models.norms import apply_norm_policy
from fishnet.models.pyramid import Extra, Neck, Pyramid, Taps, Trunk, build_trunk

Detector = Literal[
    "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "cascade_rcnn", "cascade_mask_rcnn"
]
DETECTORS: tuple[str, ...] = get_args(Detector)
WITH_MASKS = ("mask_rcnn", "cascade_mask_rcnn")
ONE_STAGE = ("retinanet", "fcos")

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Heads:
    """Sizes of a detector's neck and heads."""

    width: int = 256
    """Channels of the pyramid's maps."""
    box_width: int = 1024
    """Units of the two layers of the box head."""
    mask_width: int = 256
    """Channels of the mask head's convolutions."""
    mask_layers: int = 4
    """Convolutions of the mask head before its up-sampling."""
    keypoint_width: int = 512
    """Channels of the keypoint head's eight convolutions."""
    tower_layers: int = 4
    """Convolutions of the towers of RetinaNet and FCOS."""
    proposals: int = 1000
    """Regions per image that the first stage hands on (twice as many in training)."""
    samples: int = 512
    """Regions per image that the second stage is trained on."""
    anchor_scale: float = 8.0
    """Side of the smallest anchor of a level, in strides of the level (RetinaNet: half of it)."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    score: float = 0.05
    """Smallest score of a detection."""
    nms: float = 0.5
    """Overlap above which the weaker of two detections of one class falls away."""
    detections: int = 100
    """Most detections per image."""


PRESETS: dict[str, Heads] = {
    "nano": Heads(64, 128, 64, 2, 64, 2, 300, 64),
    "tiny": Heads(96, 256, 96, 2, 128, 2, 500, 128),
    "small": Heads(128, 512, 128, 4, 256, 4, 1000, 256),
    "base": Heads(),
}
"""Heads by size of the trunk."""
_PRESET_LIMITS = (("nano", 1e6), ("tiny", 6e6), ("small", 15e6))


@dataclass(frozen=True)
class DetectorPlan:
    """Everything that builds a detector again; it is written into the model's card."""

    detector: str = "mask_rcnn"
    """One of `DETECTORS`."""
    taps: Taps = "head"
    """Stages of a fish that make the pyramid."""
    neck: Neck = "fpn"
    """Feature pyramid, or 1x1 projections only."""
    norm_relu: bool | None = None
    """BatchNorm and ReLU in front of the neck; nothing: where the trunk's maps are raw sums."""
    group_norm: bool = False
    """Group norms in place of all BatchNorms."""
    preset: str = "auto"
    """Sizes of neck and heads: nano, tiny, small, base, or by the size of the trunk."""
    heads: dict[str, Any] | None = None
    """Sizes that differ from the preset, by field of `Heads`."""
    keypoints: int = 0
    """Number of keypoints per object (keypoint_rcnn)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means, for images in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorPlan:
        """Return the plan of a card."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"a detector has no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def resolve_heads(preset: str, trunk: Trunk, changes: dict[str, Any] | None = None) -> Heads:
    """Return the sizes of neck and heads for a trunk.

    Raises:
        UsageError: Unknown preset or field.
    """
    if preset == "auto":
        size = sum(parameter.numel() for parameter in trunk.parameters())
        preset = next((name for name, limit in _PRESET_LIMITS if size < limit), "base")
    if preset not in PRESETS:
        raise UsageError(f"heads.preset: {preset!r} is none of auto, {', '.join(PRESETS)}")
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    known = [field.name for field in fields(Heads)]
    for key in changes:
        if key not in known:
            raise UsageError(f"heads.{key} is unknown.{did_you_mean(key, known)} Known are {', '.join(known)}")
    if "aspect_ratios" in changes:
        changes["aspect_ratios"] = tuple(changes["aspect_ratios"])
    heads = replace(PRESETS[preset], **changes)
    for field in fields(Heads):
        value = getattr(heads, field.name)
        if min(value if isinstance(value, tuple) else (value,)) <= 0:
            raise UsageError(f"heads.{field.name}: {value} must be above 0")
    return heads


def build_detector(
    model: str, num_classes: int, plan: DetectorPlan | None = None, weights: str | None = None, **options: Any
) -> ObjectDetector:
    """Return a detector on a fish or any timm backbone.

    Args:
        model: Name of the backbone.
        num_classes: Number of classes, without background.
        plan: What to build on it.
        weights: Classification run, checkpoint or tag whose trunk is taken over.
        options: Keywords of the backbone.

    Raises:
        UsageError: A name or number that makes no detector.
    """
    plan = plan or DetectorPlan()
    if plan.detector not in DETECTORS:
        near = did_you_mean(plan.detector, DETECTORS)
        raise UsageError(f"unknown detector {plan.detector!r}.{near} Known are {', '.join(DETECTORS)}")
    if plan.detector == "keypoint_rcnn" and plan.keypoints < 1:
        raise UsageError("keypoint_rcnn needs data with keypoints: no category names any")
    trunk = build_trunk(model, plan.taps, weights, plan.group_norm, **options)
    heads = resolve_heads(plan.preset, trunk, plan.heads)
    one_stage = plan.detector in ONE_STAGE
    extra: Extra = "p6p7" if one_stage else "pool"
    pyramid = Pyramid(trunk, heads.width, plan.neck, plan.norm_relu, extra, finest=int(one_stage))
    network = _NETWORKS[plan.detector](pyramid, num_classes, heads, plan)
    if plan.group_norm:
        network = apply_norm_policy(network, "group")
    return ObjectDetector(network, plan, shift=0 if one_stage else 1)


class ObjectDetector(nn.Module):
    """A detector with one form of input and output, whichever it is.

    Training: (images, targets) -> losses by name. Otherwise: images -> one dictionary per image.

    images: float tensors (3, H, W) with values in 0..1, or uint8, of any and differing size.
    targets, per image: `boxes` float (N, 4) x1 y1 x2 y2 in pixels, `labels` int64 (N,) from 0, with masks `masks` uint8
    (N, H, W), with keypoints `keypoints` float (N, K, 3) x y visibility. N may be 0.
    detections, per image: `boxes`, `labels`, `scores` in falling order, with masks `masks` (N, 1, 28, 28), the
    probability inside the box, with keypoints `keypoints` (N, K, 3) and `keypoints_scores` (N, K).

    Args:
        network: torchvision detector whose `transform` is a `Batcher`.
        plan: How it was built.
        shift: Label of the first class inside the network; 1 where 0 is the background.
    """

    def __init__(self, network: nn.Module, plan: DetectorPlan, shift: int) -> None:
        super().__init__()
        self.network, self.plan, self.shift = network, plan, shift

    @property
    def trunk(self) -> Trunk:
        """The backbone below pyramid and heads."""
        return self.network.backbone.trunk  # type: ignore[union-attr,return-value]

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's description of layer groups: the trunk's from its stem on; neck and heads are the last one."""
        prefix = r"^network\.backbone\.trunk\."
        return {name: prefix + pattern for name, pattern in self.trunk.layers().items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the trunk's activations in the backward pass: less memory, about a third more time."""
        self.trunk.set_grad_checkpointing(enable)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Return losses in training, detections otherwise."""
        if self.training:
            assert targets is not None, "training needs targets"
            return self.network(images, [{**t, "labels": t["labels"] + self.shift} for t in targets])
        # Only images of one padded size share a batch: a fish pools globally, and more padding would change its answer.
        stride = int(self.network.transform.size_divisible)  # type: ignore[union-attr,arg-type]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            groups.setdefault(tuple(-(-side // stride) for side in image.shape[-2:]), []).append(place)
        detections: list[dict[str, Tensor]] = [{}] * len(images)
        for places in groups.values():
            for place, found in zip(places, self.network([images[p] for p in places]), strict=True):
                detections[place] = {**found, "labels": found["labels"] - self.shift}
        return detections


class Batcher(GeneralizedRCNNTransform):
    """Normalise images and put them into one batch, padded to whole strides; nothing is resized here.

    Images come in the size that the network shall see, and results stay in its pixels, masks in their boxes: whoever
    loaded the images knows how to bring them back.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        super().__init__(1, 1, list(mean), list(std), size_divisible=stride)

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image with zero mean and unit deviation; 8-bit values are scaled to 0..1 first."""
        return super().normalize(image if image.is_floating_point() else image.float() / 255)

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """Leave image and target as they are."""
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Return the batch in NHWC memory order, which convolutions on CPU and GPU like best."""
        return super().batch_images(images, size_divisible).contiguous(memory_format=torch.channels_last)

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Leave results in the pixels of the network's input."""
        return result

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> tuple[ImageList, Any]:
        """Return the batch and the targets."""
        return super().forward(images, targets)


def _batcher(pyramid: Pyramid, plan: DetectorPlan) -> Batcher:
    return Batcher(plan.mean, plan.std, max(pyramid.trunk.strides))


def _anchors(pyramid: Pyramid, heads: Heads) -> AnchorGenerator:
    """Return anchors of one size per level, a fixed number of its strides."""
    sizes = tuple((heads.anchor_scale * stride,) for stride in pyramid.strides)
    return AnchorGenerator(sizes, (heads.aspect_ratios,) * len(sizes))


def _region_options(pyramid: Pyramid, heads: Heads, plan: DetectorPlan) -> dict[str, Any]:
    """Return the keywords that all detectors of two stages share."""
    return {
        "rpn_anchor_generator": _anchors(pyramid, heads),
        "rpn_pre_nms_top_n_train": 2 * heads.proposals,
        "rpn_pre_nms_top_n_test": heads.proposals,
        "rpn_post_nms_top_n_train": 2 * heads.proposals,
        "rpn_post_nms_top_n_test": heads.proposals,
        "box_roi_pool": _pool(pyramid, 7),
        "box_score_thresh": heads.score,
        "box_nms_thresh": heads.nms,
        "box_detections_per_img": heads.detections,
        "box_batch_size_per_image": heads.samples,
    }


def _pool(pyramid: Pyramid, size: int) -> MultiScaleRoIAlign:
    """Return the pooling of regions from the trunk's levels, each region from the level of its size.

    torchvision guesses the strides from the first image that it sees and keeps the guess, a wrong one where that image
    is small and much of its batch is padding; here they are known.
    """
    names = [name for name in pyramid.names if name.isdigit()]
    pool = MultiScaleRoIAlign(names, size, sampling_ratio=2)
    strides = pyramid.strides[: len(names)]
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)
    return pool


def _box_head(heads: Heads) -> TwoMLPHead:
    return TwoMLPHead(heads.width * 49, heads.box_width)


def _mask_parts(pyramid: Pyramid, classes: int, heads: Heads) -> dict[str, nn.Module]:
    return {
        "mask_roi_pool": _pool(pyramid, 14),
        "mask_head": MaskRCNNHeads(heads.width, (heads.mask_width,) * heads.mask_layers, 1),
        "mask_predictor": MaskRCNNPredictor(heads.mask_width, heads.mask_width, classes + 1),
    }


def _region_network(kind: Any, pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan, **more: Any) -> Any:
    network = kind(
        pyramid,
        box_head=_box_head(heads),
        box_predictor=FastRCNNPredictor(heads.box_width, classes + 1),
        **_region_options(pyramid, heads, plan),
        **more,
    )
    network.transform = _batcher(pyramid, plan)
    return network


def _faster_rcnn(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    return _region_network(FasterRCNN, pyramid, classes, heads, plan)


def _mask_rcnn(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    return _region_network(MaskRCNN, pyramid, classes, heads, plan, **_mask_parts(pyramid, classes, heads))


def _keypoint_rcnn(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    parts = {
        "keypoint_roi_pool": _pool(pyramid, 14),
        "keypoint_head": KeypointRCNNHeads(heads.width, (heads.keypoint_width,) * 8),
        "keypoint_predictor": KeypointRCNNPredictor(heads.keypoint_width, plan.keypoints),
    }
    return _region_network(KeypointRCNN, pyramid, classes, heads, plan, **parts)


def _cascade_rcnn(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan, masks: bool = False) -> nn.Module:
    network = _faster_rcnn(pyramid, classes, heads, plan)
    single: Any = network.roi_heads
    network.roi_heads = CascadeRoIHeads(
        [_box_head(heads) for _ in range(3)],
        [CascadePredictor(heads.box_width, classes + 1) for _ in range(3)],
        box_roi_pool=single.box_roi_pool,
        batch_size_per_image=heads.samples,
        positive_fraction=0.25,
        score_thresh=heads.score,
        nms_thresh=heads.nms,
        detections_per_img=heads.detections,
        **(_mask_parts(pyramid, classes, heads) if masks else {}),
    )
    return network


def _cascade_mask_rcnn(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    return _cascade_rcnn(pyramid, classes, heads, plan, masks=True)


def _retinanet(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    # three sizes per level, a third of an octave apart (section 4 of the paper)
    sizes = tuple(
        tuple(0.5 * heads.anchor_scale * stride * 2 ** (third / 3) for third in range(3)) for stride in pyramid.strides
    )
    anchors = AnchorGenerator(sizes, (heads.aspect_ratios,) * len(sizes))
    head = RetinaNetHead(heads.width, anchors.num_anchors_per_location()[0], classes)
    for tower in (head.classification_head, head.regression_head):
        tower.conv = tower.conv[: heads.tower_layers]
    network = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **_one_stage_options(heads))
    network.transform = _batcher(pyramid, plan)
    return network


def _fcos(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> nn.Module:
    if heads.width % 32:
        raise UsageError(f"heads.width: FCOS normalises 32 groups of channels; {heads.width} is no multiple of 32")
    anchors = AnchorGenerator(tuple((stride,) for stride in pyramid.strides), ((1.0,),) * len(pyramid.strides))
    head = FCOSHead(heads.width, 1, classes, heads.tower_layers)
    network = FCOS(pyramid, classes, anchor_generator=anchors, head=head, **_one_stage_options(heads))
    network.transform = _batcher(pyramid, plan)
    return network


def _one_stage_options(heads: Heads) -> dict[str, Any]:
    return {
        "score_thresh": heads.score,
        "nms_thresh": heads.nms,
        "detections_per_img": heads.detections,
        "topk_candidates": heads.proposals,
    }


_NETWORKS: dict[str, Any] = {
    "faster_rcnn": _faster_rcnn,
    "mask_rcnn": _mask_rcnn,
    "keypoint_rcnn": _keypoint_rcnn,
    "retinanet": _retinanet,
    "fcos": _fcos,
    "cascade_rcnn": _cascade_rcnn,
    "cascade_mask_rcnn": _cascade_mask_rcnn,
}
