"""Multitask data set: images with labels of any of three levels, as training and evaluation take them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fishnet.data import geometry
from fishnet.data.augmentation import resized
from fishnet.data.detection.dataset import annotated_classes, boxed
from fishnet.data.geometry import plain
from fishnet.data.images import BadImageSkipper
from fishnet.data.levels import ImageLabels, Level, ObjectLabels
from fishnet.data.multitask.layout import MultitaskSplit
from fishnet.data.run_lengths import decode, of_box
from fishnet.data.seeding import sample_seed, sample_words
from fishnet.files import Json
from fishnet.models.heads.types import Size, Target

Transform = Callable[[geometry.Sample, Callable[[], geometry.Sample] | None], geometry.Sample]


class SampleTarget(TypedDict):
    """Truth of one image; a level that is not labeled is missing."""

    image: NotRequired[Tensor]
    """int64 scalar: class index."""
    region: NotRequired[Target]
    """Objects in pixels of the image tensor; in training only."""
    pixel: NotRequired[Tensor]
    """Class indices (H, W): of the size of the image tensor in training, of the file in evaluation."""


class Sample(TypedDict):
    """Element of a multitask data set."""

    image: Tensor
    """uint8 (3, H, W)."""
    target: SampleTarget
    size: Size
    """(height, width) of the image in its file."""
    index: int
    """Requested index."""
    bad: str
    """Path of the requested image if it could not be read and the next good one replaces it, else empty."""


class Batch(TypedDict):
    """Several samples; images and targets stay in lists, since their sizes differ."""

    image: list[Tensor]
    target: list[SampleTarget]
    size: list[Size]
    index: Tensor
    """int64 (B,)."""
    bad: list[str]


class MultitaskDataset(BadImageSkipper, Dataset[Sample]):
    """Images of one split, read on access.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns a `Sample`.

    Args:
        split: Images and labels.
        levels: Levels whose labels are used.
        bad_images: "stop" raises BadImageError when an image that cannot be used is accessed; "skip" replaces it by the
            next good one.

    Attributes:
        transform: Augmentation of training samples; None: samples for evaluation, whose image is resized and whose
            label map is not. May be set.
        size: Shorter side and maximum of the longer side of images in evaluation, in pixels; may be set.
        masks: Whether objects have masks; may be set.
        seed: Seed of all random draws; may be set.
    """

    task = "multitask"

    def __init__(
        self, split: MultitaskSplit, levels: Sequence[Level], bad_images: Literal["stop", "skip"] = "stop"
    ) -> None:
        super().__init__()
        self.split, self.levels = split, tuple(levels)
        self.transform: Transform | None = None
        self.size = (224, 1333)
        self.masks = False
        self.seed = 0
        self.skip_bad = bad_images == "skip"

    def __len__(self) -> int:
        return len(self.split)

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.split.paths[index])

    def sample(self, index: int) -> geometry.Sample:
        """Read an image and return it with its labels, before the transform; bad images are not replaced."""
        image, labels = self.split.load(index)
        size = image.height, image.width
        pixels = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
        target: geometry.Sample = {}
        if labels.label is not None and "image" in self.levels:
            target["label"] = torch.tensor(labels.label)
        if labels.objects is not None and "region" in self.levels and self.transform is not None:
            target |= self._objects(labels.objects, size)
        if labels.label_map is not None and "pixel" in self.levels:
            target["label_map"] = tv_tensors.Mask(torch.from_numpy(labels.label_map))
        return {"image": pixels, "target": target, "size": size, "index": index}

    def _objects(self, objects: ObjectLabels, size: Size) -> geometry.Sample:
        """Return the objects as training takes them."""
        single = ~objects.crowd
        found: geometry.Sample = {**boxed(objects.boxes, objects.classes, objects.crowd, size)}
        if self.masks:
            # an object without an outline may be anywhere in its box
            runs = objects.masks or [of_box(box, *size) for box in objects.boxes.tolist()]
            chosen = [runs[place] for place in np.flatnonzero(single).tolist()]
            found["masks"] = tv_tensors.Mask(decode(chosen, *size))
            known = np.full(len(single), objects.masks is not None) if objects.outlined is None else objects.outlined
            found["outlined"] = torch.from_numpy(known[single])
        if objects.annotated is not None:
            found["annotated"] = annotated_classes(objects.annotated, len(self.split.classes.region))
        return found

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        index = number % len(self)  # a repeated sample has its own number, and therefore its own augmentation
        sample, place = self.load_good(index, len(self), self.sample, self.path)
        if self.transform is None:
            sample["image"] = resized(plain(sample["image"]), *self.size)
        else:
            with sample_seed(self.seed, epoch, number):
                sample = self.transform(sample, None)
        # 63 bits: torch's generators accept no larger seed
        seed = torch.tensor(sample_words(self.seed, epoch, number)[2] >> 1)
        bad = "" if place == index else self.path(index)
        target = _by_level(sample["target"], seed)
        return Sample(image=plain(sample["image"]), target=target, size=sample["size"], index=index, bad=bad)

    def labels(self, index: int) -> ImageLabels:
        """Return the labels of an image on the levels that are used; reads no image.

        Raises:
            BadImageError: The label map cannot be used.
        """
        split, found = self.split, ImageLabels()
        if "image" in self.levels and split.labels[index] >= 0:
            found.label = int(split.labels[index])
        if "region" in self.levels:
            found.objects = split.objects(index)
        number, place = split.pixel_of[index].tolist()
        if "pixel" in self.levels and number >= 0:
            found.label_map = split.pixels[number].label_map(place)
        return found

    def fingerprint(self) -> Json:
        """Return values that change if the data set changes: counts of labels, and a hash of names and labels."""
        split, digest = self.split, hashlib.sha256()
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            digest.update(f"{path.name}\0{label}\n".encode(errors="surrogateescape"))
        for data in split.regions:
            for array in (data.file.image_of, data.file.class_of, data.file.boxes, data.file.crowd):
                digest.update(np.ascontiguousarray(array).tobytes())
        for pixels in split.pixels:
            digest.update(str(pixels.fingerprint()).encode())
        return {"images": len(split), "labels": split.counts(), "sha256": digest.hexdigest()[:16]}


def _by_level(target: geometry.Sample, seed: Tensor) -> SampleTarget:
    """Return a transformed target by level, as plain tensors."""
    found: SampleTarget = {}
    if "label" in target:
        found["image"] = target["label"]
    if "boxes" in target:
        region = Target(boxes=plain(target["boxes"]), labels=plain(target["labels"]), seed=seed)
        if "masks" in target:
            region["masks"], region["outlined"] = plain(target["masks"]), target["outlined"]
        if "crowds" in target:
            region["crowds"], region["crowd_labels"] = plain(target["crowds"]), target["crowd_labels"]
        if "annotated" in target:
            region["annotated"] = target["annotated"]
        found["region"] = region
    if "label_map" in target:
        found["pixel"] = plain(target["label_map"])
    return found


def collate(samples: list[Sample]) -> Batch:
    """Combine samples into a batch; images and targets stay in lists, since their sizes differ."""
    return {
        "image": [sample["image"] for sample in samples],
        "target": [sample["target"] for sample in samples],
        "size": [sample["size"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "bad": [sample["bad"] for sample in samples],
    }
