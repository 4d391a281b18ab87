"""Images whose only annotations are crowds, from training to evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fishnet.commands.evaluate import evaluate
from fishnet.commands.train import train
from fishnet.data.detection.dataset import collate, open_detection
from fishnet.data.detection.transforms import AugmentConfig, train_pipeline
from fishnet.metrics import MetricsFile
from fishnet.models.heads.detectors import DETECTORS
from tests.tasks.detection.test_run import QUICK, small

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
_FAST = ("mask_rcnn", "fcos")


def with_crowds(mini: Callable[[str], Path], folder: Path, keypoints: bool = False) -> Path:
    """Write photos whose first one, in train and val, has crowds only."""
    root = small(mini, folder)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}.json"
        document = json.loads(path.read_text("utf-8"))
        first = document["images"][0]["id"]
        for one in document["annotations"]:
            one["iscrowd"] = int(one["image_id"] == first)
            if keypoints:
                x, y, width, height = one["bbox"]
                one["keypoints"] = [x + width / 2, y + 1, 2, x + width / 2, y + height - 1, 2]
        if keypoints:
            document["categories"][0]["keypoints"] = ["head", "foot"]
        path.write_text(json.dumps(document))
    return root


@pytest.mark.parametrize(
    "detector", [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS]
)
def test_every_detector_trains_and_is_judged(detector: str, mini: Callable[[str], Path], tmp_path: Path) -> None:
    data = with_crowds(mini, tmp_path, detector == "keypoint_rcnn")
    run = train(
        "detection", data=str(data), out=str(tmp_path / "run"), **{**QUICK, "detector": detector, "batch_size": 1}
    )
    rows = MetricsFile(run.metrics_csv).read()
    assert {row["split"] for row in rows} >= {"train"}
    found = evaluate(str(run.path), data=str(data), workers=0, device="cpu", out=str(tmp_path / "e"))
    assert found.metrics["box_ap"] >= 0
    # images with nothing but crowds have no metric, and are no error
    path = data / "annotations" / "instances_val.json"
    document = json.loads(path.read_text("utf-8"))
    for one in document["annotations"]:
        one["iscrowd"] = 1
    path.write_text(json.dumps(document))
    found = evaluate(str(run.path), data=str(data), workers=0, device="cpu", out=str(tmp_path / "c"))
    assert found.metrics["box_ap"] == -1


def test_crowds_move_with_their_image(mini: Callable[[str], Path], tmp_path: Path) -> None:
    """Objects and crowds of the same boxes stay together, in mosaics too; crowds are not pasted."""
    data = open_detection(small(mini, tmp_path), "train")
    twin = open_detection(with_crowds(mini, tmp_path / "twin"), "train")
    twin.file.crowd[:] = True
    for settings in ({"flip": 1.0}, {"scale_jitter": (0.5, 1.5)}, {"mosaic": 1.0}, {"iou_crop": False, "flip": 0.5}):
        for one in (data, twin):
            one.transform = train_pipeline(AugmentConfig(**settings), 96, 160)
        for index in range(len(data)):
            plain, crowd = (collate([one[index]])["target"][0] for one in (data, twin))
            boxes = crowd["crowds"]
            seen = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # objects that are cut off are removed
            assert torch.equal(boxes[seen], plain["boxes"])
            assert torch.equal(crowd["crowd_labels"][seen], plain["labels"])
            assert len(crowd["boxes"]) == 0
            assert "crowds" not in plain
    data.masks = twin.masks = True
    pasting: Any = train_pipeline(AugmentConfig(copy_paste=1.0), 96, 160).mixing[0]
    own = data.sample(0)
    assert (
        "crowds" not in pasting(own, lambda: {**own, "target": {**own["target"], **twin.sample(1)["target"]}})["target"]
    )
