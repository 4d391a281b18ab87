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
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.distributed import largest
from fishnet.models.heads.boxes import Anchors
from fishnet.models.heads.cascade import IOUS, CascadePredictor, CascadeRegions
from fishnet.models.heads.dense import FCOS, DenseHead, RetinaNet
from fishnet.models.heads.region import BoxPredictor, ProposalNetwork, Regions, TwoStageHead
from fishnet.models.heads.types import Detections, Size, Target
from fishnet.models.norms import apply_norm_policy
from fishnet.models.pyramid import Extra, Neck, Pyramid, Taps, Trunk, build_trunk

Detector = Literal[
    "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos", "cascade_rcnn", "cascade_mask_rcnn"
]
DETECTORS: tuple[str, ...] = get_args(Detector)
WITH_MASKS = ("mask_rcnn", "cascade_mask_rcnn")
CASCADES = ("cascade_rcnn", "cascade_mask_rcnn")
ONE_STAGE = ("retinanet", "fcos")


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
    """IoU threshold of non-maximum suppression (FCOS: 0.6)."""
    detections: int = 100
    """Most detections per image."""


PRESETS: dict[str, Heads] = {
    "nano": Heads(64, 128, 64, 2, 64, 2, 300, 64),
    "tiny": Heads(96, 256, 96, 2, 128, 2, 500, 128),
    "small": Heads(128, 512, 128, 4, 256, 4, 1000, 256),
    "base": Heads(),
}
"""Heads by size of the trunk."""
DIFFERENT_HEADS: dict[str, dict[str, Any]] = {"fcos": {"nms": 0.6}}
"""What a detector's paper sets otherwise, whatever the preset."""
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
    given = {name: value for name, value in (plan.heads or {}).items() if value is not None}
    heads = resolve_heads(plan.preset, trunk, DIFFERENT_HEADS.get(plan.detector, {}) | given)
    one_stage = plan.detector in ONE_STAGE
    extra: Extra = "p6p7" if one_stage else "pool"
    pyramid = Pyramid(trunk, heads.width, plan.neck, plan.norm_relu, extra, finest=int(one_stage))
    head = _ONE_STAGE.get(plan.detector, _two_stages)(pyramid, num_classes, heads, plan)
    network = ObjectDetector(pyramid, head, plan)
    if plan.group_norm:
        apply_norm_policy(network, "group")
    return network


