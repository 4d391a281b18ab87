"""Decoders of segmentation_models_pytorch (optional) on the maps of a trunk, by their names there: `smp:unet`.

The package builds a decoder from the channels of an encoder, an image first and maps of strides 2 to 32 behind it. A
stand-in encoder has the channels of the trunk, and none for the image and for stride 2, which trunks do not give; the
package's own decoders for transformers do the same. Decoders that need more (the tokens of DPT) are not supported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.distributed import world_size
from fishnet.models.heads.pixel_decoders import DecoderNorm, resized

PREFIX = "smp:"
_ENCODER = "fishnet_trunk"
_GIVEN = ("encoder_name", "encoder_weights", "encoder_depth", "in_channels", "classes", "upsampling", "activation")
_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, NotImplementedError)
_TRIAL = (64, 128, 256, 448)
"""Channels of the maps on which `smp_decoders` tries decoders."""
_SIDES = (8, 16, 32, 64)
"""Sides of the finest map that are tried to find the smallest one that a decoder takes."""


class _StandIn(nn.Module):
    """An encoder of the package that has channels and nothing else."""

    def __init__(self, channels: Sequence[int], depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        self.out_channels, self.output_stride = [0, 0, *channels], output_stride

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Do nothing: there is no first layer."""

    def make_dilated(self, output_stride: int) -> None:
        """Do nothing: maps are resized to the stride that the decoder asks for."""


class _Model(Protocol):
    """A model of the package."""

    encoder: _StandIn
    decoder: nn.Module
    segmentation_head: nn.Sequential


class _Needs(NamedTuple):
    """What a decoder takes."""

    stride: int
    """Stride of the deepest map."""
    smallest: int
    """Smallest side of the finest map."""
    unread: list[int]
    """Maps that it does not read."""


class SmpDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch: maps of strides 4 to 32 -> the map that it classifies.

    The output has the stride of the decoder, such as 1 for U-Net, 4 for FPN and 8 for DeepLabV3. Maps deeper
    than the output stride of the encoder that the decoder is made for (DeepLabV3 and PAN) are upsampled to it.

    Args:
        decoder: The package's decoder.
        needs: What it takes.
        takes_nothing: Whether it takes batches without images.
    """

    def __init__(self, decoder: nn.Module, needs: _Needs, takes_nothing: bool) -> None:
        super().__init__()
        self.decoder, self.needs, self.takes_nothing = decoder, needs, takes_nothing

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the map that is classified."""
        sizes = _sizes(maps[0].shape[-2:], self.needs.smallest, self.needs.stride)
        ready = [resized(x, size) for x, size in zip(maps, sizes, strict=True)]
        if not self.takes_nothing and not len(maps[0]):
            output = self._of_nothing(ready)
        else:
            output = self.decoder(_inputs(ready))
        if self.training and (unread := self.needs.unread):
            # with several processes, all layers need gradients, including those of unused maps
            output = output + torch.stack([maps[index][..., :1, :1].float().sum() for index in unread]).sum() * 0
        return output

    def _of_nothing(self, maps: list[Tensor]) -> Tensor:
        """Return the output for no image of a decoder that reshapes by their number: run on zeros, which are dropped.

        With one process the zeros do not change the statistics; with several, all have to take part in them.
        """
        norms = [m for m in self.decoder.modules() if isinstance(m, DecoderNorm) and m.training and world_size() == 1]
        for norm in norms:
            norm.eval()
        output = self.decoder(_inputs([torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in maps]))
        for norm in norms:
            norm.train()
        return output[:0]


def build_smp_decoder(
    name: str, channels: Sequence[int], num_classes: int, options: Mapping[str, object]
) -> tuple[SmpDecoder, nn.Module]:
    """Build a decoder of segmentation_models_pytorch, and the convolution that turns its output into logits.

    Args:
        name: Name of the decoder, such as unet.
        channels: Channels of the maps.
        num_classes: Number of classes.
        options: Keyword arguments of the package's model, such as `decoder_channels`.

    Raises:
        UsageError: The name or an option is unknown, the package is not installed, or the decoder does not take the
            maps of a trunk.
    """
    _check_options(name, options)
    with torch.device("meta"):
        needs = _read_off(name, channels, _model(name, channels, num_classes, options))
    model = _model(name, channels, num_classes, options)
    decoder = _with_shared_norms(model.decoder)
    return SmpDecoder(decoder, needs, _takes_nothing(decoder, channels, needs)), model.segmentation_head[0]


@cache
def smp_decoders() -> tuple[str, ...]:
    """Return the names of the decoders of segmentation_models_pytorch that take the maps of a trunk.

    Raises:
        UsageError: The package is not installed.
    """
    found = []
    with torch.device("meta"):
        for name in _package().MODEL_ARCHITECTURES_MAPPING:
            try:
                build_smp_decoder(name, _TRIAL, 2, {})
            except UsageError:
                continue
            found.append(name)
    return tuple(found)


