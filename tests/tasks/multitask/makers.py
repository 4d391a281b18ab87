"""Built-in scenes with some of their labels: small data whose images have any subset of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fishnet.data.levels import ImageLabels, LayoutWriter
from fishnet.data.scenes import CLASSES, Split, make_scene, scene_labels


def labels_of(split: Split, index: int, known: str, size: int = 64) -> ImageLabels:
    """Return the labels of a scene that are kept.

    Args:
        split: Split of the scene.
        index: Index of the scene.
        known: A letter for each level: i, r, p; R for the objects of even digits only, as if no others were looked for.
        size: Side of the scene in pixels.
    """
    labels = scene_labels(make_scene(0, split, index, size))
    objects = labels.objects
    assert objects is not None
    if "R" in known:
        even = objects.classes % 2 == 0
        masks = [run for run, keep in zip(objects.masks or [], even, strict=True) if keep]
        objects = replace(
            objects,
            classes=objects.classes[even],
            boxes=objects.boxes[even],
            crowd=objects.crowd[even],
            masks=masks,
            annotated=(0, 2, 4, 6, 8),
        )
    return ImageLabels(
        labels.label if "i" in known else None,
        objects if "r" in known or "R" in known else None,
        labels.label_map if "p" in known else None,
    )


def partial_scenes(root: Path, known: Mapping[Split, Sequence[str]], sizes: Sequence[tuple[int, int]] = ()) -> Path:
    """Write scenes of 64 pixels as a multitask folder, with an image for each entry of `known`.

    Args:
        root: Folder to write.
        known: Levels of each image, see `labels_of`.
        sizes: Width and height that images are cropped to, in turn; without any they stay squares. Only for images
            without objects.
    """
    writer = LayoutWriter(root, CLASSES)
    for split, texts in known.items():
        for index, text in enumerate(texts):
            image, labels = Image.fromarray(make_scene(0, split, index, 64).image), labels_of(split, index, text)
            if sizes and labels.objects is None:
                width, height = sizes[index % len(sizes)]
                image = image.crop((0, 0, width, height))
                if labels.label_map is not None:
                    labels.label_map = np.ascontiguousarray(labels.label_map[:height, :width])
            writer.add(split, f"{index:02d}.png", image, image.size, labels)
    writer.finish()
    return root
