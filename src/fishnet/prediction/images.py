"""Prediction on images: prefetched by worker processes, predicted in batches, written and drawn in the background."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fishnet.data.images import read_image
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.prediction.overlap import Ahead, Behind, Load
from fishnet.prediction.results import Results
from fishnet.tasks.base import Answer, AnyTask, Entry, Painter

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

    from fishnet.predictor import Predictor
    from fishnet.report.insides import InsidePictures

FEW = 16
"""Up to this number, images are loaded in a thread, since starting worker processes would take longer."""
PATIENCE = 0.2
"""Maximum time in seconds that an image from standard input waits for its batch to fill."""


@dataclass
class Loaded:
    """A prepared image."""

    file: str
    """Path as given by the user."""
    error: str = ""
    """Reason why it cannot be read; empty if it can."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    prepared: object = None
    """Result of `Task.prepare`."""
    picture: Image.Image | None = None
    """Image to draw on; None if nothing is drawn."""
    facts: Json = field(default_factory=dict)
    """Further values of its entry, such as number and time of a frame."""


class ImageJob(NamedTuple):
    """An image file to load."""

    number: int
    """Index among all images, from 0."""
    path: Path


class LoadImage:
    """Function that reads and prepares an image file; runs in worker processes.

    Args:
        task: Task of the network, which prepares the image.
        painter: Painter, which selects and resizes the images to draw; None draws nothing.
    """

    def __init__(self, task: AnyTask, painter: Painter | None) -> None:
        self.task, self.painter = task, painter

    def __call__(self, job: ImageJob) -> Loaded:
        """Return the prepared image, or the reason why it cannot be read."""
        try:
            image = read_image(job.path)
        except FishnetError as error:
            return Loaded(job.path.as_posix(), str(error))
        found = Loaded(job.path.as_posix(), "", image.size, self.task.prepare(image))
        if self.painter is not None and self.painter.wants(job.number):
            found.picture = self.painter.thumbnail(image)
        return found


class Inbox:
    """Iterator over image paths that records which of them have no result yet.

    Args:
        paths: Paths; iterated in another thread.
        check: Called with each path before it is yielded.
    """

    def __init__(self, paths: Iterable[Path], check: Callable[[Path], None]) -> None:
        self._paths, self._check = iter(paths), check
        self._lock = threading.Lock()
        self._open: deque[Path] = deque()

    def __iter__(self) -> Iterator[ImageJob]:
        for number, path in enumerate(self._paths):
            self._check(path)
            self._open.append(path)
            yield ImageJob(number, path)

    def done(self) -> None:
        """Record that the next path has its result."""
        self._open.popleft()

    def left(self, drain: bool) -> list[Path]:
        """Return the paths without a result; with `drain`, also those that have not been yielded."""
        return [*self._open, *(self._paths if drain else ())]


class Sink:
    """Writes the entry of an image and draws it.

    Args:
        task: Task of the network, which converts predictions to entries.
        painter: Painter of the images.
        results: Results file.
        inbox: Inbox of the images, which records those that are done.
        echo: Called with a line per image that summarizes its prediction; None prints nothing.
    """

    def __init__(
        self, task: AnyTask, painter: Painter, results: Results, inbox: Inbox, echo: Callable[[str], None] | None
    ) -> None:
        self.task, self.painter, self.results, self.inbox, self.echo = task, painter, results, inbox, echo

    def __call__(self, item: tuple[Loaded, Answer | None]) -> None:
        """Write a loaded image with its prediction, which is None for an unreadable image."""
        loaded, answer = item
        if answer is None:
            self.results.bad.append(loaded.file)
            if self.echo:
                self.echo(f"skipped unreadable image {loaded.file}")
        else:
            about: Entry = {"file": loaded.file, "width": loaded.size[0], "height": loaded.size[1]}
            entry = about | self.task.entry(answer)
            self.results.add(entry)
            self.painter.add({"file": loaded.file, "thumbnail": loaded.picture}, answer)
            if self.echo:
                self.echo(f"{loaded.file}: {self.task.headline(entry)}")
        self.inbox.done()


def answer_all(
    batches: Iterable[list[Loaded]],
    predictor: Predictor,
    put: Callable[[tuple[Loaded, Answer | None]], None],
    bar: tqdm,
    stop_at_bad: bool,
    inside: InsidePictures | None = None,
) -> None:
    """Run the network on batches of loaded images, and pass on images and predictions.

    Args:
        batches: Loaded images.
        predictor: Predictor.
        put: Called with every image and its prediction, which is None for an unreadable image.
        bar: Progress bar, in images.
        stop_at_bad: Whether to raise an error for an unreadable image.
        inside: Painter of the feature maps of images that are drawn, which runs the network again; None draws none.

    Raises:
        FishnetError: An image cannot be read.
    """
    for batch in batches:
        good = [one for one in batch if not one.error]
        if stop_at_bad and len(good) < len(batch):
            raise FishnetError(next(one.error for one in batch if one.error))
        answers = iter(predictor.answer([one.prepared for one in good]))
        for one in batch:
            put((one, None if one.error else next(answers)))
        for one in good:
            if inside is not None and one.picture is not None:
                inside.add(one.file, partial(predictor.answer, [one.prepared]))
        bar.update(len(batch))


@dataclass(frozen=True)
class Loading:
    """Options of loading."""

    batch_size: int
    workers: int
    stop_at_bad: bool
    draw: bool
    insides: bool = False
    """Whether to draw the feature maps of the network for images that are drawn."""


def progress_bar(total: int | None, what: str, unit: str = "images") -> tqdm:
    """Return a progress bar with the throughput, such as 23.1 images/s; it is shown on a terminal only."""
    from tqdm import tqdm

    shown = "{desc}: {percentage:3.0f}%|{bar}| " if total else "{desc}: "
    shown += (
        "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
        if total
        else ("{n_fmt} {unit} [{elapsed}, {rate_noinv_fmt}]")
    )
    return tqdm(total=total, desc=what, unit=f" {unit}", disable=None, leave=False, bar_format=shown)


def predict_images(
    predictor: Predictor,
    painter: Painter,
    inside: InsidePictures | None,
    inbox: Inbox,
    results: Results,
    how: Loading,
    total: int | None,
) -> None:
    """Predict on all images of an inbox; after an exception, `results` and pictures contain those predicted so far.

    Args:
        predictor: Predictor.
        painter: Painter of the images; its files are finished in any case.
        inside: Painter of the feature maps; None draws none.
        inbox: Images.
        results: Results file.
        how: Options of loading.
        total: Number of images; None if they are read from a stream. Then incomplete batches do not wait, and results
            are printed immediately.
    """
    load: Load[ImageJob, Loaded] = LoadImage(predictor.task, painter if how.draw else None)
    processes = how.workers > 0 and (total is None or total > FEW)
    patience = PATIENCE if total is None else None
    with Ahead(inbox, load, how.batch_size, how.workers, processes, patience) as batches:
        bar = progress_bar(total, "predicting")
        echo = (lambda line: bar.write(line)) if total is None else None
        sink = Sink(predictor.task, painter, results, inbox, echo)
        with closing(bar):
            try:
                with Behind(sink, 2 * how.batch_size) as writer:
                    answer_all(batches, predictor, writer.put, bar, how.stop_at_bad, inside)
            finally:
                painter.finish()
