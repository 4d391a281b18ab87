"""Between tasks: trunks from and to runs of single tasks, folders of single tasks, images without labels of a level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fishnet import Predictor
from fishnet.cli import main
from fishnet.commands.train import train
from fishnet.data.levels import LEVELS
from fishnet.models.build import build_network
from fishnet.models.network import Network
from fishnet.models.trunk import Features
from fishnet.runs import RunFolder
from fishnet.settings import resolve
from fishnet.tasks import get_task
from fishnet.tasks.multitask.training import MultitaskTraining
from fishnet.training.gradients import TrunkGradients
from tests.tasks.multitask.makers import partial_scenes

pytestmark = pytest.mark.filterwarnings("ignore::fishnet.models.norms.SmallBatchWarning")
TASKS = {"image": "classification", "region": "detection", "pixel": "segmentation"}
STEP: dict[str, Any] = {
    "model": "fishnet_nano", "epochs": 1, "batch_size": 4, "size": 64, "workers": 0, "device": "cpu", "max_steps": 1,
    "recipe": "scratch_small",
}  # fmt: skip
HEADS = {"heads": {"preset": "nano", "proposals": 40, "samples": 16}}
STILL: dict[str, Any] = {"lr": 1e-12, "optim": {"name": "sgd"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = ("irp", "i", "r", "p", "irp", "rp", "ip", "ir")
    return partial_scenes(tmp_path_factory.mktemp("scenes") / "data", {"train": known, "val": ("irp", "rp", "ip")})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train("multitask", data=str(data), out=str(tmp_path_factory.mktemp("run") / "run"), **STEP, **HEADS)


def carried(before: RunFolder, after: RunFolder) -> set[str]:
    """Return the convolutions and linear layers that have the same weights in two runs."""
    one, other = load_file(before.model_file), load_file(after.model_file)
    both = {name for name in one.keys() & other.keys() if name.endswith("weight") and one[name].ndim > 1}
    return {name for name in both if one[name].shape == other[name].shape and torch.allclose(one[name], other[name])}


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_of_a_single_task_starts_a_level_and_is_started_by_it(
    trained: RunFolder, data: Path, tmp_path: Path, level: str
) -> None:
    heads = HEADS if level == "region" else {}
    there = train(
        TASKS[level], data=str(data), out=str(tmp_path / "there"), **STEP, **STILL, **heads, weights=str(trained.path)
    )
    settings = {**STEP, "seed": 1, "weights": str(there.path)}
    back = train("multitask", data=str(data), out=str(tmp_path / "back"), **settings, **STILL, **HEADS)
    for found in (carried(trained, there), carried(there, back)):
        assert sum(name.startswith("trunk.") for name in found) > 50
        assert any(name.startswith(f"heads.{level}.") for name in found)
    others = [other for other in LEVELS if other != level]
    assert not any(name.startswith(f"heads.{other}.") for name in carried(trained, back) for other in others)


def test_folders_of_single_tasks_behind_one_option(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a box detector where outlines are not wanted."""
    folders = [f"{level}={data}" for level in ("image", "region")]
    options = ["--model", "fishnet_nano", "--epochs", "1", "--batch-size", "4", "--size", "64", "--workers", "0"]
    options += ["--device", "cpu", "--detector", "fcos", "--heads.preset", "nano", "--max-steps", "1"]
    out = tmp_path / "run"
    assert main(["train", "multitask", "--data", *folders, "--out", str(out), *options]) == 0
    assert main(["evaluate", str(out), "--data", *folders, "--workers", "0", "--device", "cpu"]) == 0
    assert "mean of levels" in capsys.readouterr().out
    answer = Predictor(out, device="cpu")(next((data / "val" / "images").iterdir()))
    assert set(answer) == {"image", "region"}
    assert "masks" not in answer["region"]


def of_all_samples(data: Path) -> tuple[MultitaskTraining, Network, Any]:
    """Return a training, its network and a batch of the whole training split."""
    settings = {"data": str(data), "model": "fishnet_nano", "size": 64, "longest": 64, "norm": "group"}
    settings |= {"pixel": {"dropout": 0.0}, **HEADS}
    training = MultitaskTraining(resolve(get_task("multitask"), "scratch_small", settings))
    torch.manual_seed(0)
    network = build_network(training.architecture()).train()
    batch = training.task.collate([training.train_data[place] for place in range(len(training.train_data))])
    return training, network, batch


def test_the_pull_of_a_head_is_what_enters_the_trunk(data: Path) -> None:
    """Against autograd on copies of maps and features that are cut off from the trunk.

    In a fish every map is computed from the ones before it, and the features from the last one: the gradient by all of
    these tensors would count what the deepest one gets several times.
    """
    training, network, batch = of_all_samples(data)
    gradients = TrunkGradients(network)
    with gradients.watching():
        losses = training.losses(network, batch, 0)
    found = gradients.squares(losses)
    leaves: list[torch.Tensor] = []

    def cut(module: torch.nn.Module, inputs: object, features: Features) -> Features:
        assert features.vector is not None
        leaves[:] = [one.detach().requires_grad_() for one in (*features.maps, features.vector)]
        return Features(leaves[:-1], leaves[-1])

    handle = network.trunk.register_forward_hook(cut)
    again = training.losses(network, batch, 0)
    handle.remove()
    assert {name: value.item() for name, value in again.items()} == {n: v.item() for n, v in losses.items()}
    for level in LEVELS:
        total = torch.stack([value for name, value in again.items() if name.startswith(f"{level}_")]).sum()
        grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        wanted = sum(float(grad.double().square().sum()) for grad in grads if grad is not None)
        assert found[f"grad_norm_{level}"].item() == pytest.approx(wanted, rel=1e-4)
    # what is learned stays the same
    torch.stack(list(losses.values())).sum().backward()
    watched = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    network.zero_grad()
    torch.stack(list(training.losses(network, batch, 0).values())).sum().backward()
    for name, value in network.named_parameters():
        if value.grad is not None:
            assert torch.equal(value.grad, watched[name]), name


@pytest.mark.parametrize("level", LEVELS)
def test_images_without_labels_of_a_level_change_none_of_its_losses(data: Path, level: str) -> None:
    """The losses of an image are the same alone and beside others that lack the level: unlabeled is not empty."""
    training, network, _ = of_all_samples(data)
    samples = [training.train_data[place] for place in range(len(training.train_data))]
    having = [sample for sample in samples if level in sample["target"]]
    lacking = [sample for sample in samples if level not in sample["target"]]
    assert len(having) == 5
    assert len(lacking) == 3
    collate = training.task.collate
    assert collate is not None
    found = [training.losses(network, collate(part), 0) for part in (having[:1], [lacking[0], having[0], *lacking[1:]])]
    alone, beside = ({n: v.item() for n, v in one.items() if n.startswith(f"{level}_")} for one in found)
    assert alone
    assert beside == pytest.approx(alone, rel=1e-4, abs=1e-6)
    more = training.losses(network, collate(having), 0)
    assert any(more[name].item() != pytest.approx(value, rel=1e-3) for name, value in alone.items())
    assert not any(name.startswith(f"{level}_") for name in training.losses(network, collate(lacking), 0))
