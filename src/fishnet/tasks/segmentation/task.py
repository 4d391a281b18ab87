"""Evaluation and prediction of segmentation networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.cards import ModelCard
from fishnet.data.segmentation.coding import LabelCoding, parse_coding
from fishnet.data.segmentation.dataset import SegmentationDataset, collate, open_segmentation
from fishnet.data.segmentation.transforms import eval_pipeline, prepared
from fishnet.environment import announce
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.heads.types import Answers, Size
from fishnet.models.network import Images
from fishnet.tasks.base import Answer, BadImages, Batch, Entry, Runtime
from fishnet.tasks.segmentation.evaluator import METRICS, SegmentationEvaluation, SegmentationEvaluator
from fishnet.tasks.segmentation.inference import HEAD, decide, logits_of, predict_label_map
from fishnet.tasks.segmentation.options import SegmentationOptions
from fishnet.tasks.segmentation.painter import ANSWER, LabelMaps
from fishnet.tasks.tables import class_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 2048
"""Maximum of the longer side of an image in pixels if a card does not record it."""
CODING = "coding"
"""Entry of a head in a card: the encoding of classes in label files, in the format of classes.json."""
_LISTED = 5


class PreparedImage(NamedTuple):
    """An image prepared as network input."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    size: Size
    """Height and width of the original image."""


