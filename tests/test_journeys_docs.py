"""The ways of docs/first-steps.md, from data to results: the commands are read from the page and typed as they stand.

Only what makes a run short is added to them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fishnet.cli import main
from fishnet.data.detection.convert import convert_boxes
from fishnet.data.detection.dataset import open_detection
from tests.data.detection.test_convert import as_roboflow
from tests.data.test_oxford_pets import original
from tests.processes import signal_at_step, start

PROJECT = Path(__file__).resolve().parents[1]
PAGE, SOURCE = PROJECT / "docs" / "first-steps.md", PROJECT / "src"
SHORT = ("--epochs", "1", "--size", "64", "--workers", "0", "--device", "cpu")
ADDED = {
    "train classification": SHORT,
    "train detection": (*SHORT, "--longest", "96"),
    "train segmentation": SHORT,
    "train multitask": (*SHORT, "--longest", "96"),
    "evaluate": ("--workers", "0"),
    "predict": ("--workers", "0"),
    "data make": ("--train", "12", "--val", "6", "--size", "64"),
}
"""Options that make a command short, by its first words."""
pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")


def blocks(title: str, language: str) -> list[str]:
    """Return the blocks of code of a section of the page."""
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)
    (text,) = (text for text in sections if text.startswith(f"{title}\n"))
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    assert found, f"{title} has no {language}"
    return found


def commands(title: str) -> list[list[str]]:
    """Return the commands of a section, as words behind `fishnet`."""
    lines = [shlex.split(line, comments=True) for block in blocks(title, "shell") for line in block.splitlines()]
    assert all(words[0] == "fishnet" for words in lines)
    return [words[1:] for words in lines]


def type_(words: list[str]) -> str:
    """Type a command, with what makes it short, and return what it printed; it must succeed."""
    added = next((more for start, more in ADDED.items() if " ".join(words).startswith(start)), ())
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = main([*words, *added])
    assert code == 0, f"{' '.join(words)}\n{said.getvalue()}"
    return said.getvalue()


def follow(title: str, folder: Path) -> dict[str, str]:
    """Type the commands of a section in a folder; return what each printed, by its first words up to an option."""
    with contextlib.chdir(folder):
        return {" ".join(words[:2]): type_(words) for words in commands(title)}


def put_photos(source: Path, folder: Path, count: int = 8) -> None:
    """Make the folder `photos` with two classes, and `new_photos` with two images."""
    (folder / "new_photos").mkdir()
    for name in ("cat", "ship"):
        (folder / "photos" / name).mkdir(parents=True)
        for path in sorted((source / "train" / name).iterdir())[:count]:
            shutil.copy(path, folder / "photos" / name)
    for number, path in enumerate(sorted((source / "val" / "cat").iterdir())[:2], 1):
        shutil.copy(path, folder / "new_photos" / f"{number}.jpg")


def put_new_photos(source: Path, folder: Path) -> None:
    (folder / "new_photos").mkdir()
    for path in sorted((source / "val").iterdir())[:2]:
        shutil.copy(path, folder / "new_photos")


@pytest.fixture(scope="module")
def photos(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return the folder of the first way, and what its commands printed."""
    home = tmp_path_factory.mktemp("photos")
    put_photos(mini("cifar10"), home)
    return home, follow("Photos in folders", home)


