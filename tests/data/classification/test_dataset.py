from __future__ import annotations

import gzip
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fishnet.config import PreprocessConfig
from fishnet.data.classification.dataset import Entry, SampleKey, available_splits, open_classification
from fishnet.data.classification.transforms import AugmentConfig, train_transform
from fishnet.data.images import BadImageError, read_image
from fishnet.errors import FishnetError
from tests.data.makers import class_folders, encode, noise, put, write_shard

MODERN = AugmentConfig(
    color_jitter=0.3, lighting=0.1, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5
)  # fmt: skip


def rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def save(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_class_folders_of_real_photos(mini):
    root = mini("cifar10")
    data = open_classification(root, "train")
    assert data.classes == sorted(path.name for path in (root / "train").iterdir())
    assert len(data) == len(list(root.glob("train/*/*.jpg"))) == 2000
    assert data.class_counts().tolist() == [len(list(path.iterdir())) for path in sorted((root / "train").iterdir())]
    assert not data.multi_label
    for index in (0, 777, 1999):
        name, target = data.samples[index]
        assert name.split("/")[:2] == ["train", data.classes[target]]
        assert np.array_equal(np.asarray(data.load(index)), rgb(root / name))
        item = data[index]
        assert item["target"].item() == target
        assert item["target"].dtype == torch.int64
        assert (item["index"], item["bad"]) == (index, "")
        assert torch.equal(item["image"], torch.from_numpy(rgb(root / name)).permute(2, 0, 1) / 255)
    assert isinstance(data.samples[3], Entry)
    assert [sample.target for sample in data.samples] == sorted(sample.target for sample in data.samples)
    with pytest.raises(IndexError):
        data[2000]


def test_multitask_folder_gives_its_labels(mini):
    root = mini("pets3")
    document = json.loads((root / "annotations" / "instances_val.json").read_text())
    data = open_classification(root, "val", classes=open_classification(root, "train").classes)
    assert data.classes == document["labels"]
    assert [sample.target for sample in data.samples] == [image["label"] for image in document["images"]]
    first = document["images"][0]["file_name"]
    assert np.array_equal(np.asarray(data.load(0)), rgb(root / "val" / "images" / first))


def test_coco_names_with_a_year(tmp_path):
    for number in range(3):
        put(tmp_path / "train2017" / f"{number}.jpg", noise(number))
    images = [{"id": n, "file_name": f"{n}.jpg", "label": n % 2} for n in range(3)]
    save(tmp_path / "annotations" / "instances_train2017.json", {"labels": ["b", "a"], "images": images})
    assert available_splits(tmp_path) == ["train2017"]
    data = open_classification(tmp_path, "train")
    assert data.samples[1] == ("train2017/1.jpg", 1)
    assert data.load(2).size == (40, 36)
    # numbering by another order of the same names
    assert open_classification(tmp_path, "train2017", classes=["a", "b"]).samples[1].target == 0


def test_list_of_several_labels(tmp_path):
    for number in range(4):
        put(tmp_path / "train" / "images" / f"{number}.jpg", noise(number))
    rows = ["file,labels", "images/0.jpg,dog|cat", "images/1.jpg,", "images/2.jpg,cat", 'images/3.jpg," cat | bird "']
    put(tmp_path / "train" / "labels.csv", "\ufeff".encode() + "\r\n".join(rows).encode())
    data = open_classification(tmp_path, "train")
    assert data.multi_label
    assert data.classes == ["bird", "cat", "dog"]
    assert data.samples[0] == ("train/images/0.jpg", (1, 2))
    assert data.class_counts().tolist() == [1, 3, 1]
    assert [data[i]["target"].tolist() for i in range(4)] == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert data[0]["target"].dtype == torch.float32
    # a val with fewer labels is fine, one with others is not
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "labels.csv").write_text("file,labels\n0.jpg,dog\n")
    val = open_classification(tmp_path, "val", classes=data.classes)
    assert val.samples[0].target == (2,)
    with pytest.raises(FishnetError, match=r"only in .*labels\.csv: dog"):
        open_classification(tmp_path, "val", classes=["bird", "cat"])
    save(tmp_path / "classes.json", {"classes": ["dog", "cat", "bird", "fish"]})
    assert open_classification(tmp_path, "train").samples[0].target == (0, 1)
    assert open_classification(tmp_path, "val").class_counts().tolist() == [1, 0, 0, 0]


