"""Evaluation and prediction of classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.cards import HeadCard, ModelCard
from fishnet.config import PreprocessConfig
from fishnet.data.classification.dataset import ClassificationDataset, open_classification
from fishnet.data.classification.transforms import eval_transform
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.heads.types import Answers
from fishnet.models.network import Images
from fishnet.tasks.base import Answer, BadImages, Batch, Entry, Runtime
from fishnet.tasks.classification.evaluator import (
    DISPLAY,
    ClassificationEvaluator,
    Evaluation,
    good_items,
    metric_names,
)
from fishnet.tasks.classification.options import ClassificationOptions
from fishnet.tasks.classification.painter import Sheets
from fishnet.tasks.tables import class_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = "image"
"""Name of the classification head."""


def is_multi_label(card: ModelCard) -> bool:
    """Whether a classifier predicts any number of classes per image."""
    return bool(card.architecture.heads[HEAD].multi_label)


def square_preprocessing(card: ModelCard) -> Json:
    """Return the square crop of a classifier, for exported networks."""
    how = crop_of(card)
    return {"kind": "square", "size": card.size, "crop_pct": how.crop_pct, "interpolation": how.interpolation}


def crop_of(card: ModelCard) -> PreprocessConfig:
    """Return the crop that a card describes; raises FishnetError if there is none."""
    if not isinstance(card.preprocess, PreprocessConfig):
        raise FishnetError(f"the card of {card.model} does not describe the crop of its images; write it again")
    return card.preprocess


class ClassificationTask:
    """Image classification, with one class or several per image.

    Args:
        card: Card of the classifier.
        options: Prediction options.
    """

    collate = None

    def __init__(self, card: ModelCard, options: ClassificationOptions | None = None) -> None:
        channels = card.architecture.in_chans
        if channels != 3:
            raise FishnetError(f"{card.model} takes images of {channels} channels; fishnet reads images as RGB")
        self.card, self.options = card, options or ClassificationOptions()
        self.head: HeadCard = card.heads[HEAD]
        self._transform = eval_transform(crop_of(card), card.size)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the outputs."""
        return self.head.classes

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that an evaluation computes."""
        return metric_names(len(self.classes), self.multi_label)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return is_multi_label(self.card)

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> ClassificationDataset:
        """Return a split with the preprocessing of the model; class indices are those of the model's outputs.

        A model without class names accepts data with the same number of classes; metrics then use the names of the
        data.

        Raises:
            FishnetError: The split does not exist, or its classes differ from those of the model.
        """
        if self.head.details.get("unnamed_classes"):
            dataset = open_classification(root, split, bad_images=bad_images)
            if len(dataset.classes) != len(self.classes):
                raise FishnetError(
                    f"{root} has {len(dataset.classes)} classes, but the model has {len(self.classes)} classes"
                )
        else:
            dataset = open_classification(root, split, classes=self.classes, bad_images=bad_images)
        if dataset.multi_label != self.multi_label:
            kinds = ("one label", "several labels")
            ours, theirs = kinds[dataset.multi_label], kinds[self.multi_label]
            raise FishnetError(f"{root} has {ours} per image, the model {theirs}")
        dataset.transform = self._transform
        return dataset

    def evaluator(self, dataset: ClassificationDataset, device: torch.device) -> ClassificationEvaluator:
        """Return a new evaluator."""
        return ClassificationEvaluator(dataset.classes, self.multi_label, device=device)

    def network_inputs(self, batch: Batch) -> Tensor:
        """Return the readable images of a batch, (N, 3, H, W)."""
        images: Tensor = good_items(batch)["image"]
        return images

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the predictions for the images of a batch."""
        return runtime(images)

    def update(self, evaluator: ClassificationEvaluator, answers: Answers, batch: Batch) -> None:
        """Pass the logits of a batch and its targets to the evaluator."""
        logits = torch.stack(answers[HEAD]).float()
        evaluator.update(logits, good_items(batch)["target"].to(logits.device))

    def describe(self, evaluation: Evaluation) -> list[str]:
        """Return the metrics, then a row per class (the worst 20 if there are more)."""
        lines = []
        for name, value in evaluation.metrics.items():
            lines.append(f"  {DISPLAY.title(name):<20}{DISPLAY.text(name, value):>9}")
        rows = evaluation.per_class
        measure = "ap" if rows and "ap" in rows[0] else "recall"
        names = ["images", "correct", "recall", "precision", "f1"] + (["ap"] if measure == "ap" else [])
        return lines + class_table(rows, names, measure, "images")

    def pictures(self, evaluation: Evaluation) -> Mapping[str, Figure]:
        """Return the confusion matrix, if there is one."""
        if evaluation.confusion is None:
            return {}
        from fishnet.drawing.confusion import draw_confusion

        return {"confusion": draw_confusion(evaluation.confusion, [row["class"] for row in evaluation.per_class])}

    def documents(self, evaluator: ClassificationEvaluator) -> Mapping[str, object]:
        """Return no further documents."""
        return {}

    def transform(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input: normalized, float (3, size, size); the network takes a batch."""
        return self._transform(image)

    @property
    def about(self) -> Json:
        """Description of the entries of results.json: nothing to add, since scores are probabilities."""
        return {}

    def prepare(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input; see `transform`."""
        return self.transform(image)

    def answer(self, runtime: Runtime, prepared: Sequence[Tensor]) -> list[Answer]:
        """Return `labels`, `scores` and `indices` per image, sorted by score.

        Raises:
            FishnetError: The outputs of the model are NaN or infinite.
        """
        logits = torch.stack(list(runtime(torch.stack(list(prepared)))[HEAD])).float().cpu()
        if not torch.isfinite(logits).all():
            raise FishnetError("the model gave NaN or infinite outputs: its weights are damaged")
        return list(self.answers_of(logits))

    def answers_of(self, logits: Tensor) -> Iterator[Answer]:
        """Yield the prediction for each image from logits (N, classes) on the CPU."""
        scores = logits.sigmoid() if self.multi_label else logits.softmax(1)
        order = logits.argsort(dim=1, descending=True, stable=True)
        most, least = (None, self.options.threshold) if self.multi_label else (self.options.top, -1.0)
        for row, ranked in zip(scores, order[:, :most], strict=True):
            indices = [index for index in ranked.tolist() if row[index] > least]
            yield {
                "labels": [self.classes[index] for index in indices],
                "scores": [float(row[index]) for index in indices],
                "indices": indices,
            }

    def entry(self, answer: Answer) -> Entry:
        """Return `predictions`: label, index and score of each predicted class."""
        triples = zip(answer["labels"], answer["indices"], answer["scores"], strict=True)
        return {"predictions": [{"label": n, "index": i, "score": round(s, 6)} for n, i, s in triples]}

    def headline(self, entry: Entry) -> str:
        """Return the three best classes."""
        best = ", ".join(f"{p['label']} {100 * p['score']:.1f} %" for p in entry["predictions"][:3])
        return best or "no class above the threshold"

    def painter(self, out: Path, images: int) -> Sheets:
        """Return a painter that draws contact sheets."""
        return Sheets(out, images)

    def draw_examples(self, runtime: Runtime, dataset: ClassificationDataset, count: int = 24) -> Image.Image:
        """Return a contact sheet of predictions and ground truth for evenly spaced images of a data set."""
        from fishnet.drawing.sheets import Card, contact_sheet

        best = ClassificationTask(self.card, ClassificationOptions(threshold=0.0))
        entries: list[Card] = []
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
            item = dataset[index]
            if item["bad"]:
                continue
            (answer,) = best.answer(runtime, [item["image"]])
            hot = torch.nonzero(item["target"]).flatten().tolist() if self.multi_label else [int(item["target"])]
            entries.append(
                {
                    "image": dataset.load(index),
                    "title": dataset.samples[index].name,
                    "lines": list(zip(answer["labels"], answer["scores"], strict=True))[:5],
                    "target": [self.classes[label] for label in hot],
                }
            )
        return contact_sheet(entries)
