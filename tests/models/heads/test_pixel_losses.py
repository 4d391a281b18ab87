"""Losses of the pixel head against PyTorch's, those of segmentation_models_pytorch, and definitions in plain NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from fishnet.errors import UsageError
from fishnet.models.heads.pixel_losses import LOSSES, LossOptions, Pixels, check_losses, weighted_losses

CLASSES, IGNORED = 5, 255


def batch(
    seed: int = 0, shape: tuple[int, ...] = (3, 9, 13), ignored: float = 0.2, absent: int | None = None
) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], CLASSES, *shape[1:], generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(CLASSES, shape, generator=generator)
    if absent is not None:
        labels[labels == absent] = 0 if absent else 1
    labels[torch.rand(shape, generator=generator) < ignored] = IGNORED
    return Pixels(logits, labels)


def loss_of(name: str, pixels: Pixels, **options: Any) -> Tensor:
    return weighted_losses(pixels, {name: 1.0}, LossOptions(**options))[name]


@pytest.mark.parametrize("weights", [None, (0.1, 2.0, 1.0, 0.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_pytorch(weights: tuple[float, ...] | None, smoothing: float) -> None:
    pixels = batch()
    found = loss_of("cross_entropy", pixels, class_weights=weights, label_smoothing=smoothing)
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(pixels.logits, pixels.labels, given, ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_small_class_weights_are_normalized_too() -> None:
    pixels = Pixels(batch().logits[:1, :, :1, :2], torch.tensor([[[1, 2]]]))
    weights = (1e-3,) * CLASSES
    torch.testing.assert_close(
        loss_of("cross_entropy", pixels, class_weights=weights), loss_of("cross_entropy", pixels), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_that_of_smp(gamma: float) -> None:
    pixels = batch(ignored=0.0)
    reference = smp.losses._functional.softmax_focal_loss_with_logits
    expected = reference(pixels.logits, pixels.labels, gamma=gamma)
    torch.testing.assert_close(loss_of("focal", pixels, focal_gamma=gamma), expected, rtol=1e-9, atol=0)
    without = loss_of("focal", batch(), focal_gamma=0.0)
    torch.testing.assert_close(without, loss_of("cross_entropy", batch()), rtol=1e-12, atol=0)


def test_focal_loss_weights_classes() -> None:
    pixels, weights = batch(), np.array([0.1, 2.0, 1.0, 0.0, 3.0])
    scores, labels = flat(pixels)
    true = softmax(scores)[np.arange(len(labels)), labels]
    values = -((1 - true) ** 2) * np.log(true) * weights[labels]
    found = loss_of("focal", pixels, class_weights=tuple(weights))
    assert float(found) == pytest.approx(values.sum() / weights[labels].sum(), rel=1e-9)


def test_a_focal_exponent_below_one_has_finite_gradients_where_the_class_is_certain() -> None:
    logits = torch.tensor([[[[100.0]], [[-100.0]]]]).requires_grad_()
    loss_of("focal", Pixels(logits, torch.zeros(1, 1, 1, dtype=torch.int64)), focal_gamma=0.5).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("absent", [None, 2])
def test_dice_is_that_of_smp_on_the_classes_that_are_there(absent: int | None) -> None:
    pixels = batch(absent=absent)
    reference = smp.losses.DiceLoss("multiclass", ignore_index=IGNORED)
    expected = reference(pixels.logits, pixels.labels)  # absent classes count as 0 there
    present = CLASSES - (absent is not None)
    torch.testing.assert_close(loss_of("dice", pixels), expected * CLASSES / present, rtol=1e-9, atol=0)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def flat(pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    labels = pixels.labels.numpy().reshape(-1)
    scores = pixels.logits.movedim(1, -1).reshape(-1, CLASSES).numpy()
    return scores[labels != IGNORED], labels[labels != IGNORED]


def plain_lovasz(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum the extension set by set: the error of each pixel times the gain in 1 - IoU from making it wrong too."""
    probabilities, losses = softmax(scores), []
    for index in sorted(set(labels.tolist())):
        truth = labels == index
        errors = np.where(truth, 1 - probabilities[:, index], probabilities[:, index])
        wrong, before, loss = np.zeros(len(labels), bool), 0.0, 0.0
        for place in np.argsort(-errors, kind="stable"):
            wrong[place] = True
            found = truth ^ wrong
            cost = 1 - (found & truth).sum() / (found | truth).sum()
            loss += errors[place] * (cost - before)
            before = cost
        losses.append(loss)
    return float(np.mean(losses))


