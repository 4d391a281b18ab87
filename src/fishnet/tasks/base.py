"""Interfaces of a task. Training, commands, runs and reports use tasks only through these types.

A task is a module of `fishnet.tasks`, or of another package that registers it under the entry-point group
`fishnet.tasks`. Its `TASK` (a `TaskKind`) declares its settings and creates two objects: a `Task`, made from a model
card alone, evaluates and predicts; a `Training`, made from settings, provides data, architecture and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.config import TrainConfig
from fishnet.data.checks import CheckReport
from fishnet.data.loader import SplitData
from fishnet.data.quotas import Quotas
from fishnet.drawing.display import Display
from fishnet.files import Json
from fishnet.models.build import Architecture
from fishnet.models.heads.types import Answers
from fishnet.models.network import Images, Network
from fishnet.models.precision import autocast

if TYPE_CHECKING:  # drawing is imported only at the end of training
    from matplotlib.figure import Figure

BadImages = Literal["stop", "skip"]
Collate = Callable[[list[Any]], Any]
"""Function that collates samples into a batch."""
Sample = dict[str, Any]
"""Element of a data set, with the keys of `Batch`."""
Batch = dict[str, Any]
"""Images under `image`, targets under the keys of the task, `index` of each sample, and `bad`: the path of an image
that could not be read, or an empty string."""
Answer = dict[str, Any]
"""Prediction for an image, as `fishnet.Predictor` returns it."""
Entry = Json
"""A prediction as JSON values, as in results.json."""
DataT = TypeVar("DataT")
"""Data set of a task."""
EvaluatorT = TypeVar("EvaluatorT")
"""Evaluator of a task."""
EvaluationT = TypeVar("EvaluationT", contravariant=True)
"""Evaluation of a task."""
PreparedT = TypeVar("PreparedT")
"""Model input prepared from an image."""
ResultT = TypeVar("ResultT", covariant=True)
"""Result of an evaluator."""


class Runtime(Protocol):
    """Runs a network: a PyTorch module, or an exported network."""

    def __call__(self, images: Images) -> Answers:
        """Return the predictions by head, each with an entry per image."""
        ...


class TorchRuntime:
    """Runs a network of PyTorch in inference mode.

    Args:
        network: Network in eval mode, on `device`.
        device: Device that images are moved to.
        precision: Numerical precision: fp32, bf16 or fp16.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: str = "fp32") -> None:
        self.network, self.device, self.precision = network, device, precision

    def __call__(self, images: Images) -> Answers:
        """Return the predictions by head, on the device of the network."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            if isinstance(images, Tensor):
                return self.network(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))
            return self.network([image.to(self.device, non_blocking=True) for image in images])


def precision_of(runtime: Runtime) -> str | None:
    """Return the numerical precision of a runtime: fp32, bf16 or fp16; None if it is unknown."""
    return runtime.precision if isinstance(runtime, TorchRuntime) else None


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to eval mode; the mode of every module is restored afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Evaluation(Protocol):
    """Result of an evaluation.

    Attributes:
        metrics: Metrics by name. Fractions are between 0 and 1; -1 marks a metric that is undefined on the split.
        images: Number of evaluated images.
    """

    metrics: dict[str, float]
    images: int

    def to_dict(self) -> Json:
        """Return the evaluation as JSON values."""
        ...


class Evaluator(Protocol[ResultT]):
    """Accumulates the predictions of a split over all processes and computes the metrics."""

    def compute(self) -> ResultT:
        """Return the `Evaluation` of all predictions. All processes must call it."""
        ...


class DrawnItem(TypedDict):
    """Image to be drawn by a painter."""

    file: str
    thumbnail: Image.Image | None
    """Result of `Painter.thumbnail`; None for an image that is not drawn."""


class Painter(Protocol):
    """Draws predictions one by one, so that memory does not grow with the number of images.

    Attributes:
        patterns: Glob patterns of the files that it writes, relative to the output folder.
        written: Pictures on disk.
        drawn: Number of images drawn so far.
    """

    patterns: tuple[str, ...]
    written: list[Path]
    drawn: int

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size that `add` expects; called in the worker processes that load images."""
        ...

    def wants(self, index: int) -> bool:
        """Whether the image with that index is drawn."""
        ...

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Draw one image."""
        ...

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image, such as a frame of a video, with the prediction drawn on it in its original size; nothing
        is written."""
        ...

    def finish(self) -> None:
        """Write all remaining files."""
        ...


