"""Image level: one label, or several, for a whole image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from fishnet.cards import HeadCard, ModelCard
from fishnet.config import TrainConfig
from fishnet.data.classification.dataset import ClassificationDataset, open_classification
from fishnet.data.classification.transforms import eval_transform, train_transform
from fishnet.errors import FishnetError
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network
from fishnet.tasks.classification.evaluator import ClassificationEvaluator
from fishnet.tasks.classification.task import HEAD, judge_batch


def grown_size(config: TrainConfig, epoch: int) -> int:
    """Return the side of an epoch's training images: from `augment.grow_from` up to `size`, in steps of 4 pixels.

    Small images first cost a fraction of the time (progressive resizing, as in arXiv 2104.00298).
    """
    start, share = config.augment.grow_from, config.augment.grow_share
    if start is None or start >= config.size:
        return config.size
    grown = start + (config.size - start) * min(1.0, epoch / max(1e-9, share * config.epochs))
    return min(config.size, 4 * round(grown / 4))


class ClassificationTask:
    """Classification of image folders, multi-label lists, shards and multitask folders.

    Args:
        config: Settings of the run; `config.data` is opened at once and problems are raised here.
    """

    name = "classification"
    collate = None

    def __init__(self, config: TrainConfig):
        self.config = config
        root = Path(config.data)
        self.train_data = self._open(root, "train")
        self.val_data = self._open(root, "val", self.train_data.classes)
        self.classes, self.multi_label = self.train_data.classes, self.train_data.multi_label
        if len(self.classes) < 2 and not self.multi_label:
            raise FishnetError(f"{root} has one class only ({self.classes[0]}); there is nothing to tell apart")
        self.train_data.transform = train_transform(config.augment, config.preprocess, config.size)
        self.val_data.transform = eval_transform(config.preprocess, config.size)
        self.train_data.seed = config.seed
        self.train_data.keep, self.val_data.keep = config.cache, config.cache
        self._mixers = self._build_mixers()

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

        These are one per image, that of its class; with several labels per image, one per image and class.
        """
        counts = np.maximum(self.train_data.class_counts(), 1)
        weights = counts.sum() / (len(counts) * counts)
        if self.multi_label:
            weights /= weights.mean()
        return tuple(weights.astype(np.float32).tolist())

    def train_order(self) -> dict[str, Any]:
        """Return nothing: every image is shown once per epoch, in any order."""
        return {}

    def architecture(self) -> Architecture:
        """Return what builds the network."""
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

    def build_model(self) -> Network:
        """Return the network with `config.weights` loaded, if any; a classifier of another size stays fresh."""
        config = self.config
        torch.manual_seed(config.seed)
        return build_network(self.architecture(), config.weights, config.preprocess.mean, config.preprocess.std)

    def model_card(self) -> ModelCard:
        """Return what predicting and judging need to know of the network."""
        return ModelCard(
            task=self.name,
            architecture=self.architecture(),
            heads={HEAD: HeadCard(list(self.classes))},
            size=self.config.size,
            preprocess=self.config.preprocess,
            precision=self.config.precision,
        )

    def training_loss(self, model: nn.Module, batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
        """Return the mean `loss` of a batch: cross entropy, or binary cross entropy for several labels per image.

        Args:
            model: Network, in training mode.
            batch: `image` (N, 3, H, W) and `target` (N,) class indices or (N, classes) multi-hot.
            epoch: Number of this epoch from 0; mixing stops `augment.mix_off_epochs` before the end.
        """
        images, targets = self._mix(batch["image"], batch["target"], epoch)
        side = grown_size(self.config, epoch)
        if side != images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return model(images, {HEAD: targets})

    def _mix(self, images: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mix the batch with one of the mixers; draws from torch's global generator."""
        augment = self.config.augment
        off = epoch >= self.config.epochs - augment.mix_off_epochs
        if not self._mixers or off or torch.rand(()) >= augment.mix_probability:
            return images, targets
        mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        return mixer(images, targets)

    def evaluator(self, device: Any) -> ClassificationEvaluator:
        """Return a fresh evaluator for the validation split."""
        return ClassificationEvaluator(self.classes, self.multi_label, device=device)

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: ClassificationEvaluator) -> None:
        """Predict one batch and hand it to the evaluator; stand-ins for unreadable images are left out."""
        judge_batch(model, batch, evaluator)

    def draw_batch(self, batch: dict[str, Any]) -> Image.Image:
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

    def draw_predictions(self, model: nn.Module, device: torch.device, count: int = 24) -> Image.Image:
        """Return a contact sheet of the network's answers on validation images spread over the split."""
        from fishnet.drawing.sheets import contact_sheet

        entries = []
        for index in np.linspace(0, len(self.val_data) - 1, min(count, len(self.val_data))).astype(int).tolist():
            item = self.val_data[index]
            if item["bad"]:
                continue
            with torch.inference_mode():
                logits = model(item["image"][None].to(device))[HEAD][0]
            scores = logits.sigmoid() if self.multi_label else logits.softmax(0)
            best = scores.topk(min(5, len(self.classes)))
            lines = [(self.classes[i], s) for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
            hot = torch.nonzero(item["target"]).flatten().tolist() if self.multi_label else [int(item["target"])]
            truth = [self.classes[i] for i in hot]
            image = self.val_data.load(index)
            entries.append(
                {"image": image, "title": self.val_data.samples[index].name, "lines": lines, "target": truth}
            )
        return contact_sheet(entries)

    def fingerprint(self) -> dict[str, Any]:
        """Return counts and a hash of the names and labels of both splits."""
        prints: dict[str, Any] = {"classes": len(self.classes)}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            digest = hashlib.sha256()
            for sample in data.samples:
                digest.update(f"{sample.name}\0{sample.target}\n".encode())
            prints[split] = {"images": len(data), "sha256": digest.hexdigest()[:16]}
        return prints
