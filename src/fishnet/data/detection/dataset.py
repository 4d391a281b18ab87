"""Detection data set: images with boxes, masks and keypoints from a COCO folder."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fishnet.data import geometry
from fishnet.data.detection.coco import NONE, CocoFile, Fault, annotated_only, load_document, parse_coco, summarize
from fishnet.data.detection.layouts import require_own_layout
from fishnet.data.detection.types import Batch, Sample, SampleTarget
from fishnet.data.folders import all_files, check_root, image_folder, image_places
from fishnet.data.geometry import VISIBILITY, plain
from fishnet.data.images import MISSING, BadImageSkipper, bad_image, read_image
from fishnet.data.run_lengths import decode
from fishnet.data.seeding import sample_seed, sample_words
from fishnet.errors import FishnetError, counted, did_you_mean, quoted
from fishnet.models.heads.types import Size, Target

LAYOUT = "DIR/annotations/instances_<split>.json, with images in DIR/<split>/ or DIR/images/"
PIXEL_CENTER = 0.5
"""Continuous coordinate of the center of the first pixel."""
_NAME = re.compile(r"[/\\]")
Transform = Callable[[geometry.Sample, Callable[[], geometry.Sample] | None], geometry.Sample]


def annotation_file(root: Path, split: str) -> Path:
    """Return the path of the instances file of a split; `train` also finds `train2017`.

    Raises:
        FishnetError: There is none; lists the existing splits.
    """
    require_own_layout(root)
    check_root(root, LAYOUT)
    folder = root / "annotations"
    splits = {path.stem.removeprefix("instances_"): path for path in sorted(folder.glob("instances_*.json"))}
    if not splits:
        raise FishnetError(
            f"{root} contains no detection data: {folder}/instances_{split}.json is missing; expected {LAYOUT}, or a "
            "VOC or YOLO folder or an export of CVAT, Label Studio or Roboflow for `fishnet data convert`"
        )
    if split in splits:
        return splits[split]
    dated = [name for name in splits if name.startswith(split) and name[len(split) :].isdigit()]
    if len(dated) == 1:
        return splits[dated[0]]
    advice = did_you_mean(split, splits)
    if split == "val" and any(name.startswith("train") for name in splits):
        advice += f" `fishnet data split {quoted(root)}` creates val from train."
    raise FishnetError(f"{folder} has no split {split!r}; available: {', '.join(splits)}.{advice}")


class DetectionDataset(BadImageSkipper, Dataset[Sample]):
    """Images of one split with their objects, read on access; created by `open_detection`.

    `dataset[key]`, with key = (epoch, index) or index alone (epoch 0), returns a `Sample`. All coordinates are
    continuous (`fishnet.data.geometry`): half a pixel is added to the keypoints of the file, which are pixel indices.

    Attributes:
        file: Contents of the annotation file.
        folder: Folder of the images.
        transform: Function (sample, draw) -> sample, where draw() returns another untransformed sample to mix in; may
            be set. It draws from the global generators, which are seeded by (seed, epoch, index).
        mix_until: Epoch from which on draw is None, so that images are no longer mixed; may be set.
        masks, keypoints: Whether targets contain them; may be set.
        seed: Seed of all random draws; may be set.
        bad_images: Paths that this process could not read so far.
        notes: Notes for the user about the data set, one line each.
    """

    task = "detection"

    def __init__(self, file: CocoFile, folder: Path) -> None:
        super().__init__()
        self.file, self.folder = file, folder
        self.transform: Transform | None = None
        self.masks = self.keypoints = False
        self.mix_until: int | None = None
        self.notes: list[str] = []
        self.seed = 0

    @property
    def classes(self) -> list[str]:
        """Class names by class index."""
        return self.file.classes

    def __len__(self) -> int:
        return len(self.file)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.folder / self.file.file_names[index]

    def load(self, index: int) -> Image.Image:
        """Return one image as RGB in the size that its annotations refer to.

        Raises:
            BadImageError: The image is missing, damaged or has another size.
        """
        path = self.path(index)
        image = read_image(path)
        wanted = int(self.file.widths[index]), int(self.file.heights[index])
        if image.size != wanted and image.size == wanted[::-1]:
            # photos are often annotated on the stored pixels, without the EXIF orientation
            image = read_image(path, upright=False)
        if image.size != wanted:
            stated = f"{wanted[0]}x{wanted[1]}"
            raise bad_image(
                str(path), f"it has {image.width}x{image.height} pixels, but {self.file.path} states {stated}"
            )
        return image

    def sample(self, index: int) -> geometry.Sample:
        """Read an image and return it with its target, before the transform; bad images are not replaced."""
        image = self.load(index)
        file, objects, size = self.file, self.file.objects(index), (image.height, image.width)
        target = boxed(file.boxes[objects], file.class_of[objects], file.crowd[objects], size)
        objects = objects[~file.crowd[objects]]
        if self.masks:
            target["masks"] = tv_tensors.Mask(self._masks(objects, size))
            target["outlined"] = torch.from_numpy(self.file.outlines.kind[objects] != NONE)
        if self.keypoints and self.file.keypoints is not None:
            places, visibility = continuous_keypoints(torch.from_numpy(self.file.keypoints[objects]), size)
            target["keypoints"] = tv_tensors.KeyPoints(places, canvas_size=size)
            target["keypoints" + VISIBILITY] = visibility
        if (listed := self.file.annotated.get(index)) is not None:
            target["annotated"] = annotated_classes(listed, len(self.classes))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {"image": tv_tensors.Image(pixels), "target": target, "size": size, "index": index}

    def _masks(self, objects: np.ndarray, size: tuple[int, int]) -> Tensor:
        return decode([self.file.mask(int(index)) for index in objects], *size)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        index = number % len(self)  # a repeated sample has its own number, and therefore its own augmentation
        sample, place = self.load_good(index, len(self), self.sample, self.path)
        if self.transform is not None:
            with sample_seed(self.seed, epoch, number):
                mixes = self.mix_until is None or epoch < self.mix_until
                sample = self.transform(sample, self._draw if mixes else None)
        # 63 bits: torch's generators accept no larger seed
        sample["target"]["seed"] = torch.tensor(sample_words(self.seed, epoch, number)[2] >> 1)
        bad = "" if place == index else str(self.path(index))
        return Sample(image=sample["image"], target=sample["target"], size=sample["size"], index=index, bad=bad)

    def _draw(self) -> geometry.Sample:
        """Return another sample, chosen by torch's global generator, which is seeded for the current sample."""
        chosen = int(torch.randint(len(self), ()))
        return self.load_good(chosen, len(self), self.sample, self.path)[0]


