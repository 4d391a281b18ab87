"""Gradient norms at the stages of a network, and the isolated convolutions between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from fishnet.drawing import style
from fishnet.errors import FishnetError
from fishnet.report.isolated import TRUNK, Isolated, isolated_convolutions, parts, stage_modules

__all__ = ["GradientFlow", "Isolated", "StageGradient", "draw_gradient_flow", "gradient_flow", "gradient_norms"]
__all__ += ["isolated_convolutions"]


@dataclass(frozen=True)
class StageGradient:
    """Gradient of the loss of one image with respect to the output of a stage.

    `norm` is the Euclidean norm over the feature map (root mean square over the images), `rms` is
    norm / sqrt(elements), `shape` is (C, H, W).
    """

    name: str
    norm: float
    rms: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GradientFlow:
    """Gradients at all stages of a model, its isolated convolutions (None if torch.fx cannot trace it), and the stages
    where its trunk begins and ends.
    """

    model: str
    stages: tuple[StageGradient, ...]
    isolated: tuple[Isolated, ...] | None
    trunk: tuple[str, str]

    def crossed(self, part: str) -> list[str]:
        """Return the names of the isolated convolutions of a part: trunk, tail or bridge."""
        return [found.name for found in self.isolated or () if found.part == part]


def gradient_flow(model: nn.Module, name: str, size: int = 224, batch: int = 4, seed: int = 0) -> GradientFlow:
    """Measure the gradient norms (see `gradient_norms`) and isolated convolutions (if traceable) of a model."""
    try:
        isolated = tuple(isolated_convolutions(model))
    except FishnetError:
        isolated = None
    return GradientFlow(name, tuple(gradient_norms(model, size, batch, seed)), isolated, parts(model)[TRUNK])


def gradient_norms(
    model: nn.Module, size: int | tuple[int, int] = 224, batch: int = 4, seed: int = 0
) -> list[StageGradient]:
    """Return the gradient of the loss at the output of each stage, in the order of the stages.

    The loss is the cross entropy of a batch of normal noise with random labels. Gradients are those of the loss of each
    single image, so they do not depend on the batch size. Norm layers use batch statistics as in training, while
    dropout and drop path are disabled. Weights, statistics and modes of the model are unchanged.

    Args:
        model: A FishNet, or any timm classifier with `feature_info`.
        size: Height and width of the images in pixels.
        batch: Number of images, at least 2.
        seed: Seed of the noise and the labels.

    Raises:
        FishnetError: The model has no feature stages or no classes, or does not support images of this size.
    """
    stages = stage_modules(model)
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, _in_channels(model), height, width, generator=generator).requires_grad_()
    gradients: dict[str, Tensor] = {}
    with _as_in_training(model), torch.enable_grad():
        handles = [
            model.get_submodule(module).register_forward_hook(partial(_watch, gradients, name))
            for name, module in stages.items()
        ]
        try:
            logits = _run(model, images)
            labels = torch.randint(logits.shape[1], (batch,), generator=generator)
            F.cross_entropy(logits.float(), labels, reduction="sum").backward(inputs=[images])
        finally:
            for handle in handles:
                handle.remove()
    missing = [name for name in stages if name not in gradients]
    if missing:
        raise FishnetError(f"no gradient was recorded at stage {', '.join(missing)} of {type(model).__name__}")
    return [_measure(name, gradients[name]) for name in stages]


def draw_gradient_flow(flows: Sequence[GradientFlow]) -> Figure:
    """Draw the gradient norms of each model in a panel, on a common logarithmic scale.

    A diamond between two stages marks isolated convolutions, with their number if there are several.
    """
    counts = [len(flow.stages) for flow in flows]
    with style.styled():
        figure = style.new_figure(max(0.62 * sum(counts) + 1.2 + 0.4 * len(flows), 5.5), 4.0)
        ratios = [count + 0.8 for count in counts]
        panels = figure.subplots(1, len(flows), sharey=True, squeeze=False, width_ratios=ratios)[0]
        for axes, flow in zip(panels, flows, strict=True):
            _draw_panel(axes, flow)
        panels[0].set_ylabel("gradient norm at the stage's output")
        kinds = {part == TRUNK for flow in flows for part, _, _ in _marks(flow)}
        marks = [_diamond(trunk) for trunk in sorted(kinds, reverse=True)]
        if marks:
            figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return figure


def _draw_panel(axes: Axes, flow: GradientFlow) -> None:
    names = [stage.name for stage in flow.stages]
    norms = [stage.norm for stage in flow.stages]
    places = range(len(names))
    axes.plot(places, norms, color=style.RULE, linewidth=2.5, zorder=1)
    axes.scatter(
        places, norms, s=70, color=[style.PARTS.get(style.part_of(name), style.BLUE) for name in names], zorder=3
    )
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xticks(places, [style.middle(name, 14) for name in names], parse_math=False)
    axes.tick_params(axis="x", length=0, labelrotation=90 if max(map(len, names)) > 6 else 0)
    axes.grid(visible=False, axis="x")
    number = len(flow.crossed(TRUNK))
    verdict = (
        "torch.fx cannot trace the network"
        if flow.isolated is None
        else f"isolated convolutions on the trunk: {number or 'none'}"
    )
    axes.set_title(flow.model, pad=20, parse_math=False)
    axes.annotate(verdict, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=style.MUTED)
    begin, end = (names.index(name) for name in flow.trunk)
    axes.axvspan(begin - 0.5 if begin == 0 else begin, end + 0.5, color="#f3f6f9", zorder=0, linewidth=0)
    axes.annotate(
        "trunk", (end + 0.4, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", color=style.MUTED
    )
    for part, place, count in _marks(flow):
        height = math.sqrt(norms[place - 1] * norms[place])
        diamond = _diamond(part == TRUNK, place - 0.5, height)
        axes.add_line(diamond)
        if count > 1:
            offset, color = (7, 4), diamond.get_color()
            axes.annotate(f"×{count}", (place - 0.5, height), offset, textcoords="offset points", color=color)


def _diamond(trunk: bool, x: float | None = None, y: float | None = None) -> Line2D:
    """Return the marker of isolated convolutions: filled on the trunk, hollow in tail and bridge."""
    color = style.INK if trunk else style.MUTED
    label = "isolated convolutions on the trunk" if trunk else "isolated convolutions in tail and bridge"
    return Line2D(
        [] if x is None else [x],
        [] if y is None else [y],
        linestyle="",
        marker="D",
        markersize=7,
        color=color,
        markerfacecolor=color if trunk else "white",
        label=label,
        zorder=4,
    )


def _marks(flow: GradientFlow) -> Iterator[tuple[str, int, int]]:
    """Yield (part, index of the following stage, number) of the isolated convolutions."""
    for place, stage in enumerate(flow.stages):
        found = [entry.part for entry in flow.isolated or () if entry.stage == stage.name]
        if found and place:
            yield found[0], place, len(found)


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Set norm layers to training mode and all others to eval mode; restore modes and buffers at the end."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training


def _watch(gradients: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    """Forward hook that stores the gradient of the output; works if a later operation modifies the output in place."""
    output.register_hook(lambda gradient: gradients.__setitem__(name, gradient))


def _run(model: nn.Module, images: Tensor) -> Tensor:
    try:
        logits = model(images)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise FishnetError(
            f"{type(model).__name__} does not support images of shape {tuple(images.shape)}: {reason}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise FishnetError(
            f"gradient flow needs a classifier with at least 2 classes, which {type(model).__name__} does not have"
        )
    return logits


def _in_channels(model: nn.Module) -> int:
    """Return the number of input channels of the first convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _measure(name: str, gradient: Tensor) -> StageGradient:
    squares = gradient.detach().double().flatten(1).square().sum(1)
    norm = math.sqrt(float(squares.mean()))
    return StageGradient(name, norm, norm / math.sqrt(gradient[0].numel()), tuple(gradient.shape[1:]))
