"""Verification of an exported network: differences from PyTorch on real images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from fishnet.deploy.parts import DenseGraph
from fishnet.errors import FishnetError
from fishnet.exported import ExportedRuntime
from fishnet.files import Json
from fishnet.models.network import Images, Network
from fishnet.runner.engine import DENSE
from fishnet.runner.heads import Arrays, Head, OneStageHead, TwoStageHead
from fishnet.tasks.base import AnyTask, TorchRuntime

STRONG = 0.5
"""Minimum score of the objects that are compared in reduced precision."""


@dataclass(frozen=True)
class Tolerance:
    """Maximum differences at a precision."""

    outputs: float
    """Root mean square of the difference of an output, relative to that of the output."""
    score: float = float("inf")
    """Difference of scores."""
    box: float = float("inf")
    """Difference of coordinates in pixels of the network's input."""
    mask: float = float("inf")
    """Difference of mask probabilities."""
    agreement: float = 1.0
    """Minimum fraction of objects that both detect, and of pixels with the same class.

    In fp32 it is also below 1, since the order of objects with equal scores, as in uniform image regions, may differ.
    """
    overlap: float = 0.5
    """Minimum IoU of the boxes of an object for a match."""


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 0.1, 1e-2, 0.98, 0.9),
    "fp16": Tolerance(0.05, agreement=0.9),
    "bf16": Tolerance(0.2, agreement=0.8),
    "int8": Tolerance(0.5, agreement=0.6),
}
"""Tolerances by precision; those below fp32 only detect defects, since `--max-drop` controls the accuracy."""


def largest(*values: float) -> float:
    """Return the largest value, 0 if there is none, and NaN if one is NaN, which the built-in `max` may drop."""
    return float(np.max([0.0, *values]))


@dataclass
class Difference:
    """Maximum differences between an exported network and PyTorch over all images."""

    images: int = 0
    """Number of images."""
    outputs: dict[str, float] = field(default_factory=dict)
    """Difference of each output of the network, relative to its root mean square."""
    order: float = 0.0
    """Change of an output with the images that ran before, relative to its root mean square."""
    score: float = 0.0
    """Difference of scores."""
    box: float = 0.0
    """Difference of box coordinates, in pixels of the network's input."""
    mask: float = 0.0
    """Difference of mask probabilities."""
    keypoint: float = 0.0
    """Difference of keypoint coordinates, in pixels of the network's input."""
    agreement: float = 1.0
    """Fraction of objects that both detect, over all images, or of pixels with the same class if that is lower."""
    objects: int = 0
    """Number of objects compared."""
    has_masks: bool = False
    """Whether the detector predicts masks."""

    def check(self, tolerance: Tolerance) -> None:
        """Raise FishnetError if a difference is out of tolerance."""
        if not self.order <= tolerance.outputs:  # also true for NaN
            raise FishnetError(
                f"the outputs of the exported network depend on the images before: they change by {self.order:.2g}, at "
                f"most {tolerance.outputs:.2g} is allowed; nothing was written. Use another --format, such as "
                "--format onnx"
            )
        worst = largest(*self.outputs.values())
        limits = [
            ("outputs", worst, tolerance.outputs),
            ("scores", self.score, tolerance.score),
            ("boxes", self.box, tolerance.box),
            ("masks", self.mask, tolerance.mask),
            ("disagreement", 1 - self.agreement, 1 - tolerance.agreement),
        ]
        for name, value, limit in limits:
            if not value <= limit:  # also true for NaN
                raise FishnetError(
                    f"the exported network differs from PyTorch's: {name} {value:.2g}, at most {limit:.2g} is allowed; "
                    "nothing was written. Try another --format or --precision"
                )

    def describe(self) -> str:
        """Return the differences in one line."""
        parts = [f"outputs {largest(*self.outputs.values()):.1e}", f"scores {self.score:.1e}"]
        if self.objects:
            masks = [f"masks {self.mask:.1e}"] if self.has_masks else []
            parts += [f"boxes {self.box:.1e} px", *masks, f"of {self.objects} objects"]
        parts.append(f"{100 * self.agreement:.2f} % agree")
        return f"largest differences from PyTorch on {self.images} images: " + ", ".join(parts)

    def to_dict(self) -> Json:
        """Return the differences as JSON values."""
        return {
            "images": self.images,
            "outputs": {name: float(f"{value:.3g}") for name, value in self.outputs.items()},
            "order": float(f"{self.order:.3g}"),
            "score": float(f"{self.score:.3g}"),
            "box": float(f"{self.box:.3g}"),
            "mask": float(f"{self.mask:.3g}"),
            "keypoint": float(f"{self.keypoint:.3g}"),
            "agreement": self.agreement,
            "objects": self.objects,
        }


