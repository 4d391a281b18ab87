"""One trunk, any heads: a network is its classifier, composes heads, and its trunk starts any other network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishnet import create_model
from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.errors import UsageError
from fishnet.models.build import HEADS, Architecture, HeadKind, as_network, build_network
from fishnet.models.checkpoints.weights import load_weights
from fishnet.models.heads.detectors import DETECTORS, RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan
from fishnet.models.heads.types import Frame, Mean
from fishnet.models.network import Network
from tests.models.heads.test_detectors import images, target

CLASSIFIER, DETECTOR = ClassifierPlan(num_classes=4), RegionPlan(kind="faster_rcnn", num_classes=3, preset="nano")


def network(model: str = "fishnet_nano", seed: int = 0, taps: Any = "head", **heads: Any) -> Network:
    torch.manual_seed(seed)
    return build_network(Architecture(model, heads, taps=taps))


@pytest.mark.parametrize("model", ["fishnet_nano", "resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_a_classifier_answers_as_the_plain_model_of_the_same_weights(model: str) -> None:
    torch.manual_seed(0)
    plain = create_model(model, num_classes=4).eval()
    batch = torch.randn(2, 3, 224, 224)
    expected = plain(batch)
    built = network(model, image=CLASSIFIER).eval()
    assert torch.equal(torch.stack(built(batch)["image"]), expected)
    taken = as_network(plain, built_from(model))
    assert torch.equal(torch.stack(taken.eval()(batch)["image"]), expected)


def built_from(model: str) -> Architecture:
    return Architecture(model, {"image": CLASSIFIER})


def test_networks_without_one_last_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="has no single last layer to train"):
        network("deit_tiny_distilled_patch16_224", image=CLASSIFIER)


def test_heads_share_one_pass_of_the_trunk_and_keep_their_losses_apart() -> None:
    both = network(image=CLASSIFIER, region=DETECTOR).train()
    passes: list[Tensor] = []
    both.trunk.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0]))
    pictures = images((64, 96), (64, 96))
    targets = {"image": torch.tensor([1, 2]), "region": [target([[8, 10, 40, 50]], (64, 96)), target([], (64, 96))]}
    losses = both(pictures, targets)
    assert len(passes) == 1
    assert set(losses) == {
        "image_loss", "region_loss_objectness", "region_loss_rpn_box_reg", "region_loss_classifier",
        "region_loss_box_reg",
    }  # fmt: skip
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in both.parameters())
    both.eval()
    with torch.no_grad():
        answers = both(pictures)
    assert set(answers) == {"image", "region"}
    assert [len(found) for found in answers.values()] == [2, 2]
    # a head of the pair answers as it does alone
    alone = network(image=CLASSIFIER).eval()
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if not k.startswith(("necks.", "heads.region."))})
    batch, _ = both.batcher(pictures)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(answers["image"]), torch.stack(alone(batch)["image"]))


@pytest.mark.parametrize(
    "model", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
@torch.no_grad()
def test_a_timm_network_classifies_and_gives_maps_in_one_pass(model: str) -> None:
    both = network(model, image=CLASSIFIER, region=DETECTOR).eval()
    assert both.trunk.strides == [4, 8, 16, 32]
    batch = torch.randn(2, 3, 96, 160)
    features = both.trunk(batch)
    # the classifier sees what it sees in a network of its own, the pyramid what timm's feature network gives it
    alone = network(model, image=CLASSIFIER).eval()
    kept = ("necks.", "heads.region.")
    alone.load_state_dict({name: value for name, value in both.state_dict().items() if not name.startswith(kept)})
    if "swin" not in model:  # alone it takes images of one size
        assert torch.equal(both.raw(batch)["image"]["logits"], alone.raw(batch)["image"]["logits"])
    maps = network(model, region=DETECTOR).eval()
    own = plain_names(both)
    renamed = {name: own[plain_name(name)] for name in maps.trunk.state_dict()}
    maps.trunk.load_state_dict(renamed)
    for found, expected in zip(features.maps, maps.trunk(batch).maps, strict=True):
        assert torch.equal(found, expected)


def test_published_weights_start_both_inputs_of_the_heads(tmp_path: Path) -> None:
    source = network("resnet18", seed=1, image=CLASSIFIER)
    path = tmp_path / "whole.safetensors"
    save_model(path, source, card("resnet18", "image", CLASSIFIER))
    plans = {"image": CLASSIFIER, "region": DETECTOR}
    both = build_network(Architecture("resnet18", plans), str(path))
    assert all(torch.equal(value, both.state_dict()[name]) for name, value in source.state_dict().items())


def test_every_classifier_has_a_last_layer_of_its_own() -> None:
    breed, pose = CLASSIFIER, ClassifierPlan(num_classes=2)
    for model in ("fishnet_nano", "resnet18"):
        both = network(model, breed=breed, pose=pose, age=breed).eval()
        answers = both(torch.randn(2, 3, 64, 64))
        assert [answers[name][0].shape for name in ("breed", "pose", "age")] == [(4,), (2,), (4,)]
        assert not torch.equal(answers["breed"][0], answers["age"][0])


@dataclass(frozen=True)
class MeanPlan:
    """Plan of a head without classes."""

    kind: str = "mean"


class MeanHead(nn.Module):
    """One number per image, from its pooled features or from its maps."""

    def raw(self, features: Any) -> dict[str, Tensor]:
        maps = features.values() if isinstance(features, dict) else [features[:, :, None, None]]
        return {"mean": torch.stack([level.mean((1, 2, 3)) for level in maps]).sum(0)}

    loss_names = ("loss",)

    def losses(self, raw: dict[str, Tensor], frame: Frame, targets: Tensor) -> dict[str, Mean]:
        return {"loss": Mean((raw["mean"] - targets).square().mean(), len(targets))}

    def decode(self, raw: dict[str, Tensor], frame: Frame) -> list[Tensor]:
        return list(raw["mean"])


@pytest.mark.parametrize("takes", ["maps", "vector"])
def test_a_head_without_a_neck_takes_what_its_kind_says(takes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "mean", HeadKind(MeanPlan, lambda plan, trunk: (None, MeanHead()), takes=takes))
    for model in ("fishnet_nano", "resnet18"):
        one = network(model, mean=MeanPlan()).eval()
        batch = torch.randn(2, 3, 64, 64)
        features = one.trunk(batch)
        maps = features.maps if takes == "maps" else [features.vector[:, :, None, None]]
        given = torch.stack([level.mean((1, 2, 3)) for level in maps]).sum(0)
        torch.testing.assert_close(torch.stack(one(batch)["mean"]), given)
    one.train()(batch, {"mean": torch.zeros(2)})["loss"].backward()
    assert all(parameter.grad is not None for parameter in one.parameters() if parameter.requires_grad)


def test_heads_without_targets_are_not_run_but_have_gradients_of_zero() -> None:
    both = network(image=CLASSIFIER, region=DETECTOR).train()
    before = {name: value.clone() for name, value in both.state_dict().items()}
    losses = both(images((64, 64), (64, 64)), {"image": torch.tensor([1, 2])})
    assert set(losses) == {"image_loss"}
    losses["image_loss"].backward()
    named = dict(both.named_parameters())
    assert all(parameter.grad is not None for parameter in named.values())
    region = [name for name in named if name.startswith(("necks.", "heads.region."))]
    assert region
    assert all(not named[name].grad.any() for name in region)
    assert named["heads.image.classifier.weight"].grad.any()
    after = both.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("necks."))  # statistics
    nothing = both(images((64, 64)), {})
    assert {name: value.item() for name, value in nothing.items()} == {"loss": 0.0}
    torch.stack(list(nothing.values())).sum().backward()


def hold_statistics(one: Network) -> Network:
    """Return the network in training mode whose norms do not depend on the other images of a batch."""
    one.train()
    for module in one.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return one


PLANS = {"classifier": CLASSIFIER, "multi-label": ClassifierPlan(num_classes=4, multi_label=True)}
PLANS |= {f"pixel {loss}": PixelPlan(num_classes=4, losses={loss: 1.0}, auxiliary=True) for loss in ("ohem", "dice")}
PLANS |= {kind: RegionPlan(kind=kind, num_classes=3, preset="nano", keypoints=2) for kind in DETECTORS}


@pytest.mark.parametrize("kind", PLANS)
def test_images_without_labels_change_no_loss(kind: str) -> None:
    region = kind in DETECTORS
    one = hold_statistics(network(answer=PLANS[kind]))
    pictures = images((64, 64), (64, 64), (64, 64))
    if region:
        truth = [full_target([[8, 10, 40, 50]], (64, 64)), full_target([[2, 2, 60, 30], [5, 30, 20, 60]], (64, 64))]
        for number, item in enumerate(truth):
            item["seed"] = torch.tensor(number)
    elif kind.startswith("pixel"):
        one.heads["answer"].classify[0].eval()  # dropout draws for every image of the batch
        one.heads["answer"].auxiliary.eval()
        truth = [torch.arange(64 * 64).view(64, 64) % 4, torch.arange(64 * 64).view(64, 64) // 64 % 3]
    else:
        truth = [torch.tensor(1), torch.tensor(3)]
        if kind == "multi-label":
            truth = [torch.tensor([0.0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 0])]
    names = one.heads["answer"].loss_names
    expected = one([pictures[0], pictures[2]], {"answer": truth})
    found = one(pictures, {"answer": [truth[0], None, truth[1]]})
    assert tuple(found) == tuple(expected) == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
        assert float(expected[name].detach()) > 0 or "ctrness" in name
    nothing = one(pictures, {"answer": [None] * 3})
    assert {name: value.item() for name, value in nothing.items()} == {"loss": 0.0}


def full_target(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a target with boxes, masks and keypoints."""
    found = target(boxes, size)
    found["keypoints"] = torch.tensor([[[x1 + 1, y1 + 1, 2.0], [x2 - 1, y2 - 1, 2.0]] for x1, y1, x2, y2 in boxes])
    return found