def boxed(boxes: np.ndarray, classes: np.ndarray, crowd: np.ndarray, size: Size) -> dict[str, Tensor]:
    """Return `boxes` and `labels` of the objects of an image as targets have them, and of crowds, if there are any,
    `crowds` and `crowd_labels`; boxes are float32 corners inside of the image.

    Args:
        boxes: x, y, width, height in pixels (N, 4).
        classes: Class indices (N,).
        crowd: Whether an object is a crowd, bool (N,).
        size: Height and width of the image.
    """
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    places = torch.from_numpy(corners).float().reshape(-1, 4)
    places[:, 0::2].clamp_(0, size[1])
    places[:, 1::2].clamp_(0, size[0])
    found: dict[str, Tensor] = {}
    for chosen, name, label in ((~crowd, "boxes", "labels"), (crowd, "crowds", "crowd_labels")):
        if chosen.any() or name == "boxes":
            found[name] = tv_tensors.BoundingBoxes(places[chosen], format="XYXY", canvas_size=size)
            found[label] = torch.from_numpy(classes[chosen])
    return found


def annotated_classes(listed: Sequence[int], classes: int) -> Tensor:
    """Return which classes were annotated in an image, bool (classes,), from their indices."""
    known = torch.zeros(classes, dtype=torch.bool)
    known[list(listed)] = True
    return known


def continuous_keypoints(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Convert COCO keypoints (N, K, 3) to continuous x, y (N, K, 2) and visibility (N, K).

    COCO's keypoints are pixel indices, while its boxes and polygons are continuous (Detectron2 reads them in the same
    way). Keypoints up to one pixel outside the image (height, width) are moved to its border, others become absent.
    """
    places = points[..., :2] + PIXEL_CENTER
    border = torch.tensor([size[1], size[0]], dtype=places.dtype)
    near = ((places >= -1) & (places <= border + 1)).all(-1)
    return torch.minimum(places.clamp(min=0), border), points[..., 2] * near


def coco_keypoints(places: Tensor, visibility: Tensor) -> Tensor:
    """Return keypoints (N, K, 3) for torchvision's detectors: continuous x, y and visibility, zeros if absent."""
    points = torch.cat([places, visibility[..., None]], dim=-1)
    return torch.where(visibility[..., None] > 0, points, 0.0)


