from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from fishnet.data.classification.dataset import open_classification
from fishnet.data.detection.dataset import open_detection
from fishnet.data.images import BadImageError
from fishnet.data.levels import ImageLabels, LevelClasses
from fishnet.data.multitask.layout import open_multitask, parse_sources
from fishnet.data.segmentation.dataset import open_segmentation
from fishnet.errors import FishnetError, UsageError
from tests.data.makers import class_folders, noise, put
from tests.data.multitask.makers import CLASSES, labels_of, multitask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
KNOWN = ("irp", "i", "r", "p", "ir", "rp", "", "ip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return multitask(tmp_path / "data", KNOWN)


def edit(root: Path, split: str = "train") -> tuple[Path, dict]:
    path = root / "annotations" / f"instances_{split}.json"
    return path, json.loads(path.read_text())


def same(found: ImageLabels, expected: ImageLabels) -> None:
    assert found.levels == expected.levels
    assert found.label == expected.label
    if expected.label_map is not None:
        assert np.array_equal(found.label_map, expected.label_map)
    if expected.objects is not None:
        assert np.array_equal(found.objects.classes, expected.objects.classes)
        assert np.array_equal(found.objects.boxes, expected.objects.boxes)
        assert found.objects.annotated == expected.objects.annotated
        if len(expected.objects.classes):
            assert np.array_equal(codec.decode(found.objects.masks), codec.decode(expected.objects.masks))


def test_each_image_has_the_labels_that_were_written(folder: Path) -> None:
    split = open_multitask(folder, "train")
    assert split.classes == CLASSES
    assert len(split) == 7
    for index, path in enumerate(split.paths):
        image, labels = split.load(index)
        number = int(path.stem)
        assert image.size == (40, 36)
        same(labels, labels_of(number, KNOWN[number]))
    names = ("pixel", "region", "region+pixel", "image", "image+pixel", "image+region", "image+region+pixel")
    assert split.counts() == dict.fromkeys(names, 1)
    assert split.known.sum(0).tolist() == [4, 4, 4]
    (note,) = split.notes
    assert re.search(r"skipped 1 image without a label of any level, such as .*006\.jpg", note)


def test_each_task_takes_its_level_and_unlabeled_is_not_empty(folder: Path) -> None:
    def having(letter: str) -> list[str]:
        return [f"{number:03d}" for number, known in enumerate(KNOWN) if letter in known]

    images, boxes, maps = (
        opened(folder, "train") for opened in (open_classification, open_detection, open_segmentation)
    )
    assert [Path(entry.name).stem for entry in images.samples] == having("i")
    assert [entry.target for entry in images.samples] == [int(stem) % 2 for stem in having("i")]
    assert [Path(name).stem for name in boxes.file.file_names] == having("r")
    assert [boxes.path(index).stem for index in range(len(boxes))] == having("r")
    assert [maps.path(index).stem for index in range(len(maps))] == having("p")
    # an image that was looked through and has no object counts as empty: 000 has 0 objects
    assert [len(boxes.file.objects(index)) for index in range(len(boxes))] == [int(stem) % 3 for stem in having("r")]


def test_annotated_categories_are_read(folder: Path) -> None:
    path, document = edit(folder)
    document["categories"] = [{"id": 10 * one["id"], "name": one["name"]} for one in document["categories"]]
    for one in document["annotations"]:
        one["category_id"] = 20
    document["images"][2]["annotated_category_ids"] = [30, 20]
    path.write_text(json.dumps(document))
    split = open_multitask(folder, "train")
    found = {path.stem: split.objects(index) for index, path in enumerate(split.paths)}
    assert found["002"].annotated == (1, 2)
    assert found["000"].annotated is None
    assert found["001"] is None
    (note,) = open_detection(folder, "train").notes
    assert "1 image annotated for some categories only" in note


@pytest.mark.parametrize("value", [[7], "car", [True], [1.5], [None]])
def test_damaged_lists_of_categories_are_named(folder: Path, value: object) -> None:
    path, document = edit(folder)
    document["images"][0]["annotated_category_ids"] = value
    path.write_text(json.dumps(document))
    with pytest.raises(FishnetError, match="`annotated_category_ids` must be a list of category ids"):
        open_multitask(folder, "train")


def test_single_task_folders_become_one_list(folder: Path, tmp_path: Path) -> None:
    day = class_folders(tmp_path / "day", {"train": {"day": 3, "night": 2}})
    data = [f"image={day}", f"region={folder}", f"pixel={folder}"]
    split = open_multitask(data, "train")
    assert split.counts() == {"image": 5, "region": 2, "pixel": 2, "region+pixel": 2}
    assert split.classes == CLASSES
    by_name = {path.parent.name + "/" + path.name: index for index, path in enumerate(split.paths)}
    assert split.labels[by_name["night/001.jpg"]] == 1
    _, labels = split.load(by_name["images/005.jpg"])
    same(labels, ImageLabels(None, labels_of(5, "r").objects, labels_of(5, "p").label_map))
    assert not split.notes


def test_one_folder_named_for_each_level_is_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    whole = open_multitask(folder, "train")
    split = open_multitask([f"image={folder}", f"region={tmp_path / 'link'}", f"pixel={folder}/"], "train")
    assert sorted(split.paths) == sorted(whole.paths)
    assert split.counts() == whole.counts()


def test_several_folders_of_a_level_need_equal_classes(folder: Path, tmp_path: Path) -> None:
    more = multitask(tmp_path / "more", ("irp", "r"))
    assert open_multitask([str(folder), str(more)], "train").known.sum(0).tolist() == [5, 6, 5]
    for field, names, shown in (
        ("image", ["day", "dusk"], "only in .*data.*: night; only in .*more.*: dusk"),
        ("region", ["car", "dog", "bush"], "only in .*data.*: tree; only in .*more.*: bush"),
        ("pixel", ["sky", "ground"], "the names are equal, but in another order"),
    ):
        lists = {"image": CLASSES.image, "region": CLASSES.region, "pixel": CLASSES.pixel} | {field: names}
        other = multitask(tmp_path / field / "more", ("irp",), classes=LevelClasses(**lists))
        with pytest.raises(FishnetError, match=f"the classes of the {field} level differ .*{shown}; make both"):
            open_multitask([str(folder), str(other)], "train")


def test_classes_of_training_or_model_are_required(folder: Path) -> None:
    assert open_multitask(folder, "val", classes=CLASSES).classes == CLASSES
    assert open_multitask(folder, "val", classes=LevelClasses([], CLASSES.region, [])).classes == CLASSES
    other = LevelClasses(CLASSES.image, ["car", "dog"], CLASSES.pixel)
    with pytest.raises(FishnetError, match=r"between the training split or model and .*: only in .*json: tree"):
        open_multitask(folder, "val", classes=other)


@pytest.mark.parametrize(("known", "levels"), [("i", [2, 0, 0]), ("r", [0, 2, 0]), ("p", [0, 0, 2]), ("rp", [0, 2, 2])])
def test_a_folder_may_lack_levels(tmp_path: Path, known: str, levels: list[int]) -> None:
    split = open_multitask(multitask(tmp_path / "data", (known, known)), "train")
    assert split.known.sum(0).tolist() == levels
    missing = ("image", "region", "pixel")[levels.index(0)]
    with pytest.raises(FishnetError, match=rf"no image of split 'train' has labels of the {missing} level \(2 "):
        split.require(["image", "region", "pixel"])


def test_a_folder_of_label_maps_only_needs_no_coco_file(tmp_path: Path) -> None:
    root = multitask(tmp_path / "data", ("p", "p"))
    shutil.rmtree(root / "annotations")
    split = open_multitask(root, "train")
    assert split.counts() == {"pixel": 2}
    assert split.classes == LevelClasses([], [], CLASSES.pixel)


def test_label_maps_and_boxes_must_be_for_the_same_image(folder: Path) -> None:
    Image.new("L", (41, 36)).save(folder / "train" / "labels" / "000.png")
    split = open_multitask(folder, "train")
    with pytest.raises(BadImageError, match=r"000\.png: it has 41x36 pixels, but the boxes are for 40x36"):
        split.load(split.paths.index((folder / "train" / "images" / "000.jpg").resolve()))


def test_bad_data_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    empty = multitask(tmp_path / "empty", ("", ""))
    classes = class_folders(tmp_path / "classes", {"train": {"a": 1, "b": 1}})
    put(tmp_path / "tags" / "train" / "labels.csv", b"file,labels\n1.jpg,a|b\n")
    put(tmp_path / "tags" / "train" / "1.jpg", noise(0))
    for data, kind, message in (
        (str(empty), FishnetError, "empty has no labels of any level in split 'train'"),
        (str(classes), FishnetError, f"name the level, such as image={classes}"),
        (f"image={tmp_path / 'tags'}", FishnetError, "several labels per image"),
        ([f"image={folder}", f"image={folder}"], FishnetError, "has labels of the image level twice"),
        (str(tmp_path / "nowhere"), FishnetError, "nowhere does not exist"),
        ("pixels=/data", UsageError, "unknown level 'pixels'. Did you mean 'pixel'? Levels are image, region, pixel"),
        ("pixel=", UsageError, "a folder is missing after pixel="),
        ([], UsageError, "--data needs a folder"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            open_multitask(data, "train")
    with pytest.raises(FishnetError, match="no split 'tset'"):
        open_multitask(folder, "tset")


def test_a_folder_whose_objects_are_all_unlabeled_says_so(tmp_path: Path) -> None:
    root = multitask(tmp_path / "data", ("ip", "ip"))
    with pytest.raises(FishnetError, match="lists no images: the objects of all 2 are unlabeled"):
        open_detection(root, "train")


def test_real_three_level_data(mini) -> None:
    split = open_multitask(mini("pets3"), "train")
    assert split.counts() == {"image+region+pixel": 72}
    for index in range(0, 72, 9):
        _, labels = split.load(index)
        assert split.classes.image[labels.label] == split.paths[index].name.rpartition("_")[0]
        assert np.array_equal(codec.decode(labels.objects.masks)[..., 0] > 0, labels.label_map != 0)


def test_blanks_around_folders_are_no_folder() -> None:
    assert (
        parse_sources(" image=a region=b\n")
        == parse_sources("image=a,region=b")
        == parse_sources(["image=a", "region=b"])
    )
    with pytest.raises(UsageError, match="--data needs a folder"):
        parse_sources("")
