"""Peak throughput of the machine: multiply-adds per second of plain matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

PEAK = "peak"
"""Model name of the cases that measure the peak."""
_LAYERS = 4
"""Number of consecutive layers of a shape, so that the conversion of the input precision is negligible."""


@dataclass(frozen=True)
class Shape:
    """Consecutive equal layers."""

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    """Shape of the input without the batch."""
    macs: int
    """Multiply-adds for one input."""


def _product(rows: int, width: int) -> Shape:
    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(_LAYERS)))

    return Shape(f"matrix product {rows}x{width}x{width}", build, (rows, width), _LAYERS * rows * width * width)


def _convolution(kernel: int, width: int, side: int) -> Shape:
    def build() -> nn.Module:
        layers = (nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False) for _ in range(_LAYERS))
        return nn.Sequential(*layers)

    macs = _LAYERS * kernel * kernel * width * width * side * side
    return Shape(f"{kernel}x{kernel} convolution, {width} channels, {side}x{side}", build, (width, side, side), macs)


SHAPES = (
    _product(512, 512),
    _product(1024, 1024),
    _product(3136, 256),
    _convolution(1, 256, 56),
    _convolution(1, 1024, 14),
    _convolution(3, 64, 56),
    _convolution(3, 128, 28),
    _convolution(3, 256, 28),
    _convolution(3, 512, 14),
)
"""Shapes to measure, including those of networks for 224x224 images."""
