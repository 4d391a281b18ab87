"""Judging and predicting at region level; large images may be cut into overlapping tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fishnet.cards import ModelCard
from fishnet.data.detection.dataset import DetectionDataset, collate, open_detection
from fishnet.data.detection.transforms import eval_pipeline, resized
from fishnet.errors import FishnetError, UsageError
from fishnet.tasks.classification.task import class_table
from fishnet.tasks.detection.evaluator import DetectionEvaluation, DetectionEvaluator
from fishnet.tasks.detection.training import HEAD, detect, encode_masks, judge_batch, judged_kinds
from fishnet.tasks.levels import BadImages

_PICTURES = 500
_SIDE = 1600


class Tile(NamedTuple):
    """A part of an image as the network sees it."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    left: int
    top: int
    size: tuple[int, int]
    """Height and width of the part in the image."""


class Prepared(NamedTuple):
    """An image as the network sees it: one tile, or several."""

    tiles: list[Tile]
    size: tuple[int, int]


class DetectionLevel:
    """Boxes, masks and keypoints of objects.

    Args:
        card: What the model file says of its network.
        score: Smallest score of an object that is named.
        max_detections: Most objects per image.
        tile: Side in pixels of the parts that a larger image is cut into; nothing: images stay whole.
        overlap: Share of a tile that its neighbour sees too.
    """

    OPTIONS = ("score", "max_detections", "tile", "overlap")
    collate = staticmethod(collate)

    def __init__(
        self,
        card: ModelCard,
        score: float = 0.5,
        max_detections: int = 100,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> None:
        if not 0 <= score <= 1:
            raise UsageError(f"--score {score} is not between 0 and 1")
        if max_detections < 1:
            raise UsageError(f"--max-detections {max_detections}: at least one must be asked for")
        if tile is not None and tile < 32:
            raise UsageError(f"--tile {tile} is too small; 32 pixels are the least")
        if not 0 <= overlap < 0.9:
            raise UsageError(f"--overlap {overlap} must be a share from 0 to below 0.9")
        self.card, self.score, self.max_detections = card, score, max_detections
        self.tile, self.overlap = tile, overlap
        self.longest = int(card.details.get("longest", 1333))
        self.classes = card.heads[HEAD].classes
        self.kinds = judged_kinds(card.architecture.heads[HEAD].kind)

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> DetectionDataset:
        """Return a split with the model's classes, resized as the model wants it."""
        dataset = open_detection(root, split, classes=self.classes, bad_images=bad_images)
        dataset.transform = eval_pipeline(self.card.size, self.longest)
        return dataset

    def evaluator(self, dataset: DetectionDataset, device: Any) -> DetectionEvaluator:
        """Return a fresh evaluator for that split."""
        return DetectionEvaluator(dataset.file, self.kinds)

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: DetectionEvaluator) -> None:
        """Detect on one batch and hand the result to the evaluator."""
        judge_batch(model, batch, evaluator)

    def describe(self, evaluation: DetectionEvaluation) -> list[str]:
        """Return COCO's figures and a row per class (of more than 20 the worst)."""
        lines = []
        for kind in self.kinds:
            figures = {n.removeprefix(f"{kind}_"): v for n, v in evaluation.metrics.items() if n.startswith(f"{kind}_")}
            for name, value in figures.items():
                shown = "        -" if value < 0 else f"{100 * value:7.2f} %"
                lines.append(f"  {kind} {name.replace('_', ' '):<13}{shown}")
        names = ["objects"] + [f"{kind}_{name}" for kind in self.kinds for name in ("ap", "ap50")]
        return lines + class_table(evaluation.per_class, names, f"{self.kinds[-1]}_ap", "objects")

    def pictures(self, evaluation: DetectionEvaluation) -> Mapping[str, Any]:
        """Return the precision-recall curves."""
        from fishnet.drawing.precision_recall import draw_precision_recall

        return {"precision_recall": draw_precision_recall(evaluation.curves, evaluation.metrics)}

    def documents(self, evaluator: DetectionEvaluator) -> Mapping[str, Any]:
        """Return the detections in COCO's results format."""
        return {"coco_results": evaluator.results()}

    def prepare(self, image: Image.Image) -> Prepared:
        """Return the tiles of an RGB image, resized as the model wants them."""
        places = tile_places(image.width, image.height, self.tile, self.overlap)
        tiles = []
        for left, top, right, bottom in places:
            part = image.crop((left, top, right, bottom)) if len(places) > 1 else image
            pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()
            seen = resized(pixels, self.card.size, self.longest)
            tiles.append(Tile(seen, left, top, (part.height, part.width)))
        return Prepared(tiles, (image.height, image.width))

    def answer(self, model: nn.Module, prepared: list[Prepared]) -> list[dict[str, Any]]:
        """Return per image `labels`, `indices`, `scores`, `boxes` (x1 y1 x2 y2 in pixels), masks as run lengths and
        keypoints where the detector gives them; the best first.
        """
        device = next(model.parameters()).device
        return [self._answer(model, device, image) for image in prepared]

    def _answer(self, model: nn.Module, device: torch.device, image: Prepared) -> dict[str, Any]:
        parts = []
        for tile in image.tiles:
            found = detect(model, [tile.pixels.to(device)], [tile.size], masks=len(image.tiles) == 1)[0]
            shift = torch.tensor([tile.left, tile.top])
            found["boxes"] = found["boxes"] + shift.repeat(2)
            if "keypoints" in found:
                found["keypoints"][..., :2] += shift
            parts.append(found)
        found = parts[0] if len(parts) == 1 else merge_tiles(parts)
        keep = torch.where(found["scores"] >= self.score)[0][: self.max_detections]
        if len(parts) > 1 and "masks" in found:
            found["masks"] = encode_masks(found["masks"][keep], found["boxes"][keep], image.size)
        elif "masks" in found:
            found["masks"] = [found["masks"][i] for i in keep.tolist()]
        answer = {
            "labels": [self.classes[i] for i in found["labels"][keep].tolist()],
            "indices": found["labels"][keep].tolist(),
            "scores": found["scores"][keep].tolist(),
            "boxes": found["boxes"][keep].tolist(),
        }
        if "masks" in found:
            answer["masks"] = found["masks"]
        if "keypoints" in found:
            answer["keypoints"] = found["keypoints"][keep].tolist()
        if not np.isfinite(answer["scores"]).all():
            raise FishnetError("the model gave NaN or infinite outputs: its weights are damaged")
        return answer

    def entry(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return `predictions`: label, index, score, box (x, y, width, height) and what else the detector gives."""
        entries = []
        for place, label in enumerate(answer["labels"]):
            x1, y1, x2, y2 = (round(value, 2) for value in answer["boxes"][place])
            one: dict[str, Any] = {
                "label": label,
                "index": answer["indices"][place],
                "score": round(answer["scores"][place], 6),
                "box": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            }
            if "masks" in answer:
                run = answer["masks"][place]
                counts = run["counts"]
                text = counts.decode() if isinstance(counts, bytes) else counts
                one["mask"] = {"size": [int(side) for side in run["size"]], "counts": text}
            if "keypoints" in answer:
                one["keypoints"] = [[round(value, 2) for value in point] for point in answer["keypoints"][place]]
            entries.append(one)
        return {"predictions": entries}

    def headline(self, entry: dict[str, Any]) -> str:
        """Return how many objects of which classes were found."""
        counts: dict[str, int] = {}
        for one in entry["predictions"]:
            counts[one["label"]] = counts.get(one["label"], 0) + 1
        named = sorted(counts.items(), key=lambda item: -item[1])[:5]
        return ", ".join(f"{count} x {name}" for name, count in named) or "nothing above the score"

    def painter(self, out: Path, images: int) -> Pictures:
        """Return what draws a picture per image."""
        return Pictures(out, self.classes)


def tile_places(width: int, height: int, tile: int | None, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return the boxes (left, top, right, bottom) of overlapping tiles that cover an image, all of one size."""
    if tile is None or (width <= tile and height <= tile):
        return [(0, 0, width, height)]

    def starts(side: int) -> list[int]:
        if side <= tile:
            return [0]
        step = max(1, round(tile * (1 - overlap)))
        # the last tile ends at the border: none is smaller than the others
        return [*range(0, side - tile, step), side - tile]

    return [
        (left, top, min(width, left + tile), min(height, top + tile))
        for top in starts(height)
        for left in starts(width)
    ]


def merge_tiles(parts: list[dict[str, Any]], covered: float = 0.5) -> dict[str, Any]:
    """Return the detections of all tiles together, without those that show a part of another.

    Of two of one class from different tiles the weaker goes where the smaller is covered by more than a share of
    itself: the piece of an object that a tile's border cuts off overlaps the whole object little, but lies inside it.
    What one tile shows is left as it is: people in front of each other cover more than that.
    """
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = merged["scores"].argsort(descending=True, stable=True)
    tiles = torch.cat([torch.full((len(part["scores"]),), number) for number, part in enumerate(parts)])[order]
    merged = {name: value[order] for name, value in merged.items()}
    boxes, labels = merged["boxes"], merged["labels"]
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if not alive[place]:
            continue
        corner = torch.maximum(boxes[place, :2], boxes[:, :2])
        shared = (torch.minimum(boxes[place, 2:], boxes[:, 2:]) - corner).clamp(min=0).prod(1)
        hidden = shared > covered * torch.minimum(areas[place], areas).clamp(min=1e-6)
        hidden &= (labels == labels[place]) & (tiles != tiles[place])
        hidden[: place + 1] = False
        alive &= ~hidden
    return {name: value[alive] for name, value in merged.items()}


class Pictures:
    """A picture per image, under the name of its file, in OUT/pictures."""

    def __init__(self, out: Path, classes: list[str]) -> None:
        self.folder, self.classes = out / "pictures", classes
        self.written: list[Path] = []
        self.drawn = 0

    def wants(self, index: int) -> bool:
        """Whether the image of that number is drawn."""
        return index < _PICTURES

    def thumbnail(self, image: Image.Image) -> Image.Image:
        """Return the image itself: objects are drawn in its own pixels."""
        return image

    def add(self, item: dict[str, Any], answer: dict[str, Any]) -> None:
        """Draw the objects of one image."""
        from fishnet.drawing.regions import draw_regions
        from fishnet.files import atomic_path

        if item["thumbnail"] is None:
            return
        pixels = torch.from_numpy(np.array(item["thumbnail"])).permute(2, 0, 1)
        found = {**answer, "labels": answer["indices"]}
        name = Path(item["file"]).stem
        path = self.folder / f"{name}.jpg"
        number = 1
        while path in self.written:
            number += 1
            path = self.folder / f"{name}_{number}.jpg"
        with atomic_path(path) as partial:
            draw_regions(pixels, found, self.classes, longest=_SIDE).save(partial, quality=92)
        self.written.append(path)
        self.drawn += 1

    def finish(self) -> None:
        """Remove pictures of an earlier call."""
        for old in set(self.folder.glob("*.jpg")) - set(self.written):
            old.unlink()
