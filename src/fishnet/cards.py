"""Model cards: everything that evaluation, prediction and export need to know about a network.

`model.safetensors` contains the weights and, in its header under `model.json`, the `ModelCard`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fishnet.config import Interpolation, NormalizeConfig, PreprocessConfig
from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json, atomic_path
from fishnet.models.build import Architecture
from fishnet.models.heads.types import count_classes

FORMAT_VERSION = 2
CARD_KEY = "model.json"

# Keywords of timm.create_model that read files or download: a model file must not contain them.
REFUSED_OPTIONS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass
class HeadCard:
    """Description of one head."""

    classes: list[str] = field(default_factory=list)
    """Names in the order of the head's outputs; empty if it does not predict classes."""
    details: Json = field(default_factory=dict)
    """Further values that the task of the head stores, as JSON values."""


@dataclass
class ModelCard:
    """Description of a network in its model file."""

    task: str
    """Name of the task."""
    architecture: Architecture
    """Architecture that the network is built from."""
    heads: dict[str, HeadCard]
    """Descriptions of the heads, by name."""
    size: int
    """Input size in pixels; the task defines which side it is."""
    preprocess: NormalizeConfig = field(default_factory=NormalizeConfig)
    """How images are prepared; a `PreprocessConfig` for a network of square inputs."""
    precision: str = "fp32"
    """Numerical precision that the network was validated in during training."""
    details: Json = field(default_factory=dict)
    """Further values that the task stores, as JSON values."""
    format_version: int = FORMAT_VERSION

    @property
    def model(self) -> str:
        """Name of the backbone."""
        return self.architecture.backbone

    @property
    def classes(self) -> dict[str, list[str]]:
        """Class names of every head, by the name of the head."""
        return {name: head.classes for name, head in self.heads.items()}

    def to_dict(self) -> Json:
        """Return the card as JSON values."""
        values = {
            "format_version": self.format_version,
            "task": self.task,
            "architecture": self.architecture.to_dict(),
            "heads": {name: asdict(head) for name, head in self.heads.items()},
            "preprocessing": {"size": self.size, **asdict(self.preprocess)},
            "precision": self.precision,
            "details": self.details,
        }
        return dict(json.loads(json.dumps(values)))  # tuples become lists, as in the file

    def to_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> ModelCard:
        """Read a card; `where` names its file in errors.

        Raises:
            FishnetError: The text is not a card, is damaged, or was written by a newer version.
        """
        try:
            raw = json.loads(text)
            version = raw["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FishnetError(
                    f"{where} was written by a newer fishnet (format {version}, this one reads up to "
                    f"{FORMAT_VERSION}): upgrade fishnet-vision"
                )
            return cls._from_dict(raw)
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise FishnetError(
                f"{where}: its {CARD_KEY} is damaged ({type(error).__name__}: {error}); write the model file again"
            ) from error

    @classmethod
    def _from_dict(cls, raw: Json) -> ModelCard:
        preprocessing = dict(raw["preprocessing"])
        size = preprocessing.pop("size")
        kind = PreprocessConfig if "crop_pct" in preprocessing else NormalizeConfig
        known = {f.name for f in fields(kind)}
        preprocessing = {name: value for name, value in preprocessing.items() if name in known}
        for name in ("mean", "std"):
            preprocessing[name] = tuple(float(value) for value in preprocessing[name])
        card = cls(
            task=raw["task"],
            architecture=Architecture.from_dict(raw["architecture"]),
            heads={
                name: HeadCard(list(head["classes"]), dict(head.get("details") or {}))
                for name, head in raw["heads"].items()
            },
            size=size,
            preprocess=kind(**preprocessing),
            precision=str(raw.get("precision", "fp32")),
            details=dict(raw.get("details") or {}),
            format_version=raw["format_version"],
        )
        card.check()
        return card

    def check(self) -> None:
        """Raise ValueError if the fields contradict each other."""
        if not isinstance(self.task, str) or not self.task:
            raise ValueError(f"{self.task!r} is not the name of a task")
        if not isinstance(self.model, str) or ":" in self.model:
            raise ValueError(f"{self.model!r} is not the name of a model")
        numbers = {"size": self.size, "in_chans": self.architecture.in_chans, "format_version": self.format_version}
        counts = {name: count_classes(plan) for name, plan in self.architecture.heads.items()}
        numbers |= {f"num_classes of {name}": count for name, count in counts.items() if count is not None}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, not a positive integer")
        if self.heads.keys() != self.architecture.heads.keys():
            described, built = sorted(self.heads), sorted(self.architecture.heads)
            raise ValueError(f"the card describes the heads {described}, but the architecture has {built}")
        for name, head in self.heads.items():
            if not all(isinstance(text, str) for text in head.classes):
                raise ValueError("class names must be strings")
            if len(head.classes) != (count := counts.get(name) or 0):
                raise ValueError(f"{len(head.classes)} class names for {count} outputs of {name}")
        interpolation = getattr(self.preprocess, "interpolation", "bilinear")
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown interpolation {interpolation!r}")
        if refused := REFUSED_OPTIONS & set(self.architecture.options):
            raise ValueError(f"the options of the backbone must not contain {', '.join(sorted(refused))}")


def save_model(path: Path, model: nn.Module | Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to a safetensors file; an older file is kept until the new one is complete.

    Raises:
        FishnetError: The file cannot be written.
    """
    card.check()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in stored:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory
        stored.add(tensor.untyped_storage().data_ptr())
        tensors[name.replace("_orig_mod.", "")] = tensor
    try:
        with atomic_path(Path(path)) as beside:
            # a single key: safetensors does not keep the order of several, and equal models must give identical files
            save_file(tensors, beside, metadata={CARD_KEY: card.to_json()})
    except SafetensorError as error:
        raise FishnetError(f"cannot write {path}: {error}") from error


def read_card(path: Path) -> ModelCard | None:
    """Return the card of a safetensors file, or None if it has none.

    Raises:
        FishnetError: The file is not a safetensors file, is truncated, or its card is damaged or too new.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FishnetError(f"cannot read {path}: it is truncated or not a safetensors file ({error})") from error
    text = metadata.get(CARD_KEY)
    return None if text is None else ModelCard.from_json(text, path)
