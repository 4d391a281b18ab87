"""Pixel heads: every decoder trains and answers on every kind of trunk, and shares its batch over processes."""

from __future__ import annotations

import copy
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from fishnet.errors import FishnetError, UsageError
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelHead, PixelPlan, pixel_decoders
from fishnet.models.heads.pixel_decoders import DECODERS, BinAverages, DecoderNorm
from fishnet.models.heads.pixel_losses import LOSSES
from fishnet.models.heads.smp_decoders import smp_decoders
from fishnet.models.heads.types import Frame, Losses
from fishnet.models.network import Network
from fishnet.models.norms import apply_norm_policy, hold_norms, note_loaded_norms

CLASSES, IGNORED = 5, 255
ALL = pixel_decoders()
SIZES = [(97, 131), (64, 160)]


def segmenter(
    decoder: str = "fish", model: str = "fishnet_nano", taps: Any = "head", group_norm: bool = False, **plan: Any
) -> Network:
    torch.manual_seed(0)
    pixel = PixelPlan(num_classes=CLASSES, decoder=decoder, **plan)
    return build_network(Architecture(model, {"pixel": pixel}, taps=taps, group_norm=group_norm))


def head_of(network: Network) -> PixelHead:
    head = network.heads["pixel"]
    assert isinstance(head, PixelHead)
    return head


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def label_maps(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randint(CLASSES, size, generator=generator, dtype=torch.uint8) for size in sizes]
    for labels in maps:
        labels[:7, :9] = IGNORED
    return maps


def total_of(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def check_gradients(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def check(network: Network) -> None:
    """Train one step and answer, on images of different and odd sizes."""
    network.train()
    losses = network(pictures(), {"pixel": label_maps()})
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values()), losses
    total_of(losses).backward()
    check_gradients(network)
    network.eval()
    with torch.no_grad():
        answers = network(pictures())["pixel"]
    assert [tuple(found.shape) for found in answers] == [(CLASSES, *size) for size in SIZES]
    assert all(found.dtype == torch.float32 and bool(found.isfinite().all()) for found in answers)


def test_every_decoder_of_smp_that_takes_a_pyramid_is_known() -> None:
    assert ALL[:4] == ["fish", "hypercolumn", "fpn", "upernet"]
    assert {"smp:unet", "smp:fpn", "smp:deeplabv3plus", "smp:segformer"} <= set(ALL)
    assert "smp:dpt" not in ALL


@pytest.mark.parametrize("decoder", ALL)
def test_every_decoder_trains_and_answers(decoder: str) -> None:
    check(segmenter(decoder, auxiliary=True))


@pytest.mark.parametrize("decoder", [*DECODERS, "smp:unet", "smp:deeplabv3plus"])
@pytest.mark.parametrize("model", ["fishnet_tiny", "resnet18", "mobilenetv4_conv_small"])
def test_decoders_train_and_answer_on_other_trunks(decoder: str, model: str) -> None:
    check(segmenter(decoder, model))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ALL)
@pytest.mark.parametrize("model", ["fishnet_tiny", "resnet18", "mobilenetv4_conv_small", "convnext_atto"])
def test_every_decoder_trains_and_answers_on_every_trunk(decoder: str, model: str) -> None:
    check(segmenter(decoder, model))


@pytest.mark.parametrize("options", [
    {"taps": "tail"}, {"taps": "body"}, {"group_norm": True}, {"norm_relu": False}, {"layers": 0, "width": 7},
    {"decoder": "smp:pspnet", "taps": "body"}, {"decoder": "smp:deeplabv3plus", "taps": "body"},
    {"decoder": "smp:unet", "decoder_options": {"decoder_channels": [24, 16, 16, 8, 8]}},
    {"decoder": "smp:deeplabv3", "decoder_options": {"encoder_output_stride": 16}},
    {"decoder": "upernet", "group_norm": True}, {"dropout": 0.5, "auxiliary": True, "auxiliary_level": 3},
    {"losses": dict.fromkeys(LOSSES, 1.0)},
], ids=str)  # fmt: skip
def test_every_option_trains(options: dict[str, Any]) -> None:
    check(segmenter(**options))


