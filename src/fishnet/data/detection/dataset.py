"""Images with boxes, masks and keypoints, from a COCO folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fishnet.data.detection.coco import CocoFile, Fault, read_coco, summarise
from fishnet.data.folders import check_root
from fishnet.data.geometry import VISIBILITY, Sample, plain
from fishnet.data.images import BadImageSkipper, bad_image, read_image
from fishnet.data.seeding import sample_seed, sample_words
from fishnet.errors import FishnetError, did_you_mean

LAYOUT = "DIR/annotations/instances_<split>.json, with images in DIR/<split>/ or DIR/<split>/images/"
PIXEL_CENTRE = 0.5
"""Continuous coordinate of the centre of the pixel with index 0."""
Transform = Callable[[Sample, Callable[[], Sample] | None], Sample]


def annotation_file(root: Path, split: str) -> Path:
    """Return the instances file of a split; `train` also finds `train2017`.

    Raises:
        FishnetError: There is none; says which exist.
    """
    check_root(root, LAYOUT)
    folder = root / "annotations"
    splits = {path.stem.removeprefix("instances_"): path for path in sorted(folder.glob("instances_*.json"))}
    if not splits:
        raise FishnetError(
            f"{root} holds no detection data: {folder}/instances_{split}.json is missing. "
            "`fishnet data convert` turns VOC and YOLO folders into COCO's layout"
        )
    if split in splits:
        return splits[split]
    dated = [name for name in splits if name.startswith(split) and name[len(split) :].isdigit()]
    if len(dated) == 1:
        return splits[dated[0]]
    advice = did_you_mean(split, splits)
    if split == "val" and any(name.startswith("train") for name in splits):
        advice += f" `fishnet data split {root}` makes a val from train."
    raise FishnetError(f"{folder} has no split {split!r}, it has {', '.join(splits)}.{advice}")


def image_folder(root: Path, split: str, file_names: list[str]) -> Path:
    """Return the folder that a split's file names are relative to: DIR/<split>/images, DIR/<split> or DIR."""
    for folder in (root / split / "images", root / split, root):
        if file_names and os.path.exists(folder / file_names[0]):  # noqa: PTH110  a name that is too long is no error
            return folder
    return root / split


class DetectionDataset(BadImageSkipper, Dataset[Sample]):
    """The images of one split with their objects, read when asked for; made by `open_detection`.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns
    - image: uint8 tensor (3, H, W) after `transform`
    - target: boxes float32 (N, 4) x1 y1 x2 y2 in pixels of that tensor, labels int64 (N,), with `masks` on masks uint8
      (N, H, W), with `keypoints` on keypoints float32 (N, K, 2) and keypoints_visibility (N, K): 0 absent, 1 hidden,
      2 visible, and seed, an int64 scalar that is a function of (seed, epoch, index): the regions that losses are taken
      of are drawn with it. Crowds are left out, N may be 0. All coordinates are continuous (`fishnet.data.geometry`):
      half a pixel is added to the keypoints of the file, which are indices of pixels.
    - size: (height, width) of the image in its file
    - index: the index that was asked for
    - bad: empty, or the path of the image that was asked for and could not be read; the next good one stands in.

    Attributes:
        file: Everything that the annotation file says.
        folder: Where the images lie.
        transform: (sample, draw) -> sample, where draw() gives another raw sample to mix in; may be set. It draws from
            the global generators, seeded by (seed, epoch, index).
        mix_until: Epoch from which on draw is None: no image is mixed with others any more; may be set.
        masks, keypoints: Whether targets hold them; may be set.
        seed: Seed of all draws; may be set.
        bad_images: Paths that could not be read so far, by this process.
    """

    task = "detection"

    def __init__(self, file: CocoFile, folder: Path) -> None:
        super().__init__()
        self.file, self.folder = file, folder
        self.transform: Transform | None = None
        self.masks = self.keypoints = False
        self.mix_until: int | None = None
        self.seed = 0

    @property
    def classes(self) -> list[str]:
        """Names by class index."""
        return self.file.classes

    def __len__(self) -> int:
        return len(self.file)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.folder / self.file.file_names[index]

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB in the size that the annotations are made for.

        Raises:
            BadImageError: It is missing, damaged or of another size.
        """
        path = self.path(index)
        image = read_image(path)
        wanted = int(self.file.widths[index]), int(self.file.heights[index])
        if image.size != wanted and image.size == wanted[::-1]:
            # annotations of cameras' photos are often made on the pixels as they are stored, without EXIF
            image = read_image(path, upright=False)
        if image.size != wanted:
            stated = f"{wanted[0]}x{wanted[1]}"
            raise bad_image(str(path), f"it has {image.width}x{image.height} pixels, {self.file.path} says {stated}")
        return image

    def sample(self, index: int) -> Sample:
        """Return image and target before any transform; the image is read, bad ones are not replaced."""
        image = self.load(index)
        objects = self.file.objects(index)
        objects = objects[~self.file.crowd[objects]]
        size = image.height, image.width
        corners = self.file.boxes[objects].copy()
        corners[:, 2:] += corners[:, :2]
        boxes = torch.from_numpy(corners).float().reshape(-1, 4)
        boxes[:, 0::2].clamp_(0, image.width)
        boxes[:, 1::2].clamp_(0, image.height)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.from_numpy(self.file.class_of[objects]),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(self._masks(objects, size))
        if self.keypoints and self.file.keypoints is not None:
            places, visibility = continuous_keypoints(torch.from_numpy(self.file.keypoints[objects]), size)
            target["keypoints"] = tv_tensors.KeyPoints(places, canvas_size=size)
            target["keypoints" + VISIBILITY] = visibility
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {"image": tv_tensors.Image(pixels), "target": target, "size": size, "index": index}

    def _masks(self, objects: np.ndarray, size: tuple[int, int]) -> Tensor:
        from faster_coco_eval.core import mask as rle_of

        if not len(objects):
            return torch.zeros(0, *size, dtype=torch.uint8)
        decoded = rle_of.decode([self.file.mask(int(index)) for index in objects])
        return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        index = number % len(self)  # a repeated sample has a number of its own, and so its own augmentation
        sample, place = self.load_good(index, len(self), self.sample, self.path)
        if self.transform is not None:
            with sample_seed(self.seed, epoch, number):
                mixes = self.mix_until is None or epoch < self.mix_until
                sample = self.transform(sample, self._draw if mixes else None)
        # 63 bits: torch's generators take no larger seed
        sample["target"]["seed"] = torch.tensor(sample_words(self.seed, epoch, number)[2] >> 1)
        return {**sample, "index": index, "bad": "" if place == index else str(self.path(index))}

    def _draw(self) -> Sample:
        """Return another sample, drawn from the generator of the sample under way."""
        chosen = int(torch.randint(len(self), ()))
        return self.load_good(chosen, len(self), self.sample, self.path)[0]


def continuous_keypoints(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return places (N, K, 2) in continuous coordinates and visibility (N, K) of COCO's keypoints (N, K, 3).

    COCO's keypoints are indices of pixels, its boxes and polygons continuous (Detectron2 reads them so too). What lies
    beyond the border of the image by up to a pixel is moved onto it, what lies farther outside counts as absent.
    """
    places = points[..., :2] + PIXEL_CENTRE
    border = torch.tensor([size[1], size[0]], dtype=places.dtype)
    near = ((places >= -1) & (places <= border + 1)).all(-1)
    return torch.minimum(places.clamp(min=0), border), points[..., 2] * near