class Task(Protocol[DataT, EvaluatorT, EvaluationT, PreparedT]):
    """Evaluation and prediction with a network, made from its card alone.

    Attributes:
        card: Card of the network.
    """

    card: ModelCard

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that an evaluation computes."""
        ...

    @property
    def collate(self) -> Collate | None:
        """Function that collates samples into a batch; None stacks tensors."""
        ...

    def open_split(self, root: Path, split: str, bad_images: BadImages) -> DataT:
        """Return a split with the preprocessing of the model; class indices are those of the model's outputs."""
        ...

    def evaluator(self, dataset: DataT, device: torch.device) -> EvaluatorT:
        """Return a new `Evaluator` for a data set."""
        ...

    def network_inputs(self, batch: Batch) -> Images:
        """Return the readable images of a batch, in order; there may be none."""
        ...

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the predictions for `network_inputs(batch)` in the form that `update` takes.

        With test-time augmentation, the network runs several times.
        """
        ...

    def update(self, evaluator: EvaluatorT, answers: Answers, batch: Batch) -> None:
        """Pass the predictions for `network_inputs(batch)` and the targets of the batch to an evaluator."""
        ...

    def describe(self, evaluation: EvaluationT) -> list[str]:
        """Return the metrics as lines of text."""
        ...

    def pictures(self, evaluation: EvaluationT) -> Mapping[str, Figure]:
        """Return matplotlib figures to save, by name."""
        ...

    def documents(self, evaluator: EvaluatorT) -> Mapping[str, object]:
        """Return further JSON documents to save, by name."""
        ...

    def transform(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input; a network takes a batch or a list of them."""
        ...

    def prepare(self, image: Image.Image) -> PreparedT:
        """Return an RGB image, or its tiles, prepared for `answer`."""
        ...

    def answer(self, runtime: Runtime, prepared: Sequence[PreparedT]) -> list[Answer]:
        """Return the predictions for prepared images."""
        ...

    @property
    def about(self) -> Json:
        """Description of the entries of results.json, such as the format of boxes."""
        ...

    def entry(self, answer: Answer) -> Entry:
        """Return a prediction as an entry of results.json."""
        ...

    def headline(self, entry: Entry) -> str:
        """Return a one-line summary of an entry of results.json."""
        ...

    def painter(self, out: Path, images: int) -> Painter:
        """Return a painter that writes pictures of the predictions for a number of images to a folder."""
        ...

    def draw_examples(self, runtime: Runtime, dataset: DataT) -> Image.Image:
        """Return a picture of the predictions and the ground truth for some images of a data set."""
        ...


AnyTask = Task[Any, Any, Any, Any]
"""A task of any kind."""


class TrainOrder(TypedDict, total=False):
    """Sampling of a training split of N samples, for `fishnet.data.loader.TrainBatches`."""

    groups: np.ndarray
    """int (N,): all samples of a batch belong to the same group."""
    repeats: np.ndarray
    """float (N,): average number of repetitions of a sample per epoch, at least 1."""
    quotas: Quotas
    """Minimum fraction of the samples of each step that are labeled for a level, by level."""