def shards(root: Path, labels: list[str]) -> list[bytes]:
    contents = [encode(noise(n), "PNG" if n % 2 else "JPEG") for n in range(len(labels))]
    files: list[tuple[str, bytes]] = []
    for number, (content, label) in enumerate(zip(contents, labels, strict=True)):
        ending = "png" if number % 2 else "jpg"
        files += [(f"d/{number:04d}.{ending}", content), (f"d/{number:04d}.cls", label.encode() + b"\n")]
        files.append((f"d/{number:04d}.caption.txt", b"text of any length"))
    half = 3 * (len(labels) // 2)
    write_shard(root / "train-0000.tar", files[:half])
    write_shard(root / "train-0001.tar", files[half:])
    return contents


def test_shards_of_numbers_with_random_access(tmp_path):
    contents = shards(tmp_path, ["2", "0", "1", "10", "0"])
    data = open_classification(tmp_path, "train")
    assert data.classes == [str(number) for number in range(11)]
    assert [sample.target for sample in data.samples] == [2, 0, 1, 10, 0]
    assert data.samples[3].name == "train-0001.tar/d/0003.png"
    for index in (4, 0, 3):
        assert np.array_equal(np.asarray(data.load(index)), np.asarray(read_image(contents[index])))
    save(tmp_path / "classes.json", [f"class {number}" for number in range(11)])
    assert open_classification(tmp_path, "train").classes[10] == "class 10"
    save(tmp_path / "classes.json", ["a", "b"])
    with pytest.raises(FishnetError, match="has the class index 10"):
        open_classification(tmp_path, "train")


def test_a_huge_class_index_makes_no_huge_list(tmp_path):
    shards(tmp_path, ["2", "99999999999"])
    with pytest.raises(FishnetError, match="has the class index 99999999999"):
        open_classification(tmp_path, "train")


def test_shards_of_names(tmp_path):
    shards(tmp_path, ["dog", "cat", "dog", "emu"])
    data = open_classification(tmp_path, "train")
    assert data.classes == ["cat", "dog", "emu"]
    assert [sample.target for sample in data.samples] == [1, 0, 1, 2]
    assert open_classification(tmp_path, "train", classes=["x", "emu", "dog", "cat"]).samples[0].target == 2
    with pytest.raises(FishnetError, match=r"only in .*train-\*\.tar: emu"):
        open_classification(tmp_path, "train", classes=["cat", "dog"])


def test_webdataset_pairs_the_same_files(tmp_path):
    iterators = pytest.importorskip("webdataset").tariterators
    contents = shards(tmp_path, ["2", "0", "1", "3", "0", "1"])
    data = open_classification(tmp_path, "train")
    theirs = []
    for path in sorted(tmp_path.glob("*.tar")):
        with path.open("rb") as stream:
            files = [file | {"__url__": path.name} for file in iterators.tar_file_iterator(stream)]
            theirs += list(iterators.group_by_keys(files))
    assert [int(sample["cls"]) for sample in theirs] == [sample.target for sample in data.samples]
    assert [sample.get("jpg", sample.get("png")) for sample in theirs] == contents
    keys = [name.split("/", 1)[1].rsplit(".", 1)[0] for name, _ in data.samples]
    assert [sample["__key__"] for sample in theirs] == keys


def test_damaged_shards(tmp_path):
    shards(tmp_path, ["0", "1", "0", "1"])
    path = tmp_path / "train-0001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with pytest.raises(FishnetError, match=r"train-0001\.tar cannot be read"):
        open_classification(tmp_path, "train")
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(FishnetError, match=r"train-0001\.tar cannot be read.*uncompressed"):
        open_classification(tmp_path, "train")
    write_shard(path, [("0001.jpg", encode(noise(0)))])
    with pytest.raises(FishnetError, match="0001 has an image but no label"):
        open_classification(tmp_path, "train")


# --- what a user gets wrong ------------------------------------------------------------------------------------------


def fails(root: Path, split: str, match: str, **options: object) -> None:
    with pytest.raises(FishnetError, match=match):
        open_classification(root, split, **options)


def test_missing_and_empty_folders(tmp_path):
    fails(tmp_path / "nowhere", "train", "nowhere does not exist")
    fails(tmp_path, "train", "is empty")
    fails(put(tmp_path / "a.zip", b"x"), "train", "is a file")
    fails(tmp_path, "train", "contains no data in a known layout")
    (tmp_path / "train").mkdir()
    fails(tmp_path, "train", "train has no classes")
    put(tmp_path / "train" / "1.jpg", noise(0))
    fails(tmp_path, "train", "train has no classes: put its images in .*train/<class>/")
    (tmp_path / "train" / "cat").mkdir()
    fails(tmp_path, "train", "contains no images")


def test_missing_splits_are_listed(tmp_path):
    class_folders(tmp_path, {"train": {"a": 1, "b": 1}})
    fails(tmp_path, "val", "no split 'val'; available: train. .*fishnet data split")
    class_folders(tmp_path, {"vali": {"a": 1}, "test": {"a": 1}})
    assert available_splits(tmp_path) == ["train", "test", "vali"]
    fails(tmp_path, "val", "Did you mean 'vali'")


def test_unsplit_class_folders(tmp_path):
    class_folders(tmp_path, {"": {"a": 1, "b": 1}})
    assert available_splits(tmp_path) == []
    fails(tmp_path, "train", "`fishnet data split .*` creates both")


def test_classes_must_be_equal(tmp_path):
    class_folders(tmp_path, {"train": {"ant": 1, "bee": 1, "cow": 1}, "val": {"ant": 1, "dog": 1}})
    classes = open_classification(tmp_path, "train").classes
    fails(tmp_path, "val", "(?s)val differ.*only there: bee, cow; only in .*val: dog", classes=classes)
    shutil.rmtree(tmp_path / "val" / "dog")
    fails(tmp_path, "val", "only there: bee, cow; only in .*val: none", classes=classes)


def test_empty_class_folder(tmp_path):
    class_folders(tmp_path, {"train": {"ant": 1, "bee": 0, "cow": 1}, "val": {"ant": 1, "bee": 0, "cow": 1}})
    fails(tmp_path, "train", "without images: bee; fill or remove")
    # no image to judge a class by is legal, once training has said which classes there are
    val = open_classification(tmp_path, "val", classes=["ant", "bee", "cow"])
    assert val.class_counts().tolist() == [1, 0, 1]


def test_other_tasks_are_told_apart(mini, tmp_path):
    fails(mini("coco"), "train", "has no `labels` list")
    for name in ("images", "labels"):
        put(tmp_path / "train" / name / "1.png", encode(noise(0), "PNG"))
    fails(tmp_path, "train", "images without classes")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,labels\n1.jpg,a\n", "must start with the header `file,labels`"),
        ("", "must start with"),
        ("file,labels\n1.jpg,a\n1.jpg,b\n", "line 3: 1.jpg is listed twice"),
        ("file,labels\n1.jpg\n", "line 2: expected a file and its labels"),
        ("file,labels\n", "contains no images"),
        (b"file,labels\n\xff\xfe.jpg,a\n", "not a CSV file in UTF-8"),
    ],
)
def test_damaged_label_lists(tmp_path, text, match):
    put(tmp_path / "train" / "labels.csv", text if isinstance(text, bytes) else text.encode())
    fails(tmp_path, "train", match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": "cat"}, "must be a non-empty list of names"),
        ({"labels": ["cat", "cat"]}, "lists the same class twice: cat"),
        ({"images": [{"id": 1}]}, "`file_name`"),
        (
            {"images": [{"file_name": "1.jpg", "label": -1}, {"file_name": "2.jpg", "label": 2}]},
            r"`label` of 2 images is not an index.*1\.jpg",
        ),
        ({"images": [{"file_name": "1.jpg", "label": True}]}, r"`label` of 1 images is not an index.*True"),
        ({"images": [{"file_name": "1.jpg"}]}, "none of the 1 images has a `label`"),
        ({"images": []}, "contains no images"),
    ],
)
def test_damaged_coco_files(tmp_path, change, match):
    put(tmp_path / "train" / "1.jpg", noise(0))
    document = {"labels": ["a", "b"], "images": [{"file_name": "1.jpg", "label": 0}]}
    save(tmp_path / "annotations" / "instances_train.json", document | change)
    fails(tmp_path, "train", match)
    for broken in ("{", "[" * 200_000):
        (tmp_path / "annotations" / "instances_train.json").write_text(broken)
        fails(tmp_path, "train", "not valid JSON")