@pytest.fixture(scope="module")
def boxes(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return the folder of the way of a COCO folder, and what its commands printed."""
    home = tmp_path_factory.mktemp("boxes")
    shutil.copytree(mini("pennfudan"), home / "boxes")
    put_new_photos(mini("pennfudan"), home)
    return home, follow("Boxes from a COCO folder", home)


def check_boxes(home: Path, said: dict[str, str]) -> None:
    """Check what the commands of a detector printed and wrote."""
    assert "no problems" in said["data check"]
    assert re.search(r"best epoch 1: \w+ AP [0-9.]+ %; weights: runs/boxes/model.safetensors", said["train detection"])
    assert "next: fishnet evaluate runs/boxes --data boxes" in said["train detection"]
    assert "box ap50" in said["evaluate runs/boxes"]
    results = json.loads((home / "detections" / "results.json").read_text())
    names = [Path(entry["file"]).name for entry in results["images"]]
    assert names == sorted(path.name for path in (home / "new_photos").iterdir())
    assert len(list((home / "detections" / "pictures").iterdir())) == 2


def test_photos_in_folders(photos: tuple[Path, dict[str, str]]) -> None:
    home, said = photos
    assert "next: fishnet train classification --data photos --out" in said["data split"]
    assert "no problems" in said["data check"]
    train = said["train classification"]
    assert "recipe scratch_small: no weights are given" in train
    assert re.search(r"best epoch 1: top-1 [0-9.]+ %; weights: runs/photos/model.safetensors", train)
    assert "next: fishnet evaluate runs/photos --data photos" in train
    assert "top-1" in said["evaluate runs/photos"]
    results = json.loads((home / "predictions" / "results.json").read_text())
    assert results["classes"] == {"image": ["cat", "ship"]}
    assert [Path(entry["file"]).name for entry in results["images"]] == ["1.jpg", "2.jpg"]
    assert (home / "runs" / "photos" / "report.html").exists()


def test_boxes_from_a_coco_folder(boxes: tuple[Path, dict[str, str]]) -> None:
    check_boxes(*boxes)


def test_label_maps(mini: Callable[[str], Path], tmp_path: Path) -> None:
    source = mini("camvid") / "train"
    for folder in ("roads/images", "roads/labels", "new_photos"):
        (tmp_path / folder).mkdir(parents=True)
    paths = sorted((source / "images").iterdir())[:12]
    for path in paths[:10]:
        shutil.copy(path, tmp_path / "roads" / "images")
        with Image.open(source / "labels" / f"{path.stem}.png") as image:
            image.point([255 * (value == 3) for value in range(256)]).save(
                tmp_path / "roads" / "labels" / f"{path.stem}.png"
            )
    for path in paths[10:]:
        shutil.copy(path, tmp_path / "new_photos")
    described = json.loads(blocks("Label maps", "json")[0])
    (tmp_path / "roads" / "classes.json").write_text(json.dumps(described))
    said = follow("Label maps", tmp_path)
    assert "next: fishnet train segmentation --data roads --out" in said["data split"]
    assert "no problems" in said["data check"]
    assert re.search(r"best epoch 1: mIoU [0-9.]+ %; weights: runs/roads/model.safetensors", said["train segmentation"])
    assert "boundary iou" in said["evaluate runs/roads"]
    masks = sorted((tmp_path / "roads_found" / "labels").iterdir())
    assert [path.stem for path in masks] == [path.stem for path in paths[10:]]
    for path, photo in zip(masks, paths[10:], strict=True):
        with Image.open(path) as mask, Image.open(photo) as image:
            assert mask.size == image.size
            assert {value for _, value in mask.getcolors()} <= {0, 255}
    assert (tmp_path / "roads.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("title", "name"), [("VOC folder", "voc"), ("YOLO folder", "yolo"), ("Roboflow export", "roboflow")]
)
def test_boxes_of_other_layouts(title: str, name: str, mini: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / ("voc" if name == "voc" else "yolo")
    convert_boxes(mini("pennfudan"), source, source.name)
    if name == "voc":
        shutil.rmtree(source / "ImageSets")  # labeling tools do not write it
    if name == "roboflow":
        as_roboflow(source, tmp_path / "roboflow")
        shutil.rmtree(source)
    said = follow(f"Boxes from a {title}", tmp_path)
    assert "next: fishnet data check detection boxes" in said["data convert"]
    # what the boxes and images are is checked beside the conversion; here, that the next command takes the folder
    check, train, *_ = commands("Boxes from a COCO folder")
    with contextlib.chdir(tmp_path):
        assert "no problems" in type_(check)
        counts = [
            sum(len(open_detection(root, split)) for split in ("train", "val"))
            for root in (mini("pennfudan"), Path("boxes"))
        ]
        assert counts[0] == counts[1]
        if name == "roboflow":  # the one whose annotation files are taken as they are
            assert "report: runs/boxes/report.html" in type_([*train, "--model", "fishnet_nano", "--max-steps", "2"])


def test_without_own_data(mini: Callable[[str], Path], tmp_path: Path) -> None:
    make, scenes, get, convert, pets = commands("Without your own data")
    with contextlib.chdir(tmp_path):
        assert "next: fishnet train multitask --data scenes --out" in type_(make)
        assert "best epoch 1: mean of levels" in type_(scenes)
        original(mini("pets3"), Path(get[-1]))  # as the download makes it
        assert "has the data set already" in type_(get)
        assert "3 breeds, with classes, boxes, outlines and label maps" in type_(convert)
        assert "best epoch 1: top-1" in type_(pets)
        assert Path(pets[-1], "model.safetensors").exists()


def test_after_an_interruption(mini: Callable[[str], Path], tmp_path: Path) -> None:
    put_photos(mini("cifar10"), tmp_path)
    split, _, train, *_ = commands("Photos in folders")
    with contextlib.chdir(tmp_path):
        type_(split)
        slow = ["--epochs", "30", "--validate-every", "30", "--log-every", "1", "--size", "32", "--workers", "0"]
        path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = start(*train, *slow, "--device", "cpu", env={**os.environ, "PYTHONPATH": path})
        stopped = signal_at_step(process, Path("runs/photos/metrics.csv"), 2, signal.SIGINT)
        assert process.returncode == 130, stopped
        (resume,) = commands("After an interruption")
        assert "the state is saved" in stopped
        assert "--resume" in stopped
        said = type_(resume)
    assert "resuming at step" in said
    assert "best epoch 30: top-1" in said


def test_starting_from_published_weights(photos: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    shutil.copytree(photos[0] / "photos", tmp_path / "photos")
    torch.manual_seed(3)
    published = timm.create_model("resnet18").state_dict()
    save_file(published, tmp_path / "resnet18.safetensors")
    said = follow("Starting from published weights", tmp_path)["train classification"]
    assert "recipe finetune: weights are given" in said
    assert "resnet18.safetensors" in said
    trained = load_file(tmp_path / "runs" / "finetuned" / "model.safetensors")
    # Two steps at a low rate leave a layer near its start; random initialization would be far from it.
    key = next(key for key in trained if key.endswith("layer4.1.conv2.weight"))
    change = (trained[key] - published["layer4.1.conv2.weight"]).norm() / published["layer4.1.conv2.weight"].norm()
    assert change < 0.1


def test_a_detector_from_an_own_classifier(
    photos: tuple[Path, dict[str, str]], boxes: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    shutil.copytree(photos[0] / "runs", tmp_path / "runs")
    shutil.copytree(boxes[0] / "boxes", tmp_path / "boxes")
    said = follow("Starting a detector from your own classifier", tmp_path)["train detection"]
    assert "recipe finetune: weights are given" in said
    assert "runs/photos" in said
    assert "best epoch 1: " in said


def test_a_detector_from_an_own_detector(boxes: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    shutil.copytree(boxes[0] / "runs", tmp_path / "runs")
    shutil.copytree(boxes[0] / "boxes", tmp_path / "more_boxes")
    said = follow("Training your own detector further", tmp_path)["train detection"]
    assert "region: trunk and neck and head from runs/boxes/model.safetensors" in said
    assert "next: fishnet evaluate runs/more --data more_boxes" in said


def test_in_an_own_script(photos: tuple[Path, dict[str, str]], boxes: tuple[Path, dict[str, str]]) -> None:
    home, _ = photos
    entries = json.loads((home / "predictions" / "results.json").read_text())["images"]
    best = entries[0]["predictions"][0]
    first, second, third = blocks("In your own script", "python")
    with contextlib.chdir(home), contextlib.redirect_stdout(io.StringIO()) as said:
        names: dict[str, object] = {}
        exec(first, names)
        exec(second, {})
    label, score, again = said.getvalue().split()
    assert (label, again) == (best["label"], best["label"])
    assert float(score) == pytest.approx(best["score"], abs=1e-5)
    assert len(names["answers"]) == 2  # type: ignore[arg-type]
    with contextlib.chdir(boxes[0]):
        exec(third.replace("new_photos", str(home / "new_photos")), names)
    assert names["found"].keys() >= {"boxes", "labels", "scores"}  # type: ignore[attr-defined]