@pytest.mark.parametrize("absent", [None, 0])
def test_lovasz_is_that_of_the_paper(absent: int | None) -> None:
    pixels = batch(absent=absent)
    found = loss_of("lovasz", pixels)
    assert float(found) == pytest.approx(plain_lovasz(*flat(pixels)), rel=1e-10)
    reference = smp.losses.LovaszLoss("multiclass", ignore_index=IGNORED, from_logits=True)
    assert float(found) == pytest.approx(float(reference(pixels.logits.float(), pixels.labels)), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["distinct errors", "equal errors of 0 and 1"])
def test_lovasz_in_fp32_is_that_in_float64(scale: float) -> None:
    """fp32 errors on a CPU are sorted by another function."""
    pixels = batch(shape=(2, 40, 50))
    losses, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        logits = (pixels.logits * scale).to(dtype).requires_grad_()
        loss = loss_of("lovasz", pixels._replace(logits=logits))
        (gradient,) = torch.autograd.grad(loss, logits)
        losses.append(loss.item())
        gradients.append(gradient.double())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-4
    assert float(gradients[1].movedim(1, -1)[~pixels.valid].abs().max()) == 0


def test_lovasz_of_certain_answers_is_one_minus_the_iou() -> None:
    truth = torch.tensor([[[0, 0, 0, 1, 1, IGNORED]]])
    answer = torch.tensor([[[0, 0, 1, 1, 0, 1]]])
    logits = F.one_hot(answer, 2).movedim(-1, 1) * 200.0
    expected = 1 - (2 / 4 + 1 / 3) / 2
    assert float(loss_of("lovasz", Pixels(logits, truth))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("threshold", "keep"), [(0.7, 0.0), (0.7, 1 / 16), (1e-6, 0.25), (1e-9, 1.0), (1.0, 0.0)])
def test_ohem_takes_the_hard_pixels(threshold: float, keep: float) -> None:
    pixels = batch()
    scores, labels = flat(pixels)
    losses = -np.log(softmax(scores)[np.arange(len(labels)), labels])
    hard = losses >= -math.log(threshold)
    hard[np.argsort(-losses)[: math.ceil(keep * len(losses))]] = True
    found = loss_of("ohem", pixels, ohem_threshold=threshold, ohem_keep=keep)
    assert float(found) == pytest.approx(losses[hard].mean() if hard.any() else 0, rel=1e-10)


def test_ohem_of_easy_pixels_only_is_zero() -> None:
    pixels = batch()
    easy = Pixels(F.one_hot(pixels.classes, CLASSES).movedim(-1, 1) * 50.0, pixels.labels)
    assert float(loss_of("ohem", easy, ohem_keep=0.0)) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences(name: str) -> None:
    pixels = batch(seed=1, shape=(2, 3, 4))
    options = {"class_weights": (0.5, 2.0, 1.0, 1.0, 3.0), "label_smoothing": 0.1, "ohem_keep": 0.5}

    def loss(logits: Tensor) -> Tensor:
        return loss_of(name, pixels._replace(logits=logits), **options)

    assert torch.autograd.gradcheck(loss, pixels.logits.clone().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 4, 6)])
