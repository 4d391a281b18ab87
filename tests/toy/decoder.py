"""Decoder of the task in NumPy; an export takes a copy of this file along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fishnet.runner.head import Arrays, Graph, Head, Json, Thresholds
from fishnet.runner.heads import register_decoder
from fishnet.runner.prepare import Size

TYPE = "brightness"


@dataclass(frozen=True)
class BrightnessDecoder(Head[np.ndarray]):
    """One number per image."""

    def decode(self, raw: Arrays, canvas: Size, sizes: Sequence[Size], graphs: Mapping[str, Graph]) -> list[np.ndarray]:
        return list(raw["value"])

    def entry(self, answer: np.ndarray, seen: Size, size: Size, thresholds: Thresholds) -> Json:
        return {"predictions": [{"brightness": round(float(answer), 3)}]}


register_decoder(TYPE, BrightnessDecoder)
