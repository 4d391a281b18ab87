"""Model files of tiny networks of every kind, with outputs that are not all alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.config import NormalizeConfig, PreprocessConfig
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Network

CLASSES = ["cat", "dog", "person"]
SIZES = {"width": 32, "box_width": 32, "mask_width": 16, "mask_layers": 1, "keypoint_width": 16, "tower_layers": 1}
SIZES |= {"proposals": 60, "detections": 20}


def region_plan(kind: str, classes: int = 3) -> RegionPlan:
    sizes = {**SIZES, "width": 64} if kind == "fcos" else SIZES  # two channels per group, also of a map of one pixel
    return RegionPlan(kind, classes, preset="nano", sizes=sizes, keypoints=4 if kind == "keypoint_rcnn" else 0)


def plans_of(task: str, kind: str = "", classes: int = 3) -> dict[str, HeadPlan]:
    classify, pixel = ClassifierPlan(num_classes=3), PixelPlan(num_classes=3, decoder=kind or "fish", width=16)
    if task == "classification":
        return {"image": classify}
    if task == "segmentation":
        return {"pixel": pixel}
    if task == "detection":
        return {"region": region_plan(kind, classes)}
    return {"image": classify, "region": region_plan("mask_rcnn"), "pixel": PixelPlan(num_classes=3, width=16)}


def network_of(
    plans: dict[str, HeadPlan], backbone: str, photos: Sequence[torch.Tensor]
) -> tuple[Network, Architecture]:
    """Return a network whose BatchNorms have seen photos, and whose classes and boxes differ from place to place."""
    torch.manual_seed(3)
    architecture = Architecture(backbone, plans)
    network = build_network(architecture).train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):  # those of trained networks are not zero
                parameter.add_(0.05 * torch.randn(parameter.shape))
        for photo in photos:
            batch = network.batcher([photo, photo.flip(-1)])[0]
            network.raw(batch)
        network.eval()
        batch = network.batcher(photos[:1])[0]
        for head, outputs in network.raw(batch).items():
            if head == "region":
                _spread(network, outputs)
    return network.eval(), architecture


def _spread(network: Network, outputs: dict[str, torch.Tensor]) -> None:
    """Scale the last layers, so that scores of a random network are spread out instead of nearly equal."""
    for name, module in network.heads["region"].named_modules():
        last = isinstance(module, nn.Conv2d | nn.Linear) and any(
            part in name for part in ("cls_logits", "cls_score", "bbox_pred", "bbox_reg", "ctrness", "mask_fcn_logits")
        )
        if last:
            own = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(len(name)))
            fan_in = module.weight[0].numel()
            scale = 0.3 if "bbox" in name else 1.5
            module.weight.copy_(own * scale / fan_in**0.5)
            if module.bias is not None:
                module.bias.zero_()


def write_model(
    path: Path,
    task: str,
    kind: str,
    photos: Sequence[torch.Tensor],
    backbone: str = "fishnet_nano",
    classes: Sequence[str] = CLASSES,
) -> Path:
    network, architecture = network_of(plans_of(task, kind, len(classes)), backbone, photos)
    heads = {name: HeadCard(list(classes)) for name in architecture.heads}
    square = task == "classification"
    card = ModelCard(
        task, architecture, heads, 64 if square else 96,
        preprocess=PreprocessConfig() if square else NormalizeConfig(),
        details={} if square else {"longest": 160},
    )  # fmt: skip
    save_model(path, network, card)
    return path
