"""Training of multitask networks: data with partial labels, one network, weighted losses."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from PIL import Image
from torch import Tensor

from fishnet.cards import HeadCard, ModelCard
from fishnet.data.levels import IGNORE, LEVELS, Level
from fishnet.data.multitask.dataset import MultitaskDataset
from fishnet.data.multitask.layout import MultitaskSplit, open_multitask
from fishnet.data.multitask.stuff import decide_stuff, shared_by_name
from fishnet.data.multitask.transforms import train_pipeline
from fishnet.data.quotas import Quotas
from fishnet.environment import announce
from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.files import Json
from fishnet.models.build import Architecture
from fishnet.models.heads.detectors import WITH_MASKS, RegionPlan
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.heads.pixel import PixelPlan, check_pixel_plan
from fishnet.models.heads.types import HeadPlan
from fishnet.models.network import Network
from fishnet.tasks.base import Batch, TrainOrder
from fishnet.tasks.detection.training import check_outlines, decide_detector
from fishnet.tasks.multitask.options import MultitaskConfig
from fishnet.tasks.multitask.task import STUFF, MultitaskTask
from fishnet.tasks.segmentation.options import pixel_plan
from fishnet.tasks.segmentation.task import CODING
from fishnet.tasks.segmentation.training import class_weights


class MultitaskTraining:
    """Training of one trunk with a head per level, on images that are labeled for any of the levels.

    Args:
        config: Settings of the run; levels and detector default to those that fit the data.

    Raises:
        FishnetError: `config.data` is not a data set for this task, or a level has no labels.
        UsageError: Invalid settings.
    """

    def __init__(self, config: MultitaskConfig) -> None:
        train = open_multitask(config.data, "train", bad_images=config.bad_images)
        val = open_multitask(config.data, "val", classes=train.classes, bad_images=config.bad_images)
        for note in dict.fromkeys([*train.notes, *val.notes]):
            announce(note)
        config = _decide_levels(config, train)
        for split in (train, val):
            split.require(config.levels)
        self.classes = train.classes
        self.config = config = _decide_detector(config, train, val)
        self._check()
        self._stuff = self._decide_stuff(train)
        self.train_data = MultitaskDataset(train.having(config.levels), config.levels, config.bad_images)
        self.val_data = MultitaskDataset(val.having(config.levels), config.levels, config.bad_images)
        self.train_data.seed = config.seed
        self.train_data.transform = train_pipeline(config.augment, config.size, config.longest)
        self.val_data.size = config.size, config.longest
        self.train_data.masks = config.detector in WITH_MASKS

    def _check(self) -> None:
        config, classes = self.config, self.classes
        if "image" in config.levels and len(classes.image) < 2:
            raise FishnetError(f"the image level has only one class ({classes.image[0]}); leave it out with --levels")
        if "pixel" in config.levels:
            if classes.ignore_index != IGNORE:
                raise FishnetError(f"label maps have {len(classes.pixel)} classes; at most {IGNORE} are possible here")
            check_pixel_plan(pixel_plan(config.pixel, classes.pixel, classes.ignore_index, None))
        for name in config.stuff:
            if name not in classes.pixel:
                near = did_you_mean(name, classes.pixel)
                raise UsageError(f"stuff: label maps have no class {name!r}.{near} Classes: {', '.join(classes.pixel)}")

    def _decide_stuff(self, train: MultitaskSplit) -> list[str]:
        """Return the classes that are stuff in panoptic maps; print them if the network predicts such maps."""
        config, pixel = self.config, self.classes.pixel
        if config.detector not in WITH_MASKS or not {"region", "pixel"} <= set(config.levels):
            same = shared_by_name(pixel, self.classes.region if "region" in config.levels else [])
            return config.stuff or [name for name in pixel if name not in same]
        found = decide_stuff(train, config.stuff)
        announce(found.describe(pixel))
        return found.names

    @cached_property
    def task(self) -> MultitaskTask:
        """Evaluation and prediction with the network."""
        return MultitaskTask(self.card())

    def train_order(self) -> TrainOrder:
        """Return the minimum fraction of labeled images per level in a step."""
        levels = [LEVELS.index(level) for level in self.config.levels]
        known = self.train_data.split.known[:, levels]
        return {"quotas": Quotas(known, np.full(len(levels), self.config.quota))}

    @cached_property
    def _pixel_plan(self) -> PixelPlan:
        config, split = self.config, self.train_data.split
        if config.pixel.class_weights != "none" and len(split.pixels) > 1:
            raise UsageError("pixel.class_weights needs label maps of one folder; choose none")
        weights = class_weights(config.pixel, split.pixels[0], config.workers)
        return pixel_plan(config.pixel, self.classes.pixel, self.classes.ignore_index, weights)

    def _plan(self, level: Level) -> HeadPlan:
        config, classes = self.config, self.classes
        if level == "image":
            return ClassifierPlan(num_classes=len(classes.image), label_smoothing=config.label_smoothing)
        if level == "pixel":
            return self._pixel_plan
        sizes = {name: value for name, value in vars(config.heads).items() if name != "preset" and value is not None}
        return RegionPlan(
            kind=config.detector,
            num_classes=len(classes.region),
            neck=config.pyramid.neck,
            norm_relu=config.pyramid.norm_relu,
            preset=config.heads.preset,
            sizes=sizes,
        )

    def architecture(self) -> Architecture:
        """Return the architecture that the network is built from."""
        config = self.config
        return Architecture(
            config.model,
            {level: self._plan(level) for level in config.levels},
            dict(config.model_option),
            taps=config.pyramid.taps,
            group_norm=config.norm == "group",
            uncertainty=config.weighting == "uncertainty",
        )

    def card(self) -> ModelCard:
        """Return the model card, which evaluation and prediction are made from."""
        config, split = self.config, self.train_data.split
        details: dict[Level, Json] = {"image": {}, "region": {}, "pixel": {}}
        if split.regions:
            details["region"] = {"category_ids": split.regions[0].file.category_ids.tolist(), "keypoint_names": []}
        if split.pixels:
            details["pixel"] = {CODING: split.pixels[0].coding.to_dict()}
        return ModelCard(
            task="multitask",
            architecture=self.architecture(),
            heads={level: HeadCard(list(self.classes.of(level)), details[level]) for level in config.levels},
            size=config.size,
            preprocess=config.preprocess,
            precision=config.precision,
            details={"longest": config.longest, STUFF: self._stuff},
        )

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Return the weighted losses of a batch by name, prefixed by the level if there are several.

        Args:
            network: Network in training mode.
            batch: What `collate` returns, on the device of the network.
            epoch: Index of the epoch, from 0.
        """
        levels = self.config.levels
        targets: dict[str, object] = {level: [target.get(level) for target in batch["target"]] for level in levels}
        losses = network(batch["image"], targets)
        if len(levels) == 1:
            return losses
        return {name: value * self._weight(name) for name, value in losses.items()}

    def _weight(self, loss: str) -> float:
        return self.config.loss_weights.of(loss.partition("_")[0]) if not loss.endswith("log_variance") else 1.0

    def draw_batch(self, batch: Batch) -> Image.Image:
        """Return a picture of an augmented training batch with its labels of all levels."""
        from fishnet.tasks.multitask.pictures import LabeledImage, LevelColors, level_sheet, of_target

        items = []
        for image, target in zip(batch["image"], batch["target"], strict=True):
            picture = Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())
            items.append(LabeledImage(picture, of_target(target), ""))
        return level_sheet(items, LevelColors(self.classes))

    def fingerprint(self) -> Json:
        """Return counts and a hash of the labels of both splits."""
        return {"train": self.train_data.fingerprint(), "val": self.val_data.fingerprint()}


