"""Run, model file, weights file or tag -> network and card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fishnet.cards import HeadCard, ModelCard, read_card
from fishnet.config import Interpolation, PreprocessConfig
from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.models import create_model
from fishnet.models.build import Architecture, as_network, build_network
from fishnet.models.heads.image import ClassifierPlan
from fishnet.models.network import Network
from fishnet.runs import RunFolder


def resolve_device(device: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is a GPU where there is one.

    Raises:
        UsageError: where the device is unknown or absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}: known are auto, cpu, cuda, cuda:0, cuda:1, ...") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; use cpu")
    return found


def load_model(
    source: str | Path,
    device: str = "cpu",
    task: str | None = None,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
) -> tuple[Network, ModelCard]:
    """Return the network, in eval mode on the device, and its card.

    Args:
        source: run folder, model file, or any other weights file or tag, which needs `task` and `model`.
        device: `auto`, `cpu`, `cuda`, ...
        task: task of a file without a card.
        model: architecture of a file without a card.
        classes: class names of a file without a card; without them classes are named by their index.
        size: input size in pixels instead of the card's; of a detector the bound of the longer side follows.

    Raises:
        FishnetError: where the file is absent, damaged, or does not fit the architecture.
        UsageError: where `task` and `model` are missing, or contradict the card.
    """
    target = resolve_device(device)
    path = Path(source).expanduser()
    if path.is_dir():
        path = RunFolder(path).find_model()
    card = read_card(path) if path.suffix == ".safetensors" and path.is_file() else None
    if card is None:
        network, card = _load_foreign(path if path.exists() else source, task, model, classes)
    else:
        _compare("--task", task, card.task, path)
        _compare("--model", model, card.model, path)
        network = _load_own(path, card)
    if size is not None:
        if size < 1:
            raise UsageError(f"--size {size} is no image size")
        card = card.at_size(size)
    return network.to(target).eval(), card


def _compare(flag: str, given: str | None, written: str, path: Path) -> None:
    if given is not None and given != written:
        raise UsageError(f"{flag} {given} contradicts {path}, which says {written}: leave {flag} out")


def _load_own(path: Path, card: ModelCard) -> Network:
    preprocess = card.preprocess
    network = build_network(card.architecture, mean=preprocess.mean, std=preprocess.std)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FishnetError(f"cannot read {path}: {error}") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise FishnetError(f"the weights in {path} do not fit the {card.model} of its header: {detail}") from error
    return network


def _load_foreign(
    source: str | Path, task: str | None, model: str | None, classes: Sequence[str] | None
) -> tuple[Network, ModelCard]:
    """Load weights that say nothing of their network."""
    from fishnet.models.checkpoints.weights import load_weights, locate_weights
    from fishnet.tasks import TASK_NAMES

    path = locate_weights(source)
    if task is None or model is None:
        flags = " and ".join(flag for flag, value in (("--task", task), ("--model", model)) if value is None)
        raise UsageError(f"{path} does not say what network it belongs to: give {flags}")
    if task not in TASK_NAMES:
        raise UsageError(f"unknown task {task!r}.{did_you_mean(task, TASK_NAMES)} Known are {', '.join(TASK_NAMES)}")
    if task != "classification":
        raise FishnetError(f"{path} says nothing of its heads: give the model.safetensors of a {task} run")
    count = _count_classes(path, model)
    if classes and len(classes) != count:
        raise UsageError(f"{len(classes)} class names are given, {path} has {count} classes")
    whole: Any = create_model(model, num_classes=count)
    group_norm = load_weights(whole, path, follow_norms=True).group_norms
    architecture = Architecture(model, {"image": ClassifierPlan(num_classes=count)}, group_norm=group_norm)
    preprocess, size = preprocessing_of(whole)
    card = ModelCard(
        task=task,
        architecture=architecture,
        heads={
            "image": HeadCard(
                list(classes) if classes else [str(index) for index in range(count)],
                {} if classes else {"unnamed_classes": True},
            )
        },
        size=size,
        preprocess=preprocess,
    )
    return as_network(whole, architecture, preprocess.mean, preprocess.std), card


def _count_classes(path: Path, model: str) -> int:
    """Return the number of classes of a weights file from the shape of its classifier."""
    from timm import get_pretrained_cfg, is_model

    from fishnet.models.checkpoints.weights import classifier_size, read_checkpoint

    state = read_checkpoint(path)
    config = get_pretrained_cfg(model) if is_model(model.partition(".")[0]) else None
    named = getattr(config, "classifier", None) or ()
    for name in (named,) if isinstance(named, str) else named:
        if (weight := state.get(f"{name}.weight")) is not None:
            return len(weight)
    count = classifier_size(state)
    if count is None:
        raise FishnetError(f"{path} holds no classifier: only whole classification networks can predict")
    return count


def preprocessing_of(network: nn.Module) -> tuple[PreprocessConfig, int]:
    """Return how the authors of a timm model prepare images for it, and at what size."""
    from timm.data import resolve_model_data_config

    found = resolve_model_data_config(network)
    return _as_preprocessing(found), int(found["input_size"][-1])


def _as_preprocessing(found: Mapping[str, Any]) -> PreprocessConfig:
    """Return timm's data configuration in the form of this library."""
    known = get_args(Interpolation)
    return PreprocessConfig(
        crop_pct=float(found["crop_pct"]),
        interpolation=found["interpolation"] if found["interpolation"] in known else "bilinear",
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def preprocessing_of_weights(model: str, weights: str | None) -> dict[str, Any]:
    """Return what weights to start from say of the images they were trained on, as fields of `PreprocessConfig`.

    Published weights (`pretrained` or a tag) say all of it, a run's mean and std: how its images were cropped belongs
    to its data. Other files say nothing.

    Raises:
        UsageError: `pretrained` for a model without published weights.
        FishnetError: The card of a run is damaged.
    """
    from timm import get_pretrained_cfg
    from timm.data import resolve_data_config

    from fishnet.models import PUBLISHED, published_weights
    from fishnet.models.checkpoints.pretrained import PRETRAINED

    if weights == PUBLISHED:
        weights = published_weights(model)
    if weights == PUBLISHED or weights in PRETRAINED:
        config = get_pretrained_cfg(model if weights == PUBLISHED else f"{PRETRAINED[weights].model}.{weights}")
        assert config is not None
        return dataclasses.asdict(_as_preprocessing(resolve_data_config(pretrained_cfg=config.to_dict())))
    path = Path(weights or "").expanduser()
    path = RunFolder(path).model_file if path.is_dir() else path
    card = read_card(path) if path.suffix == ".safetensors" and path.is_file() else None
    return {} if card is None else {"mean": card.preprocess.mean, "std": card.preprocess.std}
