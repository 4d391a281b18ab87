"""Images with one label, or several, from every layout that this library reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fishnet.data.classification.layouts import LAYOUTS, Listing, available_splits, list_split, resolve_split
from fishnet.data.classification.shards import ShardIndex
from fishnet.data.classification.transforms import ToTensor
from fishnet.data.folders import check_root
from fishnet.data.images import BadImageSkipper, read_image
from fishnet.data.loader import SampleKey
from fishnet.data.seeding import sample_seed
from fishnet.errors import FishnetError

__all__ = ["ClassificationDataset", "Sample", "SampleKey", "Samples", "available_splits", "open_classification"]


class Sample(NamedTuple):
    """One image and its class, or its tuple of classes."""

    name: str
    target: int | tuple[int, ...]


class Samples(Sequence[Sample]):
    """All samples of a split, kept as a list of names and a list of targets, and made when asked for."""

    def __init__(self, names: list[str], targets: np.ndarray | list[tuple[int, ...]]) -> None:
        self.names = names
        self.targets: Any = targets

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        target = self.targets[index]
        return Sample(self.names[index], target if isinstance(target, tuple) else int(target))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


class ClassificationDataset(BadImageSkipper, Dataset[dict[str, Any]]):
    """The images of one split, read when asked for; made by `open_classification`.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns
    - image: float tensor (3, H, W), what `transform` makes of the RGB image
    - target: int64 class index; for several labels float multi-hot (classes,)
    - index: the index that was asked for
    - bad: empty, or the path of the image that was asked for and could not be read: image and target are then those of
      the next good one (only with bad_images = skip).

    Every random draw of the transform is a function of (seed, epoch, index): worker, process and order do not matter.

    Attributes:
        classes: Names by class index.
        multi_label: Whether an image has any number of labels.
        samples: Name (path below the data folder) and target of every image.
        transform: PIL RGB image -> tensor; may be set. By default values in 0..1.
        seed: Seed of all draws; may be set.
        keep: Whether decoded images stay in memory, in each process that loads; may be set.
        bad_images: Paths that could not be read so far, by this process.
    """

    task = "classification"

    def __init__(self, root: Path, samples: Samples, classes: list[str], *, multi_label: bool) -> None:
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
        """Return the number of images of each class, int64 (classes,)."""
        targets = self.samples.targets
        flat = np.concatenate([np.asarray(t, dtype=np.int64) for t in targets]) if self.multi_label else targets
        return np.bincount(flat, minlength=len(self.classes))

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB, upright, without transform; BadImageError (a FishnetError) where it is damaged."""
        if index in self._kept:
            return self._kept[index].copy()
        path = self._path(index)
        image = read_image(path if self._shards is None else self._shards.read(index), path)
        if self.keep:
            self._kept[index] = image.copy()
        return image

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image, used = self.load_good(index, len(self), self.load, self._path)
        with sample_seed(self.seed, epoch, index):
            tensor = self.transform(image)
        bad = "" if used == index else self._path(index)
        return {"image": tensor, "target": self._target(used), "index": index, "bad": bad}

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.samples.names[index])  # noqa: PTH118  # runs for every sample

    def _target(self, index: int) -> Tensor:
        target = self.samples.targets[index]
        if not self.multi_label:
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
    """Open one split of a folder in any of the layouts of docs/data-formats.md; reads lists, no image.

    Args:
        root: Data folder.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class list to number the targets by, that of the training split or of a model. The split must have the
            same classes (a list of several labels, or shards: no others). Without it they are the split's own.
        bad_images: stop: an image that cannot be read raises BadImageError when it is asked for; skip: the next good
            one takes its place.

    Raises:
        FishnetError: Folder or split is missing or empty, classes differ, a class folder has no image, a list is
            damaged; says which and how to mend it.
    """
    root = Path(root)
    check_root(root, LAYOUTS)
    listing = list_split(root, resolve_split(root, split))
    if not listing.names:
        raise FishnetError(f"{listing.place} holds no image; expected files such as .jpg or .png")
    if classes is None:
        _refuse_empty_classes(listing)
        classes = listing.classes
    targets = _number(listing, classes)
    samples = Samples(listing.names, targets if listing.multi_label else np.array(targets, dtype=np.int64))
    dataset = ClassificationDataset(root, samples, list(classes), multi_label=listing.multi_label)
    dataset.skip_bad = bad_images == "skip"
    dataset._shards = listing.shards
    return dataset


def _refuse_empty_classes(listing: Listing) -> None:
    """Raise where a class folder has no image; a folder of this name and nothing in it is nearly always a mistake."""
    if listing.kind != "folders":
        return
    filled = set(listing.targets)
    if empty := [name for number, name in enumerate(listing.classes) if number not in filled]:
        raise FishnetError(
            f"{listing.place} has class folders without an image: {_enumerate(empty)}; fill or remove them"
        )


def _number(listing: Listing, classes: list[str]) -> list[Any]:
    """Return the targets of a listing as indices into `classes`; raises where the two lists do not fit."""
    missing = sorted(set(classes) - set(listing.classes)) if listing.complete else []
    extra = sorted(set(listing.classes) - set(classes))
    if missing or extra:
        raise FishnetError(
            f"the classes of {listing.place} differ from those of the training split or model: "
            f"only there: {_enumerate(missing)}; only in {listing.place}: {_enumerate(extra)}; "
            "make the two lists equal"
        )
    if classes == listing.classes:
        return listing.targets
    numbers = {name: number for number, name in enumerate(classes)}
    new = [numbers[name] for name in listing.classes]
    if listing.multi_label:
        return [tuple(sorted(new[old] for old in target)) for target in listing.targets]
    return [new[target] for target in listing.targets]


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) + more) or "none"