def _decide_levels(config: MultitaskConfig, split: MultitaskSplit) -> MultitaskConfig:
    """Return the settings with the levels in order; by default those that the data has labels for."""
    known = set(np.flatnonzero(split.known.any(0)).tolist())
    if config.levels:
        return replace(config, levels=[level for level in LEVELS if level in config.levels])
    found: list[Level] = [level for place, level in enumerate(LEVELS) if place in known]
    counts = [f"{level} {int(split.known[:, LEVELS.index(level)].sum()):,}" for level in found]
    announce(f"levels: {', '.join(counts)} of {len(split):,} images")
    return replace(config, levels=found)


def _decide_detector(config: MultitaskConfig, train: MultitaskSplit, val: MultitaskSplit) -> MultitaskConfig:
    """Return the settings with the detector selected from the data if it is `auto`."""
    if "region" not in config.levels:
        return config
    if config.detector == "keypoint_rcnn":
        raise UsageError("detector: keypoints are not a level of this task; train them with the task detection")
    if not sum(int((~data.file.crowd).sum()) for data in train.regions):
        raise FishnetError(f"{train.regions[0].file.path} has no objects to train on: no annotations, or only crowds")
    if len(val.regions) > 1:
        named = ", ".join(str(data.file.path) for data in val.regions)
        raise FishnetError(f"objects are evaluated against one file, but val has {named}; put them into one COCO file")
    outlined = max(train.regions, key=lambda data: len(data.file.boxes))
    detector = decide_detector(config.detector, outlined.file)
    if detector in WITH_MASKS:
        check_outlines(detector, [data.file for data in train.regions])
    return config if detector == config.detector else replace(config, detector=detector)
