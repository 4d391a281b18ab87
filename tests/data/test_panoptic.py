"""COCO's panoptic format: what is written is read, and what other programs would refuse is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fishnet.data.panoptic import Category, PanopticMap, PanopticWriter, described, id_image, read_panoptic, segment_ids
from fishnet.errors import FishnetError

CATEGORIES: list[Category] = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 40, "name": "sky", "isthing": 0}]


def written(folder: Path) -> Path:
    """Write two images of the same name in different folders."""
    writer = PanopticWriter(folder / "panoptic_val.json", CATEGORIES)
    first = np.zeros((6, 9), np.int64)
    first[1:3, 2:6], first[4:, :] = 70_000, 16_777_215
    segments = [{"id": 16_777_215, "category_id": 40}, {"id": 70_000, "category_id": 1, "iscrowd": 1}]
    writer.add(11, "a/photo.jpg", described(first, segments, {1, 40}))
    writer.add(5, "b/photo.jpg", PanopticMap(np.zeros((3, 4), np.int64), []))
    return writer.finish()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    # the format, as its specification has it
    with Image.open(tmp_path / "panoptic_val" / "photo.png") as image:
        pixels = np.array(image).astype(int)
    assert pixels[1, 2].tolist() == [70_000 % 256, 70_000 // 256 % 256, 70_000 // 65536]
    assert (pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2]).max() == 16_777_215
    document = json.loads(path.read_text())
    assert document["annotations"][0]["image_id"] == 11
    assert document["annotations"][0]["segments_info"] == [
        {"id": 16_777_215, "category_id": 40, "area": 18, "bbox": [0, 4, 9, 2], "iscrowd": 0},
        {"id": 70_000, "category_id": 1, "area": 8, "bbox": [2, 1, 4, 2], "iscrowd": 1},
    ]
    assert document["categories"] == CATEGORIES
    file = read_panoptic(path)
    assert len(file) == 2
    assert [(image.id, image.file_name, image.map_file) for image in file.images] == [
        (11, "a/photo.jpg", "photo.png"), (5, "b/photo.jpg", "photo_2.png"),
    ]  # fmt: skip
    first, second = file.read(0), file.read(1)
    assert (
        sorted(one["id"] for one in first.segments) == sorted(set(np.unique(first.ids)) - {0}) == [70_000, 16_777_215]
    )
    assert (first.ids[1:3, 2:6] == 70_000).all()
    assert second.segments == []
    assert second.ids.shape == (3, 4)


@pytest.mark.parametrize("number", [2**24, -1, 2**40])
def test_ids_beyond_24_bits(number: int) -> None:
    with pytest.raises(FishnetError, match=f"segment id {number} does not fit into the 24 bits"):
        id_image(np.array([[0, number]]))
    largest = np.array([[0, 2**24 - 1]])
    assert np.array_equal(segment_ids(id_image(largest)), largest)


def broken(path: Path, change: str) -> None:
    """Damage a written data set in one way."""
    document: dict[str, Any] = json.loads(path.read_text())
    segments, folder = document["annotations"][0]["segments_info"], path.with_suffix("")
    match change:
        case "unlisted":
            segments.pop()
        case "absent":
            segments.append({"id": 3, "category_id": 1})
        case "twice":
            segments.append(segments[0])
        case "category":
            segments[0]["category_id"] = 2
        case "number":
            segments[0]["id"] = None
        case "size":
            document["images"][0]["width"] = 10
        case "gray":
            Image.new("L", (9, 6)).save(folder / "photo.png")
        case "damaged":
            (folder / "photo.png").write_bytes(b"no picture")
        case "missing":
            (folder / "photo.png").unlink()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unlisted", "8 pixels have the id 70000, which no segment has"),
        ("absent", "segment 3 is listed, but no pixel has its id"),
        ("twice", "segment 16777215 is listed twice"),
        ("category", "segment 16777215 has the unknown category 2"),
        ("number", "lacks a whole number as id or category_id"),
        ("size", "photo.png has 9x6 pixels, but .*panoptic_val.json states 10x6"),
        ("gray", "photo.png: a panoptic PNG must be RGB .* not L"),
        ("damaged", "photo.png cannot be read: .*cannot identify"),
        ("missing", "photo.png cannot be read: .*No such file"),
    ],
)
def test_damaged_images(tmp_path: Path, change: str, message: str) -> None:
    path = written(tmp_path)
    broken(path, change)
    with pytest.raises(FishnetError, match=message) as caught:
        read_panoptic(path).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not valid JSON"),
        ('{"images": []}', "is no panoptic file: it needs the lists"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "'a' needs `isthing`"),
        ('{"images": [], "annotations": [{"image_id": 3}], "categories": []}', "the image of an annotation is not"),
        ('{"images": [{"id": "x"}], "annotations": [], "categories": []}', "unusable value"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "panoptic_val.json"
    path.write_text(content)
    with pytest.raises(FishnetError, match=message):
        read_panoptic(path)
    with pytest.raises(FishnetError, match="does not exist"):
        read_panoptic(tmp_path / "other.json")


def test_the_writer_refuses_what_the_reader_would() -> None:
    twice: list[Category] = [{**CATEGORIES[0]}, {**CATEGORIES[0], "name": "dog"}]
    with pytest.raises(FishnetError, match="two categories have the same id"):
        PanopticWriter(Path("panoptic.json"), twice)
    with pytest.raises(FishnetError, match="5 pixels have the id 9"):
        PanopticWriter(Path("panoptic.json"), CATEGORIES).add(1, "a.jpg", PanopticMap(np.full((1, 5), 9), []))
