"""Quantization to int8 by NNCF: calibration on real images, and accuracy control with the evaluator of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from fishnet.data.images import read_image
from fishnet.deploy.convert import quiet
from fishnet.errors import FishnetError, UsageError, counted
from fishnet.exported import ExportedRuntime
from fishnet.runner.engine import DENSE, Engine
from fishnet.runner.head import Arrays, Graph
from fishnet.runner.openvino_graph import as_graph, openvino_settings
from fishnet.runner.signals import signal_stack_kept
from fishnet.tasks.base import AnyTask, evaluate_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openvino import CompiledModel, Model, Node

LEAST_IMAGES, MOST_IMAGES = 8, 300
"""Minimum and maximum number of calibration images."""
REGIONS = 32
"""Regions per image that the graphs of the region stage are calibrated on."""
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData")


@dataclass(frozen=True)
class AccuracyControl:
    """Accepted accuracy drop, and the measurement of accuracy."""

    max_drop: float
    """Maximum drop of the metric."""
    metric: str
    """Name of the task's metric."""
    task: AnyTask
    """Task of the network."""
    dataset: Sequence[object]
    """Split to evaluate on, as `task.open_split` returns it."""
    smaller_is_better: bool = False
    """Whether smaller values of the metric are better."""

    @property
    def sign(self) -> int:
        """1, or -1 if smaller values of the metric are better."""
        return -1 if self.smaller_is_better else 1

    def exceeded(self, before: float, after: float) -> bool:
        """Return whether the metric dropped too much, or is NaN."""
        return not self.sign * (before - after) <= self.max_drop

    def measure(self, engine: Engine) -> float:
        """Return the metric of a network on the split, in batches of size 1."""
        evaluator = self.task.evaluator(self.dataset, torch.device("cpu"))
        collate = self.task.collate or torch.utils.data.default_collate
        batches = (collate([self.dataset[place]]) for place in range(len(self.dataset)))
        found = evaluate_network(self.task, ExportedRuntime(engine), batches, evaluator)
        return float(found.metrics[self.metric])


@dataclass(frozen=True)
class Accuracy:
    """Metric of a network before and after quantization."""

    metric: str
    before: float
    after: float

    def describe(self) -> str:
        """Return both values in one line."""
        return f"{self.metric}: {self.before:.4f} in fp32, {self.after:.4f} in int8"


def calibration_images(folder: Path) -> list[Image.Image]:
    """Return evenly spaced images of a calibration folder.

    Raises:
        UsageError: The folder does not exist, or has too few images.
        FishnetError: An image cannot be read.
    """
    from fishnet.data.folders import evenly_spaced, photo_files

    if not folder.is_dir():
        raise UsageError(f"--calibration {folder} is not a folder")
    files = photo_files(folder)
    if len(files) < LEAST_IMAGES:
        raise UsageError(
            f"--calibration {folder} has {counted(len(files), 'image')}: give at least {LEAST_IMAGES} representative "
            "images, better some hundreds"
        )
    return [read_image(path) for path in evenly_spaced(files, MOST_IMAGES)]


def quantize(
    models: Mapping[str, Model],
    engine_of: Callable[[Mapping[str, Graph]], Engine],
    images: Sequence[np.ndarray],
    control: AccuracyControl | None = None,
) -> tuple[dict[str, Model], Accuracy | None]:
    """Quantize models to int8; their last layers and the decoding stay in floating point.

    Args:
        models: Models of OpenVINO in fp32 by name.
        engine_of: Graphs by name -> network.
        images: Calibration images, uint8 (h, w, 3) in the size of the network.
        control: Accuracy control; layers of the dense graph stay in floating point until the metric is met, and the
            region stage stays in floating point if the metric is not met otherwise.

    Raises:
        FishnetError: The accuracy drop is too large.
    """
    plain = {name: _compiled(model) for name, model in models.items()}
    preparation = engine_of(plain).preparation
    regions = _region_inputs(engine_of, plain, images)
    own = _dense(models[DENSE], images, lambda pixels: preparation.batch([pixels])[0], control, engine_of, plain)
    found = {DENSE: own}
    for name, samples in regions.items():
        # a stage without regions cannot be calibrated
        found[name] = quantized(models[name], samples) if samples else models[name]
    if control is None:
        return found, None
    before = control.measure(engine_of(plain))
    after = control.measure(engine_of({name: _compiled(model) for name, model in found.items()}))
    if control.exceeded(before, after) and regions:
        found |= {name: models[name] for name in regions}
        after = control.measure(engine_of({name: _compiled(model) for name, model in found.items()}))
    if control.exceeded(before, after):
        raise FishnetError(
            f"the accuracy drop of int8 is too large: {control.metric} from {before:.4f} to {after:.4f}, --max-drop is "
            f"{control.max_drop:g}; give more calibration images, or a higher --max-drop"
        )
    return found, Accuracy(control.metric, before, after)


