"""Folders in which only some objects have outlines, from training to evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fishnet.commands.train import train
from fishnet.data.multitask.dataset import MultitaskDataset
from fishnet.data.multitask.layout import open_multitask
from fishnet.data.multitask.transforms import AugmentConfig, train_pipeline
from fishnet.errors import FishnetError, UsageError
from fishnet.metrics import MetricsFile
from tests.tasks.detection.test_run import QUICK, small

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")


def change(root: Path, split: str, chosen: Callable[[int], bool]) -> None:
    """Remove the outlines of the chosen objects, by their place in the file."""
    path = root / "annotations" / f"instances_{split}.json"
    document = json.loads(path.read_text("utf-8"))
    for place, one in enumerate(document["annotations"]):
        if chosen(place):
            one.pop("segmentation")
    path.write_text(json.dumps(document))


def run(data: Path, out: Path, **settings: Any) -> dict[str, float]:
    made = train("detection", data=str(data), out=str(out), **{**QUICK, "max_steps": None, **settings})
    rows = MetricsFile(made.metrics_csv).read()
    return {row["name"]: float(row["value"]) for row in rows if row["split"] == "val"}


def test_some_outlines(mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small(mini, tmp_path)
    for split in ("train", "val"):
        change(data, split, lambda place: place % 3 == 0)
    found = run(data, tmp_path / "run", augment={"copy_paste": 1.0, "mosaic": 0.5})
    assert "have no segmentation; they are excluded from mask training and mask evaluation" in capsys.readouterr().out
    assert found["mask_ap"] >= 0


def test_without_outlines_in_val_boxes_decide(mini: Callable[[str], Path], tmp_path: Path) -> None:
    data = small(mini, tmp_path)
    change(data, "val", lambda place: True)
    found = run(data, tmp_path / "run", detector="mask_rcnn")
    assert "box_ap" in found
    assert "mask_ap" not in found
    with pytest.raises(FishnetError, match="'mask_ap' cannot be computed"):
        run(data, tmp_path / "best", detector="mask_rcnn", best="mask_ap")


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"detector": "mask_rcnn"}, FishnetError, "no objects with a segmentation, .* use --detector faster_rcnn"),
    ({"detector": "cascade_mask_rcnn"}, FishnetError, "use --detector cascade_rcnn"),
    ({"augment": {"copy_paste": 0.5}}, UsageError, "augment.copy_paste: .* no objects with a segmentation"),
])  # fmt: skip
def test_no_outlines_at_all(
    settings: dict[str, Any], error: type[Exception], message: str, mini: Callable[[str], Path], tmp_path: Path
) -> None:
    data = small(mini, tmp_path)
    change(data, "train", lambda place: True)
    with pytest.raises(error, match=message):
        run(data, tmp_path / "run", **settings)


def test_several_levels_know_which_objects_have_outlines(mini: Callable[[str], Path], tmp_path: Path) -> None:
    """Also in a folder of boxes alone beside one with outlines."""
    mixed, boxes = small(mini, tmp_path / "a"), small(mini, tmp_path / "b")
    change(mixed, "train", lambda place: place % 2 == 0)
    change(boxes, "train", lambda place: True)
    (boxes / "train").unlink()  # else the images of both are the same
    shutil.copytree(mixed / "train", boxes / "train")
    split = open_multitask(f"region={mixed} region={boxes}", "train")
    dataset = MultitaskDataset(split, ("region",))
    dataset.masks, dataset.transform = True, train_pipeline(AugmentConfig(flip=1.0), 96, 160)
    files = [data.file for data in split.regions]
    for index in range(len(split)):
        target = dataset[index]["target"]["region"]
        number, place = split.region_of[index].tolist()
        expected = files[number].outlines.kind[files[number].objects(place)] != 0
        assert target["outlined"].tolist() == expected.tolist()
        assert len(target["masks"]) == len(expected)
        objects = split.load(index)[1].objects
        assert objects is not None
        assert (objects.masks is None) == (number == 1)
