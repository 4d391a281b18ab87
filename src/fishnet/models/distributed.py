"""Reductions over the processes of a run; with one process every function returns its input unchanged.

DistributedDataParallel averages gradients over processes. A loss that is a mean over regions, pixels or objects equals
the mean of one large batch only if it is divided by the number of items in all processes, not in its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Item = TypeVar("Item")


def world_size() -> int:
    """Return the number of processes of this run."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def balanced(losses: list[Tensor], counts: list[int | Tensor]) -> list[Tensor]:
    """Scale means over the items of this process so that their averages over processes are the means over all items.

    Every process must pass the same number of losses, also those of which it has no items.

    Args:
        losses: Sums over the items of this process, each divided by max(1, count): scalars.
        counts: Number of items of each loss in this process.
    """
    if not _is_distributed() or not losses:
        return losses
    device = losses[0].device
    own = torch.stack([torch.as_tensor(count, dtype=torch.float64, device=device) for count in counts])
    factors = own.clamp(min=1) * world_size() / total(own).clamp(min=1)
    return [loss * factor.to(loss.dtype) for loss, factor in zip(losses, factors, strict=True)]


class _Total(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def total(values: Tensor) -> Tensor:
    """Return the differentiable element-wise sum over all processes; all must run its forward and its backward pass."""
    return _Total.apply(values) if _is_distributed() else values


def largest(values: list[int], device: torch.device) -> list[int]:
    """Return the element-wise maximum of a list of integers over all processes."""
    if not _is_distributed():
        return values
    found = torch.tensor(values, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return found.tolist()


def gathered(own: Item) -> list[Item]:
    """Return the objects of all processes in the first process, and an empty list in the others."""
    if not _is_distributed():
        return [own]
    first = torch.distributed.get_rank() == 0
    parts: list[Item] = [own] * world_size() if first else []
    torch.distributed.gather_object(own, parts if first else None, dst=0)
    return parts


def first_process(work: Callable[[], Item]) -> Item:
    """Run `work` in the first process only, and return its result in all processes.

    Raises:
        Exception: Whatever `work` raises, in all processes, so that none waits for the others.
    """
    if not _is_distributed():
        return work()
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
