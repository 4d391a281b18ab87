"""Judging and predicting at image level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.data.classification.dataset import ClassificationDataset, open_classification
from fishnet.data.classification.transforms import eval_transform
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.classification.evaluator import ClassificationEvaluator, Evaluation, good_items
from fishnet.tasks.levels import BadImages

HEAD = "image"
"""Name of the head that classifies."""
ROWS = 20
SHEET_IMAGES = 48
_SHEET_LINES = 5
_SHEETS = 20
_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_accuracy": "macro accuracy",
    "ece": "calibration error",
    "map": "mAP",
    "f1": "F1",
    "loss": "loss",
}


class ClassificationLevel:
    """One class, or several, for a whole image.

    Args:
        card: What the model file says of its network.
        top: Number of classes in a single-label answer.
        threshold: Smallest score in a multi-label answer.
    """

    OPTIONS = ("top", "threshold")
    collate = None

    def __init__(self, card: ModelCard, top: int = 5, threshold: float = 0.5) -> None:
        if top < 1:
            raise UsageError(f"--top {top}: at least one class must be asked for")
        if not 0 <= threshold <= 1:
            raise UsageError(f"--threshold {threshold} is not between 0 and 1")
        channels = card.architecture.in_chans
        if channels != 3:
            raise FishnetError(f"{card.model} takes images of {channels} channels; fishnet reads images as RGB")
        self.card, self.head, self.top, self.threshold = card, card.heads[HEAD], top, threshold
        self.multi_label = bool(card.architecture.heads[HEAD].multi_label)
        self.transform = eval_transform(card.preprocess, card.size)

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> ClassificationDataset:
        """Return a split whose targets are numbered as the model's outputs, with the model's preprocessing.

        A model whose class names are unknown takes those of the data, where their number fits; the card then gets them.

        Raises:
            FishnetError: where split or classes do not fit.
        """
        if self.head.details.get("unnamed_classes"):
            dataset = open_classification(root, split, bad_images=bad_images)
            if len(dataset.classes) != len(self.head.classes):
                raise FishnetError(f"{root} has {len(dataset.classes)} classes, the model {len(self.head.classes)}")
            self.head.classes, self.multi_label = list(dataset.classes), dataset.multi_label
        else:
            dataset = open_classification(root, split, classes=self.head.classes, bad_images=bad_images)
        if dataset.multi_label != self.multi_label:
            kinds = ("one label", "several labels")
            ours, theirs = kinds[dataset.multi_label], kinds[self.multi_label]
            raise FishnetError(f"{root} has {ours} per image, the model {theirs}")
        dataset.transform = self.transform
        return dataset

    def evaluator(self, dataset: ClassificationDataset, device: Any) -> ClassificationEvaluator:
        """Return a fresh evaluator."""
        return ClassificationEvaluator(self.head.classes, self.multi_label, device=device)

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: ClassificationEvaluator) -> None:
        """Predict one batch and hand it to the evaluator."""
        judge_batch(model, batch, evaluator)

    def describe(self, evaluation: Evaluation) -> list[str]:
        """Return the figures, then a row per class (of more than 20 the worst)."""
        lines = []
        for name, value in evaluation.metrics.items():
            shown = f"{value:8.4f}" if name in ("loss", "ece") else f"{100 * value:7.2f} %"
            lines.append(f"  {_TITLES.get(name, name):<18}{shown:>9}")
        rows = evaluation.per_class
        measure = "ap" if rows and "ap" in rows[0] else "recall"
        names = ["images", "correct", "recall", "precision", "f1"] + (["ap"] if measure == "ap" else [])
        return lines + class_table(rows, names, measure, "images")

    def pictures(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """Return the confusion matrix, where there is one."""
        if evaluation.confusion is None:
            return {}
        from fishnet.drawing.confusion import draw_confusion

        names = [row["class"] for row in evaluation.per_class]
        return {"confusion": draw_confusion(evaluation.confusion, names)}

    def documents(self, evaluator: ClassificationEvaluator) -> Mapping[str, Any]:
        """Return nothing: the figures are all there is."""
        return {}

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the input (C, H, W) of an RGB image."""
        return self.transform(image)

    def answer(self, model: nn.Module, prepared: list[Tensor]) -> list[dict[str, Any]]:
        """Return `labels`, `scores` and `indices` per image, the best first.

        Raises:
            FishnetError: The model gives no numbers.
        """
        device = next(model.parameters()).device
        inputs = torch.stack(prepared).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            logits = torch.stack(model(inputs)[HEAD]).float().cpu()
        if not torch.isfinite(logits).all():
            raise FishnetError("the model gave NaN or infinite outputs: its weights are damaged")
        return list(self._answers(logits))

    def _answers(self, logits: Tensor) -> Iterator[dict[str, Any]]:
        multi_label = self.multi_label
        scores = logits.sigmoid() if multi_label else logits.softmax(1)
        order = logits.argsort(dim=1, descending=True, stable=True)
        for row, ranked in zip(scores, order[:, : None if multi_label else self.top], strict=True):
            indices = [i for i in ranked.tolist() if not multi_label or row[i] > self.threshold]
            yield {
                "labels": [self.head.classes[i] for i in indices],
                "scores": [float(row[i]) for i in indices],
                "indices": indices,
            }

    def entry(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return `predictions`: label, index and score of each class named."""
        triples = zip(answer["labels"], answer["indices"], answer["scores"], strict=True)
        return {"predictions": [{"label": n, "index": i, "score": round(s, 6)} for n, i, s in triples]}

    def headline(self, entry: dict[str, Any]) -> str:
        """Return the three best classes."""
        best = ", ".join(f"{p['label']} {100 * p['score']:.1f} %" for p in entry["predictions"][:3])
        return best or "nothing above the threshold"

    def painter(self, out: Path, images: int) -> Sheets:
        """Return what draws contact sheets."""
        return Sheets(out, images)


def judge_batch(model: nn.Module, batch: dict[str, Any], evaluator: ClassificationEvaluator) -> None:
    """Predict one batch and hand it to the evaluator; stand-ins for unreadable images are left out."""
    batch = good_items(batch)
    if len(batch["target"]):
        evaluator.update(torch.stack(model(batch["image"])[HEAD]), batch["target"])


def class_table(rows: Sequence[dict[str, Any]], names: list[str], measure: str, weight: str) -> list[str]:
    """Return a table with a line per class; of more than 20 classes the worst by `measure`, of equal ones the largest.

    Args:
        rows: `class` and figures by name; None where the data cannot tell.
        names: Figures to show.
        measure: Figure that says which are the worst.
        weight: Figure that says how much a class weighs.
    """
    lines = []
    if len(rows) > ROWS:
        lines.append(f"the {ROWS} worst of {len(rows)} classes by {measure.replace('_', ' ')}:")
        judged = [row for row in rows if row.get(measure) is not None]
        rows = sorted(judged, key=lambda row: (row[measure], -row[weight]))[:ROWS]
    width = min(40, max(len("class"), *(len(row["class"]) for row in rows))) if rows else 5
    lines.append("  " + "class".ljust(width) + "".join(f"{name.replace('_', ' '):>11}" for name in names))
    for row in rows:
        cells = "".join(f"{_cell(row.get(name)):>11}" for name in names)
        lines.append("  " + row["class"][:width].ljust(width) + cells)
    return lines


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"


class Sheets:
    """Contact sheets, written page by page."""

    def __init__(self, out: Path, images: int) -> None:
        self.out, self.pages = out, min(_SHEETS, math.ceil(images / SHEET_IMAGES))
        self.cards: list[dict[str, Any]] = []
        self.written: list[Path] = []
        self.drawn = 0

    def wants(self, index: int) -> bool:
        """Whether the image of that number is drawn."""
        return index < _SHEETS * SHEET_IMAGES

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of a card."""
        image.thumbnail((320, 320))
        return image

    def add(self, item: dict[str, Any], answer: dict[str, Any]) -> None:
        """Put an image on the page; a full page is written."""
        if item["thumbnail"] is None:
            return
        self.drawn += 1
        lines = list(zip(answer["labels"], answer["scores"], strict=True))[:_SHEET_LINES]
        self.cards.append({"image": item["thumbnail"], "title": Path(item["file"]).name, "lines": lines})
        if len(self.cards) == SHEET_IMAGES:
            self._write()

    def finish(self) -> None:
        """Write the page that was begun, if any; remove pages of an earlier call."""
        self._write()
        for old in set(self.out.glob("contact_sheet*.png")) - set(self.written):
            old.unlink()

    def _write(self) -> None:
        from fishnet.drawing.sheets import contact_sheet
        from fishnet.files import atomic_path

        if not self.cards:
            return
        number = f"_{len(self.written) + 1:02d}" if self.pages > 1 else ""
        path = self.out / f"contact_sheet{number}.png"
        with atomic_path(path) as partial:
            contact_sheet(self.cards).save(partial)
        self.written.append(path)
        self.cards = []
