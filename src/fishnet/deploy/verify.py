"""Verification of an exported network: differences from PyTorch on real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.deploy.difference import Difference, largest
from fishnet.deploy.parts import DenseGraph, head_specs
from fishnet.errors import FishnetError
from fishnet.exported import ExportedRuntime
from fishnet.models.network import Images, Network
from fishnet.runner.engine import DENSE, INPUT
from fishnet.runner.head import Arrays, Graph
from fishnet.tasks.base import AnyTask, TorchRuntime


def compare(
    network: Network,
    exported: ExportedRuntime,
    other: ExportedRuntime,
    task: AnyTask,
    images: Sequence[Image.Image],
    precision: str,
) -> Difference:
    """Return the differences from PyTorch on images, and the changes of the outputs when an image runs in another way.

    Runtimes keep memory and compiled kernels of earlier image sizes, and may use them wrongly: the network runs a batch
    of the smallest size first and the first image again at the end, and `other` runs only the images, and the first one
    in a larger batch.

    Args:
        network: Network of PyTorch in fp32 and eval mode, on the CPU.
        exported: Exported network, which has not run yet.
        other: The same network, opened a second time, with models for static shapes if the runtime has them.
        task: Task of the network.
        images: RGB images.
        precision: Numerical precision of the exported network. In fp32, all objects that PyTorch detects
            are compared, except those whose scores exceed the threshold of the detector by less than 0.002; otherwise
            those with a score above 0.5.

    Raises:
        FishnetError: The preprocessing differs, or the exported network does not run.
    """
    with _plain_errors():
        reference, dense = TorchRuntime(network, torch.device("cpu")), DenseGraph(network).eval()
        graph, second = (runtime.engine.graphs[DENSE] for runtime in (exported, other))
        graph({INPUT: _smallest(exported, images[0])})
        found = Difference()
        specs = head_specs(network, task.card)
        first: tuple[Arrays, Arrays] | None = None
        for image in images:
            inputs, batch = _inputs(network, exported, task, image)
            with torch.inference_mode():
                wanted = dense(batch)
            arrays = {INPUT: batch.numpy()}
            outputs = graph(arrays)
            for name, value in outputs.items():
                found.outputs[name] = largest(found.outputs.get(name, 0.0), _relative(value, wanted[name].numpy()))
            found.order = largest(found.order, _change(outputs, second(arrays)))
            if first is None:
                first = arrays, {name: value.copy() for name, value in outputs.items()}
                found.batch = _change_in_batch(second, *first)
            answers = exported(inputs)
            for name, (answer,) in reference(inputs).items():
                dense.exports[name].compare(found, answer, answers[name][0], specs[name], precision)
            found.images += 1
        if first is not None:
            found.order = largest(found.order, _change(graph(first[0]), first[1]))
        return found


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the errors of a runtime as a FishnetError."""
    try:
        yield
    except FishnetError:
        raise
    except Exception as error:  # every runtime raises its own errors
        text = " ".join(str(error).split())
        raise FishnetError(
            f"the exported network does not run: {type(error).__name__}: {text[:200]}; nothing was written. Try "
            "another --format"
        ) from error


def _smallest(exported: ExportedRuntime, image: Image.Image) -> np.ndarray:
    """Return a corner of an image as a batch of the smallest size; the whole image if the size is fixed."""
    preparation = exported.engine.preparation
    pixels = preparation(image)
    if preparation.kind == "fit":
        pixels = pixels[: preparation.multiple, : preparation.multiple]
    return preparation.batch([pixels])[0]


def _change(outputs: Arrays, before: Arrays) -> float:
    """Return the maximum change of an output."""
    return largest(*(_relative(value, before[name]) for name, value in outputs.items()))


def _change_in_batch(graph: Graph, inputs: Arrays, before: Arrays) -> float:
    """Return the maximum change of an output when the image is part of a larger batch with its mirror image."""
    outputs = graph({name: np.concatenate([value, value[..., ::-1]] * 2) for name, value in inputs.items()})
    places = (0, 2)
    return largest(*(_change({name: v[p : p + 1] for name, v in outputs.items()}, before) for p in places))


def _inputs(network: Network, exported: ExportedRuntime, task: AnyTask, image: Image.Image) -> tuple[Images, Tensor]:
    """Return an image as input of the runtimes and as a normalized batch; check that both preprocess it identically."""
    shown = task.transform(image)
    inputs: Images = [shown] if shown.dtype == torch.uint8 else shown[None]
    batch = network.batcher(inputs)[0].contiguous() if isinstance(inputs, list) else shown[None]
    own = exported.engine.preparation
    if not np.array_equal(own.batch([own(image)])[0], batch.numpy()):
        raise FishnetError("the preprocessing of the exported network differs from this library: it cannot be exported")
    return inputs, batch


def _relative(value: np.ndarray, wanted: np.ndarray) -> float:
    size = float(np.sqrt(np.square(wanted, dtype=np.float64).mean()))
    return float(np.sqrt(np.square(value - wanted, dtype=np.float64).mean())) / max(size, 1e-12)
