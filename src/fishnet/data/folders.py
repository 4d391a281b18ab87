"""List the contents of data folders in a fixed order."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.errors import FishnetError

_LOOKED_UP = 200
"""Images that are looked up to find their folder."""


def check_root(root: Path, layouts: str) -> None:
    """Check that a data folder exists and is not empty.

    Args:
        root: Data folder.
        layouts: Expected layouts, for the error message.

    Raises:
        FishnetError: The folder is missing, a file, or empty.
    """
    if not root.exists():
        raise FishnetError(f"the data folder {root} does not exist; check the path")
    if not root.is_dir():
        raise FishnetError(f"{root} is a file, not a data folder; pass the folder that contains the splits ({layouts})")
    if not any(root.iterdir()):
        raise FishnetError(f"the data folder {root} is empty; expected {layouts}")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without spaces around them and without empty ones; see `numbered_lines`."""
    return [line for _, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Return number, from 1, and text of the lines of a text file, without spaces around them and without empty ones.

    Raises:
        FishnetError: The file is not UTF-8 text.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FishnetError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders sorted by name, without hidden ones."""
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")) and path.is_dir()
    )  # fmt: skip


def all_files(folder: Path, base: Path | None = None) -> Iterator[Path]:
    """Yield every visible file below a folder in a fixed order, relative to `base` if given."""
    for top, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(top) if base is None else Path(top).relative_to(base)
        for name in sorted(files):
            if not name.startswith(".") and name != "Thumbs.db":
                yield here / name


def image_files(folder: Path, base: Path | None = None) -> Iterator[Path]:
    """Yield every file below a folder that has an image extension; see `all_files`."""
    return (path for path in all_files(folder, base) if is_image(path))


def photo_files(folder: Path) -> list[Path]:
    """Return every image below a folder, except label maps, which are in folders named `labels`."""
    return [path for path in image_files(folder) if path.parent.name != "labels"]


def evenly_spaced(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` evenly spaced files of a list, or all if there are fewer."""
    count = min(count, len(files))
    return [files[place * len(files) // count] for place in range(count)]


def is_image(path: Path) -> bool:
    """Return whether a path has the extension of an image."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def free_name(root: Path, suffix: str) -> Path:
    """Return the first of ROOT_suffix, ROOT_suffix2, ... that does not exist or is empty."""
    base = root if root.name not in ("", "..") else root.resolve()
    endings = itertools.chain([""], itertools.count(2))
    paths = (base.with_name(f"{base.name}_{suffix}{ending}") for ending in endings)
    return next(path for path in paths if not path.exists() or (path.is_dir() and not any(path.iterdir())))


class Placer:
    """Places images in a new folder by hard link, or by copy."""

    def __init__(self, copy: bool) -> None:
        self.copy, self.copied = copy, 0

    def __call__(self, source: Path, target: Path) -> None:
        """Place one file; folders that are missing are created."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.copy:
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                self.copied += 1
        shutil.copyfile(source, target)

    def notes(self) -> list[str]:
        """Return a note about images that were copied because links are impossible."""
        return (
            [f"{self.copied} images were copied, since links between these folders are impossible"]
            if self.copied
            else []
        )


def image_folder(root: Path, split: str, file_names: Sequence[str]) -> Path:
    """Return the folder that the file names of a split are relative to; opens no file.

    This is the first of DIR/<split>/images, DIR/<split>, DIR/images/<split>, DIR/images and DIR that contains any of
    the images, of which up to 200 are looked up; DIR/<split> if none does.
    """
    looked_up = file_names[:: max(1, len(file_names) // _LOOKED_UP)]
    for folder in image_places(root, split):
        if any(os.path.exists(folder / name) for name in looked_up):  # noqa: PTH110  a name that is too long raises no error
            return folder
    return root / split


def image_places(root: Path, split: str) -> list[Path]:
    """Return the folders in which the images of a split are looked up, in this order."""
    return [root / split / "images", root / split, root / "images" / split, root / "images", root]


def has_label_maps(root: Path) -> bool:
    """Return whether a folder, or one of its splits, has the folders `images` and `labels` of the pixel level."""
    return any((folder / "images").is_dir() and (folder / "labels").is_dir() for folder in (root, *subfolders(root)))
