"""Region level: boxes, masks and keypoints of the objects in an image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from fishnet.cards import HeadCard, ModelCard
from fishnet.config import TrainConfig
from fishnet.data.detection.coco import CocoFile
from fishnet.data.detection.dataset import PIXEL_CENTRE, DetectionDataset, collate, open_detection
from fishnet.data.detection.mirroring import mirror_note
from fishnet.data.detection.transforms import eval_pipeline, train_pipeline
from fishnet.errors import FishnetError, UsageError
from fishnet.models.build import Architecture, build_network
from fishnet.models.heads.detectors import WITH_MASKS, RegionPlan
from fishnet.models.network import Network
from fishnet.tasks.detection.evaluator import DetectionEvaluator

HEAD = "region"
"""Name of the head that finds objects."""
MASK_THRESHOLD = 0.5


def judged_kinds(detector: str) -> tuple[str, ...]:
    """Return what a detector's figures are about: boxes, and masks or keypoints where it gives them."""
    if detector == "keypoint_rcnn":
        return ("box", "keypoint")
    return ("box", "mask") if detector in WITH_MASKS else ("box",)


class DetectionTask:
    """Detection and instance segmentation of COCO folders.

    Args:
        config: Settings of the run; `config.data` is opened at once and problems are raised here.
    """

    name = "detection"
    collate = staticmethod(collate)

    def __init__(self, config: TrainConfig):
        self.config = config
        self.kinds = judged_kinds(config.detector)
        self.train_data = self._open("train")
        self.val_data = self._open("val", self.train_data.classes)
        self.classes = self.train_data.classes
        file = self.train_data.file
        if not len(file.boxes[~file.crowd]):
            raise FishnetError(f"{file.path} holds no object to learn from: no annotations, or crowds only")
        if "keypoint" in self.kinds and not file.keypoint_names:
            raise FishnetError(f"{file.path} names no keypoints in its categories; choose another --detector")
        if "mask" in self.kinds and file.without_outline:
            print(f"{file.without_outline} objects have no segmentation: their box counts as their mask", flush=True)
        note = mirror_note(file.keypoint_names) if "keypoint" in self.kinds and config.region.flip else None
        if note:
            print(note, flush=True)
        self.train_data.seed = config.seed
        self.train_data.mix_until = config.epochs - config.region.mix_off_epochs
        self.train_data.transform = train_pipeline(config.region, config.size, config.longest, file.keypoint_names)
        self.val_data.transform = eval_pipeline(config.size, config.longest)
        self.train_data.masks = "mask" in self.kinds or config.region.copy_paste > 0
        self.train_data.keypoints = "keypoint" in self.kinds

    def _open(self, split: str, classes: list[str] | None = None) -> DetectionDataset:
        return open_detection(Path(self.config.data), split, classes=classes, bad_images=self.config.bad_images)

    def train_order(self) -> dict[str, Any]:
        """Return the groups of wide and tall images, and how often images of rare classes are repeated."""
        file, region = self.train_data.file, self.config.region
        order: dict[str, Any] = {}
        if region.group_by_aspect and region.scale_jitter is None:
            order["groups"] = (file.heights > file.widths).astype(np.int64)
        if region.repeat_threshold > 0:
            order["repeats"] = repeat_factors(file, region.repeat_threshold)
        return order

    def architecture(self) -> Architecture:
        """Return what builds the network."""
        config = self.config
        if config.drop_rate:
            raise UsageError("drop_rate: a detector has no classifier to drop inputs of")
        sizes = {name: value for name, value in vars(config.heads).items() if name != "preset" and value is not None}
        plan = RegionPlan(
            kind=config.detector,
            num_classes=len(self.classes),
            neck=config.pyramid.neck,
            norm_relu=config.pyramid.norm_relu,
            preset=config.heads.preset,
            sizes=sizes,
            keypoints=len(self.train_data.file.keypoint_names),
        )
        options, group_norm = dict(config.model_option), config.norm == "group"
        return Architecture(config.model, {HEAD: plan}, options, taps=config.pyramid.taps, group_norm=group_norm)

    def build_model(self) -> Network:
        """Return the detector; its trunk has the weights of `config.weights`, if any."""
        config = self.config
        torch.manual_seed(config.seed)
        return build_network(self.architecture(), config.weights, config.preprocess.mean, config.preprocess.std)

    def model_card(self) -> ModelCard:
        """Return what predicting and judging need to know of the network."""
        config, file = self.config, self.train_data.file
        details = {"category_ids": file.category_ids.tolist(), "keypoint_names": list(file.keypoint_names)}
        return ModelCard(
            task=self.name,
            architecture=self.architecture(),
            heads={HEAD: HeadCard(list(self.classes), details)},
            size=config.size,
            preprocess=config.preprocess,
            precision=config.precision,
            details={"longest": config.longest},
        )

    def training_loss(self, model: nn.Module, batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
        """Return the losses of a batch by name; their sum is what is minimised.

        Args:
            model: Detector, in training mode.
            batch: What `collate` returns.
            epoch: Number of this epoch from 0.
        """
        return model(batch["image"], {HEAD: batch["target"]})

    def evaluator(self, device: Any) -> DetectionEvaluator:
        """Return a fresh evaluator for the validation split."""
        return DetectionEvaluator(self.val_data.file, self.kinds)

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], evaluator: DetectionEvaluator) -> None:
        """Predict one batch and hand it to the evaluator; stand-ins for unreadable images are left out."""
        judge_batch(model, batch, evaluator)

    def draw_batch(self, batch: dict[str, Any]) -> Image.Image:
        """Return a picture of an augmented training batch with its boxes and masks."""
        from fishnet.drawing.regions import draw_regions, sheet

        tiles = []
        for image, target in zip(batch["image"], batch["target"], strict=True):
            tiles.append(draw_regions(image.cpu(), {k: v.cpu() for k, v in target.items()}, self.classes))
        return sheet(tiles)

    def draw_predictions(self, model: nn.Module, device: torch.device, count: int = 8) -> Image.Image:
        """Return validation images with what the network finds (above) and what is true (below)."""
        from fishnet.drawing.regions import draw_regions, sheet

        tiles: list[Image.Image] = []
        chosen = np.linspace(0, len(self.val_data) - 1, min(count, len(self.val_data))).astype(int).tolist()
        self.val_data.masks, kept = "mask" in self.kinds, self.val_data.masks
        try:
            for index in chosen:
                batch = collate([self.val_data[index]])
                if batch["bad"][0]:
                    continue
                image = batch["image"][0]
                found = detect(model, [image.to(device)], [tuple(image.shape[-2:])])[0]
                strong = found["scores"] >= 0.5
                shown = {
                    name: [v for v, k in zip(value, strong.tolist(), strict=True) if k]
                    if isinstance(value, list)
                    else value[strong]
                    for name, value in found.items()
                }
                pair = [draw_regions(image, shown, self.classes), draw_regions(image, batch["target"][0], self.classes)]
                tiles.append(sheet(pair, columns=1))
        finally:
            self.val_data.masks = kept
        return sheet(tiles)

    def fingerprint(self) -> dict[str, Any]:
        """Return counts and a hash of the annotations of both splits."""
        prints: dict[str, Any] = {"classes": len(self.classes)}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            file, digest = data.file, hashlib.sha256()
            digest.update("\n".join(file.file_names).encode())
            for array in (file.image_of, file.class_of, file.boxes, file.crowd):
                digest.update(np.ascontiguousarray(array).tobytes())
            prints[split] = {"images": len(file), "objects": len(file.boxes), "sha256": digest.hexdigest()[:16]}
        return prints


