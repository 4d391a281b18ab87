"""`predict` on small models with random weights and real photos."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishnet.commands import predict as command
from fishnet.commands.predict import predict
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.prediction import images as prediction
from fishnet.prediction.inputs import find_inputs
from fishnet.predictor import Predictor
from fishnet.tasks.classification import painter
from tests.models_on_disk import classifier_card, save_classifier

CLASSES = [f"kind {i}" for i in range(8)]


def write_run(folder: Path, multi_label: bool = False) -> Path:
    torch.manual_seed(0)
    network = create_model("fishnet_nano", num_classes=8, stem_stride=1)
    torch.nn.init.normal_(network.get_classifier().weight, std=0.1)
    preprocess = PreprocessConfig(crop_pct=1.0)
    card = classifier_card(CLASSES, options={"stem_stride": 1}, multi_label=multi_label, preprocess=preprocess)
    save_classifier(folder / "model.safetensors", network, card)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures in nested folders with awkward names, and files that are no pictures."""
    folder = tmp_path / "my phötos"
    draw = np.random.default_rng(0)
    for number in range(12):
        path = folder / ("", "sub folder", "sub folder/深い")[number % 3] / f"image {number:02d} é[1].PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_results_and_contact_sheet(run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "answers"
    found = predict(run, [str(photos)], str(out), device="cpu", batch_size=5, workers=0)
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert document == found.document
    assert {name: document[name] for name in ("format_version", "task", "model", "classes")} == {
        "format_version": 1,
        "task": "classification",
        "model": "fishnet_nano",
        "classes": {"image": CLASSES},
    }
    files = sorted(photos.rglob("image*.PNG"))
    assert [entry["file"] for entry in document["images"]] == [path.as_posix() for path in files]
    predictor = Predictor(run, device="cpu")
    for path, entry in zip(files, document["images"], strict=True):
        assert (entry["width"], entry["height"]) == size_of(path)
        answer = predictor(path)
        assert [p["label"] for p in entry["predictions"]] == answer["labels"]
        assert [p["index"] for p in entry["predictions"]] == answer["indices"]
        assert [p["score"] for p in entry["predictions"]] == pytest.approx(answer["scores"], abs=1e-5)
    assert found.pictures == [out / "contact_sheet.jpg"]
    assert size_of(out / "contact_sheet.jpg")[0] > 500
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.jpg", "results.json"]
    assert "12 images, 0 skipped" in capsys.readouterr().out


def test_many_pages_and_workers(run: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painter, "SHEET_IMAGES", 5)
    monkeypatch.setattr(prediction, "FEW", 1)
    out = tmp_path / "out"
    found = predict(run, [str(photos)], str(out), device="cpu", batch_size=4, workers=1, top=2)
    assert [sheet.name for sheet in found.pictures] == [f"contact_sheet_0{i}.jpg" for i in (1, 2, 3)]
    assert all(len(entry["predictions"]) == 2 for entry in found.images)
    with pytest.raises(UsageError, match=r"contains results already.*--overwrite"):
        predict(run, [str(photos)], str(out), device="cpu")
    again = predict(run, [str(photos / "notes.txt").replace("notes.txt", "image 00*")], str(out), overwrite=True)
    assert len(again.images) == 1
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.jpg", "results.json"]


def test_only_so_many_images_are_drawn(
    run: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(painter, "SHEET_IMAGES", 4)
    monkeypatch.setattr(painter, "_SHEETS", 2)
    found = predict(run, [str(photos)], str(tmp_path / "out"), device="cpu", workers=0)
    assert len(found.images) == 12
    assert len(found.pictures) == 2
    assert "contact_sheet_02.jpg (the first 8 images)" in capsys.readouterr().out


def test_multi_label_names_all_above_the_threshold(photos: Path, tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "multi", multi_label=True))
    found = predict(run, [str(photos)], str(tmp_path / "a"), device="cpu", threshold=0.55)
    scores = [p["score"] for entry in found.images for p in entry["predictions"]]
    assert scores
    assert min(scores) >= 0.55
    nothing = predict(run, [str(photos)], str(tmp_path / "b"), device="cpu", threshold=1.0)
    assert all(entry["predictions"] == [] for entry in nothing.images)
    assert nothing.pictures


def test_an_unreadable_image_stops_or_is_listed(run: str, photos: Path, tmp_path: Path) -> None:
    broken = photos / "sub folder" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not much")
    out = tmp_path / "out"
    with pytest.raises(FishnetError, match=r"broken\.jpg.*--bad-images skip"):
        predict(run, [str(photos)], str(out), device="cpu")
    assert not (out / "results.json").exists()
    found = predict(run, [str(photos)], str(out), device="cpu", bad_images="skip", batch_size=1)
    assert found.bad_images == found.document["bad_images"] == [broken.as_posix()]
    assert len(found.images) == 12
    with pytest.raises(FishnetError, match="none of the 1 images can be read"):
        predict(run, [str(broken)], str(tmp_path / "other"), device="cpu", bad_images="skip")
    assert list((tmp_path / "other").iterdir()) == []


