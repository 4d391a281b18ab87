"""What people type who know another tool or make a slip, and the sentence that they read."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import fishnet
from fishnet.cli import main
from fishnet.errors import UsageError
from fishnet.models import create_model
from tests.models_on_disk import classifier_card, save_classifier

TRAIN = "train classification --data photos "


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (TRAIN + "--device mps", "--device must be auto, cpu or cuda, not mps"),
        (TRAIN + "--device 0", "--device must be auto, cpu or cuda, not 0. Use cuda; CUDA_VISIBLE_DEVICES=0 selects"),
        (TRAIN + "--epochs 1.5", "--epochs must be an integer, not 1.5"),
        (TRAIN + "--lr abc", "--lr must be a number or None, not abc"),
        (TRAIN + "--freeze 10", "--freeze must be text, not 10"),
        (TRAIN + "--optim.schedule cosin", "cosine, step, poly or constant, not cosin. Did you mean 'cosine'?"),
        ("train detection --data boxes --detector yolov8", "--detector must be auto, faster_rcnn,"),
        ("export photos --out o --format tflite", "--format must be torch, onnx or openvino, not tflite"),
        (TRAIN + "--num-classes 3", "unknown option --num-classes. The classes are those of the data set"),
        (
            TRAIN + "--pretrained",
            "unknown option --pretrained. Published weights are downloaded by --weights pretrained.",
        ),
        (TRAIN + "--loss bce", "unknown option --loss. The losses are those of the task and the model."),
        (TRAIN + "--test", "fishnet evaluate RUN --split test"),
        (TRAIN + "--aa rand", "unknown option --aa. Augmentation is set by"),
        (TRAIN + "-b 8", "unknown option -b. It is called --batch-size here."),
        ("train classification data=photos epochs=1", "options are written --data photos, not data=photos"),
        ("data convert photos new --format coco", "unknown option --format. It is called --to here."),
        ("predict photos --source new --out o", "unknown option --source. Inputs are given without an option"),
        ("resume runs/photos", "unknown command 'resume'. A run is resumed by: fishnet train --resume RUN."),
        ("train --resume", "--resume needs the folder of the run: fishnet train --resume RUN"),
        ("evaluate runs/nowhere --data photos", "runs/nowhere does not exist; give a run folder, a model file,"),
        ("predict fishnet_nano . --out o", "fishnet_nano is the name of a model; give a trained one: a run folder"),
        ("info FishNet_nano", "unknown model 'FishNet_nano'. Did you mean 'fishnet_nano'? FishNets:"),
        ("info yolov8n.pt", "A file of weights is given by --weights"),
    ],
)
def test_a_slip_is_answered_by_a_sentence(
    typed: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jpg").write_bytes(b"")
    assert main(shlex.split(typed)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not any(code in line for code in ("Literal", "class '", "Parser key", "Union"))


def test_the_version_is_also_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.strip() == fishnet.__version__


def test_python_users_read_the_names_of_arguments(tmp_path: Path) -> None:
    model = create_model("fishnet_nano", num_classes=2, stem_stride=1)
    card = classifier_card(["cat", "ship"], options={"stem_stride": 1})
    save_classifier(tmp_path / "model.safetensors", model, card)
    with pytest.raises(UsageError, match=r"^conf= is not an option of classification; its options: threshold=, top=$"):
        fishnet.Predictor(tmp_path, device="cpu", conf=0.5)
    with pytest.raises(UsageError, match=r"^size= must be at least 1 pixel, not 0$"):
        fishnet.load(tmp_path, size=0)
    with pytest.raises(UsageError, match=r"unknown setting 'imgsz'\. It is called 'size' here\."):
        fishnet.train("classification", data=tmp_path, imgsz=64)
    with pytest.raises(UsageError, match=r"epochs must be an integer, not 1\.5"):
        fishnet.train("classification", data=tmp_path, epochs=1.5)
    with pytest.raises(UsageError, match=r"is an argument of timm\.create_model; here, weights='pretrained' downloads"):
        create_model("fishnet_nano", pretrained=True)