class SegmentationTask:
    """Semantic segmentation.

    Args:
        card: Card of the network.
        options: Prediction options.
    """

    collate = staticmethod(collate)

    def __init__(self, card: ModelCard, options: SegmentationOptions | None = None) -> None:
        self.card, self.options = card, options or SegmentationOptions()
        self.longest = int(card.details.get("longest", LONGEST))
        self.classes = card.heads[HEAD].classes

    @property
    def coding(self) -> LabelCoding:
        """Encoding of classes in label files: that of the training data."""
        described = self.card.heads[HEAD].details.get(CODING)
        return (
            LabelCoding(list(self.classes)) if described is None else parse_coding(described, "the card of the model")
        )

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that an evaluation computes."""
        return METRICS

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> SegmentationDataset:
        """Return a split with the classes of the model; images are resized for it, label maps are not."""
        dataset = open_segmentation(root, split, classes=self.classes, bad_images=bad_images)
        for note in dataset.notes:
            announce(note)
        dataset.transform = eval_pipeline(self.card.size, self.longest)
        return dataset

    def evaluator(self, dataset: SegmentationDataset, device: torch.device) -> SegmentationEvaluator:
        """Return a new evaluator for a split."""
        return SegmentationEvaluator(self.classes, dataset.ignore_index)

    def network_inputs(self, batch: Batch) -> list[Tensor]:
        """Return the readable images of a batch."""
        return [image for image, bad in zip(batch["image"], batch["bad"], strict=True) if not bad]

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the logits of images; with tiles or test-time augmentation, their label maps."""
        passes = self.options.passes(len(images))
        if passes.is_single:
            return runtime(images)
        sizes = [
            target["label_map"].shape for target, bad in zip(batch["target"], batch["bad"], strict=True) if not bad
        ]
        run = logits_of(runtime)
        return {HEAD: [predict_label_map(run, x, size, passes) for x, size in zip(images, sizes, strict=True)]}

    def update(self, evaluator: SegmentationEvaluator, answers: Answers, batch: Batch) -> None:
        """Compare the predictions for the images of a batch with their label maps, in the size of the label maps."""
        truths = [target["label_map"] for target, bad in zip(batch["target"], batch["bad"], strict=True) if not bad]
        for found, truth in zip(answers[HEAD], truths, strict=True):
            evaluator.update(decide(found, truth.shape) if found.ndim == 3 else found, truth)

    def describe(self, evaluation: SegmentationEvaluation) -> list[str]:
        """Return the metrics and a row per class (the worst 20 if there are more)."""
        lines = []
        for name, value in evaluation.metrics.items():
            lines.append(f"  {name.replace('_', ' '):<16}" + ("        -" if value < 0 else f"{100 * value:7.2f} %"))
        names = ["images", "iou", "boundary_iou", "accuracy", "precision"]
        return lines + class_table(evaluation.per_class, names, "iou", "pixels")

    def pictures(self, evaluation: SegmentationEvaluation) -> Mapping[str, Figure]:
        """Return the IoU per class and the confusion matrix."""
        from fishnet.tasks.segmentation.evaluator import draw_classes, draw_pixel_confusion

        figures = {"classes": draw_classes(evaluation.per_class)}
        if evaluation.confusion is not None:
            figures["confusion"] = draw_pixel_confusion(evaluation.confusion, self.classes)
        return figures

    def documents(self, evaluator: SegmentationEvaluator) -> Mapping[str, object]:
        """Return no further documents: the evaluation has the counts."""
        return {}

    def transform(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input, uint8 (3, H, W); the network takes a list of them."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return prepared(pixels, self.card.size, self.longest)

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Return an RGB image, resized for the model."""
        return PreparedImage(self.transform(image), (image.height, image.width))

    @property
    def about(self) -> Json:
        """Description of the entries of results.json."""
        return {"label_maps": "labels/<name of the image>.png, encoded as the training labels", CODING: self._coding}

    @property
    def _coding(self) -> Json:
        return self.coding.to_dict()

    def answer(self, runtime: Runtime, prepared: Sequence[PreparedImage]) -> list[Answer]:
        """Return the label maps of prepared images.

        Returns:
            Per image `label_map`, class indices (H, W) in the size of the image, and `labels`, `indices` and `shares`
            of the classes in it, sorted by `shares`, their fractions of the pixels.
        """
        passes = self.options.passes(len(prepared))
        if passes.is_single:
            logits = runtime([one.pixels for one in prepared])[HEAD]
            maps = [decide(found, one.size) for found, one in zip(logits, prepared, strict=True)]
        else:
            maps = [predict_label_map(logits_of(runtime), one.pixels, one.size, passes) for one in prepared]
        return [self._answer(found.cpu().numpy()) for found in maps]

    def _answer(self, label_map: np.ndarray) -> Answer:
        counts = np.bincount(label_map.ravel(), minlength=len(self.classes))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        return {
            ANSWER: label_map,
            "labels": [self.classes[index] for index in order],
            "indices": order,
            "shares": [float(counts[index] / label_map.size) for index in order],
        }

    def entry(self, answer: Answer) -> Entry:
        """Return `predictions`: label, index and share (fraction of the pixels) of every class in the image."""
        rows = zip(answer["labels"], answer["indices"], answer["shares"], strict=True)
        return {"predictions": [{"label": name, "index": index, "share": round(s, 6)} for name, index, s in rows]}

    def headline(self, entry: Entry) -> str:
        """Return the most frequent classes with their fractions of the pixels."""
        shown = entry["predictions"][:_LISTED]
        return ", ".join(f"{one['label']} {100 * one['share']:.0f} %" for one in shown)

    def painter(self, out: Path, images: int) -> LabelMaps:
        """Return a painter that writes an overlay and a label file per image."""
        return LabelMaps(out, self.classes, self.coding.palette, self.coding.encode)

    def draw_examples(self, runtime: Runtime, dataset: SegmentationDataset, count: int = 6) -> Image.Image:
        """Return evenly spaced images of a data set, each with its true and its predicted label map."""
        from fishnet.drawing.label_maps import background_of, class_colors, draw_row
        from fishnet.drawing.regions import sheet

        colors, clear = class_colors(len(self.classes), self.coding.palette), background_of(self.classes)
        rows: list[Image.Image] = []
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
            try:
                image, truth = dataset.load(index)
            except FishnetError:
                continue  # unusable files were already handled by the evaluation
            (found,) = self.answer(runtime, [self.prepare(image)])
            maps = [("truth", truth), ("prediction", found[ANSWER])]
            rows.append(draw_row(image, maps, self.classes, colors, 320, clear))
        return sheet(rows, columns=1)
