"""Gradient norms of the losses of each head with respect to the features of the shared trunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fishnet.models.network import Network
from fishnet.models.trunk import Features


class TrunkGradients:
    """Gradients of the losses of every head with respect to the outputs of the trunk.

    Maps of a trunk may be computed from each other. Only gradients from heads and necks are included, not those that
    flow between maps within the trunk: these are the gradients that enter the trunk.

    Args:
        network: Network with several heads.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._features: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the outputs of the trunk during a forward pass inside the context."""

        def keep(module: torch.nn.Module, inputs: object, features: Features) -> Features:
            # heads receive views; the trunk computes its later maps from the original tensors
            maps = [one.view_as(one) for one in features.maps]
            vector = None if features.vector is None else features.vector.view_as(features.vector)
            found = [*maps, *([] if vector is None else [vector])]
            self._features = [one for one in found if one.requires_grad]
            return Features(maps, vector)

        handle = self.network.trunk.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def squares(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the squared gradient norm of the losses of each head with respect to maps and features, as
        `grad_norm_HEAD`; the graph is kept for the backward pass.

        Each process has its own features, so that squares add up over processes; see `norm_over_processes`.

        Args:
            losses: Losses by name, prefixed by the name of the head.
        """
        found: dict[str, Tensor] = {}
        for head in self.network.heads:
            own = [loss for name, loss in losses.items() if name.startswith(f"{head}_") and loss.requires_grad]
            if own and self._features:
                total = torch.stack(own).sum()
                grads = torch.autograd.grad(total, self._features, retain_graph=True, allow_unused=True)
                known = [grad.float().square().sum() for grad in grads if grad is not None]
                found[f"grad_norm_{head}"] = torch.stack(known).sum() if known else total.detach() * 0
        self._features = []
        return found


def norm_over_processes(mean_square: Tensor, processes: int) -> Tensor:
    """Return the gradient norm with respect to the features of all processes, for the mean loss over processes.

    Args:
        mean_square: Mean over processes of the squared gradient norm of the loss of a process.
        processes: Number of processes.
    """
    return (mean_square / processes).sqrt()
