"""Architecture figure of a FishNet: stages along the x axis, height by resolution, arcs for transfers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from torch import nn

from fishnet.drawing import style
from fishnet.errors import UsageError, counted
from fishnet.models.config import SKIPS
from fishnet.models.fishnet import FishNet

_WIDTH = 1.0
_STEP = 1.22
_GAP = 0.38
_LOW, _RISE = 1.3, 0.78
_INCH = (0.8, 0.7)
_WATER = "#edf4f9"


@dataclass(frozen=True)
class _Box:
    """Drawn stage: center on the x axis, height and lines of text."""

    name: str
    part: str
    x: float
    height: float
    lines: tuple[str, ...]
    stride: int
    channels: int

    @property
    def top(self) -> float:
        return self.height / 2


def draw_fish(model: nn.Module, name: str = "FishNet") -> Figure:
    """Draw the architecture of a FishNet.

    Each stage is a box with its channels and number of residual blocks, whose height shows the resolution. Arrows are
    the trunk. Arcs are the transfers; each ends at the fraction of the channels that it contributes.

    Args:
        model: A FishNet.
        name: Title of the figure.

    Raises:
        UsageError: The model is not a FishNet.
    """
    if not isinstance(model, FishNet):
        raise UsageError(f"cannot draw {name}: it is not a model of the FishNet family")
    boxes = _boxes(model)
    first, last = min(box.x for box in boxes.values()), max(box.x for box in boxes.values())
    left, right, bottom, top = first - 2.2, last + 2.75, -4.85, 4.15
    with style.styled():
        figure = style.new_figure((right - left) * _INCH[0], (top - bottom) * _INCH[1], layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_axis_off()
        _draw_silhouette(axes, list(boxes.values()))
        for stage, source in SKIPS.items():
            _draw_transfer(axes, boxes[source], boxes[stage], _transfer_depth(model, stage))
        for stage, box in boxes.items():
            _draw_box(axes, box, boxes[SKIPS[stage]] if stage in SKIPS else None)
        _draw_trunk(axes, list(boxes.values()), model)
        _draw_labels(axes, boxes, model, name)
    return figure


def _boxes(model: FishNet) -> dict[str, _Box]:
    config = model.config
    depths = dict(
        zip(
            ("t1", "t2", "t3", "bridge", "b1", "b2", "b3", "h1", "h2", "h3"),
            (*config.tail_depths, config.bridge_depth, *config.body_depths, *config.head_depths),
            strict=True,
        )
    )
    boxes: dict[str, _Box] = {}
    stages = {stage: found for stage, found in model.stage_info.items() if stage != "stem_conv"}
    stages["score"] = (stages["h3"][0], config.score_width)
    deepest = max(stride for stride, _ in stages.values())
    x, previous = 0.0, "stem"
    for stage, (stride, channels) in stages.items():
        part = _part(stage)
        x += (_STEP if boxes else 0) + (_GAP if part != previous else 0)
        previous = part
        lines = (
            ["3 convs"] if stage == "stem" else ["1×1 conv"] if stage == "score" else [_count(depths[stage], "block")]
        )
        if stage == "bridge" and config.gate:
            lines.append("+ gate")
        height = _LOW + _RISE * math.log2(deepest / stride)
        boxes[stage] = _Box(stage, part, x, height, tuple(lines), stride, channels)
    return boxes


def _part(stage: str) -> str:
    return style.part_of(stage)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _transfer_depth(model: FishNet, stage: str) -> int:
    return model.config.transfer_depths[list(SKIPS).index(stage)]


def _draw_silhouette(axes: Axes, boxes: list[_Box]) -> None:
    """Draw the outline of a fish around the boxes: a forked fin at the stem, a round nose with an eye at the score."""
    margin, edge = 0.3, 0.9
    xs = np.array([boxes[0].x - edge, *(box.x for box in boxes), boxes[-1].x + edge])
    tops = np.array([boxes[0].top + 0.5, *(box.top for box in boxes), boxes[-1].top - 0.05]) + margin
    x = np.linspace(xs[0], xs[-1], 600)
    place = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    share = (x - xs[place]) / (xs[place + 1] - xs[place])
    top = tops[place] + (tops[place + 1] - tops[place]) * (3 * share**2 - 2 * share**3)
    angle = np.linspace(np.pi / 2, -np.pi / 2, 80)
    nose = np.column_stack([xs[-1] + 0.95 * np.cos(angle), tops[-1] * np.sin(angle)])
    fork = [[xs[0] + 0.36, 0.0]]
    outline = np.concatenate([np.column_stack([x, top]), nose, np.column_stack([x, -top])[::-1], fork])
    axes.add_patch(Polygon(outline, closed=True, facecolor=_WATER, edgecolor="#cfe0ec", linewidth=1.2, zorder=0))
    eye = (xs[-1] + 0.1, 0.4)
    for size, color in ((0.155, "white"), (0.085, style.INK)):
        axes.add_patch(_circle(eye, size, color))


def _circle(center: tuple[float, float], size: float, color: str) -> PathPatch:
    """Return a circle that appears round although the axes have different scales; `size` is the radius in x units."""
    unit = Circle((0, 0), 1).get_path()
    scaled = np.asarray(unit.vertices) * (size, size * _INCH[0] / _INCH[1]) + center
    return PathPatch(Outline(scaled, unit.codes), facecolor=color, edgecolor=style.MUTED, linewidth=0.6, zorder=2)


def _draw_box(axes: Axes, box: _Box, source: _Box | None) -> None:
    color = _color(box.part)
    corner = (box.x - _WIDTH / 2, -box.top)
    body = FancyBboxPatch(
        corner,
        _WIDTH,
        box.height,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=color,
        edgecolor="none",
        zorder=3,
    )
    axes.add_patch(body)
    shift = 0.0
    if source is not None:
        share = box.height * source.channels / box.channels
        low = box.top - share if box.part == "body" else -box.top
        strip = Rectangle((corner[0], low), _WIDTH, share, facecolor=_color(source.part), edgecolor="none", zorder=4)
        axes.add_patch(strip)
        strip.set_clip_path(body)
        seam = low if box.part == "body" else low + share
        axes.plot([corner[0], corner[0] + _WIDTH], [seam, seam], color="white", linewidth=1.4, zorder=4)
        shift = -share / 2 if box.part == "body" else share / 2
    texts = [
        (box.name, 12.5, "bold"),
        (f"{box.channels} ch", 9, "bold"),
        *((line, 8.5, "normal") for line in box.lines),
    ]
    pitch = 0.265
    room = max(0.0, box.top - pitch * (len(texts) - 1) / 2 - 0.2)
    shift = min(max(shift, -room), room)
    for number, (text, size, weight) in enumerate(texts):
        y = shift + pitch * ((len(texts) - 1) / 2 - number) + (0.05 if number == 0 else 0)
        axes.text(box.x, y, text, ha="center", va="center", fontsize=size, weight=weight, color="white", zorder=5)


def _draw_transfer(axes: Axes, source: _Box, target: _Box, depth: int) -> None:
    """Draw a transfer as an arc: above the stages from tail to body, below them from body and bridge to head."""
    side = 1 if target.part == "body" else -1
    begin, end = (source.x, side * source.top), (target.x, side * (target.top + 0.06))
    span = target.x - source.x
    peak = side * (1.15 + 0.27 * span if side > 0 else 1.62 + 0.235 * span)
    control = (peak - 0.125 * (begin[1] + end[1])) / 0.75
    points = [begin, (begin[0], control), (end[0], control), end]
    path = Outline(points, [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4])
    color = _color(source.part)
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>,head_length=6,head_width=3.5",
            color=color,
            linewidth=2.2,
            zorder=1,
            shrinkA=0,
            shrinkB=0,
        )
    )
    pill = {"boxstyle": "round,pad=0.35,rounding_size=0.6", "facecolor": "white", "edgecolor": color, "linewidth": 1.2}
    text = f"{source.channels} ch" + (f", {_count(depth, 'block')}" if depth else "")
    axes.text((begin[0] + end[0]) / 2, peak, text, ha="center", va="center", fontsize=8, bbox=pill, zorder=6)


def _draw_trunk(axes: Axes, boxes: list[_Box], model: FishNet) -> None:
    ends = [(boxes[0].x - 1.35, boxes[0].x - _WIDTH / 2)]
    ends += [(a.x + _WIDTH / 2, b.x - _WIDTH / 2) for a, b in pairwise(boxes)]
    ends += [(boxes[-1].x + _WIDTH / 2, boxes[-1].x + 2.0)]
    for begin, end in ends:
        axes.add_patch(
            FancyArrowPatch(
                (begin, 0), (end, 0), arrowstyle="-|>,head_length=4.5,head_width=2.6", color=style.INK, linewidth=1.6,
                shrinkA=0, shrinkB=0, zorder=3,
            )
        )  # fmt: skip
    axes.text(boxes[0].x - 1.4, 0, "image", ha="right", va="center", fontsize=9, color=style.MUTED)
    answer = counted(model.num_classes, "class").replace(" ", "\n") if model.num_classes else "features"
    axes.text(boxes[-1].x + 2.06, 0, answer, va="center", fontsize=9, color=style.MUTED)


def _draw_labels(axes: Axes, boxes: dict[str, _Box], model: FishNet, name: str) -> None:
    """Draw the title, and below the stages their strides and the names of the parts."""
    left, right = axes.get_xlim()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    axes.text(left + 0.25, 3.7, name, fontsize=18, weight="bold", va="center", parse_math=False)
    notes = (3.75, 11, f"{millions:.1f} M parameters"), (3.4, 9, "arcs: transfers, concatenated to the trunk")
    for height, size, note in notes:
        axes.text(right - 0.25, height, note, fontsize=size, ha="right", va="center", color=style.MUTED)
    axes.text(left + 0.25, -4.05, "stride", fontsize=9.5, va="center", color=style.MUTED)
    for box in boxes.values():
        if box.name != "score":
            axes.text(box.x, -4.05, str(box.stride), ha="center", va="center", fontsize=9.5, color=style.MUTED)
    for part in ("stem", "tail", "bridge", "body", "head"):
        places = [box.x for box in boxes.values() if box.part == part]
        span = places[0] - _WIDTH / 2, places[-1] + _WIDTH / 2
        axes.plot(span, (-4.28, -4.28), color=_color(part), linewidth=2.5, solid_capstyle="butt")
        middle = (span[0] + span[1]) / 2
        axes.text(middle, -4.52, part, ha="center", va="center", fontsize=10.5, weight="bold", color=_color(part))


def _color(part: str) -> str:
    return style.PARTS.get(part, style.INK)
