"""`fishnet predict`: answers for images, as a JSON file and as pictures."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json

if TYPE_CHECKING:
    from PIL import Image

    from fishnet.predictor import Predictor
    from fishnet.report.insides import InsidePictures
    from fishnet.tasks.base import AnyTask, Entry, Painter

FORMAT_VERSION = 1
_FEW = 16


@dataclass
class Prediction:
    """Result of `predict`; `document` is the content of results.json."""

    document: Json
    results_json: Path
    pictures: list[Path]
    bad_images: list[str]

    @property
    def images(self) -> list[Entry]:
        """One entry per image: file, width, height, predictions."""
        return self.document["images"]


def predict(
    run: str,
    inputs: list[str],
    out: str,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    bad_images: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    size: int | None = None,
    task: str | None = None,
    model: str | None = None,
    classes: str | None = None,
    runtime: Literal["torch"] = "torch",
    insides: bool = False,
    **options: Any,
) -> Prediction:
    """Predict on images; writes results.json and pictures.

    Args:
        run: Run folder or weights file.
        inputs: Images, folders (searched with their subfolders) or quoted patterns such as "photos/**/*.jpg".
        out: Folder to write results.json and the pictures to.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: Images per forward pass; the default depends on the task.
        workers: Worker processes that load images.
        bad_images: stop at an image that cannot be read, or skip it and list it.
        overwrite: Replace the results in --out.
        size: Input size in pixels instead of that of the model. For a detector it is the shorter side, and the maximum
            of the longer side is scaled with it.
        task: Task of a weights file that does not describe its network.
        model: Backbone of a weights file that does not describe its network.
        classes: Text file with a class name per line, for a weights file without class names.
        runtime: Inference backend.
        insides: Also draw what the layers of the network compute for each image, in OUT/insides.
        options: Prediction options of the task, such as `top` or `score`; see `fishnet predict --help`.
    """
    from fishnet.files import write_json
    from fishnet.predictor import Predictor
    from fishnet.tasks import get_task

    check_loading(batch_size, workers)
    folder = Path(out)
    results, earlier = _results_file(folder, overwrite)
    files = find_images(inputs, leave_out=folder)
    _make(folder)
    predictor = Predictor(run, device, task, model, read_names(classes), size, runtime, **options)
    images = get_task(predictor.card.task).batch_size if batch_size is None else batch_size
    painter = predictor.task.painter(folder, len(files))
    inside = _inside_pictures(predictor, folder) if insides else None
    _check_pictures(folder, painter, inside, files, earlier, overwrite)
    entries, bad = _predict_files(predictor, painter, inside, files, images, workers, bad_images)
    written = painter.written + (inside.written if inside else [])
    for old in earlier - set(written):
        old.unlink(missing_ok=True)
    document = _head(predictor) | {"images": entries, "bad_images": bad}
    document["pictures"] = [path.relative_to(folder).as_posix() for path in written]
    write_json(results, document)
    _say(predictor, results, painter, inside, entries, bad)
    return Prediction(document, results, written, bad)


def _inside_pictures(predictor: Predictor, folder: Path) -> InsidePictures:
    """Return what draws the insides of the network.

    Raises:
        UsageError: It does not run in PyTorch.
    """
    from fishnet.models.network import Network
    from fishnet.report.insides import InsidePictures
    from fishnet.tasks.base import TorchRuntime

    runner = predictor.runtime
    if not isinstance(runner, TorchRuntime) or not isinstance(runner.network, Network):
        raise UsageError("--insides needs a network that runs in PyTorch: --runtime torch")
    return InsidePictures(folder, runner.network)


def check_loading(batch_size: int | None, workers: int) -> None:
    """Refuse numbers of images or workers that are out of range."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {batch_size}")
    if workers < 0:
        raise UsageError(f"--workers must not be negative, not {workers}")


def _head(predictor: Predictor) -> Json:
    card = predictor.card
    head = {"format_version": FORMAT_VERSION, "task": card.task, "model": card.model, "classes": card.classes}
    return head | predictor.task.about


def _results_file(folder: Path, overwrite: bool) -> tuple[Path, set[Path]]:
    """Return results.json in an output folder, and the pictures that an earlier one lists.

    Raises:
        UsageError: There is one, and it must not be replaced.
    """
    results = folder / "results.json"
    if results.exists() and not overwrite:
        raise UsageError(f"{folder} contains results already: choose another --out or give --overwrite")
    return results, _earlier_pictures(results)


