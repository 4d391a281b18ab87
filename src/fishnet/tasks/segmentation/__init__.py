"""Semantic segmentation: a class for every pixel of an image."""

from __future__ import annotations

from fishnet.data.segmentation.convert import can_convert, convert_segmentation, explain_layout
from fishnet.data.segmentation.split import can_split, split_segmentation
from fishnet.tasks.base import TaskKind, at_size_with_longest, fit_preprocessing
from fishnet.tasks.segmentation.about import describe_decoders
from fishnet.tasks.segmentation.check import check_data
from fishnet.tasks.segmentation.evaluator import DISPLAY
from fishnet.tasks.segmentation.options import SegmentationConfig, SegmentationOptions, choose_recipe
from fishnet.tasks.segmentation.task import LONGEST, SegmentationTask
from fishnet.tasks.segmentation.training import SegmentationTraining

TASK = TaskKind(
    name="segmentation",
    summary="a class for every pixel",
    config=SegmentationConfig,
    options=SegmentationOptions,
    evaluation_options=SegmentationOptions,
    make_training=SegmentationTraining,
    make_task=SegmentationTask,
    recipes="fishnet.recipes.segmentation",
    choose_recipe=choose_recipe,
    tied=frozenset({"pixel.decoder"}),
    batch_size=8,
    display=DISPLAY,
    check_data=check_data,
    split_data=split_segmentation,
    can_split=can_split,
    layouts="images/ with labels/",
    convert_layouts="VOC's SegmentationClass, Cityscapes, images/ with masks/, or other values or colors",
    convert_data=convert_segmentation,
    can_convert=can_convert,
    explain_layout=explain_layout,
    at_size=at_size_with_longest(LONGEST),
    preprocessing=fit_preprocessing(LONGEST),
    topics={"decoders": describe_decoders},
)

__all__ = ["TASK"]
