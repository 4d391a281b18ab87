"""Prediction with a trained network in Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.data.images import bad_image, explain, read_image, to_rgb
from fishnet.errors import FishnetError, UsageError, python_names
from fishnet.loading import RuntimeName, load_runtime
from fishnet.tasks import get_task, make_task
from fishnet.tasks.base import Answer

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """Predict on images with a trained network.

    A classifier returns `labels`, `scores` and `indices`: the `top` best classes, or for a multi-label model all
    classes with a score above the threshold. A detector adds `boxes` (x1, y1, x2, y2 in pixels of the image), and
    `masks` (COCO run-length encoding) or `keypoints` (x, y, visibility). Predictions are sorted by score, from high to
    low; scores are between 0 and 1.

    Examples:
        >>> predictor = Predictor("runs/pets")  # doctest: +SKIP
        >>> predictor("cat.jpg")  # doctest: +SKIP
        {'labels': ['siamese', 'birman', ...], 'scores': [0.97, 0.02, ...], 'indices': [2, 0, ...]}

    Args:
        source: Run folder, model file, a folder that `fishnet export` wrote, or any weights file (with `task` and
            `model`).
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, ...
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Class names of a weights file that has none.
        size: Input size in pixels instead of that of the model. For a detector it is the shorter side, and the maximum
            of the longer side is scaled with it.
        runtime: Inference backend; `auto` selects that of an exported folder, or `torch`.
        compile: Compile the network with torch.compile at its first batch, and print how long that took.
        precision: Numerical precision: fp32, bf16, fp16, or auto for that of the validation during training.
        options: Prediction options of the task: `top` and `threshold` of a classifier, `score`, `max_detections`,
            `tile` and `overlap` of a detector.

    Raises:
        FishnetError: The source is missing or damaged; see `fishnet.loading.load_model`.
        UsageError: An option that the task does not have, or a value out of its range.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "auto",
        task: str | None = None,
        model: str | None = None,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        runtime: RuntimeName = "auto",
        compile: bool = False,
        precision: str = "fp32",
        **options: Any,
    ) -> None:
        with python_names():
            self.runtime, self.card = load_runtime(
                source, runtime, device, precision, task=task, model=model, classes=classes, size=size, compile=compile
            )
            self.task = make_task(self.card, **options)

    @property
    def classes(self) -> list[str]:
        """Class names of the first head, in the order of its outputs; `card.classes` has those of every head."""
        return next(iter(self.card.classes.values()))

    @property
    def batch_size(self) -> int:
        """Default number of images per forward pass; it depends on the task."""
        return get_task(self.card.task).batch_size

    @overload
    def __call__(self, image: ImageLike) -> Answer: ...
    @overload
    def __call__(self, image: list[ImageLike] | tuple[ImageLike, ...]) -> list[Answer]: ...
    def __call__(self, image: ImageLike | list[ImageLike] | tuple[ImageLike, ...]) -> Answer | list[Answer]:
        """Predict on an image, or on a list of images.

        Args:
            image: An image, or a list or tuple of images. An image is a path, a PIL image, a NumPy array (H, W) or
                (H, W, 1..4) of uint8, or a tensor (H, W) or (1..4, H, W) of uint8 or of floats between 0 and 1.
                Grayscale and alpha are converted; do not resize or normalize.

        Returns:
            The prediction as lists of equal length, sorted by score (see the class); for a list of images, a list of
            predictions.

        Raises:
            FishnetError: The image cannot be read or has another form.
        """
        if isinstance(image, list | tuple):
            return self.batch(image)
        return self.batch([image])[0]

    def batch(self, images: Iterable[ImageLike], batch_size: int | None = None) -> list[Answer]:
        """Predict on many images, in their order.

        Args:
            images: Images in any form that a call accepts.
            batch_size: Images that are decoded and predicted at a time; None takes the default of the task.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        rest = iter(images)
        answers: list[Answer] = []
        while part := list(islice(rest, batch_size)):
            answers += self.answer([self.task.prepare(as_image(image)) for image in part])
        return answers

    def answer(self, prepared: Sequence[object]) -> list[Answer]:
        """Predict on inputs that `task.prepare` returned for RGB images."""
        if not prepared:
            return []
        return self.task.answer(self.runtime, prepared)


def as_image(image: ImageLike) -> Image.Image:
    """Return an image in any accepted form as a PIL image in RGB; see `Predictor.__call__`.

    Raises:
        FishnetError: It is not an image.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Tensor):
        image = _tensor_to_array(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_with_known_shape(image))
    if not isinstance(image, Image.Image):
        raise FishnetError(f"a {type(image).__name__} is not an image; give a path, a PIL image, an array or a tensor")
    try:
        return to_rgb(image)
    except Exception as error:  # decoders raise nearly any exception on damaged data
        raise bad_image("given as PIL image", explain(error, b"?")) from error


def _tensor_to_array(image: Tensor) -> np.ndarray:
    if image.ndim == 3:
        image = image.permute(1, 2, 0)
    image = image.detach().cpu()
    if image.is_floating_point():
        if not ((image >= 0) & (image <= 1)).all():
            raise FishnetError("a float tensor must have values between 0 and 1, before normalization")
        image = image.float().mul(255).round().to(torch.uint8)
    return image.numpy()


def _with_known_shape(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise FishnetError(f"an image array must have dtype uint8, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise FishnetError(
            f"an array of shape {array.shape} is not an image; it must be (H, W) or (H, W, channels), 1 to 4 channels "
            "(a tensor: channels first)"
        )
    return np.ascontiguousarray(array)
