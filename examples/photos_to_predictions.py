"""Train a classifier on your own photos and name what new photos show, all from Python.

    python examples/photos_to_predictions.py photos new_photos --out runs/photos

`photos` has a folder per class: photos/cat/*.jpg, photos/dog/*.jpg. If it has no train and val yet, they are made, as
`fishnet data split` does; the originals stay where they are, since the split is made in a copy.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import fishnet
from fishnet.commands.data_split import data_split


def with_splits(photos: Path, copy: Path) -> Path:
    """Return a folder with train and val: `photos` itself, or a copy of it that is split."""
    if (photos / "train").is_dir():
        return photos
    if not copy.exists():
        shutil.copytree(photos, copy)
        data_split(str(copy))
    return copy


def main() -> None:
    """Split, train, predict."""
    parser = argparse.ArgumentParser(description="Train on photos in class folders, predict on new ones.")
    parser.add_argument("photos", type=Path, help="folder with a folder of photos per class")
    parser.add_argument("new_photos", type=Path, help="folder of photos to predict on")
    parser.add_argument("--out", type=Path, default=Path("runs/photos"), help="folder of the run")
    parser.add_argument("--model", default="fishnet_tiny", help="a FishNet or any timm model")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=160, help="size of the training images in pixels")
    arguments = parser.parse_args()

    data = with_splits(arguments.photos, arguments.out.with_name(f"{arguments.out.name}_data"))
    # Every setting of `fishnet train classification --help` is a keyword; groups are dicts: optim={"name": "adamw"}.
    run = fishnet.train(
        "classification",
        data=str(data),
        out=str(arguments.out),
        model=arguments.model,
        epochs=arguments.epochs,
        size=arguments.size,
        workers=0,  # with workers, multiprocessing wants the call below `if __name__ == "__main__"`, as it is here
        overwrite=True,
    )

    predictor = fishnet.Predictor(run.path, top=1)
    files = sorted(path for path in arguments.new_photos.iterdir() if path.is_file())
    for file, answer in zip(files, predictor(files), strict=True):
        print(f"{file.name}: {answer['labels'][0]} ({answer['scores'][0]:.0%})")


if __name__ == "__main__":
    main()
