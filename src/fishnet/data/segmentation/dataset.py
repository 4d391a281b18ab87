"""Segmentation data set: images with a label map each."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fishnet.data import geometry
from fishnet.data.folders import check_root
from fishnet.data.geometry import plain
from fishnet.data.images import (
    MISSING,
    BadImageError,
    BadImageSkipper,
    explain,
    image_shape,
    read_image,
    refuse_bomb,
)
from fishnet.data.seeding import sample_seed
from fishnet.data.segmentation.coding import LabelCoding, LabelError, RawLabels, raw_labels
from fishnet.data.segmentation.layouts import LAYOUTS, Listing, list_split, resolve_split
from fishnet.data.segmentation.types import Batch, Sample, SampleTarget
from fishnet.errors import FishnetError
from fishnet.files import Json

Transform = Callable[[geometry.Sample, Callable[[], geometry.Sample] | None], geometry.Sample]


class SegmentationDataset(BadImageSkipper, Dataset[Sample]):
    """Images of one split with their label maps, read on access; created by `open_segmentation`.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns a `Sample`.

    Attributes:
        listing: Files of the split.
        transform: Function (sample, draw) -> sample, where draw() returns another untransformed sample to mix in; may
            be set. It draws from the global generators, which are seeded by (seed, epoch, index).
        seed: Seed of all random draws; may be set.
        bad_images: Paths that this process could not use so far, of images or label maps.
        notes: Notes for the user about the data set, one line each.
    """

    task = "segmentation"

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self.listing = listing
        self.transform: Transform | None = None
        self.notes: list[str] = []
        self.seed = 0

    @property
    def coding(self) -> LabelCoding:
        """Encoding of the classes in the label files."""
        return self.listing.coding

    @property
    def classes(self) -> list[str]:
        """Class names by class index."""
        return self.coding.classes

    @property
    def ignore_index(self) -> int:
        """Value of ignored pixels in the label maps of samples: 255, or 65535 for more than 255 classes."""
        return self.coding.ignore_index

    def __len__(self) -> int:
        return len(self.listing.pairs)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.listing.root / self.listing.pairs[index].image

    def label_path(self, index: int) -> Path:
        """Return the path of a label map."""
        return self.listing.root / self.listing.pairs[index].label

    def label_map(self, index: int) -> np.ndarray:
        """Return a label map (H, W) of class indices and `ignore_index`.

        Raises:
            BadImageError: The file cannot be used.
        """
        path = self.label_path(index)
        try:
            return self.coding.decode(read_raw_labels(path, self.coding.has_colors))
        except LabelError as error:
            raise bad_label(path, str(error)) from None

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return an image as RGB, and its label map (H, W).

        Raises:
            BadImageError: One of the files cannot be used, or their sizes differ.
        """
        labels = self.label_map(index)
        return matching_image(self.path(index), (labels.shape[1], labels.shape[0]), self.label_path(index)), labels

    def sample(self, index: int) -> geometry.Sample:
        """Read an image and return it with its target, before the transform; bad images are not replaced."""
        image, labels = self.load(index)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        target = {"label_map": tv_tensors.Mask(torch.from_numpy(labels))}
        return {
            "image": tv_tensors.Image(pixels),
            "target": target,
            "size": (image.height, image.width),
            "index": index,
        }

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        index = number % len(self)  # a repeated sample has its own number, and therefore its own augmentation
        sample, place = self.load_good(index, len(self), self.sample, self.path)
        if self.transform is not None:
            with sample_seed(self.seed, epoch, number):
                sample = self.transform(sample, self._draw)
        bad = "" if place == index else str(self.path(index))
        return Sample(image=sample["image"], target=sample["target"], size=sample["size"], index=index, bad=bad)

    def fingerprint(self) -> Json:
        """Return values that change if the data set changes: counts, and a hash of names, sizes and coding."""
        digest = hashlib.sha256(repr(sorted(self.coding.to_dict().items())).encode())
        for pair in self.listing.pairs:
            digest.update(f"{pair.image}\0{pair.label}\0".encode(errors="surrogateescape"))
            for name in (pair.image, pair.label):
                path = self.listing.root / name
                digest.update(str(path.stat().st_size if path.is_file() else -1).encode() + b"\0")
        return {"images": len(self), "classes": len(self.classes), "sha256": digest.hexdigest()[:16]}

    def _draw(self) -> geometry.Sample:
        """Return another sample, chosen by torch's global generator, which is seeded for the current sample."""
        chosen = int(torch.randint(len(self), ()))
        return self.load_good(chosen, len(self), self.sample, self.path)[0]


