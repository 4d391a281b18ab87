"""A fish as the backbone of other libraries: a detector of torchvision, a network of segmentation_models_pytorch.

    python examples/fish_elsewhere.py

Both train a step on noise, which shows that the parts fit. `pip install segmentation-models-pytorch` for the second.
"""

from __future__ import annotations

from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fishnet  # noqa: F401  # registers the family with timm

NAME = "fishnet_nano"


class FishPyramid(nn.Module):
    """Maps of strides 8, 16 and 32 through a feature pyramid, with two coarser levels on top: what RetinaNet takes."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.fish = timm.create_model(NAME, features_only=True, out_indices=(2, 3, 4))
        channels = self.fish.feature_info.channels()
        self.pyramid = FeaturePyramidNetwork(channels, self.out_channels, LastLevelP6P7(channels[-1], 64))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps by name, from fine to coarse."""
        maps = OrderedDict((str(index), features) for index, features in enumerate(self.fish(images)))
        return self.pyramid(maps)


def torchvision_detector(classes: int) -> RetinaNet:
    """Return a RetinaNet of torchvision on a fish."""
    sizes = tuple((8 * 2**level, 10 * 2**level, 13 * 2**level) for level in range(2, 7))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return RetinaNet(FishPyramid(), classes, anchor_generator=anchors, min_size=128, max_size=256)


def smp_network(classes: int) -> nn.Module:
    """Return a U-Net of segmentation_models_pytorch; `tu-` says that the encoder is one of timm."""
    import segmentation_models_pytorch as smp

    return smp.Unet(f"tu-{NAME}", encoder_weights=None, classes=classes)


def main() -> None:
    """Train both for one step."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 128, 128)
    box = torch.tensor([[10.0, 20.0, 90.0, 110.0]])
    losses = torchvision_detector(3).train()(list(images), [{"boxes": box, "labels": torch.tensor([1])}] * 2)
    sum(losses.values()).backward()
    print("torchvision RetinaNet:", {name: round(value.item(), 2) for name, value in losses.items()})

    network = smp_network(5).train()
    scores = network(images)
    nn.functional.cross_entropy(scores, torch.randint(5, (2, 128, 128))).backward()
    print("segmentation_models_pytorch U-Net:", tuple(scores.shape))


if __name__ == "__main__":
    main()
