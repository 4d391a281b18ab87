"""Losses of the pixel head: class scores of every pixel against a label map.

All are computed in fp32 (float64 logits stay float64) and leave out pixels with `ignore_index`; if no pixel is left,
they are zero with gradients of zero. With several processes, the average of a loss over them is the loss of their joint
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fishnet.errors import UsageError, did_you_mean
from fishnet.models.distributed import total, world_size
from fishnet.models.sorting import argsort


class LossOptions(NamedTuple):
    """Options of the losses."""

    class_weights: tuple[float, ...] | None = None
    """Weight of each class in cross-entropy, focal loss and OHEM; None weights all classes equally."""
    label_smoothing: float = 0.0
    """Label smoothing in cross-entropy and OHEM: fraction of the target that is distributed over all classes."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss; 0 means cross-entropy."""
    ohem_threshold: float = 0.7
    """OHEM takes the pixels whose true class has at most this probability."""
    ohem_keep: float = 1 / 16
    """Minimum fraction of the labeled pixels that OHEM selects, those with the highest loss."""


class Pixels(NamedTuple):
    """Scores and labels of a batch."""

    logits: Tensor
    """float (N, C, H, W): class scores."""
    labels: Tensor
    """int64 (N, H, W): class indices from 0, or `ignore_index`."""
    ignore_index: int = 255
    """Label of ignored pixels."""

    @property
    def valid(self) -> Tensor:
        """Return which pixels are labeled, bool (N, H, W)."""
        return self.labels != self.ignore_index

    @property
    def classes(self) -> Tensor:
        """Return the labels with 0 in place of `ignore_index`, int64 (N, H, W)."""
        return self.labels.where(self.valid, 0)


