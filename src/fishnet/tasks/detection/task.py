"""Evaluation and prediction of detectors; large images may be cut into overlapping tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishnet.cards import ModelCard
from fishnet.data.augmentation import eval_pipeline, resized
from fishnet.data.detection.coco import CocoFile
from fishnet.data.detection.dataset import DetectionDataset, collate, open_detection
from fishnet.data.run_lengths import counts_text
from fishnet.environment import announce
from fishnet.errors import FishnetError
from fishnet.files import Json
from fishnet.models.heads.detectors import WITH_MASKS
from fishnet.models.heads.types import Answers, Detections, Size
from fishnet.models.network import Images
from fishnet.tasks.base import Answer, BadImages, Batch, Entry, Runtime
from fishnet.tasks.detection.detections import HEAD, Objects, as_objects, detect, in_original_pixels, select
from fishnet.tasks.detection.evaluator import DetectionEvaluation, DetectionEvaluator, metric_names
from fishnet.tasks.detection.options import DetectionOptions
from fishnet.tasks.detection.painter import Pictures
from fishnet.tasks.detection.tiles import merge_tiles, tile_places
from fishnet.tasks.tables import class_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONGEST = 1333
"""Maximum of the longer side of an image in pixels if a card does not record it, as in torchvision."""


_EXAMPLE = 400
"""Longer side of the pictures of examples in pixels."""


class Tile(NamedTuple):
    """Part of an image, prepared as network input."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    left: int
    top: int
    size: Size
    """Height and width of the part in pixels of the image."""


class PreparedImage(NamedTuple):
    """An image prepared as network input: one tile or several."""

    tiles: list[Tile]
    size: Size


def evaluated_kinds(detector: str) -> tuple[str, ...]:
    """Return the kinds of predictions that are evaluated: box, and mask or keypoint if the detector predicts them."""
    if detector == "keypoint_rcnn":
        return ("box", "keypoint")
    return ("box", "mask") if detector in WITH_MASKS else ("box",)


