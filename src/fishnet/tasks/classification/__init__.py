"""Image classification, with one label or several per image."""

from __future__ import annotations

from fishnet.data.classification.checks import check_classification
from fishnet.data.classification.split import can_split, split_classification
from fishnet.tasks.base import TaskKind
from fishnet.tasks.classification.evaluator import DISPLAY
from fishnet.tasks.classification.foreign import load_foreign
from fishnet.tasks.classification.options import ClassificationConfig, ClassificationOptions, choose_recipe
from fishnet.tasks.classification.task import ClassificationTask, square_preprocessing
from fishnet.tasks.classification.training import ClassificationTraining

TASK = TaskKind(
    name="classification",
    summary="one class, or several, for a whole image",
    config=ClassificationConfig,
    options=ClassificationOptions,
    make_training=ClassificationTraining,
    make_task=ClassificationTask,
    recipes="fishnet.recipes.classification",
    choose_recipe=choose_recipe,
    free=frozenset({"cache"}),
    batch_size=64,
    display=DISPLAY,
    check_data=check_classification,
    split_data=split_classification,
    can_split=can_split,
    layouts="a folder per class, or train/ with one, or train/ with labels.csv",
    preprocessing=square_preprocessing,
    load_foreign=load_foreign,
)

__all__ = ["TASK"]
