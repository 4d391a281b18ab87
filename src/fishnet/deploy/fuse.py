"""Fusing of networks for inference: BatchNorms folded into convolutions, matrix product kernels for CPUs."""

from __future__ import annotations

from fishnet.models.fusing.network import NotFused, fuse

__all__ = ["NotFused", "fuse"]
