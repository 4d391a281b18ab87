"""Multitask networks: class, objects and label map of an image in one forward pass, and panoptic maps."""

from __future__ import annotations

from fishnet.data.multitask.split import can_split, split_multitask
from fishnet.tasks.base import TaskKind, at_size_with_longest, fit_preprocessing
from fishnet.tasks.multitask.check import check_data
from fishnet.tasks.multitask.evaluator import DISPLAY
from fishnet.tasks.multitask.options import MultitaskConfig, MultitaskOptions, PanopticOptions, choose_recipe
from fishnet.tasks.multitask.task import LONGEST, MultitaskTask
from fishnet.tasks.multitask.training import MultitaskTraining

TASK = TaskKind(
    name="multitask",
    summary="class, objects and label map of an image in one forward pass",
    config=MultitaskConfig,
    options=MultitaskOptions,
    evaluation_options=PanopticOptions,
    make_training=MultitaskTraining,
    make_task=MultitaskTask,
    recipes="fishnet.recipes.multitask",
    choose_recipe=choose_recipe,
    tied=frozenset({"levels", "detector", "pixel.decoder", "weighting"}),
    batch_size=8,
    display=DISPLAY,
    check_data=check_data,
    split_data=split_multitask,
    can_split=can_split,
    layouts="annotations/instances_*.json with images/ and labels/",
    at_size=at_size_with_longest(LONGEST),
    preprocessing=fit_preprocessing(LONGEST),
)

__all__ = ["TASK"]