PARTIAL: dict[str, list[Any]] = {
    "pixel": [None, torch.arange(64 * 64).view(64, 64) % 4, None, None],
    "image": [torch.tensor(1), None, None, None],
    "region": [None, None, full_target([[8, 10, 40, 50]], (64, 64)), full_target([[2, 2, 60, 30]], (64, 64))],
}
"""Labels of four images; a process that has the first two has none for regions, the other none for pixels."""


def _partial_labels(rank: int, folder: str, world: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world
    )
    pixel = PixelPlan(num_classes=4, losses={"cross_entropy": 1.0, "dice": 1.0}, dropout=0.0)
    both = hold_statistics(network(image=CLASSIFIER, region=DETECTOR, pixel=pixel))
    module = torch.nn.parallel.DistributedDataParallel(both)
    own = range(4)[rank * 4 // world : (rank + 1) * 4 // world]
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 64, 64, generator=generator) for _ in range(4)]
    for number, item in enumerate(PARTIAL["region"]):
        if item:
            item["seed"] = torch.tensor(number)
    losses = module([pictures[place] for place in own], {name: [PARTIAL[name][i] for i in own] for name in PARTIAL})
    torch.stack(list(losses.values())).sum().backward()
    found = {name: value.detach() for name, value in losses.items()}
    torch.save((found, {n: p.grad for n, p in both.named_parameters()}), f"{folder}/{world}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(240)
def test_partial_labels_of_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    for world in (1, 2):
        torch.multiprocessing.start_processes(
            _partial_labels, (str(tmp_path), world), nprocs=world, start_method="fork"
        )
    (one, gradients), *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for name, value in one.items():
        torch.testing.assert_close((two[0][0][name] + two[1][0][name]) / 2, value, rtol=1e-4, atol=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(two[0][1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def _part_of_a_group(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    both = network(image=CLASSIFIER, region=DETECTOR).train()
    module = torch.nn.parallel.DistributedDataParallel(both)
    optimizer = torch.optim.SGD(both.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(rank)
    pictures = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    given: dict[str, Any] = {"image": torch.tensor([1, 2]), "region": [target([[8, 10, 40, 50]], (64, 64))] * 2}
    mine = [("image", "region", "", "image region"), ("image", "image", "region", "region")]
    for heads in mine[rank]:  # the processes have labels for different heads
        losses = module(pictures, {name: given[name] for name in heads.split()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    torch.save({name: parameter.detach() for name, parameter in both.named_parameters()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(240)
def test_processes_do_not_wait_for_heads_without_targets(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_part_of_a_group, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in first.values())


@pytest.mark.parametrize("kind", ["mask_rcnn", "fcos", "retinanet"])
@torch.no_grad()
def test_raw_outputs_decode_to_the_answers(kind: str) -> None:
    one = network(region=RegionPlan(kind=kind, num_classes=3, preset="nano", sizes={"score": 0.001})).eval()
    pictures = images((60, 90))
    batch, frame = one.batcher(pictures)
    assert frame == Frame((64, 96), [(60, 90)])
    raw = {head: {name: value.clone() for name, value in outputs.items()} for head, outputs in one.raw(batch).items()}
    found = one.decode(raw, frame)["region"][0]
    expected = one(pictures)["region"][0]
    assert len(expected["scores"]) > 0
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["fishnet_nano", "resnet18"])
def test_the_trunk_of_any_run_starts_any_other(model: str, tmp_path: Path) -> None:
    plans = {"image": CLASSIFIER, "region": DETECTOR}
    for number, (first, second) in enumerate((a, b) for a in plans for b in plans):
        source = network(model, seed=1, **{first: plans[first]})
        path = tmp_path / f"{number}.safetensors"
        save_model(path, source, card(model, first, plans[first]))
        torch.manual_seed(2)
        started = build_network(Architecture(model, {second: plans[second]}), str(path))
        given, taken = (plain_names(one) for one in (source, started))
        shared = given.keys() & taken.keys()
        assert len(shared) > 40
        assert all(torch.equal(given[name], taken[name]) for name in shared), (first, second)


def test_a_trunk_that_lacks_stages_starts_those_that_it_has(tmp_path: Path) -> None:
    source = network(taps="tail", seed=1, region=DETECTOR)
    path = tmp_path / "tail.safetensors"
    save_model(path, source, card("fishnet_nano", "region", DETECTOR, taps="tail"))
    whole = create_model("fishnet_nano", num_classes=4)
    report = load_weights(whole, path, skip_classifier=True)
    assert {name.partition(".")[0] for name in report.loaded} == {"stem", "tail"}
    assert {name.partition(".")[0] for name in report.skipped} == {"bridge", "body", "head", "score", "classifier"}
    assert torch.equal(whole.stem.conv1.weight, source.trunk.stem.conv1.weight)


def card(model: str, head: str, plan: Any, **fields: Any) -> ModelCard:
    classes = [str(index) for index in range(plan.num_classes)]
    architecture = Architecture(model, {head: plan}, **fields)
    return ModelCard("test", architecture, {head: HeadCard(classes)}, size=64)


def plain_names(one: Network) -> dict[str, Tensor]:
    """Return the trunk's tensors; timm's feature networks flatten the dots of containers."""
    return {plain_name(name): value for name, value in one.trunk.state_dict().items()}


def plain_name(name: str) -> str:
    return name.removeprefix("network.").removeprefix("model.").replace(".", "_")


def test_a_kind_of_head_is_found_before_any_task_is_imported() -> None:
    code = (
        "import sys; from fishnet.models.build import plan_of; "
        "print(plan_of({'kind': 'fcos', 'num_classes': 2}).kind, 'fishnet.tasks' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["fcos", "False"]


@pytest.mark.parametrize("plan", [DETECTOR, PixelPlan(num_classes=3)])
@torch.no_grad()
def test_a_batch_of_uint8_is_a_list_of_images(plan: Any) -> None:
    """`network(transform(image)[None])` after `fishnet.load`; a float batch is normalized already."""
    one = network("fishnet_nano", main=plan).eval()
    batch = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    expected = one([*batch])["main"]
    mean, std = (torch.tensor(value)[:, None, None] for value in (one.batcher.mean, one.batcher.std))
    for given in (batch, (batch / 255 - mean) / std):
        for answer, right in zip(one(given)["main"], expected, strict=True):
            for name in right if isinstance(right, dict) else [...]:
                torch.testing.assert_close(answer[name], right[name], atol=1e-3, rtol=1e-3)
    with pytest.raises(UsageError, match=r"^a batch has the shape \(N, C, H, W\), not \(3, 60, 90\): add \[None\]"):
        one(batch[0])


@torch.no_grad()
def test_a_normalized_batch_of_a_classifier_is_not_padded() -> None:
    one, batch = network("resnet18", image=CLASSIFIER).eval(), torch.randn(1, 3, 50, 70)
    assert one.batcher(batch)[0] is batch
