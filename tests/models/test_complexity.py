"""Multiply-adds are those that PyTorch counts, also of products that no layer computes."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fishnet.models.complexity import count

PRODUCTS_WITH_WEIGHTS = ("aten.convolution", "aten.addmm", "aten.mm")


# counted by hooks on layers, these had 0.75, 0.76, 0.76 and 0.59 of it
@pytest.mark.parametrize(
    "name",
    ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256", "sequencer2d_s", "swin_s3_tiny_224"],
)
def test_functional_products_count(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        side = model.pretrained_cfg["input_size"][-1]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    operators = counter.get_flop_counts()["Global"]
    assert count(model, side).macs * 2 == sum(
        flops for operator, flops in operators.items() if str(operator) in PRODUCTS_WITH_WEIGHTS
    )


class Functions(nn.Module):
    """16x16 pixels of 3 channels -> 4 channels, with one product of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(4, 3, 1, 1))
        self.table = nn.Parameter(torch.zeros(4, 4))
        self.back = nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.conv2d(images, self.kernel)  # 12 multiply-adds per pixel
        tokens = torch.zeros(1, 256, 4, device=images.device)
        tokens[:, :] = maps.flatten(2).transpose(1, 2)
        by_table = torch.einsum("nlc,cd->nld", tokens, self.table)  # 16 per pixel
        batched = torch.bmm(tokens, self.table[None])  # 16 per pixel
        vector = tokens[0] @ self.table[0]  # 4 per pixel
        attention = tokens @ tokens.transpose(1, 2) @ by_table  # products of activations: none
        self.back(maps)  # 16 per pixel: 4 channels, each with 1 x 2 x 2 weights
        return attention + batched + vector[None, :, None]


def test_every_kind_of_product_with_weights_counts_and_none_of_two_activations() -> None:
    model = Functions()
    per_pixel = 12 + 16 + 16 + 4 + 16
    assert count(model, 16).macs == 256 * per_pixel
    with torch.inference_mode():
        assert count(model, 16).macs == count(Functions(), 16).macs == 256 * per_pixel