def compare(
    network: Network,
    exported: ExportedRuntime,
    other: ExportedRuntime,
    task: AnyTask,
    images: Sequence[Image.Image],
    precision: str,
) -> Difference:
    """Return the differences on images, each as a batch of size 1.

    Runtimes keep memory and compiled kernels of earlier image sizes, and may use them wrongly: the network runs a batch
    of the smallest size first and the first image again at the end, and `other` runs only the images.

    Args:
        network: Network of PyTorch in fp32 and eval mode, on the CPU.
        exported: Exported network, which has not run yet.
        other: The same network, opened a second time.
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
        graph({"images": _smallest(exported, images[0])})
        found, found_objects = Difference(), 0
        first: tuple[Arrays, Arrays] | None = None
        for image in images:
            inputs, batch = _inputs(network, exported, task, image)
            with torch.inference_mode():
                wanted = dense(batch)
            arrays = {"images": batch.numpy()}
            outputs = graph(arrays)
            for name, value in outputs.items():
                found.outputs[name] = largest(found.outputs.get(name, 0.0), _relative(value, wanted[name].numpy()))
            found.order = largest(found.order, _change(outputs, second(arrays)))
            first = first or (arrays, {name: value.copy() for name, value in outputs.items()})
            answers = exported(inputs)
            for name, (answer,) in reference(inputs).items():
                head = exported.engine.heads[name]
                found_objects += _compare_answer(found, answer, answers[name][0], precision, head)
            found.images += 1
        if first is not None:
            found.order = largest(found.order, _change(graph(first[0]), first[1]))
        if found.objects:
            found.agreement = min(found.agreement, found_objects / found.objects)
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


def _compare_answer(found: Difference, wanted: object, got: object, precision: str, head: Head) -> int:
    """Add the differences of the predictions of one head, and return the number of objects that both detect."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        return compare_objects(found, wanted, got, precision, _least_score(head, wanted["scores"]))
    assert isinstance(wanted, Tensor)
    assert isinstance(got, Tensor)
    if wanted.ndim == 1:
        for score in (torch.softmax, lambda value, dim: value.sigmoid()):
            found.score = largest(found.score, float((score(wanted, 0) - score(got, 0)).abs().max()))
    else:
        found.agreement = min(found.agreement, float((wanted.argmax(0) == got.argmax(0)).float().mean()))
    return 0


def _least_score(head: Head, scores: Tensor) -> float:
    """Return the score that an object must exceed to be detected, given the scores of all detected objects.

    It is the threshold of the detector, or the lowest score if the detector returns its maximum number of objects.
    """
    assert isinstance(head, OneStageHead | TwoStageHead)
    return float(scores.min()) if len(scores) >= head.detections else head.score


def compare_objects(
    found: Difference, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], precision: str, least: float
) -> int:
    """Match the objects of two predictions by class and IoU, and add the differences of matched objects.

    Args:
        found: Differences so far; changed in place.
        wanted: Objects that PyTorch detects.
        got: Objects that the exported network detects.
        precision: Numerical precision of the exported network.
        least: Score that an object must exceed to be detected.

    Returns:
        The number of objects that both detect.
    """
    found.has_masks |= "masks" in wanted
    overlap_needed = TOLERANCES[precision].overlap
    # by rounding, both may disagree on objects with scores near the least one
    chosen = wanted["scores"] > (least + 2e-3 if precision == "fp32" else STRONG)
    overlap = box_iou(wanted["boxes"], got["boxes"]) * (wanted["labels"][:, None] == got["labels"])
    matched = 0
    for place in chosen.nonzero().flatten().tolist():
        found.objects += 1
        if not overlap.shape[1] or float(overlap[place].max()) < overlap_needed:
            continue
        other = int(overlap[place].argmax())
        overlap[:, other] = 0
        matched += 1

        def difference(name: str, one: int = place, two: int = other) -> float:
            return float((wanted[name][one] - got[name][two]).abs().max()) if name in wanted else 0.0

        found.score = largest(found.score, difference("scores"))
        found.box = largest(found.box, difference("boxes"))
        found.mask = largest(found.mask, difference("masks"))
        found.keypoint = largest(found.keypoint, difference("keypoints"))
    return matched
