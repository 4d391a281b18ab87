"""Categories that were not looked for in an image: nothing in it speaks against them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fishnet.models.network import Network
from tests.models.heads.test_detectors import CLASSES, detector, images, region, target

KINDS = ("mask_rcnn", "cascade_rcnn", "retinanet", "fcos")
SHAPES = ((96, 112), (64, 80))


def built(kind: str) -> Network:
    """Return a detector in training mode, in which images do not see each other."""
    return detector(kind, group_norm=True, preset="nano").train()


def losses(network: Network, targets: list[Any]) -> dict[str, Tensor]:
    return network(images(*SHAPES), {"region": targets})


def objects() -> list[Any]:
    return [
        {**target([[10, 12, 60, 70], [30, 5, 90, 50]], SHAPES[0]), "seed": torch.tensor(1)},
        {**target([[5, 5, 40, 60]], SHAPES[1]), "seed": torch.tensor(2)},
    ]


def empty(size: tuple[int, int] = SHAPES[0]) -> Any:
    return {**target([], size), "seed": torch.tensor(3)}


def class_weights(network: Network) -> list[Tensor]:
    """Return the weights of the last layers that give class logits, (logits, ...) each."""
    head = region(network)
    if hasattr(head, "regions"):
        predictor = head.regions.box_predictor
        parts = [predictor] if hasattr(predictor, "cls_score") else list(predictor)
        return [part.cls_score.weight for part in parts]
    return [head.towers.classification_head.cls_logits.weight]


def rows_of(network: Network, label: int) -> list[Tensor]:
    """Return the gradient of the weights of one class."""
    found = []
    for weight in class_weights(network):
        assert weight.grad is not None
        if hasattr(region(network), "regions"):
            found.append(weight.grad[label + 1])  # 0 is the background
        else:
            found.append(weight.grad.reshape(-1, CLASSES, *weight.grad.shape[1:])[:, label])
    return found


def with_annotated(one: Any, known: list[int] | None) -> Any:
    if known is None:
        return one
    listed = torch.zeros(CLASSES, dtype=torch.bool)
    listed[known] = True
    return {**one, "annotated": listed}


@pytest.mark.parametrize("kind", KINDS)
def test_background_does_not_speak_against_what_was_not_looked_for(kind: str) -> None:
    network = built(kind)
    nothing = [with_annotated(empty(size), [0]) for size in SHAPES]
    torch.stack(list(losses(network, nothing).values())).sum().backward()
    assert all(gradient.abs().max() > 0 for gradient in rows_of(network, 0))
    for label in range(1, CLASSES):
        assert all(gradient.abs().max() == 0 for gradient in rows_of(network, label)), label


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_listed_is_the_same_as_no_list(kind: str) -> None:
    network = built(kind)
    plain = objects()
    listed = [with_annotated(one, list(range(CLASSES))) for one in plain]
    one, other = losses(network, plain), losses(network, listed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_still_count_whatever_the_list_says(kind: str) -> None:
    """An object of a class that the list leaves out, by mistake, is learned from as any other."""
    network = built(kind)
    plain = objects()
    wrong = [with_annotated(one, []) for one in plain]
    found = losses(network, wrong)
    assert all(torch.isfinite(value) and value < 50 for value in found.values())
    torch.stack(list(found.values())).sum().backward()
    present = {int(label) for one in plain for label in one["labels"]}
    assert present
    for label in present:
        assert all(gradient.abs().max() > 0 for gradient in rows_of(network, label))


def test_objectness_learns_from_objects_only_where_the_list_is_partial() -> None:
    network = built("mask_rcnn")
    partly = losses(network, [with_annotated(empty(size), [0]) for size in SHAPES])
    assert partly["loss_objectness"].item() == 0
    partly["loss_objectness"].backward()  # of zeros, so that no process waits for it
    # beside a fully annotated image, one in which a class was not looked for counts as unlabeled
    alone = losses(network, [objects()[0], None])
    beside = losses(network, [objects()[0], with_annotated(empty(SHAPES[1]), [0])])
    assert beside["loss_objectness"].item() == pytest.approx(alone["loss_objectness"].item(), rel=1e-6)
    looked_for = losses(network, [objects()[0], empty(SHAPES[1])])
    assert looked_for["loss_objectness"].item() != pytest.approx(alone["loss_objectness"].item(), rel=1e-6)
