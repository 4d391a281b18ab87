"""The Oxford-IIIT Pet data set (Parkhi et al., CVPR 2012): download, and conversion to the multitask layout.

Its folder contains images/*.jpg, annotations/trainval.txt and test.txt (name, breed from 1, species, breed within the
species), and annotations/trimaps/*.png with 1 pet, 2 background, 3 border. https://www.robots.ox.ac.uk/~vgg/data/pets/
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import from_numpy
from torchvision.datasets import OxfordIIITPet
from torchvision.datasets.utils import extract_archive
from tqdm import tqdm

from fishnet.data import run_lengths
from fishnet.data.downloads import download
from fishnet.data.folders import Placer, check_root, read_lines
from fishnet.data.images import BadImageError, image_shape
from fishnet.data.levels import IGNORE, ImageLabels, LayoutWriter, LevelClasses, ObjectLabels
from fishnet.data.stratify import stratify
from fishnet.errors import FishnetError, UsageError, counted

LAYOUT = "images/*.jpg, annotations/trainval.txt, annotations/test.txt and annotations/trimaps/*.png"
BREEDS = 37
ARCHIVES: tuple[tuple[str, str], ...] = OxfordIIITPet._RESOURCES
"""URL and MD5 checksum of each archive, from torchvision."""
_PET, _BACKGROUND, _BORDER = 1, 2, 3
_CODES = np.zeros(256, np.uint8)
_CODES[[_PET, _BACKGROUND, _BORDER]] = 1, 0, IGNORE


class _Photo(NamedTuple):
    name: str
    """File name without extension."""
    breed: int
    """Class index."""


@dataclass
class PetsReport:
    """Result of `convert_pets`."""

    out: Path
    images: dict[str, int]
    breeds: int
    notes: list[str]

    def describe(self) -> str:
        """Describe the result as text."""
        counts = ", ".join(f"{split} {count}" for split, count in self.images.items())
        first = f"{self.out}: {counts} images of {self.breeds} breeds, with classes, boxes, outlines and label maps"
        return "\n".join([first, *self.notes])


def fetch_pets(out: Path, archives: tuple[tuple[str, str], ...] = ARCHIVES, mirror: str | None = None) -> str:
    """Download and unpack the data set in its original layout; an interrupted download is continued.

    Args:
        out: Output folder.
        archives: Address and MD5 checksum of each archive.
        mirror: URL of a folder with the archives under their original names, instead of the official server.

    Returns:
        What was done, in a line.

    Raises:
        FishnetError: The archives cannot be downloaded or unpacked.
    """
    if is_oxford_pets(out):
        return f"{out} has the data set already"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose a folder")
    for address, md5 in archives:
        name = address.rpartition("/")[2]
        url = f"{mirror.rstrip('/')}/{name}" if mirror else address
        advice = f"Download it elsewhere and place it in {out} as {name}, or give another server with --mirror"
        if not (out / name.removesuffix(".tar.gz")).is_dir():
            download(url, out / name, md5, advice)
            _unpack(out, name)
    return f"{out}: the images and annotations of {BREEDS} breeds"


def _unpack(out: Path, name: str) -> None:
    """Unpack an archive with one folder of the same name; the folder only appears when it is complete."""
    folder = name.removesuffix(".tar.gz")
    staging = out / f".unpacking_{folder}"
    shutil.rmtree(staging, ignore_errors=True)
    print(f"unpacking {name}", flush=True)
    try:
        extract_archive(out / name, staging)
        (staging / folder).rename(out / folder)
    except (OSError, RuntimeError) as error:
        raise FishnetError(f"cannot unpack {out / name}: {error}; free disk space or choose another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    (out / name).unlink()


def is_oxford_pets(root: Path) -> bool:
    """Whether a folder has the original layout of the data set."""
    annotations = root / "annotations"
    return (
        (root / "images").is_dir() and (annotations / "trimaps").is_dir() and (annotations / "trainval.txt").is_file()
    )


def pets_folder(source: Path) -> Path | None:
    """Return the folder with the original layout: the given one, or `oxford-iiit-pet` in it, as torchvision has it."""
    return next((folder for folder in (source, source / "oxford-iiit-pet") if is_oxford_pets(folder)), None)


def convert_pets(
    source: Path, dest: Path, val: float = 0.2, seed: int = 0, copy: bool = False, progress: bool = True
) -> PetsReport:
    """Write the data set in the multitask layout.

    The class of an image is the breed of its pet. Its box and outline are those of the whole pet, with the border of
    the trimap; in the label map, with the classes background and pet, the border is ignored.

    Args:
        source: Folder with the original layout, or one that contains it as `oxford-iiit-pet`, as torchvision does.
        dest: Output folder; must be empty or not exist.
        val: Fraction of the official trainval list that becomes val, the same of every breed; the official test list is
            the split test. 0 makes trainval train, and test val.
        seed: Seed of the random choice of val.
        copy: Copy images instead of linking them.
        progress: Show a progress bar on a terminal.

    Raises:
        UsageError: `dest` is not empty, or `val` is not a fraction.
        FishnetError: The source is incomplete or its lists are damaged.
    """
    check_root(source, LAYOUT)
    folder = pets_folder(source)
    if folder is None:
        raise FishnetError(f"{source} is not the Oxford-IIIT Pet data set; expected {LAYOUT}")
    source = folder
    if not 0 <= val < 1:
        raise UsageError(f"--val must be at least 0 and below 1, such as 0.2, not {val}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty; choose another folder")
    breeds, splits = _splits(source, val, seed)
    writer = LayoutWriter(dest, LevelClasses(breeds, breeds, ["background", "pet"]), "Oxford-IIIT Pet, CC BY-SA 4.0")
    place, left_out = Placer(copy), list[str]()
    total = sum(len(photos) for photos in splits.values())
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(total=total, desc="pets", unit="image", disable=None if progress else True, leave=False) as bar,
    ):
        for split, photos in splits.items():
            for reason in pool.map(partial(_add, source, split, writer, place), photos):
                bar.update()
                left_out += [reason] if reason else []
    if len(left_out) == total:
        raise FishnetError(f"{source} has no usable image: {left_out[0]}")
    writer.finish()
    return PetsReport(dest, writer.counts(), len(breeds), _notes(breeds, left_out) + place.notes())


def _notes(breeds: list[str], left_out: list[str]) -> list[str]:
    notes = (
        [] if len(breeds) == BREEDS else [f"the lists name {len(breeds)} breeds; the complete data set has {BREEDS}"]
    )
    if left_out:
        shown = "; ".join(left_out[:5]) + ("; ..." if len(left_out) > 5 else "")
        notes.append(f"left out {counted(len(left_out), 'image')}: {shown}")
    return notes


def _splits(source: Path, val: float, seed: int) -> tuple[list[str], dict[str, list[_Photo]]]:
    """Return the names of the breeds, and the images of each split."""
    lists: dict[str, list[tuple[str, int]]] = {}
    names: dict[int, str] = {}
    for official in ("trainval", "test"):
        path = source / "annotations" / f"{official}.txt"
        lists[official] = _read_list(path) if path.is_file() else []
        for name, number in lists[official]:
            breed = name.rpartition("_")[0]
            if names.setdefault(number, breed) != breed:
                raise FishnetError(f"{path}: breed {number} is called {names[number]} and {breed}; download it again")
    order = sorted(names)
    index = {number: place for place, number in enumerate(order)}
    known = {split: [_Photo(name, index[number]) for name, number in rows] for split, rows in lists.items()}
    if not known["trainval"]:
        raise FishnetError(f"{source / 'annotations' / 'trainval.txt'} lists no images; download it again")
    breeds = [names[number] for number in order]
    if not val:
        return breeds, {"train": known["trainval"], "val": known["test"]}
    chosen = stratify([frozenset({photo.breed}) for photo in known["trainval"]], val, seed)
    parts: dict[str, list[_Photo]] = {"train": [], "val": [], "test": known["test"]}
    for place, photo in enumerate(known["trainval"]):
        parts["val" if place in chosen else "train"].append(photo)
    return breeds, {split: photos for split, photos in parts.items() if photos}


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Return name and breed of each image of an official list."""
    rows: list[tuple[str, int]] = []
    for line in read_lines(path):
        if line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) < 2 or not parts[1].isdecimal() or "_" not in parts[0] or "/" in parts[0]:
            raise FishnetError(f"{path}: {line!r} is not a name with the number of a breed; download it again")
        rows.append((parts[0], int(parts[1])))
    if len({name for name, _ in rows}) < len(rows):
        raise FishnetError(f"{path} lists an image twice; download it again")
    return rows