def _compiled(model: Model) -> Graph:
    import openvino

    with signal_stack_kept():
        return as_graph(openvino.Core().compile_model(model, "CPU", openvino_settings("fp32")))


def _region_inputs(
    engine_of: Callable[[Mapping[str, Graph]], Engine], graphs: Mapping[str, Graph], images: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Return pooled maps of real regions for each graph of the region stage, some of each image."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in graphs if name != DENSE}
    if not kept:
        return kept
    generator = np.random.default_rng(0)

    def recorded(name: str) -> Graph:
        def run(inputs: Arrays) -> Arrays:
            (pooled,) = inputs.values()
            places = generator.permutation(len(pooled))[:REGIONS]
            kept[name].append(pooled[np.sort(places)])
            return graphs[name](inputs)

        return run

    engine = engine_of({name: graph if name == DENSE else recorded(name) for name, graph in graphs.items()})
    for image in images:
        engine.run([image])
    return kept


def _dense(
    model: Model,
    images: Sequence[np.ndarray],
    batch_of: Callable[[np.ndarray], np.ndarray],
    control: AccuracyControl | None,
    engine_of: Callable[[Mapping[str, Graph]], Engine],
    graphs: Mapping[str, Graph],
) -> Model:
    if control is None:
        return quantized(model, images, batch_of)
    import nncf

    def validated(candidate: CompiledModel, places: Iterable[int]) -> tuple[float, list[float]]:
        """Return the metric on the whole split, also as that of each image: NNCF would otherwise measure each of them
        by a call of its own."""
        metric = control.sign * control.measure(engine_of({**graphs, DENSE: as_graph(candidate)}))
        return metric, [metric for _ in places]

    with _silenced(), signal_stack_kept():
        return nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=nncf.Dataset(images, batch_of),
            validation_dataset=nncf.Dataset(range(len(control.dataset))),
            validation_fn=validated,
            max_drop=control.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=last_layers(model), validate=False),
        )


def quantized(
    model: Model,
    samples: Sequence[np.ndarray],
    convert: Callable[[np.ndarray], np.ndarray] = lambda sample: sample,
) -> Model:
    """Return a model in int8, except for its last layers.

    Args:
        model: Model of OpenVINO in fp32.
        samples: Samples to calibrate on.
        convert: Sample -> input of the model.
    """
    import nncf

    with _silenced(), signal_stack_kept():
        return nncf.quantize(
            model,
            nncf.Dataset(samples, convert),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=last_layers(model), validate=False),
        )


def last_layers(model: Model) -> list[str]:
    """Return the names of the last layers with weights before the outputs, except pyramid maps."""
    found: dict[str, None] = {}
    for result in model.get_results():
        if not result.input_value(0).get_tensor().names or _is_map(result):
            continue
        for name in _above(result):
            found[name] = None
    return list(found)


def _is_map(result: Node) -> bool:
    return any("_map_" in name for name in result.input_value(0).get_tensor().names)


def _above(node: Node) -> Iterator[str]:
    """Yield the names of the nearest layers with weights before a node."""
    waiting, seen = [value.get_node() for value in node.input_values()], set()
    while waiting:
        one = waiting.pop()
        name = one.get_friendly_name()
        if name in seen or one.get_type_name() in ("Constant", "Parameter", "ShapeOf"):
            continue
        seen.add(name)
        if one.get_type_name() in _WEIGHTED:
            yield name
        else:
            waiting += [value.get_node() for value in one.input_values()]


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence progress bars and messages of NNCF."""
    import nncf

    with quiet():
        nncf.set_log_level(40)
        yield