def test_without_labels_the_loss_and_its_gradients_are_zero(name: str, shape: tuple[int, ...]) -> None:
    pixels = batch(shape=shape, ignored=1.1)
    logits = pixels.logits.float().requires_grad_()
    loss = loss_of(name, pixels._replace(logits=logits), class_weights=(1.0,) * CLASSES)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_left_before_the_loss(name: str) -> None:
    pixels = batch()
    half = pixels._replace(logits=pixels.logits.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(name, half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss_of(name, half._replace(logits=half.logits.float())), rtol=1e-6, atol=0)


def test_weights_multiply_the_losses_of_a_sum() -> None:
    found = weighted_losses(batch(), {"cross_entropy": 2.0, "dice": 0.5}, LossOptions())
    torch.testing.assert_close(found["cross_entropy"], 2 * loss_of("cross_entropy", batch()))
    torch.testing.assert_close(found["dice"], 0.5 * loss_of("dice", batch()))


@pytest.mark.parametrize(("weights", "options", "message"), [
    ({"dise": 1.0}, {}, "unknown loss 'dise' of a pixel head. Did you mean 'dice'"),
    ({"dice": 0.0}, {}, "the weight of the loss dice must be above 0, not 0.0"),
    ({}, {}, "at least one loss"),
    ({"dice": 1}, {"class_weights": (1.0,)}, "class_weights has 1 values for 5 classes"),
    ({"dice": 1}, {"class_weights": (0.0,) * 5}, "not all 0"),
    ({"dice": 1}, {"class_weights": (1.0, math.nan, 1.0, 1.0, 1.0)}, "must be finite"),
    ({"dice": 1}, {"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
    ({"dice": 1}, {"focal_gamma": -1.0}, "focal_gamma must be at least 0"),
    ({"dice": 1}, {"ohem_threshold": 0.0}, "ohem_threshold must be above 0"),
    ({"dice": 1}, {"ohem_keep": 1.5}, "ohem_keep must be from 0 to 1"),
])  # fmt: skip
def test_sums_that_cannot_be_computed_are_refused(weights: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_losses(weights, LossOptions(**options), CLASSES)


OPTIONS = LossOptions(class_weights=(0.1, 2.0, 1.0, 0.5, 3.0), label_smoothing=0.1, ohem_threshold=1e-3, ohem_keep=0.3)


def parts_of(pixels: Pixels) -> list[Pixels]:
    """Split three images over two processes: one labeled image, and two of which one has no labels."""
    labels = pixels.labels.clone()
    labels[2] = IGNORED
    return [Pixels(pixels.logits[:1], labels[:1]), Pixels(pixels.logits[1:], labels[1:])]


def share(rank: int, folder: str) -> None:
    """Compute the losses of one of two processes, the second time with all labels in the other one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    whole = batch(seed=3)
    own = parts_of(whole)[rank]
    nothing = Pixels(whole.logits[:0], whole.labels[:0])
    for pixels in (own, nothing if rank else whole):
        logits = pixels.logits.clone().requires_grad_()
        losses = weighted_losses(pixels._replace(logits=logits), dict.fromkeys(LOSSES, 1.0), OPTIONS)
        gradients = {name: torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}
        found.append(({name: loss.detach() for name, loss in losses.items()}, gradients))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(share, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = batch(seed=3)
    halves = parts_of(whole)
    joint = [Pixels(whole.logits, torch.cat([half.labels for half in halves])), whole]
    for pixels, (losses, gradients), (others, other_gradients) in zip(joint, first, second, strict=True):
        logits = pixels.logits.clone().requires_grad_()
        expected = weighted_losses(pixels._replace(logits=logits), dict.fromkeys(LOSSES, 1.0), OPTIONS)
        for name, loss in expected.items():
            torch.testing.assert_close((losses[name] + others[name]) / 2, loss.detach(), rtol=1e-10, atol=0)
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            both = torch.cat([gradients[name], other_gradients[name]]) / 2  # as DDP averages gradients
            torch.testing.assert_close(both, gradient, rtol=1e-8, atol=1e-14, msg=name)