def open_detection(
    root: Path | str,
    split: str,
    *,
    classes: list[str] | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
) -> DetectionDataset:
    """Open one split of a COCO folder; reads the annotation file, no images.

    Args:
        root: Data folder, with annotations/instances_<split>.json and the images in one of the places of
            `fishnet.data.folders.image_folder`.
        split: Name of the split; `train` also finds `train2017`.
        classes: Class names that the split must have, from the training split or a model; None accepts any.
        bad_images: "stop" raises an error for unusable objects and images, here or on access; "skip" leaves them
            out. Objects whose box has no area are always excluded, and counted in the notes of the data set.

    Raises:
        FishnetError: Folder, split or images are missing, or the annotation file is damaged or has unusable entries.
    """
    root = Path(root)
    path = annotation_file(root, split)
    document = load_document(path)
    file = parse_coco(annotated_only(document), path)
    if not len(file):
        why = f": the objects of all {len(document['images'])} are unlabeled" if document["images"] else ""
        raise FishnetError(f"{path} lists no images{why}")
    folder = image_folder(root, path.stem.removeprefix("instances_"), file.file_names)
    faults = missing_files(file, folder)
    if len(faults) == len(file):
        raise FishnetError(no_images(file, root, path.stem.removeprefix("instances_")))
    problems = file.problems + faults
    if problems and bad_images == "stop":
        raise FishnetError(
            f"{path} has {counted(len(problems), 'problem')}: {summarize(problems)}. `fishnet data check detection "
            f"{quoted(root)} --fix OUT.json` repairs what can be repaired; --bad-images skip excludes the rest"
        )
    if classes is not None and classes != file.classes:
        missing, extra = sorted(set(classes) - set(file.classes)), sorted(set(file.classes) - set(classes))
        raise FishnetError(
            f"the categories of {path} differ from those of the training split or model: missing "
            f"{', '.join(missing[:10]) or 'none'}, unknown {', '.join(extra[:10]) or 'none'}"
            + ("" if missing or extra else "; the names are equal, but in another order of ids")
        )
    dataset = DetectionDataset(file, folder)
    dataset.notes += unusual_folder(root, folder)
    if file.left_out:
        shown = ", ".join([*(str(fault.number) for fault in file.left_out[:5]), *["..."][: len(file.left_out) > 5]])
        note = f"{path}: excluded {len(file.left_out)} objects whose box has no area (annotations {shown})"
        dataset.notes.append(note)
    if partly := sum(len(listed) < len(file.classes) for listed in file.annotated.values()):
        note = f"{path}: {counted(partly, 'image')} annotated for some categories only; the others are ignored there"
        dataset.notes.append(note)
    dataset.skip_bad = bad_images == "skip"
    return dataset


def missing_files(file: CocoFile, folder: Path) -> list[Fault]:
    """Return a fault for each image whose file does not exist."""
    present: dict[Path, set[str]] = {}
    problems = []
    for name in file.file_names:
        path = folder / name
        if path.parent not in present:
            present[path.parent] = _names(path.parent)
        if path.name not in present[path.parent]:
            problems.append(Fault("missing image file", str(path), MISSING))
    return problems


def no_images(file: CocoFile, root: Path, split: str) -> str:
    """Return in words that no image of an annotation file exists, with the place of the first if it is elsewhere."""
    places = ", ".join(f"{folder}/" for folder in image_places(root, split))
    name = file.file_names[0]
    found = next((path for path in all_files(root) if path.name == _NAME.split(name)[-1]), None)
    advice = f"add the images to {root / split}"
    if found is not None:
        advice = f"{found} exists: move its folder to one of these, or correct `file_name` to be the path below it"
    return f"none of the {counted(len(file), 'image')} of {file.path} exists in {places}, such as {name!r}; {advice}"


def unusual_folder(root: Path, folder: Path) -> list[str]:
    """Return a note about the folder of the images of a split if it is below DIR/images."""
    return [f"images are read from {folder}"] if folder.is_relative_to(root / "images") else []


def _names(folder: Path) -> set[str]:
    """Return the names in a folder; an empty set if the folder does not exist or its name is too long."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return set()
        raise FishnetError(f"cannot list the images in {folder} ({error.strerror or error})") from error


def collate(samples: list[Sample]) -> Batch:
    """Combine samples into a batch; images and targets stay in lists, since their sizes differ."""
    return {
        "image": [plain(sample["image"]) for sample in samples],
        "target": [_plain_target(sample["target"]) for sample in samples],
        "size": [sample["size"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "bad": [sample["bad"] for sample in samples],
    }


def _plain_target(target: SampleTarget) -> Target:
    """Return a target as plain tensors, with keypoints and visibility in one tensor (N, K, 3)."""
    found = Target(boxes=plain(target["boxes"]), labels=plain(target["labels"]), seed=target["seed"])
    if "annotated" in target:
        found["annotated"] = target["annotated"]
    if "crowds" in target:
        found["crowds"], found["crowd_labels"] = plain(target["crowds"]), target["crowd_labels"]
    if "masks" in target:
        found["masks"] = plain(target["masks"])
    if "outlined" in target:
        found["outlined"] = target["outlined"]
    if "keypoints" in target:
        found["keypoints"] = coco_keypoints(plain(target["keypoints"]), target["keypoints_visibility"])
    return found
