"""Loading of graph files with onnxruntime, OpenVINO or PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .errors import RunnerError
from .head import Arrays, Graph

FORMATS = ("torch", "onnx", "openvino")
"""Formats of graphs."""
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
"""File name extension of each format."""
PACKAGES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
"""Package that runs each format."""
_CAPABILITIES = {"fp32": "FP32", "int8": "INT8", "bf16": "BF16", "fp16": "FP16"}


def lacking(form: str, precision: str) -> str | None:
    """Return the reason why this machine does not support a precision; None if it does.

    Args:
        form: torch, onnx or openvino.
        precision: fp32, fp16, bf16 or int8.
    """
    if precision == "fp32":
        return None
    if form == "openvino":
        from openvino import Core

        found = Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] in found:
            return None
        return f"OpenVINO does not support {precision} on this CPU"
    if form == "onnx":
        return f"onnxruntime does not support {precision} on CPUs"
    import torch

    if precision == "bf16" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return None
    return f"PyTorch has no fast {precision} on this CPU"


def open_graph(path: Path, form: str, precision: str, often: int | None = None) -> Graph:
    """Load a graph file as a function from arrays to arrays.

    Args:
        path: File.
        form: torch, onnx or openvino.
        precision: Inference precision of OpenVINO; the graphs of other formats contain it.
        often: Number of batches after which OpenVINO compiles a faster model for their shape; see `OpenVINOGraph`.

    Raises:
        RunnerError: The package that runs it is missing, or the file is damaged.
    """
    openers: dict[str, Callable[[], Graph]] = {
        "torch": lambda: _torch(path),
        "onnx": lambda: _onnx(path),
        "openvino": lambda: _openvino(path, precision, often),
    }
    try:
        return openers[form]()
    except ImportError as error:
        raise RunnerError(f"{path} needs {PACKAGES[form]}: pip install {PACKAGES[form]} ({error})") from error
    except Exception as error:  # every runtime raises its own errors for files that it cannot read
        text = " ".join(str(error).split())
        raise RunnerError(f"cannot read {path}: {text[:200]}; export the model again") from error


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        RunnerError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RunnerError(f"cannot read {path}: {error.strerror}; the folder is incomplete, export it again") from error


def _onnx(path: Path) -> Graph:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _openvino(path: Path, precision: str, often: int | None) -> Graph:
    from .openvino_graph import OpenVINOGraph

    return OpenVINOGraph(path, precision, often)


def _torch(path: Path) -> Graph:
    import torch

    # guards would reject maps of one pixel, which these programs can compute
    program = torch.export.load(path).module(check_guards=False)

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            outputs = program(*[torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()])
        return {name: value.numpy() for name, value in outputs.items()}

    return run
