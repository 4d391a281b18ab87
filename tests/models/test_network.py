"""One trunk, any heads: a network is its classifier, composes heads, and its trunk starts any other network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fishnet import create_model
from fishnet.cards import HeadCard, ModelCard, save_model
from fishnet.errors import UsageError
from fishnet.models.build import Architecture, as_network, build_network
from fishnet.models.checkpoints.weights import load_weights
from fishnet.models.heads.detectors import RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.types import Frame
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


@pytest.mark.parametrize("kind", ["mask_rcnn", "fcos", "retinanet"])
@torch.no_grad()
def test_raw_outputs_decode_to_the_answers(kind: str) -> None:
    one = network(region=RegionPlan(kind=kind, num_classes=3, preset="nano", sizes={"score": 0.001})).eval()
    pictures = images((60, 90))
    batch, frame = one.batcher(pictures)
    assert frame == Frame((64, 96), [(60, 90)])
    raw = {name.removeprefix("region."): value.clone() for name, value in one.raw(batch).items()}
    found = one.decode({"region": raw}, frame)["region"][0]
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
    state = one.trunk.state_dict()
    return {name.removeprefix("network.").replace(".", "_"): value for name, value in state.items()}
