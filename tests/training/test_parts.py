"""Parts of a network that are frozen, or that have a learning rate of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fishnet.config import OptimConfig, TrainConfig
from fishnet.errors import UsageError
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network
from fishnet.models.norms import hold_norms
from fishnet.training.optimizer import build_optimizer
from fishnet.training.parts import freeze


def small_network(**options: Any) -> Network:
    return build_network(Architecture("fishnet_nano", {"image": ClassifierPlan(num_classes=3)}, options))


def test_frozen_parts_keep_their_statistics_and_the_rest_trains() -> None:
    model = small_network(stem_stride=1)
    freeze(model, ["stem", "tail.t1"])
    model.train()
    hold_norms(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32), {"image": torch.tensor([0, 1, 2, 0])})["loss"].backward()
    after = dict(model.named_buffers())
    frozen = [name for name in before if name.startswith(("trunk.stem.", "trunk.tail.t1."))]
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    free = "trunk.tail.t2.blocks.0.norm1.running_mean"
    assert not torch.equal(before[free], after[free])
    parameters = dict(model.named_parameters())
    assert parameters["trunk.stem.conv1.weight"].grad is None
    assert parameters["heads.image.classifier.weight"].grad is not None


def test_parts_have_their_factor_of_the_learning_rate_and_inner_parts_count() -> None:
    model = small_network()
    optim = OptimConfig(decay_all=False, part_lr=["trunk=0.1", "stem=0.01", "heads.image=2"])
    optimizer = build_optimizer(model, TrainConfig(lr=1.0, optim=optim))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 2 if name.startswith("heads") else 0.01 if name.startswith("trunk.stem") else 0.1
        assert rates[id(parameter)] == pytest.approx(expected), name
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in model.parameters() if p.ndim == 1} == {0.0}
    assert {decay[id(p)] for p in model.parameters() if p.ndim > 1} == {1e-4}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("part_lr", "says"),
    [
        (["tial=0.1"], r"^optim.part_lr: 'tial' is not a part of the model \(parts: .*heads\)\. Did you mean .*tail"),
        (["=0.1"], r"^optim.part_lr: '' is not a part of the model"),
        (["tail"], r"^optim.part_lr: 'tail' must be NAME=NUMBER, such as tail=0.5"),
        (["tail=x"], r"^optim.part_lr: 'tail=x' must be NAME=NUMBER"),
        (["tail=0"], r"^optim.part_lr: a factor is 0.0; it must be positive"),
        (["tail=nan"], r"^optim.part_lr: a factor is nan; it must be positive"),
        (["tail=1", "tail=2"], r"^optim.part_lr names tail twice"),
    ],
)
def test_wrong_parts_are_one_line(part_lr: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build_optimizer(small_network(), TrainConfig(optim=OptimConfig(part_lr=part_lr)))
