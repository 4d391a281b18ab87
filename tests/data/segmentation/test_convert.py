"""VOC, Cityscapes, COCO and colored label maps as plain label maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from fishnet.data.detection.convert import can_convert as detection_can_convert
from fishnet.data.segmentation.checks import check_segmentation
from fishnet.data.segmentation.convert import can_convert, convert_segmentation
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import noise, put
from tests.data.segmentation.makers import data_folder, label_map, png, relabel
from tests.data.segmentation.test_dataset import cityscapes_folder, voc_folder


def label_maps(root: Path, split: str) -> dict[str, np.ndarray]:
    return {path.stem: np.array(Image.open(path)) for path in sorted((root / split / "labels").iterdir())}


def same_data(first: Path, second: Path, splits: tuple[str, ...]) -> None:
    """Compare the samples of two folders in any layout."""
    for split in splits:
        a, b = open_segmentation(first, split), open_segmentation(second, split)
        assert a.classes == b.classes
        assert len(a) == len(b)
        for one, two in zip((a[i] for i in range(len(a))), (b[i] for i in range(len(b))), strict=True):
            assert np.array_equal(one["image"].numpy(), two["image"].numpy())
            assert np.array_equal(one["target"]["label_map"].numpy(), two["target"]["label_map"].numpy())


def test_voc_and_cityscapes(tmp_path: Path) -> None:
    for source in (voc_folder(tmp_path / "voc"), cityscapes_folder(tmp_path / "city")):
        dest = tmp_path / f"plain_{source.name}"
        report = convert_segmentation(source, dest)
        assert report.images == {"train": 2, "val": 1}
        same_data(source, dest, ("train", "val"))
        assert check_segmentation(dest).exit_code == 0
        written = json.loads((dest / "classes.json").read_text())
        assert written == {"classes": open_segmentation(source, "train").classes, "ignore_index": 255}


def test_coco_against_the_semantic_maps_of_the_same_photos(mini: Callable[[str], Path], tmp_path: Path) -> None:
    """The maps beside the data set were made by another program."""
    source = mini("coco")
    report = convert_segmentation(source, tmp_path / "maps")
    truth = source.with_name("coco_semantic")
    for split in ("train", "val"):
        ours, theirs = label_maps(tmp_path / "maps", split), label_maps(truth, split)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert report.images[split] == len(ours)
    written = json.loads((tmp_path / "maps" / "classes.json").read_text())
    assert written == json.loads((truth / "classes.json").read_text())
    assert check_segmentation(tmp_path / "maps").exit_code == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_coco_against_pycocotools_with_every_kind_of_outline(tmp_path: Path, capsys) -> None:
    """Polygons, run lengths of both kinds, a crowd, an object without outline; small objects stay visible."""
    source = tmp_path / "coco"
    size = 60, 80
    counts = {"size": list(size), "counts": [600, 900, 3300]}
    square = [[20.0, 10.0, 50.0, 10.0, 50.0, 40.0, 20.0, 40.0]]
    entries = [
        (9, square, 0), (4, [[30.0, 20.0, 36.0, 20.0, 36.0, 28.0, 30.0, 28.0]], 0), (4, counts, 0),
        (9, {"size": list(size), "counts": [3000, 900, 900]}, 1), (4, [], 0),
    ]  # fmt: skip
    annotations = [
        {
            "id": n,
            "image_id": 7,
            "category_id": c,
            "segmentation": s,
            "iscrowd": crowd,
            "bbox": [60, 45, 15, 10],
            "area": 1,
        }
        for n, (c, s, crowd) in enumerate(entries, 1)
    ]
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "ant"}],
    }
    put(source / "train2017" / "a.jpg", noise(1, 80, 60))
    put(source / "annotations" / "instances_train2017.json", json.dumps(document).encode())
    report = convert_segmentation(source, tmp_path / "out")
    api = COCO(str(source / "annotations" / "instances_train2017.json"))
    capsys.readouterr()
    wanted = np.zeros(size, np.uint8)
    masks = {n: api.annToMask(api.anns[n]).astype(bool) for n in (1, 2, 3, 4)}
    wanted[masks[4]] = 255
    wanted[45:55, 60:75] = 255  # the box of the object without outline
    for n in sorted((1, 2, 3), key=lambda n: -masks[n].sum()):
        wanted[masks[n]] = {4: 1, 9: 2}[annotations[n - 1]["category_id"]]
    found = label_maps(tmp_path / "out", "train")["a"]
    assert np.array_equal(found, wanted)
    assert (wanted[masks[2]] == 1).all()  # the small object on the large one
    assert report.notes == [
        "train: 1 objects have no segmentation; their boxes are ignored, as their outline is not known"
    ]
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["classes"] == ["background", "ant", "cat"]


def test_masks_and_colors_become_indices(tmp_path: Path) -> None:
    masks = data_folder(tmp_path / "masks", {"train": 3, "val": 1}, {"values": {"0": "background", "255": "cat"}})
    relabel(masks, lambda labels: png((labels == 1).astype(np.uint8) * 255))
    palette = [[9, 9, 9], [200, 0, 0], [0, 200, 0]]
    document = {"classes": ["sky", "road", "car"], "palette": palette, "ignore_color": [0, 0, 0]}
    colored = data_folder(tmp_path / "colored", {"train": 2, "val": 2}, document)
    table = np.array([*palette, *[[0, 0, 0]] * 253], np.uint8)
    relabel(colored, lambda labels: Image.fromarray(table[labels]))
    for source in (masks, colored):
        convert_segmentation(source, tmp_path / f"plain_{source.name}")
        same_data(source, tmp_path / f"plain_{source.name}", ("train", "val"))
    assert np.array_equal(label_maps(tmp_path / "plain_colored", "train")["001"], label_map(1))


def test_val_is_taken_from_a_source_with_one_split(tmp_path: Path) -> None:
    source = data_folder(tmp_path / "data", {"train": 10})
    report = convert_segmentation(source, tmp_path / "out", val=0.3)
    assert report.images == {"train": 7, "val": 3}
    assert [len(open_segmentation(tmp_path / "out", split)) for split in ("train", "val")] == [7, 3]
    both = sorted(name for split in ("train", "val") for name in label_maps(tmp_path / "out", split))
    assert both == [f"{number:03d}" for number in range(10)]
    with pytest.raises(UsageError, match="--val needs a source with one split"):
        convert_segmentation(data_folder(tmp_path / "two", {"train": 2, "val": 2}), tmp_path / "other", val=0.3)


def test_images_are_linked_or_copied(tmp_path: Path) -> None:
    source = voc_folder(tmp_path)
    for copy in (False, True):
        convert_segmentation(source, tmp_path / str(copy), copy=copy)
        image = tmp_path / str(copy) / "train" / "images" / "2007_a.jpg"
        assert image.samefile(source / "JPEGImages" / "2007_a.jpg") is not copy


def test_sources_that_are_refused(tmp_path: Path, mini: Callable[[str], Path]) -> None:
    def message(source: Path, dest: Path = tmp_path / "never") -> str:
        with pytest.raises(FishnetError) as caught:
            convert_segmentation(source, dest)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    voc = voc_folder(tmp_path / "voc")
    assert "is not empty; choose another folder" in message(voc, voc)
    assert "does not exist" in message(tmp_path / "absent")
    assert "has no label maps in a known layout" in message(put(tmp_path / "photos" / "a.jpg", noise(1)).parent)
    coco = Path(shutil.copytree(mini("coco"), tmp_path / "coco"))
    path = next((coco / "annotations").glob("instances_train*.json"))
    document = json.loads(path.read_text())
    document["images"][0]["width"] += 1
    path.write_text(json.dumps(document))
    assert "correct it" in message(coco, tmp_path / "a")
    document["annotations"][0]["category_id"] = 999
    document["images"][0]["width"] -= 1
    path.write_text(json.dumps(document))
    assert "`fishnet data check detection DIR` lists its problems" in message(coco, tmp_path / "b")
    path.write_text("{}")
    assert "KeyError: 'images'" in message(coco, tmp_path / "c")
    (voc / "SegmentationClass" / "2007_a.png").write_bytes(b"no image")
    assert "2007_a.png: it is not an image" in message(voc, tmp_path / "d")


def test_layouts_that_are_recognized_without_naming_the_task(tmp_path: Path, mini: Callable[[str], Path]) -> None:
    assert can_convert(voc_folder(tmp_path / "voc"))
    assert can_convert(cityscapes_folder(tmp_path / "city"))
    for root in (mini("coco"), mini("pets3"), data_folder(tmp_path / "plain", {"train": 1}), tmp_path / "absent"):
        assert not can_convert(root)
    assert not detection_can_convert(tmp_path / "city")
