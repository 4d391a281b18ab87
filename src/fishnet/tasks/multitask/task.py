"""Evaluation and prediction of several levels in one forward pass.

The tasks of the single levels are reused: each receives the predictions of its head as if it had run the network.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.cards import ModelCard
from fishnet.config import PreprocessConfig
from fishnet.data.augmentation import resized
from fishnet.data.levels import LEVELS, ImageLabels, LevelClasses, ObjectLabels
from fishnet.data.multitask.dataset import MultitaskDataset, collate
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.multitask.stuff import shared_by_name
from fishnet.data.panoptic import Category, PanopticMap
from fishnet.environment import announce
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.heads.types import Answers
from fishnet.models.network import Images
from fishnet.tasks.base import Answer, BadImages, Batch, Entry, Runtime
from fishnet.tasks.classification.evaluator import ClassificationEvaluator
from fishnet.tasks.classification.task import ClassificationTask
from fishnet.tasks.detection.detections import Objects, as_objects, in_original_pixels
from fishnet.tasks.detection.options import DetectionOptions
from fishnet.tasks.detection.task import DetectionTask, Tile
from fishnet.tasks.detection.task import PreparedImage as PreparedTiles
from fishnet.tasks.multitask.evaluator import (
    DISPLAY,
    MEAN,
    MultitaskEvaluation,
    MultitaskEvaluator,
    averaged,
    metric_names,
)
from fishnet.tasks.multitask.options import MultitaskOptions
from fishnet.tasks.multitask.painter import LevelPictures
from fishnet.tasks.multitask.panoptic import METRICS as PANOPTIC_METRICS
from fishnet.tasks.multitask.panoptic import PanopticEvaluator, merge, true_map
from fishnet.tasks.segmentation.evaluator import SegmentationEvaluator
from fishnet.tasks.segmentation.inference import decide
from fishnet.tasks.segmentation.task import PreparedImage, SegmentationTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 1333
"""Maximum of the longer side of an image in pixels if a card does not record it."""
STUFF = "stuff"
"""Entry of a card: classes of label maps that are stuff in panoptic maps."""
_SINGLE = {"image": "classification", "region": "detection", "pixel": "segmentation"}


class _Precomputed:
    """Runtime that returns the predictions of a forward pass that has already been run."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def __call__(self, images: Images) -> Answers:
        return self.answers


