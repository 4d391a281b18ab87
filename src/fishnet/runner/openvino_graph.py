"""Inference with OpenVINO: models for fixed shapes, and batches on parallel streams."""

from __future__ import annotations

import math
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
"""Number of runs after which a shape gets a model of its own, which repays the time of its compilation by then."""
MOST = 3
"""Maximum number of models for fixed shapes, each of which keeps its own weights in memory."""
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
    """Runs a model of OpenVINO.

    Models that are compiled for a fixed shape are faster, since maps need not be copied to concatenate them: by 6 % in
    fp32, 10 % in bf16 and 20 % in int8 for fishnet150. Shapes that occur often are compiled like this, and run batches
    in equal parts on parallel streams, which wait less for each other than threads that share every layer.

    Args:
        path: Model file.
        precision: fp32, fp16, bf16 or int8.
        fixed: Whether only the batch size varies, so that the first shapes get models of their own at once.
        threads: Number of threads; by default, OpenVINO chooses it.

    Raises:
        RuntimeError: OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, precision: str, fixed: bool = False, threads: int | None = None) -> None:
        from openvino import Core

        self._path, self._at_once = path, MOST if fixed else 0
        self._threads = threads or default_threads()
        self._settings = {**openvino_settings(precision), "INFERENCE_NUM_THREADS": str(self._threads)}
        self._core = Core()
        self._core.read_model(str(path))
        self._runs: dict[Shape, int] = {}
        self._fixed: dict[Shape, Graph] = {}
        self._any: Graph | None = None

    def __call__(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name.

        Args:
            inputs: An array by its name.

        Raises:
            RunnerError: OpenVINO cannot compile the model.
        """
        shape = next(iter(inputs.values())).shape
        graph = self._fixed.pop(shape, None)
        if graph is None:
            self._runs[shape] = self._runs.get(shape, 0) + 1
            if self._runs[shape] < OFTEN and len(self._runs) > self._at_once:
                self._any = self._any or as_graph(self._compiled(None, 1))
                return self._any(inputs)
            parts = math.gcd(shape[0], self._threads)  # equal work for all streams, equal threads for each of them
            model = self._compiled((shape[0] // parts, *shape[1:]), parts)
            graph = as_graph(model) if parts == 1 else side_by_side(model, parts)
        self._fixed[shape] = graph  # the last one is the latest
        if len(self._fixed) > MOST:
            oldest = next(iter(self._fixed))
            del self._fixed[oldest]
            self._runs[oldest] = 0
        return graph(inputs)

    def _compiled(self, shape: Shape | None, streams: int) -> CompiledModel:
        """Return the model for a fixed shape or for any, on a number of streams."""
        try:
            model = self._core.read_model(str(self._path))
            if shape is not None:
                model.reshape(list(shape))
            with signal_stack_kept():
                return self._core.compile_model(model, "CPU", {**self._settings, "NUM_STREAMS": str(streams)})
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise RunnerError(f"OpenVINO cannot compile {self._path}: {text[:200]}; export the model again") from error


def side_by_side(model: CompiledModel, parts: int) -> Graph:
    """Return a compiled model as a function from arrays to arrays that runs a batch in equal parts at the same time."""
    requests = [model.create_infer_request() for _ in range(parts)]

    def run(inputs: Arrays) -> Arrays:
        split = {name: np.split(value, parts) for name, value in inputs.items()}
        for place, request in enumerate(requests):
            request.start_async({name: values[place] for name, values in split.items()}, share_inputs=True)
        for request in requests:
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
