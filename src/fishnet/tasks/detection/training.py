"""Training of detectors: data, network, losses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fishnet.cards import HeadCard, ModelCard
from fishnet.data.augmentation import eval_pipeline
from fishnet.data.detection.coco import CocoFile
from fishnet.data.detection.dataset import DetectionDataset, open_detection
from fishnet.data.detection.transforms import train_pipeline
from fishnet.data.mirroring import mirror_note
from fishnet.environment import announce
from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json
from fishnet.models.build import Architecture
from fishnet.models.heads.detectors import Detector, RegionPlan
from fishnet.models.network import Network
from fishnet.tasks.base import Batch, TrainOrder
from fishnet.tasks.detection.options import DetectionConfig, DetectorChoice
from fishnet.tasks.detection.task import HEAD, DetectionTask, evaluated_kinds


class DetectionTraining:
    """Detection and instance segmentation of COCO folders.

    Args:
        config: Settings of the run; the detector `auto` is selected from the data.

    Raises:
        FishnetError: `config.data` is not a data set for this detector.
    """

    def __init__(self, config: DetectionConfig) -> None:
        self.train_data = _open(config, "train")
        self.val_data = _open(config, "val", self.train_data.classes)
        self.classes = self.train_data.classes
        file = self.train_data.file
        if not len(file.boxes[~file.crowd]):
            raise FishnetError(f"{file.path} has no objects to train on: no annotations, or only crowds")
        self.config = config = replace(config, detector=decide_detector(config.detector, file))
        self.kinds = evaluated_kinds(config.detector)
        if "keypoint" in self.kinds and not file.keypoint_names:
            raise FishnetError(f"{file.path} has no keypoints in its categories; choose another --detector")
        if "mask" in self.kinds:
            check_outlines(config.detector, [file])
        if config.augment.copy_paste and not file.has_outlines:
            raise UsageError(f"augment.copy_paste: {file.path} has no objects with a segmentation to paste")
        note = mirror_note(file.keypoint_names) if "keypoint" in self.kinds and config.augment.flip else None
        if note:
            announce(note)
        self.train_data.seed = config.seed
        self.train_data.mix_until = config.epochs - config.augment.mix_off_epochs
        self.train_data.transform = train_pipeline(config.augment, config.size, config.longest, file.keypoint_names)
        self.val_data.transform = eval_pipeline(config.size, config.longest)
        self.train_data.masks = "mask" in self.kinds or config.augment.copy_paste > 0
        self.train_data.keypoints = "keypoint" in self.kinds

    @cached_property
    def task(self) -> DetectionTask:
        """Evaluation and prediction with the detector."""
        return DetectionTask(self.card())

    def train_order(self) -> TrainOrder:
        """Return the groups of wide and tall images, and the repeat factors of images with rare classes."""
        file, augment = self.train_data.file, self.config.augment
        order: TrainOrder = {}
        if augment.group_by_aspect and augment.scale_jitter is None:
            order["groups"] = (file.heights > file.widths).astype(np.int64)
        if augment.repeat_threshold > 0:
            order["repeats"] = repeat_factors(file, augment.repeat_threshold)
        return order

    def architecture(self) -> Architecture:
        """Return the architecture that the network is built from."""
        config = self.config
        sizes = {name: value for name, value in vars(config.heads).items() if name != "preset" and value is not None}
        plan = RegionPlan(
            kind=config.detector,
            num_classes=len(self.classes),
            neck=config.pyramid.neck,
            norm_relu=config.pyramid.norm_relu,
            preset=config.heads.preset,
            sizes=sizes,
            keypoints=len(self.train_data.file.keypoint_names),
        )
        options, group_norm = dict(config.model_option), config.norm == "group"
        return Architecture(config.model, {HEAD: plan}, options, taps=config.pyramid.taps, group_norm=group_norm)

    def card(self) -> ModelCard:
        """Return the model card, which evaluation and prediction are made from."""
        config, file = self.config, self.train_data.file
        details = {"category_ids": file.category_ids.tolist(), "keypoint_names": list(file.keypoint_names)}
        return ModelCard(
            task="detection",
            architecture=self.architecture(),
            heads={HEAD: HeadCard(list(self.classes), details)},
            size=config.size,
            preprocess=config.preprocess,
            precision=config.precision,
            details={"longest": config.longest},
        )

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Return the losses of a batch by name.

        Args:
            network: Detector in training mode.
            batch: What `collate` returns, on the device of the network.
            epoch: Index of the epoch, from 0.
        """
        return network(batch["image"], {HEAD: batch["target"]})

    def draw_batch(self, batch: Batch) -> Image.Image:
        """Return a picture of an augmented training batch with its boxes and masks."""
        from fishnet.drawing.regions import draw_regions, sheet

        tiles = []
        for image, target in zip(batch["image"], batch["target"], strict=True):
            tiles.append(draw_regions(image.cpu(), {k: v.cpu() for k, v in target.items()}, self.classes))
        return sheet(tiles)

    def fingerprint(self) -> Json:
        """Return counts and a hash of the annotations of both splits."""
        prints: Json = {"classes": len(self.classes)}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            file, digest = data.file, hashlib.sha256()
            digest.update("\n".join(file.file_names).encode())
            for array in (file.image_of, file.class_of, file.boxes, file.crowd):
                digest.update(np.ascontiguousarray(array).tobytes())
            prints[split] = {"images": len(file), "objects": len(file.boxes), "sha256": digest.hexdigest()[:16]}
        return prints


