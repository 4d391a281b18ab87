"""Session of `fishnet predict`: inputs, outputs, and the state after an interruption."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fishnet.errors import FishnetError, Interrupted, UsageError, counted
from fishnet.files import Json, atomic_write
from fishnet.prediction.frames import predict_video, video_jobs
from fishnet.prediction.images import Inbox, Loading, predict_images
from fishnet.prediction.inputs import (
    STANDARD_INPUT,
    Inputs,
    describe_skipped,
    find_inputs,
    has_whole_list,
    is_video,
    listed_paths,
)
from fishnet.prediction.overlap import Stopped, stop_signals
from fishnet.prediction.results import FILES, Results
from fishnet.prediction.video import BadVideoError, require_video_support
from fishnet.predictor import Predictor
from fishnet.signatures import Function, function_options
from fishnet.tasks.base import Entry, Painter, precision_of

if TYPE_CHECKING:
    from fishnet.report.insides import InsidePictures

Again = Callable[[Sequence[str] | None, str | None], str]


@dataclass
class Prediction:
    """Result of `predict`."""

    results_json: Path
    pictures: list[Path]
    bad_images: list[str]

    @cached_property
    def document(self) -> Json:
        """Content of results.json."""
        return json.loads(self.results_json.read_text("utf-8"))

    @property
    def images(self) -> list[Entry]:
        """One entry per image: file, width, height, predictions."""
        return self.document["images"]

    @property
    def videos(self) -> list[Entry]:
        """One entry per video: file, width, height, fps, frames, and the names of its files."""
        return self.document.get("videos", [])


class Session:
    """Predicts on all inputs of a call. Leaving the context by an exception keeps readable results.

    Args:
        out: Output folder.
        again: Function from inputs and output folder (None: those of this call) to a command line with the same
            options.
        overwrite: Whether results in the folder may be replaced.

    Raises:
        UsageError: The folder already contains results.
    """

    def __init__(self, out: Path, again: Again, overwrite: bool) -> None:
        self.results, self.again, self.overwrite = Results(out), again, overwrite
        if not overwrite:
            self.results.refuse_earlier()
        self.earlier = self.results.earlier_files()
        self.done: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.results.discard()

    def start(self, inputs: list[str]) -> Inputs:
        """Find the inputs, and create the output folder before any prediction.

        Args:
            inputs: Files, folders, patterns, or - for standard input.

        Raises:
            FishnetError: There are no inputs.
        """
        found = find_inputs(inputs, leave_out=self.results.folder)
        self.results.start()
        if found.skipped:
            print(describe_skipped(found.skipped), flush=True)
        return found

    def predict(self, predictor: Predictor, inputs: Inputs, loading: Loading, every: int) -> Prediction:
        """Predict on all inputs.

        Args:
            predictor: Predictor.
            inputs: Images and videos.
            loading: Options of loading.
            every: Predict on every N-th frame of videos.

        Raises:
            FishnetError: An input cannot be read; results.json contains the predictions so far.
            Interrupted: A signal was received; results.json contains the predictions so far.
        """
        self.predictor, self.inputs = predictor, inputs
        self.total = None if inputs.standard_input else len(inputs.files)
        if inputs.videos:
            require_video_support()
        self.jobs = video_jobs(inputs.videos, self.results.folder, every)
        self.painter: Painter = predictor.task.painter(
            self.results.folder, sys.maxsize if self.total is None else self.total
        )
        self.inside = _inside_pictures(predictor, self.results.folder) if loading.insides else None
        self.places = self._check_pictures()
        listed = listed_paths() if inputs.standard_input else ()
        self.inbox = Inbox(chain(inputs.files, listed), self._refuse_place)
        begin = time.perf_counter()
        try:
            with stop_signals():
                self._predict_all(loading)
        except Stopped as stopped:
            raise Interrupted(stopped.signum, self._leave()) from None
        except FishnetError as error:
            if self.results.is_empty:
                raise
            raise type(error)(f"{error}. Continue with: {self._leave()}") from error
        self._finish(complete=True)
        self._say(time.perf_counter() - begin)
        return Prediction(self.results.path, self._written, self.results.bad)

    @property
    def _written(self) -> list[Path]:
        """Pictures on disk."""
        return self.painter.written + (self.inside.written if self.inside else [])

    def _check_pictures(self) -> set[Path]:
        """Return the files of the folder that pictures may replace; reject those that predict has not written."""
        folder = self.results.folder
        patterns = self.painter.patterns + (self.inside.patterns if self.inside else ())
        present = {path for pattern in patterns for path in folder.glob(pattern)}
        present |= {file for job in self.jobs for file in job.files if file.exists()}
        self.places = {path.resolve() for path in present}
        for file in self.inputs.files:
            self._refuse_place(file)
        if (foreign := sorted(present - self.earlier)) and not self.overwrite:
            raise UsageError(
                f"{foreign[0]} is not from an earlier predict: choose another --out, or give --overwrite to replace "
                "files of the same name"
            )
        return self.places

    def _refuse_place(self, file: Path) -> None:
        """Reject an input that a picture would overwrite."""
        if self.places and file.resolve() in self.places:
            raise UsageError(f"a picture would overwrite the input {file}; choose another --out")

    def _predict_all(self, loading: Loading) -> None:
        if self.total != 0:
            predict_images(self.predictor, self.painter, self.inside, self.inbox, self.results, loading, self.total)
            bad = self.results.bad
            if not self.results.count and not bad:
                raise FishnetError("standard input lists no images; write one path per line")
            if not self.results.count:
                raise FishnetError(f"none of the {len(bad)} images can be read, the first is {bad[0]}")
        for job in self.jobs:
            try:
                problem = predict_video(self.predictor, self.painter, job, loading, self.results.videos)
            except BadVideoError as error:
                if loading.stop_at_bad:
                    raise
                self.results.bad.append(job.path.as_posix())
                problem = str(error)
            self.done.add(job.path)
            if problem:
                print(problem, flush=True)
        if self.results.is_empty:
            raise FishnetError(f"none of the {len(self.jobs)} videos can be read, the first is {self.jobs[0].path}")

    def _finish(self, complete: bool) -> None:
        card = self.predictor.card
        head: Json = {"task": card.task, "model": card.model, "classes": card.classes}
        head |= {"precision": precision_of(self.predictor.runtime), **self.predictor.task.about}
        made = {self.results.folder / one[name] for one in self.results.videos for name in FILES if name in one}
        for old in self.earlier - made - set(self._written):
            old.unlink(missing_ok=True)
        self.results.finish(head, self._written, complete)

    def _leave(self) -> str:
        """Write the results so far and the list of remaining inputs; return the command that continues."""
        if self.results.is_empty:
            return self.again(None, None)
        left = self.inbox.left(drain=not self.inputs.standard_input or has_whole_list())
        videos = [str(job.path) for job in self.jobs if job.path not in self.done]
        self._finish(complete=False)
        print(f"{self._counted()} are done: {self.results.path}")
        images = [STANDARD_INPUT] if left or not videos else []
        again = self.again([*images, *videos], f"{self.results.folder}_rest")
        if not left:
            return again
        atomic_write(self.results.remaining, "".join(f"{path}\n" for path in left))
        return f"{again} < {shlex.quote(str(self.results.remaining))}"

    def _counted(self) -> str:
        """Return the number of images and frames, in words."""
        counts = [counted(self.results.count, "image")] if self.total != 0 else []
        return ", ".join([*counts, *(f"{one['frames']} frames of {one['file']}" for one in self.results.videos)])

    def _say(self, seconds: float) -> None:
        results, painter, entries = self.results, self.painter, self.results.count
        if self.total is not None:  # images from standard input have been printed already
            for entry in results.first:
                print(f"{entry['file']}: {self.predictor.task.headline(entry)}")
            if entries > len(results.first):
                print(f"... and {entries - len(results.first)} more")
            for file in results.bad[:10]:
                print(f"skipped unreadable {'video' if is_video(Path(file)) else 'image'} {file}")
            if len(results.bad) > 10:
                print(f"... and {len(results.bad) - 10} more skipped")
        for one in results.videos:
            made = ", ".join(str(results.folder / one[name]) for name in FILES if name in one)
            print(f"{one['file']}: {one['frames']} frames, {made}")
        answered = entries + sum(one["frames"] for one in results.videos)
        told = counted(entries, "image") if self.total != 0 else counted(len(results.videos), "video")
        told += f", {len(results.bad)} skipped, {answered / seconds:.1f} images/s: {results.path}"
        if pictures := painter.written:
            more = f" (the first {painter.drawn} images)" if 0 < painter.drawn < entries else ""
            told += f", {pictures[0]}{f' ... {pictures[-1].name}' if len(pictures) > 1 else ''}{more}"
        print(told)
        if self.inside and self.inside.written:
            print(f"feature maps: {self.inside.written[0].parent}")


def _inside_pictures(predictor: Predictor, folder: Path) -> InsidePictures:
    """Return the painter of the network's feature maps.

    Raises:
        UsageError: The network does not run in PyTorch.
    """
    from fishnet.models.network import Network
    from fishnet.report.insides import InsidePictures
    from fishnet.tasks.base import TorchRuntime

    runner = predictor.runtime
    if not isinstance(runner, TorchRuntime) or not isinstance(runner.network, Network):
        raise UsageError("--insides needs a network that runs in PyTorch: --runtime torch")
    return InsidePictures(folder, runner.network)


def command_line(function: Function, given: Json, inputs: Sequence[str] | None = None, out: str | None = None) -> str:
    """Return a call of `predict` as a command line.

    Args:
        function: `predict`; arguments with default values are omitted.
        given: Arguments of the call by name, including those of the task.
        inputs: Other inputs.
        out: Another output folder.
    """
    defaults = {name: option.default for name, option in function_options(function).items()}
    words = ["fishnet", "predict", given["run"], *(inputs or given["inputs"]), "--out", out or given["out"]]
    for name, value in given.items():
        if name in ("run", "inputs", "out", "overwrite", "options") or value == defaults.get(name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words += [f"--{flag}", shown]
    return shlex.join(map(str, words))
