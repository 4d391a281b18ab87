"""Find the images and label maps of a data folder, in any of three layouts.

- folders: DIR/<split>/images/*, DIR/<split>/labels/*.png of the same stem, DIR/classes.json
- Pascal VOC: DIR/JPEGImages/, DIR/SegmentationClass/*.png, DIR/ImageSets/Segmentation/<split>.txt
- Cityscapes: DIR/leftImg8bit/<split>/<city>/, DIR/gtFine/<split>/<city>/*_labelIds.png
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from fishnet.data.folders import all_files, check_root, has_label_maps, read_lines, subfolders
from fishnet.data.images import IMAGE_EXTENSIONS
from fishnet.data.segmentation.coding import LabelCoding, read_coding
from fishnet.data.segmentation.masks import CLASSES_FILE, advise_classes, explain_masks, without_suffix
from fishnet.data.segmentation.names import CITYSCAPES_CLASSES, CITYSCAPES_VALUES, VOC_CLASSES
from fishnet.errors import FishnetError, did_you_mean, quoted

Kind = Literal["folders", "voc", "cityscapes"]
LAYOUTS = (
    "DIR/<split>/images and DIR/<split>/labels with DIR/classes.json; VOC (JPEGImages, SegmentationClass, "
    "ImageSets/Segmentation); or Cityscapes (leftImg8bit, gtFine)"
)
LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
"""Extensions of formats that change pixel values, so that they cannot store label maps."""
_USUAL = re.compile(r"(train|val|valid|validation|test)(\d{4})?", re.IGNORECASE)
_PARTS = {"images", "labels", "JPEGImages", "SegmentationClass", "leftImg8bit", "gtFine"}
_ORDER = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Pair:
    """An image and its label map: paths relative to the data folder."""

    image: str
    label: str


@dataclass
class Listing:
    """Files of one split; paths are relative to `root`."""

    root: Path
    split: str
    kind: Kind
    coding: LabelCoding
    pairs: list[Pair]
    unlabeled: list[str] = field(default_factory=list)
    """Images without a label map."""
    orphans: list[str] = field(default_factory=list)
    """Label maps without an image."""
    doubled: list[str] = field(default_factory=list)
    """Images and label maps with the same stem as another, which are ambiguous."""
    lossy: list[str] = field(default_factory=list)
    """Files among the label maps in a format that does not keep their values."""


def layout_of(root: Path) -> Kind | None:
    """Return the layout of a data folder; None if it is none of the three."""
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        return "voc"
    if (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        return "cityscapes"
    return "folders" if root.is_dir() and has_label_maps(root) else None


def available_splits(root: Path) -> list[str]:
    """Return the names of the splits with label maps: train, val and test first, then others by name.

    A folder that directly contains `images` and `labels` is one split with an empty name.

    Raises:
        FishnetError: The folder is missing, a file, empty, or has an unknown layout.
    """
    check_root(root, LAYOUTS)
    kind = layout_of(root)
    if kind is None:
        if text := explain_masks(root):
            raise FishnetError(text)
        raise FishnetError(f"{root} has no label maps in a known layout; expected {LAYOUTS}.{_advice(root)}")
    if kind == "voc":
        names = [path.stem for path in (root / "ImageSets" / "Segmentation").glob("*.txt")]
        names = [name for name in names if name != "trainval" or not {"train", "val"} & set(names)]
    elif kind == "cityscapes":
        labeled = {folder.name for folder in subfolders(root / "gtFine")}
        names = [folder.name for folder in subfolders(root / "leftImg8bit") if folder.name in labeled]
    else:
        names = [folder.name for folder in subfolders(root) if _is_split(folder)]
        names = names or [""]
    if not names:
        missing = root / ("ImageSets/Segmentation" if kind == "voc" else "gtFine")
        raise FishnetError(f"{missing} contains no {'lists such as train.txt' if kind == 'voc' else 'splits'}")
    return sorted(names, key=lambda name: (_ORDER.get(re.sub(r"\d{4}$", "", name), 3), name))


def resolve_split(root: Path, split: str) -> str:
    """Return the exact name of a split: `train` resolves to `train2017`, `val` to `validation` if there is no `val`.

    Raises:
        FishnetError: The split does not exist; lists the existing ones and suggests what to do.
    """
    splits = available_splits(root)
    if split in splits:
        return split
    dated = [name for name in splits if re.fullmatch(re.escape(split) + r"\d{4}", name)]
    if len(dated) == 1:
        return dated[0]
    if split == "val" and (other := [name for name in ("valid", "validation") if name in splits]):
        return other[0]
    if splits == [""]:
        if _USUAL.fullmatch(root.absolute().name):
            raise FishnetError(f"{root} is one split of a data set; did you mean --data {root.parent}?")
        raise FishnetError(
            f"{root} has no split {split!r}: its images are not divided into train and val yet; "
            f"`fishnet data split {quoted(root)}` creates both"
        )
    if (root / split / "images").is_dir():
        raise FishnetError(f"{root / split} has images but no folder `labels` with their label maps")
    advice = did_you_mean(split, splits)
    if split == "val" and "train" in splits and layout_of(root) == "folders":
        advice += f" `fishnet data split {quoted(root)}` creates val from train."
    raise FishnetError(f"{root} has no split {split!r}; available: {', '.join(splits)}.{advice}")


def list_split(root: Path, split: str) -> Listing:
    """List the images and label maps of a split, sorted by name; opens none of them.

    Args:
        root: Data folder.
        split: Exact name of the split; an empty name lists DIR/images and DIR/labels.

    Raises:
        FishnetError: classes.json or a list is missing or damaged.
    """
    kind = layout_of(root)
    if kind == "voc":
        return _list_voc(root, split)
    if kind == "cityscapes":
        return _list_cityscapes(root, split)
    return list_folders(root, split, root / split / "images", root / split / "labels")


def list_folders(root: Path, split: str, images: Path, labels: Path) -> Listing:
    """List images and label maps of the same path without extension, below a folder of each.

    Label maps may have a suffix, such as `_mask`, if no image has their name.

    Args:
        root: Data folder, which contains both folders and classes.json.
        split: Name of the split in messages.
        images: Folder of the images.
        labels: Folder of the label maps.

    Raises:
        FishnetError: classes.json is missing or damaged.
    """
    if not (root / CLASSES_FILE).is_file():
        raise FishnetError(advise_classes(root, labels))
    listing = Listing(root, split, "folders", read_coding(root / CLASSES_FILE), [])
    found = _below(labels, root)
    listing.lossy = [name for name in found if PurePosixPath(name).suffix.lower() in LOSSY]
    photos = _by_stem(listing, _below(images, root), images.relative_to(root))
    maps = _by_stem(listing, sorted(set(found) - set(listing.lossy)), labels.relative_to(root))
    listing.orphans += _match(listing, photos, _without_suffixes(maps, photos))
    return listing


def _without_suffixes(labels: dict[str, str], images: Container[str]) -> dict[str, str]:
    """Return label maps by the key of their image, without a suffix if only that is an image."""
    found = {key: name for key, name in labels.items() if key in images or without_suffix(key) not in images}
    for key, name in labels.items():
        if key not in found:
            found.setdefault(without_suffix(key), name)
    return found


def _list_voc(root: Path, split: str) -> Listing:
    coding = _own_coding(root, LabelCoding(list(VOC_CLASSES)))
    listing = Listing(root, split, "voc", coding, [])
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = [line.split()[0] for line in read_lines(path)]
    if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise FishnetError(f"{path} lists {outside[0]!r}, which is outside of {root}; list the names of images")
    images = _by_stem(listing, _below(root / "JPEGImages", root), Path("JPEGImages"))
    labels = _by_stem(listing, _below(root / "SegmentationClass", root), Path("SegmentationClass"))
    listed = dict.fromkeys(names)
    listing.doubled = []  # of images that no list names, as VOC folders have them
    if len(listed) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FishnetError(f"{path} lists {twice!r} twice; remove one of the lines")
    chosen = {name: images.get(name, f"JPEGImages/{name}.jpg") for name in listed}
    _match(listing, chosen, {name: labels[name] for name in listed if name in labels})
    return listing


def _list_cityscapes(root: Path, split: str) -> Listing:
    ignored = tuple(value for value in range(256) if value not in CITYSCAPES_VALUES)
    coding = LabelCoding(list(CITYSCAPES_CLASSES), ignored[-1:] + ignored[:-1], dict(CITYSCAPES_VALUES))
    listing = Listing(root, split, "cityscapes", _own_coding(root, coding), [])
    images = {
        name.removeprefix("leftImg8bit/").rpartition("_leftImg8bit.")[0]: name
        for name in _below(root / "leftImg8bit" / split, root)
        if "_leftImg8bit." in name
    }
    labels = {
        name.removeprefix("gtFine/").removesuffix("_gtFine_labelIds.png"): name
        for name in _below(root / "gtFine" / split, root)
        if name.endswith("_gtFine_labelIds.png")
    }
    listing.orphans += _match(listing, images, labels)
    return listing


def _own_coding(root: Path, usual: LabelCoding) -> LabelCoding:
    """Return the coding of the classes.json of the folder, or the default of its layout if there is none."""
    path = root / CLASSES_FILE
    return read_coding(path) if path.is_file() else usual


def _match(listing: Listing, images: dict[str, str], labels: dict[str, str]) -> list[str]:
    """Add the pairs of images and label maps of equal keys; return the label maps without an image."""
    for key, image in images.items():
        if key in labels:
            listing.pairs.append(Pair(image, labels[key]))
        else:
            listing.unlabeled.append(image)
    return [label for key, label in labels.items() if key not in images]


def _by_stem(listing: Listing, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Return files by their path below a folder without extension; of several with equal ones the first."""
    found: dict[str, str] = {}
    for name in names:
        key = PurePosixPath(name).relative_to(folder.as_posix()).with_suffix("").as_posix()
        if key in found:
            listing.doubled.append(name)
        else:
            found[key] = name
    return found


def _below(folder: Path, root: Path) -> list[str]:
    """Return the image files below a folder, relative to the data folder."""
    if not folder.is_dir():
        return []
    return [path.as_posix() for path in all_files(folder, root) if path.suffix.lower() in IMAGE_EXTENSIONS]


def _is_split(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def _advice(root: Path) -> str:
    """Return the folder of the data set if it is a sub-folder, such as VOCdevkit/VOC2012, or one above."""
    for above in (root.parent.parent, root.parent):
        if root.name in _PARTS and layout_of(above):
            return f" Did you mean --data {above}?"
    for folder in (*subfolders(root), *(inner for outer in subfolders(root) for inner in subfolders(outer))):
        if layout_of(folder):
            return f" Did you mean --data {folder}?"
    return ""
