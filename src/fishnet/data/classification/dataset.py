"""Classification data set with one or several labels per image, for all supported layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fishnet.data.classification.layouts import LAYOUTS, Listing, Target, available_splits, list_split, resolve_split
from fishnet.data.classification.shards import ShardIndex
from fishnet.data.classification.transforms import ToTensor
from fishnet.data.folders import check_root
from fishnet.data.images import BadImageSkipper, read_image
from fishnet.data.loader import SampleKey
from fishnet.data.seeding import sample_seed
from fishnet.errors import FishnetError

__all__ = ["Batch", "ClassificationDataset", "Entry", "Sample", "SampleKey", "available_splits", "open_classification"]


class Sample(TypedDict):
    """Element of a classification data set."""

    image: Tensor
    """float32 (3, H, W), the result of the transform."""
    target: Tensor
    """int64 class index (), or float32 multi-hot (classes,) where an image may have several labels."""
    index: int
    """Requested index."""
    bad: str
    """Path of the requested image if it could not be read and the next good one replaces it, else empty."""


class Batch(TypedDict):
    """Samples as torch's default collate function stacks them."""

    image: Tensor
    """float32 (B, 3, H, W)."""
    target: Tensor
    """int64 (B,) or float32 (B, classes)."""
    index: Tensor
    """int64 (B,)."""
    bad: list[str]


class Entry(NamedTuple):
    """An image of a split, not read yet: its path below the data folder and its class index or indices."""

    name: str
    target: Target


class Entries(Sequence[Entry]):
    """All images of a split, stored as a list of names and an array or list of targets to save memory."""

    def __init__(self, names: list[str], targets: np.ndarray | Sequence[Target]) -> None:
        self.names = names
        self.targets = targets

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        target = self.targets[index]
        return Entry(self.names[index], target if isinstance(target, tuple) else int(target))

    def __iter__(self) -> Iterator[Entry]:
        return (self[i] for i in range(len(self)))


class ClassificationDataset(BadImageSkipper, Dataset[Sample]):
    """Images of one split, read on access; created by `open_classification`.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns a `Sample`. Every random draw of the
    transform is a function of (seed, epoch, index), independent of worker, process and order.

    Attributes:
        classes: Class names by class index.
        multi_label: Whether an image may have any number of labels.
        samples: Name (path relative to the data folder) and target of each image.
        transform: Function from a PIL RGB image to a tensor; may be set. By default it scales values to 0..1.
        seed: Seed of all random draws; may be set.
        keep: Whether decoded images are cached in memory, in each loading process; may be set.
        bad_images: Paths that this process could not read so far.
    """

    task = "classification"

    def __init__(self, root: Path, samples: Entries, classes: list[str], *, multi_label: bool) -> None:
        super().__init__()
        self.root = root
        self.samples = samples
        self.classes = classes
        self.multi_label = multi_label
        self.transform: Callable[[Image.Image], Tensor] = ToTensor()
        self.seed = 0
        self.keep = False
        self._shards: ShardIndex | None = None
        self._kept: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def class_counts(self) -> np.ndarray:
        """Return the number of images per class, int64 (classes,)."""
        targets = self.samples.targets
        flat = np.concatenate([np.asarray(t, dtype=np.int64) for t in targets]) if self.multi_label else targets
        return np.bincount(flat, minlength=len(self.classes))

    def load(self, index: int) -> Image.Image:
        """Return one image as upright RGB without transform; raises BadImageError if it cannot be read."""
        if index in self._kept:
            return self._kept[index].copy()
        path = self._path(index)
        image = read_image(path if self._shards is None else self._shards.read(index), path)
        if self.keep:
            self._kept[index] = image.copy()
        return image

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image, used = self.load_good(index, len(self), self.load, self._path)
        with sample_seed(self.seed, epoch, index):
            tensor = self.transform(image)
        bad = "" if used == index else self._path(index)
        return {"image": tensor, "target": self._target(used), "index": index, "bad": bad}

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.samples.names[index])  # noqa: PTH118  # faster, and runs for every sample

    def _target(self, index: int) -> Tensor:
        target = self.samples.targets[index]
        if not isinstance(target, tuple):
            return torch.tensor(int(target))
        hot = torch.zeros(len(self.classes))
        hot[list(target)] = 1
        return hot


def open_classification(
    root: Path | str,
    split: str,
    *,
    classes: list[str] | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
) -> ClassificationDataset:
    """Open one split of a folder in any of the layouts of docs/data-formats.md; reads lists, no images.

    Args:
        root: Data folder.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class list that defines the class indices, from the training split or a model. The split must have the
            same classes (`labels.csv` and shards: no others). None uses the classes of the split.
        bad_images: "stop" raises BadImageError when an unreadable image is accessed; "skip" replaces it by the next
            good one.

    Raises:
        FishnetError: Folder or split is missing or empty, classes differ, a class folder has no images, or a list is
            damaged; the message names it and the remedy.
    """
    root = Path(root)
    check_root(root, LAYOUTS)
    listing = list_split(root, resolve_split(root, split))
    if not listing.names:
        raise FishnetError(f"{listing.place} contains no images; expected files such as .jpg or .png")
    if classes is None:
        _refuse_empty_classes(listing)
        classes = listing.classes
    targets = _number(listing, classes)
    samples = Entries(listing.names, targets if listing.multi_label else np.array(targets, dtype=np.int64))
    dataset = ClassificationDataset(root, samples, list(classes), multi_label=listing.multi_label)
    dataset.skip_bad = bad_images == "skip"
    dataset._shards = listing.shards
    return dataset


def _refuse_empty_classes(listing: Listing) -> None:
    """Raise FishnetError if a class folder has no images, which is nearly always a mistake."""
    if listing.kind != "folders":
        return
    filled = {label for labels in listing.labels for label in labels}
    if empty := [name for number, name in enumerate(listing.classes) if number not in filled]:
        raise FishnetError(
            f"{listing.place} has class folders without images: {_enumerate(empty)}; fill or remove them"
        )


def _number(listing: Listing, classes: list[str]) -> Sequence[Target]:
    """Return the targets of a listing as indices into `classes`; raises FishnetError if the class lists differ."""
    missing = sorted(set(classes) - set(listing.classes)) if listing.complete else []
    extra = sorted(set(listing.classes) - set(classes))
    if missing or extra:
        raise FishnetError(
            f"the classes of {listing.place} differ from those of the training split or model: "
            f"only there: {_enumerate(missing)}; only in {listing.place}: {_enumerate(extra)}; "
            "make both class lists equal"
        )
    if classes == listing.classes:
        return listing.targets
    numbers = {name: number for number, name in enumerate(classes)}
    new = [numbers[name] for name in listing.classes]
    return [
        tuple(sorted(new[old] for old in target)) if isinstance(target, tuple) else new[target]
        for target in listing.targets
    ]


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) + more) or "none"
