"""The evaluator against plain NumPy and scikit-learn formulas."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import nn

from fishnet.errors import FishnetError
from fishnet.tasks.base import TorchRuntime, evaluate_network, evaluation_mode
from fishnet.tasks.classification.evaluator import ClassificationEvaluator, good_items
from fishnet.tasks.classification.task import ClassificationTask
from tests.models_on_disk import classifier_card


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def single(classes: int, images: int = 200, seed: int = 0, leave_out: int | None = None) -> tuple:
    """Logits that favor the target, and targets; `leave_out` is a class without images."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (images,), generator=generator)
    if leave_out is not None:
        targets[targets == leave_out] = (leave_out + 1) % classes
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), targets] += 1.0
    return logits, targets


def judge(logits: torch.Tensor, targets: torch.Tensor, classes: int, multi_label: bool = False, step: int = 64):
    evaluator = ClassificationEvaluator(names(classes), multi_label)
    for start in range(0, len(logits), step):
        evaluator.update(logits[start : start + step], targets[start : start + step])
    return evaluator.compute()


def calibration(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Mean over bins of |accuracy - confidence|, weighted by the images in the bin."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    edges = np.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_single_label_equals_the_formulas(classes: int) -> None:
    logits, targets = single(classes)
    found = judge(logits, targets, classes)
    probabilities, truth = logits.double().softmax(1).numpy(), targets.numpy()
    guess = probabilities.argmax(1)
    assert found.images == len(truth)
    assert found.metrics["top1"] == (guess == truth).mean()
    assert ("top5" in found.metrics) == (classes > 5)  # else it is always 1
    if classes > 5:
        top5 = top_k_accuracy_score(truth, probabilities, k=5, labels=range(classes))
        assert found.metrics["top5"] == pytest.approx(top5, abs=1e-12)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, zero_division=0)
    assert found.metrics["macro_accuracy"] == pytest.approx(recall.mean(), abs=1e-12)
    assert found.metrics["loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-5)
    assert found.metrics["ece"] == pytest.approx(calibration(probabilities, truth), abs=1e-6)
    for key, values in {"precision": precision, "recall": recall, "f1": f1, "images": support}.items():
        assert [row[key] for row in found.per_class] == pytest.approx(list(values), abs=1e-12)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, guess))


def test_multi_label_equals_the_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(150, 6, generator=generator) < 0.3).float()
    targets[:, 4] = 0
    logits = torch.randn(150, 6, generator=generator) + targets
    found = judge(logits, targets, 6, multi_label=True)
    truth, scores = targets.numpy().astype(int), logits.sigmoid().numpy()
    guess = (scores > 0.5).astype(int)
    judged = [0, 1, 2, 3, 5]
    ap = [average_precision_score(truth[:, i], scores[:, i]) for i in judged]
    f1 = [f1_score(truth[:, i], guess[:, i]) for i in judged]
    assert found.metrics["map"] == pytest.approx(np.mean(ap), abs=1e-6)
    assert found.metrics["f1"] == pytest.approx(np.mean(f1), abs=1e-9)
    assert [found.per_class[i]["ap"] for i in judged] == pytest.approx(ap, abs=1e-6)
    assert [row["correct"] for row in found.per_class] == list((truth * guess).sum(0))
    assert found.per_class[4]["ap"] is None
    loss = nn.functional.binary_cross_entropy(torch.from_numpy(scores), targets)
    assert found.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found.confusion is None


def test_very_sure_answers_keep_their_order() -> None:
    generator = torch.Generator().manual_seed(2)
    targets = (torch.rand(200, 4, generator=generator) < 0.4).float()
    centers = torch.tensor([30.0, 90.0, -120.0, 0.0])
    scales = torch.tensor([3.0, 3.0, 3.0, 1e-9])
    logits = centers + scales * (torch.randn(200, 4, generator=generator) + targets)
    logits[:30] = logits[30:60]  # ties that are real
    logits[60:90, 3], logits[90:100, 3] = 0.0, -0.0
    found = judge(logits, targets, 4, multi_label=True)
    ap = [average_precision_score(targets[:, i], logits[:, i].double()) for i in range(4)]
    assert [row["ap"] for row in found.per_class] == pytest.approx(ap, abs=1e-6)
    assert found.metrics["map"] == pytest.approx(np.mean(ap), abs=1e-6)


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    logits, targets = single(4, leave_out=2)
    logits[:20, 2] += 20  # it is predicted all the same
    found = judge(logits, targets, 4)
    row = found.per_class[2]
    assert (row["images"], row["recall"], row["f1"], row["precision"]) == (0, None, None, 0.0)
    recalls = [row["recall"] for row in found.per_class if row["images"]]
    assert found.metrics["macro_accuracy"] == pytest.approx(np.mean(recalls))
    assert '"recall": null' in json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("multi_label", [False, True])
def test_one_class(multi_label: bool) -> None:
    logits = torch.linspace(-1, 1, 10)[:, None]
    targets = torch.ones(10, 1) if multi_label else torch.zeros(10, dtype=torch.int64)
    found = judge(logits, targets, 1, multi_label)
    if multi_label:
        assert found.metrics["map"] == 1.0
        assert found.per_class[0]["recall"] == 0.5
    else:
        assert found.metrics == {"top1": 1.0, "macro_accuracy": 1.0, "ece": 0.0, "loss": 0.0}
        assert found.confusion.tolist() == [[10]]