class DetectionTask:
    """Boxes, masks and keypoints of objects.

    Args:
        card: Card of the detector.
        options: Prediction options.
    """

    collate = staticmethod(collate)

    def __init__(self, card: ModelCard, options: DetectionOptions | None = None) -> None:
        self.card, self.options = card, options or DetectionOptions()
        self.longest = int(card.details.get("longest", LONGEST))
        self.classes = card.heads[HEAD].classes
        self.kinds = evaluated_kinds(card.architecture.heads[HEAD].kind)

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that an evaluation computes."""
        return metric_names(self.kinds)

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> DetectionDataset:
        """Return a split with the classes of the model, resized for it."""
        dataset = open_detection(root, split, classes=self.classes, bad_images=bad_images)
        for note in dataset.notes:
            announce(note)
        dataset.transform = eval_pipeline(self.card.size, self.longest)
        return dataset

    def evaluator(self, dataset: DetectionDataset, device: torch.device) -> DetectionEvaluator:
        """Return a new evaluator for a split."""
        return DetectionEvaluator(dataset.file, self.kinds_in(dataset.file))

    def kinds_in(self, file: CocoFile) -> tuple[str, ...]:
        """Return the kinds that can be evaluated on a file: masks only if objects have outlines."""
        return tuple(kind for kind in self.kinds if kind != "mask" or file.has_outlines)

    def network_inputs(self, batch: Batch) -> list[Tensor]:
        """Return the readable images of a batch."""
        return [image for image, bad in zip(batch["image"], batch["bad"], strict=True) if not bad]

    def run(self, runtime: Runtime, images: Images, batch: Batch) -> Answers:
        """Return the predictions for the images of a batch."""
        return runtime(images)

    def update(self, evaluator: DetectionEvaluator, answers: Answers, batch: Batch) -> None:
        """Pass the detections in the images of a batch to the evaluator."""
        good = [place for place, bad in enumerate(batch["bad"]) if not bad]
        sizes = [tuple(batch["size"][place]) for place in good]
        found = in_original_pixels(answers[HEAD], [batch["image"][place] for place in good], sizes)
        for place, size, detections in zip(good, sizes, found, strict=True):
            evaluator.add(int(batch["index"][place]), as_objects(detections, size))

    def describe(self, evaluation: DetectionEvaluation) -> list[str]:
        """Return COCO's metrics and a row per class (the worst 20 if there are more)."""
        lines, kinds = [], [kind for kind in self.kinds if f"{kind}_ap" in evaluation.metrics]
        for kind in kinds:
            figures = {n.removeprefix(f"{kind}_"): v for n, v in evaluation.metrics.items() if n.startswith(f"{kind}_")}
            for name, value in figures.items():
                shown = "        -" if value < 0 else f"{100 * value:7.2f} %"
                lines.append(f"  {kind} {name.replace('_', ' '):<13}{shown}")
        names = ["objects"] + [f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50")]
        return lines + class_table(evaluation.per_class, names, f"{kinds[-1]}_ap", "objects")

    def pictures(self, evaluation: DetectionEvaluation) -> Mapping[str, Figure]:
        """Return the precision-recall curves."""
        from fishnet.drawing.precision_recall import draw_precision_recall

        return {"precision_recall": draw_precision_recall(evaluation.curves, evaluation.metrics)}

    def documents(self, evaluator: DetectionEvaluator) -> Mapping[str, object]:
        """Return the detections in COCO's results format."""
        return {"coco_results": evaluator.results()}

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Return the tiles of an RGB image, resized for the model."""
        places = tile_places(image.width, image.height, self.options.tile, self.options.overlap)
        tiles = []
        for left, top, right, bottom in places:
            part = image.crop((left, top, right, bottom)) if len(places) > 1 else image
            tiles.append(Tile(self.transform(part), left, top, (part.height, part.width)))
        return PreparedImage(tiles, (image.height, image.width))

    def transform(self, image: Image.Image) -> Tensor:
        """Return an RGB image as network input, uint8 (3, H, W); the network takes a list of them."""
        return resized(_pixels(image), self.card.size, self.longest)

    @property
    def about(self) -> Json:
        """Description of the entries of results.json: units."""
        return {"box_format": "xyxy, in pixels of the image from its top left corner"}

    def answer(self, runtime: Runtime, prepared: Sequence[PreparedImage]) -> list[Answer]:
        """Return the objects of prepared images.

        Returns:
            Per image `labels`, `indices`, `scores` and `boxes` (x1 y1 x2 y2 in pixels), and `masks` (run-length
            encoded) and `keypoints` if the detector predicts them; sorted by score.
        """
        tiles = [tile for image in prepared for tile in image.tiles]
        found: list[Detections] = []
        for start in range(0, len(tiles), len(prepared)):  # batches of tiles have the size of the batch of images
            part = tiles[start : start + len(prepared)]
            found += detect(runtime, [tile.pixels for tile in part], [tile.size for tile in part])
        answers, place = [], 0
        for image in prepared:
            answers.append(self._answer(image, found[place : place + len(image.tiles)]))
            place += len(image.tiles)
        return answers

    def _answer(self, image: PreparedImage, found: list[Detections]) -> Answer:
        for tile, part in zip(image.tiles, found, strict=True):
            shift = torch.tensor([tile.left, tile.top])
            part["boxes"] = part["boxes"] + shift.repeat(2)
            if "keypoints" in part:
                part["keypoints"][..., :2] += shift
        objects = self._strong(found[0] if len(found) == 1 else merge_tiles(found), image.size)
        if not torch.isfinite(objects["scores"]).all():
            raise FishnetError("the model gave NaN or infinite outputs: its weights are damaged")
        indices = objects["labels"].tolist()
        answer: Answer = {
            "labels": [self.classes[index] for index in indices],
            "indices": indices,
            "scores": objects["scores"].tolist(),
            "boxes": objects["boxes"].tolist(),
        }
        if "masks" in objects:
            answer["masks"] = objects["masks"]
        if "keypoints" in objects:
            answer["keypoints"] = objects["keypoints"].tolist()
        return answer

    def _strong(self, found: Detections, size: Size) -> Objects:
        """Return the objects with at least the minimum score."""
        keep = torch.where(found["scores"] >= self.options.score)[0][: self.options.max_detections]
        return as_objects(select(found, keep), size)

    def entry(self, answer: Answer) -> Entry:
        """Return `predictions`: label, index, score, box (x1, y1, x2, y2), and mask or keypoints."""
        entries = []
        for place, label in enumerate(answer["labels"]):
            one: Json = {
                "label": label,
                "index": answer["indices"][place],
                "score": round(answer["scores"][place], 6),
                "box": [round(value, 2) for value in answer["boxes"][place]],
            }
            if "masks" in answer:
                run = answer["masks"][place]
                one["mask"] = {"size": [int(side) for side in run["size"]], "counts": counts_text(run)}
            if "keypoints" in answer:
                one["keypoints"] = [[round(value, 2) for value in point] for point in answer["keypoints"][place]]
            entries.append(one)
        return {"predictions": entries}

    def headline(self, entry: Entry) -> str:
        """Return the number of detected objects per class."""
        counts: dict[str, int] = {}
        for one in entry["predictions"]:
            counts[one["label"]] = counts.get(one["label"], 0) + 1
        named = sorted(counts.items(), key=lambda item: -item[1])[:5]
        return (
            ", ".join(f"{name} x{count}" for name, count in named)
            or f"no object above {self.options.score:g} (--score)"
        )

    def painter(self, out: Path, images: int) -> Pictures:
        """Return a painter that draws a picture per image."""
        return Pictures(out, self.classes)

    def draw_examples(self, runtime: Runtime, dataset: DetectionDataset, count: int = 6) -> Image.Image:
        """Return evenly spaced images of a data set, each with its annotations and the detections."""
        from fishnet.drawing.regions import count_text, draw_regions, sheet
        from fishnet.drawing.sheets import titled_row

        rows: list[Image.Image] = []
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
        dataset.masks, kept = "mask" in self.kinds, dataset.masks
        try:
            for index in chosen:
                batch = collate([dataset[index]])
                if batch["bad"][0]:
                    continue
                image, truth = batch["image"][0], batch["target"][0]
                size = (image.shape[-2], image.shape[-1])
                found = self._strong(detect(runtime, [image], [size])[0], size)
                pictures = [("image", draw_regions(image, {"labels": []}, self.classes, _EXAMPLE))]
                for name, objects in (("truth", truth), ("prediction", found)):
                    picture = draw_regions(image, objects, self.classes, _EXAMPLE, note=False)
                    pictures.append((f"{name}: {count_text(len(objects['labels']))}", picture))
                if not len(found["labels"]):
                    pictures[-1] = f"prediction: no object above {self.options.score:g}", pictures[-1][1]
                rows.append(titled_row(pictures))
        finally:
            dataset.masks = kept
        return sheet(rows, columns=1)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
