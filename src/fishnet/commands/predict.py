"""`fishnet predict`: predict on images and videos; write JSON files and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fishnet.errors import FishnetError, UsageError, shell_names
from fishnet.files import texts

if TYPE_CHECKING:
    from fishnet.prediction.session import Prediction


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    bad_images: Literal["stop", "skip"] = "stop",
    pictures: bool = True,
    every: int = 1,
    overwrite: bool = False,
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | Path | None = None,
    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto",
    compile: bool = False,
    insides: bool = False,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
    **options: Any,
) -> Prediction:
    """Predict on images and videos; writes results.json and pictures.

    Args:
        run: Run folder, weights file or exported folder.
        inputs: Images, videos, folders of images, quoted patterns such as "photos/**/*.jpg", or - for paths on stdin.
        out: Folder to write results.json, the pictures and the files of videos to.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: Images per forward pass; the default depends on the task.
        workers: Worker processes that load images.
        bad_images: Unreadable images and videos: stop at the first, or skip and list them.
        pictures: Draw the predictions on images and on copies of the videos; otherwise only results are written.
        every: Predict on every N-th frame of a video.
        overwrite: Replace the results in --out.
        size: Input size in pixels instead of that of the model; for a detector it is the shorter side.
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Text file with a class name per line, for a weights file without class names.
        runtime: Inference backend; auto selects that of an exported folder, or torch.
        compile: Compile the network with torch.compile at its first batch, which takes minutes.
        precision: Numerical precision; auto uses that of the validation during training, as `fishnet evaluate` does.
        insides: Also draw the feature maps of the network for each image, in OUT/insides.
        options: Prediction options of the task, such as `top` or `score`; see `fishnet predict --help`.

    Raises:
        FishnetError: An input cannot be read; results.json has the predictions so far, as after `Interrupted`.
    """
    given = {**locals(), **options, "inputs": texts(inputs)}
    from fishnet.prediction.images import Loading
    from fishnet.prediction.session import Session, command_line
    from fishnet.predictor import Predictor

    check_loading(batch_size, workers, every)
    with Session(check_out(Path(out), Path(run)), partial(command_line, predict, given), overwrite) as session:
        found = session.start(given["inputs"])
        with shell_names():
            names = read_names(classes)
            predictor = Predictor(run, device, task, model, names, size, runtime, compile, precision, **options)
        loading = Loading(batch_size or predictor.batch_size, workers, bad_images == "stop", pictures, insides)
        return session.predict(predictor, found, loading, every)


def check_out(out: Path, run: Path) -> Path:
    """Return the output folder; reject one that is a run, an export or a data set.

    Args:
        out: Output folder.
        run: Run folder or other source of the network.

    Raises:
        UsageError: The folder is in use.
    """
    from fishnet.exported import is_exported
    from fishnet.runs import RunFolder
    from fishnet.settings import data_of, refuse_inside_data

    folder = RunFolder(out)
    if folder.has_begun or folder.config_yaml.is_file() or is_exported(out):
        raise UsageError(f"--out {out} contains a network; choose another folder, such as {out / 'predictions'}")
    if any((out / name).is_dir() for name in ("train", "val", "annotations")):
        raise UsageError(f"--out {out} contains a data set; choose another folder")
    if RunFolder(run).config_yaml.is_file():
        refuse_inside_data(out, data_of(run))
    return out


def check_loading(batch_size: int | None, workers: int, every: int = 1) -> None:
    """Check that the numbers of images, workers and frames are in range."""
    if every < 1:
        raise UsageError(f"--every must be at least 1, not {every}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {batch_size}")
    if workers < 0:
        raise UsageError(f"--workers must not be negative, not {workers}")


def read_names(classes: str | Path | None) -> list[str] | None:
    """Return the class names in a text file with one name per line, or None if no file is given."""
    from fishnet.data.folders import read_lines

    if classes is None:
        return None
    try:
        names = read_lines(Path(classes))
    except OSError as error:
        raise UsageError(f"cannot read the class names in {classes}: {error.strerror}") from error
    except FishnetError as error:
        raise UsageError(f"--classes: {error}") from error
    if not names:
        raise UsageError(f"{classes} contains no class names; write one per line")
    return names
