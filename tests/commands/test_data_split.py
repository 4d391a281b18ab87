from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fishnet.commands.data_check import data_check
from fishnet.commands.data_split import data_split
from fishnet.commands.train import train
from fishnet.data.classification.dataset import open_classification
from fishnet.data.classification.split import choose_val
from fishnet.data.detection import split as split_coco
from fishnet.data.detection.dataset import open_detection
from fishnet.errors import FishnetError, UsageError
from fishnet.files import atomic_write
from tests.data.makers import class_folders, encode, noise, put, write_shard


def contents(root: Path) -> Counter[bytes]:
    return Counter(path.read_bytes() for path in root.rglob("*.jpg"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_moves_a_share_of_every_class_of_real_photos(mini_copy, capsys):
    root = mini_copy("cifar10")
    shutil.rmtree(root / "val")
    before = contents(root)
    counts = Counter(path.parent.name for path in root.glob("train/*/*.jpg"))
    report = data_split(str(root), val=0.25)
    assert contents(root) == before
    train = open_classification(root, "train")
    val = open_classification(root, "val", classes=train.classes)
    expected = [int(counts[name] * 0.25 + 0.5) for name in train.classes]
    assert val.class_counts().tolist() == expected
    assert report.plan.counts == {
        name: (counts[name] - some, some) for name, some in zip(train.classes, expected, strict=True)
    }
    assert f"all{'':<7}  {2000 - sum(expected):>8}  {sum(expected):>8}" in capsys.readouterr().out
    assert data_check("classification", str(root)).exit_code == 0
    with pytest.raises(FishnetError, match="already has a validation split"):
        data_split(str(root))


def test_makes_both_splits_of_class_folders(tmp_path):
    class_folders(tmp_path, {"": {"ant": 10, "bee": 5}})
    put(tmp_path / "ant" / "deep" / "x.jpg", noise(99))
    put(tmp_path / "bee" / "notes.txt", b"kept")
    (tmp_path / "documents").mkdir()
    before = contents(tmp_path)
    data_split(str(tmp_path), val=0.4)
    assert contents(tmp_path) == before
    assert len(files(tmp_path / "val" / "ant")) == 4
    assert len(files(tmp_path / "train" / "ant")) == 7
    assert len(files(tmp_path / "val" / "bee")) == 2
    assert (tmp_path / "bee" / "notes.txt").read_bytes() == b"kept"
    assert not (tmp_path / "ant").exists()
    assert (tmp_path / "train" / "ant" / "deep" / "x.jpg").exists() != (tmp_path / "val/ant/deep/x.jpg").exists()


def test_copy_leaves_the_originals(tmp_path):
    root = class_folders(tmp_path / "data", {"": {"ant": 4, "bee": 4}})
    (root / "ant" / "linked.jpg").symlink_to(put(tmp_path / "pool.jpg", noise(50)))
    before = contents(root)
    with pytest.raises(FishnetError, match=r"linked\.jpg is reached through a symbolic link.*--copy"):
        data_split(str(root))
    data_split(str(root), copy=True)
    assert contents(root) == before + before
    assert contents(root / "train") + contents(root / "val") == before


def test_the_seed_decides(tmp_path):
    chosen = []
    for number, seed in enumerate((0, 0, 1)):
        root = class_folders(tmp_path / str(number), {"train": {"ant": 20, "bee": 20}})
        data_split(str(root), seed=seed)
        chosen.append(files(root / "val"))
    assert chosen[0] == chosen[1] != chosen[2]


def test_copies_of_a_picture_stay_on_one_side(tmp_path):
    root = class_folders(tmp_path, {"train": {"ant": 10, "bee": 10, "cow": 2, "one": 1, "twin": 1}})
    for number in range(10):
        source = root / "train" / "ant" / f"{number:03d}.jpg"
        shutil.copy(source, source.with_name(f"copy{number}.jpg"))
    shutil.copy(root / "train" / "ant" / "000.jpg", root / "train" / "bee" / "from_ant.jpg")
    shutil.copy(root / "train" / "twin" / "000.jpg", root / "train" / "twin" / "001.jpg")
    report = data_split(str(root), val=0.3)
    assert not contents(root / "train") & contents(root / "val")
    counts = report.plan.counts
    assert counts["ant"] == (14, 6)
    assert counts["bee"][1] in (2, 3, 4)
    assert counts["cow"] == (1, 1)
    assert counts["one"] == (1, 0)
    assert counts["twin"] == (2, 0)
    assert "one, twin" in report.describe()


def test_properties_of_the_choice_on_random_data():
    rng = random.Random(0)
    for trial in range(300):
        count = rng.randint(1, 40)
        classes = [rng.choice("abcd") for _ in range(count)]
        digests = [bytes([rng.randrange(rng.choice((5, 60)))]) for _ in range(count)]
        share = rng.choice((0.01, 0.2, 0.5, 0.99))
        chosen = choose_val(classes, digests, share, trial)
        assert chosen == choose_val(classes, digests, share, trial)
        sides = [(digest, number in chosen) for number, digest in enumerate(digests)]
        assert len(set(sides)) == len(set(digests)), "a group was torn apart"
        for name in set(classes):
            own = [number for number in range(count) if classes[number] == name]
            assert sum(number not in chosen for number in own) >= 1, "train lost a class"
    # where no picture is there twice, every class with two images has one on either side, and the share is met
    for trial in range(50):
        classes = [rng.choice("abcd") for _ in range(60)]
        chosen = choose_val(classes, [bytes([n]) for n in range(60)], 0.2, trial)
        for name, total in Counter(classes).items():
            assert sum(classes[n] == name for n in chosen) == max(1, int(total * 0.2 + 0.5))


@pytest.mark.parametrize("layout", ["train", ""])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_split_is_finished(tmp_path, monkeypatch, layout, stop_after):
    root = class_folders(tmp_path / "data", {layout: {"ant": 8, "bee": 8}})
    twin = class_folders(tmp_path / "twin", {layout: {"ant": 8, "bee": 8}})
    data_split(str(twin), val=0.5, seed=4)
    before = contents(root)
    rename, calls = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            data_split(str(root), val=0.5, seed=4)
    assert contents(root) == before
    report = data_split(str(root), val=0.1, seed=9)
    assert report.resumed
    assert "completed an interrupted split with --val 0.5 --seed 4" in report.describe()
    assert contents(root) == before
    assert files(root) == files(twin)
    assert json.loads((root / "split.json").read_text())["done"]


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    root = class_folders(tmp_path, {"train": {"ant": 4}})

    def dying(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(FishnetError, match=r"No space left.*run again to continue"):
            data_split(str(root))
    plan = json.loads((root / "split.json").read_text())
    target = put(root / plan["moves"][0][1], b"something else")
    with pytest.raises(FishnetError, match="already exists"):
        data_split(str(root))
    assert target.read_bytes() == b"something else"
    target.unlink()
    lost = root / plan["moves"][0][0]
    lost.rename(root / "elsewhere.jpg")
    with pytest.raises(FishnetError, match="disappeared"):
        data_split(str(root))
    (root / "elsewhere.jpg").rename(lost)
    data_split(str(root))
    assert len(files(root / "val")) == 1


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_label_lists_are_divided(tmp_path):
    names = ["a|b", "a", "b", ""]
    rows = []
    for number in range(20):
        put(tmp_path / "train" / "images" / f"{number}.jpg", noise(number))
        rows.append({"file": f"images/{number}.jpg", "labels": names[number % 4], "author": f"x, y {number}"})
    with (tmp_path / "train" / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "labels", "author"])
        writer.writeheader()
        writer.writerows(rows)
    report = data_split(str(tmp_path), val=0.2)
    assert report.plan.counts == {"(no label)": (4, 1), "a": (8, 2), "b": (4, 1)}
    train, val = (read_rows(tmp_path / side / "labels.csv") for side in ("train", "val"))
    assert sorted([*train, *val], key=lambda row: int(row["author"].split()[-1])) == rows
    for side, count in (("train", 16), ("val", 4)):
        data = open_classification(tmp_path, side, classes=["a", "b"])
        assert len([data[i] for i in range(len(data))]) == count


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda root: class_folders(root, {"train": {"a": 2}, "val": {}}) and (root / "val").mkdir(), "already"),
        (
            lambda root: class_folders(root, {"train": {"a": 2}, "valid": {"a": 2}}),
            "already has a validation split .valid",
        ),
        (lambda root: class_folders(root, {"test": {"a": 2}}), "has the splits test but no train"),
        (lambda root: class_folders(root, {"train": {"a": 0}}), "contains no images"),
        (lambda root: put(root / "notes.txt", b"x"), "no task recognizes the layout"),
        (
            lambda root: write_shard(root / "train-0.tar", [("1.jpg", encode(noise(0))), ("1.cls", b"0")]),
            "cannot split shards",
        ),
        (lambda root: put(root / "train" / "labels.csv", b"file,labels\n../x.jpg,a\n"), "not below"),
        (
            lambda root: put(root / "train" / "labels.csv", b"file,labels\nx.jpg,a\n"),
            "lists train/x.jpg, which does not exist",
        ),
        (lambda root: put(root / "split.json", b"[1]"), "not a plan"),
        (
            lambda root: put(
                root / "split.json",
                b'{"val": 0.2, "seed": 0, "copy": false, "counts": {}, "moves": [["a", "../b"]], "format_version": 1}',
            ),
            "not a plan",
        ),
    ],
)
def test_refusals_change_nothing(tmp_path, prepare, match):
    prepare(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(FishnetError, match=match):
        data_split(str(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def only_train(root: Path) -> Path:
    """Take val away from a COCO folder; return the annotation file of train."""
    for path in root.glob("annotations/instances_val*.json"):
        path.unlink()
    (path,) = root.glob("annotations/instances_train*.json")
    return path


def coco_images(path: Path) -> dict[int, str]:
    return {image["id"]: image["file_name"] for image in json.loads(path.read_text())["images"]}


@pytest.mark.parametrize("name", ["coco", "pets3"])
def test_a_coco_file_is_divided_and_every_image_stays_where_it_is(name, mini_copy, capsys):
    root = mini_copy(name)
    for labels in root.glob("*/labels"):
        shutil.rmtree(labels)  # with label maps it could not be divided
    path = only_train(root)
    whole, before = path.read_bytes(), files(root)
    with pytest.raises(FishnetError, match=r"no split 'val'.*fishnet data split .* creates val"):
        open_detection(root, "val")
    first = open_detection(root, "train")
    truth = {first.path(i).name: first[i]["target"]["boxes"].tolist() for i in range(len(first))}
    report = data_split(str(root), val=0.25)
    kept = report.kept
    assert kept.read_bytes() == whole
    val_path = path.with_name(path.name.replace("train", "val"))
    assert files(root) == sorted([*before, kept.relative_to(root).as_posix(), val_path.relative_to(root).as_posix()])
    train = open_detection(root, "train")
    val = open_detection(root, "val", classes=train.classes)
    assert report.images == (len(train), len(val))
    assert abs(len(val) - 0.25 * len(first)) <= 2
    found = {data.path(i).name: data[i]["target"]["boxes"].tolist() for data in (train, val) for i in range(len(data))}
    assert found == truth
    for label, (some, others) in report.counts.items():
        assert (others >= 1 and some >= 1) or some + others < 2, label
    assert "no image was moved" in capsys.readouterr().out
    if name == "pets3":
        assert open_classification(root, "val").classes == open_classification(root, "train").classes
        assert len(open_classification(root, "val")) == len(val)
        assert [open_classification(root, "val")[i]["bad"] for i in range(len(val))] == [""] * len(val)
    with pytest.raises(FishnetError, match="already has a validation split"):
        data_split(str(root))


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_an_interrupted_division_of_a_coco_file_starts_again_from_the_original(mini_copy, monkeypatch, stop_after):
    root = mini_copy("coco")
    path = only_train(root)
    whole = coco_images(path)
    written: list[Path] = []

    def dying(target: Path, content: str | bytes) -> None:
        if len(written) == stop_after:
            raise KeyboardInterrupt
        written.append(target)
        atomic_write(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(split_coco, "atomic_write", dying)
        with pytest.raises(KeyboardInterrupt):
            data_split(str(root), val=0.5, seed=1)
    data_split(str(root), val=0.25, seed=2)
    val = coco_images(path.with_name(path.name.replace("train", "val")))
    train = coco_images(path)
    assert not set(train) & set(val)
    assert set(train) | set(val) == set(whole)
    assert abs(len(val) - 0.25 * len(whole)) <= 2


def test_a_coco_file_that_cannot_be_divided_stays_as_it_is(mini_copy):
    root = mini_copy("coco")
    path = only_train(root)
    whole = path.read_bytes()
    with pytest.raises(UsageError, match="--copy is not an option of the split of detection data"):
        data_split(str(root), copy=True)
    with pytest.raises(UsageError, match="must be between 0 and 1"):
        data_split(str(root), val=1.5)
    document = json.loads(whole)
    document["annotations"][0]["bbox"] = [-50, 0, 5, 5]
    path.write_text(json.dumps(document))
    with pytest.raises(FishnetError, match=r"1 x box outside.*data check"):
        data_split(str(root))
    document["annotations"].pop(0)
    document["images"][0]["id"] = 123456789
    document["annotations"] = []
    path.write_text(json.dumps(document))
    (root / "annotations" / f"unsplit_{path.stem.removeprefix('instances_')}.json").write_bytes(whole)
    before = files(root)
    with pytest.raises(FishnetError, match="is from an earlier split"):
        data_split(str(root))
    assert files(root) == before


def test_equal_images_of_a_coco_file_stay_on_one_side(tmp_path):
    for number in range(20):
        put(tmp_path / "train" / f"{number}.png", encode(noise(number // 2, 30, 20), "PNG"))
    images = [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in range(20)]
    objects = [{"id": n + 1, "image_id": n, "category_id": n // 2 % 2, "bbox": [1, 1, 9, 9]} for n in range(20)]
    categories = [{"id": 0, "name": "ant"}, {"id": 1, "name": "bee"}]
    path = put(
        tmp_path / "annotations" / "instances_train.json",
        json.dumps({"images": images, "annotations": objects, "categories": categories}).encode(),
    )
    data_split(str(tmp_path), val=0.4)
    val = set(coco_images(path.with_name("instances_val.json")))
    assert len(val) == 8
    assert {n ^ 1 for n in val} == val


def test_stratified_shares_of_images_with_several_classes():
    rng = random.Random(0)
    for trial in range(20):
        weights = [0.6, 0.3, 0.2, 0.05, 0.02]
        labels = [frozenset(n for n, share in enumerate(weights) if rng.random() < share) for _ in range(400)]
        chosen = split_coco.stratify(labels, 0.2, trial)
        assert chosen == split_coco.stratify(labels, 0.2, trial)
        assert abs(len(chosen) - 80) <= 8
        for label in range(len(weights)):
            total = sum(label in one for one in labels)
            inside = sum(label in labels[index] for index in chosen)
            assert abs(inside - 0.2 * total) <= max(2, 0.05 * total), (label, inside, total)
            assert total < 2 or 1 <= inside < total
    assert split_coco.stratify(labels, 0.2, 0) != split_coco.stratify(labels, 0.2, 1)
    assert len(split_coco.stratify([frozenset()] * 10, 0.3, 0)) == 3


def test_linked_class_folders_are_refused(tmp_path):
    pool = class_folders(tmp_path / "pool", {"": {"ant": 4}})
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "ant").symlink_to(pool / "ant", target_is_directory=True)
    with pytest.raises(FishnetError, match="symbolic link"):
        data_split(str(tmp_path / "data"))
    # linked files at the same depth move as links
    root = class_folders(tmp_path / "more", {"train": {"bee": 1}})
    for number in range(4):
        link = root / "train" / "bee" / f"link{number}.jpg"
        link.symlink_to(os.path.relpath(pool / "ant" / f"{number:03d}.jpg", link.parent))
    data_split(str(root), val=0.5)
    assert all(path.is_file() for path in root.glob("*/*/*.jpg"))
    assert len(files(root / "val")) >= 2


def test_bad_usage(tmp_path):
    class_folders(tmp_path, {"train": {"a": 4}})
    for share in (0, 1, -0.5, 20):
        with pytest.raises(UsageError, match="must be between 0 and 1"):
            data_split(str(tmp_path), val=share)
    with pytest.raises(UsageError, match="--copy would leave"):
        data_split(str(tmp_path), copy=True)


def test_a_folder_that_no_task_knows_is_not_touched(tmp_path, capsys):
    # VOC in folders of other names: photos/ must not become a class
    put(tmp_path / "photos" / "1.jpg", encode(noise(0)))
    put(tmp_path / "xml" / "1.xml", b"<annotation/>")
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"no task recognizes.*classification: a folder per class.*detection: anno"):
        data_split(str(tmp_path))
    assert files(tmp_path) == before


@pytest.mark.parametrize("layout", ["folders", "train"])
def test_a_split_says_what_it_moves_and_can_be_undone(tmp_path, capsys, layout):
    classes = {"ant": 6, "bee": 5}
    class_folders(tmp_path, {"": classes} if layout == "folders" else {"train": classes})
    before = files(tmp_path)
    data_split(str(tmp_path), val=0.4)
    told = capsys.readouterr().out
    moved = 11 if layout == "folders" else 4
    assert f"moving {moved} images within {tmp_path}" in told.splitlines()[0]
    assert f"`fishnet data split {tmp_path} --undo` moves them back" in told.splitlines()[0]
    assert files(tmp_path) != before
    data_split(str(tmp_path), undo=True)
    assert files(tmp_path) == before
    assert f"{moved} images are back" in capsys.readouterr().out
    with pytest.raises(FishnetError, match="nothing to undo"):
        data_split(str(tmp_path), task="classification", undo=True)


def test_undoing_restores_the_list_of_labels(tmp_path):
    rows = ["file,labels,note"] + [f"{index}.jpg,{'a b' if index % 2 else 'a'},n{index}" for index in range(8)]
    for index in range(8):
        put(tmp_path / "train" / f"{index}.jpg", encode(noise(index)))
    put(tmp_path / "train" / "labels.csv", ("\r\n".join(rows) + "\r\n").encode())
    before = {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    data_split(str(tmp_path), val=0.25)
    assert (tmp_path / "val" / "labels.csv").exists()
    data_split(str(tmp_path), undo=True)
    assert {path: (tmp_path / path).read_bytes() for path in files(tmp_path)} == before


def test_an_undo_that_was_interrupted_continues(tmp_path):
    class_folders(tmp_path, {"": {"ant": 6, "bee": 5}})
    before = files(tmp_path)
    data_split(str(tmp_path), val=0.4)
    plan = json.loads((tmp_path / "split.json").read_text())
    for old, new in plan["moves"][:4]:
        (tmp_path / old).parent.mkdir(exist_ok=True)
        (tmp_path / new).rename(tmp_path / old)
    data_split(str(tmp_path), undo=True)
    assert files(tmp_path) == before


def test_one_level_too_deep_is_not_split_again(tmp_path):
    class_folders(tmp_path, {"train": {"ant": 6, "bee": 5}, "val": {"ant": 2, "bee": 2}})
    before = files(tmp_path)
    with pytest.raises(
        FishnetError, match=rf"is one split of a data set; did you mean `fishnet data split {tmp_path}`"
    ):
        data_split(str(tmp_path / "train"))
    assert files(tmp_path) == before
    with pytest.raises(FishnetError, match=rf"is one split of a data set; did you mean --data {tmp_path}\?"):
        open_classification(tmp_path / "train", "train")


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda root: class_folders(root, {"": {"cat": 2}}), "has one class only .cat.; a classifier needs two: add a"),
        (
            lambda root: class_folders(root, {"": {"cat": 2, "dog": 0}}),
            "has one class only .cat.; .*there are no images in dog$",
        ),
        (lambda root: put(root / "1.jpg", noise(0)), "has 1 image but no class folders; .*a folder for each class"),
        (lambda root: put(root / "images" / "1.jpg", noise(0)), "has 1 image but no class folders"),
    ],
)
def test_folders_without_two_classes_are_explained_by_every_command(prepare, match, tmp_path):
    prepare(tmp_path)
    with pytest.raises(FishnetError, match=match):
        train("classification", data=str(tmp_path), out=str(tmp_path / "run"))
    with pytest.raises(FishnetError, match=match):
        data_check("classification", str(tmp_path))
    with pytest.raises(FishnetError, match=match):
        data_split(str(tmp_path))


def test_empty_class_folders_and_a_train_of_one_class(tmp_path):
    root = class_folders(tmp_path / "empty", {"": {"cat": 0, "dog": 0}})
    with pytest.raises(FishnetError, match="has no images in its folders cat, dog; add those of each class"):
        open_classification(root, "train")
    root = class_folders(tmp_path / "one", {"train": {"cat": 3}})
    with pytest.raises(FishnetError, match=r"has only one class .cat."):
        train("classification", data=str(root), out=str(tmp_path / "run"))


def test_boxes_of_other_layouts_are_converted_first(tmp_path):
    voc, yolo = tmp_path / "voc", tmp_path / "yolo"
    put(voc / "Annotations" / "1.xml", b"<annotation/>")
    put(voc / "JPEGImages" / "1.jpg", noise(1))
    put(yolo / "images" / "1.jpg", noise(1))
    put(yolo / "labels" / "1.TXT", b"0 0.5 0.5 0.1 0.1")
    put(yolo / "data.yaml", b"names: [ant]")
    (tmp_path / "voc_coco" / "old").mkdir(parents=True)
    for root, out, name in ((voc, "voc_coco2", "VOC"), (yolo, "yolo_coco", "YOLO")):
        match = rf"{root} has the layout of {name}; `fishnet data convert {root} {tmp_path / out} --val 0.2`"
        with pytest.raises(UsageError, match=match):
            data_split(str(root))
        with pytest.raises(FishnetError, match=match):
            train("detection", data=str(root), out=str(tmp_path / "run"))
    with pytest.raises(FishnetError, match=r"data.yaml has the layout of YOLO; `fishnet data convert .*_coco"):
        train("detection", data=str(yolo / "data.yaml"), out=str(tmp_path / "run"))
    with pytest.raises(FishnetError, match=rf"did you mean --data {yolo}\?"):
        train("detection", data=str(yolo / "labels"), out=str(tmp_path / "run"))
