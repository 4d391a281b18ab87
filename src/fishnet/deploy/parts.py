"""Graphs of a network for export, and the description of its decoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.models.heads.cascade import DELTA_WEIGHTS, CascadeRegions
from fishnet.models.heads.dense import FCOS, DenseHead
from fishnet.models.heads.image import ImageHead
from fishnet.models.heads.pixel import PixelHead
from fishnet.models.heads.region import Regions, TwoStageHead
from fishnet.models.heads.roi_align import MultiLevelRoIAlign
from fishnet.models.network import Network
from fishnet.models.pyramid import Pyramid
from fishnet.runner.engine import DENSE
from fishnet.runner.heads import R_CNN_WEIGHTS


class DenseGraph(nn.Module):
    """Images (N, 3, H, W) -> raw outputs of all heads, by head and name.

    Pixel logits are resized to the size of the images, and the maps for region pooling are channels-last.

    Args:
        network: Network in eval mode.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by `head_name`."""
        found: dict[str, Tensor] = {}
        dtype = next(self.network.parameters()).dtype
        for head, outputs in self.network.raw(images.to(dtype)).items():
            module = self.network.heads[head]
            if isinstance(module, PixelHead):
                size = images.shape[-2:]
                outputs = {"logits": F.interpolate(outputs["logits"], size, mode="bilinear", align_corners=False)}
            if isinstance(module, TwoStageHead):
                outputs = _pooled_from(module, outputs)
            found |= {f"{head}_{name}": value for name, value in outputs.items()}
        return found


def _pooled_from(head: TwoStageHead, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a two-stage head without the maps that are not used for pooling."""
    wanted = {f"map_{name}" for name in head.regions.box_roi_pool.featmap_names}
    return {
        name: value.permute(0, 2, 3, 1).float() if name in wanted else value
        for name, value in outputs.items()
        if name in wanted or not name.startswith("map_")
    }


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


@dataclass(frozen=True)
class Part:
    """A module to export."""

    module: nn.Module
    """Module that takes one tensor and returns tensors by name."""
    input: str
    """Name of its input."""
    example: Tensor
    """Example input for tracing."""
    multiple: int = 0
    """Height and width of the input may be any multiple of this number of pixels; 0: they are fixed; 1: `convert.trace`
    determines the multiple."""


def parts_of(network: Network, card: ModelCard) -> dict[str, Part]:
    """Return the graphs of a network by name: `dense`, and those of the region stage, if it has one."""
    height, width = _example_size(network, card)
    example = torch.zeros(2, card.architecture.in_chans, height, width)
    parts = {DENSE: Part(DenseGraph(network), "images", example, _multiple(network))}
    for name, head in network.heads.items():
        if isinstance(head, TwoStageHead):
            neck = network.necks[name]
            assert isinstance(neck, Pyramid)
            parts |= _region_parts(head.regions, neck.out_channels)
    return {name: Part(part.module.eval(), part.input, part.example, part.multiple) for name, part in parts.items()}


def _multiple(network: Network) -> int:
    return network.batcher.stride


def _example_size(network: Network, card: ModelCard) -> tuple[int, int]:
    """Return the image size for tracing; free height and width differ, and no pyramid map has a side of 1."""
    step = _multiple(network)
    return (card.size, card.size) if step == 1 else (9 * step, 10 * step)


def _region_parts(regions: Regions, channels: int) -> dict[str, Part]:
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


def head_specs(network: Network, card: ModelCard) -> dict[str, Json]:
    """Return the entries of export.json that describe the decoders, by head.

    Raises:
        UsageError: A head has no decoder outside of PyTorch.
    """
    found: dict[str, Json] = {}
    for name, head in network.heads.items():
        classes = list(card.heads[name].classes)
        if isinstance(head, ImageHead):
            found[name] = {"type": "classifier", "classes": classes, "multi_label": head.plan.multi_label}
        elif isinstance(head, PixelHead):
            found[name] = {"type": "pixel", "classes": classes}
        elif isinstance(head, DenseHead):
            found[name] = _one_stage(head, classes)
        elif isinstance(head, TwoStageHead):
            found[name] = _two_stages(head, classes)
        else:
            kind = card.architecture.heads[name].kind
            raise UsageError(f"the head {name} of kind {kind} cannot be exported: it has no decoder outside of PyTorch")
    return found


def _one_stage(head: DenseHead, classes: list[str]) -> Json:
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


def _two_stages(head: TwoStageHead, classes: list[str]) -> Json:
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
