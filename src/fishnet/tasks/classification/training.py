"""Training of classifiers: data, augmentation of batches, loss."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from fishnet.cards import HeadCard, ModelCard
from fishnet.data.classification.dataset import ClassificationDataset, open_classification
from fishnet.data.classification.transforms import eval_transform, train_transform
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.build import Architecture
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network
from fishnet.tasks.base import Batch, TrainOrder
from fishnet.tasks.classification.options import ClassificationConfig
from fishnet.tasks.classification.task import HEAD, ClassificationTask


def grown_size(config: ClassificationConfig, epoch: int) -> int:
    """Return the size of an epoch's training images: from `augment.grow_from` up to `size`, in steps of 4 pixels.

    Starting with small images saves training time (progressive resizing, as in arXiv 2104.00298).
    """
    start, share = config.augment.grow_from, config.augment.grow_share
    if start is None or start >= config.size:
        return config.size
    grown = start + (config.size - start) * min(1.0, epoch / max(1e-9, share * config.epochs))
    return min(config.size, 4 * round(grown / 4))


class ClassificationTraining:
    """Classification of image folders, multi-label lists, shards and multitask folders.

    Args:
        config: Settings of the run.

    Raises:
        FishnetError: `config.data` is not a data set for classification.
    """

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        root = Path(config.data)
        self.train_data = self._open(root, "train")
        self.classes, self.multi_label = self.train_data.classes, self.train_data.multi_label
        if len(self.classes) < 2 and not self.multi_label:
            raise FishnetError(f"{root} has only one class ({self.classes[0]}); a classifier needs at least two")
        self.val_data = self._open(root, "val", self.classes)
        self.train_data.transform = train_transform(config.augment, config.preprocess, config.size)
        self.val_data.transform = eval_transform(config.preprocess, config.size)
        self.train_data.seed = config.seed
        self.train_data.keep, self.val_data.keep = config.cache, config.cache
        self._mixers = self._build_mixers()

    @cached_property
    def task(self) -> ClassificationTask:
        """Evaluation and prediction with the network."""
        return ClassificationTask(self.card())

    def _open(self, root: Path, split: str, classes: list[str] | None = None) -> ClassificationDataset:
        return open_classification(root, split, classes=classes, bad_images=self.config.bad_images)

    def _build_mixers(self) -> list[nn.Module]:
        augment, count = self.config.augment, len(self.classes)
        labels = {"num_classes": None if self.multi_label else count}
        mixers: list[nn.Module] = []
        if augment.mixup > 0:
            mixers.append(v2.MixUp(alpha=augment.mixup, **labels))
        if augment.cutmix > 0:
            mixers.append(v2.CutMix(alpha=augment.cutmix, **labels))
        return mixers

    def _class_weights(self) -> tuple[float, ...]:
        """Return the inverse frequency of each class, scaled to mean 1 over the terms of the loss.

        The loss has one term per image, or for multi-label data one per image and class.
        """
        counts = np.maximum(self.train_data.class_counts(), 1)
        weights = counts.sum() / (len(counts) * counts)
        if self.multi_label:
            weights /= weights.mean()
        return tuple(weights.astype(np.float32).tolist())

    def train_order(self) -> TrainOrder:
        """Return an empty order: every image is shown once per epoch, in any order."""
        return {}

    def architecture(self) -> Architecture:
        """Return the architecture that the network is built from."""
        config = self.config
        options = dict(config.model_option)
        if config.drop_rate:
            options.setdefault("drop_rate", config.drop_rate)
        plan = ClassifierPlan(
            num_classes=len(self.classes),
            multi_label=self.multi_label,
            label_smoothing=config.label_smoothing,
            class_weights=self._class_weights() if config.class_weights == "balanced" else None,
        )
        return Architecture(config.model, {HEAD: plan}, options, group_norm=config.norm == "group")

    def card(self) -> ModelCard:
        """Return the model card, which evaluation and prediction are made from."""
        config = self.config
        return ModelCard(
            task="classification",
            architecture=self.architecture(),
            heads={HEAD: HeadCard(list(self.classes))},
            size=config.size,
            preprocess=config.preprocess,
            precision=config.precision,
        )

    def losses(self, network: Network, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Return the mean `loss` of a batch: cross entropy, or binary cross entropy for multi-label data.

        Args:
            network: Network in training mode.
            batch: `image` (N, 3, H, W), and `target` (N,) class indices or (N, classes) multi-hot.
            epoch: Index of the epoch, from 0; mixing stops `augment.mix_off_epochs` before the end.
        """
        images, targets = self._mix(batch["image"], batch["target"], epoch)
        side = grown_size(self.config, epoch)
        if side != images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return network(images, {HEAD: targets})

    def _mix(self, images: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix the batch with one of the mixers; draws from torch's global generator."""
        augment = self.config.augment
        off = epoch >= self.config.epochs - augment.mix_off_epochs
        if not self._mixers or off or torch.rand(()) >= augment.mix_probability:
            return images, targets
        mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        return mixer(images, targets)

    def draw_batch(self, batch: Batch) -> Image.Image:
        """Return a picture of an augmented (and mixed) training batch with its labels."""
        from fishnet.drawing.sheets import draw_batch

        images, targets = self._mix(batch["image"], batch["target"], epoch=0)
        return draw_batch(images, [self._caption(target) for target in targets], self.config.preprocess)

    def _caption(self, target: Tensor) -> str:
        if target.ndim == 0:
            return self.classes[int(target)]
        shares = {self.classes[i]: float(target[i]) for i in torch.nonzero(target).flatten().tolist()}
        if self.multi_label:
            return ", ".join(shares) or "none"
        return " + ".join(f"{share:.0%} {name}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))

    def fingerprint(self) -> Json:
        """Return counts and a hash of the names and labels of both splits."""
        prints: Json = {"classes": len(self.classes)}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            digest = hashlib.sha256()
            for sample in data.samples:
                digest.update(f"{sample.name}\0{sample.target}\n".encode())
            prints[split] = {"images": len(data), "sha256": digest.hexdigest()[:16]}
        return prints
