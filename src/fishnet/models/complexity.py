"""Parameters and multiply-adds of a model, counted on the meta device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_OPERATORS = torch.ops.aten
_PRODUCTS = {
    _OPERATORS.mm: 0,
    _OPERATORS.bmm: 0,
    _OPERATORS.mv: 0,
    _OPERATORS.addmm: 1,
    _OPERATORS.baddbmm: 1,
    _OPERATORS.addbmm: 1,
    _OPERATORS.addmv: 1,
}
"""Matrix products, and the position of the first of their two factors."""


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model."""

    params: int
    """Trainable and frozen parameters, without buffers such as running statistics."""
    macs: int
    """Multiply-adds of convolutions and of matrix products with weights for one image, in layers or in functions.
    Products of two activations, such as queries and keys of attention, biases, norms and activation functions do not
    count."""


def count(model: nn.Module, size: int | tuple[int, int] = 224, in_chans: int | None = None) -> Complexity:
    """Count parameters and multiply-adds of one forward pass on the meta device; the model is not changed.

    Args:
        model: Network with input (N, in_chans, H, W), such as a FishNet or a timm backbone.
        size: Height and width of the image in pixels, or the side of a square image.
        in_chans: Number of channels of the image; None takes `model.in_chans` if it exists, else 3.

    Returns:
        The counts for one image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = in_chans or getattr(model, "in_chans", None) or 3
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    # Composite operators such as F.linear arrive at the counter in their parts, but not in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        # Copies of the tensors on the meta device: counting needs no memory, whatever the size of the model.
        memo: dict[int, Tensor] = {
            id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
            if isinstance(tensor, nn.Parameter)
            else tensor.to("meta")
            for tensor in [*model.parameters(), *model.buffers()]
        }
        shadow = copy.deepcopy(model, memo).eval()
        image = torch.empty(1, channels, height, width, device="meta", dtype=dtype)
        with _Counter(image) as counter:
            shadow(image)
    return Complexity(params=sum(p.numel() for p in model.parameters()), macs=counter.macs)


class _Counter(TorchDispatchMode):
    """Counts multiply-adds of the operators that run inside.

    An activation is what depends on the image. Tensors are told apart by their storages, so that views and what is
    written into a part of a tensor are found too.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.macs = 0
        # the storages themselves are kept, else another one could have the same number
        self._activations = {_number(image): image.untyped_storage()}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        outputs = func(*args, **(kwargs or {}))
        if any(_number(tensor) in self._activations for tensor in _tensors((args, kwargs))):
            self._activations |= {_number(tensor): tensor.untyped_storage() for tensor in _tensors(outputs)}
        operator = func.overloadpacket
        if operator is _OPERATORS.convolution:
            self.macs += _of_convolution(args, outputs)
        elif operator in _PRODUCTS:
            first = _PRODUCTS[operator]
            left, right = _tensors(args[first : first + 2])
            if _number(left) not in self._activations or _number(right) not in self._activations:
                self.macs += left.numel() * (right.shape[-1] if right.ndim > 1 else 1)
        return outputs


def _of_convolution(args: Sequence[object], outputs: object) -> int:
    """Return the multiply-adds of a convolution: each weight is used once per position of the kernel."""
    given, weight, transposed = args[0], args[1], args[6]
    positions = given if transposed else outputs
    assert isinstance(weight, Tensor)
    assert isinstance(positions, Tensor)
    return weight.numel() * positions.shape[0] * math.prod(positions.shape[2:])


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _number(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
