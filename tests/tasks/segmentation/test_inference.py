"""Stitched tiles equal the whole image for a local model; strips, flips and scales equal the plain computation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F2

from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.segmentation import inference
from fishnet.tasks.segmentation.inference import (
    Passes,
    decide,
    logits_of,
    predict_label_map,
    predict_probabilities,
    tile_starts,
)

CLASSES = 5


def local(images: list[Tensor]) -> list[Tensor]:
    """Logits that depend on the pixel alone."""
    weight = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(1))
    return [torch.einsum("ck,khw->chw", weight, image.float() / 128 - 1) for image in images]


def blurred(images: list[Tensor]) -> list[Tensor]:
    """Logits that depend on neighbors."""
    return [functional.avg_pool2d(logits[None], 5, 1, 2)[0] for logits in local(images)]


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def joined(run: Callable[[list[Tensor]], list[Tensor]], image: Tensor, size: tuple[int, int], passes: Passes) -> Tensor:
    return torch.cat(list(predict_probabilities(run, image, size, passes)), 1)


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(150, 210, 64, 0.25), (64, 200, 64, 0.5), (200, 64, 70, 0.0), (97, 131, 32, 0.9), (50, 40, 64, 0.5), (9, 9, 2, 0)],
)
def test_tiles_of_a_local_model_equal_the_whole_image(height: int, width: int, tile: int, overlap: float) -> None:
    image = photo(height, width)
    for size in ((height, width), (round(1.7 * height), round(1.3 * width)), (height // 2, width // 3)):
        whole = joined(local, image, size, Passes())
        stitched = joined(local, image, size, Passes(tile=tile, overlap=overlap, batch_size=3))
        assert stitched.shape == (CLASSES, *size)
        torch.testing.assert_close(stitched, whole, rtol=0, atol=1e-6)
        labels = predict_label_map(local, image, size, Passes(tile=tile, overlap=overlap))
        assert torch.equal(labels, whole.max(0).indices.to(torch.uint8))


@pytest.mark.parametrize("size", [(60, 80), (120, 160), (47, 201), (31, 33), (1, 1)])
def test_the_whole_image_is_resized_as_torch_does(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_STRIP", 600)  # several strips
    image = photo(60, 80)
    logits = local([image])[0]
    expected = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(joined(local, image, size, Passes()), expected.softmax(0), rtol=0, atol=1e-5)
    clear = expected.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4  # rounding may decide between equal logits
    for labels in (decide(logits, size), predict_label_map(local, image, size)):
        assert labels.dtype == torch.uint8
        assert torch.equal(labels[clear], expected.argmax(0)[clear].to(torch.uint8))
    assert clear.float().mean() > 0.95


def test_flips_and_scales_are_averaged_as_probabilities() -> None:
    image, size = photo(90, 70), (100, 80)
    parts = []
    for scale in (0.5, 1.0, 1.5):
        scaled = F2.resize(image, [round(90 * scale), round(70 * scale)], antialias=True)
        for flipped in (False, True):
            logits = blurred([scaled.flip(-1) if flipped else scaled])[0]
            large = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].softmax(0)
            parts.append(large.flip(-1) if flipped else large)
    expected = torch.stack(parts).mean(0)
    passes = Passes(flip=True, scales=(0.5, 1, 1.5))
    torch.testing.assert_close(joined(blurred, image, size, passes), expected, rtol=0, atol=2e-6)
    assert torch.equal(predict_label_map(blurred, image, size, passes), expected.argmax(0).to(torch.uint8))
    assert not torch.equal(expected.argmax(0), parts[0].argmax(0))
    # a local symmetric model in tiles
    tiled = joined(local, image, size, Passes(tile=32, flip=True))
    torch.testing.assert_close(tiled, joined(local, image, size, Passes()), rtol=0, atol=1e-6)


def test_seams_are_smooth() -> None:
    """Tiles that disagree are blended: neighboring pixels differ little, everywhere."""

    def by_tile(images: list[Tensor]) -> list[Tensor]:
        return [torch.full((2, *image.shape[-2:]), float(image[0, 0, 0])) for image in images]

    ramp = torch.arange(256).repeat(3, 128, 1).to(torch.uint8)  # a tile answers with the place of its corner
    strips = list(inference._stitched(by_tile, ramp, Passes(tile=64, overlap=0.5)))
    steps = torch.cat(strips, 1)[0].diff(dim=1).abs()
    assert 0 < steps.max() < 3


def test_tiles_cover_a_side() -> None:
    assert tile_starts(64, 64, 0.5) == [0]
    assert tile_starts(300, 128, 0.25) == [0, 96, 172]
    for side, tile, overlap in ((1000, 256, 0.5), (500, 100, 0.3), (7, 2, 0.9)):
        starts = tile_starts(side, tile, overlap)
        assert starts[-1] + tile == side
        assert max(np.diff(starts)) <= max(1, tile * (1 - overlap))


def test_many_classes_need_more_than_a_byte() -> None:
    logits = torch.zeros(300, 4, 5)
    logits[299] = 1
    labels = decide(logits, (8, 10))
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == [299]


def test_bad_logits_and_options_are_refused() -> None:
    image = photo(8, 8)
    with pytest.raises(FishnetError, match=r"logits of shape \(5, 4, 4\) for an image of 8x8 pixels"):
        predict_label_map(lambda images: [one[:, ::2, ::2] for one in local(images)], image, (8, 8))
    with pytest.raises(FishnetError, match="NaN or infinite"):
        predict_label_map(lambda images: [one / 0 for one in local(images)], image, (8, 8), Passes(tile=4))
    for options, message in (
        ({"tile": 0}, "--tile must be at least 1"),
        ({"overlap": 1.0}, "--overlap must be"),
        ({"scales": ()}, "--scales must be positive"),
        ({"scales": (0.0, 1.0)}, "--scales must be positive"),
        ({"batch_size": 0}, "at least 1, not 0"),
    ):
        with pytest.raises(UsageError, match=message):
            Passes(**options)


def test_any_runtime_will_do() -> None:
    image = photo(40, 50)
    run = logits_of(lambda images: {"pixel": local(images), "image": [0]})
    assert torch.equal(predict_label_map(run, image, (40, 50)), local([image])[0].argmax(0).to(torch.uint8))


_LARGE = """
import resource, sys, time, torch
from fishnet import create_model
from fishnet.tasks.segmentation.inference import Passes, predict_label_map
torch.set_num_threads(2)
trunk = create_model("fishnet_nano", features_only=True, out_indices=(1,)).eval()
classify = torch.nn.Conv2d(trunk.feature_info.channels()[-1], 11, 1)
def run(images):
    with torch.inference_mode():
        maps = classify(trunk(torch.stack(images).float() / 255)[-1])
        return list(torch.nn.functional.interpolate(maps, images[0].shape[-2:], mode="bilinear"))