@pytest.mark.parametrize("decoder", ALL)
def test_no_image_and_no_label_give_a_loss_of_zero(decoder: str) -> None:
    network = segmenter(decoder, auxiliary=True, losses={"cross_entropy": 1.0, "dice": 1.0}).train()
    head = head_of(network)
    batch = torch.randn(2, 3, 64, 96)
    maps = {str(index): level for index, level in enumerate(network.trunk(batch).maps)}
    nothing = {name: level[:0] for name, level in maps.items()}
    before = {key: value.clone() for key, value in head.state_dict().items() if "running" in key}
    empty = head.losses(head.raw(nothing), Frame((64, 96), []), [])
    assert all(torch.equal(head.state_dict()[key], value) for key, value in before.items())
    ignored = [torch.full((64, 96), IGNORED)] * 2
    void = head.losses(head.raw(maps), Frame((64, 96), [(64, 96)] * 2), ignored)
    for losses in (empty, void):
        assert len(losses) == 3
        assert all(loss.item() == 0 for loss in losses.values())
        network.zero_grad()
        total_of(losses).backward(retain_graph=True)
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    head.eval()
    assert head.decode(head.raw(nothing), Frame((64, 96), [])) == []


@pytest.mark.parametrize("decoder", ["upernet", "smp:pspnet", "smp:deeplabv3plus", "smp:pan", "fish"])
def test_one_small_image_trains(decoder: str) -> None:
    """Behind a global pooling, one image has one value per channel."""
    network = segmenter(decoder, auxiliary=True, auxiliary_level=3).train()
    losses = network(pictures([(64, 64)]), {"pixel": label_maps([(64, 64)])})
    total_of(losses).backward()
    assert total_of(losses).isfinite()
    head = head_of(network)
    tiny = {
        str(level): torch.randn(1, c, 2**level, 2**level)
        for level, c in zip((3, 2, 1, 0), network.trunk.channels, strict=True)
    }
    losses = head.losses(head.raw(tiny), Frame((32, 32), [(32, 32)]), label_maps([(32, 32)]))
    assert total_of(losses).isfinite()
    assert all(bool(value.isfinite().all()) for value in head.state_dict().values())


