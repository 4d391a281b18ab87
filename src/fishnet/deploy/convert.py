"""Conversion of PyTorch modules to torch.export, ONNX or OpenVINO."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_unflatten

from fishnet.deploy.heads.registry import Part
from fishnet.errors import FishnetError, UsageError

if TYPE_CHECKING:
    from openvino import Model

Format = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
MOST = 1 << 13
"""Maximum height and width of images, and maximum number of images or regions in a batch."""
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def check_packages(form: Format, precision: Precision) -> None:
    """Raise UsageError if a package is missing, with the extra that installs it."""
    import importlib.util

    for name in (*_NEEDS.get(form, ()), *(["nncf"] if precision == "int8" else [])):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--format {form} needs {name}: pip install 'fishnet-vision[deploy]'")


def trace(part: Part) -> ExportedProgram:
    """Export a part for batches of any size, and for images of as many sizes as the network can be traced for.

    Raises:
        FishnetError: The network cannot be traced.
    """
    first = None
    for multiple in _multiples(part):
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(part.module, (part.example,), dynamic_shapes=_shapes(part, multiple))
        except Exception as error:  # torch.export raises many kinds of errors
            first = first or error
    text = " ".join(str(first).split())
    raise FishnetError(f"this network cannot be exported: torch.export raised {type(first).__name__}: {text[:200]}")


def _multiples(part: Part) -> list[int]:
    """Return the multiples to try, from flexible to fixed sizes."""
    if part.multiple == 0:
        return [0]
    if part.multiple > 1:
        return [part.multiple]
    size = part.example.shape[-1]
    return [*(step for step in (32, 16, 8, 1) if size % step == 0), 0]


def _shapes(part: Part, multiple: int) -> dict[str, dict[int, object]]:
    free: dict[int, object] = {0: Dim("batch", min=1, max=MOST)}
    if multiple:
        least = 64 if multiple == 1 else 1
        free[2], free[3] = (multiple * Dim(side, min=least, max=MOST // multiple) for side in ("height", "width"))
    return {part.input: free}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence output and warnings of exporters, but not their errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def output_names(program: ExportedProgram) -> list[str]:
    """Return the names of the outputs of a program, in their order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    return list(tree_unflatten(range(spec.num_leaves), spec))


def save_torch(program: ExportedProgram, path: Path) -> None:
    """Write a torch.export program."""
    torch.export.save(program, path)


def save_onnx(program: ExportedProgram, part: Part, path: Path) -> None:
    """Write an ONNX file."""
    names = output_names(program)
    with quiet():
        found = torch.onnx.export(
            program, (part.example,), dynamo=True, input_names=[part.input], output_names=names, verbose=False
        )
        assert found is not None
        found.save(path)


def to_openvino(program: ExportedProgram, part: Part) -> Model:
    """Convert a program to an OpenVINO model."""
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({part.input})
    for output, name in zip(model.outputs, output_names(program), strict=True):
        output.get_tensor().set_names({name})
    return model


def save_openvino(model: Model, path: Path, half: bool) -> None:
    """Write an OpenVINO model: graph and weights, in half precision if `half` is set."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=half)
