"""Conversion of networks for OpenVINO and ONNX Runtime: with their own tools, as users of other libraries convert them,
or as `fishnet export` does.

`fishnet.deploy.bench.prepare` runs it in a separate process, so that the memory of the conversion is not counted as
that of the converted network.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fishnet.deploy.bench.networks import RawOutputs
from fishnet.deploy.convert import save_openvino, to_openvino, trace
from fishnet.deploy.heads.registry import Part
from fishnet.deploy.parts import fused_for, parts_of
from fishnet.deploy.quantize import quantized
from fishnet.errors import FishnetError
from fishnet.runner.engine import DENSE, INPUT
from fishnet.runner.signals import signal_stack_kept

if TYPE_CHECKING:
    from openvino import Model


class Wanted(NamedTuple):
    """Target of a conversion."""

    format: str
    """openvino or onnx."""
    exported: bool
    """Whether it is converted to the graph of `fishnet export`, for OpenVINO."""
    precision: str
    """int8 quantizes convolutions and matrix products; exported graphs also differ between fp32 and bf16."""

    @property
    def file_name(self) -> str:
        """Name of the file."""
        own = self.exported or self.precision == "int8"
        parts = [self.format, *(["exported"] if self.exported else []), *([self.precision] if own else [])]
        return "_".join(parts) + (".onnx" if self.format == "onnx" else ".xml")


def convert(
    network: nn.Module, example: Tensor, wanted: Wanted, file: Path, calibration: Callable[[], Iterable[Tensor]]
) -> None:
    """Write a converted network.

    Args:
        network: Network in eval mode.
        example: Input of the size to run on.
        wanted: Format, way of conversion, and quantization.
        file: File to write.
        calibration: Returns batches of images to calibrate int8 on.

    Raises:
        FishnetError: int8 is requested and nncf is not installed.
    """
    network = network.eval()
    int8 = wanted.precision == "int8"
    if int8:
        require_nncf()
    if wanted.exported:
        model = exported(network, example, wanted.precision)
        save_openvino(quantized(model, [batch.numpy() for batch in calibration()]) if int8 else model, file, half=False)
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if wanted.format == "onnx":
            batch = torch.export.Dim("batch")
            example = torch.cat([example, example]) if len(example) == 1 else example  # 1 would be exported as fixed
            torch.onnx.export(
                network, (example,), file, dynamo=True, verbose=False, dynamic_shapes=({0: batch},), optimize=True
            )
            return
        import openvino

        model = openvino.convert_model(network, example_input=example, input=[-1, *example.shape[1:]])
        if int8:
            model = quantize_plain(model, calibration())
        openvino.save_model(model, file, compress_to_fp16=False)


class _Named(nn.Module):
    """Network whose outputs have names, as `convert.trace` needs them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return all tensors that the network returns."""
        return {f"output_{place}": value for place, value in enumerate(tree_leaves(self.network(images)))}


def exported(network: nn.Module, example: Tensor, precision: str) -> Model:
    """Return the graph of OpenVINO that `fishnet export` writes for images, before quantization.

    Args:
        network: Network in eval mode.
        example: Input (N, C, H, W).
        precision: Precision of the export.

    Raises:
        FishnetError: torch.export cannot trace the network, or a head of a run cannot be exported.
    """
    if isinstance(network, RawOutputs):
        part = parts_of(fused_for(network.network, "openvino", precision), network.card)[DENSE]
    else:
        two = torch.cat([example[:1], example[:1]])
        part = Part(_Named(fused_for(network, "openvino", precision, example)).eval(), INPUT, two, multiple=1)
    return to_openvino(trace(part), part)


def require_nncf() -> None:
    """Raise FishnetError if nncf is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise FishnetError("int8 needs nncf: pip install 'fishnet-vision[deploy]'")


def quantize_plain(model: Model, images: Iterable[Tensor]) -> Model:
    """Return an OpenVINO model with int8 convolutions and matrix products.

    Args:
        model: OpenVINO model.
        images: Batches (N, C, H, W) to calibrate on.
    """
    import nncf

    nncf.set_log_level(40)
    batches = [batch.numpy() for batch in images]
    dataset, preset = nncf.Dataset(batches), nncf.QuantizationPreset.MIXED
    with signal_stack_kept():
        return nncf.quantize(model, dataset, subset_size=len(batches), preset=preset)