@torch.enable_grad()
def _read_off(name: str, channels: Sequence[int], model: _Model) -> _Needs:
    """Return the inputs that the decoder of a model on the meta device takes."""
    decoder, stride = model.decoder.eval(), model.encoder.output_stride
    for smallest in _SIDES:
        sizes = _sizes((smallest, smallest), smallest, stride)
        maps = [torch.empty(1, c, *size, requires_grad=True) for c, size in zip(channels, sizes, strict=True)]
        try:
            output = decoder(_inputs(maps))
            break
        except _FAULTS as error:
            if smallest == _SIDES[-1]:
                raise _refusal(name, error) from error
    gradients = torch.autograd.grad(output.sum(), maps, allow_unused=True)
    unread = [index for index, gradient in enumerate(gradients) if gradient is None]
    return _Needs(stride, smallest, unread)


@torch.no_grad()
def _takes_nothing(decoder: nn.Module, channels: Sequence[int], needs: _Needs) -> bool:
    """Return whether a decoder takes batches without images."""
    sizes = _sizes((needs.smallest, needs.smallest), needs.smallest, needs.stride)
    device = next(decoder.parameters()).device
    maps = [torch.empty(0, c, *size, device=device) for c, size in zip(channels, sizes, strict=True)]
    mode = decoder.training
    try:
        decoder.eval()(_inputs(maps))
    except _FAULTS:
        return False
    finally:
        decoder.train(mode)
    return True


def _sizes(finest: Sequence[int], smallest: int, stride: int) -> list[tuple[int, int]]:
    """Return the sizes of the four maps that a decoder takes, each level half of the one before it.

    Args:
        finest: Height and width of the finest map of the trunk.
        smallest: Smallest side of the finest map that the decoder takes.
        stride: Stride of the deepest map that it takes.
    """
    height, width = (max(smallest, -(-side // 8) * 8) for side in finest)
    shrink = [min(2**level, stride // 4) for level in range(4)]
    return [(height // times, width // times) for times in shrink]


def _inputs(maps: list[Tensor]) -> list[Tensor]:
    """Return the maps after an image and a map of stride 2, both without channels."""
    count, _, height, width = maps[0].shape
    return [*(maps[0].new_empty(count, 0, times * height, times * width) for times in (4, 2)), *maps]


def _package() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ImportError:
        raise UsageError(
            "decoders of segmentation_models_pytorch need the extra: pip install 'fishnet-vision[smp]'"
        ) from None
    return segmentation_models_pytorch


def _architecture(name: str) -> Callable[..., _Model]:
    known = cast(Mapping[str, Callable[..., _Model]], _package().MODEL_ARCHITECTURES_MAPPING)
    if name not in known:
        near = did_you_mean(PREFIX + name, [PREFIX + decoder for decoder in known])
        names = ", ".join(PREFIX + decoder for decoder in smp_decoders())
        raise UsageError(f"unknown decoder {PREFIX + name!r}.{near} Known are {names}")
    return known[name]


def _check_options(name: str, options: Mapping[str, object]) -> None:
    parameters = inspect.signature(_architecture(name)).parameters.values()
    known = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = [key for key in known if key not in ("aux_params", *_GIVEN)]
    for key in options:
        if key not in known:
            near = did_you_mean(key, known)
            raise UsageError(f"{PREFIX}{name} has no option {key}.{near} Known are {', '.join(known) or 'none'}")


def _model(name: str, channels: Sequence[int], num_classes: int, options: Mapping[str, object]) -> _Model:
    """Return the package's model with the stand-in as its encoder."""
    encoders = _package().encoders.encoders  # its documented register of encoders
    encoders[_ENCODER] = {"encoder": _StandIn, "pretrained_settings": {}, "params": {"channels": list(channels)}}
    fixed = {"encoder_name": _ENCODER, "encoder_weights": None, "encoder_depth": 5, "classes": num_classes}
    try:
        return _architecture(name)(**fixed, **options)
    except _FAULTS as error:
        raise _refusal(name, error) from error
    finally:
        del encoders[_ENCODER]


def _refusal(name: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"{PREFIX}{name} cannot be built on the maps of a trunk with these options: {reason}")


def _with_shared_norms(decoder: nn.Module) -> nn.Module:
    """Replace new BatchNorms by those that share their statistics over processes, as in necks."""
    for name, norm in list(decoder.named_modules()):
        if type(norm) is nn.BatchNorm2d:
            decoder.set_submodule(name, DecoderNorm(norm.num_features, norm.eps, norm.momentum))
    return decoder