def _open(config: DetectionConfig, split: str, classes: list[str] | None = None) -> DetectionDataset:
    dataset = open_detection(Path(config.data), split, classes=classes, bad_images=config.bad_images)
    for note in dataset.notes:
        announce(note)
    return dataset


def decide_detector(detector: DetectorChoice, file: CocoFile) -> Detector:
    """Return the detector; if it is `auto`, select one from the data and print it with the reason.

    Args:
        detector: Detector of the settings.
        file: Annotations of the training split.
    """
    if detector != "auto":
        return detector
    objects = int((~file.crowd).sum())
    outlined = objects - file.without_outline
    if 2 * outlined > objects:
        announce(f"detector mask_rcnn: {outlined:,} of {objects:,} objects have outlines")
        return "mask_rcnn"
    announce(f"detector faster_rcnn: {objects - outlined:,} of {objects:,} objects have no outline")
    return "faster_rcnn"


def check_outlines(detector: str, files: Sequence[CocoFile]) -> None:
    """Check that objects have outlines to train masks on; print how many have none.

    Args:
        detector: Detector with masks.
        files: Annotations of the training split.

    Raises:
        FishnetError: No object has an outline.
    """
    if not any(file.has_outlines for file in files):
        raise FishnetError(
            f"{files[0].path} has no objects with a segmentation, which {detector} needs to train masks; use "
            f"--detector {'cascade_rcnn' if detector == 'cascade_mask_rcnn' else 'faster_rcnn'}"
        )
    if missing := sum(file.without_outline for file in files):
        announce(f"{missing:,} objects have no segmentation; they are excluded from mask training and mask evaluation")


def repeat_factors(file: CocoFile, threshold: float) -> np.ndarray:
    """Return the repeat factor of each image: the maximum over its classes of max(1, sqrt(threshold / frequency)).

    The frequency of a class is the fraction of images that contain it (Gupta et al., arXiv 1908.03195, section 5).
    """
    real = ~file.crowd
    pairs = np.unique(np.stack([file.image_of[real], file.class_of[real]]), axis=1)
    shares = np.bincount(pairs[1], minlength=len(file.classes)) / len(file)
    per_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(shares, 1e-12)))
    factors = np.ones(len(file))
    np.maximum.at(factors, pairs[0], per_class[pairs[1]])
    return factors