# --- randomness ------------------------------------------------------------------------------------------------------


def augmented(root: Path, seed: int = 3):
    data = open_classification(root, "train")
    data.transform = train_transform(MODERN, PreprocessConfig(), 32)
    data.seed = seed
    return data


@pytest.fixture(scope="module")
def small(mini, tmp_path_factory):
    """Return a folder of 40 real photos."""
    root = tmp_path_factory.mktemp("small")
    for path in sorted(mini("cifar10").glob("train/*/*.jpg"))[::50]:
        put(root / path.relative_to(mini("cifar10")), path.read_bytes())
    return root


KEYS = [SampleKey(1, index) for index in (5, 0, 39, 7, 22, 11, 30, 3)]


def test_a_sample_depends_on_seed_epoch_and_index_only(small):
    data = augmented(small)
    first = {key: data[key]["image"] for key in KEYS}
    for key in reversed(KEYS):
        torch.rand(7), np.random.rand(3), random.random()
        assert torch.equal(data[key]["image"], first[key])
    assert torch.equal(data[(0, 5)]["image"], data[5]["image"])
    assert torch.equal(augmented(small)[KEYS[0]]["image"], first[KEYS[0]])
    for other in (augmented(small)[SampleKey(2, 5)], augmented(small, seed=4)[KEYS[0]]):
        assert not torch.equal(other["image"], first[KEYS[0]])


