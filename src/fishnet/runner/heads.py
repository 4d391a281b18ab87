"""Decoders of exported networks by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import cast

from .classes import ClassifierHead
from .detectors import OneStageHead, TwoStageHead
from .head import Head
from .pixels import PixelHead

HEADS: dict[str, type] = {
    "classifier": ClassifierHead,
    "pixel": PixelHead,
    "one_stage": OneStageHead,
    "two_stage": TwoStageHead,
}
"""Decoders by the name that export.json gives them: dataclasses, whose fields are the other values there."""
COPIED = "decoder_"
"""Prefix of the modules with decoders of other packages, which an export copies beside this one."""


def register_decoder(name: str, decoder: type) -> None:
    """Register the decoder of another package.

    An export copies the module of the class, which may import NumPy, Pillow and `fishnet.runner`.

    Args:
        name: Value of `type` in export.json, a Python identifier.
        decoder: Dataclass, subclass of `Head`.

    Raises:
        ValueError: The name is not an identifier, or that of another decoder.
    """
    if not name.isidentifier():
        raise ValueError(f"the name of a decoder must be a Python identifier, not {name!r}")
    if HEADS.get(name, decoder) is not decoder:
        raise ValueError(f"a decoder named {name!r} is already registered; choose another name")
    HEADS[name] = decoder


def head_of(spec: Mapping[str, object]) -> Head[object]:
    """Return the decoder that an entry of export.json describes.

    Raises:
        KeyError: The type is unknown.
        TypeError: A value is missing or unknown.
    """
    values = dict(spec)
    name = str(values.pop("type"))
    copied = f"{__package__}.{COPIED}{name}"
    if name not in HEADS and name.isidentifier() and find_spec(copied):
        importlib.import_module(copied)
    kind = HEADS[name]
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    return cast("Head[object]", kind(**values))
