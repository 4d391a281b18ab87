"""COCO annotation files as other tools export them, such as Roboflow, CVAT and Label Studio.

Files and images are moved to where this library reads them; boxes and outlines stay as they are. The places of the
files are recognized by `fishnet.data.detection.layouts.export_files`, images by the end of their path: Label Studio
prefixes the paths of the computer on which it ran.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fishnet.data.detection.convert.boxes import BoxSet
from fishnet.data.detection.entries import has_size
from fishnet.data.detection.layouts import export_files
from fishnet.data.detection.types import CategoryEntry, ImageEntry
from fishnet.data.folders import image_files
from fishnet.data.images import image_shape
from fishnet.errors import FishnetError, counted
from fishnet.files import Json, atomic_write

_SHOWN = 5


def move_exports(root: Path, out: Path, place: Callable[[Path, Path], None]) -> BoxSet:
    """Write COCO files of other tools as a COCO folder; return notes, and the splits without pictures.

    Args:
        root: Folder with the files.
        out: Folder to write.
        place: Function that links or copies an image.

    Raises:
        FishnetError: A file is damaged, two are of one split, or images do not exist.
    """
    files: dict[str, Path] = {}
    for split, path in export_files(root):
        if split in files:
            raise FishnetError(f"{files[split]} and {path} are both annotations of {split}; move one of them away")
        files[split] = path
    documents = {split: _read(path) for split, path in files.items()}
    superfluous = _superfluous(list(documents.values()))
    finder = _Finder(root)
    places = {split: finder.find(document["images"], files[split], split) for split, document in documents.items()}
    found = BoxSet([], {split: [] for split in files})
    for split, document in documents.items():
        taken: Counter[str] = Counter()
        images: list[ImageEntry] = []
        for entry, path in zip(document["images"], places[split], strict=True):
            taken[path.name] += 1
            name = path.name if taken[path.name] == 1 else f"{path.stem}_{taken[path.name]}{path.suffix}"
            place(path, out / split / name)
            images.append(_sized({**entry, "file_name": name}, path))
        kept = [one for one in document["categories"] if one["id"] not in superfluous]
        text = json.dumps({**document, "images": images, "categories": kept}, ensure_ascii=False)
        atomic_write(out / "annotations" / f"instances_{split}.json", text)
        found.classes = [str(one["name"]) for one in kept]
    if superfluous:
        found.notes.append("the super-category without objects that Roboflow adds was excluded")
    return found


class _Finder:
    """Finds images below a folder by the names in annotation files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in image_files(root):
            self.by_name[path.name].append(path)

    def find(self, entries: list[ImageEntry], file: Path, split: str) -> list[Path]:
        """Return the path of each image of an annotation file; raises FishnetError if some are missing or ambiguous."""
        found = {
            str(entry.get("file_name")): self._nearest(str(entry.get("file_name")), file, split) for entry in entries
        }
        missing = [name for name, path in found.items() if path is None]
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise FishnetError(
                f"{file} names {counted(len(missing), 'image')} of {len(found)} that {self.root} does not contain, or "
                f"contains several times: {shown}; add the images, or correct `file_name`"
            )
        return [path for entry in entries if (path := found[str(entry.get("file_name"))]) is not None]

    def _nearest(self, name: str, file: Path, split: str) -> Path | None:
        """Return the image whose path agrees best with a name, then with the folder of its annotation file and the
        split; None if there is none or several."""
        wanted = [part for part in re.split(r"[/\\]", name) if part]
        candidates = self.by_name.get(wanted[-1], []) if wanted else []
        scores = [self._score(path, wanted, file, split) for path in candidates]
        best = max(scores, default=None)
        return candidates[scores.index(best)] if best is not None and scores.count(best) == 1 else None

    def _score(self, path: Path, wanted: list[str], file: Path, split: str) -> tuple[int, bool, bool]:
        parts = PurePosixPath(path.relative_to(self.root).as_posix()).parts
        same = 0
        for one, other in zip(reversed(parts), reversed(wanted), strict=False):
            if one != other:
                break
            same += 1
        names = {split, file.stem.removeprefix("instances_").lower(), f"{split}id", f"{split}idation"}
        beside = file.parent != self.root and path.is_relative_to(file.parent)
        return same, beside, any(part.lower() in names for part in parts[:-1])


def _sized(entry: ImageEntry, path: Path) -> ImageEntry:
    """Return an image entry with the size of its file if it has none."""
    if not has_size(entry):
        entry["width"], entry["height"] = image_shape(path).upright
    return entry


def _read(path: Path) -> Json:
    try:
        document = json.loads(path.read_text("utf-8"))
        for key in ("images", "annotations", "categories"):
            if not all(isinstance(entry, dict) for entry in document[key]):
                raise TypeError(f"{key} must be a list of objects")
        return document
    except (ValueError, KeyError, TypeError) as error:
        raise FishnetError(f"{path} is not a COCO annotation file ({type(error).__name__}: {error})") from None


def _superfluous(documents: list[Json]) -> set[int]:
    """Return the ids of categories of the supercategory "none" that others name as theirs, if they have no objects."""
    used = {one.get("category_id") for document in documents for one in document["annotations"]}
    categories: list[CategoryEntry] = [one for document in documents for one in document["categories"]]
    parents = {one.get("supercategory") for one in categories}
    return {
        one["id"]
        for one in categories
        if one.get("supercategory") == "none" and one["name"] in parents and one["id"] not in used
    }
