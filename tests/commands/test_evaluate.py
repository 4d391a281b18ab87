"""`evaluate` on small models with random weights, against figures computed by hand from the same photos."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fishnet.commands.evaluate import evaluate, summary
from fishnet.commands.predict import predict
from fishnet.config import PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.models import create_model
from fishnet.tasks.classification.evaluator import Evaluation
from fishnet.tasks.classification.task import ClassificationTask
from tests.models_on_disk import classifier_card, save_classifier

QUICK = {"device": "cpu", "workers": 0}


def small_network(classes: int) -> nn.Module:
    torch.manual_seed(0)
    network = create_model("fishnet_nano", num_classes=classes, stem_stride=1)
    nn.init.normal_(network.get_classifier().weight, std=0.3)
    return network.eval()


def write_run(folder: Path, network: nn.Module, classes: list[str], **changes: Any) -> str:
    preprocess = PreprocessConfig(crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    card = classifier_card(classes, options={"stem_stride": 1}, preprocess=preprocess, **changes)
    save_classifier(folder / "model.safetensors", network, card)
    return str(folder)


@dataclass
class Judged:
    """A data folder, a network, and the network's outputs for the val split, found without the library."""

    data: Path
    network: nn.Module
    classes: list[str]
    files: list[Path]
    logits: np.ndarray
    truth: np.ndarray


