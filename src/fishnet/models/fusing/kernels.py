"""Convolutions as matrix products, for inference on CPUs with PyTorch itself.

1x1 convolutions in channels-last memory are products of a matrix of pixels, and products can add to an existing matrix:
residual sums cost nothing. 3x3 convolutions use minimal filtering (Lavin & Gray, Fast Algorithms for Convolutional
Neural Networks, arXiv 1509.09308): 36 multiplications per tile of 4x4 outputs instead of 144.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fishnet.models.fusing.folding import Affine

_TILE, _TAPS = 4, 3
_SIDE = _TILE + _TAPS - 1
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
"""Points at which the polynomials are evaluated, besides infinity. In float32 they lose about as much as a plain
convolution, and 0, 1, -1, 2, -2, the usual choice, five times as much."""
_FEWEST_CHANNELS = 64
_FEWEST_PRODUCTS = 1536
"""Tiles of an image times channels below which plain convolutions are faster, as measured on CPUs with AVX2."""
_MOST_PADDING = 1.5
_TILES_AT_ONCE, _BYTES_AT_ONCE = 64, 5 << 18
_LARGEST = 1e30


class Pointwise(nn.Module):
    """A 1x1 convolution as a matrix product, optionally preceded by BatchNorm and ReLU and followed by a ReLU.

    ReLU(s x + t) = s clamp(x) + t, with a bound at -t/s in every channel: from below if s is positive, else from above.
    s and t are folded into weight and bias, so that norm and ReLU read and write the map once.

    (N, in_channels, H, W) -> (N, out_channels, H, W)

    Args:
        conv: 1x1 convolution of stride 1 without groups.
        before: BatchNorm that a ReLU and the convolution follow; None if there is none.
        relu: Whether a ReLU follows.
    """

    low: Tensor | None
    high: Tensor | None
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, before: Affine | None = None, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        weight = conv.weight.detach()[:, :, 0, 0].double()
        bias = None if conv.bias is None else conv.bias.detach().double()
        low = high = None
        if before is not None:
            scale, shift = before
            constant = (scale == 0) | ((shift / scale).abs() > _LARGEST)
            scale = torch.where(constant, 0.0, scale)
            bound = torch.where(constant, 0.0, -shift / scale)
            offset = torch.where(constant, shift.relu(), shift)
            bias = weight @ offset if bias is None else bias + weight @ offset
            weight = weight * scale
            low = torch.where(scale < 0, -torch.inf, bound)
            high = torch.where(scale > 0, torch.inf, bound)
        like = conv.weight
        self.register_buffer("weight", weight.t().contiguous().to(like.dtype))
        self.register_buffer("bias", None if bias is None else bias.to(like.dtype))
        self.register_buffer("low", None if low is None else low.to(like.dtype)[:, None, None])
        one_side = high is None or bool((high == torch.inf).all())
        self.register_buffer("high", None if one_side or high is None else high.to(like.dtype)[:, None, None])

    def forward(self, x: Tensor, total: Tensor | None = None, in_place: bool = False) -> Tensor:
        """Return the convolution of x.

        Args:
            x: Maps (N, in_channels, H, W).
            total: Maps (N, out_channels, H, W) to add.
            in_place: Whether `total` may be overwritten with the result.
        """
        if self.low is not None:
            x = torch.maximum(x, self.low) if self.high is None else torch.clamp(x, self.low, self.high)
        weight = self.get_buffer("weight")
        n, _, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        if total is None:
            y = pixels @ weight if self.bias is None else torch.addmm(self.bias, pixels, weight)
        else:
            flat = total.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
            # out of place if the reshape made a copy, or if gradients are wanted
            y = flat.addmm_(pixels, weight) if in_place and not flat.requires_grad else flat.addmm(pixels, weight)
            y = y if self.bias is None else y.add_(self.bias)
        if self.relu:
            y = y.relu_()
        return y.view(n, height, width, -1).permute(0, 3, 1, 2)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 by minimal filtering (Winograd), optionally followed by a ReLU.

    Inputs for which it is slower use a direct convolution. The transformed weights take four times the memory of the
    weights.

    Args:
        conv: Convolution that `suits_winograd`; its parameters are shared.
        relu: Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        with torch.device("meta"):
            super().__init__(conv.in_channels, conv.out_channels, _TAPS, padding=1, bias=conv.bias is not None)
        self.weight, self.bias, self.relu = conv.weight, conv.bias, relu
        weight = conv.weight.detach()
        into, filters, back = (part.to(weight.device) for part in _transforms())
        spread = torch.einsum("ai,bj,ocij->abco", filters, filters, weight.double())
        spread = spread.reshape(_SIDE**2, conv.in_channels, conv.out_channels)
        for name, value in (
            ("spread", spread),
            ("into", torch.kron(into, into)[None]),
            ("back", torch.kron(back, back)),
        ):
            self.register_buffer(name, value.to(weight.dtype).contiguous(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of maps (N, C, H, W)."""
        n, _, height, width = input.shape
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        tiles = rows * columns
        padded = tiles * _TILE**2 > _MOST_PADDING * height * width
        half = input.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(input.device.type)
        channels = min(self.in_channels, self.out_channels)
        if tiles * channels < _FEWEST_PRODUCTS or padded or half or not n:
            y = super().forward(input)
            return y.relu_() if self.relu else y
        channels = max(self.in_channels, self.out_channels)
        fitting = _BYTES_AT_ONCE // (tiles * channels * _SIDE**2 * input.element_size())
        step = max(1, fitting, -(-_TILES_AT_ONCE // tiles))  # few enough for the cache, enough for the weights
        parts = input.chunk(-(-n // step))
        return torch.cat([self._part(part, rows, columns) for part in parts])

    def _part(self, x: Tensor, rows: int, columns: int) -> Tensor:
        n, channels, height, width = x.shape
        below, right = rows * _TILE - height, columns * _TILE - width
        x = F.pad(x, (1, right + 1, 1, below + 1)).permute(0, 2, 3, 1)
        tiles = x.unfold(1, _SIDE, _TILE).unfold(2, _SIDE, _TILE)  # (N, rows, columns, C, side, side)
        tiles = tiles.permute(0, 1, 2, 4, 5, 3).reshape(-1, _SIDE**2, channels)
        into = self.get_buffer("into")
        spectra = torch.bmm(into.expand(len(tiles), -1, -1), tiles).transpose(0, 1)
        products = torch.bmm(spectra, self.get_buffer("spread"))  # (side^2, tiles, C')
        y = self.get_buffer("back") @ products.flatten(1)
        y = y.view(-1, self.out_channels)
        if self.bias is not None:
            y += self.bias
        if self.relu:
            y.relu_()
        y = y.view(_TILE, _TILE, n, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        y = y.reshape(n, rows * _TILE, columns * _TILE, -1)[:, :height, :width]
        return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def suits_winograd(conv: nn.Module) -> bool:
    """Return whether minimal filtering computes a convolution faster, on maps of common sizes."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (_TAPS, _TAPS)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ((1, 1), 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _FEWEST_CHANNELS
    )


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms of inputs (6, 6), filters (6, 3) and products (4, 6), in float64.

    Evaluation at 6 points turns the product of two polynomials of 4 and 3 coefficients into 6 products of numbers.
    Filtering is the transpose of that product.
    """
    powers = torch.tensor(_POINTS, dtype=torch.float64)[:, None] ** torch.arange(_SIDE)

    def evaluation(length: int) -> Tensor:
        at_infinity = F.one_hot(torch.tensor([length - 1]), length).double()  # the leading coefficient
        return torch.cat([powers[:, :length], at_infinity])

    into = torch.linalg.inv(evaluation(_SIDE)).t()
    filters, back = evaluation(_TAPS), evaluation(_TILE).t()
    size = into.abs().amax(1, keepdim=True)  # rows of one magnitude lose the least in rounding
    return into / size, filters * size, back
