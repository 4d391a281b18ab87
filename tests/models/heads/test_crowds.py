"""Crowds, regions of objects that are not annotated one by one: nothing in them is background."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fishnet.models.heads.boxes import inside_crowds, unlabeled_classes
from fishnet.models.heads.detectors import DETECTORS
from tests.models.heads.test_annotated import SHAPES, built, empty, losses, objects, rows_of
from tests.models.heads.test_detectors import CLASSES

EVERYWHERE = [-500.0, -500.0, 900.0, 900.0]


def with_crowds(one: Any, crowds: list[list[float]], labels: list[int]) -> Any:
    return {**one, "crowds": torch.tensor(crowds).reshape(-1, 4), "crowd_labels": torch.tensor(labels).long()}


@pytest.mark.parametrize("kind", DETECTORS)
def test_an_image_of_a_crowd_alone_does_not_speak_against_its_class(kind: str) -> None:
    network = built(kind)
    found = losses(network, [with_crowds(empty(size), [EVERYWHERE], [1]) for size in SHAPES])
    assert all(torch.isfinite(value) for value in found.values())
    assert found.get("loss_objectness", torch.zeros(())).item() == 0
    torch.stack(list(found.values())).sum().backward()
    for label in range(CLASSES):
        moved = [float(gradient.abs().max()) > 0 for gradient in rows_of(network, label)]
        assert moved == [label != 1] * len(moved), label


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_crowd_elsewhere_changes_nothing(kind: str) -> None:
    network = built(kind)
    away = [with_crowds(one, [[400.0, 400, 500, 500], [3, 3, 3, 40]], [0, 1]) for one in objects()]
    plain, other = losses(network, objects()), losses(network, away)
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("kind", DETECTORS)
def test_objects_in_a_crowd_are_learned(kind: str) -> None:
    network = built(kind)
    found = losses(network, [with_crowds(one, [EVERYWHERE], [0]) for one in objects()])
    torch.stack(list(found.values())).sum().backward()
    for label in {int(label) for one in objects() for label in one["labels"]}:
        assert all(gradient.abs().max() > 0 for gradient in rows_of(network, label))


def test_what_lies_in_a_crowd_by_its_own_area() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (40, 2))], 1)
    crowds = np.array([[0, 0, 50, 50], [30, 10, 90, 90], [20, 20, 20, 80]], float)
    expected = np.zeros((40, 3), bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        for column, (a, b, c, d) in enumerate(crowds):
            shared = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
            expected[row, column] = shared >= 0.7 * (x2 - x1) * (y2 - y1)
    target: Any = with_crowds({}, crowds.tolist(), [2, 0, 1])
    found = inside_crowds(target, torch.from_numpy(boxes))
    assert found.tolist() == expected.tolist()
    assert expected[:, :2].any(0).all()
    known = {**target, "annotated": torch.tensor([True, False, True])}
    (classes,) = unlabeled_classes([known], [torch.from_numpy(boxes)], 3) or []
    assert classes.tolist() == [[bool(row[1]), True, bool(row[0])] for row in expected]
    assert unlabeled_classes([{"boxes": boxes}], [torch.from_numpy(boxes)], 3) is None  # type: ignore[typeddict-item]
