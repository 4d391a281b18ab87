"""`fishnet predict`: what a trained network says of images, as a file for programs and pictures for people."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fishnet.errors import FishnetError, UsageError

if TYPE_CHECKING:
    from fishnet.predictor import Predictor
    from fishnet.tasks.levels import Level, Painter

FORMAT_VERSION = 1
_FEW = 16


@dataclass
class Prediction:
    """What `predict` wrote: `document` is the content of results.json."""

    document: dict[str, Any]
    results_json: Path
    pictures: list[Path]
    bad_images: list[str]

    @property
    def images(self) -> list[dict[str, Any]]:
        """One entry per image: file, width, height, predictions."""
        return self.document["images"]


def predict(
    run: str,
    inputs: list[str],
    out: str,
    device: str = "auto",
    top: int | None = None,
    threshold: float | None = None,
    score: float | None = None,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    batch_size: int = 32,
    workers: int = 2,
    bad_images: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | None = None,
    runtime: Literal["torch"] = "torch",
) -> Prediction:
    """Predict on images: writes results.json, and contact sheets (classes) or a picture per image (objects).

    Args:
        run: Run folder or weights file.
        inputs: Images, folders (searched with their subfolders) or quoted patterns such as "photos/**/*.jpg".
        out: Folder to write results.json and the pictures into.
        device: auto, cpu, cuda, cuda:1, ...
        top: Number of classes per image (single-label models; 5).
        threshold: Smallest score of a class that is named (multi-label models; 0.5).
        score: Smallest score of an object that is named (detectors; 0.5).
        max_detections: Most objects per image (detectors; 100).
        tile: Side of overlapping parts in pixels that large images are cut into (detectors).
        overlap: Share of such a part that its neighbour sees too (0.2).
        batch_size: Images per forward pass.
        workers: Processes that read images.
        bad_images: stop at an image that cannot be read, or skip it and list it.
        overwrite: Replace the results that `out` holds.
        size: Input size in pixels instead of the one the model was made for. Of a detector this is the shorter side;
            the bound of the longer side is scaled with it.
        task: Task of a weights file that does not say it.
        model: Architecture of a weights file that does not say it.
        classes: Text file with a class name per line, for a weights file that does not hold them.
        runtime: What runs the network.
    """
    from fishnet.files import atomic_write
    from fishnet.predictor import Predictor

    if batch_size < 1 or workers < 0:
        raise UsageError("--batch-size must be 1 or more, --workers 0 or more")
    folder = Path(out)
    results = folder / "results.json"
    if results.exists() and not overwrite:
        raise UsageError(f"{folder} holds results already: choose another --out or give --overwrite")
    files = find_images(inputs, leave_out=folder)
    _make(folder)
    options = {"top": top, "threshold": threshold, "score": score, "max_detections": max_detections}
    options |= {"tile": tile, "overlap": overlap}
    predictor = Predictor(run, device, task, model, read_names(classes), size, **options)
    entries, painter, bad = _predict_files(predictor, files, folder, batch_size, workers, bad_images)
    document = _head(predictor) | {"images": entries, "bad_images": bad}
    atomic_write(results, json.dumps(document, ensure_ascii=False, indent=1))
    _say(predictor, results, painter, entries, bad)
    return Prediction(document, results, painter.written, bad)


def _head(predictor: Predictor) -> dict[str, Any]:
    card = predictor.card
    return {"format_version": FORMAT_VERSION, "task": card.task, "model": card.model, "classes": card.head().classes}


def _make(folder: Path) -> None:
    """Make the output folder before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FishnetError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error