def repeat_factors(file: CocoFile, threshold: float) -> np.ndarray:
    """Return how often each image should be shown per epoch: max over its classes of max(1, sqrt(threshold / share)).

    The share of a class is that of the images that hold it (Gupta et al., LVIS, arXiv 1908.03195, section 5).
    """
    real = ~file.crowd
    pairs = np.unique(np.stack([file.image_of[real], file.class_of[real]]), axis=1)
    shares = np.bincount(pairs[1], minlength=len(file.classes)) / len(file)
    per_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(shares, 1e-12)))
    factors = np.ones(len(file))
    np.maximum.at(factors, pairs[0], per_class[pairs[1]])
    return factors


def judge_batch(model: nn.Module, batch: dict[str, Any], evaluator: DetectionEvaluator) -> None:
    """Detect on one batch and hand the result to the evaluator; stand-ins for unreadable images are left out."""
    good = [place for place, bad in enumerate(batch["bad"]) if not bad]
    if not good:
        return
    found = detect(model, [batch["image"][i] for i in good], [tuple(batch["size"][i]) for i in good])
    for place, detections in zip(good, found, strict=True):
        evaluator.add(int(batch["index"][place]), detections)


def detect(model: nn.Module, images: list[Tensor], sizes: list[Any], masks: bool = True) -> list[dict[str, Any]]:
    """Return detections per image in pixels of the original images, on the CPU.

    Args:
        model: Detector, in eval mode.
        images: Prepared images (3, H, W).
        sizes: (height, width) of each image before it was resized.
        masks: Whether masks are laid over the whole image; else they stay in their boxes, (N, 1, 28, 28).

    Returns:
        Per image `boxes` (N, 4), `labels` (N,), `scores` (N,), `masks` a list of N run lengths, `keypoints` (N, K, 3)
        as in COCO's files: x and y count pixels, 0 being the centre of the first.
    """
    with torch.inference_mode():
        raw = model(images)[HEAD]
    results = []
    for one, image, size in zip(raw, images, sizes, strict=True):
        found = {key: (value.float() if value.is_floating_point() else value).cpu() for key, value in one.items()}
        results.append(_original(found, (image.shape[-2], image.shape[-1]), size, masks))
    return results


def _original(found: dict[str, Any], seen: tuple[int, int], size: tuple[int, int], masks: bool) -> dict[str, Any]:
    """Bring the detections of one image from the size that the network saw to that of its file."""
    across, down = size[1] / seen[1], size[0] / seen[0]
    found["boxes"] = found["boxes"] * torch.tensor([across, down, across, down])
    if masks and "masks" in found:
        found["masks"] = encode_masks(found["masks"], found["boxes"], size)
    if "keypoints" in found:
        # COCO counts keypoints in pixel indices
        centre = torch.tensor([PIXEL_CENTRE, PIXEL_CENTRE, 0.0])
        found["keypoints"] = found["keypoints"] * torch.tensor([across, down, 1.0]) - centre
    return found


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return masks given inside their boxes (N, 1, 28, 28) as run lengths over the whole image."""
    from faster_coco_eval.core import mask as rle_of

    runs: list[dict[str, Any]] = []
    step = max(1, 10_000_000 // (size[0] * size[1]))  # a panorama with 100 objects would fill the memory at once
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
        pasted = paste_masks_in_image(masks[part], boxes[part], size)[:, 0] > MASK_THRESHOLD
        runs += rle_of.encode(np.asfortranarray(pasted.numpy().astype(np.uint8).transpose(1, 2, 0)))
    return runs
