"""Inference of label maps: on the whole image or in overlapping tiles, with test-time augmentation.

Results are computed in strips from top to bottom: the logits of tiles are blended in a buffer, resized to the output
size, converted to probabilities, averaged over flips and scales, and reduced to classes, one strip at a time. Memory
grows with the width of an image, not with its area, except for the image and the label map.

The network is a function from images to logits, so that exported networks can be used as well. A FishNet pools globally
in its bridge: every output depends on the whole input, so the logits of tiles differ from those of the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F2

from fishnet.data.tiles import tile_starts
from fishnet.errors import FishnetError, UsageError
from fishnet.models.heads.types import Size
from fishnet.tasks.base import Runtime

HEAD = "pixel"
"""Name of the segmentation head."""
Logits = Callable[[list[Tensor]], list[Tensor]]
"""Function from images (3, h, w) of one size to logits, float (C, h, w) each."""
GRID = 32
"""Steps between tiles are multiples of this number of pixels, so that all tiles are aligned to the coarsest map."""
_STRIP = 2**18
"""Pixels of the output that are computed at once."""
_CHUNK = 64
"""Rows of logits in a strip."""


@dataclass(frozen=True)
class Passes:
    """Passes of the network over an image: tiles and test-time augmentation.

    Attributes:
        tile: Side of square tiles in pixels of the network's input; None: the whole image at once.
        overlap: Minimum fraction of a tile that overlaps with the next.
        flip: Also use the image flipped horizontally.
        scales: Factors by which the image is resized; probabilities are averaged over them.
        batch_size: Tiles per forward pass.
    """

    tile: int | None = None
    overlap: float = 0.25
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise UsageError(f"--tile must be at least 1 pixel, not {self.tile}")
        if not 0 <= self.overlap < 1:
            raise UsageError(f"--overlap must be at least 0 and below 1, not {self.overlap}")
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise UsageError(f"--scales must be positive factors, such as 0.75 1 1.25, not {list(self.scales)}")
        if self.batch_size < 1:
            raise UsageError(f"the number of tiles per forward pass must be at least 1, not {self.batch_size}")

    @property
    def is_single(self) -> bool:
        """Whether there is a single pass over the whole image, without resizing or flipping."""
        return self.tile is None and not self.flip and self.scales == (1.0,)


WHOLE = Passes()
"""One pass over the whole image."""


def logits_of(runtime: Runtime, head: str = HEAD) -> Logits:
    """Return the function from images to logits that a runtime computes with one of its heads."""
    return lambda images: runtime(images)[head]


def predict_label_map(run: Logits, image: Tensor, size: Size, passes: Passes = WHOLE) -> Tensor:
    """Return the most probable class of every pixel.

    Args:
        run: Network.
        image: Image (3, h, w) as network input.
        size: Height and width of the label map; logits are resized to it bilinearly.
        passes: Tiles and test-time augmentation.

    Returns:
        Class indices (H, W) on the CPU: uint8, or int64 for more than 256 classes.

    Raises:
        FishnetError: Logits are not finite, or differ from the image in size.
    """
    return _decided(_averaged(_views(run, image, size, passes), size), size)


def predict_probabilities(run: Logits, image: Tensor, size: Size, passes: Passes = WHOLE) -> Iterator[Tensor]:
    """Yield the probabilities of the classes in strips, float32 (C, rows, W), from top to bottom.

    Args:
        run: Network.
        image: Image (3, h, w) as network input.
        size: Height and width of all strips together.
        passes: Tiles and test-time augmentation.
    """
    views = _views(run, image, size, passes)
    for strip in _averaged(views, size):
        yield strip.softmax(0) if len(views) == 1 else strip


def decide(logits: Tensor, size: Size) -> Tensor:
    """Return the label map (H, W) of the logits (C, h, w) of a whole image; see `predict_label_map`."""
    _check(logits, (logits.shape[-2], logits.shape[-1]))
    return _decided(_averaged([_Rows(iter([logits]), logits.shape[-2], size)], size), size)


def _decided(strips: Iterator[Tensor], size: Size) -> Tensor:
    labels = torch.empty(0)
    top = 0
    for strip in strips:
        if not top:
            labels = torch.empty(size, dtype=torch.uint8 if len(strip) <= 256 else torch.int64)
        labels[top : top + strip.shape[1]] = strip.max(0).indices  # several times faster than argmax on a CPU
        top += strip.shape[1]
    return labels


class _Rows:
    """Logits of an image, resized bilinearly (half-pixel centers) and read from top to bottom.

    Args:
        strips: Logits (C, rows, w) from top to bottom.
        height: Number of rows of all strips.
        size: Height and width to resize to.
        flipped: Whether the strips belong to the image flipped horizontally.
    """

    def __init__(self, strips: Iterator[Tensor], height: int, size: Size, flipped: bool = False) -> None:
        self.strips, self.height, self.size, self.flipped = strips, height, size, flipped
        self.pending: Tensor | None = None
        self.first = 0
        """Row of the source that `pending` begins with."""

    def read(self, top: int, bottom: int) -> Tensor:
        """Return the rows from `top` to `bottom` of the result, (C, rows, W); rows above are discarded."""
        places = (np.arange(top, bottom) + 0.5) * (self.height / self.size[0]) - 0.5
        places = places.clip(0, self.height - 1)
        upper = np.floor(places).astype(np.int64)
        lower = np.minimum(upper + 1, self.height - 1)
        source = self._source(int(upper[0]), int(lower[-1]) + 1)
        if self.height == self.size[0]:
            rows = source[:, : bottom - top]
        else:
            first = torch.from_numpy(upper - self.first).to(source.device)
            second = torch.from_numpy(lower - self.first).to(source.device)
            share = torch.from_numpy(places - upper).to(source)[:, None]
            rows = torch.lerp(source[:, first], source[:, second], share)
        if rows.shape[-1] != self.size[1]:
            rows = functional.interpolate(rows[None], (rows.shape[1], self.size[1]), mode="bilinear")[0]
        return rows.flip(-1) if self.flipped else rows

    def _source(self, top: int, bottom: int) -> Tensor:
        """Return the logits from row `top` to at least `bottom`."""
        parts = [] if self.pending is None else [self.pending]
        have = self.first + sum(part.shape[1] for part in parts)
        while have < bottom:
            parts.append(next(self.strips).float())
            have += parts[-1].shape[1]
        rows = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        self.pending, self.first = rows[:, top - self.first :], top
        return self.pending


def _averaged(views: Sequence[_Rows], size: Size) -> Iterator[Tensor]:
    """Yield strips (C, rows, W): the logits of a single view, the mean probabilities of several."""
    step = max(1, _STRIP // size[1])
    for top in range(0, size[0], step):
        bottom = min(size[0], top + step)
        if len(views) == 1:
            yield views[0].read(top, bottom)
            continue
        total = views[0].read(top, bottom).softmax(0)
        for view in views[1:]:
            total += view.read(top, bottom).softmax(0)
        yield total / len(views)


def _views(run: Logits, image: Tensor, size: Size, passes: Passes) -> list[_Rows]:
    """Return the logits of an image at every scale, flipped and not."""
    views = []
    for scale in passes.scales:
        sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
        scaled = image if sides == list(image.shape[-2:]) else F2.resize(image, sides, antialias=True)
        for flipped in (False, True) if passes.flip else (False,):
            seen = scaled.flip(-1) if flipped else scaled
            views.append(_Rows(_stitched(run, seen, passes), sides[0], size, flipped))
    return views


def _stitched(run: Logits, image: Tensor, passes: Passes) -> Iterator[Tensor]:
    """Yield the logits of an image in strips (C, rows, w), blended over the tiles that cover a pixel.

    Weights are products of a window over the rows and one over the columns, and so are their sums.
    """
    height, width = image.shape[-2:]
    tall, wide = min(height, passes.tile or height), min(width, passes.tile or width)
    tops = tile_starts(height, tall, passes.overlap, GRID)
    lefts = tile_starts(width, wide, passes.overlap, GRID)
    if len(tops) == len(lefts) == 1:
        yield _run_checked(run, [image])[0]
        return
    down, across = _window(tall), _window(wide)
    down_sum, across_sum = _covered(tops, down, height), _covered(lefts, across, width)
    rows: Tensor | None = None
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for start in range(0, len(lefts), passes.batch_size):
            part = lefts[start : start + passes.batch_size]
            tiles = [image[:, top : top + tall, left : left + wide] for left in part]
            for left, logits in zip(part, _run_checked(run, tiles), strict=True):
                if rows is None:
                    rows = logits.new_zeros(len(logits), tall, width, dtype=torch.float32)
                weight = (down[:, None] * across).to(rows.device)
                rows[:, :, left : left + wide] += logits.float() * weight
        assert rows is not None
        done = following - top
        for start in range(0, done, _CHUNK):
            stop = min(done, start + _CHUNK)
            total = down_sum[top + start : top + stop, None] * across_sum
            yield rows[:, start:stop] / total.to(rows.device)
        rest = rows[:, done:].clone()
        rows[:, : tall - done] = rest
        rows[:, tall - done :] = 0


def _run_checked(run: Logits, images: list[Tensor]) -> list[Tensor]:
    answers = run(images)
    for image, logits in zip(images, answers, strict=True):
        _check(logits, (image.shape[-2], image.shape[-1]))
    return answers


def _check(logits: Tensor, size: Size) -> None:
    if logits.ndim != 3 or tuple(logits.shape[-2:]) != size:
        raise FishnetError(
            f"the model gave logits of shape {tuple(logits.shape)} for an image of {size[0]}x{size[1]} pixels; "
            "(classes, height, width) is expected"
        )
    if not torch.isfinite(logits).all():
        raise FishnetError(
            "the model gave NaN or infinite outputs: its weights are damaged or its training diverged (train with a "
            "lower --lr, with --optim.clip_grad or in fp32)"
        )


def _window(side: int) -> Tensor:
    """Return weights (side,) that decrease smoothly from the center of a tile to almost 0 at its ends."""
    return torch.sin(torch.pi * (torch.arange(side, dtype=torch.float64) + 0.5) / side).square().float()


def _covered(starts: Sequence[int], window: Tensor, side: int) -> Tensor:
    """Return the sum of the weights of all tiles at every position of a side."""
    total = torch.zeros(side)
    for start in starts:
        total[start : start + len(window)] += window
    return total
