"""Inference with OpenVINO: models for static shapes, and batches on parallel streams."""

from __future__ import annotations

import math
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import RunnerError
from .head import Arrays, Graph
from .signals import signal_stack_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openvino import CompiledModel, ConstOutput

OFTEN = 100
"""Number of batches of an input shape after which a model is compiled for that shape."""
MOST = 3
"""Maximum number of models for static shapes; each of them has its own copy of the weights in memory."""
Shape = tuple[int, ...]
_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}


def openvino_settings(precision: str) -> dict[str, str]:
    """Return the precision hint of OpenVINO: without it, CPUs with bf16 instructions compute in bf16."""
    return {"INFERENCE_PRECISION_HINT": _HINTS[precision]}


def as_graph(model: CompiledModel) -> Graph:
    """Return a compiled model as a function from arrays to arrays."""
    return lambda inputs: outputs_of(model(inputs))


def outputs_of(found: Mapping[ConstOutput, np.ndarray]) -> Arrays:
    """Return the outputs of OpenVINO by name."""
    return {key.get_any_name(): value for key, value in found.items()}


class OpenVINOGraph:
    """Runs a model of OpenVINO; may be called from several threads, which then wait for each other.

    Models compiled for a static shape are faster, since concatenation needs no copies: by 6 % in fp32, 10 % in bf16 and
    20 % in int8 for fishnet150. Such a model is compiled for the first shapes that are frequent. It splits a batch into
    equal parts and runs them on parallel streams, which synchronize less often than threads that share each layer. All
    other shapes share a model for dynamic shapes.

    Args:
        path: Model file.
        precision: fp32, fp16, bf16 or int8.
        often: Number of batches after which a shape is frequent; 1 if only the batch size varies. None: never.
        threads: Number of threads; by default, OpenVINO chooses it.

    Raises:
        RuntimeError: OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, precision: str, often: int | None = None, threads: int | None = None) -> None:
        from openvino import Core

        self._path, self._often = path, often
        self._threads = threads or default_threads()
        self._settings = {**openvino_settings(precision), "INFERENCE_NUM_THREADS": str(self._threads)}
        self._core = Core()
        self._model = self._core.read_model(str(path))
        self._runs: dict[Shape, int] = {}
        self._static: dict[Shape, Graph] = {}
        self._dynamic: Graph | None = None
        self._lock = threading.Lock()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name.

        Args:
            inputs: An array by its name.

        Raises:
            RunnerError: OpenVINO cannot compile the model.
        """
        with self._lock:
            return self._graph(next(iter(inputs.values())).shape)(inputs)

    def compile(self, shape: Shape) -> None:
        """Compile the model that the next batch of an input shape needs.

        Raises:
            RunnerError: OpenVINO cannot compile the model.
        """
        with self._lock:
            self._graph(shape)

    def _graph(self, shape: Shape) -> Graph:
        """Return the graph for an input shape."""
        if shape not in self._static and self._becomes_frequent(shape):
            self._add_static(shape)
        if shape in self._static:
            return self._static[shape]
        if self._dynamic is None:
            try:
                self._dynamic = as_graph(self._compiled(None, 1))
            except RuntimeError as error:
                text = " ".join(str(error).split())
                raise RunnerError(f"OpenVINO cannot compile {self._path}: {text[:200]}; export again") from error
        return self._dynamic

    def _becomes_frequent(self, shape: Shape) -> bool:
        """Count a batch, and return whether its shape is frequent enough for a model of its own."""
        if self._often is None or len(self._static) == MOST:
            return False
        self._runs[shape] = self._runs.get(shape, 0) + 1
        return self._runs[shape] >= self._often

    def _add_static(self, shape: Shape) -> None:
        parts = math.gcd(shape[0], self._threads)  # equal work for all streams, equal threads for each of them
        try:
            model = self._compiled((shape[0] // parts, *shape[1:]), parts)
        except RuntimeError:
            self._often = None  # the dynamic model computes it too
            return
        self._static[shape] = as_graph(model) if parts == 1 else side_by_side(model, parts)

    def _compiled(self, shape: Shape | None, streams: int) -> CompiledModel:
        """Return the model for a static shape, or for dynamic ones, on a number of streams."""
        model = self._model
        if shape is not None:
            model = model.clone()
            model.reshape(list(shape))
        with signal_stack_kept():
            return self._core.compile_model(model, "CPU", {**self._settings, "NUM_STREAMS": str(streams)})


def side_by_side(model: CompiledModel, parts: int) -> Graph:
    """Return a compiled model as a function from arrays to arrays that runs a batch in equal parts at the same time."""
    requests = [model.create_infer_request() for _ in range(parts)]

    def run(inputs: Arrays) -> Arrays:
        split = {name: np.split(value, parts) for name, value in inputs.items()}
        started = []
        try:
            for place, request in enumerate(requests):
                request.start_async({name: values[place] for name, values in split.items()}, share_inputs=True)
                started.append(request)
        finally:
            for request in started:  # all of them, or one that still runs would refuse the next batch
                request.wait()
        found = [outputs_of(request.results) for request in requests]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    return run


@cache
def default_threads() -> int:
    """Return the number of threads that OpenVINO chooses for one request on this machine."""
    from openvino import Core, Model, opset13

    image = opset13.parameter([1], np.float32)
    with signal_stack_kept():
        model = Core().compile_model(Model([opset13.relu(image)], [image]), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return max(1, int(model.get_property("INFERENCE_NUM_THREADS")))