image = torch.randint(0, 256, (3, 4000, 6000), dtype=torch.uint8)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
labels = predict_label_map(run, image, (4000, 6000), Passes(tile=1024, flip=sys.argv[1] == "flip"))
assert labels.shape == (4000, 6000) and labels.dtype == torch.uint8
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, before, round(time.perf_counter() - start))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in KiB on Linux only")
@pytest.mark.parametrize("flip", ["flip", "plain"])
def test_memory_of_a_large_photo(flip: str) -> None:
    """6000x4000 pixels, 11 classes, a real trunk."""
    output = subprocess.run([sys.executable, "-c", _LARGE, flip], check=True, capture_output=True, text=True).stdout
    peak = int(output.split()[0]) * 1024
    print(output)
    assert peak < 4e9


def test_memory_does_not_grow_with_the_height() -> None:
    """A tall image of 32 classes; its logits as a whole would need 0.8 GB."""
    script = (
        "import resource, torch; torch.set_num_threads(1)\n"
        "from fishnet.tasks.segmentation.inference import Passes, predict_label_map\n"
        "image = torch.zeros(3, 12000, 512, dtype=torch.uint8)\n"
        "run = lambda images: [torch.zeros(32, *one.shape[-2:]) for one in images]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "predict_label_map(run, image, (12000, 512), Passes(tile=512))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(output) * unit < 450e6