def coco_keypoints(places: Tensor, visibility: Tensor) -> Tensor:
    """Return keypoints (N, K, 3) as torchvision's detectors want them: continuous x and y, 0 0 0 where absent."""
    points = torch.cat([places, visibility[..., None]], dim=-1)
    return torch.where(visibility[..., None] > 0, points, 0.0)


def open_detection(
    root: Path | str,
    split: str,
    *,
    classes: list[str] | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
) -> DetectionDataset:
    """Open one split of a COCO folder; reads the annotation file, no image.

    Args:
        root: Data folder, with annotations/instances_<split>.json and the images in <split>/ or <split>/images/.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class names that the split must have, those of the training split or of a model.
        bad_images: stop: objects and images that cannot be used are an error, here or when they are asked for; skip:
            they are left out. Objects whose box has no area are always left out, and named in a line that is printed.

    Raises:
        FishnetError: Folder, split or images are missing, the file is damaged, or holds what cannot be used.
    """
    root = Path(root)
    path = annotation_file(root, split)
    file = read_coco(path)
    if not len(file):
        raise FishnetError(f"{path} lists no image")
    folder = image_folder(root, path.stem.removeprefix("instances_"), file.file_names)
    problems = file.problems + missing_files(file, folder)
    if problems and bad_images == "stop":
        raise FishnetError(
            f"{path} has {len(problems)} problems: {summarise(problems)}. `fishnet data check detection {root} --fix "
            "OUT.json` mends what can be mended; --bad-images skip leaves the others out"
        )
    if classes is not None and classes != file.classes:
        missing, extra = sorted(set(classes) - set(file.classes)), sorted(set(file.classes) - set(classes))
        raise FishnetError(
            f"the categories of {path} differ from those of the training split or model: missing "
            f"{', '.join(missing[:10]) or 'none'}, unknown {', '.join(extra[:10]) or 'none'}"
            + ("" if missing or extra else "; their ids are in another order")
        )
    if file.left_out:
        shown = ", ".join(str(fault.number) for fault in file.left_out[:5]) + (
            ", ..." if len(file.left_out) > 5 else ""
        )
        print(f"{path}: left out {len(file.left_out)} objects whose box has no area (annotations {shown})", flush=True)
    dataset = DetectionDataset(file, folder)
    dataset.skip_bad = bad_images == "skip"
    return dataset


def missing_files(file: CocoFile, folder: Path) -> list[Fault]:
    """Return a problem for every image whose file is not there."""
    present: dict[Path, set[str]] = {}
    problems = []
    for name in file.file_names:
        path = folder / name
        if path.parent not in present:
            present[path.parent] = _names(path.parent)
        if path.name not in present[path.parent]:
            problems.append(Fault("missing image file", str(path), "there is no such file"))
    return problems


def _names(folder: Path) -> set[str]:
    """Return the names in a folder; none where there is no such folder, or none of that name can be."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return set()
        raise FishnetError(f"cannot list the images in {folder} ({error.strerror or error})") from error


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Return a batch: lists of images and targets, since both differ in size from image to image."""
    return {
        "image": [plain(sample["image"]) for sample in samples],
        "target": [_plain_target(sample["target"]) for sample in samples],
        "size": [sample["size"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "bad": [sample["bad"] for sample in samples],
    }


def _plain_target(target: dict[str, Any]) -> dict[str, Tensor]:
    """Return a target as ordinary tensors, keypoints and visibility in one (N, K, 3)."""
    values = {name: plain(value) for name, value in target.items()}
    if "keypoints" in values:
        values["keypoints"] = coco_keypoints(values["keypoints"], values.pop("keypoints" + VISIBILITY))
    return values
