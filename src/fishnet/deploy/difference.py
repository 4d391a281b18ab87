"""Differences of an exported network from PyTorch, and how large they may be."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fishnet.errors import FishnetError, counted
from fishnet.files import Json


@dataclass(frozen=True)
class Tolerance:
    """Maximum differences at a precision."""

    outputs: float
    """Root mean square of the difference of an output, relative to that of the output."""
    repeat: float
    """The same, between two runs of the exported network."""
    score: float = float("inf")
    """Difference of scores."""
    box: float = float("inf")
    """Difference of coordinates in pixels of the network's input."""
    mask: float = float("inf")
    """Difference of mask probabilities."""
    agreement: float = 1.0
    """Minimum fraction of objects that both detect, and of pixels with the same class.

    In fp32 it is also below 1, since the order of objects with equal scores, as in uniform image regions, may differ.
    """
    overlap: float = 0.5
    """Minimum IoU of the boxes of an object for a match."""
    keypoints: float = 0.0
    """Minimum fraction of the keypoints of matched objects that both detect within `NEAR` pixels.

    A keypoint is the maximum of a heatmap: rounding moves it far where two maxima are nearly equal.
    """


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 1e-3, 0.1, 1e-2, 0.98, 0.9, keypoints=0.95),
    "fp16": Tolerance(0.05, 0.02, agreement=0.9),
    "bf16": Tolerance(0.2, 0.1, agreement=0.8),
    "int8": Tolerance(0.5, 0.1, agreement=0.6),
}
"""Tolerances by precision; those below fp32 only detect defects, since `--max-drop` controls the accuracy."""

NEAR = 1.0
"""Maximum difference of a keypoint's coordinates for both to agree, in pixels of the network's input."""


def largest(*values: float) -> float:
    """Return the largest value, 0 if there is none, and NaN if one is NaN, which the built-in `max` may drop."""
    return float(np.max([0.0, *values]))


@dataclass
class Difference:
    """Maximum differences between an exported network and PyTorch over all images."""

    images: int = 0
    """Number of images."""
    outputs: dict[str, float] = field(default_factory=dict)
    """Difference of each output of the network, relative to its root mean square."""
    order: float = 0.0
    """Change of an output caused by previously processed images, relative to its root mean square."""
    batch: float = 0.0
    """Change of an output caused by other images of its batch, relative to its root mean square."""
    score: float = 0.0
    """Difference of scores."""
    box: float = 0.0
    """Difference of box coordinates, in pixels of the network's input."""
    mask: float = 0.0
    """Difference of mask probabilities."""
    keypoint: float = 0.0
    """Difference of keypoint coordinates, in pixels of the network's input."""
    keypoints: int = 0
    """Number of keypoints compared."""
    near: int = 0
    """Number of these keypoints that both detect within `NEAR` pixels."""
    pixels: float = 1.0
    """Minimum fraction of the pixels of an image with the same class."""
    objects: int = 0
    """Number of objects that are certain enough in one of both to be compared."""
    matched: int = 0
    """Number of these objects that both detect."""
    has_masks: bool = False
    """Whether the detector predicts masks."""

    @property
    def agreement(self) -> float:
        """Fraction of objects that both detect, over all images, or of pixels with the same class if that is lower."""
        return min(self.pixels, self.matched / self.objects if self.objects else 1.0)

    @property
    def keypoint_agreement(self) -> float:
        """Fraction of keypoints that both detect within `NEAR` pixels."""
        return self.near / self.keypoints if self.keypoints else 1.0

    def add_keypoints(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """Add the differences of the keypoints of an object, both (K, 3): x, y and visibility."""
        moved = np.abs(wanted[:, :2] - got[:, :2]).max(axis=1)
        self.keypoint = largest(self.keypoint, *moved.tolist())
        self.keypoints += len(moved)
        self.near += int((moved <= NEAR).sum())

    def check(self, tolerance: Tolerance) -> None:
        """Raise FishnetError if a difference is out of tolerance."""
        for change, others in (
            (self.order, "previously processed images"),
            (self.batch, "the other images of a batch"),
        ):
            if not change <= tolerance.repeat:  # also true for NaN
                raise FishnetError(
                    f"the outputs of the exported network depend on {others}: they change by {change:.2g}, "
                    f"and the limit is {tolerance.repeat:.2g}; nothing was written. Try another format, for example "
                    "--format onnx"
                )
        worst = largest(*self.outputs.values())
        limits = [
            ("outputs", worst, tolerance.outputs),
            ("scores", self.score, tolerance.score),
            ("boxes", self.box, tolerance.box),
            ("masks", self.mask, tolerance.mask),
            ("disagreement", 1 - self.agreement, 1 - tolerance.agreement),
            ("fraction of keypoints that moved", 1 - self.keypoint_agreement, 1 - tolerance.keypoints),
        ]
        for name, value, limit in limits:
            if not value <= limit:  # also true for NaN
                raise FishnetError(
                    f"the exported network differs from PyTorch's: {name} {value:.2g}, more than the allowed "
                    f"{limit:.2g}; nothing was written. Try another --format or --precision"
                )

    def describe(self) -> str:
        """Return the differences in one line."""
        parts = [f"outputs {largest(*self.outputs.values()):.1e}", f"scores {self.score:.1e}"]
        if self.objects:
            masks = [f"masks {self.mask:.1e}"] if self.has_masks else []
            parts += [f"boxes {self.box:.1e} px", *masks, f"of {counted(self.objects, 'object')}"]
        if self.keypoints:
            parts.append(f"{100 * self.keypoint_agreement:.2f} % of keypoints within {NEAR:g} px")
        parts.append(f"{100 * self.agreement:.2f} % agree")
        return f"largest differences from PyTorch on {counted(self.images, 'image')}: " + ", ".join(parts)

    def to_dict(self) -> Json:
        """Return the differences as JSON values."""
        return {
            "images": self.images,
            "outputs": {name: float(f"{value:.3g}") for name, value in self.outputs.items()},
            "order": float(f"{self.order:.3g}"),
            "batch": float(f"{self.batch:.3g}"),
            "score": float(f"{self.score:.3g}"),
            "box": float(f"{self.box:.3g}"),
            "mask": float(f"{self.mask:.3g}"),
            "keypoint": float(f"{self.keypoint:.3g}"),
            "keypoint_agreement": self.keypoint_agreement,
            "agreement": self.agreement,
            "objects": self.objects,
        }