@pytest.mark.parametrize("decoder", [
    *DECODERS, "smp:unet", "smp:pan", "smp:segformer",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ALL[4:] if name[4:] not in ("unet", "pan", "segformer")),
])  # fmt: skip
def test_decoders_work_under_bf16_autocast(decoder: str) -> None:
    network = segmenter(decoder, auxiliary=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        batch, frame = network.batcher(pictures())
        raw = head_of(network).raw(dict(zip("0123", network.trunk(batch).maps, strict=True)))
        assert all(value.dtype == torch.float32 for value in raw.values())
        losses = head_of(network).losses(raw, frame, label_maps())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total_of(losses).backward()
    check_gradients(network)


def test_losses_are_those_of_the_resized_batch_without_its_padding() -> None:
    network = segmenter(losses={"cross_entropy": 2.0}, auxiliary=True, dropout=0.0).train()
    batch, frame = network.batcher(pictures())
    raw = network.raw(batch)["pixel"]
    losses = network(pictures(), {"pixel": label_maps()})
    expected = {}
    for name, logits in raw.items():
        full = F.interpolate(logits, frame.canvas, mode="bilinear", align_corners=False)
        cut = [full[n, :, :h, :w].flatten(1) for n, (h, w) in enumerate(frame.sizes)]
        labels = torch.cat([labels.flatten().long() for labels in label_maps()])
        expected[name] = F.cross_entropy(torch.cat(cut, 1).T, labels, ignore_index=IGNORED)
    torch.testing.assert_close(losses["loss_cross_entropy"], 2 * expected["logits"])
    assert set(losses) == {"loss_cross_entropy", "loss_auxiliary"}


def test_the_auxiliary_head_is_weighted_and_not_part_of_answers() -> None:
    network = segmenter(auxiliary=True, losses={"dice": 1.0})
    head, frame = head_of(network), Frame((64, 64), [(64, 64)])
    labels = label_maps([(64, 64)])
    raw = {"logits": torch.randn(1, CLASSES, 16, 16), "auxiliary": torch.randn(1, CLASSES, 4, 4)}
    full = F.interpolate(raw["auxiliary"], (64, 64), mode="bilinear", align_corners=False)
    expected = 0.4 * F.cross_entropy(full, labels[0][None].long(), ignore_index=IGNORED)
    torch.testing.assert_close(head.losses(raw, frame, labels)["loss_auxiliary"], expected)
    batch = torch.randn(1, 3, 64, 64)
    assert set(network.train().raw(batch)["pixel"]) == {"logits", "auxiliary"}
    assert set(network.eval().raw(batch)["pixel"]) == {"logits"}


def test_answers_are_resized_as_torchvision_does_and_cut_to_the_image() -> None:
    network = segmenter().eval()
    logits, frame = torch.randn(2, CLASSES, 32, 40), Frame((128, 160), SIZES)
    for n, (found, (height, width)) in enumerate(
        zip(head_of(network).decode({"logits": logits}, frame), SIZES, strict=True)
    ):
        full = transforms.resize(logits[n], [128, 160], antialias=False)
        torch.testing.assert_close(found, full[:, :height, :width], rtol=1e-5, atol=1e-5)


def test_label_maps_of_any_integer_type_are_taken() -> None:
    network = segmenter().eval()
    raw, frame = {"logits": torch.randn(2, CLASSES, 32, 40)}, Frame((128, 160), SIZES)
    plain = label_maps()
    for targets in ([t.long() for t in plain], [tv_tensors.Mask(t) for t in plain]):
        found = head_of(network).losses(raw, frame, targets)
        torch.testing.assert_close(found, head_of(network).losses(raw, frame, plain))
        assert type(found["loss_cross_entropy"]) is Tensor


def test_label_maps_that_do_not_fit_are_refused() -> None:
    head, raw, frame = head_of(segmenter()), {"logits": torch.randn(1, CLASSES, 8, 8)}, Frame((32, 32), [(32, 30)])
    with pytest.raises(FishnetError, match="a label map of 32x32 pixels belongs to an image of 32x30 pixels"):
        head.losses(raw, frame, [torch.zeros(32, 32)])
    labels = torch.zeros(32, 30, dtype=torch.int64)
    labels[3, 4] = CLASSES
    with pytest.raises(FishnetError, match=re.escape("the label 5, which is neither a class (0 to 4) nor the ignored")):
        head.losses(raw, frame, [labels])


class RawLogits(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        return self.network.raw(batch)["pixel"]["logits"]


@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 10), (9, 4), (13, 32)])
def test_averages_of_bins_are_those_of_adaptive_pooling(side: int, size: tuple[int, int]) -> None:
    """Also of maps with fewer positions than bins."""
    ours = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found, wanted = BinAverages(side)(ours), F.adaptive_avg_pool2d(theirs, side)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)
    scale = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    (found * scale).sum().backward()
    (wanted * scale).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("decoder", [*DECODERS, "smp:unet", "smp:fpn", "smp:deeplabv3plus"])
def test_raw_outputs_are_exported_with_a_dynamic_batch(decoder: str) -> None:
    module = RawLogits(segmenter(decoder, auxiliary=True).eval())
    dynamic = {"batch": {0: torch.export.Dim("n", min=1, max=64)}}
    exported = torch.export.export(module, (torch.randn(2, 3, 96, 128),), dynamic_shapes=dynamic).module()
    for count in (1, 3):
        batch = torch.randn(count, 3, 96, 128)
        torch.testing.assert_close(exported(batch), module(batch), rtol=1e-4, atol=1e-5)


