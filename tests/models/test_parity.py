"""The released networks and pytorchcv's as oracles of the models and of the conversion between layouts."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fishnet.models import create_model
from fishnet.models.checkpoints.layouts import convert_state


@pytest.fixture(scope="module")
def reference(parity_dir: Path) -> SimpleNamespace:
    """Functions that make the weights and inputs of the parity cases."""
    return SimpleNamespace(**runpy.run_path(str(parity_dir / "reference_weights.py")))


@pytest.mark.parametrize("name", ["fishnet99", "fishnet150", "fishnet201"])
def test_logits_and_stages_equal_the_released_network(name: str, reference: SimpleNamespace, parity_dir: Path) -> None:
    case = reference.load_case(parity_dir / f"{name}.npz")
    arrays = reference.reference_state(case["keys"], case["shapes"], case["seed"])
    released = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    model = create_model(name).eval()
    model.load_state_dict(convert_state(released, "fishnet"))
    batch = torch.from_numpy(reference.reference_input(case["input_shape"], case["seed"]))
    with torch.no_grad():
        logits = model(batch).numpy()
        stages = list(model.stages(batch).values())[1:]  # the stem before its pool is not among the reference stages
    assert logits.shape == case["logits"].shape
    assert np.abs(logits - case["logits"]).max() <= 1e-4
    assert len(stages) == 11
    for index, stage in enumerate(stages):
        values = stage.numpy().ravel()
        assert list(stage.shape) == list(case[f"stage{index}_shape"])
        assert np.abs(values[:: max(1, values.size // 512)] - case[f"stage{index}_sample"]).max() <= 1e-3
        assert abs(values.mean() - case[f"stage{index}_mean"]) <= 1e-3
        assert abs(values.std() - case[f"stage{index}_std"]) <= 1e-3


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Give every norm random affine parameters and statistics, so that no tensor is like another."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.weight.data = 0.6 + 0.4 * torch.rand(count, generator=generator)
            module.bias.data = 0.1 * torch.randn(count, generator=generator)
            module.running_mean = 0.1 * torch.randn(count, generator=generator)
            module.running_var = 0.5 + torch.rand(count, generator=generator)
            module.num_batches_tracked += int(torch.randint(1, 100, (), generator=generator))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) / fan_in**0.5
            if module.bias is not None:
                module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator)
    return model.eval()


def pytorchcv_model(name: str) -> nn.Module:
    from pytorchcv.model_provider import get_model

    return get_model(name).eval()


def outputs(model: nn.Module, height: int, width: int) -> Tensor:
    batch = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    with torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("direction", ["from pytorchcv", "to pytorchcv"])
@pytest.mark.parametrize("name", ["fishnet99", "fishnet150"])
def test_outputs_equal_pytorchcv(name: str, direction: str) -> None:
    ours, theirs = create_model(name).eval(), pytorchcv_model(name)
    if direction == "from pytorchcv":
        randomize(theirs, seed=1)
        ours.load_state_dict(convert_state(theirs.state_dict(), "fishnet"))
    else:
        randomize(ours, seed=2)
        theirs.load_state_dict(convert_state(ours.state_dict(), "pytorchcv"))
    torch.testing.assert_close(outputs(ours, 224, 224), outputs(theirs, 224, 224), rtol=0, atol=1e-5)
    # pytorchcv averages over 7x7; only with a global average does it take other sizes.
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    torch.testing.assert_close(outputs(ours, 160, 288), outputs(theirs, 160, 288), rtol=0, atol=1e-5)
    counters = {key: int(value) for key, value in ours.state_dict().items() if key.endswith("num_batches_tracked")}
    assert len(set(counters.values())) > 1
