"""A task in a package of its own: by how many quarter turns is a photo turned?

Photos without any labels are enough to train it (Gidaris et al. 2018, arXiv 1803.07728), and the run starts others:

    pip install ./examples/own_task
    fishnet train rotation --data unlabeled --model fishnet_tiny --out runs/rotation   # unlabeled/{train,val}/*.jpg
    fishnet train classification --data photos --model fishnet_tiny --weights runs/rotation --out runs/photos

All but the data comes from the task classification. `fishnet.tasks.base` says what a task consists of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from fishnet.cards import ModelCard
from fishnet.data.classification.dataset import ClassificationDataset, Entries
from fishnet.data.folders import image_files
from fishnet.errors import FishnetError
from fishnet.tasks import get_task
from fishnet.tasks.base import BadImages
from fishnet.tasks.classification.options import ClassificationConfig
from fishnet.tasks.classification.task import ClassificationTask
from fishnet.tasks.classification.training import ClassificationTraining

TURNS = ["upright", "90 degrees", "180 degrees", "270 degrees"]


class TurnedPhotos(ClassificationDataset):
    """Every photo of a split four times, turned counter-clockwise by 0, 90, 180 and 270 degrees."""

    def load(self, index: int) -> Image.Image:
        """Return the photo, turned as its class says."""
        return super().load(index).rotate(90 * self.samples[index].target, expand=True)


def open_photos(root: Path, split: str, bad_images: BadImages) -> TurnedPhotos:
    """Return a split: all photos in `root/split` and its subfolders."""
    names = [str(path) for path in image_files(root / split, base=root)]
    if not names:
        raise FishnetError(f"{root / split} has no photos; the task rotation takes DIR/train/*.jpg and DIR/val/*.jpg")
    samples = Entries([name for name in names for _ in TURNS], list(range(len(TURNS))) * len(names))
    dataset = TurnedPhotos(root, samples, TURNS, multi_label=False)
    dataset.skip_bad = bad_images == "skip"
    return dataset


class RotationTask(ClassificationTask):
    """Evaluation and prediction: those of a classifier, on turned photos."""

    def open_split(self, root: Path, split: str, bad_images: BadImages = "stop") -> TurnedPhotos:
        """Return a split with the preprocessing of the model."""
        dataset = open_photos(root, split, bad_images)
        dataset.transform = self.transform
        return dataset


class RotationTraining(ClassificationTraining):
    """Training: that of a classifier, on turned photos."""

    def __init__(self, config: ClassificationConfig) -> None:
        # The mirror image of a photo turned by 90 degrees is one turned by 270: flips would make the labels wrong.
        super().__init__(replace(config, augment=replace(config.augment, flip=0.0)))
        self.task = RotationTask(self.card())

    def _open(self, root: Path, split: str, classes: list[str] | None = None) -> TurnedPhotos:
        return open_photos(root, split, self.config.bad_images)

    def card(self) -> ModelCard:
        """Return what evaluation and prediction need to know of the network; its task finds this module again."""
        return replace(super().card(), task="rotation")


OWN = {"make_training": RotationTraining, "make_task": RotationTask}
OTHER_LAYOUT = dict.fromkeys(("check_data", "split_data", "can_split", "load_foreign"))  # these take class folders
TASK = replace(get_task("classification"), name="rotation", summary="how far a photo is turned", **OWN, **OTHER_LAYOUT)
