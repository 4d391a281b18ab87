"""Blocks, bridge and wiring against the formulas of docs/architecture.md, written a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fishnet.models.blocks import Block, ChannelSum
from fishnet.models.config import SKIPS, STAGES
from tests.models.fish import images, nano, norm_relu, with_statistics


def expected_branch(block: Block, x: Tensor) -> Tensor:
    y = F.conv2d(norm_relu(block.norm1, x), block.conv1.weight)
    y = F.conv2d(norm_relu(block.norm2, y), block.conv2.weight, padding=2, dilation=2, groups=block.conv2.groups)
    return F.conv2d(norm_relu(block.norm3, y), block.conv3.weight)


@torch.no_grad()
def test_block_with_identity_shortcut_and_groups() -> None:
    block = with_statistics(Block(8, 8, 4, groups=2, dilation=2))
    x = images(2, 8, 6, 5)
    torch.testing.assert_close(block(x), x + expected_branch(block, x))


@torch.no_grad()
def test_block_that_changes_the_width_has_a_projection() -> None:
    block = with_statistics(Block(4, 8, 2, dilation=2))
    x = images(2, 4, 6, 5)
    shortcut = F.conv2d(norm_relu(block.shortcut.norm, x), block.shortcut.conv.weight)
    torch.testing.assert_close(block(x), shortcut + expected_branch(block, x))


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3])
def test_channel_reduction_sums_neighbors(k: int) -> None:
    x = images(2, 4 * k, 3, 5)
    expected = torch.stack([sum(x[:, k * n + j] for j in range(k)) for n in range(4)], dim=1)
    torch.testing.assert_close(ChannelSum(k)(x), expected)
    block = with_statistics(Block(4 * k, 4, 2, dilation=2, reduction="sum"))
    torch.testing.assert_close(block(x), expected + expected_branch(block, x))


@torch.no_grad()
def test_bridge_adds_its_gate_twice() -> None:
    bridge = with_statistics(nano()).bridge
    x = images(2, 96, 3, 2)
    u = F.conv2d(norm_relu(bridge.norm1, x), bridge.conv1.weight)
    u = F.conv2d(norm_relu(bridge.norm2, u), bridge.conv2.weight, bridge.conv2.bias)
    gate = bridge.gate
    mean = norm_relu(gate.norm, u).mean((2, 3), keepdim=True)
    hidden = F.conv2d(mean, gate.conv1.weight, gate.conv1.bias).clamp(min=0)
    a = torch.sigmoid(F.conv2d(hidden, gate.conv2.weight, gate.conv2.bias))
    torch.testing.assert_close(bridge(x), bridge.blocks(u) * a + a)


@torch.no_grad()
def test_stages_are_wired_as_the_fish_says() -> None:
    model = with_statistics(nano())
    x = images(2, 3, 64, 96)
    maps = model.stages(x)
    for name in ("b1", "b2", "b3"):
        stage, before, skip = model.body.get_submodule(name), maps[STAGES[STAGES.index(name) - 1]], maps[SKIPS[name]]
        trunk = stage.blocks(before).repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(maps[name], torch.cat([trunk, stage.transfer(skip)], 1))
    for name in ("h1", "h2", "h3"):
        stage, before, skip = model.head.get_submodule(name), maps[STAGES[STAGES.index(name) - 1]], maps[SKIPS[name]]
        trunk = stage.blocks(before).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        torch.testing.assert_close(maps[name], torch.cat([trunk, stage.transfer(skip)], 1))
    scored = norm_relu(model.score.norm2, model.score.conv(norm_relu(model.score.norm1, maps["h3"])))
    logits = scored.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), logits)