def test_two_samples_of_the_same_picture_differ(small, tmp_path):
    content = next(small.glob("train/*/*.jpg")).read_bytes()
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        put(tmp_path / "train" / name, content)
    data = augmented(tmp_path)
    images = [data[i]["image"] for i in range(3)]
    assert not any(torch.equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("workers", "start"), [(0, None), (1, "fork"), (2, "fork"), (1, "spawn")])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_processes_do_not_matter(small, workers, start):
    data = augmented(small)
    expected = torch.stack([data[key]["image"] for key in KEYS])
    order = [KEYS[:3], KEYS[3:5], KEYS[5:]]
    loader = DataLoader(data, batch_sampler=order, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [key.sample for key in KEYS]
    assert batches[0]["bad"] == ["", "", ""]


def test_the_callers_generators_are_untouched(small):
    data = augmented(small)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    data[0], data[SampleKey(4, 9)]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    data.transform = lambda image: np.random.rand(5) / 0 + random.random() + torch.rand(3).item()
    with pytest.raises((RuntimeError, ArithmeticError, RuntimeWarning)):
        data[0]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_draws_of_neighbors_are_independent(small):
    data = open_classification(small, "train")
    data.transform = lambda image: torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
    draws = torch.stack([data[SampleKey(epoch, i)]["image"] for epoch in range(25) for i in range(40)]).double()
    assert len(draws.unique(dim=0)) == 1000
    assert (draws.mean(0) - 0.5).abs().max() < 0.04
    together = torch.corrcoef(torch.cat([draws[:-1], draws[1:]], dim=1).T) - torch.eye(6)
    assert together.abs().max() < 0.13


def test_pickles_without_the_pictures(mini):
    data = open_classification(mini("cifar10"), "train")
    text = pickle.dumps(data)
    assert len(text) < 100_000
    copy = pickle.loads(text)
    assert copy.samples[1999] == data.samples[1999]


# --- bad images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    root = class_folders(tmp_path, {"train": {"a": 4, "b": 4}})
    for name in ("a/003.jpg", "b/000.jpg"):
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:300])
    return root