def cross_entropy(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the cross-entropy, divided by the sum of the class weights of the pixels as in PyTorch."""
    return _mean(_entropies(pixels, options), _weights(pixels, options))


def focal(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p, with p the softmax probability of the true class.

    Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002), section 3, for classes that exclude each
    other; the class weights are its alpha.
    """
    entropies = _entropies(pixels, LossOptions())
    # bounded away from 0, where the power has no finite derivative for exponents below 1
    wrong = -torch.expm1(-entropies)
    wrong = wrong.clamp(min=torch.finfo(wrong.dtype).eps)
    weights = _weights(pixels, options)
    return _mean(wrong**options.focal_gamma * entropies * weights, weights)


def ohem(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the mean cross-entropy of hard pixels: online hard example mining (arXiv 1604.03540) for pixels.

    A pixel is hard if the probability of its true class is at most `ohem_threshold`, or if its loss is among the
    `ohem_keep` highest of the batch.
    """
    with torch.no_grad():
        hardness = _entropies(pixels, LossOptions())
        everywhere, _ = _joined(hardness[pixels.valid])
        limit = -math.log(options.ohem_threshold)
        if count := math.ceil(options.ohem_keep * len(everywhere)):
            limit = min(limit, everywhere.topk(count).values[-1].item())
        hard = hardness >= limit
    return _mean(_entropies(pixels, options) * hard, _weights(pixels, options) * hard)


def dice(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return 1 - 2 sum(p t) / sum(p + t) over the pixels of the batch, as the mean over the classes in its labels.

    Milletari et al., V-Net (arXiv 1606.04797), with sums instead of sums of squares in the denominator.
    """
    valid = pixels.valid[:, None]
    found = pixels.logits.softmax(1) * valid
    truth = torch.zeros_like(found).scatter_(1, pixels.classes[:, None], valid.to(found.dtype))
    sums = torch.stack([(found * truth).sum((0, 2, 3)), found.sum((0, 2, 3)), truth.sum((0, 2, 3))])
    common, found_area, true_area = total(sums)
    present = true_area > 0
    losses = 1 - 2 * common / (found_area + true_area).where(present, 1)
    return losses.where(present, 0).sum() / present.sum().clamp(min=1)


def lovasz(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the Lovász-Softmax loss of the batch, as the mean over the classes in its labels.

    Berman et al. (arXiv 1705.08790), equation 11 and algorithm 1: the extension of 1 - IoU from sets of wrong pixels to
    errors in 0..1. It is linear in the sorted errors; its slopes depend on the errors of all processes.
    """
    found = pixels.logits.softmax(1).movedim(1, 0).flatten(1)
    labels, own = _joined(pixels.labels.flatten())
    valid = pixels.valid.flatten()
    present = labels[labels != pixels.ignore_index].bincount().nonzero().flatten().tolist()
    with torch.no_grad():
        constant, slopes = found.new_zeros(()), torch.zeros_like(found)
        for index in present:
            truth = labels == index
            inside = truth[own]
            # pixels without label come last in the order of the errors, where the slopes are 0
            errors = (inside.to(found.dtype) - found[index]).abs().where(valid, -1)
            by_error = _slopes(_joined(errors)[0], truth)[own].to(found.dtype)
            # an error is 1 - p where the class is true, and p elsewhere
            constant += (by_error * inside).sum()
            slopes[index] = by_error.where(~inside, -by_error)
    return ((found * slopes).sum() + constant) * (world_size() / max(1, len(present)))


LOSSES: dict[str, Callable[[Pixels, LossOptions], Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "ohem": ohem,
}
"""Losses by name."""


def weighted_losses(pixels: Pixels, weights: Mapping[str, float], options: LossOptions) -> dict[str, Tensor]:
    """Return the losses of a weighted sum, by name and already multiplied by their weights.

    Args:
        pixels: Scores and labels of a batch.
        weights: Weight of each loss, by a name in `LOSSES`.
        options: Options of the losses.
    """
    logits = pixels.logits
    with torch.autocast(logits.device.type, enabled=False):
        ready = pixels._replace(logits=logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return {name: weight * LOSSES[name](ready, options) for name, weight in weights.items()}


def check_losses(weights: Mapping[str, float], options: LossOptions, num_classes: int) -> None:
    """Raise UsageError for a weighted sum of losses that cannot be computed."""
    known = list(LOSSES)
    for name, weight in weights.items():
        if name not in LOSSES:
            near = did_you_mean(name, known)
            raise UsageError(f"unknown loss {name!r} of a pixel head.{near} Known are {', '.join(known)}")
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"the weight of the loss {name} must be above 0, not {weight}; leave the loss out instead")
    if not weights:
        raise UsageError(f"a pixel head needs at least one loss; known are {', '.join(known)}")
    if options.class_weights is not None:
        if len(options.class_weights) != num_classes:
            raise UsageError(f"class_weights has {len(options.class_weights)} values for {num_classes} classes")
        if min(options.class_weights) < 0 or not 0 < sum(options.class_weights) < math.inf:
            raise UsageError("class_weights must be finite, not negative, and not all 0")
    if not 0 <= options.label_smoothing < 1:
        raise UsageError(f"label_smoothing must be at least 0 and below 1, not {options.label_smoothing}")
    if not 0 <= options.focal_gamma < math.inf:
        raise UsageError(f"focal_gamma must be at least 0, not {options.focal_gamma}")
    if not 0 < options.ohem_threshold <= 1:
        raise UsageError(f"ohem_threshold must be above 0 and at most 1, not {options.ohem_threshold}")
    if not 0 <= options.ohem_keep <= 1:
        raise UsageError(f"ohem_keep must be from 0 to 1, not {options.ohem_keep}")


def _entropies(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the cross-entropy of each pixel (N, H, W), 0 where there is no label."""
    weights = options.class_weights
    return F.cross_entropy(
        pixels.logits,
        pixels.labels,
        weight=None if weights is None else pixels.logits.new_tensor(weights),
        ignore_index=pixels.ignore_index,
        reduction="none",
        label_smoothing=options.label_smoothing,
    )


def _weights(pixels: Pixels, options: LossOptions) -> Tensor:
    """Return the class weight of the label of each pixel (N, H, W), 0 where there is no label."""
    if options.class_weights is None:
        return pixels.valid.to(pixels.logits.dtype)
    return pixels.logits.new_tensor(options.class_weights)[pixels.classes] * pixels.valid


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of values (N, H, W) divided by the sum of the weights (N, H, W) of all processes."""
    count = total(weights.sum(dtype=torch.float64))
    factor = world_size() / count.where(count > 0, 1)
    return values.sum() * factor.to(values.dtype)


def _slopes(errors: Tensor, truth: Tensor) -> Tensor:
    """Return the derivative of the Lovász extension of 1 - IoU by each error (P,), in float64.

    Args:
        errors: Errors (P,) of the pixels, 0 to 1, or -1 for pixels without label.
        truth: Which pixels belong to the class, bool (P,).
    """
    # the bits of errors of 0 to 1 are integers in the order of the errors; those of -1 become a positive integer
    order = argsort(-errors.view(torch.int32)) if errors.dtype == torch.float32 else errors.argsort(descending=True)
    missed = truth[order].double().cumsum(0)
    area = missed[-1]
    ranks = torch.arange(1, len(errors) + 1, dtype=torch.float64, device=errors.device)
    costs = 1 - (area - missed) / (area + ranks - missed)
    steps = costs.diff(prepend=costs.new_zeros(1))
    return torch.empty_like(steps).scatter_(0, order, steps)


def _joined(own: Tensor) -> tuple[Tensor, slice]:
    """Return the vectors of all processes as one, without gradients, and where that of this process is in it."""
    own = own.detach()
    if world_size() == 1:
        return own, slice(0, len(own))
    counts = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(world_size())]
    torch.distributed.all_gather(counts, torch.tensor([len(own)], device=own.device))
    lengths = [int(count) for count in counts]
    longest = max(lengths)
    parts = [own.new_empty(longest) for _ in lengths]
    torch.distributed.all_gather(parts, F.pad(own, (0, longest - len(own))))
    start = sum(lengths[: torch.distributed.get_rank()])
    joined = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    return joined, slice(start, start + len(own))
