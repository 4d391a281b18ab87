"""Detectors: every one of them trains and predicts on every kind of trunk."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.build import Architecture, build_network, plan_of
from fishnet.models.build_trunk import build_trunk
from fishnet.models.heads.cascade import CascadeRegions
from fishnet.models.heads.detectors import DETECTORS, WITH_MASKS, RegionPlan, resolve_sizes
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.types import Detections, Losses
from fishnet.models.network import Images, Network
from fishnet.training.parts import freeze

CLASSES, KEYPOINTS = 3, 5


def images(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in shapes]


def target(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, Tensor]:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    points = torch.zeros(len(boxes), KEYPOINTS, 3)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        masks[index, int(y1) : int(y2), int(x1) : int(x2)] = 1
        for k in range(KEYPOINTS):
            share = (k + 1) / (KEYPOINTS + 1)
            points[index, k] = torch.tensor([x1 + share * (x2 - x1), y1 + share * (y2 - y1), 2.0])
    labels = torch.arange(len(boxes)) % CLASSES
    return {"boxes": corners, "labels": labels, "masks": masks, "keypoints": points}


def detector(
    name: str,
    model: str = "fishnet_nano",
    taps: Any = "head",
    group_norm: bool = False,
    options: dict[str, Any] | None = None,
    in_chans: int = 3,
    **plan: Any,
) -> Network:
    torch.manual_seed(0)
    keypoints = KEYPOINTS if name == "keypoint_rcnn" else 0
    region = RegionPlan(name, CLASSES, keypoints=keypoints, **plan)
    return build_network(Architecture(model, {"region": region}, options or {}, in_chans, taps, group_norm))


def region(network: Network) -> Any:
    return network.heads["region"]


def losses_of(network: nn.Module, pictures: Images, targets: list[dict[str, Tensor]]) -> Losses:
    return network(pictures, {"region": targets})


def found_in(network: nn.Module, pictures: Images) -> list[Detections]:
    return network(pictures)["region"]


def check_step(model: nn.Module) -> None:
    """Train one step on a batch with an empty image; every parameter that is trained must get a gradient."""
    model.train()
    targets = [target([[10, 12, 60, 70], [30, 5, 90, 50]], (96, 112)), target([], (64, 80))]
    losses = losses_of(model, images((96, 112), (64, 80)), targets)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def check_answers(model: nn.Module, name: str) -> None:
    model.eval()
    shapes = [(97, 131), (64, 33), (50, 200)]
    answers = found_in(model, images(*shapes))
    assert len(answers) == 3
    for found, (height, width) in zip(answers, shapes, strict=True):
        count = len(found["scores"])
        assert found["boxes"].shape == (count, 4)
        assert found["labels"].shape == (count,)
        assert bool((found["scores"].diff() <= 0).all())
        assert bool(((found["labels"] >= 0) & (found["labels"] < CLASSES)).all())
        limits = torch.tensor([width, height, width, height])
        assert bool(((found["boxes"] >= 0) & (found["boxes"] <= limits)).all())
        assert ("masks" in found) == (name in WITH_MASKS)
        if name in WITH_MASKS:
            assert found["masks"].shape == (count, 1, 28, 28)
        if name == "keypoint_rcnn":
            assert found["keypoints"].shape == (count, KEYPOINTS, 3)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("model", ["fishnet_tiny", "resnet18"])
def test_every_detector_trains_and_answers(name: str, model: str) -> None:
    network = detector(name, model, preset="nano", sizes={"score": 0.01})
    check_step(network)
    check_answers(network, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("model", ["fishnet99", "resnet50"])
def test_every_detector_trains_and_answers_on_large_trunks(name: str, model: str) -> None:
    network = detector(name, model, sizes={"score": 0.01})
    check_step(network)
    check_answers(network, name)


@pytest.mark.parametrize("options", [
    {"taps": "tail"}, {"taps": "body"}, {"neck": "none"}, {"norm_relu": False}, {"group_norm": True},
], ids=str)  # fmt: skip
def test_every_form_of_pyramid_trains(options: dict[str, Any]) -> None:
    network = detector("mask_rcnn", **options)
    check_step(network)
    check_answers(network, "mask_rcnn")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_batch_without_any_object_trains(name: str) -> None:
    network = detector(name).train()
    losses = losses_of(network, images((64, 64), (64, 96)), [target([], (64, 64)), target([], (64, 96))])
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [
    "mask_rcnn", "fcos", pytest.param("cascade_mask_rcnn", marks=pytest.mark.slow),
    pytest.param("retinanet", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_detector_learns_two_objects_by_heart(name: str) -> None:
    network = detector(name, group_norm=True)
    picture = torch.full((3, 96, 96), 0.4)
    picture[0, 10:50, 8:40] = 1.0
    picture[2, 40:90, 50:88] = 1.0
    truth = target([[8, 10, 40, 50], [50, 40, 88, 90]], (96, 96))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for step in range(60):
        losses = losses_of(network, [picture, picture.flip(1)], [truth, flipped(truth)])
        loss = torch.stack(list(losses.values())).sum()
        if step == 0:
            first = loss.item()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    assert loss.item() < 0.5 * first
    network.eval()
    with torch.no_grad():
        found = found_in(network, [picture])[0]
    for box, label in zip(truth["boxes"], truth["labels"], strict=True):
        own = found["boxes"][found["labels"] == label]
        assert len(own), (name, found)
        assert float(overlap(own, box).max()) > 0.5, (name, found["boxes"], box)


def flipped(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    boxes = truth["boxes"].clone()
    boxes[:, 1], boxes[:, 3] = 96 - truth["boxes"][:, 3], 96 - truth["boxes"][:, 1]
    return {**truth, "boxes": boxes, "masks": truth["masks"].flip(1)}


def overlap(boxes: Tensor, box: Tensor) -> Tensor:
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared)


def test_anchors_follow_the_strides_of_the_trunk() -> None:
    sizes = region(detector("faster_rcnn")).proposals.anchors.sizes
    assert sizes == ((32,), (64,), (128,), (256,), (512,))
    fine = detector("faster_rcnn", options={"stem_stride": 2})
    assert region(fine).proposals.anchors.sizes == ((16,), (32,), (64,), (128,), (256,))
    retina = region(detector("retinanet")).anchors.sizes
    assert retina[0] == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))
    assert len(retina) == 5


def test_eight_bit_images_are_floats_times_255() -> None:
    network = detector("retinanet", sizes={"score": 0.001}).eval()
    (image,) = images((64, 64))
    with torch.no_grad():
        (first,), (second,) = found_in(network, [image]), found_in(network, [image.float() / 255])
    torch.testing.assert_close(first["boxes"], second["boxes"])


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_other_images_of_a_batch() -> None:
    network = detector("faster_rcnn", sizes={"score": 0.001}).eval()
    batch = images((64, 96), (128, 64), (50, 90))
    for image, found in zip(batch, found_in(network, batch), strict=True):
        (alone,) = found_in(network, [image])
        torch.testing.assert_close(found["boxes"], alone["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_regions_are_pooled_at_known_strides_whatever_image_came_first() -> None:
    first, second = (
        detector("faster_rcnn", sizes={"score": 0.001}).eval(),
        detector("faster_rcnn", sizes={"score": 0.001}).eval(),
    )
    tiny, (image,) = images((33, 34)), images((128, 128))
    second(tiny)
    (one,), (other,) = found_in(first, [image]), found_in(second, [image])
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name])
    assert region(first).regions.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_presets_suit_the_size_of_the_trunk() -> None:
    def box_width(name: str, **plan: Any) -> int:
        return resolve_sizes(RegionPlan(**plan), build_trunk(name)[0]).box_width

    widths = {name: box_width(name) for name in ("fishnet_nano", "fishnet_tiny", "resnet18")}
    assert widths == {"fishnet_nano": 128, "fishnet_tiny": 256, "resnet18": 512}
    assert box_width("fishnet_nano", preset="tiny", sizes={"box_width": 99, "nms": None}) == 99


@pytest.mark.parametrize(("name", "plan", "message"), [
    ("mask_rcn", {}, "Did you mean 'mask_rcnn'"),
    ("mask_rcnn", {"preset": "huge"}, "heads.preset must be auto or one of .*, not 'huge'"),
    ("mask_rcnn", {"sizes": {"widht": 3}}, "heads.widht is unknown.*width"),
    ("mask_rcnn", {"sizes": {"width": 0}}, "heads.width must be above 0, not 0"),
    ("fcos", {"sizes": {"width": 48}}, "heads.width must be a multiple of 32"),
    ("mask_rcnn", {"neck": "bifpn"}, "pyramid.neck"),
    ("mask_rcnn", {"taps": "fin"}, "pyramid.taps"),
])  # fmt: skip
def test_bad_plans_are_refused_with_the_reason(name: str, plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detector(name, **plan)
    with pytest.raises(UsageError, match="keypoint_rcnn needs"):
        build_network(Architecture("fishnet_nano", {"region": RegionPlan("keypoint_rcnn")}))


def test_a_plan_survives_its_card() -> None:
    plan = RegionPlan("cascade_rcnn", neck="none", sizes={"width": 32})
    whole = Architecture("fishnet_nano", {"region": plan}, {"stem_stride": 2}, taps="body", group_norm=True)
    assert Architecture.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    with pytest.raises(UsageError, match="mask_rcnn has no color"):
        plan_of({"kind": "mask_rcnn", "color": 1})
    with pytest.raises(UsageError, match="an architecture has no color"):
        Architecture.from_dict({"color": 1})
    with pytest.raises(UsageError, match=r"unknown head 'mask_rcn'.*Did you mean 'mask_rcnn'"):
        plan_of({"kind": "mask_rcn"})


@torch.no_grad()
def test_a_cascade_scores_by_the_mean_of_its_stages_and_moves_boxes_three_times() -> None:
    network = detector("cascade_rcnn", sizes={"score": 1e-6, "nms": 1.0, "detections": 1000}).eval()
    heads = region(network).regions
    assert isinstance(heads, CascadeRegions)
    torch.manual_seed(1)
    for predictor in heads.box_predictor:
        nn.init.normal_(predictor.cls_score.weight, std=0.5)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.05)
    features = {str(i): torch.randn(1, 64, 32 // 2**i, 32 // 2**i) for i in range(4)}
    boxes, shape = torch.tensor([[8.0, 8.0, 70.0, 60.0], [40.0, 30.0, 120.0, 128.0]]), [(128, 128)]
    scores, moved = [], [boxes]
    for stage in range(3):
        pooled = heads.box_roi_pool(features, moved, shape)
        logits, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
        scores.append(logits.softmax(-1))
        moved = [shift(moved[0], deltas, (10, 20, 30)[stage])]
    found = heads.detect(features, [boxes], shape)[0]
    expected = torch.stack(scores).mean(0)[:, 1:].flatten().sort(descending=True).values
    torch.testing.assert_close(found["scores"], expected)
    best = torch.stack(scores).mean(0)[:, 1:].max(1).values.argmax()
    torch.testing.assert_close(found["boxes"][0], moved[0][best])


def shift(boxes: Tensor, deltas: Tensor, weight: float) -> Tensor:
    """Apply deltas by the formulas of R-CNN, with weights w, w, w/2, w/2, inside 128 x 128 pixels."""
    size = boxes[:, 2:] - boxes[:, :2]
    center = boxes[:, :2] + size / 2 + deltas[:, :2] / weight * size
    size = size * (deltas[:, 2:] / (weight / 2)).clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([center - size / 2, center + size / 2], 1).clamp(0, 128)


@pytest.mark.parametrize("model", ["fishnet_nano", "resnet18"])
def test_layer_decay_is_lowest_at_the_stem_and_one_for_neck_and_heads(model: str) -> None:
    network = detector("faster_rcnn", model)
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    trunk = {name: share[id(p)] for name, p in named.items() if name.startswith("trunk.")}
    assert all(share[id(p)] == 1 for name, p in named.items() if name not in trunk)
    assert max(trunk.values()) == 0.5
    assert next(iter(trunk.values())) == min(trunk.values()) <= 0.5**4


@pytest.mark.parametrize("model", ["fishnet_nano", "resnet18"])
def test_recomputed_activations_give_the_same_gradients(model: str) -> None:
    batch = images((64, 96)), [target([[8, 10, 40, 50]], (64, 96))]
    found = []
    for recompute in (False, True):
        network = detector("fcos", model, group_norm=True).train()
        network.set_memory("saver" if recompute else "fast")
        torch.stack(list(losses_of(network, *batch).values())).sum().backward()
        found.append([p.grad for p in network.parameters()])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("model", ["fishnet_nano", "resnet18", "mobilenetv3_small_050"])
def test_recomputed_activations_count_a_batch_once(model: str) -> None:
    """The BatchNorms of timm's networks updated their running statistics in the forward and in the backward pass."""
    found = []
    for recompute in (False, True):
        network = detector("faster_rcnn", model).train()
        network.set_memory("saver" if recompute else "fast")
        for _ in range(2):
            losses = losses_of(network, images((64, 96)), [target([[8, 10, 40, 50]], (64, 96))])
            torch.stack(list(losses.values())).sum().backward()
        found.append(dict(network.named_buffers()))
    assert any("num_batches_tracked" in name for name in found[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.parametrize("plan", [RegionPlan("retinanet", 3, preset="nano"), ClassifierPlan(num_classes=3)], ids=str)
@pytest.mark.parametrize(("model", "part"), [("resnet18", "layer1"), ("swin_tiny_patch4_window7_224", "layers_0")])
def test_parts_of_timm_backbones_are_frozen_by_their_own_names(model: str, part: str, plan: Any) -> None:
    with torch.device("meta"):
        network = build_network(Architecture(model, {"head": plan}))
    part = part if part in dict(network.trunk.backbone.named_modules()) else part.replace("_", ".")
    freeze(network, [part])
    still = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert len(still) > 5
    assert all(f".{part}." in name for name in still)


def test_parts_of_the_trunk_are_frozen_by_their_own_names() -> None:
    network = detector("faster_rcnn")
    freeze(network, ["stem", "tail.t1"])
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert still
    assert all(name.startswith(("trunk.stem.", "trunk.tail.t1.")) for name in still)
    with pytest.raises(UsageError, match=r"parts: stem, tail, bridge, body, head, trunk, necks, heads"):
        freeze(network, ["fin"])
