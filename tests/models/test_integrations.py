"""The libraries in which people use timm backbones: every decoder and detector trains on a fish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fishnet

BACKBONE = "fishnet_tiny"


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def check_gradients(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


# segmentation_models_pytorch -----------------------------------------------------------------------------------------

DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("Unet", {}),
    ("UnetPlusPlus", {}),
    ("FPN", {}),
    ("PSPNet", {}),
    ("Linknet", {}),
    ("MAnet", {}),
    ("UPerNet", {}),
    ("Segformer", {}),
    ("DeepLabV3Plus", {"encoder_output_stride": 16}),
    ("DeepLabV3Plus", {"encoder_output_stride": 8}),
    ("PAN", {"encoder_output_stride": 16}),
]


@pytest.mark.parametrize(("decoder", "options"), DECODERS, ids=lambda value: str(value))
def test_segmentation_models_pytorch(decoder: str, options: dict[str, Any]) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, decoder)(f"tu-{BACKBONE}", encoder_weights=None, classes=5, **options).train()
    check_masks(model)


def test_pan_on_an_encoder_of_stride_8() -> None:
    """PAN's own argument ends at 16, its decoder does not."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.PAN(f"tu-{BACKBONE}", encoder_weights=None, classes=5)
    model.encoder = smp.encoders.get_encoder(f"tu-{BACKBONE}", weights=None, output_stride=8)
    check_masks(model.train())


def check_masks(model: nn.Module) -> None:
    masks = model(images(2, 3, 128, 128))
    assert masks.shape == (2, 5, 128, 128)
    masks.square().mean().backward()
    check_gradients(model)


# transformers --------------------------------------------------------------------------------------------------------


def backbone_config(*out_indices: int) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.TimmBackboneConfig(backbone=BACKBONE, out_indices=list(out_indices))


def boxes(classes: int) -> list[dict[str, Tensor]]:
    return [
        {"class_labels": torch.tensor([i % classes]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])} for i in range(2)
    ]


def detr(transformers: Any) -> nn.Module:
    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=backbone_config(1, 2, 3, 4),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=5,
            num_labels=3,
        )
    )


def rt_detr(transformers: Any) -> nn.Module:
    return transformers.RTDetrForObjectDetection(
        transformers.RTDetrConfig(
            backbone_config=backbone_config(2, 3, 4),
            encoder_in_channels=[320, 608, 800],
            encoder_hidden_dim=32,
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            d_model=32,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            num_queries=6,
            num_denoising=0,
            num_labels=3,
        )
    )


def mask2former(transformers: Any) -> nn.Module:
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=backbone_config(1, 2, 3, 4),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            dim_feedforward=32,
            num_attention_heads=2,
            num_queries=5,
            num_labels=3,
            train_num_points=64,
        )
    )


def upernet(transformers: Any) -> nn.Module:
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone_config(1, 2, 3, 4),
            hidden_size=32,
            auxiliary_channels=16,
            auxiliary_in_channels=608,
            num_labels=3,
        )
    )


def box_targets() -> dict[str, Any]:
    return {"labels": boxes(3)}


def mask_targets() -> dict[str, Any]:
    masks = [(images(2, 64, 64) > 0).float() for _ in range(2)]
    return {"mask_labels": masks, "class_labels": [torch.tensor([0, 2])] * 2}


def pixel_targets() -> dict[str, Any]:
    return {"labels": images(2, 64, 64).gt(0).long()}


@pytest.mark.parametrize(
    ("build", "targets"),
    [(detr, box_targets), (rt_detr, box_targets), (mask2former, mask_targets), (upernet, pixel_targets)],
    ids=["DETR", "RT-DETR", "Mask2Former", "UperNet"],
)
def test_transformers(build: Callable[[Any], nn.Module], targets: Callable[[], dict[str, Any]]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build(transformers).train()
    model(images(2, 3, 64, 64), **targets()).loss.backward()
    check_gradients(model)


def test_detr_swaps_the_norms_and_keeps_the_features() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    detector = detr(transformers)
    assert not any(type(module) is nn.BatchNorm2d for module in detector.modules())
    (fish,) = [module for module in detector.modules() if type(module).__name__ == "FishNet"]
    plain = fishnet.create_model(BACKBONE, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    plain.model.load_state_dict(fish.state_dict(), strict=False)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(fish.forward_intermediates(x, intermediates_only=True)[1:], plain(x), strict=True):
            torch.testing.assert_close(mine, other)
