"""Load a network and its card, or a runtime, from a run folder, model file, weights file or tag."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from fishnet.cards import ModelCard, read_card
from fishnet.errors import FishnetError, UsageError, python_names, quoted
from fishnet.exported import exported_card, exported_format, is_exported, open_exported
from fishnet.models.build import build_network
from fishnet.models.checkpoints.pretrained import PRETRAINED
from fishnet.models.checkpoints.weights import locate_weights
from fishnet.models.compilation import compile_network
from fishnet.models.config import VARIANTS
from fishnet.models.fusing.network import NotFused, fuse
from fishnet.models.network import Network
from fishnet.models.precision import guard_bf16_on_cpu
from fishnet.runs import RunFolder, absent
from fishnet.tasks import get_task, make_task
from fishnet.tasks.base import Runtime, TorchRuntime

RuntimeName = Literal["auto", "torch", "onnx", "openvino"]
"""Inference backends; auto selects that of an exported folder, or torch."""


def resolve_device(device: str = "auto") -> torch.device:
    """Return a device by name; `auto` is a GPU if there is one, and a number is that GPU.

    Raises:
        UsageError: The device is unknown or not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(f"cuda:{device}" if device.isdigit() else device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; devices are auto, cpu, cuda, cuda:0, cuda:1, ...") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not available: PyTorch sees {torch.cuda.device_count()} GPUs; use cpu")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {device!r} is not available on this machine; use cpu")
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
        source: Run folder, model file, or any other weights file or tag, which needs `task` and `model`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        task: Task of a file without a card.
        model: Backbone of a file without a card.
        classes: Class names of a file without a card; by default classes are named by their index.
        size: Input size in pixels instead of that of the card; the maximum of the longer side is scaled with it.

    Raises:
        FishnetError: The file is missing, damaged, or does not fit the architecture.
        UsageError: `task` or `model` is missing, or one of `task`, `model` and `classes` contradicts the card.
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
        if classes is not None and list(classes) not in card.classes.values():
            raise UsageError(f"{path} contains the names of its classes; leave --classes out")
        network = _load_own(path, card)
    if size is not None:
        if size < 1:
            raise UsageError(f"--size must be at least 1 pixel, not {size}")
        card = get_task(card.task).at_size(card, size)
    return network.to(target).eval(), card


class LoadedModel(NamedTuple):
    """A trained network with everything needed to call it."""

    network: Network
    """Network in eval mode. It takes a list of outputs of `transform`, or a batch of them (N, 3, H, W), and returns
    predictions by head, one per image: logits under `image` for a classifier; boxes, labels and scores in pixels of its
    input under `region` for a detector."""
    transform: Callable[[Image.Image], Tensor]
    """Function from an RGB image to an input of the network."""
    classes: list[str]
    """Class names in the order of the network's outputs; with several heads, those of the first."""
    card: ModelCard
    """Card of the model file."""


def load(
    source: str | Path,
    device: str = "cpu",
    task: str | None = None,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
) -> LoadedModel:
    """Load a trained network with its transform and class names.

    `fishnet.Predictor` also prepares images and decodes outputs.

    Examples:
        >>> network, transform, classes, _ = fishnet.load("runs/pets")  # doctest: +SKIP
        >>> logits = network(transform(image)[None])["image"][0]  # doctest: +SKIP
        >>> classes[logits.argmax()]  # doctest: +SKIP
        'siamese'

    Args:
        source: Run folder, model file, or any other weights file or tag, which needs `task` and `model`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        task: Task of a file without a card.
        model: Backbone of a file without a card.
        classes: Class names of a file without a card.
        size: Input size in pixels instead of that of the card.

    Raises:
        FishnetError: The file is missing, damaged, or does not fit the architecture.
        UsageError: See `load_model`.
    """
    with python_names():
        network, card = load_model(source, device, task, model, classes, size)
    return LoadedModel(network, make_task(card).transform, next(iter(card.classes.values())), card)