def test_own_logits_have_the_stride_of_the_finest_map_and_start_even() -> None:
    for decoder in DECODERS:
        network = segmenter(decoder).train()
        with torch.no_grad():
            logits = network.raw(torch.randn(2, 3, 96, 128))["pixel"]["logits"]
        assert logits.shape == (2, CLASSES, 24, 32)
        assert logits.softmax(1).mean((0, 2, 3)).sub(1 / CLASSES).abs().max() < 0.35, decoder


def test_norms_of_decoders_are_trained_when_those_from_weights_are_frozen() -> None:
    network = segmenter("smp:unet")
    note_loaded_norms(network.trunk)
    network.__dict__["loaded_from_weights"] = True
    apply_norm_policy(network, "frozen")
    network.train()
    hold_norms(network)
    assert not any(m.training for m in network.trunk.modules() if isinstance(m, nn.BatchNorm2d))
    norms = [m for m in network.heads.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 10
    assert all(isinstance(m, DecoderNorm) and m.training and m.weight.requires_grad for m in norms)
    grouped = segmenter("smp:unet", group_norm=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in grouped.modules())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_network_learns_two_areas_by_heart(decoder: str) -> None:
    network = segmenter(decoder, group_norm=True, width=32, dropout=0.0)
    picture, labels = torch.full((3, 64, 64), 0.4), torch.zeros(64, 64, dtype=torch.uint8)
    picture[0, 10:40, 8:40] = 1.0
    labels[10:40, 8:40] = 3
    picture[2, 40:, 30:] = 1.0
    labels[40:, 30:] = 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(40):
        optimizer.zero_grad()
        total_of(network([picture, picture.flip(2)], {"pixel": [labels, labels.flip(1)]})).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = network.eval()([picture])["pixel"]
    truth, answer = labels.long(), found.argmax(0)
    for index in (0, 1, 3):
        shared = ((truth == index) & (answer == index)).sum()
        assert shared / ((truth == index) | (answer == index)).sum() > 0.8, (decoder, index)


def test_heads_share_a_trunk() -> None:
    plans = {"image": ClassifierPlan(num_classes=4), "pixel": PixelPlan(num_classes=CLASSES)}
    network = build_network(Architecture("fishnet_nano", plans)).train()
    losses = network(pictures(), {"image": torch.tensor([1, 2]), "pixel": label_maps()})
    assert set(losses) == {"image_loss", "pixel_loss_cross_entropy"}


def test_layer_decay_spares_the_head() -> None:
    network = segmenter()
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert all(share[id(p)] == 1 for p in network.heads.parameters())


@pytest.mark.parametrize(("plan", "message"), [
    ({"decoder": "fihs"}, "unknown decoder 'fihs' of a pixel head. Did you mean 'fish'"),
    ({"decoder": "smp:unit"}, "unknown decoder 'smp:unit'. Did you mean 'smp:unet'"),
    ({"decoder": "smp:dpt"}, "smp:dpt cannot be built on the maps of a trunk.*Timm encoders"),
    ({"decoder": "smp:unet", "width": 3}, "smp:unet takes its widths by decoder_options"),
    ({"decoder": "smp:unet", "decoder_options": {"decoder_chanels": 3}}, "smp:unet has no option decoder_chanels.*Did"),
    ({"decoder": "smp:unet", "decoder_options": {"encoder_name": "x"}}, "smp:unet has no option encoder_name"),
    ({"decoder": "smp:fpn", "decoder_options": {"decoder_segmentation_channels": 48}}, "smp:fpn cannot.*divisible"),
    ({"decoder_options": {"decoder_channels": 3}}, "decoder_options are for .* not for fish"),
    ({"width": 0}, "the width of a decoder must be at least 1 channel, not 0"),
    ({"layers": -1}, "layers"), ({"dropout": 1.0}, "dropout"), ({"auxiliary_level": 4}, "from 0 to 3, not 4"),
    ({"auxiliary": True, "auxiliary_weight": 0.0}, "auxiliary_weight must be above 0"),
    ({"num_classes": 1}, "at least 2 classes, not 1"), ({"ignore_index": 4}, "ignore_index 4 is a class"),
    ({"losses": {"iou": 1.0}}, "unknown loss 'iou'"), ({"class_weights": (1.0, 2.0)}, "2 values for 5 classes"),
])  # fmt: skip
def test_bad_plans_are_refused_with_the_reason(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(Architecture("fishnet_nano", {"pixel": PixelPlan(**{"num_classes": CLASSES, **plan})}))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    smp_decoders.cache_clear()
    with pytest.raises(UsageError, match=re.escape("pip install 'fishnet-vision[smp]'")):
        segmenter("smp:unet")
    assert pixel_decoders() == [*DECODERS]


def test_a_plan_survives_its_card() -> None:
    plan = PixelPlan(num_classes=CLASSES, losses={"dice": 0.5}, class_weights=(1.0,) * CLASSES, ignore_index=-1)
    whole = Architecture("fishnet_nano", {"pixel": plan}, taps="body")
    assert Architecture.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def train_one(rank: int, folder: str) -> None:
    """Compute the losses and the averaged gradients of one of two processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt", weights_only=False)
    torch.backends.mkldnn.set_flags(False)  # its convolutions round differently for another number of images
    found = []
    for head, maps, labels in given:
        cut = [slice(0, 1), slice(1, 3)][rank]
        own = {name: level[cut] for name, level in maps.items()}
        losses = head.losses(head.raw(own), Frame((64, 96), [(64, 96)] * len(labels[cut])), labels[cut])
        total_of(losses).backward()
        for parameter in head.parameters():
            torch.distributed.all_reduce(parameter.grad)
        gradients = {name: parameter.grad / 2 for name, parameter in head.named_parameters()}
        found.append((total_of(losses).detach(), gradients))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """Use PyTorch's own convolutions, which compute image by image."""
    torch.backends.mkldnn.set_flags(False)
    yield
    torch.backends.mkldnn.set_flags(True)


@pytest.mark.usefixtures("without_onednn")
def test_two_processes_train_a_head_as_one(tmp_path: Path) -> None:
    given = []
    labels = label_maps([(64, 96)] * 3)
    labels[0][:40] = IGNORED
    for decoder in ("fish", "fpn", "upernet", "smp:deeplabv3plus"):
        losses = {"cross_entropy": 1.0, "dice": 0.5, "lovasz": 0.5}
        network = segmenter(decoder, losses=losses, dropout=0.0, auxiliary=True).train()
        for module in network.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        with torch.no_grad():
            maps = dict(zip("0123", network.trunk(torch.randn(3, 3, 64, 96)).maps, strict=True))
        given.append((head_of(network), maps, labels))
    torch.save(given, tmp_path / "given.pt")
    alone = copy.deepcopy(given)
    torch.multiprocessing.spawn(train_one, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (head, maps, _), (loss, gradients), (other, _) in zip(alone, first, second, strict=True):
        losses = head.losses(head.raw(maps), Frame((64, 96), [(64, 96)] * 3), labels)
        total_of(losses).backward()
        torch.testing.assert_close((loss + other) / 2, total_of(losses).detach(), rtol=1e-4, atol=1e-6)
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None
            limit = 1e-4 * float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=limit + 1e-9, msg=name)


def test_the_table_of_decoders_is_up_to_date() -> None:
    path = Path(__file__).parents[3] / "docs" / "make_heads_table.py"
    table = runpy.run_path(str(path))
    page = table["PAGE"].read_text("utf-8")
    assert page == table["updated"](page)
    rows = [line.split("|")[1:6] for line in page.splitlines() if line.startswith(("| `fish` ", "| `upernet` "))]
    light, heavy = ([int(cell.replace(",", "")) for cell in row[2:4]] for row in rows)
    assert light[0] < heavy[0]
    assert light[1] < heavy[1]
