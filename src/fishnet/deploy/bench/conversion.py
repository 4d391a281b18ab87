"""Conversion of networks for OpenVINO and ONNX Runtime with their own tools, as users of other libraries convert them.

`fishnet.deploy.bench.prepare` runs it in a separate process, so that the memory of the conversion is not counted as
that of the converted network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fishnet.errors import FishnetError
from fishnet.models.fusing.network import NotFused, fuse
from fishnet.runner.signals import signal_stack_kept


class Wanted(NamedTuple):
    """Target of a conversion."""

    format: str
    """openvino or onnx."""
    fused: bool
    """Whether the network is fused first."""
    int8: bool
    """Whether convolutions and matrix products are quantized."""

    @property
    def file_name(self) -> str:
        """Name of the file."""
        parts = [self.format, *(["fused"] if self.fused else []), *(["int8"] if self.int8 else [])]
        return "_".join(parts) + (".onnx" if self.format == "onnx" else ".xml")


def convert(
    network: nn.Module, example: Tensor, wanted: Wanted, file: Path, calibration: Callable[[], Iterable[Tensor]]
) -> None:
    """Write a converted network.

    Args:
        network: Network in eval mode.
        example: Input of the size to run on.
        wanted: Format, fusing and quantization.
        file: File to write.
        calibration: Returns batches of images to calibrate int8 on.

    Raises:
        FishnetError: int8 is requested and nncf is not installed.
    """
    network = network.eval()
    if wanted.fused:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotFused)
            network = fuse(network, example=example)
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
        if wanted.int8:
            model = quantize(model, calibration())
        openvino.save_model(model, file, compress_to_fp16=False)


def quantize(model: object, images: Iterable[Tensor]) -> object:
    """Return an OpenVINO model with int8 convolutions and matrix products.

    Args:
        model: OpenVINO model.
        images: Batches (N, C, H, W) to calibrate on.

    Raises:
        FishnetError: nncf is not installed.
    """
    try:
        import nncf
    except ImportError:
        raise FishnetError("int8 needs nncf: pip install 'fishnet-vision[deploy]'") from None
    nncf.set_log_level(40)
    batches = [batch.numpy() for batch in images]
    dataset, preset = nncf.Dataset(batches), nncf.QuantizationPreset.MIXED
    with signal_stack_kept():
        return nncf.quantize(model, dataset, subset_size=len(batches), preset=preset)