def test_stop_names_the_path(damaged):
    data = open_classification(damaged, "train")
    data[2]
    with pytest.raises(BadImageError, match=r"train/a/003\.jpg: the file is truncated"):
        data[3]
    loader = DataLoader(data, batch_size=4, num_workers=1)
    with pytest.raises(FishnetError, match=r"^cannot use the image .*train/a/003\.jpg: the file is truncated"):
        list(loader)


def test_skip_takes_the_next_good_one(damaged):
    data = open_classification(damaged, "train", bad_images="skip")
    good = [data[i] for i in (5, 7, 0)]
    data.bad_images.clear()
    item = data[SampleKey(0, 3)]
    assert torch.equal(item["image"], good[0]["image"])
    assert item["target"].item() == 1
    assert item["index"] == 3
    assert item["bad"] == str(damaged / "train" / "a" / "003.jpg")
    assert data.bad_images == [str(damaged / "train" / name) for name in ("a/003.jpg", "b/000.jpg")]
    for name in ("b/003.jpg", "b/000.jpg"):
        (damaged / "train" / name).unlink(missing_ok=True)
    assert torch.equal(data[7]["image"], good[2]["image"])
    batches = list(DataLoader(data, batch_size=8, num_workers=2))
    assert [Path(bad).name for bad in batches[0]["bad"] if bad] == ["003.jpg", "000.jpg", "003.jpg"]


def test_skip_draws_as_the_index_that_was_asked_for(damaged):
    data = augmented(damaged)
    data.skip_bad = True
    assert not torch.equal(data[3]["image"], data[5]["image"])
    assert torch.equal(data[3]["image"], augmented_again(damaged)[3]["image"])


def augmented_again(root: Path):
    data = augmented(root)
    data.skip_bad = True
    return data


def test_nothing_but_bad_images(tmp_path):
    root = class_folders(tmp_path, {"train": {"a": 2}})
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"")
    data = open_classification(root, "train", bad_images="skip")
    with pytest.raises(FishnetError, match="2 images in a row cannot be read"):
        data[1]


def test_images_kept_in_memory_are_the_same_and_are_read_once(mini: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("cat", "ship"):
        shutil.copytree(mini("cifar10") / "val" / name, root / "val" / name)
    dataset = open_classification(root, "val")
    expected = [dataset[SampleKey(epoch, 3)]["image"] for epoch in range(2)]
    dataset.keep = True
    first = dataset[SampleKey(0, 3)]["image"]
    shutil.rmtree(root)
    again = dataset[SampleKey(1, 3)]["image"]
    assert torch.equal(first, expected[0])
    assert torch.equal(again, expected[1])


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val_are_val(name: str, tmp_path: Path) -> None:
    class_folders(tmp_path, {"train": {"ant": 2, "bee": 2}, name: {"ant": 1, "bee": 1}})
    assert len(open_classification(tmp_path, "val")) == 2
