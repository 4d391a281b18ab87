"""Prediction on videos: a JSON line per frame, and an annotated copy."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json, json_text
from fishnet.prediction.images import Loaded, Loading, answer_all, progress_bar
from fishnet.prediction.overlap import Ahead, Behind
from fishnet.prediction.video import Frame, VideoReader, VideoWriter, bad_video
from fishnet.tasks.base import Answer, AnyTask, Painter

if TYPE_CHECKING:
    from fishnet.predictor import Predictor

FOLDER = "videos"
"""Folder of the files of videos, below the output folder."""
_WAITING = 16
"""Maximum number of frames queued before and after the network; they are large."""


@dataclass(frozen=True)
class VideoJob:
    """A video and its output files."""

    path: Path
    lines: Path
    """JSON lines, one per frame."""
    annotated: Path
    """Annotated video."""
    every: int

    @property
    def files(self) -> tuple[Path, Path]:
        """All output files."""
        return self.lines, self.annotated


def video_jobs(videos: list[Path], out: Path, every: int) -> list[VideoJob]:
    """Return the videos with their output files, OUT/videos/<stem>.jsonl and .mp4.

    Raises:
        UsageError: An output file would replace an input video.
    """
    jobs: list[VideoJob] = []
    names: set[str] = set()
    for path in videos:
        name, number = path.stem, 1
        while name.lower() in names:
            number += 1
            name = f"{path.stem}_{number}"
        names.add(name.lower())
        jobs.append(VideoJob(path, out / FOLDER / f"{name}.jsonl", out / FOLDER / f"{name}.mp4", every))
    read = {path.resolve() for path in videos}
    for job in jobs:
        if job.annotated.resolve() in read:
            raise UsageError(f"the output video would overwrite the input {job.annotated}; choose another --out")
    return jobs


class LoadFrame:
    """Function that prepares a frame for the network.

    Args:
        task: Task of the network.
        path: Path of the video.
    """

    def __init__(self, task: AnyTask, path: Path) -> None:
        self.task, self.file = task, path.as_posix()

    def __call__(self, frame: Frame) -> Loaded:
        """Return the prepared frame."""
        facts = {"frame": frame.number, "time": round(frame.time, 6)}
        return Loaded(self.file, "", frame.image.size, self.task.prepare(frame.image), frame.image, facts)


class FrameSink:
    """Writes the JSON line of a frame, and draws it.

    Args:
        job: Files to write.
        task: Task of the network, which converts predictions to entries.
        painter: Painter of the frames.
        fps: Frames per second of the annotated video.
        draw: Whether to write an annotated video.
    """

    def __init__(self, job: VideoJob, task: AnyTask, painter: Painter, fps: float, draw: bool) -> None:
        self.job, self.task, self.painter = job, task, painter
        self.size, self.count = (0, 0), 0
        self._stack = ExitStack()
        job.lines.parent.mkdir(parents=True, exist_ok=True)
        self._lines = self._stack.enter_context(job.lines.open("w", encoding="utf-8"))
        self._video = self._stack.enter_context(VideoWriter(job.annotated, fps)) if draw else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, item: tuple[Loaded, Answer | None]) -> None:
        """Write a frame with its prediction."""
        loaded, answer = item
        assert answer is not None
        assert loaded.picture is not None
        self.size = self.size if self.count else loaded.size
        try:
            self._lines.write(json_text(loaded.facts | self.task.entry(answer), None) + "\n")
            self._lines.flush()
        except OSError as error:
            raise FishnetError(
                f"cannot write {self.job.lines}: {error.strerror}; free disk space or choose another --out"
            ) from error
        if self._video is not None:
            self._video.add(self.painter.frame(loaded.picture, answer), loaded.facts["time"])
        self.count += 1


def predict_video(predictor: Predictor, painter: Painter, job: VideoJob, how: Loading, videos: list[Json]) -> str:
    """Predict on the frames of a video.

    Args:
        predictor: Predictor.
        painter: Painter of the frames.
        job: Video, and the files to write.
        how: Options of loading.
        videos: List that the entry of the video is appended to, also after an exception.

    Returns:
        Description of a problem with the video, in a line; empty if there is none.

    Raises:
        BadVideoError: The file is not a video, or no frame of it can be decoded.
    """
    with VideoReader(job.path, job.every) as reader:
        info, at_end = reader.info, False
        sink = FrameSink(job, predictor.task, painter, info.fps / job.every, how.draw)
        total = None if info.frames is None else math.ceil(info.frames / job.every)
        try:
            with sink, closing(progress_bar(total, job.path.name, "frames")) as bar:
                batch = min(how.batch_size, _WAITING)
                with (
                    Ahead(reader, LoadFrame(predictor.task, job.path), batch, how.workers) as batches,
                    Behind(sink, _WAITING) as writer,
                ):
                    answer_all(batches, predictor, writer.put, bar, stop_at_bad=True)
            at_end = True
        finally:
            if sink.count:
                videos.append(_entry(job, reader, sink, at_end, how.draw))
            else:
                job.lines.unlink(missing_ok=True)
    if not sink.count:
        raise bad_video(job.path, "none of its frames can be decoded")
    return reader.problem


def _entry(job: VideoJob, reader: VideoReader, sink: FrameSink, at_end: bool, draw: bool) -> Json:
    """Return the entry of a video for results.json."""
    folder = job.lines.parents[1]
    entry: Json = {
        "file": job.path.as_posix(),
        "width": sink.size[0],
        "height": sink.size[1],
        "fps": round(reader.info.fps, 6),
        "every": job.every,
        "frames": sink.count,
        "complete": at_end and not reader.problem,
        "results": job.lines.relative_to(folder).as_posix(),
    }
    if draw:
        entry["video"] = job.annotated.relative_to(folder).as_posix()
    return entry | ({"problem": reader.problem} if at_end and reader.problem else {})
