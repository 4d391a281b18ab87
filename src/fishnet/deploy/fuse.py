"""Networks for inference: BatchNorms folded into convolutions, kernels of matrix products for CPUs."""

from __future__ import annotations

from fishnet.models.fusing.network import NotFused, fuse

__all__ = ["NotFused", "fuse"]
