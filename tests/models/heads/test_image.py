"""Losses of the image head, in one process and as the mean over several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fishnet.models import distributed
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
