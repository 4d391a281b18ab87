"""`fishnet export`: a trained network as a folder that runs without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fishnet.commands.hints import suggest
from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json
from fishnet.runs import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

    from fishnet.deploy.verify import Difference

VERIFIED = 8
"""Images that an export is compared on, by default."""


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
    run: str,
    out: str,
    format: Literal["torch", "onnx", "openvino"] = "openvino",
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    images: str | None = None,
    verify: int = VERIFIED,
    allow_fallback: bool = False,
    overwrite: bool = False,
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | None = None,
) -> Exported:
    """Export a trained network: a folder with its graphs, labels and preprocessing, and a runner that needs no PyTorch.

    The result is compared with PyTorch on real images before the command says done.

    Args:
        run: Run folder or weights file.
        out: Folder to write.
        format: torch (a program of torch.export), onnx, or openvino.
        precision: Arithmetic of the exported network.
        images: Folder of images to compare on; by default the validation images of the run.
        verify: Number of images to compare on.
        allow_fallback: Compute in fp32 on machines that lack the precision, this one included.
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
    from fishnet.deploy.export import Target, export_network, smallest_side
    from fishnet.loading import load_model
    from fishnet.tasks import make_task

    place = Path(out)
    check_out(place, overwrite)
    if verify < 1:
        raise UsageError(f"--verify must be at least 1 image, not {verify}")
    target = Target(format, precision, allow_fallback)
    if reason := target.check():
        print(f"{reason}: the exported network computes in fp32 here", flush=True)
    check_finished(Path(run))
    network, card = load_model(run, task=task, model=model, classes=read_names(classes), size=size)
    if card.size < (least := smallest_side(network)):
        raise UsageError(f"--size {card.size} is too small: {card.model} takes images of at least {least} pixels")
    shown = read_images(verification_folder(run, images), verify)
    difference, description = export_network(network, card, make_task(card), target, place, shown)
    print(difference.describe())
    print(f"written: {place}, which runs alone by: python {place / 'runner.py'} IMAGE")
    suggest("predict", place, "IMAGES", "--out", "predictions")
    return Exported(place, difference, description)


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse an output folder with other files, and an older export unless it may be replaced.

    Raises:
        UsageError: The folder is in use.
    """
    from fishnet.exported import is_exported

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_exported(out):
        raise UsageError(f"--out {out} exists and is no export: choose another folder")
    if not overwrite:
        raise UsageError(f"--out {out} contains an export: choose another folder, or give --overwrite")


def check_finished(run: Path) -> None:
    """Refuse a run folder whose training is not finished.

    Raises:
        FishnetError: It is not finished.
    """
    folder = RunFolder(run)
    if run.is_dir():
        folder.find_model()
    if folder.config_yaml.is_file() and not folder.report_html.is_file():
        raise FishnetError(
            f"the training in {run} is not finished: continue with fishnet train --resume {run}, or export its best "
            f"epoch so far, {folder.model_file}"
        )


def verification_folder(run: str, images: str | None) -> Path:
    """Return the folder of the images to compare on.

    Raises:
        UsageError: None is given, and the run does not say on which data it was trained.
    """
    from fishnet.recipes import parse_settings

    if images is not None:
        return Path(images)
    file = RunFolder(Path(run)).config_yaml
    data = parse_settings(file.read_bytes(), str(file)).get("data") if file.is_file() else None
    root = Path(str(data)) if data else None
    if root is None or not root.is_dir():
        raise UsageError("an export is compared with PyTorch on real images: give a folder of them with --images")
    splits = sorted(path for path in root.glob("val*") if path.is_dir())
    return splits[0] if splits else root


def read_images(folder: Path, count: int) -> list[Image]:
    """Return RGB images spread over a folder.

    Raises:
        UsageError: The folder does not exist, or has no images.
        FishnetError: An image cannot be read.
    """
    from fishnet.data.folders import image_files
    from fishnet.data.images import read_image

    if not folder.is_dir():
        raise UsageError(f"--images {folder} is not a folder")
    files = [path for path in image_files(folder) if path.parent.name != "labels"]
    if not files:
        raise UsageError(f"{folder} contains no images: give a folder of real ones with --images")
    step = max(1, len(files) // count)
    return [read_image(path) for path in files[::step][:count]]