class ObjectDetector(nn.Module):
    """A detector with one form of input and output, whichever it is.

    Training: (images, targets) -> losses by name. Otherwise: images -> one dictionary per image.

    images: float tensors (3, H, W) with values in 0..1, or uint8, of any and differing size.
    targets, per image: see `fishnet.models.heads.types.Target`; boxes are in pixels of the image.
    detections, per image: see `fishnet.models.heads.types.Detections`.

    Args:
        pyramid: Trunk and neck.
        head: Maps -> losses or detections.
        plan: How it was built.
    """

    def __init__(self, pyramid: Pyramid, head: TwoStageHead | DenseHead, plan: DetectorPlan) -> None:
        super().__init__()
        self.batcher = Batcher(plan.mean, plan.std, max(pyramid.trunk.strides))
        self.pyramid, self.region, self.plan = pyramid, head, plan

    @property
    def trunk(self) -> Trunk:
        """The backbone below pyramid and heads."""
        return self.pyramid.trunk

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's description of layer groups: the trunk's from its stem on; neck and heads are the last one."""
        prefix = r"^pyramid\.trunk\."
        return {name: prefix + pattern for name, pattern in self.trunk.layers().items()}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the backbone wants no weight decay for, such as position embeddings."""
        return {f"pyramid.trunk.{name}" for name in self.trunk.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the trunk's activations in the backward pass: less memory, about a third more time."""
        self.trunk.set_grad_checkpointing(enable)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Return losses in training, detections otherwise."""
        if self.training:
            assert targets is not None, "training needs targets"
            batch, sizes = self.batcher(images, common=True)
            return self.region.losses(self.region.raw(self.pyramid(batch)), _size(batch), sizes, targets)
        # Only images of one padded size share a batch: a fish pools globally, and more padding would change its answer.
        stride = self.batcher.stride
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            groups.setdefault(tuple(-(-side // stride) for side in image.shape[-2:]), []).append(place)
        detections: dict[int, Detections] = {}
        for places in groups.values():
            batch, sizes = self.batcher([images[place] for place in places])
            found = self.region.decode(self.region.raw(self.pyramid(batch)), _size(batch), sizes)
            detections.update(zip(places, found, strict=True))
        return [detections[place] for place in range(len(images))]


def _size(batch: Tensor) -> Size:
    return batch.shape[-2], batch.shape[-1]


class Batcher:
    """Normalise images and put them into one batch, padded with zeros to whole strides; nothing is resized here.

    Images come in the size that the network shall see, and results stay in its pixels, masks in their boxes: whoever
    loaded the images knows how to bring them back.

    Args:
        mean: Channel means, for images in 0..1.
        std: Channel standard deviations.
        stride: Number that height and width of a batch are multiples of.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        self.mean, self.std, self.stride = mean, std, stride

    def __call__(self, images: list[Tensor], common: bool = False) -> tuple[Tensor, list[Size]]:
        """Return the batch (N, C, H, W) in NHWC memory order, and the height and width of each image in it.

        Args:
            images: Tensors (C, h, w), float in 0..1 or uint8.
            common: Whether the batches of all processes get one size. The padding of an image then does not depend on
                which others share its process; the largest sets the pace of a step anyway.
        """
        sizes: list[Size] = [_size(image) for image in images]
        sides = [-(-max(side) // self.stride) * self.stride for side in zip(*sizes, strict=True)]
        device = images[0].device
        height, width = largest(sides, device) if common else sides
        batch = torch.zeros(len(images), len(images[0]), height, width, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = self._normalised(image)
        return batch, sizes

    def _normalised(self, image: Tensor) -> Tensor:
        values = image.float() if image.is_floating_point() else image.float() / 255
        mean, std = (torch.tensor(value, device=image.device)[:, None, None] for value in (self.mean, self.std))
        return (values - mean) / std


def _anchors(pyramid: Pyramid, heads: Heads) -> Anchors:
    """Return anchors of one size per level, a fixed number of its strides."""
    sizes: list[tuple[float, ...]] = [(heads.anchor_scale * stride,) for stride in pyramid.strides]
    return Anchors(sizes, heads.aspect_ratios, pyramid.strides)


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


def _two_stages(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> TwoStageHead:
    anchors = _anchors(pyramid, heads)
    towers = RPNHead(heads.width, anchors.num_anchors_per_location()[0])
    parts: dict[str, Any] = {}
    if plan.detector in WITH_MASKS:
        parts = _mask_parts(pyramid, classes, heads)
    elif plan.detector == "keypoint_rcnn":
        parts = _keypoint_parts(pyramid, heads, plan.keypoints)
    options: dict[str, Any] = {
        "box_pool": _pool(pyramid, 7),
        "samples": heads.samples,
        "score": heads.score,
        "nms": heads.nms,
        "detections": heads.detections,
    }
    if plan.detector in CASCADES:
        box_heads: list[nn.Module] = [_box_head(heads) for _ in IOUS]
        predictors: list[nn.Module] = [CascadePredictor(heads.box_width, classes + 1) for _ in IOUS]
        regions: Regions = CascadeRegions(box_heads, predictors, **options, **parts)
    else:
        predictor = BoxPredictor(heads.box_width, classes + 1)
        regions = Regions(box_head=_box_head(heads), box_predictor=predictor, **options, **parts)
    return TwoStageHead(ProposalNetwork(anchors, towers, heads.proposals), regions, pyramid.names)


def _keypoint_parts(pyramid: Pyramid, heads: Heads, keypoints: int) -> dict[str, nn.Module]:
    return {
        "keypoint_roi_pool": _pool(pyramid, 14),
        "keypoint_head": KeypointRCNNHeads(heads.width, (heads.keypoint_width,) * 8),
        "keypoint_predictor": KeypointRCNNPredictor(heads.keypoint_width, keypoints),
    }


def _retinanet(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> DenseHead:
    # three sizes per level, a third of an octave apart (section 4 of the paper)
    sizes = [
        tuple(0.5 * heads.anchor_scale * stride * 2 ** (third / 3) for third in range(3)) for stride in pyramid.strides
    ]
    anchors = Anchors(sizes, heads.aspect_ratios, pyramid.strides)
    towers = RetinaNetHead(heads.width, anchors.num_anchors_per_location()[0], classes)
    for tower in (towers.classification_head, towers.regression_head):
        tower.conv = tower.conv[: heads.tower_layers]
    return RetinaNet(towers, anchors=anchors, **_dense_options(heads))


def _fcos(pyramid: Pyramid, classes: int, heads: Heads, plan: DetectorPlan) -> DenseHead:
    if heads.width % 32:
        raise UsageError(f"heads.width: FCOS normalises 32 groups of channels; {heads.width} is no multiple of 32")
    anchors = Anchors([(stride,) for stride in pyramid.strides], (1.0,), pyramid.strides)
    towers = FCOSHead(heads.width, 1, classes, heads.tower_layers)
    return FCOS(towers, anchors=anchors, **_dense_options(heads))


def _dense_options(heads: Heads) -> dict[str, Any]:
    return {
        "score": heads.score,
        "nms": heads.nms,
        "detections": heads.detections,
        "candidates": heads.proposals,
    }


_ONE_STAGE = {"retinanet": _retinanet, "fcos": _fcos}