def test_what_was_done_before_an_unreadable_image_is_kept(run: str, photos: Path, tmp_path: Path) -> None:
    broken = photos / "sub folder" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not much")
    files, out = find_inputs([photos]).files, tmp_path / "out"
    place = files.index(broken)
    with pytest.raises(
        FishnetError, match=r"broken\.jpg.*Continue with: fishnet predict .* - --out .*out_rest .* < .*remaining"
    ):
        predict(run, [str(photos)], str(out), device="cpu", batch_size=place)
    document = json.loads((out / "results.json").read_text("utf-8"))
    assert (document["complete"], place) == (False, 4)
    assert [entry["file"] for entry in document["images"]] == [path.as_posix() for path in files[:place]]
    assert (out / "remaining.txt").read_text("utf-8").splitlines() == list(map(str, files[place:]))
    found = predict(run, [str(photos)], str(out), device="cpu", bad_images="skip", overwrite=True)
    assert len(found.images) == 12
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.jpg", "results.json"]


def test_paths_on_standard_input(
    run: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    files = find_inputs([photos]).files
    listed = f"{files[3]}\r\n\n{tmp_path / 'absent.png'}\n{files[1]}"  # lines of Windows, an empty one, no last end
    monkeypatch.setattr("sys.stdin", io.StringIO(listed))
    out = str(tmp_path / "out")
    found = predict(run, [str(files[0]), "-"], out, device="cpu", bad_images="skip")
    assert [entry["file"] for entry in found.images] == [path.as_posix() for path in (files[0], files[3], files[1])]
    assert found.bad_images == [str(tmp_path / "absent.png")]
    assert [path.name for path in found.pictures] == ["contact_sheet_01.jpg"]
    assert f"skipped unreadable image {tmp_path / 'absent.png'}" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(FishnetError, match="standard input lists no images; write one path per line"):
        predict(run, ["-"], out, device="cpu", overwrite=True)


def test_without_pictures_only_results_are_written(run: str, photos: Path, tmp_path: Path) -> None:
    found = predict(run, [str(photos)], str(tmp_path / "out"), device="cpu", pictures=False)
    assert len(found.images) == 12
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_inputs_in_every_form(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = sorted(photos.rglob("image*.PNG"))
    assert find_inputs([photos]).files == everything
    assert find_inputs([str(photos / "**" / "*.PNG")]).files == everything
    assert find_inputs([str(photos / "*")]).files == sorted(photos.glob("image*.PNG"))
    one = photos / "image 00 é[1].PNG"  # a name that would be a pattern if it were no file
    assert find_inputs([one]).files == [one]
    assert find_inputs([one, photos, one]).files == [one, *[path for path in everything if path != one]]
    assert find_inputs([photos / "notes.txt"]).files == [photos / "notes.txt"]
    monkeypatch.chdir(photos)
    assert find_inputs(["."]).files == [path.relative_to(photos) for path in everything]
    assert find_inputs([photos], leave_out=photos / "sub folder").files == sorted(photos.glob("image*.PNG"))


def test_inputs_without_an_image(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FishnetError, match=r"empty contains no images .*\.jpg"):
        find_inputs([photos, tmp_path / "empty"])
    with pytest.raises(FishnetError, match=r"pattern .*\.bmp matches nothing"):
        find_inputs([photos / "*.bmp"])
    with pytest.raises(FishnetError, match=r"pattern .*\*\.txt matches no image"):
        find_inputs([photos / "*.txt"])
    with pytest.raises(FishnetError, match=r"nowhere does not exist"):
        find_inputs([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no input"):
        find_inputs([])


def test_a_second_run_does_not_predict_on_its_own_pictures(run: str, photos: Path) -> None:
    out = photos / "answers"
    for _ in range(2):
        found = predict(run, [str(photos)], str(out), device="cpu", overwrite=True)
        assert len(found.images) == 12


def test_weights_without_a_card_and_names_from_a_file(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create_model("resnet10t", num_classes=2).state_dict(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("yes\nno\n\n", encoding="utf-8")
    given = {"task": "classification", "model": "resnet10t", "size": 64, "device": "cpu"}
    image = [str(photos / "image 00*")]
    named = predict(str(tmp_path / "w.pth"), image, str(tmp_path / "a"), classes=str(tmp_path / "names.txt"), **given)
    assert named.document["classes"] == {"image": ["yes", "no"]}
    assert predict(str(tmp_path / "w.pth"), image, str(tmp_path / "b"), **given).document["classes"] == {
        "image": ["0", "1"]
    }
    with pytest.raises(UsageError, match="cannot read the class names"):
        predict(str(tmp_path / "w.pth"), image, str(tmp_path / "c"), classes="absent.txt", **given)


def test_an_output_folder_that_cannot_be_made(run: str, photos: Path) -> None:
    with pytest.raises(FishnetError, match=r"cannot create the folder .*notes\.txt"):
        predict(run, [str(photos)], str(photos / "notes.txt" / "out"), device="cpu")


def test_real_photos(run: str, mini: Callable[[str], Path], tmp_path: Path) -> None:
    folder = mini("cifar10") / "val" / "horse"
    found = predict(run, [str(folder)], str(tmp_path / "out"), device="cpu", batch_size=64, workers=0)
    assert len(found.images) == len(list(folder.rglob("*.jpg")))
    assert all(0 <= p["score"] <= 1 for entry in found.images for p in entry["predictions"])


def test_files_of_somebody_else_are_neither_replaced_nor_removed(run: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("contact_sheet.jpg", "contact_sheet_02.jpg", "contact_sheet_of_my_wedding.jpg"):
        Image.new("RGB", (8, 8), "red").save(out / name)
    with pytest.raises(UsageError, match=r"contact_sheet.jpg is not from an earlier predict.*--overwrite"):
        predict(run, [str(photos)], str(out), device="cpu", workers=0)
    assert size_of(out / "contact_sheet.jpg") == (8, 8)
    predict(run, [str(photos)], str(out), device="cpu", workers=0, overwrite=True)
    assert size_of(out / "contact_sheet.jpg")[0] > 500
    assert size_of(out / "contact_sheet_02.jpg") == (8, 8)
    assert size_of(out / "contact_sheet_of_my_wedding.jpg") == (8, 8)


def test_a_picture_never_replaces_an_input(run: str, photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "out" / "contact_sheet.jpg"
    image.parent.mkdir()
    Image.new("RGB", (40, 30), "red").save(image)
    with pytest.raises(UsageError, match=r"overwrite the input .*contact_sheet.jpg; choose another --out"):
        predict(run, [str(image)], str(image.parent), device="cpu", overwrite=True)
    assert size_of(image) == (40, 30)


def test_results_that_name_files_outside_the_folder_remove_nothing(run: str, photos: Path, tmp_path: Path) -> None:
    out, diary = tmp_path / "out", tmp_path / "diary.png"
    out.mkdir()
    Image.new("RGB", (8, 8)).save(diary)
    (out / "results.json").write_text(json.dumps({"pictures": ["../diary.png", str(diary)]}))
    predict(run, [str(photos)], str(out), device="cpu", workers=0, overwrite=True)
    assert diary.exists()


@pytest.mark.parametrize("listed", ["a", ["."], [7], {"a": 1}])
def test_results_with_a_damaged_list_of_pictures_remove_nothing(
    run: str, photos: Path, tmp_path: Path, listed: object
) -> None:
    mine = tmp_path / "out" / "a"
    mine.parent.mkdir()
    mine.write_text("mine")
    (mine.parent / "results.json").write_text(json.dumps({"pictures": listed}))
    predict(run, [str(photos)], str(mine.parent), device="cpu", workers=0, overwrite=True)
    assert mine.read_text() == "mine"


def test_a_predictor_answers_no_inputs_with_an_empty_list(run: str) -> None:
    assert Predictor(run, "cpu").answer([]) == []


def test_class_names_may_start_with_a_byte_order_mark_but_not_be_missing(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n", encoding="utf-8-sig")
    assert command.read_names(str(names)) == ["cat", "dog"]
    names.write_text("\n \n")
    with pytest.raises(UsageError, match=r"names.txt contains no class names; write one per line"):
        command.read_names(str(names))


def test_insides_of_the_network_are_drawn(
    run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"
    files = sorted(map(str, photos.rglob("image*.PNG")))[:3]
    plain = predict(run, files, str(tmp_path / "plain"), device="cpu", workers=0)
    assert not (tmp_path / "plain" / "insides").exists()
    found = predict(run, files, str(out), device="cpu", workers=0, insides=True)
    assert found.images == plain.images  # answers are the same
    sheets = [out / "insides" / f"{Path(file).stem}.png" for file in files]
    assert found.pictures == [out / "contact_sheet.jpg", *sheets]
    assert json.loads((out / "results.json").read_text())["pictures"][1:] == [f"insides/{p.name}" for p in sheets]
    assert f"feature maps: {out / 'insides'}" in capsys.readouterr().out
    before = [path.read_bytes() for path in sheets]
    assert len(set(before)) == 3
    predict(run, files[:2], str(out), device="cpu", workers=0, insides=True, overwrite=True)
    assert [path.read_bytes() for path in sheets[:2]] == before[:2]
    assert not sheets[2].exists()  # of the earlier call
    predict(run, files[:2], str(out), device="cpu", workers=0, overwrite=True)
    assert not list((out / "insides").iterdir())
    (out / "insides" / "mine.png").write_bytes(b"mine")
    (out / "results.json").unlink()
    (out / "contact_sheet.jpg").unlink()
    with pytest.raises(UsageError, match=r"mine\.png is not from an earlier predict"):
        predict(run, files[:2], str(out), device="cpu", workers=0, insides=True)
