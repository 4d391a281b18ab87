"""Image-level head: one or several classes per image, from the pooled features of the trunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fishnet.errors import UsageError
from fishnet.models.heads.types import Frame, Mean, Means, Raw


@dataclass(frozen=True)
class ClassifierPlan:
    """Description of an image head, from which it is built."""

    kind: str = "classifier"
    num_classes: int = 1000
    """Number of outputs."""
    multi_label: bool = False
    """Whether an image can have any number of classes (binary cross entropy) instead of exactly one."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of the target that is distributed over all classes."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss; None weights all classes equally."""


class ImageHead(nn.Module):
    """Features (N, C) -> logits (N, classes): cross entropy, or binary cross entropy for several labels per image.

    Args:
        classifier: Last layer of the backbone, features -> logits; linear, or a 1x1 convolution.
        plan: Settings of the loss.
    """

    def __init__(self, classifier: nn.Module, plan: ClassifierPlan) -> None:
        super().__init__()
        self.classifier, self.plan = classifier, plan
        self.convolves = isinstance(classifier, nn.Conv2d)

    def raw(self, features: Tensor) -> Raw:
        """Return the logits, in fp32."""
        if self.convolves:
            return {"logits": self.classifier(features[:, :, None, None]).flatten(1).float()}
        return {"logits": self.classifier(features).float()}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        return ("loss",)

    def losses(self, raw: Raw, frame: Frame, targets: Tensor | list[Tensor]) -> Means:
        """Return the mean loss of a batch.

        Args:
            raw: Output of `raw`.
            frame: Sizes of the images; not used.
            targets: Class indices (N,), probabilities (N, classes) of mixed images, or multi-hot vectors (N, classes);
                or a list of N of them.
        """
        logits, plan = raw["logits"], self.plan
        targets = targets if isinstance(targets, Tensor) else torch.stack(targets)
        weights = None if plan.class_weights is None else logits.new_tensor(plan.class_weights)
        smooth = plan.label_smoothing
        if plan.multi_label:
            targets = targets * (1 - smooth) + smooth / 2
            return {"loss": Mean(F.binary_cross_entropy_with_logits(logits, targets, weight=weights), len(targets))}
        loss = F.cross_entropy(logits, targets, weight=weights, label_smoothing=smooth)
        if weights is None or targets.ndim > 1:
            return {"loss": Mean(loss, len(targets))}
        # PyTorch divides by the sum of the weights of the targets. In units of the smallest weight it is at least 1, as
        # a number of items is: processes are balanced by it, and a smaller one would count as none.
        count = weights[targets].sum() / weights[weights > 0].min()
        return {"loss": Mean(loss, count)}

    def decode(self, raw: Raw, frame: Frame) -> list[Tensor]:
        """Return the logits (classes,) of each image, in fp32."""
        return list(raw["logits"].float())  # an exported network may give others


def similar_layer(last: nn.Module, num_classes: int) -> nn.Module:
    """Return a new last layer with the inputs of another one, for a further head on the same features.

    Raises:
        UsageError: The layer is neither linear nor a convolution.
    """
    if type(last) is nn.Linear:
        return nn.Linear(last.in_features, num_classes, last.bias is not None)
    if type(last) is nn.Conv2d:
        return nn.Conv2d(last.in_channels, num_classes, last.kernel_size, bias=last.bias is not None)  # type: ignore[arg-type]
    raise UsageError(f"a network whose last layer is a {type(last).__name__} can have one classifier only")
