"""Write VOC, Cityscapes and COCO data, colored label maps and masks of 0 and 255 as plain label maps.

The result has the layout DIR/<split>/images, DIR/<split>/labels/*.png (class index per pixel) and DIR/classes.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from fishnet.data.folders import Placer, check_root
from fishnet.data.images import BadImageError
from fishnet.data.segmentation.coco import CocoMaps, coco_files
from fishnet.data.segmentation.coding import LabelCoding
from fishnet.data.segmentation.dataset import SegmentationDataset, no_pairs
from fishnet.data.segmentation.layouts import Listing, available_splits, layout_of, list_folders, list_split
from fishnet.data.segmentation.masks import CLASSES_FILE, explain_masks, mask_folders
from fishnet.data.stratify import stratify
from fishnet.errors import FishnetError, UsageError, counted
from fishnet.files import atomic_path, write_json


@dataclass
class ConversionReport:
    """Result of `convert_segmentation`."""

    out: Path
    images: dict[str, int]
    classes: int
    notes: list[str]

    def describe(self) -> str:
        """Describe the result as text."""
        counts = ", ".join(f"{split} {counted(count, 'image')}" for split, count in self.images.items())
        return "\n".join([f"{self.out}: {counts}, {counted(self.classes, 'class')}", *self.notes])


@dataclass
class _Source:
    """Images of one split and a function that makes their label maps."""

    coding: LabelCoding
    names: list[str]
    """Path of each image below its folder of images."""
    paths: list[Path]
    label_map: Callable[[int], np.ndarray]
    notes: list[str]


def can_convert(root: Path) -> bool:
    """Whether a folder has label maps in the layout of VOC or Cityscapes, or in folders of other names; COCO needs
    `--task segmentation`."""
    kind = layout_of(root)
    return kind in ("voc", "cityscapes") or (kind is None and bool(mask_folders(root)))


def explain_layout(root: Path) -> str | None:
    """Return where a folder has label maps that must be converted first, and the command; None if it has none."""
    return explain_masks(root) if layout_of(root) is None else None


def convert_segmentation(
    source: Path | str,
    dest: Path | str,
    copy: bool = False,
    val: float | None = None,
    seed: int = 0,
) -> ConversionReport:
    """Write a data set as plain label maps; the layout of the source is detected.

    Objects of COCO become regions on a background of index 0, larger ones first, so that small ones stay visible;
    crowds are ignored where no object is.

    Args:
        source: Folder of the data set: VOC, Cityscapes, COCO, or label maps with a palette or other values.
        dest: Output folder; must be empty or not exist.
        copy: Copy images instead of linking them.
        val: Fraction of the images that become val, stratified by class; for a source with one split.
        seed: Seed of the random choice of val.

    Raises:
        FishnetError: The source is damaged or has an unknown layout; the message names the file and the problem.
        UsageError: `dest` is not empty, or `val` does not apply to the source.
    """
    source, dest = Path(source), Path(dest)
    if val is not None and not 0 < val < 1:
        raise UsageError(f"--val must be between 0 and 1, such as 0.2, not {val}")
    check_root(source, "a VOC, Cityscapes or COCO data set, or label maps")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty; choose another folder")
    sources = _read(source)
    if val is not None and len(sources) != 1:
        raise UsageError(f"--val needs a source with one split; {source} has {', '.join(sources)}")
    coding = next(iter(sources.values())).coding
    if other := [split for split, one in sources.items() if one.coding.classes != coding.classes]:
        raise FishnetError(f"the splits of {source} have other classes: {', '.join(other)}; make their lists equal")
    place, counts = Placer(copy), dict[str, int]()
    for split, one in sources.items():
        counts |= _write(one, dest, split, place, val, seed)
    # written last: a folder without it is the rest of an interrupted conversion
    write_json(dest / CLASSES_FILE, LabelCoding(coding.classes, (coding.ignore_index,)).to_dict())
    notes = [note for one in sources.values() for note in one.notes]
    return ConversionReport(dest, counts, len(coding.classes), notes + place.notes())


def _read(root: Path) -> dict[str, _Source]:
    """Return the splits of a data folder."""
    if layout_of(root) is None and (files := coco_files(root)):
        return {split: _of_coco(CocoMaps(root, split, path)) for split, path in files.items()}
    if layout_of(root) is None and (folders := mask_folders(root)):
        return {
            split: _of_listing(list_folders(root, split, images, labels), images)
            for split, (images, labels) in folders.items()
        }
    listings = {split or "train": list_split(root, split) for split in available_splits(root)}
    return {split: _of_listing(listing) for split, listing in listings.items()}


def _of_listing(listing: Listing, images: Path | None = None) -> _Source:
    """Return the source of a listing whose images are below a folder; None: that of its layout."""
    if not listing.pairs:
        raise FishnetError(no_pairs(listing))
    dataset = SegmentationDataset(listing)
    tops = {"voc": 1, "cityscapes": 2, "folders": 1 + bool(listing.split)}
    top = tops[listing.kind] if images is None else len(images.relative_to(listing.root).parts)
    names = [PurePosixPath(*PurePosixPath(pair.image).parts[top:]) for pair in listing.pairs]
    notes = [
        f"{listing.split}: skipped {len(files)} {what}, such as {files[0]}"
        for what, files in (
            ("images without a label map", listing.unlabeled),
            ("unmatched label maps", listing.orphans),
        )
        if files
    ]
    paths = [listing.root / pair.image for pair in listing.pairs]
    return _Source(listing.coding, [name.as_posix() for name in names], paths, dataset.label_map, notes)


def _of_coco(maps: CocoMaps) -> _Source:
    return _Source(LabelCoding(maps.classes, (maps.ignored,)), maps.names, maps.paths, maps.label_map, maps.notes)


def _write(one: _Source, dest: Path, split: str, place: Placer, val: float | None, seed: int) -> dict[str, int]:
    """Write a split, or train and val of it; return the number of images of each."""
    stems = _unique_stems(one.names)
    folder = dest / split if val is None else dest / "train"

    def make(index: int) -> frozenset[int]:
        labels = one.label_map(index)
        target = folder / "labels" / f"{stems[index]}.png"
        with atomic_path(target) as partial:
            Image.fromarray(labels.astype(np.uint8 if one.coding.ignore_index == 255 else np.uint16)).save(partial)
        return frozenset(np.unique(labels).tolist()) - {one.coding.ignore_index}

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(make, range(len(stems)))
        bar = tqdm(found, split, len(stems), False, disable=None, unit="image")
        present = list(bar)
    chosen = set[int]() if val is None else stratify(present, val, seed)
    for index, path in enumerate(one.paths):
        if not path.is_file():
            raise BadImageError(f"the image {path} is missing; download it, or remove it from the lists of {split}")
        target = dest / "val" if index in chosen else folder
        place(path, target / "images" / f"{stems[index]}{path.suffix}")
        if index in chosen:
            label = target / "labels" / f"{stems[index]}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            (folder / "labels" / f"{stems[index]}.png").rename(label)
    counts = {folder.name: len(stems) - len(chosen)}
    return counts if val is None else {**counts, "val": len(chosen)}


def _unique_stems(names: Sequence[str]) -> list[str]:
    """Return file names without extension; names that would be equal are numbered."""
    taken: set[str] = set()
    stems = []
    for name in names:
        stem = first = PurePosixPath(name).with_suffix("").as_posix()
        number = 2
        while stem in taken:
            stem, number = f"{first}_{number}", number + 1
        taken.add(stem)
        stems.append(stem)
    return stems