def _earlier_pictures(results: Path) -> set[Path]:
    """Return the pictures that results.json lists; only these may be replaced or removed without asking."""
    try:
        listed = json.loads(results.read_text("utf-8"))["pictures"]
        relative = [Path(name) for name in listed] if isinstance(listed, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    inside = [results.parent / name for name in relative if not name.is_absolute() and ".." not in name.parts]
    return {path for path in inside if path.is_file()}


def _check_pictures(
    folder: Path,
    painter: Painter,
    inside: InsidePictures | None,
    files: list[Path],
    earlier: set[Path],
    overwrite: bool,
) -> None:
    """Refuse an output folder in which pictures would replace files of somebody else."""
    patterns = painter.patterns + (inside.patterns if inside else ())
    present = {path for pattern in patterns for path in folder.glob(pattern)}
    places = {path.resolve() for path in present}
    for file in files:
        if file.resolve() in places:
            raise UsageError(f"predict writes its pictures where the input {file} is; choose another --out")
    if (foreign := sorted(present - earlier)) and not overwrite:
        raise UsageError(
            f"{foreign[0]} is not from an earlier predict: choose another --out, or give --overwrite to replace files "
            "of the same name"
        )


def _make(folder: Path) -> None:
    """Create the output folder before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FishnetError(f"cannot create the folder {folder}: {error.strerror}; choose another --out") from error


def read_names(classes: str | None) -> list[str] | None:
    """Return the class names in a text file, or None if no file is given."""
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


def find_images(inputs: Sequence[str | Path], leave_out: Path | None = None) -> list[Path]:
    """Return the image files of files, folders and patterns, each once, in order.

    A file is used whatever its name; of folders and patterns only visible files with an image extension, and not those
    in `leave_out`.

    Raises:
        FishnetError: An input matches no image.
    """
    found: dict[Path, None] = {}
    hidden_below = None if leave_out is None else leave_out.absolute()
    if not inputs:
        raise UsageError("no input is given; name images, folders or quoted patterns")
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
        return f"the folder {text} contains no images (files that end in {endings})"
    if any_match:
        return f"the pattern {text} matches no images (files that end in {endings})"
    if glob.has_magic(text):
        return f"the pattern {text} matches nothing"
    return f"{text} does not exist"


class _Item(TypedDict):
    """Loaded image; `error` is the reason why it cannot be read, or an empty string."""

    file: str
    thumbnail: Image.Image | None
    error: str
    width: NotRequired[int]
    height: NotRequired[int]
    input: NotRequired[object]


class _Files:
    """The images as a map-style data set."""

    def __init__(self, task: AnyTask, painter: Painter, files: list[Path]) -> None:
        self.task, self.painter, self.files = task, painter, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Item:
        from fishnet.data.images import read_image

        path = self.files[index]
        item: _Item = {"file": path.as_posix(), "thumbnail": None, "error": ""}
        try:
            image = read_image(path)
        except FishnetError as error:
            item["error"] = str(error)
            return item
        item["width"], item["height"], item["input"] = image.width, image.height, self.task.prepare(image)
        if self.painter.wants(index):
            item["thumbnail"] = self.painter.thumbnail(image)
        return item


def _as_list(items: list[_Item]) -> list[_Item]:
    return items


def _predict_files(
    predictor: Predictor,
    painter: Painter,
    inside: InsidePictures | None,
    files: list[Path],
    batch_size: int,
    workers: int,
    bad_images: str,
) -> tuple[list[Entry], list[str]]:
    """Return the entries of results.json and the images that cannot be read."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    dataset: Any = _Files(predictor.task, painter, files)
    if len(files) <= _FEW:
        workers = 0  # starting workers would take longer than the work
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_as_list)
    entries: list[Entry] = []
    bad: list[str] = []
    with tqdm(total=len(files), desc="predicting", unit="image", disable=None, leave=False) as bar:
        for items in loader:
            good = [item for item in items if not item["error"]]
            if broken := [item for item in items if item["error"]]:
                if bad_images == "stop":
                    raise FishnetError(broken[0]["error"])
                bad += [item["file"] for item in broken]
            answers = predictor.answer([item["input"] for item in good]) if good else []
            for item, answer in zip(good, answers, strict=True):
                about = {"file": item["file"], "width": item["width"], "height": item["height"]}
                entries.append(about | predictor.task.entry(answer))
                painter.add({"file": item["file"], "thumbnail": item["thumbnail"]}, answer)
                if inside is not None and item["thumbnail"] is not None:
                    inside.add(item["file"], partial(predictor.answer, [item["input"]]))
            bar.update(len(items))
    if not entries:
        raise FishnetError(f"none of the {len(files)} images can be read, the first is {bad[0]}")
    painter.finish()
    return entries, bad


def _say(
    predictor: Predictor,
    results: Path,
    painter: Painter,
    inside: InsidePictures | None,
    entries: list[Entry],
    bad: list[str],
) -> None:
    for entry in entries[:10]:
        print(f"{entry['file']}: {predictor.task.headline(entry)}")
    if len(entries) > 10:
        print(f"... and {len(entries) - 10} more")
    for file in bad[:10]:
        print(f"skipped unreadable image {file}")
    if len(bad) > 10:
        print(f"... and {len(bad) - 10} more skipped")
    pictures = painter.written
    shown = ""
    if pictures:
        more = f" (the first {painter.drawn} images)" if painter.drawn < len(entries) else ""
        shown = f", {pictures[0]}{f' ... {pictures[-1].name}' if len(pictures) > 1 else ''}{more}"
    print(f"{len(entries)} images, {len(bad)} skipped: {results}{shown}")
    if inside and inside.written:
        print(f"insides of the network: {inside.written[0].parent}")
