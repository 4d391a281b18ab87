"""Learning rates, parameter groups and optimizers from settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fishnet.config import OptimConfig, TrainConfig
from fishnet.training.optimizer import base_lr, build_optimizer, lr_share, optimizer_names
from tests.training.test_parts import small_network


def test_the_rate_scales_with_the_batch_unless_it_is_given() -> None:
    assert base_lr(TrainConfig(batch_size=64, optim=OptimConfig(lr=0.4))) == pytest.approx(0.1)
    assert base_lr(TrainConfig(batch_size=64, lr=0.3)) == 0.3


def test_schedules_follow_their_formulas() -> None:
    cosine = OptimConfig(schedule="cosine", warmup_epochs=2, final_lr=0.1)
    shares = [lr_share(cosine, step, steps_per_epoch=10, epochs=10) for step in range(100)]
    assert shares[:3] == pytest.approx([1 / 21, 2 / 21, 3 / 21])
    assert shares[20] == pytest.approx(1.0)
    assert shares[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 40 / 80)))
    assert min(shares[20:]) > 0.1
    steps = OptimConfig(schedule="step", step_epochs=3, step_gamma=0.1)
    assert [lr_share(steps, epoch * 10, 10, 9) for epoch in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_layer_decay_gives_the_stem_the_lowest_and_the_classifier_the_highest_rate() -> None:
    model = small_network()
    config = TrainConfig(lr=1.0, optim=OptimConfig(layer_decay=0.8))
    rates = {id(p): group["lr"] for group in build_optimizer(model, config).param_groups for p in group["params"]}
    rate = {name.removeprefix("trunk."): rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert rate["stem.conv1.weight"] == min(rate.values())
    assert rate["heads.image.classifier.weight"] == max(rate.values()) == pytest.approx(1.0)
    assert rate["tail.t1.blocks.0.conv1.weight"] < rate["body.b3.blocks.0.conv1.weight"] < rate["score.conv.weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_of_timm_takes_a_step(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, TrainConfig(lr=0.01, optim=OptimConfig(name=name, momentum=0.8)))  # type: ignore[arg-type]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    after = list(model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    group = optimizer.param_groups[0]
    if "betas" in group and "momentum" not in group:
        assert group["betas"][0] == 0.8


def test_betas_beyond_the_first_are_those_of_the_optimizer() -> None:
    model = nn.Linear(2, 2)
    betas = {}
    for name in ("adamw", "lamb", "lion", "adan"):
        optimizer = build_optimizer(model, TrainConfig(optim=OptimConfig(name=name)))  # type: ignore[arg-type]
        betas[name] = optimizer.param_groups[0]["betas"]
    expected = {"adamw": (0.9, 0.999), "lamb": (0.9, 0.999), "lion": (0.9, 0.99), "adan": (0.9, 0.92, 0.99)}
    assert betas == expected


def test_decay_can_leave_out_norms_and_biases() -> None:
    model = small_network()
    optimizer = build_optimizer(model, TrainConfig(optim=OptimConfig(decay_all=False)))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for n, p in model.named_parameters() if p.ndim == 1} == {0.0}
    assert {decay[id(p)] for n, p in model.named_parameters() if p.ndim > 1} == {1e-4}
    everything = build_optimizer(model, TrainConfig())
    assert {group["weight_decay"] for group in everything.param_groups} == {1e-4}


@pytest.mark.parametrize(("name", "plain"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_fused_updates_are_those_of_pytorch_parameter_by_parameter(
    name: str, plain: type[torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 3), nn.Linear(5, 3)
    second.load_state_dict(first.state_dict())
    optim = OptimConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    ours = build_optimizer(first, TrainConfig(lr=0.01, optim=optim))
    assert ours.defaults["fused"]
    extra = {"momentum": 0.9, "nesterov": False} if name == "sgd" else {}
    theirs = plain(second.parameters(), lr=0.01, weight_decay=0.1, foreach=False, **extra)
    for _ in range(5):
        images = torch.randn(4, 5)
        for model, optimizer in ((first, ours), (second, theirs)):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    for own, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def test_gradients_can_be_clipped_in_fp16() -> None:
    """A fused optimizer unscales gradients in its step, too late to clip them, and Lightning refuses that."""
    optimizer = build_optimizer(nn.Linear(2, 2), TrainConfig(precision="fp16"))
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
