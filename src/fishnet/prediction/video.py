"""Reading and writing of video files with PyAV (the extra `video`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from PIL import Image

from fishnet.errors import FishnetError, UsageError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_TICKS = 60_000
"""Units of time per second in written videos; mpeg4 allows no more than 65535."""
_CODECS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}
"""Encoders in order of preference, with their options."""
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}
"""Counterclockwise rotations by their angle in degrees."""


def require_video_support() -> None:
    """Raise UsageError if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UsageError("videos need the extra: pip install 'fishnet-vision[video]'") from None


class BadVideoError(FishnetError):
    """Unusable video."""


class Frame(NamedTuple):
    """A frame of a video."""

    number: int
    """Index in the video, from 0."""
    time: float
    """Seconds since the beginning."""
    image: Image.Image
    """RGB, upright."""


@dataclass
class VideoInfo:
    """Properties of a video."""

    fps: float
    """Frames per second, on average."""
    frames: int | None
    """Number of frames, if recorded or determined by the duration."""


class VideoReader:
    """The frames of a video.

    Damaged frames are skipped. The iteration ends at the end of the file; then `problem` describes a problem with it.

    Args:
        path: Video file.
        every: Yield every N-th frame.

    Raises:
        BadVideoError: The file is not a video.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        import av

        self.path, self.every = path, every
        try:
            self._container: InputContainer = av.open(str(path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise bad_video(path, _reason(error)) from error
        if not self._container.streams.video:
            self._container.close()
            raise bad_video(path, "it has no video stream")
        self._stream: VideoStream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self._stated = self._seconds()
        expected = self._stream.frames or (round(self._stated * rate) if self._stated is not None else None)
        self.info = VideoInfo(float(rate), expected)
        self.decoded, self.damaged = 0, 0
        self._cut, self._end, self._pause = False, 0.0, 0.0

    def _seconds(self) -> float | None:
        """Return the duration of the video stream; that of the file only if it has no other streams."""
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        if stated := stream.metadata.get("DURATION"):  # of Matroska, such as 00:00:02.040000000
            try:
                hours, minutes, seconds = stated.split(":")
                return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
            except ValueError:
                return None
        only = len(self._container.streams) == 1 and self._container.duration is not None
        return self._container.duration / 1_000_000 if only and self._container.duration is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        start = self._stream.start_time or 0
        base = self._stream.time_base or Fraction(1, 1)
        for frame in self._frames():
            number, self.decoded = self.decoded, self.decoded + 1
            time = max(0.0, float((frame.pts - start) * base)) if frame.pts is not None else number / self.info.fps
            self._pause = max(self._pause, time - self._end)
            self._end = time
            if number % self.every == 0:
                yield Frame(number, time, _upright(frame))

    def _frames(self) -> Iterator[VideoFrame]:
        """Yield all frames that can be decoded."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet: Packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError):  # the following packets cannot be located
                self._cut = True
                return
            self._cut = bool(packet.is_corrupt) or (self._cut and not packet.size)
            try:
                for frame in packet.decode():
                    if frame.is_corrupt:
                        self.damaged += 1
                    else:
                        yield frame
            except (av.FFmpegError, OSError):
                self.damaged += 1
                self._cut = True  # unless another packet follows

    def _ends_early(self) -> bool:
        """Return whether the file is shorter than the recorded duration, by more than the duration of one frame."""
        if self._stream.frames:
            return self.decoded + self.damaged < 0.98 * self._stream.frames - 2
        if self._stated is None:
            return False
        return self._stated - self._end > 2 * max(self._pause, 2 / self.info.fps)

    @property
    def problem(self) -> str:
        """Description of a problem with the file, in a line; empty if there is none."""
        if self._cut or self._ends_early():
            expected = self.info.frames
            of = f" of about {expected}" if expected is not None and expected > self.decoded else ""
            return f"the video {self.path} ends in the middle of a frame, after {self.decoded}{of} frames"
        if self.damaged:
            return f"{self.damaged} damaged frames of the video {self.path} were skipped"
        return ""


def bad_video(path: Path, reason: str) -> BadVideoError:
    """Return the error for a video that cannot be used."""
    return BadVideoError(
        f"cannot use the video {path}: {reason}; replace or remove it, or skip it with --bad-images skip"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError | IsADirectoryError):
        return str(error.strerror)
    return "it is not a video, or it was cut off before its index was written"


def _upright(frame: VideoFrame) -> Image.Image:
    """Return a frame with the rotation of the metadata applied, as players show it."""
    image: Image.Image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation / 90) * 90)
    return image if turn is None else image.transpose(turn)


class VideoWriter:
    """Writes an MP4 file without sound; the file is complete under its final name when the context is left.

    Args:
        path: File to write.
        fps: Frames per second, as a hint; frames carry their own times.
    """

    def __init__(self, path: Path, fps: float) -> None:
        import av

        self.path = path
        self._partial = path.with_name(f".{path.stem}.part{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", format="mp4")
        codec = next(name for name in _CODECS if name in av.codecs_available)
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = cast("VideoStream", self._container.add_stream(codec, rate))
        self._stream.options = dict(_CODECS[codec])
        self._stream.pix_fmt = "yuv420p"
        self._size: tuple[int, int] | None = None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._size is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if self._size is not None:
                self._partial.replace(self.path)
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, image: Image.Image, time: float) -> None:
        """Write a frame.

        Args:
            image: Frame, in the size of the first one; others are resized.
            time: Seconds since the beginning.
        """
        import av

        if self._size is None:
            self._size = image.size
            # chroma subsampling needs even sides; an odd side is padded with a black line
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
        if image.size != self._size:
            image = image.resize(self._size)
        frame = av.VideoFrame.from_image(image.crop((0, 0, self._stream.width, self._stream.height)))
        self._last = max(self._last + 1, round(time * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as failure:
            raise self._failed(failure) from failure

    def _failed(self, failure: OSError) -> FishnetError:
        return FishnetError(
            f"cannot write {self.path}: {failure.strerror or failure}; free disk space or choose another --out"
        )
