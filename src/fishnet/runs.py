"""The run folder and the model file: what training leaves behind and everything else starts from.

`model.safetensors` holds the weights and, in its header under `model.json`, the `ModelCard`: all that is needed to
build the network again and to prepare images for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fishnet.config import Interpolation, PreprocessConfig
from fishnet.errors import FishnetError, UsageError, did_you_mean
from fishnet.files import atomic_path

FORMAT_VERSION = 1
CARD_KEY = "model.json"
TASKS = ("classification", "detection", "segmentation", "multitask")

# Keywords of timm.create_model that read files or the network: a model file must not be able to ask for them.
REFUSED_OPTIONS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass
class ModelCard:
    """What a model file says of its network.

    `classes` are in the order of the outputs, `size` is the side of the square input in pixels, `model_option` holds
    the keywords the network was built with, `extra` is free for whoever wrote the file (JSON values).
    """

    task: str
    model: str
    classes: list[str]
    num_classes: int
    size: int
    model_option: dict[str, Any] = field(default_factory=dict)
    in_chans: int = 3
    multi_label: bool = False
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    extra: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the card as it is written: plain JSON values."""
        return {
            "format_version": self.format_version,
            "task": self.task,
            "architecture": {
                "name": self.model,
                "model_option": self.model_option,
                "num_classes": self.num_classes,
                "in_chans": self.in_chans,
            },
            "classes": self.classes,
            "multi_label": self.multi_label,
            "preprocessing": {
                "size": self.size,
                **dataclasses.asdict(self.preprocess),
                "mean": list(self.preprocess.mean),
                "std": list(self.preprocess.std),
            },
            "extra": self.extra,
        }

    def to_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> ModelCard:
        """Read a card; `where` names its file in errors.

        Raises:
            FishnetError: where the text is no card, is damaged or was written by a newer version.
        """
        try:
            raw = json.loads(text)
            version = raw["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FishnetError(
                    f"{where} was written by a newer fishnet (format {version}, this one reads up to "
                    f"{FORMAT_VERSION}): upgrade fishnet-vision"
                )
            card = cls._from_dict(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FishnetError(
                f"{where}: its {CARD_KEY} is damaged ({type(error).__name__}: {error}); write the model file again"
            ) from error
        return card

    @classmethod
    def _from_dict(cls, raw: dict[str, Any]) -> ModelCard:
        architecture, preprocessing = raw["architecture"], dict(raw["preprocessing"])
        size = preprocessing.pop("size")
        known = {f.name for f in dataclasses.fields(PreprocessConfig)}
        preprocessing = {name: value for name, value in preprocessing.items() if name in known}
        for name in ("mean", "std"):
            preprocessing[name] = tuple(float(v) for v in preprocessing[name])
        card = cls(
            task=raw["task"],
            model=architecture["name"],
            classes=list(raw["classes"]),
            num_classes=architecture["num_classes"],
            size=size,
            model_option=dict(architecture["model_option"]),
            in_chans=architecture["in_chans"],
            multi_label=bool(raw["multi_label"]),
            preprocess=PreprocessConfig(**preprocessing),
            extra=dict(raw.get("extra") or {}),
            format_version=raw["format_version"],
        )
        card.check()
        return card

    def at_size(self, size: int) -> ModelCard:
        """Return the card for another input size; a bound of the longer side (`longest`) grows or shrinks with it."""
        extra = dict(self.extra)
        if "longest" in extra:
            extra["longest"] = round(extra["longest"] * size / self.size)
        return dataclasses.replace(self, size=size, extra=extra)

    def check(self) -> None:
        """Raise ValueError where the fields do not fit each other."""
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}")
        if not isinstance(self.model, str) or ":" in self.model:
            raise ValueError(f"{self.model!r} is no model name")
        for name in ("num_classes", "size", "in_chans", "format_version"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, not a positive integer")
        if not all(isinstance(name, str) for name in self.classes):
            raise ValueError("a class name is not a text")
        if self.task == "classification" and len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for {self.num_classes} outputs")
        if self.preprocess.interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown interpolation {self.preprocess.interpolation!r}")
        if refused := REFUSED_OPTIONS & set(self.model_option):
            raise ValueError(f"model_option may not hold {', '.join(sorted(refused))}")


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder; nothing is created by naming them."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config_yaml(self) -> Path:
        """Resolved settings, enough to repeat the run."""
        return self.path / "config.yaml"

    @property
    def environment_json(self) -> Path:
        """Versions, commit, command, hardware and fingerprint of the data."""
        return self.path / "environment.json"

    @property
    def metrics_csv(self) -> Path:
        """Metrics in long form: step, epoch, split, name, value."""
        return self.path / "metrics.csv"

    @property
    def timing_csv(self) -> Path:
        """Timings in the same form; they differ from run to run."""
        return self.path / "timing.csv"

    @property
    def bad_images_txt(self) -> Path:
        """Images that could not be read and were left out."""
        return self.path / "bad_images.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    @property
    def model_file(self) -> Path:
        """Weights of the best epoch with their card."""
        return self.path / "model.safetensors"

    @property
    def report_html(self) -> Path:
        """Report that opens offline."""
        return self.path / "report.html"

    def find_model(self) -> Path:
        """Return the model file.

        Raises:
            FishnetError: where there is none, with the reason.
        """
        if self.model_file.is_file():
            return self.model_file
        for checkpoint in (self.best, self.last):
            if checkpoint.is_file():
                raise FishnetError(
                    f"{self.path} holds no {self.model_file.name}: the run has not finished an epoch yet. Train on "
                    f"with --resume, or name {checkpoint} itself with --task and --model"
                )
        raise FishnetError(f"{self.path} is no run folder: it holds neither {self.model_file.name} nor checkpoints/")


def save_model(path: Path, model: nn.Module | Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to one safetensors file; the old file stays until the new one is whole on disk.

    Raises:
        FishnetError: where the file cannot be written.
    """
    card.check()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in stored:
            tensor = tensor.clone()  # safetensors refuses two names for one memory
        stored.add(tensor.untyped_storage().data_ptr())
        tensors[name.replace("_orig_mod.", "")] = tensor
    try:
        with atomic_path(Path(path)) as beside:
            # one key only: the order of several changes from call to call, and equal models must give equal files
            save_file(tensors, beside, metadata={CARD_KEY: card.to_json()})
    except SafetensorError as error:
        raise FishnetError(f"cannot write {path}: {error}") from error


def read_card(path: Path) -> ModelCard | None:
    """Return the card of a safetensors file, or None where it holds none.

    Raises:
        FishnetError: where the file is no safetensors file, is truncated, or its card is damaged or too new.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FishnetError(f"cannot read {path}: it is truncated or no safetensors file ({error})") from error
    text = metadata.get(CARD_KEY)
    return None if text is None else ModelCard.from_json(text, path)


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
) -> tuple[nn.Module, ModelCard]:
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


def _build(card: ModelCard) -> nn.Module:
    from fishnet.models import create_model
    from fishnet.models.norms import apply_norm_policy

    if card.task == "detection":
        from fishnet.models.detection import DetectorPlan, build_detector

        if "plan" not in card.extra:
            raise FishnetError("a detector's weights say nothing of its heads: give the model.safetensors of its run")
        plan = DetectorPlan.from_dict(card.extra["plan"])
        return build_detector(card.model, card.num_classes, plan, **card.model_option)
    if card.task != "classification":
        raise FishnetError(f"models for {card.task} cannot be built by this version of fishnet")
    network = create_model(card.model, num_classes=card.num_classes, in_chans=card.in_chans, **card.model_option)
    return apply_norm_policy(network, "group") if card.extra.get("group_norm") else network


def _load_own(path: Path, card: ModelCard) -> nn.Module:
    network = _build(card)
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
) -> tuple[nn.Module, ModelCard]:
    """Load weights that say nothing of their network."""
    from fishnet.models.weights import load_weights, locate_weights

    path = locate_weights(source)
    if task is None or model is None:
        flags = " and ".join(flag for flag, value in (("--task", task), ("--model", model)) if value is None)
        raise UsageError(f"{path} does not say what network it belongs to: give {flags}")
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}.{did_you_mean(task, TASKS)} Known are {', '.join(TASKS)}")
    count = _count_classes(path, model)
    if classes and len(classes) != count:
        raise UsageError(f"{len(classes)} class names are given, {path} has {count} classes")
    card = ModelCard(
        task=task,
        model=model,
        classes=list(classes) if classes else [str(index) for index in range(count)],
        num_classes=count,
        size=224,
        extra={} if classes else {"unnamed_classes": True},
    )
    network = _build(card)
    if load_weights(network, path, follow_norms=True).group_norms:
        card.extra["group_norm"] = True
    card.preprocess, card.size = preprocessing_of(network)
    return network, card


def _count_classes(path: Path, model: str) -> int:
    """Return the number of classes of a weights file from the shape of its classifier."""
    from timm import get_pretrained_cfg, is_model

    from fishnet.models.weights import classifier_size, read_checkpoint

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
    from fishnet.models.pretrained import PRETRAINED

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