def test_logits_between_zero_and_one_are_not_taken_for_probabilities() -> None:
    logits, targets = single(3, images=50)
    logits = logits.sigmoid()
    found = judge(logits, targets, 3)
    assert found.metrics["ece"] == pytest.approx(calibration(logits.softmax(1).numpy(), targets.numpy()), abs=1e-6)


def test_cutting_into_batches_changes_nothing_and_reset_forgets() -> None:
    logits, targets = single(5)
    whole, parts = judge(logits, targets, 5, step=1000), judge(logits, targets, 5, step=7)
    assert {k: v for k, v in whole.metrics.items() if k not in ("loss", "ece")}.items() <= parts.metrics.items()
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-6)
    evaluator = ClassificationEvaluator(names(5))
    evaluator.update(logits, targets)
    assert evaluator.compute().metrics == whole.metrics


def test_half_precision_logits_are_judged_in_single_precision() -> None:
    logits, targets = single(5)
    logits = logits.to(torch.bfloat16)
    assert judge(logits, targets, 5).metrics == judge(logits.float(), targets, 5).metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_no_numbers_are_an_error(value: float) -> None:
    logits, targets = single(3)
    logits[5, 1] = value
    with pytest.raises(FishnetError, match="NaN or infinite"):
        judge(logits, targets, 3)


def test_misfits_are_errors() -> None:
    logits, targets = single(4)
    with pytest.raises(FishnetError, match=r"4\).*3 classes"):
        judge(logits, targets, 3)
    with pytest.raises(FishnetError, match="outside the 4 classes"):
        judge(logits, targets + 1, 4)
    with pytest.raises(FishnetError, match="targets have shape"):
        judge(logits, targets, 4, multi_label=True)
    with pytest.raises(FishnetError, match="no image was evaluated"):
        judge(logits[:0], targets[:0], 4)
    with pytest.raises(FishnetError, match="at least one class"):
        ClassificationEvaluator([])


def test_it_adds_nothing_to_a_state_dict() -> None:
    evaluator = ClassificationEvaluator(names(3))
    assert not evaluator.state_dict()
    assert not list(evaluator.parameters())


def _part_of_a_group(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for multi_label in (False, True):
        logits, targets = grouped(multi_label)
        evaluator = ClassificationEvaluator(names(6), multi_label)
        for step, start in enumerate(range(0, 31, 8)):
            if step % 2 == rank:
                evaluator.update(logits[start : start + 8], targets[start : start + 8])
        found.append(evaluator.compute())
        evaluator = ClassificationEvaluator(names(6), multi_label)
        if rank == 0:  # the other process sees nothing at all
            evaluator.update(logits, targets)
        found.append(evaluator.compute())
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


def grouped(multi_label: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits, targets = single(6, images=31)
    return logits, nn.functional.one_hot(targets, 6) if multi_label else targets


@pytest.mark.skipif(sys.platform != "linux", reason="forks, for speed; elsewhere forked processes are unreliable")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_part_of_a_group, (str(tmp_path),), nprocs=2, start_method="fork")
    alone = {multi_label: judge(*grouped(multi_label), 6, multi_label) for multi_label in (False, True)}
    for rank in range(2):
        found = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        for multi_label, together in zip((False, False, True, True), found, strict=True):
            wanted = alone[multi_label]
            assert together.images == 31
            assert together.metrics == pytest.approx(wanted.metrics, abs=1e-6)
            for row, wanted_row in zip(together.per_class, wanted.per_class, strict=True):
                assert row == pytest.approx(wanted_row, abs=1e-6)
            if not multi_label:
                np.testing.assert_array_equal(together.confusion, wanted.confusion)


class Classifier(nn.Sequential):
    """Layers that answer as the networks of runs do: the logits of each image, by head."""

    def forward(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"image": list(super().forward(images))}


def test_judging_runs_in_eval_mode_and_puts_every_mode_back() -> None:
    torch.manual_seed(0)
    model = Classifier(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.9))
    images, targets = torch.randn(10, 3, 8, 8), torch.randint(4, (10,))
    batches = [{"image": images[:6], "target": targets[:6]}, {"image": images[6:], "target": targets[6:]}]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    task = ClassificationTask(classifier_card(names(4)))
    with evaluation_mode(model):
        runtime = TorchRuntime(model, torch.device("cpu"))
        found = evaluate_network(task, runtime, batches, ClassificationEvaluator(names(4)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model[1].training
    with torch.no_grad():
        logits = torch.stack(model.eval()(images)["image"])
    assert found.metrics["top1"] == float((logits.argmax(1) == targets).double().mean())


def test_stand_ins_for_unreadable_images_are_not_judged() -> None:
    batch = {
        "image": torch.arange(3.0),
        "target": torch.tensor([0, 1, 2]),
        "bad": ["", "broken.jpg", ""],
        "index": [0, 1, 2],
    }
    left = good_items(batch)
    assert left["image"].tolist() == [0, 2]
    assert left["target"].tolist() == [0, 2]
    assert left["index"] == [0, 2]
    assert good_items({"image": torch.zeros(1), "bad": [""]})["image"].shape == (1,)
