"""Tiles of a trained segmentation network: how far they agree with whole images, and the memory of a large photo.

python benchmarks/tiles.py RUN CAMVID [--split test] [--tile 128]

RUN is a run of benchmarks/camvid.py, CAMVID the embedded set. FishNet pools globally in its bridge, so that every pixel
depends on the whole input: tiles can only come near to the whole image.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import record
from runs import fishnet

LARGE, LARGE_TILE = (6000, 4000), 1024


def evaluated(run: Path, data: Path, folder: Path, split: str, *options: str) -> dict[str, float]:
    """Return the metrics of a run on a split."""
    path = folder / "figures.json"
    fishnet("evaluate", run, "--data", data, "--split", split, "--json", path, *options)
    return json.loads(path.read_text("utf-8"))["metrics"]


def label_maps(run: Path, images: list[Path], out: Path, *options: str) -> dict[str, np.ndarray]:
    """Return the label maps that `fishnet predict` writes for images, by name."""
    fishnet("predict", run, *images, "--out", out, *options)
    found = {}
    for path in sorted((out / "labels").glob("*.png")):
        with Image.open(path) as image:
            found[path.stem] = np.asarray(image)
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--tile", type=int, default=128)
    arguments = parser.parse_args()
    images = sorted((arguments.data / arguments.split / "images").iterdir())
    tiled = ("--tile", str(arguments.tile), "--overlap", "0.5")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [evaluated(arguments.run, arguments.data, folder, arguments.split, *more) for more in ((), tiled)]
        maps = [label_maps(arguments.run, images, folder / str(len(more)), *more) for more in ((), tiled)]
        assert maps[0].keys() == maps[1].keys()
        assert len(maps[0]) == len(images)
        agreement = float(np.mean([np.mean(maps[0][stem] == maps[1][stem]) for stem in maps[0]]))
        with Image.open(images[0]) as image:
            image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(folder / "large.jpg")
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        begin = time.perf_counter()
        large = ("--size", str(min(LARGE)), "--tile", str(LARGE_TILE))
        (found,) = label_maps(arguments.run, [folder / "large.jpg"], folder / "large", *large).values()
        seconds = time.perf_counter() - begin
        assert found.shape == LARGE[::-1]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert memory > before / 2**20, "an earlier command needed more memory than the large photo"
    record(
        "34b_tiles",
        "Tiles of a network trained on CamVid",
        "agreement stated; below 4 GB for 6000x4000 pixels",
        f"{agreement:.1%} of the pixels as in whole images; {memory:.1f} GB and {seconds:.0f} s for 6000x4000 pixels",
        memory < 4,
        [
            {"input": kind, "mIoU": f"{one['miou']:.4f}", "pixel accuracy": f"{one['pixel_accuracy']:.4f}"}
            for kind, one in zip(
                ("whole images", f"tiles of {arguments.tile} pixels, half of them shared"), figures, strict=True
            )
        ],
        note=f"{len(images)} images of the {arguments.split} split; the large photo in tiles of {LARGE_TILE} pixels",
    )


if __name__ == "__main__":
    main()
