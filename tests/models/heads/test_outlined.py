"""Objects without an outline beside others: no loss of masks, everything else as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fishnet.models.network import Network
from tests.models.heads.test_annotated import SHAPES, losses, objects
from tests.models.heads.test_detectors import detector

KINDS = ("mask_rcnn", "cascade_mask_rcnn")


def built(kind: str) -> Network:
    torch.manual_seed(0)
    return detector(kind, group_norm=True, preset="nano").train()


def with_outlined(targets: list[Any], known: list[list[bool]]) -> list[Any]:
    return [{**one, "outlined": torch.tensor(flags)} for one, flags in zip(targets, known, strict=True)]


def mask_gradient(network: Network) -> Tensor:
    weight = network.heads["region"].regions.mask_predictor.mask_fcn_logits.weight
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("kind", KINDS)
def test_all_outlined_is_the_same_to_the_last_bit(kind: str) -> None:
    network = built(kind)
    plain, flagged = losses(network, objects()), losses(network, with_outlined(objects(), [[True, True], [True]]))
    assert plain.keys() == flagged.keys()
    assert all(torch.equal(plain[name], flagged[name]) for name in plain)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_learned_from_outlined_objects_only(kind: str) -> None:
    """The mask of an object without an outline may be anything, and the mean is over the others."""
    network = built(kind)
    known = [[True, False], [False]]
    targets = with_outlined(objects(), known)
    found = losses(network, targets)
    other = with_outlined(objects(), known)
    other[0]["masks"][1], other[1]["masks"][0] = 1 - other[0]["masks"][1], 0
    again = losses(network, other)
    assert all(torch.equal(found[name], again[name]) for name in found)
    # boxes and classes are those of all objects
    plain = losses(network, objects())
    assert all(torch.equal(found[name], plain[name]) for name in found if name != "loss_mask")
    # the mean over the regions of the first object of the first image: by hand from those of each image
    alone = losses(network, [targets[0], None])["loss_mask"]
    assert found["loss_mask"].item() == pytest.approx(alone.item(), rel=1e-5)
    assert found["loss_mask"].item() != pytest.approx(plain["loss_mask"].item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_outline_in_a_batch_gives_no_loss_of_masks_and_gradients_of_zero(kind: str) -> None:
    network = built(kind)
    found = losses(network, with_outlined(objects(), [[False, False], [False]]))
    assert found["loss_mask"].item() == 0
    torch.stack(list(found.values())).sum().backward()
    assert mask_gradient(network).abs().max() == 0, SHAPES
