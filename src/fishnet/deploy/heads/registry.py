"""Exports of heads: interface and registry. A module of this package registers its own; other packages add theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from fishnet.deploy import heads
from fishnet.deploy.difference import Difference
from fishnet.errors import UsageError
from fishnet.files import Json
from fishnet.models.heads.registry import import_modules
from fishnet.models.heads.types import Raw, Size
from fishnet.models.network import Network

HeadT = TypeVar("HeadT", bound=nn.Module)
"""Head of PyTorch."""
AnswerT = TypeVar("AnswerT")
"""Its prediction for an image."""


@dataclass(frozen=True)
class Part:
    """A module to export."""

    module: nn.Module
    """Module that takes one tensor and returns tensors by name."""
    input: str
    """Name of its input."""
    example: Tensor
    """Example input for tracing."""
    multiple: int = 0
    """Height and width of the input may be any multiple of this number of pixels; 0: they are fixed; 1: `convert.trace`
    determines the multiple."""


class HeadExport(Generic[HeadT, AnswerT]):
    """Export of a kind of head. Its decoder is a class in `fishnet.runner.heads.HEADS`."""

    def spec(self, head: HeadT, classes: list[str]) -> Json:
        """Return the entry of export.json: `type`, a name in `fishnet.runner.heads.HEADS`, and its fields."""
        raise NotImplementedError

    def outputs(self, head: HeadT, raw: Raw, size: Size) -> Raw:
        """Return the outputs of the dense graph by name, from those of `raw` for images of a size."""
        return raw

    def parts(self, network: Network, name: str) -> dict[str, Part]:
        """Return further graphs by name, such as those of a region stage, of the head `name` of a network."""
        return {}

    def compare(self, found: Difference, wanted: AnswerT, got: AnswerT, spec: Json, precision: str) -> None:
        """Add the differences of the predictions for an image.

        Args:
            found: Differences so far; changed in place.
            wanted: Prediction of PyTorch.
            got: Prediction of the exported network, as tensors.
            spec: Entry of export.json.
            precision: Numerical precision of the exported network.
        """
        raise NotImplementedError


EXPORTS: dict[type[nn.Module], HeadExport[nn.Module, object]] = {}
"""Exports that are registered so far; use `export_of` to look one up."""


def register_export(kind: type[HeadT], export: HeadExport[HeadT, AnswerT]) -> None:
    """Register the export of a class of heads and its subclasses."""
    EXPORTS[kind] = cast("HeadExport[nn.Module, object]", export)


def export_of(head: nn.Module) -> HeadExport[nn.Module, object]:
    """Return the export of a head; modules that register exports are imported on demand.

    Raises:
        UsageError: Heads of this kind cannot be exported.
    """
    kinds = type(head).__mro__
    if not any(kind in EXPORTS for kind in kinds):
        import_modules(heads)
    for kind in kinds:
        if kind in EXPORTS:
            return EXPORTS[kind]
    name = type(head).__name__
    raise UsageError(f"heads of the kind {name} cannot be exported: they have no decoder outside of PyTorch")
