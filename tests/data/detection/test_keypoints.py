"""Keypoints from COCO's file through augmentation, training and back to COCO's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fishnet.data.augmentation import Flip, eval_pipeline
from fishnet.data.detection.dataset import collate, open_detection
from fishnet.data.detection.transforms import AugmentConfig
from fishnet.tasks.detection.detections import detect
from fishnet.tasks.detection.options import DetectionConfig
from fishnet.tasks.detection.training import DetectionTraining

NAMES = ["tip", "L_Ear", "R_Ear"]


def make(root: Path, names: list[str] = NAMES) -> Path:
    """Write two splits of photos with two squares each, on whose pixels the keypoints lie."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(4):
            pixels = np.full((60, 80, 3), 40, dtype=np.uint8)
            for _ in range(2):
                x, y = (int(v) for v in generator.integers(5, [50, 30]))
                pixels[y : y + 20, x : x + 24] = 220
                points = [x, y, 2, x + 5, y + 10, 2, x + 23, y + 19, 1]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 480,
                    "bbox": [x, y, 24, 20], "keypoints": points[: 3 * len(names)], "num_keypoints": len(names),
                    "segmentation": [[x, y, x + 24, y, x + 24, y + 20, x, y + 20]],
                })  # fmt: skip
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 60})
        categories = [{"id": 1, "name": "cat", "keypoints": names, "skeleton": []}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def opened(root: Path) -> Any:
    data = open_detection(root, "train")
    data.masks = data.keypoints = True
    return data


def test_keypoints_of_files_are_pixels_and_those_of_samples_places(tmp_path: Path) -> None:
    data = opened(make(tmp_path))
    target = data[0]["target"]
    written = torch.from_numpy(data.file.keypoints[data.file.objects(0)])
    assert torch.equal(target["keypoints"].as_subclass(torch.Tensor), written[..., :2] + 0.5)
    assert torch.equal(target["keypoints_visibility"], written[..., 2])
    # on the center of a pixel: half a pixel inside the corners of the box
    assert torch.equal(target["keypoints"][:, 0], target["boxes"][:, :2] + 0.5)
    assert torch.equal(target["keypoints"][:, 2], target["boxes"][:, 2:] - 0.5)
    mirrored = Flip(1.0, NAMES)(data[0])["target"]
    assert torch.equal(mirrored["keypoints"][:, 0, 0], mirrored["boxes"][:, 2] - 0.5)
    batch = collate([data[0]])["target"][0]
    assert set(batch) == {"boxes", "labels", "masks", "outlined", "keypoints", "seed"}
    assert torch.equal(batch["keypoints"], written + torch.tensor([0.5, 0.5, 0]))


def test_absent_keypoints_and_those_beyond_the_border(tmp_path: Path) -> None:
    data = opened(make(tmp_path))
    first = data.file.objects(0)[0]
    data.file.keypoints[first] = [[79.9, 30, 2], [85, 10, 2], [3, 4, 0]]
    points = collate([data[0]])["target"][0]["keypoints"][0]
    assert points.tolist() == [[80, 30.5, 2], [0, 0, 0], [0, 0, 0]]
    assert (data.file.keypoints[first] == np.float32([[79.9, 30, 2], [85, 10, 2], [3, 4, 0]])).all()


class Echo(nn.Module):
    """A detector that finds what it is told."""

    def __init__(self, targets: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.targets = targets

    def forward(self, images: list[torch.Tensor]) -> dict[str, list[dict[str, torch.Tensor]]]:
        names = ("boxes", "labels", "keypoints")
        found = [{name: target[name] for name in names} | {"scores": torch.ones(2)} for target in self.targets]
        return {"region": found}


@pytest.mark.parametrize("size", [37, 150])
def test_what_is_learnt_comes_back_as_in_the_file(tmp_path: Path, size: int) -> None:
    data = opened(make(tmp_path))
    data.transform = eval_pipeline(size, 300)
    batch = collate([data[1]])
    found = detect(Echo(batch["target"]), batch["image"], batch["size"])[0]
    written = torch.from_numpy(data.file.keypoints[data.file.objects(1)])
    assert (found["keypoints"] - written).abs().max() < 1e-4
    corners = data.file.boxes[data.file.objects(1)]
    assert (found["boxes"][:, :2].numpy() - corners[:, :2]).max() < 1e-4


def task_of(root: Path, **settings: Any) -> DetectionTraining:
    augment = AugmentConfig(short_edges=[], scale_jitter=(0.5, 1.5), **settings)
    return DetectionTraining(
        DetectionConfig(data=str(root), detector="keypoint_rcnn", epochs=3, size=64, longest=96, augment=augment)
    )


@pytest.mark.parametrize("mixing", [{"copy_paste": 1.0}, {"mosaic": 1.0}, {"copy_paste": 1.0, "mosaic": 0.5}], ids=str)
def test_a_keypoint_detector_gets_keypoints_of_mixed_images(mixing: dict[str, float], tmp_path: Path) -> None:
    task = task_of(make(tmp_path), iou_crop=True, **mixing)
    merged = 0
    for epoch in range(3):
        for target in collate([task.train_data[(epoch, index)] for index in range(4)])["target"]:
            merged += len(target["boxes"]) > 2
            assert target["keypoints"].shape == (len(target["boxes"]), 3, 3)
            inner = target["boxes"] + torch.tensor([-1, -1, 1, 1])
            for box, points in zip(inner, target["keypoints"], strict=True):
                visible = points[points[:, 2] == 2, :2]
                assert bool(((visible >= box[:2]) & (visible <= box[2:])).all())
    assert merged


@pytest.mark.parametrize(("names", "note"), [
    (NAMES, None),
    (["tip", "L_Ear", "R_Eat"], "without a counterpart are not exchanged in flips: L_Ear, R_Eat;"),
    (["0", "1", "2"], "no left/right pairs among the keypoint names (0, 1, 2)"),
], ids=["pairs", "typo", "numbers"])  # fmt: skip
def test_names_that_flips_cannot_read_are_told_at_the_start(
    names: list[str], note: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task_of(make(tmp_path, names))
    printed = capsys.readouterr().out
    assert printed.count("\n") == (note is not None)
    assert (note or "") in printed
    task_of(tmp_path, flip=0.0)
    assert capsys.readouterr().out == ""