@pytest.fixture(scope="module")
def judged(mini: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Judged:
    data = tmp_path_factory.mktemp("data") / "few"
    for path in mini("cifar10").rglob("000[0-4]*.jpg"):
        copy = data / path.relative_to(mini("cifar10"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    classes = sorted(path.name for path in (data / "val").iterdir())
    files = sorted((data / "val").rglob("*.jpg"))
    truth = np.array([classes.index(path.parent.name) for path in files])
    network = small_network(len(classes))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    images = torch.from_numpy((pixels / 255.0 - 0.5) / 0.2).float().permute(0, 3, 1, 2)
    with torch.no_grad():  # answers that differ from image to image, as those of a trained network do
        logits = network(images)
        network.get_classifier().bias -= logits.mean(0)
        logits = network(images).double().numpy()
    return Judged(data, network, classes, files, logits, truth)


def test_the_figures_are_right(judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / "run", judged.network, judged.classes)
    found = evaluate(run, str(judged.data), batch_size=17, **QUICK)
    guess = judged.logits.argmax(1)
    assert len(set(guess)) > 2  # else the test would say little
    right = guess == judged.truth
    ranks = (judged.logits > judged.logits[np.arange(len(guess)), judged.truth][:, None]).sum(1)
    shifted = np.exp(judged.logits - judged.logits.max(1, keepdims=True))
    loss = -np.log(shifted[np.arange(len(guess)), judged.truth] / shifted.sum(1)).mean()
    assert found.metrics["top1"] == right.mean()
    assert found.metrics["top5"] == (ranks < 5).mean()
    recalls = [right[judged.truth == i].mean() for i in range(len(judged.classes))]
    assert found.metrics["macro_accuracy"] == pytest.approx(np.mean(recalls))
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-4)
    for number, row in enumerate(found.evaluation.per_class):
        assert row["recall"] == pytest.approx(recalls[number])
        assert found.evaluation.confusion[number].tolist() == [
            int(((judged.truth == number) & (guess == other)).sum()) for other in range(len(judged.classes))
        ]
    printed = capsys.readouterr().out
    for text in ("top-1", "top-5", "mean class accuracy", "calibration error", "loss", *judged.classes):
        assert text in printed
    assert f"{100 * right.mean():.2f} %" in printed


def test_what_is_written(judged: Judged, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, judged.network, judged.classes, details={"epoch": 3})
    found = evaluate(str(run), str(judged.data), **QUICK)
    assert sorted(path.name for path in run.iterdir()) == [
        "confusion_val.png",
        "evaluation_val.json",
        "model.safetensors",
    ]
    document = json.loads((run / "evaluation_val.json").read_text(encoding="utf-8"))
    assert document == found.document
    assert document["metrics"] == found.metrics
    assert (document["split"], document["images"], document["bad_images"]) == ("val", len(judged.files), [])
    assert document["card"]["details"] == {"epoch": 3}
    assert np.array(document["confusion"]).sum() == len(judged.files)
    with Image.open(run / "confusion_val.png") as picture:
        assert picture.width > 300
    elsewhere = evaluate(
        str(run / "model.safetensors"), str(judged.data), split="train", json=str(tmp_path / "t.json"), **QUICK
    )
    assert elsewhere.json == tmp_path / "t.json"
    assert elsewhere.pictures == []
    assert json.loads(elsewhere.json.read_text())["split"] == "train"
    assert len(list(run.iterdir())) == 3
    evaluate(str(run / "model.safetensors"), str(judged.data), out=str(tmp_path / "out"), **QUICK)
    assert (tmp_path / "out" / "evaluation_val.json").is_file()


def test_classes_in_another_order_are_matched_by_name(judged: Judged, tmp_path: Path) -> None:
    plain = evaluate(write_run(tmp_path / "a", judged.network, judged.classes), str(judged.data), **QUICK)
    order = np.random.default_rng(0).permutation(len(judged.classes))
    turned = copy.deepcopy(judged.network)
    classifier = turned.get_classifier()
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight[order].clone())
        classifier.bias.copy_(classifier.bias[order].clone())
    run = write_run(tmp_path / "b", turned, [judged.classes[i] for i in order])
    found = evaluate(run, str(judged.data), **QUICK)
    assert found.metrics["top1"] == plain.metrics["top1"]
    assert found.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    rows = {row["class"]: row["correct"] for row in found.evaluation.per_class}
    assert rows == {row["class"]: row["correct"] for row in plain.evaluation.per_class}


def test_other_classes_are_an_error(judged: Judged, tmp_path: Path) -> None:
    classes = ["zeppelin", *judged.classes[1:]]
    run = write_run(tmp_path / "run", judged.network, classes)
    with pytest.raises(FishnetError, match=rf"zeppelin.*{judged.classes[0]}"):
        evaluate(run, str(judged.data), **QUICK)


def test_a_split_that_is_not_there(judged: Judged, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", judged.network, judged.classes)
    with pytest.raises(FishnetError, match="no split 'test'"):
        evaluate(run, str(judged.data), split="test", **QUICK)
    with pytest.raises(FishnetError, match="does not exist"):
        evaluate(run, str(tmp_path / "nothing"), **QUICK)
    with pytest.raises(UsageError, match="--batch-size"):
        evaluate(run, str(judged.data), batch_size=0, device="cpu")


def test_weights_without_a_card_take_the_names_of_the_data(judged: Judged, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("fishnet_nano", num_classes=len(judged.classes))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    given = {"task": "classification", "model": "fishnet_nano", "size": 32}
    found = evaluate(str(tmp_path / "w.pth"), str(judged.data), **given, **QUICK)
    assert [row["class"] for row in found.evaluation.per_class] == judged.classes
    assert (found.json, found.pictures) == (None, [])
    torch.save(create_model("fishnet_nano", num_classes=4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(FishnetError, match=rf"has {len(judged.classes)} classes, but the model has 4"):
        evaluate(str(tmp_path / "w.pth"), str(judged.data), **given, **QUICK)


def test_an_unreadable_image_stops_or_is_left_out(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = Path(shutil.copytree(judged.data, tmp_path / "data"))
    broken = data / judged.files[3].relative_to(judged.data)
    broken.write_bytes(broken.read_bytes()[:200])
    run = write_run(tmp_path / "run", judged.network, judged.classes)
    with pytest.raises(FishnetError, match=broken.name):
        evaluate(run, str(data), **QUICK)
    found = evaluate(run, str(data), bad_images="skip", **QUICK)
    assert found.bad_images == [str(broken)]
    assert found.document["bad_images"] == [str(broken)]
    kept = np.arange(len(judged.files)) != 3
    assert found.evaluation.images == kept.sum()
    assert found.metrics["top1"] == (judged.logits.argmax(1) == judged.truth)[kept].mean()
    assert f"skipped unreadable image {broken}" in capsys.readouterr().out


def test_errors_of_a_worker_are_one_line(judged: Judged, tmp_path: Path) -> None:
    data = Path(shutil.copytree(judged.data, tmp_path / "data"))
    broken = data / judged.files[0].relative_to(judged.data)
    broken.write_bytes(b"")
    run = write_run(tmp_path / "run", judged.network, judged.classes)
    with pytest.raises(FishnetError) as caught:
        evaluate(run, str(data), device="cpu", workers=1)
    assert str(caught.value).startswith(f"cannot use the image {broken}")
    assert "\n" not in str(caught.value)


def test_multi_label(judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    rows = ["file,labels"]
    names = ["indoor", "living", "vehicle"]
    for number, path in enumerate(judged.files[:30]):
        (data / "val" / f"{number}.jpg").write_bytes(path.read_bytes())
        chosen = [name for place, name in enumerate(names) if number % (place + 2) == 0]
        rows.append(f"{number}.jpg,{'|'.join(chosen)}")
    (data / "val" / "labels.csv").write_text("\n".join(rows) + "\n")
    run = write_run(tmp_path / "run", small_network(3), names, multi_label=True)
    found = evaluate(run, str(data), **QUICK)
    assert list(found.metrics) == ["map", "f1", "loss"]
    assert [row["images"] for row in found.evaluation.per_class] == [15, 10, 8]
    assert found.pictures == []
    assert "mAP" in capsys.readouterr().out
    single = write_run(tmp_path / "single", small_network(3), names)
    with pytest.raises(FishnetError, match="several labels per image, the model one label"):
        evaluate(single, str(data), **QUICK)


def test_reduced_precision_is_what_the_model_was_validated_with(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", judged.network, judged.classes, precision="bf16")
    reduced = evaluate(run, str(judged.data), **QUICK).metrics
    assert reduced == evaluate(run, str(judged.data), precision="bf16", **QUICK).metrics
    full = evaluate(run, str(judged.data), precision="fp32", **QUICK).metrics
    assert reduced["loss"] != full["loss"]
    assert reduced["loss"] == pytest.approx(full["loss"], rel=0.05)
    shown = [line for line in capsys.readouterr().out.splitlines() if " images" in line and " on val of " in line]
    assert [" in bf16: " in line for line in shown] == [True, True, False]
    # the files say which, and predictions can be made in the same
    found = evaluate(run, str(judged.data), **{**QUICK, "out": str(tmp_path / "e")})
    assert found.document["precision"] == "bf16"
    photo = str(sorted((judged.data / "val").rglob("*.jpg"))[0])
    scores = {}
    for precision in ("fp32", "auto", "bf16"):
        made = predict(run, [photo], str(tmp_path / precision), workers=0, device="cpu", precision=precision)
        document = json.loads((tmp_path / precision / "results.json").read_text("utf-8"))
        assert document["precision"] == ("fp32" if precision == "fp32" else "bf16")
        scores[precision] = made.images[0]["predictions"][0]["score"]
    assert scores["auto"] == scores["bf16"] != scores["fp32"]


def test_a_finished_run_is_judged_as_training_logged_it(judged: Judged, tmp_path: Path) -> None:
    from fishnet.commands.train import train
    from fishnet.metrics import MetricsFile

    settings = {"data": str(judged.data), "model": "fishnet_nano", "model_option": {"stem_stride": 1}, "size": 32}
    settings |= {"epochs": 2, "batch_size": 20, "lr": 0.05, "ema": 0.5, "workers": 0, "device": "cpu"}
    out = str(tmp_path / "run")
    train("classification", out=out, **settings)
    logged = [row for row in MetricsFile(tmp_path / "run" / "metrics.csv").read() if row["split"] == "val"]
    top1 = {row["epoch"]: float(row["value"]) for row in logged if row["name"] == "top1"}
    best = max(top1, key=lambda epoch: top1[epoch])
    found = evaluate(out, str(judged.data), **QUICK).metrics
    wanted = {row["name"]: float(row["value"]) for row in logged if row["epoch"] == best}
    assert len(top1) == 2
    assert found["top1"] == wanted["top1"]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_of_many_classes_the_worst_are_shown() -> None:
    rows = [
        {"class": f"c{i}", "images": 10, "predicted": 10, "correct": i % 10, "recall": (i % 10) / 10, "precision": 0.5,
         "f1": None}
        for i in range(30)
    ]  # fmt: skip
    rows[0] |= {"images": 0, "recall": None}
    level = ClassificationTask(classifier_card(["a"]))
    text = summary(level, Evaluation({"top1": 0.5}, rows, None, 290), "a model", ["x.jpg"] * 12)
    table = text[text.index("class  ") :].splitlines()[1:21]
    assert "the 20 worst of 30 classes" in text
    assert [line.split()[0] for line in table[:3]] == ["c10", "c20", "c1"]
    assert "... and 2 more skipped" in text


def test_several_folders_are_evaluated_each_alone(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", judged.network, judged.classes)
    other = tmp_path / "elsewhere" / judged.data.name
    shutil.copytree(judged.data, other)
    for path in sorted(other.glob("val/*/*"))[::2]:
        path.unlink()
    alone = [evaluate(run, str(data), **QUICK) for data in (judged.data, other)]
    capsys.readouterr()
    first = evaluate(run, str(judged.data), also=[str(other)], **QUICK)
    both = [first, *first.others]
    assert [one.metrics for one in both] == [one.metrics for one in alone]
    assert both[0].evaluation.images > both[1].evaluation.images
    names = ["evaluation_val.json", f"evaluation_val_{judged.data.name}.json"]
    assert [one.json and one.json.name for one in both] == names
    table = capsys.readouterr().out.splitlines()[-3:-1]
    assert table[0].startswith(str(judged.data))
    assert table[1].startswith(str(other))
    assert f"{100 * both[1].metrics['top1']:.2f} %" in table[1]


def test_the_data_of_the_run_is_the_default(judged: Judged, tmp_path: Path) -> None:
    run = Path(write_run(tmp_path / "run", judged.network, judged.classes))
    with pytest.raises(UsageError, match=r"^--data DIR is missing: .*run does not record the data it was trained on$"):
        evaluate(str(run), **QUICK)
    (run / "config.yaml").write_text(f"task: classification\ndata: {judged.data}\n", "utf-8")
    assert evaluate(str(run), **QUICK).metrics == evaluate(str(run), str(judged.data), **QUICK).metrics
