"""Boxes, pooling, keypoints, run lengths and label maps in NumPy against torchvision, PyTorch and COCO's code.

Masks are in tests/tasks/detection/test_masks.py.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from fishnet.data.run_lengths import counts_text, encode
from fishnet.runner.boxes import best, suppressed
from fishnet.runner.masks import cubic, keypoints, run_lengths
from fishnet.runner.pixels import label_map
from fishnet.runner.pooling import Pooling
from fishnet.tasks.segmentation.inference import decide


def random_boxes(count: int, side: float, generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * side * 0.7 + 0.3], 1)


def test_non_maximum_suppression() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 40, 1500):
        boxes, scores = random_boxes(count, 80, generator), torch.rand(count, generator=generator)
        groups = torch.randint(0, 3, (count,), generator=generator)
        wanted = batched_nms(boxes, scores, groups, 0.5)
        assert suppressed(boxes.numpy(), scores.numpy(), groups.numpy(), 0.5).tolist() == wanted.tolist()


def test_best_takes_the_first_of_equal_scores() -> None:
    scores = np.array([1, 3, 2, 3, 2, 2], np.float32)
    assert best(scores, 4).tolist() == [1, 3, 2, 4]
    assert best(scores, 9).tolist() == [1, 3, 2, 4, 5, 0]


def test_pooling_is_roi_align() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {str(level): torch.randn(1, 5, 64 >> level, 80 >> level, generator=generator) for level in range(3)}
    boxes = torch.cat([random_boxes(60, 200, generator), torch.tensor([[-9.0, -9, 400, 400], [5, 5, 5, 5]])])
    plain = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=56)
    wanted = plain(maps, [boxes], [(256, 320)])
    pool = Pooling(["0", "1", "2"], [4, 8, 16], 7, 2, canonical_size=56)
    found = pool([value[0].permute(1, 2, 0).numpy() for value in maps.values()], boxes.numpy())
    assert np.allclose(found.transpose(0, 3, 1, 2), wanted, atol=1e-5)


def test_interpolation_matrices() -> None:
    values = torch.randn(1, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    for size in ((9, 7), (20, 31), (4, 3), (1, 1)):
        wanted = F.interpolate(values, size, mode="bicubic", align_corners=False)[0, 0]
        found = cubic(9, size[0]) @ values[0, 0].numpy() @ cubic(7, size[1]).T
        assert np.allclose(found, wanted, atol=1e-5)


def test_keypoints_are_those_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, maps = random_boxes(12, 60, generator), torch.randn(12, 4, 14, 14, generator=generator)
    wanted, scores = heatmaps_to_keypoints(maps, boxes)
    found, own = keypoints(maps.numpy(), boxes.numpy())
    assert np.allclose(found, wanted.permute(0, 2, 1) if wanted.shape[1] == 3 else wanted, atol=1e-3)
    assert np.allclose(own, scores, atol=1e-4)


def test_run_lengths_are_those_of_coco() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(37, 53, generator=generator) > share for share in (0.02, 0.5, 0.999)]
    masks += [torch.zeros(4, 5, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool), torch.eye(300, dtype=torch.bool)]
    masks.append(F.pad(torch.ones(900, 40), (700, 0, 0, 5)).bool())
    for mask in masks:
        assert run_lengths(mask.numpy()) == counts_text(encode(mask[None])[0])


def test_label_maps_are_those_of_the_task() -> None:
    logits = torch.randn(4, 30, 41, generator=torch.Generator().manual_seed(0))
    for size in ((30, 41), (75, 90), (17, 11), (1, 1)):
        found = label_map(logits.numpy(), size)
        assert found.dtype == np.uint8
        assert (found == decide(logits, size).numpy()).mean() > 0.999
