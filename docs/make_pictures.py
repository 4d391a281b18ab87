"""Make the pictures of README.md: train on data that comes with scikit-learn, predict, and copy what came out.

`make pictures`; half an hour on two cores. The detector's data are handwritten digits, enlarged and colored, on parts
of scikit-learn's two photographs; nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fishnet
from fishnet.commands.demo import demo

FIGURES = Path(__file__).resolve().parent / "figures"
SIDE, DIGITS = 192, (3, 6)
SPLITS = {"train": 300, "val": 12}


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Return a mask (H, W) as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.flatten(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], ends])).tolist()}


def scene(rng: np.random.Generator, photos: list[np.ndarray], digits: np.ndarray, labels: np.ndarray) -> tuple:
    """Return a picture (H, W, 3), and label and mask of every digit on it."""
    photo = photos[int(rng.integers(len(photos)))]
    top, left = (int(rng.integers(side - SIDE)) for side in photo.shape[:2])
    picture, objects = photo[top : top + SIDE, left : left + SIDE].copy(), []
    for _ in range(int(rng.integers(*DIGITS))):
        number, side = int(rng.integers(len(digits))), int(rng.integers(28, 72))
        drawn = Image.fromarray((digits[number] * 15.9).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(drawn) > 110
        y, x = (int(rng.integers(SIDE - side)) for _ in range(2))
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[y : y + side, x : x + side] = ink
        if any((mask & other).any() for _, other in objects):
            continue
        picture[mask] = rng.integers(0, 256, 3)
        objects.append((int(labels[number]), mask))
    return picture, objects


def write_scenes(root: Path) -> Path:
    """Write a COCO folder of digits on photographs."""
    from sklearn.datasets import load_digits, load_sample_images

    found, rng = load_digits(), np.random.default_rng(0)
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    (root / "annotations").mkdir(parents=True)
    for split, count in SPLITS.items():
        # no digit is in both splits
        half = slice(0, 1400) if split == "train" else slice(1400, None)
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            picture, objects = scene(rng, photos, found.images[half], found.target[half])
            Image.fromarray(picture).save(root / split / f"{number:03d}.png")
            images.append({"id": number, "file_name": f"{number:03d}.png", "width": SIDE, "height": SIDE})
            for label, mask in objects:
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": label,
                        "bbox": [int(value) for value in box],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": run_lengths(mask),
                    }
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def beside(pictures: list[Path], columns: int, side: int = 300) -> Image.Image:
    """Return pictures in a grid."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for place, path in enumerate(pictures):
        tile = Image.open(path).resize((side - 6, side - 6), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % columns * side + 3, place // columns * side + 3))
    return sheet


def main() -> None:
    """Train, predict, write."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = demo(out=str(root / "demo"))
        del run
        with Image.open(root / "demo" / "predictions" / "contact_sheet.png") as sheet:
            part = sheet.convert("RGB").crop((0, 0, sheet.width, round(sheet.width * 0.644)))
            part.resize((900, 580), Image.Resampling.LANCZOS).save(FIGURES / "predictions_classification.png")
        data = write_scenes(root / "scenes")
        settings: dict[str, Any] = {"epochs": 20, "validate_every": 10, "size": SIDE, "longest": SIDE, "batch_size": 16}
        settings["augment"] = {"flip": 0.0}
        fishnet.train("detection", data=str(data), model="fishnet_nano", out=str(root / "run"), **settings)
        fishnet.predict(str(root / "run"), [str(data / "val")], out=str(root / "predictions"))
        found = sorted((root / "predictions" / "pictures").glob("*.jpg"))[:6]
        sheet = beside(found, columns=3).quantize(128, dither=Image.Dither.NONE)
        sheet.save(FIGURES / "predictions_detection.png", optimize=True)


if __name__ == "__main__":
    main()