class MultitaskTask:
    """Class, objects and label map of an image, for all heads of the network.

    Args:
        card: Card of the network.
        options: Prediction options.
    """

    collate = staticmethod(collate)

    def __init__(self, card: ModelCard, options: MultitaskOptions | None = None) -> None:
        self.card, self.options = card, options or MultitaskOptions()
        self.longest = int(card.details.get("longest", LONGEST))
        self.levels = [level for level in LEVELS if level in card.heads]
        own = {level: card.heads[level].classes if level in card.heads else [] for level in LEVELS}
        self.classes = LevelClasses(own["image"], own["region"], own["pixel"])
        self.image = ClassificationTask(self._card("image"), self.options.image) if own["image"] else None
        self.region = DetectionTask(self._card("region"), self.options.region) if own["region"] else None
        self.pixel = SegmentationTask(self._card("pixel")) if own["pixel"] else None

    def _card(self, level: str) -> ModelCard:
        """Return the card for the task of a single level."""
        shown = self.card.preprocess
        square = PreprocessConfig(shown.mean, shown.std)  # the size of the crop is not used
        return replace(self.card, task=_SINGLE[level], preprocess=square if level == "image" else shown)

    @property
    def has_panoptic(self) -> bool:
        """Whether the network predicts masks and label maps, which panoptic maps are merged from."""
        return self.region is not None and "mask" in self.region.kinds and self.pixel is not None

    @property
    def categories(self) -> list[Category]:
        """Categories of panoptic maps: the object classes with ids from 1, followed by stuff."""
        things = [Category(id=place, name=name, isthing=1) for place, name in enumerate(self.classes.region, 1)]
        stuff = [Category(id=place, name=self.classes.pixel[index], isthing=0) for index, place in self.stuff.items()]
        return things + stuff

    @property
    def stuff(self) -> dict[int, int]:
        """Category id of each stuff class, by class index of the label maps."""
        names = self.card.details.get(STUFF)
        if names is None:
            same = shared_by_name(self.classes.pixel, self.classes.region)
            names = [name for name in self.classes.pixel if name not in same]
        chosen = [index for index, name in enumerate(self.classes.pixel) if name in names]
        return {index: len(self.classes.region) + place for place, index in enumerate(chosen, 1)}

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that an evaluation computes."""
        tasks = {"image": self.image, "region": self.region, "pixel": self.pixel}
        own = {level: dict.fromkeys(task.metrics, 0.0) for level, task in tasks.items() if task is not None}
        if self.has_panoptic:
            own["panoptic"] = dict.fromkeys(PANOPTIC_METRICS, 0.0)
        return [MEAN, *metric_names(own).values()]

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> MultitaskDataset:
        """Return a split with the classes of the model, resized for it."""
        found = open_multitask(str(root), split, classes=self.classes, bad_images=bad_images)
        for note in found.notes:
            announce(note)
        found.require(self.levels)
        dataset = MultitaskDataset(found.having(self.levels), self.levels, bad_images)
        dataset.size = self.card.size, self.longest
        return dataset

    def evaluator(self, dataset: MultitaskDataset, device: torch.device) -> MultitaskEvaluator:
        """Return a new evaluator for a split."""
        split, found = dataset.split, MultitaskEvaluator(dataset)
        if self.image is not None:
            found.image = ClassificationEvaluator(self.classes.image, False, device=device)
        if self.region is not None:
            if len(split.regions) > 1:
                raise FishnetError("objects are evaluated against one COCO file, but several were given")
            found.region = self.region.evaluator(split.regions[0], device)
        if self.pixel is not None:
            found.pixel = SegmentationEvaluator(self.classes.pixel, split.classes.ignore_index)
        if self.has_panoptic and any(split.is_panoptic(index) for index in range(len(split))):
            found.panoptic = PanopticEvaluator(self.categories)
        return found

    def network_inputs(self, batch: Batch) -> list[Tensor]:
        """Return the readable images of a batch."""
        return [image for image, bad in zip(batch["image"], batch["bad"], strict=True) if not bad]

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the predictions for the images of a batch."""
        return runtime(images)

    def update(self, evaluator: MultitaskEvaluator, answers: Answers, batch: Batch) -> None:
        """Pass the predictions to the evaluators of the levels that each image is labeled for."""
        good = [place for place, bad in enumerate(batch["bad"]) if not bad]
        evaluator.seen += len(good)
        labeled = [number for number, place in enumerate(good) if "image" in batch["target"][place]]
        if self.image is not None and evaluator.image is not None and labeled:
            truth = torch.stack([batch["target"][good[number]]["image"] for number in labeled])
            logits = [answers["image"][number] for number in labeled]
            self.image.update(evaluator.image, {"image": logits}, {"target": truth, "bad": []})
        for number, place in enumerate(good):
            own: Answers = {head: [found[number]] for head, found in answers.items()}
            one: Batch = {name: [values[place]] for name, values in batch.items()}
            self._update_maps(evaluator, own, one, int(batch["index"][place]))

    def _update_maps(self, evaluator: MultitaskEvaluator, answers: Answers, batch: Batch, index: int) -> None:
        """Pass objects and label map of a single image to the evaluators."""
        (target,), split = batch["target"], evaluator.dataset.split
        objects, truth = None, split.objects(index) if self.region is not None else None
        if evaluator.region is not None and truth is not None:
            (found,) = in_original_pixels(answers["region"], batch["image"], batch["size"])
            objects = as_objects(found, batch["size"][0])
            evaluator.region.add(int(split.region_of[index, 1]), objects)
        if evaluator.pixel is None or "pixel" not in target:
            return
        label_map = decide(answers["pixel"][0], target["pixel"].shape)
        evaluator.pixel.update(label_map, target["pixel"])
        if objects is not None and truth is not None and evaluator.panoptic is not None and split.is_panoptic(index):
            true = self._truth(truth, target["pixel"], split.classes.ignore_index)
            evaluator.panoptic.update(self._panoptic(objects, label_map.numpy()), true)

    def _panoptic(self, objects: Objects, label_map: np.ndarray) -> PanopticMap:
        categories = [label + 1 for label in objects["labels"].tolist()]
        return merge(objects["masks"], objects["scores"], categories, label_map, self.stuff, self.options.panoptic)

    def _truth(self, objects: ObjectLabels, label_map: Tensor, ignore_index: int) -> PanopticMap:
        categories = (objects.classes + 1).tolist()
        masks = objects.masks or []
        return true_map(masks, categories, objects.crowd.tolist(), label_map, self.stuff, ignore_index)

    def describe(self, evaluation: MultitaskEvaluation) -> list[str]:
        """Return the metrics of every level."""
        metrics = evaluation.metrics
        named = ", ".join(f"{DISPLAY.title(name)} {DISPLAY.text(name, metrics[name])}" for name in averaged(metrics))
        lines = [f"  {'mean of levels':<20}{DISPLAY.text(MEAN, metrics[MEAN]):>9}  ({named})"]
        if self.image is not None and evaluation.image is not None:
            lines += ["image level:", *self.image.describe(evaluation.image)]
        if self.region is not None and evaluation.region is not None:
            lines += ["region level:", *self.region.describe(evaluation.region)]
        if self.pixel is not None and evaluation.pixel is not None:
            lines += ["pixel level:", *self.pixel.describe(evaluation.pixel)]
        if evaluation.panoptic is not None:
            found = evaluation.panoptic.metrics
            lines += ["panoptic:", *(f"  {DISPLAY.title(n):<20}{DISPLAY.text(n, v):>9}" for n, v in found.items())]
        return lines

    def pictures(self, evaluation: MultitaskEvaluation) -> Mapping[str, Figure]:
        """Return the figures of every level; names are prefixed by the level."""
        found: dict[str, Mapping[str, Figure]] = {}
        if self.image is not None and evaluation.image is not None:
            found["image"] = self.image.pictures(evaluation.image)
        if self.region is not None and evaluation.region is not None:
            found["region"] = self.region.pictures(evaluation.region)
        if self.pixel is not None and evaluation.pixel is not None:
            found["pixel"] = self.pixel.pictures(evaluation.pixel)
        return {f"{level}_{name}": figure for level, own in found.items() for name, figure in own.items()}

    def documents(self, evaluator: MultitaskEvaluator) -> Mapping[str, object]:
        """Return the detections in COCO's results format."""
        return {} if evaluator.region is None else {"coco_results": evaluator.region.results()}

    def transform(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input, uint8 (3, H, W); the network takes a list of them."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return resized(pixels, self.card.size, self.longest)

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Return an RGB image, resized for the model."""
        return PreparedImage(self.transform(image), (image.height, image.width))

    @property
    def about(self) -> Json:
        """Description of the entries of results.json."""
        found: Json = {"levels": list(self.levels)}
        for task in (self.region, self.pixel):
            found |= {} if task is None else task.about
        return found | ({"categories": self.categories} if self.has_panoptic else {})

    def answer(self, runtime: Runtime, prepared: Sequence[PreparedImage]) -> list[Answer]:
        """Return the predictions for prepared images, by level.

        Returns:
            Per image the predictions of the single levels under `image`, `region` and `pixel` (those that the network
            has), and a `PanopticMap` under `panoptic` if the network predicts masks and label maps.
        """
        done = runtime([one.pixels for one in prepared])
        answers: list[Answer] = [{} for _ in prepared]
        if self.image is not None:
            logits = torch.stack(list(done["image"])).float().cpu()
            if not torch.isfinite(logits).all():
                raise FishnetError("the model gave NaN or infinite outputs: its weights are damaged")
            for answer, found in zip(answers, self.image.answers_of(logits), strict=True):
                answer["image"] = found
        every: list[Answer] = []
        if self.region is not None:
            tiles = [PreparedTiles([Tile(one.pixels, 0, 0, one.size)], one.size) for one in prepared]
            every = DetectionTask(self.region.card, self._object_options()).answer(_Precomputed(done), tiles)
            for answer, found in zip(answers, every, strict=True):
                answer["region"] = self._named(found)
        if self.pixel is not None:
            for answer, found in zip(answers, self.pixel.answer(_Precomputed(done), prepared), strict=True):
                answer["pixel"] = found
        for answer, objects in zip(answers, every, strict=True) if self.has_panoptic else ():
            categories = [index + 1 for index in objects["indices"]]
            label_map = answer["pixel"]["label_map"]
            answer["panoptic"] = merge(
                objects["masks"], objects["scores"], categories, label_map, self.stuff, self.options.panoptic
            )
        return answers

    def _object_options(self) -> DetectionOptions:
        """Return options with which the detector returns all objects that the prediction or the panoptic map needs.

        The panoptic map has separate thresholds, in evaluation and prediction alike.
        """
        options = self.options.region
        if not self.has_panoptic:
            return options
        return replace(options, score=min(options.score, self.options.panoptic.score), max_detections=sys.maxsize)

    def _named(self, objects: Answer) -> Answer:
        """Return the objects of a prediction that the options select, sorted by score."""
        strong = torch.tensor(objects["scores"]) >= self.options.region.score
        count = min(int(strong.sum()), self.options.region.max_detections)
        return {name: values[:count] for name, values in objects.items()}

    def entry(self, answer: Answer) -> Entry:
        """Return the entries of the single levels, and the segments of the panoptic map."""
        tasks = {"image": self.image, "region": self.region, "pixel": self.pixel}
        found: Json = {
            level: task.entry(answer[level])["predictions"] for level, task in tasks.items() if task is not None
        }
        if "panoptic" in answer:
            found["panoptic"] = [dict(segment) for segment in answer["panoptic"].segments]
        return found

    def headline(self, entry: Entry) -> str:
        """Return a one-line summary of the predictions of all levels, each with its name."""
        tasks = {"image": ("image", self.image), "region": ("objects", self.region), "pixel": ("pixels", self.pixel)}
        parts = [
            f"{name}: {task.headline({'predictions': entry[level]})}"
            for level, (name, task) in tasks.items()
            if task is not None
        ]
        return "; ".join(parts)

    def painter(self, out: Path, images: int) -> LevelPictures:
        """Return a painter that draws all levels in one picture, and writes label files and panoptic files."""
        coding = self.pixel.coding if self.pixel is not None else None
        return LevelPictures(out, self.classes, coding, self.categories if self.has_panoptic else None)

    def draw_examples(self, runtime: Runtime, dataset: MultitaskDataset, count: int = 6) -> Image.Image:
        """Return evenly spaced images of a data set, each with the prediction above the ground truth."""
        from fishnet.tasks.multitask.pictures import LabeledImage, LevelColors, as_labels, level_sheet

        items: list[LabeledImage] = []
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
            try:
                image, labels = dataset.split.load(index)[0], dataset.labels(index)
            except FishnetError:
                continue  # unusable files were already handled by the evaluation
            (answer,) = self.answer(runtime, [self.prepare(image)])
            items.append(LabeledImage(image, as_labels(answer), "prediction", answer.get("panoptic")))
            items.append(LabeledImage(image, labels, "truth", self._true_panoptic(dataset, index, labels)))
        colors = LevelColors(self.classes, self.categories if self.has_panoptic else ())
        return level_sheet(items, colors, columns=2)

    def _true_panoptic(self, dataset: MultitaskDataset, index: int, labels: ImageLabels) -> PanopticMap | None:
        """Return the panoptic map of the labels of an image; None if they are incomplete."""
        if not self.has_panoptic or not dataset.split.is_panoptic(index):
            return None
        if labels.objects is None or labels.label_map is None:
            return None
        return self._truth(labels.objects, torch.as_tensor(labels.label_map), dataset.split.classes.ignore_index)