def _add(source: Path, split: str, writer: LayoutWriter, place: Placer, photo: _Photo) -> str:
    """Add one image to the output; return why it cannot be used, or an empty string."""
    image, trimap = source / "images" / f"{photo.name}.jpg", source / "annotations" / "trimaps" / f"{photo.name}.png"
    try:
        shape = image_shape(image)
        with Image.open(trimap) as opened:
            values = np.asarray(opened)
    except BadImageError as error:
        return str(error)
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        return f"{trimap} cannot be read ({error})"
    if values.dtype != np.uint8 or values.ndim != 2 or not np.isin(values, (_PET, _BACKGROUND, _BORDER)).all():
        return f"{trimap} has values other than 1 (pet), 2 (background) and 3 (border)"
    labels = _CODES[values]
    size = labels.shape[1], labels.shape[0]
    if size not in (shape.upright, shape.stored):
        return f"{trimap} has {size[0]}x{size[1]} pixels, but its image {shape.upright[0]}x{shape.upright[1]}"
    name = image.name
    place(image, writer.root / split / "images" / name)
    writer.add(split, name, None, size, ImageLabels(photo.breed, _whole_pet(labels, photo.breed), labels))
    return ""


def _whole_pet(labels: np.ndarray, breed: int) -> ObjectLabels | None:
    """Return the pet of a label map as one object, with its border; None if there is none."""
    if not (labels == 1).any():
        return None
    runs = run_lengths.encode(from_numpy(labels != 0)[None])
    return ObjectLabels(np.array([breed]), run_lengths.bounding_boxes(runs), np.zeros(1, bool), runs)