class Training(Protocol):
    """Data, architecture and losses of a run. The constructor raises problems with the data."""

    @property
    def config(self) -> TrainConfig:
        """Settings of the run, with automatic choices resolved, such as a detector that depends on the data."""
        ...

    @property
    def train_data(self) -> SplitData:
        """Training split."""
        ...

    @property
    def val_data(self) -> SplitData:
        """Validation split."""
        ...

    @property
    def task(self) -> AnyTask:
        """Evaluation and prediction with the network of this training."""
        ...

    def train_order(self) -> TrainOrder:
        """Return how the training split is sampled: groups, repetitions and quotas."""
        ...

    def architecture(self) -> Architecture:
        """Return the architecture that the network is built from."""
        ...

    def card(self) -> ModelCard:
        """Return the model card, which evaluation and prediction are made from."""
        ...

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Return the mean losses of a batch by name: scalars with gradient, whose sum is minimized.

        Args:
            network: Network in training mode.
            batch: Batch on the device of the network.
            epoch: Index of the epoch, from 0.
        """
        ...

    def draw_batch(self, batch: Batch) -> Image.Image:
        """Return a picture of an augmented training batch with its targets."""
        ...

    def fingerprint(self) -> Json:
        """Return values that change if the data set changes."""
        ...


def evaluate_network(
    task: AnyTask, runtime: Runtime, batches: Iterable[Batch], evaluator: Evaluator[ResultT]
) -> ResultT:
    """Run a network over all batches and return the `Evaluation`.

    Args:
        task: Task that runs and evaluates a batch.
        runtime: Runs the network.
        batches: Batches of a data loader.
        evaluator: Evaluator of `task`; predictions that it already contains are included.
    """
    with torch.inference_mode():
        for batch in batches:
            images = task.network_inputs(batch)
            if len(images):
                task.update(evaluator, task.run(runtime, images, batch), batch)
    return evaluator.compute()


class DataReport(Protocol):
    """Report on a check, split or conversion of a data set."""

    def describe(self) -> str:
        """Return the report as text."""
        ...


Given = Mapping[str, Any]
"""Explicitly set settings, by name."""


class RecipeChoice(NamedTuple):
    """Default recipe of a run."""

    name: str
    reason: str
    """Reason in a few words, such as "weights are given"."""


def at_size(card: ModelCard, size: int) -> ModelCard:
    """Return the card for another input size."""
    return replace(card, size=size)


def at_size_with_longest(longest: int) -> Callable[[ModelCard, int], ModelCard]:
    """Return an `at_size` for cards whose size is the shorter side, with the maximum of the longer side in `details`.

    Args:
        longest: Maximum of the longer side in pixels if a card does not record it.
    """

    def scaled(card: ModelCard, size: int) -> ModelCard:
        """Return the card for another length of the shorter side; the maximum of the longer side is scaled with it."""
        limit = round(card.details.get("longest", longest) * size / card.size)
        return replace(card, size=size, details={**card.details, "longest": limit})

    return scaled


def fit_preprocessing(longest: int) -> Callable[[ModelCard], Json]:
    """Return a `preprocessing` for cards as in `at_size_with_longest`: images are resized and keep their shape."""

    def describe(card: ModelCard) -> Json:
        """Return kind and sizes."""
        return {"kind": "fit", "size": card.size, "longest": int(card.details.get("longest", longest))}

    return describe


@dataclass(frozen=True)
class TaskKind:
    """Declaration of a task: the only part of it that code outside its folder uses."""

    name: str
    """Name on the command line."""
    summary: str
    """What is predicted, in a few words."""
    config: type[TrainConfig]
    """Settings of a run: a dataclass, subclass of `TrainConfig`."""
    options: type[Any]
    """Prediction options: a dataclass whose fields are options of `fishnet predict` and keywords of `Predictor`."""
    make_training: Callable[[Any], Training]
    """Settings -> data and losses."""
    make_task: Callable[[ModelCard, Any], AnyTask]
    """Card and options -> evaluation and prediction."""
    recipes: str
    """Package that contains the recipes, one YAML file each."""
    choose_recipe: Callable[[Given], RecipeChoice]
    """Explicitly set settings -> default recipe."""
    evaluation_options: type[Any] | None = None
    """Options of `fishnet evaluate`: a dataclass whose fields are a subset of those of `options`."""
    tied: frozenset[str] = frozenset()
    """Settings, besides the model, that the tensors of a checkpoint depend on; a resumed run cannot change them."""
    free: frozenset[str] = frozenset()
    """Settings that do not change the result; a resumed run may change them."""
    batch_size: int = 32
    """Default number of images per forward pass in evaluation and prediction."""
    display: Display = field(default_factory=Display)
    """Presentation of evaluations in reports."""
    check_data: Callable[..., CheckReport] | None = None
    """Implementation of `fishnet data check`: takes the folder, then options as keywords; its docstring is the help."""
    split_data: Callable[..., DataReport] | None = None
    """Implementation of `fishnet data split`, likewise."""
    can_split: Callable[[Path], bool] | None = None
    """Whether a folder has the layout that `split_data` divides."""
    convert_data: Callable[..., DataReport] | None = None
    """Implementation of `fishnet data convert`: takes source and output folder, then options as keywords."""
    can_convert: Callable[[Path], bool] | None = None
    """Whether a folder has a layout that `convert_data` reads."""
    explain_layout: Callable[[Path], str | None] | None = None
    """Returns in words which layout a folder has that must be converted first, and the command; None if it has none."""
    topics: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    """Functions that return the text of `fishnet info TOPIC`, by topic."""
    layouts: str = "see its documentation"
    """Layouts of the folders that `split_data` takes, in a few words."""
    convert_layouts: str = "see its documentation"
    """Layouts of the folders that `convert_data` takes, in a few words."""
    at_size: Callable[[ModelCard, int], ModelCard] = at_size
    """Card and input size in pixels -> card for that size."""
    preprocessing: Callable[[ModelCard], Json] | None = None
    """Card -> fields of `fishnet.runner.prepare.Preparation`; by default, mean, std and multiple are those of the
    network. None: networks of the task cannot be exported."""
    load_foreign: Callable[[Path, str, Sequence[str] | None], tuple[Network, ModelCard]] | None = None
    """Weights file without a card, backbone, class names -> network and card."""