def read_raw_labels(source: Path | bytes, colored: bool = False) -> RawLabels:
    """Read a label file, or its bytes.

    Args:
        source: Path or content of the file.
        colored: Whether RGB files have colors of a palette, see `raw_labels`.

    Raises:
        LabelError: The file is missing, damaged, too large, or its pixels are neither values nor colors.
    """
    content = b""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image)
            return raw_labels(image, colored)
    except LabelError:
        raise
    except FileNotFoundError:
        raise LabelError("missing label", MISSING) from None
    except Exception as error:  # decoders raise nearly any exception on damaged bytes
        raise LabelError("unreadable label", explain(error, content)) from error


def bad_label(path: Path, reason: str) -> BadImageError:
    """Return the error for a label map that cannot be used."""
    return BadImageError(
        f"cannot use the label map {path}: {reason}; `fishnet data check segmentation DIR` lists all such files and "
        "guesses the cause, and --bad-images skip leaves them out of training"
    )


def matching_image(path: Path, size: tuple[int, int], label: Path) -> Image.Image:
    """Return an image as RGB, upright, or in its stored orientation if only that matches its label map.

    Args:
        path: Path of the image.
        size: Width and height of the label map.
        label: Path of the label map, for the message.

    Raises:
        BadImageError: The image cannot be read, or has another size than the label map.
    """
    image = read_image(path)
    if image.size != size and image.size == size[::-1] and image_shape(path).stored == size:
        # photos are often annotated on the stored pixels, without the EXIF orientation
        image = read_image(path, upright=False)
    if image.size != size:
        raise bad_label(label, size_mismatch(size, image.size, path))
    return image


def size_mismatch(label: tuple[int, int], image: tuple[int, int], path: Path) -> str:
    """Return in words that the sizes (width, height) of a label map and of its image differ."""
    return f"it has {label[0]}x{label[1]} pixels, but the image {path} has {image[0]}x{image[1]}"


def open_segmentation(
    root: Path | str,
    split: str,
    *,
    classes: list[str] | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
) -> SegmentationDataset:
    """Open one split of a data folder in any layout of docs/data-formats.md; lists files, opens no image.

    Args:
        root: Data folder.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class names that the data must have, from the training split or a model; None accepts any.
        bad_images: "stop" raises BadImageError when a file that cannot be used is accessed; "skip" replaces it by the
            next good one.

    Raises:
        FishnetError: Folder, split or classes.json are missing or damaged, no image has a label map, or the classes
            are others.
    """
    root = Path(root)
    check_root(root, LAYOUTS)
    listing = list_split(root, resolve_split(root, split))
    if not listing.pairs:
        raise FishnetError(no_pairs(listing))
    if classes is not None and classes != listing.coding.classes:
        missing = sorted(set(classes) - set(listing.coding.classes))
        extra = sorted(set(listing.coding.classes) - set(classes))
        raise FishnetError(
            f"the classes of {root} differ from those of the training split or model: missing "
            f"{', '.join(missing[:10]) or 'none'}, unknown {', '.join(extra[:10]) or 'none'}"
            + ("" if missing or extra else "; the names are equal, but in another order")
        )
    dataset = SegmentationDataset(listing)
    left_out = (
        ("images without a label map", listing.unlabeled),
        ("label maps without an image", listing.orphans),
        ("files whose stem another one has", listing.doubled),
    )
    for what, names in left_out:
        if names:
            dataset.notes.append(f"{root}, {split}: skipped {len(names)} {what}, such as {names[0]}")
    dataset.skip_bad = bad_images == "skip"
    return dataset


def no_pairs(listing: Listing) -> str:
    """Return in words why a split has no image with a label map."""
    where = f"{listing.root}, split {listing.split!r}" if listing.split else str(listing.root)
    if listing.lossy:
        return (
            f"{where}: label maps such as {listing.lossy[0]} are JPEG files, which change the values of pixels; "
            "save them as PNG"
        )
    if not listing.unlabeled:
        return f"{where} contains no images"
    if not listing.orphans:
        return f"{where}: none of the {len(listing.unlabeled)} images has a label map"
    return (
        f"{where}: no image has a label map of the same stem: {listing.unlabeled[0]} and {listing.orphans[0]}; "
        "rename one of them"
    )


def collate(samples: list[Sample]) -> Batch:
    """Combine samples into a batch; images and targets stay in lists, since their sizes differ."""
    return {
        "image": [plain(sample["image"]) for sample in samples],
        "target": [SampleTarget(label_map=plain(sample["target"]["label_map"])) for sample in samples],
        "size": [sample["size"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "bad": [sample["bad"] for sample in samples],
    }
