"""Weights in the package: small, what their tag says, and the start of any network of their model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from fishnet import create_model
from fishnet.cards import read_card
from fishnet.commands.train import packaged_hint
from fishnet.errors import UsageError
from fishnet.loading import load_model
from fishnet.models.checkpoints.pretrained import PACKAGED, PRETRAINED, fetch, packaged_weights
from fishnet.models.checkpoints.weights import load_weights
from fishnet.preprocessing import preprocessing_of_weights
from fishnet.tasks import get_task

LARGEST = 1.2e6


@pytest.mark.parametrize("tag", [tag for tag, entry in PRETRAINED.items() if entry.packaged])
def test_the_file_is_the_one_that_is_named_and_small(tag: str) -> None:
    path = fetch(tag)
    assert path.stat().st_size <= LARGEST
    assert hashlib.sha1(path.read_bytes()).hexdigest() == PRETRAINED[tag].sha1
    card = read_card(path)
    assert card is not None
    assert card.details.keys() == {"data", "recipe", "top1"}
    assert f"{100 * card.details['top1']:.1f} %" in PRETRAINED[tag].note
    assert len(list(PACKAGED.iterdir())) == sum(bool(entry.packaged) for entry in PRETRAINED.values())


@torch.no_grad()
def test_the_classifier_is_the_same_by_every_way() -> None:
    ours = create_model("fishnet_nano", weights="cifar10", num_classes=10, stem_stride=2).eval()
    theirs = timm.create_model("fishnet_nano.cifar10", pretrained=True, stem_stride=2).eval()
    assert theirs.num_classes == 10
    images = torch.randn(2, 3, 32, 32)
    expected = ours(images)
    torch.testing.assert_close(theirs(images), expected)
    network, card = load_model(fetch("cifar10"))
    torch.testing.assert_close(torch.stack(network(images)["image"]), expected)
    assert card.size == 32
    # a configuration for photos stays the default one
    assert timm.get_pretrained_cfg("fishnet_nano").input_size == (3, 224, 224)


def test_only_mean_and_std_of_small_images_are_taken() -> None:
    found = preprocessing_of_weights("fishnet_nano", "cifar10")
    assert found.keys() == {"mean", "std"}
    assert found["mean"] == pytest.approx((0.491, 0.482, 0.447))
    assert preprocessing_of_weights("fishnet_nano", "pretrained") == found


def test_other_members_say_whose_weights_they_are() -> None:
    with pytest.raises(UsageError, match="'cifar10' belong to fishnet_nano, but the model is fishnet_tiny"):
        load_weights(create_model("fishnet_tiny"), "cifar10")


def test_a_detector_without_weights_is_told_of_them(mini: Callable[[str], Path]) -> None:
    kind = get_task("detection")

    def hint(**settings: object) -> str | None:
        return packaged_hint(kind.make_training(kind.config(data=str(mini("pennfudan")), **settings)))

    assert "--weights cifar10" in (hint(model="fishnet_nano") or "")
    assert hint(model="fishnet_nano", weights="cifar10") is None
    assert hint(model="fishnet_tiny") is None
    assert packaged_weights("fishnet_nano") == ["cifar10"]
