"""Training through the Python entry point: what a run leaves, and what bad input and broken runs say."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fishnet.cards import read_card
from fishnet.commands.train import train
from fishnet.config import OptimConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.loading import load_model
from fishnet.metrics import MetricsFile
from fishnet.models.heads.image import ClassifierPlan, ImageHead
from fishnet.models.heads.types import Frame
from fishnet.models.network import Network
from fishnet.predictor import Predictor
from fishnet.runs import RunFolder
from fishnet.tasks.classification.evaluator import ClassificationEvaluator, Evaluation
from fishnet.tasks.classification.options import ClassificationConfig
from fishnet.tasks.classification.training import ClassificationTraining, grown_size
from fishnet.training.module import build_model
from fishnet.training.progress import duration

SMALL: dict[str, Any] = {
    "model": "fishnet_nano", "model_option": {"stem_stride": 2}, "size": 32, "batch_size": 20, "epochs": 2,
    "workers": 0, "device": "cpu", "log_every": 1,
}  # fmt: skip


@pytest.fixture
def photos(mini: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of two classes with 30 training and 10 validation photos each, that a test may damage."""
    for split, count in (("train", 30), ("val", 10)):
        for name in ("cat", "ship"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for path in sorted((mini("cifar10") / split / name).iterdir())[:count]:
                shutil.copy(path, folder)
    return tmp_path / "photos"


def fit(photos: Path, out: Path, **settings: Any) -> RunFolder:
    # plain SGD, whatever the recipe of small data says
    optim = {**dataclasses.asdict(OptimConfig()), **settings.pop("optim", {})}
    return train("classification", data=str(photos), out=str(out), optim=optim, **{**SMALL, **settings})


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.last, weights_only=True)["state_dict"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_modes_train_the_same_network(photos: Path, tmp_path: Path, precision: str) -> None:
    """With dropped paths, accumulated batches and moving averages."""
    model_option = {"stem_stride": 2, "drop_path_rate": 0.2}
    settings = {"model_option": model_option, "epochs": 1, "accumulate": 2, "ema": 0.9, "precision": precision}
    fast, *others = (
        weights(fit(photos, tmp_path / memory, memory=memory, **settings)) for memory in ("fast", "balanced", "saver")
    )
    for found in others:
        assert found.keys() == fast.keys()
        for name, value in found.items():
            assert torch.equal(value, fast[name]), name


def test_a_network_that_cannot_recompute_says_so(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--memory saver needs a FishNet or a network with"):
        fit(photos, tmp_path / "run", model="dla34", model_option={}, memory="saver")
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_what_the_contract_names(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", ema=0.9)
    for path in (
        run.config_yaml, run.environment_json, run.metrics_csv, run.timing_csv, run.last, run.best, run.model_file,
        run.report_html, run.path / "train_batch.png", run.path / "predictions.png", run.path / "insides.png",
        run.path / "evaluation_val.json",
    ):  # fmt: skip
        assert path.stat().st_size > 0, path
    card = read_card(run.model_file)
    assert card is not None
    assert (card.task, card.model, card.size) == ("classification", "fishnet_nano", 32)
    assert card.heads["image"].classes == ["cat", "ship"]
    environment = json.loads(run.environment_json.read_text("utf-8"))
    assert environment["data"]["train"]["images"] == 60
    rows = MetricsFile(run.metrics_csv).read()
    assert [int(r["step"]) for r in rows if r["name"] == "loss" and r["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [int(r["epoch"]) for r in rows if r["name"] == "top1"] == [1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_has_its_own_order_and_augmentation(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen: list[tuple[int, list[int], dict[int, bytes]]] = []
    loss = ClassificationTraining.losses

    def watched(self: ClassificationTraining, model: nn.Module, batch: dict[str, Any], epoch: int) -> Any:
        order = batch["index"].tolist()
        seen.append((epoch, order, {i: x.numpy().tobytes() for i, x in zip(order, batch["image"], strict=True)}))
        return loss(self, model, batch, epoch)

    monkeypatch.setattr(ClassificationTraining, "losses", watched)
    fit(photos, tmp_path / "run", epochs=3, workers=workers)
    assert [epoch for epoch, _, _ in seen] == [0] * 3 + [1] * 3 + [2] * 3
    orders = [tuple(i for e, order, _ in seen if e == epoch for i in order) for epoch in range(3)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len(set(orders)) == 3
    pixels = [{i: x for e, _, images in seen if e == epoch for i, x in images.items()} for epoch in range(3)]
    assert sum(pixels[0][i] == pixels[1][i] for i in range(60)) < 3


def test_the_saved_model_is_the_moving_average_of_the_best_epoch(photos: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = fit(photos, tmp_path / "run", ema=0.5, epochs=1)
    state = torch.load(run.best, weights_only=True)["state_dict"]
    saved = load_file(run.model_file)
    assert all(torch.equal(value, state[f"ema.module.{key}"]) for key, value in saved.items())
    assert any(not torch.equal(value, state[f"model.{key}"]) for key, value in saved.items())


def test_a_loss_that_is_no_number_stops_with_the_step_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match=r"loss is (nan|inf) at step \d+ .*lower --lr"):
        fit(photos, tmp_path / "run", lr=1e30)
    last = RunFolder(tmp_path / "run").last
    if last.exists():
        state = torch.load(last, weights_only=True)
        assert all(torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point())


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(photos, tmp_path / "run", epochs=1)
    before = run.last.read_bytes()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FishnetError, match=r"last\.ckpt.*[Nn]o space left"):
        fit(photos, tmp_path / "run", epochs=2, resume=True, allow_changes=True)
    assert run.last.read_bytes() == before
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["best.ckpt", "last.ckpt"]


def test_a_broken_image_stops_with_its_path_or_is_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    broken = sorted((photos / "train" / "cat").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(FishnetError, match=broken.name):
        fit(photos, tmp_path / "one", workers=1)
    run = fit(photos, tmp_path / "two", bad_images="skip")
    assert run.bad_images_txt.read_text("utf-8").split() == [str(broken)]
    assert broken.name in run.report_html.read_text("utf-8")


@pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
def test_one_image_per_batch_at_the_smallest_size_says_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(FishnetError, match="raise the batch size"):
        fit(photos, tmp_path / "run", batch_size=1, model_option={"stem_stride": 4})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "fishnet_nona"}, "Did you mean 'fishnet_nano'"),
        ({"freeze": ["tial"]}, "Did you mean 'tail'"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
        ({"model_option": {"stem_strid": 2}}, "stem_stride"),
        ({"size": 8, "model_option": {"stem_stride": 2}}, "smallest is 16x16"),
        ({"batch_size": 6, "accumulate": 4}, "multiple of 4"),
    ],
)
def test_bad_settings_are_one_clear_line(photos: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FishnetError) as caught:
        fit(photos, tmp_path / "run", **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_val_names_the_command_that_makes_one(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "val")
    with pytest.raises(FishnetError, match="data split"):
        fit(photos, tmp_path / "run")


def test_overwrite_replaces_the_files_of_a_run_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", epochs=1)
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains a run"):
        fit(photos, tmp_path / "run")
    fit(photos, tmp_path / "run", epochs=1, overwrite=True, seed=5)
    assert (run.path / "notes.txt").read_text() == "mine"
    assert "seed: 5" in run.config_yaml.read_text("utf-8")


def test_resuming_a_finished_run_changes_nothing_and_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(photos, tmp_path / "run", epochs=2, batch_size=60)
    before = run.metrics_csv.read_bytes(), run.model_file.read_bytes()
    fit(photos, tmp_path / "run", epochs=2, resume=True, batch_size=60)
    assert (run.metrics_csv.read_bytes(), run.model_file.read_bytes()) == before
    assert "all 2 epochs are trained; continue with --epochs 4 --allow-changes" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"^--epochs 1: .*run has already finished 2 epochs; choose a larger number$"):
        fit(photos, tmp_path / "run", epochs=1, resume=True, allow_changes=True, batch_size=60)
    fit(photos, tmp_path / "run", epochs=3, resume=True, allow_changes=True, batch_size=60)
    assert {row["epoch"] for row in MetricsFile(run.metrics_csv).read()} == {"1", "2", "3"}
    assert "epochs are trained" not in capsys.readouterr().out


def test_the_model_of_a_run_need_not_be_named_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(photos, tmp_path / "first", epochs=1)
    capsys.readouterr()
    settings = {**SMALL, "weights": str(first.path), "epochs": 1}
    del settings["model"]
    second = train("classification", data=str(photos), out=str(tmp_path / "second"), **settings)
    assert "model fishnet_nano: taken from the weights" in capsys.readouterr().out
    assert load_model(second.path)[1].model == "fishnet_nano"


def test_a_start_that_fails_leaves_no_folder_and_does_not_count_as_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FISHNET_OUT", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("broken.pth").write_bytes(b"nothing")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"weights": "broken.pth"}, "broken"),
        ({"weights": "no_such_weights.pth"}, "no_such_weights"),
        ({"weights": "pretrained", "model": "resnet10t", "model_option": {}}, "cannot download the pretrained weights"),
        ({"freeze": ["no_such_part"]}, "no_such_part"),
        ({"precision": "fp16"}, "needs a GPU"),
    ]
    for settings, says in bad:
        with pytest.raises(FishnetError, match=says):
            train("classification", data=str(photos), **{**SMALL, **settings})
        assert not Path("runs").exists()
    Path("runs", "train").mkdir(parents=True)  # a run that was killed before its first step has settings only
    Path("runs", "train", "config.yaml").write_text("task: classification\n")
    quick = {**SMALL, "epochs": 1, "max_steps": 1}
    runs = [train("classification", data=str(photos), **quick) for _ in range(2)]
    assert [run.path for run in runs] == [Path("runs/train"), Path("runs/train2")]


def test_every_epoch_logs_a_loss_and_a_stopped_run_names_what_follows(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(photos, tmp_path / "run", log_every=50)
    rows = [row for row in MetricsFile(run.metrics_csv).read() if row["name"] == "loss" and row["split"] == "train"]
    assert [(row["step"], row["epoch"]) for row in rows] == [("1", "1"), ("3", "1"), ("6", "2")]
    capsys.readouterr()
    run = fit(photos, tmp_path / "stopped", max_steps=1, batch_size=40)
    printed = capsys.readouterr().out
    assert "20 of 60 images are left out of each epoch" in printed
    best = fit(photos, tmp_path / "longer", max_steps=4)
    assert "best epoch 1: " in capsys.readouterr().out
    assert best.model_file.exists()
    fit(photos, tmp_path / "short", max_steps=2)
    printed = capsys.readouterr().out
    assert f"stopped by --max-steps before a validation; weights: {tmp_path / 'short'}" in printed
    assert f"next: fishnet predict {tmp_path / 'short'}" in printed


def test_fine_tuning_takes_a_run_with_other_classes_and_keeps_frozen_parts(photos: Path, tmp_path: Path) -> None:
    first = fit(photos, tmp_path / "first", epochs=1)
    (photos / "train" / "cat").rename(photos / "train" / "a third")
    (photos / "val" / "cat").rename(photos / "val" / "a third")
    for split in ("train", "val"):
        shutil.copytree(photos / split / "ship", photos / split / "boat")
    second = fit(photos, tmp_path / "second", epochs=1, weights=str(first.path), freeze=["stem", "tail"])
    from safetensors.torch import load_file

    before, after = load_file(first.model_file), load_file(second.model_file)
    assert after["heads.image.classifier.weight"].shape[0] == 3
    frozen = [key for key in before if key.startswith(("trunk.stem.", "trunk.tail."))]
    assert len(frozen) > 50
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("trunk.head."))


def test_any_timm_backbone_trains_by_name(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", epochs=1, model="resnet10t", model_option={}, channels_last=False)
    card = read_card(run.model_file)
    assert card is not None
    assert card.model == "resnet10t"


def label_several(photos: Path, label: Callable[[int, str], str]) -> None:
    """Write labels.csv of both splits; `label` makes the labels of an image from its number and class."""
    for split in ("train", "val"):
        names = [path.relative_to(photos / split).as_posix() for path in sorted((photos / split).glob("*/*.jpg"))]
        rows = [f"{name},{label(number, name.partition('/')[0])}" for number, name in enumerate(names)]
        (photos / split / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n")


def test_several_labels_per_image_train_with_mixing(photos: Path, tmp_path: Path) -> None:
    label_several(photos, lambda number, name: "cat|animal" if name == "cat" else "ship")
    run = fit(photos, tmp_path / "run", epochs=1, augment={"mixup": 0.2, "cutmix": 1.0}, class_weights="balanced")
    rows_of = MetricsFile(run.metrics_csv).read()
    assert {row["name"] for row in rows_of if row["split"] == "val"} >= {"map", "loss"}


# The parts of the engine on their own


def test_an_unknown_optimizer_is_one_line_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^optim.name: unknown optimizer 'admaw'\. Did you mean .*'adamw'.*sgd, adamw"
    ):
        fit(photos, tmp_path / "run", optim={"name": "admaw"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_clipped_gradients_move_the_weights_by_their_norm(photos: Path, tmp_path: Path, precision: str) -> None:
    optim = {"momentum": 0.0, "weight_decay": 0.0, "clip_grad": 0.01, "warmup_epochs": 0}
    settings = {"precision": precision, "lr": 1.0, "max_steps": 1, "optim": optim}
    run = fit(photos, tmp_path / "run", **settings)
    start = build_model(ClassificationTraining(ClassificationConfig(data=str(photos), **SMALL)))
    after = weights(run)
    moved = [after[f"model.{name}"] - value.detach() for name, value in start.named_parameters()]
    assert torch.stack([part.norm() for part in moved]).norm() == pytest.approx(0.01, rel=1e-3)


def test_images_grow_over_the_epochs(photos: Path) -> None:
    config = ClassificationConfig(data=str(photos), size=32, epochs=9, model="fishnet_nano")
    assert {grown_size(config, epoch) for epoch in range(9)} == {32}
    config.augment.grow_from = 16
    sizes = [grown_size(config, epoch) for epoch in range(9)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 32)
    assert all(size % 4 == 0 for size in sizes)


def test_balanced_weights_are_the_inverse_of_the_frequency(photos: Path) -> None:
    for path in sorted((photos / "train" / "cat").iterdir())[10:]:
        path.unlink()
    task = ClassificationTraining(ClassificationConfig(data=str(photos), size=32, class_weights="balanced"))
    assert task.architecture().heads["image"].class_weights == pytest.approx([40 / (2 * 10), 40 / (2 * 30)])


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_best_constant_answer_of_several_labels_is_the_frequency(photos: Path, weights: str) -> None:
    # of 60 images: often 48, half 30, rare 6
    shares = {"often": 48 / 60, "half": 0.5, "rare": 0.1}
    label_several(
        photos,
        lambda number, name: "|".join(label for label, share in shares.items() if number % 10 < round(10 * share)),
    )
    task = ClassificationTraining(ClassificationConfig(data=str(photos), size=32, class_weights=weights))  # type: ignore[arg-type]
    targets = torch.stack([task.train_data[index]["target"] for index in range(60)]).double()
    batch = {"image": torch.zeros(60, 3, 32, 32), "target": targets}
    answer = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    plan = task.architecture().heads["image"]
    head = ImageHead(nn.Identity(), plan)

    class Constant(nn.Module):
        def forward(self, images: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            frame = Frame((32, 32), [(32, 32)] * len(images))
            found = head.losses(head.raw(answer.expand(len(images), 3)), frame, targets["image"])
            return {name: mean.value for name, mean in found.items()}

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = task.losses(Constant(), batch, epoch=0)["loss"]
        value.backward()
        return value

    optimizer.step(loss)
    frequency = torch.tensor([shares[name] for name in task.classes], dtype=torch.float64)
    assert targets.mean(0).tolist() == pytest.approx(frequency.tolist())
    assert answer.detach().tolist() == pytest.approx(frequency.logit().tolist(), abs=1e-3)
    if weights == "balanced":
        found = torch.tensor(plan.class_weights, dtype=torch.float64)
        assert float(found.mean()) == pytest.approx(1)
        assert (found * frequency).tolist() == pytest.approx([float(found[0] * frequency[0])] * 3)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_class_weights_are_not_rounded_by_autocast(multi_label: bool, half: torch.dtype) -> None:
    """They and their sum were rounded to the dtype of the logits, and above 65504 infinite in fp16."""
    weights = (0.3, 1.7, 1e5)
    head = ImageHead(nn.Linear(8, 3), ClassifierPlan(num_classes=3, multi_label=multi_label, class_weights=weights))
    head.requires_grad_(False)
    features, labels = torch.randn(30, 8), torch.arange(30) % 3
    targets = torch.nn.functional.one_hot(labels, 3).float() if multi_label else labels
    with torch.autocast("cpu", half):
        raw = head.raw(features)
        found = head.losses(raw, Frame((1, 1), []), targets)["loss"]
    logits, exact = raw["logits"].double(), torch.tensor(weights, dtype=torch.float64)
    if multi_label:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.double(), exact)
    else:
        expected = torch.nn.functional.cross_entropy(logits, labels, exact)
        assert float(found.items) == pytest.approx(float(exact[labels].sum() / exact.min()), rel=1e-6)
    assert float(found.value) == pytest.approx(float(expected), rel=1e-6)


def test_a_part_that_is_named_loss_does_not_hide_the_total(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(job: ClassificationTraining, model: Network, batch: Any, epoch: int) -> dict[str, torch.Tensor]:
        zero = sum(parameter.sum() for parameter in model.parameters()) * 0.0
        return {"loss": zero + 1.0, "other": zero + 2.0}

    monkeypatch.setattr(ClassificationTraining, "losses", losses)
    run = train("classification", data=str(photos), out=str(tmp_path / "run"), **{**SMALL, "epochs": 1})
    rows = [row for row in MetricsFile(run.metrics_csv).read() if row["split"] == "train"]
    assert {float(row["value"]) for row in rows if row["name"] == "loss"} == {3.0}
    assert {float(row["value"]) for row in rows if row["name"] == "other"} == {2.0}


def test_the_line_of_an_epoch_shows_metrics_as_they_are_declared(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal, every epoch prints a line, also one that is not validated."""
    fit(photos, tmp_path / "run", epochs=2, validate_every=2)
    one, two = (line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch "))
    pattern = r"epoch 1/2  training loss [0-9.]+ at the last step  [0-9.]+ images/s  [0-9]+ (s|min) left"
    assert re.fullmatch(pattern, one), one
    pattern = r"epoch 2/2  top-1 [0-9.]+ %  loss [0-9.]+  best [0-9.]+ % \(epoch 2\)  [0-9.]+ images/s"
    assert re.fullmatch(pattern, two), two


def test_a_time_is_told_in_rounded_words() -> None:
    assert [duration(seconds) for seconds in (0, 59, 60, 3599, 3600, 12000)] == [
        "0 s", "59 s", "1 min", "1 h 0 min", "1 h 0 min", "3 h 20 min",
    ]  # fmt: skip


def test_a_run_whose_best_metric_is_nan_ends_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The metric of an evaluator may be 0 divided by 0: NaN in metrics.csv, null in JSON, a dash for people."""
    compute = ClassificationEvaluator.compute

    def without_top1(self: ClassificationEvaluator) -> Evaluation:
        found = compute(self)
        found.metrics["top1"] = math.nan
        return found

    monkeypatch.setattr(ClassificationEvaluator, "compute", without_top1)
    run = fit(photos, tmp_path / "run", epochs=1)
    assert "best epoch 1: top-1 –" in capfd.readouterr().out
    assert '"top1": null' in run.evaluation_json().read_text("utf-8")
    assert "<b>–</b><span>val top-1</span>" in run.report_html.read_text("utf-8")


def test_training_stops_when_nothing_gets_better(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate of nearly 0 and fixed BatchNorms every validation equals the first."""
    still: dict[str, Any] = {"lr": 1e-12, "freeze": ["stem", "tail", "bridge", "body", "head", "score"], "patience": 2}
    still["batch_size"] = 60  # one step per epoch
    run = fit(photos, tmp_path / "run", epochs=9, **still)
    epochs = [int(row["epoch"]) for row in MetricsFile(run.metrics_csv).read() if row["name"] == "top1"]
    assert epochs == [1, 2, 3]
    assert "early stopping: no improvement since epoch 1 (patience 2)" in capsys.readouterr().out
    assert json.loads(run.evaluation_json().read_text())["epoch"] == 1
    fit(photos, tmp_path / "run", epochs=9, resume=True, **still)  # a resumed run stays stopped
    again = [int(row["epoch"]) for row in MetricsFile(run.metrics_csv).read() if row["name"] == "top1"]
    assert again == [1, 2, 3]
    fit(photos, tmp_path / "run", epochs=9, resume=True, allow_changes=True, **{**still, "patience": 4})
    more = [int(row["epoch"]) for row in MetricsFile(run.metrics_csv).read() if row["name"] == "top1"]
    assert more == [1, 2, 3, 4, 5]


def test_the_best_epoch_is_that_of_the_named_metric_and_every_second_one_is_kept(photos: Path, tmp_path: Path) -> None:
    run = fit(photos, tmp_path / "run", epochs=4, best="loss", lr=0.3, save_every=2)
    losses = {
        int(row["epoch"]): float(row["value"])
        for row in MetricsFile(run.metrics_csv).read()
        if (row["split"], row["name"]) == ("val", "loss")
    }
    best = json.loads(run.evaluation_json().read_text())
    assert set(best["metrics"]) == set(Predictor(run.path, device="cpu").task.metrics)
    assert best["epoch"] == min(losses, key=lambda epoch: losses[epoch])
    assert best["metrics"]["loss"] == pytest.approx(min(losses.values()))
    with pytest.raises(UsageError, match=r"the validation does not compute 'top-1'.*Did you mean 'top1'"):
        fit(photos, tmp_path / "other", best="top-1")
    assert not (tmp_path / "other").exists()
    kept = sorted(path.name for path in run.checkpoints.glob("epoch_*"))
    assert kept == ["epoch_002.safetensors", "epoch_004.safetensors"]
    last, _ = load_model(run.epoch_file(4))
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in last.state_dict().items())
    second, _ = load_model(run.epoch_file(2))
    assert not torch.equal(next(second.parameters()), next(last.parameters()))
