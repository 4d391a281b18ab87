"""Object detection, instance segmentation and keypoint detection."""

from __future__ import annotations

from fishnet.data.detection.convert import can_convert, convert_data
from fishnet.data.detection.layouts import explain_layout
from fishnet.data.detection.split import can_split, split_coco
from fishnet.tasks.base import TaskKind, at_size_with_longest, fit_preprocessing
from fishnet.tasks.detection.about import describe_detectors
from fishnet.tasks.detection.check import check_data
from fishnet.tasks.detection.evaluator import DISPLAY
from fishnet.tasks.detection.options import DetectionConfig, DetectionOptions, choose_recipe
from fishnet.tasks.detection.task import LONGEST, DetectionTask
from fishnet.tasks.detection.training import DetectionTraining

TASK = TaskKind(
    name="detection",
    summary="boxes of objects, with masks or keypoints",
    config=DetectionConfig,
    options=DetectionOptions,
    make_training=DetectionTraining,
    make_task=DetectionTask,
    recipes="fishnet.recipes.detection",
    choose_recipe=choose_recipe,
    tied=frozenset({"detector"}),
    batch_size=8,
    display=DISPLAY,
    check_data=check_data,
    split_data=split_coco,
    can_split=can_split,
    layouts="annotations/instances_*.json",
    convert_data=convert_data,
    convert_layouts="COCO, YOLO, or Pascal VOC (--images and --annotations for other sub-folders)",
    can_convert=can_convert,
    explain_layout=explain_layout,
    at_size=at_size_with_longest(LONGEST),
    preprocessing=fit_preprocessing(LONGEST),
    topics={"detectors": describe_detectors},
)

__all__ = ["TASK"]
