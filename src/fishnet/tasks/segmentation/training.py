"""Training of segmentation networks: data, network, losses."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fishnet.cards import HeadCard, ModelCard
from fishnet.data.segmentation.dataset import SegmentationDataset, open_segmentation
from fishnet.data.segmentation.transforms import eval_pipeline, train_pipeline
from fishnet.data.segmentation.weights import count_pixels, enet, median_frequency
from fishnet.environment import announce, is_main_process
from fishnet.files import Json
from fishnet.models.build import Architecture
from fishnet.models.heads.pixel import check_pixel_plan
from fishnet.models.network import Network
from fishnet.tasks.base import Batch, TrainOrder
from fishnet.tasks.segmentation.inference import HEAD
from fishnet.tasks.segmentation.options import PixelConfig, SegmentationConfig, pixel_plan
from fishnet.tasks.segmentation.task import CODING, SegmentationTask


def class_weights(config: PixelConfig, dataset: SegmentationDataset, workers: int) -> tuple[float, ...] | None:
    """Return the class weights that the settings request, computed from the pixels of all label maps of a data set.

    Args:
        config: Settings of the head.
        dataset: Training split.
        workers: Threads that read label maps.
    """
    if config.class_weights == "none":
        return None
    counts = count_pixels(dataset, workers, progress=is_main_process())
    found = median_frequency(counts) if config.class_weights == "median_frequency" else enet(counts)
    return tuple(found.astype(np.float32).tolist())


class SegmentationTraining:
    """Semantic segmentation of images with label maps.

    Args:
        config: Settings of the run.

    Raises:
        FishnetError: `config.data` is not a data set for segmentation.
        UsageError: Invalid settings of the losses or the augmentation.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        self.config = config
        self.train_data = self._open("train")
        self.val_data = self._open("val", self.train_data.classes)
        self.classes = self.train_data.classes
        self.train_data.seed = config.seed
        ignore_index = self.train_data.ignore_index
        check_pixel_plan(pixel_plan(config.pixel, self.classes, ignore_index, None))
        self.train_data.transform = train_pipeline(config.augment, config.size, ignore_index, config.longest)
        self.val_data.transform = eval_pipeline(config.size, config.longest)

    def _open(self, split: str, classes: list[str] | None = None) -> SegmentationDataset:
        config = self.config
        dataset = open_segmentation(Path(config.data), split, classes=classes, bad_images=config.bad_images)
        for note in dataset.notes:
            announce(note)
        return dataset

    @cached_property
    def task(self) -> SegmentationTask:
        """Evaluation and prediction with the network."""
        return SegmentationTask(self.card())

    @cached_property
    def _class_weights(self) -> tuple[float, ...] | None:
        return class_weights(self.config.pixel, self.train_data, self.config.workers)

    def train_order(self) -> TrainOrder:
        """Return an empty order: every image is shown once per epoch, in any order."""
        return {}

    def architecture(self) -> Architecture:
        """Return the architecture that the network is built from."""
        config = self.config
        plan = pixel_plan(config.pixel, self.classes, self.train_data.ignore_index, self._class_weights)
        options, group_norm = dict(config.model_option), config.norm == "group"
        return Architecture(config.model, {HEAD: plan}, options, taps=config.taps, group_norm=group_norm)

    def card(self) -> ModelCard:
        """Return the model card, which evaluation and prediction are made from."""
        config = self.config
        return ModelCard(
            task="segmentation",
            architecture=self.architecture(),
            heads={HEAD: HeadCard(list(self.classes), {CODING: self.train_data.coding.to_dict()})},
            size=config.size,
            preprocess=config.preprocess,
            precision=config.precision,
            details={"longest": config.longest},
        )

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Return the losses of a batch by name.

        Args:
            network: Network in training mode.
            batch: What `collate` returns, on the device of the network.
            epoch: Index of the epoch, from 0.
        """
        return network(batch["image"], {HEAD: [target["label_map"] for target in batch["target"]]})

    def draw_batch(self, batch: Batch) -> Image.Image:
        """Return a picture of an augmented training batch with its label maps, and their legend."""
        from fishnet.drawing.label_maps import background_of, class_colors, draw_label_map, with_legend
        from fishnet.drawing.regions import sheet

        colors, clear = class_colors(len(self.classes), self.train_data.coding.palette), background_of(self.classes)
        maps = [target["label_map"].cpu() for target in batch["target"]]
        tiles = []
        for image, label_map in zip(batch["image"], maps, strict=True):
            pixels = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
            tiles.append(draw_label_map(pixels, label_map, colors, clear=clear))
        return with_legend(sheet(tiles), maps, self.classes, colors, clear)

    def fingerprint(self) -> Json:
        """Return counts, and a hash of names, sizes and coding of the files of both splits."""
        return {"train": self.train_data.fingerprint(), "val": self.val_data.fingerprint()}
