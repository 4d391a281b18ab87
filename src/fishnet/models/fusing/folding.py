"""BatchNorms folded into the convolutions before them, in networks of any kind.

A trial pass records which convolution each BatchNorm follows and which other operations read its output, so that
nothing has to be known of the code of the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Norm = nn.modules.batchnorm._BatchNorm
_PARTS = ("drop", "act")
"""Submodules of timm's BatchNorms that stay, in the order in which they run."""


class Affine(NamedTuple):
    """BatchNorm in inference: x -> scale * x + shift, in float64."""

    scale: Tensor
    shift: Tensor


def affine_of(norm: Norm) -> Affine:
    """Return scale and shift (C,) of a BatchNorm with running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return Affine(scale, shift if norm.bias is None else shift + norm.bias.double())


def fold_norms(network: nn.Module, run: Callable[[], object]) -> int:
    """Fold every BatchNorm that follows a convolution into it, and return how many there were.

    Args:
        network: Network in eval mode; it is changed in place.
        run: Runs the network once on a trial input and returns its outputs.
    """
    pairs = _pairs(network, run)
    modules = dict(network.named_modules())
    rests: dict[nn.Module, nn.Module] = {}
    for conv_name, norm_name in pairs:
        conv, norm = modules[conv_name], modules[norm_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, Norm)
        _fold(conv, affine_of(norm))
        rests[norm] = _rest_of(norm)
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child in rests:
                parent._modules[name] = rests[child]
    return len(pairs)


def _fold(conv: nn.Conv2d, affine: Affine) -> None:
    weight = conv.weight
    bias = affine.shift if conv.bias is None else affine.shift + affine.scale * conv.bias.double()
    folded = (weight.double() * affine.scale[:, None, None, None]).to(weight.dtype)
    conv.weight = nn.Parameter(torch.empty_like(weight).copy_(folded), requires_grad=False)  # keeps the memory order
    conv.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def _rest_of(norm: nn.Module) -> nn.Module:
    """Return the rest of a folded BatchNorm: dropout and activation of timm's BatchNorms."""
    parts = [part for name in _PARTS if (part := getattr(norm, name, None)) is not None]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts).eval() if parts else nn.Identity().eval()


def _pairs(network: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that can be folded into them."""
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    norms = {name: module for name, module in network.named_modules() if _foldable(module)}
    owners: dict[int, int] = defaultdict(int)
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] += 1  # modules that share a weight keep it
    recorder = _Recorder(
        {id(conv.weight): name for name, conv in convs.items() if owners[id(conv.weight)] == 1},
        {id(norm.running_mean): name for name, norm in norms.items()},
    )
    with recorder, torch.no_grad():
        outputs = run()
    recorder.note_outputs(outputs)
    return recorder.pairs()


def _foldable(module: nn.Module) -> bool:
    if not isinstance(module, Norm) or module.training or module.running_mean is None:
        return False
    return all(name in _PARTS for name, _ in module.named_children())


class _Recorder(TorchFunctionMode):
    """Records which convolutions and norms run, and which operations read the outputs of the convolutions.

    Args:
        weights: Names of convolutions by the identity of their weights.
        means: Names of norms by the identity of their running means.
    """

    def __init__(self, weights: Mapping[int, str], means: Mapping[int, str]) -> None:
        super().__init__()
        self.weights, self.means = weights, means
        self.made: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no other gets its identity
        self.readers: dict[str, set[str]] = defaultdict(set)
        self.sources: dict[str, set[str]] = defaultdict(set)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call a function of PyTorch and record its inputs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.batch_norm:
            mean = args[1] if len(args) > 1 else kwargs["running_mean"]
            name = self.means.get(id(mean), "")
            source = self.made.get(id(args[0] if args else kwargs["input"]))
            self.sources[name].add(source[0] if source else "")
            if source:
                self.readers[source[0]].add(name)
        elif result is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not its shape only
            for name in self._read(args, kwargs):
                self.readers[name].add("")
        if func is F.conv2d and isinstance(result, Tensor):
            name = self.weights.get(id(args[1] if len(args) > 1 else kwargs["weight"]), "")
            if name:
                self.made[id(result)] = name, result
        return result

    def _read(self, *values: object) -> Iterator[str]:
        for leaf in tree_leaves(values):
            if id(leaf) in self.made:
                yield self.made[id(leaf)][0]

    def note_outputs(self, outputs: object) -> None:
        """Note the outputs of the network, which must stay as they are."""
        for name in self._read(outputs):
            self.readers[name].add("")

    def pairs(self) -> list[tuple[str, str]]:
        """Return the convolutions that one norm reads and nothing else, where it reads nothing else either."""
        found = []
        for conv, readers in self.readers.items():
            (norm, *more) = readers
            if norm and not more and self.sources[norm] == {conv}:
                found.append((conv, norm))
        return found
