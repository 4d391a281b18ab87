"""Prediction on images: decoded ahead by worker processes, answered in batches, written and drawn behind."""

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
"""Up to so many images are loaded by a thread: starting worker processes would take longer than the work."""
PATIENCE = 0.2
"""Seconds that a listed image waits for others to fill its batch."""


@dataclass
class Loaded:
    """An image, ready for the network."""

    file: str
    """Path as it was given."""
    error: str = ""
    """Why it cannot be read; empty if it can."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    prepared: object = None
    """What `Task.prepare` returned."""
    picture: Image.Image | None = None
    """What is drawn on; None if nothing is drawn."""
    facts: Json = field(default_factory=dict)
    """What its entry says besides: number and time of a frame."""


class ImageJob(NamedTuple):
    """An image file to load."""

    number: int
    """Place among all images, from 0."""
    path: Path


class LoadImage:
    """Function that reads and prepares an image file; runs in worker processes.

    Args:
        task: Prepares the image.
        painter: Says whether the image is drawn, and in which size; None draws nothing.
    """

    def __init__(self, task: AnyTask, painter: Painter | None) -> None:
        self.task, self.painter = task, painter

    def __call__(self, job: ImageJob) -> Loaded:
        """Return the image, or why it cannot be read."""
        try:
            image = read_image(job.path)
        except FishnetError as error:
            return Loaded(job.path.as_posix(), str(error))
        found = Loaded(job.path.as_posix(), "", image.size, self.task.prepare(image))
        if self.painter is not None and self.painter.wants(job.number):
            found.picture = self.painter.thumbnail(image)
        return found


class Inbox:
    """The paths of images, one by one, and which of them have no result yet.

    Args:
        paths: Paths; taken by another thread.
        check: Called with each path before it is handed out.
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
        """Note that the next path has its result."""
        self._open.popleft()

    def left(self, drain: bool) -> list[Path]:
        """Return the paths without a result; with `drain`, also those that nobody has taken."""
        return [*self._open, *(self._paths if drain else ())]


class Sink:
    """Writes the entry of an image and draws it.

    Args:
        task: Turns answers into entries.
        painter: Draws.
        results: Takes the entries.
        inbox: Is told which images are done.
        echo: Called with every image's name and answer in words; None prints nothing.
    """

    def __init__(
        self, task: AnyTask, painter: Painter, results: Results, inbox: Inbox, echo: Callable[[str], None] | None
    ) -> None:
        self.task, self.painter, self.results, self.inbox, self.echo = task, painter, results, inbox, echo

    def __call__(self, item: tuple[Loaded, Answer | None]) -> None:
        """Take a loaded image and its answer; None for one that could not be read."""
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
    """Run the network on batches of loaded images, and pass images and answers on.

    Args:
        batches: Loaded images.
        predictor: Answers.
        put: Takes every image, with None if it could not be read.
        bar: Progress bar, in images.
        stop_at_bad: Whether to raise at an image that cannot be read.
        inside: Draws the insides of the network for images that are drawn, which runs it once more; None draws none.

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
    """How images are loaded."""

    batch_size: int
    workers: int
    stop_at_bad: bool
    draw: bool
    insides: bool = False
    """Whether to draw the insides of the network for images that are drawn."""


def progress_bar(total: int | None, what: str, unit: str = "images") -> tqdm:
    """Return a progress bar with the throughput, such as 23.1 images/s; there is none if no person watches."""
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
    """Predict on all images of an inbox; what is done when this raises is in `results`, and drawn.

    Args:
        predictor: Answers.
        painter: Draws; its files are finished in any case.
        inside: Draws the insides of the network; None draws none.
        inbox: Images.
        results: Takes the entries.
        how: How images are loaded.
        total: Number of images; None if they are listed while this runs. Then a result does not wait for others, and
            is printed at once.
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