def load_runtime(
    source: str | Path,
    runtime: RuntimeName = "auto",
    device: str = "auto",
    precision: str = "fp32",
    task: str | None = None,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    compile: bool = False,
) -> tuple[Runtime, ModelCard]:
    """Load a network as a runtime, with its card.

    The network is fused (`fishnet.deploy.fuse`): it is faster, and its outputs agree to 1e-4.

    Args:
        source: See `load_model`, or a folder that `fishnet export` wrote.
        runtime: Inference backend; `auto` selects that of an exported folder, or `torch`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ...
        precision: Numerical precision: fp32, bf16, fp16, or auto for that of the validation during training.
        task: Task of a file without a card.
        model: Backbone of a file without a card.
        classes: Class names of a file without a card.
        size: Input size in pixels instead of that of the card.
        compile: Compile the network with torch.compile at its first batch, and print how long that took.

    Raises:
        FishnetError: The file is missing, damaged, or does not fit the architecture.
        UsageError: An unknown backend or a missing compiler; see also `load_model`.
    """
    if runtime not in (known := get_args(RuntimeName)):
        raise UsageError(f"unknown runtime {runtime!r}; runtimes are {', '.join(known)}")
    if is_exported(source := Path(source).expanduser() if Path(source).expanduser().exists() else source):
        given = {"--task": task, "--model": model, "--classes": classes, "--size": size, "--compile": compile or None}
        return _load_exported(Path(source), runtime, device, precision, given)
    if runtime not in ("auto", "torch"):
        command = f"fishnet export {quoted(source)} --format {runtime} --out DIR"
        raise UsageError(f"{source} is not an exported folder; create one with {command}")
    target = resolve_device(device)
    network, card = load_model(source, device, task=task, model=model, classes=classes, size=size)
    precision = card.precision if precision == "auto" else precision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotFused)  # a network that cannot be fused runs as it is
        kernels = target.type == "cpu" and precision == "fp32" and not compile  # the compiler has its own
        network = fuse(network.to(memory_format=torch.channels_last), kernels)
    if precision == "bf16" and target.type == "cpu":
        guard_bf16_on_cpu(network)  # as in training
    if compile:
        compile_network(network, target, tqdm.write)
    return TorchRuntime(network, target, precision), card


def _load_exported(
    folder: Path, runtime: RuntimeName, device: str, precision: str, given: Mapping[str, object]
) -> tuple[Runtime, ModelCard]:
    """Open an exported network; its input size, precision and device are fixed."""
    card, own = exported_card(folder), exported_format(folder)
    for flag, value in given.items():
        if value is not None:
            raise UsageError(f"{flag} cannot change the exported network in {folder}; export it again")
    if runtime not in ("auto", own):
        raise UsageError(f"{folder} was exported for {own}; leave --runtime {runtime} out")
    if device not in ("auto", "cpu"):
        raise UsageError(f"the exported network in {folder} runs on the CPU; leave --device {device} out")
    if precision not in ("auto", "fp32"):
        raise UsageError(f"--precision cannot change the exported network in {folder}; export it again")
    return open_exported(folder), card


def _compare(flag: str, given: str | None, written: str, path: Path) -> None:
    if given is not None and given != written:
        raise UsageError(f"{flag} {given} contradicts {path}, which contains {written}; leave {flag} out")


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


def _absent(source: Path) -> str:
    """Return a message about a source that does not exist."""
    if source.name == str(source) and (str(source) in VARIANTS or timm.is_model(source.name.partition(".")[0])):
        return f"{source} is the name of a model; give a trained one: a run folder or a model file"
    return absent(source)


def _load_foreign(
    source: str | Path, task: str | None, model: str | None, classes: Sequence[str] | None
) -> tuple[Network, ModelCard]:
    """Load weights without a card."""
    if not Path(source).expanduser().exists() and str(source) not in PRETRAINED:
        raise UsageError(_absent(Path(source)))
    path = locate_weights(source)
    if task is None or model is None:
        flags = " and ".join(flag for flag, value in (("--task", task), ("--model", model)) if value is None)
        raise UsageError(f"{path} does not describe its network: give {flags}")
    load = get_task(task).load_foreign
    if load is None:
        raise FishnetError(f"{path} does not describe its heads: give the model.safetensors of a {task} run")
    return load(path, model, classes)
