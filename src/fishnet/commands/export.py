"""`fishnet export`: write a trained network to a folder that runs without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fishnet.commands.hints import suggest
from fishnet.errors import FishnetError, UsageError, quoted
from fishnet.files import Json
from fishnet.runs import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

    from fishnet.cards import ModelCard
    from fishnet.deploy.difference import Difference
    from fishnet.deploy.export import Target
    from fishnet.deploy.quantize import AccuracyControl
    from fishnet.models.network import Network

VERIFIED = 8
"""Default number of images that an export is verified on."""


@dataclass
class Exported:
    """Result of `export`."""

    folder: Path
    """Folder that was written."""
    difference: Difference
    """Differences from PyTorch."""
    description: Json
    """Content of export.json."""


def export(
    run: str | Path,
    out: str | Path,
    format: Literal["torch", "onnx", "openvino"] = "openvino",
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    calibration: str | Path | None = None,
    max_drop: float | None = None,
    data: str | Path | None = None,
    split: str = "val",
    images: str | Path | None = None,
    verify: int = VERIFIED,
    allow_fallback: bool = False,
    overwrite: bool = False,
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | Path | None = None,
) -> Exported:
    """Export a trained network to a folder with its graphs, labels and preprocessing, and a runner without PyTorch.

    The result is compared with PyTorch on real images before the command succeeds.

    Args:
        run: Run folder or weights file.
        out: Folder to write.
        format: torch (a torch.export program), onnx, or openvino.
        precision: Numerical precision of the exported network.
        calibration: Folder of images to calibrate int8 on, such as those of the training split.
        max_drop: Maximum drop of the task's main metric caused by int8, as a fraction, such as 0.005; layers stay in
            floating point until it is met. By default the metric is not measured.
        data: Folder of the data set to measure the metric on; by default that of the run.
        split: Split to measure the metric on.
        images: Folder of images to compare on; by default the validation images of the run, or those of --calibration.
        verify: Number of images to compare on.
        allow_fallback: Compute in fp32 on machines that do not support the precision, including this one.
        overwrite: Replace an export in --out.
        size: Input size in pixels instead of that of the model; for a detector it is the shorter side.
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Text file with a class name per line, for a weights file without class names.

    Raises:
        UsageError: A missing package, a precision that this machine lacks, no images, or a size that is too small.
        FishnetError: The run is not finished, the network cannot be exported, or the result differs from PyTorch's.
    """
    from fishnet.commands.predict import read_names
    from fishnet.deploy.export import Target
    from fishnet.loading import load_model

    check_out(Path(out), overwrite)
    check_calibration(precision, calibration, max_drop, verify)
    target = Target(format, precision, allow_fallback)
    if reason := target.check():
        print(f"{reason}: the exported network computes in fp32 here", flush=True)
    check_finished(Path(run))
    network, card = load_model(run, task=task, model=model, classes=read_names(classes), size=size)
    shown = read_images(verification_folder(run, images, calibration), verify)
    measured = None if max_drop is None else accuracy_control(run, data, split, max_drop, card)
    return _export(network, card, target, Path(out), shown, calibration, measured)


def _export(
    network: Network,
    card: ModelCard,
    target: Target,
    out: Path,
    images: list[Image],
    calibration: str | Path | None,
    control: AccuracyControl | None,
) -> Exported:
    from fishnet.deploy.export import export_network, smallest_side
    from fishnet.deploy.quantize import Accuracy, calibration_images
    from fishnet.tasks import make_task

    if card.size < (least := smallest_side(network)):
        raise UsageError(f"--size {card.size} is too small: {card.model} takes images of at least {least} pixels")
    samples = calibration_images(Path(calibration)) if calibration is not None else []
    task = make_task(card)
    difference, description = export_network(network, card, task, target, out, images, samples, control)
    if accuracy := description.get("accuracy"):
        print(Accuracy(**accuracy).describe())
    print(difference.describe())
    print(f"written: {out}, run it with: python {quoted(out / 'runner.py')} IMAGE")
    suggest("predict", out, "IMAGES", "--out", "predictions")
    return Exported(out, difference, description)


def check_out(out: Path, overwrite: bool) -> None:
    """Reject an output folder with other files, or with an older export unless it may be replaced.

    Raises:
        UsageError: The folder is in use.
    """
    from fishnet.exported import is_exported

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_exported(out):
        raise UsageError(f"--out {out} exists and is not an export: choose another folder")
    if not overwrite:
        raise UsageError(f"--out {out} contains an export: choose another folder, or give --overwrite")


def check_finished(run: Path) -> None:
    """Check that the training of a run folder is finished.

    Raises:
        FishnetError: It is not finished.
    """
    folder = RunFolder(run)
    if run.is_dir():
        folder.find_model()
    if folder.config_yaml.is_file() and not folder.report_html.is_file():
        raise FishnetError(
            f"the training in {run} is not finished: continue with fishnet train --resume {quoted(run)}, or "
            f"export its best epoch so far, {folder.model_file}"
        )


def check_calibration(precision: str, calibration: str | Path | None, max_drop: float | None, verify: int) -> None:
    """Reject int8 without calibration images, calibration without int8, and numbers that are out of range.

    Raises:
        UsageError: The options contradict each other.
    """
    if verify < 1:
        raise UsageError(f"--verify must be at least 1 image, not {verify}")
    if precision == "int8" and calibration is None:
        raise UsageError(
            "--precision int8 needs --calibration DIR, a folder of representative images: activation ranges are "
            "measured on them"
        )
    for name, value in (("--calibration", calibration), ("--max-drop", max_drop)):
        if precision != "int8" and value is not None:
            raise UsageError(f"{name} is for --precision int8")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise UsageError(f"--max-drop must be between 0 and 1, not {max_drop}")


def accuracy_control(
    run: str | Path, data: str | Path | None, split: str, max_drop: float, card: ModelCard
) -> AccuracyControl:
    """Return the maximum accuracy drop, and the data set that it is measured on.

    Raises:
        UsageError: The run does not record its data, and none is given.
        FishnetError: The data cannot be used.
    """
    from fishnet.deploy.quantize import AccuracyControl
    from fishnet.settings import data_of
    from fishnet.tasks import get_task, make_task

    task = make_task(card)
    dataset = task.open_split(Path(data or data_of(run)), split, "skip")
    display = get_task(card.task).display
    metric = display.primary_of(dict.fromkeys(task.metrics, 0.0))
    return AccuracyControl(max_drop, metric, task, dataset, display.is_better(metric, 0.0, 1.0))


def verification_folder(run: str | Path, images: str | Path | None, calibration: str | Path | None) -> Path:
    """Return the folder of the images to compare on.

    Raises:
        UsageError: None is given, and the run does not record the data it was trained on.
    """
    from fishnet.recipes import parse_settings

    if images is not None:
        return Path(images)
    file = RunFolder(Path(run)).config_yaml
    data = parse_settings(file.read_bytes(), str(file)).get("data") if file.is_file() else None
    root = Path(str(data)) if data else None
    if root is None or not root.is_dir():
        if calibration is not None:
            return Path(calibration)
        raise UsageError("an export is compared with PyTorch on real images: give a folder of them with --images")
    splits = sorted(path for path in root.glob("val*") if path.is_dir())
    return splits[0] if splits else root


def read_images(folder: Path, count: int) -> list[Image]:
    """Return evenly spaced RGB images of a folder.

    Raises:
        UsageError: The folder does not exist, or has no images.
        FishnetError: An image cannot be read.
    """
    from fishnet.data.folders import evenly_spaced, photo_files
    from fishnet.data.images import read_image

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give a folder of real images with --images")
    files = photo_files(folder)
    if not files:
        raise UsageError(f"{folder} contains no images: give a folder of real images with --images")
    return [read_image(path) for path in evenly_spaced(files, count)]