def read_names(classes: str | None) -> list[str] | None:
    """Return the lines of a text file of class names, or None where no file is given."""
    if classes is None:
        return None
    try:
        names = [line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in {classes}: {error}") from error
    return [name for name in names if name]


def find_images(inputs: Sequence[str | Path], leave_out: Path | None = None) -> list[Path]:
    """Return the image files that files, folders and patterns name, each once, in order.

    A file is taken whatever it is called; in folders and patterns only files with the ending of an image count, and
    hidden files and those in `leave_out` do not.

    Raises:
        FishnetError: where an input matches no image.
    """
    found: dict[Path, None] = {}
    hidden_below = None if leave_out is None else leave_out.absolute()
    if not inputs:
        raise UsageError("no input is given: name images, folders or quoted patterns")
    for text in map(str, inputs):
        path = Path(text)
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            matches = sorted(path.rglob("*"))
        else:
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207  # takes absolute patterns
        images = [match for match in matches if _is_image(match, path) and hidden_below not in match.absolute().parents]
        if not images:
            raise FishnetError(_nothing_found(text, path, bool(matches)))
        found.update(dict.fromkeys(images))
    return list(found)


def _is_image(path: Path, base: Path) -> bool:
    from fishnet.data.images import IMAGE_EXTENSIONS

    below = path.relative_to(base).parts if path.is_relative_to(base) else path.parts[-1:]
    return path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file() and not any(p.startswith(".") for p in below)


def _nothing_found(text: str, path: Path, any_match: bool) -> str:
    from fishnet.data.images import IMAGE_EXTENSIONS

    endings = ", ".join(sorted(IMAGE_EXTENSIONS))
    if path.is_dir():
        return f"the folder {text} holds no image (files that end in {endings})"
    if any_match:
        return f"the pattern {text} matches no image (files that end in {endings})"
    if glob.has_magic(text):
        return f"the pattern {text} matches nothing"
    return f"{text} does not exist"


class _Files:
    """The images as a map-style data set; an unreadable one comes as its error."""

    def __init__(self, level: Level, painter: Painter, files: list[Path]) -> None:
        self.level, self.painter, self.files = level, painter, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from fishnet.data.images import read_image

        path = self.files[index]
        item: dict[str, Any] = {"file": path.as_posix(), "thumbnail": None, "error": ""}
        try:
            image = read_image(path)
        except FishnetError as error:
            return item | {"error": str(error)}
        item |= {"width": image.width, "height": image.height, "input": self.level.prepare(image)}
        if self.painter.wants(index):
            item["thumbnail"] = self.painter.thumbnail(image)
        return item


def _as_list(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return items


def _predict_files(
    predictor: Predictor, files: list[Path], out: Path, batch_size: int, workers: int, bad_images: str
) -> tuple[list[dict[str, Any]], Painter, list[str]]:
    """Return the entries of results.json, what drew the pictures, and the images left out."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    level = predictor.level
    painter = level.painter(out, len(files))
    dataset: Any = _Files(level, painter, files)
    if len(files) <= _FEW:
        workers = 0  # starting them would take longer than the work
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_as_list)
    entries: list[dict[str, Any]] = []
    bad: list[str] = []
    with tqdm(total=len(files), desc="predicting", unit="image", disable=None, leave=False) as bar:
        for items in loader:
            good = []
            for item in items:
                if not item["error"]:
                    good.append(item)
                elif bad_images == "stop":
                    raise FishnetError(item["error"])
                else:
                    bad.append(item["file"])
            answers = predictor.answer([item["input"] for item in good]) if good else []
            for item, answer in zip(good, answers, strict=True):
                about = {name: item[name] for name in ("file", "width", "height")}
                entries.append(about | level.entry(answer))
                painter.add(item, answer)
            bar.update(len(items))
    if not entries:
        raise FishnetError(f"none of the {len(files)} images can be read, the first is {bad[0]}")
    painter.finish()
    return entries, painter, bad


def _say(predictor: Predictor, results: Path, painter: Painter, entries: list[dict[str, Any]], bad: list[str]) -> None:
    for entry in entries[:10]:
        print(f"{entry['file']}: {predictor.level.headline(entry)}")
    if len(entries) > 10:
        print(f"... and {len(entries) - 10} more")
    for file in bad[:10]:
        print(f"left out, cannot be read: {file}")
    if len(bad) > 10:
        print(f"... and {len(bad) - 10} more left out")
    pictures = painter.written
    more = f" (the first {painter.drawn} images)" if painter.drawn < len(entries) else ""
    shown = f"{pictures[0]}{f' ... {pictures[-1].name}' if len(pictures) > 1 else ''}{more}"
    print(f"{len(entries)} images, {len(bad)} left out: {results}, {shown}")
