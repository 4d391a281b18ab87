"""Models as people type them in lists: NAME, or NAME:KEY=VALUE:... with keyword arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml
from torch import nn

from fishnet.errors import FishnetError, UsageError
from fishnet.files import Json
from fishnet.models.create import check_name, create_model

PYTORCHCV = "pytorchcv"
"""Prefix of the models of pytorchcv, as in pytorchcv:fishnet150."""


@dataclass(frozen=True)
class ModelSpec:
    """A model with its keyword arguments."""

    name: str
    """Name of a FishNet or a timm model, or pytorchcv:NAME."""
    options: Json = field(default_factory=dict)
    """Keyword arguments of the model."""

    @property
    def label(self) -> str:
        """The model as people read it, such as `resnet18 stem_type=deep`."""
        return " ".join([self.name, *(f"{key}={_spelled(value)}" for key, value in self.options.items())])

    def build(self) -> nn.Module:
        """Return the model with random weights: (N, 3, H, W) -> logits.

        Raises:
            UsageError: The name or an option is unknown.
            FishnetError: pytorchcv is not installed.
        """
        library, _, name = self.name.rpartition(":")
        if library != PYTORCHCV:
            return create_model(self.name, **self.options)
        try:
            from pytorchcv.model_provider import get_model
        except ImportError:
            raise FishnetError(f"{self.name} needs pytorchcv: pip install pytorchcv") from None
        try:
            return get_model(name, **self.options)
        except ValueError:
            raise UsageError(f"pytorchcv has no model {name!r}") from None


def parse_specs(text: str, flag: str) -> list[ModelSpec]:
    """Return the models of a list separated by commas; commas and colons in brackets are part of a value.

    Args:
        text: Such as `resnet50,resnet18:layers=[1,1,1,1]:zero_init_last=false`.
        flag: Option that it was given with, for messages.

    Raises:
        UsageError: Options that are not written KEY=VALUE.
    """
    return [parse_spec(entry, flag) for entry in filter(None, map(str.strip, _split(text, ",")))]


def parse_spec(text: str, flag: str) -> ModelSpec:
    """Return one model; see `parse_specs`."""
    name, *settings = _split(text, ":")
    if name == PYTORCHCV and settings:
        name = f"{name}:{settings.pop(0)}"
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{flag} {text}: options are written NAME:KEY=VALUE, not {setting!r}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{flag} {text}: {value!r} is no value of {key}") from None
    return ModelSpec(name, options)


def check_spec(spec: ModelSpec) -> None:
    """Raise UsageError for a name that neither this library nor timm knows; models of pytorchcv are not looked up."""
    if not spec.name.startswith(f"{PYTORCHCV}:"):
        check_name(spec.name)


def _split(text: str, separator: str) -> list[str]:
    """Split a text at separators that are not in brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "")
