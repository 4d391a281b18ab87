"""Logits of the image head, and its losses, in one process and as the mean over several."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fishnet.models import distributed
from fishnet.models.build import Architecture, build_network
from fishnet.models.fusing.network import fuse
from fishnet.models.heads.image import ClassifierPlan, ImageHead
from fishnet.models.heads.types import Frame

WEIGHTS = (0.11, 1.0, 4.0)
FRAME = Frame((32, 32), [(32, 32)] * 4)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 0, 2], [0, 1, 2, 2], [2, 2, 0, 0]], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_classes_in_two_processes_are_those_of_one(
    labels: list[int], smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the weights of a process's images add up to less than 1."""
    torch.manual_seed(0)
    head = ImageHead(nn.Identity(), ClassifierPlan(num_classes=3, label_smoothing=smoothing, class_weights=WEIGHTS))
    logits, targets = torch.randn(4, 3), torch.tensor(labels)
    joint = F.cross_entropy(logits, targets, torch.tensor(WEIGHTS), label_smoothing=smoothing)
    assert torch.equal(head.losses({"logits": logits}, FRAME, targets)["loss"].value, joint)
    parts = [head.losses({"logits": logits[i : i + 2]}, FRAME, targets[i : i + 2])["loss"] for i in (0, 2)]
    counts = torch.stack([torch.as_tensor(part.items, dtype=torch.float64) for part in parts])
    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda own: counts.sum().reshape(1))
    found = [distributed.balanced([part.value], [part.items])[0] for part in parts]
    assert torch.stack(found).mean().item() == pytest.approx(joint.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["dla34", "dpn48b", "resnetv2_18", "resnet18"])
def test_backbones_whose_last_layer_is_a_convolution_are_classifiers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=5).eval()
    save_file(whole.state_dict(), weights := tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 64, 64)
    network = build_network(Architecture(name, {"image": ClassifierPlan(num_classes=5)}), str(weights)).eval()
    assert isinstance(network.heads["image"].classifier, nn.Linear if name == "resnet18" else nn.Conv2d)
    with torch.no_grad():
        wanted = whole(images)
        torch.testing.assert_close(network.raw(images)["image"]["logits"], wanted)
        fused = fuse(network, eager=True).raw(images)["image"]["logits"]
        torch.testing.assert_close(fused, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        exported = torch.export.export(network, (images,)).module()
        torch.testing.assert_close(torch.stack(exported(images)["image"]), wanted)

    plans = {"image": ClassifierPlan(num_classes=3), "kind": ClassifierPlan(num_classes=2, multi_label=True)}
    network = build_network(Architecture(name, plans), str(weights)).train()
    targets = {"image": torch.tensor([0, 2]), "kind": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    before = [head.classifier.weight.clone() for head in network.heads.values()]
    torch.stack(list(network(images, targets).values())).sum().backward()
    optimizer.step()
    for head, plan, weight in zip(network.heads.values(), plans.values(), before, strict=True):
        assert len(weight) == plan.num_classes
        assert not torch.equal(head.classifier.weight, weight)
