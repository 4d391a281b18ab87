"""Models as people type them."""

from __future__ import annotations

import pytest
import torch

from fishnet.errors import UsageError
from fishnet.models.specs import ModelSpec, check_spec, parse_spec, parse_specs


def test_lists_keep_what_is_in_brackets_together() -> None:
    found = parse_specs("fishnet_nano, resnet18:layers=[1,1,1,1]:channels=[8, 16]:zero_init_last=false", "--models")
    assert found == [
        ModelSpec("fishnet_nano"),
        ModelSpec("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16], "zero_init_last": False}),
    ]
    assert found[1].label == "resnet18 layers=[1,1,1,1] channels=[8,16] zero_init_last=false"


def test_models_of_pytorchcv_have_a_colon_in_their_names() -> None:
    assert parse_spec("pytorchcv:fishnet150:num_classes=7", "MODEL") == ModelSpec(
        "pytorchcv:fishnet150", {"num_classes": 7}
    )


def test_options_reach_the_model() -> None:
    network = parse_spec("resnet18:layers=[1,1,1,1]:num_classes=7", "MODEL").build().eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert len(network.get_submodule("layer1")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18:layers", "NAME:KEY=VALUE, not 'layers'"),
        ("resnet18:layers=[1,", "is no value of layers"),
    ],
)
def test_bad_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parse_spec(text, "MODEL")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'resnet18x'"):
        check_spec(ModelSpec("resnet18x"))
    with pytest.raises(UsageError, match="pytorchcv has no model"):
        ModelSpec("pytorchcv:fishnet1").build()
