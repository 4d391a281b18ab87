"""Settings and prediction options of classification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from fishnet.config import BELOW_1, PreprocessConfig, Rules, TrainConfig
from fishnet.data.classification.shards import shard_paths
from fishnet.data.classification.transforms import AugmentConfig
from fishnet.data.folders import image_files
from fishnet.errors import UsageError
from fishnet.tasks.base import Given, RecipeChoice

SMALL_DATA = 100_000
"""Below this number of training images, a run without weights uses `scratch_small`."""


@dataclass
class ClassificationConfig(TrainConfig):
    """Settings of a run that trains a classifier."""

    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is distributed over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the loss of each class by the inverse of its frequency."""
    drop_rate: float = 0.0
    """Dropout before the last layer."""
    cache: bool = False
    """Cache decoded images in the memory of each worker; for small data sets."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    RULES: ClassVar[Rules] = {BELOW_1: "label_smoothing drop_rate"}


@dataclass
class ClassificationOptions:
    """Prediction options of a classifier."""

    top: int = 5
    """Number of classes per image, for models with one label per image."""
    threshold: float = 0.5
    """Minimum score of a class, for models with several labels per image."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"--top must be at least 1, not {self.top}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold must be between 0 and 1, not {self.threshold}")


def _photos(folder: Path) -> Iterator[Path]:
    """Yield the images of a split, without the label maps of a folder for several tasks."""
    return (path for path in image_files(folder) if path.parent != folder / "labels")


def choose_recipe(settings: Given) -> RecipeChoice:
    """Return the default recipe of a run; it depends on the weights and the size of the data."""
    if settings.get("weights"):
        return RecipeChoice("finetune", "weights are given")
    if not settings.get("data"):
        return RecipeChoice("scratch_small", "no weights are given")
    root = Path(settings["data"])
    if list(shard_paths(root, "train")):
        return RecipeChoice("imagenet_cosine", "no weights are given, and the data set is in shards")
    folders = [folder for folder in sorted(root.glob("train*")) if folder.is_dir()]
    count = sum(1 for folder in folders for _ in islice(_photos(folder), SMALL_DATA))
    if not count:  # the data set reports what is wrong with the folder
        return RecipeChoice("scratch_small", "no weights are given")
    if count < SMALL_DATA:
        return RecipeChoice("scratch_small", f"no weights are given, and there are only {count:,} training images")
    return RecipeChoice("imagenet_cosine", "no weights are given, and the data set is large")
