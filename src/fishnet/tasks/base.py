"""What a task consists of. Training, commands, runs and reports use tasks through these types, none by name.

A task is a module of `fishnet.tasks`, or of another package that registers it under the entry-point group
`fishnet.tasks`. Its `TASK` says which settings it has and how to make the two objects that do the work: a `Task`, made
from a model's card alone, evaluates and predicts; a `Training`, made from settings, adds data and losses.
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

if TYPE_CHECKING:  # training draws nothing until its end
    from matplotlib.figure import Figure

BadImages = Literal["stop", "skip"]
Collate = Callable[[list[Any]], Any]
"""Function that makes a batch of samples."""
Sample = dict[str, Any]
"""Element of a data set, with the keys of `Batch`."""
Batch = dict[str, Any]
"""Images under `image`, targets as the task names them, `index` of each sample, and `bad`: the path of an image that
could not be read, or an empty string."""
Answer = dict[str, Any]
"""What a model predicts for an image, as `fishnet.Predictor` returns it."""
Entry = Json
"""An answer as results.json contains it."""
DataT = TypeVar("DataT")
"""Data set of a task."""
EvaluatorT = TypeVar("EvaluatorT")
"""Evaluator of a task."""
EvaluationT = TypeVar("EvaluationT", contravariant=True)
"""What the evaluator of a task computes."""
PreparedT = TypeVar("PreparedT")
"""Model input prepared from an image."""
ResultT = TypeVar("ResultT", covariant=True)
"""What an evaluator computes."""


class Runtime(Protocol):
    """Runs a network: the one of PyTorch in this process, or an exported one."""

    def __call__(self, images: Images) -> Answers:
        """Return the answers by head, each with an entry per image."""
        ...


class TorchRuntime:
    """Runs a network of PyTorch in inference mode.

    Args:
        network: Network in eval mode, on `device`.
        device: Device that images are moved to.
        precision: Arithmetic: fp32, bf16 or fp16.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: str = "fp32") -> None:
        self.network, self.device, self.precision = network, device, precision

    def __call__(self, images: Images) -> Answers:
        """Return the answers by head, on the device of the network."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            if isinstance(images, Tensor):
                return self.network(images.to(self.device, memory_format=torch.channels_last, non_blocking=True))
            return self.network([image.to(self.device, non_blocking=True) for image in images])


def precision_of(runtime: Runtime) -> str | None:
    """Return the arithmetic of a runtime: fp32, bf16 or fp16; None if it does not say."""
    return runtime.precision if isinstance(runtime, TorchRuntime) else None


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to eval mode; every module gets its own mode back afterwards."""
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
        metrics: Metrics by name. Fractions are between 0 and 1; -1 marks a metric that the split does not determine.
        images: Number of evaluated images.
    """

    metrics: dict[str, float]
    images: int

    def to_dict(self) -> Json:
        """Return everything as plain values for JSON."""
        ...


class Evaluator(Protocol[ResultT]):
    """Collects the answers of a split, over all processes, and computes the metrics."""

    def compute(self) -> ResultT:
        """Return the `Evaluation` of all answers. All processes must call it."""
        ...


class DrawnItem(TypedDict):
    """An image for a painter."""

    file: str
    thumbnail: Image.Image | None
    """What `Painter.thumbnail` returned; None for an image that is not drawn."""


class Painter(Protocol):
    """Draws answers one by one, so that memory does not grow with the number of images.

    Attributes:
        patterns: Glob patterns of the files that it writes, relative to the output folder.
        written: Pictures on disk.
        drawn: Number of images drawn so far.
    """

    patterns: tuple[str, ...]
    written: list[Path]
    drawn: int

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size that `add` expects; called by the processes that load images."""
        ...

    def wants(self, index: int) -> bool:
        """Whether the image of that index is drawn."""
        ...

    def add(self, item: DrawnItem, answer: Answer) -> None:
        """Draw one image."""
        ...

    def frame(self, image: Image.Image, answer: Answer) -> Image.Image:
        """Return an image in its own size with the answer drawn on it, such as a frame of a video; nothing is
        written."""
        ...

    def finish(self) -> None:
        """Write what is not on disk yet."""
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
        """Function that makes a batch of samples; None stacks tensors."""
        ...

    def open_split(self, root: Path, split: str, bad_images: BadImages) -> DataT:
        """Return a data set prepared for the model; its classes are numbered as the outputs of the model."""
        ...

    def evaluator(self, dataset: DataT, device: torch.device) -> EvaluatorT:
        """Return a new `Evaluator` for a data set."""
        ...

    def network_inputs(self, batch: Batch) -> Images:
        """Return the images of a batch that could be read, in their order; there may be none."""
        ...

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the answers for `network_inputs(batch)` that `update` takes; a task may run the network several times
        for them, with test-time augmentation."""
        ...

    def update(self, evaluator: EvaluatorT, answers: Answers, batch: Batch) -> None:
        """Pass the answers for `network_inputs(batch)` to an evaluator, with the targets of the batch."""
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
        """Return an RGB image as the network takes it; a network takes a batch or a list of them."""
        ...

    def prepare(self, image: Image.Image) -> PreparedT:
        """Return what `answer` takes of an RGB image, such as its tiles."""
        ...

    def answer(self, runtime: Runtime, prepared: Sequence[PreparedT]) -> list[Answer]:
        """Return what the model predicts for prepared images."""
        ...

    @property
    def about(self) -> Json:
        """What results.json says about its entries, such as the format of boxes."""
        ...

    def entry(self, answer: Answer) -> Entry:
        """Return an answer as results.json contains it."""
        ...

    def headline(self, entry: Entry) -> str:
        """Return an entry of results.json in a few words."""
        ...

    def painter(self, out: Path, images: int) -> Painter:
        """Return a painter of the answers for a number of images, which writes into a folder."""
        ...

    def draw_examples(self, runtime: Runtime, dataset: DataT) -> Image.Image:
        """Return a picture of the answers for some images of a data set, with the truth."""
        ...


AnyTask = Task[Any, Any, Any, Any]
"""A task of any kind."""


class TrainOrder(TypedDict, total=False):
    """What `fishnet.data.loader.TrainBatches` needs to know of a training split of N samples."""

    groups: np.ndarray
    """int (N,): a batch takes samples of one group only."""
    repeats: np.ndarray
    """float (N,): how often a sample is shown per epoch on average, at least 1."""
    quotas: Quotas
    """Least share of each step that has labels of a level."""


class Training(Protocol):
    """What training needs: data, network and losses. Problems with the data are raised when it is made."""

    @property
    def config(self) -> TrainConfig:
        """Settings of the run. What they left open, such as a detector that depends on the data, is decided."""
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
        """Return what the order of the training split depends on: groups of similar images, repeated images."""
        ...

    def architecture(self) -> Architecture:
        """Return what builds the network."""
        ...

    def card(self) -> ModelCard:
        """Return what evaluation and prediction need to know of the network."""
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
        """Return values that change when the data set does."""
        ...


def evaluate_network(
    task: AnyTask, runtime: Runtime, batches: Iterable[Batch], evaluator: Evaluator[ResultT]
) -> ResultT:
    """Run a network over all batches and return the `Evaluation`.

    Args:
        task: How a batch is evaluated.
        runtime: Runs the network.
        batches: Batches of a data loader.
        evaluator: Evaluator of `task`; answers that it has already count too.
    """
    with torch.inference_mode():
        for batch in batches:
            images = task.network_inputs(batch)
            if len(images):
                task.update(evaluator, task.run(runtime, images, batch), batch)
    return evaluator.compute()


class DataReport(Protocol):
    """What was done to a data set."""

    def describe(self) -> str:
        """Return it as text."""
        ...


Given = Mapping[str, Any]
"""Explicitly set settings, by name."""


class RecipeChoice(NamedTuple):
    """The recipe of a run that names none."""

    name: str
    reason: str
    """Why, in a few words, such as "weights are given"."""


def at_size(card: ModelCard, size: int) -> ModelCard:
    """Return the card for another input size."""
    return replace(card, size=size)


def at_size_with_longest(longest: int) -> Callable[[ModelCard, int], ModelCard]:
    """Return an `at_size` for cards whose size is the shorter side, with the maximum of the longer side in `details`.

    Args:
        longest: Maximum of the longer side in pixels where a card does not say it.
    """

    def scaled(card: ModelCard, size: int) -> ModelCard:
        """Return the card for another length of the shorter side; the maximum of the longer side is scaled with it."""
        limit = round(card.details.get("longest", longest) * size / card.size)
        return replace(card, size=size, details={**card.details, "longest": limit})

    return scaled


@dataclass(frozen=True)
class TaskKind:
    """A task as everything outside of its own folder sees it."""

    name: str
    """Name on the command line."""
    summary: str
    """What is predicted, in a few words."""
    config: type[TrainConfig]
    """Settings of a run: a dataclass, subclass of `TrainConfig`."""
    options: type[Any]
    """How the model answers: a dataclass whose fields are options of `fishnet predict` and keywords of `Predictor`."""
    make_training: Callable[[Any], Training]
    """Settings -> data and losses."""
    make_task: Callable[[ModelCard, Any], AnyTask]
    """Card and options -> evaluation and prediction."""
    recipes: str
    """Package that contains the recipes, one YAML file each."""
    choose_recipe: Callable[[Given], RecipeChoice]
    """Explicitly set settings -> recipe of a run that names none."""
    evaluation_options: type[Any] | None = None
    """Options that `fishnet evaluate` takes too: a dataclass whose fields are among those of `options`."""
    tied: frozenset[str] = frozenset()
    """Settings besides the model that a checkpoint depends on; a resumed run cannot change them."""
    free: frozenset[str] = frozenset()
    """Settings that do not change the result; a resumed run may change them."""
    batch_size: int = 32
    """Images per forward pass in evaluation and prediction, by default."""
    display: Display = field(default_factory=Display)
    """What reports show of an evaluation."""
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
    topics: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    """What `fishnet info TOPIC` prints, by topic."""
    layouts: str = "see its documentation"
    """Layouts of the folders that `split_data` takes, in a few words."""
    convert_layouts: str = "see its documentation"
    """Layouts of the folders that `convert_data` takes, in a few words."""
    at_size: Callable[[ModelCard, int], ModelCard] = at_size
    """Card and input size in pixels -> card for that size."""
    load_foreign: Callable[[Path, str, Sequence[str] | None], tuple[Network, ModelCard]] | None = None
    """Weights file without a card, backbone, class names -> network and card."""
