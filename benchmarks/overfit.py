"""Over-fitting Mask R-CNN on a small FishNet to eight photos of COCO.

python benchmarks/overfit.py COCO [--model fishnet_tiny] [--out runs/overfit] [-- more options of fishnet train]

COCO is the small version of the embedded data (`unpack.py DEST coco --mini`); the photos are the eight lowest ids of
train2017 that hold objects other than crowds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from record import record
from runs import fishnet, last, parse

RECIPE = ["--recipe", "scratch_small", "--size", "224", "--longest", "288"]
RECIPE += ["--epochs", "150", "--validate-every", "50"]
RECIPE += ["--precision", "auto", "--workers", "1", "--heads.preset", "tiny", "--heads.samples", "128"]
# the photos are 256 pixels wide, their smallest objects nine
RECIPE += ["--heads.anchor-scale", "4"]
# no augmentation and no weight decay, which work against over-fitting
RECIPE += ["--augment.flip", "0", "--augment.photometric", "false", "--augment.scale-jitter", "null"]
RECIPE += ["--optim.warmup-epochs", "10", "--optim.weight-decay", "0"]


def eight_photos(source: Path, folder: Path) -> Path:
    """Write a COCO folder whose training and validation split are the same eight photos."""
    document = json.loads((source / "annotations" / "instances_train2017.json").read_text("utf-8"))
    held = sorted({entry["image_id"] for entry in document["annotations"] if not entry["iscrowd"]})[:8]
    document["images"] = [image for image in document["images"] if image["id"] in held]
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in held]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document), "utf-8")
        images = folder / split
        if not images.exists():
            images.symlink_to((source / "train2017").resolve())
    return folder


def main() -> None:
    """Train on the photos, evaluate on the same ones, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="fishnet_tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"))
    arguments, more = parse(parser)
    data = eight_photos(arguments.data, arguments.out.with_name(arguments.out.name + "_data"))
    options = [*RECIPE, "--model", arguments.model, *more]
    minutes = fishnet("train", "detection", "--data", data, "--out", arguments.out, "--overwrite", *options)
    box, mask = last(arguments.out, "box_ap50"), last(arguments.out, "mask_ap50")
    record(
        "23_overfit",
        f"over-fitting to 8 COCO photos: Mask R-CNN on {arguments.model}, from scratch",
        "box AP50 >= 0.9 and mask AP50 >= 0.8 on the same photos within 20 minutes",
        f"box AP50 {box:.3f}, mask AP50 {mask:.3f} in {minutes:.1f} minutes, start-up and validation included",
        box >= 0.9 and mask >= 0.8 and minutes <= 20,
        note=f"options: {' '.join(options)}",
    )


if __name__ == "__main__":
    main()
